"""Messages of commits, by publishing them from the script that commits: in its order, to one connection.

The channel has the name of the key that holds the store's version. The script publishes only if the server has a
subscriber for it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import RedisError

from aiodatastore.adapters.notices import Notices
from aiodatastore.adapters.redis.connections import Command, Driver, pack
from aiodatastore.adapters.redis.layout import unescape
from aiodatastore.errors import UnavailableError
from aiodatastore.rowstore import RowListener

__all__ = ["RedisNotices"]

_PING: Final = b"!"
_HEAD: Final = struct.Struct(">QQB")


class RedisNotices(Notices):
    """Subscribes on a connection of its own.

    ``make`` makes connections, ``send`` sends commands on others; ``channel`` is the key of the version.
    """

    lost = (RedisError, UnavailableError, OSError, TimeoutError)

    def __init__(
        self,
        make: Callable[[], Driver],
        send: Callable[[Sequence[Command]], Awaitable[list[Any]]],
        channel: bytes,
        listener: RowListener,
        interval_s: float,
        timeout_s: float,
    ) -> None:
        super().__init__(listener, interval_s, timeout_s)
        self._make = make
        self._send = send
        self._channel = channel
        self._connection: Driver | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether messages are being read."""
        return self._reader is not None and not self._reader.done()

    async def _connect(self) -> None:
        await self._disconnect()
        connection = self._connection = self._make()
        async with asyncio.timeout(self._timeout_s):
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
            await connection.send_packed_command(pack(connection, (b"SUBSCRIBE", self._channel)), check_health=False)
            await connection.read_response(disable_decoding=True)
        self._reader = asyncio.create_task(self._read(connection))

    async def _disconnect(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                await connection.disconnect(nowait=True)

    def cut(self) -> None:
        """Close the socket."""
        if self._connection is not None:
            self._connection._close()  # type: ignore[no-untyped-call]  # redis-py's, as its own __del__ does

    async def _ask(self, name: str) -> int:
        commands = [(b"GET", self._channel), (b"PUBLISH", self._channel, _PING + name.encode())]
        text, _ = await self._send(commands)
        return 0 if text is None else int(text.rstrip(b"x"))

    async def _read(self, connection: Driver) -> None:
        with suppress(*self.lost, struct.error):  # the last one: somebody else uses the channel
            while True:
                kind, _, message = await connection.read_response(disable_decoding=True)
                if kind != b"message":
                    continue
                if message[:1] == _PING:
                    self._answered(message[1:].decode())
                    continue
                self._hear(*_decode(message))


def _decode(message: bytes) -> tuple[int, int, list[bytes] | None]:
    """The version before and after, and the keys if they are told: each has its length in 4 bytes before it."""
    start, version, told = _HEAD.unpack_from(message)
    if not told:
        return start, version, None
    keys: list[bytes] = []
    place = _HEAD.size
    while place < len(message):
        end = place + 4 + int.from_bytes(message[place : place + 4], "big")
        keys.append(unescape(message[place + 4 : end]))
        place = end
    return start, version, keys
