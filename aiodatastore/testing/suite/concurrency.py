"""Many tasks at once: batching, cancellation, serializability."""

from __future__ import annotations

import functools
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.testing.history import (
    Workload,
    list_append,
    mixed,
    phantom,
    read_modify_write,
    run_workload,
    verify_workload,
    write_skew,
)
from aiodatastore.testing.suite.base import StoreTests, assert_same, cancelled_at, gather, numbered

__all__ = ["ConcurrencyTests"]


class ConcurrencyTests(StoreTests):
    """What holds when things happen side by side, or stop half way."""

    async def test_lookups_side_by_side(self, ds: Datastore) -> None:
        """Each caller gets its own answer, in its own order, and shares it with nobody."""
        await ds.put(numbered("K", 50, tags=["a"]))

        async def read(first: int) -> Any:
            return await ds.get([Key("K", (first * 7 + step) % 60 + 1) for step in range(5)])

        results = await gather([functools.partial(read, first) for first in range(100)])
        seen: set[int] = set()
        for first, entities in enumerate(results):
            assert not isinstance(entities, Exception)
            for step, entity in enumerate(entities):
                number = (first * 7 + step) % 60 + 1
                assert (entity is None) == (number > 50)
                if entity is not None:
                    assert entity["n"] == number
                    assert id(entity) not in seen
                    seen.add(id(entity))
        kept = [result for result in results if not isinstance(result, Exception)]
        for entities in kept:
            for entity in entities:
                if entity is not None:
                    assert entity["tags"] == ["a"]
                    entity["tags"].append("b")

    async def test_writes_side_by_side(self, ds: Datastore) -> None:
        """All arrive; a later read sees them."""

        async def write(number: int) -> Any:
            await ds.put(Entity(Key("K", number), {"n": number}))
            return await ds.get(Key("K", number))

        results = await gather([functools.partial(write, n) for n in range(1, 101)])
        assert_same(numbered("K", 100), list(results))
        if Capability.QUERIES in ds.capabilities:
            assert await ds.query("K").count() == 100

    @pytest.mark.parametrize("operation", ["put", "put many", "transaction", "get", "query", "delete", "allocate"])
    async def test_cancelled_at_every_await(self, ds: Datastore, operation: str) -> None:
        """Nothing is half done, and the store goes on working."""
        self.needs(ds, *[Capability.QUERIES] * (operation in ("query", "transaction")))
        root = Key("Group", 1)
        one, two = root.child("K", 1), root.child("K", 2)
        turn = 0

        async def transaction() -> None:
            async with ds.transaction():
                entity = await ds.get(one)
                await ds.query("K", ancestor=root).fetch()
                await ds.put(Entity(one, {"turn": turn, "was": entity and entity["turn"]}))
                await ds.put(Entity(two, {"turn": turn}))

        async def body() -> None:
            match operation:
                case "put":
                    await ds.put(Entity(one, {"turn": turn}))
                case "put many":
                    await ds.put([Entity(one, {"turn": turn}), Entity(two, {"turn": turn})])
                case "transaction":
                    await transaction()
                case "get":
                    await ds.get([one, two])
                case "query":
                    await ds.query("K").filter("turn", ">", 0).order("-turn").fetch()
                case "delete":
                    await ds.delete([one, two])
                case _:
                    await ds.allocate_ids(Key("K"), 3)

        for at in range(1, 60):
            await ds.put([Entity(one, {"turn": -1}), Entity(two, {"turn": -1})])
            turn = at
            came_so_far = await cancelled_at(body, at)
            with anyio.fail_after(60):
                entities = await ds.get([one, two])
                if operation in ("put many", "transaction"):
                    turns = {None if entity is None else entity["turn"] for entity in entities}
                    assert turns in ({-1}, {at}), f"half written, cancelled at await {at}"
                elif operation == "delete":
                    assert entities.count(None) in (0, 2), f"half deleted, cancelled at await {at}"
                assert not ds.in_transaction()
                await ds.put(Entity(Key("K", 3), {"turn": at}))
                assert await ds.get(Key("K", 3)) == Entity(Key("K", 3), {"turn": at})
                assert await ds.check() == []
            if not came_so_far:
                break
        else:
            pytest.fail(f"{operation} suspended 60 times")

    async def test_one_of_many_cancelled(self, ds: Datastore) -> None:
        """Its neighbours in the same batch arrive."""

        async def write(number: int, scope: anyio.CancelScope) -> None:
            with scope:
                await ds.put(Entity(Key("K", number), {"n": number}))

        for round_number in range(10):
            scopes = [anyio.CancelScope() for _ in range(20)]
            async with anyio.create_task_group() as group:
                for place, scope in enumerate(scopes):
                    group.start_soon(write, round_number * 100 + place + 1, scope)
                for _ in range(round_number):
                    await anyio.lowlevel.checkpoint()
                scopes[7].cancel()
            wanted = [Key("K", round_number * 100 + place + 1) for place in range(20) if place != 7]
            assert None not in await ds.get(wanted)

    @pytest.mark.parametrize(
        "workload", [read_modify_write, write_skew, phantom, list_append, mixed], ids=lambda each: each.__name__
    )
    async def test_serializable(self, ds: Datastore, workload: Workload) -> None:
        """No history of many tasks has a cycle, and the order of commits explains every read."""
        self.needs(ds, Capability.GLOBAL_TRANSACTIONS, Capability.QUERIES)
        history = await run_workload(ds, workload, tasks=8, transactions=12)
        assert history.count("committed") == 96
        assert history.count("unknown") == 0
        anomalies = verify_workload(history)
        assert not anomalies, "\n".join(map(str, anomalies))
