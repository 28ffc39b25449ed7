"""Names of keys that differ in case only are the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from aiodatastore.adapters.base import Adapter, Commit, Lookup, ReadPolicy, written_key
from aiodatastore.adapters.registry import parse_bool
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, BadKeyError
from aiodatastore.key import MAX_NAME_BYTES, Key, utf8_length
from aiodatastore.rowstore import EXISTS, Capability
from aiodatastore.shims.key_transform import KeyTransform

__all__ = ["LowercaseKeys"]

_NEVER: Final = 1 << 52
"""A version that no entity has: what was read under several spellings, at different times, was never so."""


class LowercaseKeys(KeyTransform):
    """Stores names of keys (with ``kinds=True`` their kinds, too) in lower case: however spelled, one entity.

    >>> import asyncio
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     async with Datastore(LowercaseKeys(adapter_from_url("memory://"))) as ds:
    ...         await ds.put(Entity(Key("Person", "Ada@Example.com"), {"born": 1815}))
    ...         return await ds.get(Key("Person", "ada@EXAMPLE.com")), await ds.query("Person").keys()
    >>> asyncio.run(main())
    (Entity(Key('Person', 'ada@EXAMPLE.com'), {'born': 1815}, version=2), [Key('Person', 'ada@example.com')])

    Lower case is ``str.lower``: ``ß`` is not ``ss``. A get returns the key it asked for, a query the stored one; both
    name the same entity. Keys in property values stay as they were given, and so do ids and namespaces.

    Lost is ``EXACT_KEYS``. In a transaction use one spelling of a key: by another one it does not see its own write
    (what is committed is checked by the stored key, and of several writes of one key the last counts). A query in a
    transaction that has written what it might find raises ``UnsupportedError``.

    A name whose lower case has more than 1500 bytes can't be put (``BadKeyError``).
    It costs about a microsecond a key.
    """

    checked = False
    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"kinds": parse_bool}

    def __init__(self, child: Adapter, *, kinds: bool = False) -> None:
        if type(kinds) is not bool:
            raise BadArgumentError(f"kinds is True or False, not {kinds!r:.80}")
        self.kinds = kinds
        super().__init__(
            child,
            encode=self._lowered,
            decode=_same,
            kinds=(_lower, _same) if kinds else None,
            keeps_order=True,
        )

    @property
    def settings(self) -> Mapping[str, object]:
        """Whether kinds are lowered, too."""
        return {"kinds": self.kinds}

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The child's, but for ``EXACT_KEYS``."""
        return self.child.capabilities - {Capability.EXACT_KEYS}

    def _lowered(self, key: Key) -> Key:
        kinds = self.kinds
        pairs = tuple(
            [
                (_lower(kind) if kinds else kind, ident if type(ident) is int else _lower(str(ident)))
                for kind, ident in key._pairs
            ]
        )
        return key if pairs == key._pairs else Key._make(key._project, key._namespace, pairs)

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """As any; several spellings of one key: by :meth:`lookup`."""
        if len(keys) > 1 and len({self._lowered(key) for key in keys}) < len(keys):
            return None
        return super().lookup_now(keys)

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """One lookup of the child; each spelling gets an entity of its own."""
        places: dict[Key, int] = {}
        try:
            which = [places.setdefault(self._lowered(key), len(places)) for key in keys]
        except BadKeyError:
            return await super().lookup(keys, read_policy=read_policy)
        if len(places) == len(keys):
            return await super().lookup(keys, read_policy=read_policy)
        found = await self.child.lookup(list(places), read_policy=read_policy)
        entities: list[Entity | None] = []
        for key, place in zip(keys, which, strict=True):
            entity = found.entities[place]
            if entity is not None:
                entity = entity.copy()
                entity.key = key
            entities.append(entity)
        return found.part(entities, which)

    def _inner_commit(self, commit: Commit) -> Commit:
        inner = super()._inner_commit(commit)
        if len(inner.checks) < len(commit.checks):
            checks: dict[Key, int] = {}
            for key, version in commit.checks.items():
                name = self._lowered(key)
                checks[name] = _both(checks.get(name, version), version)
            inner.checks = checks
        if len(inner.writes) > 1:  # of several spellings the last
            inner.writes = list({written_key(write): write for write in inner.writes}.values())
        return inner


def _same(value: Any) -> Any:
    return value


def _lower(text: str) -> str:
    lower = text.lower()
    if len(lower) > MAX_NAME_BYTES // 4 and (utf8_length(lower) or 0) > MAX_NAME_BYTES:
        raise BadKeyError(f"{text[:40]!r}... has more than {MAX_NAME_BYTES} bytes in lower case")
    return lower


def _both(one: int, two: int) -> int:
    """What must hold of a version if both must."""
    if one == two or (two == EXISTS and one > 0):
        return one
    return two if one == EXISTS and two > 0 else _NEVER
