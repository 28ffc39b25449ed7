"""Lookups and commits of all sizes side by side, some of them cancelled, late or wrong: nobody waits for ever."""

from __future__ import annotations

import random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiodatastore import Datastore, DatastoreError, Entity, Key
from aiodatastore.batching import LARGE_WRITES
from aiodatastore.errors import StoreBusyError
from tests.unit.stepping import SteppingAdapter, store

pytestmark = pytest.mark.anyio

TASKS, LAPS = 24, 12


class Task:
    """Puts entities of its own, and knows what may be stored."""

    def __init__(self, ds: Datastore, number: int, chance: random.Random) -> None:
        self.ds = ds
        self.keys = [Key("T", number + 1, "K", place) for place in range(1, LARGE_WRITES + 11)]
        self.chance = chance
        self.may_be: set[int | None] = {None}
        self.laps = 0

    async def run(self) -> None:
        for _ in range(LAPS):
            self.laps += 1
            await self.chance.choice(
                [self.put, self.put, self.put_many, self.get, self.cancelled, self.late, self.change]
            )()
            for _ in range(self.chance.choice([0, 0, 1, 5])):
                await anyio.lowlevel.checkpoint()
        await self.get()

    async def put(self, size: int = 1, **options: Any) -> None:
        value = self.laps
        entities = [Entity(key, {"n": value}) for key in self.keys[:size]]
        before = self.may_be
        self.may_be = before | {value}
        try:
            await self.ds.put(entities[0] if size == 1 else entities, **options)
        except DatastoreError:
            return  # it may have been written, or not
        self.may_be = {value}

    async def put_many(self) -> None:
        await self.put(self.chance.choice([2, LARGE_WRITES, len(self.keys)]))

    async def get(self) -> None:
        try:
            found = await self.ds.get(self.keys[0])
        except DatastoreError:
            return
        value = None if found is None else found["n"]
        assert value in self.may_be
        self.may_be = {value}

    async def change(self) -> None:
        async def work() -> None:
            entity = await self.ds.get(self.keys[0]) or Entity(self.keys[0])
            entity["n"] = self.laps
            await self.ds.put(entity)

        self.may_be = self.may_be | {self.laps}
        try:
            await self.ds.run_in_transaction(work)
        except DatastoreError:
            return
        self.may_be = {self.laps}

    async def cancelled(self) -> None:
        async def later(scope: anyio.CancelScope, turns: int) -> None:
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            scope.cancel()

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(later, scope, self.chance.randrange(12))
                await self.put(self.chance.choice([1, 1, LARGE_WRITES]))

    async def late(self) -> None:
        await self.put(self.chance.choice([1, LARGE_WRITES]), timeout=self.chance.choice([1e-6, 1e-4, 1e-3]))


def unreliable(adapter: SteppingAdapter, chance: random.Random) -> None:
    async def before() -> None:
        for _ in range(chance.choice([0, 1, 1, 2, 8])):
            await anyio.lowlevel.checkpoint()
        if chance.random() < 0.03:
            raise StoreBusyError("busy")

    adapter.before_commit = adapter.before_lookup = before


@pytest.mark.parametrize("seed", range(8))
async def test_everybody_is_answered(seed: int) -> None:
    chance = random.Random(seed)
    ds, adapter = store()
    async with ds:
        unreliable(adapter, chance)
        tasks = [Task(ds, number, chance) for number in range(TASKS)]
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for task in tasks:
                    group.start_soon(task.run)
            adapter.before_commit = adapter.before_lookup = None
            await ds._open_channel().wait_idle()
        for task in tasks:
            await task.get()
    assert max(adapter.sizes) > 4
