"""What shims are made of that do the same around every operation: log it, time it, delay it, try it again."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from aiodatastore.adapters.base import (
    AggregateResult,
    Aggregation,
    ChangeListener,
    Commit,
    Lookup,
    Outcome,
    Page,
    PreparedCommit,
    ReadPolicy,
    ResultStream,
    RunOptions,
    written_key,
)
from aiodatastore.errors import BadArgumentError
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Subscription
from aiodatastore.shims.base import DEFAULT, ChildStream, Shim

__all__ = [
    "ADMINISTRATION",
    "OPERATIONS",
    "READS",
    "SEVERAL",
    "WRITES",
    "Around",
    "Call",
    "chosen_operations",
    "number",
    "parse_names",
    "whole_number",
]

T = TypeVar("T")

READS: Final = ("lookup", "query", "aggregate")
"""Operations that read; ``query`` is one page of its results."""
WRITES: Final = ("commit", "prepare", "resolve", "allocate_ids", "reserve_ids")
"""Operations that change something."""
ADMINISTRATION: Final = (
    "open",
    "prepared",
    "indexes",
    "create_index",
    "build_index",
    "delete_index",
    "check",
    "stats",
    "partitions",
)
"""Operations that applications seldom need; some of them take as long as there is data."""
OPERATIONS: Final = (*READS, *WRITES, *ADMINISTRATION)
SEVERAL: Final = "*"
"""Stands for the kind where there are several, or all."""


class Call:
    """One operation on its way: its name (of :data:`OPERATIONS`) and what it is about.

    Of ``keys`` (lookups, ids), ``query``, ``commits`` those are set that the operation has; ``stream`` is that of the
    query, whose plan says what was read. All pages of a stream have one call; ``read`` is for who wants to remember
    what had been read by the last.
    """

    __slots__ = ("commits", "keys", "operation", "query", "read", "stream")

    def __init__(
        self,
        operation: str,
        *,
        keys: Sequence[Key] = (),
        query: Query | None = None,
        commits: Sequence[Commit] = (),
        stream: ResultStream | None = None,
    ) -> None:
        self.operation = operation
        self.keys = keys
        self.query = query
        self.commits = commits
        self.stream = stream
        self.read = (0, 0)

    @property
    def kind(self) -> str:
        """The kind it is about; ``*`` if there are several, "" if none."""
        query = self.query
        if query is not None:
            return query.kind or SEVERAL
        keys = self.keys
        if len(keys) == 1:
            return keys[0].kind
        kinds = {key.kind for key in keys}
        kinds.update(written_key(write).kind for commit in self.commits for write in commit.writes)
        if not kinds:  # commits that only verify
            kinds = {key.kind for commit in self.commits for key in commit.checks}
        return kinds.pop() if len(kinds) == 1 else SEVERAL if kinds else ""


class Around(Shim):
    """Every operation goes through :meth:`around`; override it."""

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work once, more often or not at all; what it returns is the operation's answer.

        ``work`` may be awaited again. A page of a query that was read and not handed on is the next one again.
        """
        return await work()

    async def open(self) -> None:
        """Open the child."""
        await self.around(Call("open"), self.child.open)

    # ---------------------------------------------------------------------------------------- reads

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """Ask the child."""
        return await self.around(Call("lookup", keys=keys), partial(self.child.lookup, keys, read_policy=read_policy))

    async def subscribe(self, listener: ChangeListener, interval_s: float) -> Subscription | None:
        """The child's: what is told stays as it is."""
        return await self.child.subscribe(listener, interval_s)

    async def lifetimes(self, keys: Sequence[Key]) -> Sequence[float | None]:
        """Ask the child, as a lookup does."""
        return await self.around(Call("lookup", keys=keys), partial(self.child.lifetimes, keys))

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """Ask the child; each page is an operation."""
        return _Stream(self, query, self.child.run(query, options))

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = DEFAULT
    ) -> AggregateResult:
        """Ask the child."""
        work = partial(self.child.aggregate, query, aggregations, options)
        return await self.around(Call("aggregate", query=query), work)

    # --------------------------------------------------------------------------------------- writes

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Hand on to the child."""
        return await self.around(Call("commit", commits=batch), partial(self.child.commit, batch))

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Hand on to the child."""
        return await self.around(Call("prepare", commits=(commit,)), partial(self.child.prepare, commit, name))

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        """Hand on to the child."""
        return await self.around(Call("resolve"), partial(self.child.resolve, name, commit=commit))

    async def allocate_ids(self, key: Key, size: int) -> tuple[int, int]:
        """The child's."""
        return await self.around(Call("allocate_ids", keys=(key,)), partial(self.child.allocate_ids, key, size))

    async def reserve_ids(self, key: Key, up_to: int) -> tuple[int, int]:
        """The child's."""
        return await self.around(Call("reserve_ids", keys=(key,)), partial(self.child.reserve_ids, key, up_to))

    # -------------------------------------------------------------------------------- administration

    async def prepared(self) -> list[PreparedCommit]:
        """The child's."""
        return await self.around(Call("prepared"), self.child.prepared)

    async def indexes(self) -> list[IndexInfo]:
        """The child's."""
        return await self.around(Call("indexes"), self.child.indexes)

    async def create_index(self, definition: IndexDefinition) -> IndexInfo:
        """In the child."""
        return await self.around(Call("create_index"), partial(self.child.create_index, definition))

    async def build_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None
    ) -> IndexInfo:
        """In the child."""
        return await self.around(Call("build_index"), partial(self.child.build_index, definition, progress=progress))

    async def delete_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None, finish: bool = True
    ) -> None:
        """In the child."""
        work = partial(self.child.delete_index, definition, progress=progress, finish=finish)
        await self.around(Call("delete_index"), work)

    async def check(self) -> list[str]:
        """The child's."""
        return await self.around(Call("check"), self.child.check)

    async def stats(self) -> dict[str, Any]:
        """The child's."""
        return await self.around(Call("stats"), self.child.stats)

    async def partitions(self) -> list[tuple[str, str]]:
        """The child's."""
        return await self.around(Call("partitions"), self.child.partitions)


class _Stream(ChildStream):
    """The child's, each page through ``around``."""

    def __init__(self, shim: Around, query: Query, inner: ResultStream) -> None:
        super().__init__(inner)
        self._shim = shim
        self._call = Call("query", query=query, stream=inner)
        self._page: Page | None = None

    async def next_page(self) -> Page:
        page = await self._shim.around(self._call, self._read)
        self._page = None
        return page

    async def _read(self) -> Page:
        # What was read stays until it was handed on: the child's stream would go on behind it.
        if self._page is None:
            self._page = await self._child.next_page()
        return self._page


# ------------------------------------------------------------------------------------------------ arguments


def number(what: str, given: Any, *, least: float = 0, most: float = math.inf, above: bool = False) -> float:
    """A finite number in a range; ``above``: greater than ``least``.

    :raises BadArgumentError: if it is something else
    """
    if (
        type(given) in (int, float)
        and math.isfinite(given)
        and least <= given <= most
        and not (above and given <= least)
    ):
        return float(given)
    bounds = f"{'greater than' if above else 'at least'} {least:g}" + (
        f" and at most {most:g}" if most < math.inf else ""
    )
    raise BadArgumentError(f"{what}: expected a number, {bounds}; got {given!r:.80}")


def whole_number(what: str, given: Any, *, least: int = 1) -> int:
    """An int of at least ``least``.

    :raises BadArgumentError: if it is something else
    """
    if type(given) is int and given >= least:
        return given
    raise BadArgumentError(f"{what}: expected an int, {least} or more; got {given!r:.80}")


def chosen_operations(given: Iterable[str] | None, default: Sequence[str]) -> frozenset[str]:
    """Names of operations; None: the default.

    :raises BadArgumentError: if one is unknown, or there is none
    """
    if given is None:
        return frozenset(default)
    found = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not found or not all(type(name) is str and name in OPERATIONS for name in found):
        raise BadArgumentError(f"operations: expected some of {', '.join(OPERATIONS)}; got {given!r:.200}")
    return frozenset(found)


def parse_names(text: str) -> tuple[str, ...]:
    """Names from a URL: ``lookup+commit``, with ``+``, ``|``, ``,`` or blanks between them.

    :raises ValueError: if there is none
    """
    found = tuple(name for name in re.split(r"[\s,|+]+", text) if name)
    if not found:
        raise ValueError("expected names with + between them")
    return found
