"""Queries of a transaction: what the store has, with the transaction's own writes on top.

Where the buffer holds nothing that a query could find, its pages are the store's. Else the store is asked without
offset, limit and ``distinct``; results whose entities the transaction has written are dropped, those that its
own entities give are merged in by position, and ``distinct``, offset and limit are applied to what comes out.
A query sees what was written before its first page was asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiodatastore.adapters.base import Aggregation, Page, ResultStream, RunOptions
from aiodatastore.entity import Entity
from aiodatastore.errors import UnsupportedError
from aiodatastore.indexing.merging import CursorBounds, Distinct, Sums, without_distinct
from aiodatastore.indexing.normal import normalize
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Capability
from aiodatastore.txn import Transaction

__all__ = ["TransactionStream", "aggregate"]

_TO_MERGE = frozenset({Capability.KEY_ORDER, Capability.EXACT_KEYS})
"""What merging relies on: results in the order of their positions, each under the key that it was written with."""


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
        missing = sorted(_TO_MERGE - adapter.capabilities)
        if missing:
            raise UnsupportedError(
                f"{adapter.url}: without {missing[0].name} a query can't show what the transaction has written: "
                "query before writing, or read by key",
                capability=missing[0],
            )
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
        bounds = CursorBounds(query, self._normal)
        self._end = bounds.start or None
        distinct = normalize(query).distinct if query.distinct_names else 0
        self._distinct = Distinct(self._normal, distinct, bounds) if distinct else None
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
            base = without_distinct(base)
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
        if self._distinct is not None:
            found = self._distinct.of(found, page.more)
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
    stream = TransactionStream(transaction, Sums.of(query, aggregations), RunOptions())
    sums = Sums(aggregations)
    more = True
    while more:
        page = await stream.next_page()
        more = page.more
        sums.add(page.results)
    return sums.values
