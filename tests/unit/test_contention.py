"""Lines in front of contended entities: who waits is handed what the one before has written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiodatastore import Datastore, Entity, Key, Rollback
from aiodatastore.adapters.base import Outcome, Put
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.batching import ChainedCommit
from aiodatastore.contention import HOT_S, Contention, News
from aiodatastore.errors import UnavailableError
from aiodatastore.rowstore import Record, RowBatch, RowOutcome, RowRead

pytestmark = pytest.mark.anyio

COUNTER = Key("Counter", 1)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Lines rest by a clock whose ``now`` a test moves, and nobody loses patience: a machine that stalls decides
    nothing."""
    made = SimpleNamespace(now=1000.0)
    made.monotonic = lambda: made.now
    monkeypatch.setattr("aiodatastore.contention.time", made)
    monkeypatch.setattr("aiodatastore.contention.PATIENCE_S", 3600.0)
    return made


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


async def test_changes_of_a_hot_counter_that_wait_go_together() -> None:
    store = Remote()
    async with Datastore(EngineAdapter(store)) as ds:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(raise_counter, ds, 10)
        counter = await ds.get(COUNTER)
        assert counter is not None
        assert counter["n"] == 200
    assert store.reads < 40
    assert store.commits < 80  # of 200; how tasks take turns under trio is chance


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


async def test_only_who_stood_there_before_is_told(clock: SimpleNamespace) -> None:
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
    assert line.hot([COUNTER]) == COUNTER
    clock.now += 0.5 * HOT_S
    assert line.hot([COUNTER]) == COUNTER
    clock.now += HOT_S
    assert line.hot([COUNTER]) is None


async def test_a_line_is_left_to_who_comes_while_the_commit_is_under_way() -> None:
    line = Contention()
    commit = ChainedCommit(writes=[Put(Entity(COUNTER, {"n": 1}))], key=COUNTER)
    news = News(Entity(COUNTER, {"n": 1}), 0, commit)
    assert await line.enter(COUNTER)
    line.leave(COUNTER, news)
    assert not line.idle()
    assert await line.enter(COUNTER)
    assert line.take_news(COUNTER) is news
    line.leave(COUNTER, news)
    commit.outcome = Outcome(7)
    line.close(COUNTER, commit)
    assert line.idle()
    assert await line.enter(COUNTER)
    assert line.take_news(COUNTER) is None


# -------------------------------------------------------------------------------------------- following


class Stepping(Remote):
    """Commits that wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: anyio.Event | None = None
        self.fails = False

    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            self.fails = False
            raise UnavailableError("gone")
        return await super().commit(batch)


async def followed(ds: Datastore, store: Stepping, second: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What a second transaction gives that follows one which sets the counter to 1, as far as that is decided."""
    await ds.put(Entity(COUNTER, {"n": 0}))
    results: list[Any] = []
    seen: list[int] = []

    async def first() -> None:
        counter = await ds.get(COUNTER)
        assert counter is not None
        counter["n"] += 1
        await ds.put(counter)

    async def run_second() -> None:
        async def body() -> Any:
            counter = await ds.get(COUNTER)
            assert counter is not None
            seen.append(counter["n"])
            return await second()

        try:
            results.append(await ds.run_in_transaction(body))
        except Exception as exc:
            results.append(exc)

    async def run_first() -> None:
        try:
            await ds.run_in_transaction(first)
        except UnavailableError as exc:
            results.append(exc)

    assert await ds._contention.enter(COUNTER)
    ds._contention.leave(COUNTER)  # it was contended a moment ago
    store.gate = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(run_first)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(run_second)
        await anyio.wait_all_tasks_blocked()
        try:
            assert results == []
        finally:
            store.gate.set()  # a commit is waited for whatever happens, by an event loop that ends, too
    results.append(seen)
    return results


async def test_what_a_follower_returns_waits_for_the_one_before() -> None:
    store = Stepping()
    async with Datastore(EngineAdapter(store)) as ds:

        async def read_only() -> str:
            return "read"

        assert await followed(ds, store, read_only) == ["read", [1]]


@pytest.mark.parametrize("way", ["returns", "raises", "rolls back", "writes", "reads more"])
async def test_a_follower_of_a_commit_that_fails_runs_again(way: str) -> None:
    store = Stepping()
    store.fails = False
    async with Datastore(EngineAdapter(store)) as ds:
        runs = 0

        async def second() -> Any:
            nonlocal runs
            runs += 1
            counter = await ds.get(COUNTER)
            assert counter is not None
            if counter["n"] == 1:
                if way == "raises":
                    raise ValueError("of what never was")
                if way == "rolls back":
                    raise Rollback
            if way == "writes":
                counter["n"] += 10
                await ds.put(counter)
            if way == "reads more":
                return [await ds.get(Key("Other", 1)), counter["n"]]
            return counter["n"]

        def break_next() -> Awaitable[Any]:
            return second()

        await ds.put(Entity(COUNTER, {"n": 0}))
        store.fails = False
        original = store.commit

        async def failing(batch: RowBatch) -> list[RowOutcome]:
            store.commit = original  # type: ignore[method-assign]
            await store.gate.wait()  # type: ignore[union-attr]
            raise UnavailableError("gone")

        async def prepare() -> None:
            store.commit = failing  # type: ignore[method-assign]

        await ds.put(Entity(COUNTER, {"n": 0}))
        results = await followed_failing(ds, store, prepare, break_next)
        gone, outcome = results
        assert isinstance(gone, UnavailableError)
        assert runs == 2
        wanted: dict[str, Any] = {"reads more": [None, 0], "raises": 0, "rolls back": 0, "returns": 0, "writes": 0}
        assert outcome == wanted[way] or (way == "writes" and outcome == 10)
        counter = await ds.get(COUNTER)
        assert counter is not None
        assert counter["n"] == (10 if way == "writes" else 0)


async def followed_failing(
    ds: Datastore, store: Stepping, prepare: Callable[[], Awaitable[None]], second: Callable[[], Awaitable[Any]]
) -> list[Any]:
    results: list[Any] = []

    async def first() -> None:
        counter = await ds.get(COUNTER)
        assert counter is not None
        counter["n"] += 1
        await ds.put(counter)

    async def run_first() -> None:
        try:
            await ds.run_in_transaction(first)
        except UnavailableError as exc:
            results.insert(0, exc)

    async def run_second() -> None:
        results.append(await ds.run_in_transaction(second))

    assert await ds._contention.enter(COUNTER)
    ds._contention.leave(COUNTER)
    store.gate = anyio.Event()
    await prepare()
    async with anyio.create_task_group() as group:
        group.start_soon(run_first)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(run_second)
        await anyio.wait_all_tasks_blocked()
        store.gate.set()
    return results


async def test_if_version_of_an_entity_that_was_followed() -> None:
    store = Stepping()
    async with Datastore(EngineAdapter(store)) as ds:

        async def second() -> Any:
            counter = await ds.get(COUNTER)
            assert counter is not None
            version = counter.version
            counter["n"] += 1
            await ds.put(counter, if_version=version)
            return "put"

        assert await followed(ds, store, second) == ["put", [1]]
        counter = await ds.get(COUNTER)
        assert counter is not None
        assert counter["n"] == 2


async def test_versions_of_commits_that_became_one_are_never_the_stored_one() -> None:
    store = Remote()
    async with Datastore(EngineAdapter(store)) as ds:
        await ds.put(Entity(COUNTER, {"n": 0}))
        written: list[Entity] = []

        async def add() -> None:
            counter = await ds.get(COUNTER)
            assert counter is not None
            counter["n"] += 1
            await ds.put(counter)
            ds_transaction_result.append(counter)

        ds_transaction_result: list[Entity] = []

        async def work() -> None:
            for _ in range(5):
                await ds.run_in_transaction(add, retries=1000)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(work)
        stored = await ds.get(COUNTER)
        assert stored is not None
        assert stored["n"] == 50
        written = [entity for entity in ds_transaction_result if entity.version == stored.version]
        assert [entity["n"] for entity in written] == [50]
