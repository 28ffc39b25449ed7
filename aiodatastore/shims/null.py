"""A store that keeps nothing: ``null://``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiodatastore.adapters import registry
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.indexing.rows import SYSTEM
from aiodatastore.rowstore import Capability, RowCommit, RowOutcome

__all__ = ["Null"]


class NullRowStore(MemoryRowStore):
    """Rows that are forgotten as soon as they are written, but for the engine's own: its format and its indexes."""

    capabilities = frozenset({Capability.TRIO, Capability.INLINE_READS, Capability.TTL})
    url = "null://"

    def _apply(
        self, commit: RowCommit, old_rows: Callable[[bytes, bytes], Mapping[bytes, int]], undo: Any
    ) -> RowOutcome:
        own = [put for put in commit.puts if put.key.startswith(SYSTEM)]
        outcome = super()._apply(commit._replace(puts=own, index_puts={}, index_deletes=()), old_rows, undo)
        written = commit.puts or commit.index_puts or commit.index_deletes
        if outcome.version is None or not written or own or commit.deletes:
            return outcome
        self._version += 1
        return RowOutcome(self._version)


class Null(EngineAdapter):
    """Accepts everything and forgets it: for measuring, for kinds that are not wanted, as the end of a test.

    Every read is empty. Queries are checked and planned as anywhere else. What is written gets a version, greater than
    all before; conditions are judged as they are where nothing is stored: ``insert`` succeeds, ``update`` finds no
    entity. Ids are handed out once, by this object. ``ttl`` is accepted: what is forgotten does not outlive it.

    >>> import asyncio
    >>> async def main():
    ...     async with Datastore(Null()) as ds:
    ...         await ds.put(Entity(Key("Person", "ada"), {"born": 1815}))
    ...         return await ds.get(Key("Person", "ada")), await ds.query("Person").count()
    >>> asyncio.run(main())
    (None, 0)

    ``options`` are those of :class:`~aiodatastore.adapters.engine.EngineAdapter`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(NullRowStore(), **options)


def from_url(url: str, **options: Any) -> Null:
    """An adapter for ``null://``; it has no settings of its own.

    :raises BadArgumentError: if the URL names a place, or an option is unknown
    """
    parts = registry.split_url(url, options, settings={})
    registry.refuse_location(parts, "null:// keeps nothing and takes no path")
    return Null(**parts.engine)
