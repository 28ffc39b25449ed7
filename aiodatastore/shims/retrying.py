"""What failed for reasons that pass is tried again, where that can do no harm."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

import anyio

from aiodatastore.adapters.base import Adapter, Commit, Outcome, written_key
from aiodatastore.adapters.registry import parse_float, parse_int
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, StoreClosedError, StoreFullError, StoreReadOnlyError, UnavailableError
from aiodatastore.key import Key
from aiodatastore.rowstore import EXISTS
from aiodatastore.shims.around import READS, Around, Call, number, whole_number

__all__ = ["Retrying"]

T = TypeVar("T")

_HARMLESS: Final = frozenset(
    # Ids that nobody was told of are lost, and there are enough; an index is made and built once, however often asked.
    {
        *READS,
        "open",
        "allocate_ids",
        "prepared",
        "indexes",
        "create_index",
        "build_index",
        "check",
        "stats",
        "partitions",
    }
)
_LASTING: Final = (StoreClosedError, StoreReadOnlyError, StoreFullError)


class Retrying(Around):
    """Reads, and commits that certainly wrote nothing, are tried again while the store is away.

    >>> import asyncio
    >>> from aiodatastore import Datastore, Key
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> from aiodatastore.shims.failing import Failing
    >>> async def main():
    ...     failing = Failing(adapter_from_url("memory://"), rate=0.5, seed=7)
    ...     async with Datastore(Retrying(failing, attempts=20, base_s=0.001)) as ds:
    ...         return [await ds.get(Key("Person", name)) for name in ("ada", "bob", "eve")]
    >>> asyncio.run(main())
    [None, None, None]

    It is for ``UnavailableError``, but not for stores that are closed, full or read-only: that does not pass by itself.
    There are up to ``attempts`` tries; before the n-th new one it waits a random time between 0 and
    ``base_s * 2**(n-1)`` seconds, at most ``max_s`` (full jitter). The last error is raised as it is.

    A commit is tried again if its error says that nothing was written
    (:attr:`~aiodatastore.errors.UnavailableError.nothing_written`). What may have taken effect is never repeated
    blindly: only commits that can't take effect twice, as they demand the version that an entity they write has had. If
    such a repeat succeeds, the first try had not taken effect; if it meets a conflict, that may be with its own first
    try, and the first error is raised, as nobody can tell. Transactions that change what they have read are such
    commits; an unconditional put is not, nor is an insert, as what was inserted may have been deleted since, nor is
    what ``prepare``, ``resolve``, ``reserve_ids`` or ``delete_index`` changes.

    PostgreSQL and Redis stores wait for a lost server themselves (``retry_s``), and know their own commits again.

    :raises BadArgumentError: fewer than 1 attempt, a time that is negative, or ``max_s`` less than ``base_s``
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "attempts": parse_int,
        "base_s": parse_float,
        "max_s": parse_float,
    }

    def __init__(
        self,
        child: Adapter,
        attempts: int = 5,
        *,
        base_s: float = 0.05,
        max_s: float = 2.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(child)
        self._attempts = whole_number("attempts", attempts)
        self._base_s = number("base_s", base_s)
        self._max_s = number("max_s", max_s)
        if self._max_s < self._base_s:
            raise BadArgumentError(f"max_s: expected at least base_s ({base_s!r}), got {max_s!r}")
        self._random = random.Random(seed)

    @property
    def settings(self) -> Mapping[str, object]:
        """Attempts and pauses."""
        return {"attempts": self._attempts, "base_s": self._base_s, "max_s": self._max_s}

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """What the child has at hand; if it can't say, :meth:`lookup` tries again."""
        try:
            return self.child.lookup_now(keys)
        except UnavailableError as exc:
            if isinstance(exc, _LASTING):
                raise
            return None

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Do it until it succeeds, as often as is allowed and harmless."""
        attempt = 1
        while True:
            try:
                return await work()
            except UnavailableError as exc:
                if not self._again(exc, attempt) or not (call.operation in _HARMLESS or exc.nothing_written):
                    raise
            await self._pause(attempt)
            attempt += 1

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Hand on to the child; what certainly wrote nothing, or can't happen twice, again.

        A repeat may come after those that stood behind it.
        """
        outcomes: dict[int, Outcome] = {}
        doubts: dict[int, UnavailableError] = {}  # of the first tries that may have taken effect
        pending = list(range(len(batch)))
        attempt = 1
        while True:
            tried = [batch[place] for place in pending]
            try:
                answers = await self.child.commit(tried)
            except UnavailableError as exc:
                # Who shares a batch with one that can't be repeated is not: what became of the batch is not known.
                harmless = all(_may_repeat(commit, exc) for commit in tried)
                if len(pending) == len(batch) and not doubts and not (harmless and self._again(exc, attempt)):
                    raise
                answers = [Outcome(None, error=exc) for _ in tried]
            else:
                harmless = True
            again = []
            for place, commit, answer in zip(pending, tried, answers, strict=True):
                error = answer.error
                if isinstance(error, UnavailableError):
                    if harmless and self._again(error, attempt) and _may_repeat(commit, error):
                        again.append(place)
                        if not error.nothing_written:
                            doubts.setdefault(place, error)
                        continue
                elif answer.committed or not commit.writes:
                    doubts.pop(place, None)
                # In doubt, a conflict may be with its own first try, and no refusal says anything of that.
                outcomes[place] = Outcome(None, error=doubts[place]) if place in doubts else answer
            if not again:
                return [outcomes[place] for place in range(len(batch))]
            pending = again
            await self._pause(attempt)
            attempt += 1

    def _again(self, exc: UnavailableError, attempt: int) -> bool:
        return attempt < self._attempts and not isinstance(exc, _LASTING)

    async def _pause(self, attempt: int) -> None:
        await anyio.sleep(self._random.uniform(0.0, min(self._max_s, self._base_s * 2 ** (attempt - 1))))


def _may_repeat(commit: Commit, exc: UnavailableError) -> bool:
    return exc.nothing_written or _can_not_happen_twice(commit)


def _can_not_happen_twice(commit: Commit) -> bool:
    """Whether, once it took effect, its own checks refuse it: it changes an entity of which it checks the version.

    A version never comes again. Absence does, so a put of what must not exist is not safe: it may have taken effect,
    and been deleted by somebody since.
    """
    checked = [commit.checks.get(written_key(write), EXISTS) > 0 for write in commit.writes]
    return not checked or (any(checked) if commit.atomic else all(checked))
