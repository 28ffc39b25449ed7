"""The spans of queries that differ from an earlier one in their values alone.

To plan a query takes longer than to run it on a store in memory. What a plan comes to does not depend on the values of
the filters where each property is compared once, or is the only one with inequalities. So a query of a shape that was
met before has its :class:`~aiodatastore.indexing.direct.DirectSpan` put together from its values; the rest of its plan
is made only if those rows are not enough.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from aiodatastore.indexing.direct import DirectSpan
from aiodatastore.indexing.encoding import encode_key, encode_partition, encode_value, invert
from aiodatastore.indexing.normal import KEY, SIMPLE_OPERATORS, Range, key_direction
from aiodatastore.indexing.planner import BranchPlan, stored_bounds
from aiodatastore.query import Op, PropertyFilter, Query
from aiodatastore.rowstore import Space, Span

__all__ = ["SpanTemplate", "query_shape", "span_template"]


def query_shape(query: Query) -> tuple[Hashable, list[Any]] | None:
    """What queries have in common that differ in filtered values, ancestor, limit, offset and cursors; and the values.

    None for a query whose plan depends on its values.
    """
    if query.subqueries or query.projection or query.distinct_names:
        return None
    _, mirrored = key_direction(query)
    if mirrored:
        return None
    conditions: list[Any] = []
    values: list[Any] = []
    equal: set[str] = set()
    ranged: str | None = None
    for node in query.filters:
        if type(node) is not PropertyFilter:
            return None
        name, op = node.name, node.op
        if op not in SIMPLE_OPERATORS or name == KEY:
            return None
        if op is Op.EQ:
            if name in equal:
                return None
            equal.add(name)
        elif ranged is None:
            ranged = name
        elif ranged != name:
            return None
        conditions += (name, op)
        values.append(node.value)
    if ranged in equal:
        return None
    orders = [(order.name, order.descending) for order in query.orders]
    below = query.ancestor is not None
    return (query.kind, query.project_id, query.namespace, below, query.only_keys, *orders, *conditions), values


class SpanTemplate:
    """A :class:`~aiodatastore.indexing.direct.DirectSpan` without the values; made by :func:`span_template`."""

    __slots__ = ("_base", "_by_ancestor", "_by_key", "_descending", "_equal", "_model", "_ranged")

    def __init__(self, query: Query, plan: BranchPlan, model: DirectSpan) -> None:
        access = plan.ordered
        span = access.spans[0]
        places = {node.name: place for place, node in enumerate(query.filters) if isinstance(node, PropertyFilter)}
        self._model = model
        self._base = span.base
        self._by_ancestor = span.by_ancestor
        self._equal = [(places[name], inverted) for name, inverted in span.values]
        self._ranged = [
            (place, node.op)
            for place, node in enumerate(query.filters)
            if isinstance(node, PropertyFilter) and node.op is not Op.EQ
        ]
        self._by_key = access.count == 0
        self._descending = access.count > 0 and plan.orders[0].descending != access.backward

    def direct(self, query: Query, values: Sequence[Any]) -> DirectSpan | None:
        """The span of another query of the shape; None if nothing can be in it.

        :raises BadValueError: if a value is not indexed
        """
        encoded = [encode_value(value) for value in values]
        ancestor = None if query.ancestor is None else encode_key(query.ancestor)
        prefix = self._base
        if self._by_ancestor and ancestor is not None:
            prefix += ancestor + b"\x00"
        for place, inverted in self._equal:
            prefix += invert(encoded[place]) if inverted else encoded[place]
        if self._by_key:
            lo = encode_partition(query.project_id, query.namespace) if ancestor is None else ancestor
            hi = lo + b"\xff"
        else:
            bounds = Range()
            for place, op in self._ranged:
                bounds = bounds.narrowed(op, encoded[place])
            if bounds.lo >= bounds.hi:
                return None
            lo, hi = stored_bounds(bounds, descending=self._descending)
        model = self._model
        return DirectSpan(
            Span(Space.INDEX, prefix + lo, prefix + hi),
            model.backward,
            len(prefix),
            model.keys_only,
            model.once,
            model.key_descending,
        )


def span_template(query: Query, values: Sequence[Any], plan: BranchPlan, direct: DirectSpan) -> SpanTemplate | None:
    """The template of a query that has a shape, from its plan; None if that does not tell what comes from values."""
    template = SpanTemplate(query, plan, direct)
    return template if template.direct(query, values) == direct else None
