"""Plans read what they should, and no more; budgets and index rules hold; everything agrees with the naive model.

The results themselves are compared with golden cases and the naive model elsewhere; here it is *how* they come.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiodatastore.adapters.base import Aggregation, Commit, Delete, Page, Put, ResultStream, RunOptions
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.cursor import Cursor
from aiodatastore.entity import Entity
from aiodatastore.errors import BadCursorError, BadRequestError, NeedIndexError
from aiodatastore.indexing import execution
from aiodatastore.indexing.definitions import IndexDefinition, IndexState
from aiodatastore.indexing.encoding import encode_value
from aiodatastore.indexing.normal import normalize
from aiodatastore.key import Key
from aiodatastore.query import Or, PropertyFilter, Query
from aiodatastore.rowstore import RowBatch, RowCommit, Space, Span
from aiodatastore.testing.model import Model
from aiodatastore.testing.strategies import World

pytestmark = pytest.mark.anyio

WORLD = World()


@asynccontextmanager
async def store(entities: Iterable[Entity] = (), **options: Any) -> AsyncIterator[EngineAdapter]:
    adapter = EngineAdapter(MemoryRowStore(), **options)
    await adapter.open()
    try:
        await put(adapter, entities)
        yield adapter
    finally:
        await adapter.aclose()


async def put(adapter: EngineAdapter, entities: Iterable[Entity]) -> None:
    outcomes = await adapter.commit([Commit(writes=[Put(entity.snapshot())]) for entity in entities])
    assert all(outcome.committed for outcome in outcomes)


async def pages(stream: ResultStream) -> list[Page]:
    found = [await stream.next_page()]
    while found[-1].more:
        found.append(await stream.next_page())
    return found


async def results(adapter: EngineAdapter, query: Query) -> list[Any]:
    return [result for page in await pages(adapter.run(query)) for result in page.results]


async def build(adapter: EngineAdapter, kind: str, *names: str, ancestor: bool = False) -> IndexDefinition:
    columns = tuple((name.lstrip("-"), "desc" if name.startswith("-") else "asc") for name in names)
    definition = IndexDefinition(kind, columns, ancestor)
    await adapter.create_index(definition)
    info = await adapter.build_index(definition)
    assert info.state is IndexState.SERVING
    return definition


def numbered(count: int) -> list[Entity]:
    """Entities 1…count: ``n`` the number, ``tens`` and ``parity`` of it."""
    return [Entity(Key("T", n), {"n": n, "tens": n // 10, "parity": n % 2}) for n in range(1, count + 1)]


async def test_a_limited_query_reads_its_results_and_no_more() -> None:
    async with store(numbered(500)) as adapter:
        for query, most in (
            (Query("T").order("n").limit(20), 20),
            (Query("T").order("-n").limit(20), 21),
            (Query("T").filter("tens", "=", 7).limit(5), 5),
            (Query("T").filter("n", ">", 300).limit(20), 20),
        ):
            stream = adapter.run(query)
            found = (await stream.next_page()).results
            assert len(found) == query.max_results
            assert stream.explain().rows <= most, str(stream.explain())


async def test_cost_follows_results_and_not_data() -> None:
    read = []
    for size in (100, 2000):
        async with store(numbered(size)) as adapter:
            await build(adapter, "T", "parity", "-n")
            stream = adapter.run(Query("T").filter("parity", "=", 1).order("-n").limit(10))
            assert len((await stream.next_page()).results) == 10
            read.append((stream.explain().rows, stream.explain().entities, stream.explain().scans))
    assert read[0] == read[1] == (10, 10, 1)


async def test_descending_order_turns_large_groups_by_their_own_span() -> None:
    async with store(numbered(400)) as adapter:
        stream = adapter.run(Query("T").order("-parity").limit(30))
        found = (await stream.next_page()).results
        assert [entity.key.id for entity in found] == list(range(1, 61, 2))
        assert stream.explain().scans == 2


async def test_a_merge_join_leaps_over_what_only_one_side_has() -> None:
    entities = [Entity(Key("T", n), {"a": 1 if n < 900 else 2, "b": 2 if n > 850 else 1}) for n in range(1, 1001)]
    async with store(entities) as adapter:
        stream = adapter.run(Query("T").filter("a", "=", 1).filter("b", "=", 2))
        found = [result for page in await pages(stream) for result in page.results]
        assert [entity.key.id for entity in found] == list(range(851, 900))
        assert "merge join" in str(stream.explain())
        assert stream.explain().rows < 400


async def test_a_composite_index_replaces_a_merge_join() -> None:
    async with store(numbered(100)) as adapter:
        query = Query("T").filter("parity", "=", 1).filter("tens", "=", 3)
        expected = await results(adapter, query)
        await build(adapter, "T", "tens", "parity")
        stream = adapter.run(query)
        assert (await stream.next_page()).results == expected
        assert "T(tens, parity)" in str(stream.explain())


async def test_two_composites_of_one_suffix_are_intersected() -> None:
    async with store(numbered(300)) as adapter:
        query = Query("T").filter("parity", "=", 0).filter("tens", "=", 5).order("n")
        expected = await results(adapter, query)
        await build(adapter, "T", "parity", "n")
        await build(adapter, "T", "tens", "n")
        stream = adapter.run(query)
        assert [r for page in await pages(stream) for r in page.results] == expected
        text = str(stream.explain())
        assert "merge join" in text
        assert "sort" not in text


async def test_a_query_without_its_index_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async with store(numbered(50)) as adapter:
        query = Query("T").filter("parity", "=", 1).order("-n")
        with caplog.at_level(logging.WARNING, logger="aiodatastore"):
            first = adapter.run(query)
            await results(adapter, query.limit(3))
        assert [record.getMessage().count("- kind: T") for record in caplog.records] == [1]
        needed = first.explain().index
        assert needed == IndexDefinition("T", (("parity", "asc"), ("n", "desc")))
        assert "would be served by" in str(first.explain())
        assert first.explain().to_dict()["needs_index"] == needed.to_yaml()


async def test_required_indexes_are_required() -> None:
    async with store(numbered(50), require_indexes=True) as adapter:
        query = Query("T").filter("parity", "=", 1).order("-n")
        with pytest.raises(NeedIndexError) as caught:
            adapter.run(query)
        definition = caught.value.definition
        with pytest.raises(NeedIndexError):
            await adapter.aggregate(query, [Aggregation("count")])
        await adapter.create_index(definition)
        with pytest.raises(NeedIndexError):  # BUILDING serves nothing
            adapter.run(query)
        await adapter.build_index(definition)
        assert len(await results(adapter, query)) == 25


async def test_an_unlimited_sort_has_a_budget_and_names_the_index() -> None:
    async with store(numbered(200), sort_budget=50) as adapter:
        query = Query("T").order("parity", "-n")
        with pytest.raises(NeedIndexError, match="more than 50 results") as caught:
            await results(adapter, query)
        assert caught.value.definition == IndexDefinition("T", (("parity", "asc"), ("n", "desc")))
        assert len(await results(adapter, query.limit(20))) == 20
        await adapter.create_index(caught.value.definition)
        await adapter.build_index(caught.value.definition)
        assert len(await results(adapter, query)) == 200


async def test_many_matches_change_from_sorting_to_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_PROBE", 40)
    async with store(numbered(1000)) as adapter:
        stream = adapter.run(Query("T").filter("parity", "=", 1).order("n").limit(10))
        found = (await stream.next_page()).results
        assert [entity["n"] for entity in found] == list(range(1, 20, 2))
        assert "given up after" in str(stream.explain())
        assert stream.explain().rows < 700


async def test_iterating_holds_a_page() -> None:
    async with store(numbered(2000)) as adapter:
        found = await pages(adapter.run(Query("T")))
        assert sum(len(page.results) for page in found) == 2000
        assert max(len(page.results) for page in found) <= 512
        sizes = [len(page.results) for page in await pages(adapter.run(Query("T").limit(95), RunOptions(page_size=10)))]
        assert sizes == [10] * 9 + [5]


async def test_an_ancestor_with_an_order_reads_the_ancestor() -> None:
    others = [Entity(Key("P", 1, "T", n), {"n": n}) for n in range(1, 500)]
    own = [Entity(Key("P", 2, "T", n), {"n": -n}) for n in range(1, 20)]
    async with store([*others, *own]) as adapter:
        query = Query("T", ancestor=Key("P", 2)).order("n")
        stream = adapter.run(query)
        assert [r["n"] for page in await pages(stream) for r in page.results] == list(range(-19, 0))
        assert stream.explain().rows < 40
        await build(adapter, "T", "n", ancestor=True)
        stream = adapter.run(query)
        assert len((await stream.next_page()).results) == 19
        assert "by ancestor" in str(stream.explain())


async def test_counts_and_sums_read_no_entities() -> None:
    async with store([*numbered(100), Entity(Key("T", 1000), {"n": [1, 2], "tens": None})]) as adapter:
        count = [Aggregation("count")]
        assert (await adapter.aggregate(Query("T"), count)).values == [101]
        assert (await adapter.aggregate(Query("T").order("n"), count)).values == [101]
        assert (await adapter.aggregate(Query("T").filter("n", "<=", 2), count)).values == [3]
        assert (await adapter.aggregate(Query("T").offset(90), count)).values == [11]
        assert (await adapter.aggregate(Query("T").limit(7), count)).values == [7]
        both = [
            Aggregation("sum", "n"),
            Aggregation("avg", "n"),
            Aggregation("avg", "nothing"),
            Aggregation("sum", "x"),
        ]
        assert (await adapter.aggregate(Query("T"), both)).values == [5050, 50.5, None, 0]
        one = Query("T").filter("parity", "=", 1)
        assert (await adapter.aggregate(one, [*count, Aggregation("sum", "n")])).values == [50, 2500]
        await build(adapter, "T", "parity", "-n")
        assert (await adapter.aggregate(one, [Aggregation("sum", "n")])).values == [2500]


async def test_cursors_belong_to_their_query() -> None:
    async with store(numbered(10)) as adapter:
        query = Query("T").order("n")
        end = (await adapter.run(query.limit(4)).next_page()).end
        assert end is not None
        cursor = Cursor(end, query.shape)
        assert [e["n"] for e in await results(adapter, query.start(cursor))] == list(range(5, 11))
        assert [key.id for key in await results(adapter, query.keys_only().end(cursor))] == [1, 2, 3, 4]
        back = await results(adapter, query.reversed().start(cursor))
        assert [e["n"] for e in back] == [4, 3, 2, 1]
        with pytest.raises(BadCursorError, match="another query"):
            adapter.run(Query("T").order("tens").start(cursor))


async def test_metadata_kinds_page_like_any_other() -> None:
    entities = [Entity(Key(kind, 1), {"a": 1, "b": ["x", None]}) for kind in ("A", "B", "C")]
    entities.append(Entity(Key("D", 1, namespace="other"), {}))
    async with store(entities) as adapter:
        assert [e.key.name for e in await results(adapter, Query("__kind__"))] == ["A", "B", "C"]
        assert [e.key.name for e in await results(adapter, Query("__kind__").offset(1).limit(1))] == ["B"]
        assert [e.key.id_or_name for e in await results(adapter, Query("__namespace__"))] == [1, "other"]
        properties = await results(adapter, Query("__property__", ancestor=Key("__kind__", "A")))
        assert [(p.key.name, p["property_representation"]) for p in properties] == [
            ("a", ["INT64"]),
            ("b", ["NULL", "STRING"]),
        ]
        assert (await adapter.aggregate(Query("__kind__"), [Aggregation("count")])).values == [3]


async def test_an_index_is_kept_while_it_is_built_and_afterwards() -> None:
    async with store(numbered(700)) as adapter:
        definition = IndexDefinition("T", (("parity", "asc"), ("n", "asc")))
        info = await adapter.create_index(definition)
        assert info.state is IndexState.BUILDING
        assert await adapter.check() == []
        await put(
            adapter, [Entity(Key("T", 5), {"n": 5000, "parity": 1}), Entity(Key("T", 9999), {"n": 1, "parity": 1})]
        )
        await adapter.commit([Commit(writes=[Delete(Key("T", 7))])])
        seen: list[int] = []
        await adapter.build_index(definition, progress=seen.append)
        assert seen[-1] == 700
        assert await adapter.check() == []
        await adapter.delete_index(definition, finish=False)
        assert [info.state for info in await adapter.indexes()] == [IndexState.DELETING]
        assert await adapter.check() == []
        with pytest.raises(BadRequestError, match="being deleted"):
            await adapter.create_index(definition)
        await adapter.delete_index(definition)
        assert await adapter.indexes() == []
        assert await adapter.check() == []
        again = await adapter.create_index(definition)
        assert again.number == info.number + 1


async def test_an_index_too_large_for_an_entity_ends_in_error() -> None:
    async with store([Entity(Key("T", 1), {"a": list(range(150)), "b": list(range(150))})]) as adapter:
        definition = IndexDefinition("T", (("a", "asc"), ("b", "asc")))
        await adapter.create_index(definition)
        with pytest.raises(BadRequestError, match="22500"):
            await adapter.build_index(definition)
        (info,) = await adapter.indexes()
        assert info.state is IndexState.ERROR
        assert "22500" in info.message
        assert (await adapter.create_index(definition)).state is IndexState.BUILDING


async def test_one_bad_commit_does_not_touch_its_neighbours() -> None:
    async with store() as adapter:
        bad = Entity(Key("T", 1), {"a": list(range(20_001))})
        good = Entity(Key("T", 2), {"a": 1})
        first, second = await adapter.commit([Commit(writes=[Put(bad)]), Commit(writes=[Put(good)])])
        assert isinstance(first.error, BadRequestError)
        assert not first.committed
        assert second.committed


async def test_check_finds_what_is_wrong() -> None:
    async with store(numbered(3)) as adapter:
        rows = adapter.store
        assert isinstance(rows, MemoryRowStore)
        found = await rows.scan(Span(Space.INDEX, b"\x02", b"\x03"), 1)
        missing = found.rows[0]
        damage = RowCommit(index_deletes=[missing[0]], index_puts={missing[0][:-1] + b"\x09": missing[1]})
        await rows.commit(RowBatch([damage], adapter.old_rows))
        lines = await adapter.check()
        assert any("index row missing" in line for line in lines)
        assert any("absent entity" in line for line in lines)


async def test_stats_count_everything() -> None:
    async with store([*numbered(5), Entity(Key("U", 1, namespace="n"), {"a": [1, 2]})]) as adapter:
        stats = await adapter.stats()
        found = {(kind["namespace"], kind["kind"]): (kind["entities"], kind["index_rows"]) for kind in stats["kinds"]}
        assert found == {("", "T"): (5, 20), ("n", "U"): (1, 3)}


def test_or_over_different_properties_is_ordered_by_key() -> None:
    query = Query("T").filter(Or(PropertyFilter("a", "<", 1), PropertyFilter("b", ">", 2)))
    assert normalize(query).orders == ()
    both = Query("T").filter(Or(PropertyFilter("a", "<", 1), PropertyFilter("a", ">", 2)))
    assert [order.name for order in normalize(both).orders] == ["a"]


# ------------------------------------------------------------------------- against the naive model


@st.composite
def definitions(draw: st.DrawFn) -> IndexDefinition:
    names = draw(st.lists(st.sampled_from(WORLD.names), min_size=1, max_size=3, unique=True))
    columns = tuple((name, draw(st.sampled_from(("asc", "desc")))) for name in names)
    return IndexDefinition(draw(st.sampled_from(WORLD.kinds)), columns, draw(st.booleans()))


def form(result: Any) -> Any:
    if isinstance(result, Entity) and result.is_projection:
        return result.key, tuple((name, encode_value(value)) for name, value in sorted(result.items()))
    return result if isinstance(result, Key) else result.key


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    entities=st.lists(WORLD.entities(), max_size=25),
    queries=st.lists(WORLD.queries(), min_size=1, max_size=6),
    indexes=st.lists(definitions(), max_size=4, unique=True),
    page_size=st.sampled_from((None, 1, 2, 5)),
    probe=st.sampled_from((2, 2000)),
    cut=st.integers(0, 20),
)
async def test_every_plan_gives_the_models_results(
    entities: list[Entity],
    queries: list[Query],
    indexes: list[IndexDefinition],
    page_size: int | None,
    probe: int,
    cut: int,
) -> None:
    """Whatever indexes exist and however small pages are: results, counts, and both halves at a cursor."""
    model = Model()
    before, execution._PROBE = execution._PROBE, probe
    try:
        async with store() as adapter:
            for place, entity in enumerate(entities):
                if place == len(entities) // 2:
                    for definition in indexes:
                        await adapter.create_index(definition)
                await put(adapter, [entity])
                model.put(entity)
            for definition in indexes:
                await adapter.create_index(definition)
                await adapter.build_index(definition)
            for entity in entities[: len(entities) // 4]:
                await adapter.commit([Commit(writes=[Delete(entity.key)])])
                model.delete(entity.key)
            assert await adapter.check() == []
            for query in queries:
                try:
                    query.check()
                except (BadRequestError, BadCursorError):
                    continue
                await compare(adapter, model, query, page_size, cut)
    finally:
        execution._PROBE = before


async def compare(adapter: EngineAdapter, model: Model, query: Query, page_size: int | None, cut: int) -> None:
    async def run(query: Query) -> tuple[list[Any], list[bytes], str]:
        stream = adapter.run(query, RunOptions(page_size=page_size, positions=True))
        found = await pages(stream)
        positions = [position for page in found for position in page.positions or ()]
        return [form(result) for page in found for result in page.results], positions, str(stream.explain())

    expected = [form(result) for result in model.results(query)]
    found, positions, plan = await run(query)
    assert found == expected, plan
    assert positions == sorted(set(positions))
    assert (await adapter.aggregate(query, [Aggregation("count")])).values == [len(expected)]
    if query.max_results is None and not query.skip and positions:
        place = cut % len(positions)
        cursor = Cursor(positions[place], query.shape, normalize(query).key_descending)
        after, _, plan = await run(query.start(cursor))
        assert after == expected[place + 1 :], plan
        until, _, plan = await run(query.end(cursor))
        assert until == expected[: place + 1], plan
