"""Lines in front of contended entities: who waits is handed what the one before has written."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.contention import Contention, News
from aiodatastore.rowstore import Record, RowBatch, RowOutcome, RowRead

pytestmark = pytest.mark.anyio

COUNTER = Key("Counter", 1)


class Remote(MemoryRowStore):
    """A store that always has to be waited for, and counts how often it is asked."""

    capabilities = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.commits = 0

    async def open(self) -> None:
        if not self._is_open:  # by another datastore
            await super().open()

    def read_now(self, keys: Sequence[bytes]) -> list[Record | None] | None:  # type: ignore[override]
        return None

    async def read(self, keys: Sequence[bytes]) -> RowRead:
        self.reads += 1
        await anyio.lowlevel.checkpoint()
        return await super().read(keys)

    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        self.commits += 1
        await anyio.lowlevel.checkpoint()
        return await super().commit(batch)


async def raise_counter(ds: Datastore, times: int) -> None:
    async def add() -> None:
        counter = await ds.get(COUNTER) or Entity(COUNTER, {"n": 0})
        counter["n"] += 1
        await ds.put(counter)

    for _ in range(times):
        await ds.run_in_transaction(add, retries=1000)


async def test_a_hot_counter_takes_one_round_trip_each() -> None:
    store = Remote()
    async with Datastore(EngineAdapter(store)) as ds:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(raise_counter, ds, 10)
        counter = await ds.get(COUNTER)
        assert counter is not None
        assert counter["n"] == 200
    assert store.reads < 40
    assert store.commits < 240


async def test_what_another_process_wrote_meanwhile_is_noticed() -> None:
    store = Remote()
    async with Datastore(EngineAdapter(store)) as ds, Datastore(EngineAdapter(store)) as elsewhere:
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(raise_counter, ds, 10)
                group.start_soon(raise_counter, elsewhere, 10)
        counter = await ds.get(COUNTER)
        assert counter is not None
        assert counter["n"] == 200


async def test_deletes_are_handed_over_too() -> None:
    store = Remote()
    async with Datastore(EngineAdapter(store)) as ds:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            found = await ds.get(COUNTER)
            if found is None:
                await ds.put(Entity(COUNTER, {"n": 1}))
            else:
                await ds.delete(COUNTER)
            turns += 1

        async def work() -> None:
            for _ in range(4):
                await ds.run_in_transaction(turn, retries=1000)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(work)
        assert await ds.get(COUNTER) is None
        assert turns >= 40


# -------------------------------------------------------------------------------------------- the lines


async def waits(line: Contention, told: list[News | None]) -> None:
    assert await line.enter(COUNTER)
    told.append(line.take_news(COUNTER))


async def test_only_who_stood_there_before_is_told() -> None:
    news = News(None, 7)
    line = Contention()
    assert await line.enter(COUNTER)
    before = line.next(COUNTER)
    assert before is None
    told: list[News | None] = []
    async with anyio.create_task_group() as group:
        group.start_soon(waits, line, told)
        await anyio.wait_all_tasks_blocked()
        line.leave(COUNTER, news, before)  # it came after the commit was sent
    assert told == [None]
    async with anyio.create_task_group() as group:
        group.start_soon(waits, line, told)
        await anyio.wait_all_tasks_blocked()
        line.leave(COUNTER, news, line.next(COUNTER))
    assert told == [None, news]
    assert line.take_news(COUNTER) is None
    line.leave(COUNTER)
    assert line.hot([COUNTER]) is None
