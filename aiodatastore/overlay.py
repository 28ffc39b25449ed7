"""Queries of a transaction: what the store has, with the transaction's own writes on top.

Where the buffer holds nothing that a query could find, its pages are the store's. Else the store is asked without
offset, limit and ``distinct``; results whose entities the transaction has written are dropped, those that its
own entities give are merged in by position, and ``distinct``, offset and limit are applied to what comes out.
A query sees what was written before its first page was asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiodatastore.adapters.base import Aggregation, Page, ResultStream, RunOptions
from aiodatastore.cursor import Cursor
from aiodatastore.entity import Entity
from aiodatastore.indexing.aggregates import single_number
from aiodatastore.indexing.encoding import invert
from aiodatastore.indexing.normal import NormalQuery, normalize
from aiodatastore.indexing.rows import indexed_values
from aiodatastore.key import Key
from aiodatastore.query import KEY_PROPERTY, Query
from aiodatastore.txn import Transaction

__all__ = ["TransactionStream", "aggregate"]


class TransactionStream:
    """A running query in a transaction. All that its pages were made of is among what the commit verifies."""

    def __init__(self, transaction: Transaction, query: Query, options: RunOptions) -> None:
        self._transaction = transaction
        self._query = query
        self._options = replace(options, track=True)
        self._source: ResultStream | None = None
        self._merge: _Merge | None = None
        self._read: Page | None = None

    async def next_page(self) -> Page:
        """The next page, see ``ResultStream``."""
        transaction = self._transaction
        transaction.check_usable()
        if self._source is None:
            self._start()
        page = await self._next_below()
        if self._merge is None:
            return page
        page = self._merge.merged(page)
        while not page.results and page.more:
            below = await self._next_below()
            skipped = page.skipped
            page = self._merge.merged(below)
            page.skipped += skipped
        return page

    async def _next_below(self) -> Page:
        """A page of the store's that is part of what was seen; if that is interrupted, the next call gives it."""
        assert self._source is not None
        if self._read is None:
            self._read = await self._source.next_page()
        await self._transaction.admit(self._read)
        page, self._read = self._read, None
        return page

    def _start(self) -> None:
        adapter = self._transaction.adapter
        written = relevant_writes(self._query, self._transaction.buffered_writes())
        if not written:
            self._source = adapter.run(self._query, self._options)
            return
        self._merge = _Merge(self._query, written)
        self._source = adapter.run(self._merge.base, replace(self._options, positions=True))


def relevant_writes(query: Query, writes: Mapping[Key, Entity | None]) -> dict[Key, Entity | None]:
    """The writes that may change a query's results: their keys may be among them."""
    parts = query.subqueries or (query,)
    return {key: entity for key, entity in writes.items() if any(_may_find(part, key) for part in parts)}


def _may_find(query: Query, key: Key) -> bool:
    if key.namespace != query.namespace or key.project != query.project_id:
        return False
    if query.kind is not None and query.kind != key.kind:
        return False
    above = query.ancestor
    return above is None or above == key or above.is_ancestor_of(key)


class _Merge:
    """Merges pages of ``base`` with what the written entities give."""

    def __init__(self, query: Query, written: Mapping[Key, Entity | None]) -> None:
        self._written = written
        self._skip = query.skip
        self._left = query.max_results
        self.base = self._base_of(query)
        self._normal = normalize(self.base)
        self._distinct = normalize(query).distinct if query.distinct_names else 0
        self._seen: bytes | None = None
        self._held: tuple[bytes, Any] | None = None
        bounds = self._bounds = _Bounds(query, self._normal)
        self._end = bounds.start or None
        if self._distinct and bounds.start and not bounds.start_turned:
            self._seen = self._distinct_part(bounds.start)
        self._own = sorted(
            (
                match
                for entity in written.values()
                if entity is not None
                for match in self._normal.matches(entity)
                if bounds.inside(match[0])
            ),
            key=_position,
        )

    def _base_of(self, query: Query) -> Query:
        base = query.offset(0).limit(None)
        if query.distinct_names:
            # Without distinct the implied order may be another one: spell out this one's.
            orders = query.full_orders
            if all(order.name != KEY_PROPERTY for order in query.orders):
                orders = orders[:-1]  # the key is last of all, also after what an equality makes constant
            base = base._changed(
                distinct_names=(),
                orders=orders,
                subqueries=tuple(part._changed(distinct_names=(), orders=orders) for part in base.subqueries),
            )
            base = base.start(_bound_to(base, query.start_cursor)).end(_bound_to(base, query.end_cursor))
        elif query.max_results is not None and not query.projection:
            # Each written entity takes at most one of the results away.
            base = base.limit(query.max_results + query.skip + len(self._written))
        return base

    def merged(self, page: Page) -> Page:
        """The part of the results that a page of the base settles."""
        positions = page.positions or []
        stored = [
            (position, result)
            for position, result in zip(positions, page.results, strict=True)
            if _key_of(result) not in self._written
        ]
        own = self._own
        if page.more:
            # What may come between this page and the next is not known yet.
            horizon = positions[-1] if positions else b""
            count = sum(1 for position, _ in own if position <= horizon)
        else:
            count = len(own)
        self._own = own[count:]
        found: Iterable[tuple[bytes, Any]] = heapq.merge(stored, own[:count], key=_position)
        if self._distinct:
            found = self._unequal(found, page.more)
        results: list[Any] = []
        places: list[bytes] = []
        skipped = 0
        for position, result in found:
            if self._done:
                break
            self._end = position
            if self._skip:
                self._skip -= 1
                skipped += 1
                continue
            if self._left is not None:
                self._left -= 1
            results.append(result)
            places.append(position)
        more = page.more and not self._done
        return Page(results, self._end, more, page.version, places, skipped)

    @property
    def _done(self) -> bool:
        return self._left == 0 and not self._skip

    def _unequal(self, items: Iterable[tuple[bytes, Any]], more: bool) -> Iterator[tuple[bytes, Any]]:
        """The first of equal ones: the last, where the query is read from its end."""
        mirrored = self._normal.mirrored
        for item in items:
            part = self._distinct_part(item[0])
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
        return bool(end) and self._distinct_part(position) == self._distinct_part(end)

    def _distinct_part(self, position: bytes) -> bytes:
        return position[: self._normal.prefix_end(position, self._distinct)]


class _Bounds:
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


def _bound_to(query: Query, cursor: Cursor | None) -> Cursor | None:
    return None if cursor is None else replace(cursor, shape=query.shape)


def _position(item: tuple[bytes, Any]) -> bytes:
    return item[0]


def _key_of(result: Any) -> Key:
    return result if type(result) is Key else result.key


async def aggregate(
    transaction: Transaction, query: Query, aggregations: Sequence[Aggregation]
) -> list[int | float | None]:
    """``count``, ``sum`` and ``avg`` of a query's results in a transaction."""
    transaction.check_usable()
    if not relevant_writes(query, transaction.buffered_writes()):
        found = await transaction.adapter.aggregate(query, aggregations, RunOptions(track=True))
        await transaction.admit(found)
        return found.values
    if query.only_keys and any(function != "count" for function, _ in aggregations):
        query = query._changed(
            only_keys=False, subqueries=tuple(part._changed(only_keys=False) for part in query.subqueries)
        )
    stream = TransactionStream(transaction, query, RunOptions())
    numbers: list[list[int | float]] = [[] for _ in aggregations]
    results = 0
    more = True
    while more:
        page = await stream.next_page()
        more = page.more
        results += len(page.results)
        for result in page.results:
            if type(result) is Key:
                continue
            values = indexed_values(result)
            for (function, name), found_numbers in zip(aggregations, numbers, strict=True):
                number = single_number(values, name) if function != "count" else None
                if number is not None:
                    found_numbers.append(number)
    return [
        _aggregated(function, found_numbers, results)
        for (function, _), found_numbers in zip(aggregations, numbers, strict=True)
    ]


def _aggregated(function: str, numbers: Sequence[int | float], results: int) -> int | float | None:
    if function == "count":
        return results
    if function == "sum":
        return sum(numbers)
    return sum(numbers) / len(numbers) if numbers else None
