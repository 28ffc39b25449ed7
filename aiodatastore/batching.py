"""What runs side by side in one event loop travels together.

A :class:`Batcher` has at most one batch on its way. A call that finds none goes out at once and alone; calls
that arrive meanwhile wait, and the first of them takes all that wait (up to a bound) along when its turn comes:
the baton goes from task to task, and no background task is needed. One round trip then serves every get, and
one round trip and one ``fsync`` every commit, that was awaited while the last was under way.

That may leave the store and the tasks waiting for each other: all tasks are answered at once, work, and ask at once.
So a batch may take half of them, and is on its way before the tasks of the last one run: the store works for one half
while the event loop works for the other. Where a round trip costs the same whatever is in it, that is slower: which of
the two ways answers more calls is tried now and then (:class:`_Halving`). After a batch of several its tasks are likely
to ask again, all at once: then the first of them waits for the others, one turn of the event loop.

What happens between two awaits:

- A waiting call that is cancelled leaves the line; if it was just given the baton, it passes it on.
- A *lookup* whose leader is cancelled goes back to the front of the line; nobody else notices.
- A *commit* that was sent is never cancelled: it runs where no cancellation reaches it (neither a cancel scope's
  nor ``asyncio``'s own), and whoever waits for it waits until its outcome is known. The cancellation is kept and
  handed to the caller with the outcome.
- An error of the store reaches every call of the batch, each as an exception of its own; an error that one
  call's data caused reaches that call alone.
"""

from __future__ import annotations

import enum
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from aiodatastore.adapters.base import Adapter, Commit, Delete, Lookup, Outcome, ReadPolicy
from aiodatastore.errors import DatastoreError, DeadlineExceededError, UnavailableError
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.waiting import Waiter, make_waiter, outlast, own_error, to_the_end

if TYPE_CHECKING:
    from aiodatastore.entity import Entity

__all__ = [
    "LARGE_WRITES",
    "MAX_BATCH_KEYS",
    "MAX_BATCH_WRITES",
    "MAX_HOLD_S",
    "MIN_HOLD_S",
    "Batcher",
    "ChainedCommit",
    "Channel",
    "CommitBatcher",
    "NotSentError",
]

MAX_BATCH_KEYS = 1000
"""Keys in one batch of lookups (and in one lookup of a longer list)."""
MAX_BATCH_WRITES = 1000
"""Writes and checks in one batch of commits; a single larger commit goes alone."""
LARGE_WRITES = 128
"""A commit of so many writes gains little from company: it goes while another one is under way, so that the adapter can
encode it meanwhile."""
MAX_HOLD_S = 0.005
"""Seconds that a task may go on with calls that need no waiting before it lets the others run.

Several such tasks share them, down to :data:`MIN_HOLD_S` each.
"""
MIN_HOLD_S = 0.00025
"""Less is not worth the switch."""


class NotSentError(DeadlineExceededError):
    """The deadline of a commit passed before it was sent."""


_TWO_HALVES = 16
"""Calls from which on a batch may leave half of them to the next."""
_LITTLE_MORE = 1.25
"""Up to so many times half of them go together."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


_NOT_STARTED = object()


class _State(enum.Enum):
    WAITING = enum.auto()  # in line
    LEADS = enum.auto()  # first in line, and has the baton
    SENT = enum.auto()  # in another call's batch
    DONE = enum.auto()


class _Call(Generic[Request, Answer]):
    """A call that waits for its turn or its answer."""

    __slots__ = ("answer", "error", "request", "state", "wake", "weight")

    def __init__(self, request: Request, weight: int, wake: Waiter) -> None:
        self.request = request
        self.weight = weight
        self.state = _State.WAITING
        self.wake = wake
        self.answer: Answer | None = None
        self.error: BaseException | None = None

    def settle(self, answer: Answer | None, error: BaseException | None = None) -> None:
        self.answer = answer
        self.error = error
        self.state = _State.DONE
        self.wake.set()

    def result(self) -> Answer:
        if self.error is not None:
            raise self.error
        return self.answer  # type: ignore[return-value]  # set whenever there is no error


class _Halving:
    """Whether batches take half of the calls, which is tried: a period of the other way between two of the usual one.

    Halves are better where what a round trip costs whatever is in it is less than what all the tasks do between two
    calls. Compared is with the periods right before and after, as machines are not equally fast all the time.
    """

    __slots__ = ("_before", "_calls", "_ended", "_gain", "_left", "_other", "_since", "_usual", "halves")

    PERIOD = 400
    """Calls after which the rate is taken."""
    LOOK = 16
    """Periods after which the other way is tried."""
    FAVOUR = 1.05
    """How many times as many calls all at once has to answer: where the two are alike, halves are what stays so."""
    PAUSE_S = 0.02
    """A longer time without a batch is no part of a period."""

    def __init__(self) -> None:
        self.halves = self._usual = True
        self._gain = 0.0  # logarithm of how many times as many calls halves answered
        self._before = self._other = 0.0  # rates; 0: not known
        self._left = 2  # periods until the other way is tried
        self._calls = -1
        self._since = self._ended = 0.0

    def note(self, size: int, started: float, answered: float) -> None:
        """A batch was answered."""
        if size < _TWO_HALVES // 2:
            return
        if self._calls < 0 or started - self._ended > self.PAUSE_S:
            self._calls, self._since = 0, answered  # the first one only begins a period
        else:
            self._calls += size
        self._ended = answered
        if self._calls >= self.PERIOD:
            self._end_period(self._calls / max(answered - self._since, 1e-9))
            self._calls, self._since = 0, answered

    def _end_period(self, rate: float) -> None:
        if self.halves is not self._usual:
            self._other, self.halves = rate, self._usual
        elif self._other:
            gain = math.log(self._other / math.sqrt(self._before * rate))
            self._gain = (self._gain + (-gain if self._usual else gain)) / 2
            self._other = 0.0
            self._left = self.LOOK
            self.halves = self._usual = self._gain > -math.log(self.FAVOUR)
        else:
            self._before = rate
            self._left -= 1
            if self._left <= 0:
                self.halves = not self._usual


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
        self._queue: deque[_Call[Request, Answer]] = deque()
        self._busy = False
        self._beside = False
        self._idle: anyio.Event | None = None
        self.others: Sequence[Batcher[Any, Any]] = ()
        self._under_way = 0  # calls of the batch that is
        self._last = 0  # calls of the last batch, which may soon come again
        self._answered: list[tuple[_Call[Request, Answer], Answer]] = []  # told when the next batch is on its way
        self._halving = _Halving()
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
        call: _Call[Request, Answer] = _Call(request, weight, self._make_waiter())
        self._queue.append(call)
        try:
            if gathers:
                call.state = _State.LEADS
                await checkpoint()
            else:
                await call.wake.wait()
        except BaseException:
            self._withdraw(call)
            raise
        if call.state is _State.LEADS:
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
            first.state = _State.LEADS
            first.wake.set()
            return
        self._busy = False
        self._tell_answered()
        self._tell_idle()

    def _tell_answered(self) -> None:
        """Wake the calls of the last batch."""
        answered, self._answered = self._answered, []
        for call, answer in answered:
            if call.state is _State.SENT:
                call.settle(answer)

    def _tell_idle(self) -> None:
        if self._idle is not None:
            self._idle.set()
            self._idle = None

    def _withdraw(self, call: _Call[Request, Answer]) -> None:
        state, call.state = call.state, _State.DONE
        if state in (_State.WAITING, _State.LEADS):
            self._queue.remove(call)
        if state is _State.LEADS:
            self._pass_on()

    def _take_batch(self) -> list[_Call[Request, Answer]]:
        """The first in line (who leads) and as many after it as fit."""
        queue = self._queue
        most = len(queue)
        everybody = most + self._last
        if everybody >= _TWO_HALVES and self._halving.halves:
            for line in self.others:  # tasks that are there are not to come here at the same time
                everybody += len(line._queue) + line._under_way
            half = (everybody + 1) // 2
            if most > half * _LITTLE_MORE:  # a few left behind would cost a round trip of their own
                most = half
        batch = [queue.popleft()]
        weight = batch[0].weight
        while queue and weight + queue[0].weight <= self._max_weight and len(batch) < most:
            weight += queue[0].weight
            batch.append(queue.popleft())
        for call in batch:
            call.state = _State.SENT
        return batch

    async def _lead(self) -> None:
        """Send a batch and settle its calls, with errors too."""
        batch = self._take_batch()
        self._under_way = len(batch)
        has_baton = True
        started = time.perf_counter()
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
            self._under_way = 0
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
            if has_baton:
                self._tell_answered()
                self._pass_on()

    async def _send_one_by_one(self, batch: list[_Call[Request, Answer]]) -> None:
        for call in batch:
            if call.state is _State.SENT:
                try:
                    answers = await self._send([call.request])
                except Exception as exc:
                    call.settle(None, exc)
                else:
                    call.settle(answers[0])

    def _interrupted(self, batch: list[_Call[Request, Answer]], exc: BaseException) -> None:
        """The leader was cancelled (errors are settled): the others' requests go back to the front, in their order."""
        for call in reversed(batch[1:]):
            if call.state is _State.SENT:
                call.state = _State.WAITING
                self._queue.appendleft(call)


@dataclass(slots=True, eq=False)
class ChainedCommit(Commit):
    """A commit that writes one entity, and may follow another one of it whose outcome is not known yet.

    ``follows``: what it has read of the entity is what that one writes; it holds only if that one does. In one batch
    the two become one commit. ``outcome`` is set as soon as it is known, and stays None if it never will be.
    """

    key: Key = field(kw_only=True)
    follows: ChainedCommit | None = None
    outcome: Outcome | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


class _Chains:
    """The chained commits of a batch made into those to send, and outcomes of these into theirs."""

    def __init__(self, batch: Sequence[Commit]) -> None:
        self.sent: list[Commit] = []
        self._batch = batch
        self._members: list[list[int]] = []
        self._outcomes: list[Outcome | None] = [None] * len(batch)
        places: dict[int, int] = {}
        for number, commit in enumerate(batch):
            if type(commit) is not ChainedCommit or commit.follows is None:
                places[id(commit)] = self._add(number, commit)
                continue
            parent = commit.follows
            place = places.get(id(parent))
            if place is not None:
                first = self.sent[place]
                self.sent[place] = Commit(first.checks, first.spans, commit.writes, first.token)
                self._members[place].append(number)
                places[id(commit)] = place
            elif parent.outcome is None or parent.outcome.version is None:
                self._outcomes[number] = Outcome(None, {commit.key: 0})
            else:
                version = 0 if isinstance(parent.writes[0], Delete) else parent.outcome.version_of(commit.key)
                checks = {**commit.checks, commit.key: version}
                places[id(commit)] = self._add(number, Commit(checks, commit.spans, commit.writes, commit.token))

    def _add(self, number: int, commit: Commit) -> int:
        self.sent.append(commit)
        self._members.append([number])
        return len(self.sent) - 1

    def outcomes(self, sent: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes of the batch.

        Of commits that became one the last has its version. The others have one that the entity never has: it is
        older than the stored one, and newer than what they read or equal to it.
        """
        for outcome, members in zip(sent, self._members, strict=True):
            last = members[-1]
            for number in members:
                if number == last:
                    self._outcomes[number] = outcome
                elif outcome.version is not None:
                    self._outcomes[number] = Outcome(outcome.version - 1, clock=outcome.clock)
                elif outcome.error is not None:  # the last one's data is at fault
                    self._outcomes[number] = Outcome(None, {self._key(number): 0})
                else:
                    self._outcomes[number] = outcome
        found = [outcome for outcome in self._outcomes if outcome is not None]
        for commit, outcome in zip(self._batch, found, strict=True):
            if type(commit) is ChainedCommit:
                commit.outcome = outcome
                commit.follows = None  # or a chain would never be forgotten
        return found

    def _key(self, number: int) -> Key:
        commit = self._batch[number]
        assert isinstance(commit, ChainedCommit)
        return commit.key


class CommitBatcher(Batcher[Commit, Outcome]):
    """Joins commits; one that was sent is waited for whatever happens, see the module."""

    _starts_late = True

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(self._deliver, max_weight=MAX_BATCH_WRITES)
        self._adapter = adapter
        # Whether the adapter answered the last lone commit without suspending. Then nothing can interrupt it,
        # and the task group that keeps cancellation away (70 µs) is not needed.
        self._inline = False
        self._kept: BaseException | None = None
        self._token_prefix = os.urandom(10)
        self._token_count = 0

    def token(self) -> bytes:
        """A new name for a commit."""
        self._token_count += 1
        return self._token_prefix + self._token_count.to_bytes(6, "big")

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
            gathers = self._last > 1
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
        self._adapter.encode(commit)
        call: _Call[Commit, Outcome] = _Call(commit, _weight(commit), self._make_waiter())
        self._queue.append(call)
        kept = None
        try:
            if gathers:
                call.state = _State.LEADS
                await checkpoint()
            elif deadline == math.inf:
                await call.wake.wait()
            else:
                with anyio.CancelScope(deadline=deadline):
                    await call.wake.wait()
        except anyio.get_cancelled_exc_class() as exc:
            if call.state is not _State.SENT and call.state is not _State.DONE:
                self._withdraw(call)
                raise
            kept = exc
        except BaseException:
            self._withdraw(call)
            raise
        if call.state is _State.WAITING:  # the deadline passed
            self._withdraw(call)
            raise _too_late()
        if call.state is _State.LEADS:
            if deadline != math.inf and anyio.current_time() >= deadline:
                self._withdraw(call)
                raise _too_late()
            await self._lead()
            kept, self._kept = self._kept, None
            kept = await outlast(call.wake) or kept  # this task is one of those that the next batch goes before
        elif call.state is _State.SENT:
            kept = await outlast(call.wake) or kept
        if kept is not None and call.error is not None:
            raise kept from call.error
        return _checked(call.result(), kept), kept

    def _interrupted(self, batch: list[_Call[Commit, Outcome]], exc: BaseException) -> None:
        """Only a loop that is being torn down, or ctrl-C, gets here."""
        for call in batch:
            if call.state is _State.SENT:
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
        chains = _Chains(batch)
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


def _is_of_one_request(exc: Exception) -> bool:
    """Whether an error comes from some request's data, so that the others of its batch would succeed.

    Adapters raise such errors before they apply anything of a batch.
    """
    return isinstance(exc, DatastoreError) and not isinstance(exc, UnavailableError | DeadlineExceededError)


def _settle_all(batch: Sequence[_Call[Any, Any]], exc: Exception) -> None:
    for call in batch:
        if call.state is _State.SENT:
            call.settle(None, own_error(exc) if len(batch) > 1 else exc)


def _lost(exc: BaseException | None) -> UnavailableError:
    error = UnavailableError("the batch of this commit was cut off while it was sent: it may have taken effect")
    error.__cause__ = exc
    return error


def _too_late() -> NotSentError:
    return NotSentError("the timeout passed before the commit was sent: nothing was written")


def _never(keys: Sequence[Key]) -> None:
    """``lookup_now`` of an adapter that always has to wait."""


class Channel:
    """An adapter and the lines in front of it: what ``Datastore`` and its transactions do their I/O with."""

    __slots__ = (
        "_breathing",
        "_clock",
        "_current",
        "_eventual",
        "adapter",
        "commits",
        "lookup_now",
        "lookups",
        "yield_at",
    )

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.commits = CommitBatcher(adapter)
        self.lookups: Batcher[Sequence[Key], Lookup] = Batcher(self._lookup_strong, max_weight=MAX_BATCH_KEYS)
        self._eventual: Batcher[Sequence[Key], Lookup] = Batcher(self._lookup_eventual, max_weight=MAX_BATCH_KEYS)
        self.commits.others = [self.lookups]
        self.lookups.others = [self.commits]
        self._current = self.lookups
        if Capability.CURRENT_READS not in adapter.capabilities:
            self._current = Batcher(self._lookup_current, max_weight=MAX_BATCH_KEYS)
        self.lookup_now = adapter.lookup_now if Capability.INLINE_READS in adapter.capabilities else _never
        self.yield_at = 0.0
        self._breathing = 0
        self._clock = time.perf_counter

    async def lookup(self, keys: Sequence[Key], read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """Entities of at most :data:`MAX_BATCH_KEYS` complete keys; those of a key named twice are two."""
        if self._clock() >= self.yield_at:
            await self.breathe()
        if read_policy is ReadPolicy.STRONG:
            line = self.lookups
        else:
            line = self._current if read_policy is ReadPolicy.CURRENT else self._eventual
        return await line.call(keys, len(keys))

    async def commit(self, commit: Commit, deadline: float = math.inf) -> tuple[Outcome, BaseException | None]:
        """See :meth:`CommitBatcher.settle`; before it is sent, a task that held the loop lets others run."""
        if self._clock() >= self.yield_at:
            await self.breathe()
        return await self.commits.settle(commit, deadline)

    async def breathe_if_due(self) -> None:
        """:meth:`breathe` if this task may have held the loop for :data:`MAX_HOLD_S`."""
        if self._clock() >= self.yield_at:
            await self.breathe()

    async def breathe(self) -> None:
        """Let other tasks run, and notice cancellation. Not needed again for :data:`MAX_HOLD_S`."""
        self.yield_at = self._clock() + max(MIN_HOLD_S, MAX_HOLD_S / (1 + self._breathing))
        self._breathing += 1
        try:
            await checkpoint()
        finally:
            self._breathing -= 1
        self.yield_at = self._clock() + max(MIN_HOLD_S, MAX_HOLD_S / (1 + self._breathing))

    async def wait_idle(self) -> None:
        """Return when no call is under way."""
        for line in {self.lookups, self._current, self._eventual}:
            await line.wait_idle()
        await self.commits.wait_idle()

    async def _lookup_strong(self, batch: list[Sequence[Key]]) -> Sequence[Lookup]:
        if len(batch) == 1 and len(batch[0]) == 1:
            return (await self.adapter.lookup(batch[0]),)
        return await self._lookup(batch, ReadPolicy.STRONG)

    async def _lookup_eventual(self, batch: list[Sequence[Key]]) -> list[Lookup]:
        return await self._lookup(batch, ReadPolicy.EVENTUAL)

    async def _lookup_current(self, batch: list[Sequence[Key]]) -> list[Lookup]:
        return await self._lookup(batch, ReadPolicy.CURRENT)

    async def _lookup(self, batch: list[Sequence[Key]], read_policy: ReadPolicy) -> list[Lookup]:
        wanted = [key for keys in batch for key in keys]
        unique = list(dict.fromkeys(wanted))
        found = await self.adapter.lookup(unique, read_policy=read_policy)
        if len(unique) == len(wanted) and found.moments is None:  # nearly always
            version, clock, each = found.version, found.clock, iter(found.entities)
            return [Lookup(list(islice(each, len(keys))), version, clock) for keys in batch]
        places = {key: place for place, key in enumerate(unique)}
        taken: set[Key] = set()
        answers = []
        for keys in batch:
            own: list[Entity | None] = []
            for key in keys:
                entity = found.entities[places[key]]
                if entity is not None and key in taken:
                    entity = entity.snapshot()
                taken.add(key)
                own.append(entity)
            answers.append(found.part(own, [places[key] for key in keys]))
        return answers
