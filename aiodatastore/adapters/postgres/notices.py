"""Messages of commits, by LISTEN and NOTIFY: PostgreSQL delivers them in the order of the commits.

Commits send nothing unless somebody listens: ``meta.heard`` says until when that may be, and is moved on here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from aiodatastore.adapters.notices import Notices
from aiodatastore.adapters.postgres.pool import Connection
from aiodatastore.rowstore import RowListener

__all__ = ["PostgresNotices"]

_HEARD_S: Final = 60
_PING: Final = "!"


class PostgresNotices(Notices):
    """Listens on a connection of its own. ``schema`` as the server quotes it."""

    lost = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        schema: str,
        listener: RowListener,
        interval_s: float,
        timeout_s: float,
    ) -> None:
        super().__init__(listener, interval_s, timeout_s)
        self._make = connect
        self._meta = f"{schema}.meta"
        self._connection: Connection | None = None
        self._channel = ""

    @property
    def is_connected(self) -> bool:
        """Whether asyncpg thinks so."""
        return self._connection is not None and not self._connection.is_closed()

    async def _connect(self) -> None:
        await self._disconnect()
        connection = self._connection = await self._make()
        # What commits send to, see functions.py.
        self._channel = await connection.fetchval("SELECT 'ads' || $1::text::regclass::oid", self._meta)
        await connection.add_listener(self._channel, self._receive)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed():
            return
        try:
            await connection.remove_listener(self._channel, self._receive)
            await connection.close(timeout=1.0)
        except self.lost:
            connection.terminate()
        except BaseException:
            connection.terminate()
            raise

    def cut(self) -> None:
        """Close the socket."""
        if self._connection is not None:
            self._connection.terminate()

    async def _ask(self, name: str) -> int:
        connection = self._connection
        assert connection is not None
        await connection.execute(
            f"UPDATE {self._meta} SET heard = now() + interval '{_HEARD_S} s' "
            f"WHERE heard IS NULL OR heard < now() + interval '{_HEARD_S // 2} s'",
            timeout=self._timeout_s,
        )
        version: int = await connection.fetchval(
            f"SELECT version FROM {self._meta}, pg_notify($1, $2)", self._channel, _PING + name, timeout=self._timeout_s
        )
        return version

    def _receive(self, connection: Any, process: int, channel: str, message: str) -> None:
        if connection is not self._connection:
            return
        if message[:1] == _PING:
            self._answered(message[1:])
            return
        start, version, *keys = message.split(" ")
        decoded: list[bytes] | None = None
        if "*" not in keys:
            try:
                decoded = [base64.b64decode(key) for key in keys]
            except binascii.Error:  # nothing of ours
                pass
        self._hear(int(start), int(version), decoded)
