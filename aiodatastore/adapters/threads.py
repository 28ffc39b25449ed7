"""Work in a thread whose end is waited for, even by a caller that is cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import anyio
import anyio.to_thread

__all__ = ["to_the_end"]

T = TypeVar("T")


class _Call:
    """Work for a thread that either was never begun or whose end can be waited for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._claim = [True]
        self._done = threading.Event()

    def run(self) -> Any:
        if self.claim():
            try:
                return self._work()
            finally:
                self._done.set()
        return None

    def claim(self) -> bool:
        """True for the first who asks: the thread that begins the work, or the canceller who forbids it."""
        try:
            return self._claim.pop()
        except IndexError:
            return False

    def wait(self) -> None:
        self._done.wait()


async def to_the_end(work: Callable[[], T], limiter: anyio.CapacityLimiter) -> T:
    """The answer of ``work``, run in a thread; a cancelled caller goes on only when it has ended."""
    call = _Call(work)
    cancelled = anyio.get_cancelled_exc_class()
    with anyio.CancelScope(shield=True):
        try:
            return cast(T, await anyio.to_thread.run_sync(call.run, limiter=limiter))
        except cancelled:
            # asyncio's own Task.cancel(), which no shield stops.
            if not call.claim():
                await _wait_stubbornly(call, cancelled)
            raise
    raise AssertionError("unreachable")


async def _wait_stubbornly(call: _Call, cancelled: type[BaseException]) -> None:
    while True:
        try:
            return await anyio.to_thread.run_sync(call.wait, limiter=anyio.CapacityLimiter(1))
        except cancelled:
            continue
