"""A batch of commits as the parameters of one function call, and its answer as outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiodatastore.adapters.postgres.functions import SHORT
from aiodatastore.rowstore import RowBatch, RowCommit, RowOutcome, RowPut, StaleFenceError

__all__ = ["check_arguments", "has_long", "outcomes", "own_tails", "write_arguments", "writes"]


def writes(commit: RowCommit) -> bool:
    """Whether it changes anything."""
    return bool(commit.puts or commit.deletes or commit.index_puts or commit.index_deletes)


def has_long(batch: RowBatch) -> bool:
    """Whether a key or row of it belongs into the tables for long ones."""
    for commit in batch.commits:
        for put in commit.puts:
            # A row ends in its key, so without a long row there is no long key; but a put may have no rows.
            if len(put.key) > SHORT or (put.rows and max(map(len, put.rows)) > SHORT):
                return True
        for names in (commit.deletes, commit.index_puts, commit.index_deletes):
            if names and max(map(len, names)) > SHORT:
                return True
        for key, _ in commit.checks:
            if len(key) > SHORT:
                return True
    return batch.fence is not None and len(batch.fence[0]) > SHORT


def own_tails(put: RowPut) -> list[int]:
    """The tails of an entity's rows as they are kept with it: none if all are the length of its key, as most are."""
    tails = put.rows.values()
    return list(tails) if set(tails) - {len(put.key)} else []


def check_arguments(batch: RowBatch) -> list[Any]:
    """The fence, the checks and the spans of all commits. Commits count from 1."""
    return _keys(batch) + _spans(batch)


def _keys(batch: RowBatch) -> list[Any]:
    of: list[int] = []
    keys: list[bytes] = []
    versions: list[int] = []
    for number, commit in enumerate(batch.commits, 1):
        for key, version in commit.checks:
            of.append(number)
            keys.append(key)
            versions.append(version)
    return [*(batch.fence or (None, None)), of, keys, versions]


def _spans(batch: RowBatch) -> list[Any]:
    found = [(number, span) for number, commit in enumerate(batch.commits, 1) for span in commit.spans]
    spans = [span for _, span in found]
    return [
        [number for number, _ in found],
        [int(span.space) for span in spans],
        [span.lo for span in spans],
        [span.hi for span in spans],
        [span.count for span in spans],
        [span.digest for span in spans],
    ]


def write_arguments(slot: bytes, number: int, batch: RowBatch, *, plain: bool = True) -> tuple[bool, list[Any]]:
    """Whether the plain function will do, and its parameters or those of the other one.

    The third is false: it tells whether this was sent before.
    """
    ordinals: list[int] = []
    ordinal = 0
    puts: list[tuple[int, int, bytes, bytes, list[bytes], list[int]]] = []
    delete_of: list[int] = []
    deletes: list[bytes] = []
    for of, commit in enumerate(batch.commits, 1):
        if commit.puts or commit.deletes:
            ordinal += 1
            for put in commit.puts:
                puts.append((of, ordinal, put.key, put.payload, list(put.rows), own_tails(put)))
            for key in commit.deletes:
                delete_of.append(of)
                deletes.append(key)
        elif commit.index_puts or commit.index_deletes:
            ordinal += 1
        if commit.spans or commit.index_puts or commit.index_deletes:
            plain = False
        ordinals.append(ordinal)
    touches = _touches(batch.commits) if len(batch.commits) > 1 else ([], [], [], [])
    first = [slot, number, False, ordinals, *_keys(batch)]
    if plain and not touches[0]:
        return True, [*first, puts, delete_of, deletes]
    return False, [*first, *_spans(batch), puts, delete_of, deletes, *_row_changes(batch), *touches]


def _row_changes(batch: RowBatch) -> list[Any]:
    """Index rows that come and go without their entities."""
    row_of: list[int] = []
    rows: list[bytes] = []
    tails: list[int] = []
    gone_of: list[int] = []
    gone: list[bytes] = []
    for of, commit in enumerate(batch.commits, 1):
        row_of += [of] * len(commit.index_puts)
        rows += commit.index_puts
        tails += commit.index_puts.values()
        gone_of += [of] * len(commit.index_deletes)
        gone += commit.index_deletes
    return [row_of, rows, tails, gone_of, gone]


_EVERYTHING = 0
_WRITTEN = 1


def _touches(commits: Sequence[RowCommit]) -> tuple[list[int], list[int], list[bool], list[bool]]:
    """What each commit looks at and changes, as numbers, if some commit looks at what another changes; else nothing.

    The server judges independent commits all at once, others in rounds.
    """
    if not _depend(commits):
        return [], [], [], []
    touches = _Touches()
    for number, commit in enumerate(commits, 1):
        touches.add(number, commit)
    return touches.of, touches.names, touches.looks, touches.changes


def _depend(commits: Sequence[RowCommit]) -> bool:
    changed: set[bytes] = set()
    for commit in commits:
        if commit.index_puts or commit.index_deletes or (commit.spans and changed):
            return True  # whose rows these are is not told here; a span may see any write
        for key, _ in commit.checks:
            if key in changed:
                return True
        written = [put.key for put in commit.puts]
        written += commit.deletes
        if not changed.isdisjoint(written):
            return True
        changed.update(written)
    return False


class _Touches:
    def __init__(self) -> None:
        self.of: list[int] = []
        self.names: list[int] = []
        self.looks: list[bool] = []
        self.changes: list[bool] = []
        self._numbers: dict[bytes, int] = {}

    def add(self, number: int, commit: RowCommit) -> None:
        written = {put.key for put in commit.puts}
        written.update(commit.deletes)
        looked = {key for key, _ in commit.checks}
        rows = bool(commit.index_puts or commit.index_deletes)
        self._touch(number, _EVERYTHING, True, rows)
        self._touch(number, _WRITTEN, rows or bool(commit.spans), rows or bool(written))
        for key in written | looked:
            name = self._numbers.setdefault(key, len(self._numbers) + 2)
            self._touch(number, name, True, key in written)

    def _touch(self, number: int, name: int, looks: bool, changes: bool) -> None:
        self.of.append(number)
        self.names.append(name)
        self.looks.append(looks)
        self.changes.append(changes)


def outcomes(batch: RowBatch, answer: Any) -> list[RowOutcome]:
    """What the server's answer says of each commit.

    :raises StaleFenceError: if it says that the fence does not hold
    """
    version, check_of, checks, actual, span_of = answer
    if version == -1:
        raise StaleFenceError
    if check_of is None and span_of is None:
        result = []
        for commit in batch.commits:
            version += writes(commit)
            result.append(RowOutcome(version))
        return result
    every = [check for commit in batch.commits for check in commit.checks]
    conflicts: dict[int, list[tuple[bytes, int]]] = {}
    for of, place, found in zip(check_of or (), checks or (), actual or (), strict=True):
        conflicts.setdefault(of, []).append((every[place - 1][0], found))
    stale: dict[int, int] = {}
    for of in span_of or ():
        stale[of] = stale.get(of, 0) + 1
    result = []
    for number, commit in enumerate(batch.commits, 1):
        if number in conflicts or number in stale:
            result.append(RowOutcome(None, conflicts.get(number, ()), stale.get(number, 0)))
        else:
            version += writes(commit)
            result.append(RowOutcome(version))
    return result
