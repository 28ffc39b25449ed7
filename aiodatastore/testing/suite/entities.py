"""Entities: what goes in comes out, equal, of the same type, in order, and nothing else changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest
from hypothesis import strategies as st

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadKeyError,
    BadPropertyError,
    BadRequestError,
    BadValueError,
    ConflictError,
    DatastoreError,
    EntityExistsError,
    EntityNotFoundError,
    StoreClosedError,
    UnsupportedError,
)
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.testing import strategies
from aiodatastore.testing.suite.base import Connect, SideDoor, StoreTests, assert_same, examples, gather, numbered
from aiodatastore.values import Blob, Text

__all__ = ["EntityTests"]


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"end": [1, "x"]}
    for _ in range(depth - 1):
        value = {"in": value}
    return value


SHAPES: dict[str, Any] = {
    "empty list": [],
    "list of each": list(strategies.LOOK_ALIKES),
    "equal elements": [1, 1, True, 1.0, 1],
    "text between": ["a", Text("b"), "c", Blob(b"d"), Text("")],
    "long text": Text("ü" * 500_000),
    "long blob": Blob(bytes(range(256)) * 4000),
    "dict": {"a": 1, "b": {"c": [None, {"d": Text("x")}]}, "é\x00": b""},
    "empty dict": {},
    "deep": nested(20),
    "list of dicts": [{"a": 1}, {}, {"a": [2, 3]}],
    "entity": Entity(Key("E", 1, namespace="n"), {"a": [1, Text("x")], "b": {"c": 2}}, unindexed=["a"]),
    "entity without id": Entity(Key("E"), {"a": 1}),
}


class EntityTests(StoreTests):
    """``get put insert update delete get_or_insert allocate_ids`` and what they promise."""

    # ------------------------------------------------------------------------------- round trips

    async def test_every_value_comes_back_equal_and_of_its_type(self, ds: Datastore) -> None:
        """Each value by itself, indexed and not."""
        entities = [
            Entity(Key("V", place + 1), {"x": value, "y": value}, unindexed=["y"])
            for place, value in enumerate(strategies.LOOK_ALIKES)
        ]
        await ds.put(entities)
        assert_same(entities, await ds.get([entity.key for entity in entities]))

    @pytest.mark.parametrize("shape", SHAPES)
    async def test_every_shape_comes_back(self, ds: Datastore, shape: str) -> None:
        """Lists, long and embedded values."""
        entity = Entity(Key("V", shape), {"x": SHAPES[shape]})
        await ds.put(entity)
        assert_same(entity, await ds.get(entity.key))

    @examples(60, batch=st.lists(strategies.entities(), min_size=1, max_size=4, unique_by=lambda entity: entity.key))
    async def test_random_entities_come_back(self, ds: Datastore, batch: list[Entity]) -> None:
        """Entities of any shape under any key."""
        self.needs(ds, Capability.EXACT_KEYS)
        before = [entity.copy() for entity in batch]
        await ds.put(batch)
        found = await ds.get([entity.key for entity in batch])
        for entity in before:
            for name, value in entity.items():
                entity[name] = _utc(value)
        assert_same(before, found)
        await ds.delete(batch)

    async def test_times_come_back_in_utc(self, ds: Datastore) -> None:
        """To the microsecond, whatever zone they were given in."""
        zone = timezone(timedelta(hours=5, minutes=45))
        given_time = datetime(2024, 2, 29, 3, 0, 0, 123457, tzinfo=zone)
        await ds.put(Entity(Key("V", 1), {"x": given_time}))
        found = (await _get(ds, Key("V", 1)))["x"]
        assert found == given_time
        assert found.tzinfo is UTC

    async def test_properties_keep_their_order(self, ds: Datastore) -> None:
        """An entity is a dict: names come back as they were set."""
        names = ["z", "a", "m", "b"]
        await ds.put(Entity(Key("V", 1), dict.fromkeys(names, 0)))
        assert list(await _get(ds, Key("V", 1))) == names

    async def test_property_names_that_look_alike(self, ds: Datastore) -> None:
        """All of them in one entity."""
        self.needs(ds, Capability.QUERIES)
        names = [name for name in strategies.LOOK_ALIKE_NAMES if len(name.encode()) <= 1500]
        entity = Entity(Key("V", 1), {name: place for place, name in enumerate(names)})
        await ds.put(entity)
        assert_same(entity, await ds.get(entity.key))
        for place, name in enumerate(names):
            assert await ds.query("V").filter(name, "=", place).keys() == [entity.key], repr(name)

    async def test_keys_that_look_alike_are_different_entities(self, ds: Datastore) -> None:
        """As kinds, as names, as parents, across namespaces; deleting one leaves the others."""
        self.needs(ds, Capability.EXACT_KEYS)
        keys = [Key("K", name) for name in strategies.LOOK_ALIKE_NAMES]
        keys += [Key(name, 1) for name in strategies.LOOK_ALIKE_NAMES if len(name.encode()) <= 1500]
        keys += [Key("P", name, "K", 1) for name in strategies.LOOK_ALIKE_NAMES]
        keys += [Key("K", 1), Key("K", 10), Key("K", 2**62), Key("K", 1, "K", 1), Key("K", 1, namespace="n")]
        keys += [Key("K", 1, namespace="n.1"), Key("K", 1, namespace="N"), Key("K", 1, project="p")]
        assert len(set(keys)) == len(keys)
        entities = [Entity(key, {"n": place}) for place, key in enumerate(keys)]
        await ds.put(entities)
        assert_same(entities, await ds.get(keys))
        for place in range(0, len(keys), 7):
            await ds.delete(keys[place])
            assert await ds.get(keys[place]) is None
        left = [None if place % 7 == 0 else entity for place, entity in enumerate(entities)]
        assert_same(left, await ds.get(keys))

    async def test_the_store_holds_what_was_put_and_no_more(self, ds: Datastore, side_door: SideDoor) -> None:
        """Seen by the side door: one row an entity, none after deletion."""
        from aiodatastore.indexing.encoding import encode_key

        entities = numbered("K", 20)
        await ds.put(entities)
        assert side_door.entity_keys() == sorted(encode_key(entity.key) for entity in entities)
        assert side_door.index_row_count() == 40  # the kind's and the property's
        await ds.put([Entity(entity.key) for entity in entities])
        assert side_door.index_row_count() == 20
        await ds.delete(entities)
        assert side_door.entity_keys() == []
        assert side_door.index_row_count() == 0

    # ----------------------------------------------------------------------------- one and many

    async def test_get_keeps_order_and_shows_what_is_missing(self, ds: Datastore) -> None:
        """Duplicates, too."""
        await ds.put(numbered("K", 3))
        keys = [Key("K", 3), Key("K", 9), Key("K", 1), Key("K", 3)]
        found = await ds.get(keys)
        assert [None if entity is None else entity["n"] for entity in found] == [3, None, 1, 3]
        assert found[0] is not found[3]
        assert await ds.get([]) == []
        assert await ds.get(Key("K", 9)) is None

    async def test_other_forms_of_arguments(self, ds: Datastore) -> None:
        """Entities and key strings where keys are taken."""
        entity = Entity(Key("K", "a", "C", 2, namespace="n"), {"x": 1})
        assert await ds.put(entity) == entity.key
        assert_same(entity, await ds.get(entity.key.to_urlsafe()))
        await ds.delete(entity.key.to_urlsafe())
        assert await ds.get(entity.key) is None
        await ds.put(entity)
        await ds.delete([entity])
        assert await ds.get([entity.key]) == [None]

    async def test_batches_of_any_size(self, ds: Datastore) -> None:
        """More than any one statement, page or round trip takes."""
        entities = numbered("K", 2500)
        keys = await ds.put(entities)
        assert keys == [entity.key for entity in entities]
        found = await ds.get(list(reversed(keys)))
        assert [entity["n"] for entity in found if entity] == list(range(2500, 0, -1))
        await ds.delete(keys)
        assert set(await ds.get(keys)) == {None}

    async def test_put_replaces_the_whole_entity(self, ds: Datastore) -> None:
        """Nothing of the first remains, in indexes either."""
        self.needs(ds, Capability.QUERIES)
        key = Key("K", 1)
        await ds.put(Entity(key, {"a": 1, "b": [1, 2]}))
        await ds.put(Entity(key, {"b": [2, 3]}, unindexed=[]))
        assert await ds.get(key) == Entity(key, {"b": [2, 3]})
        assert await ds.query("K").filter("a", "=", 1).keys() == []
        assert await ds.query("K").filter("b", "=", 1).keys() == []
        assert await ds.query("K").filter("b", "=", 2).keys() == [key]

    async def test_delete_of_what_is_absent_is_allowed(self, ds: Datastore) -> None:
        """Twice, too."""
        await ds.delete(Key("K", 1))
        await ds.delete([Key("K", 1), Key("K", 2)])

    async def test_nothing_is_shared_with_the_caller(self, ds: Datastore) -> None:
        """Neither what was put nor what was read."""
        entity = Entity(Key("K", 1), {"x": [1], "d": {"e": [1]}})
        await ds.put(entity)
        entity["x"].append(2)
        entity["d"]["e"].append(2)
        first, second = await _get(ds, entity.key), await _get(ds, entity.key)
        assert first["x"] == [1]
        assert first["d"] == {"e": [1]}
        first["x"].append(3)
        first["d"]["e"].append(3)
        assert second == await ds.get(entity.key) == Entity(entity.key, {"x": [1], "d": {"e": [1]}})
        if Capability.QUERIES in ds.capabilities:
            (queried,) = await ds.query("K").fetch()
            queried["x"].append(4)
            assert (await _get(ds, entity.key))["x"] == [1]

    # ----------------------------------------------------------------------------------- versions

    async def test_versions_rise_with_every_write(self, ds: Datastore) -> None:
        """And the caller's entity knows its own."""
        entity = Entity(Key("K", 1), {"x": 1})
        assert (entity.version, entity.is_saved) == (0, False)
        await ds.put(entity)
        first = entity.version
        assert entity.is_saved
        assert (await _get(ds, entity.key)).version == first > 0
        await ds.put(entity)
        assert entity.version > first
        stranger = Entity(Key("Other", 1))
        await ds.put(stranger)
        assert stranger.version > (entity.version if Capability.ONE_CLOCK in ds.capabilities else 0)

    async def test_put_if_version(self, ds: Datastore) -> None:
        """Writes only over the version given; 0 is absence."""
        entity = Entity(Key("K", 1), {"x": 1})
        await ds.put(entity, if_version=0)
        seen = entity.version
        with pytest.raises(ConflictError) as caught:
            await ds.put(Entity(entity.key, {"x": 9}), if_version=0)
        assert (caught.value.key, caught.value.expected, caught.value.actual) == (entity.key, 0, seen)
        entity["x"] = 2
        await ds.put(entity, if_version=seen)
        with pytest.raises(ConflictError):
            await ds.put(Entity(entity.key, {"x": 9}), if_version=seen)
        assert (await _get(ds, entity.key))["x"] == 2

    async def test_delete_if_version(self, ds: Datastore) -> None:
        """Deletes only the version given."""
        entity = Entity(Key("K", 1))
        await ds.put(entity)
        with pytest.raises(ConflictError):
            await ds.delete(entity.key, if_version=entity.version + 1)
        await ds.delete(entity.key, if_version=entity.version)
        assert await ds.get(entity.key) is None
        with pytest.raises(ConflictError):
            await ds.delete(entity.key, if_version=entity.version)

    async def test_insert(self, ds: Datastore) -> None:
        """Fails, whole, where one exists."""
        entity = Entity(Key("K", 1), {"x": 1})
        assert await ds.insert(entity) == entity.key
        child = entity.key.child("K", 2)  # in one list with its parent: of one entity group
        with pytest.raises(EntityExistsError) as caught:
            await ds.insert([Entity(child), Entity(Key("K", 1), {"x": 2})])
        assert caught.value.key == entity.key
        assert await ds.get([Key("K", 1), child]) == [entity, None]

    async def test_update(self, ds: Datastore) -> None:
        """Fails, whole, where one is missing."""
        await ds.put(Entity(Key("K", 1), {"x": 1}))
        await ds.update(Entity(Key("K", 1), {"x": 2}))
        child = Key("K", 1, "K", 2)
        with pytest.raises(EntityNotFoundError) as caught:
            await ds.update([Entity(Key("K", 1), {"x": 3}), Entity(child)])
        assert caught.value.key == child
        assert await ds.get([Key("K", 1), child]) == [Entity(Key("K", 1), {"x": 2}), None]

    async def test_get_or_insert(self, ds: Datastore) -> None:
        """The first one's properties stay."""
        first = await ds.get_or_insert(Key("K", 1), {"x": 1})
        again = await ds.get_or_insert(Key("K", 1), {"x": 2})
        assert first == again == await ds.get(Key("K", 1)) == Entity(Key("K", 1), {"x": 1})

    # ------------------------------------------------------------------------------------- expiry

    async def test_entities_expire(self, ds: Datastore) -> None:
        """With everything that leads to them; those put again without a ``ttl`` stay, and so do their neighbours."""
        self.needs(ds, Capability.TTL)
        passing, kept, renewed, together = numbered("K", 4, tags=["a", "b"])
        since = anyio.current_time()
        await ds.put([passing, renewed], ttl=1)
        await ds.put(kept)
        await ds.put(Entity(renewed.key, {"n": 0}))
        async with ds.transaction():
            await ds.put(together, ttl=1)
        found = await ds.get([passing.key, together.key])
        if anyio.current_time() < since + 1:
            assert_same([passing, together], found)
        with anyio.fail_after(60):
            while await ds.get([passing.key, together.key]) != [None, None]:  # noqa: ASYNC110  # of the store
                await anyio.sleep(0.1)
        assert anyio.current_time() >= since + 0.9
        assert_same([None, kept], await ds.get([passing.key, kept.key]))
        if Capability.QUERIES in ds.capabilities:
            assert await ds.query("K").order("n").keys() == [renewed.key, kept.key]
            assert await ds.query("K").filter("tags", "=", "a").count() == 1
        await ds.insert(passing)
        assert_same(passing, await ds.get(passing.key))

    async def test_a_ttl_is_refused_where_entities_stay(self, ds: Datastore) -> None:
        """Nothing is written; nor is it with one that is no time."""
        for ttl in (0, -1, float("inf"), True, "1"):
            with pytest.raises(BadArgumentError):
                await ds.put(Entity(Key("K", 1)), ttl=ttl)  # type: ignore[arg-type]  # that is the point
        if Capability.TTL not in ds.capabilities:
            with pytest.raises(UnsupportedError, match="ttl"):
                await ds.put(Entity(Key("K", 1)), ttl=1)
        assert await ds.get(Key("K", 1)) is None

    # ---------------------------------------------------------------------------------------- ids

    async def test_incomplete_keys_are_completed(self, ds: Datastore) -> None:
        """The caller's entity gets the key, different for each."""
        entities = [Entity(Key("P", "ada", "K"), {"n": number}) for number in range(50)]
        keys = await ds.put(entities)
        assert [entity.key for entity in entities] == keys
        assert len(set(keys)) == 50
        assert all(key.is_complete and key.parent == Key("P", "ada") and key.kind == "K" for key in keys)
        assert_same(entities, await ds.get(keys))

    async def test_allocated_ids_are_never_given_out(self, ds: Datastore) -> None:
        """Ranges are inclusive and disjoint; automatic ids stay outside."""
        taken: set[int] = set()
        for size in (1, 10, 1, 500):
            first, last = await ds.allocate_ids(Key("K"), size)
            assert last - first + 1 == size
            assert taken.isdisjoint(range(first, last + 1))
            taken.update(range(first, last + 1))
            keys = await ds.put([Entity(Key("K")) for _ in range(5)])
            assert taken.isdisjoint(key.id for key in keys)
            taken.update(key.id or 0 for key in keys)

    async def test_ids_up_to_a_maximum_are_reserved(self, ds: Datastore) -> None:
        """Once; what is left of the range, then nothing."""
        first, last = await ds.allocate_ids(Key("K"), max=1000)
        assert last == 1000
        assert 1 <= first <= 1000
        again_first, again_last = await ds.allocate_ids(Key("K"), max=900)
        assert again_last < again_first
        keys = await ds.put([Entity(Key("K")) for _ in range(5)])
        assert all(not first <= (key.id or 0) <= last for key in keys)

    async def test_automatic_ids_avoid_explicit_ones(self, ds: Datastore) -> None:
        """Whoever took an id by hand keeps it."""
        _, last = await ds.allocate_ids(Key("K"), 1)
        explicit = [Entity(Key("K", last + step), {"by": "hand"}) for step in range(1, 40)]
        await ds.put(explicit)
        keys = await ds.put([Entity(Key("K"), {"by": "machine"}) for _ in range(60)])
        assert not {entity.key for entity in explicit} & set(keys)
        assert all(entity and entity["by"] == "hand" for entity in await ds.get([e.key for e in explicit]))
        assert len(set(keys)) == 60

    async def test_side_by_side_ids_are_all_different(self, ds: Datastore) -> None:
        """Among tasks."""

        async def one() -> Any:
            return await ds.put(Entity(Key("K")))

        keys = await gather([one] * 100)
        assert len(set(keys)) == 100
        assert None not in await ds.get([key for key in keys if isinstance(key, Key)])

    # --------------------------------------------------------------------------------- refusals

    @pytest.mark.parametrize(
        ("value", "error"),
        [
            (datetime(2020, 1, 1), BadValueError),
            (2**63, BadValueError),
            ((1, 2), BadValueError),
            ({1}, BadValueError),
            (object(), BadValueError),
            ([[1]], BadValueError),
            (Key("K"), BadValueError),
            (nested(21), BadValueError),
            ("x" * 1501, BadRequestError),
            (b"x" * 1501, BadRequestError),
            ("\ud800", BadRequestError),
            (Text("x" * 1_048_488), BadRequestError),
        ],
    )
    async def test_wrong_values_are_refused_by_name(
        self, ds: Datastore, value: Any, error: type[DatastoreError]
    ) -> None:
        """Before anything of the batch is stored."""
        with pytest.raises(error, match="size"):
            await ds.put([Entity(Key("K", 1), {"ok": 1}), Entity(Key("K", 2), {"size": value})])
        assert await ds.get(Key("K", 1)) is None

    async def test_wrong_names_are_refused(self, ds: Datastore) -> None:
        """Of properties."""
        for name, error in (("", BadPropertyError), ("__x__", BadRequestError), ("x" * 1501, BadPropertyError)):
            with pytest.raises(error):
                await ds.put(Entity(Key("K", 1), {name: 1}))

    async def test_incomplete_keys_are_refused_where_one_is_needed(self, ds: Datastore) -> None:
        """In get and delete."""
        for call in (ds.get, ds.delete):
            with pytest.raises((BadKeyError, BadRequestError)):
                await call(Key("K"))

    async def test_too_many_index_rows_are_refused_by_name(self, ds: Datastore) -> None:
        """20,000 is the limit; unindexed they are fine."""
        many = list(range(20_001))
        with pytest.raises(BadRequestError, match="many"):
            await ds.put(Entity(Key("K", 1), {"many": many, "few": 1}))
        assert await ds.get(Key("K", 1)) is None
        await ds.put(Entity(Key("K", 1), {"many": many, "few": 1}, unindexed=["many"]))
        assert len((await _get(ds, Key("K", 1)))["many"]) == 20_001
        await ds.put(Entity(Key("K", 2), {"many": many[:19_000]}))
        if Capability.QUERIES in ds.capabilities:
            assert await ds.query("K").filter("many", "=", 18_999).keys() == [Key("K", 2)]

    async def test_a_closed_datastore_says_so(self, connect: Connect) -> None:
        """Before open and after close."""
        closed = connect()
        with pytest.raises(StoreClosedError):
            await closed.get(Key("K", 1))
        async with closed:
            pass
        for call in (closed.get(Key("K", 1)), closed.put(Entity(Key("K", 1))), closed.query("K").fetch()):
            with pytest.raises(StoreClosedError):
                await call
        await closed.aclose()

    # -------------------------------------------------------------------------- other connections

    async def test_what_is_stored_stays(self, connect: Connect, ds: Datastore) -> None:
        """Closed and opened again."""
        if Capability.DURABLE not in ds.capabilities:
            pytest.skip("the adapter does not promise to keep what it holds")
        entities = numbered("K", 30, tags=["a", "b"])
        await ds.put(entities)
        key = await ds.put(Entity(Key("K")))
        await ds.aclose()
        async with connect() as again:
            assert_same(entities, await again.get([entity.key for entity in entities]))
            if Capability.QUERIES in ds.capabilities:
                assert await again.query("K").filter("tags", "=", "b").count() == 30
            assert await again.put(Entity(Key("K"))) != key
            assert await again.check() == []
        await ds.open()

    async def test_a_second_connection_sees_the_same(self, ds: Datastore, other: Datastore) -> None:
        """At once, in both directions; versions and ids do not collide."""
        self.needs(ds, Capability.CURRENT_READS)
        one, two = Entity(Key("K", 1), {"x": 1}), Entity(Key("K", 1), {"x": 2})
        await ds.put(one)
        assert_same(one, await other.get(one.key))
        await other.put(two)
        assert_same(two, await ds.get(one.key))
        assert two.version > one.version
        with pytest.raises(ConflictError):
            await ds.put(one, if_version=one.version)
        keys = [await each.put(Entity(Key("K"))) for each in (ds, other, ds, other)]
        assert len(set(keys)) == 4


async def _get(ds: Datastore, key: Key) -> Entity:
    entity: Entity | None = await ds.get(key)
    assert entity is not None
    return entity


def _utc(value: Any) -> Any:
    """Times in UTC, as they come back."""
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    if isinstance(value, list):
        return [_utc(item) for item in value]
    if isinstance(value, Entity):
        return Entity(value.key, {name: _utc(item) for name, item in value.items()}, unindexed=value.unindexed)
    if isinstance(value, dict):
        return {name: _utc(item) for name, item in value.items()}
    return value
