"""What travels together, and what happens when some of it fails or is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiodatastore.adapters.base import Commit, Put
from aiodatastore.batching import MAX_BATCH_KEYS, MAX_HOLD_S, Batcher
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadRequestError,
    DeadlineExceededError,
    EntityExistsError,
    StoreBusyError,
    StoreClosedError,
)
from aiodatastore.key import Key
from tests.unit.stepping import Gate, store

pytestmark = pytest.mark.anyio


def key(number: int) -> Key:
    return Key("K", number)


def entity(number: int, **values: Any) -> Entity:
    return Entity(key(number), values or {"n": number})


async def settled(turns: int = 20) -> None:
    """Let other tasks get as far as they can."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()


async def collect(results: list[Any], operation: Callable[[], Awaitable[Any]]) -> None:
    try:
        results.append(await operation())
    except Exception as exc:
        results.append(exc)


# ------------------------------------------------------------------------------------------------ lookups


async def test_a_lone_call_goes_out_at_once() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put(entity(1))
        await ds.get(key(1))
        await ds.get(key(2))
    assert adapter.lookups == [[key(1)], [key(2)]]
    assert adapter.sizes == [1]


async def test_gets_that_wait_travel_together() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put([entity(n) for n in range(1, 6)])
        gate = adapter.before_lookup = Gate()
        found: dict[int, Entity | None] = {}

        async def get(number: int) -> None:
            found[number] = await ds.get(key(number))

        async with anyio.create_task_group() as group:
            group.start_soon(get, 1)
            await gate.arrived.wait()
            for number in range(2, 9):
                group.start_soon(get, number)
            await settled()
            gate.opened.set()
    assert [sorted(keys) for keys in adapter.lookups] == [[key(1)], [key(n) for n in range(2, 9)]]
    assert found == {n: entity(n) if n < 6 else None for n in range(1, 9)}


async def test_one_key_asked_for_by_several_is_read_once_and_shared_by_nobody() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put(Entity(key(1), {"tags": ["a"]}))
        gate = adapter.before_lookup = Gate()
        found: list[Any] = []
        async with anyio.create_task_group() as group:
            group.start_soon(collect, found, lambda: ds.get(key(9)))
            await gate.arrived.wait()
            for _ in range(3):
                group.start_soon(collect, found, lambda: ds.get([key(1), key(1)]))
            await settled()
            gate.opened.set()
        entities = [each for pair in found[1:] for each in pair]
        for each in entities:
            each["tags"].append("b")
    assert adapter.lookups[1] == [key(1)]
    assert len({id(each) for each in entities}) == 6
    assert all(each["tags"] == ["a", "b"] for each in entities)


async def test_batches_are_bounded_and_in_turn() -> None:
    sent: list[list[int]] = []

    async def send(batch: list[int]) -> list[int]:
        sent.append(batch)
        await anyio.lowlevel.checkpoint()
        return [-number for number in batch]

    batcher: Batcher[int, int] = Batcher(send, max_weight=3)
    results: dict[int, int] = {}

    async def call(number: int) -> None:
        results[number] = await batcher.call(number)

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(call, number)
    assert [len(batch) for batch in sent] == [1, 3, 3, 1]
    assert results == {number: -number for number in range(8)}
    await batcher.wait_idle()


def recorded() -> tuple[list[list[int]], Batcher[int, int]]:
    """What is sent, and what sends it and answers the same."""
    sent: list[list[int]] = []

    async def send(batch: list[int]) -> list[int]:
        sent.append(batch)
        await anyio.lowlevel.checkpoint()
        return batch

    return sent, Batcher(send, max_weight=100)


async def test_calls_that_came_together_are_waited_for_the_next_time() -> None:
    sent, batcher = recorded()
    for size in (10, 10, 1, 1, 10):
        async with anyio.create_task_group() as group:
            for number in range(size):
                group.start_soon(batcher.call, number)
    # The first of many goes alone where nothing was known of the others, or nothing any more.
    assert list(map(len, sent)) == [1, 9, 10, 1, 1, 1, 9]


async def test_tasks_of_long_ago_are_not_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("aiodatastore.batching.lines.time", SimpleNamespace(perf_counter=lambda: now))
    sent, batcher = recorded()
    for size in (32, 64):
        sent.clear()
        async with anyio.create_task_group() as group:
            for number in range(size):
                group.start_soon(batcher.call, number)
        now += 0.05
    assert list(map(len, sent)) == [32, 32]


async def test_who_waits_for_others_may_be_cancelled() -> None:
    sent, batcher = recorded()
    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(batcher.call, number)
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await batcher.call(7)
        group.start_soon(batcher.call, 8)
    assert scope.cancelled_caught
    one, two, last = sent
    assert (len(one), sorted(one + two), last) == (1, [0, 1, 2], [8])  # trio starts tasks in any order
    await batcher.wait_idle()


@pytest.mark.parametrize(
    ("waiting", "last", "beside", "taken"),
    [
        (10, 5, 0, 10),  # few
        (32, 32, 0, 32),  # half of them are at work
        (64, 1, 0, 33),
        (40, 23, 0, 40),  # a few more than half
        (41, 23, 0, 32),
        (62, 2, 0, 32),
        (32, 1, 32, 32),  # half of them are in the other line
    ],
)
async def test_half_of_all_tasks_go_at_once(waiting: int, last: int, beside: int, taken: int) -> None:
    async def send(batch: list[int]) -> list[int]:
        return batch

    batcher, other = (Batcher[int, int](send, max_weight=100) for _ in range(2))
    batcher.others, other.others = [other], [batcher]
    async with anyio.create_task_group() as group:
        for line, calls in ((other, beside), (batcher, waiting)):
            line._busy = True  # so that all calls wait
            for number in range(calls):
                group.start_soon(line.call, number)
        await settled()
        batcher._last = last
        batch = batcher._take_batch()
        assert len(batch) == taken
        group.cancel_scope.cancel()


async def test_long_lists_are_read_in_parts() -> None:
    ds, adapter = store()
    async with ds:
        found = await ds.get([key(n) for n in range(1, MAX_BATCH_KEYS + 2)])
    assert len(found) == MAX_BATCH_KEYS + 1
    assert [len(keys) for keys in adapter.lookups] == [MAX_BATCH_KEYS, 1]


@pytest.mark.parametrize("who", ["first", "leader", "member"])
async def test_a_cancelled_lookup_disturbs_no_other(who: str) -> None:
    ds, adapter = store()
    async with ds:
        await ds.put([entity(n) for n in range(1, 5)])
        scopes = {n: anyio.CancelScope() for n in range(1, 5)}
        found: dict[int, Entity | None] = {}

        async def get(number: int) -> None:
            with scopes[number]:
                found[number] = await ds.get(key(number))

        first = adapter.before_lookup = Gate()
        async with anyio.create_task_group() as group:
            group.start_soon(get, 1)
            await first.arrived.wait()
            for number in range(2, 5):
                group.start_soon(get, number)
                await settled()
            if who == "first":
                scopes[1].cancel()
                adapter.before_lookup = None
            else:
                second = adapter.before_lookup = Gate()
                first.opened.set()
                await second.arrived.wait()
                scopes[2 if who == "leader" else 3].cancel()
                await settled()
                adapter.before_lookup = None
                second.opened.set()
    gone = {"first": 1, "leader": 2, "member": 3}[who]
    assert found == {n: entity(n) for n in range(1, 5) if n != gone}
    assert not ds._contention._lines


async def test_the_baton_is_passed_on_by_who_is_cancelled_when_it_arrives() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put([entity(n) for n in range(1, 4)])
        gate = adapter.before_lookup = Gate()
        scope = anyio.CancelScope()
        found: list[Any] = []

        async def cancelled() -> None:
            with scope:
                await ds.get(key(2))

        async with anyio.create_task_group() as group:
            group.start_soon(collect, found, lambda: ds.get(key(1)))
            await gate.arrived.wait()
            group.start_soon(cancelled)
            await settled()
            group.start_soon(collect, found, lambda: ds.get(key(3)))
            await settled()
            adapter.before_lookup = None
            gate.opened.set()
            scope.cancel()
    assert found == [entity(1), entity(3)]


async def test_an_error_reaches_each_call_as_its_own() -> None:
    ds, adapter = store()
    async with ds:
        gate = adapter.before_lookup = Gate()
        adapter.lookup_error = StoreBusyError("busy")
        found: list[Any] = []
        async with anyio.create_task_group() as group:
            group.start_soon(collect, found, lambda: ds.get(key(1)))
            await gate.arrived.wait()
            for number in range(2, 5):
                group.start_soon(collect, found, lambda n=number: ds.get(key(n)))
            await settled()
            gate.opened.set()
        assert [str(error) for error in found] == ["busy"] * 4
        assert all(type(error) is StoreBusyError for error in found)
        assert len({id(error) for error in found[1:]}) == 3
        adapter.lookup_error = adapter.before_lookup = None
        assert await ds.get(key(1)) is None


# ------------------------------------------------------------------------------------------------ commits


async def test_puts_that_wait_travel_together_and_conflict_alone() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put(entity(3))
        gate = adapter.before_commit = Gate()
        results: list[Any] = []
        async with anyio.create_task_group() as group:
            group.start_soon(collect, results, lambda: ds.put(entity(1)))
            await gate.arrived.wait()
            for number in range(2, 6):
                group.start_soon(collect, results, lambda n=number: ds.insert(entity(n)))
            await settled()
            gate.opened.set()
        assert adapter.sizes == [1, 1, 4]
        errors = [each for each in results if isinstance(each, Exception)]
        assert [type(error) for error in errors] == [EntityExistsError]
        assert await ds.get([key(n) for n in range(1, 6)]) == [entity(n) for n in range(1, 6)]


async def test_the_next_commits_are_on_their_way_before_the_tasks_of_the_last_ones_run() -> None:
    ds, adapter = store()
    seen: list[str] = []

    async def sent() -> None:
        seen.append("sent")
        await settled(3)

    async def answered() -> None:
        seen.append("answered")

    adapter.before_commit, adapter.after_commit = sent, answered

    async def put(first: int) -> None:
        for number in range(first, first + 4):
            await ds.put(entity(number))
            seen.append("goes on")

    async with ds:
        async with anyio.create_task_group() as group:
            for first in range(1, 161, 4):
                group.start_soon(put, first)
        assert len(await ds.query("K").fetch()) == 160
    assert max(adapter.sizes) < 30
    # Of the first commit, which went alone, and of the last one nothing can be said.
    middle = seen[seen.index("answered") + 1 : len(seen) - seen[::-1].index("sent")]
    for place, event in enumerate(middle):
        if event == "answered":
            assert middle[place + 1] == "sent"


async def test_what_one_commit_can_not_write_leaves_its_neighbours_alone() -> None:
    ds, adapter = store()
    async with ds:
        gate = adapter.before_commit = Gate()
        results: list[Any] = []
        async with anyio.create_task_group() as group:
            group.start_soon(collect, results, lambda: ds.put(entity(1)))
            await gate.arrived.wait()
            group.start_soon(collect, results, lambda: ds.put(entity(2, tags=list(range(20_001)))))
            group.start_soon(collect, results, lambda: ds.put(entity(3)))
            await settled()
            gate.opened.set()
        assert sorted(type(each).__name__ for each in results) == ["BadRequestError", "Key", "Key"]
        assert await ds.get(key(3)) == entity(3)


async def test_an_adapter_may_refuse_a_batch_for_one_commit_of_it() -> None:
    ds, adapter = store()

    class Refusing:
        async def __call__(self) -> None:
            await anyio.lowlevel.checkpoint()
            if any(len(c.writes) == 2 for c in adapter.commits[-1]):
                raise BadRequestError("too large")

    async with ds:
        adapter.before_commit = Refusing()
        results: list[Any] = []
        async with anyio.create_task_group() as group:
            group.start_soon(collect, results, lambda: ds.put(entity(1)))
            group.start_soon(collect, results, lambda: ds.put([entity(2), entity(4)]))
            group.start_soon(collect, results, lambda: ds.put(entity(3)))
        assert sorted(type(each).__name__ for each in results) == ["BadRequestError", "Key", "Key"]


async def sent_and_cancelled(number: int, cancel: Callable[[int], None] | None = None) -> None:
    """Put 1; then 2 and 3 together; cancel one of them while it is on its way; all must be stored."""
    ds, adapter = store()
    async with ds:
        scopes = {n: anyio.CancelScope() for n in (1, 2, 3)}
        after: list[str] = []

        async def put(n: int) -> None:
            with scopes[n]:
                each = entity(n)
                try:
                    await ds.put(each)
                    await anyio.lowlevel.checkpoint()
                    after.append(f"{n} went on")
                finally:
                    after.append(f"{n} has version {each.version}")

        first = adapter.before_commit = Gate()
        async with anyio.create_task_group() as group:
            group.start_soon(put, 1)
            await first.arrived.wait()
            group.start_soon(put, 2)
            await settled()
            group.start_soon(put, 3)
            await settled()
            if number == 1:
                scopes[1].cancel()
                await settled()
                assert not after
            second = adapter.before_commit = Gate()
            first.opened.set()
            await second.arrived.wait()
            if number != 1:
                scopes[number].cancel()
                await settled()
                assert not any(text.startswith(str(number)) for text in after)
            second.opened.set()
        assert await ds.get([key(n) for n in (1, 2, 3)]) == [entity(n) for n in (1, 2, 3)]
        assert adapter.sizes == [1, 2]
        assert sum("went on" in text for text in after) == 2
        assert not any("version 0" in text for text in after)
        assert f"{number} went on" not in after


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_commit_that_was_sent_is_waited_for(number: int) -> None:
    await sent_and_cancelled(number)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("number", [1, 2, 3])
async def test_asyncio_cancels_no_commit_that_was_sent(number: int) -> None:
    ds, adapter = store()
    async with ds:
        entities = {n: entity(n) for n in (1, 2, 3)}
        tasks: dict[int, asyncio.Task[Any]] = {}
        first = adapter.before_commit = Gate()
        tasks[1] = asyncio.create_task(ds.put(entities[1]))
        await first.arrived.wait()
        tasks[2] = asyncio.create_task(ds.put(entities[2]))
        await settled()
        tasks[3] = asyncio.create_task(ds.put(entities[3]))
        await settled()
        second = Gate()
        if number == 1:
            for _ in range(3):
                tasks[1].cancel()
                await settled()
            assert not tasks[1].done()
        adapter.before_commit = second
        first.opened.set()
        await second.arrived.wait()
        if number != 1:
            for _ in range(3):
                tasks[number].cancel()
                await settled()
            assert not tasks[number].done()
        second.opened.set()
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in results] == [n == number for n in (1, 2, 3)]
        assert all(each.version > 0 for each in entities.values())
        assert await ds.get([key(n) for n in (1, 2, 3)]) == list(entities.values())
        assert adapter.sizes == [1, 2]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_wait_for_leaves_the_line_in_order() -> None:
    ds, adapter = store()
    async with ds:
        gate = adapter.before_commit = Gate()
        first = asyncio.create_task(ds.put(entity(1)))
        await gate.arrived.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ds.put(entity(2)), 0.01)
        third = asyncio.create_task(ds.put(entity(3)))
        await settled()
        gate.opened.set()
        await asyncio.gather(first, third)
        assert await ds.get([key(n) for n in (1, 2, 3)]) == [entity(1), None, entity(3)]


async def test_a_commit_cancelled_in_line_is_not_written() -> None:
    ds, adapter = store()
    async with ds:
        gate = adapter.before_commit = Gate()
        scope = anyio.CancelScope()

        async def put() -> None:
            with scope:
                await ds.put(entity(2))

        async with anyio.create_task_group() as group:
            group.start_soon(ds.put, entity(1))
            await gate.arrived.wait()
            group.start_soon(put)
            await settled()
            scope.cancel()
            await settled()
            gate.opened.set()
        assert await ds.get([key(1), key(2)]) == [entity(1), None]


async def test_timeouts_say_that_nothing_was_written() -> None:
    ds, adapter = store()
    async with ds:
        gate = adapter.before_commit = Gate()
        async with anyio.create_task_group() as group:
            group.start_soon(ds.put, entity(1))
            await gate.arrived.wait()
            with pytest.raises(DeadlineExceededError, match="nothing was written"):
                await ds.put(entity(2), timeout=0.01)
            with pytest.raises(TimeoutError):
                await ds.delete(key(1), timeout=0)
            gate.opened.set()
        assert await ds.get([key(1), key(2)]) == [entity(1), None]


async def test_gets_time_out() -> None:
    ds, adapter = store()
    async with ds:
        adapter.before_lookup = anyio.sleep_forever
        with pytest.raises(DeadlineExceededError):
            await ds.get(key(1), timeout=0.01)
        adapter.before_lookup = None
        assert await ds.get(key(1), timeout=60) is None
    ds, adapter = store(timeout=0.01)
    async with ds:
        adapter.before_lookup = anyio.sleep_forever
        with pytest.raises(DeadlineExceededError):
            await ds.get(key(1))


async def test_an_error_of_a_commit_reaches_each_call() -> None:
    ds, adapter = store()
    async with ds:
        adapter.commit_error = StoreBusyError("busy")
        results: list[Any] = []
        async with anyio.create_task_group() as group:
            for number in range(1, 5):
                group.start_soon(collect, results, lambda n=number: ds.put(entity(n)))
        assert [type(each) for each in results] == [StoreBusyError] * 4
        adapter.commit_error = None
        await ds.put(entity(1))


async def test_memory_needs_no_task_for_a_commit() -> None:
    ds, adapter = store(inline=True)
    async with ds:
        for number in range(1, 4):
            await ds.put(entity(number))
        commits = ds._open_channel()._lane.commits
        assert bool(commits._inline)
        adapter.inline = False  # it begins to suspend
        await ds.put(entity(4))
        assert not bool(commits._inline)
        await ds.put(entity(5))
        assert await ds.get([key(4), key(5)]) == [entity(4), entity(5)]


async def test_tokens_name_each_commit() -> None:
    ds, adapter = store()
    async with ds:
        for number in range(1, 4):
            await ds.put(entity(number))
    tokens = [commit.token for batch in adapter.commits for commit in batch]
    assert len({*tokens, b""}) == 4


# --------------------------------------------------------------------------------------- fairness, closing


async def test_a_task_that_never_waits_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of which every look takes a moment: a machine that stalls between two of them proves nothing."""
    now = 1000.0

    def look() -> float:
        nonlocal now
        now += MAX_HOLD_S / 50
        return now

    monkeypatch.setattr("aiodatastore.datastore.perf_counter", look)
    monkeypatch.setattr("aiodatastore.batching.channel.time", SimpleNamespace(perf_counter=look))
    ds, _ = store(inline=True)
    async with ds:
        await ds.put(entity(1))
        running = True
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while running:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            for operation in (lambda: ds.get(key(1)), lambda: ds.put(entity(1))):
                before, end = turns, now + 20 * MAX_HOLD_S
                while now < end:
                    look()
                    await operation()
                assert turns - before >= 8
            running = False


async def test_a_task_that_never_waits_notices_its_cancellation() -> None:
    ds, _ = store(inline=True)
    async with ds:
        await ds.put(entity(1))
        for operation in (
            lambda: ds.get(key(1)),
            lambda: ds.get([key(1), key(2)]),
            lambda: ds.put(entity(2)),
            lambda: ds.query("K").count(),
        ):
            with anyio.move_on_after(0.02) as scope:
                while True:
                    await operation()
            assert scope.cancelled_caught


async def test_closing_waits_for_what_is_under_way() -> None:
    ds, adapter = store()
    await ds.open()
    gate = adapter.before_commit = Gate()
    results: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(collect, results, lambda: ds.put(entity(1)))
        await gate.arrived.wait()
        group.start_soon(collect, results, lambda: ds.put(entity(2)))
        await settled()
        group.start_soon(ds.aclose)
        await settled()
        assert not adapter.closed
        group.start_soon(collect, results, lambda: ds.put(entity(3)))
        await settled()
        gate.opened.set()
    assert adapter.closed == 1
    assert [type(each) for each in results] == [StoreClosedError, Key, Key]
    assert adapter.sizes == [1, 1]


async def test_a_commit_of_its_own_goes_through_unchanged() -> None:
    ds, adapter = store()
    async with ds:
        commit = Commit(writes=[Put(entity(1))])
        outcome, cancelled = await ds._open_channel().commit(commit)
        assert outcome.committed
        assert cancelled is None
        assert adapter.commits == [[commit]]
