"""Batches of commits, each within one SQLite transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from aiodatastore.adapters.sqlite.reading import count, existing, find, rows_of
from aiodatastore.adapters.sqlite.statements import VERSION, chunks, values
from aiodatastore.rowstore import (
    EXISTS,
    Record,
    RowBatch,
    RowCommit,
    RowOutcome,
    Span,
    SpanCheck,
    StaleFenceError,
    span_digest,
)

__all__ = ["checked", "run_batch", "writes"]

_MANY = 512


def writes(commit: RowCommit) -> bool:
    """Whether it changes anything."""
    return bool(commit.puts or commit.deletes or commit.index_puts or commit.index_deletes)


def checked(commit: RowCommit) -> int:
    """How many rows its checks read."""
    return len(commit.checks) + sum(check.count for check in commit.spans)


def run_batch(batch: RowBatch, connection: sqlite3.Connection, threaded: bool) -> list[RowOutcome]:
    """What became of each commit of a batch.

    :raises StaleFenceError: if the fence does not hold; nothing was written
    """
    return _BatchRun(connection, threaded, batch).run()


class _BatchRun:
    """One batch within one SQLite transaction.

    Entities the batch names are read at once; the commits are then judged one after the other against
    them and what the earlier ones wrote, and the result is written with a few statements in key order.
    """

    def __init__(self, connection: sqlite3.Connection, threaded: bool, batch: RowBatch) -> None:
        self._connection = connection
        self._threaded = threaded
        self._batch = batch
        self._entities: dict[bytes, Record] = {}
        self._changed: dict[bytes, Record | None] = {}
        self._tails: dict[bytes, int | None] = {}

    def run(self) -> list[RowOutcome]:
        batch = self._batch
        self._version: int = self._connection.execute(VERSION).fetchall()[0][0]
        self._stored_version = self._version
        keys = self._keys()
        if len(keys) > _MANY:
            # Most are new. After each statement this thread waits for the event loop's to let it go on, for up to
            # 5 ms: what it asks for is asked for with few.
            keys = existing(self._connection, keys, self._threaded)
        self._entities = find(self._connection, keys, self._threaded)
        if batch.fence is not None and self._conflicts([batch.fence]):
            raise StaleFenceError
        outcomes = [self._apply(commit) for commit in batch.commits]
        self._flush()
        return outcomes

    def _keys(self) -> list[bytes]:
        keys = set() if self._batch.fence is None else {self._batch.fence[0]}
        for commit in self._batch.commits:
            keys.update(key for key, _ in commit.checks)
            keys.update(put.key for put in commit.puts)
            keys.update(commit.deletes)
        return sorted(keys)

    def _apply(self, commit: RowCommit) -> RowOutcome:
        conflicts = self._conflicts(commit.checks)
        if commit.spans:
            self._flush()
        stale = sum(not self._holds(check) for check in commit.spans)
        if conflicts or stale:
            return RowOutcome(None, conflicts, stale)
        if not writes(commit):
            return RowOutcome(self._version)
        self._version = version = self._version + 1
        entities, changed = self._entities, self._changed
        for put in commit.puts:
            self._change_rows(put.key, put.rows)
            entities[put.key] = changed[put.key] = Record(version, put.payload)
        for key in commit.deletes:
            if key in entities:
                self._change_rows(key, {})
                del entities[key]
                changed[key] = None
        self._tails.update(dict.fromkeys(commit.index_deletes))
        self._tails.update(commit.index_puts)
        return RowOutcome(version)

    def _change_rows(self, key: bytes, rows: Mapping[bytes, int]) -> None:
        """Note how the rows of an entity that is about to be written differ from those it has."""
        old = self._entities.get(key)
        if old is None:
            self._tails.update(rows)
            return
        before, tails = self._batch.old_rows(key, old.payload), self._tails
        for row in before:
            if row not in rows:
                tails[row] = None
        for row, tail in rows.items():
            if before.get(row) != tail:
                tails[row] = tail

    def _conflicts(self, checks: Iterable[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
        out = []
        for key, expected in checks:
            record = self._entities.get(key)
            actual = 0 if record is None else record.version
            if actual != expected and not (expected == EXISTS and actual):
                out.append((key, actual))
        return out

    def _holds(self, check: SpanCheck) -> bool:
        span = Span(check.space, check.lo, check.hi)
        if check.digest is None:
            return count(span, check.count + 1, self._connection, self._threaded).rows == check.count
        rows = rows_of(self._connection, span, check.count + 1, False, False, self._threaded)
        if len(rows) != check.count:
            return False
        return span_digest([(row[0], row[2]) for row in rows], check.space) == check.digest

    def _flush(self) -> None:
        """Write what the commits so far have changed."""
        if self._version == self._stored_version:
            return
        changed, tails = self._changed, self._tails
        # Sorted, because neighbours share a page and a batch then touches each page once.
        self._delete("entities", "key", sorted(key for key, record in changed.items() if record is None))
        written = sorted((key, *record) for key, record in changed.items() if record is not None)
        if written:
            keys, versions, payloads = zip(*written, strict=True)
            self._insert("entities", map(bytearray, keys), versions, map(bytearray, payloads))
        self._delete("rows", "row", sorted(row for row, tail in tails.items() if tail is None))
        rows = sorted(row for row, tail in tails.items() if tail is not None)
        self._insert("rows", map(bytearray, rows), map(tails.__getitem__, rows))
        self._connection.execute("UPDATE meta SET version = ?", (self._version,))
        self._stored_version = self._version
        self._changed, self._tails = {}, {}

    def _insert(self, table: str, *columns: Iterable[Any]) -> None:
        width = len(columns)
        parameters = tuple(chain.from_iterable(zip(*columns, strict=True)))
        for start, size in chunks(len(parameters) // width):
            self._connection.execute(
                f"INSERT OR REPLACE INTO {table} VALUES {values(size, width)}",
                parameters[start * width : (start + size) * width],
            )

    def _delete(self, table: str, column: str, names: list[bytes]) -> None:
        parameters = list(map(bytearray, names))
        for start, size in chunks(len(parameters)):
            self._connection.execute(
                f"DELETE FROM {table} WHERE {column} IN (VALUES {values(size)})", parameters[start : start + size]
            )
