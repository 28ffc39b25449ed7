"""The figures to reach, taken from the results of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiodatastore.bench.report import Result, Target
from benchmarks import suite
from benchmarks.sides import OURS

__all__ = ["targets"]


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


def _growth(results: Sequence[Result]) -> float | None:
    early = _fact(results, "cities", "aiodatastore: memory, MiB at 20%")
    late = _fact(results, "cities", "aiodatastore: memory, MiB at the end")
    return None if early is None or late is None else late - early


def _flat(results: Sequence[Result]) -> float | None:
    """What counts as flat, in MiB; with few cities it is caches that fill."""
    found = _find(results, "cities")
    return 32 if found is not None and found.settings["cities"] > 200_000 else None


def targets(results: Sequence[Result], tasks: int = 64) -> list[Target]:
    """Each with what was wanted and measured; those without a bound are told for completeness."""
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
        Target("– growth of memory from 20% to the end", _flat(results), _growth(results), unit="MiB", below=True),
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
