"""The benchmarks, each a function that adds its results to the report."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiodatastore.bench.data import WORKLOADS, person
from aiodatastore.bench.measure import compare
from aiodatastore.bench.report import Report, Result
from aiodatastore.bench.workloads import SHAPES, Bank, Items, People, Records, draw_fresh
from aiodatastore.datastore import Datastore
from benchmarks.composed import COMPOSED, COMPOSED_WORKS
from benchmarks.engines import ENGINES, Engine
from benchmarks.matrix import MATRIX
from benchmarks.peers.memory import KeyValueMemory
from benchmarks.peers.sqlite import (
    AioSQLite,
    AioSQLiteBank,
    AlchemyPeople,
    SQLItems,
    ThreadedSQLite,
    aiosqlite_shape,
    aiosqlite_top,
    connect,
)
from benchmarks.sides import OURS
from benchmarks.sizes import SEED, Size

__all__ = ["ALL_ENGINES", "ALL_WORKS", "BENCHMARKS", "Benchmark", "Context"]

OURS_BY_NUMBER = "key made on the way: aiodatastore"
DOCUMENTED = "aiosqlite, execute and fetchone"
AT_ONCE = "aiosqlite, execute_fetchall"
MINGLED = "aiosqlite, insert and commit"
ALONE = "aiosqlite, the same under a lock"
AUTOCOMMIT = "aiosqlite, autocommit"
ALCHEMY = "SQLAlchemy ORM"
KEY_VALUE = "py-key-value-aio MemoryStore"
THREAD = "sqlite3 in a thread"

_SETTINGS_SQLITE = {"journal_mode": "WAL", "synchronous": "FULL", "cache_mb": 64}


@dataclass(frozen=True, slots=True)
class Context:
    """What every benchmark gets: where to report, how much to do, a folder of its own, and which works are wanted.

    ``spread``, ``processes``: see :class:`~benchmarks.sizes.Size`. ``engines`` are those of servers and files that the
    benchmark names, open.
    """

    report: Report
    size: Size
    folder: Path
    works: frozenset[str]
    spread: tuple[int, ...]
    processes: tuple[int, ...]
    engines: Mapping[str, Engine] = field(default_factory=dict)

    @asynccontextmanager
    async def store(self, name: str) -> AsyncIterator[Datastore]:
        """An open datastore: in memory, or in a new file."""
        url = "memory://" if name == "memory" else f"sqlite:///{self.folder / name}.db"
        async with Datastore(url) as ds:
            yield ds


async def memory(context: Context) -> None:
    """Gets and puts in memory, beside py-key-value-aio's memory store."""
    size = context.size
    async with context.store("memory") as ds:
        people, peer = People(ds), KeyValueMemory()
        await people.load(size.people)
        await peer.load_people(size.people)
        get = Result("memory_get", "memory: get by key", settings={"entities": size.people})
        gets = [
            people.get(OURS, size.people, SEED),
            peer.get(KEY_VALUE, size.people, SEED),
            people.get_by_number(OURS_BY_NUMBER, size.people, SEED),
            peer.get_by_number(f"key made on the way: {KEY_VALUE}", size.people, SEED),
        ]
        put = Result("memory_put", "memory: put of a new entity, 3 indexed properties", settings={"index_rows": 4})
        puts = [
            people.put(OURS, draw_fresh(size.people + 1, person)),
            peer.put(KEY_VALUE, draw_fresh(size.people + 1, person)),
        ]
        if "get" in context.works:
            for tasks in (1, size.tasks):
                get.figures += await compare(gets, size.effort, tasks=tasks)
            context.report.add(get)
        if "put" not in context.works:
            return
        for tasks in (1, size.tasks):
            put.figures += await compare(puts, size.effort, tasks=tasks)
        put.notes.append("py-key-value-aio keeps no indexes and no versions; ours keeps four index rows an entity")
        context.report.add(put)


async def sqlite(context: Context) -> None:
    """Gets and puts in SQLite, beside aiosqlite by hand and SQLAlchemy."""
    size, folder = context.size, context.folder
    async with AsyncExitStack() as stack:
        ds = await stack.enter_async_context(context.store("people"))
        peer = AioSQLite(await stack.enter_async_context(connect(folder / "people-aiosqlite.db")))
        lone = AioSQLite(
            await stack.enter_async_context(connect(folder / "people-autocommit.db", isolation_level=None))
        )
        orm = AlchemyPeople(folder / "people-sqlalchemy.db")
        stack.push_async_callback(orm.engine.dispose)
        people = People(ds)
        await people.load(size.people)
        await peer.load_people(size.people)
        await lone.load_people(size.people)
        await orm.load_people(size.people)
        get = Result("sqlite_get", "SQLite: get by key", settings={"entities": size.people, **_SETTINGS_SQLITE})
        gets = [
            people.get(OURS, size.people, SEED),
            people.get_by_number(OURS_BY_NUMBER, size.people, SEED),
            peer.get(DOCUMENTED, size.people, SEED),
            peer.get_at_once(AT_ONCE, size.people, SEED),
            orm.get(ALCHEMY, size.people, SEED),
        ]
        if "get" in context.works:
            for tasks in (1, size.tasks):
                get.figures += await compare(gets, size.effort, tasks=tasks)
            context.report.add(get)
        if "put" not in context.works:
            return
        put = Result(
            "sqlite_put",
            "SQLite: put of a new entity, 3 indexed properties",
            settings={"index_rows": 4, **_SETTINGS_SQLITE},
        )
        fresh = draw_fresh(size.people + 1, person)  # one for all ways of inserting into the same table
        puts = [
            people.put(OURS, draw_fresh(size.people + 1, person)),
            peer.put(MINGLED, fresh),
            peer.put_alone(ALONE, fresh),
            lone.put_at_once(AUTOCOMMIT, draw_fresh(size.people + 1, person)),
            orm.put(ALCHEMY, draw_fresh(size.people + 1, person)),
        ]
        for tasks in (1, size.tasks):
            put.figures += await compare(puts, size.effort, tasks=tasks)
        put.notes.append(
            "Tasks that insert and commit on one aiosqlite connection share its transaction: one task's commit takes "
            "the others' inserts along, its rollback would drop them. Under the lock and with autocommit each stands "
            "alone, as with ours."
        )
        context.report.add(put)


async def query(context: Context) -> None:
    """The figure query at two sizes, beside the same SQL by hand."""
    size, folder = context.size, context.folder
    result = Result(
        "sqlite_query",
        "SQLite: filter, order, limit 20, by a composite index",
        settings={"few": size.items, "many": size.many_items, **_SETTINGS_SQLITE},
    )
    async with AsyncExitStack() as stack:
        subjects = []
        for name, count in (("few", size.items), ("many", size.many_items)):
            context.report.say(f"loading {count:,} items twice")
            items = Items(await stack.enter_async_context(context.store(f"items-{name}")))
            await items.load(count)
            path = folder / f"items-{name}-sql.db"
            SQLItems(path).load(count)
            threaded = ThreadedSQLite(path)
            stack.callback(threaded.close)
            connection = await stack.enter_async_context(connect(path))
            orm = AlchemyPeople(path)
            stack.push_async_callback(orm.engine.dispose)
            subjects += [
                items.top(f"{name}: {OURS}", SEED),
                threaded.top(f"{name}: {THREAD}", SEED),
                aiosqlite_top(f"{name}: {AT_ONCE}", connection, SEED),
                orm.top(f"{name}: {ALCHEMY}", SEED),
                items.top_below(f"{name}, from a random price: {OURS}", SEED),
                threaded.top_below(f"{name}, from a random price: {THREAD}", SEED),
            ]
        result.figures = await compare(subjects, size.effort)
    result.notes.append("Ours gives 20 entities with keys and versions, SQLAlchemy 20 objects, the others 20 tuples.")
    context.report.add(result)


async def shapes(context: Context) -> None:
    """Other queries, in memory and in SQLite, beside aiosqlite."""
    size = context.size
    async with AsyncExitStack() as stack:
        stored = Items(await stack.enter_async_context(context.store("shapes")))
        held = Items(await stack.enter_async_context(context.store("memory")))
        await stored.load(size.shape_items)
        await held.load(size.shape_items)
        path = context.folder / "shapes-sql.db"
        SQLItems(path).load(size.shape_items)
        connection = await stack.enter_async_context(connect(path))
        result = Result("shapes", "Shapes of queries", settings={"items": size.shape_items, "limit": 20})
        for shape in SHAPES:
            subjects = [
                stored.shape(f"{shape.name}: {OURS}, SQLite", shape, SEED),
                aiosqlite_shape(f"{shape.name}: {AT_ONCE}", connection, shape, SEED),
                held.shape(f"{shape.name}: {OURS}, memory", shape, SEED),
            ]
            result.figures += await compare(subjects, size.mixed)
        context.report.add(result)


async def ycsb(context: Context) -> None:
    """YCSB's workloads A to F, in memory and in SQLite, beside aiosqlite."""
    size = context.size
    async with AsyncExitStack() as stack:
        stored = Records(await stack.enter_async_context(context.store("ycsb")))
        held = Records(await stack.enter_async_context(context.store("memory")))
        peer = AioSQLite(await stack.enter_async_context(connect(context.folder / "ycsb-aiosqlite.db")))
        await stored.load(size.records)
        await held.load(size.records)
        await peer.load_records(size.records)
        result = Result(
            "ycsb",
            "YCSB workloads",
            settings={"records": size.records, "record_bytes": 1000, "zipfian": 0.99, "seed": SEED, **_SETTINGS_SQLITE},
        )
        for mix in WORKLOADS:
            subjects = [
                stored.subject(f"{mix.name}: {OURS}, SQLite", mix, SEED),
                peer.ycsb(f"{mix.name}: aiosqlite", mix, SEED),
                held.subject(f"{mix.name}: {OURS}, memory", mix, SEED),
            ]
            result.figures += await compare(subjects, size.mixed, tasks=size.tasks)
        result.notes += [f"{mix.name}: {mix.what}" for mix in WORKLOADS]
        result.notes.append(
            "Updates write whole records. aiosqlite: one connection; its updates share transactions (see the puts), "
            "its read-modify-writes take turns under a lock."
        )
        context.report.add(result)


async def contention(context: Context) -> None:
    """Transactions that meet, beside aiosqlite with BEGIN IMMEDIATE."""
    size = context.size
    connections = 8
    async with AsyncExitStack() as stack:
        stored = Bank(await stack.enter_async_context(context.store("bank")), size.accounts)
        held = Bank(await stack.enter_async_context(context.store("memory")), size.accounts)
        path = context.folder / "bank-aiosqlite.db"
        pool = [await stack.enter_async_context(connect(path, isolation_level=None)) for _ in range(connections)]
        peer = AioSQLiteBank(pool, size.accounts)
        alone = AioSQLiteBank(pool[:1], size.accounts)
        for bank in (stored, held, peer):
            await bank.load()
        result = Result(
            "contention",
            "Transactions that meet",
            settings={"accounts": size.accounts, "aiosqlite_connections": connections, **_SETTINGS_SQLITE},
        )
        subjects = [
            stored.transfers(f"transfers: {OURS}, SQLite", SEED),
            peer.transfers(f"transfers: aiosqlite, {connections} connections", SEED),
            alone.transfers("transfers: aiosqlite, 1 connection", SEED),
            held.transfers(f"transfers: {OURS}, memory", SEED),
        ]
        result.figures += await compare(subjects, size.mixed, tasks=size.tasks)
        subjects = [
            stored.increments(f"one counter: {OURS}, SQLite"),
            peer.increments(f"one counter: aiosqlite, {connections} connections"),
            alone.increments("one counter: aiosqlite, 1 connection"),
            held.increments(f"one counter: {OURS}, memory"),
        ]
        result.figures += await compare(subjects, size.mixed, tasks=size.tasks)
        peer.counted += alone.counted
        for name, each in (("SQLite", stored), ("aiosqlite", peer), ("memory", held)):
            problems = await each.problems()
            result.notes.append(f"{name}: {'; '.join(problems) or 'no money made or lost, no increment lost'}")
        context.report.add(result)


async def cities(context: Context) -> None:
    """The import of all cities, in a process of its own, so that its memory is its own."""
    rows: dict[str, dict[str, Any]] = {}
    count = [] if context.size.cities is None else [str(context.size.cities)]
    for name in ("aiodatastore", "aiosqlite", "memory"):
        path = context.folder / f"cities-{name}.db"
        rows[name] = _child("-m", "benchmarks.cities", name, str(path), *count)
    ours = rows["aiodatastore"]
    result = Result("cities", "Import of cities, all properties indexed")
    result.settings = {**{name: ours[name] for name in ("cities", "batch", "tasks", "index_rows")}, **_SETTINGS_SQLITE}
    for name, row in rows.items():
        result.facts[f"{name}: entities a second"] = row["rate"]
        result.facts[f"{name}: seconds"] = row["seconds"]
        result.facts[f"{name}: processor µs an entity"] = row["processor_us"]
        result.facts[f"{name}: memory, MiB at 20%"] = row["rss_early"] / 2**20
        result.facts[f"{name}: memory, MiB at the end"] = row["rss_late"] / 2**20
        result.facts[f"{name}: slowest tenth, entities a second"] = row["slowest"]
        result.facts[f"{name}: samples of (entities, seconds, bytes)"] = row["samples"]
    for name in ("aiodatastore", "memory"):
        result.facts[f"{name}: then its 2 composite indexes built, seconds"] = rows[name]["build_seconds"]
    result.notes += [
        "The demo's entities: two tasks put batches of 5,000; the clock includes making the entities from dicts.",
        "aiosqlite: executemany and commit for every 5,000; names also in a table of their own; the same indexes.",
        "memory grows with the data, of course.",
    ]
    context.report.add(result)


def _child(*arguments: str) -> Any:
    """What a new Python prints as JSON; nothing else goes on here meanwhile."""
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, check=True, timeout=1800)
    return json.loads(done.stdout)


_IMPORT = """
import sys, time
since = time.perf_counter()
{statement}
took = time.perf_counter() - since
drivers = sorted(
    {{"sqlite3", "aiosqlite", "asyncpg", "redis", "aiofiles", "sqlalchemy", "trio"}} & set(sys.modules)
)
import json
print(json.dumps([took * 1000, drivers]))
"""


async def imports(context: Context) -> None:
    """How long importing takes, in new processes."""
    result = Result("import", "import aiodatastore, in a new process")
    statements = {
        "import aiodatastore": "import aiodatastore",
        "with its main names": "from aiodatastore import Datastore, Entity, Key, Query",
        "with every name": "import aiodatastore\nfor name in aiodatastore.__all__: getattr(aiodatastore, name)",
    }
    times: dict[str, list[float]] = {name: [] for name in statements}
    drivers: set[str] = set()
    for number in range(context.size.imports + 1):
        for name, statement in statements.items():
            took, loaded = _child("-c", _IMPORT.format(statement=statement))
            if number or context.size.imports == 1:  # the first one may have to read from the disk
                times[name].append(took)
            drivers.update(loaded)
    for name, found in times.items():
        result.facts[f"{name}: ms, median of {len(found)}"] = statistics.median(found)
        result.facts[f"{name}: ms, max"] = max(found)
    result.facts["drivers loaded"] = ", ".join(sorted(drivers)) or "none"
    context.report.add(result)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Something that runs when one of its engines and one of its works are wanted."""

    engines: frozenset[str]
    works: frozenset[str]
    run: Callable[[Context], Awaitable[None]]


def _of_matrix(engine: str, work: str) -> Callable[[Context], Awaitable[None]]:
    async def run(context: Context) -> None:
        await MATRIX[work](context, context.engines[engine], work)

    return run


def _benchmark(engines: str, works: str, run: Callable[[Context], Awaitable[None]]) -> Benchmark:
    return Benchmark(frozenset(engines.split()), frozenset(works.split()), run)


BENCHMARKS: dict[str, Benchmark] = {
    "import": _benchmark("package", "import", imports),
    "memory": _benchmark("memory", "get put", memory),
    "sqlite": _benchmark("sqlite", "get put", sqlite),
    "query": _benchmark("sqlite", "query", query),
    "shapes": _benchmark("memory sqlite", "shapes", shapes),
    "ycsb": _benchmark("memory sqlite", "ycsb", ycsb),
    "contention": _benchmark("memory sqlite", "bank counter", contention),
    "cities": _benchmark("memory sqlite", "import", cities),
    **{
        f"{engine.name}_{work}": _benchmark(engine.name, work, _of_matrix(engine.name, work))
        for engine in ENGINES.values()
        for work in MATRIX
        if work in engine.works
    },
    **{name: _benchmark(engines, work, run) for name, (engines, work, run) in COMPOSED.items()},
}
"""Name → what it runs, and when."""

ALL_ENGINES = ("memory", "sqlite", *ENGINES, "package")
ALL_WORKS = ("get", "put", "modify", "counter", "bank", "query", "shapes", "ycsb", "import", *COMPOSED_WORKS)
