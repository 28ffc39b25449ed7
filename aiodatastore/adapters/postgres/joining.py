"""Reads that come side by side go together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from aiodatastore.waiting import own_error

__all__ = ["Line"]

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Line(Generic[Request, Answer]):
    """Has at most one request under way. A call that finds none goes out at once with ``alone``; those that come
    meanwhile go ``together`` in the next, up to ``max_weight``, which is on its way before those are woken that the
    last one answers. After one that went for several, they are likely to ask again all at once: then the first of them
    waits for the others, one turn of the event loop.

    What is sent for several is nobody's own: a caller that is cancelled leaves, the others get their answers.
    """

    def __init__(
        self,
        alone: Callable[[Request], Awaitable[Answer]],
        together: Callable[[list[Request]], Awaitable[Sequence[Answer]]],
        *,
        max_weight: int,
    ) -> None:
        self._alone = alone
        self._together = together
        self._max_weight = max_weight
        self._queue: deque[tuple[Request, int, asyncio.Future[Answer]]] = deque()
        self._busy = False
        self._last = 0  # calls that the last request was for
        self._task: asyncio.Task[None] | None = None
        self.load = 0
        """Calls that are under way or wait."""

    async def call(self, request: Request, weight: int) -> Answer:
        """The answer to a request."""
        self.load += 1
        try:
            if not self._busy and self._last <= 1:
                self._busy = True
                try:
                    return await self._alone(request)
                finally:
                    self._last = 1
                    self._go_on()
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._queue.append((request, weight, answer))
            if not self._busy:
                self._go_on()
            return await answer
        finally:
            self.load -= 1

    def _go_on(self) -> None:
        """Send what waits, when the tasks have run that are ready now."""
        self._busy = bool(self._queue)
        self._task = asyncio.create_task(self._deliver()) if self._busy else None

    def _take(self) -> list[tuple[Request, asyncio.Future[Answer]]]:
        batch: list[tuple[Request, asyncio.Future[Answer]]] = []
        total = 0
        while self._queue and (not batch or total + self._queue[0][1] <= self._max_weight):
            request, weight, answer = self._queue.popleft()
            if not answer.done():  # else its caller was cancelled
                batch.append((request, answer))
                total += weight
        return batch

    async def _deliver(self) -> None:
        batch = self._take()
        self._last = len(batch)
        try:
            if not batch:
                answers: Sequence[Answer] = ()
            elif len(batch) == 1:
                answers = (await self._alone(batch[0][0]),)
            else:
                answers = await self._together([request for request, _ in batch])
        except Exception as exc:
            self._go_on()
            for _, future in batch:
                if not future.done():
                    future.set_exception(own_error(exc))
        except BaseException:  # the loop is being torn down
            for _, future in batch:
                future.cancel()
            self._go_on()
            raise
        else:
            self._go_on()  # its task is ready before those that are woken now
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def wait_idle(self) -> None:
        """Return when what was sent for several has come back."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
