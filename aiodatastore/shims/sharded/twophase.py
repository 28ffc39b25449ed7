"""Commits over several adapters: two-phase commit with presumed abort, which any process may settle.

1. Every adapter but the *home* (the first by name) prepares its part, the last by name first. In this order no two
   commits can wait for each other.
2. The home commits its part together with a *decision record* that is named as the commit is and must not exist yet.
   With that the whole has taken place.
3. The others apply what they prepared, then the record is forgotten.

A prepared commit that nobody resolves, because the process that made it ended, is settled by the home's record: if it
is there, the commit took place; if not, a record that says *aborted* is written in its stead, so that whoever is merely
slow fails at step 2, and the commit is forgotten. So it is safe for any process, at any time, to settle any of them.

Between 2 and 3 a reader outside of transactions may see the home's part and not yet the others'. Transactions do not:
what they read in several adapters is verified there after all that was prepared is resolved. One that reads in a single
adapter may still be before the commit there, though another, that read at the home, has ended after it: what takes
place is serializable, and in one adapter in the order of time; over several that order holds once the commit returned.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import sniffio

from aiodatastore.adapters.base import MIXED, Adapter, Commit, Delete, Outcome, Put, ReadPolicy, RunOptions
from aiodatastore.entity import Entity
from aiodatastore.errors import DatastoreError, UnavailableError
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Capability
from aiodatastore.shims.sharded.parts import Part
from aiodatastore.shims.sharded.together import all_of, outcomes_of
from aiodatastore.waiting import to_the_end

__all__ = ["ORPHAN_S", "SYSTEM_PROJECT", "Coordinator", "can_prepare"]

_log = logging.getLogger("aiodatastore")

SYSTEM_PROJECT = "__collections__"
"""The project of the records that a collection keeps in its adapters: no query of an application is of it."""

ORPHAN_S = 5.0
"""A commit that was prepared so long ago is settled by whoever sees it."""
RECORD_S = 86400.0
"""So long a record that says *aborted* is kept: what it stands against is a commit that was sent before it."""
_FIRST_PAUSE_S = 0.01
_KIND = "Decision"
_COMMITTED, _ABORTED = "committed", "aborted"


class Collection(Protocol):
    """What of a collection its coordinator needs."""

    adapters: list[Adapter]
    names: tuple[str, ...]

    def fenced(self, number: int, commit: Commit) -> Commit:
        """A commit as the adapter gets it."""

    def joined(self, parts: Mapping[int, Part], outcomes: Sequence[Outcome]) -> Outcome:
        """One outcome of all parts'."""


class _Watch:
    """Sweeps while a call waits for long: what it waits for may have been left behind. Under asyncio only."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if sniffio.current_async_library() == "asyncio":
            self._timer = asyncio.get_running_loop().call_later(ORPHAN_S, self._sweep)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self._coordinator.begin_sweep()
        self._timer = asyncio.get_running_loop().call_later(ORPHAN_S, self._sweep)


class Coordinator:
    """Two-phase commits of a collection."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._settled: dict[int, list[Key]] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    def watch(self) -> _Watch:
        """Around what may have to wait for a commit that somebody else prepared."""
        return _Watch(self)

    def begin_sweep(self) -> None:
        """Sweep in a task of its own, if none does."""
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep_quietly())

    async def _sweep_quietly(self) -> None:
        try:
            await self.sweep()
        except DatastoreError as exc:
            _log.warning("commits that were left behind could not be settled now: %s", exc)

    async def aclose(self) -> None:
        """Let a sweep end, and forget what is settled, if the adapters can be reached."""
        for telling in self._telling:
            telling.cancel()
        tasks = [*self._telling, *([self._sweeping] if self._sweeping is not None else [])]
        if tasks:
            await asyncio.wait(tasks)
        await outcomes_of([self.forget])

    def _adapter(self, number: int) -> Adapter:
        return self._collection.adapters[number]

    async def commit(self, whole: Commit, parts: Mapping[int, Part]) -> Outcome:
        """All parts or none.

        :raises UnavailableError: if it is not known which, because the home can't be asked; it is one of both
        """
        outcome, error, cancelled = await to_the_end(self._commit(whole, parts))
        if error is not None:
            raise error
        if outcome is None:
            raise cancelled or UnavailableError("the commit was cut off while it was sent: it may have taken effect")
        if cancelled is not None:
            raise cancelled
        return outcome

    async def _commit(self, whole: Commit, parts: Mapping[int, Part]) -> Outcome:
        home, *others = sorted(parts, key=self._collection.names.__getitem__)
        name = f"{os.urandom(16).hex()}.{self._collection.names[home]}"
        decision = _decision_key(name)
        found: dict[int, Outcome] = {}
        tried: list[int] = []
        for number in reversed(others):
            tried.append(number)
            try:
                with self.watch():
                    outcome = await self._adapter(number).prepare(
                        self._collection.fenced(number, parts[number].commit(whole)), name
                    )
            except DatastoreError as exc:
                await self._resolve(tried, name, commit=False)  # whether it was prepared is not known
                if isinstance(exc, UnavailableError):
                    exc.nothing_written = True
                raise
            if outcome.version is None:
                await self._resolve(tried[:-1], name, commit=False)
                return Outcome(None, outcome.conflicts, outcome.stale_spans, outcome.error, MIXED)
            found[number] = outcome
        forgotten = self._settled.pop(home, [])
        own = Commit(
            {**parts[home].checks, decision: 0},
            parts[home].spans,
            [*parts[home].writes, Put(_decision(decision, _COMMITTED)), *map(Delete, forgotten)],
            whole.token,
        )
        try:
            with self.watch():
                (outcome,) = await self._adapter(home).commit([self._collection.fenced(home, own)])
        except DatastoreError as exc:
            self._settled.setdefault(home, []).extend(forgotten)
            version = await self._settle(name, others)
            if version is None:
                if isinstance(exc, UnavailableError):
                    exc.nothing_written = True
                raise
            outcome = Outcome(version)
        if outcome.version is None:
            self._settled.setdefault(home, []).extend(forgotten)
            await self._resolve(others, name, commit=False)
            conflicts = {key: actual for key, actual in outcome.conflicts.items() if key != decision}
            return Outcome(None, conflicts, outcome.stale_spans, outcome.error, MIXED)
        found[home] = outcome
        if await self._resolve(others, name, commit=True):
            self._settled.setdefault(home, []).append(decision)
        ordered = {number: parts[number] for number in found}
        return self._collection.joined(ordered, list(found.values()))

    async def _resolve(self, numbers: Sequence[int], name: str, *, commit: bool) -> bool:
        """Tell adapters; those that can't be reached are told again soon, or by a sweep. Whether all were told now."""
        left = await self._tell(numbers, name, commit)
        if left and sniffio.current_async_library() == "asyncio":
            telling = asyncio.get_running_loop().create_task(self._tell_again(left, name, commit))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        return not left

    async def _tell(self, numbers: Sequence[int], name: str, commit: bool) -> list[int]:
        """Which could not be told."""
        answers = await outcomes_of([partial(self._adapter(number).resolve, name, commit=commit) for number in numbers])
        return [number for number, answer in zip(numbers, answers, strict=True) if isinstance(answer, Exception)]

    async def _tell_again(self, numbers: Sequence[int], name: str, commit: bool) -> None:
        # What is prepared makes others wait, and who knows how it ended need not wait until it counts as left behind.
        pause_s = _FIRST_PAUSE_S
        while numbers and pause_s < ORPHAN_S:
            await asyncio.sleep(pause_s)
            pause_s *= 2
            numbers = await self._tell(numbers, name, commit)

    # ------------------------------------------------------------------------------------ recovery

    async def _settle(self, name: str, numbers: Sequence[int]) -> int | None:
        """Resolve a commit as its home says, after making sure that it can't say otherwise later.

        :returns: the version of the home's part, None if the commit did not and will not take place
        :raises UnavailableError: if the home can't be asked
        """
        version = await self._decide(name)
        await self._resolve(numbers, name, commit=version is not None)
        return version

    async def _decide(self, name: str) -> int | None:
        home = self._adapter(self._collection.names.index(name.partition(".")[2]))
        key = _decision_key(name)
        while True:
            record = (await home.lookup([key], read_policy=ReadPolicy.CURRENT)).entities[0]
            if record is not None:
                return record.version if record["state"] == _COMMITTED else None
            (outcome,) = await home.commit([Commit({key: 0}, writes=[Put(_decision(key, _ABORTED))])])
            if outcome.error is not None:
                raise outcome.error
            if outcome.version is not None:
                return None

    async def sweep(self, older_than_s: float = ORPHAN_S) -> int:
        """Settle what was prepared at least so long ago; how many commits that were."""
        orphans: dict[str, list[int]] = {}
        for number, found in enumerate(await all_of([child.prepared for child in self._collection.adapters])):
            for name, age_s in found:
                if age_s >= older_than_s and name.partition(".")[2] in self._collection.names:
                    orphans.setdefault(name, []).append(number)
        for name, numbers in orphans.items():
            await self._settle(name, numbers)
        return len(orphans)

    async def forget(self, older_than_s: float = RECORD_S) -> None:
        """Remove records that nobody will ask for: of commits that this process has settled, and old ones."""
        settled, self._settled = self._settled, {}
        for number, keys in settled.items():
            await self._adapter(number).commit([Commit(writes=list(map(Delete, keys)))])
        waiting = {
            _decision_key(name)
            for found in await all_of([child.prepared for child in self._collection.adapters])
            for name, _ in found
        }
        before = time.time() - older_than_s
        for child in self._collection.adapters:
            stream = child.run(Query(_KIND, project=SYSTEM_PROJECT), RunOptions())
            more = True
            while more:
                page = await stream.next_page()
                more = page.more
                old = [entity.key for entity in page.results if entity["at"] < before and entity.key not in waiting]
                if old:
                    await child.commit([Commit(writes=list(map(Delete, old)))])


def can_prepare(adapters: Sequence[Adapter]) -> bool:
    """Whether every adapter can."""
    return all(Capability.TWO_PHASE in adapter.capabilities for adapter in adapters)


def _decision_key(name: str) -> Key:
    return Key._make(SYSTEM_PROJECT, "", ((_KIND, name),))


def _decision(key: Key, state: str) -> Entity:
    return Entity(key, {"state": state, "at": time.time()}, unindexed=("state", "at"))
