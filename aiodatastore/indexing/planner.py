"""Choosing index spans for each branch of a query.

A branch is served by *accesses*: one span, or several that are intersected because the rows behind their
prefixes (order components, then the key) are alike. ``ordered`` reads the branch's results in the query's
order, ``filtered`` reads the fewest rows and has to be sorted. Where ``ordered`` is *exact* nothing else is
needed; otherwise execution takes ``filtered`` while it is small and changes to ``ordered`` when it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiodatastore.indexing.encoding import component_end, encode_partition, invert
from aiodatastore.indexing.normal import Branch, NormalQuery, OrderBy, Range
from aiodatastore.indexing.rows import CompositeIndex, composite_prefix, kind_prefix, property_prefix
from aiodatastore.rowstore import Space

__all__ = ["Access", "BranchPlan", "SpanPlan", "key_is_bounded", "plan_branch", "stored_bounds"]

_AFTER = b"\xff"


@dataclass(slots=True)
class SpanPlan:
    """Rows that begin with ``prefix``: what remains of them is order components and the key.

    The prefix is ``base``, where the rows are an ancestor's (``by_ancestor``) its key, and what the filters say of the
    properties in ``values``, inverted or not. ``covers`` are the equalities it satisfies. ``places`` says which
    component of the index (for the types in a row's tail) each order component is.
    """

    space: Space
    prefix: bytes
    label: str
    covers: frozenset[tuple[str, bytes]] = frozenset()
    places: tuple[int, ...] = ()
    by_ancestor: bool = False
    base: bytes = b""
    values: tuple[tuple[str, bool], ...] = ()


@dataclass(slots=True)
class Access:
    """Spans to intersect.

    Rows are ordered by ``count`` leading components of the branch's order (those that are not constant), read
    ``backward`` if the stored directions are the opposite ones; ``lo <= rest of the row < hi``. ``exact``: all
    filters are satisfied and all order components provided; ``key_filter``: keys have yet to be compared with
    the branch's range.
    """

    spans: tuple[SpanPlan, ...]
    count: int
    backward: bool
    lo: bytes
    hi: bytes
    exact: bool
    key_filter: bool


@dataclass(slots=True)
class BranchPlan:
    """How to read one branch: ``filtered`` is None where ``ordered`` is as good or the only way."""

    branch: Branch
    orders: tuple[OrderBy, ...]
    ordered: Access
    filtered: Access | None = None


def plan_branch(query: NormalQuery, branch: Branch, composites: Sequence[CompositeIndex]) -> BranchPlan:
    """Plan one branch. ``composites`` are the serving ones of its kind."""
    orders = query.orders
    if branch.constant:
        orders = tuple([order for order in orders if order.name not in branch.constant])
    if branch.kind is None:
        return BranchPlan(branch, orders, _entity_space(query, branch))
    wanted = frozenset([(name, value) for name, values in branch.equals.items() for value in values])
    if not orders:
        by_key = _by_key(query, branch, wanted, composites)
        if by_key.exact or branch.equals or not branch.ranges:
            return BranchPlan(branch, orders, by_key)
        return BranchPlan(branch, orders, by_key, _by_range(branch))
    ordered = _by_orders(query, branch, orders, wanted, composites)
    bounded = key_is_bounded(branch)
    if ordered.exact and (not bounded or any(span.by_ancestor for span in ordered.spans)):
        return BranchPlan(branch, orders, ordered)
    filtered = None
    if branch.equals or bounded:
        filtered = _by_key(query, branch, wanted, composites, sort=True)
    elif branch.ranges and orders[0].name not in branch.ranges:
        filtered = _by_range(branch)
    return BranchPlan(branch, orders, ordered, filtered)


def key_is_bounded(branch: Branch) -> bool:
    """Whether a branch asks for some of its partition's keys only."""
    partition = encode_partition(branch.project, branch.namespace)
    return branch.key_lo != partition or branch.key_hi != partition + _AFTER


def _entity_space(query: NormalQuery, branch: Branch) -> Access:
    span = SpanPlan(Space.ENTITY, b"", "entities")
    return Access((span,), 0, query.key_descending, branch.key_lo, branch.key_hi, True, False)


def _by_key(
    query: NormalQuery,
    branch: Branch,
    wanted: frozenset[tuple[str, bytes]],
    composites: Sequence[CompositeIndex],
    *,
    sort: bool = False,
) -> Access:
    """Rows in key order: every equality's span, by composite indexes where they cover several at once."""
    assert branch.kind is not None
    spans: list[SpanPlan] = []
    left = set(wanted)
    while len(left) > 1:
        best = max(
            (span for index in composites for span in _equality_spans(index, branch, left)),
            key=lambda span: len(span.covers & left),
            default=None,
        )
        if best is None or len(best.covers & left) < 2:
            break
        spans.append(best)
        left -= best.covers
    for name, value in sorted(left):
        base = property_prefix(branch.project, branch.namespace, branch.kind, name)
        covers = frozenset({(name, value)})
        label = f"{branch.kind}.{name} ="
        spans.append(SpanPlan(Space.INDEX, base + value, label, covers, base=base, values=((name, False),)))
    if not spans:
        prefix = kind_prefix(branch.project, branch.namespace, branch.kind)
        spans.append(SpanPlan(Space.INDEX, prefix, f"{branch.kind} (kind)", base=prefix))
    exact = not branch.ranges and not sort and not query.trailing
    backward = query.key_descending and not sort
    return Access(tuple(spans), 0, backward, branch.key_lo, branch.key_hi, exact, False)


def _equality_spans(index: CompositeIndex, branch: Branch, left: set[tuple[str, bytes]]) -> list[SpanPlan]:
    """A composite index all of whose properties have equality filters, as a span in key order."""
    span = _composite_span(index, branch, len(index.properties), left)
    return [span] if span is not None else []


def _composite_span(
    index: CompositeIndex, branch: Branch, equalities: int, left: set[tuple[str, bytes]]
) -> SpanPlan | None:
    """The part of a composite index whose first ``equalities`` properties equal what the branch wants."""
    definition = index.definition
    if definition.kind != branch.kind or (definition.ancestor and branch.ancestor is None):
        return None
    ancestor = branch.ancestor if definition.ancestor else None
    base = composite_prefix(index, branch.project, branch.namespace)
    prefix = composite_prefix(index, branch.project, branch.namespace, ancestor)
    covers: set[tuple[str, bytes]] = set()
    fixed = index.properties[:equalities]
    for name, direction in fixed:
        values = branch.equals.get(name)
        if not values:
            return None
        value = next((value for value in values if (name, value) in left), values[0])
        covers.add((name, value))
        prefix += invert(value) if direction == "desc" else value
    names = ", ".join(f"-{name}" if direction == "desc" else name for name, direction in index.properties)
    owner = " by ancestor" if definition.ancestor else ""
    places = tuple(range(equalities, len(index.properties)))
    label = f"{branch.kind}({names}){owner}"
    values_of = tuple([(name, direction == "desc") for name, direction in fixed])
    return SpanPlan(Space.INDEX, prefix, label, frozenset(covers), places, definition.ancestor, base, values_of)


def _by_range(branch: Branch) -> Access:
    """The span of one range, in no useful order."""
    assert branch.kind is not None
    name, bounds = next(iter(branch.ranges.items()))
    prefix = property_prefix(branch.project, branch.namespace, branch.kind, name)
    span = SpanPlan(Space.INDEX, prefix, f"{branch.kind}.{name} range", places=(0,))
    return Access((span,), 1, False, bounds.lo, bounds.hi, False, True)


def _by_orders(
    query: NormalQuery,
    branch: Branch,
    orders: tuple[OrderBy, ...],
    wanted: frozenset[tuple[str, bytes]],
    composites: Sequence[CompositeIndex],
) -> Access:
    """Spans whose rows come in the branch's order; at worst the first order's property index."""
    assert branch.kind is not None
    # Spans can be intersected if they store the ordered components alike: group them by stored directions.
    groups: dict[tuple[bool, ...], list[tuple[CompositeIndex, int]]] = {}
    asked = tuple(order.descending for order in orders)
    flipped = tuple(not descending for descending in asked)
    names = tuple(order.name for order in orders)
    for index in composites:
        properties = index.properties
        equalities = len(properties) - len(orders)
        if equalities < 0 or tuple(name for name, _ in properties[equalities:]) != names:
            continue
        stored = tuple(direction == "desc" for _, direction in properties[equalities:])
        if stored in (asked, flipped):
            groups.setdefault(stored, []).append((index, equalities))
    ascending = tuple(False for _ in orders)
    if len(orders) == 1:
        groups.setdefault(ascending, [])
    best: tuple[int, int, tuple[bool, ...], list[SpanPlan]] | None = None
    for stored, members in groups.items():
        left = set(wanted)
        spans: list[SpanPlan] = []
        while True:
            candidates = [
                span
                for index, equalities in members
                if (span := _composite_span(index, branch, equalities, left)) is not None
            ]
            span = max(candidates, key=lambda span: (len(span.covers & left), -len(span.prefix)), default=None)
            if span is None or (spans and not span.covers & left):
                break
            spans.append(span)
            left -= span.covers
            if not left:
                break
        if not spans and len(orders) == 1 and stored == ascending:
            spans = [_property_span(branch, orders[0].name)]
        if spans and (best is None or (len(left), len(spans)) < best[:2]):
            best = (len(left), len(spans), stored, spans)
    if best is None:
        span = _property_span(branch, orders[0].name)
        lo, hi = stored_bounds(branch.ranges.get(orders[0].name), descending=False)
        return Access((span,), 1, orders[0].descending, lo, hi, False, True)
    uncovered, _, stored, chosen = best
    lo, hi = stored_bounds(branch.ranges.get(orders[0].name), descending=stored[0])
    exact = uncovered == 0 and not query.trailing and all(name == orders[0].name for name in branch.ranges)
    return Access(tuple(chosen), len(orders), stored != asked, lo, hi, exact, True)


def _property_span(branch: Branch, name: str) -> SpanPlan:
    assert branch.kind is not None
    prefix = property_prefix(branch.project, branch.namespace, branch.kind, name)
    return SpanPlan(Space.INDEX, prefix, f"{branch.kind}.{name}", places=(0,), base=prefix)


def stored_bounds(bounds: Range | None, *, descending: bool) -> tuple[bytes, bytes]:
    """A range of values as bounds of stored components: inverted ones swap their ends."""
    if bounds is None:
        return b"", _AFTER
    if not descending:
        return bounds.lo, bounds.hi
    return _flip(bounds.hi), _flip(bounds.lo)


def _flip(bound: bytes) -> bytes:
    """The bound at the same place among inverted values: just before a value becomes just after it."""
    if bound in (b"", _AFTER):
        return _AFTER if bound == b"" else b""
    if bound.endswith(_AFTER) and _is_after(bound):
        return invert(bound[:-1])
    return invert(bound) + _AFTER


def _is_after(bound: bytes) -> bool:
    """Whether a bound is a value + ``ff`` rather than a value that happens to end so."""
    return component_end(bound, 0) == len(bound) - 1
