"""What ``Datastore`` and its transactions do their I/O with."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint

from aiodatastore.adapters.base import Adapter, Commit, Lookup, Outcome, ReadPolicy, written_key
from aiodatastore.batching.chains import ChainedCommit
from aiodatastore.batching.commits import CommitBatcher
from aiodatastore.batching.lines import Batcher
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability

if TYPE_CHECKING:
    from aiodatastore.entity import Entity

__all__ = ["MAX_BATCH_KEYS", "MAX_HOLD_S", "MIN_HOLD_S", "Channel"]

MAX_BATCH_KEYS = 1000
"""Keys in one batch of lookups (and in one lookup of a longer list)."""
MAX_HOLD_S = 0.005
"""Seconds that a task may go on with calls that need no waiting before it lets the others run.

Several such tasks share them, down to :data:`MIN_HOLD_S` each.
"""
MIN_HOLD_S = 0.00025
"""Less is not worth the switch."""


def _never(keys: Sequence[Key]) -> None:
    """``lookup_now`` of an adapter that always has to wait."""


class _Lane:
    """The lines in front of one store."""

    __slots__ = ("commits", "current", "eventual", "lookups")

    def __init__(self, adapter: Adapter, when_answered: Callable[[float], None]) -> None:
        def line(read_policy: ReadPolicy) -> Batcher[Sequence[Key], Lookup]:
            return Batcher(partial(_lookup, adapter, read_policy), max_weight=MAX_BATCH_KEYS)

        self.commits = CommitBatcher(adapter)
        self.lookups = line(ReadPolicy.STRONG)
        self.eventual = line(ReadPolicy.EVENTUAL)
        self.commits.others = [self.lookups]
        self.lookups.others = [self.commits]
        self.current = self.lookups
        if Capability.CURRENT_READS not in adapter.capabilities:
            self.current = line(ReadPolicy.CURRENT)
        self.commits.when_answered = self.lookups.when_answered = when_answered

    async def wait_idle(self) -> None:
        for line in {self.lookups, self.current, self.eventual}:
            await line.wait_idle()
        await self.commits.wait_idle()


class Channel:
    """An adapter and the lines in front of it: what ``Datastore`` and its transactions do their I/O with.

    What concerns one of several stores has lines of its own (:meth:`~aiodatastore.adapters.base.Adapter.lane`): a store
    that is slow, or gone for a while, holds up nobody who does not need it.
    """

    __slots__ = (
        "_breathing",
        "_clock",
        "_lane",
        "_lane_of",
        "_lanes",
        "_token_count",
        "_token_prefix",
        "adapter",
        "lookup_now",
        "yield_at",
    )

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._lane = _Lane(adapter, self._note_answered)
        self._lane_of = adapter.lane if adapter.has_lanes else None
        self._lanes: dict[int, _Lane] = {}
        self._token_prefix = os.urandom(10)
        self._token_count = 0
        self.lookup_now = adapter.lookup_now if Capability.INLINE_READS in adapter.capabilities else _never
        self.yield_at = 0.0
        self._breathing = 0
        self._clock = time.perf_counter

    def token(self) -> bytes:
        """A new name for a commit."""
        self._token_count += 1
        return self._token_prefix + self._token_count.to_bytes(6, "big")

    def _lane_for(self, keys: Sequence[Key]) -> _Lane:
        number = self._lane_of(keys) if self._lane_of is not None and keys else None
        if number is None:
            return self._lane
        lane = self._lanes.get(number)
        if lane is None:
            lane = self._lanes[number] = _Lane(self.adapter, self._note_answered)
        return lane

    async def lookup_one(self, key: Key) -> Entity | None:
        """An entity, for a task that has just let others run."""
        keys = (key,)
        lane = self._lane if self._lane_of is None else self._lane_for(keys)
        return (await lane.lookups.call(keys)).entities[0]

    async def lookup(self, keys: Sequence[Key], read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """Entities of at most :data:`MAX_BATCH_KEYS` complete keys; those of a key named twice are two."""
        if self._clock() >= self.yield_at:
            await self.breathe()
        lane = self._lane if self._lane_of is None else self._lane_for(keys)
        if read_policy is ReadPolicy.STRONG:
            line = lane.lookups
        else:
            line = lane.current if read_policy is ReadPolicy.CURRENT else lane.eventual
        return await line.call(keys, len(keys))

    async def commit(self, commit: Commit, deadline: float = math.inf) -> tuple[Outcome, BaseException | None]:
        """See :meth:`~aiodatastore.batching.commits.CommitBatcher.settle`; before it is sent, a task that held the loop
        lets others run."""
        if self._clock() >= self.yield_at:
            await self.breathe()
        lane = self._lane
        if self._lane_of is not None and not commit.spans:
            lane = self._lane_for([*commit.checks, *map(written_key, commit.writes)])
        return await lane.commits.settle(commit, deadline)

    async def commit_chained(
        self, commit: ChainedCommit, deadline: float = math.inf
    ) -> tuple[Outcome, BaseException | None]:
        """The same at once, in the line of the one entity that it writes, where those before and after it stand."""
        lane = self._lane if self._lane_of is None else self._lane_for((commit.key,))
        return await lane.commits.settle(commit, deadline)

    def _note_answered(self, now: float) -> None:
        """Calls have waited, so that other tasks ran: nobody has held the loop."""
        self.yield_at = now + max(MIN_HOLD_S, MAX_HOLD_S / (1 + self._breathing))

    async def breathe_if_due(self) -> None:
        """:meth:`breathe` if this task may have held the loop for :data:`MAX_HOLD_S`."""
        if self._clock() >= self.yield_at:
            await self.breathe()

    async def breathe(self) -> None:
        """Let other tasks run, and notice cancellation. Not needed again for :data:`MAX_HOLD_S`."""
        self.yield_at = self._clock() + max(MIN_HOLD_S, MAX_HOLD_S / (1 + self._breathing))
        self._breathing += 1
        try:
            await checkpoint()
        finally:
            self._breathing -= 1
        self.yield_at = self._clock() + max(MIN_HOLD_S, MAX_HOLD_S / (1 + self._breathing))

    async def wait_idle(self) -> None:
        """Return when no call is under way."""
        for lane in (self._lane, *self._lanes.values()):
            await lane.wait_idle()


async def _lookup(adapter: Adapter, read_policy: ReadPolicy, batch: list[Sequence[Key]]) -> list[Lookup]:
    if len(batch) == 1 and len(batch[0]) == 1:
        return [await adapter.lookup(batch[0], read_policy=read_policy)]
    wanted = [key for keys in batch for key in keys]
    unique = list(dict.fromkeys(wanted))
    found = await adapter.lookup(unique, read_policy=read_policy)
    if len(unique) == len(wanted) and found.moments is None:  # nearly always
        version, clock, each = found.version, found.clock, iter(found.entities)
        return [Lookup(list(islice(each, len(keys))), version, clock) for keys in batch]
    places = {key: place for place, key in enumerate(unique)}
    taken: set[Key] = set()
    answers = []
    for keys in batch:
        own: list[Entity | None] = []
        for key in keys:
            entity = found.entities[places[key]]
            if entity is not None and key in taken:
                entity = entity.snapshot()
            taken.add(key)
            own.append(entity)
        answers.append(found.part(own, [places[key] for key in keys]))
    return answers
