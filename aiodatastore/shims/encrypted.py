"""Properties that nobody reads without the key."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from aiodatastore.adapters.base import Adapter, AggregateResult, Aggregation, ResultStream, RunOptions
from aiodatastore.errors import BadArgumentError, BadFilterError
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo
from aiodatastore.query import KEY_PROPERTY, Query
from aiodatastore.rowstore import Capability
from aiodatastore.serializers import FernetStep
from aiodatastore.shims.around import parse_names
from aiodatastore.shims.base import DEFAULT
from aiodatastore.shims.packing import Packing, named_properties

__all__ = ["Encrypted"]


class Encrypted(Packing):
    """Encrypts what no index holds of an entity, and the properties that are named. **The rest stays in clear.**

    >>> import asyncio
    >>> from cryptography.fernet import Fernet
    >>> from aiodatastore import Datastore, Entity, Key
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     store = Encrypted(adapter_from_url("memory://"), Fernet.generate_key(), properties=["diagnosis"])
    ...     async with Datastore(store) as ds:
    ...         await ds.put(Entity(Key("Patient", 7), {"ward": "B", "diagnosis": "gout"}))
    ...         return (await ds.query("Patient").filter("ward", "=", "B").fetch(1))[0]["diagnosis"]
    >>> asyncio.run(main())
    'gout'

    (``pip install "aiodatastore-engine[crypto]"``.) Encrypted are: ``Text`` and ``Blob`` values (inside of lists and
    embedded entities, too), what an entity names in ``unindexed``, and the whole values of ``properties``; or, with
    ``except_properties``, of all properties but these. Together they become one token, in the entity's property
    ``~encrypted``.

    **What remains visible** to whoever reads the store: keys (kinds, names, ids, parents), every indexed value that is
    not named (in the entity and in index rows, which have nothing else), the names of unindexed properties, how long
    the token is, when it was written, versions. A token is not bound to its entity: who can write to the store can put
    one in another's place, or an old one back.

    A named property is in no index, so a query that filters, orders or projects by it raises ``BadFilterError``,
    instead of finding nothing; so does a composite index on it. ``Capability.QUERIES`` is lost then. To encrypt whole
    payloads (which leaves index rows as they are), give a store
    ``serializer=Stack(MsgpackSerializer(), FernetStep(key))``.

    ``keys``: one, or several: the first writes, all of them read, so that keys can be rotated (put everything again,
    and drop the old one). ``keys_env`` names the environment variable that has them instead, with commas between them.
    Keys are neither in settings, nor reprs, nor errors. What was written without the shim is read all the same, and so
    is what was written before a property was named, whose index rows last until it is put again. Without the right key
    reading raises ``CorruptDataError``.

    :raises BadArgumentError: if ``cryptography`` is not installed, a key is malformed, not one of ``keys`` and
        ``keys_env`` is given, both ``properties`` and ``except_properties`` are, or a name is none
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "keys_env": str,
        "properties": parse_names,
        "except_properties": parse_names,
    }

    def __init__(
        self,
        child: Adapter,
        keys: Any = None,
        *,
        keys_env: str | None = None,
        properties: Iterable[str] | None = None,
        except_properties: Iterable[str] | None = None,
    ) -> None:
        if (keys is None) == (keys_env is None):
            raise BadArgumentError("expected keys, or keys_env: the name of an environment variable that has them")
        self._keys_env = keys_env
        super().__init__(child, FernetStep(_from_environment(keys_env) if keys is None else keys), "~encrypted")
        if properties is not None and except_properties is not None:
            raise BadArgumentError("give properties or except_properties, not both")
        self._names = _checked("properties", properties)
        self._exceptions = None if except_properties is None else _checked("except_properties", except_properties)

    @property
    def settings(self) -> Mapping[str, object]:
        """Which properties are encrypted. Not the keys."""
        shown: dict[str, object] = {} if self._keys_env is None else {"keys_env": self._keys_env}
        if self._exceptions is not None:
            return {**shown, "except_properties": tuple(sorted(self._exceptions))}
        return {**shown, "properties": tuple(sorted(self._names))}

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The child's; with named properties not every query is answered."""
        lost = {Capability.QUERIES} if self._names or self._exceptions is not None else set()
        return self.child.capabilities - lost

    @property
    def _what(self) -> str:
        return "encrypted"

    def _is_protected(self, name: str) -> bool:
        if self._exceptions is not None:
            return not any(each in self._exceptions for each in _with_owners(name))
        return bool(self._names) and any(each in self._names for each in _with_owners(name))

    # ---------------------------------------------------------------------------------------- queries

    def _refuse(self, names: Iterable[str], what: str) -> None:
        for name in names:
            if name != KEY_PROPERTY and self._is_protected(name):
                raise BadFilterError(
                    f"property {name!r} is encrypted and in no index: {what} can't use it; get entities by key, or "
                    "filter by others and look at what is found"
                )

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """What the child finds.

        :raises BadFilterError: if the query uses an encrypted property
        """
        self._refuse(named_properties(query), "a query")
        return super().run(query, options)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = DEFAULT
    ) -> AggregateResult:
        """What the child makes of it.

        :raises BadFilterError: if it uses an encrypted property
        """
        self._refuse(named_properties(query), "a query")
        self._refuse((each.property for each in aggregations if each.property), "an aggregate")
        return await super().aggregate(query, aggregations, options)

    async def create_index(self, definition: IndexDefinition) -> IndexInfo:
        """In the child.

        :raises BadFilterError: if it is on an encrypted property, and could hold nothing
        """
        self._refuse((name for name, _ in definition.properties), "an index")
        return await super().create_index(definition)


def _checked(what: str, names: Any) -> frozenset[str]:
    found = [] if names is None else list(names) if isinstance(names, Iterable) else [names]
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in found):
        raise BadArgumentError(f"{what}: expected names of properties in a list, got {names!r:.200}")
    return frozenset(found)


def _from_environment(name: Any) -> list[str]:
    found = os.environ.get(name, "") if isinstance(name, str) else ""
    keys = [key.strip() for key in found.split(",") if key.strip()]
    if not keys:
        raise BadArgumentError(f"keys_env: the environment has no variable {name!r:.100} with keys")
    return keys


def _with_owners(name: str) -> Iterator[str]:
    """A name, and those of the embedded entities that it is a part of: ``a.b.c``, ``a.b``, ``a``."""
    while name:
        yield name
        name = name.rpartition(".")[0]
