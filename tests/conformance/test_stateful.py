"""Random operations against the naive model: memory and SQLite, one connection and two, both event loops."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings

from aiodatastore import Datastore
from aiodatastore.testing.stateful import StoreMachine

STEPS = 30


def budget(share: float) -> settings:
    """A share of the profile's examples."""
    return settings(max_examples=max(1, int(settings().max_examples * share)), stateful_step_count=STEPS)


class MemoryMachine(StoreMachine):
    def fresh(self) -> Callable[[], Datastore]:
        return lambda: Datastore("memory://")


class MemoryOnTrioMachine(MemoryMachine):
    backend = "trio"


class SQLiteMachine(StoreMachine):
    """Two connections to one file, closed and opened again at times."""

    connections = 2
    reopens = True

    def fresh(self) -> Callable[[], Datastore]:
        folder = self.resources.enter_context(tempfile.TemporaryDirectory())
        return lambda: Datastore(f"sqlite:///{Path(folder)}/store.db", synchronous="OFF")


class SQLiteOnTrioMachine(SQLiteMachine):
    backend = "trio"


TestMemory = MemoryMachine.TestCase
TestMemory.settings = budget(2)
TestMemoryOnTrio = MemoryOnTrioMachine.TestCase
TestMemoryOnTrio.settings = budget(0.5)
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = budget(1)
TestSQLiteOnTrio = SQLiteOnTrioMachine.TestCase
TestSQLiteOnTrio.settings = budget(0.5)
