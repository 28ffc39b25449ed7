"""Reads that need not be fresh: from a replica, as long as it can serve them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from aiodatastore.errors import UnavailableError
from aiodatastore.rowstore import (
    RowBatch,
    RowIntersection,
    RowOutcome,
    RowRead,
    RowScan,
    RowStore,
    Space,
    Span,
    SpanCount,
    SpanTally,
)

__all__ = ["EventualReads"]


class _Versioned(Protocol):
    @property
    def version(self) -> int:
        """The store's version at the moment of the read."""


Answer = TypeVar("Answer", bound=_Versioned)


class EventualReads(RowStore):
    """Reads of a replica; of the primary where the replica can't be reached or is older than the catalog of indexes.

    An index is used as soon as the catalog says so: on a replica that is behind, some of its rows may be missing.
    """

    def __init__(self, primary: RowStore, replica: RowStore, at_least: Callable[[], int]) -> None:
        self._primary = primary
        self._replica = replica
        self._at_least = at_least

    async def _either(self, read: Callable[[RowStore], Awaitable[Answer | None]]) -> Answer | None:
        try:
            answer = await read(self._replica)
        except UnavailableError:
            return await read(self._primary)
        if answer is not None and answer.version < self._at_least():
            return await read(self._primary)
        return answer

    async def read(self, keys: Sequence[bytes]) -> RowRead:
        answer = await self._either(lambda store: store.read(keys))
        assert answer is not None
        return answer

    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
        answer = await self._either(lambda store: store.scan(span, limit, reverse=reverse, with_entities=with_entities))
        assert answer is not None
        return answer

    async def count(self, span: Span) -> SpanCount:
        answer = await self._either(lambda store: store.count(span))
        assert answer is not None
        return answer

    async def intersect(
        self,
        prefixes: Sequence[bytes],
        lo: bytes,
        hi: bytes,
        limit: int,
        *,
        reverse: bool = False,
        with_entities: bool = False,
    ) -> RowIntersection | None:
        return await self._either(
            lambda store: store.intersect(prefixes, lo, hi, limit, reverse=reverse, with_entities=with_entities)
        )

    async def tally(self, span: Span, skip: int) -> SpanTally | None:
        return await self._either(lambda store: store.tally(span, skip))

    def digest(self, rows: Iterable[tuple[bytes, int | None]], space: Space) -> bytes:
        return self._primary.digest(rows, space)

    # --------------------------------------------------------- the rest is the primary's, and not asked of this

    async def open(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError

    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        raise NotImplementedError

    async def allocate(self, sequence: bytes, size: int, *, at_least: int = 1) -> int:
        raise NotImplementedError
