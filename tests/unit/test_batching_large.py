"""Large commits: one goes beside another, so that it is encoded while the other is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.base import Adapter, Commit, Outcome, Put
from aiodatastore.batching import LARGE_WRITES, CommitBatcher

pytestmark = pytest.mark.anyio


class Slow:
    """Commits that wait until they are let go; tells how many are under way."""

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.sizes: list[list[int]] = []
        self.under_way = 0

    def encode(self, commit: Commit) -> None:
        return

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        self.sizes.append([len(commit.writes) for commit in batch])
        self.under_way += 1
        await self.gate.wait()
        self.under_way -= 1
        return [Outcome(len(self.sizes)) for _ in batch]


def commit_of(writes: int) -> Commit:
    return Commit(writes=[Put(Entity(Key("A", number + 1))) for number in range(writes)])


def batcher(adapter: Any) -> CommitBatcher:
    only_commits: Adapter = adapter
    return CommitBatcher(only_commits)


async def settled(line: CommitBatcher, writes: int, done: list[int]) -> None:
    outcome, kept = await line.settle(commit_of(writes))
    assert outcome.version is not None
    assert kept is None
    done.append(writes)


async def test_one_large_commit_goes_beside_another_and_no_more() -> None:
    slow, done = Slow(), list[int]()
    line = batcher(slow)
    async with anyio.create_task_group() as group:
        for writes in (LARGE_WRITES, LARGE_WRITES + 1, LARGE_WRITES + 2, 1):
            group.start_soon(settled, line, writes, done)
            await anyio.wait_all_tasks_blocked()  # trio starts tasks in any order
        assert slow.sizes == [[LARGE_WRITES], [LARGE_WRITES + 1]]
        slow.gate.set()
    assert slow.sizes[2:] == [[LARGE_WRITES + 2, 1]]
    assert sorted(done) == [1, LARGE_WRITES, LARGE_WRITES + 1, LARGE_WRITES + 2]


async def test_small_commits_join_as_before() -> None:
    slow, done = Slow(), list[int]()
    line = batcher(slow)
    async with anyio.create_task_group() as group:
        for writes in (1, 2, 3):
            group.start_soon(settled, line, writes, done)
            await anyio.wait_all_tasks_blocked()
        assert slow.under_way == 1
        slow.gate.set()
    assert slow.sizes == [[1], [2, 3]]


async def test_idle_means_that_nothing_is_under_way_beside_either() -> None:
    slow, done = Slow(), list[int]()
    line = batcher(slow)
    async with anyio.create_task_group() as group:
        group.start_soon(settled, line, LARGE_WRITES, done)
        group.start_soon(settled, line, LARGE_WRITES, done)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01) as scope:
            await line.wait_idle()
        assert scope.cancelled_caught
        slow.gate.set()
        await line.wait_idle()
        assert slow.under_way == 0


async def test_a_cancellation_reaches_only_whom_it_was_meant_for() -> None:
    slow, done = Slow(), list[int]()
    line = batcher(slow)
    outcomes: list[bool] = []

    async def cancelled() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            outcome, kept = await line.settle(commit_of(LARGE_WRITES))
            outcomes.append(outcome.committed)
            if kept is not None:
                raise kept
            await anyio.lowlevel.checkpoint()
            raise AssertionError("a cancellation that was kept away comes at the next checkpoint")

    scopes: list[anyio.CancelScope] = []
    async with anyio.create_task_group() as group:
        group.start_soon(cancelled)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(settled, line, LARGE_WRITES, done)
        await anyio.wait_all_tasks_blocked()
        assert slow.under_way == 2
        scopes[0].cancel()
        await anyio.wait_all_tasks_blocked()
        assert slow.under_way == 2  # what was sent is waited for
        slow.gate.set()
    assert outcomes == [True]
    assert done == [LARGE_WRITES]
    assert scopes[0].cancelled_caught


@pytest.mark.parametrize("url", ["memory://", "sqlite"])
async def test_long_lists_put_side_by_side_are_all_there(url: str, tmp_path: Any) -> None:
    where = f"sqlite:///{tmp_path / 'a.db'}" if url == "sqlite" else url
    async with Datastore(where) as ds:
        async with anyio.create_task_group() as group:
            for start in range(0, 1200, 300):
                part = [Entity(Key("A", number + 1), {"n": number}) for number in range(start, start + 300)]
                group.start_soon(ds.put, part)
        assert await ds.query("A").count() == 1200
        assert await ds.check() == []
