"""Adapters over adapters: caches, shards, namespaces, logs, faults."""
