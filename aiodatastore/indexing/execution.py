"""Running a planned query: branches, sorts, unions, and the pages a caller sees.

Every stage gives *items* in order of their position, so that stages compose: a branch's rows, a sort where no
index has the order, a union of branches with equal positions met once. Nothing holds more than a page, but for
sorts: those keep the first ``limit`` results, or at most ``sort_budget`` of them.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from aiodatastore.entity import Entity
from aiodatastore.errors import NeedIndexError
from aiodatastore.indexing.encoding import component_end, decode_key, invert
from aiodatastore.indexing.explain import Step
from aiodatastore.indexing.normal import NormalQuery, types_of
from aiodatastore.indexing.planner import Access, BranchPlan
from aiodatastore.indexing.rows import ALTERNATE_SHIFT, indexed_values
from aiodatastore.indexing.scanning import OrderedRows, Reader, Rest
from aiodatastore.rowstore import TAIL_KEY_MASK, TAIL_MULTI, Record

if TYPE_CHECKING:
    from aiodatastore.serializers import Serializer

__all__ = ["FIRST_PAGE", "Bounds", "Item", "QueryRun", "following_size", "page_limit"]

_PROBE = 2000
"""Rows read by way of the filters before a query with an order to stream changes to that order."""

FIRST_PAGE: Final = 64
"""Results of the first page, where nothing says how many; they get more from page to page."""
_LAST_PAGE: Final = 512
_PAGE_BYTES = 4 << 20
"""Payloads of a page beyond which the next one has fewer entities."""

_tail = itemgetter(1)


Item = tuple[bytes, bytes, int, int, bytes | None]
"""A result on its way: position, encoded key, types of its components, and version and payload of the entity, if
it was read (else 0 and None)."""


@dataclass(slots=True)
class Bounds:
    """Where a run stands and how far it goes: ``start`` moves on with it, ``skip`` and ``limit`` go down.

    ``start`` is a position (empty: the beginning), excluded unless ``inclusive``; ``end`` is one as well (None:
    the end), included unless ``end_excluded``. A run can be taken up again with its bounds.
    """

    start: bytes = b""
    inclusive: bool = False
    end: bytes | None = None
    end_excluded: bool = False
    skip: int = 0
    limit: int | None = None

    def copy(self) -> Bounds:
        """Another one like this."""
        return Bounds(self.start, self.inclusive, self.end, self.end_excluded, self.skip, self.limit)

    def move(self, position: bytes) -> None:
        """Everything up to this position was given."""
        self.start = position
        self.inclusive = False

    def before_end(self, position: bytes) -> bool:
        """Whether a position is not after the end."""
        assert self.end is not None
        return position < self.end or (position == self.end and not self.end_excluded)


@dataclass(slots=True)
class _Context:
    """What all stages of a run share. ``keep`` is how many results a sort needs to keep, None: all."""

    query: NormalQuery
    reader: Reader
    serializer: Serializer
    start: bytes
    inclusive: bool
    sort_budget: int
    keep: int | None
    join: bool
    needed: Callable[[], NeedIndexError]

    def started(self, position: bytes) -> bool:
        """Whether a position is not before the start."""
        return position > self.start or (self.inclusive and position == self.start)

    def positions(self, key: bytes, version: int, payload: bytes) -> list[bytes]:
        """Where an entity stands in the results."""
        found = decode_key(key)
        entity = self.serializer.loads(found, payload, version)
        return self.query.positions(found, indexed_values(entity))


class _Stage(ABC):
    @abstractmethod
    async def fetch(self, limit: int) -> list[Item]:
        """About ``limit`` items after all earlier ones; empty at the end."""


class _Rows:
    """The rows of one access, with the position components they show."""

    def __init__(self, context: _Context, plan: BranchPlan, access: Access, step: Step, *, join: bool) -> None:
        self.context = context
        self.access = access
        self.branch = plan.branch
        query = context.query
        self._reader = context.reader
        self._step = step
        self.rows = OrderedRows(context.reader, step, access, key_descending=query.key_descending, join=join)
        # How components of a row become those of a position: constants are put between them.
        constant = plan.branch.constant
        self._layout = [
            (invert(constant[order.name]) if order.descending else constant[order.name])
            if order.name in constant
            else None
            for order in query.orders
        ]
        self._plain = all(part is None for part in self._layout)
        self.complete = access.count == len(plan.orders)
        # Ascending keys below components that are stored as asked: the position is the row.
        self.is_position = self._plain and self.complete and not query.key_descending and not access.backward
        self._orders = plan.orders
        self._seek(context.start)

    def _seek(self, start: bytes) -> None:
        if not start:
            return
        query = self.context.query
        components, key = query.split(start)
        stored = b""
        taken = 0
        for order, constant, value in zip(query.orders, self._layout, components, strict=False):
            part = invert(value) if order.descending else value
            if constant is not None:
                if constant != part:
                    self.rows.start_at_group(stored, inclusive=constant > part)
                    return
            elif taken < self.access.count:
                stored += invert(part) if self.access.backward else part
                taken += 1
            else:
                self.rows.start_at_group(stored, inclusive=True)
                return
        if self.access.count < len(self._orders) or query.trailing:
            if self.access.count or not query.trailing:
                self.rows.start_at_group(stored, inclusive=True)
            return
        self.rows.start_at(stored, key, inclusive=self.context.inclusive)

    def components(self, row: Rest) -> bytes:
        """The leading part of a row's positions: all order components that the row or a constant gives."""
        own = row[0][: -(row[1] & TAIL_KEY_MASK)]
        if self.access.backward:
            own = invert(own)
        if self._plain:
            return own
        parts: list[bytes] = []
        start = 0
        taken = 0
        for order, constant in zip(self.context.query.orders, self._layout, strict=True):
            if constant is not None:
                parts.append(constant)
            elif taken < self.access.count:
                end = component_end(own, start, inverted=order.descending)
                parts.append(own[start:end])
                start = end
                taken += 1
            else:
                break
        return b"".join(parts)

    async def fetch(self, limit: int) -> list[Rest]:
        """Rows whose key is in the branch's range."""
        lo, hi = self.branch.key_lo, self.branch.key_hi
        while True:
            rows = await self.rows.fetch(limit)
            if not rows:
                return []
            if self.access.key_filter:
                rows = [row for row in rows if lo <= row[0][-(row[1] & TAIL_KEY_MASK) :] < hi]
                if not rows:
                    continue
            return rows

    async def with_entities(self, rows: Sequence[Rest]) -> list[tuple[Rest, bytes, int, bytes]]:
        """Rows with their keys and entities: those joined already, the others in one read; less the absent."""
        keys = [rest[-(tail & TAIL_KEY_MASK) :] for rest, tail, _, _ in rows]
        missing = [place for place, row in enumerate(rows) if row[3] is None]
        read: dict[int, Record | None] = {}
        if missing:
            records = await self._reader.read(self._step, [keys[place] for place in missing])
            read = dict(zip(missing, records, strict=True))
        found: list[tuple[Rest, bytes, int, bytes]] = []
        for place, row in enumerate(rows):
            version, payload = row[2], row[3]
            if payload is None:
                record = read[place]
                if record is None:
                    continue
                version, payload = record
            found.append((row, keys[place], version or 0, payload))
        return found


class _ExactStage(_Stage):
    """Rows that are results as they stand: all filters and the whole order are the index's."""

    def __init__(self, context: _Context, plan: BranchPlan, step: Step) -> None:
        self._context = context
        self._rows = _Rows(context, plan, plan.ordered, step, join=context.join)
        # An entity with several rows here is a result once, where its best row is.
        self._verify = bool(context.query.orders) and context.query.once
        self._places = self._type_places(plan) if context.query.projection else ()

    def _type_places(self, plan: BranchPlan) -> tuple[tuple[int, int], ...]:
        """(bit in the tail, place among the query's components) of every component with types to tell."""
        names = [order.name for order in self._context.query.components]
        span = plan.ordered.spans[0]
        return tuple(
            (ALTERNATE_SHIFT + place, names.index(order.name))
            for place, order in zip(span.places, plan.orders, strict=False)
        )

    async def fetch(self, limit: int) -> list[Item]:
        while True:
            rows = await self._rows.fetch(limit)
            if not rows:
                return []
            items = self._items(rows)
            if self._verify and max(map(_tail, rows)) >= TAIL_MULTI:
                items = await self._verified(rows, items)
                if not items:
                    continue
            return items

    def _items(self, rows: Sequence[Rest]) -> list[Item]:
        if self._places:
            types = [self._types(row[1]) if row[1] >> ALTERNATE_SHIFT else 0 for row in rows]
        else:
            types = [0] * len(rows)
        if self._rows.is_position:
            return [
                (rest + b"\x00", rest[-(tail & TAIL_KEY_MASK) :], kinds, version or 0, payload)
                for (rest, tail, version, payload), kinds in zip(rows, types, strict=True)
            ]
        key_part, components = self._context.query.key_part, self._rows.components
        keys = [rest[-(tail & TAIL_KEY_MASK) :] for rest, tail, _, _ in rows]
        return [
            (components(row) + key_part(key), key, kinds, row[2] or 0, row[3])
            for row, key, kinds in zip(rows, keys, types, strict=True)
        ]

    async def _verified(self, rows: Sequence[Rest], items: list[Item]) -> list[Item]:
        """Less the items of entities with several rows that are results elsewhere."""
        doubtful = [place for place, row in enumerate(rows) if row[1] & TAIL_MULTI]
        keep: dict[int, Item] = {}
        found = await self._rows.with_entities([rows[place] for place in doubtful])
        places = {id(rows[place]): place for place in doubtful}
        for row, key, version, payload in found:
            place = places[id(row)]
            position, _, types, _, _ = items[place]
            if position in self._context.positions(key, version, payload):
                keep[place] = (position, key, types, version, payload)
        dropped = set(doubtful) - keep.keys()
        return [keep.get(place, item) for place, item in enumerate(items) if place not in dropped]

    def _types(self, tail: int) -> int:
        types = 0
        for bit, place in self._places:
            if tail >> bit & 1:
                types |= 1 << place
        return types


class _RefineStage(_Stage):
    """Rows in order whose entities have yet to be compared with the query.

    If the rows have only the first order components, the entities of equal ones are sorted together.
    """

    def __init__(self, context: _Context, plan: BranchPlan, step: Step) -> None:
        self._context = context
        self._rows = _Rows(context, plan, plan.ordered, step, join=True)
        self._sorts = not self._rows.complete
        self._group: bytes | None = None
        self._sorter = _Sorter(context)

    async def fetch(self, limit: int) -> list[Item]:
        context, source = self._context, self._rows
        out: list[Item] = []
        while True:
            # Few of these rows may be results: read more of them than are wanted.
            rows = await source.fetch(max(limit, FIRST_PAGE))
            if not rows:
                return out + self._sorter.drain()
            for row, key, version, payload in await source.with_entities(rows):
                prefix = source.components(row)
                if self._sorts and prefix != self._group:
                    out += self._sorter.drain()
                    self._group = prefix
                if not self._sorts:
                    prefix += context.query.key_part(key)
                for position in context.positions(key, version, payload):
                    if position.startswith(prefix) and context.started(position):
                        item = (position, key, 0, version, payload)
                        if self._sorts:
                            self._sorter.add(item)
                            if self._sorter.full:
                                raise context.needed()
                        else:
                            out.append(item)
            if out:
                return out


class _Sorter:
    """Collects items to sort: the first ``keep`` of them, or as many as the budget allows."""

    def __init__(self, context: _Context) -> None:
        self._context = context
        self._items: dict[bytes, Item] = {}

    @property
    def full(self) -> bool:
        """Whether there is more than the budget allows; never where only the first results are kept."""
        return self._context.keep is None and len(self._items) > self._context.sort_budget

    def add(self, item: Item) -> None:
        items, keep = self._items, self._context.keep
        items[item[0]] = item
        if keep is not None and len(items) >= 2 * keep + FIRST_PAGE:
            self._items = {position: items[position] for position in heapq.nsmallest(keep, items)}

    def drain(self) -> list[Item]:
        """Everything collected, in order."""
        items, self._items = self._items, {}
        return [items[position] for position in sorted(items)]


class _SortStage(_Stage):
    """Reads by way of the filters and sorts; gives the rows' order a try where there are too many for that."""

    def __init__(self, context: _Context, plan: BranchPlan, step: Step) -> None:
        assert plan.filtered is not None
        self._context = context
        self._plan = plan
        self._step = step
        self._sorting = step.add("sort", "" if context.keep is None else f"the first {context.keep}")
        self._reading = _access_step(self._sorting, plan.filtered)
        self._sorted: list[Item] | None = None
        self._given = 0
        self._instead: _Stage | None = None

    async def fetch(self, limit: int) -> list[Item]:
        if self._sorted is None and self._instead is None:
            await self._collect()
        if self._instead is not None:
            return await self._instead.fetch(limit)
        assert self._sorted is not None
        given = self._given
        self._given = given + limit
        return self._sorted[given : self._given]

    async def _collect(self) -> None:
        context, plan = self._context, self._plan
        assert plan.filtered is not None
        source = _Rows(replace(context, start=b""), plan, plan.filtered, self._reading, join=True)
        sorter = _Sorter(context)
        read = 0
        most = _PROBE if context.keep is not None else context.sort_budget
        while rows := await source.fetch(_LAST_PAGE):
            read += len(rows)
            if read > most or sorter.full:
                self._sorting.detail = f"given up after {read} rows"
                access = _access_step(self._step.add("filter", "rows in order"), plan.ordered)
                self._instead = (_ExactStage if plan.ordered.exact else _RefineStage)(context, plan, access)
                return
            for _, key, version, payload in await source.with_entities(rows):
                for position in context.positions(key, version, payload):
                    if context.started(position):
                        sorter.add((position, key, 0, version, payload))
        self._sorted = sorter.drain()


class _UnionStage(_Stage):
    """Several branches merged by position; what several of them give is met once."""

    def __init__(self, stages: Sequence[_Stage]) -> None:
        self._stages = list(stages)
        self._buffers: list[list[Item]] = [[] for _ in stages]
        self._ended = [False] * len(self._stages)

    async def fetch(self, limit: int) -> list[Item]:
        page = max(8, limit // max(1, len(self._stages)))
        out: list[Item] = []
        while not out:
            for place, stage in enumerate(self._stages):
                if not self._buffers[place] and not self._ended[place]:
                    self._buffers[place] = await stage.fetch(page)
                    self._ended[place] = not self._buffers[place]
            live = [buffer for buffer in self._buffers if buffer]
            if not live:
                return []
            # Whatever is not after the last item of any buffer can't be preceded by what was not fetched yet.
            safe = min(
                (buffer[-1][0] for place, buffer in enumerate(self._buffers) if buffer and not self._ended[place]),
                default=max(buffer[-1][0] for buffer in live),
            )
            last: Item | None = None
            for item in heapq.merge(*live, key=itemgetter(0)):
                if item[0] > safe:
                    break
                if last is not None and last[0] == item[0]:
                    if last[4] is None and item[4] is not None:
                        out[-1] = last = item
                    continue
                out.append(item)
                last = item
            for place, buffer in enumerate(self._buffers):
                self._buffers[place] = [item for item in buffer if item[0] > safe]
        return out


def _access_step(parent: Step, access: Access) -> Step:
    way = "descending" if access.backward else "ascending"
    if len(access.spans) == 1:
        return parent.add("scan", f"{access.spans[0].label}, {way}")
    return parent.add("merge join", way)


def page_limit(page_size: int | None, size: int, left: int | None) -> int:
    """How many results a page has: ``size`` of them, but all that are left of a limit if they are not too many."""
    return size if left is None else min(left, size if page_size else _LAST_PAGE)


def following_size(size: int, payloads: Sequence[bytes | None]) -> int:
    """How many results the page after one of ``size`` has: twice as many, but fewer where entities are large."""
    grown = min(_LAST_PAGE, size * 2)
    weight = sum([len(payload or b"") for payload in payloads])
    if 2 * weight > _PAGE_BYTES:
        return min(grown, max(1, len(payloads) * _PAGE_BYTES // weight))
    return grown


class QueryRun:
    """A running query: gives pages of items until its limit or the end cursor."""

    def __init__(
        self,
        query: NormalQuery,
        plans: Sequence[BranchPlan],
        reader: Reader,
        serializer: Serializer,
        bounds: Bounds,
        *,
        sort_budget: int,
        page_size: int | None,
        first_size: int = FIRST_PAGE,
        needed: Callable[[], NeedIndexError],
    ) -> None:
        self.query = query
        self.reader = reader
        self.bounds = bounds
        self._serializer = serializer
        self._page_size = page_size
        self._next_page = page_size or first_size
        self._pending: list[Item] = []
        self._ended = False
        self._keys_only = query.query.only_keys
        self._distinct_seen: bytes | None = None
        self._held: Item | None = None
        if query.distinct and bounds.start and not bounds.inclusive:
            self._distinct_seen = bounds.start[: query.prefix_end(bounds.start, query.distinct)]
        keep = None if bounds.limit is None or query.distinct else bounds.limit + bounds.skip
        if keep is not None and keep > sort_budget:
            keep = None
        self._context = _Context(
            query,
            reader,
            serializer,
            bounds.start,
            bounds.inclusive,
            sort_budget,
            keep,
            not self._keys_only and not query.projection,
            needed,
        )
        self.root = Step("query")
        parent = self.root if len(plans) < 2 else self.root.add("union", f"of {len(plans)}")
        stages = [self._stage(plan, parent) for plan in plans]
        self._source: _Stage = stages[0] if len(stages) == 1 else _UnionStage(stages)
        self._read_step: Step | None = None

    def _stage(self, plan: BranchPlan, parent: Step) -> _Stage:
        if plan.filtered is not None:
            return _SortStage(self._context, plan, parent)
        if plan.ordered.exact:
            return _ExactStage(self._context, plan, _access_step(parent, plan.ordered))
        detail = "and sort equal ones" if plan.ordered.count < len(plan.orders) else ""
        return _RefineStage(self._context, plan, _access_step(parent.add("filter", detail), plan.ordered))

    @property
    def finished(self) -> bool:
        """Whether no item can follow, and nothing has yet to be skipped."""
        return self._ended or (self.bounds.limit == 0 and not self.bounds.skip)

    async def next_items(self) -> tuple[list[Item], int]:
        """The next items (none at the end), with their entities where results are entities; and how many the
        offset skipped."""
        bounds = self.bounds
        skipped = 0
        out: list[Item] = []
        size = self._next_page
        want = page_limit(self._page_size, size, bounds.limit)
        while (len(out) < want or bounds.skip) and not self.finished:
            if not self._pending:
                self._pending = await self._fetch(want - len(out) + min(bounds.skip, _LAST_PAGE))
                if not self._pending:
                    self._ended = True
                    break
            if bounds.skip:
                passed = self._pending[: bounds.skip]
                self._pending = self._pending[bounds.skip :]
                bounds.skip -= len(passed)
                skipped += len(passed)
                bounds.move(passed[-1][0])
                continue
            taken = self._pending[: want - len(out)]
            self._pending = self._pending[len(taken) :]
            bounds.move(taken[-1][0])
            if self._context.join:
                taken = await self._with_entities(taken)
            out += taken
            if bounds.limit is not None:
                bounds.limit -= len(taken)
        if self._page_size is None:
            self._next_page = following_size(size, [item[4] for item in out])
        return out, skipped

    async def _fetch(self, limit: int) -> list[Item]:
        """Items of the stage, less those that are not results: after the end, or equal in ``distinct``."""
        bounds = self.bounds
        while True:
            items = await self._source.fetch(limit)
            if items and bounds.end is not None and items[-1][0] >= bounds.end:
                items = [item for item in items if bounds.before_end(item[0])]
            if not items:
                held, self._held = self._held, None
                return [held] if held is not None and self.query.mirrored and not self._is_cut(held) else []
            if self.query.distinct:
                items = self._distinct(items)
            if items:
                return items

    def _is_cut(self, item: Item) -> bool:
        """Whether the end is among the items equal to this one: then the one to give is behind it."""
        bounds, count = self.bounds, self.query.distinct
        if not bounds.end or not bounds.end_excluded:
            return False
        ends = self.query.prefix_end
        return item[0][: ends(item[0], count)] == bounds.end[: ends(bounds.end, count)]

    def _distinct(self, items: list[Item]) -> list[Item]:
        """The first of equal ones: the last, where the query is read from its end."""
        query = self.query
        out = []
        for item in items:
            prefix = item[0][: query.prefix_end(item[0], query.distinct)]
            if prefix != self._distinct_seen:
                if query.mirrored and self._held is not None:
                    out.append(self._held)
                elif not query.mirrored:
                    out.append(item)
                self._distinct_seen = prefix
            self._held = item
        return out

    async def _with_entities(self, items: list[Item]) -> list[Item]:
        missing = [place for place, item in enumerate(items) if item[4] is None]
        if not missing:
            return items
        if self._read_step is None:
            self._read_step = self.root.add("fetch", "entities by key")
        records = await self.reader.read(self._read_step, [items[place][1] for place in missing])
        found: list[Item | None] = list(items)
        for place, record in zip(missing, records, strict=True):
            position, key, types, _, _ = items[place]
            found[place] = None
            if record is not None and self._still(position, key, record):
                found[place] = (position, key, types, record.version, record.payload)
        return [item for item in found if item is not None]

    def _still(self, position: bytes, key: bytes, record: Record) -> bool:
        """Whether an entity read after its index row is still the result it was."""
        if self.reader.version is not None and record.version <= self.reader.version:
            return True
        return position in self._context.positions(key, record.version, record.payload)

    async def entities(self, items: list[Item]) -> list[Entity]:
        """The whole entities of items, whatever the query's results are; less those gone meanwhile."""
        loads = self._serializer.loads
        return [
            loads(decode_key(key), payload, version)
            for _, key, _, version, payload in await self._with_entities(items)
            if payload is not None
        ]

    def results(self, items: list[Item]) -> list[Any]:
        """What the caller gets for items: entities, keys, or projected entities."""
        if self._keys_only:
            return [decode_key(item[1]) for item in items]
        if not self.query.projection:
            loads = self._serializer.loads
            return [loads(decode_key(key), payload or b"", version) for _, key, _, version, payload in items]
        return [self._projected(item) for item in items]

    def _projected(self, item: Item) -> Entity:
        position, encoded, types, version, payload = item
        key = decode_key(encoded)
        if payload is not None:
            entity = self._serializer.loads(key, payload, version)
            return self.query.projected(key, position, version, types_of(indexed_values(entity)))
        return self.query.projected(key, position, 0, lambda place, _name, _value: bool(types >> place & 1))
