"""Connections: a lean pool of the store's own, or an asyncpg pool that was handed in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import asyncpg

from aiodatastore.errors import StoreClosedError

__all__ = ["Connection", "Connections", "LentConnections", "OwnConnections"]

_MEND_S = 5.0

Connection = Any
"""An ``asyncpg.Connection``, or a pool's proxy of one."""


class Connections(Protocol):
    """Where a store takes its connections from."""

    async def take(self) -> Connection:
        """A connection nobody else uses."""

    async def give_back(self, connection: Connection, *, broken: bool = False, cancelled: bool = False) -> None:
        """Return it; a broken one is closed, one whose statement was cancelled is put in order first."""

    def drop_idle(self) -> None:
        """The server is another one now: make new connections."""

    async def aclose(self) -> None:
        """Close what is the store's."""

    def abandon(self) -> None:
        """In a forked child: forget them without a word to the server."""


class OwnConnections:
    """At most ``max_size`` connections, made when they are needed; the last one used is used next.

    Taking an idle one costs nothing: nothing is sent to clean up after statements that leave nothing behind.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], *, min_size: int, max_size: int) -> None:
        self._connect = connect
        self._min_size = min_size
        self._max_size = max_size
        self._idle: list[Connection] = []
        self._lent: set[Connection] = set()
        self._making: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    async def fill(self) -> None:
        """Make the first ``min_size``."""
        made = []
        try:
            for _ in range(self._min_size):
                made.append(await self.take())
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pass  # the others are made when they are needed
        finally:
            for connection in made:
                await self.give_back(connection)

    async def take(self) -> Connection:
        waited = False
        while True:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    self._lent.add(connection)
                    return connection
            if self._closed:
                raise StoreClosedError("the store is closed")
            if len(self._lent) + len(self._making) < self._max_size:
                task = asyncio.create_task(self._make())
                self._making.add(task)
                # Who waits may be cancelled, and asyncpg does not clean up after a connect that is: it goes on.
                task.add_done_callback(self._made)
                await asyncio.shield(task)
                continue
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if waited:
                self._waiting.appendleft(turn)  # somebody who came later was faster: stay the first in line
            else:
                self._waiting.append(turn)
            waited = True
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    self._wake()
                raise
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)

    async def _make(self) -> None:
        self._idle.append(await self._connect())

    def _made(self, task: asyncio.Task[None]) -> None:
        self._making.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits still gets it
        if self._closed:
            self.drop_idle()
        self._wake()  # it may be for others; if it was not made, they may try

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def _mend(self, connection: Connection) -> None:
        try:
            await connection.fetchval("SELECT 1", timeout=_MEND_S)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()
        else:
            self._idle.append(connection)

    async def give_back(self, connection: Connection, *, broken: bool = False, cancelled: bool = False) -> None:
        self._lent.discard(connection)
        if cancelled and not self._closed and not connection.is_closed() and not connection.is_in_transaction():
            # asyncpg tells the server to stop. Where a statement was only being prepared, the server waits for the end
            # of that, holding locks, until it hears something again.
            task = asyncio.create_task(self._mend(connection))
            self._making.add(task)
            task.add_done_callback(self._made)
            return
        if broken or self._closed or connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
        else:
            self._idle.append(connection)
        self._wake()

    def drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    async def aclose(self) -> None:
        self._closed = True
        for connection in self._lent:
            connection.terminate()
        if self._making:
            await asyncio.wait(self._making)  # as long as a connect may take
        while self._waiting:
            self._wake()
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.close(timeout=2)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    def terminate(self) -> None:
        """Close all at once, for a store that nobody closed."""
        self._closed = True
        for connection in [*self._idle, *self._lent]:
            connection.terminate()

    def abandon(self) -> None:
        _inherited.append((self._idle, self._lent))
        self._idle, self._lent = [], set()
        self._closed = True


class LentConnections:
    """An asyncpg pool of the application's, which stays open."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def fill(self) -> None:
        """Nothing: the pool is made."""

    async def take(self) -> Connection:
        return await self._pool.acquire()

    async def give_back(self, connection: Connection, *, broken: bool = False, cancelled: bool = False) -> None:
        if broken and not connection.is_closed():
            connection.terminate()
        await self._pool.release(connection)

    def drop_idle(self) -> None:
        """The pool's own matter; those that turn out to be of no use are closed one by one."""

    async def aclose(self) -> None:
        """Leave it open."""

    def terminate(self) -> None:
        """Leave it open."""

    def abandon(self) -> None:
        """The application's matter."""


_inherited: list[Any] = []  # never closed: that would harm the process that opened them
