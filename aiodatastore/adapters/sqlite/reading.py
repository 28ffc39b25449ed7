"""Reading within a transaction: entities by key, spans, counts.

Every function takes the connection and whether it runs beside the event loop, in a thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, cast

from aiodatastore.adapters.sqlite.statements import (
    COUNT,
    FIND,
    FIND_KEYS,
    PACK,
    PACK_ROWS,
    SCANS,
    TALLY,
    VERSION,
    chunks,
    values,
)
from aiodatastore.rowstore import Record, Row, RowRead, RowScan, Span, SpanCount, SpanTally

__all__ = ["count", "existing", "find", "read", "rows_of", "scan", "tally"]

_KEYS_AT_ONCE = 512


def read(keys: Sequence[bytes], connection: sqlite3.Connection, threaded: bool) -> RowRead:
    """The entities of keys."""
    version: int = connection.execute(VERSION).fetchall()[0][0]
    found = find(connection, keys, threaded)
    return RowRead([found.get(key) for key in keys], version)


def find(connection: sqlite3.Connection, keys: Sequence[bytes], threaded: bool) -> dict[bytes, Record]:
    """The entities that exist. Joining with a list of values is faster than ``IN`` or one statement each."""
    found: dict[bytes, Record] = {}
    names = list(map(bytearray, keys))
    for start, size in chunks(len(names), _KEYS_AT_ONCE):
        query = FIND.format(values=values(size))
        for key, _, version, payload in _fetch(connection, query, names[start : start + size], threaded):
            found[key] = Record(cast(int, version), cast(bytes, payload))
    return found


def existing(connection: sqlite3.Connection, keys: Sequence[bytes], threaded: bool) -> list[bytes]:
    """Those of the keys that exist: one statement for thousands, as nothing of the entities is read."""
    names = list(map(bytearray, keys))
    return [
        row[0]
        for start, size in chunks(len(names))
        for row in _fetch(connection, FIND_KEYS.format(values=values(size)), names[start : start + size], threaded)
    ]


def scan(
    span: Span, limit: int, reverse: bool, with_entities: bool, connection: sqlite3.Connection, threaded: bool
) -> RowScan:
    """At most ``limit`` rows of a span."""
    version: int = connection.execute(VERSION).fetchall()[0][0]
    return RowScan(rows_of(connection, span, limit, reverse, with_entities, threaded), version)


def rows_of(
    connection: sqlite3.Connection, span: Span, limit: int, reverse: bool, with_entities: bool, threaded: bool
) -> list[Row]:
    """The same without the version."""
    space, lo, hi = span
    query = SCANS[space, with_entities, reverse]
    rows: list[Row] = []
    while len(rows) < limit:
        wanted = min(limit - len(rows), PACK_ROWS)
        part = _fetch(connection, query, (bytearray(lo), bytearray(hi), wanted), threaded)
        rows += part
        if len(part) < wanted:
            break
        if reverse:
            hi = part[-1][0]
        else:
            lo = part[-1][0] + b"\0"
    return rows


def _fetch(connection: sqlite3.Connection, query: str, parameters: Sequence[Any], threaded: bool) -> list[Row]:
    """The rows of a query with columns a, b, c, d."""
    if threaded:
        try:
            return _unpack(connection, query, parameters)
        except sqlite3.DataError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_TOOBIG:
                raise
            # Entities of several megabytes each come to more than fits into one value.
    return connection.execute(query, parameters).fetchall()


def _unpack(connection: sqlite3.Connection, query: str, parameters: Sequence[Any]) -> list[Row]:
    """The same in one step."""
    names, lengths, tails, versions, payloads, sizes = connection.execute(
        PACK.format(query=query), parameters
    ).fetchall()[0]
    if names is None:
        return []
    rows: list[Row] = []
    payloads = payloads or b""
    i = j = 0
    for length, tail, version, size in zip(
        *(map(int, text.split(",")) for text in (lengths, tails, versions, sizes)), strict=True
    ):
        name, i = names[i : i + length], i + length
        if size < 0:
            rows.append((name, tail, version or None, None))
        else:
            rows.append((name, tail, version, payloads[j : j + size]))
            j += size
    return rows


def count(span: Span, limit: int, connection: sqlite3.Connection, threaded: bool) -> SpanCount:
    """How many rows a span has, up to a limit (-1: all)."""
    return SpanCount(*connection.execute(COUNT[span.space], (span.lo, span.hi, limit)).fetchall()[0])


def tally(span: Span, skip: int, connection: sqlite3.Connection, threaded: bool) -> SpanTally:
    """How often each value occurs in a span of index rows."""
    version: int = connection.execute(VERSION).fetchall()[0][0]
    return SpanTally(connection.execute(TALLY, (skip, skip, span.lo, span.hi)).fetchall(), version)
