"""Faults on purpose: what a program does when its store fails can be tested."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from aiodatastore import errors
from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import parse_float, parse_int
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, DatastoreError, UnavailableError
from aiodatastore.key import Key
from aiodatastore.shims.around import READS, WRITES, Around, Call, chosen_operations, number, parse_names

__all__ = ["Failing"]

T = TypeVar("T")

_WHEN: Final = ("before", "after", "both")


def _parse_error(text: str) -> type[DatastoreError]:
    found = getattr(errors, text, None) if text in errors.__all__ else None
    if found is None:
        raise ValueError("expected the name of an error, such as UnavailableError")
    return found  # type: ignore[no-any-return]  # the module has nothing but errors


class Failing(Around):
    """Some operations raise an error, at random: before the child was asked, or after, when the answer is lost.

    >>> import asyncio
    >>> from aiodatastore import Datastore, Key, UnavailableError
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     failing = Failing(adapter_from_url("memory://"), rate=1.0, operations=["lookup"])
    ...     async with Datastore(failing) as ds:
    ...         try:
    ...             await ds.get(Key("Person", "ada"))
    ...         except UnavailableError as exc:
    ...             return str(exc), failing.injected["lookup"]
    >>> asyncio.run(main())
    ('fault on purpose, before lookup', 1)

    ``rate`` is the share of operations that fail, from 0 to 1. Which ones is drawn from ``seed``, in the order in which
    operations begin, so that a run can be repeated. ``when``: ``before``, ``after`` (what was asked took effect, and
    nobody is told) or ``both``, one or the other. ``operations`` names those that may fail (see
    :data:`~aiodatastore.shims.around.OPERATIONS`): by default what applications do. ``error`` is a class, or a function
    that makes one of a text. An ``UnavailableError`` before a commit says that nothing was written.

    ``enabled`` can be switched off and on; ``injected`` counts the faults of each operation. A page of a query that was
    read and lost is what the next call reads.

    :raises BadArgumentError: a rate outside 0 to 1, an unknown operation or ``when``
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "rate": parse_float,
        "seed": parse_int,
        "when": str,
        "operations": parse_names,
        "error": _parse_error,
    }

    def __init__(
        self,
        child: Adapter,
        rate: float,
        *,
        seed: int = 0,
        when: str = "before",
        operations: Iterable[str] | None = None,
        error: Callable[[str], Exception] = UnavailableError,
    ) -> None:
        super().__init__(child)
        self._rate = number("rate", rate, most=1.0)
        if when not in _WHEN:
            raise BadArgumentError(f"when: expected one of {', '.join(_WHEN)}; got {when!r:.80}")
        if not callable(error):
            raise BadArgumentError(f"error: expected a class of errors, or a function, got {error!r:.80}")
        self._when = when
        self._seed = seed
        self._random = random.Random(seed)
        self._operations = chosen_operations(operations, (*READS, *WRITES))
        self._error = error
        self.enabled = True
        self.injected: Counter[str] = Counter()

    @property
    def settings(self) -> Mapping[str, object]:
        """Rate, seed, when, operations and error."""
        return {
            "rate": self._rate,
            "seed": self._seed,
            "when": self._when,
            "operations": tuple(sorted(self._operations)),
            "error": getattr(self._error, "__name__", repr(self._error)),
        }

    def _drawn(self, operation: str) -> str:
        """When the next operation fails; "" if it does not."""
        if not self.enabled or operation not in self._operations:
            return ""
        fails, late = self._random.random() < self._rate, self._random.random() < 0.5  # always both: the same draws
        if not fails:
            return ""
        return ("after" if late else "before") if self._when == "both" else self._when

    def _fault(self, operation: str, when: str) -> Exception:
        self.injected[operation] += 1
        error = self._error(f"fault on purpose, {when} {operation}")
        if isinstance(error, UnavailableError):
            error.nothing_written = when == "before"
        return error

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """What the child has at hand, unless it fails."""
        found = self.child.lookup_now(keys)
        if found is not None and (when := self._drawn("lookup")):
            raise self._fault("lookup", when)
        return found

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Fail or do it, or do it and fail."""
        when = self._drawn(call.operation)
        if when == "before":
            raise self._fault(call.operation, when)
        answer = await work()
        if when:
            raise self._fault(call.operation, when)
        return answer
