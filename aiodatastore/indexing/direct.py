"""Queries whose results are the rows of one span as they stand: what most queries are.

The stages of :mod:`aiodatastore.indexing.execution` serve every plan, and take as long as a scan of a server
where there is nothing for them to do. A :class:`DirectSpan` is known for the plans where there is nothing: their first
page is one scan, and its rows are the results; a collection merges the rows of several (:class:`GivesRows`). Pages
after it, and whatever is met that is not plain (an entity with several rows, one that the scan did not join), are the
stages' work; both give the same results and positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from aiodatastore.indexing.encoding import invert
from aiodatastore.indexing.normal import NormalQuery
from aiodatastore.indexing.planner import BranchPlan, key_is_bounded
from aiodatastore.rowstore import TAIL_KEY_MASK, TAIL_MULTI, Row, Space, Span

if TYPE_CHECKING:
    from aiodatastore.adapters.base import ReadPolicy
    from aiodatastore.query import Query

__all__ = [
    "DirectSpan",
    "GivesCounts",
    "GivesRows",
    "MergedRows",
    "ScanNow",
    "SpanRows",
    "direct_span",
    "direct_spans",
    "merged_rows",
]

_row, _tail, _payload = itemgetter(0), itemgetter(1), itemgetter(3)


@dataclass(frozen=True, slots=True)
class DirectSpan:
    """The rows of a span of an index, read ``backward`` or not; positions begin after ``cut`` bytes of them.

    ``once``: an entity is a result only where it comes first, so that one with several rows has to be looked at.
    """

    span: Span
    backward: bool
    cut: int
    keys_only: bool
    once: bool
    key_descending: bool

    def plain(self, rows: Sequence[Row]) -> bool:
        """Whether all rows are results as they stand."""
        if self.once and max(map(_tail, rows), default=0) >= TAIL_MULTI and any([row[1] & TAIL_MULTI for row in rows]):
            return False
        return self.keys_only or None not in map(_payload, rows)

    def positions(self, rows: Sequence[Row]) -> list[bytes]:
        """Where the results of rows stand."""
        if self.backward or self.key_descending:
            return [self.position(row, tail) for row, tail, _, _ in rows]
        cut = self.cut
        return [row[cut:] + b"\x00" for row, _, _, _ in rows]

    def beyond(self, row: bytes) -> Span:
        """The rows that come after one."""
        space, lo, hi = self.span
        return Span(space, lo, row) if self.backward else Span(space, row + b"\x00", hi)

    def after(self, position: bytes) -> Span:
        """The rows whose results come after a position."""
        # The keys of rows that are read backward descend, so all of such a position is inverted.
        row = self.span.lo[: self.cut] + (invert(position) if self.backward else position)[:-1]
        space, lo, hi = self.span
        return Span(space, lo, min(hi, row)) if self.backward else Span(space, max(lo, row + b"\x00"), hi)

    def position(self, row: bytes, tail: int) -> bytes:
        """Where the result of a row stands."""
        if not self.backward and not self.key_descending:
            return row[self.cut :] + b"\x00"
        size = tail & TAIL_KEY_MASK
        components, key = row[self.cut : -size], row[-size:] + b"\x00"
        return (invert(components) if self.backward else components) + (invert(key) if self.key_descending else key)


ScanNow = Callable[["DirectSpan", Span, int], list[Row] | None]
"""Tells the first so many rows of a part of a span, if they are at hand."""


class GivesRows:
    """An adapter that may have the rows of queries at hand, for who merges those of several."""

    def spans_now(self, query: Query, read_policy: ReadPolicy) -> list[SpanRows] | None:
        """The spans whose rows are a query's results, its limit and offset aside; None if there is more to it, or rows
        can't be had at once.

        Entities are payloads of :class:`~aiodatastore.serializers.MsgpackSerializer`.
        """
        raise NotImplementedError


class GivesCounts:
    """An adapter that may tell how many results there are at once, for who adds up what several have."""

    def count_now(self, query: Query, read_policy: ReadPolicy) -> int | None:
        """How many keys a ``keys_only`` query has, which has no limit, offset or cursor; None if that can't be told at
        once."""
        raise NotImplementedError


class SpanRows:
    """The rows of ``span``, all of ``direct`` or its end, some after others.

    ``rows`` and ``scans`` are how many were read, and how often.
    """

    __slots__ = ("_scan", "_span", "direct", "last", "more", "rows", "scans")

    def __init__(self, direct: DirectSpan, span: Span, scan: ScanNow) -> None:
        self.direct = direct
        self._span = span
        self._scan = scan
        self.last: Row | None = None
        """The last row that was read; None before the first."""
        self.more = True
        self.rows = self.scans = 0

    def read(self, limit: int) -> list[Row] | None:
        """The next rows, at most ``limit``; None if they can't be had at once, or not all are results as they stand."""
        direct = self.direct
        span = self._span if self.last is None else direct.beyond(self.last[0])
        rows = self._scan(direct, span, limit) if span.lo < span.hi else []
        if rows is None or not direct.plain(rows):
            return None
        self.rows += len(rows)
        self.scans += 1
        self.more = len(rows) == limit
        if rows:
            self.last = rows[-1]
        return rows


class MergedRows(ABC):
    """The rows of several spans in the order of their positions."""

    @abstractmethod
    def next_rows(self, limit: int, *, each: bool) -> tuple[list[Row], list[bytes], bool] | None:
        """The rows of the next results, at most ``limit``; their positions (of ``each``, or of the last at least); and
        whether more may follow. None if they can't be had at once, or some are not results as they stand.
        """


def merged_rows(spans: Sequence[SpanRows]) -> MergedRows:
    """The rows of several spans, which are the same one of several stores, or not."""
    direct = spans[0].direct
    return _OneSpan(spans) if all([span.direct is direct for span in spans]) else _Union(spans)


def _share(limit: int, spans: int) -> int:
    """How many rows to read of each span, so that a second time is seldom needed: it costs what ten more rows do."""
    share = limit / spans
    return min(limit, int(share + 1.5 * share**0.5 + 1))


class _OneSpan(MergedRows):
    """Those of one span of several stores: in the order of their positions as they are, and none of them twice."""

    __slots__ = ("_found", "_given", "_spans")

    def __init__(self, spans: Sequence[SpanRows]) -> None:
        self._spans = spans
        self._found: list[Row] = []
        self._given: Row | None = None

    def next_rows(self, limit: int, *, each: bool) -> tuple[list[Row], list[bytes], bool] | None:
        spans, found = self._spans, self._found
        direct = spans[0].direct
        size = _share(limit, len(spans))
        for span in spans:
            if span.more and span.last is self._given:
                rows = span.read(size)
                if rows is None:
                    return None
                found += rows
        found.sort(key=_row, reverse=direct.backward)
        # What comes after the last row that was read of a span may be preceded by what has yet to be read of it.
        lasts = [span.last for span in spans if span.more and span.last is not None]
        if lasts:
            safe = max(lasts, key=_row) if direct.backward else min(lasts, key=_row)
            limit = min(limit, found.index(safe) + 1)
        given = found[:limit]
        del found[:limit]
        if given:
            self._given = given[-1]
        return given, direct.positions(given if each else given[-1:]), bool(found or lasts)


class _Union(MergedRows):
    """Those of different spans, each position once.

    An entity of whose rows one is met alone, in each of the spans where it is met, stands at the same position in all.
    """

    __slots__ = ("_found", "_given", "_lasts", "_spans")

    def __init__(self, spans: Sequence[SpanRows]) -> None:
        self._spans = spans
        self._found: dict[bytes, Row] = {}
        self._lasts = [b""] * len(spans)
        self._given = b""

    def next_rows(self, limit: int, *, each: bool) -> tuple[list[Row], list[bytes], bool] | None:
        spans, found, lasts = self._spans, self._found, self._lasts
        size = _share(limit, len(spans))
        for place, span in enumerate(spans):
            if span.more and lasts[place] == self._given:
                rows = span.read(size)
                if rows is None:
                    return None
                positions = span.direct.positions(rows)
                found.update(zip(positions, rows, strict=True))
                if positions:
                    lasts[place] = positions[-1]
        # As above.
        safe = min([last for span, last in zip(spans, lasts, strict=True) if span.more], default=None)
        given = sorted(found)
        if safe is not None:
            limit = min(limit, bisect_right(given, safe))
        given = given[:limit]
        if given:
            self._given = given[-1]
        return [found.pop(position) for position in given], given, bool(found or safe is not None)


def direct_spans(query: NormalQuery, plans: Sequence[BranchPlan]) -> list[DirectSpan] | None:
    """The spans whose rows together are a query's results, each in order; None if there is more to them."""
    found = [_direct(query, plan) for plan in plans]
    spans = [direct for direct in found if direct is not None]
    return spans if len(spans) == len(plans) > 0 else None


def direct_span(query: NormalQuery, plans: Sequence[BranchPlan]) -> DirectSpan | None:
    """The span whose rows are a query's results, in order; None if there is no such span."""
    return _direct(query, plans[0]) if len(plans) == 1 else None


def _direct(query: NormalQuery, plan: BranchPlan) -> DirectSpan | None:
    if query.distinct or query.projection or query.trailing or query.mirrored:
        return None
    access, branch = plan.ordered, plan.branch
    if plan.filtered is not None or not access.exact or len(access.spans) != 1:
        return None
    span = access.spans[0]
    if span.space is not Space.INDEX or len(plan.orders) != len(query.orders):
        return None  # what the branch fixes has to be put into the positions
    if access.count and access.backward != query.key_descending:
        return None  # groups of equal values have to be turned around
    if access.key_filter and key_is_bounded(branch) and not span.by_ancestor:
        return None
    return DirectSpan(
        span=Span(Space.INDEX, span.prefix + access.lo, span.prefix + access.hi),
        backward=access.backward,
        cut=len(span.prefix),
        keys_only=query.query.only_keys,
        once=bool(query.orders) and query.once,
        key_descending=query.key_descending,
    )
