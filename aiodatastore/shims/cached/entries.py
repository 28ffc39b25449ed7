"""What a cache holds in memory: copies of entities, the least recently used going first."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiodatastore.entity import Entity
from aiodatastore.key import Key

__all__ = ["Entries", "Entry", "approximate_bytes"]

_ENTRY_BYTES = 500
"""Of an entry without its properties: itself, its key, its place, an empty entity."""
_VALUE_BYTES = 56


class Entry:
    """A copy of an entity (None: there is none), which was so at ``moment`` on ``clock``.

    Times are of the cache's clock, in seconds: it may be served ``until`` then, and, if somebody confirms that it is
    current still, up to ``last``. ``epoch`` says which run of change messages covers it; -1: none.
    """

    __slots__ = ("clock", "entity", "epoch", "last", "moment", "size", "until", "version")

    def __init__(
        self,
        entity: Entity | None,
        clock: object,
        moment: int,
        until: float,
        last: float = math.inf,
        epoch: int = -1,
        size: int = 0,
    ) -> None:
        self.entity = entity
        self.version = 0 if entity is None else entity.version
        self.clock = clock
        self.moment = moment
        self.until = min(until, last)
        self.last = last
        self.epoch = epoch
        self.size = size


class Entries:
    """Entries by key, at most so many of them and so many bytes, roughly."""

    def __init__(self, max_entities: int, max_bytes: int) -> None:
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._max_entities = max_entities
        self._max_bytes = max_bytes
        self.bytes = 0
        self.evicted = 0
        self.get: Callable[[Key], Entry | None] = self._entries.get
        self.touch: Callable[[Key], None] = self._entries.move_to_end

    def __len__(self) -> int:
        return len(self._entries)

    def set(self, key: Key, entry: Entry) -> None:
        """Put an entry in, and the least recently used ones out."""
        entries = self._entries
        entry.size = _ENTRY_BYTES if entry.entity is None else _ENTRY_BYTES + approximate_bytes(entry.entity.values())
        old = entries.pop(key, None)
        if old is not None:
            self.bytes -= old.size
        if entry.size > self._max_bytes:
            return
        entries[key] = entry
        self.bytes += entry.size
        while self.bytes > self._max_bytes or len(entries) > self._max_entities:
            _, gone = entries.popitem(last=False)
            self.bytes -= gone.size
            self.evicted += 1

    def drop(self, key: Key) -> bool:
        """Take one out; whether it was there."""
        old = self._entries.pop(key, None)
        if old is None:
            return False
        self.bytes -= old.size
        return True

    def clear(self) -> None:
        """Take all out."""
        self._entries.clear()
        self.bytes = 0


def approximate_bytes(values: Iterable[Any]) -> int:
    """Memory that values take, give or take a half."""
    total = 0
    for value in values:
        total += _VALUE_BYTES
        kind = type(value)
        if kind is str or isinstance(value, bytes | str):
            total += len(value)
        elif kind is list:
            total += approximate_bytes(value)
        elif isinstance(value, Mapping):
            total += 200 + approximate_bytes(value) + approximate_bytes(value.values())
    return total
