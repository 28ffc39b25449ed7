"""What is particular to PostgreSQL: its schema, its connections, its failures, long names, loading."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import random
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

pytest.importorskip("asyncpg")

import asyncpg

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.forking import open_stores
from aiodatastore.adapters.postgres import PostgresRowStore, loading
from aiodatastore.adapters.postgres import schema as schema_module
from aiodatastore.adapters.postgres.functions import SHORT
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import (
    BadArgumentError,
    CorruptDataError,
    FormatVersionError,
    StoreClosedError,
    StoreReadOnlyError,
    UnavailableError,
)
from aiodatastore.jsonl import dump_entity
from aiodatastore.rowstore import (
    TAIL_MULTI,
    RowBatch,
    RowCommit,
    RowOutcome,
    RowPut,
    Space,
    Span,
    SpanCheck,
    StaleFenceError,
)
from aiodatastore.testing.servers import PostgresServer, ServerError
from aiodatastore.values import Blob, GeoPoint, Text
from tests.adapters.rows import ALL_KEYS, ALL_ROWS, commit, entities, entity, index_rows, puts, rows_of, seen, versions
from tests.engines import PostgresSession

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def dsn(postgres_session: PostgresSession) -> str:
    return postgres_session.dsn


@pytest.fixture
async def store(dsn: str, space: str) -> AsyncIterator[PostgresRowStore]:
    async with opened(dsn, schema=space) as made:
        yield made


@asynccontextmanager
async def opened(dsn: str | None = None, **settings: Any) -> AsyncIterator[PostgresRowStore]:
    made = PostgresRowStore(dsn, **settings)
    await made.open()
    try:
        yield made
    finally:
        await made.aclose()


def with_user(dsn: str, user: str, password: str) -> str:
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


@pytest.fixture
def role(postgres_session: PostgresSession, space: str) -> Iterator[str]:
    """A role that may connect and nothing else."""
    name = "r" + space
    try:
        postgres_session.run(f"CREATE ROLE {name} LOGIN PASSWORD 'sesame'")
    except asyncpg.InsufficientPrivilegeError:
        pytest.skip("the tests' role may not make roles")
    yield name
    postgres_session.run(f"DROP OWNED BY {name}")
    postgres_session.run(f"DROP ROLE {name}")


# ---------------------------------------------------------------------------------------------- settings


def test_settings_come_from_the_url() -> None:
    adapter = adapter_from_url(
        "postgresql://ada:secret@localhost:5433/db?schema=mine&max_size=3&min_size=2&retry_s=1.5&sslmode=disable"
        "&replica=" + quote("postgresql://ada:secret@other/db", safe="")
    )
    assert adapter.url == "postgresql://ada@localhost:5433/db?schema=mine"
    for shown in (repr(adapter), repr(adapter.store), repr(adapter.store.replica())):  # type: ignore[attr-defined]
        assert "secret" not in shown
    assert adapter_from_url("postgres://a,b:5433/db").url == "postgresql://a,b:5433/db?schema=aiodatastore"


@pytest.mark.parametrize(
    "query", ["schema=", "max_size=0", "min_size=5&max_size=2", "retry_s=-1", "pooler=session", "nonsense=1", "pool=x"]
)
def test_wrong_settings_are_refused(query: str) -> None:
    with pytest.raises(BadArgumentError):
        adapter_from_url(f"postgresql://localhost/db?{query}")


def test_a_dsn_or_a_pool() -> None:
    with pytest.raises(BadArgumentError):
        PostgresRowStore()


async def test_nobody_there(space: str) -> None:
    store = PostgresRowStore("postgresql://ada:secret@127.0.0.1:1/db", retry_s=0.1)
    with pytest.raises(UnavailableError) as caught:
        await store.open()
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"
    with pytest.raises(StoreClosedError):
        await store.read([b"a"])


def test_under_trio_it_is_refused(dsn: str) -> None:
    trio = pytest.importorskip("trio")
    with pytest.raises(UnavailableError, match="asyncio"):
        trio.run(PostgresRowStore(dsn).open)


async def test_refused_at_once_where_trying_again_does_not_help(dsn: str) -> None:
    with pytest.raises(UnavailableError, match="refuses"):
        await PostgresRowStore(urlsplit(dsn)._replace(path="/no_such_database").geturl(), retry_s=60).open()


# ------------------------------------------------------------------------------------------------ schema


async def test_many_first_opens_at_once(dsn: str, space: str) -> None:
    stores = [PostgresRowStore(dsn, schema=space) for _ in range(6)]
    await asyncio.gather(*[store.open() for store in stores])
    for number, store in enumerate(stores, 1):
        assert versions(await commit(store, puts((b"%d" % number, b"x")))) == [number]
    await asyncio.gather(*[store.aclose() for store in stores])


@pytest.mark.parametrize("name", ['a"b', "Größe", "x; DROP SCHEMA public", "select", "a.b", "{brace}", "%s $1 @"])
async def test_schemas_of_any_name_are_apart(
    postgres_session: PostgresSession, dsn: str, space: str, name: str
) -> None:
    name += space
    try:
        async with opened(dsn, schema=name[:63]) as one, opened(dsn, schema=space) as other:
            await commit(one, puts((b"a", b"x")))
            assert await entities(one) == {b"a": (1, b"x")}
            assert await entities(other) == {}
            await one.commit(RowBatch([RowCommit(puts=[RowPut(b"%d" % n, b"", {}) for n in range(600)])], rows_of))
            assert (await one.count(ALL_KEYS)).rows == 601
    finally:
        [(quoted,)] = postgres_session.run("SELECT quote_ident($1)", name[:63])
        postgres_session.run(f"DROP SCHEMA IF EXISTS {quoted} CASCADE")


async def test_a_newer_schema_is_refused(
    store: PostgresRowStore, postgres_session: PostgresSession, dsn: str, space: str
) -> None:
    postgres_session.run(f"INSERT INTO {space}.migrations VALUES (1000, now())")
    with pytest.raises(FormatVersionError, match="1000"):
        await PostgresRowStore(dsn, schema=space).open()


async def test_another_programs_schema_is_refused(postgres_session: PostgresSession, dsn: str, space: str) -> None:
    postgres_session.run(f"CREATE SCHEMA {space}")
    postgres_session.run(f"CREATE TABLE {space}.entities (id int)")
    with pytest.raises(CorruptDataError):
        await PostgresRowStore(dsn, schema=space).open()
    postgres_session.run(f"CREATE TABLE {space}.migrations (name text)")
    with pytest.raises(CorruptDataError):
        await PostgresRowStore(dsn, schema=space).open()


async def test_a_schema_that_vanishes(store: PostgresRowStore, postgres_session: PostgresSession, space: str) -> None:
    postgres_session.run(f"DROP SCHEMA {space} CASCADE")
    with pytest.raises(CorruptDataError):
        await store.read([b"a"])
    with pytest.raises(CorruptDataError):
        await commit(store, puts((b"a", b"x")))


async def test_what_a_migration_is_stays(store: PostgresRowStore) -> None:
    """A released migration is never changed: make another one, and add it here."""
    assert [len(schema_module.MIGRATIONS)] == [1]


# -------------------------------------------------------------------------------------------- privileges


async def test_a_role_that_may_only_read(
    store: PostgresRowStore, postgres_session: PostgresSession, dsn: str, space: str, role: str
) -> None:
    await commit(store, puts((b"a", b"x")))
    postgres_session.run(f"GRANT USAGE ON SCHEMA {space} TO {role}")
    postgres_session.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA {space} TO {role}")
    async with opened(with_user(dsn, role, "sesame"), schema=space) as reader:
        assert await entities(reader) == {b"a": (1, b"x")}
        assert versions(await commit(reader, RowCommit(checks=[(b"a", 1)]))) == [1]
        assert (await reader.intersect([b"x|"], b"", b"\xff", 5)).rows == [(b"a", 1, None, None)]
        with pytest.raises(StoreReadOnlyError):
            await commit(reader, puts((b"b", b"x")))
        with pytest.raises(StoreReadOnlyError):
            await reader.allocate(b"s", 1)
        many = RowCommit(puts=[RowPut(b"%d" % n, b"", {}) for n in range(600)])
        with pytest.raises(StoreReadOnlyError):
            await commit(reader, many)
        assert await entities(reader) == {b"a": (1, b"x")}


async def test_a_role_that_may_write_but_not_make(
    store: PostgresRowStore, postgres_session: PostgresSession, dsn: str, space: str, role: str
) -> None:
    url = with_user(dsn, role, "sesame")
    with pytest.raises(UnavailableError, match="may not make it"):
        await PostgresRowStore(url, schema=space + "x").open()
    postgres_session.run(f"GRANT USAGE ON SCHEMA {space} TO {role}")
    postgres_session.run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {space} TO {role}")
    async with opened(url, schema=space) as writer:
        await commit(writer, puts((b"a", b"x")), RowCommit(deletes=[b"a"]), puts((b"b", b"x")))
        await commit(writer, puts(*((b"%05d" % n, b"x") for n in range(600))))
        assert (await writer.count(ALL_KEYS)).rows == 601


async def test_read_only_makes_and_writes_nothing(dsn: str, space: str) -> None:
    with pytest.raises(UnavailableError, match="read_only"):
        await PostgresRowStore(dsn, schema=space, read_only=True).open()
    async with opened(dsn, schema=space), opened(dsn, schema=space, read_only=True) as reader:
        with pytest.raises(StoreReadOnlyError):
            await commit(reader, puts((b"a", b"x")))
        with pytest.raises(StoreReadOnlyError):
            await reader.allocate(b"s", 1)


# ----------------------------------------------------------------------------------------- a pool of theirs


async def test_a_pool_that_is_handed_in_stays_open(dsn: str, space: str) -> None:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        async with opened(pool=pool, schema=space) as store:
            assert versions(await commit(store, puts((b"a", b"x,*y")))) == [1]
            await commit(store, puts(*((b"%05d" % n, b"x") for n in range(600))))
            reads = [store.read([b"a"]) for _ in range(20)]
            assert {found.records[0] for found in await asyncio.gather(*reads)} == {(1, b"x,*y")}
            task = asyncio.create_task(store.count(ALL_ROWS))
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await pool.fetchval("SELECT 1") == 1
        for _ in range(2000):  # the pool goes on giving back what was cancelled meanwhile; a leaked one never comes
            if pool.get_idle_size() == pool.get_size():
                break
            await asyncio.sleep(0.005)
        assert pool.get_idle_size() == pool.get_size()
        async with Datastore("postgresql://", pool=pool, schema=space) as ds:
            await ds.put(Entity(Key("K", 1), {"n": 1}))
            assert (await ds.get(Key("K", 1)))["n"] == 1  # type: ignore[index]


@pytest.mark.parametrize("settings", [{"pooler": "transaction"}, {"statement_cache_size": 0}])
async def test_without_prepared_statements_or_session_settings(dsn: str, space: str, settings: dict[str, Any]) -> None:
    async with opened(dsn, schema=space, **settings) as store:
        await commit(store, puts((b"a", b"x,*y"), (b"b", b"x")))
        await commit(store, puts(*((b"%05d" % n, b"x") for n in range(600))))
        assert (await store.read([b"a", b"b"])).records == [(1, b"x,*y"), (1, b"x")]
        assert (await store.scan(ALL_ROWS, 3, with_entities=True)).rows[0] == (b"x|00000", 5, 2, b"x")
        assert (await store.count(ALL_ROWS)).rows == 603


async def turns() -> None:
    """Some turns of the loop."""
    for _ in range(10):
        await asyncio.sleep(0)


class TransactionPooler:
    """What pgbouncer does in transaction mode: each transaction of a client may meet another of the server's sessions.

    Each client gets two sessions that take turns at every transaction, the harshest case; parameters that pgbouncer
    does not know are refused.
    """

    KNOWN = frozenset({b"user", b"database", b"client_encoding", b"application_name"})

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._tasks: set[asyncio.Task[None]] = set()
        self.turns = 0

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        await turns()  # in which connections that were accepted get their tasks
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await turns()  # in which those that were aborted close

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        sessions: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        pumps: list[asyncio.Task[None]] = []
        pinned: asyncio.StreamWriter | None = None

        async def pump(source: asyncio.StreamReader) -> None:
            nonlocal pinned
            while True:
                head = await source.readexactly(5)
                body = await source.readexactly(int.from_bytes(head[1:], "big") - 4)
                if head[:1] == b"Z" and body == b"I":
                    pinned = None
                writer.write(head + body)

        try:
            startup = await self._startup(reader, writer)
            if not self.KNOWN.issuperset(startup[8:-2].split(b"\0")[::2]):
                return
            for number in range(2):
                sessions.append(await asyncio.open_connection(*self._target))
                sessions[-1][1].write(startup)
                head = b""
                while head[:1] != b"Z":
                    head = await sessions[-1][0].readexactly(5)
                    body = await sessions[-1][0].readexactly(int.from_bytes(head[1:], "big") - 4)
                    if number == 0:
                        writer.write(head + body)
            pumps = [asyncio.create_task(pump(source)) for source, _ in sessions]
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
                if head[:1] == b"X":
                    return
                if pinned is None:
                    self.turns += 1
                    pinned = sessions[self.turns % 2][1]
                pinned.write(head + body)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for each in pumps:
                each.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for stream in (*(each for _, each in sessions), writer):
                stream.close()
            self._tasks.discard(task)

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        while True:
            size = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(size, "big") - 4)
            if body[:4] != (80877103).to_bytes(4, "big"):
                return size + body
            writer.write(b"N")  # no TLS


async def test_behind_a_pooler_of_transactions(dsn: str, space: str) -> None:
    parts = urlsplit(dsn)
    pooler = TransactionPooler(parts.hostname or "127.0.0.1", parts.port or 5432)
    async with pooler as port:
        behind = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}").geturl()
        with pytest.raises(UnavailableError):
            await PostgresRowStore(behind, schema=space, retry_s=0).open()
        async with opened(behind, schema=space, pooler="transaction", max_size=3) as store:
            before = pooler.turns
            outcomes = await asyncio.gather(*[commit(store, puts((b"%d" % n, b"x,*y"))) for n in range(20)])
            assert sorted(each[0].version or 0 for each in outcomes) == list(range(1, 21))
            await commit(store, puts(*((b"%05d" % n, b"x") for n in range(600))))
            assert (await store.count(ALL_ROWS)).rows == 640
            assert len((await store.scan(ALL_ROWS, 1000, with_entities=True)).rows) == 640
            joined = await asyncio.gather(*[store.scan(ALL_ROWS, 7) for _ in range(20)])
            assert {len(each.rows) for each in joined} == {7}
            found = await store.intersect([b"x|", b"y|"], b"", b"\xff", 100)
            assert len(found.rows) == 20
            assert pooler.turns > before + 30


# ------------------------------------------------------------------------------------------- long names


def long_name(rng: random.Random, length: int, head: bytes) -> bytes:
    return (head + rng.randbytes(max(0, length - len(head))))[:length]


@pytest.mark.parametrize("seed", range(3))
async def test_long_keys_and_rows_keep_their_order(store: PostgresRowStore, seed: int) -> None:
    rng = random.Random(seed)
    same = b"x" + rng.randbytes(SHORT + 50)  # heads that many share
    names = [
        long_name(rng, rng.choice([3, SHORT - 1, SHORT, SHORT + 1, SHORT + 60, 5000, 10_000]), head)
        for head in (b"", b"x", same[: SHORT - 2])
        for _ in range(8)
        if len(head) < SHORT
    ]
    names += [same[:length] for length in (SHORT - 1, SHORT, SHORT + 1, SHORT + 20)]
    names = [name for name in set(names) if len(name) >= 3]
    half = names[::2]
    written = {key: RowPut(key, b"p" + key[:5], {b"i" + key: len(key), b"v" * 3000 + key: len(key)}) for key in names}
    assert versions(await commit(store, RowCommit(puts=[written[key] for key in half]))) == [1]
    others = [written[key] for key in names[1::2]]
    assert versions(await commit(store, *[RowCommit(checks=[(put.key, 0)], puts=[put]) for put in others]))
    ordered = sorted(names)
    wide = Span(Space.ENTITY, b"", b"\xff" * 11_000)
    assert [row[0] for row in (await store.scan(wide, 1000)).rows] == ordered
    assert [row[0] for row in (await store.scan(wide, 5, reverse=True)).rows] == ordered[::-1][:5]
    found = (await store.scan(Span(Space.INDEX, b"i", b"j"), 1000, with_entities=True)).rows
    assert [(row[0], row[3]) for row in found] == [(b"i" + key, b"p" + key[:5]) for key in ordered]
    for lo, hi in (sorted(rng.sample(ordered, 2)) for _ in range(10)):
        inside = [key for key in ordered if lo <= key < hi]
        span = Span(Space.INDEX, b"i" + lo, b"i" + hi)
        for limit in (2, 1000):
            for reverse in (False, True):
                rows = (await store.scan(span, limit, reverse=reverse)).rows
                assert [row[0][1:] for row in rows] == (inside[::-1] if reverse else inside)[:limit]
        assert (await store.count(span)).rows == len(inside)
        check = await seen(store, Span(Space.ENTITY, lo, hi))
        assert versions(await commit(store, RowCommit(spans=[check, await seen(store, span)]))) != [None]
        stale = SpanCheck(Space.INDEX, b"i" + lo, b"i" + hi, check.count, hashlib.sha256(b"").digest())
        assert versions(await commit(store, RowCommit(spans=[stale]))) == [None if inside else 1 + len(others)]
    both = await store.intersect([b"i", b"i"], b"", b"\xff" * 11_000, 1000)
    assert [row[0] for row in both.rows] == ordered
    backwards = await store.intersect([b"i", b"i"], b"", b"\xff" * 11_000, 4, reverse=True, with_entities=True)
    assert [row[0] for row in backwards.rows] == ordered[::-1][:4]
    # Overwritten with other rows, then deleted: nothing is left.
    changed = [RowPut(key, b"q", {b"n" + key: len(key)}) for key in half]
    await commit(store, *[RowCommit(checks=[(put.key, 1)], puts=[put]) for put in changed])
    assert {row[:1] for row in await index_rows(store) if row[1:] in half} == {b"n"}
    assert set((await store.read(half)).records) != {None}
    await commit(store, RowCommit(deletes=names))
    assert await entities(store) == {}
    assert await index_rows(store) == {}


async def test_the_first_long_row_is_seen_by_stores_that_knew_of_none(dsn: str, space: str) -> None:
    row = b"x" * 9000 + b"|a"
    async with opened(dsn, schema=space) as old, opened(dsn, schema=space) as new:
        await commit(old, puts((b"a", b"x")))
        await commit(new, RowCommit(checks=[(b"a", 1)], puts=[RowPut(b"a", b"y", {row: 1})]))
        assert await index_rows(old) == {row: 1}
    async with opened(dsn, schema=space) as old:
        assert await old.tally(ALL_ROWS, 2) == ([(row[2:-1], 0, 1)], 2)
    async with opened(dsn, schema=space) as old:
        assert (await old.read([b"a"])).records == [(2, b"y")]
        await commit(old, puts((b"a", b"z")))
        assert await index_rows(old) == {b"z|a": 1}
    async with opened(dsn, schema=space) as old:
        assert versions(await commit(old, puts((b"a" * 3000, b"z")), RowCommit(deletes=[b"a"]))) == [4, 5]
        added = RowCommit(index_puts={row + b"a" * 3000: 3000, b"s": 0})
        assert versions(await commit(old, added)) == [6]
        assert await index_rows(old) == {row + b"a" * 3000: 3000, b"s": 0, b"z|" + b"a" * 3000: 3000}
        await commit(old, RowCommit(deletes=[b"a" * 3000], index_deletes=[b"s"]))
        assert await index_rows(old) == {}


# ----------------------------------------------------------------------------------------------- batches


async def test_batches_of_dependent_commits_are_judged_in_order(store: PostgresRowStore) -> None:
    await commit(store, puts((b"n", b"0"), (b"m", b"0")))
    same = [RowCommit(checks=[(b"n", 1)], puts=[entity(b"n", b"%d" % n)]) for n in range(20)]
    assert versions(await commit(store, *same)) == [2] + [None] * 19
    blind = [puts((b"n", b"%d" % n)) for n in range(12)]
    assert versions(await commit(store, *blind)) == list(range(3, 15))
    assert await index_rows(store) == {b"11|n": 1, b"0|m": 1}
    chain = [RowCommit(checks=[(b"n", 14 + n)], puts=[entity(b"n", b"c%d" % n)]) for n in range(6)]
    assert versions(await commit(store, *chain)) == list(range(15, 21))
    mixed = [
        RowCommit(checks=[(b"n", 20)], puts=[entity(b"a", b"x")]),
        RowCommit(checks=[(b"a", 21)], deletes=[b"a"]),
        RowCommit(checks=[(b"a", 0)], puts=[entity(b"n", b"last")]),
        RowCommit(checks=[(b"n", 20)]),
        RowCommit(checks=[(b"n", 23)]),
    ]
    assert versions(await commit(store, *mixed)) == [21, 22, 23, None, 23]


@pytest.mark.parametrize("seed", range(3))
async def test_rows_follow_their_entities(store: PostgresRowStore, seed: int) -> None:
    rng = random.Random(seed)
    model: dict[bytes, bytes] = {}

    def payload() -> bytes:
        names = rng.sample(["x", "y", "z", "w"], rng.randrange(5))
        return ",".join(rng.choice(["", "*"]) + name for name in names).encode()

    for _ in range(60):
        keys = rng.sample([b"%d" % n for n in range(12)], rng.choice((1, 1, 2, 6)))
        written = {key: payload() for key in keys}
        if rng.random() < 0.3:  # nothing that is indexed changes
            written = {key: model.get(key, b"x") for key in keys}
        commits = [puts((key, value)) for key, value in written.items()]
        if rng.random() < 0.5:
            commits = [puts(*written.items())]
        if rng.random() < 0.3:  # some of a batch do not hold
            commits.append(RowCommit(checks=[(b"absent", 7)], puts=[entity(b"never", b"x")]))
        outcome = await commit(store, *commits)
        assert [version is None for version in versions(outcome)] == [bool(each.checks) for each in commits]
        model.update(written)
        expected = {row: tail for key, value in model.items() for row, tail in rows_of(key, value).items()}
        assert await index_rows(store) == expected
        assert {key: value for key, (_, value) in (await entities(store)).items()} == model


@pytest.mark.parametrize("number", [1, 5])
async def test_a_row_of_nobody_is_replaced(
    store: PostgresRowStore, postgres_session: PostgresSession, space: str, number: int
) -> None:
    postgres_session.run(f"INSERT INTO \"{space}\".rows VALUES ('x|0'::bytea, 77)")
    outcome = await commit(store, *[puts((b"%d" % n, b"x,*y")) for n in range(number)])
    assert versions(outcome) == list(range(1, number + 1))
    assert (await index_rows(store))[b"x|0"] == 1
    assert versions(await commit(store, puts((b"a", b"x")))) == [number + 1]


async def test_large_puts_are_loaded_and_are_what_small_ones_make(
    dsn: str, space: str, postgres_session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same through COPY and through the function: tables, versions and outcomes."""
    tables = []
    for limit in (500, 10**9):
        monkeypatch.setattr("aiodatastore.adapters.postgres.store.LOADED_PUTS", limit)
        async with opened(dsn, schema=space) as store:
            one = puts(*((b"%05d" % n, b"x,*y%d" % n) for n in range(400)))
            two = puts(*((b"%05d" % n, b"x" if n % 2 else b"") for n in range(400, 700)))
            assert versions(await commit(store, one, RowCommit(checks=[(b"q", 0)]), two)) == [1, 1, 2]
            tables.append(
                [
                    postgres_session.run(f"SELECT * FROM {space}.{name} ORDER BY 1")
                    for name in ("entities", "rows", "meta")
                ]
            )
            # what exists is overwritten the usual way, what is stale is refused, and the fence holds
            again = puts(*((b"%05d" % n, b"z") for n in range(600, 1300)))
            assert versions(await commit(store, again)) == [3]
            refused = RowCommit(checks=[(b"00000", 7)], puts=[entity(b"%06d" % n, b"") for n in range(600)])
            assert versions(await commit(store, refused)) == [None]
            with pytest.raises(StaleFenceError):
                await commit(store, refused._replace(checks=()), fence=(b"00000", 9))
            orphans = RowCommit(index_puts={b"x|late": 4})
            late = puts((b"late", b"x"), *((b"l%05d" % n, b"") for n in range(600)))
            assert versions([*await commit(store, orphans), *await commit(store, late)]) == [4, 5]
            assert (await store.count(ALL_KEYS)).rows == 1901
        postgres_session.run(f"DROP SCHEMA {space} CASCADE")
    assert tables[0] == tables[1]


async def test_loading_really_copies(store: PostgresRowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []

    async def noticed(*arguments: Any) -> Any:
        copied.append(await loading.load(*arguments))
        return copied[-1]

    monkeypatch.setattr("aiodatastore.adapters.postgres.store.load", noticed)
    await commit(store, puts(*((b"%05d" % n, b"x") for n in range(600))))
    assert copied[0] is not None
    await commit(store, puts(*((b"%05d" % n, b"x") for n in range(600))))
    assert copied[1:] == [None]


# ------------------------------------------------------------------------------------------- merge joins


@pytest.mark.parametrize("reverse", [False, True])
async def test_intersections_are_what_sets_say(store: PostgresRowStore, reverse: bool) -> None:
    rng = random.Random(7)
    names = [b"%04d" % n for n in range(3000)]
    sets = [set(names), set(rng.sample(names, 1500)), set(rng.sample(names, 40)) | set(names[1000:1100])]
    await commit(
        store,
        *[
            RowCommit(index_puts={b"%c|%b" % (65 + n, name): 4 | (TAIL_MULTI if n == 1 else 0) for name in found})
            for n, found in enumerate(sets)
        ],
        RowCommit(puts=[RowPut(names[1050], b"here", {})]),
    )
    for chosen in ((0,), (0, 1), (1, 2), (0, 1, 2), (2, 0)):
        expected = sorted(set.intersection(*(sets[n] for n in chosen)), reverse=reverse)
        inside = [name for name in expected if b"0500" <= name < b"2500"]
        rests: list[bytes] = []
        lo, hi = b"0500", b"2500"
        while True:
            part = await store.intersect(
                [b"%c|" % (65 + n) for n in chosen], lo, hi, 37, reverse=reverse, with_entities=True
            )
            rests += [row[0] for row in part.rows]
            assert {row[1] & TAIL_MULTI for row in part.rows} <= {TAIL_MULTI if 1 in chosen else 0}
            assert {row[0] for row in part.rows if row[3] == b"here"} <= {names[1050]}
            if part.resume is None:
                break
            lo, hi = (lo, part.resume) if reverse else (part.resume, hi)
        assert rests == inside


# ----------------------------------------------------------------------------------------------- failures


async def test_a_killed_connection_is_replaced(
    store: PostgresRowStore, postgres_session: PostgresSession, space: str
) -> None:
    await commit(store, puts((b"a", b"x")))
    for work in (store.read([b"a"]), store.scan(ALL_ROWS, 5), store.count(ALL_KEYS), commit(store, puts((b"b", b"y")))):
        kill_idle(postgres_session)
        assert await work
    assert set(await entities(store)) == {b"a", b"b"}


def kill_idle(session: PostgresSession) -> None:
    session.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aiodatastore'")


async def until_waiting(session: PostgresSession, space: str, *events: str) -> None:
    """Until a statement on the schema waits for a lock of this kind."""
    async with asyncio.timeout(60):
        while not session.run(  # noqa: ASYNC110  (nothing tells)
            "SELECT 1 FROM pg_stat_activity WHERE wait_event = ANY($1) AND query LIKE $2", events, f"%{space}%"
        ):
            await asyncio.sleep(0.01)


async def while_locked(
    session: PostgresSession, dsn: str, space: str, work: Callable[[], Awaitable[Any]], act: Callable[[], None]
) -> Any:
    """Do something to the server while a commit waits for the writers' lock."""
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            await other.execute(f"SELECT pg_advisory_xact_lock(1633972339, '{space}.meta'::regclass::oid::int)")
            task = asyncio.ensure_future(work())
            await until_waiting(session, space, "advisory")
            act()
            await asyncio.sleep(0.05)
        return await task
    finally:
        await other.close()


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_a_commit_whose_backend_is_ended_is_done_once(
    store: PostgresRowStore, postgres_session: PostgresSession, dsn: str, space: str, function: str
) -> None:
    def end() -> None:
        postgres_session.run(
            f"SELECT {function}(pid) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE '%{space}%'"
        )

    outcome = await while_locked(postgres_session, dsn, space, lambda: commit(store, puts((b"a", b"x"))), end)
    assert versions(outcome) == [1]
    assert versions(await commit(store, puts((b"b", b"x")))) == [2]


async def test_a_read_that_is_not_answered_is_given_up(dsn: str, space: str) -> None:
    other = await asyncpg.connect(dsn)
    try:
        async with opened(dsn, schema=space) as store:
            await commit(store, puts((b"a", b"x")))
        async with opened(dsn, schema=space, command_timeout_s=0.2, retry_s=0) as store:
            async with other.transaction():
                await other.execute(f'LOCK TABLE "{space}".meta IN ACCESS EXCLUSIVE MODE')
                for read in (store.read([b"a"]), store.read([b"a", b"b"]), store.scan(ALL_KEYS, 5)):
                    async with asyncio.timeout(60):
                        with pytest.raises(UnavailableError):
                            await read
            async with asyncio.timeout(60):
                found = None
                while found is None:
                    with contextlib.suppress(UnavailableError):  # the machine may stall for as long
                        found = await store.read([b"a"])
                assert found.records == [(1, b"x")]
                assert not store._pool._lent  # type: ignore[union-attr]
                while store._watch._timer is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert not store._watch._since
    finally:
        await other.close()


async def test_a_lock_timeout_is_waited_out(dsn: str, space: str, postgres_session: PostgresSession) -> None:
    settings = {"lock_timeout": "100ms"}
    async with (
        asyncpg.create_pool(dsn, min_size=0, max_size=2, server_settings=settings) as pool,
        opened(pool=pool, schema=space, retry_s=60) as store,
    ):
        outcome = await while_locked(
            postgres_session, dsn, space, lambda: commit(store, puts((b"a", b"x"))), lambda: None
        )
        assert versions(outcome) == [1]


async def test_a_deadlock_is_tried_again(
    store: PostgresRowStore, postgres_session: PostgresSession, dsn: str, space: str
) -> None:
    """Somebody's transaction has the entity and wants the writers' lock; the commit has that and wants the entity."""
    await commit(store, puts((b"a", b"x")))
    other = await asyncpg.connect(dsn, server_settings={"deadlock_timeout": "60s"})
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(f"SELECT 1 FROM {space}.entities WHERE key = 'a' FOR UPDATE")
        task = asyncio.create_task(commit(store, puts((b"a", b"y"))))
        await until_waiting(postgres_session, space, "transactionid", "tuple")
        await other.execute(f"SELECT pg_advisory_xact_lock(1633972339, '{space}.meta'::regclass::oid::int)")
        await transaction.commit()
        assert versions(await task) == [2]
    finally:
        await other.close()


async def test_serializable_sessions_are_retried(dsn: str, space: str) -> None:
    settings = {"default_transaction_isolation": "serializable"}
    async with (
        asyncpg.create_pool(dsn, min_size=0, max_size=4, server_settings=settings) as pool,
        opened(pool=pool, schema=space) as store,
    ):
        outcomes = await asyncio.gather(*[commit(store, puts((b"%d" % n, b"x"))) for n in range(20)])
        assert sorted(each[0].version or 0 for each in outcomes) == list(range(1, 21))


async def test_a_token_is_used_once(store: PostgresRowStore, dsn: str, space: str) -> None:
    """The same batch sent twice, in either order: applied once, and both learn the same or the late one fails."""
    from aiodatastore.adapters.postgres.batches import outcomes, write_arguments

    batch = RowBatch([puts((b"a", b"x")), RowCommit(checks=[(b"a", 9)], deletes=[b"a"]), puts((b"b", b"y"))], rows_of)
    connection = await asyncpg.connect(dsn)
    try:
        slot = os.urandom(16)

        async def send(number: int, again: bool, batch: RowBatch) -> list[RowOutcome]:
            plain, arguments = write_arguments(slot, number, batch)
            arguments[2] = again
            text = store._statements.write_plain if plain else store._statements.write
            return outcomes(batch, await connection.fetchrow(text, *arguments))

        first = await send(1, False, batch)
        again = await send(1, True, batch)
        assert versions(first) == versions(again) == [1, None, 2]
        assert list(again[1].conflicts) == [(b"a", 1)]
        assert (await store.read([b"a", b"b"])) == ([(1, b"x"), (2, b"y")], 2)
        # The second sending comes first, and finds nothing to write; the first one comes late.
        refused = RowBatch([RowCommit(checks=[(b"a", 5)], deletes=[b"a"])], rows_of)
        found = await send(2, True, refused)
        assert versions(found) == [None]
        late = RowBatch([RowCommit(deletes=[b"a"])], rows_of)
        for number in (1, 2):
            with pytest.raises(asyncpg.UniqueViolationError):
                await send(number, False, late)
        assert (await store.read([b"a"])).version == 2
    finally:
        await connection.close()


async def test_what_is_not_known_is_said(dsn: str, space: str) -> None:
    async with opened(dsn, schema=space) as store:
        await commit(store, puts((b"a", b"x")))
        store._retry_s = 0.2
        real = store._pool._connect  # type: ignore[union-attr]
        broken = False

        async def refused() -> Any:
            if broken:
                raise ConnectionRefusedError("nobody there")
            return await real()

        store._pool._connect = refused  # type: ignore[union-attr]
        broken = True
        store._pool.drop_idle()  # type: ignore[union-attr]
        with pytest.raises(UnavailableError, match="nothing was written") as certain:
            await commit(store, puts((b"b", b"x")))
        assert certain.value.nothing_written
        with pytest.raises(UnavailableError):
            await store.read([b"a"])
        broken = False
        await store.read([b"a"])
        connection = await store._pool.take()  # type: ignore[union-attr]
        fetchrow = connection.fetchrow

        class Cut:
            """Executes, and loses the answer."""

            def __getattr__(self, name: str) -> Any:
                return getattr(connection, name)

            async def fetchrow(self, *arguments: Any, **named: Any) -> Any:
                nonlocal broken
                await fetchrow(*arguments, **named)
                broken = True
                raise ConnectionResetError("cut")

        await store._pool.give_back(Cut())  # type: ignore[union-attr]
        with pytest.raises(UnavailableError, match="not known") as doubtful:
            await commit(store, puts((b"c", b"x")))
        assert not doubtful.value.nothing_written
        broken = False
        assert (await store.read([b"c"])).records[0] is not None


async def test_cancelled_reads_leave_the_pool_whole(dsn: str, space: str) -> None:
    async with opened(dsn, schema=space, max_size=2) as store:
        await commit(store, puts(*((b"%05d" % n, b"x") for n in range(2000))))
        for n in range(40):
            tasks = [asyncio.create_task(store.scan(ALL_ROWS, 2000, with_entities=True)) for _ in range(3)]
            await asyncio.sleep(n * 0.0004)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (await store.read([b"00001"])).records == [(1, b"x")]
        pool = store._pool
        assert not pool._lent  # type: ignore[union-attr]
        assert len(pool._idle) <= 2  # type: ignore[union-attr]


async def test_cancelled_commits_leave_no_lock(dsn: str, space: str) -> None:
    async with opened(dsn, schema=space, max_size=2) as store:
        for n in range(30):
            many = puts(*((b"%d-%05d" % (n, m), b"x") for m in range(600 if n % 2 else 3)))
            task = asyncio.create_task(commit(store, many))
            await asyncio.sleep(n * 0.002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(60):
                assert (await commit(store, puts((b"a", b"x"))))[0].version
            found = (await store.count(Span(Space.ENTITY, b"%d-" % n, b"%d." % n))).rows
            assert found in (0, len(many.puts))


async def test_a_small_pool_serves_many(dsn: str, space: str) -> None:
    async with opened(dsn, schema=space, max_size=2) as store:
        await asyncio.gather(*[commit(store, puts((b"%d" % n, b"x"))) for n in range(50)])
        reads = await asyncio.gather(*[store.read([b"%d" % n]) for n in range(200)])
        assert sum(read.records[0] is not None for read in reads) == 50
        assert len(store._pool._idle) <= 2  # type: ignore[union-attr]


async def test_closing_ends_reads_and_waits_for_commits(dsn: str, space: str) -> None:
    store = PostgresRowStore(dsn, schema=space)
    await store.open()
    written = asyncio.create_task(commit(store, puts((b"a", b"x"))))
    await asyncio.sleep(0)
    await store.aclose()
    await store.aclose()
    assert versions(await written) == [1]
    with pytest.raises(StoreClosedError):
        await store.read([b"a"])
    async with opened(dsn, schema=space) as again:
        assert set(await entities(again)) == {b"a"}


async def test_a_store_that_is_dropped_warns(dsn: str, space: str) -> None:
    store = PostgresRowStore(dsn, schema=space)
    await store.open()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del store
    await asyncio.sleep(0)


async def test_a_forked_child_is_refused(store: PostgresRowStore) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                store.read([b"a"]).send(None)
            except StoreClosedError as exc:
                os.write(write, b"fork" if "fork" in str(exc) else b"other")
        finally:
            os._exit(0)
    os.close(write)
    answer = await asyncio.to_thread(os.read, read, 10)
    await asyncio.to_thread(os.waitpid, pid, 0)
    assert answer == b"fork"
    os.close(read)
    assert store in open_stores
    assert (await store.read([b"a"])).records == [None]


# ----------------------------------------------------------------------------------------------- replicas


async def test_a_replica_reads_and_the_primary_stands_in(dsn: str, space: str) -> None:
    async with opened(dsn, schema=space, replica=dsn) as store:
        replica = store.replica()
        assert replica is not None
        await commit(store, puts((b"a", b"x")))
        assert (await replica.read([b"a"])).records == [(1, b"x")]
        with pytest.raises(StoreReadOnlyError):
            await commit(replica, puts((b"b", b"x")))
    with pytest.raises(StoreClosedError):
        await replica.read([b"a"])
    async with opened(dsn, schema=space, replica="postgresql://ada:secret@127.0.0.1:1/db") as store:
        replica = store.replica()
        assert replica is not None
        assert (await replica.read([b"a"])).records == [(1, b"x")]
        assert (await replica.scan(ALL_ROWS, 5)).rows == [(b"x|a", 1, None, None)]


@pytest.mark.slow
async def test_a_standby_serves_reads_and_takes_over() -> None:
    """Two hosts in the DSN: when the first is killed and the second promoted, calls that waited go on there."""
    try:
        primary = PostgresServer(fsync="off")
    except ServerError as exc:
        pytest.skip(str(exc))
    with primary, primary.standby() as standby:
        ports = urlsplit(primary.dsn).port, urlsplit(standby.dsn).port
        both = "postgresql://postgres@" + ",".join(f"127.0.0.1:{port}" for port in ports) + "/postgres"
        behind = await asyncpg.connect(standby.dsn)
        await behind.execute("SELECT pg_wal_replay_pause()")
        async with asyncio.timeout(60):  # it is a request
            while await behind.fetchval("SELECT pg_get_wal_replay_pause_state()") != "paused":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with opened(both, replica=standby.dsn, retry_s=60) as store:
            await commit(store, puts((b"a", b"x")))
            replica = store.replica()
            assert isinstance(replica, PostgresRowStore)
            # The tables have not come to the standby yet: the primary answers for it.
            assert await behind.fetchval("SELECT to_regclass('aiodatastore.meta')") is None
            assert (await replica.read([b"a"])).records == [(1, b"x")]
            await behind.execute("SELECT pg_wal_replay_resume()")
            async with asyncio.timeout(60):
                while not await behind.fetchval("SELECT to_regclass('aiodatastore.meta')"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await behind.close()
            async with asyncio.timeout(60):
                while True:
                    replica._primary_until = 0.0
                    records = (await replica.read([b"a"])).records
                    if records != [None] and not replica._primary_until:  # it was the standby that answered
                        break
                    await asyncio.sleep(0.02)
            assert records == [(1, b"x")]
            # A standby alone takes no writes, and says so to whoever insists.
            with pytest.raises(UnavailableError):
                await PostgresRowStore(standby.dsn, retry_s=0.1).open()
            async with opened(standby.dsn, target_session_attrs="any", read_only=True) as reader:
                assert (await reader.read([b"a"])).records == [(1, b"x")]
            await asyncio.to_thread(primary.kill9)
            waiting = asyncio.create_task(commit(store, puts((b"b", b"x"))))
            reading = asyncio.create_task(store.read([b"a"]))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            connection = await asyncpg.connect(standby.dsn)
            assert await connection.fetchval("SELECT pg_promote()")
            await connection.close()
            assert versions(await waiting) == [2]
            assert (await reading).records == [(1, b"x")]
            assert set(await entities(store)) == {b"a", b"b"}


# ------------------------------------------------------------------------------------------ joined scans


async def test_scans_side_by_side_are_what_they_are_alone(store: PostgresRowStore) -> None:
    rng = random.Random(3)
    await commit(store, puts(*((b"%03d" % n, b"x,*y") for n in range(400))), RowCommit(index_puts={b"x|none": 4}))
    for space, joined, reverse in itertools.product(Space, (False, True), (False, True)):
        ends = [sorted((rng.randrange(400), rng.randrange(400))) for _ in range(40)]
        head = b"" if space is Space.ENTITY else b"x|"
        spans = [Span(space, head + b"%03d" % lo, head + b"%03d" % hi) for lo, hi in ends]
        limits = [rng.choice([0, 1, 20, 256, 1000]) for _ in spans]
        alone = [
            await store.scan(span, limit, reverse=reverse, with_entities=joined)
            for span, limit in zip(spans, limits, strict=True)
        ]
        together = await asyncio.gather(
            *[
                store.scan(span, limit, reverse=reverse, with_entities=joined)
                for span, limit in zip(spans, limits, strict=True)
            ]
        )
        assert together == alone
        for (lo, hi), limit, scan in zip(ends, limits, alone, strict=True):
            names = [b"%03d" % n for n in range(lo, hi)]
            assert [row[0][len(head) :] for row in scan.rows] == (names[::-1] if reverse else names)[:limit]


async def test_joined_scans_survive_cancelled_neighbours(store: PostgresRowStore) -> None:
    await commit(store, puts(*((b"%03d" % n, b"x") for n in range(100))))
    for n in range(20):
        tasks = [asyncio.create_task(store.scan(ALL_ROWS, 50, with_entities=True)) for _ in range(30)]
        await asyncio.sleep(n * 0.0005)
        for task in tasks[::3]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        left = [each for number, each in enumerate(found) if number % 3]
        assert {len(each.rows) for each in left if not isinstance(each, BaseException)} == {50}
        assert not any(isinstance(each, BaseException) for each in left)


# ------------------------------------------------------------------------------------------- SQL for people


AWKWARD: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "ints": [0, 1, -1, 127, 128, -32, -33, 255, 256, -128, -129, 65535, 65536, -(2**31), 2**32, 2**63 - 1, -(2**63)],
    "floats": [0.0, 1.5, -2.25, 0.1, 1e308, -1.7976931348623157e308, 5e-324, 2.2250738585072014e-308, 1 / 3, -1e-310],
    "not numbers": [float("nan"), float("inf"), float("-inf")],
    "text": ["", "a", "Größe ☃ 🎉", "x" * 40, "y" * 300, 'quote " back \\ slash', "%/:"],
    "bytes": [b"", b"\x00\x01\xff", b"z" * 300],
    "times": [
        datetime(2020, 2, 29, 12, 34, 56, 789012, UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
        datetime(2600, 5, 6, 7, 8, 9, tzinfo=UTC),
    ],
    "long text": Text("t" * 70_000),
    "blob": Blob(b"\x00" * 70_000),
    "place": GeoPoint(51.5, -0.12),
    "key": Key("A", 5, "B", "5", "a/b", "x:y", namespace="geo", project="p"),
    "dict": {"a": [1, {"b": None}], " ": 2},
    "dollar": {"$a": 1},
    "embedded": Entity(Key("In", "side", "Incomplete"), {"n": [1, "x"]}, unindexed=["n"]),
    "many": list(range(70)),
    "$odd": 1,
}


async def test_entities_are_shown_as_json(dsn: str, space: str, postgres_session: PostgresSession) -> None:
    keys = [
        Key("Kind", 2**62),
        Key("Kind", "00"),
        Key("Kind", "naïve/%:\x01\x7f\x85\u2028", "Sub Kind", "0"),
        Key("K" * 1400, "n" * 1400),
        Key("Kind", 1, namespace="geo", project="p"),
    ]
    async with Datastore(f"{dsn}{'&' if '?' in dsn else '?'}schema={space}") as ds:
        written = [Entity(key, {"n": number}) for number, key in enumerate(keys)]
        written[0] = Entity(keys[0], AWKWARD, unindexed=["none", "long text"])
        await ds.put(written)
        shown = postgres_session.run(
            f"SELECT key, version, properties::text, unindexed::text, path::text, kind, id, name, namespace, project"
            f" FROM {space}.entities_json"
        )
        of_kind = postgres_session.run(f"SELECT key FROM {space}.entities_of('Kind')")
        long_kind = postgres_session.run(f"SELECT name FROM {space}.entities_of($1)", "K" * 1400)
        elsewhere = postgres_session.run(f"SELECT properties->>'n' FROM {space}.entities_of('Kind', 'geo', 'p')")
    found = {row["key"]: row for row in shown}
    assert set(found) == {str(key) for key in keys}
    for each in written:
        row, line = found[str(each.key)], json.loads(dump_entity(each))
        properties = json.loads(row["properties"])
        if "floats" in properties:  # all numbers are numeric there: 1e308 has 309 digits
            properties["floats"] = list(map(float, properties["floats"]))
        assert properties == line["properties"]
        assert json.loads(row["unindexed"]) == line.get("unindexed", [])
        assert json.loads(row["path"]) == [part for pair in each.key.pairs for part in pair]
        assert (row["kind"], row["namespace"], row["project"]) == (each.key.kind, each.key.namespace, each.key.project)
        assert (row["id"], row["name"]) == (each.key.id, each.key.name)
        assert row["version"] == 2
    assert sorted(row[0] for row in of_kind) == sorted(str(key) for key in keys[:2])
    assert [row[0] for row in long_kind] == ["n" * 1400]
    assert [row[0] for row in elsewhere] == ["4"]


async def test_what_text_in_postgres_cannot_hold(dsn: str, space: str, postgres_session: PostgresSession) -> None:
    async with Datastore(f"{dsn}{'&' if '?' in dsn else '?'}schema={space}") as ds:
        await ds.put(Entity(Key("K", "a\x00b"), {"s": "\x00x\x00"}))
    [row] = postgres_session.run(f"SELECT key, name, properties->>'s' FROM {space}.entities_json")
    assert tuple(row) == ("/K:a%00b", "a\u2400b", "\u2400x\u2400")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@127.0.0.1:99999/db",
        "postgresql://me:secret@127.0.0.1:0/db",
        "postgresql://me:secret@127.0.0.1:notaport/db",
        "postgresql://me:secret@127.0.0.1:5432,[::1]:65536/db",
        "postgresql://me:secret@/db?host=127.0.0.1&port=99999",
        "postgresql://me:secret@127.0.0.1/db?replica=postgresql://me:secret@127.0.0.1:99999/db",
    ],
)
def test_ports_that_can_not_be_are_refused_before_anything_is_opened(url: str) -> None:
    with pytest.raises(BadArgumentError, match=r"a port is a number from 1 to 65535$") as caught:
        Datastore(url)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("hosts", ["127.0.0.1:65535", "[::1]:1", "[::1],b:5432", "", "%2Frun"])
def test_ports_that_can_be(hosts: str) -> None:
    assert Datastore(f"postgresql://me:99999999@{hosts}/db").adapter.url.startswith(f"postgresql://me@{hosts}/db")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:secret@127.0.0.1:notaport/db", "can't be read"),
        ("postgresql://me:secret@127.0.0.1/db?target_session_attrs=x", "target_session_attrs='x': expected one of any"),
    ],
)
async def test_a_url_that_cannot_be_read(url: str, told: str) -> None:
    with pytest.raises(BadArgumentError) as caught:
        async with Datastore(url):
            pass
    assert told in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception(caught.value))
