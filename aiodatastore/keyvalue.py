"""Plain values by path: ``KeyValue(ds)`` is a dictionary on any store.

*Paths.* ``/Comedy/MontyPython/Actor:JohnCleese`` has three elements; the last one has the type ``Actor`` and the name
``JohnCleese``, the others have no type. Each element is an element of the entity's key, its type the kind and its name
the name, so that "below a path" is an ancestor query. An element without type has the kind ``Path``. What the datastore
could not tell apart, or reserves, gets a tilde at its end: the type ``Path`` is the kind ``Path~``, ``Path~`` is
``Path~~``, and types and names like ``__x__`` are ``__x__~``. Different paths have different keys.

*Values.* A ``dict`` is an entity with its items as properties, so that filters and orders work on them; any other value
is an entity with the one property :data:`VALUE`. Values come back equal and of the same types, whatever JSON has: None,
bool, int (of any size), float, str (of up to a megabyte), list and dict, nested up to 100 deep; bytes and aware
datetimes (which come back in UTC) as well. What properties can't hold (lists in lists, integers beyond 64 bits, …) is
kept packed beside them, and so can't be searched; nor can strings of more than 1500 bytes and lists of more than 1000
elements. A name that begins with a tilde, is empty or is like ``__x__`` is stored with a tilde before it.
"""

from __future__ import annotations

import builtins
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from aiodatastore.adapters.base import ReadPolicy
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, BadKeyError, BadRequestError, BadValueError, DatastoreError
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.values import INT64_MAX, INT64_MIN, MAX_INDEXED_BYTES, Blob, Text, validate_property

if TYPE_CHECKING:
    from aiodatastore.bound_query import BoundQuery
    from aiodatastore.cursor import Cursor
    from aiodatastore.datastore import Datastore
    from aiodatastore.indexing.normal import NormalQuery

__all__ = ["MAX_SORTED", "VALUE", "Item", "KeyValue", "PathKey", "ValuePage", "ValueQuery"]

VALUE: Final = "~value"
"""The property of a value that is no dict: a name for filters and orders."""

MAX_SORTED: Final = 100_000
"""Results that a query with orders and without type may have."""

_PACKED: Final = "~packed"
_PACKED_VALUE: Final = "~packed_value"

_UNTYPED: Final = "Path"
_OWN_KIND: Final = re.compile(r"(?:Path|__.*__)~*", re.DOTALL)
_RESERVED: Final = re.compile(r"__.*__~*", re.DOTALL)

_MAX_NESTING: Final = 100
_MAX_SEARCHED: Final = 1000
"""Elements of one property that are searched: more are kept, unindexed."""
_MAX_ROWS: Final = 15_000

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------- paths


class PathKey:
    """The name of a value: a path of elements, each of which may have a type. The ``Key`` of the classic ``datastore``.

    >>> john = PathKey("/Comedy/MontyPython/Actor:JohnCleese")
    >>> john.type, john.name, john.parent
    ('Actor', 'JohnCleese', PathKey('/Comedy/MontyPython'))
    >>> john.namespaces
    ('Comedy', 'MontyPython', 'Actor:JohnCleese')
    >>> john.child("Sketch:CheeseShop").is_descendant_of(PathKey("/Comedy"))
    True
    >>> print(john.to_key())
    /Path:Comedy/Path:MontyPython/Actor:JohnCleese

    Immutable, hashable, and ordered as the results of queries are: by types and names, element by element, above before
    below. Slashes are not doubled and not at the end; the root, which is no value's, is ``/``. What is before the first
    colon of an element is its type.

    :raises BadArgumentError: if it is no text, PathKey or list of elements
    :raises BadKeyError: if an element has a colon and no type, or no name
    """

    __slots__ = ("_elements",)

    _elements: tuple[str, ...]

    def __init__(self, path: str | PathKey | Sequence[str] = "/") -> None:
        if isinstance(path, PathKey):
            elements: Sequence[str] = path._elements
        else:
            parts = [path] if isinstance(path, str) else path
            if not isinstance(parts, builtins.list | tuple) or not all(isinstance(part, str) for part in parts):
                raise BadArgumentError(f"expected a path such as /Comedy/Actor:JohnCleese, got {path!r:.80}")
            elements = [str(element) for part in parts for element in part.split("/") if element]
            for element in elements:
                if not _is_element(element):
                    raise BadKeyError(f"the element {element!r:.80} of a path: expected name, or type:name")
        object.__setattr__(self, "_elements", tuple(elements))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a PathKey can't be changed: {name}")

    @classmethod
    def _make(cls, elements: tuple[str, ...]) -> PathKey:
        self = cls.__new__(cls)
        object.__setattr__(self, "_elements", elements)
        return self

    @classmethod
    def random(cls) -> PathKey:
        """A path of one element that no other has: 32 hexadecimal digits."""
        return cls._make((uuid.uuid4().hex,))

    # ------------------------------------------------------------------------------------- its parts

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The elements, as they are written."""
        return self._elements

    @property
    def list(self) -> builtins.list[str]:
        """The elements as a list."""
        return [*self._elements]

    @property
    def type(self) -> str:
        """The type of the last element, "" if it has none."""
        return _split(self._elements[-1])[0] if self._elements else ""

    @property
    def name(self) -> str:
        """The name of the last element; "" for the root."""
        return _split(self._elements[-1])[1] if self._elements else ""

    @property
    def parent(self) -> PathKey | None:
        """The path without its last element; None for those of one element."""
        return PathKey._make(self._elements[:-1]) if len(self._elements) > 1 else None

    @property
    def path(self) -> PathKey:
        """The path with the type in place of the last element; without type, without it.

        >>> PathKey("/Comedy/Actor:JohnCleese").path
        PathKey('/Comedy/Actor')
        """
        above = self._elements[:-1]
        return PathKey._make((*above, self.type) if self.type else above)

    @property
    def reverse(self) -> PathKey:
        """The elements in the opposite order."""
        return PathKey._make(self._elements[::-1])

    @property
    def is_top_level(self) -> bool:
        """Whether it has one element."""
        return len(self._elements) == 1

    @property
    def is_root(self) -> bool:
        """Whether it is ``/``, which names no value."""
        return not self._elements

    # -------------------------------------------------------------------------------- others from it

    def child(self, other: str | PathKey) -> PathKey:
        """The path with more elements at its end."""
        return PathKey._make((*self._elements, *PathKey(other)._elements))

    def instance(self, name: str) -> PathKey:
        """The path with its last element as the type of a name: the opposite of :attr:`path`.

        >>> PathKey("/Comedy/Actor").instance("JohnCleese")
        PathKey('/Comedy/Actor:JohnCleese')

        :raises BadKeyError: if the name is empty or has a slash, the path is the root or has a type already
        """
        if not name or "/" in name:
            raise BadKeyError(f"expected a name without slash, got {name!r:.80}")
        if not self._elements or self.type:
            raise BadKeyError(f"{self!r} has no last element that could be a type")
        return PathKey._make((*self._elements[:-1], f"{self._elements[-1]}:{name}"))

    def is_ancestor_of(self, other: PathKey) -> bool:
        """Whether ``other`` is below. No path is its own ancestor; the root is everyone's."""
        mine, theirs = self._elements, other._elements
        return len(mine) < len(theirs) and theirs[: len(mine)] == mine

    def is_descendant_of(self, other: PathKey) -> bool:
        """Whether it is below ``other``."""
        return other.is_ancestor_of(self)

    # ------------------------------------------------------------------------------------------ keys

    def to_key(self, *, namespace: str = "", project: str = "") -> Key:
        """The key of the entity that holds the value.

        :raises BadKeyError: for the root, and if it has more than 100 elements
        :raises BadArgumentError, BadValueError: if a type or a name has more than 1500 bytes
        """
        if not self._elements:
            raise BadKeyError("the root path / names no value")
        flat = [part for element in self._elements for part in _pair(element)]
        return Key(*flat, namespace=namespace, project=project)

    @classmethod
    def from_key(cls, key: Key) -> PathKey:
        """The path of a key, whatever its namespace and project.

        :raises BadKeyError: if it is no path's: it has a numeric id, or a slash or colon where paths can't
        """
        elements = []
        for kind, name in key.pairs:
            element = _element(kind, name)
            if element is None:
                raise BadKeyError(f"{key!r} is not the key of a path")
            elements.append(element)
        return cls._make(tuple(elements))

    # ------------------------------------------------------------------------------------ comparisons

    def _order(self) -> tuple[tuple[str, str], ...]:
        return tuple(map(_pair, self._elements))

    def __eq__(self, other: object) -> bool:
        return self._elements == other._elements if isinstance(other, PathKey) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._elements)

    def __lt__(self, other: object) -> bool:
        return self._order() < other._order() if isinstance(other, PathKey) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self._order() <= other._order() if isinstance(other, PathKey) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self._order() > other._order() if isinstance(other, PathKey) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self._order() >= other._order() if isinstance(other, PathKey) else NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        return PathKey._make, (self._elements,)

    def __str__(self) -> str:
        return "/" + "/".join(self._elements)

    def __repr__(self) -> str:
        return f"PathKey({str(self)!r})"


def _split(element: str) -> tuple[str, str]:
    type_, colon, name = element.partition(":")
    return (type_, name) if colon else ("", element)


def _pair(element: str) -> tuple[str, str]:
    """The kind and the name of an element."""
    type_, name = _split(element)
    kind = _kind(type_)
    return kind, f"{name}~" if _RESERVED.fullmatch(name) else name


def _kind(type_: str) -> str:
    if not type_:
        return _UNTYPED
    return f"{type_}~" if _OWN_KIND.fullmatch(type_) else type_


def _element(kind: str, name: object) -> str | None:
    """The element of a kind and a name, if there is one."""
    if not isinstance(name, str) or "/" in name or "/" in kind:
        return None
    bare = name[:-1] if _RESERVED.fullmatch(name) else name
    type_ = "" if kind == _UNTYPED else kind[:-1] if _OWN_KIND.fullmatch(kind) else kind
    element = f"{type_}:{bare}" if type_ else bare
    return element if _is_element(element) and _pair(element) == (kind, name) else None


def _is_element(element: str) -> bool:
    return bool(element) and element[0] != ":" and not (element[-1] == ":" and element.count(":") == 1)


# ------------------------------------------------------------------------------------------------ values


def _to_entity(key: Key, value: Any) -> Entity:
    """The entity that keeps a value.

    :raises BadValueError: if it is of a type that can't be kept exactly
    """
    _check(value, "the value", 0)
    properties: dict[str, Any] = {}
    packed: list[tuple[int, str, Any]] = []
    if type(value) is dict:
        for place, (name, item) in enumerate(value.items()):
            stored, native = _stored_name(name), _native(item)
            if _fits(stored, native):
                properties[stored] = native
            else:
                packed.append((place, name, item))
        if packed:
            properties[_PACKED] = Blob(_pack(packed))
    else:
        native = _native(value)
        if _fits(VALUE, native):
            properties[VALUE] = native
        else:
            properties[_PACKED_VALUE] = Blob(_pack(value))
    return Entity(key, properties, unindexed=_too_many(properties))


def _from_entity(entity: Entity) -> Any:
    if VALUE in entity:
        return _plain(entity[VALUE])
    if _PACKED_VALUE in entity:
        return _unpack(entity[_PACKED_VALUE])
    items = [(name[1:] if name[0] == "~" else name, _plain(item)) for name, item in entity.items() if name != _PACKED]
    if _PACKED in entity:
        for place, name, item in _unpack(entity[_PACKED]):
            items.insert(place, (name, item))
    return dict(items)


def _check(value: Any, where: str, depth: int) -> None:
    kind = type(value)
    if kind is list or kind is dict:
        if depth >= _MAX_NESTING:
            raise BadValueError(f"{where[:80]}...: lists and dicts are nested more than {_MAX_NESTING} deep")
        for name, item in value.items() if kind is dict else enumerate(value):
            if kind is dict and type(name) is not str:
                raise BadValueError(f"{where}: expected names (str) in a dict, got {type(name).__name__} {name!r:.80}")
            _check(item, f"{where}[{name!r:.40}]", depth + 1)
    elif kind is datetime:
        if value.utcoffset() is None:
            raise BadValueError(f"{where}: expected an aware datetime, got the naive {value!r}")
    elif kind not in _SCALARS:
        raise BadValueError(
            f"{where}: expected None, bool, int, float, str, list, dict, bytes or an aware datetime, "
            f"got {kind.__qualname__} {value!r:.80}; what is not exactly of these would not come back as it is"
        )


_SCALARS: Final = frozenset((type(None), bool, int, float, str, bytes))


def _stored_name(name: str) -> str:
    return f"~{name}" if not name or name[0] == "~" or _is_reserved(name) else name


def _is_reserved(name: str) -> bool:
    return len(name) >= 4 and name[:2] == "__" == name[-2:]


def _native(value: Any) -> Any:
    """A value as a property holds it: what is long is of the classes that are."""
    kind = type(value)
    if kind is str:
        return Text(value) if len(value) > MAX_INDEXED_BYTES // 4 and _bytes(value) > MAX_INDEXED_BYTES else value
    if kind is bytes:
        return Blob(value) if len(value) > MAX_INDEXED_BYTES else value
    if kind is list:
        return [_native(item) for item in value]
    if kind is dict:
        return {name: _native(item) for name, item in value.items()}
    return value


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _fits(name: str, value: Any) -> bool:
    """Whether a property of this name can hold the value."""
    try:
        validate_property(name, value, indexed=True)
    except DatastoreError:
        return False
    return True


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is Text:
        return str(value)
    if kind is Blob:
        return bytes(value)
    if kind is list:
        return [_plain(item) for item in value]
    if kind is dict:
        return {name: _plain(item) for name, item in value.items()}
    return value


def _too_many(properties: Mapping[str, Any]) -> list[str]:
    """The properties that have too many elements to be searched."""
    counts = sorted((_elements(value), name) for name, value in properties.items())
    total, unindexed = 0, []
    for count, name in counts:
        total += count
        if count > _MAX_SEARCHED or total > _MAX_ROWS:
            unindexed.append(name)
    return unindexed


def _elements(value: Any) -> int:
    if type(value) is list:
        return sum(map(_elements, value))
    return 1 + sum(map(_elements, value.values())) if type(value) is dict else 1


# Packed values are msgpack with two extensions: 1 an integer beyond 64 bits, 2 a str that is not Unicode, and 3 a dict
# with a name of these.


def _pack(value: Any) -> bytes:
    import msgspec

    return msgspec.msgpack.encode(_packable(value))


def _packable(value: Any) -> Any:
    import msgspec

    kind = type(value)
    if kind is int and not INT64_MIN <= value <= INT64_MAX:
        return msgspec.msgpack.Ext(1, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if kind is str and not value.isascii() and _has_surrogates(value):
        return msgspec.msgpack.Ext(2, value.encode("utf-8", "surrogatepass"))
    if kind is list or kind is tuple:
        return [_packable(item) for item in value]
    if kind is dict:
        if any(not name.isascii() and _has_surrogates(name) for name in value):
            return msgspec.msgpack.Ext(3, _pack([[name, item] for name, item in value.items()]))
        return {name: _packable(item) for name, item in value.items()}
    return value


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _unpack(data: bytes) -> Any:
    import msgspec

    return msgspec.msgpack.decode(data, ext_hook=_from_ext)


def _from_ext(code: int, data: memoryview) -> Any:
    raw = bytes(data)
    if code == 1:
        return int.from_bytes(raw, "big", signed=True)
    return raw.decode("utf-8", "surrogatepass") if code == 2 else dict(_unpack(raw))


# --------------------------------------------------------------------------------------------- KeyValue


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
        return default if found is None else _from_entity(found)

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
        return [default if entity is None else _from_entity(entity) for entity in found]

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
            return ValueQuery(self, ds.query(_kind(type), **parts), None)
        bound = ds.query(None, **parts)
        return ValueQuery(self, bound, Query(_UNTYPED, namespace=ds.namespace, project=ds.project, **parts))

    # ----------------------------------------------------------------------------------------- writes

    async def put(self, path: AnyPath, value: Any, *, ttl: float | None = None, timeout: float | None = None) -> None:
        """Keep a value under a path, instead of the one it had.

        ``ttl``: seconds after which it is gone, where the store has ``Capability.TTL``.

        :raises BadValueError: if the value is not of the types that come back as they are
        :raises UnsupportedError: if ``ttl`` is given and the store keeps everything
        :raises BadRequestError: if it is larger than an entity can be
        """
        await self.datastore.put(_to_entity(self.key(path), value), ttl=ttl, timeout=timeout)

    async def put_many(
        self,
        values: Mapping[Any, Any] | Iterable[tuple[AnyPath, Any]],
        *,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """Keep several: a mapping from paths to values, or pairs. Up to 5000 are one atomic commit."""
        pairs = values.items() if isinstance(values, Mapping) else values
        await self.datastore.put([_to_entity(self.key(path), value) for path, value in pairs], ttl=ttl, timeout=timeout)

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
        return Item(self._store._path(entity.key), _from_entity(entity))

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
        self._sorts = chosen is not None and bool(chosen.orders or _normal(chosen, _UNTYPED).orders)
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
    return name if name in (VALUE, "__key__") else _stored_name(name)


def _is_path(key: Key) -> bool:
    return all(_element(kind, name) is not None for kind, name in key.pairs)
