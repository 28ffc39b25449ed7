"""What is under way between a cache and its store, and what may be kept of it when it arrives.

A *flight* is a read or a commit that was sent. If meanwhile the cache is told of a change of one of its keys, the
flight is barred below that change's version: what it brings of the key is kept only if it is no older.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import anyio

from aiodatastore.adapters.base import Lookup, Moment
from aiodatastore.entity import Entity
from aiodatastore.key import Key

__all__ = ["NOTHING", "Flight", "Flights", "Found"]

Found = tuple[Entity | None, object, int]
"""An entity or None, and the moment (clock, version) at which it was so."""

NOTHING: Final = Moment(object(), 0)
"""As a bar: whatever the flight brings is too old."""


class Flight:
    """``started``: when it was sent, on the cache's clock; ``epoch``: which run of change messages covers it."""

    __slots__ = ("_bars", "_done", "epoch", "error", "found", "keys", "lookup", "over", "started")

    def __init__(self, keys: Collection[Key], started: float, epoch: int) -> None:
        self.keys = keys
        self.started = started
        self.epoch = epoch
        self.found: dict[Key, Found] = {}
        self.lookup: Lookup | None = None
        self.error: BaseException | None = None
        self.over = False
        self._bars: dict[Key, Moment] = {}
        self._done: anyio.Event | None = None

    def bar(self, key: Key, moment: Moment) -> None:
        """Keep nothing of a key that is older than this."""
        before = self._bars.get(key)
        if before is None or (before.clock is moment.clock and before.version < moment.version):
            self._bars[key] = moment
        elif before.clock is not moment.clock:
            self._bars[key] = NOTHING

    def brings(self, key: Key, clock: object, moment: int) -> bool:
        """Whether what it brings of a key may be kept."""
        if not self._bars:
            return True
        bar = self._bars.get(key)
        return bar is None or (bar.clock is clock and bar.version <= moment)

    def answer(self, keys: Collection[Key]) -> Lookup | None:
        """The child's own answer, if it is just that of these keys."""
        return self.lookup if len(keys) == len(self.keys) else None

    async def wait(self) -> None:
        """Return when it has landed."""
        if not self.over:
            if self._done is None:
                self._done = anyio.Event()
            await self._done.wait()

    def land(self) -> None:
        """It has arrived, or never will."""
        self.over = True
        if self._done is not None:
            self._done.set()


class Flights:
    """Those under way, by key; and of each key the read that another may wait for instead of sending one."""

    def __init__(self) -> None:
        self._by_key: dict[Key, list[Flight]] = {}
        self._open: dict[Key, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, flight: Flight, *, joinable: bool) -> None:
        """It sets out."""
        by_key = self._by_key
        for key in flight.keys:
            others = by_key.get(key)
            if others is None:
                by_key[key] = [flight]
            else:
                others.append(flight)
            if joinable:
                self._open[key] = flight

    def remove(self, flight: Flight) -> None:
        """It has landed."""
        for key in flight.keys:
            others = self._by_key[key]
            others.remove(flight)
            if not others:
                del self._by_key[key]
            if self._open.get(key) is flight:
                del self._open[key]
        flight.land()

    def joinable(self, key: Key) -> Flight | None:
        """The read under way that began after the last change of the key that is known."""
        return self._open.get(key)

    def bar(self, key: Key, moment: Moment) -> None:
        """The key changed then: reads that are under way may bring what was before."""
        others = self._by_key.get(key)
        if others is not None:
            self._open.pop(key, None)
            for flight in others:
                flight.bar(key, moment)

    def bar_all(self) -> None:
        """Anything may have changed."""
        self._open.clear()
        for key, others in self._by_key.items():
            for flight in others:
                flight.bar(key, NOTHING)
