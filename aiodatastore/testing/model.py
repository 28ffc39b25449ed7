"""A naive datastore: a dict of entities and queries by brute force.

It says what every adapter must answer, and shares no code with the engine: no encodings, no index rows, no plans.
A query looks at every entity, at every combination of its values, sorts all of it and slices. The golden
cases of the corpus hold it to the reference implementation (``tests/unit/test_model.py``); the state machines
and the conformance suite hold adapters to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import total_ordering
from typing import Any, TypeAlias

from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.query import And, Or, PropertyFilter, Query
from aiodatastore.values import Blob, GeoPoint, Text

__all__ = ["Model", "ModelRow", "Position", "indexed_values", "rank", "same"]

KEY = "__key__"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

Rank: TypeAlias = tuple[Any, ...]
Position: TypeAlias = tuple[Any, ...]


@total_ordering
class Falling:
    """A rank that sorts the other way round."""

    __slots__ = ("rank",)

    def __init__(self, rank: Rank) -> None:
        self.rank = rank

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Falling) and self.rank == other.rank

    def __lt__(self, other: Falling) -> bool:
        return other.rank < self.rank

    def __hash__(self) -> int:
        return hash(self.rank)

    def __repr__(self) -> str:
        return f"Falling({self.rank!r})"


def _float_rank(value: float) -> Rank:
    if math.isnan(value):
        return (1, 0.0, 0)
    return (0, value, 0 if value == 0 and math.copysign(1, value) < 0 else 1)


def _key_rank(key: Key) -> Rank:
    path = tuple(
        (kind.encode(), (0, ident, b"") if isinstance(ident, int) else (1, 0, str(ident).encode()))
        for kind, ident in key.pairs
    )
    return (key.project.encode(), key.namespace.encode(), path)


def rank(value: Any) -> Rank:
    """What orders a value and makes it equal to another: the README's *index normal form*."""
    if value is None or (isinstance(value, list) and not value):
        return (0,)
    if isinstance(value, bool):
        return (2, value)
    if isinstance(value, int):
        return (1, value)
    if isinstance(value, datetime):
        return (1, (value - EPOCH) // MICROSECOND)
    if isinstance(value, str):
        return (3, value.encode())
    if isinstance(value, bytes):
        return (3, bytes(value))
    if isinstance(value, float):
        return (4, _float_rank(value))
    if isinstance(value, GeoPoint):
        return (5, _float_rank(value.latitude), _float_rank(value.longitude))
    if isinstance(value, Key):
        return (6, _key_rank(value))
    raise TypeError(f"{type(value).__name__} has no place in the order of values")


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal and of the same type, deeply: True is not 1, nan is nan, -0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return _float_rank(left) == _float_rank(right)
    if isinstance(left, GeoPoint):
        return rank(left) == rank(right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        if isinstance(left, Entity) and (
            left.key != right.key or left.unindexed != right.unindexed or left.is_projection != right.is_projection
        ):
            return False
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    return bool(left == right)


def _collect(name: str, value: Any, unindexed: frozenset[str], found: dict[str, list[Any]]) -> None:
    if name in unindexed or isinstance(value, (Text, Blob)):
        return
    if isinstance(value, list):
        if not value:
            found.setdefault(name, []).append(None)
        for item in value:
            _collect(name, item, unindexed, found)
    elif isinstance(value, dict):
        hidden = value.unindexed if isinstance(value, Entity) else frozenset[str]()
        for child, item in value.items():
            if child not in hidden:
                _collect(f"{name}.{child}", item, unindexed, found)
    else:
        found.setdefault(name, []).append(value)


def indexed_values(entity: Entity) -> dict[str, dict[Rank, Any]]:
    """For each property that has indexed values: those values by rank (the first of equals).

    Values of embedded entities are found under ``outer.inner``; what is unindexed is not there; an empty list
    counts as None.
    """
    found: dict[str, list[Any]] = {}
    for name, value in entity.items():
        _collect(name, value, entity.unindexed, found)
    values: dict[str, dict[Rank, Any]] = {}
    for name, items in found.items():
        by_rank = values.setdefault(name, {})
        for item in items:
            by_rank.setdefault(rank(item), item)
    values[KEY] = {rank(entity.key): entity.key}
    return values


Test: TypeAlias = Callable[[Rank], bool]


@dataclass(slots=True)
class Branch:
    """A conjunction: values of which an entity must have each, and tests that one value must pass together."""

    query: Query
    wanted: dict[str, set[Rank]] = field(default_factory=dict)
    first: dict[str, Rank] = field(default_factory=dict)
    tests: dict[str, list[Test]] = field(default_factory=dict)


def _test(op: str, bound: Any) -> Test:
    limit = rank(bound)
    tests: dict[str, Test] = {
        "<": lambda value: value < limit,
        "<=": lambda value: value <= limit,
        ">": lambda value: value > limit,
        ">=": lambda value: value >= limit,
    }
    return tests[op]


Filter: TypeAlias = PropertyFilter | And | Or
Leaf: TypeAlias = tuple[str, str, Any]


def _conjunctions(node: Filter) -> list[list[Leaf]]:
    """Every way to satisfy a filter, each a list of plain conditions that must all hold."""
    if isinstance(node, Or):
        return [way for part in node.filters for way in _conjunctions(part)]
    if isinstance(node, And):
        choices = itertools.product(*(_conjunctions(part) for part in node.filters))
        return [[leaf for way in choice for leaf in way] for choice in choices]
    name, op, value = node.name, str(node.op), node.value
    if op == "in":
        return [[(name, "=", item)] for item in {rank(item): item for item in value}.values()]
    if op in ("!=", "not in"):
        refused = sorted([value] if op == "!=" else value, key=rank)
        gaps = [[(name, "<", refused[0])], [(name, ">", refused[-1])]] if refused else [[(name, ">=", None)]]
        between = [[(name, ">", low), (name, "<", high)] for low, high in itertools.pairwise(refused)]
        return [gaps[0], *between, *gaps[1:]]
    return [[(name, op, value)]]


def _branch(query: Query, leaves: Iterable[Leaf]) -> Branch:
    branch = Branch(query)
    for name, op, value in leaves:
        if op == "=":
            branch.wanted.setdefault(name, set()).add(rank(value))
            branch.first.setdefault(name, rank(value))
        else:
            branch.tests.setdefault(name, []).append(_test(op, value))
    return branch


@dataclass(slots=True)
class ModelRow:
    """One result: ``position`` orders it among the others; ``values`` are a projection's."""

    position: Position
    key: Key
    values: dict[str, Any] | None = None


class Model:
    """Entities in a dict; what a datastore must answer about them.

    >>> model = Model([Entity(Key("A", 1), {"x": 2}), Entity(Key("A", 2), {"x": 1})])
    >>> model.keys(Query("A").order("x"))
    [Key('A', 2), Key('A', 1)]
    """

    def __init__(self, entities: Iterable[Entity] = ()) -> None:
        self.entities: dict[Key, Entity] = {}
        self._indexed: dict[Key, dict[str, dict[Rank, Any]]] = {}
        for entity in entities:
            self.put(entity)

    def copy(self) -> Model:
        """A model of its own with the same entities, which are never changed in place."""
        other = Model()
        other.entities = dict(self.entities)
        other._indexed = dict(self._indexed)
        return other

    def put(self, entity: Entity) -> None:
        """Store a copy."""
        self.entities[entity.key] = entity.copy()
        self._indexed[entity.key] = indexed_values(entity)

    def delete(self, key: Key) -> None:
        """Remove what is there, if anything."""
        self.entities.pop(key, None)
        self._indexed.pop(key, None)

    def get(self, key: Key) -> Entity | None:
        """A copy of the entity, or None."""
        entity = self.entities.get(key)
        return None if entity is None else entity.copy()

    # ------------------------------------------------------------------------------------- queries

    def rows(self, query: Query) -> list[ModelRow]:
        """Every result in order, without the query's cursors, offset and limit."""
        branches = [
            _branch(part, leaves)
            for part in query.subqueries or (query,)
            for leaves in _conjunctions(And(*part.filters) if part is query else And(*part.filters, *query.filters))
        ]
        if not branches:
            return []
        merged = len(branches) > 1
        sorting = _sorting(query, branches)
        rows = [row for branch in branches for row in self._branch_rows(query, branch, sorting)]
        rows = _once(sorted(rows, key=lambda row: row.position), query, merged)
        if not query.distinct_names:
            return rows
        firsts: dict[tuple[Rank, ...], ModelRow] = {}
        for row in rows:
            values = row.values or {}
            firsts.setdefault(tuple(rank(values[name]) for name in query.distinct_names), row)
        return list(firsts.values())

    def run(self, query: Query, *, after: Position | None = None, until: Position | None = None) -> list[ModelRow]:
        """Results behind the position ``after`` up to and with ``until``, then offset and limit."""
        rows = [
            row
            for row in self.rows(query)
            if (after is None or after < row.position) and (until is None or row.position <= until)
        ]
        stop = None if query.max_results is None else query.skip + query.max_results
        return rows[query.skip : stop]

    def keys(self, query: Query) -> list[Key]:
        """The keys of :meth:`run`'s results."""
        return [row.key for row in self.run(query)]

    def results(self, query: Query) -> list[Any]:
        """Entities, keys or projected entities, as a datastore returns them."""
        return [self.result(query, row) for row in self.run(query)]

    def result(self, query: Query, row: ModelRow) -> Any:
        """What a datastore returns for a row."""
        if query.only_keys:
            return row.key
        if row.values is not None:
            return Entity._make(row.key, dict(row.values), frozenset(), 0, is_projection=True)
        return self.entities[row.key].copy()

    def count(self, query: Query) -> int:
        """How many results, offset and limit included."""
        return len(self.run(query))

    def _candidates(self, query: Query) -> Iterator[tuple[Entity, dict[str, dict[Rank, Any]]]]:
        for entity in self.entities.values():
            key, ancestor = entity.key, query.ancestor
            if (key.project, key.namespace) != (query.project_id, query.namespace):
                continue
            if query.kind is not None and key.kind != query.kind:
                continue
            if ancestor is None or key.pairs[: len(ancestor.pairs)] == ancestor.pairs:
                yield entity, self._indexed[key]

    def _branch_rows(self, query: Query, branch: Branch, sorting: list[tuple[str, bool]]) -> Iterator[ModelRow]:
        """A row for every combination of values that could position an entity; most of them too many."""
        needed = dict.fromkeys([*(name for name, _ in sorting), *query.projection, *branch.tests])
        for entity, values in self._candidates(branch.query):
            if not all(wanted <= values.get(name, {}).keys() for name, wanted in branch.wanted.items()):
                continue
            choices: list[list[tuple[Rank, Any]]] = []
            for name in needed:
                allowed = list(values.get(name, {}).items())
                if name in branch.tests:
                    allowed = [item for item in allowed if all(test(item[0]) for test in branch.tests[name])]
                elif name in branch.wanted:
                    allowed = [item for item in allowed if item[0] == branch.first[name]]
                choices.append(allowed)
            for choice in itertools.product(*choices):
                chosen = dict(zip(needed, choice, strict=True))
                ranks = [Falling(chosen[name][0]) if falling else chosen[name][0] for name, falling in sorting]
                projected = {name: chosen[name][1] for name in query.projection}
                yield ModelRow((*ranks, _key_rank(entity.key)), entity.key, projected if query.projection else None)


def _sorting(query: Query, branches: Sequence[Branch]) -> list[tuple[str, bool]]:
    """What the results of all branches are ordered by, before their keys."""
    sorting: dict[str, bool] = {}
    only = branches[0] if len(branches) == 1 else None
    for order in query.orders if only is None or KEY not in only.wanted else ():
        if only is None or order.name not in only.wanted or order.name in only.tests:
            sorting.setdefault(order.name, order.descending)
        if order.name == KEY:
            break
    ranged = [name for name in branches[0].tests if all(name in each.tests for each in branches)]
    if not query.orders:
        ranged.sort(key=lambda name: name == KEY)  # any other property comes first
        sorting.update((name, False) for name in ranged[:1])
    if query.projection:
        for name in (*ranged, *sorted(query.distinct_names), *sorted(query.projection)):
            if name != KEY:
                sorting.setdefault(name, False)
    return list(sorting.items())


def _once(rows: Iterable[ModelRow], query: Query, merged: bool) -> list[ModelRow]:
    """Whole entities once, where they come first; of a projection every row that differs.

    Plain projections have a row for each combination of all values that play a part, which their positions tell
    apart; merged ones show an entity with the same projected values once.
    """
    firsts: dict[Any, ModelRow] = {}
    for row in rows:
        identity: Any = row.key
        if row.values is not None:
            shown = tuple(rank(row.values[name]) for name in query.projection)
            identity = (row.key, shown, None if merged else row.position)
        firsts.setdefault(identity, row)
    return list(firsts.values())
