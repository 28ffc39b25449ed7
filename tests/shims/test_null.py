"""A store that keeps nothing."""

from __future__ import annotations

import pytest

from aiodatastore import (
    BadArgumentError,
    BadCursorError,
    Capability,
    ConflictError,
    Datastore,
    Entity,
    EntityNotFoundError,
    IndexDefinition,
    IndexState,
    Key,
    NeedIndexError,
)
from aiodatastore.shims import Null

pytestmark = pytest.mark.anyio


async def test_everything_is_accepted_and_forgotten() -> None:
    async with Datastore("null://") as ds:
        first, second = Entity(Key("K", 1), {"x": 1}), Entity(Key("K"), {"x": 2})
        await ds.put([first, second])
        assert second.key.is_complete
        assert await ds.get([first.key, second.key]) == [None, None]
        assert await ds.query("K").fetch() == []
        assert await ds.query().keys() == []
        assert await ds.query("K").filter("x", ">", 0).order("-x").count() == 0
        assert await ds.query("K").aggregate(n="count", s=("sum", "x"), a=("avg", "x")) == {"n": 0, "s": 0, "a": None}
        await ds.put(Entity(Key("K", 1)), ttl=5)
        await ds.delete(first.key)
        assert (await ds.stats())["kinds"] == []
        assert await ds.check() == []


async def test_versions_rise_and_conditions_are_judged() -> None:
    async with Datastore(Null()) as ds:
        versions = []
        for _ in range(3):
            entity = Entity(Key("K", 1))
            await ds.put(entity)
            versions.append(entity.version)
        assert versions == sorted(set(versions))
        assert versions[0] > 0
        await ds.insert(Entity(Key("K", 1)))
        with pytest.raises(EntityNotFoundError):
            await ds.update(Entity(Key("K", 1)))
        with pytest.raises(ConflictError):
            await ds.put(Entity(Key("K", 1)), if_version=versions[-1])
        keys = [await ds.put(Entity(Key("K"))) for _ in range(10)]
        assert len(set(keys)) == 10


async def test_transactions_find_nothing_and_commit() -> None:
    async with Datastore("null://") as ds:

        @ds.transactional
        async def count() -> int:
            found = len(await ds.query("K", ancestor=Key("P", 1)).fetch())
            assert await ds.get(Key("P", 1)) is None
            await ds.put(Entity(Key("P", 1, "K", 1), {"x": 1}))
            assert len(await ds.query("K", ancestor=Key("P", 1)).fetch()) == 1  # its own writes
            return found

        assert await count() == 0
        assert await count() == 0


async def test_queries_are_checked_and_indexes_kept() -> None:
    definition = IndexDefinition("K", (("a", "asc"), ("b", "desc")))
    async with Datastore("null://", require_indexes=True) as ds:
        query = ds.query("K").order("a", "-b")
        with pytest.raises(NeedIndexError):
            await query.fetch()
        info = await ds.create_index(definition)
        assert info.state is IndexState.SERVING
        assert await query.fetch() == []
        await ds.put(Entity(Key("K", 1), {"a": 1, "b": 1}))
        assert await query.fetch() == []
        await ds.delete_index(definition)
        assert await ds.indexes() == []
    async with Datastore("memory://") as full:
        await full.put([Entity(Key("K", number)) for number in (1, 2)])
        cursor = (await full.query("K").page(1)).cursor
    async with Datastore("null://") as ds:
        assert await ds.query("K").start(cursor).fetch() == []
        with pytest.raises(BadCursorError):
            await ds.query("L").start(cursor).fetch()


def test_what_it_promises() -> None:
    capabilities = Datastore("null://").capabilities
    assert {Capability.TTL, Capability.TRIO, Capability.QUERIES} <= capabilities
    assert Capability.DURABLE not in capabilities
    with pytest.raises(BadArgumentError, match="keeps nothing"):
        Datastore("null://somewhere")
