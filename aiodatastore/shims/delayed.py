"""A store that is slower than it is: what tests and demonstrations put before one that is too fast."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import anyio

from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import parse_float, parse_int
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.shims.around import READS, WRITES, Around, Call, chosen_operations, number, parse_names

__all__ = ["Delayed"]

T = TypeVar("T")


class Delayed(Around):
    """Every operation begins ``seconds`` later, give or take up to ``jitter`` seconds.

    >>> import asyncio
    >>> from aiodatastore import Datastore, Key
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     async with Datastore(Delayed(adapter_from_url("memory://"), 0.001, jitter=0.0005, seed=1)) as ds:
    ...         return await ds.get(Key("Person", "ada"))
    >>> asyncio.run(main())

    ``operations`` names those that are (of ``lookup``, ``query`` (a page), ``aggregate``, ``commit``, …, see
    :data:`~aiodatastore.shims.around.OPERATIONS`): by default what applications do. The delays are drawn from ``seed``,
    in the order in which operations begin. As every read waits, ``INLINE_READS`` is lost. A commit that is cancelled
    while it is delayed was not sent.

    :raises BadArgumentError: a negative time, a jitter greater than the delay, an unknown operation
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "seconds": parse_float,
        "jitter": parse_float,
        "seed": parse_int,
        "operations": parse_names,
    }

    def __init__(
        self,
        child: Adapter,
        seconds: float,
        *,
        jitter: float = 0.0,
        seed: int = 0,
        operations: Iterable[str] | None = None,
    ) -> None:
        super().__init__(child)
        self._seconds = number("seconds", seconds)
        self._jitter = number("jitter", jitter)
        if self._jitter > self._seconds:
            raise BadArgumentError(f"jitter: expected at most seconds ({seconds!r}), got {jitter!r}")
        self._seed = seed
        self._random = random.Random(seed)
        self._operations = chosen_operations(operations, (*READS, *WRITES))
        if "lookup" not in self._operations:
            self.__dict__["lookup_now"] = child.lookup_now  # as Shim does

    @property
    def settings(self) -> Mapping[str, object]:
        """Delay, jitter, seed and operations."""
        return {
            "seconds": self._seconds,
            "jitter": self._jitter,
            "seed": self._seed,
            "operations": tuple(sorted(self._operations)),
        }

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The child's; reads wait."""
        lost = {Capability.INLINE_READS} if "lookup" in self._operations else set()
        return self.child.capabilities - lost

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """Never at once."""
        return None

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Wait, then do it."""
        if call.operation in self._operations:
            jitter = self._random.uniform(-self._jitter, self._jitter) if self._jitter else 0.0
            await anyio.sleep(self._seconds + jitter)
        return await work()
