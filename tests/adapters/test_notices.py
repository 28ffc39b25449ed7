"""Messages of commits: all arrive, in order, and what was missed is known to be missed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiodatastore.adapters.postgres import PostgresRowStore
from aiodatastore.rowstore import RowBatch, RowCommit, RowListener, RowPut, RowStore
from tests.engines import ENGINES, Bound, Place

TELLING = [ENGINES[name] for name in ("postgres", "redis") if name in ENGINES]
pytestmark = [pytest.mark.parametrize("anyio_backend", ["asyncio"]), pytest.mark.anyio]
both = pytest.mark.parametrize("engine", TELLING, indirect=True, ids=str)
postgres = pytest.mark.parametrize(
    "engine", [each for each in TELLING if each.name == "postgres"], indirect=True, ids=str
)


class Heard(RowListener):
    """Everything that was said."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.at = 0.0

    def changed(self, keys: Sequence[bytes], version: int) -> None:
        self.log.append(("changed", sorted(keys), version))

    def confirmed(self, at: float, version: int) -> None:
        self.at = at
        self.log.append(("confirmed", version))

    def gap(self) -> None:
        self.log.append(("gap",))

    async def all(self) -> list[tuple[Any, ...]]:
        """What was said up to now, without the confirmations."""
        now = time.monotonic()
        async with asyncio.timeout(60):
            while self.at < now:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        log, self.log = self.log, []
        return [each for each in log if each[0] != "confirmed"]


@asynccontextmanager
async def hearing(place: Place) -> AsyncIterator[tuple[RowStore, Heard, Any]]:
    """An open store, and what it says."""
    store = place.row_store()
    await store.open()
    try:
        heard = Heard()
        subscription = await store.subscribe(heard, 0.02)
        assert subscription is not None
        assert heard.log == [("confirmed", 0)]
        try:
            yield store, heard, subscription
        finally:
            await subscription.aclose()
            await subscription.aclose()
    finally:
        await store.aclose()


def put(*keys: bytes) -> RowCommit:
    return RowCommit(puts=[RowPut(key, b"payload", {b"i" + key: len(key)}) for key in keys])


async def commit(store: RowStore, *commits: RowCommit) -> None:
    await store.commit(RowBatch(commits, lambda key, payload: {b"i" + key: len(key)}))


@both
async def test_commits_are_told(place: Place, engine: Bound) -> None:
    one = place.row_store()
    await one.open()
    try:
        async with hearing(place) as (two, heard, _):
            await commit(one, put(b"a", b"b"))
            await commit(two, put(b"c"), put(b"d\0\xff"), RowCommit(deletes=[b"a"]))
            await commit(one, RowCommit(checks=[(b"a", 7)], puts=[RowPut(b"e", b"", {})]))  # a conflict
            await commit(one, RowCommit(index_puts={b"ib": 1}))
            log = await heard.all()
            assert log[:2] == [("changed", [b"a", b"b"], 1), ("changed", [b"a", b"c", b"d\0\xff"], 4)]
            assert log[2] in (("changed", [], 5), ("changed", [b"b"], 5))  # whose index row it is
            assert len(log) == 3
    finally:
        await one.aclose()


@both
async def test_large_commits(place: Place, engine: Bound) -> None:
    """In several messages, if need be; where that would be too much, a gap."""
    async with hearing(place) as (store, heard, _):
        keys = [b"k%04d" % number + b"x" * 40 for number in range(400)]
        await commit(store, *(put(key) for key in keys))
        log = await heard.all()
        assert [each[0] for each in log] == ["changed"] * len(log)
        assert sorted(key for each in log for key in each[1]) == keys
        await commit(store, put(b"y" * 2000))
        assert await heard.all() == [("changed", [b"y" * 2000], 401)]
        await commit(store, *(put(b"n%06d" % number) for number in range(3000)))
        assert ("gap",) in await heard.all()
        await commit(store, put(b"a"))
        assert await heard.all() == [("changed", [b"a"], 3402)]


@postgres
async def test_what_was_not_told_is_noticed(place: Place, engine: Bound) -> None:
    async with hearing(place) as (store, heard, _):
        assert isinstance(store, PostgresRowStore)
        await store._run(
            lambda connection: connection.execute(f"UPDATE {store._quoted}.meta SET version = version + 1")
        )
        assert await heard.all() == [("gap",)]
        await commit(store, put(b"a"))
        assert await heard.all() == [("changed", [b"a"], 2)]


@both
async def test_a_lost_connection_is_a_gap(place: Place, engine: Bound) -> None:
    async with hearing(place) as (store, heard, subscription):
        subscription.cut()
        await commit(store, put(b"a"))
        assert ("gap",) in await heard.all()
        await commit(store, put(b"b"))
        assert await heard.all() == [("changed", [b"b"], 2)]


@both
async def test_a_forked_child_leaves_them_alone(place: Place, engine: Bound) -> None:
    async with hearing(place) as (store, heard, subscription):
        pid = os.fork()
        if pid == 0:
            try:
                subscription.aclose().send(None)
            except StopIteration:
                os._exit(0)
            finally:
                os._exit(1)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await commit(store, put(b"a"))
        assert await heard.all() == [("changed", [b"a"], 1)]


@postgres
async def test_nobody_listens(place: Place, engine: Bound) -> None:
    """Then nothing is sent; where it can't be asked for, that is said."""
    store = place.row_store()
    assert isinstance(store, PostgresRowStore)
    await store.open()
    try:
        [row] = await store._run(lambda connection: connection.fetch(f"SELECT heard FROM {store._quoted}.meta"))
        assert row[0] is None
        store._read_only = True
        assert await store.subscribe(Heard(), 1.0) is None
    finally:
        await store.aclose()
