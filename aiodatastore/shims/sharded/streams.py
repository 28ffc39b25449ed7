"""Queries over several adapters: their pages merged by position."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

from aiodatastore.adapters.base import MIXED, Adapter, Page, ResultStream, RunOptions, Unread
from aiodatastore.entity import Entity
from aiodatastore.indexing.direct import GivesRows, SpanRows, merged_rows
from aiodatastore.indexing.encoding import decode_key
from aiodatastore.indexing.explain import Explanation, Step
from aiodatastore.indexing.merging import CursorBounds, Distinct, Item, without_distinct
from aiodatastore.indexing.metadata import METADATA_KINDS
from aiodatastore.indexing.normal import cursor_at, normalize, prepare
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import TAIL_KEY_MASK, Capability, Row, SpanCheck
from aiodatastore.serializers.packed import MsgpackSerializer, load_all
from aiodatastore.shims.sharded.together import all_of

__all__ = ["Source", "counted_below", "merged_stream"]

_FIRST_PAGE, _LAST_PAGE = 64, 512

_USUAL = MsgpackSerializer()  # one is as good as another
_position = itemgetter(0)
_TYPES = ("NULL", "INT64", "BOOLEAN", "STRING", "DOUBLE", "POINT", "REFERENCE")


@dataclass(slots=True)
class Source:
    """One of the adapters that a query runs on. ``tag`` marks its spans. ``owns``: which results count, None: all."""

    name: str
    adapter: Adapter
    clock: object
    tag: Hashable
    owns: Callable[[Key], bool] | None = None

    def owned(self, spans: Sequence[SpanCheck]) -> list[SpanCheck]:
        """Spans of this adapter, told apart from those of the others."""
        return [replace(span, owner=(self.tag, *span.owner)) for span in spans]


def merged_stream(sources: Sequence[Source], query: Query, options: RunOptions) -> ResultStream:
    """The results of a query on all of the sources, in order."""
    if len(sources) == 1 and sources[0].owns is None:
        return _SingleStream(sources[0], query, options)
    if query.kind in METADATA_KINDS:
        return _MetadataStream(sources, query, options)
    spans = _spans_now(sources, query, options)
    if spans is not None:
        return _RowStream(sources, query, options, spans)
    return _MergedStream(sources, query, options)


def counted_below(query: Query, limit: int | None) -> Query:
    """What each of several adapters counts: the query's results without its offset, prepared once for all of them."""
    below = query if query.projection or query.only_keys else query.keys_only()
    below = below._changed(skip=0, max_results=limit, _shape=query._shape)
    prepare(below).give(below)
    return below


class _SingleStream(ResultStream):
    """A query that one adapter answers."""

    def __init__(self, source: Source, query: Query, options: RunOptions) -> None:
        self._source = source
        self._stream = source.adapter.run(query, options)

    async def next_page(self) -> Page:
        page = await self._stream.next_page()
        if page.clock is None:
            page.clock = self._source.clock
        if page.spans:
            page.spans = self._source.owned(page.spans)
        return page

    def explain(self) -> Explanation:
        found = self._stream.explain()
        root = Step("on", self._source.name, [found.root])
        return Explanation(root, found.index)


@dataclass(slots=True)
class _Part:
    """What one adapter has given that can't be merged yet, in order."""

    source: Source
    stream: ResultStream
    items: list[Item] = field(default_factory=list)
    more: bool = True


class _Seen:
    """What pages were made of, for the next page that is given."""

    def __init__(self) -> None:
        self._checks: dict[Key, int] = {}
        self._spans: list[SpanCheck] = []

    def add(self, source: Source, page: Page) -> None:
        self._checks.update(page.checks)
        if page.spans:
            self._spans += source.owned(page.spans)

    def give(self, page: Page) -> Page:
        page.checks, page.spans = self._checks, self._spans
        self._checks, self._spans = {}, []
        page.clock = MIXED
        return page


class _MergedStream(ResultStream):
    """Pages of several adapters merged by position.

    Every adapter is asked for its share of a page and some more, all at once; the next page of one is asked for when
    what it gave is used up. So what is held is about a page of the query, and a page of it costs a round trip or two.

    Of what is asked for about half is not needed as a rule: where adapters give entities as they are stored, only those
    that are needed are read.
    """

    def __init__(self, sources: Sequence[Source], query: Query, options: RunOptions) -> None:
        self._options = options
        prepared = prepare(query)
        self._normal = prepared.normal
        self._skip = query.skip
        self._left = query.max_results
        bounds = CursorBounds(query, self._normal)
        self._end = bounds.start or None
        self._page_size = _FIRST_PAGE
        wanted = None if self._left is None else self._left + self._skip
        owned = any([source.owns is not None for source in sources])
        # What does not count must neither use up the limit nor stand for its equals.
        below = query._changed(skip=0, max_results=None if owned else wanted, _shape=query._shape)
        if owned and query.distinct_names:
            below = without_distinct(below)
        distinct = self._normal.distinct if query.distinct_names else 0
        self._distinct: Distinct | None = None
        if distinct:
            shown = normalize(below)
            self._distinct = Distinct(shown, distinct, CursorBounds(below, shown))
        if self._distinct is None and below.distinct_names == query.distinct_names:
            prepared.give(below)
        own = _positioned(options, _share(options.page_size, wanted, len(sources)))
        self._parts = [_Part(source, source.adapter.run(below, own)) for source in sources]
        self._defers = self._distinct is None and not owned and not query.only_keys
        if self._defers:
            for part in self._parts:
                part.stream.defer()
        self._seen = _Seen()
        self._ready: list[Item] = []
        self._next = 0
        self._results: list[Any] = []
        self._places: list[bytes] = []
        self._skipped = 0
        self._done = self._has_all

    async def next_page(self) -> Page:
        """The next page. One that fails, or is cancelled, goes on where it was with the next call."""
        results, places = self._results, self._places
        size = self._options.page_size or self._page_size
        if self._left is not None:
            size = min(max(self._left, 1), self._options.page_size or _LAST_PAGE)
        while not self._done and len(results) < size:
            if self._next >= len(self._ready):
                await self._fill()
            stop = self._next + size - len(results) + self._skip
            taken = self._ready[self._next : stop]
            ended = stop >= len(self._ready) and not any([part.more for part in self._parts])
            if self._distinct is not None:
                taken = list(self._distinct.of(taken, not ended))
            skip = min(self._skip, len(taken))
            kept = taken[skip:] if self._left is None else taken[skip : skip + self._left]
            given = [result for _, result in kept]
            # Where this fails, the next call tells again: nothing was taken yet.
            results += _read_all(given) if self._defers else given
            places += [position for position, _ in kept]
            self._next = stop
            self._skip -= skip
            self._skipped += skip
            if self._left is not None:
                self._left -= len(kept)
            if kept or skip:
                self._end = (kept or taken[:skip])[-1][0]
            self._done = ended or self._has_all
        self._page_size = min(2 * self._page_size, _LAST_PAGE)
        self._results, self._places = [], []
        skipped, self._skipped = self._skipped, 0
        positions = places if self._options.positions else None
        return self._seen.give(Page(results, self._end, not self._done, 0, positions, skipped))

    @property
    def _has_all(self) -> bool:
        return self._left == 0 and not self._skip

    async def _fill(self) -> None:
        """Read the next page of every part that has nothing left, all at once, and merge what can be merged."""
        parts = self._parts
        while empty := [part for part in parts if part.more and not part.items]:
            inline = all([Capability.INLINE_READS in part.source.adapter.capabilities for part in empty])
            await all_of([partial(self._read, part) for part in empty], inline=inline)
        # What comes after the last item of a part may be preceded by what that part gives next.
        safe = min([part.items[-1][0] for part in parts if part.more], default=None)
        ready: list[Item] = []
        for part in parts:
            items = part.items
            if safe is None or not items or items[-1][0] <= safe:
                ready += items
                part.items = []
            else:
                cut = bisect_right(items, safe, key=_position)
                ready += items[:cut]
                part.items = items[cut:]
        ready.sort(key=_position)
        self._ready, self._next = ready, 0

    async def _read(self, part: _Part) -> None:
        page = await part.stream.next_page()
        owns = part.source.owns
        items = list(zip(page.positions or (), page.results, strict=True))
        part.items = items if owns is None else [item for item in items if owns(_key_of(item[1]))]
        part.more = page.more
        self._seen.add(part.source, page)

    def explain(self) -> Explanation:
        root = Step("merge", f"of {len(self._parts)}")
        return _explained(root, [(part.source, part.stream) for part in self._parts])


@lru_cache(maxsize=256)
def _positioned(options: RunOptions, page_size: int | None) -> RunOptions:
    return replace(options, positions=True, page_size=page_size)


def _key_of(result: Any) -> Key:
    key: Key = result if type(result) is Key else result.key
    return key


@lru_cache(maxsize=256)
def _share(page_size: int | None, wanted: int | None, sources: int) -> int | None:
    """How many results to ask each of the sources for, so that a second round trip is seldom needed."""
    if page_size is None and wanted is None:
        return None
    page = min(page_size or _LAST_PAGE, _LAST_PAGE if wanted is None else wanted)
    mean = page / sources
    return min(max(1, page), int(mean + 2 * mean**0.5 + 2))


def _read_all(results: list[Any]) -> list[Any]:
    """Results, read if they are not."""
    kinds = set(map(type, results))
    if kinds == {Unread} and all([type(result.serializer) is MsgpackSerializer for result in results]):
        return load_all(_USUAL, [(decode_key(key), payload, version) for _, key, version, payload in results])
    return [
        result.serializer.loads(decode_key(result.key), result.payload, result.version)
        if type(result) is Unread
        else result
        for result in results
    ]


def _spans_now(sources: Sequence[Source], query: Query, options: RunOptions) -> list[list[SpanRows]] | None:
    """The rows of each source that are the results; None if one has not got them at hand."""
    limit = query.max_results
    if (limit is None and options.page_size is None) or limit == 0 or options.track:
        return None
    if query.distinct_names or query.projection or query.end_cursor is not None:
        return None
    below = query._changed(skip=0, max_results=None, _shape=query._shape)
    prepare(query).give(below)
    found: list[list[SpanRows]] = []
    for source in sources:
        adapter = source.adapter
        if source.owns is not None or not isinstance(adapter, GivesRows):
            return None
        spans = adapter.spans_now(below, options.read_policy)
        if spans is None:
            return None
        found.append(spans)
    return found


class _RowStream(ResultStream):
    """Rows that several adapters have at hand, merged by position: only those that are results are read.

    What they don't have at hand any more is for :class:`_MergedStream`.
    """

    def __init__(
        self, sources: Sequence[Source], query: Query, options: RunOptions, spans: Sequence[Sequence[SpanRows]]
    ) -> None:
        self._sources = sources
        self._query = query
        self._options = options
        self._spans = spans
        self._merged = merged_rows([each for found in spans for each in found])
        self._skip = query.skip
        self._left = query.max_results
        # What was gathered for the next page.
        self._rows: list[Row] = []
        self._places: list[bytes] = []
        self._skipped = 0
        self._end = None if query.start_cursor is None else query.start_cursor.position or None
        self._more = True
        self._rest: _MergedStream | None = None

    async def next_page(self) -> Page:
        """The next page. One that fails is read again by the next call."""
        if self._rest is None and not self._gather():
            self._rest = _MergedStream(self._sources, self._left_of_query(), self._options)
        if self._rest is not None and not self._rows and not self._skipped:
            return await self._rest.next_page()
        results = self._read(self._rows)
        positions = self._places if self._options.positions else None
        page = Page(results, self._end, self._more, 0, positions, self._skipped, clock=MIXED)
        self._rows, self._places, self._skipped = [], [], 0
        return page

    def _gather(self) -> bool:
        """Gather the rows of a page; False if there are no more of them at hand."""
        size = self._options.page_size or _LAST_PAGE
        while self._more and len(self._rows) < size:
            want = size - len(self._rows) if self._left is None else min(size - len(self._rows), self._left)
            found = self._merged.next_rows(min(want + self._skip, _LAST_PAGE), each=self._options.positions)
            if found is None:
                return False
            rows, positions, self._more = found
            skipped = min(self._skip, len(rows))
            if positions:
                self._end = positions[-1]
            self._rows += rows[skipped:]
            if self._options.positions:
                self._places += positions[skipped:]
            self._skip -= skipped
            self._skipped += skipped
            if self._left is not None:
                self._left -= len(rows) - skipped
                self._more = self._more and self._left > 0
        return True

    def _read(self, rows: list[Row]) -> list[Any]:
        if self._query.only_keys:
            return [decode_key(row[-(tail & TAIL_KEY_MASK) :]) for row, tail, _, _ in rows]
        found = [
            (decode_key(row[-(tail & TAIL_KEY_MASK) :]), payload or b"", version or 0)
            for row, tail, version, payload in rows
        ]
        return load_all(_USUAL, found)

    def _left_of_query(self) -> Query:
        """The query from where this stands."""
        query = self._query
        if self._end is not None:
            query = query.start(cursor_at(query, self._end))
        return query.offset(self._skip).limit(self._left)

    def explain(self) -> Explanation:
        """The plans, and what was read of each source at once."""
        stream = self._rest or _MergedStream(self._sources, self._left_of_query(), self._options)
        explained = stream.explain()
        for step, spans in zip(explained.root.children, self._spans, strict=True):
            step.scans += sum([span.scans for span in spans])
            step.rows += sum([span.rows for span in spans])
            step.entities += 0 if self._query.only_keys else step.rows
        return explained


def _explained(root: Step, parts: Sequence[tuple[Source, ResultStream]]) -> Explanation:
    root.children = []
    index = None
    for source, stream in parts:
        found = stream.explain()
        index = index if index is not None else found.index
        root.children.append(Step("on", source.name, [found.root]))
    return Explanation(root, index)


class _MetadataStream(ResultStream):
    """Namespaces, kinds and properties of all adapters: what several of them have is one result."""

    def __init__(self, sources: Sequence[Source], query: Query, options: RunOptions) -> None:
        self._query = query
        self._options = options
        everything = Query(query.kind, namespace=query.namespace, project=query.project_id)
        own = replace(options, positions=False, page_size=None)
        self._parts = [(source, source.adapter.run(everything, own)) for source in sources]
        # Refuses cursors of other queries, as those do.
        self._checked = [source.adapter.run(query, own) for source in sources[:1]]
        self._done = False

    async def next_page(self) -> Page:
        normal = normalize(self._query)
        bounds = CursorBounds(self._query, normal)
        if self._done:
            return Page([], bounds.start or None, False, 0, [] if self._options.positions else None, clock=MIXED)
        seen = _Seen()
        found: dict[Key, Entity] = {}
        for entities in await all_of([partial(self._read, *part, seen) for part in self._parts]):
            for entity in entities:
                before = found.setdefault(entity.key, entity)
                if before is not entity and "property_representation" in entity:
                    types = {*before["property_representation"], *entity["property_representation"]}
                    before["property_representation"] = [name for name in _TYPES if name in types]
        self._done = True
        hits = sorted(
            (item for entity in found.values() for item in normal.matches(entity) if bounds.inside(item[0])),
            key=lambda item: item[0],
        )
        skipped = min(self._query.skip, len(hits))
        limit = self._query.max_results
        reached = hits[: None if limit is None else skipped + limit]
        end = reached[-1][0] if reached else bounds.start or None
        kept = reached[skipped:]
        positions = [position for position, _ in kept] if self._options.positions else None
        return seen.give(Page([result for _, result in kept], end, False, 0, positions, skipped))

    async def _read(self, source: Source, stream: ResultStream, seen: _Seen) -> list[Entity]:
        found: list[Entity] = []
        more = True
        while more:
            page = await stream.next_page()
            more = page.more
            found += page.results
            seen.add(source, page)
        return found

    def explain(self) -> Explanation:
        return _explained(Step("merge", f"of {len(self._parts)}"), self._parts)
