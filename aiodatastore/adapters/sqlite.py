"""Entities in one SQLite file: ``sqlite:///relative.db``, ``sqlite:////absolute/path.db``."""

from __future__ import annotations

import errno
import os
import queue
import random
import sqlite3
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

import anyio
import anyio.to_thread

from aiodatastore.adapters import registry
from aiodatastore.errors import (
    BadArgumentError,
    BadRequestError,
    CorruptDataError,
    DatastoreError,
    FormatVersionError,
    StoreBusyError,
    StoreClosedError,
    StoreFullError,
    StoreReadOnlyError,
    UnavailableError,
)
from aiodatastore.rowstore import (
    EXISTS,
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
    SpanCheck,
    SpanCount,
    StaleFenceError,
    span_digest,
)

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from aiodatastore.adapters.engine import EngineAdapter

__all__ = ["SQLiteRowStore", "from_url"]

T = TypeVar("T")

Work = Callable[[sqlite3.Connection, bool], T]
"""What is done within one SQLite transaction; the flag says whether it runs beside the event loop, in a thread."""

APPLICATION_ID: Final = 0x41446453  # "ADdS"
FORMAT_VERSION: Final = 1

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

_SCHEMA = """
CREATE TABLE entities (key BLOB PRIMARY KEY, version INTEGER NOT NULL, payload BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (row BLOB PRIMARY KEY, tail INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sequences (name BLOB PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 0), version INTEGER NOT NULL);
INSERT INTO meta VALUES (0, 0);
"""

_VERSION = "SELECT version FROM meta"
_GET = "SELECT version, payload FROM entities WHERE key = ?"
# Where there are many parameters they are made bytearrays: sqlite3 binds those at once, but asks its adapters, and
# for an attribute that is not there, about every bytes object (0.6 µs each, a fifth of an inserted row).
# A LEFT JOIN also pins the order of the loops: the span outside, one entity look-up inside for each row.
_SCAN_JOINED = (
    "SELECT r.row a, r.tail b, e.version c, e.payload d FROM rows r"
    " LEFT JOIN entities e ON e.key = substr(r.row, -(r.tail & 1048575))"
    " WHERE r.row >= ? AND r.row < ? ORDER BY r.row {order} LIMIT ?"
)
_SCAN_ROWS = "SELECT row a, tail b, NULL c, NULL d FROM rows WHERE row >= ? AND row < ? ORDER BY row {order} LIMIT ?"
_SCAN_ENTITIES = (
    "SELECT key a, 0 b, version c, payload d FROM entities WHERE key >= ? AND key < ? ORDER BY key {order} LIMIT ?"
)
_SCAN_KEYS = _SCAN_ENTITIES.replace("payload d", "NULL d")
_FIND = "WITH k(k) AS (VALUES {values}) SELECT k a, 0 b, version c, payload d FROM k CROSS JOIN entities ON key = k"
_COUNT = {
    Space.ENTITY: "SELECT count(*), 0, ({version}) FROM (SELECT 1 FROM entities WHERE key >= ? AND key < ? LIMIT ?)",
    Space.INDEX: "SELECT count(*), coalesce(sum((tail & 1048576) != 0), 0), ({version})"
    " FROM (SELECT tail FROM rows WHERE row >= ? AND row < ? LIMIT ?)",
}
# All rows in one step. sqlite3 takes the GIL again after every step, and while the event loop computes, a
# thread waits up to 5 ms for it: 1000 rows fetched one by one could take seconds.
_PACK = (
    "SELECT CAST(group_concat(a, '') AS BLOB), group_concat(length(a)), group_concat(b),"
    " group_concat(coalesce(c, 0)), CAST(group_concat(d, '') AS BLOB), group_concat(coalesce(length(d), -1))"
    " FROM ({query})"
)
_PACK_ROWS = 500  # of up to a megabyte each: one packed value must stay below SQLite's limit of 1 GB


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
    the writing and of the inline reading connection each. ``page_size`` is used when the file is made.

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
        self._wal = f"{self._path}-wal"
        self._synchronous = synchronous
        self._busy_timeout_s = busy_timeout_s
        self._cache_kib = cache_mb * 1024
        self._checkpoint_bytes = checkpoint_mb << 20
        self._page_size = page_size
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
        await _to_the_end(self._open_now, self._writer_limit)

    def _open_now(self) -> None:
        writer = reader = None
        try:
            with _mapped(self._path):
                self._check_path()
                writer = self._connect(self._cache_kib, self._busy_timeout_s)
                self._prepare(writer)
                reader = self._connect(self._cache_kib, self._busy_timeout_s)
                reader.execute(_VERSION).fetchall()
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
        _open_stores.add(self)

    def _read_inline_on(self, connection: sqlite3.Connection) -> None:
        """Inline reads use the writing connection while it does not write: a connection forgets its page cache
        whenever another one has written."""
        if self._state == "open":
            self._inline_on = connection
            self._execute = self._executes[connection]

    def _check_path(self) -> None:
        if not self._path.parent.is_dir():
            raise UnavailableError(f"{self._path}: the folder {self._path.parent} does not exist; make it first")
        if self._path.is_dir():
            raise UnavailableError(f"{self._path} is a folder, expected a file")
        if self._read_only and not self._path.exists():
            raise UnavailableError(f"{self._path} does not exist, and read_only=True does not create it")

    def _connect(self, cache_kib: int, timeout_s: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode={'ro' if self._read_only else 'rwc'}",
            uri=True,
            timeout=timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        for pragma in (
            f"cache_size = -{cache_kib}",
            f"synchronous = {self._synchronous}",
            "secure_delete = OFF",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _prepare(self, writer: sqlite3.Connection) -> None:
        """Check the file's format, or make it if the file is new."""
        if not self._is_ours(writer):
            if self._read_only:
                raise CorruptDataError(f"{self._path} is empty, and read_only=True does not fill it")
            self._create(writer)
        elif not self._read_only:
            self._enter_wal_mode(writer)
        page_size = writer.execute("PRAGMA page_size").fetchone()[0]
        writer.execute(f"PRAGMA wal_autocheckpoint = {max(1, self._checkpoint_bytes // page_size)}")
        writer.execute(f"PRAGMA journal_size_limit = {self._checkpoint_bytes}")

    def _is_ours(self, connection: sqlite3.Connection) -> bool:
        """Whether the file is a store of this format; false if it is empty.

        :raises CorruptDataError: if it is something else
        """
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if not (application or version or tables):
            return False
        if application != APPLICATION_ID:
            raise CorruptDataError(f"{self._path} is another program's SQLite database, not a datastore")
        if version != FORMAT_VERSION:
            raise FormatVersionError(f"{self._path} has format version {version}; this version reads {FORMAT_VERSION}")
        return True

    def _create(self, writer: sqlite3.Connection) -> None:
        writer.execute(f"PRAGMA page_size = {self._page_size}")
        self._enter_wal_mode(writer)
        with _transaction(writer, wait_s=self._busy_timeout_s):
            if not self._is_ours(writer):  # unless another process has made it just now
                for statement in _SCHEMA.split(";"):
                    writer.execute(statement)
                writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                writer.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    def _enter_wal_mode(self, writer: sqlite3.Connection) -> None:
        # SQLite does not wait here, whatever the timeout, when several processes make the same new file.
        give_up, mode = time.monotonic() + self._busy_timeout_s, ""
        while not mode:
            try:
                mode = writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise UnavailableError(f"{self._path}: this file system does not support SQLite's WAL mode")

    async def aclose(self) -> None:
        if self._state != "open":
            return
        self._state = "closed"
        self._execute = self._refuse
        _open_stores.discard(self)
        with anyio.CancelScope(shield=True):
            async with self._turn:
                await _to_the_end(self._close_now, self._writer_limit)

    def _close_now(self) -> None:
        for connection in list(self._lent):
            with suppress(sqlite3.ProgrammingError):  # closed in the meantime
                connection.interrupt()
        while self._lent:
            time.sleep(0.001)
        while not self._idle.empty():
            self._idle.get().close()
        with _mapped(self._path):
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
                found = self._execute(_GET, keys).fetchall()
                records: list[Record | None] = [Record(*found[0]) if found else None]
            else:
                records = self._inline(partial(_read, keys)).records
        except sqlite3.Error as exc:
            error = _translate(exc, self._path)
            if isinstance(error, StoreBusyError):
                return None
            raise error from exc
        except StoreBusyError:
            return None
        self._note(start)
        return records

    async def read(self, keys: Sequence[bytes]) -> RowRead:
        return await self._run(len(keys) <= INLINE_KEYS, partial(_read, keys))

    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
        work = partial(_scan, span, limit, reverse, with_entities)
        return await self._run(limit <= INLINE_ROWS, work)

    async def count(self, span: Span) -> SpanCount:
        # How much there is to count is not known before: count a little inline, and all of it elsewhere.
        if time.perf_counter() >= self._inline_from:
            some = await self._run(True, partial(_count, span, INLINE_COUNT + 1))
            if some.rows <= INLINE_COUNT:
                return some
        return await self._run(False, partial(_count, span, -1))

    async def sizes(self) -> dict[str, int]:
        return await self._run(False, self._sizes)

    def _sizes(self, connection: sqlite3.Connection, threaded: bool) -> dict[str, int]:
        page_size, pages, free = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
        return {"file_bytes": page_size * pages, "free_bytes": page_size * free, "wal_bytes": self._wal_bytes()}

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

    def _inline(self, work: Work[T]) -> T:
        if self._state != "open":
            self._refuse()
        connection = self._inline_on
        execute = connection.execute  # no context managers here: they would cost as much as a statement
        try:
            execute("BEGIN")
            try:
                return work(connection, False)
            finally:
                execute("COMMIT")
        except sqlite3.Error as exc:
            raise _translate(exc, self._path) from exc

    def _lend(self, work: Work[T]) -> T:
        """Runs in a thread: ``work`` with a reading connection of its own."""
        with _mapped(self._path):
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                connection = self._connect(self._cache_kib // _READERS, self._busy_timeout_s)
            self._lent.add(connection)
            try:
                if self._state != "open":
                    self._refuse()
                with _transaction(connection):
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
        if not any(map(_writes, batch.commits)):
            small = sum(map(_checked, batch.commits)) <= INLINE_ROWS
            return await self._run(small, partial(_run_batch, batch))
        return await self._write(partial(_run_batch, batch))

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
                return await _to_the_end(partial(self._write_now, work), self._writer_limit)
            finally:
                self._read_inline_on(self._writer)

    def _write_now(self, work: Work[T]) -> T:
        with _mapped(self._path):
            with _transaction(self._writer, wait_s=self._busy_timeout_s):
                answer = work(self._writer, True)
            if self._wal_bytes() > self._truncate_at:
                self._truncate_wal()
            return answer

    def _wal_bytes(self) -> int:
        try:
            return os.stat(self._wal).st_size
        except FileNotFoundError:
            return 0

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
        self._truncate_at = max(4 * self._checkpoint_bytes, self._wal_bytes() + self._checkpoint_bytes)


# ------------------------------------------------------------------------------------------- statements


@contextmanager
def _transaction(connection: sqlite3.Connection, *, wait_s: float | None = None) -> Iterator[None]:
    """A transaction that reads; or with ``wait_s``, one that writes, if the lock can be had within that time."""
    if connection.in_transaction:  # the last one could not even be rolled back
        connection.execute("ROLLBACK")
    if wait_s is None:
        connection.execute("BEGIN")
    else:
        _begin_to_write(connection, wait_s)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it by itself on some errors
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def _begin_to_write(connection: sqlite3.Connection, wait_s: float) -> None:
    # SQLite's own waiting soon sleeps 100 ms at a time, and this connection must not wait when it reads inline.
    give_up, pause_s = time.monotonic() + wait_s, 0.0005
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, 0.02)
        else:
            return


@lru_cache(maxsize=256)
def _values(count: int, width: int = 1) -> str:
    return ",".join(["(" + ",".join("?" * width) + ")"] * count)


def _chunks(count: int, largest: int = 4096) -> Iterator[tuple[int, int]]:
    """Cut into powers of two and one rest of up to 16, so that few different statements are needed."""
    start = 0
    while left := count - start:
        size = left if left <= 16 else min(largest, 1 << (left.bit_length() - 1))
        yield start, size
        start += size


def _read(keys: Sequence[bytes], connection: sqlite3.Connection, threaded: bool) -> RowRead:
    version: int = connection.execute(_VERSION).fetchall()[0][0]
    found = _find(connection, keys, threaded)
    return RowRead([found.get(key) for key in keys], version)


def _find(connection: sqlite3.Connection, keys: Sequence[bytes], threaded: bool) -> dict[bytes, Record]:
    """The entities that exist. Joining with a list of values is faster than ``IN`` or one statement each."""
    found: dict[bytes, Record] = {}
    names = list(map(bytearray, keys))
    for start, size in _chunks(len(names), INLINE_KEYS):
        query = _FIND.format(values=_values(size))
        for key, _, version, payload in _fetch(connection, query, names[start : start + size], threaded):
            found[key] = Record(cast(int, version), cast(bytes, payload))
    return found


def _scan(
    span: Span, limit: int, reverse: bool, with_entities: bool, connection: sqlite3.Connection, threaded: bool
) -> RowScan:
    version: int = connection.execute(_VERSION).fetchall()[0][0]
    return RowScan(_rows(connection, span, limit, reverse, with_entities, threaded), version)


def _rows(
    connection: sqlite3.Connection, span: Span, limit: int, reverse: bool, with_entities: bool, threaded: bool
) -> list[Row]:
    space, lo, hi = span
    if space is Space.ENTITY:
        query = _SCAN_ENTITIES if with_entities else _SCAN_KEYS
    else:
        query = _SCAN_JOINED if with_entities else _SCAN_ROWS
    query = query.format(order="DESC" if reverse else "ASC")
    rows: list[Row] = []
    while len(rows) < limit:
        wanted = min(limit - len(rows), _PACK_ROWS)
        part = _fetch(connection, query, (lo, hi, wanted), threaded)
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
        return _unpack(connection, query, parameters)
    return connection.execute(query, parameters).fetchall()


def _unpack(connection: sqlite3.Connection, query: str, parameters: Sequence[Any]) -> list[Row]:
    """The same in one step."""
    names, lengths, tails, versions, payloads, sizes = connection.execute(
        _PACK.format(query=query), parameters
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


def _count(span: Span, limit: int, connection: sqlite3.Connection, threaded: bool) -> SpanCount:
    query = _COUNT[span.space].format(version=_VERSION)
    return SpanCount(*connection.execute(query, (span.lo, span.hi, limit)).fetchall()[0])


# ---------------------------------------------------------------------------------------------- batches


def _writes(commit: RowCommit) -> bool:
    return bool(commit.puts or commit.deletes or commit.index_puts or commit.index_deletes)


def _checked(commit: RowCommit) -> int:
    return len(commit.checks) + sum(check.count for check in commit.spans)


def _run_batch(batch: RowBatch, connection: sqlite3.Connection, threaded: bool) -> list[RowOutcome]:
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
        self._version: int = self._connection.execute(_VERSION).fetchall()[0][0]
        self._stored_version = self._version
        self._entities = _find(self._connection, self._keys(), self._threaded)
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
        if not _writes(commit):
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
            return _count(span, check.count + 1, self._connection, self._threaded).rows == check.count
        rows = _rows(self._connection, span, check.count + 1, False, False, self._threaded)
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
        for start, size in _chunks(len(parameters) // width):
            self._connection.execute(
                f"INSERT OR REPLACE INTO {table} VALUES {_values(size, width)}",
                parameters[start * width : (start + size) * width],
            )

    def _delete(self, table: str, column: str, names: list[bytes]) -> None:
        parameters = list(map(bytearray, names))
        for start, size in _chunks(len(parameters)):
            self._connection.execute(
                f"DELETE FROM {table} WHERE {column} IN (VALUES {_values(size)})", parameters[start : start + size]
            )


# ------------------------------------------------------------------------------------------------ seams


def _blocks_read() -> int:
    """How many blocks this thread has waited for a disk to read; always another number where unknown."""
    try:
        return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_inblock
    except AttributeError:
        return time.perf_counter_ns()


class _Call:
    """Work for a thread that either was never begun or whose end can be waited for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._claim = [True]
        self._done = threading.Event()

    def run(self) -> Any:
        if self.claim():
            try:
                return self._work()
            finally:
                self._done.set()
        return None

    def claim(self) -> bool:
        """True for the first who asks: the thread that begins the work, or the canceller who forbids it."""
        try:
            return self._claim.pop()
        except IndexError:
            return False

    def wait(self) -> None:
        self._done.wait()


async def _to_the_end(work: Callable[[], T], limiter: anyio.CapacityLimiter) -> T:
    """The answer of ``work``, run in a thread; a cancelled caller goes on only when it has ended."""
    call = _Call(work)
    cancelled = anyio.get_cancelled_exc_class()
    with anyio.CancelScope(shield=True):
        try:
            return cast(T, await anyio.to_thread.run_sync(call.run, limiter=limiter))
        except cancelled:
            # asyncio's own Task.cancel(), which no shield stops.
            if not call.claim():
                await _wait_stubbornly(call, cancelled)
            raise
    raise AssertionError("unreachable")


async def _wait_stubbornly(call: _Call, cancelled: type[BaseException]) -> None:
    while True:
        try:
            return await anyio.to_thread.run_sync(call.wait, limiter=anyio.CapacityLimiter(1))
        except cancelled:
            continue


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """No exception of sqlite3 leaves this module."""
    try:
        yield
    except sqlite3.Error as exc:
        raise _translate(exc, path) from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFullError(f"{path}: {exc.strerror}") from exc
        raise UnavailableError(f"{path}: {exc.strerror}") from exc


_FULL_IO = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
_ERRORS: dict[int, tuple[type[DatastoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, "another connection held its lock longer than busy_timeout_s"),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, "another connection held its lock longer than busy_timeout_s"),
    sqlite3.SQLITE_FULL: (StoreFullError, "the disk is full"),
    sqlite3.SQLITE_CORRUPT: (CorruptDataError, "the file is damaged"),
    sqlite3.SQLITE_NOTADB: (CorruptDataError, "not a SQLite database"),
    sqlite3.SQLITE_READONLY: (StoreReadOnlyError, "the file can't be written"),
    sqlite3.SQLITE_PERM: (StoreReadOnlyError, "access is not permitted"),
    sqlite3.SQLITE_INTERRUPT: (StoreClosedError, "closed while reading"),
    sqlite3.SQLITE_TOOBIG: (BadRequestError, "a value is larger than SQLite allows"),
}


def _translate(exc: sqlite3.Error, path: Path) -> DatastoreError:
    code = getattr(exc, "sqlite_errorcode", None)  # absent on errors of the sqlite3 module itself
    if code is None:
        return StoreClosedError(f"{path}: {exc}")
    if code in _FULL_IO:
        return StoreFullError(f"{path}: the disk is full or refuses writes ({exc})")
    if code & 0xFF == sqlite3.SQLITE_CANTOPEN and not os.access(path if path.exists() else path.parent, os.W_OK):
        return StoreReadOnlyError(f"{path}: the file or its folder can't be written ({exc})")
    if code & 0xFF == sqlite3.SQLITE_ERROR and "no such table" in str(exc):
        return CorruptDataError(f"{path}: the file is damaged ({exc})")
    kind, text = _ERRORS.get(code & 0xFF, (UnavailableError, "SQLite failed"))
    return kind(f"{path}: {text} ({exc})")


_open_stores: weakref.WeakSet[SQLiteRowStore] = weakref.WeakSet()
_inherited: list[Any] = []  # never closed: that would harm the process that opened them


def _after_fork() -> None:
    for store in list(_open_stores):
        store._leave_to_parent()
    _open_stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# -------------------------------------------------------------------------------------------------- url


def from_url(url: str, **options: Any) -> EngineAdapter:
    """An adapter for ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, ``?setting=value`` as in the class.

    :raises BadArgumentError: if the path is missing, or a setting is unknown or malformed
    """
    parts = registry.split_url(url, options, settings=_SETTINGS)
    return registry.engine(SQLiteRowStore(registry.file_path(parts), **parts.settings), parts)


def _parse_inline(text: str) -> bool | str:
    return text if text == "auto" else registry.parse_bool(text)


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "synchronous": str.upper,
    "busy_timeout_s": registry.parse_float,
    "inline_reads": _parse_inline,
    "cache_mb": registry.parse_int,
    "checkpoint_mb": registry.parse_int,
    "page_size": registry.parse_int,
    "read_only": registry.parse_bool,
}
