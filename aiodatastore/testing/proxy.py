"""A TCP proxy that cuts, delays and half-closes connections at a chosen message, for PostgreSQL and Redis.

It runs in a thread of its own, so that what is tested may block its event loop or be another process::

    with Proxy(server.port, split=postgres_messages) as proxy:
        ...                                                     # open the store through proxy.port
        proxy.watch()
        await ds.put(entity)                                    # a dry run: how many messages go each way?
        steps = proxy.seen[Direction.TO_CLIENT]
        proxy.arm(Fault(Direction.TO_CLIENT, at=0, action=Action.CUT))
        await ds.put(entity)                                    # loses its first answer

Messages are counted over all connections since :meth:`Proxy.watch` or :meth:`Proxy.arm`, from 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

__all__ = ["Action", "Direction", "Fault", "Proxy", "chunks", "postgres_messages", "redis_messages"]


class Direction(enum.StrEnum):
    """Which way a message goes."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class Action(enum.StrEnum):
    """What happens at the message; it is not forwarded unless said."""

    CUT = "cut"  # both sides find the connection reset
    CUT_INSIDE = "cut inside"  # the same, after half of the message was forwarded
    CUT_AFTER = "cut after"  # the same, after all of it was forwarded
    HALF_CLOSE = "half-close"  # its receiver finds the end of the stream; the other way stays open
    DELAY = "delay"  # it and what follows is forwarded after a while
    STALL = "stall"  # nothing is forwarded any more, either way, and nothing closed
    LATE = "late"  # to the server only: the client finds the connection reset, the server gets it after a while


@dataclass(frozen=True, slots=True)
class Fault:
    """At the ``at``-th message of a direction (from 0): once, or ``times`` times, counting anew after each.

    ``delay_s`` is how long ``DELAY`` and ``LATE`` hold it back; None: until :meth:`Proxy.release`.
    """

    direction: Direction
    at: int
    action: Action
    delay_s: float | None = 0.05
    times: int = 1

    def __str__(self) -> str:
        return f"{self.action} at message {self.at} {self.direction}"


# ------------------------------------------------------------------------------------- protocols' messages

Splitter = Callable[[Direction, bytearray, dict[str, Any]], int | None]
"""The length of the first message in a buffer, or None if it is not whole yet; the dict is the connection's."""


def chunks(direction: Direction, buffer: bytearray, state: dict[str, Any]) -> int | None:
    """Whatever arrives at one go, for any protocol."""
    return len(buffer) or None


def postgres_messages(direction: Direction, buffer: bytearray, state: dict[str, Any]) -> int | None:
    """Messages of PostgreSQL's protocol 3, without TLS: https://www.postgresql.org/docs/current/protocol.html"""
    starting = direction is Direction.TO_SERVER and not state.get("started")
    if direction is Direction.TO_CLIENT and state.get("asked") and buffer:
        state["asked"] = False
        return 1  # yes or no to TLS
    if len(buffer) < (8 if starting else 5):
        return None
    length: int = int.from_bytes(buffer[0:4] if starting else buffer[1:5], "big") + (not starting)
    if len(buffer) < length:
        return None
    if starting:
        asks = int.from_bytes(buffer[4:8], "big") in (80877103, 80877104)  # for TLS, for GSSAPI
        state["asked" if asks else "started"] = True
    return length


def redis_messages(direction: Direction, buffer: bytearray, state: dict[str, Any]) -> int | None:
    """Commands and replies of RESP 2 and 3: https://redis.io/docs/latest/develop/reference/protocol-spec/"""
    return _resp_end(buffer, 0)


def _resp_end(buffer: bytearray, start: int) -> int | None:
    line = buffer.find(b"\r\n", start)
    if line < 0:
        return None
    kind, end = buffer[start : start + 1], line + 2
    if kind in b"$=!":
        length = int(buffer[start + 1 : line])
        end += length + 2 if length >= 0 else 0
        return end if end <= len(buffer) else None
    if kind in b"*~>%|":
        for _ in range(max(0, int(buffer[start + 1 : line])) * (2 if kind in b"%|" else 1) + (kind == b"|")):
            inner = _resp_end(buffer, end)
            if inner is None:
                return None
            end = inner
    return end


# ----------------------------------------------------------------------------------------------- the proxy


class _Link:
    """One connection of a client and the server's that stands behind it."""

    def __init__(self, proxy: Proxy, client: _Stream, server: _Stream) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.state: dict[str, Any] = {}
        self.stalled = False
        self.detached = False

    async def run(self) -> None:
        pumps = [
            asyncio.ensure_future(self.pump(Direction.TO_SERVER, self.client, self.server)),
            asyncio.ensure_future(self.pump(Direction.TO_CLIENT, self.server, self.client)),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            self.cut()  # before anything is awaited: this, too, may be cancelled
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def cut(self) -> None:
        """Reset both sides."""
        self.client.reset()
        self.server.reset()

    async def pump(self, direction: Direction, source: _Stream, target: _Stream) -> None:
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while data := await source.reader.read(1 << 16):
                buffer += data
                while (length := self.proxy.split(direction, buffer, self.state)) is not None:
                    message = bytes(buffer[:length])
                    del buffer[:length]
                    await self.forward(direction, message, target)
            if self.detached and direction is Direction.TO_SERVER:
                await asyncio.sleep(_GRACE_S)  # let the server work on what came late
            target.end()
            return
        if not self.detached:  # a reset on one side is a reset on the other
            self.cut()

    async def forward(self, direction: Direction, message: bytes, target: _Stream) -> None:
        fault = self.proxy._count(direction)
        if self.stalled:
            await _forever()
        match fault and fault.action:
            case Action.CUT:
                self.cut()
                raise ConnectionResetError
            case Action.CUT_INSIDE:
                await target.send(message[: len(message) // 2])
                await asyncio.sleep(0.005)  # a reset would overtake what is in the socket's buffer
                self.cut()
                raise ConnectionResetError
            case Action.CUT_AFTER:
                await target.send(message)
                await asyncio.sleep(0.005)
                self.cut()
                raise ConnectionResetError
            case Action.HALF_CLOSE:
                target.end()
            case Action.STALL:
                self.stalled = True
                await _forever()
            case Action.DELAY:
                await self.proxy._hold(fault)
            case Action.LATE:
                self.detached = True
                self.client.reset()
                await self.proxy._hold(fault)
        await target.send(message)


async def _turns() -> None:
    """Some turns of the loop."""
    for _ in range(10):
        await asyncio.sleep(0)


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


class _Stream:
    """One side of a link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.ended = False

    async def send(self, data: bytes) -> None:
        if not self.ended and data:
            self.writer.write(data)
            await self.writer.drain()

    def end(self) -> None:
        """The other side finds the end of the stream."""
        if not self.ended:
            self.ended = True
            with contextlib.suppress(OSError, RuntimeError):
                self.writer.write_eof()

    def reset(self) -> None:
        """The other side finds the connection reset."""
        self.ended = True
        found = self.writer.get_extra_info("socket")
        if found is not None and not self.writer.transport.is_closing():
            with contextlib.suppress(OSError):
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.writer.transport.abort()


_GRACE_S: Final = 0.5
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on ``port`` of 127.0.0.1 and forwards to ``target`` while its ``with`` block lasts.

    ``target`` is a port of 127.0.0.1, or a host and a port.

    ``split`` says what a message is: :func:`postgres_messages`, :func:`redis_messages` or :func:`chunks`.
    """

    def __init__(self, target: int | tuple[str, int], *, split: Splitter = chunks) -> None:
        self.target = ("127.0.0.1", target) if isinstance(target, int) else target
        self.split = split
        self.port = 0
        self.seen: dict[Direction, int] = dict.fromkeys(Direction, 0)
        """Messages since :meth:`watch` or :meth:`arm`."""
        self.fired = 0
        """How often an armed fault has struck."""
        self._fault: Fault | None = None
        self._down = False
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = asyncio.Event()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal("asyncio"))
            self._portal.call(self._listen)
            stack.callback(self._portal.call, self._close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ------------------------------------------------------------------------------------------- the test's

    def watch(self) -> None:
        """Count from 0; no fault is armed any more."""
        with self._lock:
            self._fault = None
            self.seen = dict.fromkeys(Direction, 0)
            self.fired = 0

    def arm(self, fault: Fault) -> None:
        """Count from 0, and strike."""
        with self._lock:
            self._fault = fault
            self.seen = dict.fromkeys(Direction, 0)
            self.fired = 0

    def release(self) -> None:
        """Let go on what was held back without a time: now, not what will be."""
        assert self._portal is not None
        self._portal.call(self._release)

    def cut(self) -> None:
        """Reset every connection, now."""
        assert self._portal is not None
        self._portal.call(self._cut)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Reset every connection, and every new one at once."""
        self._down = True
        try:
            self.cut()
            yield
        finally:
            self._down = False

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._links)

    # ----------------------------------------------------------------------------------------- the thread's

    def _count(self, direction: Direction) -> Fault | None:
        with self._lock:
            number = self.seen[direction]
            self.seen[direction] += 1
            fault = self._fault
            if fault is None or fault.direction is not direction or fault.at != number:
                return None
            self.fired += 1
            if self.fired >= fault.times:
                self._fault = None
            else:
                self.seen[direction] = 0
            return fault

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        client = _Stream(reader, writer)
        # Only _close cancels; asyncio's streams would log it as an error.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                if not self._down:
                    await self._forward(client)
            finally:
                client.reset()

    async def _forward(self, client: _Stream) -> None:
        link = _Link(self, client, _Stream(*await asyncio.open_connection(*self.target)))
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    async def _hold(self, fault: Fault | None) -> None:
        assert fault is not None
        if fault.delay_s is None:
            await self._held.wait()
        else:
            await asyncio.sleep(fault.delay_s)

    async def _release(self) -> None:
        held, self._held = self._held, asyncio.Event()
        held.set()

    async def _cut(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _close(self) -> None:
        assert self._server is not None
        await _turns()  # in which connections that were accepted get their tasks: 3.11 forgets them once it is closed
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _turns()  # in which transports that were aborted close
