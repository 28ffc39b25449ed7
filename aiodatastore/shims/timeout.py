"""A bound on how long a store may take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Final, TypeVar

import anyio

from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import parse_float
from aiodatastore.errors import DeadlineExceededError
from aiodatastore.shims.around import READS, Around, Call, number

__all__ = ["Timeout"]

T = TypeVar("T")

_COMMITS: Final = frozenset({"commit", "prepare", "resolve"})
_BOUNDED: Final = frozenset({*READS, "open", "allocate_ids", "reserve_ids", "indexes", "prepared"})


class Timeout(Around):
    """Whatever takes more than ``seconds`` is given up, with ``DeadlineExceededError``.

    >>> import asyncio
    >>> from aiodatastore import Datastore, DeadlineExceededError, Key
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> from aiodatastore.shims.delayed import Delayed
    >>> async def main():
    ...     async with Datastore(Timeout(Delayed(adapter_from_url("memory://"), 1.0), 0.01)) as ds:
    ...         try:
    ...             await ds.get(Key("Person", "ada"))
    ...         except DeadlineExceededError as exc:
    ...             return str(exc)
    >>> asyncio.run(main())
    'no answer to lookup of Person within 0.01 s'

    It bounds lookups, pages of queries, aggregates, the allocation of ids and opening, each by itself: not
    transactions, and not what takes as long as there is data (``check``, ``stats``, building indexes). Reads that are
    at hand are answered at once, as without it.

    A commit that was sent is waited for, so that its outcome is known; unless ``commit_seconds`` is given: then it is
    given up after these, and the error says that it may have taken effect. Like all that is joined into one batch, the
    others of its batch get the same error.

    :raises BadArgumentError: if a time is not greater than 0
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"seconds": parse_float, "commit_seconds": parse_float}

    def __init__(self, child: Adapter, seconds: float, *, commit_seconds: float | None = None) -> None:
        super().__init__(child)
        self._seconds = number("seconds", seconds, above=True)
        self._commit_seconds = None if commit_seconds is None else number("commit_seconds", commit_seconds, above=True)

    @property
    def settings(self) -> Mapping[str, object]:
        """The seconds."""
        return {"seconds": self._seconds, "commit_seconds": self._commit_seconds}

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Do it, and give it up when its time has passed.

        :raises DeadlineExceededError: if it was given up
        """
        operation = call.operation
        if operation in _COMMITS:
            seconds = self._commit_seconds
        else:
            seconds = self._seconds if operation in _BOUNDED else None
        if seconds is None:
            return await work()
        with anyio.move_on_after(seconds):
            return await work()
        what = f"{operation} of {call.kind}" if call.kind else operation
        fate = ": it may have taken effect" if operation in _COMMITS and _writes(call) else ""
        raise DeadlineExceededError(f"no answer to {what} within {seconds:g} s{fate}")


def _writes(call: Call) -> bool:
    return call.operation == "resolve" or any(commit.writes for commit in call.commits)
