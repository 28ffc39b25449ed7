"""Mounted stores are as one, and keep what is mounted where it is mounted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodatastore import Datastore, Entity, Key, Query
from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import BadArgumentError, BadKeyError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.shims.mounted import Mounted
from aiodatastore.testing import strategies
from tests.shims.stacks import PROFILE, ShimSuite

WORLD = strategies.World()
anyio_test = pytest.mark.anyio


class TestMounted(ShimSuite):
    stores = 3
    wrap = staticmethod(lambda a, b, c: Mounted({"Task": a, "/K:1": b, "*": c}))


def memory() -> Adapter:
    return adapter_from_url("memory://")


@asynccontextmanager
async def mounted(*names: str) -> AsyncIterator[tuple[Datastore, dict[str, Adapter]]]:
    stores = {name: memory() for name in names}
    async with Datastore(Mounted(stores)) as ds:
        yield ds, stores


async def kept(store: Adapter) -> list[Key]:
    """The keys of all entities of a store."""
    page = await store.run(Query().keys_only()).next_page()
    return page.results


@anyio_test
async def test_groups_are_where_they_are_mounted() -> None:
    async with mounted("Session", "/Country:GB", "/Country:7", "*") as (ds, stores):
        keys = {
            "Session": [Key("Session", 1), Key("Session", 1, "Part", "x")],
            "/Country:GB": [Key("Country", "GB"), Key("Country", "GB", "City", 1)],
            "/Country:7": [Key("Country", 7)],
            "*": [Key("Country", "7"), Key("Country", "GBX"), Key("City", "GB")],
        }
        every = [key for each in keys.values() for key in each]
        await ds.put([Entity(key, {"n": n}) for n, key in enumerate(every)])
        for name, store in stores.items():
            assert await kept(store) == sorted(keys[name])
        assert await ds.query().keys() == sorted(every)
        assert [entity.key.kind for entity in await ds.query("City").order("n").fetch()] == ["City", "City"]
        assert await ds.query("Country").order("-n").keys() == [
            *keys["*"][1::-1],
            *keys["/Country:7"],
            Key("Country", "GB"),
        ]
        assert "merge" not in str(await ds.query("Session").explain())
        assert "merge of 2" not in str(await ds.query(ancestor=Key("Country", "GB")).explain())


@anyio_test
async def test_a_mounted_kind_is_not_below_roots_of_other_stores() -> None:
    async with mounted("Session", "Country", "*") as (ds, _):
        with pytest.raises(BadKeyError, match="can't be below"):
            await ds.put(Entity(Key("User", 1, "Session", 1)))
        await ds.put(Entity(Key("Session", 1, "Session", 2)))
        assert await ds.query("Session").count() == 1


@anyio_test
async def test_without_a_default_other_roots_are_refused() -> None:
    async with mounted("Session", "Country") as (ds, _):
        with pytest.raises(BadKeyError, match="no store is mounted"):
            await ds.put(Entity(Key("User", 1)))
        with pytest.raises(BadKeyError, match="no store is mounted"):
            await ds.get(Key("User", 1))
        await ds.put(Entity(Key("Session", 1)))
        assert await ds.query("User").fetch() == []


@anyio_test
async def test_indexes_are_made_where_they_are_needed() -> None:
    async with mounted("Session", "Country", "*") as (ds, stores):
        of_session = IndexDefinition("Session", (("a", "asc"), ("b", "desc")))
        of_any = IndexDefinition("City", (("a", "asc"), ("b", "desc")))
        await ds.create_index(of_session)
        await ds.create_index(of_any)
        counts = [len(await store.indexes()) for store in stores.values()]
        assert counts == [2, 1, 1]
        assert [info.definition for info in await ds.indexes()] == [of_session, of_any]
        assert {str(info.state) for info in await ds.indexes()} == {"SERVING"}
        await ds.delete_index(of_any)
        assert [len(await store.indexes()) for store in stores.values()] == [1, 0, 0]


@anyio_test
async def test_ids_of_a_kind_are_unique_below_any_root() -> None:
    async with mounted("Session", "*") as (ds, _):
        entities = [Entity(Key("Session", 1, "Part")) for _ in range(50)] + [Entity(Key("Part")) for _ in range(50)]
        await ds.put(entities)
        assert len({entity.key.id for entity in entities}) == 100


def test_what_can_not_be_mounted_is_refused() -> None:
    for mounts, message in (
        ({}, "at least one"),
        ([memory()], "expected a mapping of .*, got list"),
        ({"/Country:GB/City:1": memory()}, "complete root key"),
        ({"/Country": memory()}, "complete root key"),
        ({"A": memory(), "B": "memory://"}, "expected adapters, got str$"),
    ):
        with pytest.raises(BadArgumentError, match=message):
            Mounted(mounts)  # type: ignore[arg-type]
    one = memory()
    with pytest.raises(BadArgumentError, match="twice"):
        Mounted({"A": one, "B": one})


@settings(settings.get_profile(PROFILE))
@given(
    st.lists(WORLD.entities(), max_size=30, unique_by=lambda entity: entity.key),
    st.lists(WORLD.queries(), min_size=3, max_size=12),
)
def test_random_queries_answer_as_one_store_does(entities: list[Entity], queries: list[Query]) -> None:
    def shown(results: Sequence[Any]) -> str:
        for result in results:
            if isinstance(result, Entity):
                result.version = 0
        return repr(results)

    async def main() -> None:
        async with Datastore("memory://") as plain, mounted("/K:1", "/K:a", "/Ka:2", "*") as (ds, _):
            await plain.put([entity.copy() for entity in entities])
            await ds.put(entities)
            for query in queries:
                assert shown(await ds.query(query).fetch()) == shown(await plain.query(query).fetch())
                assert await ds.query(query).count() == await plain.query(query).count()

    anyio.run(main)
