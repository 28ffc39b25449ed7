"""Reading a whole store: ``check`` compares index rows with entities, ``stats`` counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from aiodatastore.adapters.engine.core import Engine
from aiodatastore.errors import CorruptDataError
from aiodatastore.indexing.encoding import decode_key
from aiodatastore.indexing.explain import Step
from aiodatastore.indexing.rows import COMPOSITE_TAG, SYSTEM
from aiodatastore.indexing.scanning import Reader
from aiodatastore.rowstore import TAIL_KEY_MASK, Space

__all__ = ["check_store", "store_stats"]

_PAGE = {Space.ENTITY: 64, Space.INDEX: 500}
"""Rows read at once; the loop is let go between pages, and making all rows of an entity takes long."""
_MAX_LINES = 100


async def _pages(
    engine: Engine, space: Space, *, join: bool
) -> AsyncIterator[list[tuple[bytes, int, int | None, bytes | None]]]:
    reader = Reader(engine.store, track=False)
    step = Step("all")
    lo = b""
    hi = SYSTEM
    while rows := await reader.scan(step, space, lo, hi, _PAGE[space], reverse=False, join=join):
        lo = rows[-1][0] + b"\x00"
        yield list(rows)


def _compared(engine: Engine) -> Callable[[bytes], bool]:
    """Which rows must agree: not those of composite indexes that are being built or deleted."""
    serving = {index.prefix for indexes in engine.catalog.serving.values() for index in indexes}
    return lambda row: row[0] != COMPOSITE_TAG or row[:5] in serving


async def check_store(engine: Engine) -> list[str]:
    """A line for each disagreement of indexes and entities.

    Both are read once, and what their rows' hashes (keyed anew in each process) come to is compared: constant
    memory. Only if they differ, or an
    entity can't be read, each row is looked up. Run it while nobody writes: what changes meanwhile shows as a
    difference.
    """
    lines: list[str] = []
    expected = [0, 0]
    actual = [0, 0]
    compared = _compared(engine)
    async for page in _pages(engine, Space.ENTITY, join=True):
        for key, _, _, payload in page:
            try:
                rows = engine.old_rows(key, payload or b"")
            except CorruptDataError as exc:
                lines.append(str(exc))
                continue
            for row, tail in rows.items():
                if compared(row):
                    expected[0] += 1
                    expected[1] ^= hash((row, tail))
    async for page in _pages(engine, Space.INDEX, join=False):
        for row, tail, _, _ in page:
            if compared(row):
                actual[0] += 1
                actual[1] ^= hash((row, tail))
    if expected != actual:
        lines += await _differences(engine)
        if not lines:
            lines.append("the store changed while it was checked: check again when nobody writes")
    return lines


async def _differences(engine: Engine) -> list[str]:
    lines: list[str] = []
    reader = Reader(engine.store, track=False)
    step = Step("check")
    compared = _compared(engine)
    async for page in _pages(engine, Space.INDEX, join=True):
        for row, tail, _, payload in page:
            key = row[-(tail & TAIL_KEY_MASK) :]
            try:
                rows = {} if payload is None else engine.old_rows(key, payload)
                name = repr(decode_key(key))
            except CorruptDataError as exc:
                rows, name = {}, f"{key.hex()} ({exc})"
            if compared(row) and rows.get(row) != tail:
                what = "of an absent entity" if payload is None else "that its entity does not have"
                lines.append(f"index row {what}: {name}: {row[:80].hex()}")
        if len(lines) > _MAX_LINES:
            return [*lines[:_MAX_LINES], "and more"]
    async for page in _pages(engine, Space.ENTITY, join=True):
        for key, _, _, payload in page:
            try:
                rows = engine.old_rows(key, payload or b"")
            except CorruptDataError:
                continue
            for row in rows:
                if not compared(row):
                    continue
                if not await reader.scan(step, Space.INDEX, row, row + b"\x00", 1, reverse=False, join=False):
                    lines.append(f"index row missing: {decode_key(key)!r}: {row[:80].hex()}")
        if len(lines) > _MAX_LINES:
            return [*lines[:_MAX_LINES], "and more"]
    return lines


async def store_stats(engine: Engine) -> dict[str, Any]:
    """Entities, payload bytes and index rows of each kind, and what the engine knows of its size."""
    kinds: dict[tuple[str, str, str], list[int]] = {}
    async for page in _pages(engine, Space.ENTITY, join=True):
        for key, _, _, payload in page:
            found = decode_key(key)
            counts = kinds.setdefault((found.project, found.namespace, found.kind), [0, 0, 0])
            counts[0] += 1
            counts[1] += len(key) + len(payload or b"")
            counts[2] += len(engine.old_rows(key, payload or b""))
    _, version = await engine.store.read([])
    return {
        "kinds": [
            {
                "project": project,
                "namespace": namespace,
                "kind": kind,
                "entities": entities,
                "bytes": size,
                "index_rows": rows,
            }
            for (project, namespace, kind), (entities, size, rows) in sorted(kinds.items())
        ],
        "version": version,
        "sizes": await engine.store.sizes(),
    }
