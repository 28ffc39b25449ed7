"""Copies of one store's entities kept in another: the shared cache of ``Cached``, the upper tiers of ``Tiered``.

A copy is an entity of the other store that holds, as bytes, what the first one said: the payload (or that there is
none), its version there, and the moment at which it was so. The versions that the other store gives it are used for
one thing: a copy is written only if nobody has written it since it was looked for. So an old fill that arrives
late finds that the place has changed, and is dropped.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from aiodatastore.adapters.base import Adapter, Commit, Put
from aiodatastore.entity import Entity
from aiodatastore.errors import CorruptDataError
from aiodatastore.indexing.encoding import encode_key
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.serializers import MsgpackSerializer

__all__ = ["Copies", "Copy", "Place"]

KIND: Final = "Copy"
_NAMES: Final = frozenset({"key", "payload", "version", "moment", "clock", "read_at", "expires_at", "doubt_at"})


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
    """What was found where a copy may be: ``version`` is the copy's in the store of copies (0: nothing was there).

    ``doubt_at``: since when somebody is writing the entity, or tried to; then there is no copy.
    """

    version: int
    copy: Copy | None = None
    doubt_at: float | None = None


class Copies:
    """Reads and writes copies in an adapter.

    ``space`` tells the copies of one store from those of others in the same adapter. Errors are the adapter's.
    """

    def __init__(self, adapter: Adapter, space: str) -> None:
        self.adapter = adapter
        self._space = hashlib.blake2b(space.encode(), digest_size=16).digest()
        self._serializer = MsgpackSerializer()
        self._clocks: dict[str, object] = {}

    def _key(self, encoded: bytes) -> Key:
        return Key(KIND, hashlib.blake2b(encoded, digest_size=20, key=self._space).hexdigest())

    def can_keep(self, copy: Copy) -> bool:
        """Whether a copy's clock can be written down: there is only one, or it has a name."""
        return copy.clock is None or isinstance(copy.clock, str)

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
            if stored["doubt_at"] is not None or stored["moment"] < 0:
                return Place(version, None, stored["doubt_at"])
            payload = stored["payload"]
            entity = None if payload is None else self._serializer.loads(key, payload, stored["version"])
            clock = None if stored["clock"] is None else self._clocks.setdefault(stored["clock"], stored["clock"])
            copy = Copy(entity, clock, stored["moment"], stored["read_at"], stored["expires_at"])
        except (
            KeyError,
            TypeError,
            CorruptDataError,
        ):  # not ours, or damaged: as if it were not there
            return Place(version)
        return Place(version, copy)

    async def write(self, copies: Iterable[tuple[Key, Copy, int]], ttl_s: float | None = None) -> list[bool]:
        """Write each copy if its place has this version still; whether it was. One commit each, one round trip.

        The clock of each has to be one that :meth:`can_keep`.
        """
        return await self._commit([(self._entity(key, copy), version) for key, copy, version in copies], ttl_s)

    async def doubt(self, keys: Sequence[Key]) -> list[int]:
        """Note, whatever is there, that these are being written; the version of each place then.

        One atomic commit.
        """
        return await self._put([self._empty(key, time.time()) for key in keys])

    async def forget(self, keys: Sequence[Key]) -> None:
        """Leave no copy and no doubt, whatever is there; what was read before is not written over it."""
        await self._put([self._empty(key, None) for key in keys])

    async def settle(self, keys: Iterable[tuple[Key, int]]) -> None:
        """The same, where a place has this version still."""
        await self._commit([(self._empty(key, None), version) for key, version in keys], None)

    async def _put(self, entities: Sequence[Entity]) -> list[int]:
        puts = [Put(entity) for entity in entities]
        [outcome] = await self.adapter.commit([Commit(writes=puts, token=os.urandom(16))])
        if outcome.error is not None:
            raise outcome.error
        return [outcome.version_of(put.entity.key) for put in puts]

    async def _commit(self, wanted: list[tuple[Entity, int]], ttl_s: float | None) -> list[bool]:
        if not wanted:
            return []
        if Capability.TTL not in self.adapter.capabilities:
            ttl_s = None
        batch = [Commit({entity.key: version}, (), (Put(entity, ttl_s),), os.urandom(16)) for entity, version in wanted]
        return [outcome.version is not None for outcome in await self.adapter.commit(batch)]

    def _entity(self, key: Key, copy: Copy) -> Entity:
        entity = copy.entity
        if isinstance(copy.clock, str):
            self._clocks[copy.clock] = copy.clock
        return self._make(
            key,
            payload=None if entity is None else self._serializer.dumps(entity),
            version=0 if entity is None else entity.version,
            moment=copy.moment,
            clock=copy.clock,
            read_at=copy.read_at,
            expires_at=copy.expires_at,
            doubt_at=None,
        )

    def _empty(self, key: Key, doubt_at: float | None) -> Entity:
        return self._make(
            key, payload=None, version=0, moment=-1, clock=None, read_at=0.0, expires_at=None, doubt_at=doubt_at
        )

    def _make(self, key: Key, **properties: object) -> Entity:
        encoded = encode_key(key)
        return Entity._make(self._key(encoded), {"key": encoded, **properties}, _NAMES, 0)
