"""Random operations against the naive model: memory and SQLite, one connection and two, both event loops."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from aiodatastore import Datastore
from aiodatastore.adapters.base import Commit, Outcome, ResultStream, RunOptions
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.query import Query
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
TestMemoryOnTrio.settings = budget(0.4)
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = budget(0.8)
TestSQLiteOnTrio = SQLiteOnTrioMachine.TestCase
TestSQLiteOnTrio.settings = budget(0.2)


# -------------------------------------------------------------------------- broken stores are caught


class ForgetsKeys(EngineAdapter):
    """Does not check the entities a transaction has read."""

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        return await super().commit([replace(each, checks={}) for each in batch])


class LosesWrites(EngineAdapter):
    """Applies all writes of a commit but the last, if there are several."""

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        return await super().commit([replace(each, writes=[*each.writes[:-1]] or each.writes) for each in batch])


class IgnoresOrders(EngineAdapter):
    """Gives results in the order of their keys."""

    def run(self, query: Query, options: RunOptions = RunOptions()) -> ResultStream:  # noqa: B008
        if query.orders and not query.projection and query.start_cursor is None and query.end_cursor is None:
            query = Query(query.kind, ancestor=query.ancestor, filters=query.filters, keys_only=query.only_keys)
        return super().run(query, options)


@pytest.mark.parametrize("broken", [ForgetsKeys, LosesWrites, IgnoresOrders])
def test_broken_stores_are_caught(broken: type[EngineAdapter]) -> None:
    class BrokenMachine(StoreMachine):
        def fresh(self) -> Callable[[], Datastore]:
            return lambda: Datastore(broken(MemoryRowStore()))

    looking = settings(max_examples=300, stateful_step_count=STEPS, phases=[Phase.generate])
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(BrokenMachine, settings=looking)
