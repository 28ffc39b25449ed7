"""Queries in normal form: branches of simple conditions, one order, and what both say of an entity.

A query is brought into disjunctive normal form: ``in``, ``!=``, ``not in`` and ``Or`` become :class:`Branch`
after branch, each a conjunction of equalities and one range a property, in index encoding. All branches share
one *effective order*: the query's orders (less those that an equality makes constant, repeated ones, and what
follows ``__key__``), then the inequality property, then what is projected, then the key. A result's *position*
is the concatenation of its order components (descending ones inverted) and its key, so positions order results
as bytes, on every adapter alike; a cursor is a position.

The rules are App Engine's, as the golden cases show them: a list matches by its elements, all inequalities of
a property by the same element; the element that positions an entity is the least (descending: greatest) of
those that satisfy the inequalities; a projection has a row for each combination of values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiodatastore.cursor import Cursor
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, BadFilterError
from aiodatastore.indexing.encoding import (
    component_end,
    decode_value,
    encode_key,
    encode_partition,
    encode_value,
    invert,
    key_end,
)
from aiodatastore.indexing.rows import IndexedValues, indexed_values
from aiodatastore.key import Key
from aiodatastore.query import And, Op, Or, PropertyFilter, Query

__all__ = [
    "KEY",
    "MAX_BRANCHES",
    "SIMPLE_OPERATORS",
    "Branch",
    "NormalQuery",
    "OrderBy",
    "Prepared",
    "Range",
    "cursor_at",
    "key_direction",
    "normalize",
    "prepare",
    "query_name",
    "types_of",
]

MAX_BRANCHES = 100
KEY = "__key__"
_AFTER = b"\xff"
"""Appended to an encoded value or key: after everything that begins with it."""


@dataclass(slots=True)
class Range:
    """Encoded values ``lo <= value < hi`` (a bound that includes its value has been moved past it)."""

    lo: bytes = b""
    hi: bytes = _AFTER

    def __contains__(self, value: bytes) -> bool:
        return self.lo <= value < self.hi

    def narrowed(self, op: Op, value: bytes) -> Range:
        """This range and one more inequality."""
        if op is Op.GT:
            return Range(max(self.lo, value + _AFTER), self.hi)
        if op is Op.GE:
            return Range(max(self.lo, value), self.hi)
        if op is Op.LT:
            return Range(self.lo, min(self.hi, value))
        return Range(self.lo, min(self.hi, value + _AFTER))


@dataclass(slots=True)
class OrderBy:
    """One component of the effective order."""

    name: str
    descending: bool


@dataclass(slots=True)
class Branch:
    """A conjunction: all of it in index encoding.

    ``equals`` maps a property to the values of which it must have each; ``ranges`` a property to what one of
    its values must lie in; keys lie in ``key_lo <= key < key_hi``. ``constant`` has the order components that
    an equality fixes.
    """

    kind: str | None
    project: str
    namespace: str
    ancestor: Key | None
    equals: Mapping[str, tuple[bytes, ...]]
    ranges: Mapping[str, Range]
    key_lo: bytes
    key_hi: bytes
    constant: Mapping[str, bytes]

    @property
    def empty(self) -> bool:
        """Whether no entity can match."""
        return self.key_lo >= self.key_hi or any(r.lo >= r.hi for r in self.ranges.values())

    def choices(
        self, values: IndexedValues, orders: Sequence[OrderBy], kind: str, key: bytes
    ) -> list[list[bytes]] | None:
        """For each order component the values that may position an entity, or None if it does not match."""
        if (self.kind is not None and kind != self.kind) or not self.key_lo <= key < self.key_hi:
            return None
        for name, wanted in self.equals.items():
            found = values.get(name)
            if found is None or any(value not in found for value in wanted):
                return None
        allowed: dict[str, list[bytes]] = {}
        for name, bounds in self.ranges.items():
            inside = [value for value in values.get(name, ()) if value in bounds]
            if not inside:
                return None
            allowed[name] = inside
        result: list[list[bytes]] = []
        for order in orders:
            candidates = allowed.get(order.name)
            if candidates is None:
                fixed = self.constant.get(order.name)
                candidates = [fixed] if fixed is not None else list(values.get(order.name, ()))
                if not candidates:
                    return None
            result.append(candidates)
        return result


class NormalQuery:
    """A query's branches and effective order; made by :func:`normalize`, immutable.

    ``orders`` are the components before the key, ``trailing`` (only in a projection that is ordered by
    ``__key__``) those after it. ``distinct`` is how many leading components results must differ in; 0: no
    ``distinct``. ``once``: an entity (in a merged projection: an entity with equal projected values) is a result
    only where it comes first, though several rows may lead to it. ``mirrored``: the query is read backwards from a
    cursor of its reverse, so an entity stands where it did there: what comes last is what came first.
    """

    __slots__ = (
        "branches",
        "components",
        "distinct",
        "key_descending",
        "mirrored",
        "once",
        "orders",
        "projection",
        "query",
        "trailing",
    )

    def __init__(
        self,
        query: Query,
        branches: tuple[Branch, ...],
        orders: tuple[OrderBy, ...],
        trailing: tuple[OrderBy, ...],
        key_descending: bool,
        distinct: int,
        *,
        merged: bool,
        mirrored: bool,
    ) -> None:
        self.query = query
        self.branches = branches
        self.orders = orders
        self.trailing = trailing
        self.components = orders + trailing
        self.key_descending = key_descending
        self.projection = query.projection
        self.distinct = distinct
        self.mirrored = mirrored
        projected = set(query.projection)
        self.once = not projected or (merged and any(order.name not in projected for order in self.components))

    # ---- positions

    def key_part(self, key: bytes) -> bytes:
        """A key as it stands in a position."""
        return invert(key + b"\x00") if self.key_descending else key + b"\x00"

    def position(self, components: Sequence[bytes], key: bytes) -> bytes:
        """A position of ascending components (inverted here where the order is descending) and a key."""
        parts = [
            invert(value) if order.descending else value
            for order, value in zip(self.components, components, strict=True)
        ]
        parts.insert(len(self.orders), self.key_part(key))
        return b"".join(parts)

    def split(self, position: bytes) -> tuple[list[bytes], bytes]:
        """The ascending components and the key of a position.

        :raises CorruptDataError: if it is none of this query's
        """
        components: list[bytes] = []
        start = 0
        key = b""
        for place, order in enumerate((*self.components, None)):
            if place == len(self.orders):
                end = key_end(position, start, inverted=self.key_descending)
                part = position[start:end]
                key = (invert(part) if self.key_descending else part)[:-1]
                start = end
            if order is not None:
                end = component_end(position, start, inverted=order.descending)
                part = position[start:end]
                components.append(invert(part) if order.descending else part)
                start = end
        return components, key

    def prefix_end(self, position: bytes, count: int) -> int:
        """Where the first ``count`` components (of ``orders``) of a position end."""
        end = 0
        for order in self.orders[:count]:
            end = component_end(position, end, inverted=order.descending)
        return end

    # ---- entities

    def positions(self, key: Key, values: IndexedValues) -> list[bytes]:
        """Where an entity stands in the results, ascending: nowhere, once, or (projections) several times."""
        encoded = encode_key(key)
        kind = key.kind
        found: set[bytes] = set()
        for branch in self.branches:
            choices = branch.choices(values, self.components, kind, encoded)
            if choices is None:
                continue
            if self.projection:
                for combination in itertools.product(*choices):
                    found.add(self.position(combination, encoded))
            else:
                best = [
                    max(candidates) if order.descending != self.mirrored else min(candidates)
                    for order, candidates in zip(self.components, choices, strict=True)
                ]
                found.add(self.position(best, encoded))
        if len(found) < 2 or not self.once:
            return sorted(found)
        first: dict[tuple[bytes, ...], bytes] = {}
        for position in sorted(found, reverse=self.mirrored):
            first.setdefault(self._projected_part(position), position)
        return sorted(first.values())

    def _projected_part(self, position: bytes) -> tuple[bytes, ...]:
        components, _ = self.split(position)
        return tuple(
            value for order, value in zip(self.components, components, strict=True) if order.name in self.projection
        )

    def matches(self, entity: Entity) -> list[tuple[bytes, Any]]:
        """Positions and results (entities, keys, projected entities) of an entity; empty if it is no result."""
        key = entity.key
        project, namespace = self.partition
        if key.project != project or key.namespace != namespace:
            return []
        values = indexed_values(entity)
        positions = self.positions(key, values)
        if not positions:
            return []
        if self.projection:
            return [(place, self.projected(key, place, entity.version, types_of(values))) for place in positions]
        result = key if self.query.only_keys else entity.copy()
        return [(position, result) for position in positions]

    def projected(
        self, key: Key, position: bytes, version: int, alternate: Callable[[int, str, bytes], bool]
    ) -> Entity:
        """A projected entity from a position; ``alternate`` tells a component's type from its place, name, value."""
        components, _ = self.split(position)
        found = {
            order.name: decode_value(value, alternate=alternate(place, order.name, value))
            for place, (order, value) in enumerate(zip(self.components, components, strict=True))
            if order.name in self.projection
        }
        return Entity._make(key, {name: found[name] for name in self.projection}, frozenset(), version, True)

    @property
    def partition(self) -> tuple[str, str]:
        """Project and namespace."""
        return self.query.project_id, self.query.namespace


def types_of(values: IndexedValues) -> Callable[[int, str, bytes], bool]:
    """For :meth:`NormalQuery.projected`: the types that an entity's own values have."""
    return lambda _place, name, value: values[name][value]


# -------------------------------------------------------------------------------------- normalizing


_Condition = tuple[str, Op, Any]


def _expand(node: PropertyFilter | And | Or) -> list[list[_Condition]]:
    """A filter in disjunctive normal form."""
    if isinstance(node, And):
        return _product([_expand(child) for child in node.filters])
    if isinstance(node, Or):
        return [conditions for child in node.filters for conditions in _expand(child)]
    name, op, value = node.name, node.op, node.value
    if op is Op.IN:
        return [[(name, Op.EQ, alternative)] for alternative in _unique(value)]
    if op is Op.NE:
        return [[(name, Op.LT, value)], [(name, Op.GT, value)]]
    if op is Op.NOT_IN:
        ordered = sorted(_unique(value), key=encode_value)
        if not ordered:
            return [[(name, Op.GE, None)]]
        gaps: list[list[_Condition]] = [[(name, Op.LT, ordered[0])]]
        gaps += [[(name, Op.GT, a), (name, Op.LT, b)] for a, b in itertools.pairwise(ordered)]
        gaps.append([(name, Op.GT, ordered[-1])])
        return gaps
    return [[(name, op, value)]]


def _unique(values: Iterable[Any]) -> list[Any]:
    return list({encode_value(value): value for value in values}.values())


def _product(factors: list[list[list[_Condition]]]) -> list[list[_Condition]]:
    total = 1
    for factor in factors:
        total *= len(factor)
        if total > MAX_BRANCHES:
            raise BadFilterError(
                f"the filters come to more than {MAX_BRANCHES} alternatives (in, !=, not in and Or multiply): "
                "ask for fewer values, or run several queries"
            )
    return [[condition for part in combination for condition in part] for combination in itertools.product(*factors)]


def _branch(query: Query, conditions: Iterable[_Condition]) -> Branch:
    project, namespace = query.project_id, query.namespace
    equals: dict[str, dict[bytes, None]] = {}
    ranges: dict[str, Range] = {}
    key_range = Range(encode_partition(project, namespace), encode_partition(project, namespace) + _AFTER)
    if query.ancestor is not None:
        ancestor = encode_key(query.ancestor)
        key_range = Range(ancestor, ancestor + _AFTER)
    for name, op, value in conditions:
        if name == KEY:
            key = encode_key(value)
            # Descendants of a key begin with it, so "just after the key" is key + 00, not key + ff.
            lo, hi = key_range.lo, key_range.hi
            if op in (Op.EQ, Op.GE):
                lo = max(lo, key)
            if op is Op.GT:
                lo = max(lo, key + b"\x00")
            if op in (Op.EQ, Op.LE):
                hi = min(hi, key + b"\x00")
            if op is Op.LT:
                hi = min(hi, key)
            key_range = Range(lo, hi)
            continue
        encoded = encode_value(value)
        if op is Op.EQ:
            equals.setdefault(name, {})[encoded] = None
        else:
            ranges[name] = ranges.get(name, Range()).narrowed(op, encoded)
    frozen = {name: tuple(found) for name, found in equals.items()}
    return Branch(
        kind=query.kind,
        project=project,
        namespace=namespace,
        ancestor=query.ancestor,
        equals=frozen,
        ranges=ranges,
        key_lo=key_range.lo,
        key_hi=key_range.hi,
        constant={name: found[0] for name, found in frozen.items() if name not in ranges},
    )


SIMPLE_OPERATORS = frozenset((Op.EQ, Op.LT, Op.LE, Op.GT, Op.GE))


def _branches(query: Query) -> Iterator[tuple[Query, list[_Condition]]]:
    if not query.subqueries:
        conditions: list[_Condition] = []
        for node in query.filters:
            if type(node) is not PropertyFilter or node.op not in SIMPLE_OPERATORS:
                break
            conditions.append((node.name, node.op, node.value))
        else:  # what most queries are: a plain conjunction
            yield query, conditions
            return
    for part in query.subqueries or (query,):
        # A multi-query's own filters (if any were added to the union) hold for each of its parts.
        filters = (*part.filters, *query.filters) if part is not query else part.filters
        for conditions in _product([_expand(node) for node in filters]):
            yield part, conditions


class Prepared:
    """What is made once of a query that several adapters run: its normal form, and the plans for it.

    ``plans`` are the engines': each with the indexes that it was made with.
    """

    __slots__ = ("normal", "plans")

    def __init__(self, normal: NormalQuery) -> None:
        self.normal = normal
        self.plans: list[tuple[Any, Any]] = []

    def give(self, query: Query) -> None:
        """Let those who run the query find this; a query that is made from it does not have it.

        To be called with a query of one's own, which differs in limit and offset only from the one this is of.
        """
        query.__dict__["_prepared"] = self


_MAX_PREPARED = 512
_prepared: dict[Hashable, Prepared] = {}


def prepare(query: Query) -> Prepared:
    """What is made of a query; what was made of an equal one of late, if its limit and offset alone differ.

    :raises BadFilterError: as :func:`normalize`
    """
    name = query_name(query)
    known = None if name is None else _prepared.get(name)
    if known is None:
        known = Prepared(normalize(query))
        if name is not None:
            if len(_prepared) >= _MAX_PREPARED:
                _prepared.clear()
            _prepared[name] = known
    return known


_NAMED = frozenset((type(None), bool, int, str, bytes, Key))
"""Values that are equal only where they are the same to an index, given their type: 0.0 and -0.0 are not."""


def query_name(query: Query) -> Hashable | None:
    """What normal forms and plans are remembered by: equal only for queries that have them alike. None: not at all.

    Limit, offset and the places of cursors do not count.
    """
    if query.subqueries:
        return None
    filters: list[Any] = []
    for node in query.filters:
        if type(node) is not PropertyFilter:
            return None
        value = node.value
        kind = type(value)
        if kind is tuple:
            if not _NAMED.issuperset(map(type, value)):
                return None
            filters += (node.name, node.op, *map(type, value), value)
        elif kind in _NAMED:
            filters += (node.name, node.op, kind, value)
        else:
            return None
    return (
        query.kind,
        query.project_id,
        query.namespace,
        query.ancestor,
        query.only_keys,
        query.projection,
        query.distinct_names,
        key_direction(query),
        *[(order.name, order.descending) for order in query.orders],
        *filters,
    )


def normalize(query: Query) -> NormalQuery:
    """Bring a query into normal form. A start or end cursor of the reversed query makes it ``mirrored``.

    :raises BadFilterError: if it comes to more than :data:`MAX_BRANCHES` branches
    """
    prepared: Prepared | None = query._prepared
    if prepared is not None:
        return prepared.normal
    expanded = list(_branches(query))
    if len(expanded) > MAX_BRANCHES:
        raise BadArgumentError(f"a query has at most {MAX_BRANCHES} branches, this one has {len(expanded)}")
    branches = [_branch(part, conditions) for part, conditions in expanded]

    key_only = len(expanded) == 1 and any(name == KEY and op is Op.EQ for name, op, _ in expanded[0][1])
    orders: dict[str, bool] = {}
    trailing: dict[str, bool] = {}
    key_descending, mirrored = key_direction(query)
    implied = orders
    for order in query.orders:
        if order.name == KEY:
            implied = orders if key_only else trailing
            break
        if not key_only and not _is_constant(order.name, branches):
            orders.setdefault(order.name, order.descending)
    if not query.orders and not key_only:
        inequality = _shared_inequality(expanded, branches)
        if inequality is not None:
            orders[inequality] = False
        elif all(any(name == KEY and op is not Op.EQ for name, op, _ in part) for _, part in expanded):
            implied = trailing  # the key is the inequality property
    if query.projection and branches:
        ranged = [name for name in branches[0].ranges if all(name in branch.ranges for branch in branches)]
        for name in (*ranged, *sorted(query.distinct_names), *sorted(query.projection)):
            if name not in orders:
                implied.setdefault(name, False)
    # What is implied and can't be spelled out (because nothing counts after the key) is not flipped by reversing.
    effective = tuple(OrderBy(name, mirrored if key_only else descending) for name, descending in orders.items())
    after_key = tuple(OrderBy(name, mirrored) for name in trailing)
    distinct = 0
    wanted = set(query.distinct_names)
    for component in effective:
        if not wanted:
            break
        wanted.discard(component.name)
        distinct += 1
    live = tuple(branch for branch in branches if not branch.empty)
    return NormalQuery(
        query, live, effective, after_key, key_descending, distinct, merged=len(expanded) > 1, mirrored=mirrored
    )


def key_direction(query: Query) -> tuple[bool, bool]:
    """Whether keys descend, and whether a query is ``mirrored``, see :class:`NormalQuery`."""
    descending = next((order.descending for order in query.orders if order.name == KEY), False)
    for cursor in (query.start_cursor, query.end_cursor):
        if cursor is not None and cursor.position and (cursor.inverted != descending) != cursor.mirrored:
            return descending, True
    return descending, False


def cursor_at(query: Query, position: bytes) -> Cursor:
    """The cursor of a position in a query's results."""
    descending, mirrored = key_direction(query)
    return Cursor(position, query.shape, descending, mirrored)


def _is_constant(name: str, branches: list[Branch]) -> bool:
    """Whether every branch fixes the property to the same value."""
    values = {branch.constant.get(name) for branch in branches}
    return len(values) == 1 and None not in values


def _shared_inequality(expanded: list[tuple[Query, list[_Condition]]], branches: list[Branch]) -> str | None:
    """The property that orders a query without orders: the first one that every branch has in a range."""
    if not branches:
        return None
    for name, op, _ in expanded[0][1]:
        if op is not Op.EQ and name != KEY and all(name in branch.ranges for branch in branches):
            return name
    return None
