"""Queries whose results are the rows of one span as they stand: what most queries are.

The stages of :mod:`aiodatastore.indexing.execution` serve every plan, and take as long as a scan of a server
where there is nothing for them to do. A :class:`DirectSpan` is known for the plans where there is nothing: their first
page is one scan, and its rows are the results; a collection merges the rows of several (:class:`GivesRows`). Pages
after it, and whatever is met that is not plain (an entity with
several rows, one that the scan did not join), are the stages' work; both give the same results and positions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

from aiodatastore.indexing.encoding import invert
from aiodatastore.indexing.normal import NormalQuery
from aiodatastore.indexing.planner import BranchPlan, key_is_bounded
from aiodatastore.rowstore import TAIL_KEY_MASK, TAIL_MULTI, Row, Space, Span

if TYPE_CHECKING:
    from aiodatastore.adapters.base import ReadPolicy
    from aiodatastore.query import Query

__all__ = ["DirectSpan", "GivesCounts", "GivesRows", "RowPage", "ScanNow", "SpanUnion", "direct_span", "direct_spans"]

_position, _tail, _payload = itemgetter(0), itemgetter(1), itemgetter(3)


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
RowPage = tuple[list[bytes], list[Row], bool]
"""The positions of results, their rows, and whether more may follow. A plain tuple: a page is merged of several."""


class GivesRows:
    """A stream that may tell which rows are its results, for who merges several and needs some of them only."""

    def rows_now(self, limit: int) -> RowPage | None:
        """The next results, at most ``limit``, as they are stored; None if they can't be had so, or not at once.

        Entities are payloads of :class:`~aiodatastore.serializers.MsgpackSerializer`. To be called before the first
        page; the pages then go on after what was given.
        """
        raise NotImplementedError


class GivesCounts:
    """An adapter that may tell how many results there are at once, for who adds up what several have."""

    def count_now(self, query: Query, read_policy: ReadPolicy) -> int | None:
        """How many keys a ``keys_only`` query has, which has no limit, offset or cursor; None if that can't be told at
        once."""
        raise NotImplementedError


class SpanUnion:
    """The rows of several spans merged by position, each position once.

    An entity of whose rows one is met alone, in each of the spans where it is met, stands at the same position in all.
    """

    __slots__ = ("_spans",)

    def __init__(self, spans: Sequence[DirectSpan]) -> None:
        self._spans = [_Rest(direct, direct.span) for direct in spans]

    def next_rows(self, scan: ScanNow, limit: int) -> tuple[RowPage, int, int] | None:
        """The next rows, at most ``limit``; how many were read for them, and by how many scans.

        None if they can't be had at once, or some are not results as they stand: there are no next ones then.
        """
        spans = self._spans
        share = limit / len(spans)
        size = min(limit, int(share + 1.5 * share**0.5 + 1))
        read = scans = 0
        for each in spans:
            if each.items or each.ended:
                continue
            direct, span = each.direct, each.span
            rows = [] if span.lo >= span.hi else scan(direct, span, size)
            if rows is None or not direct.plain(rows):
                return None
            scans += 1
            read += len(rows)
            each.ended = len(rows) < size
            if rows:
                each.span = direct.beyond(rows[-1][0])
                each.items = list(zip(direct.positions(rows), rows, strict=True))
        found: dict[bytes, Row] = {}
        for each in spans:
            found.update(each.items)
        # What comes after the last row that was read of a span may be preceded by what has yet to be read of it.
        safe = min([each.items[-1][0] for each in spans if not each.ended], default=None)
        positions = sorted(found)
        if safe is not None:
            positions = positions[: bisect_right(positions, safe)]
        positions = positions[:limit]
        if positions:
            last = positions[-1]
            for each in spans:
                each.items = each.items[bisect_right(each.items, last, key=_position) :]
        more = any([each.items or not each.ended for each in spans])
        return (positions, [found[position] for position in positions], more), read, scans


@dataclass(slots=True)
class _Rest:
    """What of a span was not given yet: what was read, and what has yet to be."""

    direct: DirectSpan
    span: Span
    items: list[tuple[bytes, Row]] = field(default_factory=list)
    ended: bool = False


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
