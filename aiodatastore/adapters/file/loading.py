"""Opening: the state as the snapshot, the journal and the files, which people may have edited, give it together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiodatastore.adapters.file.about import About, records_digest
from aiodatastore.adapters.file.documents import Documents
from aiodatastore.adapters.file.journal import JournalContent, read_journal
from aiodatastore.adapters.file.layouts import Layout
from aiodatastore.adapters.file.paths import key_of
from aiodatastore.adapters.file.snapshot import Snapshot, read_snapshot
from aiodatastore.adapters.file.state import State, payload_digest
from aiodatastore.errors import BadValueError, CorruptDataError, DatastoreError, UnavailableError
from aiodatastore.indexing.encoding import encode_partition, encode_text
from aiodatastore.indexing.rows import SYSTEM
from aiodatastore.rowstore import TAIL_KEY_MASK

__all__ = ["IndexRows", "Loaded", "Loader", "Progress"]

_log = logging.getLogger("aiodatastore")

IndexRows = Callable[[bytes, bytes], Mapping[bytes, int]]
Progress = Callable[[int, int | None], None]

_TRIES = 20
_TELL_EVERY = 1000
_LOG_EVERY_S = 5.0
_NAMED = 10
"""Damaged files that an error names."""
_MAX_SEQUENCE = 1 << 53
"""Greater ids than this, which people chose, do not push the sequence: it would soon be used up."""


@dataclass(slots=True)
class Loaded:
    """What was found.

    ``pending``: what the journal has and the files lack. ``held``: all payloads, if asked for. ``is_dirty``: the next
    open would have to look at files again. ``is_edited``: the version went on, because of what people did.
    ``broken``: entities that can't be read, and why.
    """

    state: State
    journal: JournalContent | None = None
    generation: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    pending: dict[bytes, bytes | None] = field(default_factory=dict)
    held: dict[bytes, bytes] | None = None
    is_dirty: bool = False
    is_edited: bool = False
    is_rebuilt: bool = False
    broken: dict[bytes, str] = field(default_factory=dict)


class _MovedError(Exception):
    """The writer went on to another generation while this was read."""


class Loader:
    """Reads a store's folder. In a thread; nothing else changes the folder but, for readers, the writer.

    ``hold_all``: read all payloads. ``beside_writer``: see that all of it is of one moment. ``on_records`` is
    called when the engine's own records can be read, before ``index_rows`` is.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        about: Callable[[], About],
        snapshot_path: str,
        journal_path: str,
        documents: Documents | None,
        index_rows: IndexRows | None,
        hold_all: bool,
        beside_writer: bool,
        refuse_damage: bool,
        strict_journal: bool,
        progress: Progress | None,
        on_records: Callable[[State], None],
    ) -> None:
        self._layout = layout
        self._about = about
        self._snapshot_path = snapshot_path
        self._journal_path = journal_path
        self._documents = documents
        self._index_rows = index_rows
        self._hold_all = hold_all or layout.holds_all
        self._beside_writer = beside_writer
        self._refuse_damage = refuse_damage
        self._strict_journal = strict_journal
        self._progress = progress
        self._on_records = on_records

    def load(self) -> Loaded:
        """The state of the store.

        :raises CorruptDataError: if files can't be what they should; the message names them
        :raises UnavailableError: if the writer beside never held still
        """
        for _ in range(_TRIES):
            try:
                return self._load()
            except _MovedError:
                continue
        raise UnavailableError(f"{self._layout.root}: the process that writes it went on faster than it could be read")

    def _load(self) -> Loaded:
        self._damaged: list[str] = []
        self._unreadable: list[tuple[str, str]] = []
        about = self._about()
        journal = read_journal(self._journal_path, strict=self._strict_journal)
        snapshot = self._snapshot(journal, about)
        before = {} if snapshot is None else snapshot.files
        if snapshot is None:
            _log.info("%s: no snapshot of use; reading all files", self._layout.root)
        files, changed = self._look(before)
        found, held = self._read(files, changed)
        if self._beside_writer:
            # What the writer did to files meanwhile is in its journal by now, and the journal goes first.
            again = read_journal(self._journal_path, strict=self._strict_journal)
            if (again and again.generation) != (journal and journal.generation):
                raise _MovedError
            journal = again
        if snapshot is not None and journal is not None and journal.generation < snapshot.head.generation:
            journal = None  # all of it is in the snapshot, and in files
        lost = (before.keys() - files.keys()) if changed or len(before) != len(files) else set()
        merge = _Merge(self, about, snapshot, journal, files, found, held)
        merge.run(self._keys_in(snapshot, {*changed, *lost}))
        if self._damaged and (self._refuse_damage or self._layout.holds_all):
            more = len(self._damaged) - _NAMED
            raise CorruptDataError(
                f"{self._layout.root}: {len(self._damaged)} files can't be used as they are:\n"
                + "\n".join(self._damaged[:_NAMED])
                + (f"\nand {more} more" if more > 0 else "")
            )
        for told in self._damaged:
            _log.warning("%s: left alone: %s", self._layout.root, told)
        return merge.loaded

    # ---------------------------------------------------------------------------------------- reading

    def _snapshot(self, journal: JournalContent | None, about: About) -> Snapshot | None:
        try:
            snapshot = read_snapshot(self._snapshot_path)
        except CorruptDataError as exc:
            _log.warning("%s; reading all files instead", exc)
            return None
        if snapshot is None:
            return None
        if journal is not None and journal.generation > snapshot.head.generation:
            if not self._beside_writer:
                _log.warning("%s: the snapshot is older than the journal; reading all files", self._layout.root)
            return None
        own = records_digest(about.records)
        if own != snapshot.head.records and own != records_digest(_records_after(about.records, journal)):
            _log.warning("%s: store.json is another than the snapshot's; reading all files", self._layout.root)
            return None
        return snapshot

    def _look(self, before: Mapping[str, bytes]) -> tuple[dict[str, bytes], list[str]]:
        """The state of all files, and which of them are not as they were."""
        known = before.get
        changed: list[str] = []
        files: dict[str, bytes] = {}
        for path, stat in self._layout.walk():
            files[path] = stat
            if known(path) != stat:
                changed.append(path)
        return files, changed

    def _read(
        self, files: dict[str, bytes], changed: list[str]
    ) -> tuple[dict[bytes, bytes], dict[bytes, bytes] | None]:
        """Payloads in changed files, and in all (if asked for). What can't be read goes from ``files``."""
        found: dict[bytes, bytes] = {}
        held: dict[bytes, bytes] | None = {} if self._hold_all else None
        is_changed = set(changed)
        todo = sorted(files) if self._hold_all else sorted(changed)
        told = time.monotonic()
        for done, path in enumerate(todo):
            if done % _TELL_EVERY == 0 and done:
                if self._progress is not None:
                    self._progress(done, len(todo))
                if time.monotonic() - told > _LOG_EVERY_S:
                    told = time.monotonic()
                    _log.info("%s: read %d of %d files", self._layout.root, done, len(todo))
            try:
                entities = self._layout.load(path)
            except FileNotFoundError:
                del files[path]
                continue
            except BadValueError as exc:
                self._unreadable.append((path, str(exc)))
                del files[path]
                continue
            self._layout.keep(path, entities)
            if path in is_changed:
                found.update(entities)
            if held is not None:
                held.update(entities)
        if self._progress is not None and todo:
            self._progress(len(todo), len(todo))
        return found, held

    def _keys_in(self, snapshot: Snapshot | None, paths: set[str]) -> set[bytes]:
        """The entities that the snapshot has in some files."""
        if snapshot is None:
            return set()
        keys = set()
        unclear = set()
        for path in paths:
            key = self._layout.key_at(path)
            if key is None:
                unclear.add(path)
            else:
                keys.add(key)
        if unclear:
            path_of = self._layout.path
            keys.update(key for key in snapshot.versions if not key.startswith(SYSTEM) and path_of(key) in unclear)
        return keys & snapshot.versions.keys()

    # --------------------------------------------------------------------------------------- judging

    def rows(self, key: bytes, payload: bytes) -> Mapping[bytes, int]:
        """The index rows of an entity that people may have written.

        :raises BadValueError: if it can't be one; the message says where
        """
        try:
            if self._documents is not None and key_of(key) is not None:
                self._documents.check(payload, key)
            return {} if self._index_rows is None else self._index_rows(key, payload)
        except BadValueError:
            raise
        except DatastoreError as exc:
            raise BadValueError(str(exc)) from exc

    def tell_damaged(self, key: bytes, why: str) -> str:
        """Note that an entity can't be used; what to tell who asks for it."""
        told = f"{self._layout.path(key)}: {why}"
        self._damaged.append(told)
        return f"{self._layout.root}/{told}"


class _Merge:
    """Puts together what was read."""

    def __init__(
        self,
        loader: Loader,
        about: About,
        snapshot: Snapshot | None,
        journal: JournalContent | None,
        files: dict[str, bytes],
        found: dict[bytes, bytes],
        held: dict[bytes, bytes] | None,
    ) -> None:
        self._loader = loader
        self._snapshot = snapshot
        self._records = journal.records if journal is not None else []
        self._found = found
        state = State()
        state.sequences = dict(about.sequences)
        state.records = _records_after(about.records, journal)
        state.version = 0 if snapshot is None else snapshot.head.version
        for record in self._records:
            state.version = max(state.version, record.version)
            state.sequences.update(record.sequences)
        self._logged: dict[bytes, list[bytes | None]] = {}  # what the journal writes: digests, None for a delete
        for record in self._records:
            for commit in record.commits:
                for put in commit.puts:
                    self._logged.setdefault(put.key, []).append(payload_digest(put.payload))
                for key in commit.deletes:
                    self._logged.setdefault(key, []).append(None)
        self.loaded = Loaded(state, journal, 0 if snapshot is None else snapshot.head.generation, files, held=held)
        loader._on_records(state)

    def run(self, suspects: set[bytes]) -> None:
        """``suspects``: what the snapshot has in files that changed or are gone."""
        loaded, state, snapshot = self.loaded, self.loaded.state, self._snapshot
        if snapshot is None and self._found:
            loaded.is_rebuilt = loaded.is_dirty = True
            # Greater than any version that may have been given to anybody: nobody commits a thousand times a second
            # since 1970.
            state.version = max(state.version, time.time_ns() // 1_000_000)
        edited = self._edited()
        self._judge_unreadable()
        seen = self._found.keys() | self._logged.keys() | loaded.broken.keys()
        gone = suspects - seen
        self._take_snapshot({*gone, *edited, *self._logged, *loaded.broken})
        self._replay(edited)
        if edited or gone or loaded.broken:
            loaded.is_edited = loaded.is_dirty = True
            state.version += 1
            for key, rows in edited.items():
                if snapshot is None or key not in snapshot.versions:
                    self._push_sequence(key)
                state.versions[key] = state.version
                state.digests[key] = payload_digest(self._found[key])
                state.tails.update(rows)
            for key in loaded.broken:
                state.versions[key] = state.version
                state.digests[key] = b"\0" * 8
        if self._found:
            loaded.is_dirty = True
        for key, payload in state.records.items():
            if key not in state.versions:
                state.version = max(state.version, 1)
                state.versions[key] = state.version
            state.digests[key] = payload_digest(payload)
        for key in [key for key in state.versions if key.startswith(SYSTEM) and key not in state.records]:
            del state.versions[key], state.digests[key]
        as_it_was = snapshot is not None and state.tails is snapshot.tails and not self._records and not edited
        state.set_rows(snapshot.rows if snapshot is not None and as_it_was else None)

    def _edited(self) -> dict[bytes, Mapping[bytes, int]]:
        """Entities that people changed, with their index rows."""
        known = {} if self._snapshot is None else self._snapshot.digests
        edited: dict[bytes, Mapping[bytes, int]] = {}
        for key, payload in self._found.items():
            digest = payload_digest(payload)
            logged = self._logged.get(key)
            if known.get(key) == digest or (logged is not None and digest in logged):
                continue  # as it was, or as the journal has it: perhaps an earlier state, that was not overwritten yet
            try:
                edited[key] = self._loader.rows(key, payload)
            except BadValueError as exc:
                if logged is None:  # else the machine failed while it was written
                    self.loaded.broken[key] = self._loader.tell_damaged(key, str(exc))
                    self.loaded.files.pop(self._loader._layout.path(key), None)
        return edited

    def _judge_unreadable(self) -> None:
        for path, why in self._loader._unreadable:
            key = self._loader._layout.key_at(path)
            if key is None:
                self._loader._damaged.append(f"{path}: {why}")
            elif key not in self._logged:
                self.loaded.broken[key] = self._loader.tell_damaged(key, why)

    def _take_snapshot(self, without: set[bytes]) -> None:
        """All it has, but for some entities, of which something newer is known."""
        state, snapshot = self.loaded.state, self._snapshot
        if snapshot is None:
            return
        state.versions, state.digests, state.tails = snapshot.versions, snapshot.digests, snapshot.tails
        without = {key for key in without if key in snapshot.versions}
        if not without:
            return
        for key in without:
            del state.versions[key], state.digests[key]
        state.tails = {
            row: tail for row, tail in snapshot.tails.items() if row[-(tail & TAIL_KEY_MASK) :] not in without
        }

    def _replay(self, edited: Mapping[bytes, object]) -> None:
        """What the journal says, but for what people edited after it."""
        loaded, state, tails = self.loaded, self.loaded.state, self.loaded.state.tails
        rows_of: dict[bytes, set[bytes]] = {}
        final: dict[bytes, bytes | None] = {}
        for record in self._records:
            for commit in record.commits:
                for put in commit.puts:
                    if put.key in edited:
                        continue
                    for row in rows_of.get(put.key, ()):
                        tails.pop(row, None)
                    tails.update(put.rows)
                    rows_of[put.key] = set(put.rows)
                    state.versions[put.key] = commit.version
                    final[put.key] = put.payload
                for key in commit.deletes:
                    if key not in edited:
                        for row in rows_of.pop(key, ()):
                            tails.pop(row, None)
                        state.versions.pop(key, None)
                        final[key] = None
                for row in commit.index_deletes:
                    tails.pop(row, None)
                for row, tail in commit.index_puts.items():
                    owner = row[-(tail & TAIL_KEY_MASK) :]
                    if owner not in edited:
                        tails[row] = tail
                        if owner in rows_of:
                            rows_of[owner].add(row)
        for key, payload in final.items():
            if key.startswith(SYSTEM):
                continue
            digest = None if payload is None else payload_digest(payload)
            if digest is None:
                state.digests.pop(key, None)
            else:
                state.digests[key] = digest
            there = self._found.get(key)
            if there is None or digest is None or payload_digest(there) != digest:
                loaded.pending[key] = payload
            if loaded.held is not None:
                if payload is None:
                    loaded.held.pop(key, None)
                else:
                    loaded.held[key] = payload

    def _push_sequence(self, encoded: bytes) -> None:
        """See that an id that people chose is not given to a new entity.

        The sequences' names are the engine's: partition and kind, encoded.
        """
        key = key_of(encoded)
        if key is None or key.id is None or key.id > _MAX_SEQUENCE:
            return
        name = encode_partition(key.project, key.namespace) + encode_text(key.kind)
        sequences = self.loaded.state.sequences
        sequences[name] = max(sequences.get(name, 1), key.id + 1)


def _records_after(records: Mapping[bytes, bytes], journal: JournalContent | None) -> dict[bytes, bytes]:
    """The engine's own records, as the journal leaves them."""
    after = dict(records)
    for record in journal.records if journal is not None else ():
        for commit in record.commits:
            for put in commit.puts:
                if put.key.startswith(SYSTEM):
                    after[put.key] = put.payload
            for key in commit.deletes:
                after.pop(key, None)
    return after
