"""The world's cities in a datastore: import, queries, pages, transactions. ``python -m examples.cities --help``."""
