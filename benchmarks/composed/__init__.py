"""What shims and collections cost, beside the stores that they are made of; and plain values by path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from benchmarks.composed.cached import commits, gets, second_level, sweep
from benchmarks.composed.keyvalue import plain_values
from benchmarks.composed.sharded import cluster, plain, queries, transactions, width
from benchmarks.composed.shims import one_shim, stacks

if TYPE_CHECKING:
    from benchmarks.suite import Context

__all__ = ["COMPOSED", "COMPOSED_WORKS"]

COMPOSED_WORKS = ("shims", "cached", "sharded", "keyvalue")

COMPOSED: dict[str, tuple[str, str, Callable[[Context], Awaitable[None]]]] = {
    "shims": ("memory", "shims", one_shim),
    "shims_stacks": ("memory", "shims", stacks),
    "cached_get": ("postgres", "cached", gets),
    "cached_put": ("postgres", "cached", commits),
    "cached_zipf": ("postgres", "cached", sweep),
    "cached_shared": ("postgres redis", "cached", second_level),
    "sharded_query": ("sqlite", "sharded", queries),
    "sharded_width": ("memory sqlite", "sharded", width),
    "sharded_plain": ("memory sqlite", "sharded", plain),
    "sharded_transaction": ("postgres", "sharded", transactions),
    "sharded_cluster": ("redis cluster", "sharded", cluster),
    "keyvalue": ("memory sqlite", "keyvalue", plain_values),
}
"""Name → engines, works and what runs it. Results are named after these, too."""
