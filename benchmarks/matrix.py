"""The same work on PostgreSQL, Redis and files, by every side that does it: see :mod:`benchmarks.engines`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from aiodatastore.bench.data import WORKLOADS
from aiodatastore.bench.measure import Effort, Figures, Subject, compare
from aiodatastore.bench.report import Result
from aiodatastore.bench.workloads import SHAPES
from benchmarks.engines import Engine
from benchmarks.loading import WAYS
from benchmarks.processes import compare_crews
from benchmarks.sides import OURS, Job, Ours, Place, Side, subject
from benchmarks.sizes import SEED

if TYPE_CHECKING:
    from benchmarks.suite import Context

__all__ = ["MATRIX"]

_DATA = {"get": "people", "put": "people", "modify": "people", "bank": "accounts", "counter": "accounts"}
_TITLES = {
    "get": "get by key",
    "put": "put of a new entity, 3 indexed properties",
    "modify": "read-modify-write transaction, distinct keys",
    "counter": "one counter that all increment",
    "bank": "transfers between accounts",
}
_CASES: dict[str, tuple[tuple[str, str], ...]] = {
    "bank": (("bank", "evenly drawn"), ("bank-zipf", "Zipf")),
}
"""(job, case) of a work; others have one without a name."""


@asynccontextmanager
async def _opened(engine: Engine, work: str, place: Place) -> AsyncIterator[list[Side]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(each.open(place)) for each in engine.sides if work in each.works]


async def _load(engine: Engine, sides: Sequence[Side], data: str, count: int) -> None:
    """What each needs: of sides that share a table or files, the first one loads them."""
    loaders: set[str] = set()
    for side in sides:
        where = _LOADED_BY.get(type(side).__name__, type(side).__name__)
        if where and where not in loaders:
            loaders.add(where)
            await side.load(data, count)


_LOADED_BY = {
    **dict.fromkeys(("AsyncPGLean", "AsyncPGSerializable", "Alchemy", "Tortoise", "Piccolo"), "AsyncPG"),
    "RedisPyIncrement": "RedisPy",
}


def _cased(name: str, case: str) -> str:
    return f"{case}: {name}" if case else name


async def _common(context: Context, engine: Engine, work: str) -> None:
    """Get, put, modify, counter or bank: every number of tasks, and several processes."""
    size = context.size
    data = _DATA[work]
    count = size.people if data == "people" else size.accounts
    effort = size.effort if data == "people" else size.mixed
    result = Result(
        f"{engine.name}_{work}",
        f"{engine.title}: {_TITLES[work]}",
        settings={"entities" if data == "people" else "accounts": count, **engine.settings},
    )
    fresh = count + 1  # new numbers begin here, crews' far behind
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(engine.place(work))
        sides = await stack.enter_async_context(_opened(engine, work, place))
        await _load(engine, sides, data, count)
        variants = [
            side.get_by_number(f"key made on the way: {side.name}", count, SEED)
            for side in sides
            if work == "get" and isinstance(side, Ours)
        ]
        for number, (label, setting) in enumerate(engine.variants.items() if work == "get" else ()):
            other = await stack.enter_async_context(engine.place(f"{work}_{number}"))
            mark = "&" if "?" in other.url else "?"
            async with Ours.open(other) as loader:  # what it still held in memory is gone when it is closed
                await loader.load(data, count)
            varied = await stack.enter_async_context(Ours.open(replace(other, url=f"{other.url}{mark}{setting}")))
            variants.append(varied.get(f"{label}: {OURS}", count, SEED))
        counted: dict[str, int] = {}
        for kind, case in _CASES.get(work, ((work, ""),)):
            job = Job(kind, count, SEED, fresh)
            subjects = _subjects(sides, job, case) + variants
            for tasks in context.spread:
                result.figures += await compare(subjects, effort, tasks=tasks, server=engine.meter())
            result.figures += await _crews(context, engine, place, job, case, effort, counted)
        if work in {"put", "modify"}:
            async with engine.strict() as strict:
                if strict:
                    job = Job(work, count, SEED + 1, 5 * 10**8)
                    subjects = _subjects(sides, job, strict)
                    for tasks in sorted({1, size.tasks}):
                        result.figures += await compare(subjects, effort, tasks=tasks, server=engine.meter())
        if data == "accounts":
            result.notes += await _balances(sides, count, counted)
    result.notes += _NOTES.get((engine.name, work), ())
    context.report.add(result)


def _subjects(sides: Sequence[Side], job: Job, case: str) -> list[Subject]:
    """One of each side; those that put into one table take numbers that are apart."""
    subjects = []
    for place, side in enumerate(sides):
        own = Job(job.work, job.count, job.seed, job.first + place * 10_000_000)
        subjects.append(subject(side, own, _cased(side.name, case)))
        subjects[-1].ours = side.ours
    return subjects


async def _crews(
    context: Context, engine: Engine, place: Place, job: Job, case: str, effort: Effort, counted: dict[str, int]
) -> list[Figures]:
    figures: list[Figures] = []
    sides = [each for each in engine.sides if job.work.partition("-")[0] in each.works]
    for number, processes in enumerate(context.processes if engine.processes else ()):
        own = Job(job.work, job.count, job.seed + 7, 10**9 + number * 4 * 10**8)
        found, more = await compare_crews(
            engine.name,
            sides,
            place,
            own,
            effort,
            tasks=context.size.tasks,
            processes=processes,
            server=engine.meter(),
        )
        for name, increments in more.items():
            counted[name] = counted.get(name, 0) + increments
        for each in found:
            each.name = _cased(each.name, case)
        figures += found
    return figures


async def _balances(sides: Sequence[Side], accounts: int, counted: dict[str, int]) -> list[str]:
    """What the accounts and the counter say at the end, of each group of sides that share them."""
    shared: dict[str, list[Side]] = {}
    for side in sides:
        shared.setdefault(_LOADED_BY.get(type(side).__name__, type(side).__name__), []).append(side)
    notes = []
    for group in shared.values():
        acknowledged = sum(side.counted + counted.get(side.name, 0) for side in group)
        problems = await group[0].problems(accounts, acknowledged)
        names = ", ".join(side.name for side in group)
        notes.append(f"{names}: {'; '.join(problems) or 'no money made or lost, no increment lost'}")
    return notes


async def query(context: Context, engine: Engine, _work: str) -> None:
    """The figure query at two sizes."""
    size = context.size
    many = min(size.many_items, engine.most)
    result = Result(
        f"{engine.name}_query",
        f"{engine.title}: filter, order, limit 20, by a composite index",
        settings={"few": size.items, "many": many, **engine.settings},
    )
    async with AsyncExitStack() as stack:
        subjects: dict[str, list[Subject]] = {}
        for name, count in (("few", size.items), ("many", many)):
            place = await stack.enter_async_context(engine.place(f"query_{name}"))
            sides = await stack.enter_async_context(_opened(engine, "query", place))
            context.report.say(f"loading {count:,} items")
            await _load(engine, sides, "items", count)
            subjects[name] = []
            for side in sides:
                subjects[name].append(side.top(f"{name}: {side.name}", SEED))
                if side.name in _FAR:
                    far = side.top_below(f"{name}, from a random price: {side.name}", SEED)
                    subjects[name].append(far)
        everything = [each for found in subjects.values() for each in found]
        result.figures = await compare(everything, size.effort, server=engine.meter())
        result.figures += await compare(subjects["few"], size.effort, tasks=size.tasks, server=engine.meter())
    result.notes.append("Ours gives 20 entities with keys and versions, the ORMs 20 objects, the others 20 rows.")
    context.report.add(result)


_FAR = frozenset({"aiodatastore", "asyncpg, pool of 10"})


async def shapes(context: Context, engine: Engine, _work: str) -> None:
    """Other queries, one task."""
    size = context.size
    result = Result(
        f"{engine.name}_shapes",
        f"{engine.title}: shapes of queries",
        settings={"items": size.shape_items, "limit": 20, **engine.settings},
    )
    async with engine.place("shapes") as place, _opened(engine, "shapes", place) as sides:
        await _load(engine, sides, "items", size.shape_items)
        for shape in SHAPES:
            subjects = [side.shape(f"{shape.name}: {side.name}", shape, SEED) for side in sides]
            result.figures += await compare(subjects, size.mixed, server=engine.meter())
    context.report.add(result)


async def ycsb(context: Context, engine: Engine, _work: str) -> None:
    """YCSB's workloads A to F."""
    size = context.size
    result = Result(
        f"{engine.name}_ycsb",
        f"{engine.title}: YCSB workloads",
        settings={"records": size.records, "record_bytes": 1000, "zipfian": 0.99, "seed": SEED, **engine.settings},
    )
    async with engine.place("ycsb") as place, _opened(engine, "ycsb", place) as sides:
        await _load(engine, sides, "records", size.records)
        for mix in WORKLOADS:
            subjects = [side.ycsb(f"{mix.name}: {side.name}", mix, SEED) for side in sides]
            result.figures += await compare(subjects, size.mixed, tasks=size.tasks, server=engine.meter())
    result.notes += [f"{mix.name}: {mix.what}" for mix in WORKLOADS]
    result.notes.append("Our updates write whole records, as the peers' do; a record is an entity of ten properties.")
    context.report.add(result)


async def loading(context: Context, engine: Engine, _work: str) -> None:
    """Import, each in a process of its own."""
    count = min(context.size.listings, engine.most)
    result = Result(f"{engine.name}_import", f"{engine.title}: import, 5 indexed properties")
    meter = engine.meter()
    for number, way in enumerate(WAYS[engine.name]):
        async with engine.place(f"import{number}") as place:
            asked = {
                "engine": engine.name,
                "way": way,
                "place": {**asdict(place), "folder": str(place.folder)},
                "count": count,
            }
            before = meter() if meter else 0.0
            row = await anyio.to_thread.run_sync(_child, "benchmarks.loading", asked)
            server = (meter() - before) / count * 1e6 if meter else None
        result.settings = {"entities": count, "batch": row["batch"], **engine.settings}
        result.facts[f"{way}: entities a second"] = row["rate"]
        result.facts[f"{way}: seconds"] = row["seconds"]
        result.facts[f"{way}: slowest tenth, entities a second"] = row["slowest"]
        result.facts[f"{way}: processor µs an entity"] = row["processor_us"]
        if server is not None:
            result.facts[f"{way}: processor µs an entity, in the server"] = server
        result.facts[f"{way}: memory, MiB at 20%"] = row["rss_early"] / 2**20
        result.facts[f"{way}: memory, MiB at the end"] = row["rss_late"] / 2**20
        result.facts[f"{way}: samples of (entities, seconds, bytes)"] = row["samples"]
    result.notes.append(
        "Into an empty store. Two tasks put batches of 5,000; the clock includes making the entities. From a file: as "
        "`aiodatastore import` does, which parses the lines, puts batches of up to 4,000, three at a time."
    )
    context.report.add(result)


def _child(module: str, asked: dict[str, Any]) -> Any:
    """What a new Python prints as JSON; nothing else goes on here meanwhile."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(asked).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=1800,
    )
    return json.loads(done.stdout)


_NOTES = {
    ("postgres", "put"): ["One row index for each of the three properties on both sides; ours also one of the kind."],
    ("postgres", "modify"): [
        "asyncpg and the ORMs: BEGIN, SELECT … FOR UPDATE, UPDATE, COMMIT on one of ten connections.",
        "Ours is serializable whatever a transaction reads; theirs are READ COMMITTED with the row locked.",
    ],
    ("postgres", "bank"): [
        "asyncpg and SQLAlchemy: both rows FOR UPDATE in the order of their ids, READ COMMITTED; and SERIALIZABLE, "
        "again when the server refuses.",
    ],
    ("redis", "put"): ["redis-py: MULTI, SET and three ZADDs, EXEC. py-key-value-aio has no indexes."],
    ("redis", "modify"): ["redis-py: WATCH, GET, MULTI, SET, ZADD, EXEC, on one of ten connections."],
    ("redis", "counter"): ["INCRBY is what one would use by hand for a counter; WATCH is what any change needs."],
    ("file", "get"): ["aiofiles reads the documents that our store has written; ours keeps recent payloads in memory."],
    ("file", "put"): ["By hand: temporary file, fsync, rename, fsync of the folder; no indexes, no journal."],
    ("file", "modify"): ["aiofiles: under one lock; it gives atomicity among the tasks of one process only."],
}

MATRIX: dict[str, Callable[[Context, Engine, str], Awaitable[None]]] = {
    **dict.fromkeys(_DATA, _common),
    "query": query,
    "shapes": shapes,
    "ycsb": ycsb,
    "import": loading,
}
"""Work → what runs it; the work is given by name as well."""
