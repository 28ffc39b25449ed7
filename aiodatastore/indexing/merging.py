"""What results have in common that are merged by their positions: cursors' bounds, ``distinct``, sums.

A transaction merges its own writes with the store's results, a collection those of several stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from aiodatastore.cursor import Cursor
from aiodatastore.indexing.aggregates import Number, RunningSum, single_number
from aiodatastore.indexing.encoding import invert
from aiodatastore.indexing.normal import NormalQuery
from aiodatastore.indexing.rows import indexed_values
from aiodatastore.key import Key
from aiodatastore.query import KEY_PROPERTY, Query

__all__ = ["CursorBounds", "Distinct", "Sums", "without_distinct"]

Item = tuple[bytes, Any]
"""A position and its result."""


class CursorBounds:
    """Where a query's cursors let results be. A cursor of the reversed query is on the other side of its place."""

    def __init__(self, query: Query, normal: NormalQuery) -> None:
        self.start, self.start_turned = _resolved(query.start_cursor, normal)
        self._end, self._end_turned = _resolved(query.end_cursor, normal)
        self._has_end = query.end_cursor is not None

    @property
    def excluded_end(self) -> bytes:
        """The place of the end cursor, if its result is not one any more; else nothing."""
        return self._end if self._end_turned else b""

    def inside(self, position: bytes) -> bool:
        """Whether a result may be at this position."""
        if position < self.start or (position == self.start and not self.start_turned):
            return False
        if not self._has_end:
            return True
        return position < self._end or (position == self._end and not self._end_turned)


def _resolved(cursor: Cursor | None, normal: NormalQuery) -> tuple[bytes, bool]:
    if cursor is None or not cursor.position:
        return b"", False
    turned = cursor.inverted != normal.key_descending
    return (invert(cursor.position) if turned else cursor.position), turned


class Distinct:
    """Of results that are equal in their first ``count`` components the first: the last, if they are read backwards."""

    def __init__(self, normal: NormalQuery, count: int, bounds: CursorBounds) -> None:
        self._normal = normal
        self._count = count
        self._bounds = bounds
        self._seen: bytes | None = None
        self._held: Item | None = None
        if bounds.start and not bounds.start_turned:
            self._seen = self._part(bounds.start)

    def of(self, items: Iterable[Item], more: bool) -> Iterator[Item]:
        """Those of the next items, in order, that are results; ``more``: whether others follow these."""
        mirrored = self._normal.mirrored
        for item in items:
            part = self._part(item[0])
            if part != self._seen:
                self._seen = part
                if not mirrored:
                    yield item
                elif self._held is not None:
                    yield self._held
            self._held = item
        if mirrored and not more and self._held is not None and not self._is_cut(self._held[0]):
            yield self._held

    def _is_cut(self, position: bytes) -> bool:
        """Whether the end is among those equal to this one: then the one to give is behind it."""
        end = self._bounds.excluded_end
        return bool(end) and self._part(position) == self._part(end)

    def _part(self, position: bytes) -> bytes:
        return position[: self._normal.prefix_end(position, self._count)]


def without_distinct(query: Query) -> Query:
    """A query whose results are all those among which ``distinct`` chooses, at the same positions."""
    # Without distinct the implied order may be another one: spell out this one's.
    orders = query.full_orders
    if all(order.name != KEY_PROPERTY for order in query.orders):
        orders = orders[:-1]  # the key is last of all, also after what an equality makes constant
    base = query._changed(
        distinct_names=(),
        orders=orders,
        subqueries=tuple(part._changed(distinct_names=(), orders=orders) for part in query.subqueries),
    )
    return base.start(_bound_to(base, query.start_cursor)).end(_bound_to(base, query.end_cursor))


def _bound_to(query: Query, cursor: Cursor | None) -> Cursor | None:
    return None if cursor is None else replace(cursor, shape=query.shape)


class Sums:
    """Adds up the results of a query: what ``count``, ``sum`` and ``avg`` make of them."""

    def __init__(self, wanted: Sequence[tuple[str, str]]) -> None:
        self._wanted = wanted
        self._sums = [RunningSum() for _ in wanted]
        self._results = 0

    @staticmethod
    def of(query: Query, wanted: Sequence[tuple[str, str]]) -> Query:
        """The query whose results have what is wanted of them."""
        if not query.only_keys or all(function == "count" for function, _ in wanted):
            return query
        return query._changed(
            only_keys=False, subqueries=tuple(part._changed(only_keys=False) for part in query.subqueries)
        )

    def add(self, results: Sequence[Any]) -> None:
        """More results: entities, or keys, which have nothing to add up."""
        self._results += len(results)
        for result in results:
            if type(result) is Key:
                continue
            values = indexed_values(result)
            for (function, name), total in zip(self._wanted, self._sums, strict=True):
                if function != "count" and (number := single_number(values, name)) is not None:
                    total.add(number)

    @property
    def values(self) -> list[Number | None]:
        """What was wanted, in order."""
        return [
            self._results if function == "count" else total.value(function)
            for (function, _), total in zip(self._wanted, self._sums, strict=True)
        ]
