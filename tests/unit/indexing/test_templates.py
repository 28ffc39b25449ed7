"""Spans that are put together from a query's values are those that planning it comes to."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodatastore import Datastore, Entity, IndexDefinition, Key, Query
from aiodatastore.adapters.engine.core import Engine, Planned
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.indexing.catalog import Catalog
from aiodatastore.indexing.direct import direct_span
from aiodatastore.indexing.normal import normalize
from aiodatastore.indexing.planner import plan_branch
from aiodatastore.indexing.rows import CompositeIndex
from aiodatastore.query import PropertyFilter

pytestmark = pytest.mark.anyio

VALUES: list[Any] = [
    None, False, True, -1, 0, 1, 256, -0.0, 0.0, 1.5, -math.inf, "", "a", "a\x00", "b\xff", b"", b"a\xff",
    datetime(2001, 2, 3, tzinfo=UTC), Key("K", 1), Key("K", 1, "L", "x"),
]  # fmt: skip
NAMES = "abc"
INDEXES = [
    IndexDefinition("T", (("a", "asc"), ("b", "asc"))),
    IndexDefinition("T", (("c", "asc"), ("b", "desc"))),
    IndexDefinition("T", (("b", "desc"), ("a", "desc"), ("c", "asc"))),
    IndexDefinition("T", (("a", "asc"), ("c", "desc")), ancestor=True),
    IndexDefinition("T", (("c", "desc"),), ancestor=True),
]


def engine() -> Engine:
    made = Engine(MemoryRowStore())
    indexes = tuple(CompositeIndex(number, definition) for number, definition in enumerate(INDEXES, 1))
    made.catalog = made._planned_with = Catalog(serving={"T": indexes})
    return made


def planned_in_full(made: Engine, query: Query) -> Any:
    normal = normalize(query)
    indexes = made.catalog.serving["T"]
    return direct_span(normal, [plan_branch(normal, branch, indexes) for branch in normal.branches])


def from_values_alone(planned: Planned) -> bool:
    return planned._parts is None


@st.composite
def shapes(draw: st.DrawFn) -> Any:
    """A function that draws queries of one shape."""
    names = draw(st.lists(st.sampled_from(NAMES), max_size=4))
    operators = [draw(st.sampled_from(["=", "=", "<", "<=", ">", ">="])) for _ in names]
    orders = draw(st.lists(st.sampled_from(["a", "-a", "b", "-b", "c", "-c", "__key__", "-__key__"]), max_size=2))
    below, only_keys = draw(st.booleans()), draw(st.booleans())

    def query() -> Query:
        filters = [
            PropertyFilter(name, op, draw(st.sampled_from(VALUES))) for name, op in zip(names, operators, strict=True)
        ]
        ancestor = Key("P", draw(st.sampled_from([1, 256, "x", "x\x00"]))) if below else None
        made = Query("T", filters=filters, ancestor=ancestor).order(*orders)
        return made.keys_only() if only_keys else made

    return query


@given(shapes())
def test_the_span_is_that_of_a_full_plan(draw_query: Any) -> None:
    made = engine()
    for _ in range(4):
        query = draw_query()
        assert made.plan(query).direct == planned_in_full(made, query)


@pytest.mark.parametrize(
    "query",
    [
        Query("T").filter("a", "=", 1.5),
        Query("T").filter("a", ">", 1.5).filter("a", "<=", 7.5),
        Query("T").filter("c", "=", 1.5).filter("b", "<", 1.5).order("-b"),
        Query("T").filter("a", "=", 1.5).filter("b", ">=", 1.5),
        Query("T", ancestor=Key("P", 1)).filter("a", "=", 1.5).filter("c", ">", 2.5).order("-c"),
        Query("T", ancestor=Key("P", 1)),
    ],
    ids=str,
)
def test_a_shape_is_planned_once(query: Query) -> None:
    made = engine()
    assert not from_values_alone(made.plan(query))
    filters = [PropertyFilter(node.name, node.op, node.value * 2) for node in query.filters]  # type: ignore[union-attr]
    ancestor = None if query.ancestor is None else Key("P", 2)
    other = Query("T", filters=filters, ancestor=ancestor).order(*query.orders)
    planned = made.plan(other)
    assert from_values_alone(planned)
    assert planned.direct == planned_in_full(made, other) is not None


@pytest.mark.parametrize(
    "query",
    [
        Query("T").filter("a", "=", 1.5).filter("a", "=", 1.5),  # one condition; of other values, two
        Query("T").filter("a", "<", 1.5).filter("b", "<", 1.5),
        Query("T").filter("a", "=", 1.5).filter("a", "<", 2.5),
        Query("T").filter("a", "!=", 1.5),
        Query("T").filter("__key__", ">", Key("T", 1)),
        Query("T").filter("a", "=", 1.5).project("b"),
    ],
    ids=str,
)
def test_what_depends_on_values_is_planned_each_time(query: Query) -> None:
    made = engine()
    made.plan(query)
    assert not made._templates


def test_a_range_with_nothing_in_it_has_no_span() -> None:
    made = engine()
    made.plan(Query("T").filter("a", ">", 1.5).filter("a", "<", 2.5))
    planned = made.plan(Query("T").filter("a", ">", 2.5).filter("a", "<", 1.5))
    assert planned.direct is None
    assert not planned.plans


async def test_indexes_that_come_and_go_change_the_plans() -> None:
    index = IndexDefinition("T", (("a", "asc"), ("b", "asc")))
    async with Datastore("memory://") as ds:
        await ds.put([Entity(Key("T", n), {"a": n % 2, "b": n / 2}) for n in range(1, 21)])

        async def found(least: float) -> list[int]:
            query = ds.query("T").filter("a", "=", 1).filter("b", ">=", least).order("b").limit(3)
            return [entity.key.id for entity in await query.fetch()]

        for create in (True, False, True):
            await (ds.create_index(index) if create else ds.delete_index(index))
            assert await found(0.5) == [1, 3, 5]
            assert await found(4.0) == [9, 11, 13]
            assert await found(9.25) == [19]
            assert await found(10.5) == []
