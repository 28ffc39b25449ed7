"""A batch of commits as the parameters of one function call, and its answer as outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiodatastore.adapters.postgres.functions import SHORT
from aiodatastore.rowstore import RowBatch, RowCommit, RowOutcome, StaleFenceError

__all__ = ["batch_arguments", "check_arguments", "has_long", "outcomes", "writes"]


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


def check_arguments(batch: RowBatch) -> list[Any]:
    """The first parameters: the fence, the checks and the spans of all commits. Commits count from 1."""
    check_of: list[int] = []
    keys: list[bytes] = []
    versions: list[int] = []
    span_of: list[int] = []
    spans = []
    for number, commit in enumerate(batch.commits, 1):
        for key, version in commit.checks:
            check_of.append(number)
            keys.append(key)
            versions.append(version)
        for span in commit.spans:
            span_of.append(number)
            spans.append(span)
    fence_key, fence_version = batch.fence or (None, None)
    return [
        fence_key,
        fence_version,
        check_of,
        keys,
        versions,
        span_of,
        [int(span.space) for span in spans],
        [span.lo for span in spans],
        [span.hi for span in spans],
        [span.count for span in spans],
        [span.digest for span in spans],
    ]


def batch_arguments(slot: bytes, number: int, again: bool, batch: RowBatch) -> list[Any]:
    """The parameters of the function that writes."""
    ordinals: list[int] = []
    ordinal = 0
    puts: list[tuple[int, int, bytes, bytes, list[bytes], list[int]]] = []
    delete_of: list[int] = []
    deletes: list[bytes] = []
    row_of: list[int] = []
    rows: list[bytes] = []
    tails: list[int] = []
    gone_of: list[int] = []
    gone: list[bytes] = []
    for of, commit in enumerate(batch.commits, 1):
        if writes(commit):
            ordinal += 1
            for put in commit.puts:
                puts.append((of, ordinal, put.key, put.payload, list(put.rows), list(put.rows.values())))
            for key in commit.deletes:
                delete_of.append(of)
                deletes.append(key)
            if commit.index_puts:
                row_of += [of] * len(commit.index_puts)
                rows += commit.index_puts
                tails += commit.index_puts.values()
            if commit.index_deletes:
                gone_of += [of] * len(commit.index_deletes)
                gone += commit.index_deletes
        ordinals.append(ordinal)
    return [
        slot,
        number,
        again,
        ordinals,
        *check_arguments(batch),
        puts,
        delete_of,
        deletes,
        row_of,
        rows,
        tails,
        gone_of,
        gone,
        *(_touches(batch.commits) if len(batch.commits) > 1 else ([], [], [], [])),
    ]


_EVERYTHING = 0
_WRITTEN = 1


def _touches(commits: Sequence[RowCommit]) -> tuple[list[int], list[int], list[bool], list[bool]]:
    """What each commit looks at and changes, as numbers, if some commit looks at what another changes; else nothing.

    The server judges independent commits all at once, others in rounds.
    """
    touches = _Touches()
    for number, commit in enumerate(commits, 1):
        touches.add(number, commit)
    return (touches.of, touches.names, touches.looks, touches.changes) if touches.depend else ([], [], [], [])


class _Touches:
    def __init__(self) -> None:
        self.of: list[int] = []
        self.names: list[int] = []
        self.looks: list[bool] = []
        self.changes: list[bool] = []
        self.depend = False
        self._numbers: dict[bytes, int] = {}
        self._changed: set[bytes] = set()

    def add(self, number: int, commit: RowCommit) -> None:
        written = {put.key for put in commit.puts}
        written.update(commit.deletes)
        looked = {key for key, _ in commit.checks}
        changed = self._changed
        if not (changed.isdisjoint(written) and changed.isdisjoint(looked)):
            self.depend = True
        rows = bool(commit.index_puts or commit.index_deletes)  # whose they are is not told here
        if rows or (commit.spans and changed):
            self.depend = True
        self._touch(number, _EVERYTHING, True, rows)
        self._touch(number, _WRITTEN, rows or bool(commit.spans), rows or bool(written))
        for key in written | looked:
            name = self._numbers.setdefault(key, len(self._numbers) + 2)
            self._touch(number, name, True, key in written)
        changed |= written

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
