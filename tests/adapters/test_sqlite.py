# ruff: noqa: ASYNC222, ASYNC230, ASYNC240  (tests may touch the disk themselves)
"""What is special to the SQLite row store: the file, its errors, other processes, threads."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from aiodatastore.adapters.sqlite import SQLiteRowStore, statements
from aiodatastore.adapters.sqlite import store as module
from aiodatastore.errors import (
    BadArgumentError,
    CorruptDataError,
    DatastoreError,
    FormatVersionError,
    StoreBusyError,
    StoreClosedError,
    StoreFullError,
    StoreReadOnlyError,
    UnavailableError,
)
from aiodatastore.rowstore import Capability, RowCommit, RowPut, RowStore, Space, Span, SpanCheck

from .rows import ALL_KEYS, ALL_ROWS, commit, entities, index_rows, puts, versions

pytestmark = pytest.mark.anyio


class opened:  # noqa: N801  # reads as a verb: async with opened(path) as store
    """A store for the time of a block."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.store = SQLiteRowStore(path, **settings)

    async def __aenter__(self) -> SQLiteRowStore:
        await self.store.open()
        return self.store

    async def __aexit__(self, *_: object) -> None:
        await self.store.aclose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.db"


def raw(path: Path, sql: str, *parameters: Any) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql, parameters).fetchall()


# ----------------------------------------------------------------------------------------------- format


async def test_the_stored_format(path: Path) -> None:
    """Other versions read these files: a change here is a new FORMAT_VERSION."""
    async with opened(path) as store:
        await commit(store, puts((b"k\0\xff", b"red,*blue")), puts((b"l", b"")))
        await store.allocate(b"seq", 10)
    assert raw(path, "PRAGMA application_id") == [(0x41446453,)]
    assert raw(path, "PRAGMA user_version") == [(1,)]
    assert raw(path, "PRAGMA journal_mode") == [("wal",)]
    assert raw(path, "SELECT name, sql FROM sqlite_schema WHERE type = 'table' ORDER BY name") == [
        (
            "entities",
            "CREATE TABLE entities (key BLOB PRIMARY KEY, version INTEGER NOT NULL, payload BLOB NOT NULL)"
            " WITHOUT ROWID",
        ),
        ("meta", "CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 0), version INTEGER NOT NULL)"),
        ("rows", "CREATE TABLE rows (row BLOB PRIMARY KEY, tail INTEGER NOT NULL) WITHOUT ROWID"),
        ("sequences", "CREATE TABLE sequences (name BLOB PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID"),
    ]
    assert raw(path, "SELECT * FROM entities") == [(b"k\0\xff", 1, b"red,*blue"), (b"l", 2, b"")]
    assert raw(path, "SELECT * FROM rows") == [(b"blue|k\0\xff", 3 | 1 << 20), (b"red|k\0\xff", 3)]
    assert raw(path, "SELECT * FROM sequences") == [(b"seq", 11)]
    assert raw(path, "SELECT * FROM meta") == [(0, 2)]


async def test_reopening_finds_everything(path: Path) -> None:
    async with opened(path) as store:
        await commit(store, puts((b"a", b"x")))
        await store.allocate(b"s", 5)
    assert [name.name for name in path.parent.iterdir()] == ["rows.db"]
    async with opened(path) as store:
        assert store.read_now([b"a"]) == [(1, b"x")]
        assert versions(await commit(store, puts((b"b", b"y")))) == [2]
        assert await store.allocate(b"s", 1) == 6


async def test_scans_walk_the_primary_keys() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(statements.SCHEMA)
        for order in ("ASC", "DESC"):
            query = statements.SCANS[Space.INDEX, True, order == "DESC"]
            for sql in (query, statements.PACK.format(query=query)):
                plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + sql, (b"a", b"b", 10))]
                searches = [step for step in plan if step.startswith("SEARCH")]
                assert searches == [
                    "SEARCH r USING PRIMARY KEY (row>? AND row<?)",
                    "SEARCH e USING PRIMARY KEY (key=?) LEFT-JOIN",
                ]
                assert not any("TEMP B-TREE" in step for step in plan)
        found = connection.execute("EXPLAIN QUERY PLAN " + statements.FIND.format(values="(?),(?)"), (b"a", b"b"))
        assert any("SEARCH entities USING PRIMARY KEY (key=?)" in row[3] for row in found)


# ------------------------------------------------------------------------------------ settings and errors


@pytest.mark.parametrize("where", ["", ":memory:", "file::memory:?cache=shared"])
def test_in_memory_paths_are_refused(where: str) -> None:
    with pytest.raises(BadArgumentError, match="memory://"):
        SQLiteRowStore(where)


@pytest.mark.parametrize(
    "settings",
    [
        {"synchronous": "SOMETIMES"},
        {"inline_reads": "maybe"},
        {"page_size": 5000},
        {"busy_timeout_s": -1},
        {"cache_mb": 0},
        {"checkpoint_mb": 0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], path: Path) -> None:
    with pytest.raises(BadArgumentError):
        SQLiteRowStore(path, **settings)


@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL", "FULL", "EXTRA"])
async def test_settings_reach_sqlite(path: Path, synchronous: Any) -> None:
    async with opened(path, synchronous=synchronous, page_size=8192, cache_mb=3, checkpoint_mb=2) as store:
        await commit(store, puts((b"a", b"x")))
        for connection in (store._writer, store._reader):
            assert connection.execute("PRAGMA cache_size").fetchone() == (-3072,)
        modes = ["OFF", "NORMAL", "FULL", "EXTRA"]
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (modes.index(synchronous),)
        assert store._writer.execute("PRAGMA page_size").fetchone() == (8192,)
        assert store._writer.execute("PRAGMA wal_autocheckpoint").fetchone() == (256,)
        assert Capability.DURABLE in store.capabilities


def test_capabilities(path: Path) -> None:
    everything = {Capability.DURABLE, Capability.MULTI_PROCESS, Capability.TRIO, Capability.INLINE_READS}
    assert SQLiteRowStore(path).capabilities == everything
    assert SQLiteRowStore(path, inline_reads=False).capabilities == everything - {Capability.INLINE_READS}


async def refused(store: RowStore, kind: type[DatastoreError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        await store.open()
    assert type(caught.value) is kind
    await store.aclose()  # allowed, and releases nothing twice


async def test_a_missing_folder(tmp_path: Path) -> None:
    await refused(SQLiteRowStore(tmp_path / "none" / "a.db"), UnavailableError, "folder .*none does not exist")


async def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    await refused(SQLiteRowStore(tmp_path), UnavailableError, "is a folder")


async def test_another_kind_of_file(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 1000)
    await refused(SQLiteRowStore(path), CorruptDataError, "rows.db: not a SQLite database")
    assert path.read_bytes() == b"Dear diary, " * 1000


async def test_another_programs_database(path: Path) -> None:
    raw(path, "CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    await refused(SQLiteRowStore(path), CorruptDataError, "another program's")
    assert path.read_bytes() == before


async def test_another_format_version(path: Path) -> None:
    async with opened(path):
        pass
    raw(path, "PRAGMA user_version = 2")
    await refused(SQLiteRowStore(path), FormatVersionError, "format version 2; this version reads 1")


async def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    async with opened(path) as store:
        assert versions(await commit(store, puts((b"a", b"x")))) == [1]


@pytest.mark.parametrize("name", ["a b.db", "50%.db", "what?.db", "#1.db", "ключ.db", "a&mode=memory.db"])
async def test_awkward_file_names(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path / name) as store:
        await commit(store, puts((b"a", b"x")))
    assert [found.name for found in tmp_path.iterdir()] == [name]


async def test_a_damaged_file(path: Path) -> None:
    async with opened(path) as store:
        await commit(store, puts(*[(b"%05d" % n, b"x,y") for n in range(2000)]))
    damaged = bytearray(path.read_bytes())
    damaged[4096 * 5 :] = b"\xa5" * (len(damaged) - 4096 * 5)  # the leaves, below the five tables' roots
    path.write_bytes(damaged)
    async with opened(path) as store:
        for call in (
            lambda: store.scan(ALL_ROWS, 10_000),
            lambda: store.read([b"00001"]),
            lambda: store.count(ALL_KEYS),
            lambda: commit(store, puts((b"00001", b"z"))),
        ):
            with pytest.raises(CorruptDataError, match=r"rows\.db"):
                await call()
        with pytest.raises(CorruptDataError):
            store.read_now([b"00001"])


async def test_a_missing_table(path: Path) -> None:
    async with opened(path):
        pass
    raw(path, "DROP TABLE rows")
    async with opened(path) as store:
        with pytest.raises(CorruptDataError, match="no such table"):
            await store.scan(ALL_ROWS, 10)


async def test_reading_only(path: Path) -> None:
    await refused(SQLiteRowStore(path, read_only=True), UnavailableError, "does not exist")
    path.touch()
    await refused(SQLiteRowStore(path, read_only=True), CorruptDataError, "is empty")
    async with opened(path) as writing, opened(path, read_only=True) as reading:
        await commit(writing, puts((b"a", b"x")))
        assert (await reading.read([b"a"])).records == [(1, b"x")]
        assert versions(await commit(reading, RowCommit(checks=[(b"a", 1)]))) == [1]
        with pytest.raises(StoreReadOnlyError, match="read_only=True"):
            await commit(reading, puts((b"b", b"x")))
        with pytest.raises(StoreReadOnlyError):
            await reading.allocate(b"s", 1)


async def test_a_file_that_cannot_be_written(path: Path) -> None:
    async with opened(path) as store:
        await commit(store, puts((b"a", b"x")))
        store._writer.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreReadOnlyError, match=r"rows\.db"):
            await commit(store, puts((b"b", b"x")))
        store._writer.execute("PRAGMA query_only = OFF")
        assert versions(await commit(store, puts((b"b", b"x")))) == [2]


async def test_a_busy_database(path: Path) -> None:
    async with opened(path, busy_timeout_s=0.1) as store:
        await commit(store, puts((b"a", b"x")))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusyError, match="busy_timeout_s"):
                await commit(store, puts((b"b", b"x")))
            assert store.read_now([b"a"]) == [(1, b"x")]  # readers are not kept waiting
            assert versions(await commit(store, RowCommit(checks=[(b"a", 1)]))) == [1]
            other.execute("ROLLBACK")
        assert versions(await commit(store, puts((b"b", b"x")))) == [2]


async def test_waiting_for_a_lock_does_not_hold_the_loop(path: Path) -> None:
    """It is given up by who needs the loop."""
    async with opened(path, busy_timeout_s=60) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")

            async def beat() -> None:
                for _ in range(20):
                    await anyio.sleep(0.005)
                other.execute("ROLLBACK")

            async with anyio.create_task_group() as group:
                group.start_soon(beat)
                assert versions(await commit(store, puts((b"a", b"x")))) == [1]


async def test_a_reader_shut_out_inline_waits_in_a_thread(path: Path) -> None:
    async with opened(path) as store:
        await commit(store, puts((b"a", b"x")))
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            await store.aclose()
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN IMMEDIATE")
            other.execute("UPDATE meta SET version = 1")
            blocked = SQLiteRowStore(path, busy_timeout_s=0.05)
            await refused(blocked, StoreBusyError, "lock")


async def test_a_full_database(path: Path) -> None:
    """SQLite's own limit of pages stands for a full disk: the same error code from the same place."""
    async with opened(path) as store:
        await commit(store, puts((b"a", b"x")))
        store._writer.execute("PRAGMA max_page_count = 20")
        big = RowCommit(puts=[RowPut(b"b", bytes(200_000), {b"i|b": 1})])
        with pytest.raises(StoreFullError, match="full"):
            await commit(store, puts((b"c", b"y")), big)
        assert await entities(store) == {b"a": (1, b"x")}
        assert await index_rows(store) == {b"x|a": 1}
        store._writer.execute("PRAGMA max_page_count = 1000000")
        assert versions(await commit(store, big)) == [2]


async def test_a_full_disk(path: Path, anyio_backend_name: str) -> None:
    """A limit on file sizes makes the kernel refuse writes half-way through a commit."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        async with opened(path) as store:
            await commit(store, puts((b"a", b"x")))
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
            acknowledged = {b"a": b"x"}
            while True:
                key = b"k%03d" % len(acknowledged)
                try:
                    await commit(store, puts((key, b"v" * 20_000)))
                except StoreFullError:
                    break
                acknowledged[key] = b"v" * 20_000
            assert {key: payload for key, (_, payload) in (await entities(store)).items()} == acknowledged
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            await commit(store, puts((b"z", b"y")))
            acknowledged[b"z"] = b"y"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, old)
    async with opened(path) as store:
        assert {key: payload for key, (_, payload) in (await entities(store)).items()} == acknowledged
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


# ------------------------------------------------------------------------------------- lifetime of a store


def forget(objects: list[SQLiteRowStore]) -> None:
    objects.clear()
    gc.collect()


@pytest.mark.filterwarnings("default::ResourceWarning")
async def test_an_unclosed_store_warns(path: Path) -> None:
    store = SQLiteRowStore(path)
    await store.open()
    dropped = [store]
    del store
    with pytest.warns(ResourceWarning, match="unclosed <SQLiteRowStore sqlite:////"):
        forget(dropped)
    async with opened(path) as again:
        assert versions(await commit(again, puts((b"a", b"x")))) == [1]


async def test_before_open(path: Path) -> None:
    store = SQLiteRowStore(path)
    with pytest.raises(StoreClosedError, match="open"):
        store.read_now([b"a"])
    with pytest.raises(StoreClosedError):
        await commit(store, puts((b"a", b"x")))
    await store.aclose()
    assert not path.exists()


async def test_a_failed_open_can_be_repeated(path: Path) -> None:
    path.write_bytes(b"something else" * 100)
    store = SQLiteRowStore(path)
    with pytest.raises(CorruptDataError):
        await store.open()
    path.unlink()
    await store.open()
    assert versions(await commit(store, puts((b"a", b"x")))) == [1]
    await store.aclose()


async def test_closing_ends_reads_and_waits_for_commits(path: Path) -> None:
    async with opened(path, inline_reads=False) as store:
        await commit(store, RowCommit(index_puts={b"%07d" % n: 0 for n in range(50_000)}))
        ended: list[str] = []

        async def read() -> None:
            try:
                while True:
                    await store.count(ALL_ROWS)
            except StoreClosedError:
                ended.append("read")

        async def write() -> None:
            try:
                for n in itertools.count():
                    await commit(store, puts((b"%04d" % n, b"x")))
            except StoreClosedError:
                ended.append("write")

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(read)
            group.start_soon(write)
            await anyio.sleep(0.1)
            await store.aclose()
        assert sorted(ended) == ["read", "read", "read", "write"]
    assert not Path(f"{path}-wal").exists()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await commit(store, puts((b"a", b"x")))
        read, write = os.pipe()
        child = os.fork()
        if not child:  # pragma: no cover
            said = b"nothing"
            try:
                store.read_now([b"a"])
            except StoreClosedError as exc:
                said = str(exc).encode()
            finally:
                os.write(write, said)
                os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            assert b"before fork()" in pipe.read()
        os.waitpid(child, 0)
        assert versions(await commit(store, puts((b"b", b"x")))) == [2]
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


# ------------------------------------------------------------------------------------ threads and the loop


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    used: list[object] = []
    run = anyio.to_thread.run_sync

    async def noticed(*args: Any, **kwargs: Any) -> Any:
        used.append(args[0])
        return await run(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(anyio.to_thread, "run_sync", noticed)
        yield used


async def small_reads(store: SQLiteRowStore) -> None:
    await store.read([b"%05d" % n for n in range(module.INLINE_KEYS)])
    await store.scan(ALL_ROWS, module.INLINE_ROWS, with_entities=True)
    await store.count(Span(Space.INDEX, b"x|00000", b"x|04000"))
    await commit(store, RowCommit(checks=[(b"00001", 1)], spans=[SpanCheck(Space.INDEX, b"x|1", b"x|2", 0)]))


async def test_small_reads_use_no_thread_and_large_ones_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path, inline_reads=True) as store:
        await commit(store, puts(*[(b"%05d" % n, b"x") for n in range(5000)]))
        with no_threads(monkeypatch) as used:
            await small_reads(store)
            assert not used
            keys = [b"%05d" % n for n in range(module.INLINE_KEYS + 1)]
            assert store.read_now(keys) is None
            await store.read(keys)
            await store.scan(ALL_ROWS, module.INLINE_ROWS + 1)
            assert (await store.count(ALL_ROWS)).rows == 5000
            assert len(used) == 3


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("joined", [False, True])
async def test_a_scan_at_once_gives_the_rows_of_a_scan(path: Path, joined: bool, reverse: bool) -> None:
    async with opened(path, inline_reads=True) as store:
        await commit(store, puts(*[(b"%05d" % n, b"x") for n in range(1000)]))
        for span in (ALL_ROWS, Span(Space.ENTITY, b"00100", b"00200")):
            rows = (await store.scan(span, 300, reverse=reverse, with_entities=joined)).rows
            assert len(rows) == (300 if span is ALL_ROWS else 100)
            assert store.scan_now(span, 300, reverse=reverse, with_entities=joined) == rows
        assert store.scan_now(ALL_ROWS, module.INLINE_ROWS + 1) is None
    with pytest.raises(StoreClosedError):
        store.scan_now(ALL_ROWS, 1)
    async with opened(path, inline_reads=False) as store:
        assert store.scan_now(ALL_ROWS, 1) is None


async def test_a_count_at_once_is_a_small_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path, inline_reads=True) as store:
        await commit(store, puts(*[(b"%05d" % n, b"x") for n in range(1000)]))
        for span in (ALL_ROWS, Span(Space.ENTITY, b"00100", b"00200")):
            rows, multi, _ = await store.count(span)
            assert rows == (100 if span.space is Space.ENTITY else 1000)
            assert store.count_now(span) == (rows, multi, 0)
        monkeypatch.setattr(module, "INLINE_COUNT", 1000)
        assert store.count_now(ALL_ROWS) == (1000, 0, 0)
        monkeypatch.setattr(module, "INLINE_COUNT", 999)
        assert store.count_now(ALL_ROWS) is None
    with pytest.raises(StoreClosedError):
        store.count_now(ALL_ROWS)
    async with opened(path, inline_reads=False) as store:
        assert store.count_now(ALL_ROWS) is None


async def test_the_switch_keeps_every_read_in_threads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path, inline_reads=False) as store:
        await commit(store, puts(*[(b"%05d" % n, b"x") for n in range(5000)]))
        with no_threads(monkeypatch) as used:
            assert store.read_now([b"00001"]) is None
            await small_reads(store)
            assert len(used) == 4


async def test_a_slow_disk_sends_reads_to_threads_for_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as store:
        await commit(store, puts((b"a", b"x")))
        assert store.read_now([b"a"]) == [(1, b"x")]
        monkeypatch.setattr(module, "SLOW_S", 0.0)
        monkeypatch.setattr(module, "_blocks_read", lambda: store._blocks)
        assert store.read_now([b"a"]) == [(1, b"x")]
        assert store.read_now([b"a"]) == [(1, b"x")]  # slow, but not because of the disk
        monkeypatch.setattr(module, "_blocks_read", lambda: store._blocks + 1)
        for bound in ("_SHARE", "_TURN_AWAY_S"):
            monkeypatch.setattr(module, bound, 1e9)
        assert store.read_now([b"a"]) == [(1, b"x")]
        assert store.read_now([b"a"]) is None
        assert (await store.read([b"a"])).records == [(1, b"x")]
        store._inline_from = time.perf_counter()
        assert store.read_now([b"a"]) == [(1, b"x")]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancelled_task_ends_only_when_its_commit_has(path: Path) -> None:
    """``Task.cancel()`` goes through anyio's shields."""
    async with opened(path, busy_timeout_s=60) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            running = asyncio.create_task(commit(store, puts((b"a", b"x"))))
            waiting = asyncio.create_task(commit(store, puts((b"b", b"x"))))
            await asyncio.sleep(0.05)
            for _ in range(3):
                running.cancel()
                waiting.cancel()
                await asyncio.sleep(0.05)
            assert not running.done()  # begun: its outcome is not known yet
            assert waiting.cancelled()  # not begun: never will be
            other.execute("ROLLBACK")
        with pytest.raises(asyncio.CancelledError):
            await running
        assert store.read_now([b"a", b"b"]) == [(1, b"x"), None]
        assert versions(await commit(store, puts((b"c", b"x")))) == [2]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_at_every_moment_nothing_is_halved(path: Path) -> None:
    async with opened(path) as store:
        for n in range(40):
            key = b"%02d" % n
            task = asyncio.create_task(commit(store, puts((key, b"x"), (key + b"!", b"y"))))
            await asyncio.sleep(n * 0.0001)
            task.cancel()
            await asyncio.wait([task])
            known = store.read_now([key, key + b"!"])
            assert known is not None
            assert (known[0] is None) == (known[1] is None)
            await asyncio.sleep(0.001)
            assert store.read_now([key, key + b"!"]) == known  # nothing happens afterwards


def read_without_a_pause(path: Path, stop: threading.Event, took: list[float]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        while not stop.is_set():
            begun = time.monotonic()
            connection.execute("BEGIN")
            connection.execute("SELECT * FROM meta").fetchall()
            stop.wait(0.005)
            connection.execute("COMMIT")
            took.append(time.monotonic() - begun)


async def test_the_wal_stays_bounded_under_constant_readers(path: Path) -> None:
    """While one of several readers is always reading, SQLite never starts its WAL anew by itself."""
    largest, longest_s = 0, 1.0
    while longest_s > 0.1 and not 0 < largest < 8 << 20:  # who is held up while it reads may hold out longer than that
        stop = threading.Event()
        took: list[float] = []
        async with opened(path, checkpoint_mb=1, cache_mb=2, synchronous="OFF") as store:
            readers = [threading.Thread(target=read_without_a_pause, args=(path, stop, took)) for _ in range(4)]
            for reader in readers:
                reader.start()
            largest = 0
            for n in range(150):
                await commit(store, RowCommit(puts=[RowPut(b"%04d" % (n % 40), bytes(200_000), {})]))
                largest = max(largest, (await store.sizes())["wal_bytes"])
            stop.set()
            for reader in readers:
                reader.join()
        longest_s = max(took)
    assert largest < 8 << 20  # of 30 MB written


# --------------------------------------------------------------------------------------- several processes


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    prelude = """
        import sys, anyio
        from aiodatastore.rowstore import *
        from aiodatastore.adapters.sqlite import SQLiteRowStore
        path, arguments = sys.argv[1], sys.argv[2:]
        def change(*args, **kwargs):
            return RowBatch([RowCommit(*args, **kwargs)], lambda key, payload: {b"n|" + payload + b"|" + key: len(key)})
        def put(key, payload):
            return RowPut(key, payload, {b"n|" + payload + b"|" + key: len(key)})
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(text) + "\nanyio.run(main)\n"
    command = [sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def outputs(processes: list[subprocess.Popen[str]]) -> list[list[str]]:
    texts = [process.communicate(timeout=100)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return texts


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_processes_share_counters_and_sequences(path: Path) -> None:
    """They also all make the new file at once."""
    work = """
        async def main():
            store = SQLiteRowStore(path, busy_timeout_s=60)
            await store.open()
            for _ in range(40):
                while True:
                    [record] = (await store.read([b"n"])).records
                    version, payload = record or (0, b"0")
                    new = put(b"n", b"%d" % (int(payload) + 1))
                    [outcome] = await store.commit(change(checks=[(b"n", version)], puts=[new]))
                    if outcome.version is not None:
                        break
                print(await store.allocate(b"s", 3), outcome.version)
            await store.aclose()
    """
    texts = await anyio.to_thread.run_sync(outputs, [script(work, path) for _ in range(3)])
    numbers = [[int(word) for word in text] for text in texts]
    firsts = [first for text in numbers for first in text[::2]]
    assert sorted(firsts) == list(range(1, 361, 3))
    assert sorted(version for text in numbers for version in text[1::2]) == list(range(1, 121))
    async with opened(path) as store:
        assert await entities(store) == {b"n": (120, b"120")}
        assert await index_rows(store) == {b"n|120|n": 1}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_phantoms_between_processes(path: Path) -> None:
    """Each inserts only while it counts fewer than ten: together they must not get past ten."""
    work = """
        async def main():
            store = SQLiteRowStore(path, busy_timeout_s=60)
            await store.open()
            lo, hi, me = b"n|", b"n}", arguments[0].encode()
            for n in range(20):
                scan = await store.scan(Span(Space.INDEX, lo, hi), 100)
                if len(scan.rows) >= 10:
                    break
                digest = span_digest([(row[0], None) for row in scan.rows], Space.INDEX)
                seen = SpanCheck(Space.INDEX, lo, hi, len(scan.rows), digest)
                await store.commit(change(spans=[seen], puts=[put(me + b"%d" % n, b"x")]))
            await store.aclose()
    """
    await anyio.to_thread.run_sync(outputs, [script(work, path, name) for name in "abc"])
    async with opened(path) as store:
        assert len(await index_rows(store)) == len(await entities(store)) == 10


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    work = """
        async def main():
            store = SQLiteRowStore(path)
            await store.open()
            for n in range(100000):
                await store.commit(change(puts=[put(b"%06d-%d" % (n, part), b"x" * 3000) for part in range(3)]))
                print(n, flush=True)
    """
    for _ in range(3):
        with script(work, path) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(25)]
            process.kill()
            lines += process.stdout.readlines()
        last = max(int(line) for line in lines if line.endswith("\n"))
        async with opened(path) as store:
            found = await entities(store)
            assert len(found) % 3 == 0
            assert len(found) >= 3 * (last + 1)
            assert len(await index_rows(store)) == len(found)
        assert raw(path, "PRAGMA integrity_check") == [("ok",)]


def test_neither_row_store_imports_the_other() -> None:
    check = "import sys, aiodatastore.adapters.{0}; assert not {{{1!r}, {2!r}}} & set(sys.modules)"
    for mine, others in (
        ("memory", ("sqlite3", "aiodatastore.adapters.sqlite")),
        ("sqlite", ("aiodatastore.adapters.memory", "asyncpg")),
    ):
        subprocess.run([sys.executable, "-c", check.format(mine, *others)], check=True)
