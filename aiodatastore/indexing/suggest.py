"""Which composite index a query needs.

The rules are those of App Engine (``datastore_index.py``: ``CompositeIndexForQuery`` and
``MinimalCompositeIndexForQuery``), so that an ``index.yaml`` that serves an application there is complete
here, and the suggestions are the same. They are about queries only: what the planner could do without an
index does not matter. Where a query can do more than App Engine's (inequalities on several properties,
``Or``), the rules are extended, never changed.

Built in, and never suggested: a kind; a kind and one filter property or one order; any equality filters with
or without an ancestor; an ancestor without a kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from aiodatastore.errors import NeedIndexError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.query import And, Op, Or, PropertyFilter, Query

__all__ = [
    "RequiredIndex",
    "minimal_index",
    "missing_indexes",
    "need_index",
    "required_index",
    "required_indexes",
]

KEY = "__key__"


@dataclass(frozen=True, slots=True)
class RequiredIndex:
    """The shape of an index that serves a query, as App Engine describes it.

    First the ``equality`` properties in any order and direction, then ``ordered`` exactly (direction None:
    either), then ``group_by`` and then ``any_order``, both in any order and direction. ``required`` is False
    where built-in indexes serve the query. ``recommended`` is the canonical choice, None if none is required.
    """

    required: bool
    kind: str | None
    equality: tuple[str, ...] = ()
    ordered: tuple[tuple[str, str | None], ...] = ()
    group_by: tuple[str, ...] = ()
    any_order: tuple[str, ...] = ()
    ancestor: bool = False

    @property
    def recommended(self) -> IndexDefinition | None:
        """Equality properties by name, then the others, ascending where the direction is free."""
        if not self.required or self.kind is None:
            return None
        return IndexDefinition(
            self.kind,
            (
                *((name, "asc") for name in self.equality),
                *((name, direction or "asc") for name, direction in self.ordered),
                *((name, "asc") for name in (*self.group_by, *self.any_order)),
            ),
            self.ancestor,
        )


def required_index(query: Query) -> RequiredIndex:
    """The index that serves ``query``, whether or not it exists.

    For a query of several branches (``Or``, unions) the first one that is required, otherwise the first; see
    :func:`required_indexes`.
    """
    every = required_indexes(query)
    return next((index for index in every if index.required), every[0])


def required_indexes(query: Query) -> list[RequiredIndex]:
    """The index of each branch of ``query``, each once: never empty."""
    found: dict[RequiredIndex, None] = {}
    for part in query.subqueries or (query,):
        for shape in _all_of(part.filters):
            found[_required(part, shape)] = None
    return list(found) or [RequiredIndex(False, query.kind)]  # an empty Or finds nothing


def minimal_index(query: Query, defined: Sequence[IndexDefinition]) -> IndexDefinition | None:
    """What has to be added to the indexes ``defined`` to serve ``query``; None if they serve it.

    Several indexes may serve a query together if each ends in the same ordered part, so this may be smaller
    than the recommended one; if no defined index helps, it is the recommended one. For a query of several
    branches: the first missing.
    """
    missing = missing_indexes(query, defined)
    return missing[0][1] if missing else None


def missing_indexes(query: Query, defined: Sequence[IndexDefinition]) -> list[tuple[IndexDefinition, IndexDefinition]]:
    """(recommended, minimal) for each branch of ``query`` that the indexes ``defined`` don't serve."""
    found: dict[tuple[IndexDefinition, IndexDefinition], None] = {}
    for index in required_indexes(query):
        recommended = index.recommended
        if recommended is None:
            continue
        minimal = _minimal(index, recommended, defined)
        if minimal is not None:
            found[recommended, minimal] = None
    return list(found)


def need_index(query: Query, defined: Sequence[IndexDefinition]) -> NeedIndexError | None:
    """The error that says what ``query`` needs beyond the indexes ``defined``; None if they serve it.

    Its ``yaml`` and ``xml`` are App Engine's suggestion; for a query of several branches they list every
    missing index, while ``definition`` and ``minimal`` are the first.
    """
    missing = missing_indexes(query, defined)
    if not missing:
        return None
    yaml = "\n\n".join(recommended.to_yaml() for recommended, _ in missing)
    xml = "\n".join(recommended.to_xml() for recommended, _ in missing)
    definition, minimal = missing[0]
    which = "a composite index" if len(missing) == 1 else f"{len(missing)} composite indexes"
    message = f"the query needs {which} that is not defined; add to index.yaml:\n{yaml}"
    if len(missing) > 1:
        message = message.replace("that is", "that are", 1)
    elif minimal != definition:
        message += f"\nor, smaller, together with those already defined:\n{minimal.to_yaml()}"
    return NeedIndexError(message, definition=definition, yaml=yaml, xml=xml, minimal=minimal)


# --------------------------------------------------------------------------------------- branches


@dataclass(frozen=True, slots=True)
class _Shape:
    """The properties that one branch compares, in order of first use."""

    equality: tuple[str, ...] = ()
    inequality: tuple[str, ...] = ()

    def and_(self, other: _Shape) -> _Shape:
        return _Shape(_unique((*self.equality, *other.equality)), _unique((*self.inequality, *other.inequality)))


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _all_of(filters: Iterable[PropertyFilter | And | Or]) -> list[_Shape]:
    """Shapes of the disjunctive normal form. Values don't matter: ``in`` and ``!=`` are one shape each."""
    shapes = [_Shape()]
    for part in filters:
        alternatives = list(_alternatives(part))
        shapes = list(dict.fromkeys(left.and_(right) for left in shapes for right in alternatives))
    return shapes


def _alternatives(part: PropertyFilter | And | Or) -> Iterator[_Shape]:
    if isinstance(part, And):
        yield from _all_of(part.filters)
    elif isinstance(part, Or):
        for alternative in part.filters:
            yield from _alternatives(alternative)
    elif part.op in (Op.EQ, Op.IN):
        yield _Shape(equality=(part.name,))
    else:
        yield _Shape(inequality=(part.name,))


# ------------------------------------------------------------------------------------------ rules


def _required(query: Query, shape: _Shape) -> RequiredIndex:
    group_by = frozenset(query.distinct_names)
    orders, exists = _normalize(query, shape)
    equality, inequality = shape.equality, shape.inequality
    if not exists:
        orders, equality, inequality = _without_native(orders, equality, inequality)

    ordered: list[tuple[str, str | None]] = list(orders)
    if inequality and not ordered:
        ordered.append((next((name for name in inequality if name != KEY), KEY), None))
    # App Engine has one inequality property at most, and it is the first order. Of any others the index
    # must hold the values; the key, which ends every row, is always there.
    placed = {name for name, _ in ordered}
    extra = {name for name in inequality if name not in placed and name != KEY}

    index = RequiredIndex(
        required=True,
        kind=query.kind,
        equality=tuple(sorted(equality)),
        ordered=tuple(ordered),
        group_by=tuple(sorted(exists & group_by)),
        any_order=tuple(sorted((exists - group_by) | extra)),
        ancestor=query.ancestor is not None,
    )
    return replace(index, required=not _is_built_in(index))


def _normalize(query: Query, shape: _Shape) -> tuple[list[tuple[str, str]], frozenset[str]]:
    """The orders that have an effect, and the properties that must merely exist."""
    equality = set(shape.equality) - set(shape.inequality)
    done = set(equality)
    orders: list[tuple[str, str]] = []
    for order in query.orders:
        if order.name not in done:
            done.add(order.name)
            orders.append((order.name, "desc" if order.descending else "asc"))
    exists = frozenset((*query.projection, *query.distinct_names)) - done - set(shape.inequality)
    if KEY in equality:
        return [], exists
    for position, (name, _) in enumerate(orders):
        if name == KEY:
            return orders[: position + 1], exists
    return orders, exists


def _without_native(
    orders: list[tuple[str, str]], equality: tuple[str, ...], inequality: tuple[str, ...]
) -> tuple[list[tuple[str, str]], tuple[str, ...], tuple[str, ...]]:
    """Without what every index can do: end in ascending keys, and then be cut at keys."""
    if orders and orders[-1][0] == KEY:
        if orders[-1][1] == "desc":
            return orders, equality, inequality
        orders = orders[:-1]
    if all(name == KEY for name in inequality):
        return orders, tuple(name for name in equality if name != KEY), ()
    return orders, equality, inequality


def _is_built_in(index: RequiredIndex) -> bool:
    if not index.kind:
        return True
    others = len(index.ordered) + len(index.group_by) + len(index.any_order)
    if not others and KEY not in index.equality:
        return True
    return (
        not index.ancestor
        and len(index.equality) + others <= 1
        and index.ordered[:1] != ((KEY, "desc"),)  # keys are indexed in ascending order only
    )


def _minimal(
    index: RequiredIndex, recommended: IndexDefinition, defined: Sequence[IndexDefinition]
) -> IndexDefinition | None:
    """Defined indexes that end in the same ordered part cover the equality properties together."""
    wanted = frozenset(index.equality)
    left: dict[tuple[tuple[str, str], ...], tuple[frozenset[str], bool]] = {}
    for candidate in defined:
        if candidate.kind != index.kind or (candidate.ancestor and not index.ancestor):
            continue
        length = _prefix_length(index, candidate.properties)
        if length is None:
            continue
        prefix = {name for name, _ in candidate.properties[:length]}
        if not prefix <= wanted:
            continue
        postfix = candidate.properties[length:]
        before = left.get(postfix, (wanted, index.ancestor))
        after = before[0] - prefix, before[1] and not candidate.ancestor
        if not after[0] and not after[1]:
            return None
        if after != before:
            left[postfix] = after
    if not left:
        return recommended
    # Of equal cost App Engine takes the last; an ancestor counts as two properties.
    choices = [*left.items()]
    postfix, (names, ancestor) = min(
        (choices[-1], *choices[:-1]), key=lambda choice: len(choice[1][0]) + 2 * choice[1][1]
    )
    return IndexDefinition(recommended.kind, (*((name, "asc") for name in sorted(names)), *postfix), ancestor)


def _prefix_length(index: RequiredIndex, properties: tuple[tuple[str, str], ...]) -> int | None:
    """How many properties precede the part that ``index`` wants at the end; None if it isn't there."""
    end = len(properties)
    for group in (index.any_order, index.group_by):
        if end < len(group) or {name for name, _ in properties[end - len(group) : end]} != set(group):
            return None
        end -= len(group)
    start = end - len(index.ordered)
    if start < 0:
        return None
    for (name, direction), (wanted_name, wanted) in zip(properties[start:end], index.ordered, strict=True):
        if name != wanted_name or wanted not in (None, direction):
            return None
    return start
