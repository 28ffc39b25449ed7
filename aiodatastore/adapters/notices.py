"""Messages of commits, for stores whose servers send some: whether all of them came, and a connection that hears them.

Each message tells the store's version before and after, and the keys that were written between. So one that does
not begin where the last one ended tells that something was not told. Now and then the listener sends itself a message
and asks for the store's version: when it hears its own, it has heard all that were sent before.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

from aiodatastore.rowstore import RowListener, Subscription

__all__ = ["Notices"]

_LONGEST_PAUSE_S: Final = 2.0


class Notices(Subscription):
    """A connection that hears messages; made again when it is lost, and then there was a gap.

    A store says in :meth:`_connect` and :meth:`_ask` how; what it hears it hands to :meth:`_hear` and
    :meth:`_answered`. ``lost`` are the errors of a lost connection.
    """

    lost: tuple[type[Exception], ...] = (OSError, TimeoutError)

    def __init__(self, listener: RowListener, interval_s: float, timeout_s: float) -> None:
        self._listener = listener
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._version = -1  # up to which all was told; -1: nothing yet
        self._pings = 0
        self._ping_name = ""
        self._answer: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_left = False

    @abstractmethod
    async def _connect(self) -> None:
        """Connect and listen."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Close the connection, if there is one; nothing is raised."""

    @abstractmethod
    async def _ask(self, name: str) -> int:
        """The store's version, and send a message of this name after that was read."""

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""

    @abstractmethod
    def cut(self) -> None:
        """Lose the connection: for tests."""

    async def start(self) -> None:
        """Listen; what is committed from now on is told."""
        try:
            await self._begin()
        except BaseException:
            await self._disconnect()
            raise
        self._task = asyncio.create_task(self._go_on())

    async def aclose(self) -> None:
        """Stop listening."""
        if self._is_left:
            return
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._disconnect()

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's, and so is what works on it."""
        self._is_left = True
        _inherited.append(self)

    async def _go_on(self) -> None:
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s or self._interval_s)
            try:
                if self.is_connected:
                    await self._ping()
                else:
                    await self._begin(again=True)
                pause_s = 0.0
            except self.lost:
                await self._disconnect()
                pause_s = min(max(2 * pause_s, 0.05), _LONGEST_PAUSE_S)

    async def _begin(self, *, again: bool = False) -> None:
        self._version = -1
        await self._connect()
        await self._ping(again=again)

    async def _ping(self, *, again: bool = False) -> None:
        """Make sure that all that was committed before has been told, and say so.

        ``again``: after a time of silence.
        """
        at, told = time.monotonic(), self._version
        self._pings += 1
        self._ping_name = f"{id(self)}.{self._pings}"
        answer = self._answer = asyncio.get_running_loop().create_future()
        version = await self._ask(self._ping_name)
        await asyncio.wait_for(answer, self._timeout_s)
        if self._version < version or version < told:
            again = again or self._version >= 0  # what was committed sent nothing, or the store was set back
            self._version = version
        if again:
            self._listener.gap()
        self._listener.confirmed(at, version)

    def _answered(self, name: str) -> None:
        """A message by name was heard."""
        if name == self._ping_name and self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def _hear(self, start: int, version: int, keys: Sequence[bytes] | None) -> None:
        """A message of commits was heard; None: its keys are not told."""
        if keys is None or (start != self._version and self._version >= 0):
            self._listener.gap()
        else:
            self._listener.changed(keys, version)
        self._version = version


_inherited: list[Notices] = []  # never closed: that would harm the process that opened them
