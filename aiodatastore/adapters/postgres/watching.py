"""Answers that take too long."""

from __future__ import annotations

import asyncio
import time

from aiodatastore.adapters.postgres.pool import Connection

__all__ = ["Watch"]


class Watch:
    """Closes connections whose reads take longer than ``timeout_s`` (up to a quarter more); who waits gets the
    driver's error of a lost connection.

    One timer for all of them, which runs only while somebody waits: the driver's own, one for each call, is a tenth of
    what a read by key costs. Only for reads: the driver's also tells the server to stop.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: Connection) -> None:
        """An answer is waited for from now on."""
        self._since[connection] = time.monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout_s / 4, self._look)

    def end(self, connection: Connection) -> None:
        """It is there."""
        del self._since[connection]

    def stop(self) -> None:
        """Watch no longer: everything is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        latest = time.monotonic() - self._timeout_s
        for connection, since in self._since.items():
            if since <= latest:
                connection.terminate()
        if self._since:
            self._timer = asyncio.get_running_loop().call_later(self._timeout_s / 4, self._look)
