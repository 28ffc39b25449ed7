"""Copies of one store's entities kept in another: the shared cache of ``Cached``, the upper tiers of ``Tiered``.

A copy is an entity of the other store that holds, as bytes, what the first one said: the payload (or that there is
none), its version there, and the moment at which it was so. The versions that the other store gives it are used for
one thing: a copy is written only if nobody has written it since it was looked for. So an old fill that arrives
late finds that the place has changed, and is dropped.

Where copies must not be old (``Tiered``), writers *mark* a place before they change the entity: while there is a mark
there is no copy, and nobody fills it. Each writer has a mark of its own and takes that away; the last one leaves the
copy, if no other wrote a newer version meanwhile.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiodatastore.adapters.base import MIXED, Adapter, Commit, Moment, Put
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, CorruptDataError, UnavailableError
from aiodatastore.indexing.encoding import encode_key
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.serializers import MsgpackSerializer

__all__ = ["Copies", "Copy", "Place", "clock_name", "same_clock", "space_of"]

KIND: Final = "Copy"
_NAMES: Final = frozenset({"key", "payload", "version", "moment", "clock", "read_at", "expires_at", "marks"})
_NOTHING: Final[dict[str, Any]] = {
    "payload": None,
    "version": 0,
    "moment": -1,
    "clock": None,
    "read_at": 0.0,
    "expires_at": None,
    "marks": [],
}
_TRIES: Final = 20
_UNNAMED: Final = "?"
_HIGHEST: Final = Moment(None, 2**62)
"""As a floor: no copy counts."""


class Copy(NamedTuple):
    """What the first store said of a key: the entity or None, at a moment of its clock.

    ``read_at`` (seconds since 1970): when it began to be read; ``expires_at``: when the entity is gone, or None.
    """

    entity: Entity | None
    clock: object
    moment: int
    read_at: float
    expires_at: float | None = None


class Place(NamedTuple):
    """What was found where a copy may be: ``version`` is that in the store of copies (0: nothing was there).

    ``marks``: of whom is writing the entity (name, when), and ``floor`` the newest version that one of them wrote.
    """

    version: int
    copy: Copy | None = None
    marks: tuple[tuple[str, float], ...] = ()
    floor: Moment | None = None


class Copies:
    """Reads and writes copies in an adapter.

    ``space`` tells the copies of one store from those of others in the same adapter. ``mark_s``: seconds after
    which a mark does not count any more. Errors are the adapter's.
    """

    def __init__(self, adapter: Adapter, space: str, mark_s: float = 60.0) -> None:
        self.adapter = adapter
        self._space = hashlib.blake2b(space.encode(), digest_size=16).digest()
        self._mark_s = mark_s
        self._serializer = MsgpackSerializer()
        self._clocks: dict[str, object] = {}

    def _key(self, encoded: bytes) -> Key:
        return Key(KIND, hashlib.blake2b(encoded, digest_size=20, key=self._space).hexdigest())

    def can_keep(self, copy: Copy) -> bool:
        """Whether it is known on which clock its moment counts."""
        return copy.clock is not MIXED

    # --------------------------------------------------------------------------------------------- copies

    async def read(self, keys: Sequence[Key]) -> list[Place]:
        """What there is of each key: one lookup."""
        encoded = [encode_key(key) for key in keys]
        found = await self.adapter.lookup([self._key(each) for each in encoded])
        return self._places(keys, encoded, found.entities)

    def read_now(self, keys: Sequence[Key]) -> list[Place] | None:
        """The same, if the adapter has it at hand."""
        encoded = [encode_key(key) for key in keys]
        found = self.adapter.lookup_now([self._key(each) for each in encoded])
        return None if found is None else self._places(keys, encoded, found)

    def _places(self, keys: Sequence[Key], encoded: Sequence[bytes], found: Sequence[Entity | None]) -> list[Place]:
        return [
            Place(0) if entity is None else self._place(key, name, entity)
            for key, name, entity in zip(keys, encoded, found, strict=True)
        ]

    def _place(self, key: Key, encoded: bytes, stored: Entity) -> Place:
        version = stored.version
        try:
            if stored["key"] != encoded:
                return Place(version)
            name, moment = stored["clock"], stored["moment"]
            clock = MIXED if name == _UNNAMED else name if name is None else self._clocks.setdefault(name, name)
            if stored["marks"]:
                marks = tuple((mark, float(at)) for mark, _, at in (each.partition(" ") for each in stored["marks"]))
                return Place(version, None, marks, None if moment < 0 else Moment(clock, moment))
            if moment < 0:
                return Place(version)
            payload = stored["payload"]
            entity = None if payload is None else self._serializer.loads(key, payload, stored["version"])
            return Place(version, Copy(entity, clock, moment, stored["read_at"], stored["expires_at"]))
        except (KeyError, TypeError, ValueError, CorruptDataError):  # not ours, or damaged: as if it were not there
            return Place(version)

    async def write(self, copies: Iterable[tuple[Key, Copy, int]], ttl_s: float | None = None) -> list[bool]:
        """Write each copy if its place has this version still; whether it was. One commit each, one round trip.

        The clock of each has to be one that :meth:`can_keep`.
        """
        wanted = [(self._entity(key, copy), version) for key, copy, version in copies]
        return [version is not None for version in await self._commit(wanted, ttl_s)]

    async def forget(self, keys: Sequence[Key]) -> None:
        """Take copies away; what was read before is not written there any more. Where there are marks they stay."""
        places = zip(keys, await self.read(keys), strict=True)
        await self._commit([(self._make(key), place.version) for key, place in places if not place.marks], None)

    # ---------------------------------------------------------------------------------------------- marks

    async def mark(self, keys: Iterable[Key], name: str) -> dict[Key, Place]:
        """Put a mark of this name into each place; what is there then. Two round trips if nobody interferes.

        :raises UnavailableError: if others interfered too often; some may be marked
        """
        marked: dict[Key, Place] = {}
        wanted = list(keys)
        for _ in range(_TRIES):
            now = time.time()
            changed: list[tuple[Key, Place]] = []
            for key, place in zip(wanted, await self.read(wanted), strict=True):
                others = self._alive(place, now)
                changed.append(
                    (key, Place(place.version, None, (*others, (name, now)), place.floor if others else None))
                )
            versions = await self._commit([(self._marked(key, place), place.version) for key, place in changed], None)
            wanted = []
            for (key, place), version in zip(changed, versions, strict=True):
                if version is None:
                    wanted.append(key)
                else:
                    marked[key] = place._replace(version=version)
            if not wanted:
                return marked
        raise UnavailableError(f"{self.adapter.url}: others write too often what is to be marked")

    async def unmark(self, marked: Mapping[Key, Place], name: str, copies: Mapping[Key, Copy]) -> None:
        """Take marks away again, and leave copies where no other mark is left. One round trip if nobody interfered.

        :raises UnavailableError: if others interfered too often; then some marks stay
        """
        wanted = dict(marked)
        for _ in range(_TRIES):
            now = time.time()
            changed = [
                (key, self._without(key, place, name, copies.get(key), now), place.version)
                for key, place in wanted.items()
            ]
            versions = await self._commit([(entity, version) for _, entity, version in changed], None)
            again = [key for (key, _, _), version in zip(changed, versions, strict=True) if version is None]
            if not again:
                return
            wanted = {
                key: place
                for key, place in zip(again, await self.read(again), strict=True)
                if place.marks or not _has_newer(place, copies.get(key))
            }
            if not wanted:
                return
        raise UnavailableError(f"{self.adapter.url}: others write too often what is marked")

    def _alive(self, place: Place, now: float) -> list[tuple[str, float]]:
        return [(name, at) for name, at in place.marks if at > now - self._mark_s]

    def is_marked(self, place: Place) -> bool:
        """Whether somebody may be writing the entity."""
        return bool(place.marks) and bool(self._alive(place, time.time()))

    def _without(self, key: Key, place: Place, name: str, copy: Copy | None, now: float) -> Entity:
        """A place less a mark."""
        others = tuple(mark for mark in self._alive(place, now) if mark[0] != name)
        floor = place.floor
        if copy is not None and not self.can_keep(copy):
            copy, floor = None, _HIGHEST
        if others:
            if copy is not None and (floor is None or not same_clock(floor.clock, copy.clock)):
                floor = Moment(copy.clock, copy.moment) if floor is None else _HIGHEST
            elif copy is not None and floor is not None and floor.version < copy.moment:
                floor = Moment(copy.clock, copy.moment)
            return self._marked(key, Place(0, None, others, floor))
        if copy is None or (
            floor is not None and (not same_clock(floor.clock, copy.clock) or floor.version > copy.moment)
        ):
            return self._make(key)
        return self._entity(key, copy)

    # -------------------------------------------------------------------------------------- as entities

    async def _commit(self, wanted: Sequence[tuple[Entity, int]], ttl_s: float | None) -> list[int | None]:
        """Put each if it has this version still: the versions then, None where it has not."""
        if not wanted:
            return []
        if Capability.TTL not in self.adapter.capabilities:
            ttl_s = None
        batch = [Commit({entity.key: version}, (), (Put(entity, ttl_s),), os.urandom(16)) for entity, version in wanted]
        keys = [entity.key for entity, _ in wanted]
        versions: list[int | None] = []
        for key, outcome in zip(keys, await self.adapter.commit(batch), strict=True):
            if outcome.error is not None:
                raise outcome.error
            versions.append(None if outcome.version is None else outcome.version_of(key))
        return versions

    def _entity(self, key: Key, copy: Copy) -> Entity:
        entity = copy.entity
        name = clock_name(copy.clock)
        if name is not None:
            self._clocks[name] = copy.clock
        return self._make(
            key,
            payload=None if entity is None else self._serializer.dumps(entity),
            version=0 if entity is None else entity.version,
            moment=copy.moment,
            clock=name,
            read_at=copy.read_at,
            expires_at=copy.expires_at,
        )

    def _marked(self, key: Key, place: Place) -> Entity:
        floor = place.floor
        marks = [f"{name} {at!r}" for name, at in place.marks]
        if floor is None:
            return self._make(key, marks=marks)
        return self._make(key, marks=marks, moment=floor.version, clock=clock_name(floor.clock))

    def _make(self, key: Key, **properties: object) -> Entity:
        encoded = encode_key(key)
        return Entity._make(self._key(encoded), {"key": encoded, **_NOTHING, **properties}, _NAMES, 0)


def space_of(adapter: Adapter, what: str) -> str:
    """A name for what an adapter holds, the same in every process that makes the same adapter, and no other's.

    :raises BadArgumentError: if there is none: part of it is a function that can't be named
    """
    named = _described(adapter)
    if any(mark in named for mark in ("<lambda>", "<locals>", " at 0x")):
        raise BadArgumentError(
            f"{what}: give a name for the copies of {adapter!r:.200}: its functions have none by which other processes "
            "would know that theirs are the same"
        )
    return named


_numbers: weakref.WeakKeyDictionary[Adapter, int] = weakref.WeakKeyDictionary()
_count = itertools.count(1)


def _described(adapter: Adapter) -> str:
    kind = type(adapter).__name__
    if adapter.children:
        inside = ", ".join(map(_described, adapter.children))
        return f"{kind}({inside}; {dict(sorted(adapter.settings.items()))!r})"
    if adapter.capabilities & {Capability.MULTI_PROCESS, Capability.DURABLE}:
        return adapter.url
    # Of this process alone, and there may be several.
    number = _numbers.setdefault(adapter, 0) or next(_count)
    _numbers[adapter] = number
    return f"{adapter.url}#{os.getpid()}.{number}"


def _has_newer(place: Place, copy: Copy | None) -> bool:
    """Whether what is there is not older than a copy."""
    if copy is None or place.copy is None:
        return place.copy is None
    return same_clock(place.copy.clock, copy.clock) and place.copy.moment >= copy.moment


def clock_name(clock: object) -> str | None:
    """How a clock is written down; None: the only one. A clock without a name is one of this process alone."""
    return clock if clock is None or isinstance(clock, str) else _UNNAMED


def same_clock(one: object, other: object) -> bool:
    """Whether moments of one key can be compared: what a key counts on has no name, or this one.

    A key lives in one store, so two clocks without a name are the same if both are of one key.
    """
    return clock_name(one) == clock_name(other)
