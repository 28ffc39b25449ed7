"""What the store has in memory, and what a batch would make of it."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from aiodatastore.adapters.file.journal import Logged, LoggedCommit, LoggedPut
from aiodatastore.adapters.file.snapshot import DIGEST_BYTES
from aiodatastore.adapters.sortedbytes import SortedBytes
from aiodatastore.indexing.rows import SYSTEM
from aiodatastore.rowstore import (
    EXISTS,
    TAIL_KEY_MASK,
    TAIL_MULTI,
    RowBatch,
    RowCommit,
    RowOutcome,
    Space,
    Span,
    SpanCheck,
    SpanCount,
    StaleFenceError,
    span_digest,
)

__all__ = ["Draft", "State", "payload_digest"]


def payload_digest(payload: bytes) -> bytes:
    """Tells whether a file that was touched was changed."""
    return hashlib.blake2b(payload, digest_size=DIGEST_BYTES).digest()


class State:
    """Versions, index rows and sequences of a store: everything but payloads."""

    def __init__(self) -> None:
        self.version = 0
        self.versions: dict[bytes, int] = {}
        self.digests: dict[bytes, bytes] = {}
        self.keys = SortedBytes()
        self.tails: dict[bytes, int] = {}
        self.rows = SortedBytes()
        self.multi = SortedBytes()
        self.sequences: dict[bytes, int] = {}
        self.records: dict[bytes, bytes] = {}
        """Payloads of the records of the engine's own."""

    def count(self, span: Span) -> SpanCount:
        """As :meth:`RowStore.count`."""
        space, lo, hi = span
        if space is Space.ENTITY:
            return SpanCount(self.keys.count(lo, hi), 0, self.version)
        return SpanCount(self.rows.count(lo, hi), self.multi.count(lo, hi), self.version)

    def set_row(self, row: bytes, tail: int | None) -> None:
        """Put or remove (None) one index row."""
        tails = self.tails
        old = tails.get(row)
        if tail is None:
            if old is None:
                return
            del tails[row]
            self.rows.remove(row)
        else:
            tails[row] = tail
            if old is None:
                self.rows.add(row)
        is_multi = tail is not None and bool(tail & TAIL_MULTI)
        was_multi = old is not None and bool(old & TAIL_MULTI)
        if is_multi != was_multi:
            if is_multi:
                self.multi.add(row)
            else:
                self.multi.remove(row)

    def set_rows(self, rows: list[bytes] | None = None) -> None:
        """Make the sorted sets anew, of ``versions`` and ``tails``; ``rows`` are the latter's, if they are in order."""
        self.keys = SortedBytes.of_sorted(sorted(self.versions))
        self.rows = SortedBytes.of_sorted(sorted(self.tails) if rows is None else rows)
        self.multi = SortedBytes.of_sorted(sorted([row for row, tail in self.tails.items() if tail & TAIL_MULTI]))


class Draft:
    """Runs the commits of a batch on a state without changing it; then gives what to log, and what to change.

    ``payload_of`` gives the payload of a stored entity, None where it can't be read.
    Only reads the state, so it may run in a thread while nobody changes that.
    """

    def __init__(self, state: State, payload_of: Callable[[bytes], bytes | None]) -> None:
        self._state = state
        self._payload_of = payload_of
        self.version = state.version
        self.records: dict[bytes, tuple[int, bytes] | None] = {}
        self.rows: dict[bytes, int | None] = {}
        self.digests: dict[bytes, bytes] = {}
        self.commits: list[LoggedCommit] = []
        self.is_logged = False
        self._touched: list[bytes] = []

    def run(self, batch: RowBatch) -> list[RowOutcome]:
        """The outcome of each commit.

        :raises StaleFenceError: if the fence does not hold
        """
        if batch.fence is not None and self._conflicts([batch.fence]):
            raise StaleFenceError
        return [self._run(commit, batch.old_rows) for commit in batch.commits]

    def logged(self) -> Logged:
        """The journal's record of what was run."""
        return Logged(self.version, self.commits)

    def _run(self, commit: RowCommit, old_rows: Callable[[bytes, bytes], Mapping[bytes, int]]) -> RowOutcome:
        if commit.checks or commit.spans:
            conflicts = self._conflicts(commit.checks)
            stale = sum(not self._holds(check) for check in commit.spans)
            if conflicts or stale:
                return RowOutcome(None, conflicts, stale)
        if not (commit.puts or commit.deletes or commit.index_puts or commit.index_deletes):
            return RowOutcome(self.version)
        self.version = version = self.version + 1
        rows = self.rows
        for put in commit.puts:
            for row in self._old_rows(put.key, old_rows):
                if row not in put.rows:
                    self._remove(row)
            rows.update(put.rows)
            self.records[put.key] = (version, put.payload)
            self.digests[put.key] = payload_digest(put.payload)
        for key in commit.deletes:
            for row in self._old_rows(key, old_rows):
                self._remove(row)
            self.records[key] = None
        for row in commit.index_deletes:
            self._remove(row)
        rows.update(commit.index_puts)
        self.commits.append(
            LoggedCommit(
                version,
                [LoggedPut(put.key, put.payload, dict(put.rows)) for put in commit.puts],
                list(commit.deletes),
                dict(commit.index_puts),
                list(commit.index_deletes),
            )
        )
        return RowOutcome(version)

    def _old_rows(
        self, key: bytes, old_rows: Callable[[bytes, bytes], Mapping[bytes, int]]
    ) -> Mapping[bytes, int] | tuple[()]:
        found = self.records.get(key, ())
        if found is None:
            return ()
        if found:
            return old_rows(key, found[1])
        if key not in self._state.versions:
            return ()
        payload = self._payload_of(key)
        if payload is not None and payload_digest(payload) == self._state.digests[key]:
            return old_rows(key, payload)
        # Somebody changed or removed the file while the store was open: its rows have to be searched for.
        size = len(key)
        return {
            row: tail for row, tail in self._state.tails.items() if row.endswith(key) and tail & TAIL_KEY_MASK == size
        }

    def _remove(self, row: bytes) -> None:
        if row in self._state.tails or row in self.rows:
            self.rows[row] = None

    def _version_of(self, key: bytes) -> int:
        found = self.records.get(key, ())
        if found is None:
            return 0
        return found[0] if found else self._state.versions.get(key, 0)

    def _conflicts(self, checks: Sequence[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
        out = []
        for key, expected in checks:
            actual = self._version_of(key)
            if actual != expected and not (expected == EXISTS and actual):
                out.append((key, actual))
        return out

    def _holds(self, check: SpanCheck) -> bool:
        if check.space is Space.ENTITY:
            return self._holds_keys(check)
        state = self._state
        came, gone = self._changed_rows(check.lo, check.hi)
        count = state.rows.count(check.lo, check.hi)
        if count + len(came) - len(gone) != check.count:
            return False
        if check.digest is None:
            return True
        found = state.rows.slice(check.lo, check.hi, count)
        if came or gone:
            found = sorted([*[row for row in found if row not in gone], *came])
        return span_digest([(row, None) for row in found], check.space) == check.digest

    def _changed_rows(self, lo: bytes, hi: bytes) -> tuple[set[bytes], set[bytes]]:
        if not self.rows:
            return set(), set()
        if len(self._touched) != len(self.rows):  # rows are only added to it
            self._touched = sorted(self.rows)
        came: set[bytes] = set()
        gone: set[bytes] = set()
        for row in self._touched[bisect_left(self._touched, lo) : bisect_left(self._touched, hi)]:
            is_there = self.rows[row] is not None
            if is_there != (row in self._state.tails):
                (came if is_there else gone).add(row)
        return came, gone

    def _holds_keys(self, check: SpanCheck) -> bool:
        state = self._state
        found = state.keys.slice(check.lo, check.hi, state.keys.count(check.lo, check.hi))
        if self.records:
            inside = {key for key in self.records if check.lo <= key < check.hi}
            keys = {*found, *inside} - {key for key in inside if self.records[key] is None}
            found = sorted(keys)
        if len(found) != check.count:
            return False
        pairs = [(key, self._version_of(key)) for key in found]
        return check.digest is None or span_digest(pairs, check.space) == check.digest

    def change(self) -> dict[bytes, bytes | None]:
        """Make it so in the state; what is to be written to files: payloads, None for those to remove."""
        state = self._state
        files: dict[bytes, bytes | None] = {}
        set_row = state.set_row
        for row, tail in self.rows.items():
            set_row(row, tail)
        for key, found in self.records.items():
            is_new = key not in state.versions
            if found is not None:
                state.versions[key], payload = found
                state.digests[key] = self.digests[key]
                if is_new:
                    state.keys.add(key)
            elif is_new:
                continue
            else:
                del state.versions[key], state.digests[key]
                state.keys.remove(key)
                payload = None
            if not key.startswith(SYSTEM):
                files[key] = payload
            elif payload is None:
                state.records.pop(key, None)
            else:
                state.records[key] = payload
        state.version = self.version
        return files
