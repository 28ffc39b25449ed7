"""``KeyValue`` and its queries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from aiodatastore.adapters.base import ReadPolicy
from aiodatastore.entity import Entity
from aiodatastore.errors import BadKeyError, BadRequestError
from aiodatastore.key import Key
from aiodatastore.keyvalue.paths import UNTYPED, PathKey, element_of, kind_of
from aiodatastore.keyvalue.values import VALUE, from_entity, stored_name, to_entity
from aiodatastore.query import Query

if TYPE_CHECKING:
    from aiodatastore.bound_query import BoundQuery
    from aiodatastore.cursor import Cursor
    from aiodatastore.datastore import Datastore
    from aiodatastore.indexing.normal import NormalQuery

__all__ = ["MAX_SORTED", "Item", "KeyValue", "ValuePage", "ValueQuery"]

MAX_SORTED: Final = 100_000
"""Results that a query with orders and without type may have."""

T = TypeVar("T")


class Item(NamedTuple):
    """A value and its path."""

    path: PathKey
    value: Any


class ValuePage(NamedTuple):
    """Some results of a query, where the next page starts, and whether anything was there."""

    items: list[Item]
    cursor: Cursor
    more: bool


AnyPath = str | PathKey


class KeyValue:
    """Plain values by path, on any store, shim or collection.

    >>> import asyncio
    >>> async def main():
    ...     async with Datastore("memory://") as ds:
    ...         kv = KeyValue(ds)
    ...         await kv.put("/Comedy/MontyPython/Actor:JohnCleese", {"born": 1939, "films": ["Brazil", "Clockwise"]})
    ...         await kv.put("/Comedy/MontyPython/Actor:EricIdle", {"born": 1943})
    ...         await kv.put("/settings/colours", [["red", 1], ["green", 2]])
    ...         print(await kv.get("/settings/colours"), await kv.get("/nothing"))
    ...         async for path, value in kv.query("/Comedy", type="Actor").filter("born", "<", 1950).order("-born"):
    ...             print(path.name, value["born"])
    >>> asyncio.run(main())
    [['red', 1], ['green', 2]] None
    EricIdle 1943
    JohnCleese 1939

    ``root``: every path is below it, so that several can share a datastore. The datastore's namespace and project hold.
    Inside a transaction of the datastore every method takes part in it. Paths are texts or :class:`PathKey`. How they
    are kept is said at the top of this module; an entity that the application put under a key of this form can be read
    as well.
    """

    def __init__(self, datastore: Datastore, *, root: AnyPath = "/") -> None:
        self.datastore = datastore
        """Where the values are."""
        self.root = PathKey(root)
        """Above every path."""

    def __repr__(self) -> str:
        return f"KeyValue({self.datastore!r}{'' if self.root.is_root else f', root={str(self.root)!r}'})"

    def key(self, path: AnyPath) -> Key:
        """The key of the entity that holds a path's value.

        :raises BadKeyError: for the root, and what no path can be
        """
        relative = PathKey(path)
        if relative.is_root:
            raise BadKeyError("the root path / names no value")
        ds = self.datastore
        return self.root.child(relative).to_key(namespace=ds.namespace, project=ds.project)

    def _path(self, key: Key) -> PathKey:
        return PathKey._make(PathKey.from_key(key).namespaces[len(self.root.namespaces) :])

    # ------------------------------------------------------------------------------------------ reads

    async def get(
        self,
        path: AnyPath,
        default: Any = None,
        *,
        timeout: float | None = None,
        read_policy: ReadPolicy = ReadPolicy.STRONG,
    ) -> Any:
        """The value of a path, or ``default`` if it has none (``contains`` tells None from nothing)."""
        found = await self.datastore.get(self.key(path), timeout=timeout, read_policy=read_policy)
        return default if found is None else from_entity(found)

    async def get_many(
        self,
        paths: Sequence[AnyPath],
        default: Any = None,
        *,
        timeout: float | None = None,
        read_policy: ReadPolicy = ReadPolicy.STRONG,
    ) -> list[Any]:
        """The values of paths, in their order, ``default`` where there is none; read together."""
        found = await self.datastore.get([*map(self.key, paths)], timeout=timeout, read_policy=read_policy)
        return [default if entity is None else from_entity(entity) for entity in found]

    async def contains(self, path: AnyPath, *, timeout: float | None = None) -> bool:
        """Whether a path has a value (None is one)."""
        return await self.datastore.get(self.key(path), timeout=timeout) is not None

    def query(self, prefix: AnyPath = "/", *, type: str | None = None) -> ValueQuery:
        """The values of a path and of all below it, in the order of their paths.

        ``type``: only those whose last element is of this type ("": of none). Filters and orders are then served by
        indexes; without, everything below the prefix is read, up to :data:`MAX_SORTED` results are sorted here, and
        there are no pages.

        >>> kv.query("/Comedy", type="Actor").filter("born", ">", 1939).order("-born").limit(10)    # doctest: +SKIP
        """
        above = self.root.child(prefix) if not PathKey(prefix).is_root else self.root
        ds = self.datastore
        parts: dict[str, Any] = {}
        if not above.is_root:
            parts["ancestor"] = above.to_key(namespace=ds.namespace, project=ds.project)
        if type is not None:
            return ValueQuery(self, ds.query(kind_of(type), **parts), None)
        bound = ds.query(None, **parts)
        return ValueQuery(self, bound, Query(UNTYPED, namespace=ds.namespace, project=ds.project, **parts))

    # ----------------------------------------------------------------------------------------- writes

    async def put(self, path: AnyPath, value: Any, *, ttl: float | None = None, timeout: float | None = None) -> None:
        """Keep a value under a path, instead of the one it had.

        ``ttl``: seconds after which it is gone, where the store has ``Capability.TTL``.

        :raises BadValueError: if the value is not of the types that come back as they are
        :raises UnsupportedError: if ``ttl`` is given and the store keeps everything
        :raises BadRequestError: if it is larger than an entity can be
        """
        await self.datastore.put(to_entity(self.key(path), value), ttl=ttl, timeout=timeout)

    async def put_many(
        self,
        values: Mapping[Any, Any] | Iterable[tuple[AnyPath, Any]],
        *,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """Keep several: a mapping from paths to values, or pairs. Up to 5000 are one atomic commit."""
        pairs = values.items() if isinstance(values, Mapping) else values
        await self.datastore.put([to_entity(self.key(path), value) for path, value in pairs], ttl=ttl, timeout=timeout)

    async def delete(self, path: AnyPath, *, timeout: float | None = None) -> None:
        """Forget the value of a path; those below it stay. What is absent may be deleted."""
        await self.datastore.delete(self.key(path), timeout=timeout)

    async def delete_many(self, paths: Sequence[AnyPath], *, timeout: float | None = None) -> None:
        """Forget several; up to 5000 are one atomic commit."""
        await self.datastore.delete([*map(self.key, paths)], timeout=timeout)

    async def clear(self, prefix: AnyPath = "/") -> int:
        """Forget the value of a path and all below it, page by page; returns how many there were."""
        count = 0
        page: list[Key] = []
        async for key in self.query(prefix)._bound.keys_only():
            if _is_path(key):
                page.append(key)
            if len(page) == 1000:
                await self.datastore.delete(page)
                count, page = count + len(page), []
        await self.datastore.delete(page)
        return count + len(page)


class ValueQuery:
    """Values below a path; immutable: ``filter``, ``order`` and the like each give a new one.

    Iterate over it for :class:`Item` (path, value), or await one of its methods. Names are those of dicts
    (``address.city`` for nested ones), :data:`VALUE` of values that are no dicts. Entities whose keys are no paths
    (with numeric ids) are passed over; an offset, the size of a page and the count of a query that has neither filters
    nor orders, or has a type, do count them.
    """

    __slots__ = ("_bound", "_chosen", "_store")

    def __init__(self, store: KeyValue, bound: BoundQuery, chosen: Query | None) -> None:
        self._store = store
        self._bound = bound
        self._chosen = chosen
        """Of a query of all types: what is chosen, sorted and counted here, in the form of a query."""

    def __repr__(self) -> str:
        return f"<ValueQuery {self._chosen or self._bound.query!r} of {self._store!r}>"

    def _with(self, change: Callable[[Any], Any]) -> ValueQuery:
        if self._chosen is None:
            return ValueQuery(self._store, change(self._bound), None)
        return ValueQuery(self._store, self._bound, change(self._chosen))

    def filter(self, name: str, op: str, value: Any) -> ValueQuery:
        """Only values of which this holds: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in``, ``not in``; of a list,
        an element."""
        return self._with(lambda query: query.filter(_searched(name), op, value))

    def order(self, *names: str) -> ValueQuery:
        """Sorted by these names, descending with a minus before them; values that lack one are left out."""
        orders = [f"-{_searched(name[1:])}" if name[:1] == "-" else _searched(name) for name in names]
        return self._with(lambda query: query.order(*orders))

    def limit(self, count: int | None) -> ValueQuery:
        """At most so many."""
        return self._with(lambda query: query.limit(count))

    def offset(self, count: int) -> ValueQuery:
        """Without the first so many."""
        return self._with(lambda query: query.offset(count))

    def start(self, cursor: Cursor | None) -> ValueQuery:
        """From where a page ended.

        :raises BadRequestError: if the query has filters or orders, and no type
        """
        ready = self._ready
        if ready is None:
            raise BadRequestError("a query with filters or orders has cursors only if it has a type: query(…, type=…)")
        return ValueQuery(self._store, ready.start(cursor), None)

    # ----------------------------------------------------------------------------------- running it

    @property
    def _ready(self) -> BoundQuery | None:
        """The query, if the datastore can answer it as it is."""
        chosen = self._chosen
        if chosen is None:
            return self._bound
        if chosen.filters or chosen.orders:
            return None
        return self._bound.limit(chosen.max_results).offset(chosen.skip)

    def _item(self, entity: Entity) -> Item:
        return Item(self._store._path(entity.key), from_entity(entity))

    def __aiter__(self) -> AsyncIterator[Item]:
        return _Results(self._item, self._ready or self._bound, None if self._ready is not None else self._chosen)

    async def fetch(self, limit: int | None = None) -> list[Item]:
        """All results, or the first ``limit``."""
        query = self if limit is None else self.limit(limit)
        return [item async for item in query]

    async def first(self) -> Item | None:
        """The first result, or None."""
        found = await self.fetch(1)
        return found[0] if found else None

    async def paths(self, limit: int | None = None) -> list[PathKey]:
        """The paths alone, which needs no values (of a query without type, if it has no filters and orders)."""
        ready = self._ready
        if ready is None:
            return [item.path for item in await self.fetch(limit)]
        ready = (ready if limit is None else ready.limit(limit)).keys_only()
        return [path async for path in _Results(self._store._path, ready, None)]

    async def values(self, limit: int | None = None) -> list[Any]:
        """The values alone."""
        return [item.value for item in await self.fetch(limit)]

    async def count(self, limit: int | None = None) -> int:
        """How many there are, at most ``limit``."""
        ready = self._ready
        return len(await self.fetch(limit)) if ready is None else await ready.count(limit)

    async def page(self, size: int, start: Cursor | None = None) -> ValuePage:
        """``size`` results from the start or from a cursor, and the cursor of the next page.

        :raises BadRequestError: if the query has filters or orders, and no type
        """
        ready = self.start(None)._bound
        found = await ready.page(size, start)
        items = [self._item(entity) for entity in found.entities if _is_path(entity.key)]
        return ValuePage(items, found.cursor, found.more)


class _Results(AsyncIterator[T]):
    """A running query; no async generator, so that it may be left at any place."""

    def __init__(self, item: Callable[[Any], T], bound: BoundQuery, chosen: Query | None) -> None:
        self._item = item  # of an entity; of a key, if the query is for keys only
        self._bound = bound
        self._entities = bound.run()
        self._passed_over = 0
        self._chosen = chosen
        self._normal: dict[str, NormalQuery] = {}
        # An inequality sorts by what it compares, without being told to.
        self._sorts = chosen is not None and bool(chosen.orders or _normal(chosen, UNTYPED).orders)
        self._sorted: Iterator[Entity] | None = None
        self._place = 0

    async def __anext__(self) -> T:
        chosen = self._chosen
        if chosen is None:
            return self._item(await self._next())
        while chosen.max_results is None or self._place < chosen.skip + chosen.max_results:
            entity = await self._next_sorted(chosen) if self._sorts else (await self._next_match(chosen))[1]
            self._place += 1
            if self._place > chosen.skip:
                return self._item(entity)
        raise StopAsyncIteration

    async def _next(self) -> Any:
        while True:
            try:
                found = await anext(self._entities)
            except StopAsyncIteration:
                # The store's limit has counted what is passed over here: as many more are needed.
                if not self._passed_over or self._bound.query.max_results is None:
                    raise
                rest = self._bound.offset(0).limit(self._passed_over).start(self._entities.cursor)
                self._entities, self._passed_over = rest.run(), 0
                continue
            if _is_path(found if isinstance(found, Key) else found.key):
                return found
            self._passed_over += 1

    async def _next_match(self, chosen: Query) -> tuple[bytes, Entity]:
        """The next entity that is chosen, and its place in the order that is wanted."""
        while True:
            entity = await self._next()
            kind = entity.key.kind
            if kind not in self._normal:
                self._normal[kind] = _normal(chosen, kind)
            matches = self._normal[kind].matches(entity)
            if matches:
                return min(position for position, _ in matches), entity

    async def _next_sorted(self, chosen: Query) -> Entity:
        if self._sorted is None:
            found: list[tuple[bytes, Entity]] = []
            try:
                while True:
                    found.append(await self._next_match(chosen))
                    if len(found) > MAX_SORTED:
                        raise BadRequestError(
                            f"more than {MAX_SORTED} values would be sorted here: name the type of the paths, "
                            "so that an index serves the order: query(…, type=…)"
                        )
            except StopAsyncIteration:
                found.sort(key=lambda match: match[0])
            self._sorted = iter([entity for _, entity in found])
        for entity in self._sorted:
            return entity
        raise StopAsyncIteration


def _normal(chosen: Query, kind: str) -> NormalQuery:
    from aiodatastore.indexing.normal import normalize

    return normalize(
        Query(
            kind,
            namespace=chosen.namespace,
            project=chosen.project_id,
            ancestor=chosen.ancestor,
            filters=chosen.filters,
            orders=chosen.orders,
        )
    )


def _searched(name: str) -> str:
    return name if name in (VALUE, "__key__") else stored_name(name)


def _is_path(key: Key) -> bool:
    return all(element_of(kind, name) is not None for kind, name in key.pairs)
