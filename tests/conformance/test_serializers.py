"""Serializers on every engine: what a store's header says, and that nothing written before is lost."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from cryptography.fernet import Fernet

from aiodatastore import CorruptDataError, Datastore, Entity, FormatVersionError, Key, Text
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.engine.header import FORMAT_KEY
from aiodatastore.serializers import FernetStep, FunctionSerializer, JSONSerializer, MsgpackSerializer, Stack, ZstdStep
from tests.engines import Place, PostgresDoor, engines

pytestmark = [pytest.mark.anyio, engines(durable=True)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def stdjson() -> FunctionSerializer:
    return FunctionSerializer(json.dumps, json.loads, name="stdjson")


async def header(ds: Datastore) -> str:
    assert isinstance(ds.adapter, EngineAdapter)
    record = (await ds.adapter.store.read([FORMAT_KEY])).records[0]
    assert record is not None
    return record.payload.decode()


def person(number: int) -> Entity:
    return Entity(Key("Person", number), {"n": number, "tags": ["a", "b"], "text": Text("long " * 100)})


async def all_are_there(ds: Datastore, count: int) -> None:
    expected = [person(number) for number in range(1, count + 1)]
    assert await ds.get([entity.key for entity in expected]) == expected
    assert await ds.query("Person").order("-n").fetch(100) == expected[::-1]
    assert await ds.query("Person").filter("tags", "=", "a").count() == count
    assert await ds.check() == []


async def test_each_writes_and_reads_what_those_before_it_wrote(place: Place, engine: Any) -> None:
    key = Fernet.generate_key()
    written = ["pretty"] if engine.name == "file" else ["msgpack"]
    chosen: list[Any] = [
        None,
        "json",
        "msgpack+zstd",
        stdjson(),
        Stack(stdjson(), ZstdStep(), FernetStep(key)),
        Stack(stdjson(), FernetStep(key)),
    ]
    for number, serializer in enumerate(chosen, 1):
        async with place.connect(**({} if serializer is None else {"serializer": serializer})) as ds:
            name = ds.adapter.serializer.name  # type: ignore[attr-defined]
            written = [name, *[other for other in written if other != name]]
            expected = "1" if written == ["msgpack"] else "1 " + ",".join(written)
            assert await header(ds) == expected
            await ds.put(person(number))
            await all_are_there(ds, number)
            # What another one wrote is overwritten: its index rows go.
            await ds.put(Entity(Key("Person", 1), {**person(1), "tags": ["c"]}))
            assert await ds.query("Person").filter("tags", "=", "a").count() == number - 1
            await ds.put(person(1))
    async with place.connect(serializer=Stack(stdjson(), FernetStep(Fernet.generate_key()))) as ds:
        with pytest.raises(CorruptDataError, match="none of the keys given opens it"):
            await ds.get(Key("Person", 6))


async def test_what_cannot_be_read_is_not_opened(place: Place, engine: Any) -> None:
    fernet = FernetStep(Fernet.generate_key())
    async with place.connect(serializer=Stack(MsgpackSerializer(), fernet)) as ds:
        await ds.put(person(1))
        before = await header(ds)
    for wrong in (MsgpackSerializer(), "json", stdjson()):
        with pytest.raises(FormatVersionError, match=r"payloads that serializer 'msgpack\+fernet' wrote, which"):
            await place.connect(serializer=wrong).open()
    with pytest.raises(FormatVersionError, match=r"serializer 'msgpack\+fernet'"):
        await place.connect().open()
    async with place.connect(serializer=Stack(JSONSerializer(), fernet)) as ds:
        await all_are_there(ds, 1)
        assert before == "1 msgpack+fernet"
        assert await header(ds) == "1 json+fernet,msgpack+fernet"


async def test_without_being_told_a_store_is_written_as_it_was(place: Place, engine: Any) -> None:
    if engine.name == "file":
        pytest.skip("files are written as the URL says, by default as JSON")
    async with place.connect(serializer="json+zstd") as ds:
        await ds.put(person(1))
    async with place.connect() as ds:
        assert ds.adapter.serializer.name == "json+zstd"  # type: ignore[attr-defined]
        await ds.put(person(2))
        await all_are_there(ds, 2)
        assert await header(ds) == "1 json+zstd"


async def test_what_is_only_read_keeps_its_header(place: Place, engine: Any) -> None:
    if engine.name == "redis":
        pytest.skip("redis:// has no read_only")
    async with place.connect() as ds:
        await ds.put(person(1))
        before = await header(ds)
    async with place.connect(serializer="json+zstd", read_only=True) as ds:
        await all_are_there(ds, 1)
        assert await header(ds) == before


async def test_two_who_open_at_once_with_different_serializers_are_both_in_the_header(
    place: Place, engine: Any
) -> None:
    if not engine.engine.connections:
        pytest.skip("one connection a store")
    async with place.connect():
        pass
    stores = [place.connect(serializer=chosen) for chosen in ("json", "pretty", "msgpack+zstd")]
    async with anyio.create_task_group() as group:
        for ds in stores:
            group.start_soon(ds.open)
    try:
        names = (await header(stores[0])).removeprefix("1 ").split(",")
        assert sorted(names) == ["json", "msgpack", "msgpack+zstd", "pretty"]
        for number, ds in enumerate(stores, 1):
            await ds.put(person(number))
        for ds in stores:
            await all_are_there(ds, 3)
    finally:
        for ds in stores:
            await ds.aclose()


class Bare:
    """A serializer of somebody's own, with nothing but the two methods."""

    def dumps(self, entity: Entity) -> bytes:
        return b"B" + MsgpackSerializer().dumps(entity)

    def loads(self, key: Key, payload: bytes, version: int) -> Entity:
        return MsgpackSerializer().loads(key, payload[1:], version)


async def test_a_serializer_of_ones_own_is_named_by_its_class(place: Place) -> None:
    async with place.connect(serializer=Bare()) as ds:
        await ds.put(person(1))
        assert await header(ds) == "1 Bare"
        await all_are_there(ds, 1)
    with pytest.raises(FormatVersionError, match="'Bare'"):
        await place.connect().open()
    async with place.connect(serializer=Bare()) as ds:
        await all_are_there(ds, 1)


async def test_views_of_postgres_show_no_properties_of_others(place: Place) -> None:
    if not isinstance(place.door, PostgresDoor):
        pytest.skip("a store without SQL views")
    for number, serializer in enumerate(("msgpack", "json", "msgpack+zstd", stdjson()), 1):
        async with place.connect(serializer=serializer) as ds:
            await ds.put(person(number))
    for source in ("SCHEMA.entities_json WHERE kind = 'Person'", "SCHEMA.entities_of('Person')"):
        rows = place.door._run(f"SELECT key, properties->>'n', unindexed::text FROM {source}")
        assert sorted(tuple(row) for row in rows if row[1]) == [("/Person:1", "1", "[]")]
        assert sorted(row[0] for row in rows if row[1] is None and row[2] is None) == [
            "/Person:2",
            "/Person:3",
            "/Person:4",
        ]
