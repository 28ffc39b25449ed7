"""Complete programs on aiodatastore; each is tested like the library."""
