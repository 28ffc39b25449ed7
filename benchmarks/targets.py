"""The figures to reach, taken from the results of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiodatastore.bench.report import Result, Target
from benchmarks import suite
from benchmarks.composed.targets import composed_targets
from benchmarks.loading import LINES
from benchmarks.peers.files import AioFiles, AioFilesParsed, ThreadedFiles
from benchmarks.peers.orms import Alchemy, Piccolo, Tortoise
from benchmarks.peers.postgres import AsyncPG, AsyncPGLean
from benchmarks.peers.redis import KeyValueRedis, RedisPy, RedisPyIncrement
from benchmarks.sides import OURS

__all__ = ["targets"]

_LEAN = "– without the reset that asyncpg's pool does by itself"
_TWO = "– in two processes"
_GROWTH = "– growth of memory from 20% to the end"


def _find(results: Sequence[Result], name: str) -> Result | None:
    return next((result for result in results if result.name == name), None)


def _ratio(results: Sequence[Result], result: str, ours: str, peer: str, tasks: int = 1) -> float | None:
    found = _find(results, result)
    return None if found is None else found.ratio(ours, peer, tasks)


def _inverse(value: float | None) -> float | None:
    return None if not value else 1 / value


def _fact(results: Sequence[Result], result: str, start: str) -> Any:
    found = _find(results, result)
    if found is None:
        return None
    return next((value for name, value in found.facts.items() if name.startswith(start)), None)


def _growth(results: Sequence[Result], result: str = "cities") -> float | None:
    early = _fact(results, result, f"{OURS}: memory, MiB at 20%")
    late = _fact(results, result, f"{OURS}: memory, MiB at the end")
    return None if early is None or late is None else late - early


def _flat(results: Sequence[Result], result: str = "cities") -> float | None:
    """What counts as flat, in MiB; with few entities it is caches that fill."""
    found = _find(results, result)
    if found is None:
        return None
    return 32 if found.settings.get("cities", found.settings.get("entities", 0)) > 200_000 else None


def _least(*ratios: float | None) -> float | None:
    """Against the best of several: the lowest ratio; None if one was not measured."""
    return min([each for each in ratios if each is not None], default=None) if None not in ratios else None


def targets(results: Sequence[Result], tasks: int = 64) -> list[Target]:
    """Each with what was wanted and measured; those without a bound are told for completeness."""
    return [
        *_postgres(results, tasks),
        *_redis(results, tasks),
        *_file(results, tasks),
        *_embedded(results, tasks),
        *composed_targets(results, tasks),
    ]


def _postgres(results: Sequence[Result], tasks: int) -> list[Target]:
    def faster(work: str, peer: str, tasks: int = tasks, case: str = "") -> float | None:
        return _ratio(results, f"postgres_{work}", f"{case}{OURS}", f"{case}{peer}", tasks)

    def two(work: str, peer: str) -> float | None:
        found = _find(results, f"postgres_{work}")
        return None if found is None else found.ratio(OURS, peer, tasks, 2)

    raw, lean, orm = AsyncPG.name, AsyncPGLean.name, Alchemy.name
    orms = (Alchemy.name, Tortoise.name, Piccolo.name)
    few, many = f"few: {OURS}", f"many: {OURS}"
    at = f"{tasks} tasks"
    return [
        Target(f"PostgreSQL get, {at}, against asyncpg by hand", 5, faster("get", raw)),
        Target(_LEAN, None, faster("get", lean)),
        Target(_TWO, None, two("get", raw)),
        Target(f"PostgreSQL get, {at}, against the best ORM", 15, _least(*(faster("get", each) for each in orms))),
        Target("PostgreSQL get, 1 task: latency, of asyncpg's", 1.5, _inverse(faster("get", raw, 1)), below=True),
        Target(_LEAN, None, _inverse(faster("get", lean, 1)), below=True),
        Target(f"PostgreSQL put, 3 indexed properties, {at}, against asyncpg by hand", 1.5, faster("put", raw)),
        Target(_LEAN, None, faster("put", lean)),
        Target(_TWO, None, two("put", raw)),
        Target("– against SQLAlchemy", 5, faster("put", orm)),
        Target("PostgreSQL put, 1 task: latency, of asyncpg's", None, _inverse(faster("put", raw, 1)), below=True),
        Target(
            f"PostgreSQL read-modify-write, distinct keys, {at}, against asyncpg with SELECT … FOR UPDATE",
            3,
            faster("modify", raw),
        ),
        Target(_LEAN, None, faster("modify", lean)),
        Target(_TWO, None, two("modify", raw)),
        Target(f"PostgreSQL one counter, {at}, against asyncpg with SELECT … FOR UPDATE", 1, faster("counter", raw)),
        Target(_TWO, None, two("counter", raw)),
        Target(
            f"PostgreSQL transfers, {at}, against asyncpg with SELECT … FOR UPDATE",
            None,
            faster("bank", raw, case="evenly drawn: "),
        ),
        Target("– Zipf", None, faster("bank", raw, case="Zipf: ")),
        Target(
            "PostgreSQL filter, order, limit 20, 1 task: time, of the same SQL by hand, few",
            1.5,
            _inverse(faster("query", raw, 1, "few: ")),
            below=True,
        ),
        Target("– many", 1.5, _inverse(faster("query", raw, 1, "many: ")), below=True),
        Target("– few, without the reset", None, _inverse(faster("query", lean, 1, "few: ")), below=True),
        Target(
            "PostgreSQL filter, order, limit 20: time with many items, of that with few",
            1.3,
            _ratio(results, "postgres_query", few, many),
            below=True,
        ),
        Target(f"PostgreSQL filter, order, limit 20, {at}, against SQLAlchemy", 5, faster("query", orm, case="few: ")),
        Target(
            "PostgreSQL import, 5 indexed properties",
            20_000,
            _fact(results, "postgres_import", f"{OURS}: entities a second"),
            unit="a second",
        ),
        Target(
            "– from a file of JSON lines",
            None,
            _fact(results, "postgres_import", f"{LINES}: entities a second"),
            unit="a second",
        ),
        Target(_GROWTH, _flat(results, "postgres_import"), _growth(results, "postgres_import"), unit="MiB", below=True),
    ]


def _redis(results: Sequence[Result], tasks: int) -> list[Target]:
    def faster(work: str, peer: str, tasks: int = tasks, case: str = "") -> float | None:
        return _ratio(results, f"redis_{work}", f"{case}{OURS}", f"{case}{peer}", tasks)

    raw, strict = RedisPy.name, "appendfsync always: "
    at = f"{tasks} tasks"
    return [
        Target(f"Redis get, {at}, against redis-py by hand", 3, faster("get", raw)),
        Target(f"Redis put, 3 indexed properties, {at}, against redis-py's MULTI with ZADDs", 1.5, faster("put", raw)),
        Target("– with appendfsync always", None, faster("put", raw, case=strict)),
        Target(f"Redis transaction, {at}, against redis-py's WATCH, MULTI, EXEC", 3, faster("modify", raw)),
        Target("– with appendfsync always", None, faster("modify", raw, case=strict)),
        Target(f"Redis get, {at}, against py-key-value-aio", None, faster("get", KeyValueRedis.name)),
        Target("Redis get, 1 task: latency, of redis-py's", None, _inverse(faster("get", raw, 1)), below=True),
        Target("Redis put, 1 task: latency, of redis-py's", None, _inverse(faster("put", raw, 1)), below=True),
        Target(f"Redis one counter, {at}, against redis-py's WATCH", None, faster("counter", raw)),
        Target("– against INCRBY", None, faster("counter", RedisPyIncrement.name)),
        Target(
            "Redis import, 5 indexed properties",
            None,
            _fact(results, "redis_import", f"{OURS}: entities a second"),
            unit="a second",
        ),
    ]


def _file(results: Sequence[Result], tasks: int) -> list[Target]:
    def faster(work: str, peer: str, tasks: int = 1) -> float | None:
        return _ratio(results, f"file_{work}", OURS, peer, tasks)

    return [
        Target("file get, 1 task, against reading the file with aiofiles", 1, faster("get", AioFiles.name)),
        Target(
            "– without our cache",
            None,
            _ratio(results, "file_get", f"without a cache: {OURS}", AioFiles.name),
        ),
        Target("– against reading and parsing it", None, faster("get", AioFilesParsed.name)),
        Target("– against reading it in a thread, in one trip", None, faster("get", ThreadedFiles.name)),
        Target("file put, 1 task, against aiofiles with fsync and rename", None, faster("put", AioFiles.name)),
        Target(f"– {tasks} tasks", None, faster("put", AioFiles.name, tasks)),
        Target(
            "file import, 5 indexed properties",
            None,
            _fact(results, "file_import", f"{OURS}: entities a second"),
            unit="a second",
        ),
    ]


def _embedded(results: Sequence[Result], tasks: int) -> list[Target]:
    ours, few, many = OURS, f"few: {OURS}", f"many: {OURS}"
    get, put = "sqlite_get", "sqlite_put"
    far = f"from a random price: {ours}"
    slower = [
        _inverse(_ratio(results, "sqlite_query", f"{name}: {ours}", f"{name}: {suite.THREAD}"))
        for name in ("few", "many")
    ]
    return [
        Target("SQLite get, 1 task, against aiosqlite by hand", 4, _ratio(results, get, ours, suite.DOCUMENTED)),
        Target("– against its shortcut execute_fetchall", None, _ratio(results, get, ours, suite.AT_ONCE)),
        Target(
            f"SQLite get, {tasks} tasks, against aiosqlite by hand",
            8,
            _ratio(results, get, ours, suite.DOCUMENTED, tasks),
        ),
        Target("– against its shortcut execute_fetchall", None, _ratio(results, get, ours, suite.AT_ONCE, tasks)),
        Target(
            f"SQLite put, {tasks} tasks, against aiosqlite insert and commit, each a transaction",
            3,
            _ratio(results, put, ours, suite.ALONE, tasks),
        ),
        Target(
            "– against inserts that share a connection's transaction",
            None,
            _ratio(results, put, ours, suite.MINGLED, tasks),
        ),
        Target("– against aiosqlite in autocommit mode", None, _ratio(results, put, ours, suite.AUTOCOMMIT, tasks)),
        Target(
            "SQLite put, 1 task, against aiosqlite insert and commit", None, _ratio(results, put, ours, suite.MINGLED)
        ),
        Target("SQLite filter, order, limit 20: time, of the same SQL in a thread, few", 1.5, slower[0], below=True),
        Target("– many", 1.5, slower[1], below=True),
        Target(
            "SQLite filter, order, limit 20: time with many items, of that with few",
            1.3,
            _ratio(results, "sqlite_query", few, many),
            below=True,
        ),
        Target(
            "– from a random price, results all over the data",
            None,
            _ratio(results, "sqlite_query", f"few, {far}", f"many, {far}"),
            below=True,
        ),
        Target("memory get, 1 task, against py-key-value-aio", 4, _ratio(results, "memory_get", ours, suite.KEY_VALUE)),
        Target("memory put, 1 task, against py-key-value-aio", 1, _ratio(results, "memory_put", ours, suite.KEY_VALUE)),
        Target(f"– {tasks} tasks", None, _ratio(results, "memory_put", ours, suite.KEY_VALUE, tasks)),
        Target(
            "SQLite import of cities, all properties indexed",
            20_000,
            _fact(results, "cities", "aiodatastore: entities a second"),
            unit="a second",
        ),
        Target(_GROWTH, _flat(results), _growth(results), unit="MiB", below=True),
        Target(
            "import aiodatastore",
            100,
            _fact(results, "import", "import aiodatastore: ms, median"),
            unit="ms",
            below=True,
        ),
        Target(
            "– with its main names",
            None,
            _fact(results, "import", "with its main names: ms, median"),
            unit="ms",
            below=True,
        ),
    ]
