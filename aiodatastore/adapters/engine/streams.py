"""Running queries: pages of results."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiodatastore.adapters.base import Page, ReadPolicy, ResultStream, RunOptions, Unread
from aiodatastore.adapters.engine.core import Engine
from aiodatastore.errors import NeedIndexError
from aiodatastore.indexing.direct import DirectSpan, SpanRows
from aiodatastore.indexing.encoding import decode_key
from aiodatastore.indexing.execution import FIRST_PAGE, Bounds, QueryRun, following_size, page_limit
from aiodatastore.indexing.explain import Explanation, Step
from aiodatastore.indexing.metadata import METADATA_KINDS, metadata_entities
from aiodatastore.indexing.scanning import Reader
from aiodatastore.query import Query
from aiodatastore.rowstore import TAIL_KEY_MASK, Row, RowStore, Space, Span
from aiodatastore.serializers.packed import MsgpackSerializer, load_all

__all__ = ["EngineStream", "spans_now"]

_unread = partial(tuple.__new__, Unread)  # a third of what the class's own takes


class EngineStream(ResultStream):
    """A running query on the engine: planned again from where it stands if indexes change under it.

    Where the plan is one span whose rows are the results, the first page is read by a scan alone, see
    :mod:`aiodatastore.indexing.direct`; the stages are made when they are needed.
    """

    def __init__(self, engine: Engine, query: Query, options: RunOptions) -> None:
        self._engine = engine
        self._query = query
        self._options = options
        self._planned = planned = engine.plan(query)
        direct = planned.direct
        self._planned_with = engine.catalog.version
        self._retired = engine.retired
        self._to_check = engine.require_indexes
        self._bounds = bounds = engine.bounds(query)
        self._made_reader: Reader | None = None
        self._missing: NeedIndexError | None = None
        self._done = direct is None and not planned.plans
        self._metadata = query.kind in METADATA_KINDS
        self._scanned: Step | None = None
        self._defers = False
        self._next_size = FIRST_PAGE
        if self._metadata or bounds.inclusive or bounds.end is not None or bounds.skip or bounds.limit == 0:
            direct = None
        self._direct = direct
        self._rest: Span | None = None  # what has yet to be read of the span
        if direct is not None:
            self._rest = direct.after(bounds.start) if bounds.start else direct.span
        self._run: QueryRun | None = None
        if direct is None:
            self._start()

    def defer(self) -> bool:
        """Whole entities are given as they were scanned."""
        query = self._query
        self._defers = not (self._metadata or query.only_keys or query.projection)
        return self._defers

    @property
    def _reader(self) -> Reader:
        if self._made_reader is None:
            self._made_reader = Reader(self._engine.reading(self._options.read_policy), track=self._options.track)
        return self._made_reader

    def _start(self) -> QueryRun:
        engine = self._engine
        query = self._query
        if not self._metadata and any(not plan.ordered.exact for plan in self._planned.plans):
            self._missing = engine.tell_missing_index(query)
        run = self._run = QueryRun(
            self._planned.normal,
            self._planned.plans,
            self._reader,
            engine.serializer,
            self._bounds,
            sort_budget=engine.sort_budget,
            page_size=self._options.page_size,
            first_size=self._next_size,
            needed=lambda: engine.needed(query),
        )
        if self._scanned is not None:
            step = run.root.children[0]  # the span's, which was read without the stages
            step.rows += self._scanned.rows
            step.entities += self._scanned.entities
            step.scans += self._scanned.scans
        return run

    async def next_page(self) -> Page:
        """Read until the page is full. One that fails, or is cancelled, is read again by the next call."""
        if self._metadata:
            return await self._metadata_page()
        engine = self._engine
        before = self._bounds.copy()
        while True:
            if engine.stale:
                await engine.refresh()
            if self._to_check:
                missing = engine.missing_index(self._query)
                if missing is not None:
                    raise missing
                self._to_check = False
            if engine.catalog.version != self._planned_with or engine.retired != self._retired:
                self._plan_again()
            if self._done:
                return Page([], self._bounds.start or None, False, self._reader.version or 0, self._positions([]))
            try:
                page = await self._read_page()
                if engine.stale:
                    await engine.refresh()
            except BaseException:
                self._rewind(before)
                raise
            if engine.retired == self._retired:
                return page
            # It took so long that rows of an index that it used may have been removed under it.
            self._rewind(before)

    async def _read_page(self) -> Page:
        direct, self._direct = self._direct, None
        if direct is not None and self._rest is not None and self._rest.lo < self._rest.hi:
            page = await self._read_directly(direct, self._rest)
            if page is not None:
                return page
        run = self._run or self._start()
        items, skipped = await run.next_items()
        self._done = run.finished
        positions = [item[0] for item in items] if self._options.positions else []
        if self._defers:
            serializer = self._engine.serializer
            unread = [_unread((serializer, key, version, payload or b"")) for _, key, _, version, payload in items]
            return self._page(unread, positions, skipped)
        return self._page(run.results(items), positions, skipped)

    async def _read_directly(self, direct: DirectSpan, span: Span) -> Page | None:
        """The first page of a part of the span, by one scan; None if some row of it is not a result as it stands."""
        bounds, options = self._bounds, self._options
        want = page_limit(options.page_size, options.page_size or FIRST_PAGE, bounds.limit)
        step = self._scanned = Step("scan")
        rows = await self._reader.scan(
            step, Space.INDEX, span.lo, span.hi, want, reverse=direct.backward, join=not direct.keys_only
        )
        if not direct.plain(rows):
            self._reader.forget()
            return None
        serializer = self._engine.serializer
        results: list[Any]
        if direct.keys_only:
            results = [decode_key(row[-(tail & TAIL_KEY_MASK) :]) for row, tail, _, _ in rows]
        elif self._defers:
            results = [
                _unread((serializer, row[-(tail & TAIL_KEY_MASK) :], version or 0, payload or b""))
                for row, tail, version, payload in rows
            ]
        else:
            found = [
                (decode_key(row[-(tail & TAIL_KEY_MASK) :]), payload or b"", version or 0)
                for row, tail, version, payload in rows
            ]
            results = load_all(serializer, found)
        positions = direct.positions(rows) if options.positions else []
        if rows:
            last, tail, _, _ = rows[-1]
            bounds.move(direct.position(last, tail))
            if bounds.limit is not None:
                bounds.limit -= len(rows)
        self._done = len(rows) < want or bounds.limit == 0
        if not self._done:
            self._next_size = following_size(FIRST_PAGE, [payload for _, _, _, payload in rows])
        return self._page(results, positions, 0)

    def _plan_again(self) -> None:
        engine = self._engine
        self._planned = engine.plan(self._query)
        self._planned_with = engine.catalog.version
        self._retired = engine.retired
        self._direct = None
        self._start()

    def _rewind(self, bounds: Bounds) -> None:
        """Forget what was read since the bounds were these."""
        self._bounds = bounds.copy()
        self._reader.forget()
        self._planned_with = -1
        self._done = False

    def _positions(self, positions: list[bytes]) -> list[bytes] | None:
        return positions if self._options.positions else None

    def _page(self, results: list[Any], positions: list[bytes], skipped: int) -> Page:
        reader = self._reader
        version, newest = reader.take_versions()
        page = Page(
            results,
            self._bounds.start or None,
            not self._done,
            version,
            self._positions(positions),
            skipped,
            newest=newest,
        )
        if reader.track:
            page.checks = {decode_key(key): version for key, version in reader.checks.items()}
            page.spans = reader.spans
            reader.checks, reader.spans = {}, []
        return page

    async def _metadata_page(self) -> Page:
        if self._done:
            return self._page([], [], 0)
        self._done = True
        bounds = self._bounds
        step = (self._run or self._start()).root.add("metadata", self._query.kind or "")
        found = await metadata_entities(self._reader, step, self._query)
        hits = sorted(
            (match for entity in found for match in self._planned.normal.matches(entity)), key=lambda match: match[0]
        )
        hits = [
            match
            for match in hits
            if (match[0] > bounds.start or (bounds.inclusive and match[0] == bounds.start))
            and (bounds.end is None or bounds.before_end(match[0]))
        ]
        skipped = min(bounds.skip, len(hits))
        stop = None if bounds.limit is None else skipped + bounds.limit
        reached = hits[:stop]
        if reached:
            bounds.move(reached[-1][0])
        kept = reached[skipped:]
        return self._page([result for _, result in kept], [position for position, _ in kept], skipped)

    def explain(self) -> Explanation:
        """The plan and what it read."""
        root = (self._run or self._start()).root
        return Explanation(root, self._missing.definition if self._missing else None)


def spans_now(engine: Engine, query: Query, read_policy: ReadPolicy) -> list[SpanRows] | None:
    """The rows that are a query's results, its limit and offset aside, to be read at once; None if there is more to it.

    They can't be read any more once the indexes have changed.

    :raises BadCursorError: if a cursor belongs to another query
    """
    store = engine.reading(read_policy)
    if type(store).scan_now is RowStore.scan_now:
        return None  # it never has rows at hand
    if engine.require_indexes and (not engine.refresh_now() or engine.missing_index(query) is not None):
        return None
    if not query.only_keys and type(engine.serializer) is not MsgpackSerializer:
        return None
    catalog = engine.catalog
    planned = engine.plan(query)
    bounds = engine.bounds(query)
    if bounds.inclusive or bounds.end is not None:
        return None

    def scan(direct: DirectSpan, span: Span, limit: int) -> list[Row] | None:
        if not engine.refresh_now() or engine.catalog is not catalog:
            return None
        rows = store.scan_now(span, limit, reverse=direct.backward, with_entities=not direct.keys_only)
        return None if engine.stale else rows

    direct, union, start = planned.direct, planned.union, bounds.start
    if direct is not None:
        return [SpanRows(direct, direct.after(start) if start else direct.span, scan)]
    if union is None or start:
        return None
    return [SpanRows(each, each.span, scan) for each in union]
