"""The store: what is in memory, and which thread does what."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Literal, TypeVar

import anyio
import anyio.to_thread

from aiodatastore.adapters.file import disk
from aiodatastore.adapters.file.about import About, read_about, records_digest
from aiodatastore.adapters.file.applier import Applier
from aiodatastore.adapters.file.documents import Documents
from aiodatastore.adapters.file.journal import Journal, Logged
from aiodatastore.adapters.file.layouts import OWN_FOLDER, EntityFiles, KindFiles, Layout
from aiodatastore.adapters.file.loading import Loaded, Loader, Progress
from aiodatastore.adapters.file.lock import Lock
from aiodatastore.adapters.file.paths import PathError, parse_kind_path
from aiodatastore.adapters.file.snapshot import write_snapshot
from aiodatastore.adapters.file.state import Draft, State
from aiodatastore.adapters.forking import open_stores
from aiodatastore.adapters.threads import to_the_end
from aiodatastore.errors import (
    BadArgumentError,
    CorruptDataError,
    DatastoreError,
    StoreClosedError,
    StoreReadOnlyError,
    UnavailableError,
)
from aiodatastore.rowstore import (
    TAIL_KEY_MASK,
    Capability,
    Record,
    Row,
    RowBatch,
    RowCommit,
    RowOutcome,
    RowRead,
    RowScan,
    RowStore,
    Space,
    Span,
    SpanCount,
)

__all__ = ["FileRowStore"]

T = TypeVar("T")

_log = logging.getLogger("aiodatastore")

INLINE_FILES: Final = 32
"""The most files that are read on the event loop's thread: 15 µs each from the page cache; a thread costs 120 µs."""

SLOW_S: Final = 0.005
"""An inline read that waited longer for the disk sends reads through threads for ten times as long as it took."""

_SHARE = 10
_TURN_AWAY_S = 2.0
_THREAD_TRIES = 3
_TICK_S = 0.012
_MAX_NEXT = 1 << 63
"""Longer than the clock of file times stands still (Linux: up to 10 ms)."""

_KIND_EXTENSION = ".jsonl"
_ABOUT, _SNAPSHOT, _JOURNAL, _LOCK, _IGNORE = "store.json", "snapshot", "journal", "lock", ".gitignore"
_IGNORED = b"# What is ignored is made anew where it is missing; store.json is not.\n*\n!.gitignore\n!store.json\n"


class FileRowStore(RowStore):
    """Entities in readable files below a folder, one file each (or one for each kind); indexes in memory.

    - Durability: an acknowledged commit is in the journal and synced, and survives a crash of the process and
      of the machine; its files follow a moment later, at the latest at :meth:`aclose`. ``fsync=False``: it survives a
      crash of the process; of the machine, the last commits may be missing, each as a whole.
    - Isolation: serializable. One process writes. Reads see one moment: a batch of commits becomes visible at once.
    - Readers: ``read_only=True`` opens beside the writer and shows the state of its opening, all held in memory.
    - Limits of one commit: memory. All index rows are in memory (about 200 bytes each), payloads are not, but for
      ``cache_mb`` of those read last, and ``layout="kind"``, which holds all.
    - Cost: a read of one key 25 µs inline (2 µs if cached); a batch of writes one trip through a thread, one fsync,
      about 3 µs per changed index row, and later 80 µs for each file. Opening reads the state of each file (200
      thousand: two seconds).

    ``layout``: ``"entity"`` (a file each) or ``"kind"``; ``extension``: what files end with. They are fixed when the
    folder is made. ``damaged``: ``"refuse"`` to open while files can't be read, or ``"leave"`` them: their entities
    raise, the others work. ``journal_mb``: how much the journal grows before the snapshot of the indexes is
    written (at least half the snapshot's size). ``progress(done, total)`` is called, in a thread, while files are read.
    ``documents`` tells keys from payloads.

    :raises BadArgumentError: if a setting is unknown
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        layout: Literal["entity", "kind"] | None = None,
        extension: str | None = None,
        documents: Documents | None = None,
        read_only: bool = False,
        fsync: bool = True,
        damaged: Literal["refuse", "leave"] = "refuse",
        cache_mb: int = 32,
        journal_mb: int = 32,
        linger_s: float = 0.05,
        progress: Progress | None = None,
    ) -> None:
        text = os.fspath(path)
        if not text or "\0" in text:
            raise BadArgumentError(f"path {text!r}: expected a folder")
        if layout not in (None, "entity", "kind"):
            raise BadArgumentError(
                f"layout={layout!r}: expected 'entity' (a file each) or 'kind' (a file for all of one)"
            )
        if damaged not in ("refuse", "leave"):
            raise BadArgumentError(f"damaged={damaged!r}: expected 'refuse' or 'leave'")
        if extension is not None:
            _check_extension(extension)
        if cache_mb < 0 or journal_mb < 1 or linger_s < 0:
            raise BadArgumentError("cache_mb and linger_s must be at least 0, journal_mb at least 1")
        root = os.path.abspath(text)
        self._root = f"\\\\?\\{root}" if os.name == "nt" and not root.startswith("\\\\") else root
        self._own = os.path.join(self._root, OWN_FOLDER)
        self._settings = (layout, extension)
        self._documents = documents
        self._read_only = read_only
        self._fsync = fsync
        self._refuse_damage = damaged == "refuse"
        self._cache_bytes = cache_mb << 20
        self._journal_bytes = journal_mb << 20
        self._linger_s = linger_s
        self._progress = progress
        self._phase: Literal["new", "open", "closed", "forked"] = "new"
        self._opening: State | None = None
        self._lock = Lock(os.path.join(self._own, _LOCK), root)
        self._reset()
        self.url = f"file:///{root}"
        self.capabilities = frozenset({Capability.DURABLE, Capability.TRIO, Capability.INLINE_READS})

    def __repr__(self) -> str:
        return f"<FileRowStore {self.url} {self._phase}>"

    def _reset(self) -> None:
        self._state = State()
        self._pending: dict[bytes, bytes | None] = {}
        self._held: dict[bytes, bytes] | None = None
        self._broken: dict[bytes, str] = {}
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._cached = 0
        self._inline_from = 0.0
        self._blocks = disk.blocks_read()
        self._is_dirty = False
        self._journal_due: int | None = None
        self._snapshot_bytes = 0
        self._retry_at = 0
        self._files: dict[str, bytes] = {}
        self._layout: Layout | None = None
        self._applier: Applier | None = None
        self._journal: Journal | None = None

    # -------------------------------------------------------------------------------- open and close

    async def open(self) -> None:
        """Take the lock, and read what is in the folder; make it if there is none.

        :raises StoreBusyError: if another process has it open for writing
        :raises CorruptDataError: if files can't be read; the message names them, with lines
        :raises BadArgumentError: if it was made with another layout or extension
        """
        self._turn = anyio.Lock(fast_acquire=True)
        self._limit = anyio.CapacityLimiter(1)
        self._reset()
        await to_the_end(self._open_now, self._limit)

    def _open_now(self) -> None:
        with disk.mapped(self._root):
            try:
                self._load()
            except BaseException:
                self._let_go()
                raise
            finally:
                self._opening = None
        self._phase = "open"
        open_stores.add(self)

    def _load(self) -> None:
        if self._read_only:
            if not os.path.isdir(self._root):
                raise UnavailableError(f"{self._root}: no such folder, and read_only=true makes none")
        else:
            os.makedirs(self._own, exist_ok=True)
            self._lock.acquire()
        layout = self._layout = self._layout_for(read_about(self._own_path(_ABOUT)))
        loaded = Loader(
            layout,
            about=lambda: read_about(self._own_path(_ABOUT)) or About(layout.name, layout.extension),
            snapshot_path=self._own_path(_SNAPSHOT),
            journal_path=self._own_path(_JOURNAL),
            documents=self._documents,
            index_rows=self.index_rows,
            hold_all=self._read_only,
            beside_writer=self._read_only,
            refuse_damage=self._refuse_damage,
            strict_journal=self._fsync,
            progress=self._progress,
            on_records=self._show_records,
        ).load()
        self._state = loaded.state
        self._held = loaded.held
        self._broken = loaded.broken
        if self._read_only:
            return
        self._applier = Applier(
            layout, loaded.files, linger_s=self._linger_s, max_bytes=min(self._journal_bytes, 64 << 20)
        )
        self._files = loaded.files
        self._pending = self._applier.pending
        self._start_journal(loaded)

    def _layout_for(self, about: About | None) -> Layout:
        name, extension = self._settings
        if about is not None:
            for setting, wanted, is_so in (("layout", name, about.layout), ("extension", extension, about.extension)):
                if wanted not in (None, is_so):
                    raise BadArgumentError(
                        f"{self._root} was made with {setting}={is_so}, not {wanted}: leave it out, "
                        "or copy the data to another folder"
                    )
            name, extension = ("kind" if about.layout == "kind" else "entity"), about.extension
        elif name is None and self._looks_like_kinds():
            raise BadArgumentError(
                f"{self._root} has no {OWN_FOLDER}/{_ABOUT}, and .jsonl files: say layout=kind if they are its data, "
                "or layout=entity if not"
            )
        name = name or "entity"
        layout = KindFiles if name == "kind" else EntityFiles
        if layout is KindFiles and self._documents is None:
            raise BadArgumentError("layout=kind needs documents that name their keys: serializer=json or compact")
        return layout(self._root, extension or self._default_extension(name), self._documents)

    def _looks_like_kinds(self) -> bool:
        with suppress(FileNotFoundError):
            for name in os.listdir(self._root):
                if name.endswith(_KIND_EXTENSION) and name[0] != ".":
                    with suppress(PathError):
                        parse_kind_path(name, _KIND_EXTENSION)
                        return True
        return False

    def _default_extension(self, layout: str) -> str:
        if layout == "kind":
            return _KIND_EXTENSION
        return ".data" if self._documents is None else self._documents.extension

    def _show_records(self, state: State) -> None:
        self._opening = state

    def _start_journal(self, loaded: Loaded) -> None:
        journal = self._journal = Journal(self._own_path(_JOURNAL), self._own_path("journal.new"), fsync=self._fsync)
        is_new = loaded.journal is None and loaded.generation == 0
        self._is_dirty = loaded.is_dirty or bool(loaded.pending)
        if loaded.journal is None:
            journal.start(max(1, loaded.generation))
        else:
            journal.go_on(loaded.journal)
            self._is_dirty = self._is_dirty or bool(loaded.journal.records)
        if loaded.is_edited:
            journal.append(Logged(self._state.version))
        assert self._applier is not None
        if loaded.pending:
            self._applier.submit(loaded.pending)
        if is_new and not os.path.exists(self._own_path(_IGNORE)):
            disk.write_new(self._own_path(_IGNORE), [_IGNORED])
        if is_new or loaded.is_rebuilt:
            self._checkpoint()
        with suppress(OSError):
            self._snapshot_bytes = os.stat(self._own_path(_SNAPSHOT)).st_size

    def _own_path(self, name: str) -> str:
        return os.path.join(self._own, name)

    async def aclose(self) -> None:
        """Bring everything into files, write the snapshot and give the lock back.

        :raises UnavailableError: if files could not be written; nothing is lost, the next open writes them
        """
        if self._phase != "open":
            return
        self._phase = "closed"
        open_stores.discard(self)
        with anyio.CancelScope(shield=True):
            async with self._turn:
                await to_the_end(self._close_now, self._limit)

    def _close_now(self) -> None:
        try:
            with disk.mapped(self._root):
                if self._journal is not None and self._is_dirty:
                    self._checkpoint()
        finally:
            self._let_go()
            self._reset()

    def _let_go(self) -> None:
        if self._applier is not None:
            self._applier.stop()
        if self._journal is not None:
            self._journal.close()
        self._lock.release()

    def __del__(self) -> None:
        if getattr(self, "_phase", "new") == "open":
            warnings.warn(f"unclosed {self!r}: await its aclose()", ResourceWarning, source=self, stacklevel=2)
            self._let_go()

    def _leave_to_parent(self) -> None:
        """In a forked child: there is no thread to write files, and the folder is the parent's."""
        self._phase = "forked"
        if self._journal is not None:
            self._journal.close()
        self._lock.release()

    def _refuse(self) -> None:
        if self._phase == "forked":
            raise StoreClosedError(f"{self.url} was opened before fork(); open it in the child process itself")
        raise StoreClosedError(f"{self.url} is not open: use 'async with Datastore(…)' or await open() first")

    # ----------------------------------------------------------------------------------------- reads

    def read_now(self, keys: Sequence[bytes]) -> list[Record | None] | None:
        """Records at once, if no more than :data:`INLINE_FILES` have to be read from disk, and that is not slow."""
        if self._phase != "open":
            if self._opening is not None:
                return self._own_records(self._opening, keys)
            self._refuse()
        versions, at_hand = self._state.versions, self._at_hand
        records: list[Record | None] = []
        missing = 0
        for key in keys:
            version = versions.get(key)
            if version is None:
                records.append(None)
                continue
            payload = at_hand(key)
            if payload is None:
                missing += 1
                if missing > INLINE_FILES or time.perf_counter() < self._inline_from:
                    return None
                payload = self._read_inline(key)
            records.append(Record(version, payload))
        return records

    @staticmethod
    def _own_records(state: State, keys: Sequence[bytes]) -> list[Record | None]:
        """The engine's, while the store is being opened: its index rows depend on them."""
        found = [(key, state.records.get(key)) for key in keys]
        return [None if payload is None else Record(state.versions.get(key, 1), payload) for key, payload in found]

    async def read(self, keys: Sequence[bytes]) -> RowRead:
        """All of one moment; from a thread, if many files have to be read."""
        records = self.read_now(keys)
        if records is None:
            _, payloads = await self._join(lambda: (None, keys))
            versions = self._state.versions
            records = [None if (found := payloads.get(key)) is None else Record(versions[key], found) for key in keys]
        return RowRead(records, self._state.version)

    def _at_hand(self, key: bytes) -> bytes | None:
        """A payload that is in memory."""
        held = self._held
        if held is not None:
            payload = held.get(key)
            if payload is not None:
                return payload
        payload = self._cache.get(key)
        if payload is not None:
            self._cache.move_to_end(key)
            return payload
        found = self._pending.get(key)
        return found if found is not None else self._state.records.get(key)

    def _payload(self, key: bytes) -> bytes:
        payload = self._at_hand(key)
        return payload if payload is not None else self._read_inline(key)

    def _read_inline(self, key: bytes) -> bytes:
        start = time.perf_counter()
        payload = self._from_file(key)
        took = time.perf_counter() - start
        if took > SLOW_S:
            blocks, self._blocks = self._blocks, disk.blocks_read()
            if blocks != self._blocks:  # else it was a busy machine, and waiting for a thread would be slower yet
                self._inline_from = start + took + min(_SHARE * took, _TURN_AWAY_S)
        self._keep(key, payload)
        return payload

    def _keep(self, key: bytes, payload: bytes) -> None:
        size = len(payload) + 100
        if size > self._cache_bytes >> 3:
            return
        cache = self._cache
        old = cache.pop(key, None)
        if old is not None:
            self._cached -= len(old) + 100
        cache[key] = payload
        self._cached += size
        while self._cached > self._cache_bytes:
            self._cached -= len(cache.popitem(last=False)[1]) + 100

    def _forget(self, key: bytes) -> None:
        old = self._cache.pop(key, None)
        if old is not None:
            self._cached -= len(old) + 100

    def _from_file(self, key: bytes) -> bytes:
        """From disk. In any thread.

        :raises CorruptDataError: if the file is gone, or was found damaged when the store was opened
        """
        told = self._broken.get(key)
        if told is not None:
            raise CorruptDataError(told)
        layout = self._layout
        if layout is None:
            raise StoreClosedError(f"{self.url} was closed while this read")
        try:
            return layout.read(key)
        except FileNotFoundError as exc:
            found = self._pending.get(key)  # a commit of this moment, where a thread reads
            if found is not None:
                return found
            raise CorruptDataError(
                f"{self._root}/{layout.path(key)} is gone: files are to be changed while the store is closed"
            ) from exc
        except OSError as exc:
            with disk.mapped(self._root):
                raise exc

    async def _join(self, pick: Callable[[], tuple[T, Sequence[bytes]]]) -> tuple[T, dict[bytes, bytes]]:
        """What ``pick`` gives, and the payloads of the keys it names: of the moment at which this returns."""
        for _ in range(_THREAD_TRIES):
            if self._phase != "open":
                self._refuse()
            picked, keys = pick()
            versions = self._state.versions
            have: dict[bytes, bytes] = {}
            missing: list[bytes] = []
            for key in dict.fromkeys(keys):
                if key in versions:
                    payload = self._at_hand(key)
                    if payload is None:
                        missing.append(key)
                    else:
                        have[key] = payload
            if len(missing) <= INLINE_FILES and time.perf_counter() >= self._inline_from:
                have.update([(key, self._read_inline(key)) for key in missing])
                return picked, have
            before = [versions.get(key) for key in keys]
            got = await anyio.to_thread.run_sync(partial(self._from_files, missing), abandon_on_cancel=True)
            if self._phase != "open":
                self._refuse()
            versions = self._state.versions
            if pick() == (picked, keys) and [versions.get(key) for key in keys] == before:
                for key, found in got.items():
                    if isinstance(found, DatastoreError):
                        raise found
                    have[key] = found
                    self._keep(key, found)
                return picked, have
        picked, keys = pick()
        versions = self._state.versions
        return picked, {key: self._payload(key) for key in dict.fromkeys(keys) if key in versions}

    def _from_files(self, keys: Sequence[bytes]) -> dict[bytes, bytes | DatastoreError]:
        """In a thread, while others may commit: what is wrong here may be because of that."""
        found: dict[bytes, bytes | DatastoreError] = {}
        for key in keys:
            try:
                found[key] = self._from_file(key)
            except DatastoreError as exc:
                found[key] = exc
        return found

    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
        """Rows from memory; entities as :meth:`read` has them."""
        if self._phase != "open":
            self._refuse()
        state = self._state
        space, lo, hi = span
        if space is Space.ENTITY:
            if not with_entities:
                keys = state.keys.slice(lo, hi, limit, reverse=reverse)
                versions = state.versions
                return RowScan([(key, 0, versions[key], None) for key in keys], state.version)
            keys, payloads = await self._join(
                lambda: (found := state.keys.slice(lo, hi, limit, reverse=reverse), found)
            )
            versions = state.versions
            return RowScan([(key, 0, versions[key], payloads[key]) for key in keys], state.version)
        if not with_entities:
            tails = state.tails
            rows = state.rows.slice(lo, hi, limit, reverse=reverse)
            return RowScan([(row, tails[row], None, None) for row in rows], state.version)
        pairs, payloads = await self._join(lambda: self._pick_rows(span, limit, reverse))
        versions = state.versions
        out: list[Row] = []
        for row, tail in pairs:
            key = row[-(tail & TAIL_KEY_MASK) :]
            out.append((row, tail, versions.get(key), payloads.get(key)))
        return RowScan(out, state.version)

    def _pick_rows(self, span: Span, limit: int, reverse: bool) -> tuple[list[tuple[bytes, int]], list[bytes]]:
        tails = self._state.tails
        pairs = [(row, tails[row]) for row in self._state.rows.slice(span.lo, span.hi, limit, reverse=reverse)]
        return pairs, [row[-(tail & TAIL_KEY_MASK) :] for row, tail in pairs]

    async def count(self, span: Span) -> SpanCount:
        """From memory."""
        if self._phase != "open":
            self._refuse()
        return self._state.count(span)

    async def sizes(self) -> dict[str, int]:
        """``index_bytes`` in memory, the ``snapshot_bytes`` and ``journal_bytes`` beside the data."""
        if self._phase != "open":
            self._refuse()
        return {
            "index_bytes": sum(map(len, self._state.tails)),
            "snapshot_bytes": self._snapshot_bytes,
            "journal_bytes": self._journal.size if self._journal is not None else 0,
        }

    # ---------------------------------------------------------------------------------------- writes

    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        """One record in the journal for the whole batch; files follow."""
        if self._phase != "open":
            self._refuse()
        if not any(map(_writes, batch.commits)):
            return Draft(self._state, self._old_payload).run(batch)
        self._check_writable()
        async with self._turn:
            if self._phase != "open":
                self._refuse()
            draft = Draft(self._state, self._old_payload)
            try:
                return await to_the_end(partial(self._commit_now, batch, draft), self._limit)
            finally:
                if draft.is_logged:
                    self._take(draft)
                    await self._checkpoint_if_due()

    def _commit_now(self, batch: RowBatch, draft: Draft) -> list[RowOutcome]:
        with disk.mapped(self._root):
            outcomes = draft.run(batch)
            if draft.commits:
                for put in [put for commit in draft.commits for put in commit.puts]:
                    self._files_layout.check(put.key, put.payload)
                assert self._applier is not None
                self._applier.wait_for_room()
                self._log(draft.logged())
                draft.is_logged = True
            return outcomes

    def _old_payload(self, key: bytes) -> bytes | None:
        """What is to be overwritten; None where it is not to be had."""
        found = self._pending.get(key)
        if found is None:
            found = self._cache.get(key) or self._state.records.get(key)
        if found is None and self._held is not None:
            found = self._held.get(key)
        if found is None:
            with suppress(CorruptDataError):
                found = self._from_file(key)
        return found

    def _take(self, draft: Draft) -> None:
        """The commit is durable: show it."""
        changes = draft.change()
        assert self._applier is not None
        self._applier.submit(changes)
        self._is_dirty = True
        for key, payload in changes.items():
            self._broken.pop(key, None)
            if self._held is not None:
                if payload is None:
                    self._held.pop(key, None)
                else:
                    self._held[key] = payload
            elif payload is None:
                self._forget(key)
            else:
                self._keep(key, payload)

    async def allocate(self, sequence: bytes, size: int, *, at_least: int = 1) -> int:
        """Durable before it returns, unless ``size`` is 0 and nothing changes."""
        if self._phase != "open":
            self._refuse()
        sequences = self._state.sequences
        if size == 0 and at_least <= sequences.get(sequence, 1):
            return sequences.get(sequence, 1)
        self._check_writable()
        async with self._turn:
            if self._phase != "open":
                self._refuse()
            sequences = self._state.sequences
            first = max(sequences.get(sequence, 1), at_least)
            if first + size > _MAX_NEXT:
                raise OverflowError("the sequence is used up")
            sequences[sequence] = first + size  # a number that is skipped does no harm, one that is given twice does
            self._is_dirty = True
            await to_the_end(partial(self._log_next, sequence, first + size), self._limit)
            return first

    def _log_next(self, sequence: bytes, number: int) -> None:
        with disk.mapped(self._root):
            self._log(Logged(self._state.version, [], {sequence: number}))

    def _check_writable(self) -> None:
        if self._read_only:
            raise StoreReadOnlyError(f"{self._root} was opened with read_only=true")

    @property
    def _files_layout(self) -> Layout:
        assert self._layout is not None
        return self._layout

    def _log(self, logged: Logged) -> None:
        assert self._journal is not None
        if self._journal_due is not None:  # the snapshot is of a later generation than the journal
            self._journal.start(self._journal_due)
            self._journal_due = None
        self._journal.append(logged)

    # ----------------------------------------------------------------------------------- checkpoints

    async def _checkpoint_if_due(self) -> None:
        journal = self._journal
        if journal is None or journal.size < max(self._journal_bytes, self._snapshot_bytes // 2, self._retry_at):
            return
        try:
            await to_the_end(self._checkpoint, self._limit)
        except Exception as exc:  # the commit itself is done
            self._retry_at = journal.size + self._journal_bytes
            _log.warning("%s: the snapshot can't be written at the moment: %s", self._root, exc)

    def _checkpoint(self) -> None:
        """All into files, then a snapshot, then an empty journal. In a thread, while nobody commits.

        Whatever fails on the way, the journal of before goes with the snapshot of before.
        """
        journal, applier, layout, state = self._journal, self._applier, self._layout, self._state
        assert journal is not None
        assert applier is not None
        assert layout is not None
        applier.drain()
        if self._fsync:
            disk.flush(self._root, applier.unsynced)
        about = About(layout.name, layout.extension, state.sequences, state.records)
        self._write_about(about.dumps())
        # A file that is edited from now on must have another time than those just written.
        time.sleep(max(0.0, applier.written_at + _TICK_S - time.monotonic()))
        generation = (self._journal_due or journal.generation) + 1
        new = self._own_path("snapshot.new")
        write_snapshot(
            new,
            generation,
            state.version,
            records_digest(state.records),
            state.keys,
            state.versions,
            state.digests,
            self._files,
            state.rows,
            state.tails,
            durable=self._fsync,
        )
        disk.put_in_place(new, self._own_path(_SNAPSHOT))
        self._journal_due = generation
        applier.unsynced.clear()
        if self._fsync:
            disk.sync_folder(self._own)
        journal.start(generation)
        self._journal_due = None
        self._retry_at = 0
        self._is_dirty = False
        self._snapshot_bytes = os.stat(self._own_path(_SNAPSHOT)).st_size

    def _write_about(self, data: bytes) -> None:
        path = self._own_path(_ABOUT)
        with suppress(OSError):
            if disk.read(path) == data:
                return
        new = self._own_path("store.json.new")
        disk.write_new(new, [data], durable=self._fsync)
        disk.put_in_place(new, path)


def _writes(commit: RowCommit) -> bool:
    return bool(commit.puts or commit.deletes or commit.index_puts or commit.index_deletes)


def _check_extension(extension: str) -> None:
    if not re.fullmatch(r"\.[a-z][a-z0-9]{0,19}", extension) or extension in (".key", ".bin"):
        raise BadArgumentError(
            f"extension={extension!r:.100}: expected a dot, a small letter, up to 19 more or digits; not .key, .bin"
        )
