"""The store: what is asked of the server, and what happens when it does not answer."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import ssl as ssl_module
import struct
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, Final, Literal, TypeVar
from urllib.parse import parse_qs, urlencode

import asyncpg

from aiodatastore.adapters.forking import open_stores
from aiodatastore.adapters.postgres import errors
from aiodatastore.adapters.postgres.batches import check_arguments, has_long, outcomes, write_arguments, writes
from aiodatastore.adapters.postgres.joining import Line
from aiodatastore.adapters.postgres.loading import LOADED_PUTS, load
from aiodatastore.adapters.postgres.notices import PostgresNotices
from aiodatastore.adapters.postgres.opening import prepare
from aiodatastore.adapters.postgres.pool import Connection, LentConnections, OwnConnections
from aiodatastore.adapters.postgres.preparing import allowed, prepare_commit, prepared_commits, resolve_commit
from aiodatastore.adapters.postgres.statements import SESSION, Statements, statements
from aiodatastore.adapters.postgres.watching import Watch
from aiodatastore.errors import (
    BadArgumentError,
    DatastoreError,
    StoreClosedError,
    StoreReadOnlyError,
    UnavailableError,
)
from aiodatastore.rowstore import (
    Capability,
    Record,
    Row,
    RowBatch,
    RowIntersection,
    RowListener,
    RowOutcome,
    RowRead,
    RowScan,
    RowStore,
    Space,
    Span,
    SpanCount,
    SpanTally,
    Subscription,
)

__all__ = ["PostgresRowStore"]

T = TypeVar("T")
Work = Callable[[Connection], Awaitable[T]]

_LENGTH: Final = struct.Struct(">i")
_VERSION: Final = struct.Struct(">q")
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 1.0
_POOLED_RETRY_S: Final = 20.0
"""pgbouncer that has lost its server does not look for it again before ``server_login_retry``, 15 s by default."""
_REPLICA_REST_S: Final = 5.0
"""For so long a replica that could not be reached, or lacks the tables yet, is left alone, and the primary answers."""
_LONG_NOTED: Final = -2
_SESSION_ATTRS: Final = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")


ScanKind = tuple[Space, bool, bool]
"""The space, whether entities are joined, and whether the scan goes backward."""

LINES: Final = 3
"""Statements that scan at the same time, for each kind of scan; what comes meanwhile goes together in the next."""
JOINED_ROWS: Final = 256
"""A scan of more rows goes alone."""
_MAX_ROWS: Final = 4096


ScanLine = Line[tuple[Span, int], RowScan]
_load = attrgetter("load")
_first = itemgetter(0)


class _LongRowsError(Exception):
    """The store has long rows: ask again with the statements for those."""


class _Slot:
    """Whose last batch the server remembers; one commit at a time uses it."""

    __slots__ = ("name", "number")

    def __init__(self) -> None:
        self.name = os.urandom(16)
        self.number = 0


class PostgresRowStore(RowStore):
    """Rows in one schema of a PostgreSQL database (14 to 18), shared by any number of processes and machines.

    - Durability: the server's. With ``synchronous_commit`` at its default an acknowledged commit survives a crash of
      the process, of the server and of the machine.
    - Isolation: serializable, among all that use the schema. A batch is one call of a function that takes the store's
      writing lock, checks versions and spans, and applies; every read is one statement, and sees one moment.
    - Limits of one commit: 1 GB in all. One batch writes at a time: what is committed side by side in a process
      goes in one batch, processes take turns.
    - Prepared commits (for transactions over several stores): where the server's ``max_prepared_transactions`` is more
      than 0. One is prepared at a time; other commits wait until it is resolved, reads do not. They survive what
      commits survive.
    - Cost: one round trip for a read of any number of keys, a page of a query, a merge join, a count, a batch of
      commits.

    Give either ``dsn`` (``postgresql://user:password@host:port/database``, several hosts with commas) or ``pool``, an
    asyncpg pool, which is left open. ``schema`` is made if it is missing. ``max_size`` connections at most,
    ``min_size`` of them at once. ``retry_s``: how long a call goes on when the server can't be reached,
    15 if None, and 20 behind a pooler.
    ``command_timeout_s``: an answer that takes longer counts as a lost connection. ``replica``: the DSN of a server
    that follows this one, for reads that may be late. ``read_only`` refuses writes and makes nothing. ``ssl`` as
    asyncpg takes it.

    :raises BadArgumentError: if a setting is out of range
    """

    capabilities = frozenset({Capability.DURABLE, Capability.MULTI_PROCESS})

    def __init__(
        self,
        dsn: str | None = None,
        *,
        pool: asyncpg.Pool[Any] | None = None,
        schema: str = "aiodatastore",
        min_size: int = 1,
        max_size: int = 10,
        retry_s: float | None = None,
        command_timeout_s: float = 15.0,
        connect_timeout_s: float = 10.0,
        statement_cache_size: int | None = None,
        pooler: Literal["none", "transaction"] = "none",
        target_session_attrs: str = "primary",
        replica: str | None = None,
        read_only: bool = False,
        ssl: ssl_module.SSLContext | bool | str | None = None,
    ) -> None:
        if (dsn is None) == (pool is None):
            raise BadArgumentError("give either a dsn or a pool")
        if not schema or "\0" in schema or len(schema.encode()) > 63:
            raise BadArgumentError("schema: expected a name of 1 to 63 bytes")
        if not 0 <= min_size <= max_size or max_size < 1:
            raise BadArgumentError(
                f"min_size={min_size}, max_size={max_size}: expected 0 <= min_size <= max_size, 1 or more"
            )
        if retry_s is None:
            retry_s = 15.0 if pooler == "none" else _POOLED_RETRY_S
        if retry_s < 0 or command_timeout_s <= 0 or connect_timeout_s <= 0 or (statement_cache_size or 0) < 0:
            raise BadArgumentError("retry_s and statement_cache_size must be at least 0, the time-outs more than 0")
        if statement_cache_size is None:
            statement_cache_size = 100 if pooler == "none" else 0
        if pooler not in ("none", "transaction"):
            raise BadArgumentError(f"pooler={pooler!r}: expected 'none' or 'transaction'")
        if target_session_attrs not in _SESSION_ATTRS:
            raise BadArgumentError(
                f"target_session_attrs={target_session_attrs!r:.40}: expected one of {', '.join(_SESSION_ATTRS)}"
            )
        _check_ports(dsn or "")
        self._dsn = dsn
        self._given = pool
        self._schema = schema
        self._min_size, self._max_size = min_size, max_size
        self._retry_s = retry_s
        self._timeout_s = command_timeout_s
        self._read_only = read_only
        self._pooled = pooler != "none"
        self._connect_options: dict[str, Any] = {
            "timeout": min(connect_timeout_s, retry_s or connect_timeout_s),
            "statement_cache_size": statement_cache_size,
            "max_cached_statement_lifetime": 0,
            "max_cacheable_statement_size": 0,
        }
        if pooler == "none":
            self._connect_options["server_settings"] = {"application_name": "aiodatastore", **SESSION}
        if ssl is not None:
            self._connect_options["ssl"] = ssl
        if "target_session_attrs=" not in (dsn or ""):
            self._connect_options["target_session_attrs"] = target_session_attrs
        self._replica = (
            PostgresRowStore(
                replica,
                schema=schema,
                min_size=0,
                max_size=max_size,
                retry_s=0,
                command_timeout_s=command_timeout_s,
                connect_timeout_s=connect_timeout_s,
                statement_cache_size=statement_cache_size,
                pooler=pooler,
                target_session_attrs="any",
                read_only=True,
                ssl=ssl,
            )
            if replica is not None
            else None
        )
        self._primary: PostgresRowStore | None = None
        self._primary_until = 0.0
        self._state: Literal["new", "open", "closed", "forked"] = "new"
        self._pool: OwnConnections | LentConnections | None = None
        self._statements: Statements
        self._quoted = ""
        self._is_long = False
        self._lines: dict[ScanKind, list[ScanLine]] = {}
        self._watch = Watch(command_timeout_s)
        self._slots: list[_Slot] = []
        self._writing = 0
        self._idle: asyncio.Event | None = None
        self._notices: weakref.WeakSet[PostgresNotices] = weakref.WeakSet()
        self.url = shown_url(dsn, schema)

    def __repr__(self) -> str:
        return f"<PostgresRowStore {self.url} {self._state}>"

    # -------------------------------------------------------------------------------- open and close

    async def open(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UnavailableError(f"{self.url}: asyncpg needs asyncio; this runs under another event loop") from None
        self._is_long = False
        self._lines = {}
        self._watch = Watch(self._timeout_s)
        self._slots = []
        self._writing = 0
        self._idle = None
        self._pool = self._own_connections() if self._given is None else LentConnections(self._given)
        self._state = "open"
        try:
            self._quoted = await self._run(self._prepare)
            self._statements = statements(self._quoted, False)
            await self._pool.fill()
        except ValueError:  # asyncpg's, whose words may have the password
            await self.aclose()
            raise BadArgumentError(
                f"{self.url}: this URL can't be read: expected postgresql://user:password@host:port/database, with @, "
                ": and / in names and passwords written as %40, %3A and %2F"
            ) from None
        except BaseException:
            await self.aclose()
            raise
        open_stores.add(self)
        if self._replica is not None:
            self._replica._open_beside(self)

    def _own_connections(self) -> OwnConnections:
        connect = partial(asyncpg.connect, self._dsn, **self._connect_options)
        return OwnConnections(connect, min_size=self._min_size, max_size=self._max_size)

    def _open_beside(self, primary: PostgresRowStore) -> None:
        """As the replica of an open store: it may be out of reach now, and has the same schema."""
        self._pool = self._own_connections()
        self._primary = primary
        self._quoted, self._statements, self._is_long = primary._quoted, primary._statements, primary._is_long
        self._state = "open"
        open_stores.add(self)

    async def _prepare(self, connection: Connection) -> str:
        quoted = await prepare(connection, self._schema, self.url, read_only=self._read_only)
        if not self._read_only and await allowed(connection):
            self.capabilities = type(self).capabilities | {Capability.TWO_PHASE}
        return quoted

    async def aclose(self) -> None:
        if self._state != "open":
            return
        self._state = "closed"
        open_stores.discard(self)
        while self._writing:
            if self._idle is None:
                self._idle = asyncio.Event()
            await self._idle.wait()
        if self._pool is not None:
            await self._pool.aclose()
        self._watch.stop()
        for lines in self._lines.values():
            for line in lines:
                await line.wait_idle()
        if self._replica is not None:
            await self._replica.aclose()

    def __del__(self) -> None:
        if getattr(self, "_state", "new") == "open" and self._given is None:
            warnings.warn(f"unclosed {self!r}: await its aclose()", ResourceWarning, source=self, stacklevel=2)
            try:
                if self._pool is not None:
                    self._pool.terminate()
            except RuntimeError:
                pass  # its event loop is closed

    def _leave_to_parent(self) -> None:
        """In a forked child: using or closing these connections would harm the parent's."""
        self._state = "forked"
        for notices in self._notices:
            notices.abandon()
        if self._pool is not None:
            self._pool.abandon()

    def _refuse(self) -> StoreClosedError:
        if self._state == "forked":
            return StoreClosedError(f"{self.url} was opened before fork(); open it in the child process itself")
        return StoreClosedError(f"{self.url} is not open: use 'async with Datastore(…)' or await open() first")

    def _is_closed(self) -> bool:
        return self._state != "open"

    def replica(self) -> RowStore | None:
        return self._replica

    async def subscribe(self, listener: RowListener, interval_s: float) -> Subscription | None:
        """By LISTEN, on a connection of its own; None where that can't be: with ``pool``, ``pooler`` or ``read_only``,
        and for roles that may not write."""
        if self._given is not None or self._read_only or self._pooled:
            return None
        connect = partial(asyncpg.connect, self._dsn, **self._connect_options)
        notices = PostgresNotices(connect, self._quoted, listener, interval_s, self._timeout_s)

        async def start(_: Connection) -> PostgresNotices | None:
            try:
                await notices.start()
            except asyncpg.InsufficientPrivilegeError:
                return None
            self._notices.add(notices)
            return notices

        return await self._run(start)

    # ----------------------------------------------------------------------------------------- reads

    async def read(self, keys: Sequence[bytes]) -> RowRead:
        if len(keys) == 1:
            return await self._run(lambda connection: self._get(connection, keys[0]), watched=True)
        return await self._run(lambda connection: self._read(connection, keys), watched=True)

    async def _get(self, connection: Connection, key: bytes) -> RowRead:
        version, own, payload = await connection.fetchrow(self._statements.get, key)
        if version == _LONG_NOTED:
            raise _LongRowsError
        return RowRead([None if own is None else Record(own, payload)], version)

    async def _read(self, connection: Connection, keys: Sequence[bytes]) -> RowRead:
        found: list[Record | None] = [None] * (len(keys) + 1)
        for place, version, payload in await connection.fetch(self._statements.read, keys):
            found[place] = Record(version, payload)
        store = found.pop(0)
        assert store is not None
        if store.version == _LONG_NOTED:
            raise _LongRowsError
        return RowRead(found, store.version)

    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
        if self._state != "open":
            raise self._refuse()
        kind = (span.space, with_entities, reverse)
        if limit > JOINED_ROWS:
            return await self._scan_alone(kind, (span, limit))
        lines = self._lines.get(kind)
        if lines is None:
            alone, together = partial(self._scan_alone, kind), partial(self._scan_together, kind)
            lines = self._lines[kind] = [Line(alone, together, max_weight=_MAX_ROWS) for _ in range(LINES)]
        return await min(lines, key=_load).call((span, limit), limit)

    async def _scan_alone(self, kind: ScanKind, request: tuple[Span, int]) -> RowScan:
        space, with_entities, reverse = kind
        (_, lo, hi), limit = request

        async def work(connection: Connection) -> RowScan:
            texts = self._statements
            if space is Space.ENTITY:
                both = texts.scan_entities if with_entities else texts.scan_keys
            else:
                both = texts.scan_joined if with_entities else texts.scan_rows
            rows: list[Row] = list(map(tuple, await connection.fetch(both[reverse], lo, hi, limit)))
            return RowScan(rows, _take_version(rows))

        return await self._run(work, watched=True)

    async def _scan_together(self, kind: ScanKind, requests: list[tuple[Span, int]]) -> list[RowScan]:
        """Scans that came together, in one round trip."""
        space, with_entities, reverse = kind
        los, his = [span.lo for span, _ in requests], [span.hi for span, _ in requests]
        limits = [limit for _, limit in requests]

        async def work(connection: Connection) -> list[RowScan]:
            texts = self._statements
            if space is Space.ENTITY:
                both = texts.many_entities if with_entities else texts.many_keys
            else:
                both = texts.many_joined if with_entities else texts.many_rows
            parts: list[list[Row]] = [[] for _ in requests]
            store_version = 0
            for place, row, tail, version, payload in await connection.fetch(both[reverse], los, his, limits):
                if place:
                    parts[place - 1].append((row, tail, version, payload))
                else:
                    store_version = version
            if store_version == _LONG_NOTED:
                raise _LongRowsError
            for part in parts:
                part.sort(key=_first, reverse=reverse)  # they mostly are; nothing but an ORDER BY would promise it
            return [RowScan(part, store_version) for part in parts]

        return await self._run(work, watched=True)

    async def count(self, span: Span) -> SpanCount:
        async def work(connection: Connection) -> SpanCount:
            text = self._statements.count[span.space]
            rows, multi, version = await connection.fetchrow(text, span.lo, span.hi, timeout=self._timeout_s)
            if version == _LONG_NOTED:
                raise _LongRowsError
            return SpanCount(rows, multi, version)

        return await self._run(work)

    async def tally(self, span: Span, skip: int) -> SpanTally:
        async def work(connection: Connection) -> SpanTally:
            text = self._statements.tally
            values: list[Any] = []
            version = 0
            for value, bits, number in await connection.fetch(text, span.lo, span.hi, skip, timeout=self._timeout_s):
                if value is None:
                    version = number
                else:
                    values.append((value, bits, number))
            if version == _LONG_NOTED:
                raise _LongRowsError
            return SpanTally(values, version)

        return await self._run(work)

    async def intersect(
        self,
        prefixes: Sequence[bytes],
        lo: bytes,
        hi: bytes,
        limit: int,
        *,
        reverse: bool = False,
        with_entities: bool = False,
    ) -> RowIntersection:
        async def work(connection: Connection) -> RowIntersection:
            text = self._statements.intersect_joined if with_entities else self._statements.intersect
            found = await connection.fetch(text, prefixes, lo, hi, limit, reverse, timeout=self._timeout_s)
            version, resume = found[0][0], found[0][1]
            if version == _LONG_NOTED:
                raise _LongRowsError
            return RowIntersection(
                [(row[2], row[3], row[4], row[5]) for row in found if row[2] is not None], resume, version
            )

        return await self._run(work)

    async def sizes(self) -> dict[str, int]:
        async def work(connection: Connection) -> dict[str, int]:
            entities, rows = await connection.fetchrow(self._statements.sizes, timeout=self._timeout_s)
            return {"entity_bytes": entities, "index_bytes": rows}

        return await self._run(work)

    # ---------------------------------------------------------------------------------------- writes

    def digest(self, rows: Iterable[tuple[bytes, int | None]], space: Space) -> bytes:
        """SHA-256, as the server computes it: of each row its length and bytes, of an entity its version too."""
        parts: list[bytes] = []
        length = _LENGTH.pack
        if space is Space.ENTITY:
            for row, version in rows:
                parts += (length(len(row)), row, _VERSION.pack(version or 0))
        else:
            for row, _ in rows:
                parts += (length(len(row)), row)
        return hashlib.sha256(b"".join(parts)).digest()

    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        if self._state != "open":
            raise self._refuse()
        if not batch.commits and batch.fence is None:
            return []
        if has_long(batch):
            self._note_long()
        if not any(writes(commit) or commit.after_prepared for commit in batch.commits):
            arguments = check_arguments(batch)

            async def verify(connection: Connection) -> list[RowOutcome]:
                answer = await connection.fetchrow(self._statements.verify, *arguments, timeout=self._timeout_s)
                if answer[0] == _LONG_NOTED:
                    raise _LongRowsError
                return outcomes(batch, answer)

            return await self._run(verify)
        if self._read_only:
            raise StoreReadOnlyError(f"{self.url} was opened with read_only=True")
        slot = self._slots.pop() if self._slots else _Slot()
        slot.number += 1
        self._writing += 1
        try:
            return await self._write(batch, slot)
        finally:
            self._slots.append(slot)
            self._writing -= 1
            if not self._writing and self._idle is not None:
                self._idle.set()
                self._idle = None

    async def _write(self, batch: RowBatch, slot: _Slot) -> list[RowOutcome]:
        again = False
        loads = not self._is_long and sum(len(commit.puts) for commit in batch.commits) >= LOADED_PUTS
        arguments: list[Any] = []
        plain = not self._is_long

        async def work(connection: Connection) -> list[RowOutcome]:
            nonlocal again, arguments, plain
            was_again, again = again, True
            if loads and not was_again:
                loaded = await load(
                    connection, self._statements, self._schema, slot.name, slot.number, batch, self._timeout_s
                )
                if loaded is not None:
                    return outcomes(batch, loaded)
            if not arguments or (plain and self._is_long):
                plain, arguments = write_arguments(slot.name, slot.number, batch, plain=not self._is_long)
            arguments[2] = was_again
            try:
                text = self._statements.write_plain if plain else self._statements.write
                answer = await connection.fetchrow(text, *arguments, timeout=self._timeout_s)
            except asyncpg.UniqueViolationError:
                if not plain:
                    raise
                # An index row that no entity tells of, which nothing but damage explains: it is replaced.
                plain, arguments = write_arguments(slot.name, slot.number, batch, plain=False)
                arguments[2] = was_again
                answer = await connection.fetchrow(self._statements.write, *arguments, timeout=self._timeout_s)
            if answer[0] == _LONG_NOTED:
                raise _LongRowsError
            return outcomes(batch, answer)

        return await self._run(work, writes=True)

    async def prepare(self, batch: RowBatch, name: str) -> RowOutcome:
        if self._read_only:
            raise StoreReadOnlyError(f"{self.url} was opened with read_only=True")
        if has_long(batch):
            self._note_long()
        slot = os.urandom(16)

        async def work(connection: Connection) -> RowOutcome:
            outcome = await prepare_commit(
                connection,
                self._statements,
                self._quoted,
                slot,
                batch,
                name,
                long=self._is_long,
                timeout_s=self._timeout_s,
            )
            if outcome is None:
                raise _LongRowsError
            return outcome

        return await self._run(work, writes=True)

    async def resolve(self, name: str, *, commit: bool) -> int | None:
        async def work(connection: Connection) -> int | None:
            return await resolve_commit(connection, self._quoted, name, commit=commit, timeout_s=self._timeout_s)

        return await self._run(work, writes=True)

    async def prepared(self) -> list[tuple[str, float]]:
        return await self._run(lambda connection: prepared_commits(connection, self._quoted))

    async def allocate(self, sequence: bytes, size: int, *, at_least: int = 1) -> int:
        if self._read_only:
            raise StoreReadOnlyError(f"{self.url} was opened with read_only=True")

        async def work(connection: Connection) -> int:
            try:
                first = await connection.fetchval(
                    self._statements.allocate, sequence, size, at_least, timeout=self._timeout_s
                )
            except asyncpg.NumericValueOutOfRangeError as exc:
                raise OverflowError("the sequence has come to its end") from exc
            return int(first)

        return await self._run(work)

    # -------------------------------------------------------------------------------------- attempts

    def _note_long(self) -> None:
        if not self._is_long:
            self._is_long = True
            self._statements = statements(self._quoted, True)

    async def _run(self, work: Work[T], *, writes: bool = False, watched: bool = False) -> T:
        """``work`` on a connection, again on another one while that may help and ``retry_s`` have not passed.

        ``watched``: it is one statement that reads, and sets no time-out of its own.
        """
        if self._state != "open":
            raise self._refuse()
        if self._primary is not None and time.monotonic() < self._primary_until:
            return await self._primary._run(work, watched=watched)
        give_up = 0.0
        pause = 0.0
        unknown = False
        watch = self._watch
        while True:
            pool = self._pool
            assert pool is not None
            connection = None
            try:
                connection = await pool.take()
                if watched:
                    watch.begin(connection)
                    try:
                        answer = await work(connection)
                    finally:
                        watch.end(connection)
                else:
                    answer = await work(connection)
            except _LongRowsError:
                assert connection is not None
                await pool.give_back(connection)
                self._note_long()
                continue
            except Exception as exc:
                failure: Exception = exc
            except BaseException:
                if connection is not None:
                    await pool.give_back(connection, cancelled=True)
                raise
            else:
                await pool.give_back(connection)
                return answer
            lost = errors.is_lost(failure)
            if connection is not None:
                if errors.is_standby(failure):
                    lost = await _in_recovery(connection)
                    if lost:
                        pool.drop_idle()
                elif lost:
                    unknown = unknown or writes
                await pool.give_back(connection, broken=lost)
            if isinstance(failure, DatastoreError) or not isinstance(failure, _DRIVER):
                raise failure
            if self._is_closed() and not writes:  # meanwhile
                raise self._refuse() from failure
            if self._primary is not None and errors.is_missing(failure):  # it was made, and is still on its way here
                return await self._ask_primary(work, watched)
            if not lost and not errors.is_passing(failure):
                refused = errors.translate(failure, self.url)
                if isinstance(refused, UnavailableError):
                    refused.nothing_written = writes and not unknown
                raise refused from failure
            now = time.monotonic()
            give_up = give_up or now + self._retry_s
            left = give_up - now
            if left <= 0:
                if self._primary is not None:
                    return await self._ask_primary(work, watched)
                raise self._unreachable(failure, writes, unknown) from failure
            if pause:
                await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(_LONGEST_PAUSE_S, pause * 2 or _FIRST_PAUSE_S)

    async def _ask_primary(self, work: Work[T], watched: bool) -> T:
        """For this replica, which is left alone for a while."""
        assert self._primary is not None
        self._primary_until = time.monotonic() + _REPLICA_REST_S
        return await self._primary._run(work, watched=watched)

    def _unreachable(self, failure: Exception, writes: bool, unknown: bool) -> UnavailableError:
        reason = str(failure) or type(failure).__name__
        fate = ""
        if writes:
            fate = "; it is not known whether the commit took effect" if unknown else "; nothing was written"
        error = UnavailableError(f"{self.url}: no answer in {self._retry_s:g} s ({reason}){fate}")
        error.nothing_written = writes and not unknown
        return error


_DRIVER = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)


async def _in_recovery(connection: Connection) -> bool:
    """Whether the server follows another one; then what was refused belongs there."""
    try:
        return bool(await connection.fetchval("SELECT pg_is_in_recovery()", timeout=5))
    except _DRIVER:
        return True


def _take_version(rows: list[Row]) -> int:
    """The store's version, which stands in the one row without a name; taken out."""
    for place in (0, -1):
        if rows[place][0] is None:
            version = rows.pop(place)[2]
            if version == _LONG_NOTED:
                raise _LongRowsError
            assert version is not None
            return version
    raise AssertionError("no version among the rows")


_PORT: Final = re.compile(r":([^\]:]+)$")


def _check_ports(dsn: str) -> None:
    """:raises BadArgumentError: if a port can't be one; what was given is not shown: it may be part of a password"""
    location, _, settings = dsn.partition("://")[2].partition("?")
    hosts = location.partition("/")[0].rpartition("@")[2].split(",")
    ports = [found[1] for host in hosts if (found := _PORT.search(host))]
    for value in parse_qs(settings).get("port", ()):
        ports += value.split(",")
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports):
        raise BadArgumentError("the URL of a PostgreSQL store can't be read: a port is a number from 1 to 65535")


def shown_url(dsn: str | None, schema: str) -> str:
    """A store's URL without its password."""
    location = (dsn or "postgresql://").partition("://")[2].partition("?")[0]
    user, at, place = location.rpartition("@")
    return f"postgresql://{user.partition(':')[0]}{at}{place}?{urlencode({'schema': schema})}"
