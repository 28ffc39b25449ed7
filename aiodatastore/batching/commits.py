"""The line of commits. One that was sent is waited for whatever happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from aiodatastore.adapters.base import Adapter, Commit, Outcome
from aiodatastore.batching.chains import ChainedCommit, Chains
from aiodatastore.batching.lines import Batcher, Call, State
from aiodatastore.errors import DeadlineExceededError, UnavailableError
from aiodatastore.waiting import outlast, to_the_end

__all__ = ["LARGE_WRITES", "MAX_BATCH_WRITES", "CommitBatcher", "NotSentError"]

MAX_BATCH_WRITES = 1000
"""Writes and checks in one batch of commits; a single larger commit goes alone."""
LARGE_WRITES = 128
"""A commit of so many writes gains little from company: it goes while another one is under way, so that the adapter can
encode it meanwhile."""

_NOT_STARTED = object()


class NotSentError(DeadlineExceededError):
    """The deadline of a commit passed before it was sent."""


class CommitBatcher(Batcher[Commit, Outcome]):
    """Joins commits; one that was sent is waited for whatever happens."""

    _starts_late = True

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(self._deliver, max_weight=MAX_BATCH_WRITES)
        self._adapter = adapter
        # Whether the adapter answered the last lone commit without suspending. Then nothing can interrupt it,
        # and the task group that keeps cancellation away (70 µs) is not needed.
        self._inline = False
        self._kept: BaseException | None = None

    async def settle(self, commit: Commit, deadline: float = math.inf) -> tuple[Outcome, BaseException | None]:
        """The outcome, and the cancellation that arrived meanwhile: the caller raises it once it has done
        what the outcome demands.

        ``deadline`` (on the event loop's clock) only bounds the wait for the commit to be sent.

        :raises NotSentError: if it was not sent in time; then nothing was written
        :raises DatastoreError: if this commit can't be written, or the store can't be used
        """
        gathers = False
        if not self._busy:
            if deadline != math.inf and anyio.current_time() >= deadline:
                raise _too_late()
            self._busy = True
            gathers = self._last > 1 and len(commit.writes) < LARGE_WRITES
            if not gathers:
                try:
                    return await self._settle_alone(commit)
                finally:
                    self._last = 1
                    self._pass_on()
        if not self._beside and len(commit.writes) >= LARGE_WRITES:
            if deadline != math.inf and anyio.current_time() >= deadline:
                raise _too_late()
            self._beside = True
            try:
                return await self._settle_alone(commit)
            finally:
                self._beside = False
                self._tell_idle()
        try:
            self._adapter.encode(commit)
        except BaseException:
            if gathers:
                self._pass_on()
            raise
        call: Call[Commit, Outcome] = Call(commit, _weight(commit), self._make_waiter())
        self._queue.append(call)
        kept = None
        try:
            if gathers:
                call.state = State.LEADS
                await checkpoint()
            elif deadline == math.inf:
                await call.wake.wait()
            else:
                with anyio.CancelScope(deadline=deadline):
                    await call.wake.wait()
        except anyio.get_cancelled_exc_class() as exc:
            if call.state is not State.SENT and call.state is not State.DONE:
                self._withdraw(call)
                raise
            kept = exc
        except BaseException:
            self._withdraw(call)
            raise
        if call.state is State.WAITING:  # the deadline passed
            self._withdraw(call)
            raise _too_late()
        if call.state is State.LEADS:
            if deadline != math.inf and anyio.current_time() >= deadline:
                self._withdraw(call)
                raise _too_late()
            await self._lead()
            kept, self._kept = self._kept, None
            kept = await outlast(call.wake) or kept  # this task is one of those that the next batch goes before
        elif call.state is State.SENT:
            kept = await outlast(call.wake) or kept
        if kept is not None and call.error is not None:
            raise kept from call.error
        return _checked(call.result(), kept), kept

    def _interrupted(self, batch: list[Call[Commit, Outcome]], exc: BaseException) -> None:
        """Only a loop that is being torn down, or ctrl-C, gets here."""
        for call in batch:
            if call.state is State.SENT:
                call.settle(None, _lost(exc))

    async def _settle_alone(self, commit: Commit) -> tuple[Outcome, BaseException | None]:
        outcomes, error, kept = await self._deliver_whatever([commit])
        if error is not None:
            if kept is not None:
                raise kept from error
            raise error
        if outcomes is None:
            raise kept or _lost(None)
        return _checked(outcomes[0], kept), kept

    async def _deliver(self, batch: list[Commit]) -> list[Outcome]:
        """``adapter.commit``, out of reach of any cancellation; one that came is left in ``_kept``."""
        outcomes, error, kept = await self._deliver_whatever(batch)
        if kept is not None:
            self._kept = kept
        if error is not None:
            raise error
        if outcomes is None:
            raise kept or _lost(None)
        return outcomes

    async def _deliver_whatever(
        self, batch: list[Commit]
    ) -> tuple[list[Outcome] | None, BaseException | None, BaseException | None]:
        """The outcomes, or the error, of ``adapter.commit``; and the cancellation that came meanwhile."""
        if not any([type(commit) is ChainedCommit for commit in batch]):
            return await self._deliver_commits(batch)
        chains = Chains(batch)
        if not chains.sent:
            return chains.outcomes([]), None, None
        outcomes, error, kept = await self._deliver_commits(chains.sent)
        return None if outcomes is None else chains.outcomes(outcomes), error, kept

    async def _deliver_commits(
        self, batch: list[Commit]
    ) -> tuple[list[Outcome] | None, BaseException | None, BaseException | None]:
        if self._inline and len(batch) == 1 and len(batch[0].writes) < LARGE_WRITES:
            coroutine: Coroutine[Any, Any, list[Outcome]] = self._adapter.commit(batch)
            try:
                first = coroutine.send(None)
            except StopIteration as stop:
                return stop.value, None, None
            self._inline = False
            self._tell_answered()
            return await _Rest(coroutine, first), None, None
        return await to_the_end(self._send_off(batch))

    async def _send_off(self, batch: list[Commit]) -> list[Outcome]:
        rest = _Rest(self._adapter.commit(batch), when_suspended=self._tell_answered)
        outcomes: list[Outcome] = await rest
        if len(batch) == 1:
            self._inline = not rest.suspended
        return outcomes


class _Rest:
    """Awaits a coroutine, also one that was started by hand, and tells whether it suspended."""

    __slots__ = ("coroutine", "first", "suspended", "when_suspended")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        first: Any = _NOT_STARTED,
        *,
        when_suspended: Callable[[], None] | None = None,
    ) -> None:
        self.coroutine = coroutine
        self.first = first
        self.suspended = False
        self.when_suspended = when_suspended

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self.coroutine
        try:
            yielded = coroutine.send(None) if self.first is _NOT_STARTED else self.first
            self.suspended = True
            if self.when_suspended is not None:
                self.when_suspended()
            while True:
                try:
                    sent = yield yielded
                except BaseException as exc:
                    yielded = coroutine.throw(exc)
                else:
                    yielded = coroutine.send(sent)
        except StopIteration as stop:
            return stop.value


def _checked(outcome: Outcome, cancelled: BaseException | None) -> Outcome:
    if outcome.error is not None:
        raise cancelled or outcome.error
    return outcome


def _weight(commit: Commit) -> int:
    return len(commit.writes) + len(commit.checks) + len(commit.spans)


def _lost(exc: BaseException | None) -> UnavailableError:
    error = UnavailableError("the batch of this commit was cut off while it was sent: it may have taken effect")
    error.__cause__ = exc
    return error


def _too_late() -> NotSentError:
    return NotSentError("the timeout passed before the commit was sent: nothing was written")
