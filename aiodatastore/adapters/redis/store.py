"""The store: what each of its methods sends, how often, and what the answers mean."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Final, Literal, cast

import msgspec
from redis.exceptions import BusyLoadingError, NoScriptError, RedisError

from aiodatastore.adapters.forking import open_stores
from aiodatastore.adapters.redis.address import TLS_SETTINGS, Address, parse_address
from aiodatastore.adapters.redis.connections import Command, Connections, Link, NotSentError, connector
from aiodatastore.adapters.redis.durability import Durability, inquire
from aiodatastore.adapters.redis.errors import is_transient, translate
from aiodatastore.adapters.redis.layout import (
    Layout,
    decode_member,
    digest,
    encode_batch,
    escape,
    unescape,
    writes,
)
from aiodatastore.adapters.redis.notices import RedisNotices
from aiodatastore.adapters.redis.scripts import (
    ALLOCATE,
    COMMIT,
    COUNT,
    INTERSECT,
    LIFETIMES,
    SCAN,
    SWEEP,
    TALLY,
    Script,
)
from aiodatastore.errors import BadArgumentError, DatastoreError, StoreClosedError, UnavailableError
from aiodatastore.rowstore import (
    TAIL_MULTI,
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
    StaleFenceError,
    Subscription,
)

__all__ = ["RedisRowStore"]

_log = logging.getLogger("aiodatastore")

MAX_JOIN: Final = 4000
"""Rows that an intersection looks at in one script: about 5 ms of the server's time."""
MAX_TALLY: Final = 2000
"""Rows counted by a tally in one script: half as long."""
MAX_SWEEP: Final = 500
"""Expired entities removed in one script."""

_APPLIED, _EXPIRED, _STALE_FENCE, _SUPERSEDED = 0, 1, 2, 3
_MORTAL = ord("x")
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.5
_LEAST_S = 0.05

_decode_verdicts = msgspec.msgpack.Decoder().decode


class _Lane:
    """One line of commits, one at a time: the server keeps the number and the outcome of the last one.

    So a batch that is sent again is not applied again, and one that arrives after its successor is not applied at
    all; and what the server keeps does not grow with the number of commits.
    """

    __slots__ = ("key", "number")

    def __init__(self, layout: Layout) -> None:
        self.key = layout.lane + os.urandom(12).hex().encode()
        self.number = 0


class RedisRowStore(RowStore):
    """Rows in one Redis or Valkey server (6.2 or later, not a cluster), under one prefix, shared by any number of
    processes and machines.

    - Durability: the server's. An acknowledged commit survives a crash of the server only with ``appendonly yes`` and
      ``appendfsync always`` (then :attr:`capabilities` has ``DURABLE``); :attr:`durability` tells, once open.
      ``wait_replicas=n``: a commit returns when n replicas have it, too, else it raises ``UnavailableError``.
    - Isolation: serializable. A batch is one script, and scripts run one at a time; every read is one moment.
    - Limits of one commit: 512 MB for a value, a million parts; the server does nothing else meanwhile (about 2 µs for
      each entity and 1 µs for each index row that changes).
    - Cost: one round trip for a read, a scan, an intersection, a count and a batch of commits.

    ``prefix``: what every key begins with (then ``|``), to share a database. ``max_connections``: exchanges at a time;
    others wait. ``timeout_s``: how long one exchange may take before its connection is given up. ``retry_s``: how long
    a call goes on trying when the server can't be reached or is loading its data, before it raises
    ``UnavailableError``; a commit is never applied twice. ``sweep_s``: seconds between looks for expired entities,
    once there are any that may expire (they are never seen anyway: who comes first removes them).

    :raises BadArgumentError: if a setting is out of range
    """

    def __init__(
        self,
        address: Address | None = None,
        *,
        prefix: str = "aiodatastore",
        max_connections: int = 10,
        timeout_s: float = 5.0,
        retry_s: float = 15.0,
        wait_replicas: int = 0,
        sweep_s: float = 5.0,
        **tls: Any,
    ) -> None:
        unknown = set(tls).difference(TLS_SETTINGS)
        if unknown:
            raise BadArgumentError(f"unknown setting {min(unknown)!r}")
        self._address = address or Address("redis")
        if tls and self._address.scheme != "rediss":
            raise BadArgumentError(f"{min(tls)} is for rediss:// URLs")
        if not prefix or "|" in prefix or not prefix.isprintable():
            raise BadArgumentError(f"prefix={prefix!r:.100}: expected printable characters but '|'")
        if max_connections < 1 or wait_replicas < 0:
            raise BadArgumentError("max_connections must be at least 1, wait_replicas at least 0")
        if timeout_s <= 0 or retry_s < 0 or sweep_s <= 0:
            raise BadArgumentError("timeout_s and sweep_s must be above 0, retry_s at least 0")
        self._layout = Layout(prefix.encode())
        self._guard: tuple[bytes, ...] = ()
        self._mark = b""
        self._tls = tls
        self._max_connections = max_connections
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._wait_replicas = wait_replicas
        self._sweep_s = sweep_s
        self._state: Literal["new", "open", "closed", "forked"] = "new"
        self._lanes: list[_Lane] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._durability: Durability | None = None
        self._notices: weakref.WeakSet[RedisNotices] = weakref.WeakSet()
        shown = self._address.shown
        self.url = f"{shown}{'&' if '?' in shown else '?'}prefix={prefix}"
        self.capabilities = _CAPABILITIES

    @classmethod
    def from_location(cls, scheme: str, location: str, *, db: int | None = None, **settings: Any) -> RedisRowStore:
        """A store for the two halves of a URL without its query, see :func:`parse_address`."""
        return cls(parse_address(scheme, location, db), **settings)

    def __repr__(self) -> str:
        return f"<RedisRowStore {self.url} {self._state}>"

    @property
    def durability(self) -> Durability | None:
        """What an acknowledgement means by the server's settings, as read at :meth:`open`; None before."""
        return self._durability

    # -------------------------------------------------------------------------------- open and close

    async def open(self) -> None:
        """Connect, and read what the server's settings mean for the data.

        :raises UnavailableError: if it can't be reached within ``retry_s``, refuses, or this is not asyncio
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UnavailableError(
                f"{self.url} needs asyncio: its driver, redis-py, does not run under trio (memory, SQLite and files do)"
            ) from None
        self._connections = self._connect()
        self._lanes = []
        self._state = "open"
        open_stores.add(self)
        try:
            await self._begin()
        except BaseException:
            await self.aclose()
            raise

    def _connect(self) -> Link:
        return Connections(connector(self._address, self._tls), self._max_connections)

    async def _begin(self) -> None:
        """What is first asked of the server."""
        await self._send([(b"GET", self._layout.version)])
        self._durability = durability = await inquire(self._ask)
        self.capabilities = _CAPABILITIES | {Capability.DURABLE} if durability.survives_kill else _CAPABILITIES
        durability.log(_log, self.url)

    async def _ask(self, commands: Sequence[Command]) -> list[Any] | None:
        """The answers to commands; None if the server does not permit them."""
        try:
            return await self._send(commands)
        except DatastoreError:
            return None

    async def aclose(self) -> None:
        if self._state != "open":
            return
        self._state = "closed"
        open_stores.discard(self)
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            await asyncio.wait([sweeper])
        await self._connections.aclose()

    def __del__(self) -> None:
        if getattr(self, "_state", "new") == "open":
            warnings.warn(f"unclosed {self!r}: await its aclose()", ResourceWarning, source=self, stacklevel=2)
            self._connections.abandon()

    def _leave_to_parent(self) -> None:
        """In a forked child: using or closing these connections would harm the parent's."""
        _inherited.append((self._connections, self._sweeper))
        self._sweeper = None
        for notices in self._notices:
            notices.abandon()
        self._state = "forked"

    def _refuse(self) -> None:
        if self._state == "forked":
            raise StoreClosedError(f"{self.url} was opened before fork(); open it in the child process itself")
        raise StoreClosedError(f"{self.url} is not open: use 'async with Datastore(…)' or await open() first")

    # ------------------------------------------------------------------------------------- exchanges

    async def _send(
        self, commands: Sequence[Command], script: Script | None = None, *, changes: bool = False
    ) -> list[Any]:
        """The answers to commands that may be sent again; with ``script`` the first is its EVALSHA.

        :raises UnavailableError: if no answer came within ``retry_s``; with ``changes`` it says what is known
        """
        give_up = time.monotonic() + self._retry_s
        pause_s = 0.0
        again = False
        known = "; nothing was written" if changes else ""
        certain = True
        while True:
            if self._state != "open":
                self._refuse()
            answered = False
            try:
                left_s = max(_LEAST_S, give_up - time.monotonic())
                timeout_s = min(self._timeout_s, left_s) if again else self._timeout_s
                again = True
                answers = await self._connections.exchange(commands, timeout_s)
                first = answers[0]
                if not isinstance(first, Exception):
                    return answers
                if isinstance(first, NoScriptError) and script is not None:
                    commands = [(b"EVAL", script.text, *commands[0][2:]), *commands[1:]]
                    again = False
                    continue
                error: BaseException = first
                answered = True
            except NotSentError as exc:
                error = exc.__cause__ or exc
            except BusyLoadingError as exc:  # an answer, though redis-py closes the connection
                error = exc
                answered = True
            except (RedisError, OSError, TimeoutError) as exc:
                error = exc
                certain = False
                if changes:
                    known = "; whether it was written is not known"
            if self._state != "open":
                self._refuse()
            if not is_transient(error):
                raise _sure(translate(error, self.url), certain) from error
            await self._connections.renew(max(_LEAST_S, give_up - time.monotonic()))
            left_s = give_up - time.monotonic()
            if left_s <= 0:
                if answered:
                    failure = translate(error, self.url)
                    raise _sure(type(failure)(f"{failure}{known}"), certain) from error
                told = f"{self.url}: no answer within {self._retry_s:g} s ({_told(error)}){known}"
                raise _sure(UnavailableError(told), certain) from error
            await asyncio.sleep(min(left_s, pause_s * random.uniform(0.5, 1.0)))
            pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    async def _run(self, script: Script, keys: Sequence[bytes], *arguments: bytes | int) -> Any:
        """The answer of a script that reads; what has expired is removed first."""
        keys = (*keys, *self._guard)
        command = (b"EVALSHA", script.sha, len(keys), *keys, *arguments)
        while True:
            [answer] = await self._send([command], script)
            if answer is not None:
                return answer
            await self.sweep()

    def _version(self, text: bytes | None) -> int:
        if text is None:
            return 0
        if text[-1] == _MORTAL:
            if self._sweeper is None and self._state == "open":
                self._sweeper = asyncio.create_task(self._sweep_now_and_then())
            return int(text[:-1])
        return int(text)

    # ----------------------------------------------------------------------------------------- reads

    async def read(self, keys: Sequence[bytes]) -> RowRead:
        layout = self._layout
        base = layout.entity
        command = [b"MGET", layout.version, layout.clock]
        command += [base + key.replace(b"\0", b"\0\xff") for key in keys]
        while True:
            [found] = await self._send([command])
            text, clock, *values = found
            if clock is not None or text is None or text[-1] != _MORTAL:
                break
            await self.sweep()
        version = self._version(text)
        from_bytes = int.from_bytes
        return RowRead(
            [None if value is None else Record(from_bytes(value[:8], "big"), value[8:]) for value in values], version
        )

    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
        space, lo, hi = span
        layout = self._layout
        of_entities = space is Space.ENTITY
        keys = (layout.version, layout.clock, layout.names if of_entities else layout.rows, layout.heads)
        bounds = [b"[" + escape(lo), b"(" + escape(hi)]
        if reverse:
            bounds.reverse()
        if of_entities:
            join = b"names" if with_entities else b"versions"
        else:
            join = b"rows" if with_entities else b""
        command = b"ZREVRANGEBYLEX" if reverse else b"ZRANGEBYLEX"
        text, members, values = await self._run(SCAN, keys, command, *bounds, limit, join, layout.entity)
        version = self._version(text)
        if not of_entities:
            return RowScan(_joined(list(map(decode_member, members)), values), version)
        from_bytes = int.from_bytes
        rows: list[Row] = []
        for member, value in zip(members, values, strict=True):
            its_version = None if value is None else from_bytes(value[:8], "big")
            payload = value[8:] if with_entities and value is not None else None
            rows.append((unescape(member), 0, its_version, payload))
        return RowScan(rows, version)

    async def count(self, span: Span) -> SpanCount:
        space, lo, hi = span
        layout = self._layout
        keys = [layout.version, layout.clock]
        keys += [layout.names] if space is Space.ENTITY else [layout.rows, layout.multi]
        text, rows, multi = await self._run(COUNT, keys, b"[" + escape(lo), b"(" + escape(hi))
        return SpanCount(rows, multi, self._version(text))

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
        layout = self._layout
        text, rests, multi, values, resume = await self._run(
            INTERSECT,
            (layout.version, layout.clock, layout.rows),
            escape(lo),
            escape(hi),
            limit,
            b"1" if reverse else b"0",
            MAX_JOIN,
            b"1" if with_entities else b"0",
            layout.entity,
            *map(escape, prefixes),
        )
        found = [
            (row, tail | TAIL_MULTI if several else tail)
            for (row, tail), several in zip(map(decode_member, rests), multi, strict=True)
        ]
        rows = _joined(found, values)
        return RowIntersection(rows, None if resume is None else unescape(resume), self._version(text))

    async def tally(self, span: Span, skip: int) -> SpanTally | None:
        if span.space is Space.ENTITY or len(span.lo) < skip:
            return None
        layout = self._layout
        keys = (layout.version, layout.clock, layout.rows)
        cut = len(escape(span.lo[:skip]))
        counts: dict[tuple[bytes, int], int] = {}
        lo, hi = b"[" + escape(span.lo), b"(" + escape(span.hi)
        first: bytes | None = None
        while True:
            text, values, numbers, resume = await self._run(TALLY, keys, lo, hi, MAX_TALLY, cut)
            if first is None:
                first = text
            elif first != text:
                return None  # changed meanwhile: not of one moment
            for value, number in zip(values, numbers, strict=True):
                escaped, _, tail = value.partition(b"\0\1")
                place = unescape(escaped), int.from_bytes(tail, "big") >> 22
                counts[place] = counts.get(place, 0) + number
            if not resume:
                break
            lo = b"(" + resume
        return SpanTally([(value, tail, number) for (value, tail), number in counts.items()], self._version(first))

    def digest(self, rows: Any, space: Space) -> bytes:
        return digest(rows, space)

    async def lifetimes(self, keys: Sequence[bytes]) -> list[float | None]:
        """One script, unless there was nothing that may expire when the store was last read."""
        if self._sweeper is None:
            return [None] * len(keys)
        layout = self._layout
        found = await self._run(LIFETIMES, (layout.expiries, layout.names), *map(escape, keys))
        return [None if ms == -1 else max(0, ms) / 1000 for ms in found]

    async def subscribe(self, listener: RowListener, interval_s: float) -> Subscription | None:
        """By SUBSCRIBE, on a connection of its own; None in a cluster."""
        if self._mark:
            return None
        make = connector(self._address, self._tls)
        notices = RedisNotices(make, self._send, self._layout.version, listener, interval_s, self._timeout_s)
        try:
            await notices.start()
        except (RedisError, OSError, TimeoutError) as exc:
            raise translate(exc, self.url) from exc
        self._notices.add(notices)
        return notices

    async def sizes(self) -> dict[str, int]:
        """Of the server: its memory; of the store: estimates of its index rows and the lists of them. Those that the
        server does not permit to ask for are left out."""
        if self._state != "open":
            self._refuse()
        layout = self._layout
        sizes: dict[str, int] = {}
        for line in ((await self._ask([(b"INFO", b"memory")])) or [b""])[0].splitlines():
            name, _, value = line.partition(b":")
            if name == b"used_memory":
                sizes["server_bytes"] = int(value)
        for label, key in (("index_bytes", layout.rows), ("key_bytes", layout.names), ("row_list_bytes", layout.heads)):
            size = await self._ask([(b"MEMORY", b"USAGE", key)])
            if size is not None and size[0] is not None:
                sizes[label] = size[0]
        return sizes

    # ---------------------------------------------------------------------------------------- writes

    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        if self._state != "open":
            self._refuse()
        if not batch.commits:
            return []
        names, arguments, flags = encode_batch(batch, self._layout)
        changes = any(map(writes, batch.commits))
        lane = self._lanes.pop() if self._lanes else _Lane(self._layout)
        try:
            number = b""
            if changes:
                lane.number += 1
                number = lane.number.to_bytes(8, "big")
            keys = (*self._layout.common, lane.key, *names, *self._guard)
            fence, *rest = arguments
            cut = len(self._layout.entity)
            command: Command = (
                b"EVALSHA",
                COMMIT.sha,
                len(keys),
                *keys,
                cut,
                fence,
                number,
                flags + self._mark,
                *rest,
            )
            verdicts = await self._apply(command, changes)
        finally:
            self._lanes.append(lane)
        if b"x" in flags:
            self._version(b"0x")  # as the next read will find
        return [_outcome(verdict, names, cut) for verdict in _decode_verdicts(verdicts)]

    async def _apply(self, command: Command, changes: bool) -> bytes:
        commands: list[Command] = [command]
        if changes and self._wait_replicas:
            wait_ms = round(1000 * self._timeout_s / 2)
            commands.append((b"WAIT", self._wait_replicas, wait_ms))
        while True:
            (code, *verdicts), *waited = await self._send(commands, COMMIT, changes=changes)
            if code == _EXPIRED:
                await self.sweep()
                continue
            if code == _STALE_FENCE:
                raise StaleFenceError
            if code == _SUPERSEDED:
                raise UnavailableError(f"{self.url}: a later commit of this connection was applied already")
            if waited and (not isinstance(waited[0], int) or waited[0] < self._wait_replicas):
                have = waited[0] if isinstance(waited[0], int) else 0
                raise UnavailableError(
                    f"{self.url}: the commit is written, but {have} instead of wait_replicas={self._wait_replicas} "
                    f"replicas confirmed it within {self._timeout_s / 2:g} s"
                )
            return cast(bytes, verdicts[0])

    async def allocate(self, sequence: bytes, size: int, *, at_least: int = 1) -> int:
        layout = self._layout
        keys = (layout.sequences, *((layout.counters, *self._guard) if self._mark else ()))
        command: Command = (b"EVALSHA", ALLOCATE.sha, len(keys), *keys, sequence, size, at_least)
        [first] = await self._send([command], ALLOCATE)
        if first is None:
            raise OverflowError("the sequence ends at 2**63")
        return int(first)

    # ---------------------------------------------------------------------------------------- expiry

    async def sweep(self) -> int:
        """Remove every entity whose time has come, with its index rows; how many there were.

        A commit of its own for each 500: the version grows, and transactions that saw them notice.
        """
        layout = self._layout
        keys = (*layout.common, *self._guard)
        command: Command = (b"EVALSHA", SWEEP.sha, len(keys), *keys, layout.entity, MAX_SWEEP, self._mark)
        total = 0
        removed: int
        while True:
            [(removed, more)] = await self._send([command], SWEEP)
            total += removed
            if not more:
                return total

    async def _sweep_now_and_then(self) -> None:
        layout = self._layout
        while True:
            await asyncio.sleep(self._sweep_s * random.uniform(0.8, 1.2))
            try:
                [(text, clock)] = await self._send([(b"MGET", layout.version, layout.clock)])
                if text is not None and text[-1] == _MORTAL and clock is None:
                    await self.sweep()
            except StoreClosedError:
                return
            except DatastoreError as exc:
                _log.info("expired entities were not swept: %s", exc)


_CAPABILITIES: Final = frozenset({Capability.MULTI_PROCESS, Capability.TTL})


def _joined(rows: Sequence[tuple[bytes, int]], values: Sequence[bytes | None]) -> list[Row]:
    if not values:
        return [(row, tail, None, None) for row, tail in rows]
    from_bytes = int.from_bytes
    return [
        (row, tail, None, None) if value is None else (row, tail, from_bytes(value[:8], "big"), value[8:])
        for (row, tail), value in zip(rows, values, strict=True)
    ]


def _outcome(verdict: Any, names: Sequence[bytes], cut: int) -> RowOutcome:
    if isinstance(verdict, int):
        return RowOutcome(verdict)
    stale, wrong = verdict
    conflicts = [(unescape(names[wrong[n] - 1][cut:]), wrong[n + 1]) for n in range(0, len(wrong), 2)]
    return RowOutcome(None, conflicts, stale)


def _sure(error: DatastoreError, certain: bool) -> DatastoreError:
    """An error that says whether it is certain that nothing was written."""
    if isinstance(error, UnavailableError):
        error.nothing_written = certain
    return error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


_inherited: list[Any] = []  # never closed: that would harm the process that opened them
