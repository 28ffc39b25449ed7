"""A shard that is slow, or gone for a while, holds up nobody who does not need it."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key, ReadPolicy
from aiodatastore.adapters.base import Adapter
from aiodatastore.shims import Cached, Logged, Mounted, Namespaced, Sharded
from tests.unit.stepping import Gate, SteppingAdapter

pytestmark = pytest.mark.anyio

ABOVE: dict[str, Callable[[Adapter], Adapter]] = {
    "nothing": lambda adapter: adapter,
    "Logged": Logged,
    "Namespaced": lambda adapter: Namespaced(adapter, "tenant"),
    "Cached": Cached,
}


def key_in(adapter: Adapter, lane: int) -> Key:
    return next(key for key in (Key("K", number) for number in range(1, 100)) if adapter.lane([key]) == lane)


@pytest.mark.parametrize("above", ABOVE)
async def test_calls_of_one_shard_do_not_wait_for_another(above: str) -> None:
    shards = [SteppingAdapter(), SteppingAdapter()]
    adapter = ABOVE[above](Sharded(shards, names=["a", "b"]))
    held, quick = key_in(adapter, 0), key_in(adapter, 1)
    answered: list[str] = []
    async with Datastore(adapter) as ds:
        await ds.put([Entity(held, {"n": 0}), Entity(quick, {"n": 0})])

        async def put(key: Key) -> None:
            await ds.put(Entity(key, {"n": 1}))
            answered.append(f"put {key.id}")

        async def get(key: Key) -> None:
            await ds.get(key, read_policy=ReadPolicy.CURRENT if above == "Cached" else ReadPolicy.STRONG)
            answered.append(f"get {key.id}")

        async def change() -> None:
            entity = await ds.get(quick)
            assert entity is not None
            entity["n"] += 1
            await ds.put(entity)

        gate = shards[0].before_commit = shards[0].before_lookup = Gate()
        async with anyio.create_task_group() as group:
            group.start_soon(put, held)
            group.start_soon(get, held)
            await gate.arrived.wait()
            try:
                with anyio.fail_after(60):
                    await put(quick)
                    await get(quick)
                    await ds.run_in_transaction(change)
                assert answered == [f"put {quick.id}", f"get {quick.id}"]
            finally:
                gate.opened.set()
        assert len(answered) == 4
        assert [entity and entity["n"] for entity in await ds.get([held, quick])] == [1, 2]


def test_a_key_has_the_lane_of_its_store() -> None:
    stores = [SteppingAdapter() for _ in range(3)]
    sharded = Sharded(stores)
    assert {sharded.lane([Key("K", number)]) for number in range(1, 100)} == {0, 1, 2}
    for number in range(1, 20):
        parent = Key("K", number)
        assert sharded.lane([parent, parent.child("L", 1)]) == sharded.place(parent)
    assert sharded.lane([key_in(sharded, lane) for lane in range(3)]) is None
    assert not Sharded(stores[:1]).has_lanes
    assert not stores[0].has_lanes
    mounted = Mounted({"*": SteppingAdapter(), "Log": SteppingAdapter()})
    assert mounted.lane([Key("Log", 1)]) == mounted.place(Key("Log", 1))
    assert mounted.lane([Key("Log", 1), Key("K", 1)]) is None
