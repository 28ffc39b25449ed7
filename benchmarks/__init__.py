"""The project's benchmarks: ``python -m benchmarks``.

The same work is done by this library and by others, side by side in one run: see ``docs/benchmarks.md``.
"""
