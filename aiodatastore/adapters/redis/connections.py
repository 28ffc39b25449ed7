"""Connections to one server: lent for one exchange each, thrown away when anything went wrong on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from aiodatastore.adapters.redis.address import Address

try:
    from hiredis import pack_command
except ImportError:  # an extra of redis-py's
    HIREDIS = False
else:
    HIREDIS = True

__all__ = ["Command", "Connections", "Driver", "Link", "NotSentError", "connector", "pack"]

Command: TypeAlias = Sequence[bytes | int]
"""A command's name and its arguments."""
Driver: TypeAlias = Connection | UnixDomainSocketConnection

_BYTES_PER_S = 2_000_000
"""Large requests are given more time: this is less than any server manages."""


def connector(address: Address, settings: dict[str, Any]) -> Callable[[], Driver]:
    """A function that makes connections (unconnected).

    Retrying, and how long to wait, is decided above: redis-py's own must not repeat a commit.
    """
    kinds = {"redis": Connection, "rediss": SSLConnection, "unix": UnixDomainSocketConnection}
    arguments = address.arguments(settings)
    kind = kinds[address.scheme]
    return lambda: kind(
        **arguments, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=None, client_name="aiodatastore"
    )


class NotSentError(Exception):
    """The server could not be reached, so it has seen nothing. Never reaches users."""


class Link(Protocol):
    """The way to where a store's keys are: one server, or whichever node of a cluster has them."""

    async def exchange(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As :meth:`Connections.exchange`."""

    async def renew(self, within_s: float) -> None:
        """Something went wrong that may pass: find out, within this time, what has changed."""

    async def aclose(self) -> None:
        """Close; exchanges under way may fail."""

    def abandon(self) -> None:
        """Close at once, without a loop."""


class Connections:
    """At most ``size`` connections, each used by one exchange at a time.

    An exchange that fails or is cancelled between request and answer closes its connection: the answer may still
    come, and nobody else must read it.
    """

    def __init__(self, make: Callable[[], Driver], size: int) -> None:
        self._make = make
        self._idle: list[Driver] = []
        self._lent: set[Driver] = set()
        self._turns = asyncio.Semaphore(size)
        self._patient = asyncio.Semaphore(max(1, size // 2))
        self._size = size
        self._closed = False

    async def exchange(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """The answers to some commands that are sent together, up to the first that is an error of the server.

        An answer after an error is not waited for: ``WAIT`` after a commit that was refused would wait in vain.

        :raises NotSentError: if there was no connection to be had; its cause is the error
        :raises redis.exceptions.ConnectionError, OSError, TimeoutError: what was sent may have been executed or not
        """
        if commands[-1][0] == b"WAIT":  # takes long where there is no replica; reads must find a connection, too
            async with self._patient:
                return await self._exchange(commands, timeout_s)
        return await self._exchange(commands, timeout_s)

    async def _exchange(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        async with self._turns:
            self._check_open()
            connection = self._idle.pop() if self._idle else self._make()
            self._lent.add(connection)
            answers: list[Any] = []
            reached = True
            try:
                async with asyncio.timeout(timeout_s) as limit:
                    if not connection.is_connected:
                        reached = False
                        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
                        reached = True
                        self._check_open()  # it had no socket yet that aclose() could have closed
                    packed = [part for command in commands for part in pack(connection, command)]
                    size = sum(map(len, packed))
                    if size > _BYTES_PER_S:
                        limit.reschedule((limit.when() or 0.0) + size / _BYTES_PER_S)
                    await connection.send_packed_command(packed, check_health=False)
                    for _ in commands:
                        try:
                            answers.append(await connection.read_response(disable_decoding=True))
                        except ResponseError as exc:
                            answers.append(exc)
                            break
            except BaseException as exc:
                self._lent.discard(connection)
                await _drop(connection)
                if not reached and isinstance(exc, Exception):
                    raise NotSentError from exc
                raise
            self._lent.discard(connection)
            if self._closed or len(answers) < len(commands):
                await _drop(connection)
            else:
                self._idle.append(connection)
            return answers

    @property
    def idle(self) -> bool:
        """Whether no exchange is under way."""
        return not self._lent

    def _check_open(self) -> None:
        if self._closed:
            raise NotSentError from ConnectionResetError("the store was closed")

    async def renew(self, within_s: float = 0.0) -> None:
        """Close idle connections: one has shown that the server went away, or changed its part."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await _drop(connection)

    async def aclose(self) -> None:
        """Close all; exchanges under way fail, and their end is waited for, for a second."""
        self._closed = True
        idle, self._idle = self._idle, []
        open_ones = [*idle, *self._lent]
        try:
            while open_ones:
                with suppress(Exception):
                    await open_ones[-1].disconnect()
                open_ones.pop()
        except BaseException:
            for connection in open_ones:
                await _drop(connection)
            raise
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                for _ in range(self._size):
                    await self._turns.acquire()

    def abandon(self) -> None:
        """Close at once, without a loop: for stores that were never closed."""
        for connection in [*self._idle, *self._lent]:
            with suppress(Exception):
                connection._close()  # type: ignore[no-untyped-call]  # redis-py's, as its own __del__ does


def _pack_by_driver(connection: Driver, command: Command) -> list[bytes]:
    return connection.pack_command(*command)


def _pack_by_hiredis(connection: Driver, command: Command) -> list[bytes]:
    return [pack_command(tuple(command))]  # type: ignore[arg-type]  # tuples of bytes and ints


# redis-py's asyncio connections pack in Python even where hiredis is there: 10 times as long.
pack = _pack_by_hiredis if HIREDIS else _pack_by_driver


async def _drop(connection: Driver) -> None:
    with suppress(Exception):
        await connection.disconnect(nowait=True)
