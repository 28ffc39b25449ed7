"""What the shims share that pack what no index holds of an entity into one property."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from aiodatastore.adapters.base import (
    Adapter,
    ChangeListener,
    Commit,
    Delete,
    Lookup,
    Outcome,
    Page,
    Put,
    ReadPolicy,
    ResultStream,
    RunOptions,
)
from aiodatastore.entity import Entity
from aiodatastore.errors import BadRequestError, CorruptDataError, DatastoreError
from aiodatastore.key import Key
from aiodatastore.query import And, Or, Query
from aiodatastore.rowstore import Subscription
from aiodatastore.serializers import MsgpackSerializer, Step
from aiodatastore.shims.base import DEFAULT, PassingStream, Shim
from aiodatastore.values import Blob, Text

__all__ = ["Packing", "named_properties"]

_MAX_BLOB: Final = 1_000_000
"""Bytes of one packed value; more become a list of such, as a property has no longer ones."""
_FIELDS: Final = [field.name for field in dataclasses.fields(Commit) if field.name not in ("writes", "encoded")]


class Packing(Shim):
    """Packs what no index holds of an entity (and whatever :meth:`_is_protected` names) into one property.

    That is: properties named in ``unindexed``, values that are ``Text`` or ``Blob``, alone, in lists, and inside of
    embedded dicts and entities, where their own ``unindexed`` and dotted names count, too. What an index holds stays
    where it is, or its rows would be others. Reading puts everything back in its place and order. Entities without the
    packed property are read as they are: they were written before.
    """

    def __init__(self, child: Adapter, step: Step, name: str) -> None:
        super().__init__(child)
        self._step = step
        self._name = name
        self._serializer = MsgpackSerializer()

    def _is_protected(self, name: str) -> bool:
        """Whether a property is packed though it would be indexed."""
        return False

    @property
    @abstractmethod
    def _what(self) -> str:
        """What packed properties are, for messages: ``encrypted``."""

    # --------------------------------------------------------------------------------------- entities

    def _packed(self, entity: Entity) -> Entity:
        """The entity as the child gets it."""
        if self._name in entity:
            raise BadRequestError(
                f"{entity.key!r}: property {self._name!r} is where {type(self).__name__} keeps what is {self._what}; "
                "use another name"
            )
        hidden: _Hidden = []
        clear = _take_apart(entity, entity.unindexed, self._is_protected, hidden)
        if not hidden:
            return entity
        payload = self._serializer.dumps(Entity._make(entity.key, {"": hidden}, _NOTHING, 0))
        packed = self._step.wrap(payload)
        if packed is None:
            return entity
        value: Blob | list[Blob] = Blob(packed)
        if len(packed) > _MAX_BLOB:
            value = [Blob(packed[start : start + _MAX_BLOB]) for start in range(0, len(packed), _MAX_BLOB)]
        clear[self._name] = value
        return Entity._make(entity.key, clear, entity.unindexed, entity.version)

    def _unpack(self, entity: Any) -> None:
        """Put back, in the entity itself, what was packed; others (keys, rows of projections) are left alone."""
        if type(entity) is not Entity or self._name not in entity:
            return
        value = entity.pop(self._name)
        try:
            payload = self._step.unwrap(b"".join(value) if type(value) is list else bytes(value))
            _put_together(entity, self._serializer.loads(entity.key, payload, 0)[""])
        except Exception as exc:  # what damaged bytes come to is not foreseeable
            reason = str(exc) if isinstance(exc, ValueError | DatastoreError) else "they are damaged"
            raise CorruptDataError(f"the {self._what} properties of {entity.key!r} can't be read: {reason}") from exc

    # ------------------------------------------------------------------------------------------ reads

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """What the child has at hand."""
        found = self.child.lookup_now(keys)
        for entity in found or ():
            self._unpack(entity)
        return found

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """What the child has."""
        found = await self.child.lookup(keys, read_policy=read_policy)
        for entity in found.entities:
            self._unpack(entity)
        return found

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """What the child finds."""
        return PassingStream(self.child.run(query, options), self._unpack_page)

    def _unpack_page(self, page: Page) -> None:
        for result in page.results:
            self._unpack(result)

    async def subscribe(self, listener: ChangeListener, interval_s: float) -> Subscription | None:
        """The child's: keys stay as they are."""
        return await self.child.subscribe(listener, interval_s)

    async def lifetimes(self, keys: Sequence[Key]) -> Sequence[float | None]:
        """The child's."""
        return await self.child.lifetimes(keys)

    # ----------------------------------------------------------------------------------------- writes

    def _inner(self, commit: Commit) -> Commit:
        """The commit as the child gets it, made once."""
        encoded = commit.encoded
        if isinstance(encoded, _Encoded) and encoded.shim is self:
            return encoded.inner
        writes: list[Put | Delete] = [
            Put(self._packed(write.entity), write.ttl_s) if isinstance(write, Put) else write for write in commit.writes
        ]
        return Commit(writes=writes, **{name: getattr(commit, name) for name in _FIELDS})

    def encode(self, commit: Commit) -> None:
        """Pack, and let the child encode."""
        try:
            inner = self._inner(commit)
        except DatastoreError:
            return  # commit() tells
        self.child.encode(inner)
        commit.encoded = _Encoded(self, inner)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Pack, and hand on to the child."""
        inner: list[Commit] = []
        errors: list[DatastoreError | None] = []
        for commit in batch:
            try:
                inner.append(self._inner(commit))
                errors.append(None)
            except DatastoreError as exc:
                errors.append(exc)
        found = iter(await self.child.commit(inner) if inner else [])
        return [next(found) if error is None else Outcome(None, error=error) for error in errors]

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Pack, and hand on to the child."""
        try:
            inner = self._inner(commit)
        except DatastoreError as exc:
            return Outcome(None, error=exc)
        return await self.child.prepare(inner, name)


class _Encoded(NamedTuple):
    """What stands in ``Commit.encoded``: the child's commit, made by this shim and by no other that may see it."""

    shim: Packing
    inner: Commit


# ------------------------------------------------------------------------------- taking apart, putting together

_NOTHING: Final[frozenset[str]] = frozenset()
_Hidden = list[list[Any]]
"""``[path, [[position, name, value], …]]``: what was taken from the container at a path (of names and positions), each
with its place there; of a list, ``name`` is None. Containers come before those inside of them, so that paths hold."""


def _take_apart(
    entity: Entity, unindexed: frozenset[str], is_protected: Callable[[str], bool], hidden: _Hidden
) -> dict[str, Any]:
    clear: dict[str, Any] = {}
    taken: list[list[Any]] = []
    inside: _Hidden = []
    for place, (name, value) in enumerate(entity.items()):
        if name in unindexed or is_protected(name):
            taken.append([place, name, value])
        else:
            _take(value, place, name, name, [name], unindexed, clear, taken, inside)
    if taken:
        hidden.append([[], taken])
    hidden += inside
    return clear


def _take(
    value: Any,
    place: int,
    name: str | None,
    dotted: str,
    path: list[Any],
    unindexed: frozenset[str],
    clear: Any,
    taken: list[list[Any]],
    inside: _Hidden,
) -> None:
    """Put a value into its container's ``clear`` copy, less what no index holds of it."""
    kind = type(value)
    if kind is Text or kind is Blob:
        taken.append([place, name, value])
        return
    if kind is list and value:
        value = _take_list(value, place, name, dotted, path, unindexed, taken, inside)
        if value is None:
            return
    elif kind is dict or kind is Entity:
        value = _take_dict(value, dotted, path, unindexed, inside)
    if name is None:
        clear.append(value)
    else:
        clear[name] = value


def _take_list(
    value: list[Any],
    place: int,
    name: str | None,
    dotted: str,
    path: list[Any],
    unindexed: frozenset[str],
    taken: list[list[Any]],
    inside: _Hidden,
) -> list[Any] | None:
    clear: list[Any] = []
    own: list[list[Any]] = []
    below: _Hidden = []
    for position, element in enumerate(value):
        _take(element, position, None, dotted, [*path, position], unindexed, clear, own, below)
    if not clear:  # an empty list would be indexed, as null, which this one is not
        taken.append([place, name, value])
        return None
    if own:
        inside.append([path, own])
    inside += below
    return clear


def _take_dict(
    value: dict[str, Any], dotted: str, path: list[Any], unindexed: frozenset[str], inside: _Hidden
) -> dict[str, Any]:
    own_unindexed = value.unindexed if isinstance(value, Entity) else _NOTHING
    clear: dict[str, Any] = {}
    own: list[list[Any]] = []
    below: _Hidden = []
    for place, (name, element) in enumerate(value.items()):
        full = f"{dotted}.{name}"
        if name in own_unindexed or full in unindexed:
            own.append([place, name, element])
        else:
            _take(element, place, name, full, [*path, name], unindexed, clear, own, below)
    if own:
        inside.append([path, own])
    inside += below
    if isinstance(value, Entity):
        return Entity._make(value.key, clear, own_unindexed, value.version)
    return clear


def _put_together(entity: Entity, hidden: _Hidden) -> None:
    for path, taken in hidden:
        container: Any = entity
        for step in path:
            container = container[step]
        if type(container) is list:
            for place, _, value in taken:
                container.insert(place, value)
        else:
            items = list(container.items())
            for place, name, value in taken:
                items.insert(place, (name, value))
            container.clear()
            container.update(items)


def named_properties(query: Query) -> set[str]:
    """The names of properties that a query filters, orders or projects by."""
    names = {order.name for order in query.orders} | {*query.projection, *query.distinct_names}
    nodes = list(query.filters)
    while nodes:
        node = nodes.pop()
        if isinstance(node, And | Or):
            nodes += node.filters
        else:
            names.add(node.name)
    return names.union(*map(named_properties, query.subqueries))
