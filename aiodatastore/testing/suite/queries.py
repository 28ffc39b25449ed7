"""Queries: the same answers as the naive model, cursors that hold still, aggregates that add up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import strategies as st

from aiodatastore.adapters.base import ReadPolicy
from aiodatastore.cursor import Cursor
from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadFilterError,
    BadQueryError,
    BadRequestError,
    BadValueError,
    DatastoreError,
    NeedIndexError,
)
from aiodatastore.key import Key
from aiodatastore.query import And, Filter, Or, PropertyFilter, Query
from aiodatastore.rowstore import Capability
from aiodatastore.testing.model import Model, indexed_values
from aiodatastore.testing.strategies import LOOK_ALIKE_NAMES, LOOK_ALIKES, World
from aiodatastore.testing.suite.base import Connect, StoreTests, assert_same, examples, numbered
from aiodatastore.values import Blob, GeoPoint, Text

__all__ = ["QueryTests", "bound"]

WORLD = World()


def bound(ds: Datastore, query: Query) -> Any:
    """A query description, to be run on a datastore."""
    return ds.query(query)


async def clear(ds: Datastore) -> None:
    """Delete every entity of the default namespace."""
    await ds.delete([key async for key in ds.query().keys_only()])


async def fill(ds: Datastore, entities: Iterable[Entity]) -> Model:
    """Store entities, and a model of them (of equal keys the last)."""
    model = Model(entities)
    await ds.put([entity.copy() for entity in model.entities.values()])
    return model


class QueryTests(StoreTests):
    """Filters, orders, projections, cursors, aggregates."""

    @pytest.fixture(autouse=True)
    def promised_queries(self, connect: Connect) -> None:
        """Skips all of it on a store that answers no queries."""
        if Capability.QUERIES not in connect().capabilities:
            pytest.skip("the adapter does not promise QUERIES")

    # ------------------------------------------------------------------------- against the model

    @examples(
        120,
        entities=st.lists(WORLD.entities(), max_size=14),
        queries=st.lists(WORLD.queries(), min_size=4, max_size=8),
        page_size=st.sampled_from((None, 1, 2, 3)),
    )
    async def test_random_queries_answer_as_the_model(
        self, ds: Datastore, entities: list[Entity], queries: list[Query], page_size: int | None
    ) -> None:
        """Results, their order and number, whatever is read at once."""
        self.needs(ds, Capability.KEY_ORDER)
        await clear(ds)
        model = await fill(ds, entities)
        for query in queries:
            assert_same(model.results(query), await bound(ds, query).fetch(page_size=page_size))
            assert await bound(ds, query).count() == model.count(query), query

    @examples(
        60,
        entities=st.lists(WORLD.entities(), max_size=10),
        writes=st.lists(WORLD.entities(), max_size=5),
        deleted=st.lists(WORLD.keys(), max_size=3),
        queries=st.lists(WORLD.queries(), min_size=3, max_size=6),
        page_size=st.sampled_from((None, 1, 2, 3)),
    )
    async def test_random_queries_in_a_transaction_see_its_writes(
        self,
        ds: Datastore,
        entities: list[Entity],
        writes: list[Entity],
        deleted: list[Key],
        queries: list[Query],
        page_size: int | None,
    ) -> None:
        """As the model with these writes on top; outside nothing of them is seen."""
        self.needs(ds, Capability.GLOBAL_TRANSACTIONS, Capability.KEY_ORDER, Capability.EXACT_KEYS)
        await clear(ds)
        model = await fill(ds, entities)
        before = model.copy()
        async with ds.transaction():
            for entity in writes:
                model.put(entity)
                await ds.put(entity.copy())
            for key in deleted:
                model.delete(key)
            await ds.delete(deleted)
            for query in queries:
                assert_same(model.results(query), await bound(ds, query).fetch(page_size=page_size))
                assert await bound(ds, query).count() == model.count(query), query
            with ds.non_transactional(allow_existing=True):
                assert_same(before.results(queries[0]), await bound(ds, queries[0]).fetch())
        assert_same(model.results(queries[0]), await bound(ds, queries[0]).fetch())

    @examples(
        60,
        entities=st.lists(WORLD.entities(), max_size=14),
        query=WORLD.queries(limits=False),
        size=st.integers(1, 4),
    )
    async def test_pages_together_are_the_whole(
        self, ds: Datastore, entities: list[Entity], query: Query, size: int
    ) -> None:
        """Each page from the cursor of the one before, through its text form."""
        self.needs(ds, Capability.KEY_ORDER)
        await clear(ds)
        model = await fill(ds, entities)
        results: list[Any] = []
        cursor: Cursor | None = None
        for _ in range(60):
            page = await bound(ds, query).page(size, start=cursor)
            assert len(page.entities) <= size
            results += page.entities
            if not page.more:
                break
            assert page.cursor is not None
            cursor = Cursor.from_urlsafe(page.cursor.to_urlsafe())
        assert_same(model.results(query), results)

    # What is drawn, is drawn before the test runs: Hypothesis ends an example by what no event loop lets through.

    @examples(
        100,
        entities=st.lists(WORLD.entities(), max_size=14),
        query=WORLD.queries(limits=False, projections=False),
        place=st.integers(0, 14),
        changes=st.lists(WORLD.entities(), max_size=5),
        deleted=st.lists(st.integers(0, 18), max_size=4),
    )
    async def test_cursors_keep_their_place_while_data_changes(
        self,
        ds: Datastore,
        entities: list[Entity],
        query: Query,
        place: int,
        changes: list[Entity],
        deleted: list[int],
    ) -> None:
        """A cursor is a position: what is put behind it appears, what is before it does not, deleted or not."""
        self.needs(ds, Capability.KEY_ORDER)
        await clear(ds)
        model = await fill(ds, entities)
        rows = model.run(query)
        place = min(place, len(rows))
        running = bound(ds, query).run()
        pulled = [result async for _, result in _take(running, place)]
        assert_same([model.result(query, row) for row in rows[:place]], pulled)
        cursor = running.cursor
        for entity in changes:
            model.put(entity)
            await ds.put(entity.copy())
        for key in {key for number, key in enumerate(sorted(model.entities)) if number in deleted}:
            model.delete(key)
            await ds.delete(key)
        after = rows[place - 1].position if place else None
        rest = await bound(ds, query).start(cursor).fetch()
        assert_same([model.result(query, row) for row in model.run(query, after=after)], rest)
        if place:
            before = await bound(ds, query).end(cursor).fetch()
            assert_same([model.result(query, row) for row in model.run(query, until=after)], before)

    @examples(
        60,
        entities=st.lists(WORLD.entities(), max_size=14),
        query=WORLD.queries(limits=False, projections=False),
        place=st.integers(0, 14),
    )
    async def test_reversed_queries_run_backwards(
        self, ds: Datastore, entities: list[Entity], query: Query, place: int
    ) -> None:
        """The last first; from a cursor, what came before it."""
        self.needs(ds, Capability.KEY_ORDER)
        single = [_without_lists(entity) for entity in entities]  # they position entities otherwise when orders turn
        await clear(ds)
        model = await fill(ds, single)
        rows = model.rows(query)
        backwards = [model.result(query, row) for row in reversed(rows)]
        assert_same(backwards, await bound(ds, query.reversed()).fetch())
        place = min(place, len(rows))
        running = bound(ds, query).run()
        _ = [result async for _, result in _take(running, place)]
        if place:
            back = await bound(ds, query.reversed()).start(running.cursor).fetch()
            assert_same(backwards[len(rows) - place :], back)

    @examples(
        40,
        entities=st.lists(WORLD.entities(), max_size=14),
        queries=st.lists(WORLD.queries(projections=False), min_size=2, max_size=4),
        name=st.sampled_from(WORLD.names),
    )
    async def test_aggregates_add_up(
        self, ds: Datastore, entities: list[Entity], queries: list[Query], name: str
    ) -> None:
        """As adding by hand what a query returns."""
        await clear(ds)
        model = await fill(ds, entities)
        for query in queries:
            if query.only_keys:
                continue
            numbers = [number for row in model.run(query) for number in _numbers(model.entities[row.key], name)]
            total = await bound(ds, query).sum(name)
            average = await bound(ds, query).avg(name)
            if not numbers:
                assert (total, average) == (0, None)
            elif math.isnan(sum(numbers)):
                assert math.isnan(total)
                assert average is not None
                assert math.isnan(average)
            else:
                assert total == pytest.approx(sum(numbers))
                assert average == pytest.approx(sum(numbers) / len(numbers))

    # --------------------------------------------------------------------------- order of values

    async def test_every_value_is_found_and_in_order(self, ds: Datastore) -> None:
        """All look-alikes: by equality, by order up and down, by each inequality."""
        model = await fill(ds, [Entity(Key("V", place + 1), {"x": value}) for place, value in enumerate(LOOK_ALIKES)])
        for query in (Query("V").order("x"), Query("V").order("-x")):
            assert_same(model.results(query), await bound(ds, query).fetch())
        for value in LOOK_ALIKES:
            for op in ("=", "<", "<=", ">", ">=", "!="):
                query = Query("V").filter(PropertyFilter("x", op, value)).order("x")
                assert await bound(ds, query).keys() == model.keys(query), (op, value)

    async def test_projections_keep_types(self, ds: Datastore) -> None:
        """Though an index mixes bytes with str and times with int."""
        stamp = datetime(2001, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
        model = await fill(
            ds,
            [
                Entity(
                    Key("V", 1),
                    {"x": ["a", b"b", stamp, 5, None, True, -0.0, GeoPoint(1, 2), Key("K", "x")], "y": b"q"},
                ),
                Entity(Key("V", 2), {"x": [], "y": 1}),
                Entity(Key("V", 3), {"x": [Text("t"), Blob(b"b")], "y": 1}),
            ],
        )
        query = Query("V").project("x", "y")
        found = await bound(ds, query).fetch()
        assert_same(model.results(query), found)
        assert all(entity.is_projection for entity in found)
        with pytest.raises(BadRequestError):
            await ds.put(found[0])

    # ---------------------------------------------------------------------------------- structure

    async def test_names_that_look_alike_are_different_kinds_and_properties(self, ds: Datastore) -> None:
        """No kind's or property's span runs into another's."""
        names = [name for name in LOOK_ALIKE_NAMES if len(name.encode()) <= 1500]
        await ds.put([Entity(Key(name, 1), {name: 1}) for name in names])
        for name in names:
            assert await ds.query(name).keys() == [Key(name, 1)], repr(name)
            assert await ds.query(name).filter(name, ">", 0).keys() == [Key(name, 1)], repr(name)

    async def test_ancestors_that_look_alike_are_different(self, ds: Datastore) -> None:
        """``/a`` is no ancestor of ``/ab``; an ancestor need not exist; it includes itself."""
        self.needs(ds, Capability.EXACT_KEYS)
        roots = [Key("R", name) for name in LOOK_ALIKE_NAMES] + [Key("R", 1), Key("R", 10), Key("R", 256)]
        children = [root.child("C", 1) for root in roots]
        grandchildren = [child.child("R", "a") for child in children]
        await ds.put([Entity(key, {"x": 1}) for key in [*children, *grandchildren]])
        for root, child, grandchild in zip(roots, children, grandchildren, strict=True):
            assert await ds.query(ancestor=root).keys() == [child, grandchild]
            assert await ds.query("C", ancestor=root).keys() == [child]
            assert await ds.query("R", ancestor=root).filter("x", "=", 1).keys() == [grandchild]
            assert await ds.query(ancestor=grandchild).keys() == [grandchild]

    async def test_namespaces_and_projects_are_apart(self, ds: Datastore) -> None:
        """A query looks into one partition."""
        places = [("", ""), ("n", ""), ("n.1", ""), ("N", ""), ("", "p"), ("n", "p")]
        for namespace, project in places:
            await ds.put(Entity(Key("K", 1, namespace=namespace, project=project), {"x": [namespace, project]}))
        for namespace, project in places:
            for query in (
                Query("K", namespace=namespace, project=project),
                Query("K", namespace=namespace, project=project).order("-x"),
                Query(None, namespace=namespace, project=project),
            ):
                (key,) = await bound(ds, query).keys()
                assert (key.namespace, key.project) == (namespace, project)

    async def test_metadata_kinds(self, ds: Datastore) -> None:
        """``__namespace__``, ``__kind__`` and ``__property__`` list what there is."""
        await ds.put(
            [
                Entity(Key("A", 1), {"x": 1, "y": "s", "z": 1}, unindexed=["z"]),
                Entity(Key("B", 1), {"x": 1.5}),
                Entity(Key("C", 1, namespace="n"), {"w": None}),
            ]
        )
        assert [key.id_or_name for key in await ds.query("__namespace__").keys()] == [1, "n"]
        assert [key.name for key in await ds.query("__kind__").keys()] == ["A", "B"]
        assert [key.name for key in await ds.query("__kind__", namespace="n").keys()] == ["C"]
        properties = await ds.query("__property__").keys()
        assert [(key.parent.name if key.parent else None, key.name) for key in properties] == [
            ("A", "x"), ("A", "y"), ("B", "x"),
        ]  # fmt: skip
        of_a = await ds.query("__property__", ancestor=Key("__kind__", "A")).keys()
        assert [key.name for key in of_a] == ["x", "y"]
        await ds.delete([Key("A", 1), Key("C", 1, namespace="n")])
        assert [key.name for key in await ds.query("__kind__").keys()] == ["B"]
        assert [key.id_or_name for key in await ds.query("__namespace__").keys()] == [1]

    async def test_nested_conditions(self, ds: Datastore) -> None:
        """And in Or in And, several inequalities, in and not in, together."""
        self.needs(ds, Capability.KEY_ORDER)
        model = await fill(
            ds,
            [
                Entity(Key("K", 1 + a + 4 * b + 16 * c), {"a": a, "b": b, "c": [c, c + 1]})
                for a in range(4)
                for b in range(4)
                for c in range(3)
            ],
        )
        p = PropertyFilter
        conditions: list[Filter] = [
            Or(p("a", "=", 1), p("b", "=", 2)),
            Or(And(p("a", ">", 1), p("b", "<", 2)), And(p("a", "=", 0), p("c", "in", [0, 3]))),
            And(Or(p("a", "<", 2), p("b", ">", 2)), Or(p("c", "=", 3), p("a", "!=", 1))),
            And(p("a", ">", 0), p("b", ">", 0), p("c", ">", 1)),
            p("a", "not in", [1, 2]),
            And(p("a", "in", [0, 1, 3]), p("b", "in", [1, 2]), p("c", "not in", [1])),
            Or(p("__key__", "<", Key("K", 5)), p("a", "=", 3)),
        ]
        for condition in conditions:
            for query in (
                Query("K").filter(condition),
                Query("K").filter(condition).order("-b", "a"),
                Query("K").filter(condition).order("-c").limit(5).offset(3),
            ):
                assert_same(model.results(query), await bound(ds, query).fetch())
                assert await bound(ds, query).count() == model.count(query)

    async def test_unions_of_queries(self, ds: Datastore) -> None:
        """App Engine's MultiQuery: merged, each entity once."""
        model = await fill(ds, [Entity(Key("K", n), {"a": n % 3, "b": -n}) for n in range(1, 20)])
        parts = [Query("K").filter("a", "=", 1), Query("K").filter("b", ">", -10)]
        for orders in ([], ["-b"]):
            query = Query.union([part.order(*orders) for part in parts], orders)
            assert_same(model.results(query), await bound(ds, query).fetch())
            assert await bound(ds, query).count() == model.count(query)

    # --------------------------------------------------------------------------- ways of reading

    async def test_ways_of_reading(self, ds: Datastore) -> None:
        """Iteration, fetch, first, keys, page."""
        entities = numbered("K", 30)
        await ds.put(entities)
        query = ds.query("K").order("-n")
        backwards = entities[::-1]
        assert_same(backwards, [entity async for entity in query])
        assert_same(backwards, await query.fetch())
        assert_same(backwards[:7], await query.fetch(7))
        assert_same(backwards[0], await query.first())
        assert await ds.query("K").filter("n", ">", 99).first() is None
        assert await query.keys() == [entity.key for entity in backwards]
        assert [key async for key in query.keys_only()] == [entity.key for entity in backwards]
        assert await query.limit(5).offset(28).keys() == [entity.key for entity in backwards[28:]]
        assert await query.limit(0).fetch() == []
        assert await query.count() == 30
        assert await query.count(limit=10) == 10
        assert await query.limit(4).count() == 4
        assert await query.offset(25).count() == 5

    async def test_pages_end(self, ds: Datastore) -> None:
        """``more`` is False on the last page, even a full one, or the next is empty."""
        await ds.put(numbered("K", 10))
        cursor, seen, pages = None, 0, 0
        more = True
        while more:
            page = await ds.query("K").page(5, start=cursor)
            seen, pages, cursor, more = seen + len(page.entities), pages + 1, page.cursor, page.more
        assert seen == 10
        assert pages <= 3

    async def test_many_results_stream(self, ds: Datastore) -> None:
        """More than a page of any size, in both directions."""
        await ds.put(numbered("K", 3000, tags=["a", "b"]))
        for query in (ds.query("K").order("n"), ds.query("K").filter("tags", "in", ["a", "b"]).order("n")):
            numbers = [entity["n"] async for entity in query]
            assert numbers == list(range(1, 3001))
        numbers = [entity["n"] async for entity in ds.query("K").order("-n")]
        assert numbers == list(range(3000, 0, -1))
        assert await ds.query("K").filter("tags", "=", "a").count() == 3000

    async def test_reading_while_writing(self, ds: Datastore) -> None:
        """A running query sees each untouched entity once, in order, whatever else is written meanwhile."""
        await ds.put(numbered("K", 1000))
        seen = []
        async for entity in ds.query("K").order("n"):
            seen.append(entity["n"])
            if entity["n"] % 100 == 1:
                n = entity["n"]
                await ds.put([Entity(Key("K", 5000 + n), {"n": n - 0.5}), Entity(Key("K", 6000 + n), {"n": n})])
                await ds.delete(Key("K", n + 50) if n % 200 == 1 else Key("K", n))
        untouched = [n for n in range(1, 1001) if n % 100 != 51]
        assert [n for n in dict.fromkeys(seen) if n in set(untouched)] == untouched

    async def test_results_are_not_shared(self, ds: Datastore) -> None:
        """Changing one result changes no other read."""
        await ds.put(Entity(Key("K", 1), {"x": [1, 2]}))
        (first,) = await ds.query("K").fetch()
        first["x"].clear()
        (second,) = await ds.query("K").fetch()
        assert second["x"] == [1, 2]

    # ------------------------------------------------------------------------------------ cursors

    async def test_cursors_are_bound_to_their_query(self, ds: Datastore) -> None:
        """Another query refuses them; so does any query a damaged one."""
        await ds.put(numbered("K", 5, x=1))
        page = await ds.query("K").order("n").page(2)
        assert page.cursor is not None
        for other in (ds.query("K").order("-n", "x"), ds.query("J").order("n"), ds.query("K").filter("x", "=", 1)):
            with pytest.raises(DatastoreError):
                await other.start(page.cursor).fetch()
        text = page.cursor.to_urlsafe()
        for damaged in (text[:-1], text[1:], text[:5] + ("A" if text[5] != "A" else "B") + text[6:], "", "!!!", "é"):
            with pytest.raises(DatastoreError):
                Cursor.from_urlsafe(damaged)
        assert [entity["n"] for entity in await ds.query("K").order("n").start(page.cursor).fetch()] == [3, 4, 5]

    async def test_cursors_of_merged_queries(self, ds: Datastore) -> None:
        """Start and end, with duplicates between the branches."""
        await ds.put([Entity(Key("K", n), {"n": n, "tags": ["a", "b"]}) for n in range(1, 21)])
        query = ds.query("K").filter("tags", "in", ["a", "b"]).order("-n")
        first = await query.page(7)
        second = await query.page(7, start=first.cursor)
        assert [entity["n"] for entity in second.entities] == list(range(13, 6, -1))
        window = await query.start(first.cursor).end(second.cursor).fetch()
        assert_same(second.entities, window)

    # ----------------------------------------------------------------------------------- refusals

    async def test_queries_without_an_answer_are_refused(self, ds: Datastore) -> None:
        """With a named error, before any reading."""
        with pytest.raises(BadFilterError):
            await ds.query("K").filter("x", "~", 1).fetch()
        with pytest.raises(BadValueError):
            await ds.query("K").filter("x", "=", Text("a")).fetch()
        with pytest.raises(BadFilterError):
            await ds.query().filter("x", "=", 1).fetch()
        with pytest.raises((BadQueryError, BadRequestError)):
            await ds.query("K").project("x").keys_only().fetch()

    async def test_a_sort_has_a_budget(self, connect: Connect) -> None:
        """Without an index more than the budget is refused by the index's name; the first few are found anyway."""
        async with connect(sort_budget=20) as ds:
            group = Key("G", 1)  # of several stores, each has the budget
            await ds.put([Entity(Key("K", n, parent=group), {"b": -n, "c": 1}) for n in range(1, 61)])
            query = ds.query("K").order("c", "b")
            with pytest.raises(NeedIndexError) as caught:
                await query.fetch()
            assert caught.value.definition.properties == (("c", "asc"), ("b", "asc"))
            assert await query.limit(3).keys() == [Key("K", n, parent=group) for n in (60, 59, 58)]
            await ds.create_index(caught.value.definition)
            assert len(await query.fetch()) == 60

    async def test_both_read_policies_answer(self, ds: Datastore) -> None:
        """Eventual reads may be late, not wrong."""
        entity = Entity(Key("K", 1), {"x": 1})
        await ds.put(entity)
        for policy in ReadPolicy:
            found = await ds.get(entity.key, read_policy=policy)
            assert found in (entity, None)
            assert await ds.query("K").fetch(read_policy=policy) in ([entity], [])

    async def test_explain_tells_the_plan(self, ds: Datastore) -> None:
        """And, analyzed, what it read."""
        await ds.put(numbered("K", 20, x=1))
        query = ds.query("K").filter("x", "=", 1).order("-n").limit(3)
        assert str(await query.explain())
        assert str(await query.explain(analyze=True))


async def _take(running: Any, count: int) -> Any:
    """The first results of a running query, numbered."""
    number = 0
    while number < count:
        yield number, await anext(running)
        number += 1


def _without_lists(entity: Entity) -> Entity:
    plain = {name: value for name, value in entity.items() if not isinstance(value, list)}
    return Entity(entity.key, plain, unindexed=entity.unindexed)


def _numbers(entity: Entity, name: str) -> list[float]:
    """What an aggregate adds up of one entity: its only value, if that is a number."""
    items = list(indexed_values(entity).get(name, {}).values())
    return items if len(items) == 1 and type(items[0]) in (int, float) else []
