"""Composite indexes built online, required or suggested; ``check`` and ``stats``."""

from __future__ import annotations

import functools

import anyio
import pytest
from hypothesis import strategies as st

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import CorruptDataError, NeedIndexError
from aiodatastore.indexing.definitions import IndexDefinition, IndexState
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Capability
from aiodatastore.testing.strategies import World
from aiodatastore.testing.suite.base import Connect, SideDoor, StoreTests, assert_same, examples, numbered, together
from aiodatastore.testing.suite.queries import bound, clear, fill

__all__ = ["IndexTests"]

WORLD = World(kinds=("K", "Ka"), names=("a", "b", "c"))
DEFINITIONS = (
    IndexDefinition("K", (("a", "asc"), ("b", "desc"))),
    IndexDefinition("K", (("b", "asc"), ("a", "asc"), ("c", "desc"))),
    IndexDefinition("K", (("c", "desc"), ("a", "asc")), ancestor=True),
    IndexDefinition("K", (("a", "desc"),), ancestor=True),
)


class IndexTests(StoreTests):
    """Indexes change how fast an answer comes, never the answer."""

    @pytest.fixture(autouse=True)
    def promised_queries(self, connect: Connect) -> None:
        """Skips all of it on a store that answers no queries."""
        if Capability.QUERIES not in connect().capabilities:
            pytest.skip("the adapter does not promise QUERIES")

    @examples(
        40,
        entities=st.lists(WORLD.entities(), max_size=12),
        changes=st.lists(WORLD.entities(), max_size=4),
        definitions=st.sets(st.sampled_from(DEFINITIONS), min_size=1, max_size=3),
        queries=st.lists(WORLD.queries(), min_size=4, max_size=8),
    )
    async def test_answers_stay_the_same_with_any_indexes(
        self,
        ds: Datastore,
        entities: list[Entity],
        changes: list[Entity],
        definitions: set[IndexDefinition],
        queries: list[Query],
    ) -> None:
        """Built over existing data, maintained by later writes, deleted again."""
        self.needs(ds, Capability.KEY_ORDER)
        await clear(ds)
        for info in await ds.indexes():
            await ds.delete_index(info.definition)
        model = await fill(ds, entities)
        chosen = sorted(definitions, key=repr)
        for definition in chosen:
            await ds.create_index(definition, build=True)
        for entity in changes:
            model.put(entity)
            await ds.put(entity.copy())
        for query in queries:
            assert_same(model.results(query), await bound(ds, query).fetch())
            assert await bound(ds, query).count() == model.count(query), query
        assert await ds.check() == []
        await together(*[functools.partial(ds.delete_index, definition) for definition in chosen])
        assert await ds.indexes() == []
        assert await ds.check() == []

    async def test_states(self, ds: Datastore) -> None:
        """Created, built, listed, deleted; creating twice is the same index."""
        await ds.put(numbered("K", 30, a=1))
        definition = IndexDefinition("K", (("a", "asc"), ("n", "desc")))
        await ds.create_index(definition, build=False)
        (info,) = await ds.indexes()
        assert (info.definition, info.state) == (definition, IndexState.BUILDING)
        seen: list[int] = []
        await ds.create_index(definition, build=True, progress=seen.append)
        (built,) = await ds.indexes()
        assert (built.number, built.state) == (info.number, IndexState.SERVING)
        assert seen[-1:] == [30]
        await ds.delete_index(definition)
        assert await ds.indexes() == []

    async def test_required_indexes(self, connect: Connect, ds: Datastore) -> None:
        """What is missing is named; once built, the query runs."""
        entities = numbered("K", 10, a=1)
        await ds.put(entities)
        options = {"require_indexes": True}
        if not self.second_connection:
            pytest.skip("one connection a store")
        async with connect(**options) as strict:
            query = strict.query("K").filter("a", "=", 1).order("-n", "b")
            with pytest.raises(NeedIndexError) as caught:
                await query.fetch()
            definition = caught.value.definition
            assert definition.kind == "K"
            assert "kind: K" in caught.value.yaml
            await strict.create_index(definition, build=True)
            assert await query.fetch() == []
            await ds.put(Entity(Key("K", 99), {"a": 1, "n": 5, "b": 1}))
            assert await query.keys() == [Key("K", 99)]

    async def test_declared_indexes_are_built_on_opening(self, connect: Connect) -> None:
        """From App Engine's ``index.yaml``; opening again changes nothing."""
        yaml = "indexes:\n- kind: K\n  properties:\n  - name: a\n  - name: n\n    direction: desc\n"
        definition = IndexDefinition("K", (("a", "asc"), ("n", "desc")))
        async with connect(index_yaml=yaml) as ds:
            await ds.put(numbered("K", 5, a=1))
            assert [(info.definition, info.state) for info in await ds.indexes()] == [(definition, IndexState.SERVING)]
            assert [key.id for key in await ds.query("K").filter("a", "=", 1).order("-n").keys()] == [5, 4, 3, 2, 1]

    async def test_built_while_writes_go_on(self, ds: Datastore) -> None:
        """Puts, changes and deletions during a build are in the index, or not, as they should be."""
        await ds.put(numbered("K", 1500, a=0))
        definition = IndexDefinition("K", (("a", "asc"), ("n", "desc")))
        building = True

        async def write(first: int) -> None:
            number = first
            while building:
                number += 1
                await ds.put(Entity(Key("K", first * 10_000 + number), {"a": 1, "n": number}))
                await ds.put(Entity(Key("K", number % 1500 + 1), {"a": 2, "n": number}))
                await ds.delete(Key("K", (number * 7) % 1500 + 1))

        async with anyio.create_task_group() as group:
            for first in (1, 2):
                group.start_soon(write, first)
            await ds.create_index(definition, build=True)
            building = False
        assert await ds.check() == []
        for a in (0, 1, 2):
            query = ds.query("K").filter("a", "=", a).order("-n")
            found = await query.fetch()
            scanned = [entity async for entity in ds.query("K") if entity["a"] == a]
            scanned.sort(key=lambda entity: (-entity["n"], entity.key))
            assert_same(scanned, found)

    async def test_other_connections_maintain_a_new_index(self, ds: Datastore, other: Datastore) -> None:
        """From the moment it is created, whoever created it."""
        await other.put(numbered("K", 5, a=1))
        definition = IndexDefinition("K", (("a", "asc"), ("n", "desc")))
        await ds.create_index(definition, build=True)
        await other.put(Entity(Key("K", 6), {"a": 1, "n": 6}))
        await other.delete(Key("K", 2))
        for each in (ds, other):
            keys = await each.query("K").filter("a", "=", 1).order("-n").keys()
            assert [key.id for key in keys] == [6, 5, 4, 3, 1]
            assert [info.definition for info in await each.indexes()] == [definition]
        await other.delete_index(definition)
        await ds.put(Entity(Key("K", 7), {"a": 1, "n": 7}))
        assert await ds.query("K").filter("a", "=", 1).order("-n").count() == 6
        assert await other.check() == []

    async def test_stats(self, ds: Datastore) -> None:
        """Entities, bytes and index rows of each kind."""
        await ds.put([*numbered("K", 7, tags=["a", "b"]), *numbered("J", 2)])
        await ds.put(Entity(Key("K", 1, namespace="n")))
        stats = await ds.stats()
        kinds = {(each["namespace"], each["kind"]): each for each in stats["kinds"]}
        assert {place: each["entities"] for place, each in kinds.items()} == {
            ("", "K"): 7, ("", "J"): 2, ("n", "K"): 1,
        }  # fmt: skip
        assert kinds["", "K"]["index_rows"] == 7 * 4
        assert kinds["", "K"]["bytes"] > 0
        assert stats["version"] > 0

    async def test_check_finds_a_missing_index_row(self, connect: Connect, side_door: SideDoor) -> None:
        """Removed behind the adapter's back."""
        async with connect() as ds:
            await ds.put(numbered("K", 5))
            assert await ds.check() == []
            side_door.drop_index_row()
            assert len(await ds.check()) == 1

    async def test_damaged_entities_are_named(self, connect: Connect, side_door: SideDoor) -> None:
        """Not taken for data; the others can be read."""
        async with connect() as ds:
            self.needs(ds, Capability.CURRENT_READS)
            await ds.put(numbered("K", 3))
            side_door.damage_payload(side_door.entity_keys()[1])
            with pytest.raises(CorruptDataError):
                await ds.get(Key("K", 2))
            with pytest.raises(CorruptDataError):
                await ds.query("K").fetch()
            assert await ds.get(Key("K", 1)) is not None
            assert await ds.check() != []
