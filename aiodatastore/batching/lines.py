"""A line of calls, the first of which takes the others along."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from aiodatastore.batching.halving import TWO_HALVES, Halving
from aiodatastore.errors import DatastoreError, DeadlineExceededError, UnavailableError
from aiodatastore.waiting import Waiter, make_waiter, own_error

__all__ = ["Batcher", "Call", "State"]

_LITTLE_MORE = 1.25
"""Up to so many times half of all calls go together."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class State(enum.Enum):
    """Where a call is."""

    WAITING = enum.auto()  # in line
    LEADS = enum.auto()  # first in line, and has the baton
    SENT = enum.auto()  # in another call's batch
    DONE = enum.auto()


class Call(Generic[Request, Answer]):
    """A call that waits for its turn or its answer."""

    __slots__ = ("answer", "error", "request", "state", "wake", "weight")

    def __init__(self, request: Request, weight: int, wake: Waiter) -> None:
        self.request = request
        self.weight = weight
        self.state = State.WAITING
        self.wake = wake
        self.answer: Answer | None = None
        self.error: BaseException | None = None

    def settle(self, answer: Answer | None, error: BaseException | None = None) -> None:
        self.answer = answer
        self.error = error
        self.state = State.DONE
        self.wake.set()

    def result(self) -> Answer:
        if self.error is not None:
            raise self.error
        return self.answer  # type: ignore[return-value]  # set whenever there is no error


class Batcher(Generic[Request, Answer]):
    """Joins calls that wait while another is under way into one ``send``.

    ``send`` gets the requests of a batch, in the order in which they were called, and returns an answer for
    each. It may be cancelled and called again with the same requests: it must not change anything.
    """

    _starts_late = False
    """Whether ``send`` only begins what another task does, which calls :meth:`_tell_answered` when it has begun."""

    def __init__(self, send: Callable[[list[Request]], Awaitable[Sequence[Answer]]], *, max_weight: int) -> None:
        self._send = send
        self._max_weight = max_weight
        self._queue: deque[Call[Request, Answer]] = deque()
        self._busy = False
        self._beside = False
        self._idle: anyio.Event | None = None
        self.others: Sequence[Batcher[Any, Any]] = ()
        """Lines of the same tasks."""
        self.when_answered: Callable[[float], None] | None = None
        """Told when (``perf_counter``) calls that had to wait are answered."""
        self._under_way = 0  # calls of the batch that is
        self._last = 0  # calls of the last batch, which may soon come again
        self._answered: list[tuple[Call[Request, Answer], Answer]] = []  # told when the next batch is on its way
        self._halving = Halving()
        self._make_waiter: Callable[[], Waiter] = self._first_waiter

    async def call(self, request: Request, weight: int = 1) -> Answer:
        """The answer to a request; sent at once if nothing is under way, else with the next batch."""
        gathers = False
        if not self._busy:
            self._busy = True
            gathers = self._last > 1
            if not gathers:
                try:
                    return (await self._send([request]))[0]
                finally:
                    self._last = 1
                    self._pass_on()
        call: Call[Request, Answer] = Call(request, weight, self._make_waiter())
        self._queue.append(call)
        try:
            if gathers:
                call.state = State.LEADS
                await checkpoint()
            else:
                await call.wake.wait()
        except BaseException:
            self._withdraw(call)
            raise
        if call.state is State.LEADS:
            await self._lead()
        return call.result()

    async def wait_idle(self) -> None:
        """Return when nothing is under way and nobody waits."""
        while self._busy or self._beside:
            if self._idle is None:
                self._idle = anyio.Event()
            await self._idle.wait()

    def _first_waiter(self) -> Waiter:
        self._make_waiter = make_waiter()  # not before there is an event loop
        return self._make_waiter()

    def _pass_on(self) -> None:
        """Give the baton to the first in line, or lay it down."""
        if self._queue:
            first = self._queue[0]
            first.state = State.LEADS
            first.wake.set()
            return
        self._busy = False
        self._tell_answered()
        self._tell_idle()

    def _tell_answered(self) -> None:
        """Wake the calls of the last batch."""
        answered, self._answered = self._answered, []
        for call, answer in answered:
            if call.state is State.SENT:
                call.settle(answer)

    def _tell_idle(self) -> None:
        if self._idle is not None:
            self._idle.set()
            self._idle = None

    def _withdraw(self, call: Call[Request, Answer]) -> None:
        state, call.state = call.state, State.DONE
        if state in (State.WAITING, State.LEADS):
            self._queue.remove(call)
        if state is State.LEADS:
            self._pass_on()

    def _take_batch(self) -> list[Call[Request, Answer]]:
        """The first in line (who leads) and as many after it as fit."""
        queue = self._queue
        most = len(queue)
        if self._halving.halves and most + self._last >= TWO_HALVES:
            # Those of the last batch are at work, or have gone on to one of the other lines.
            elsewhere = max(self._last, sum([len(line._queue) + line._under_way for line in self.others]))
            half = (most + elsewhere + 1) // 2
            if most > half * _LITTLE_MORE:  # a few left behind would cost a round trip of their own
                most = half
        batch = [queue.popleft()]
        weight = batch[0].weight
        while queue and weight + queue[0].weight <= self._max_weight and len(batch) < most:
            weight += queue[0].weight
            batch.append(queue.popleft())
        for call in batch:
            call.state = State.SENT
        return batch

    async def _lead(self) -> None:
        """Send a batch and settle its calls, with errors too."""
        started = time.perf_counter()
        if self._halving.has_paused(started):
            self._last = 0
        batch = self._take_batch()
        self._under_way = len(batch)
        has_baton = True
        try:
            try:
                answers = await self._send([call.request for call in batch])
            except Exception as exc:
                if len(batch) == 1 or not _is_of_one_request(exc):
                    _settle_all(batch, exc)
                else:
                    await self._send_one_by_one(batch)
                return
            answered = time.perf_counter()
            if self.when_answered is not None:
                self.when_answered(answered)
            self._last = len(batch)
            self._tell_answered()
            self._answered = list(zip(batch, answers, strict=True))
            if self._halving.halves:
                batch[0].wake = self._make_waiter()  # its own was set by the baton
                has_baton = False
                self._pass_on()  # the next batch goes before these tasks run
            if has_baton or not self._starts_late:
                self._tell_answered()
            self._halving.note(len(batch), started, answered)
        except BaseException as exc:
            self._interrupted(batch, exc)
            raise
        finally:
            self._under_way = 0
            if has_baton:
                self._tell_answered()
                self._pass_on()

    async def _send_one_by_one(self, batch: list[Call[Request, Answer]]) -> None:
        for call in batch:
            if call.state is State.SENT:
                try:
                    answers = await self._send([call.request])
                except Exception as exc:
                    call.settle(None, exc)
                else:
                    call.settle(answers[0])

    def _interrupted(self, batch: list[Call[Request, Answer]], exc: BaseException) -> None:
        """The leader was cancelled (errors are settled): the others' requests go back to the front, in their order."""
        for call in reversed(batch[1:]):
            if call.state is State.SENT:
                call.state = State.WAITING
                self._queue.appendleft(call)


def _is_of_one_request(exc: Exception) -> bool:
    """Whether an error comes from some request's data, so that the others of its batch would succeed.

    Adapters raise such errors before they apply anything of a batch.
    """
    return isinstance(exc, DatastoreError) and not isinstance(exc, UnavailableError | DeadlineExceededError)


def _settle_all(batch: Sequence[Call[Any, Any]], exc: Exception) -> None:
    for call in batch:
        if call.state is State.SENT:
            call.settle(None, own_error(exc) if len(batch) > 1 else exc)
