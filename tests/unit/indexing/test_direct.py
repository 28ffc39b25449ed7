"""First pages that are one scan: the same as what the stages give, page by page."""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from aiodatastore import Entity, Key, Query
from aiodatastore.adapters.base import Page, RunOptions
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.engine.core import Planned
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.bound_query import BoundQuery
from aiodatastore.datastore import Datastore
from aiodatastore.errors import CorruptDataError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.indexing.normal import cursor_at
from aiodatastore.serializers import JSONSerializer, MsgpackSerializer
from aiodatastore.serializers.packed import load_all

pytestmark = pytest.mark.anyio

NUMBER = 150
DIRECT = {
    "kind": Query("Thing"),
    "equal": Query("Thing").filter("group", "=", 1),
    "range": Query("Thing").filter("size", ">=", 20).filter("size", "<", 90),
    "order": Query("Thing").order("size"),
    "backward": Query("Thing").order("-size", "-__key__"),
    "kind backward": Query("Thing").order("-__key__"),
    "composite": Query("Thing").filter("group", "=", 2).order("-size"),
    "keys": Query("Thing").filter("group", "=", 0).keys_only(),
    "nothing": Query("Thing").filter("group", "=", 77),
    "below, by an index of its own": Query("Thing", ancestor=Key("Thing", 7)).order("-odd"),
    "lists that no other row leads to": Query("Thing").filter("tags", "=", "b"),
}
BY_STAGES = {
    "turned groups": Query("Thing").order("-size"),
    "two spans": Query("Thing").filter("group", "=", 1).filter("odd", "=", True),
    "below": Query("Thing", ancestor=Key("Thing", 7)).order("size"),
    "in": Query("Thing").filter("group", "in", [1, 2]),
    "projection": Query("Thing").project("size"),
    "filtered": Query("Thing").filter("odd", "=", True).order("size"),
}


def _thing(number: int) -> Entity:
    values = {"group": number % 3, "size": number * 7 % 100, "odd": number % 2 == 1, "tags": ["a", "b", "c"]}
    return Entity(Key("Thing", number + 1), values)


async def _pages(adapter: EngineAdapter, query: Query, options: RunOptions) -> tuple[list[Page], Any]:
    stream = adapter.run(query, options)
    pages = [await stream.next_page()]
    while pages[-1].more:
        pages.append(await stream.next_page())
    return pages, stream.explain()


def _without_direct(adapter: EngineAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = adapter.plan

    def without(query: Query) -> Planned:
        planned = copy.copy(plan(query))
        planned.direct = None
        return planned

    monkeypatch.setattr(adapter, "plan", without)


async def _check_the_stages_give_the_same(
    adapter: EngineAdapter, query: Query, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, explained = await _pages(adapter, query, options)
    with monkeypatch.context() as patch:
        _without_direct(adapter, patch)
        expected, expected_explained = await _pages(adapter, query, options)
    assert pages == expected
    assert str(explained) == str(expected_explained)


@pytest.fixture
async def ds() -> AsyncIterator[Datastore]:
    async with Datastore(EngineAdapter(MemoryRowStore())) as datastore:
        await datastore.create_index(IndexDefinition("Thing", (("group", "asc"), ("size", "desc"))))
        await datastore.create_index(IndexDefinition("Thing", (("odd", "desc"),), ancestor=True))
        below = [Entity(Key("Thing", 7, "Thing", number), {"odd": number % 3}) for number in range(1, 50)]
        await datastore.put([_thing(number) for number in range(NUMBER)] + below)
        yield datastore


@pytest.mark.parametrize("name", [*DIRECT, *BY_STAGES])
async def test_first_pages_are_what_the_stages_give(ds: Datastore, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = ds.adapter
    assert isinstance(adapter, EngineAdapter)
    whole = {**DIRECT, **BY_STAGES}[name]
    assert (adapter.plan(whole).direct is not None) is (name in DIRECT)
    for limit, page_size, track in itertools.product((None, 1, 20, 600), (None, 7), (False, True)):
        query = whole.limit(limit)
        options = RunOptions(track=track, positions=True, page_size=page_size)
        await _check_the_stages_give_the_same(adapter, query, options, monkeypatch)


@pytest.mark.parametrize("name", [*DIRECT, *BY_STAGES])
async def test_pages_after_cursors_are_what_the_stages_give(
    ds: Datastore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = ds.adapter
    assert isinstance(adapter, EngineAdapter)
    whole = {**DIRECT, **BY_STAGES}[name]
    [page], _ = await _pages(adapter, whole, RunOptions(page_size=1000, positions=True))
    places = page.positions or []
    reverse = whole.reversed()
    for place in [*places[:3], *places[40:43], *places[-3:]]:
        cursor = cursor_at(whole, place)
        for query in (whole.start(cursor), whole.start(cursor).limit(5), reverse.start(cursor), reverse.end(cursor)):
            options = RunOptions(page_size=30, positions=True)
            await _check_the_stages_give_the_same(adapter, query, options, monkeypatch)


@pytest.mark.parametrize("way", ["direct", "by stages"])
async def test_a_cursor_may_lie_outside_of_the_span(ds: Datastore, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one that was made by hand does; it must not lead to rows that are no results."""
    if way == "by stages":
        assert isinstance(ds.adapter, EngineAdapter)
        _without_direct(ds.adapter, monkeypatch)

    def sizes(number: int, above: int) -> BoundQuery:
        return ds.query("Thing").filter("group", "=", number).filter("size", "<", above).order("-size", "-__key__")

    for of in (20, 50, 99):
        cursor = replace((await sizes(1, of).page(3)).cursor, shape=sizes(2, 60).query.shape)
        every = await sizes(2, 60).fetch()
        first = (await sizes(1, of).fetch(3))[-1]
        place = first["size"], first.key
        later = [entity for entity in every if (entity["size"], entity.key) < place]
        assert (await sizes(2, 60).page(1000, cursor)).entities == later


async def test_entities_with_several_rows_are_left_to_the_stages(ds: Datastore) -> None:
    found = await ds.query("Thing").order("tags").keys_only().fetch()
    assert found == [Key("Thing", number + 1) for number in range(NUMBER)]


async def test_a_direct_page_takes_one_scan_and_builds_no_stages(
    ds: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("stages were built")

    monkeypatch.setattr("aiodatastore.adapters.engine.streams.QueryRun", refuse)
    found = await ds.query(DIRECT["composite"]).limit(20).fetch()
    sizes = [entity["size"] for entity in found]
    assert len(sizes) == 20
    assert sizes == sorted(sizes, reverse=True)


def test_many_payloads_are_read_as_each_is() -> None:
    serializer = MsgpackSerializer()
    entities = [_thing(number) for number in range(3)] + [Entity(Key("Thing", 9), {"x": 1}, unindexed=["x"])]
    found = [(entity.key, serializer.dumps(entity), version) for version, entity in enumerate(entities, 1)]
    found.append((Key("Thing", 10), JSONSerializer().dumps(entities[0]), 7))  # written by another one
    read = load_all(serializer, found)
    assert read == [serializer.loads(*each) for each in found]
    assert [entity.version for entity in read] == [1, 2, 3, 4, 7]
    assert read[3].unindexed == {"x"}
    for damaged in (b"", b"\x01", b"\x01\x90", b"\x07"):
        with pytest.raises(CorruptDataError, match="can't be read"):
            load_all(serializer, [(Key("Thing", 1), damaged, 1)])
    assert load_all(JSONSerializer(), found[-1:]) == [JSONSerializer().loads(*found[-1])]
