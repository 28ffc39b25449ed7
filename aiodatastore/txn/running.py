"""Running functions and blocks in transactions: when to begin one, and when to try again."""

from __future__ import annotations

import enum
import functools
import inspect
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio

from aiodatastore.adapters.base import ReadPolicy
from aiodatastore.arguments import check_retries, check_timeout
from aiodatastore.batching import NotSentError
from aiodatastore.contention import MAX_LINES
from aiodatastore.errors import (
    BadArgumentError,
    DeadlineExceededError,
    Rollback,
    TransactionFailedError,
    TransactionStateError,
)
from aiodatastore.key import Key
from aiodatastore.txn.current import Frame, current_frame, transaction_of
from aiodatastore.txn.transaction import State, Transaction, within
from aiodatastore.txn.view import conflict

if TYPE_CHECKING:
    from aiodatastore.datastore import Datastore

__all__ = [
    "BACKOFF_S",
    "MAX_BACKOFF_S",
    "MAX_COLLISIONS",
    "NonTransactional",
    "Propagation",
    "TransactionContext",
    "check_async",
    "run_in_transaction",
]

P = ParamSpec("P")
T = TypeVar("T")

BACKOFF_S = 0.002
"""Upper bound of the first pause before a retry; it doubles each time. The pause is random below it."""
MAX_BACKOFF_S = 1.0
MAX_COLLISIONS = 64
"""Attempts, beyond the retries, that may be spent on automatic ids that met entities put under explicit ones."""


class Propagation(enum.StrEnum):
    """What a transactional call does when there is a transaction already (and when there is none)."""

    ALLOWED = "allowed"
    """Join it; outside begin one."""
    MANDATORY = "mandatory"
    """Join it; outside raise ``TransactionStateError``."""
    INDEPENDENT = "independent"
    """Pause it and begin another, which commits or fails on its own."""
    NESTED = "nested"
    """Begin one within it, whose writes join the outer one's when it ends well and vanish when it does not."""


class _TransactionTimeoutError(TransactionFailedError, DeadlineExceededError):
    """The time of a transaction was used up."""


async def run_in_transaction(
    datastore: Datastore,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    retries: int,
    timeout: float | None,
    read_only: bool,
    propagation: Propagation | None,
) -> Any:
    """See ``Datastore.run_in_transaction``."""
    check_retries(retries)
    check_timeout(timeout)
    inside = transaction_of(datastore)
    how = _how(inside, propagation)
    if how is Propagation.ALLOWED:
        return await within(timeout, _call(function, args, kwargs))
    if how is Propagation.NESTED:
        return await within(timeout, _run_nested(inside, function, args, kwargs, read_only))
    return await _run_new(datastore, function, args, kwargs, retries, timeout, read_only)


def _how(inside: Transaction | None, propagation: Propagation | None) -> Propagation:
    """ALLOWED: join the current one; NESTED: begin one in it; INDEPENDENT: begin one."""
    if propagation is not None and not isinstance(propagation, Propagation):
        raise BadArgumentError(f"propagation: expected a Propagation, got {propagation!r:.80}")
    if inside is None:
        if propagation is Propagation.MANDATORY:
            raise TransactionStateError("propagation MANDATORY: there is no current transaction; call this inside one")
        return Propagation.INDEPENDENT
    if propagation is None:
        inside.check_usable()
        raise TransactionStateError(
            "there is a current transaction already: say with propagation= whether to join it (ALLOWED), to nest "
            "(NESTED), or to begin an independent one (INDEPENDENT)"
        )
    if propagation is Propagation.INDEPENDENT:
        return propagation
    inside.check_usable()
    return Propagation.NESTED if propagation is Propagation.NESTED else Propagation.ALLOWED


async def _call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    result = function(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def _is_rollback(exc: BaseException) -> bool:
    """Whether this is a Rollback, or (from a task group) nothing but Rollbacks."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_rollback, exc.exceptions))
    return isinstance(exc, Rollback)


async def _run_nested(
    parent: Transaction | None,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    read_only: bool,
) -> Any:
    assert parent is not None
    async with TransactionContext(parent._datastore, Propagation.NESTED, read_only):
        return await _call(function, args, kwargs)
    return None  # rolled back


async def _run_new(
    datastore: Datastore,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    retries: int,
    timeout: float | None,
    read_only: bool,
) -> Any:
    deadline = math.inf if timeout is None else anyio.current_time() + timeout
    # One that runs inside of another must not wait in a line that the other may hold.
    queues = transaction_of(datastore) is None
    attempts = conflicts = collisions = 0
    contended: set[Key] = set()
    while True:
        attempts += 1
        # What a cache has may be why the last attempt failed.
        policy = ReadPolicy.STRONG if attempts == 1 else ReadPolicy.CURRENT
        transaction = Transaction(datastore, read_only=read_only, managed=True, queues=queues, read_policy=policy)
        attempt = _Attempt(transaction, contended if queues else ())
        if await attempt.run(function, args, kwargs, deadline):
            return attempt.result
        if attempt.timed_out:
            raise _timed_out(timeout, attempts)
        if transaction.collided and len(transaction.collided) == len(transaction._view.contended):
            collisions += 1
            await _skip_ids(datastore, transaction.collided, collisions)
            if collisions <= MAX_COLLISIONS:
                continue
        contended |= transaction._view.contended.difference(transaction.collided)
        if conflicts >= retries:
            raise _exhausted(attempts, contended) from attempt.error
        pause = random.uniform(0, min(MAX_BACKOFF_S, BACKOFF_S * 2**conflicts))
        conflicts += 1
        if deadline != math.inf and anyio.current_time() + pause >= deadline:
            raise _timed_out(timeout, attempts) from attempt.error
        await anyio.sleep(pause)


class _Attempt:
    """One run of a transactional function, and its commit."""

    __slots__ = ("contended", "error", "result", "timed_out", "transaction")

    def __init__(self, transaction: Transaction, contended: Iterable[Key]) -> None:
        self.transaction = transaction
        self.contended = contended
        self.result: Any = None
        self.error: Exception | None = None
        self.timed_out = False

    async def run(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], deadline: float
    ) -> bool:
        """Whether the transaction is done: committed, or rolled back as the function wished."""
        transaction = self.transaction
        outer = current_frame.get()
        try:
            if deadline == math.inf:
                done = await self._call(function, args, kwargs)
            else:
                done = None
                with anyio.CancelScope(deadline=deadline) as scope:
                    done = await self._call(function, args, kwargs)
                if scope.cancelled_caught:
                    self.timed_out = True
                    return False
            current_frame.set(outer)
            if done is None:
                try:
                    done = await transaction._try_commit(deadline)
                except NotSentError:
                    self.timed_out = True
                    return False
            return done
        finally:
            current_frame.set(outer)
            transaction._discard()
            transaction._leave_lines()

    async def _call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool | None:
        """True: rolled back on request; False: a conflict; None: to be committed."""
        transaction = self.transaction
        contention = transaction._datastore._contention
        for key in sorted(self.contended)[:MAX_LINES]:
            if await contention.enter(key):
                transaction._take_place(key)
        current_frame.set(Frame(transaction._datastore, transaction, current_frame.get()))
        try:
            self.result = await _call(function, args, kwargs)
        except Exception as exc:
            self.result = None
            try:
                await transaction._view.know()
            except TransactionFailedError:
                self.error = exc
                return False
            if not transaction._view.doomed:
                if _is_rollback(exc):
                    return True
                if not await transaction._is_stale():
                    raise
            self.error = exc
            return False
        return None


async def _skip_ids(datastore: Datastore, collided: Iterable[Key], collisions: int) -> None:
    for key in {(key.project, key.namespace, key.kind): key for key in collided}.values():
        await datastore._ids.take(key, 0, skip=2**collisions)


def _timed_out(timeout: float | None, attempts: int) -> _TransactionTimeoutError:
    return _TransactionTimeoutError(
        f"the transaction's time of {timeout} s was used up in attempt {attempts}: nothing was written",
        attempts=attempts,
    )


def _exhausted(attempts: int, contended: Iterable[Key]) -> TransactionFailedError:
    named = ", ".join(map(repr, sorted(contended)[:3]))
    what = f" on {named}" if named else ""
    return TransactionFailedError(
        f"the transaction met a conflict{what} on each of {attempts} attempts: nothing was written; allow more "
        "retries, or let fewer transactions change the same entities",
        attempts=attempts,
    )


class TransactionContext:
    """``async with datastore.transaction() as transaction``: one attempt, committed at the end of the block."""

    __slots__ = ("_datastore", "_outer", "_propagation", "_read_only", "_transaction")

    def __init__(self, datastore: Datastore, propagation: Propagation | None, read_only: bool) -> None:
        self._datastore = datastore
        self._propagation = propagation
        self._read_only = read_only
        self._transaction: Transaction | None = None
        self._outer: Frame | None = None

    async def __aenter__(self) -> Transaction:
        inside = transaction_of(self._datastore)
        how = _how(inside, self._propagation)
        if how is Propagation.ALLOWED and inside is not None:
            return inside
        parent = inside if how is Propagation.NESTED else None
        read_only = self._read_only or (parent is not None and parent.read_only)
        self._transaction = Transaction(
            self._datastore, read_only=read_only, parent=parent, managed=parent is not None and parent._managed
        )
        self._outer = current_frame.get()
        current_frame.set(Frame(self._datastore, self._transaction, self._outer))
        return self._transaction

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        transaction, self._transaction = self._transaction, None
        if transaction is None:  # joined
            return False
        try:
            if transaction._state is not State.ACTIVE:  # ended by hand
                return exc is not None and _is_rollback(exc)
            if exc is None:
                current_frame.set(self._outer)
                if not await transaction._try_commit(math.inf):
                    raise conflict(transaction._view.contended)
                return False
            if not isinstance(exc, Exception):
                return False
            if transaction._parent is not None:
                return _is_rollback(exc) and not transaction._view.doomed
            if _is_rollback(exc):
                return True
            if not transaction._view.doomed and not await transaction._is_stale():
                return False
            if isinstance(exc, TransactionFailedError) and transaction._view.doomed:
                return False
            raise conflict(transaction._view.contended) from exc
        finally:
            current_frame.set(self._outer)
            transaction._discard()


class NonTransactional:
    """``datastore.non_transactional``: a decorator and context manager that pauses the current transaction."""

    __slots__ = ("_allow_existing", "_datastore", "_outer")

    def __init__(self, datastore: Datastore, allow_existing: bool) -> None:
        self._datastore = datastore
        self._allow_existing = allow_existing
        self._outer: list[Frame | None] = []

    def __enter__(self) -> None:
        if not self._allow_existing and transaction_of(self._datastore) is not None:
            raise TransactionStateError("this is not allowed inside a transaction (allow_existing=False)")
        self._outer.append(current_frame.get())
        current_frame.set(Frame(self._datastore, None, self._outer[-1]))

    def __exit__(self, *exc_info: object) -> None:
        current_frame.set(self._outer.pop())

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__()

    def __call__(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        check_async(function)

        @functools.wraps(function)
        async def paused(*args: P.args, **kwargs: P.kwargs) -> T:
            with NonTransactional(self._datastore, self._allow_existing):
                return await function(*args, **kwargs)

        return paused


def check_async(function: Any) -> None:
    """:raises BadArgumentError: unless it is a coroutine function"""
    if not inspect.iscoroutinefunction(inspect.unwrap(function) if callable(function) else function) and not (
        inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004  (its type is asked for)
    ):
        raise BadArgumentError(f"expected an async function (async def without yield), got {function!r:.120}")
