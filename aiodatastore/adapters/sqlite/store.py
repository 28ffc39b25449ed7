"""The store: its connections, and on which thread they read and write."""

from __future__ import annotations

import os
import queue
import sqlite3
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import anyio
import anyio.to_thread

from aiodatastore.adapters.forking import open_stores
from aiodatastore.adapters.sqlite.errors import mapped, translate
from aiodatastore.adapters.sqlite.file import StoreFile
from aiodatastore.adapters.sqlite.reading import count, read, scan, tally
from aiodatastore.adapters.sqlite.statements import COUNT, COUNT_ONLY, GET, SCANS, VERSION
from aiodatastore.adapters.sqlite.transactions import transaction
from aiodatastore.adapters.sqlite.writing import checked, run_batch, writes
from aiodatastore.adapters.threads import to_the_end
from aiodatastore.errors import BadArgumentError, StoreBusyError, StoreClosedError, StoreReadOnlyError
from aiodatastore.rowstore import (
    Capability,
    Record,
    Row,
    RowBatch,
    RowOutcome,
    RowRead,
    RowScan,
    RowStore,
    Span,
    SpanCount,
    SpanTally,
)

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

__all__ = ["SQLiteRowStore"]

T = TypeVar("T")

Work = Callable[[sqlite3.Connection, bool], T]
"""What is done within one SQLite transaction; the flag says whether it runs beside the event loop, in a thread."""

INLINE_KEYS: Final = 512
INLINE_ROWS: Final = 512
INLINE_COUNT: Final = 4096
"""The most that is read on the event loop's thread. Warm, a key costs 2 µs, a joined row 3 µs, a counted row 0.1 µs,
so none takes much more than a millisecond; handing the work to a thread and back costs 120 µs (170 µs under trio)."""

SLOW_S: Final = 0.005
"""An inline read that waited longer for the disk sends reads through threads for ten times as long as it took."""

_READERS = 4
_SHARE = 10
_TURN_AWAY_S = 2.0


class SQLiteRowStore(RowStore):
    """Rows in one SQLite file (WAL mode), shared by any number of processes of one machine.

    - Durability: ``synchronous="FULL"`` (the default) or ``"EXTRA"``: an acknowledged commit survives a crash of
      the process and of the machine. ``"NORMAL"``: it survives a crash of the process; of the machine, the last
      commits may be missing, the file stays whole. ``"OFF"``: the same for the process; after a power
      failure the file may be damaged.
    - Isolation: serializable, also among processes. A batch is one write transaction that checks versions and
      spans and applies in the same breath; every read is one snapshot.
    - Limits of one commit: the disk (a commit is written to the ``-wal`` file first), 1 GB for one value. One writer
      at a time in all processes: others wait up to ``busy_timeout_s``, then get ``StoreBusyError``. The file
      must not be on a network file system (WAL needs shared memory).
    - Cost: a read of one key 8 µs inline; a batch of writes one trip through a thread, one fsync, and about 4 µs
      per changed row. Unchanged index rows of an overwritten entity are not touched.

    Blocking work runs in threads, except small reads (at most 512 keys, 512 rows, 4096 rows counted): warm they hold
    the event loop for a millisecond and a half at most, mostly for less than a trip to a thread and back takes.
    ``inline_reads="auto"``: when such a read took more than 5 ms because the disk had to be read (cold cache), reads
    go through threads for ten times as long as it took. ``True``: always inline; ``False``: never.

    ``checkpoint_mb``: the WAL is written back into the file when it has grown by this much; readers that never pause
    can make it grow to four times that before a commit waits a moment for them. ``cache_mb`` is the page cache of
    the writing and of the inline reading connection each: a long import into a file larger
    than it costs less with more. ``page_size`` is used when the file is made.

    :raises BadArgumentError: if a setting is unknown, or the path means an in-memory database
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["OFF", "NORMAL", "FULL", "EXTRA"] = "FULL",
        busy_timeout_s: float = 5.0,
        inline_reads: bool | Literal["auto"] = "auto",
        cache_mb: int = 64,
        checkpoint_mb: int = 64,
        page_size: int = 4096,
        read_only: bool = False,
    ) -> None:
        text = os.fspath(path)
        if not text or ":memory:" in text or "\0" in text:
            raise BadArgumentError(f"SQLite path {text!r}: expected a file; for data in memory use memory://")
        if synchronous not in ("OFF", "NORMAL", "FULL", "EXTRA"):
            raise BadArgumentError(f"synchronous={synchronous!r}: expected OFF, NORMAL, FULL or EXTRA")
        if inline_reads not in (True, False, "auto"):
            raise BadArgumentError(f"inline_reads={inline_reads!r}: expected True, False or 'auto'")
        if page_size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
            raise BadArgumentError(f"page_size={page_size}: expected a power of two from 512 to 65536")
        if busy_timeout_s < 0 or cache_mb < 1 or checkpoint_mb < 1:
            raise BadArgumentError("busy_timeout_s must be at least 0, cache_mb and checkpoint_mb at least 1")
        self._path = Path(text).absolute()
        self._busy_timeout_s = busy_timeout_s
        self._cache_kib = cache_mb * 1024
        self._checkpoint_bytes = checkpoint_mb << 20
        self._file = StoreFile(self._path, synchronous, busy_timeout_s, self._checkpoint_bytes, page_size, read_only)
        self._read_only = read_only
        self._inline_reads = inline_reads
        self._truncate_at = 4 * self._checkpoint_bytes
        self._state: Literal["new", "open", "closed", "forked"] = "new"
        self._inline_from = 0.0 if inline_reads else float("inf")  # perf_counter() from which inline is allowed
        self._execute: Callable[..., sqlite3.Cursor] = self._refuse
        self.url = f"sqlite:///{self._path}"
        can = {Capability.DURABLE, Capability.MULTI_PROCESS, Capability.TRIO}
        self.capabilities = frozenset(can | {Capability.INLINE_READS} if inline_reads else can)

    def __repr__(self) -> str:
        return f"<SQLiteRowStore {self.url} {self._state}>"

    # -------------------------------------------------------------------------------- open and close

    async def open(self) -> None:
        self._turn = anyio.Lock(fast_acquire=True)
        self._writer_limit = anyio.CapacityLimiter(1)
        self._reader_limit = anyio.CapacityLimiter(_READERS)
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._lent: set[sqlite3.Connection] = set()
        self._blocks = _blocks_read()
        await to_the_end(self._open_now, self._writer_limit)

    def _open_now(self) -> None:
        writer = reader = None
        try:
            with mapped(self._path):
                self._file.check_path()
                writer = self._file.connect(self._cache_kib, self._busy_timeout_s)
                self._file.prepare(writer)
                reader = self._file.connect(self._cache_kib, self._busy_timeout_s)
                reader.execute(VERSION).fetchall()
                for mine in (writer, reader):  # both read on the loop's thread, which must not wait for locks
                    mine.execute("PRAGMA busy_timeout = 0")
        except BaseException:
            for connection in (reader, writer):
                if connection is not None:
                    connection.close()
            raise
        self._writer, self._reader = writer, reader
        self._executes = {connection: connection.cursor().execute for connection in (writer, reader)}
        self._state = "open"
        self._read_inline_on(writer)
        open_stores.add(self)

    def _read_inline_on(self, connection: sqlite3.Connection) -> None:
        """Inline reads use the writing connection while it does not write: a connection forgets its page cache
        whenever another one has written."""
        if self._state == "open":
            self._inline_on = connection
            self._execute = self._executes[connection]

    async def aclose(self) -> None:
        if self._state != "open":
            return
        self._state = "closed"
        self._execute = self._refuse
        open_stores.discard(self)
        with anyio.CancelScope(shield=True):
            async with self._turn:
                await to_the_end(self._close_now, self._writer_limit)

    def _close_now(self) -> None:
        for connection in list(self._lent):
            with suppress(sqlite3.ProgrammingError):  # closed in the meantime
                connection.interrupt()
        while self._lent:
            time.sleep(0.001)
        while not self._idle.empty():
            self._idle.get().close()
        with mapped(self._path):
            self._reader.close()
            self._writer.close()  # the last one to leave writes the WAL back

    def __del__(self) -> None:
        if getattr(self, "_state", "new") == "open":
            warnings.warn(f"unclosed {self!r}: await its aclose()", ResourceWarning, source=self, stacklevel=2)
            self._reader.close()
            self._writer.close()

    def _leave_to_parent(self) -> None:
        """In a forked child: closing or using these connections would harm the parent's."""
        _inherited.append((self._reader, self._writer, self._idle, self._lent))
        self._state = "forked"
        self._execute = self._refuse

    def _refuse(self, *_: Any) -> Any:
        if self._state == "forked":
            raise StoreClosedError(f"{self.url} was opened before fork(); open it in the child process itself")
        raise StoreClosedError(f"{self.url} is not open: use 'async with Datastore(…)' or await open() first")

    # ----------------------------------------------------------------------------------------- reads

    def read_now(self, keys: Sequence[bytes]) -> list[Record | None] | None:
        start = time.perf_counter()
        if start < self._inline_from or len(keys) > INLINE_KEYS:
            return None
        try:
            if len(keys) == 1:
                found = self._execute(GET, keys).fetchall()
                records: list[Record | None] = [Record(*found[0]) if found else None]
            else:
                records = self._inline(partial(read, keys)).records
        except sqlite3.Error as exc:
            error = translate(exc, self._path)
            if isinstance(error, StoreBusyError):
                return None
            raise error from exc
        except StoreBusyError:
            return None
        self._note(start)
        return records

    async def read(self, keys: Sequence[bytes]) -> RowRead:
        return await self._run(len(keys) <= INLINE_KEYS, partial(read, keys))

    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
        work = partial(scan, span, limit, reverse, with_entities)
        return await self._run(limit <= INLINE_ROWS, work)

    def scan_now(
        self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False
    ) -> list[Row] | None:
        if limit > INLINE_ROWS:
            return None
        space, lo, hi = span
        # As bytearrays they are bound at once, see the statements.
        return self._at_once(SCANS[space, with_entities, reverse], (bytearray(lo), bytearray(hi), limit))

    async def count(self, span: Span) -> SpanCount:
        # How much there is to count is not known before: count a little inline, and all of it elsewhere.
        space, lo, hi = span
        found = self._at_once(COUNT[space], (lo, hi, INLINE_COUNT + 1))
        if found is not None and found[0][0] <= INLINE_COUNT:
            return SpanCount(*found[0])
        return await self._run(False, partial(count, span, -1))

    def count_now(self, span: Span) -> SpanCount | None:
        space, lo, hi = span
        found = self._at_once(COUNT_ONLY[space], (lo, hi, INLINE_COUNT + 1))
        if found is None or found[0][0] > INLINE_COUNT:
            return None
        return SpanCount(*found[0])

    async def tally(self, span: Span, skip: int) -> SpanTally | None:
        # As with counting, but a group costs ten times as much as a row: always in a thread where there are many.
        if time.perf_counter() >= self._inline_from:
            some = await self._run(True, partial(count, span, INLINE_ROWS + 1))
            if some.rows <= INLINE_ROWS:
                return await self._run(True, partial(tally, span, skip))
        return await self._run(False, partial(tally, span, skip))

    async def sizes(self) -> dict[str, int]:
        return await self._run(False, self._sizes)

    def _sizes(self, connection: sqlite3.Connection, threaded: bool) -> dict[str, int]:
        page_size, pages, free = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
        return {"file_bytes": page_size * pages, "free_bytes": page_size * free, "wal_bytes": self._file.wal_bytes()}

    async def _run(self, small: bool, work: Work[T]) -> T:
        """Read at once if it is small and the disk is not slow, else in a thread; one snapshot either way."""
        start = time.perf_counter()
        if small and start >= self._inline_from:
            try:
                answer = self._inline(work)
            except StoreBusyError:
                pass  # the inline connection does not wait; the others do
            else:
                self._note(start)
                return answer
        if self._state != "open":
            self._refuse()
        return await anyio.to_thread.run_sync(self._lend, work, limiter=self._reader_limit, abandon_on_cancel=True)

    def _at_once(self, text: str, parameters: Sequence[Any]) -> list[Any] | None:
        """The rows of one statement, which is a snapshot without a transaction; None where that would have to wait."""
        start = time.perf_counter()
        if start < self._inline_from:
            return None
        try:
            rows = self._execute(text, parameters).fetchall()
        except sqlite3.Error as exc:
            error = translate(exc, self._path)
            if isinstance(error, StoreBusyError):
                return None
            raise error from exc
        self._note(start)
        return rows

    def _inline(self, work: Work[T]) -> T:
        if self._state != "open":
            self._refuse()
        connection = self._inline_on
        execute = self._execute  # no context managers here: they would cost as much as a statement
        try:
            execute("BEGIN")
            try:
                return work(connection, False)
            finally:
                execute("COMMIT")
        except sqlite3.Error as exc:
            raise translate(exc, self._path) from exc

    def _lend(self, work: Work[T]) -> T:
        """Runs in a thread: ``work`` with a reading connection of its own."""
        with mapped(self._path):
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                connection = self._file.connect(self._cache_kib // _READERS, self._busy_timeout_s)
            self._lent.add(connection)
            try:
                if self._state != "open":
                    self._refuse()
                with transaction(connection):
                    return work(connection, True)
            finally:
                if self._state == "open":
                    self._idle.put(connection)
                else:
                    connection.close()
                self._lent.discard(connection)

    def _note(self, start: float) -> None:
        end = time.perf_counter()
        if end - start > SLOW_S and self._inline_reads == "auto":
            blocks, self._blocks = self._blocks, _blocks_read()
            if blocks != self._blocks:  # else it was a busy machine, and waiting for a thread would be slower yet
                self._inline_from = end + min(_SHARE * (end - start), _TURN_AWAY_S)

    # ---------------------------------------------------------------------------------------- writes

    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        if not any(map(writes, batch.commits)):
            small = sum(map(checked, batch.commits)) <= INLINE_ROWS
            return await self._run(small, partial(run_batch, batch))
        return await self._write(partial(run_batch, batch))

    async def allocate(self, sequence: bytes, size: int, *, at_least: int = 1) -> int:
        def take(connection: sqlite3.Connection, threaded: bool) -> int:
            found = connection.execute("SELECT next FROM sequences WHERE name = ?", (sequence,)).fetchall()
            first: int = max(found[0][0] if found else 1, at_least)
            connection.execute("INSERT OR REPLACE INTO sequences VALUES (?, ?)", (sequence, first + size))
            return first

        return await self._write(take)

    async def _write(self, work: Work[T]) -> T:
        """``work`` in one write transaction, in a thread, whose outcome is waited for even if cancelled."""
        if self._state != "open":
            self._refuse()
        if self._read_only:
            raise StoreReadOnlyError(f"{self._path} was opened with read_only=True")
        async with self._turn:
            if self._state != "open":
                self._refuse()
            self._read_inline_on(self._reader)
            try:
                return await to_the_end(partial(self._write_now, work), self._writer_limit)
            finally:
                self._read_inline_on(self._writer)

    def _write_now(self, work: Work[T]) -> T:
        with mapped(self._path):
            with transaction(self._writer, wait_s=self._busy_timeout_s):
                answer = work(self._writer, True)
            if self._file.wal_bytes() > self._truncate_at:
                self._truncate_wal()
            return answer

    def _truncate_wal(self) -> None:
        """Commits copy the WAL back as far as readers allow; only a moment without readers lets it start anew.

        This waits for that moment, but not for long: readers that hold out make the next try come later.
        """
        self._writer.execute("PRAGMA busy_timeout = 200")
        try:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError:
            pass  # the commit itself is done; what is wrong with the disk will show in the next
        finally:
            self._writer.execute("PRAGMA busy_timeout = 0")
        self._truncate_at = max(4 * self._checkpoint_bytes, self._file.wal_bytes() + self._checkpoint_bytes)


def _blocks_read() -> int:
    """How many blocks this thread has waited for a disk to read; always another number where unknown."""
    try:
        return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_inblock
    except AttributeError:
        return time.perf_counter_ns()


_inherited: list[Any] = []  # never closed: that would harm the process that opened them
