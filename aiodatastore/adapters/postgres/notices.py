"""Messages of commits, by LISTEN and NOTIFY: for caches.

Each batch of commits sends the store's version before and after it, and the keys it wrote; PostgreSQL delivers what
was sent in the order of the commits. So a message that does not begin where the last one ended tells that something
was not sent. Now and then this sends a message to itself, with the store's version: when it arrives, all that
was committed before has arrived.

Commits send nothing unless somebody listens: ``meta.heard`` says until when that may be, and is moved on here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from aiodatastore.adapters.postgres.pool import Connection
from aiodatastore.rowstore import RowListener, Subscription

__all__ = ["Notices"]

_HEARD_S: Final = 60
_LONGEST_PAUSE_S: Final = 2.0
_PING: Final = "!"
_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class Notices(Subscription):
    """Listens on a connection of its own, which is made again when it is lost."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        schema: str,
        listener: RowListener,
        interval_s: float,
        timeout_s: float,
    ) -> None:
        self._connect = connect
        self._meta = f"{schema}.meta"
        self._listener = listener
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._channel = ""
        self._version = -1
        self._pings = 0
        self._answer: asyncio.Future[None] | None = None
        self._asked: tuple[str, int] = ("", 0)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; what is committed from now on is told."""
        try:
            await self._begin()
        except BaseException:
            await self._end()
            raise
        self._task = asyncio.create_task(self._go_on())

    async def aclose(self) -> None:
        """Stop listening."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        connection = self._connection
        if connection is not None and not connection.is_closed():
            try:
                await connection.remove_listener(self._channel, self._hear)
                await connection.close(timeout=1.0)
            except _LOST:
                pass
        await self._end()

    def cut(self) -> None:
        """Lose the connection: for tests."""
        if self._connection is not None:
            self._connection.terminate()

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's."""
        self._task = self._connection = None

    async def _begin(self, *, again: bool = False) -> None:
        connection = self._connection = await self._connect()
        # The meta table's oid: what commits send to, see functions.py.
        self._channel = await connection.fetchval(f"SELECT 'ads' || '{_quoted(self._meta)}'::regclass::oid")
        self._version = -1
        await connection.add_listener(self._channel, self._hear)
        await self._ping(connection, again=again)

    async def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _go_on(self) -> None:
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s or self._interval_s)
            try:
                if self._connection is None:
                    await self._begin(again=True)
                else:
                    await self._ping(self._connection)
                pause_s = 0.0
            except _LOST:
                await self._end()
                pause_s = min(max(2 * pause_s, 0.05), _LONGEST_PAUSE_S)

    async def _ping(self, connection: Connection, *, again: bool = False) -> None:
        """Make sure that all that was committed before has been told, and say so; ``again``: after a time of silence."""
        at = time.monotonic()
        await connection.execute(
            f"UPDATE {self._meta} SET heard = now() + interval '{_HEARD_S} s' "
            f"WHERE heard IS NULL OR heard < now() + interval '{_HEARD_S // 2} s'",
            timeout=self._timeout_s,
        )
        self._pings += 1
        answer = self._answer = asyncio.get_running_loop().create_future()
        name = f"{_PING}{id(self)}.{self._pings}"
        self._asked = name, -1
        version: int = await connection.fetchval(
            f"SELECT version FROM {self._meta}, pg_notify($1, $2)", self._channel, name, timeout=self._timeout_s
        )
        await asyncio.wait_for(answer, self._timeout_s)
        if self._version < version:
            known, self._version = self._version, version
            again = again or known >= 0  # something was committed that sent nothing
        if again:
            self._listener.gap()
        self._listener.confirmed(at, version)

    def _hear(self, connection: Any, process: int, channel: str, message: str) -> None:
        if connection is not self._connection:
            return
        if message[:1] == _PING:
            if message == self._asked[0] and self._answer is not None and not self._answer.done():
                self._answer.set_result(None)
            return
        start, version, *keys = message.split(" ")
        if self._version < 0:
            self._version = int(start)  # the first message
        if int(start) != self._version or "*" in keys:
            self._listener.gap()
        else:
            try:
                self._listener.changed([base64.b64decode(key) for key in keys], int(version))
            except binascii.Error:  # nothing of ours
                self._listener.gap()
        self._version = int(version)


def _quoted(name: str) -> str:
    """For use between single quotes."""
    return name.replace("'", "''")
