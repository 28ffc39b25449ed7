"""The engines under test: how to make an empty store of each, and a way around its adapter.

An :class:`Engine` makes a :class:`Place` for a test: a new file, folder, schema or prefix, removed at its end. The
fixtures ``engine`` and ``place`` (in ``tests/conftest.py``) give them; ``ENGINES`` says what each engine can do, and
:func:`engines` chooses by that.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from aiodatastore import Datastore
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import Record, RowStore
from aiodatastore.testing.suite import SideDoor

if TYPE_CHECKING:
    import redis

__all__ = [
    "CLUSTER",
    "ENGINES",
    "Bound",
    "ClusterSession",
    "Engine",
    "Place",
    "PostgresSession",
    "RedisSession",
    "engines",
]

OWN = b"\xff"
"""What the keys of a store's own records begin with."""
ADAPTER_OPTIONS = ("require_indexes", "sort_budget", "serializer")


class Place:
    """Where the data of one test lives: everything that connects through it meets the same store."""

    def __init__(self, url: str, door: SideDoor | None = None, **options: Any) -> None:
        self.url = url
        self.options = options
        self.door = door

    def connect(self, **options: Any) -> Datastore:
        """A new, unopened datastore; ``options`` are the datastore's."""
        return Datastore(self.url, **{**self.options, **options})

    def row_store(self) -> RowStore:
        """A new, unopened row store."""
        adapter = adapter_from_url(self.url, **self.options)
        assert isinstance(adapter, EngineAdapter)
        return adapter.store


@dataclass(frozen=True)
class Engine:
    """An engine and what it can do; ``make(folder, session)`` gives a place in an empty folder or on a server."""

    name: str
    make: Callable[[Path, Any], AbstractContextManager[Place]]
    session: str | None = None
    """The fixture that connects to its server."""
    loops: tuple[str, ...] = ("asyncio",)
    """The event loops it runs under, the first being enough where both are alike."""
    server: bool = False
    """Whether it lives on a server that is reached over connections."""
    connections: bool = True
    """Whether a store may be open several times at once in this process."""
    processes: bool = True
    """Whether several processes may have it open at once."""
    asks_rows: bool = True
    """Whether it asks for the index rows of an entity that is overwritten, or knows them."""
    durable: bool = True
    """Whether it survives the end of the process that wrote it."""

    def __str__(self) -> str:
        return self.name


# --------------------------------------------------------------------------------------------------- memory


class MemoryPlace(Place):
    """One row store; connections are not: they would share it without knowing."""

    def __init__(self) -> None:
        self.store = MemoryRowStore()
        super().__init__("memory://", MemoryDoor(self.store))

    def connect(self, **options: Any) -> Datastore:
        own = {name: options.pop(name) for name in ADAPTER_OPTIONS if name in options}
        return Datastore(EngineAdapter(self.store, **own), **options)

    def row_store(self) -> RowStore:
        return self.store


class MemoryDoor(SideDoor):
    def __init__(self, store: MemoryRowStore) -> None:
        self.store = store

    def entity_keys(self) -> list[bytes]:
        return sorted(key for key in self.store._records if key < OWN)

    def index_row_count(self) -> int:
        return len(self.store._tails)

    def drop_index_row(self) -> None:
        self.store._set_row(min(self.store._tails), None)

    def damage_payload(self, key: bytes) -> None:
        self.store._records[key] = Record(self.store._records[key].version, b"garbage")


@contextmanager
def memory_place(folder: Path, session: None) -> Iterator[Place]:
    yield MemoryPlace()


# --------------------------------------------------------------------------------------------------- SQLite


class SQLiteDoor(SideDoor):
    def __init__(self, path: Path) -> None:
        self.path = path

    def _run(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
            return connection.execute(statement, parameters).fetchall()

    def entity_keys(self) -> list[bytes]:
        return [key for (key,) in self._run("SELECT key FROM entities WHERE key < ? ORDER BY key", OWN)]

    def index_row_count(self) -> int:
        ((count,),) = self._run("SELECT count(*) FROM rows")
        return int(count)

    def drop_index_row(self) -> None:
        self._run("DELETE FROM rows WHERE row = (SELECT min(row) FROM rows)")

    def damage_payload(self, key: bytes) -> None:
        self._run("UPDATE entities SET payload = ? WHERE key = ?", b"garbage", key)


def sqlite_url(path: Path) -> str:
    """With patience: SQLite's lock goes to whoever looks in the right moment, and several processes want it."""
    return f"sqlite:///{path}?busy_timeout_s=60"


@contextmanager
def sqlite_place(folder: Path, session: None) -> Iterator[Place]:
    path = folder / "store.db"
    yield Place(sqlite_url(path), SQLiteDoor(path), synchronous="OFF", cache_mb=4)


@contextmanager
def sqlite_threads_place(folder: Path, session: None) -> Iterator[Place]:
    path = folder / "store.db"
    yield Place(sqlite_url(path), SQLiteDoor(path), synchronous="OFF", cache_mb=4, inline_reads=False)


# ---------------------------------------------------------------------------------------------------- files


@contextmanager
def file_place(folder: Path, session: None) -> Iterator[Place]:
    yield Place(f"file:///{folder}/store")


# ----------------------------------------------------------------------------------------------- PostgreSQL


def fresh_name() -> str:
    """A name that no other test, process or run has."""
    return "t" + os.urandom(8).hex()


class PostgresSession:
    """A connection of the tests' own, for synchronous use: beside whatever event loop the test has."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._connection: Any = None
        self._lock = threading.Lock()

    def run(self, statement: str, *parameters: Any) -> list[Any]:
        """The rows of a statement."""
        with self._lock:
            if self._portal is None:
                import asyncpg

                self._portal = self._stack.enter_context(start_blocking_portal("asyncio"))
                self._connection = self._portal.call(asyncpg.connect, self.dsn)
            rows: list[Any] = self._portal.call(self._connection.fetch, statement, *parameters)
            return rows

    def close(self) -> None:
        with self._stack:
            if self._connection is not None and self._portal is not None:
                self._portal.call(self._connection.close)


class PostgresDoor(SideDoor):
    def __init__(self, session: PostgresSession, schema: str) -> None:
        self.session = session
        self.schema = schema

    def _run(self, statement: str, *parameters: Any) -> list[Any]:
        return self.session.run(statement.replace("SCHEMA", f'"{self.schema}"'), *parameters)

    def entity_keys(self) -> list[bytes]:
        return [row[0] for row in self._run("SELECT key FROM SCHEMA.entities WHERE key < $1 ORDER BY key", OWN)]

    def index_row_count(self) -> int:
        return int(self._run("SELECT count(*) FROM SCHEMA.rows")[0][0])

    def drop_index_row(self) -> None:
        self._run("DELETE FROM SCHEMA.rows WHERE row = (SELECT row FROM SCHEMA.rows ORDER BY row LIMIT 1)")

    def damage_payload(self, key: bytes) -> None:
        self._run("UPDATE SCHEMA.entities SET payload = $1 WHERE key = $2", b"garbage", key)


@contextmanager
def postgres_place(folder: Path, session: PostgresSession) -> Iterator[Place]:
    schema = fresh_name()
    separator = "&" if "?" in session.dsn else "?"
    try:
        yield Place(f"{session.dsn}{separator}schema={schema}", PostgresDoor(session, schema))
    finally:
        session.run(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


# ---------------------------------------------------------------------------------------------------- Redis


class RedisSession:
    """A connection of the tests' own, synchronous."""

    def __init__(self, dsn: str) -> None:
        from redis import Redis

        self.dsn = dsn
        self.client: redis.Redis = Redis.from_url(dsn)

    def close(self) -> None:
        self.client.close()


class RedisDoor(SideDoor):
    """Reads what ``aiodatastore/adapters/redis/layout.py`` describes."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self.client = client
        self.prefix = prefix.encode() + b"|"

    def _members(self, name: bytes) -> list[bytes]:
        return cast("list[bytes]", self.client.zrange(self.prefix + name, 0, -1))

    def entity_keys(self) -> list[bytes]:
        return [key for each in self._members(b"k") if (key := each.replace(b"\0\xff", b"\0")) < OWN]

    def index_row_count(self) -> int:
        return len(self._members(b"i"))

    def drop_index_row(self) -> None:
        self.client.zrem(self.prefix + b"i", self._members(b"i")[0])

    def damage_payload(self, key: bytes) -> None:
        name = self.prefix + b"e" + key.replace(b"\0", b"\0\xff")
        stored = cast("bytes", self.client.get(name))
        self.client.set(name, stored[:8] + b"garbage")


@contextmanager
def redis_place(folder: Path, session: RedisSession) -> Iterator[Place]:
    prefix = fresh_name()
    separator = "&" if "?" in session.dsn else "?"
    try:
        yield Place(f"{session.dsn}{separator}prefix={prefix}", RedisDoor(session.client, prefix))
    finally:
        found = list(session.client.scan_iter(match=f"*{prefix}*", count=1000))
        if found:
            session.client.delete(*found)


# -------------------------------------------------------------------------------------------------- cluster


class ClusterSession:
    """Connections of the tests' own to a cluster, synchronous."""

    def __init__(self, dsn: str) -> None:
        from redis.cluster import RedisCluster

        self.dsn = dsn
        self.client: redis.cluster.RedisCluster = RedisCluster.from_url(dsn.partition(",")[0].replace("+cluster", ""))

    def remove(self, prefix: str) -> None:
        """Delete all keys of a prefix."""
        for name in list(self.client.scan_iter(match=f"{{{prefix}.*", count=1000)):
            self.client.delete(name)

    def close(self) -> None:
        self.client.close()


class ClusterDoor(SideDoor):
    """The side doors of all shards."""

    def __init__(self, client: Any, tags: list[str]) -> None:
        self.doors = [RedisDoor(client, tag) for tag in tags]

    def entity_keys(self) -> list[bytes]:
        return sorted(key for door in self.doors for key in door.entity_keys() if _LAYOUT not in key)

    def index_row_count(self) -> int:
        return sum(_LAYOUT not in row for door in self.doors for row in door._members(b"i"))

    def drop_index_row(self) -> None:
        next(door for door in self.doors if len(door._members(b"i")) > 1).drop_index_row()

    def damage_payload(self, key: bytes) -> None:
        next(door for door in self.doors if key in door.entity_keys()).damage_payload(key)


class ClusterPlace(Place):
    def row_store(self) -> RowStore:
        adapter = adapter_from_url(self.url, **self.options).children[0]
        assert isinstance(adapter, EngineAdapter)
        return adapter.store


_LAYOUT = b"__collections__"
"""Of each shard's record of the collection."""


@contextmanager
def cluster_place(folder: Path, session: ClusterSession, *, shards: int = 4) -> Iterator[Place]:
    from aiodatastore.adapters.redis.cluster import hash_tags

    prefix = fresh_name()
    door = ClusterDoor(session.client, hash_tags(prefix, shards))
    try:
        yield ClusterPlace(f"{session.dsn}?prefix={prefix}&shards={shards}", door)
    finally:
        session.remove(prefix)


@contextmanager
def slot_place(folder: Path, session: ClusterSession) -> Iterator[Place]:
    with cluster_place(folder, session, shards=1) as place:
        yield place


# --------------------------------------------------------------------------------------------------- choice

BOTH_LOOPS = ("asyncio", "trio")

_ALL = (
    Engine("memory", memory_place, loops=BOTH_LOOPS, connections=False, processes=False, durable=False),
    Engine("sqlite", sqlite_place, loops=BOTH_LOOPS),
    Engine("file", file_place, loops=BOTH_LOOPS, connections=False, processes=False),
    Engine("postgres", postgres_place, session="postgres_session", server=True, asks_rows=False),
    Engine("redis", redis_place, session="redis_session", server=True, asks_rows=False),
)
_CHOSEN = os.environ.get("AIODATASTORE_TEST_ENGINES", "")
ENGINES = {engine.name: engine for engine in _ALL if not _CHOSEN or engine.name in _CHOSEN.split(",")}
"""All, or those that ``AIODATASTORE_TEST_ENGINES=memory,postgres`` names."""
VARIANTS = {
    "sqlite-threads": Engine("sqlite-threads", sqlite_threads_place, loops=BOTH_LOOPS),
}
CLUSTER = Engine("cluster", cluster_place, session="cluster_session", server=True, asks_rows=False)
"""Four shards in a cluster. Not among all: what a server does is tested on one, and how shards are merged in memory."""
CLUSTERS = [CLUSTER] if not _CHOSEN or "cluster" in _CHOSEN.split(",") else []
SLOTS = [replace(each, name="cluster-slot", make=slot_place) for each in CLUSTERS]
VARIANTS.update({each.name: each for each in SLOTS})
"""Engines with settings that make a difference to row stores only."""


def engines(*, loops: bool = False, variants: bool = False, **wanted: bool) -> pytest.MarkDecorator:
    """Run a test on every engine of which ``wanted`` holds: ``@engines(processes=True)``.

    With ``loops`` on each of its event loops, by the fixture ``anyio_backend``, too; ``variants``: on these, too.
    """
    found = [*ENGINES.values(), *(VARIANTS.values() if variants else ())]
    chosen = [each for each in found if all(getattr(each, name) is value for name, value in wanted.items())]
    if not loops:
        return pytest.mark.parametrize("engine", chosen, indirect=True, ids=str)
    pairs = [(each, loop) for each in chosen for loop in each.loops]
    ids = [each.name if loop == each.loops[0] else f"{each}-{loop}" for each, loop in pairs]
    return pytest.mark.parametrize(("engine", "anyio_backend"), pairs, indirect=True, ids=ids)


class Bound:
    """An engine with its server: what the fixture ``engine`` gives."""

    def __init__(self, engine: Engine, session: PostgresSession | RedisSession | None, folder: Path) -> None:
        self.engine = engine
        self.name = engine.name
        self._session = session
        self._folder = folder

    @contextmanager
    def place(self) -> Iterator[Place]:
        """An empty store, gone at the end."""
        with (
            tempfile.TemporaryDirectory(dir=self._folder) as folder,
            self.engine.make(Path(folder), self._session) as place,
        ):
            yield place
