"""``aiodatastore bench URL``: measure a store, in a namespace of its own, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import click

from aiodatastore.bench.data import WORKLOADS, person
from aiodatastore.bench.measure import Effort, compare
from aiodatastore.bench.report import Report, Result
from aiodatastore.bench.workloads import ITEM_INDEX, SHAPES, Bank, Items, People, Records, draw_fresh
from aiodatastore.datastore import Datastore
from aiodatastore.errors import BadArgumentError, BadRequestError, DatastoreError

__all__ = ["NAMES", "SIZES", "Size", "bench_store", "command", "run_url"]

NAMES = ("get", "put", "modify", "query", "shapes", "ycsb", "contention")
_SEED = 20240229
_DELETE_BATCH = 500


@dataclass(frozen=True, slots=True)
class Size:
    """How much data, and how long."""

    entities: int
    records: int
    accounts: int
    effort: Effort
    mixed: Effort


SIZES = {
    "tiny": Size(100, 100, 10, Effort(1, 0.002), Effort(1, 0.002)),
    "small": Size(5_000, 2_000, 100, Effort(3, 0.2), Effort(3, 0.4)),
    "full": Size(50_000, 20_000, 100, Effort(7, 0.5), Effort(5, 1.0)),
}


class _Bench:
    def __init__(self, ds: Datastore, size: Size, tasks: int, report: Report) -> None:
        self.ds = ds
        self.size = size
        self.tasks = tasks
        self.report = report

    async def people(self, only: Sequence[str]) -> None:
        people, size = People(self.ds), self.size
        await people.load(size.entities)
        draw = draw_fresh(size.entities + 1, person)
        if "get" in only:
            result = Result("get", "Get by key", settings={"entities": size.entities})
            for tasks in (1, self.tasks):
                result.figures += await compare([people.get("get", size.entities, _SEED)], size.effort, tasks=tasks)
            self.report.add(result)
        if "put" in only:
            result = Result("put", "Put of a new entity with 3 indexed properties", settings={"index_rows": 4})
            for tasks in (1, self.tasks):
                result.figures += await compare([people.put("put", draw)], size.effort, tasks=tasks)
            self.report.add(result)
        if "modify" in only:
            result = Result("modify", "Read-modify-write transaction, distinct keys", settings={"index_rows": 4})
            for tasks in (1, self.tasks):
                subject = people.modify("read-modify-write", size.entities, _SEED)
                result.figures += await compare([subject], size.effort, tasks=tasks)
            self.report.add(result)

    async def items(self, only: Sequence[str]) -> None:
        items, size = Items(self.ds), self.size
        await items.load(size.entities)
        settings = {"entities": size.entities}
        if "query" in only:
            result = Result("query", "Filter, order, limit 20", settings=settings)
            subjects = [
                items.top("category = ?, -price", _SEED),
                items.top_below("category = ?, price < ?, -price", _SEED),
            ]
            result.figures = await compare(subjects, size.effort)
            self.report.add(result)
        if "shapes" in only:
            result = Result("shapes", "Shapes of queries", settings=settings)
            result.figures = await compare([items.shape(shape.name, shape, _SEED) for shape in SHAPES], size.effort)
            self.report.add(result)

    async def ycsb(self) -> None:
        records, size = Records(self.ds), self.size
        await records.load(size.records)
        result = Result("ycsb", "YCSB", settings={"records": size.records, "record_bytes": 1000, "zipfian": 0.99})
        for mix in WORKLOADS:
            subject = records.subject(f"{mix.name}: {mix.what}", mix, _SEED)
            result.figures += await compare([subject], size.mixed, tasks=self.tasks)
        self.report.add(result)

    async def contention(self) -> None:
        bank, size = Bank(self.ds, self.size.accounts), self.size
        await bank.load()
        result = Result("contention", "Transactions that meet", settings={"accounts": size.accounts})
        subjects = (
            bank.transfers("transfers", _SEED),
            bank.transfers("transfers, few accounts in most", _SEED, zipf=True),
            bank.increments("one counter"),
        )
        for subject in subjects:
            result.figures += await compare([subject], size.mixed, tasks=self.tasks)
        result.notes += [f"WRONG: {problem}" for problem in await bank.problems()]
        self.report.add(result)


async def _clear(ds: Datastore, report: Report) -> None:
    removed = 0
    while keys := await ds.query().keys_only().limit(_DELETE_BATCH).fetch():
        await ds.delete(keys)
        removed += len(keys)
    if removed:
        report.say(f"removed {removed:,} entities from namespace {ds.namespace!r}")


async def bench_store(
    ds: Datastore, report: Report, *, size: str = "small", only: Sequence[str] = NAMES, tasks: int = 64
) -> None:
    """Measure an open datastore that has a namespace of its own, and empty that namespace afterwards.

    :raises BadRequestError: if the namespace is not empty, or the store has an index of ours; nothing was written
    """
    if not ds.namespace:
        raise BadArgumentError("benchmarks run in a namespace of their own: give the datastore one")
    if (ds.project, ds.namespace) in await ds.adapter.partitions():
        raise BadRequestError(
            f"{ds.url} has entities in namespace {ds.namespace!r}, and benchmarks touch no data: "
            "name another one with --namespace (or remove what an interrupted run left there)"
        )
    if any(info.definition.kind == ITEM_INDEX.kind for info in await ds.indexes()):
        raise BadRequestError(f"{ds.url} has an index of kind {ITEM_INDEX.kind!r} already: delete it first")
    bench = _Bench(ds, SIZES[size], tasks, report)
    steps: list[tuple[tuple[str, ...], Callable[[], Awaitable[Any]]]] = [
        (("get", "put", "modify"), lambda: bench.people(only)),
        (("query", "shapes"), lambda: bench.items(only)),
        (("ycsb",), bench.ycsb),
        (("contention",), bench.contention),
    ]
    try:
        for names, step in steps:
            if not set(names).isdisjoint(only):
                await step()
    finally:
        with anyio.CancelScope(shield=True):
            await _clear(ds, report)
            if any(info.definition == ITEM_INDEX for info in await ds.indexes()):
                await ds.delete_index(ITEM_INDEX)


async def _run(url: str, namespace: str, size: str, only: Sequence[str], tasks: int, json: str | None) -> None:
    report = Report()
    report.settings = {"size": size, "namespace": namespace}
    async with Datastore(url, namespace=namespace) as ds:
        report.settings["store"] = ds.url
        report.print_environment()
        await bench_store(ds, report, size=size, only=only or NAMES, tasks=tasks)
    if json:
        report.write_json(json)
        report.say(f"raw results: {json}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url")
@click.option("--size", type=click.Choice([*SIZES]), default="small", show_default=True, help="How much, how long.")
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Only this; may be given several times.")
@click.option("--tasks", default=64, show_default=True, help="How many tasks work side by side.")
@click.option("--namespace", default="bench", show_default=True, help="Where to work; it has to be empty.")
@click.option("--json", type=click.Path(dir_okay=False), help="Write the raw results here.")
def command(url: str, size: str, only: tuple[str, ...], tasks: int, namespace: str, json: str | None) -> None:
    """Measure a store: gets, puts, transactions, queries, YCSB's workloads and transactions that meet.

    Works in a namespace of its own, which has to be empty and is emptied afterwards; other data is not touched. A store
    in a file does not shrink by that.
    """
    try:
        anyio.run(_run, url, namespace, size, only, tasks, json)
    except DatastoreError as exc:
        raise click.ClickException(str(exc)) from exc


def run_url(url: str, *arguments: str) -> int:
    """Run ``aiodatastore bench URL`` with more arguments; the exit code."""
    result = command.main([url, *arguments], prog_name="aiodatastore bench", standalone_mode=False)
    return result if isinstance(result, int) else 0
