"""Bounds on what is asked of a store: how large, how often, how much at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

import anyio

from aiodatastore.adapters.base import Adapter, Commit, Lookup, Outcome, Put, ReadPolicy
from aiodatastore.adapters.registry import parse_float, parse_int
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, LimitExceededError, OverloadedError
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.serializers import MsgpackSerializer
from aiodatastore.shims.around import READS, WRITES, Around, Call, number, whole_number

__all__ = ["Limited"]

T = TypeVar("T")

_LIMITED: Final = frozenset({*READS, *WRITES})
_UNTIL_WOKEN: Final = float("inf")
_clock = time.monotonic


class Limited(Around):
    """Refuses what is too large, and lets the rest pass no faster, and no more at once, than it may.

    >>> import asyncio
    >>> from aiodatastore import Datastore, Entity, Key, LimitExceededError
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     async with Datastore(Limited(adapter_from_url("memory://"), max_entity_bytes=1000)) as ds:
    ...         try:
    ...             await ds.put(Entity(Key("Note", 1), {"text": "x" * 1200}))
    ...         except LimitExceededError as exc:
    ...             return exc.limit, exc.allowed, exc.given
    >>> asyncio.run(main())
    ('max_entity_bytes', 1000, 1211)

    - ``max_entity_bytes``: of an entity's properties, as the default serializer writes them.
    - ``max_batch``: entities in one commit, and keys in one lookup. Calls that travel together are told apart.
    - ``rate``: operations a second, on average; up to ``burst`` (by default those of a second) may come at once after a
      pause. A batch of calls that travel together is one operation, as is a page of a query.
    - ``concurrency``: operations under way at once.
    - ``max_waiting``: operations that may wait for the last two; one more is refused at once. None: any number.

    Who waits is served in order of coming; who is cancelled leaves the line, and takes nothing along. With a rate or a
    concurrency ``INLINE_READS`` is lost, as reads may have to wait. The bounds are of this shim, in this process; they
    hold for lookups, pages, aggregates, commits and the allocation of ids.

    :raises BadArgumentError: a limit that is no number greater than 0, ``burst`` without ``rate``, ``max_waiting``
        without ``rate`` or ``concurrency``, no limit at all
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "max_entity_bytes": parse_int,
        "max_batch": parse_int,
        "rate": parse_float,
        "burst": parse_int,
        "concurrency": parse_int,
        "max_waiting": parse_int,
    }

    def __init__(
        self,
        child: Adapter,
        *,
        max_entity_bytes: int | None = None,
        max_batch: int | None = None,
        rate: float | None = None,
        burst: int | None = None,
        concurrency: int | None = None,
        max_waiting: int | None = None,
    ) -> None:
        super().__init__(child)
        given = {
            "max_entity_bytes": max_entity_bytes,
            "max_batch": max_batch,
            "rate": rate,
            "burst": burst,
            "concurrency": concurrency,
            "max_waiting": max_waiting,
        }
        self._given = {name: value for name, value in given.items() if value is not None}
        for name, value in self._given.items():
            if name == "rate":
                number(name, value, above=True)
            else:
                whole_number(name, value, least=0 if name == "max_waiting" else 1)
        if not self._given:
            raise BadArgumentError(f"expected one limit at least, of {', '.join(given)}")
        if burst is not None and rate is None:
            raise BadArgumentError("burst is how many may come at once where there is a rate; give a rate, too")
        if max_waiting is not None and rate is None and concurrency is None:
            raise BadArgumentError("max_waiting: nobody waits without a rate or a concurrency")
        self._max_entity_bytes = max_entity_bytes
        self._max_batch = max_batch
        self._gate = None if rate is None and concurrency is None else _Gate(rate, burst, concurrency, max_waiting)
        self._dumps = MsgpackSerializer().dumps
        if self._gate is None and max_batch is None:
            self.__dict__["lookup_now"] = child.lookup_now  # as Shim does: there is nothing to look at

    @property
    def settings(self) -> Mapping[str, object]:
        """The limits."""
        return dict(self._given)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The child's; reads may have to wait."""
        lost = set() if self._gate is None else {Capability.INLINE_READS}
        return self.child.capabilities - lost

    # ----------------------------------------------------------------------------------------- sizes

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """What the child has at hand, if nothing has to wait and there are not too many keys."""
        if self._gate is not None:
            return None
        self._check_keys(keys)
        return self.child.lookup_now(keys)

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """Ask the child.

        :raises LimitExceededError: if there are too many keys
        """
        self._check_keys(keys)
        return await super().lookup(keys, read_policy=read_policy)

    def _check_keys(self, keys: Sequence[Key]) -> None:
        if self._max_batch is not None and len(keys) > self._max_batch:
            raise self._too_many(len(keys), "keys in one lookup")

    def _too_many(self, given: int, what: str) -> LimitExceededError:
        allowed = self._max_batch or 0
        return LimitExceededError(
            f"{given} {what}, at most {allowed} are allowed (max_batch)",
            limit="max_batch",
            allowed=allowed,
            given=given,
        )

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Hand on what is not too large.

        :raises LimitExceededError: as each other commit's error
        """
        errors = [self._excess(commit) for commit in batch]
        if not any(errors):
            return await super().commit(batch)
        passing = [commit for commit, error in zip(batch, errors, strict=True) if error is None]
        found = iter(await super().commit(passing) if passing else [])
        return [next(found) if error is None else Outcome(None, error=error) for error in errors]

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Hand on what is not too large.

        :raises LimitExceededError: as the outcome's error
        """
        error = self._excess(commit)
        return await super().prepare(commit, name) if error is None else Outcome(None, error=error)

    def _excess(self, commit: Commit) -> LimitExceededError | None:
        if self._max_batch is not None and len(commit.writes) > self._max_batch:
            return self._too_many(len(commit.writes), "entities in one commit")
        allowed = self._max_entity_bytes
        if allowed is not None:
            for write in commit.writes:
                if not isinstance(write, Put):
                    continue
                size = len(self._dumps(write.entity))
                if size > allowed:
                    return LimitExceededError(
                        f"{write.entity.key!r} has {size} bytes, at most {allowed} are allowed (max_entity_bytes)",
                        limit="max_entity_bytes",
                        allowed=allowed,
                        given=size,
                    )
        return None

    # ----------------------------------------------------------------------------------------- turns

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Do it when its turn has come.

        :raises OverloadedError: if too many wait already
        """
        gate = self._gate
        if gate is None or call.operation not in _LIMITED:
            return await work()
        await gate.enter()
        try:
            return await work()
        finally:
            gate.leave()


class _Gate:
    """A line before a token bucket and a number of places."""

    def __init__(self, rate: float | None, burst: int | None, concurrency: int | None, max_waiting: int | None) -> None:
        self._rate = rate
        self._burst = float(burst or max(1.0, rate or 1.0))
        self._tokens = self._burst
        self._filled_at = _clock()
        self._free = concurrency
        self._max_waiting = max_waiting
        self._line: deque[anyio.Event] = deque()
        """Those who wait; an event is set when its owner is the first, and when a place may be free."""

    async def enter(self) -> None:
        """Return when it is one's turn, a place is free and a token was there; both are taken."""
        if not self._line and not self._wait_s():
            self._take()
            return
        if self._max_waiting is not None and len(self._line) >= self._max_waiting:
            raise OverloadedError(
                f"{len(self._line)} operations wait already, no more than max_waiting={self._max_waiting} may"
            )
        mine = anyio.Event()
        self._line.append(mine)
        try:
            while True:
                if self._line[0] is not mine:
                    await mine.wait()
                wait_s = self._wait_s()
                if not wait_s:
                    break
                if wait_s is _UNTIL_WOKEN:
                    mine = self._line[0] = anyio.Event()
                    await mine.wait()
                else:
                    await anyio.sleep(wait_s)
            self._take()
        finally:
            self._line.remove(mine)
            self._wake()

    def leave(self) -> None:
        """Give the place back."""
        if self._free is not None:
            self._free += 1
            self._wake()

    def _wake(self) -> None:
        if self._line:
            self._line[0].set()

    def _wait_s(self) -> float:
        """Seconds until the first may go; 0: now."""
        if self._free == 0:
            return _UNTIL_WOKEN
        if self._rate is None:
            return 0.0
        now = _clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return 0.0 if self._tokens >= 1 else max(1e-6, (1 - self._tokens) / self._rate)

    def _take(self) -> None:
        if self._rate is not None:
            self._tokens -= 1
        if self._free is not None:
            self._free -= 1
