"""Reading rows: one span, or the intersection of several, in the order of a plan.

Everything here works on bytes. A *rest* is what a row has after its span's prefix: order components and key.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter

from anyio.lowlevel import checkpoint

from aiodatastore.indexing.explain import Step
from aiodatastore.indexing.planner import Access, SpanPlan
from aiodatastore.rowstore import (
    TAIL_KEY_MASK,
    TAIL_MULTI,
    Record,
    RowIntersection,
    RowStore,
    Space,
    Span,
    SpanCheck,
    SpanCount,
    SpanTally,
)

__all__ = ["OrderedRows", "Reader", "Rest"]

_AFTER = b"\xff"
_MAX_SEEK = 512
_MAX_HOLD_S = 0.005


Rest = tuple[bytes, int, int | None, bytes | None]
"""A row less its span's prefix: the rest, its tail, the joined entity's version and payload (or None).

A plain tuple, as are the stages' items: a page makes hundreds, and naming their fields would double its cost.
"""


class Reader:
    """All reads of one query: counts them, and for a transaction records what they saw.

    ``version`` is the store's version at the first read: an entity that is newer was changed since the index
    was read, and has to be compared with the query again. ``oldest`` and ``newest`` are the versions between which
    the reads since the last :meth:`take_versions` were made. ``rows`` and ``scans`` are those of all steps.
    """

    __slots__ = ("_since", "checks", "newest", "oldest", "rows", "scans", "spans", "store", "track", "version")

    def __init__(self, store: RowStore, *, track: bool) -> None:
        self.store = store
        self.track = track
        self.version: int | None = None
        self.oldest: int | None = None
        self.newest = 0
        self.rows = 0
        self.scans = 0
        self._since = perf_counter()
        self.checks: dict[bytes, int] = {}
        self.spans: list[SpanCheck] = []

    async def scan(
        self, step: Step, space: Space, lo: bytes, hi: bytes, limit: int, *, reverse: bool, join: bool
    ) -> Sequence[tuple[bytes, int, int | None, bytes | None]]:
        """Rows of a span."""
        if lo >= hi:
            return ()
        await self._pause()
        rows, version = await self.store.scan(Span(space, lo, hi), limit, reverse=reverse, with_entities=join)
        self._saw(version)
        step.scans += 1
        self.scans += 1
        if space is Space.INDEX:
            step.rows += len(rows)
            self.rows += len(rows)
        if join or space is Space.ENTITY:
            step.entities += len(rows)
        if self.track:
            self._record_scan(space, lo, hi, limit, rows, reverse=reverse)
        return rows

    def _saw(self, version: int) -> None:
        if self.version is None:
            self.version = version
        if self.oldest is None or version < self.oldest:
            self.oldest = version
        self.newest = max(self.newest, version)

    def take_versions(self) -> tuple[int, int]:
        """The oldest and the newest version since the last call (the first read's, if nothing was read)."""
        first = self.version or 0
        taken = (first, first) if self.oldest is None else (self.oldest, self.newest)
        self.oldest, self.newest = None, 0
        return taken

    def forget(self) -> None:
        """Drop what a transaction would have to check: nothing of it is given to anybody."""
        self.checks, self.spans = {}, []
        self.oldest, self.newest = None, 0

    async def _pause(self) -> None:
        """Let other tasks run if reads that never suspend have kept them waiting."""
        now = perf_counter()
        if now - self._since > _MAX_HOLD_S:
            await checkpoint()
            self._since = perf_counter()

    def _record_scan(
        self,
        space: Space,
        lo: bytes,
        hi: bytes,
        limit: int,
        rows: Sequence[tuple[bytes, int, int | None, bytes | None]],
        *,
        reverse: bool,
    ) -> None:
        if len(rows) >= limit:  # only as far as it read
            if reverse:
                lo = rows[-1][0]
            else:
                hi = rows[-1][0] + b"\x00"
        ordered = reversed(rows) if reverse else rows
        digest = self.store.digest([(row, version) for row, _, version, _ in ordered], space)
        self.spans.append(SpanCheck(space, lo, hi, len(rows), digest))
        for row, tail, version, payload in rows:
            if payload is not None and version is not None:
                key = row[-(tail & TAIL_KEY_MASK) :] if space is Space.INDEX else row
                self.checks[key] = version

    async def read(self, step: Step, keys: Sequence[bytes]) -> list[Record | None]:
        """Entities by key."""
        await self._pause()
        records, version = await self.store.read(keys)
        self._saw(version)
        step.scans += 1
        self.scans += 1
        step.entities += len(keys)
        if self.track:
            for key, record in zip(keys, records, strict=True):
                self.checks[key] = 0 if record is None else record.version
        return records

    async def intersect(
        self, step: Step, prefixes: Sequence[bytes], lo: bytes, hi: bytes, limit: int, *, reverse: bool, join: bool
    ) -> RowIntersection | None:
        """Rests that index rows of several prefixes share, if the store finds them itself."""
        await self._pause()
        found = await self.store.intersect(prefixes, lo, hi, limit, reverse=reverse, with_entities=join)
        if found is not None:
            self._saw(found.version)
            step.scans += 1
            self.scans += 1
            step.rows += len(found.rows)
            self.rows += len(found.rows)
            if join:
                step.entities += len(found.rows)
        return found

    async def tally(self, step: Step, space: Space, lo: bytes, hi: bytes, skip: int) -> SpanTally | None:
        """How often each value occurs in a span, if the store counts that itself."""
        if space is not Space.INDEX or lo >= hi:
            return None
        found = await self.store.tally(Span(space, lo, hi), skip)
        if found is not None:
            self._saw(found.version)
            step.scans += 1
            self.scans += 1
            rows = sum(rows for _, _, rows in found.values)
            step.rows += rows
            self.rows += rows
        return found

    async def count(self, step: Step, space: Space, lo: bytes, hi: bytes) -> SpanCount:
        """How many rows a span has."""
        counted = await self.store.count(Span(space, lo, hi)) if lo < hi else SpanCount(0, 0, self.version or 0)
        step.scans += 1
        self.scans += 1
        self._saw(counted.version)
        if self.track:
            self.spans.append(SpanCheck(space, lo, hi, counted.rows))
        return counted


class _SpanScanner:
    """Rests of one span."""

    def __init__(self, reader: Reader, step: Step, span: SpanPlan, *, join: bool) -> None:
        self._reader = reader
        self._step = step
        self._span = span
        self.join = join

    async def scan(self, lo: bytes, hi: bytes, limit: int, *, backward: bool) -> tuple[list[Rest], bool]:
        """At most ``limit`` rests in ``lo <= rest < hi``, and whether those are all."""
        prefix, space = self._span.prefix, self._span.space
        rows = await self._reader.scan(
            self._step, space, prefix + lo, prefix + hi, limit, reverse=backward, join=self.join
        )
        if space is Space.ENTITY:
            return [(row, len(row), version, payload) for row, _, version, payload in rows], len(rows) < limit
        cut = len(prefix)
        return [(row[cut:], tail, version, payload) for row, tail, version, payload in rows], len(rows) < limit


class _Cursor:
    """A window on one span of an intersection, fetched ahead."""

    __slots__ = ("_backward", "_done", "_page", "_rests", "_scanner", "_tails", "_used")

    def __init__(self, scanner: _SpanScanner, page: int, *, backward: bool) -> None:
        self._scanner = scanner
        self._backward = backward
        self._page = page
        self._rests: list[bytes] = []
        self._tails: list[int] = []
        self._done = False
        self._used = 0

    async def seek(self, target: bytes, bound: bytes) -> tuple[bytes, int] | None:
        """The first rest at or after ``target`` (backward: the last one before it), within ``bound``."""
        while True:
            found = self._find(target)
            if found is not None:
                self._used += 1
                return found
            if self._done:
                return None
            if self._rests:
                # Much used: read further ahead. Jumped over: the other spans are sparser, read less.
                self._page = min(self._page * 2, _MAX_SEEK) if self._used > 4 else max(self._page // 2, 8)
            self._used = 0
            lo, hi = (bound, target) if self._backward else (target, bound)
            page, self._done = await self._scanner.scan(lo, hi, self._page, backward=self._backward)
            if self._backward:
                page.reverse()
            self._rests = [row[0] for row in page]
            self._tails = [row[1] for row in page]
            if not page:
                self._done = True
                return None

    def _find(self, target: bytes) -> tuple[bytes, int] | None:
        rests = self._rests
        if not rests:
            return None
        if self._backward:
            place = bisect_left(rests, target) - 1
            if place < 0:
                return None
        else:
            place = bisect_left(rests, target)
            if place == len(rests):
                return None
        return rests[place], self._tails[place]


class _Intersection:
    """Rests that several spans share.

    The store finds them if it can. If it can't, or a transaction has to know which parts of the spans were looked at:
    by leapfrogging, each span seeks to where the others already are.
    """

    def __init__(self, reader: Reader, step: Step, spans: Sequence[SpanPlan], *, join: bool) -> None:
        self._reader = reader
        self._step = step
        self._join = join
        self._scanners = [_SpanScanner(reader, step.add("span", span.label), span, join=False) for span in spans]
        self._prefixes = [span.prefix for span in spans]
        self._native = not reader.track and all(span.space is Space.INDEX for span in spans)

    async def scan(self, lo: bytes, hi: bytes, limit: int, *, backward: bool) -> tuple[list[Rest], bool]:
        """As :meth:`_SpanScanner.scan`; entities may be joined or not."""
        found: list[Rest] = []
        while self._native:
            part = await self._reader.intersect(
                self._step, self._prefixes, lo, hi, limit - len(found), reverse=backward, join=self._join
            )
            if part is None:
                self._native = False
                break
            found += part.rows
            if part.resume is None or len(found) >= limit:
                return found, part.resume is None
            if backward:
                hi = part.resume
            else:
                lo = part.resume
        return await self._leapfrog(lo, hi, limit, backward=backward)

    async def _leapfrog(self, lo: bytes, hi: bytes, limit: int, *, backward: bool) -> tuple[list[Rest], bool]:
        page = max(16, min(limit, _MAX_SEEK))
        cursors = [_Cursor(scanner, page, backward=backward) for scanner in self._scanners]
        bound = lo if backward else hi
        target = hi if backward else lo
        found: list[Rest] = []
        while len(found) < limit:
            agreed = 0
            place = 0
            candidate: bytes | None = None
            tails = 0
            while agreed < len(cursors):
                hit = await cursors[place].seek(target, bound)
                if hit is None:
                    return found, True
                rest, tail = hit
                if rest == candidate:
                    agreed += 1
                    tails |= tail & TAIL_MULTI
                else:
                    candidate, agreed, tails = rest, 1, tail
                    # Backward, "at or before" the candidate is "before" the smallest row after it.
                    target = rest + b"\x00" if backward else rest
                place = (place + 1) % len(cursors)
            assert candidate is not None
            found.append((candidate, tails, None, None))
            target = candidate if backward else candidate + b"\x00"
        return found, False


class OrderedRows:
    """The rows of an access in the query's order, page by page.

    Where keys go the other way than the components before them (ties are broken by ascending key under
    descending orders too), each group of equal components is turned around: in memory if the group ends
    within a page, otherwise by reading the group's own span the other way.
    """

    def __init__(self, reader: Reader, step: Step, access: Access, *, key_descending: bool, join: bool) -> None:
        self._scanner = (
            _SpanScanner(reader, step, access.spans[0], join=join)
            if len(access.spans) == 1
            else _Intersection(reader, step, access.spans, join=join)
        )
        self._backward = access.backward
        self._turned = access.count > 0 and key_descending != access.backward
        self._lo, self._hi = access.lo, access.hi
        self._group: bytes | None = None
        self._group_lo = self._group_hi = b""
        self._done = False

    def start_at(self, components: bytes, key: bytes, *, inclusive: bool) -> None:
        """Begin with (or after) the row of these (stored) components and key."""
        rest = components + key
        after = rest + b"\x00"  # the next row there can be
        if self._turned:
            self._group = components
            self._group_lo, self._group_hi = components, components + _AFTER
            if self._backward:
                self._group_lo = rest if inclusive else after
            else:
                self._group_hi = after if inclusive else rest
            # Where other branches of the query stand, this one's range may have no rows.
            self._group_lo = max(self._group_lo, self._lo)
            self._group_hi = min(self._group_hi, self._hi)
        elif self._backward:
            self._hi = min(self._hi, after if inclusive else rest)
        else:
            self._lo = max(self._lo, rest if inclusive else after)

    def start_at_group(self, components: bytes, *, inclusive: bool) -> None:
        """Begin with (or after) the rows of these leading (stored) components."""
        if self._backward:
            self._hi = min(self._hi, components + _AFTER if inclusive else components)
        else:
            self._lo = max(self._lo, components if inclusive else components + _AFTER)

    async def fetch(self, limit: int) -> list[Rest]:
        """Some rows, empty at the end."""
        while True:
            if self._group is not None:
                rows = await self._fetch_group(limit)
                if rows:
                    return rows
                continue
            if self._done or self._lo >= self._hi:
                return []
            if self._turned:
                rows = await self._fetch_turned(limit)
                if rows:
                    return rows
                continue
            rows, self._done = await self._scanner.scan(self._lo, self._hi, limit, backward=self._backward)
            if rows:
                if self._backward:
                    self._hi = rows[-1][0]
                else:
                    self._lo = rows[-1][0] + b"\x00"
            return rows

    async def _fetch_group(self, limit: int) -> list[Rest]:
        assert self._group is not None
        backward = not self._backward
        rows, done = await self._scanner.scan(self._group_lo, self._group_hi, limit, backward=backward)
        if rows:
            if backward:
                self._group_hi = rows[-1][0]
            else:
                self._group_lo = rows[-1][0] + b"\x00"
        if done:
            self.start_at_group(self._group, inclusive=False)
            self._group = None
        return rows

    async def _fetch_turned(self, limit: int) -> list[Rest]:
        rows, self._done = await self._scanner.scan(self._lo, self._hi, limit + 1, backward=self._backward)
        groups: list[tuple[bytes, list[Rest]]] = []
        for row in rows:
            components = row[0][: -(row[1] & TAIL_KEY_MASK)]
            if groups and groups[-1][0] == components:
                groups[-1][1].append(row)
            else:
                groups.append((components, [row]))
        if not self._done:
            components, _ = groups.pop()  # may go on beyond the page
            if groups:
                self.start_at_group(components, inclusive=True)
            else:
                self._group = components
                self._group_lo, self._group_hi = components, components + _AFTER
        return [row for _, group in groups for row in reversed(group)]
