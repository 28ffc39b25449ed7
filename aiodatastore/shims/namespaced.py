"""A part of a store of its own: for each tenant one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

import anyio

from aiodatastore.adapters.base import Adapter, Commit, Put, ReadPolicy
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, BadKeyError, BadRequestError
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo, dump_index_yaml, parse_index_yaml
from aiodatastore.key import MAX_NAMESPACE_LENGTH, Key, check_namespace
from aiodatastore.shims.key_transform import KeyTransform, Partition

__all__ = ["Namespaced"]

_MAX_KNOWN: Final = 10_000
_REGISTRY: Final = ".indexes"
"""The namespace in the store where tenants' indexes are noted: none of any tenant's, for it begins with one dot."""


class _Held:
    """How many tenants have a child open, in this process."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = anyio.Lock()
        self.process = os.getpid()

    def forget(self, child: Adapter) -> None:
        """Once nobody has it open: the lock is of this event loop, and the next may be another."""
        if not self.count and _held.get(child) is self:
            del _held[child]


_held: WeakKeyDictionary[Adapter, _Held] = WeakKeyDictionary()


class Namespaced(KeyTransform):
    """A tenant's own part of a store: nothing outside of ``namespace`` is seen, found, counted or written.

    >>> import asyncio
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     memory = adapter_from_url("memory://")
    ...     async with Datastore(Namespaced(memory, "acme")) as ds:
    ...         await ds.put([Entity(Key("Task", 1)), Entity(Key("Task", 2, namespace="archive"))])
    ...         return await ds.get(Key("Task", 1)), await memory.partitions()
    >>> asyncio.run(main())
    (Entity(Key('Task', 1), {}, version=2), [('', 'acme'), ('', 'acme.archive')])

    The application inside has namespaces of its own: its default one is ``acme`` in the store, its ``archive`` is
    ``acme.archive``. Two tenants never meet: a dot in ``namespace`` is stored as two, and an inner namespace that
    begins with a dot or hyphen gets a hyphen before it (``.x`` of ``acme`` is ``acme.-.x``). Both together have at most
    100 characters: a key whose namespace would be longer can't be put (``BadKeyError``), and none is found. Projects
    are passed through; each has its tenants.

    Several tenants may be open on one child at once: the first opens it, the last closes it.

    Composite indexes are the store's, with entities of all tenants. A tenant sees those that it has created (they are
    noted in the store, in namespace ``.indexes``); deleting one takes it from the tenant's list, and who administers
    the store deletes its rows.

    What a tenant can tell of others: versions, the numbers of indexes and the progress of building one count for the
    whole store, and ``check`` says how many disagreements there are in it. The rest of
    :class:`~aiodatastore.shims.key_transform.KeyTransform` holds: order is kept, keys in property values stay as the
    tenant wrote them. Costs about half a microsecond a key.

    :raises BadArgumentError: if ``namespace`` is empty or none, or so long that no inner one fits
    """

    checked = False
    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"namespace": str}

    def __init__(self, child: Adapter, namespace: str) -> None:
        if not check_namespace(namespace):
            raise BadArgumentError("Namespaced needs the name of a namespace, got an empty one")
        self.namespace = namespace
        self._holds: _Held | None = None
        self._home = namespace.replace(".", "..")
        if len(self._home) > MAX_NAMESPACE_LENGTH:
            raise BadArgumentError(
                f"namespace {namespace!r} is stored as {self._home!r}: at most {MAX_NAMESPACE_LENGTH} characters"
            )
        self._within: dict[str, str] = {"": self._home}
        self._without: dict[str, str | None] = {self._home: ""}
        super().__init__(
            child,
            encode=self._enclosed,
            decode=self._freed,
            partitions=(self._enclosed_partition, self._freed_partition),
            keeps_order=True,
        )

    @property
    def settings(self) -> Mapping[str, object]:
        """The namespace."""
        return {"namespace": self.namespace}

    async def open(self) -> None:
        """Open the child, unless another tenant has."""
        while self._holds is None:
            held = _held.get(self.child)
            if held is None or held.process != os.getpid():
                held = _held[self.child] = _Held()
            async with held.lock:
                if _held.get(self.child) is not held:
                    continue  # the last one closed it while this one waited
                try:
                    if not held.count:
                        await self.child.open()
                    held.count += 1
                    self._holds = held
                finally:
                    held.forget(self.child)

    async def aclose(self) -> None:
        """Close the child, unless another tenant still has it open."""
        held, self._holds = self._holds, None
        if held is None:
            return
        async with held.lock:
            held.count -= 1
            try:
                if not held.count:
                    await self.child.aclose()
            finally:
                held.forget(self.child)

    def _enclosed(self, key: Key) -> Key:
        within = self._within.get(key._namespace)
        return Key._make(key._project, within or self._found_within(key._namespace), key._pairs)

    def _freed(self, key: Key) -> Key:
        free = self._without.get(key._namespace)
        if free is None:
            free = self._found_without(key._namespace)
            if free is None:
                raise BadKeyError(f"{key!r} is not in namespace {self.namespace!r}")
        return Key._make(key._project, free, key._pairs)

    def _enclosed_partition(self, partition: Partition) -> Partition:
        project, namespace = partition
        return project, self._within.get(namespace) or self._found_within(namespace)

    def _freed_partition(self, partition: Partition) -> Partition | None:
        project, namespace = partition
        free = self._found_without(namespace)
        return None if free is None else (project, free)

    def _found_within(self, namespace: str) -> str:
        # Order is kept: "-" < "." < what else a namespace may begin with.
        found = f"{self._home}.{'-' if namespace[0] in '.-' else ''}{namespace}" if namespace else self._home
        if len(found) > MAX_NAMESPACE_LENGTH:
            raise BadKeyError(
                f"namespace {namespace!r} of {self.namespace!r} would be stored as {found!r}: at most"
                f" {MAX_NAMESPACE_LENGTH} characters"
            )
        if len(self._within) > _MAX_KNOWN:
            self._within.clear()
            self._without.clear()
        self._within[namespace] = found
        self._without[found] = namespace
        return found

    def _found_without(self, namespace: str) -> str | None:
        """The namespace inside, or None if it is another's."""
        if namespace == self._home:
            return ""
        if not namespace.startswith(f"{self._home}."):
            return None
        inner = namespace[len(self._home) + 1 :]
        if not inner or inner[0] == ".":
            return None  # of a tenant whose name goes on with a dot
        return inner[1:] if inner[0] == "-" else inner

    # ------------------------------------------------------------------------------- administration

    async def _registered(self) -> tuple[Entity | None, list[IndexDefinition]]:
        key = Key._make("", _REGISTRY, (("__indexes__", self._home),))
        (entity,) = (await self.child.lookup([key], read_policy=ReadPolicy.CURRENT)).entities
        return entity, [] if entity is None else parse_index_yaml(entity["indexes"])

    async def _register(self, definition: IndexDefinition, *, wanted: bool) -> None:
        """Note an index, or forget it."""
        while True:
            entity, known = await self._registered()
            if (definition in known) == wanted:
                return
            names = [*known, definition] if wanted else [each for each in known if each != definition]
            text = dump_index_yaml(names) if names else ""
            key = Key._make("", _REGISTRY, (("__indexes__", self._home),))
            put = Put(Entity._make(key, {"indexes": text}, frozenset({"indexes"}), 0))
            commit = Commit({key: 0 if entity is None else entity.version}, (), [put], os.urandom(16))
            (outcome,) = await self.child.commit([commit])
            if outcome.error is not None:
                raise outcome.error
            if outcome.committed:
                return

    async def _must_know(self, definition: IndexDefinition) -> None:
        if definition not in (await self._registered())[1]:
            raise BadRequestError(f"there is no index {definition}")

    async def indexes(self) -> list[IndexInfo]:
        """Those that this tenant has created."""
        known = set((await self._registered())[1])
        return [info for info in await self.child.indexes() if info.definition in known]

    async def create_index(self, definition: IndexDefinition) -> IndexInfo:
        """Create it for the whole store, unless another tenant has, and note that this one uses it."""
        await self._register(definition, wanted=True)
        return await self.child.create_index(definition)

    async def build_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None
    ) -> IndexInfo:
        """In the whole store; an index of other tenants alone is none."""
        await self._must_know(definition)
        return await self.child.build_index(definition, progress=progress)

    async def delete_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None, finish: bool = True
    ) -> None:
        """Take it from this tenant's list. Its rows stay, for others may use it: the child's own deletes them.

        :raises BadRequestError: if this tenant has no such index
        """
        await self._must_know(definition)
        await self._register(definition, wanted=False)

    async def check(self) -> list[str]:
        """The number of disagreements in the whole store: their texts would name others' keys."""
        found = await self.child.check()
        return [f"{len(found)} disagreements in the store: its own check tells which"] if found else []
