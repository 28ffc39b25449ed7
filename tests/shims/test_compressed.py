"""``Compressed``, and what it shares with ``Encrypted``: what is packed, and how it comes back.

The suite runs on both together, beside the tests of ``Encrypted``.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from aiodatastore import BadArgumentError, BadRequestError, Blob, CorruptDataError, Datastore, Entity, Key, Text
from aiodatastore.adapters.base import Commit, Put
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.indexing.rows import index_rows, indexed_values
from aiodatastore.jsonl import canonical
from aiodatastore.rowstore import Capability
from aiodatastore.shims.compressed import Compressed
from aiodatastore.testing.strategies import entities as any_entities

pytestmark = pytest.mark.anyio

HAMLET = Key("Play", "hamlet")
LONG = "to be or not to be, " * 100


@given(any_entities())
@settings(max_examples=100, deadline=None)
def test_index_rows_are_the_same_and_everything_comes_back(entity: Entity) -> None:
    shim = Compressed(EngineAdapter(MemoryRowStore()), threshold=0)
    shim._step = Always()
    before = canonical(entity)
    packed = shim._packed(entity)
    assert canonical(entity) == before
    assert index_rows(packed.key, indexed_values(packed)) == index_rows(entity.key, indexed_values(entity))
    shim._unpack(packed)
    assert canonical(packed) == before
    assert list(packed) == list(entity)


class Always:
    name = "always"

    def wrap(self, data: bytes) -> bytes:
        return data

    unwrap = wrap


def test_what_is_packed() -> None:
    shim = Compressed(EngineAdapter(MemoryRowStore()))
    shim._step = Always()
    inner = Entity(Key("Inner", 1), {"seen": 1, "hidden": 2}, unindexed=["hidden"])
    entity = Entity(
        HAMLET,
        {
            "first": Text("x"),
            "n": 1,
            "quiet": "q",
            "mixed": ["a", Text("b"), "c", Blob(b"d")],
            "texts": [Text("e"), Text("f")],
            "none": [],
            "inner": inner,
            "deep": {"a": [{"t": Text("g"), "u": 5}], "b": 6, "w": 7},
        },
        unindexed=["quiet", "deep.w"],
    )
    packed = shim._packed(entity)
    assert {name: value for name, value in packed.items() if name != "~compressed"} == {
        "n": 1,
        "mixed": ["a", "c"],
        "none": [],
        "inner": Entity(Key("Inner", 1), {"seen": 1}, unindexed=["hidden"]),
        "deep": {"a": [{"u": 5}], "b": 6},
    }
    assert type(packed["~compressed"]) is Blob
    assert packed.unindexed == entity.unindexed
    shim._unpack(packed)
    assert packed == entity
    assert list(packed) == list(entity)
    assert list(packed["deep"]["a"][0]) == ["t", "u"]


async def stored(shim: Compressed, key: Key) -> Entity:
    found = (await shim.child.lookup([key])).entities[0]
    assert found is not None
    return found


async def test_only_what_becomes_shorter_is_packed() -> None:
    shim = Compressed(adapter_from_url("memory://"), threshold=300)
    assert Capability.INLINE_READS in shim.capabilities
    async with Datastore(shim) as ds:
        await ds.put([Entity(HAMLET, {"t": Text(LONG), "n": 1}), Entity(Key("Play", 2), {"t": Text("short")})])
        assert set(await stored(shim, HAMLET)) == {"n", "~compressed"}
        assert len((await stored(shim, HAMLET))["~compressed"]) < 100
        assert await stored(shim, Key("Play", 2)) == Entity(Key("Play", 2), {"t": "short"})
        expected = [Entity(HAMLET, {"t": Text(LONG), "n": 1}), Entity(Key("Play", 2), {"t": Text("short")})]
        assert await ds.get([HAMLET, Key("Play", 2)]) == expected
        assert await ds.query("Play").filter("n", "=", 1).fetch(2) == expected[:1]
        assert await ds.query("Play").keys_only().fetch(2) == [Key("Play", 2), HAMLET]
        [row] = await ds.query("Play").project("n").fetch(2)
        assert row.is_projection
        assert dict(row) == {"n": 1}


async def test_what_is_longer_than_a_property_may_be() -> None:
    import random

    noise = random.Random(1)
    parts = {f"b{n}": Blob(noise.randbytes(900_000)) for n in range(3)}
    shim = Compressed(adapter_from_url("memory://"), threshold=0)
    shim._step = Always()
    async with Datastore(shim) as ds:
        await ds.put(Entity(HAMLET, parts))
        (await stored(shim, HAMLET)).validate()
        assert await ds.get(HAMLET) == Entity(HAMLET, parts)


async def test_what_was_written_without_it_is_read() -> None:
    shim = Compressed(adapter_from_url("memory://"))
    await shim.open()
    plain = Entity(HAMLET, {"t": Text(LONG)})
    await shim.child.commit([Commit(writes=[Put(plain.snapshot())])])
    assert shim.lookup_now([HAMLET]) == [plain]


async def test_its_own_property_is_refused_and_neighbours_are_not_touched() -> None:
    shim = Compressed(adapter_from_url("memory://"))
    await shim.open()
    wrong, right = Entity(HAMLET, {"~compressed": 1}), Entity(Key("Play", 2), {"n": 1})
    batch = [Commit(writes=[Put(wrong)]), Commit(writes=[Put(right.snapshot())])]
    for commit in batch:
        shim.encode(commit)
    outcomes = await shim.commit(batch)
    assert isinstance(outcomes[0].error, BadRequestError)
    assert "use another name" in str(outcomes[0].error)
    assert outcomes[1].committed
    assert shim.lookup_now([HAMLET, right.key]) == [None, right]


async def test_damage_is_told() -> None:
    shim = Compressed(adapter_from_url("memory://"))
    await shim.open()
    for damaged in (Blob(b"nonsense"), 5, "x", [Blob(b"a")]):
        await shim.child.commit([Commit(writes=[Put(Entity(HAMLET, {"~compressed": damaged}))])])
        with pytest.raises(CorruptDataError, match=r"compressed properties of Key\('Play', 'hamlet'\)"):
            shim.lookup_now([HAMLET])


@pytest.mark.parametrize("arguments", [{"level": 30}, {"level": "3"}, {"threshold": -1}])
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadArgumentError, match="expected an int"):
        Compressed(adapter_from_url("memory://"), **arguments)
