"""Hypothesis strategies for keys, values, entities and queries, with the look-alikes that stores mix up.

Two sizes: *wide* strategies (``keys()``, ``values()``, ``entities()``) for round trips, and *small* worlds
(:class:`World`) for state machines and queries, where few names and values meet again and again.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.query import And, Or, Order, PropertyFilter, Query
from aiodatastore.values import INT64_MAX, INT64_MIN, Blob, GeoPoint, Text

__all__ = [
    "LOOK_ALIKES",
    "LOOK_ALIKE_NAMES",
    "World",
    "entities",
    "keys",
    "names",
    "single_values",
    "values",
]

T = TypeVar("T")

LOOK_ALIKE_NAMES: tuple[str, ...] = (
    "a", "ab", "a/b", "a:b", "a b", " a", "a ", "A", "a\x00", "a\x00b", "\x00", "\x01", "\x01\x01", "a\x01",
    "1", "01", "-1", "1.0", "*", "%", "_", "a%", "a_", "[a]", "?", "'", '"', "\\", "a.b", ".", "..", "/", "//",
    "é", "e\u0301", "ß", "SS", "ss", "İ", "ı", "日本語", "\uffff", "\U00010000", "\U0001f600", "\u200b",
    "None", "null", "true", "__a", "a__", "x" * 300, "é" * 700,
)  # fmt: skip
"""Names that a careless encoding, pattern or collation would take for one another."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LOOK_ALIKES: tuple[Any, ...] = (
    None, False, True, 0, 1, -1, 2, 255, 256, 2**53 + 1, INT64_MIN, INT64_MAX, 0.0, -0.0, 1.0, -1.0, 0.5, 1e308,
    5e-324, float("inf"), float("-inf"), float("nan"), EPOCH, EPOCH + timedelta(microseconds=1),
    EPOCH - timedelta(microseconds=1), datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC),
    datetime(2020, 2, 29, 12, 34, 56, 789012, tzinfo=UTC), "", b"", "a", b"a", "a\x00", b"a\x00", "ab", "a/b",
    "\x00", b"\x00", "\x01", b"\xff", "1", "true", "é", "\uffff", "\U00010000", "x" * 1500, GeoPoint(0, 0),
    GeoPoint(1, -2), GeoPoint(-90, 180), Key("K", 1), Key("K", "1"), Key("K", 1, "K", 1), Key("Ka", 1),
    Key("K", 1, namespace="n"),
)  # fmt: skip
"""Single values that a careless store would take for one another."""


# Strategies are built once: building them anew for each draw costs more than drawing.


def _named(name: str, strategy: SearchStrategy[T]) -> SearchStrategy[T]:
    """The same strategy under a short name.

    Hypothesis writes strategies out whenever it has to draw again; of a state machine's rules that is megabytes.
    """

    def drawn(draw: st.DrawFn) -> T:
        return draw(strategy)

    drawn.__name__ = drawn.__qualname__ = name
    return st.composite(drawn)()


@functools.cache
def names(max_bytes: int = 1500) -> SearchStrategy[str]:
    """Kinds, key names and property names: look-alikes, and anything else that is allowed."""
    return st.one_of(
        st.sampled_from([name for name in LOOK_ALIKE_NAMES if len(name.encode()) <= max_bytes]),
        _texts(1, 20).filter(lambda name: len(name.encode()) <= max_bytes and not (name[:2] == "__" == name[-2:])),
    )


@functools.cache
def _texts(min_size: int, max_size: int) -> SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=min_size, max_size=max_size)


@functools.cache
def keys(
    *, max_depth: int = 4, namespaces: tuple[str, ...] = ("", "n", "n.1"), complete: bool = True
) -> SearchStrategy[Key]:
    """Keys of any depth; incomplete ones, too, unless ``complete``."""
    identifiers = st.one_of(st.integers(1, 3), st.integers(1, INT64_MAX), names())
    elements = st.lists(st.tuples(names(), identifiers), min_size=1, max_size=max_depth)
    last = st.just(True) if complete else st.booleans()
    return st.builds(_key, elements, last, st.sampled_from(namespaces))


def _key(elements: list[tuple[str, int | str]], complete: bool, namespace: str) -> Key:
    path = [part for element in elements for part in element]
    return Key(*(path if complete else path[:-1]), namespace=namespace)


@functools.cache
def datetimes() -> SearchStrategy[datetime]:
    """Aware datetimes of any zone that exist in UTC, too."""
    zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))])
    return st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=zones)


@functools.cache
def single_values(*, unindexed: bool = False) -> SearchStrategy[Any]:
    """Values that are no lists or dicts. ``unindexed``: also ``Text`` and ``Blob``."""
    kinds: list[SearchStrategy[Any]] = [
        st.sampled_from(LOOK_ALIKES),
        st.integers(INT64_MIN, INT64_MAX),
        st.floats(),
        _texts(0, 30),
        st.binary(max_size=30),
        datetimes(),
        st.builds(GeoPoint, st.floats(-90, 90), st.floats(-180, 180)),
        keys(max_depth=2),
    ]
    if unindexed:
        kinds += [st.builds(Text, _texts(0, 100)), st.builds(Blob, st.binary(max_size=100))]
        kinds += [st.integers(1500, 5000).map(lambda size: Text("x" * size))]
    return st.one_of(kinds)


def _embedded(children: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Dicts and embedded entities."""
    inner = st.dictionaries(names(30), children, max_size=3)
    hidden = st.lists(st.booleans(), min_size=3, max_size=3)
    return st.one_of(inner, st.builds(_entity, keys(max_depth=2, complete=False), inner, hidden))


@functools.cache
def values() -> SearchStrategy[Any]:
    """Anything a property can hold."""
    nested = st.recursive(
        single_values(unindexed=True),
        lambda children: _embedded(st.one_of(children, st.lists(children, max_size=3).filter(_flat))),
        max_leaves=6,
    )
    return st.one_of(nested, st.lists(nested, max_size=5))


def _flat(items: list[Any]) -> bool:
    return not any(isinstance(item, list) for item in items)


@functools.cache
def entities() -> SearchStrategy[Entity]:
    """Entities of every shape, some of their properties unindexed."""
    properties = st.dictionaries(names(200), values(), max_size=6)
    return st.builds(_entity, keys(), properties, st.lists(st.booleans(), min_size=6, max_size=6))


def _entity(key: Key, properties: dict[str, Any], hidden: Sequence[bool]) -> Entity:
    return Entity(key, properties, unindexed=itertools.compress(properties, hidden))


# -------------------------------------------------------------------------------------- small worlds


@dataclass(frozen=True, eq=False)
class World:
    """Few kinds, keys, properties and values, so that what is written is also found, overwritten and in order.

    ``kinds`` and ``names`` hold look-alikes; ``values`` are of every type; most properties are lists at times.
    """

    kinds: tuple[str, ...] = ("K", "Ka", "K\x00")
    names: tuple[str, ...] = ("a", "b", "c", "a b")
    values: tuple[Any, ...] = (
        None, False, True, 0, 1, 2, 3, 1.0, -0.0, float("nan"), EPOCH + timedelta(microseconds=2), "", "a", "a\x00",
        "ab", b"a", "b", GeoPoint(1, 2), Key("K", 1),
    )  # fmt: skip
    namespace: str = ""

    @functools.cache  # noqa: B019  # a world lives as long as its module
    def keys(self) -> SearchStrategy[Key]:
        """Three generations: few enough that ancestors often exist."""
        roots = st.builds(
            lambda kind, ident: Key(kind, ident, namespace=self.namespace),
            st.sampled_from(self.kinds),
            st.sampled_from((1, 2, 3, "1", "a", "ab")),
        )
        children = st.builds(
            lambda parent, kind, ident: Key(kind, ident, parent=parent),
            roots,
            st.sampled_from(self.kinds),
            st.sampled_from((1, 2, "a")),
        )
        return _named("keys", st.one_of(roots, roots, children))

    @functools.cache  # noqa: B019
    def single(self) -> SearchStrategy[Any]:
        """One of the world's values, mostly its few small integers, so that values repeat."""
        return _named("values", st.one_of(st.integers(0, 3), st.sampled_from(self.values)))

    @functools.cache  # noqa: B019
    def property_values(self) -> SearchStrategy[Any]:
        """Single, list, unindexed and embedded values."""
        return _named(
            "property_values",
            st.one_of(
                self.single(),
                self.single(),
                st.lists(st.one_of(self.single(), self.single(), st.just(Text("t"))), max_size=4),
                st.sampled_from((Text("a"), Blob(b"a"))),
                st.dictionaries(st.sampled_from(("a", "b")), self.single(), max_size=2),
            ),
        )

    @functools.cache  # noqa: B019
    def entities(self) -> SearchStrategy[Entity]:
        """Entities of this world."""
        properties = st.dictionaries(st.sampled_from(self.names), self.property_values(), max_size=4)
        some = st.lists(st.sampled_from((False, False, True)), min_size=4, max_size=4)
        return _named("entities", st.builds(_entity, self.keys(), properties, st.one_of(st.just(()), some)))

    # ----------------------------------------------------------------------------------- queries

    @functools.cache  # noqa: B019
    def filters(self, *names: str) -> SearchStrategy[PropertyFilter]:
        """A filter on one of the properties."""
        return st.one_of([self._filter(name) for name in names])

    @functools.cache  # noqa: B019
    def _filter(self, name: str) -> SearchStrategy[PropertyFilter]:
        value: SearchStrategy[Any] = self.keys() if name == "__key__" else self.single()
        plain = st.builds(PropertyFilter, st.just(name), st.sampled_from(("=", "=", "<", "<=", ">", ">=")), value)
        several = st.builds(
            PropertyFilter,
            st.just(name),
            st.sampled_from(("in", "in", "not in")),
            st.lists(value, min_size=1, max_size=3),
        )
        other = st.builds(PropertyFilter, st.just(name), st.just("!="), value)
        return _named("filters", st.one_of(plain, plain, plain, several, other))

    @functools.cache  # noqa: B019
    def _conditions(self, *names: str) -> SearchStrategy[list[Any]]:
        """None to three filters, at times one of them nested."""
        leaf = self.filters(*names)
        either = st.builds(Or, leaf, leaf)
        nested = st.one_of(either, st.builds(Or, st.builds(And, leaf, leaf), leaf), st.builds(And, leaf, either))
        plain = st.lists(leaf, max_size=3)
        mixed = st.builds(lambda some, other: [*some[:1], other], plain, nested)
        return _named("conditions", st.one_of(plain, plain, plain, mixed))

    @functools.cache  # noqa: B019
    def queries(self, *, projections: bool = True, limits: bool = True) -> SearchStrategy[Query]:
        """Queries of every form that has an answer; without ``limits`` also without offset."""
        names = (*self.names, "a.b")
        orders = st.builds(Order, st.sampled_from((*names, "__key__")), st.booleans())
        counts = st.one_of(st.none(), st.integers(0, 6)) if limits else st.none()
        skips = st.sampled_from((0, 0, 0, 1, 2, 5)) if limits else st.just(0)
        ancestors = st.one_of(st.none(), st.none(), st.none(), self.keys())
        of_kind = st.builds(
            _query,
            st.sampled_from((*self.kinds[:1] * 4, *self.kinds)),
            st.just(self.namespace),
            ancestors,
            self._conditions(*names, *names, "__key__"),
            st.lists(orders, max_size=3),
            st.sampled_from((False, False, False, True)),
            st.one_of(
                st.just(()), st.just(()), st.lists(st.sampled_from(self.names), min_size=1, max_size=3, unique=True)
            )
            if projections
            else st.just(()),
            st.booleans(),
            counts,
            skips,
        )
        kindless = st.builds(
            _query,
            st.none(),
            st.just(self.namespace),
            ancestors,
            self._conditions("__key__"),
            st.lists(st.just(Order("__key__")), max_size=1),
            st.booleans(),
            st.just(()),
            st.just(False),
            counts,
            skips,
        )
        return _named(
            "queries", _named("any_queries", st.one_of(of_kind, of_kind, of_kind, of_kind, kindless)).filter(_moderate)
        )


def _query(
    kind: str | None,
    namespace: str,
    ancestor: Key | None,
    conditions: list[Any],
    orders: list[Order],
    keys_only: bool,
    projection: Sequence[str],
    distinct: bool,
    limit: int | None,
    offset: int,
) -> Query:
    """A query of these parts; of the projection what is allowed beside the filters."""
    query = Query(kind, namespace=namespace, filters=conditions, orders=orders, limit=limit, offset=offset)
    if ancestor is not None:
        query = query.under(ancestor)
    leaves = [leaf for node in conditions for leaf in _leaves(node)]
    equal = {leaf.name for leaf in leaves if str(leaf.op) in ("=", "in")}
    projected = [name for name in projection if name not in equal]
    if not projected:
        return query.keys_only() if keys_only else query
    query = query.project(*projected)
    ranged = {leaf.name for leaf in leaves if str(leaf.op) not in ("=", "in")}
    if distinct and ranged | {order.name for order in orders} <= set(projected):
        return query.distinct()
    return query


def _leaves(node: Any) -> list[PropertyFilter]:
    return [node] if isinstance(node, PropertyFilter) else [leaf for part in node.filters for leaf in _leaves(part)]


def _moderate(query: Query) -> bool:
    """Not more branches than a query may have."""

    def branches(node: Any) -> int:
        if isinstance(node, Or):
            return sum(map(branches, node.filters))
        if isinstance(node, And):
            total = 1
            for part in node.filters:
                total *= branches(part)
            return total
        op = str(node.op)
        return len(node.value) + (op == "not in") if op in ("in", "not in") else 2 if op == "!=" else 1

    total = 1
    for node in query.filters:
        total *= branches(node)
    return total <= 30
