"""The page of results, ``docs/benchmarks.md``, written from raw results so that its figures are theirs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aiodatastore.bench.measure import Figures
from aiodatastore.bench.report import Result, baseline, fact_text, settings_text
from benchmarks.composed import COMPOSED_WORKS
from benchmarks.engines import ENGINES
from benchmarks.targets import targets

__all__ = ["write_page"]

Raw = dict[str, Any]

_INTRODUCTION = """\
# Benchmarks

What this library costs, beside what people would use instead, measured in one run on one machine. The figures here are
those of the raw results linked below; the page is written from them.

```sh
pip install -e '.[bench,demo]'
python -m benchmarks --size full --json benchmarks/results/full.json \\
    --plots benchmarks/results --page docs/benchmarks.md      # all of this page
python -m benchmarks --engine postgres --work get,put         # some of it, quickly
python -m benchmarks --engine redis --tasks 1,64 --processes 1 --redis redis://127.0.0.1:6379
python -m benchmarks --work shims,cached,sharded,keyvalue     # what is put around and over stores
```

PostgreSQL, Valkey and a cluster are started for the run, from the packages that the tests use; with `--postgres`,
`--redis` or `--cluster` a server of yours is measured, in schemas or under prefixes of its own, which are removed
afterwards.

A store of your own, with the same work but without the peers (in a namespace of its own, which is emptied
afterwards; other data is not touched):

```sh
aiodatastore bench sqlite:///mine.db
aiodatastore bench 'cached{staleness_s=2}:postgresql://localhost/shop'    # shims and collections, too
```
"""

_METHOD = """\
## How it is measured

- Subjects that do the same work run *side by side*, on the same server: after a warm-up, in rounds that alternate (A B,
  B A, A B …), so that whatever else the machine does meets all of them. A rate is the median of the rounds; "ours is"
  is the median of the ratios of rounds that ran next to each other.
- No clock is read inside these rounds. Percentiles come from extra rounds in which every operation is timed, as its
  caller sees it: with 64 tasks, what an operation waits for its turn is part of it.
- "CPU µs" is the processor time of an operation, of all threads; "in server" that of the server's processes. Other
  programs on the machine disturb them less than they disturb rates.
- Data and the order of operations come from fixed seeds. Misses and errors are counted.
- Everything runs under asyncio in one process and one event loop. "2 × 64" is two processes with 64 tasks each: there
  rounds last for a time, and all processes begin together. Imports run in a process of their own.
- Clients and servers share the machine's processors.

Shims and collections are measured beside the stores that they are made of, with the same data:

- **A shim** costs less than what a machine does between two long rounds. So it and a plain store take turns in many
  rounds of 5 ms, in a memory store, where a get takes a few microseconds. "nothing" is a second plain store: what it
  differs by can't be told apart here. Those with a bound have nothing to do for these gets: the level of `Logged` is
  off, nothing is too large for `Limited`, the entities of `Compressed` and `Encrypted` have indexed properties only.
- **A cache**: hits are of keys that it holds; misses are of keys read in turn, where it holds sixteen. What is told by
  the store comes by `LISTEN`; without, copies are served until their time is over. With Zipf's law a few keys are in
  most operations: the picture shows what a hit ratio is worth.
- **Shards** have the same entities as the one store beside them, spread by their keys. All of them are on this
  machine, so that nothing is gained from more machines: what is measured is what spreading costs.

The peers are used as their documentation advises, and as well as we know how:

- **asyncpg**: a pool of ten connections, statements prepared once a connection, tables with indexes of the same
  properties. When a connection goes back to the pool it is reset, in a round trip of its own; "no reset" switches that
  off. Transactions lock rows with `SELECT … FOR UPDATE` in READ COMMITTED mode, which suffices for rows that are known
  beforehand; ours are serializable whatever they read. "SERIALIZABLE" has that, and repeats what the server refuses.
- **SQLAlchemy**, **Tortoise**, **Piccolo**: their ORMs on asyncpg, a pool of ten, the same tables. SQLAlchemy has a
  session for each operation, and reads in AUTOCOMMIT mode, which spares it BEGIN and ROLLBACK.
- **redis-py**: hiredis, a blocking pool of ten (20 or 64 were not faster). An entity is a string of JSON, its indexes
  are sorted sets: a put is `MULTI`, `SET`, three `ZADD`, `EXEC`; a transaction `WATCH`, `GET`, `MULTI`, `SET`, `ZADD`,
  `EXEC`, and again if it is refused. `INCRBY` is beside the counter, being what one would use for it.
- **py-key-value-aio**: its `RedisStore` on the same pool, its `MemoryStore` and its `DiskStore`, which is diskcache:
  SQLite that does not wait for the disk. They keep JSON and no indexes.
- **aiofiles**: reads the very documents that our file store has written. A put writes a temporary file, `fsync`s and
  renames it and `fsync`s the folder; no indexes. Beside it the same in one trip to a thread.
- **aiosqlite**: one connection, WAL, `synchronous=FULL`, a page cache of 64 MB: the settings of our SQLite adapter.
  Reads both in the documented way (`async with db.execute(…)`, then `fetchone`: three trips to its thread) and with
  the shortcut `execute_fetchall` (one trip). Inserts in three ways: insert and commit, where tasks on one connection
  share its transaction (one's commit takes the others' inserts along, and its rollback would drop them); the same
  under a lock, so that each insert is a transaction of its own, as each of our puts is; and in autocommit mode.
  **SQLAlchemy** on it: a session for each operation, the default pool, the same pragmas.
- **sqlite3 in a thread**: the standard library's module, one connection, through `anyio.to_thread`.
"""

_LIMITS = """\
## What this does not show

- Another machine: this one has few processors, and its disk acknowledges an `fsync` faster than most. On a slower disk
  whatever commits alone gets slower, and what commits together hardly does.
- A network: servers are reached over the loopback. With a real one a round trip costs more, so what travels together
  gains more, and a lone call is nearer to the driver's.
- A server with processors of its own: here what the client saves, the server can use, and the other way round.
- Large entities and cold caches: entities here have three to ten properties, and the data fits into memory. Queries
  of the same values come again, so that their plans are remembered; "from a random price" shows others, of which only
  the shape is.
- Equal work: the peers' SQL does less than ours. Its rows have no versions, values are not checked, and its indexes
  were chosen for these queries, while every property has one here.
- Lone writes at their best: one task that puts one entity after the other waits for the disk each time, and writes an
  index row for every property. aiosqlite's insert is as fast or faster there.
- Several processes on one SQLite file, more than two on a server, replicas, other versions of Python or of the servers.
- Other event loops: asyncio's own is used for all.
"""

_NAMES = {
    "memory_get": "Get by key, in memory",
    "memory_put": "Put, in memory",
    "sqlite_get": "Get by key, SQLite",
    "sqlite_put": "Put, SQLite",
    "sqlite_query": "Filter, order, limit 20, SQLite",
    "shapes": "Shapes of queries, memory and SQLite",
    "ycsb": "YCSB workloads A to F, memory and SQLite",
    "contention": "Transactions that meet, memory and SQLite",
    "cities": "Import of the world's cities, memory and SQLite",
    "import": "Importing the package",
}


def write_page(results: Raw, page: Path, plots: Path | None, raw: Sequence[Path]) -> None:
    """Write the page; ``plots`` and ``raw`` are where the pictures and the JSON files were put, if they were."""
    folder = "benchmarks"  # docs/benchmarks is benchmarks/results
    parts = [_INTRODUCTION, _machine(results, [f"{folder}/{each.name}" for each in raw])]
    parts.append(
        "## Figures to reach\n\n" + _targets([_result(raw) for raw in results["results"]], results["settings"]["tasks"])
    )
    parts.append(_METHOD)
    group = None
    for result in sorted(results["results"], key=lambda result: _GROUPS.index(_group(result["name"]))):
        if group != _group(result["name"]):
            group = _group(result["name"])
            parts.append(f"## {group}\n")
        parts.append(_section(result, f"{folder}/{result['name']}.svg" if plots else None))
    parts.append(_LIMITS)
    page.write_text("\n".join(part.rstrip("\n") + "\n" for part in parts), encoding="utf-8")


def _group(name: str) -> str:
    first = name.partition("_")[0]
    if first in COMPOSED_WORKS:
        return _COMPOSED
    engine = ENGINES.get(first)
    return engine.title if engine else "The package" if name == "import" else "Memory and SQLite"


_COMPOSED = "Shims and collections"
_GROUPS = (*(engine.title for engine in ENGINES.values()), "Memory and SQLite", _COMPOSED, "The package")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _machine(results: Raw, raw: Sequence[str]) -> str:
    env, settings = results["environment"], results["settings"]
    packages = ", ".join(f"{name} {number}" for name, number in env["packages"].items())
    lines = [
        "## Machine and versions\n",
        f"- {env['processors']} × {env['processor']}, {env['system']}, an fsync takes {env['fsync_us']:,.0f} µs;"
        f" load average {' '.join(map(str, env['load_average']))} when it began",
        f"- {env['python']}, SQLite {env['sqlite']}, {packages}",
        f"- {env['at']}; {settings_text(settings)}",
    ]
    if env["load_average"] and env["load_average"][0] > env["processors"] / 2:
        lines.append(
            "- **The machine was busy with other work when this was measured**: rates are too low, ratios uncertain,"
            " and the processor time is what to compare"
        )
    if raw:
        lines.append("- Raw results: " + ", ".join(f"[{Path(each).name}]({each})" for each in raw))
    return "\n".join(lines) + "\n"


def _targets(results: Sequence[Result], tasks: int) -> str:
    rows = []
    for target in targets(results, tasks):
        if target.measured is not None:
            wanted, measured, verdict = target.cells()
            rows.append((target.work, wanted, measured, f"**{verdict}**" if target.reached is False else verdict))
    return _table(("work", "wanted", "measured", ""), rows)


def _result(raw: Raw) -> Result:
    figures = [
        Figures(each["name"], each["tasks"], each["ours"], each.get("processes", 1), each["rounds_per_s"])
        for each in raw["subjects"]
    ]
    compared = raw.get("compared", "ours is")
    return Result(raw["name"], raw["title"], figures, raw["settings"], raw["facts"], raw["notes"], compared)


def _section(raw: Raw, plot: str | None) -> str:
    title = raw["title"] if _group(raw["name"]) == _COMPOSED else raw["title"].partition(": ")[2]
    lines = [f"### {_NAMES.get(raw['name']) or title[:1].upper() + title[1:]}\n"]
    if raw["settings"]:
        lines.append(settings_text(raw["settings"]) + ".\n")
    if raw["subjects"]:
        lines.append(_rates(raw))
    facts = [(name, fact_text(fact)) for name, fact in raw["facts"].items() if not isinstance(fact, list)]
    if facts:
        lines.append(_table(("", "measured"), facts))
    lines += [f"- {note}" for note in raw["notes"]]
    if plot and (raw["subjects"] or any(isinstance(fact, list) for fact in raw["facts"].values())):
        lines.append(f"\n![{raw['title']}]({plot})")
    return "\n".join(lines) + "\n"


def _rates(raw: Raw) -> str:
    result = _result(raw)
    served = any(subject.get("server_us") is not None for subject in raw["subjects"])
    rows = []
    for subject, figures in zip(raw["subjects"], result.figures, strict=True):
        base = baseline(result, figures)
        ratio = None if base is None else result.ratio(base, figures.name, figures.tasks, figures.processes)
        taken = subject["latency_us"]
        name = f"**{figures.name}**" if figures.ours else figures.name
        rows.append(
            (
                name,
                figures.crowd,
                f"{figures.rate:,.0f}",
                "" if ratio is None else f"{ratio:,.2f}×",
                f"{subject['processor_us']:,.1f}",
                *(("" if subject["server_us"] is None else f"{subject['server_us']:,.1f}",) if served else ()),
                *(f"{taken[percent]:,.0f}" if percent in taken else "" for percent in ("median", "p90", "p99", "max")),
                str(subject["misses"]),
                str(sum(subject["errors"].values())),
            )
        )
    there = ("in server",) if served else ()
    times = ("median µs", "p90", "p99", "max")
    columns = ("", "tasks", "per second", result.compared, "CPU µs", *there, *times, "misses", "errors")
    return _table(columns, rows)
