"""Entity groups in several stores beside all of them in one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.bench.data import person
from aiodatastore.bench.measure import Subject, compare
from aiodatastore.bench.report import Curve, Result
from aiodatastore.bench.workloads import SHAPES, Bank, Families, Items, People, draw_fresh
from aiodatastore.datastore import Datastore
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.shims import Sharded
from benchmarks.sides import Place
from benchmarks.sizes import SEED

if TYPE_CHECKING:
    from benchmarks.suite import Context

__all__ = [
    "ACROSS",
    "ALONE",
    "CLUSTER",
    "ENGINES",
    "FOUR",
    "INSIDE",
    "ONE",
    "PAGE",
    "SHAPES_MEASURED",
    "WIDTHS",
    "cluster",
    "merged_name",
    "plain",
    "queries",
    "transactions",
    "width",
]

ALONE, ONE, FOUR = "one store", "Sharded, one shard", "Sharded, four shards"
INSIDE, ACROSS = "in one shard", "over two shards"
CLUSTER = "three masters"
ENGINES = ("memory", "SQLite")
WIDTHS = (1, 2, 4, 8, 16)
PAGE = 100
TOP, TOP_BELOW, COUNT, FAMILY = "filter, order, limit 20", "from a random price", "count", "below an ancestor"
SHAPES_MEASURED = (TOP, TOP_BELOW, COUNT, "union of three", "keys only", "sum", FAMILY)

_SQLITE = {"journal_mode": "WAL", "synchronous": "FULL", "cache_mb": 64}


@asynccontextmanager
async def _spread(context: Context, name: str, shards: int | None, *, memory: bool = False) -> AsyncIterator[Datastore]:
    """A datastore over as many new shards; None: over one store."""

    def store(number: int) -> Adapter:
        return adapter_from_url("memory://" if memory else f"sqlite:///{context.folder / f'{name}-{number}.db'}")

    adapter = store(0) if shards is None else Sharded([store(number) for number in range(shards)])
    async with Datastore(adapter) as ds:
        yield ds


def _of(subject: Subject, *, ours: bool) -> Subject:
    subject.ours = ours
    return subject


async def queries(context: Context) -> None:
    """Queries of four SQLite shards beside one SQLite store with the same data."""
    size = context.size
    result = Result(
        "sharded_query",
        "SQLite: queries of four shards",
        settings={"items": size.items, "limit": 20, **_SQLITE},
        compared="one store is",
    )
    async with AsyncExitStack() as stack:
        stores = []
        for name, shards in ((ALONE, None), (FOUR, 4)):
            ds = await stack.enter_async_context(_spread(context, f"queries-{shards}", shards))
            items, families = Items(ds), Families(ds)
            await items.load(size.items)
            await families.load(size.items)
            stores.append((name, items, families))
        for tasks in (1, size.tasks):
            for shape in SHAPES_MEASURED:
                subjects = [
                    _of(_query(items, families, shape, f"{shape}: {name}"), ours=name == ALONE)
                    for name, items, families in stores
                ]
                result.figures += await compare(subjects, size.effort, tasks=tasks)
    result.notes.append("What is below an ancestor is in one shard, which alone is asked.")
    context.report.add(result)


def _query(items: Items, families: Families, shape: str, name: str) -> Subject:
    if shape == TOP:
        return items.top(name, SEED)
    if shape == TOP_BELOW:
        return items.top_below(name, SEED)
    if shape == FAMILY:
        return families.of_one(name, SEED)
    return items.shape(name, next(each for each in SHAPES if each.name == shape), SEED)


async def width(context: Context) -> None:
    """A page of a query's results merged from more and more shards."""
    size = context.size
    result = Result(
        "sharded_width",
        f"Pages of {PAGE} results, merged from shards",
        settings={"items": size.items, "page": PAGE, **_SQLITE},
        compared="one store is",
    )
    result.curve = Curve("shards", "time of a page, of one of one store", doubling=True)
    for engine in ENGINES:
        async with AsyncExitStack() as stack:
            subjects = []
            for shards in (None, *WIDTHS):
                spread = _spread(context, f"width-{shards}", shards, memory=engine == "memory")
                items = Items(await stack.enter_async_context(spread))
                await items.load(size.items)
                subjects.append(_of(items.page(merged_name(engine, shards), SEED, PAGE), ours=shards is None))
            result.figures += await compare(subjects, size.effort)
            for shards in WIDTHS:
                ratio = result.ratio(merged_name(engine, None), merged_name(engine, shards))
                result.curve.add(engine, shards, ratio)
    result.notes.append("All items, ordered by price, from a random one on.")
    context.report.add(result)


def merged_name(engine: str, shards: int | None) -> str:
    """The name of a subject."""
    return f"{engine}: {ALONE}" if shards is None else f"{engine}: {shards} shard{'s' if shards > 1 else ''}"


async def plain(context: Context) -> None:
    """Gets, puts and transactions in one shard, of one and of four, beside a store without them."""
    size = context.size
    count = size.items
    result = Result(
        "sharded_plain",
        "Gets, puts and transactions of one entity through Sharded",
        settings={"entities": count, **_SQLITE},
        compared="one store is",
    )
    for engine in ENGINES:
        async with AsyncExitStack() as stack:
            stores = []
            for name, shards in ((ALONE, None), (ONE, 1), (FOUR, 4)):
                spread = _spread(context, f"plain-{shards}", shards, memory=engine == "memory")
                people = People(await stack.enter_async_context(spread))
                await people.load(count)
                stores.append((name, people))
            works: dict[str, Callable[[People, str], Subject]] = {
                "get": lambda people, name: people.get(name, count, SEED),
                "put": lambda people, name: people.put(name, draw_fresh(_unused(), person)),
                "transaction": lambda people, name: people.modify(name, count, SEED),
            }
            for work, make in works.items():
                for tasks in (1, size.tasks):
                    alike = tasks == 1 and (work == "get" or (work == "put" and engine == "memory"))
                    effort = size.pair if alike else size.effort
                    subjects = [
                        _of(make(people, f"{work}, {engine}: {name}"), ours=name == ALONE) for name, people in stores
                    ]
                    result.figures += await compare(subjects, effort, tasks=tasks, alike=alike)
    context.report.add(result)


_starts = iter(range(1_000_000, 1_000_000_000, 5_000_000))


def _unused() -> int:
    """The first of numbers that no put has had."""
    return next(_starts)


class _Transfers:
    """Transfers between accounts that are in one shard, or in two."""

    def __init__(self, ds: Datastore, accounts: int) -> None:
        self.bank = Bank(ds, accounts)

    def subject(self, name: str, place: Callable[[Key], int], *, across: bool) -> Subject:
        """``place`` tells the shard of a key."""
        by_shard: dict[int, list[int]] = {}
        for number in range(1, self.bank.accounts + 1):
            by_shard.setdefault(place(self.bank.key(number)), []).append(number)
        chance = random.Random(SEED)
        # Nobody meets: what is measured is the commit, not how often it is tried again.
        pairs = _pairs([*by_shard.values()], across=across)
        chance.shuffle(pairs)
        places = iter(range(10**9))

        def draw(count: int) -> Sequence[tuple[int, int, int]]:
            drawn = [divmod(next(places), len(pairs)) for _ in range(count)]
            there_and_back = [reversed(pairs[place]) if lap % 2 else pairs[place] for lap, place in drawn]
            return [(source, target, 1) for source, target in there_and_back]

        return Subject(name, self.bank.transfer, draw, ours=True)


def _pairs(shards: Sequence[Sequence[int]], *, across: bool) -> list[tuple[int, int]]:
    """Pairs of accounts, none in two of them."""
    if across:
        first, second, *_ = shards
        return [*zip(first, second, strict=False)]
    return [pair for shard in shards for pair in zip(shard[::2], shard[1::2], strict=False)]


async def transactions(context: Context) -> None:
    """Transfers in one PostgreSQL schema, in one of two shards, and over both with two-phase commit."""
    size, engine = context.size, context.engines["postgres"]
    accounts = max(size.accounts, size.tasks * 8)
    result = Result(
        "sharded_transaction",
        "PostgreSQL: transfers between accounts in one shard and in two",
        settings={"accounts": accounts, "shards": 2, **engine.settings},
        compared="one store is",
    )
    async with AsyncExitStack() as stack:
        places: list[Place] = [
            await stack.enter_async_context(engine.place(f"sharded_transaction_{name}")) for name in ("alone", "a", "b")
        ]
        alone, *shards = [adapter_from_url(place.url) for place in places]
        sharded = Sharded(shards, names=["a", "b"])
        single = _Transfers(await stack.enter_async_context(Datastore(alone)), accounts)
        double = _Transfers(await stack.enter_async_context(Datastore(sharded)), accounts)
        await single.bank.load()
        await double.bank.load()
        for tasks in (1, size.tasks):
            subjects = [
                single.subject(ALONE, lambda key: 0, across=False),
                _of(double.subject(INSIDE, sharded.place, across=False), ours=False),
            ]
            if Capability.TWO_PHASE in alone.capabilities:
                subjects.append(_of(double.subject(ACROSS, sharded.place, across=True), ours=False))
            elif tasks == 1:
                result.notes.append(f"{ACROSS}: the server's max_prepared_transactions is 0")
            result.figures += await compare(subjects, size.effort, tasks=tasks, server=engine.meter())
        for name, each in ((ALONE, single), ("Sharded", double)):
            problems = await each.bank.problems()
            result.notes.append(f"{name}: {'; '.join(problems) or 'no money made or lost'}")
    result.notes.append("No two transfers that run at once have an account in common. Both shards are on one server.")
    context.report.add(result)


async def cluster(context: Context) -> None:
    """Gets and puts in a cluster of three masters beside one server."""
    size = context.size
    count = size.items
    result = Result(
        "sharded_cluster",
        "Redis Cluster: gets and puts, beside one server",
        settings={"entities": count, **context.engines["redis"].settings, **context.engines["cluster"].settings},
        compared="the cluster is",
    )
    async with AsyncExitStack() as stack:
        stores = []
        for name in ("cluster", "redis"):
            place = await stack.enter_async_context(context.engines[name].place("sharded_cluster"))
            people = People(await stack.enter_async_context(Datastore(place.url)))
            await people.load(count)
            stores.append((CLUSTER if name == "cluster" else ALONE, people))
        for tasks in (1, size.tasks):
            for work in ("get", "put"):
                subjects = []
                for name, people in stores:
                    draw = draw_fresh(count + 1 + tasks * 10_000_000, person)
                    told = f"{work}: {name}"
                    subject = people.get(told, count, SEED) if work == "get" else people.put(told, draw)
                    subjects.append(_of(subject, ours=name == CLUSTER))
                result.figures += await compare(subjects, size.effort, tasks=tasks)
    result.notes.append("All servers share this machine's processors: more of them can't do more here.")
    context.report.add(result)
