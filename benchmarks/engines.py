"""The engines that are measured, each with its server, places for data, and the sides that do the same work there."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from benchmarks.peers.files import AioFiles, AioFilesParsed, ThreadedFiles
from benchmarks.peers.orms import Alchemy, Piccolo, Tortoise
from benchmarks.peers.postgres import AsyncPG, AsyncPGLean, AsyncPGSerializable
from benchmarks.peers.redis import KeyValueRedis, RedisPy, RedisPyIncrement
from benchmarks.sides import Ours, Place, Side

if TYPE_CHECKING:
    from aiodatastore.testing.servers import Server

__all__ = ["ENGINES", "ClusterEngine", "Engine", "FileEngine", "PostgresEngine", "RedisEngine", "processor_seconds"]

POSTGRES_SETTINGS: dict[str, Any] = {
    "max_connections": 300,
    "max_prepared_transactions": 200,
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
}
"""For servers that are started here; what else there is, is as PostgreSQL has it, fsync and synchronous_commit on."""
VALKEY_SETTINGS: dict[str, Any] = {"appendonly": "yes", "appendfsync": "everysec"}


class Engine(ABC):
    """A kind of store, open: ``with engine:`` starts its server, if it has one and none is given.

    ``settings`` are those of the server that figures depend on; ``sides`` the ways of doing the work, ours first.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    sides: ClassVar[tuple[type[Side], ...]]
    works: ClassVar[frozenset[str]]
    processes: ClassVar[bool] = True
    most: ClassVar[int] = 1_000_000
    """Entities that are loaded at most: what the engine is for, in a time that one waits for."""
    variants: ClassVar[Mapping[str, str]] = {}
    """Settings of our store that are measured besides, for gets: what to call them → query of the URL."""

    def __init__(self, folder: Path, given: str | None = None) -> None:
        self.folder = folder
        self.given = given
        self.settings: dict[str, Any] = {}
        self._stack = ExitStack()
        self._pid: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _serve(self, server: Server) -> str:
        self._stack.enter_context(server)
        self._pid = server.pid
        return server.dsn

    def meter(self) -> Callable[[], float] | None:
        """What tells the server's processor time, if it can be seen."""
        pid = self._pid
        if pid is None or processor_seconds(pid) is None:
            return None
        return lambda: processor_seconds(pid) or 0.0

    @abstractmethod
    async def look(self) -> None:
        """Read the settings."""

    @abstractmethod
    def place(self, name: str) -> AbstractAsyncContextManager[Place]:
        """A new place for data, emptied at the end."""

    @asynccontextmanager
    async def strict(self) -> AsyncIterator[str | None]:
        """With every write on the disk before it is acknowledged, where the server has a setting for it: what to call
        it; else None."""
        yield None


class PostgresEngine(Engine):
    """PostgreSQL: ours in one schema, the peers in another one."""

    name = "postgres"
    title = "PostgreSQL"
    sides = (Ours, AsyncPG, AsyncPGLean, AsyncPGSerializable, Alchemy, Tortoise, Piccolo)
    works = frozenset({"get", "put", "modify", "counter", "query", "shapes", "ycsb", "bank", "import"})

    def __enter__(self) -> Self:
        if self.given is None:
            from aiodatastore.testing.servers import PostgresServer

            self.dsn = self._serve(PostgresServer(**POSTGRES_SETTINGS))
        else:
            self.dsn = self.given
        return self

    async def look(self) -> None:
        import asyncpg

        db = await asyncpg.connect(self.dsn)
        names = ("server_version", "fsync", "synchronous_commit", "shared_buffers", "max_wal_size")
        try:
            for name in names:
                self.settings[name] = await db.fetchval("SELECT current_setting($1)", name)
        finally:
            await db.close()

    async def _schemas(self, command: str, *names: str) -> None:
        import asyncpg

        db = await asyncpg.connect(self.dsn)
        try:
            for name in names:
                await db.execute(await db.fetchval("SELECT format($1, $2::text)", command, name))
        finally:
            await db.close()

    @asynccontextmanager
    async def place(self, name: str) -> AsyncIterator[Place]:
        ours, peers = f"aiodatastore_bench_{name}", f"aiodatastore_bench_{name}_peers"
        # A schema that is there already belongs to someone, or to an interrupted run: it is an error.
        await self._schemas("CREATE SCHEMA %I", peers, ours)
        try:
            mark = "&" if "?" in self.dsn else "?"
            yield Place(f"{self.dsn}{mark}schema={ours}", self.dsn, peers, self.folder)
        finally:
            await self._schemas("DROP SCHEMA %I CASCADE", ours, peers)


class RedisEngine(Engine):
    """Redis or Valkey: each side with a prefix."""

    name = "redis"
    title = "Redis"
    most = 250_000
    sides = (Ours, RedisPy, RedisPyIncrement, KeyValueRedis)
    works = frozenset({"get", "put", "modify", "counter", "query", "shapes", "ycsb", "bank", "import"})

    def __enter__(self) -> Self:
        if self.given is None:
            from aiodatastore.testing.servers import ValkeyServer

            self.dsn = self._serve(ValkeyServer(**VALKEY_SETTINGS))
        else:
            self.dsn = self.given
        return self

    async def look(self) -> None:
        async with self._client() as client:
            info = await client.info("server")
            kind = "valkey_version" if "valkey_version" in info else "redis_version"
            self.settings[kind] = info[kind]
            for name in ("appendonly", "appendfsync"):
                self.settings |= await client.config_get(name)

    @asynccontextmanager
    async def _client(self, *, decode: bool = True) -> AsyncIterator[Any]:
        from redis.asyncio import Redis

        async with Redis.from_url(self.dsn, decode_responses=decode) as client:
            yield client

    @asynccontextmanager
    async def place(self, name: str) -> AsyncIterator[Place]:
        ours, peers = f"aiodatastore-bench-{name}-ours:", f"aiodatastore-bench-{name}-peers:"
        async with self._client(decode=False) as client:
            for prefix in (ours, peers):
                async for key in client.scan_iter(match=f"*{prefix}*", count=10_000):
                    raise FileExistsError(f"the server has keys of an interrupted run: {key!r}; remove them first")
            try:
                mark = "&" if "?" in self.dsn else "?"
                yield Place(f"{self.dsn}{mark}prefix={ours}", self.dsn, peers, self.folder)
            finally:
                # not only at the beginning: a key may start with a brace
                for prefix in (ours, peers):
                    await _remove(client, f"*{prefix}*")

    @asynccontextmanager
    async def strict(self) -> AsyncIterator[str | None]:
        async with self._client() as client:
            before = await client.config_get("appendfsync")
            await client.config_set("appendfsync", "always")
            try:
                yield "appendfsync always"
            finally:
                await client.config_set("appendfsync", before["appendfsync"])


async def _remove(client: Any, pattern: str) -> None:
    keys: list[bytes] = []
    async for key in client.scan_iter(match=pattern, count=10_000):
        keys.append(key)
        if len(keys) == 10_000:
            await client.unlink(*keys)
            keys.clear()
    if keys:
        await client.unlink(*keys)


class FileEngine(Engine):
    """Readable files in a folder. One process writes."""

    name = "file"
    title = "Files"
    sides = (Ours, AioFiles, AioFilesParsed, ThreadedFiles)
    works = frozenset({"get", "put", "modify", "counter", "query", "shapes", "ycsb", "bank", "import"})
    processes = False
    most = 100_000
    variants: ClassVar[Mapping[str, str]] = {"without a cache": "cache_mb=0"}

    async def look(self) -> None:
        """There is no server."""

    @asynccontextmanager
    async def place(self, name: str) -> AsyncIterator[Place]:
        folder = self.folder / f"files-{name}"
        store = folder / "store"
        store.mkdir(parents=True)
        try:
            yield Place(f"file:///{store}", folder=store)
        finally:
            shutil.rmtree(folder)


class ClusterEngine(Engine):
    """A cluster of three masters: only beside one server, with the same work."""

    name = "cluster"
    title = "Redis Cluster"
    sides = (Ours,)
    works = frozenset()
    processes = False

    def __enter__(self) -> Self:
        if self.given is None:
            from aiodatastore.testing.servers import ValkeyCluster

            cluster = ValkeyCluster(replicas=0, node_timeout_ms=15_000, **VALKEY_SETTINGS)
            self.dsn = self._stack.enter_context(cluster).dsn
        else:
            self.dsn = self.given
        return self

    async def look(self) -> None:
        async with self._client() as client:
            await client.initialize()
            self.settings["masters"] = len(client.get_primaries())

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        from redis.asyncio.cluster import RedisCluster

        async with RedisCluster.from_url(self.dsn.partition(",")[0].replace("+cluster", "")) as client:
            yield client

    @asynccontextmanager
    async def place(self, name: str) -> AsyncIterator[Place]:
        prefix = f"aiodatastore-bench-{name}-cluster:"
        async with self._client() as client:
            if await self._keys(client, prefix):
                raise FileExistsError(f"the cluster has keys of an interrupted run: {prefix!r}; remove them first")
            try:
                mark = "&" if "?" in self.dsn else "?"
                yield Place(f"{self.dsn}{mark}prefix={prefix}", self.dsn, folder=self.folder)
            finally:
                for key in await self._keys(client, prefix):
                    await client.unlink(key)

    @staticmethod
    async def _keys(client: Any, prefix: str) -> list[bytes]:
        return [key async for key in client.scan_iter(match=f"*{prefix}*", count=10_000)]


ENGINES: Mapping[str, type[Engine]] = {
    each.name: each for each in (PostgresEngine, RedisEngine, FileEngine, ClusterEngine)
}
"""Those with sides of one form; memory and SQLite have theirs in :mod:`benchmarks.suite`."""


def processor_seconds(pid: int) -> float | None:
    """Processor time of a process and its children, with those that ended; None where that can't be read (no Linux).

    PostgreSQL has a process for each connection.
    """
    try:
        tick = os.sysconf("SC_CLK_TCK")
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            ended = sum(map(int, file.read().rpartition(")")[2].split()[13:15])) / tick
        return ended + sum(map(_own_seconds, [pid, *_children(pid)]))
    except (OSError, ValueError):
        return None


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [*map(int, file.read().split())]


def _own_seconds(pid: int) -> float:
    """Of all its threads, in nanoseconds rather than in ticks."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
    except OSError:
        return 0.0  # it has just ended
    return total / 1e9
