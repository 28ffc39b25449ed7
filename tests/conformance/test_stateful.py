"""Random operations against the naive model: on every engine, one connection and two, each event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from aiodatastore import Datastore
from aiodatastore.adapters.base import Commit, Outcome, ResultStream, RunOptions
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.query import Query
from aiodatastore.testing.stateful import StoreMachine
from tests.engines import Bound, engines

STEPS = 30


def budget(share: float) -> settings:
    """A share of the profile's examples."""
    return settings(max_examples=max(1, int(settings().max_examples * share)), stateful_step_count=STEPS)


SHARES = {"memory": 1.0, "sqlite": 0.8, "file": 0.4, "postgres": 0.4, "redis": 0.6}
"""What opening and writing costs: the engines with a cheap store are searched for longer."""


@engines(loops=True)
def test_random_operations(engine: Bound, anyio_backend: str) -> None:
    """Two connections where the engine has them; closed and opened again at times where the store outlives that."""

    class Machine(StoreMachine):
        backend = anyio_backend
        connections = 2 if engine.engine.connections else 1
        reopens = engine.engine.durable

        def fresh(self) -> Callable[[], Datastore]:
            return self.resources.enter_context(engine.place()).connect

    first = anyio_backend == engine.engine.loops[0]
    run_state_machine_as_test(Machine, settings=budget(SHARES[engine.name] * (1 if first else 0.25)))


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
