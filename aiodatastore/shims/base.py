"""What every shim is made of: an adapter that holds another one and changes one thing about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from aiodatastore.adapters.base import (
    Adapter,
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
)
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo
from aiodatastore.indexing.explain import Explanation
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Capability, Subscription

__all__ = ["DEFAULT", "ChildStream", "PassingStream", "Shim", "listed"]

DEFAULT = RunOptions()


class Shim(Adapter):
    """Forwards everything to ``child``, capabilities included; override what the shim is for.

    What is called for each entity (``lookup_now``, ``encode``) is the child's own method where a subclass does not
    override it, so that what a shim leaves alone costs nothing.

    In URLs and TOML files a shim is made with the settings that ``url_settings`` names, each with what reads it from
    text (raising ``ValueError``); they are keyword arguments of the constructor.

    :raises BadArgumentError: if ``child`` is no adapter
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {}

    def __init__(self, child: Adapter) -> None:
        if not isinstance(child, Adapter):
            raise BadArgumentError(f"{type(self).__name__}: expected an adapter, got {type(child).__name__}")
        self.child = child
        for name in ("lookup_now", "encode"):  # what is called for each entity
            if getattr(type(self), name) is getattr(Shim, name):
                setattr(self, name, getattr(child, name))

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({self.child!r}{settings})"

    @property
    def children(self) -> Sequence[Adapter]:
        """The one that it holds."""
        return (self.child,)

    @property
    def settings(self) -> Mapping[str, object]:
        """None, unless the shim has some."""
        return {}

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The child's."""
        return self.child.capabilities

    @property
    def url(self) -> str:
        """The child's."""
        return self.child.url

    async def open(self) -> None:
        """Open the child."""
        await self.child.open()

    async def aclose(self) -> None:
        """Close the child."""
        await self.child.aclose()

    @property
    def has_lanes(self) -> bool:
        """The child's."""
        return self.child.has_lanes

    def lane(self, keys: Sequence[Key]) -> int | None:
        """The child's, if keys go to it as they are."""
        return self.child.lane(keys)

    # ---------------------------------------------------------------------------------------- reads

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """Ask the child."""
        return self.child.lookup_now(keys)

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """Ask the child."""
        return await self.child.lookup(keys, read_policy=read_policy)

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """Ask the child."""
        return self.child.run(query, options)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = DEFAULT
    ) -> AggregateResult:
        """Ask the child."""
        return await self.child.aggregate(query, aggregations, options)

    # --------------------------------------------------------------------------------------- writes

    def encode(self, commit: Commit) -> None:
        """Let the child encode."""
        self.child.encode(commit)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Hand on to the child."""
        return await self.child.commit(batch)

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Hand on to the child."""
        return await self.child.prepare(commit, name)

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        """Hand on to the child."""
        return await self.child.resolve(name, commit=commit)

    async def prepared(self) -> list[PreparedCommit]:
        """The child's."""
        return await self.child.prepared()

    async def subscribe(self, listener: ChangeListener, interval_s: float) -> Subscription | None:
        """The child's, if lookups go to it as they are; a shim that changes them changes this too, or has none."""
        if type(self).lookup is not Shim.lookup:
            return None
        return await self.child.subscribe(listener, interval_s)

    async def lifetimes(self, keys: Sequence[Key]) -> Sequence[float | None]:
        """The child's, if lookups go to it as they are."""
        if type(self).lookup is not Shim.lookup:
            return await super().lifetimes(keys)
        return await self.child.lifetimes(keys)

    async def allocate_ids(self, key: Key, size: int) -> tuple[int, int]:
        """The child's."""
        return await self.child.allocate_ids(key, size)

    async def reserve_ids(self, key: Key, up_to: int) -> tuple[int, int]:
        """The child's."""
        return await self.child.reserve_ids(key, up_to)

    # -------------------------------------------------------------------------------- administration

    async def indexes(self) -> list[IndexInfo]:
        """The child's."""
        return await self.child.indexes()

    async def create_index(self, definition: IndexDefinition) -> IndexInfo:
        """In the child."""
        return await self.child.create_index(definition)

    async def build_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None
    ) -> IndexInfo:
        """In the child."""
        return await self.child.build_index(definition, progress=progress)

    async def delete_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None, finish: bool = True
    ) -> None:
        """In the child."""
        await self.child.delete_index(definition, progress=progress, finish=finish)

    async def check(self) -> list[str]:
        """The child's."""
        return await self.child.check()

    async def stats(self) -> dict[str, Any]:
        """The child's."""
        return await self.child.stats()

    async def partitions(self) -> list[tuple[str, str]]:
        """The child's."""
        return await self.child.partitions()


class ChildStream(ResultStream):
    """A running query whose pages are made of a child's."""

    def __init__(self, child: ResultStream) -> None:
        self._child = child

    def explain(self) -> Explanation:
        """The child's."""
        return self._child.explain()


class PassingStream(ChildStream):
    """A running query of a child's; ``look`` looks at each page, or changes it, as it passes."""

    def __init__(self, child: ResultStream, look: Callable[[Page], None]) -> None:
        super().__init__(child)
        self._look = look

    async def next_page(self) -> Page:
        """The child's."""
        page = await self._child.next_page()
        self._look(page)
        return page


def listed(what: str, given: object) -> list[Adapter]:
    """The adapters of the list that a collection was given. What else it is is not shown: a URL may have a password.

    :raises BadArgumentError: if it is no list, or something in it is no adapter
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BadArgumentError(f"{what}: expected a list of adapters, [one, two, …], got {type(given).__name__}")
    adapters = list(given)
    for each in adapters:
        if not isinstance(each, Adapter):
            raise BadArgumentError(
                f"{what}: expected adapters, got {type(each).__name__} (adapter_from_url makes them of URLs)"
            )
    return adapters
