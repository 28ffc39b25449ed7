"""Small entities for row stores: a payload is the list of its index rows, so that old rows can be told from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiodatastore.rowstore import (
    TAIL_MULTI,
    RowBatch,
    RowCommit,
    RowOutcome,
    RowPut,
    RowStore,
    Space,
    Span,
    SpanCheck,
)

ALL_ROWS = Span(Space.INDEX, b"", b"\xff" * 8)
ALL_KEYS = Span(Space.ENTITY, b"", b"\xff" * 8)


def rows_of(key: bytes, payload: bytes) -> Mapping[bytes, int]:
    """The index rows of a payload such as ``b"red,*blue"``; a star makes one of several."""
    names = [name for name in payload.split(b",") if name]
    return {name.lstrip(b"*") + b"|" + key: len(key) | (TAIL_MULTI if name.startswith(b"*") else 0) for name in names}


def entity(key: bytes, payload: bytes) -> RowPut:
    return RowPut(key, payload, rows_of(key, payload))


def puts(*pairs: tuple[bytes, bytes]) -> RowCommit:
    return RowCommit(puts=[entity(key, payload) for key, payload in pairs])


async def commit(store: RowStore, *commits: RowCommit, fence: tuple[bytes, int] | None = None) -> list[RowOutcome]:
    return await store.commit(RowBatch(commits, rows_of, fence))


async def seen(store: RowStore, span: Span) -> SpanCheck:
    """What a transaction that scanned a span checks at its commit."""
    scan = await store.scan(span, 10_000)
    digest = store.digest([(row, version) for row, _, version, _ in scan.rows], span.space)
    return SpanCheck(span.space, span.lo, span.hi, len(scan.rows), digest)


async def index_rows(store: RowStore) -> dict[bytes, int]:
    return {row: tail for row, tail, _, _ in (await store.scan(ALL_ROWS, 100_000)).rows}


async def entities(store: RowStore) -> dict[bytes, tuple[int | None, bytes | None]]:
    scan = await store.scan(ALL_KEYS, 100_000, with_entities=True)
    return {row: (version, payload) for row, _, version, payload in scan.rows}


def versions(outcomes: Iterable[RowOutcome]) -> list[int | None]:
    return [outcome.version for outcome in outcomes]
