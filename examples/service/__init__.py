"""A web service on aiodatastore: entities and transfers over HTTP. See ``examples/service/README.md``."""
