"""App Engine's Python surface in terms of this package's.

The corpus calls constructors and functions of ``google.appengine.api.datastore``. Where ours take the same
things in another form, the translation is here. It checks nothing itself: what has to be refused, the library
refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiodatastore.entity import Entity
from aiodatastore.query import Order, Query
from aiodatastore.testing.conformance.decode import decode_argument, decode_key, decode_value

__all__ = ["bind", "build_query", "build_union", "make_entity", "make_order", "with_run"]


def make_entity(arguments: Mapping[str, Any]) -> Entity:
    """``Entity(kind, parent=, name=, id=, unindexed_properties=, namespace=)``."""
    given = {
        name: decode_argument(value) if name == "parent" else decode_value(value)
        for name, value in arguments.items()
        if name != "set"
    }
    return Entity.of_kind(**given)


def make_order(argument: Any) -> tuple[Order, ...]:
    """``Query.Order(argument)``: a name or (name, [ignored,] direction), 2 for descending."""
    return Query("Any", strict=True).order(argument).orders


def build_query(data: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> Query:
    """A QUERY: filters in the given order, then the ancestor, then the orders (``build`` may ask otherwise)."""
    options = {"projection": data["projection"]} if "projection" in data else {}
    query = Query(
        decode_value(data.get("kind")),
        namespace=data.get("ns", ""),
        keys_only=data.get("keys_only", False),
        strict=True,
        **options,
    )
    if data.get("distinct"):
        query = query.distinct()
    steps = (record or {}).get("build", ("filters", "orders"))
    for step in steps:
        query = _with_filters(query, data) if step == "filters" else _with_orders(query, data)
    return query


def _with_filters(query: Query, data: Mapping[str, Any]) -> Query:
    for name, op, value in data.get("filters", ()):
        query = query.filter(name, op, decode_value(value))
    return query.under(decode_key(data["ancestor"])) if "ancestor" in data else query


def _with_orders(query: Query, data: Mapping[str, Any]) -> Query:
    orders = [Order(name, descending=direction == "desc") for name, direction in data.get("orders", ())]
    return query.order(*orders) if orders else query


def build_union(record: Mapping[str, Any]) -> Query:
    """``MultiQuery(subqueries, orderings)``."""
    orders = [Order(name, descending=direction == "desc") for name, direction in record["orderings"]]
    return Query.union([build_query(subquery) for subquery in record["subqueries"]], orders)


def bind(target: Any, query: Query) -> Any:
    """A query bound to a datastore or a transaction."""
    return target.query(query)


def with_run(query: Query, run: Mapping[str, Any]) -> Query:
    """A query with ``Run()``'s options ``limit`` and ``offset``."""
    if run.get("limit") is not None:
        query = query.limit(run["limit"])
    if run.get("offset") is not None:
        query = query.offset(run["offset"])
    return query
