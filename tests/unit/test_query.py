"""Queries: building, App Engine's rules as the golden cases have them, orders spelled out, shapes."""

from __future__ import annotations

import copy
import datetime as dt
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodatastore import errors
from aiodatastore.cursor import Cursor
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadCursorError,
    BadFilterError,
    BadKeyError,
    BadQueryError,
    BadRequestError,
    BadValueError,
)
from aiodatastore.key import Key
from aiodatastore.query import And, Op, Or, Order, PropertyFilter, Query, parse_filter_string
from aiodatastore.testing.conformance.surface import build_query, build_union, make_order, with_run
from aiodatastore.values import Blob, GeoPoint, Text

CORPUS = Path(__file__).parent.parent / "data" / "conformance"
NOW = dt.datetime(2020, 2, 29, tzinfo=dt.UTC)


def records(name: str) -> Iterator[dict[str, Any]]:
    with (CORPUS / name).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def error_named(name: str) -> type[Exception]:
    return OverflowError if name == "OverflowError" else getattr(errors, name)


# ------------------------------------------------------------------------------------------------ golden

# Options of a run that are the datastore's, not the query's.
ELSEWHERE = {"batch-size-zero", "unknown-run-option"}
rules = [
    pytest.param(record, id=record["id"])
    for record in records("queries.jsonl")
    if record.get("shape") == "rule" and record["rule"] not in ELSEWHERE and "quirk" not in record
]


@pytest.mark.parametrize("record", rules)
def test_golden_rules(record: dict[str, Any]) -> None:
    expected = record["expect"].get("error")
    if expected is None:
        with_run(build_query(record["query"], record), record.get("run", {})).check()
    else:
        with pytest.raises(error_named(expected)):
            with_run(build_query(record["query"], record), record.get("run", {})).check()


def test_golden_queries_are_accepted_and_reversible() -> None:
    for record in records("queries.jsonl"):
        if "dataset" in record and "error" not in record["expect"] and "quirk" not in record:
            query = build_query(record["query"], record)
            query.check()
            assert query.reversed().shape == query.shape, record["id"]
            assert query.reversed().reversed().full_orders == query.full_orders, record["id"]
            assert repr(pickle.loads(pickle.dumps(query))) == repr(query), record["id"]


@pytest.mark.parametrize(
    "record", [pytest.param(r, id=r["id"]) for r in records("queries.jsonl") if r.get("type") == "filter_string"]
)
def test_golden_filter_strings(record: dict[str, Any]) -> None:
    if "error" in record["expect"]:
        with pytest.raises(error_named(record["expect"]["error"])):
            parse_filter_string(record["string"], strict=True)
    else:
        assert parse_filter_string(record["string"], strict=True) == (
            record["expect"]["property"],
            record["expect"]["op"],
        )


@pytest.mark.parametrize(
    "record", [pytest.param(r, id=r["id"]) for r in records("queries.jsonl") if r.get("type") == "order_argument"]
)
def test_golden_order_arguments(record: dict[str, Any]) -> None:
    if "error" in record["expect"]:
        with pytest.raises(error_named(record["expect"]["error"])):
            make_order(record["argument"])
    else:
        found = [[order.name, "desc" if order.descending else "asc"] for order in make_order(record["argument"])]
        assert found == record["expect"]["orders"]


def test_golden_reversals() -> None:
    for record in records("cursors.jsonl"):
        if record["type"] == "reverse":
            forward, backward = build_query(record["forward"]), build_query(record["reversed"])
            assert forward.shape == backward.shape, record["id"]
            assert forward.reversed() == backward, record["id"]
        elif record["type"] == "foreign" and "quirk" not in record:
            alike = build_query(record["query"]).shape == build_query(record["used_with"]).shape
            assert alike == ("error" not in record["expect"]), record["id"]


def test_golden_unions() -> None:
    for record in records("multiquery.jsonl"):
        if record.get("op") in {"GetCursor", "GetIndexList"}:
            continue
        run = record.get("run", {})

        def build(record: dict[str, Any] = record, run: dict[str, Any] = run) -> Query:
            union = with_run(build_union(record), run)
            return union.keys_only() if run.get("keys_only") else union

        if "error" in record["expect"]:
            with pytest.raises(error_named(record["expect"]["error"])):
                build().check()
        else:
            build().check()
            assert build().reversed().shape == build().shape, record["id"]


# ----------------------------------------------------------------------------------------------- filters


def test_forms_of_filters() -> None:
    plain = PropertyFilter("age", Op.GE, 21)
    either = Or(plain, PropertyFilter("vip", "=", True))
    base = Query("Person")
    expected = base.filter("age", ">=", 21)
    assert expected.filters == (plain,)
    assert base.filter("age >=", 21) == base.filter({"age >=": 21}) == base.filter(plain) == expected
    assert Query("Person", filters=[("age", ">=", 21)]) == Query("Person", filters={"age >=": 21}) == expected
    assert Query("Person", filters=plain) == Query("Person", filters=[("age >=", 21)]) == expected
    assert base.filter(either).filters == (either,)
    assert base.filter(plain, either).filters == (plain, either)
    assert base.filter(plain, either, plain).filters == (plain, either, plain)
    assert base.filter("age >=", 21).filter(either).filters == (plain, either)


def test_lists_are_one_filter_an_element() -> None:
    query = Query("P").filter({"age >=": 21, "tag =": ("a", "b")}).filter("n <", [1, 2])
    assert [(each.name, each.op, each.value) for each in query.filters] == [  # type: ignore[union-attr]
        ("age", ">=", 21), ("tag", "=", "a"), ("tag", "=", "b"), ("n", "<", 1), ("n", "<", 2),
    ]  # fmt: skip
    assert Query("P").filter("tag in", ["a", "b"]).filters == (PropertyFilter("tag", Op.IN, ("a", "b")),)
    assert Query("P").filter("tag", "not in", []).filters == (PropertyFilter("tag", Op.NOT_IN, ()),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", ("x", "=")), ("x ==", ("x", "=")), ("x !=", ("x", "!=")), ("x in", ("x", "in")), ("x IN ", ("x", "in")),
        ("x not  in", ("x", "not in")), ("x NOT IN", ("x", "not in")), ("in =", ("in", "=")), ("a.b <", ("a.b", "<")),
        ("x!=", ("x!=", "=")), ("not in", ("not", "in")),
    ],
)  # fmt: skip
def test_filter_strings(text: str, expected: tuple[str, str]) -> None:
    assert parse_filter_string(text) == expected


@pytest.mark.parametrize("text", ["", " ", "x <>", "x y =", "x = y", "x like", "x not", 5, None])
def test_filter_strings_that_are_refused(text: Any) -> None:
    with pytest.raises(BadFilterError):
        parse_filter_string(text)
    with pytest.raises(BadFilterError):
        Query("A").filter({text: 1})


@pytest.mark.parametrize("arguments", [(), (5,), ("a",), (5, 1), (5, "=", 1), ("a", "~", 1), ("a", 5, 1), (None,)])
def test_filter_arguments_that_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(BadFilterError):
        Query("A").filter(*arguments)


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "a", "a" * 2000, b"a", NOW, Key("A", 1), GeoPoint(1, 2)])
def test_values_that_filters_compare_with(value: Any) -> None:
    for op in ("=", "!=", "<", "<=", ">", ">="):
        assert Query("A").filter("x", op, value).filters == (PropertyFilter("x", op, value),)
    assert PropertyFilter("x", "in", [value, value]).value == (value, value)


@pytest.mark.parametrize(
    "value",
    [Text("a"), Blob(b"a"), {"a": 1}, Entity("E"), {1}, ..., 1j, dt.datetime(2020, 1, 1), Key("A"), "\ud800",
     bytearray(), 1 << 63, [], [[1]], [1, Text("a")]],
    ids=repr,
)  # fmt: skip
def test_values_that_they_do_not(value: Any) -> None:
    with pytest.raises(BadValueError):
        Query("A").filter("x", "=", value)
    if value != []:
        with pytest.raises(BadValueError):
            Query("A").filter("x", "in", [value])
    with pytest.raises(BadValueError):
        Query("A").filter("x", "in", "abc")


def test_keys_are_compared_with_keys() -> None:
    for value in ("x", 5, None, ["x"]):
        with pytest.raises(BadFilterError):
            Query("A").filter("__key__", "=", value)
    with pytest.raises(BadFilterError):
        Query("A").filter("__key__", "in", [Key("A", 1), "x"])
    with pytest.raises(BadValueError):
        Query("A").filter("__key__", "in", [Key("A")])


def test_filters_are_equal_if_they_mean_the_same() -> None:
    assert len({PropertyFilter("x", "=", value) for value in (1, True, 1.0, "1", b"1", 0.0, -0.0, None)}) == 8
    assert PropertyFilter("x", "=", float("nan")) == PropertyFilter("x", "=", float("nan"))
    assert PropertyFilter("x", "in", [1, 2]) == PropertyFilter("x", "in", (2, 1, 2))
    east = dt.timezone(dt.timedelta(hours=5))
    assert PropertyFilter("x", "=", NOW) == PropertyFilter("x", "==", NOW.astimezone(east))
    nodes: list[Any] = [And(PropertyFilter("x", "=", 1)), Or(PropertyFilter("x", "=", 1))]
    assert nodes[0] != nodes[1]


# ------------------------------------------------------------------------------------------------ orders


def test_orders() -> None:
    query = Query("A").order("-a", "b", Order("-c"), ("d", "desc"), ["e", 1])  # type: ignore[arg-type]
    assert query.orders == (
        Order("a", True), Order("b"), Order("-c"), Order("d", True), Order("e"),
    )  # fmt: skip
    assert Query("A", orders="-a").orders == Query("A", orders=["-a"]).orders == (Order("a", True),)
    refused: list[Any] = ["", "-", 5, None, ("a", "up"), ("a", 3), ("a", []), ("a",), ("a", 1, 2), "a" * 1501]
    for wrong in refused:
        with pytest.raises(BadArgumentError):
            Query("A").order(wrong)


@pytest.mark.parametrize(
    ("query", "full"),
    [
        (Query("A"), "__key__"),
        (Query("A").order("a", "-b"), "a -b __key__"),
        (Query("A").order("a", "-a", "-__key__", "b"), "a -__key__"),
        (Query("A").filter("x =", 1).filter("y >", 1), "y __key__"),
        (Query("A").filter("y >", 1).filter("x <", 1), "y __key__"),
        (Query("A").filter("y >", 1).order("-z"), "-z __key__"),
        (Query("A").filter("x !=", 1), "x __key__"),
        (Query("A").filter("x not in", [1]), "x __key__"),
        (Query("A").filter("x in", [1]), "__key__"),
        (Query("A").filter("__key__ >", Key("A", 1)), "__key__"),
        (Query("A").filter(Or(PropertyFilter("x", ">", 1), PropertyFilter("y", ">", 1))), "__key__"),
        (Query("A").filter(Or(PropertyFilter("x", ">", 9), PropertyFilter("x", "<", 1))), "x __key__"),
        (Query("A").project("c", "b"), "b c __key__"),
        (Query("A").project("c", "b").distinct_on("c"), "c b __key__"),
        (Query("A").project("c", "b").order("-b"), "-b c __key__"),
        (Query("A").project("c", "b").filter("x >", 1).order("-b"), "-b x c __key__"),
        (Query("A").project("c").order("__key__"), "__key__"),
        (Query.union([Query("A").filter("x >", 1), Query("A").filter("x <", 1)]), "x __key__"),
        (Query.union([Query("A").filter("x >", 1), Query("A").filter("y <", 1)]), "__key__"),
    ],
)
def test_orders_spelled_out(query: Query, full: str) -> None:
    assert query.full_orders == tuple(map(Order.parse, full.split()))
    backward = query.reversed()
    assert backward.orders == backward.full_orders == tuple(order.flipped() for order in query.full_orders)
    assert backward.shape == query.shape


# ------------------------------------------------------------------------------------------ what and how much


def test_partition() -> None:
    key = Key("P", 1, namespace="n", project="p")
    for query in (Query("A", ancestor=key), Query("A").under(key), Query("A").under(Entity(key))):
        assert (query.ancestor, query.namespace, query.project_id) == (key, "n", "p")
        query.check()
    for query in (Query("A", ancestor=key, namespace=""), Query("A", namespace="n").under(key)):
        with pytest.raises(BadArgumentError):
            query.check()
    with pytest.raises(BadRequestError):
        Query("A", namespace="n").filter("__key__ in", [key]).check()
    with pytest.raises(BadKeyError):
        Query("A").under(Key("P"))
    for wrong in (5, "P", None):
        with pytest.raises(BadArgumentError):
            Query("A").under(wrong)


def test_without_a_kind() -> None:
    Query().filter("__key__ >", Key("A", 1)).order("-__key__").check()
    with pytest.raises(BadFilterError):
        Query().filter("x", "=", 1)
    with pytest.raises(BadFilterError):
        Query().filter(Or(And(PropertyFilter("x", "=", 1))))
    with pytest.raises(BadArgumentError):
        Query().order("x")
    with pytest.raises(BadArgumentError):
        Query(orders=["x"])
    for kind in ("", 5, "k" * 1501):
        with pytest.raises(BadArgumentError):
            Query(kind)  # type: ignore[arg-type]


def test_limits() -> None:
    query = Query("A").limit(5).offset(2)
    assert (query.max_results, query.skip) == (5, 2)
    assert query.limit(None).max_results is None
    for wrong in (-1, "1", 1.5, True):
        with pytest.raises(BadArgumentError):
            Query("A").limit(wrong)  # type: ignore[arg-type]
        with pytest.raises(BadArgumentError):
            Query("A", offset=wrong)  # type: ignore[arg-type]


def test_projections() -> None:
    query = Query("A").project("b", "a").distinct_on("b")
    assert (query.projection, query.distinct_names) == (("b", "a"), ("b",))
    assert query.distinct().distinct_names == ("b", "a")
    for names in ((), (5,), ("",)):
        with pytest.raises(BadArgumentError):
            Query("A").project(*names)
    with pytest.raises(BadArgumentError):
        Query("A", projection=[])
    with pytest.raises(BadQueryError):
        Query("A").distinct()
    with pytest.raises(BadQueryError):
        query.distinct_on("c").check()
    Query("A").project("x").filter("x in", [1, 2]).check()


def test_app_engines_rules_are_optional() -> None:
    builds: list[Callable[[Query], Query]] = [
        lambda query: query.filter("x >", 1).filter("y <", 1),
        lambda query: query.filter("x >", 1).order("y"),
        lambda query: query.order("y").filter("x", "!=", 1),
        lambda query: query.filter("x", "!=", 1).filter("y", "not in", [1]),
    ]
    for build in builds:
        build(Query("A")).check()
        with pytest.raises((BadFilterError, BadArgumentError)):
            build(Query("A", strict=True))
    with pytest.raises(BadArgumentError):
        Query(strict=True).order("-__key__")
    with pytest.raises(BadArgumentError):
        Query("A", filters={"x >": 1}, orders=["y"], strict=True)


def test_too_many_components() -> None:
    filters = [PropertyFilter(f"p{number}", "=", 1) for number in range(99)]
    query = Query("A", filters=[Or(*filters[:50]), And(*filters[50:])])
    query.order("x").check()
    with pytest.raises(BadRequestError):
        query.order("x", "y").check()
    with pytest.raises(BadRequestError):
        query.order("x").under(Key("P", 1)).check()


def test_queries_never_change() -> None:
    query = Query("A")
    query.filter("x", "=", 1).order("x").limit(1).keys_only().project("y").reversed()
    assert query == Query("A")
    for name in ("kind", "filters", "unknown"):
        with pytest.raises(AttributeError):
            setattr(query, name, "x")
    with pytest.raises(AttributeError):
        del query.kind
    assert copy.deepcopy(query) == query


# ------------------------------------------------------------------------------------------- unions, cursors


def test_unions() -> None:
    a, b = Query("A").filter("x", "=", 1), Query("B").filter("y", "=", 2)
    union = Query.union([a, b], ["-n"])
    assert [part.kind for part in union.subqueries] == ["A", "B"]
    assert union.kind is None
    assert union.orders == (Order("n", True),) == union.subqueries[0].orders
    assert union.filter("z", "=", 3).subqueries[1].filters[-1] == PropertyFilter("z", "=", 3)
    assert union.under(Key("P", 1)).subqueries[0].ancestor == Key("P", 1)
    assert [part.orders for part in union.order("m").subqueries] == [(Order("n", True), Order("m"))] * 2
    assert union.keys_only().subqueries[0].only_keys
    assert union.project("p").distinct().subqueries[0].distinct_names == ("p",)
    assert Query.union([union, Query("C")]).subqueries[2].kind == "C"
    assert Query.union([a, b]).shape == Query.union([b, a]).shape != union.shape
    assert eval(repr(union)) == union
    union.limit(3).check()
    with pytest.raises(BadCursorError):
        union.start(Cursor(b"x", a.shape)).check()


def test_a_union_of_nothing_finds_nothing() -> None:
    assert Query.union([]).filters == (Or(),)
    assert Query.union([], ["x"]).orders == (Order("x"),)


@pytest.mark.parametrize(
    ("queries", "error"),
    [
        ([Query("A")] * 31, BadArgumentError),
        (["A"], BadArgumentError),
        ([Query("A"), Query("A", namespace="n")], BadQueryError),
        ([Query("A"), Query("A").keys_only()], BadQueryError),
        ([Query("A").project("x"), Query("A")], BadQueryError),
        ([Query("A").order("x"), Query("A").order("y")], BadQueryError),
        ([Query("A"), Query("A").limit(1)], BadQueryError),
        ([Query("A"), Query("A").start(Cursor())], BadQueryError),
    ],
)
def test_unions_that_are_refused(queries: list[Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Query.union(queries)


def test_cursors_belong_to_a_shape() -> None:
    query = Query("A").filter("x", ">", 1).order("x")
    cursor = Cursor(b"position", query.shape)
    same = [
        query.start(cursor), query.end(cursor), query.keys_only().limit(3).offset(1).start(cursor),
        query.reversed().start(cursor), query.start(cursor).reversed(), query.start(Cursor()),
        Query("A").filter("x", ">", 1).start(cursor), Query("A", strict=True, filters={"x >": 1}).start(cursor),
    ]  # fmt: skip
    for good in same:
        good.check()
    other = [
        query.order("y"), query.filter("y", "=", 1), Query("B").filter("x", ">", 1), query.under(Key("P", 1)),
        Query("A", namespace="n").filter("x", ">", 1), Query("A").filter("x", ">", 1.0), query.project("x"),
        Query("A").filter("x", ">=", 1), Query("A").filter("x", ">", 1).order("-x"),
    ]  # fmt: skip
    for bad in other:
        for using in (bad.start(cursor), bad.end(cursor)):
            with pytest.raises(BadCursorError):
                using.check()
    for wrong in (cursor.to_urlsafe(), b"x", 5):
        with pytest.raises(BadArgumentError):
            query.start(wrong)  # type: ignore[arg-type]


def test_shape_is_of_meaning_not_of_spelling() -> None:
    a, b = PropertyFilter("a", "=", 1), PropertyFilter("b", "in", [1, 2])
    assert Query("A", filters=[a, b]).shape == Query("A").filter("b in", (2, 1)).filter(a).shape
    assert Query("A", filters=[Or(a, b)]).shape == Query("A", filters=[Or(b, a)]).shape
    assert Query("A", filters=[Or(a, b)]).shape != Query("A", filters=[And(a, b)]).shape
    assert Query("A").order("a").shape == Query("A").order("a", "__key__").shape
    assert Query("A").order("a").shape == Query("A").order("-a", "-__key__").shape
    assert Query("A").order("a").shape != Query("A").order("-a").shape
    assert Query("A").filter("a >", 1).filter("b >", 1).shape != Query("A").filter("b >", 1).filter("a >", 1).shape


def test_the_shape_is_pinned() -> None:
    query = Query("Person", namespace="n").filter("age", ">=", 21).filter("tag", "in", ["b", "a"]).order("-age")
    assert query.shape.hex() == "b5436fb3a4ae7c80ed156b64fcbf0f1d"


values = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.5, "", "a", b"", b"a"])
leaves = st.builds(PropertyFilter, st.sampled_from("ab"), st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), values)
nodes = st.recursive(
    leaves,
    lambda inner: st.builds(lambda kind, parts: kind(*parts), st.sampled_from([And, Or]), st.lists(inner, max_size=3)),
    max_leaves=6,
)


@given(
    st.lists(nodes, max_size=3), st.lists(st.sampled_from(["a", "-a", "b", "-b", "__key__", "-__key__"]), max_size=3)
)
def test_reversing_and_repr_of_any_query(filters: list[Any], orders: list[str]) -> None:
    query = Query("A", filters=filters, orders=orders)
    assert query.reversed().shape == query.shape
    assert query.reversed().reversed().full_orders == query.full_orders
    assert eval(repr(query)) == query
    assert hash(eval(repr(query))) == hash(query)
    query.check()


def test_filters_nested_too_deep_are_refused_before_they_are_a_recursion_error() -> None:
    nested: PropertyFilter | And | Or = PropertyFilter("a", "=", 1)
    for _ in range(50):
        nested = And(nested)
    assert Query("K").filter(nested).shape
    assert pickle.loads(pickle.dumps(nested)) == nested
    with pytest.raises(BadFilterError, match="50 deep"):
        Or(nested)
