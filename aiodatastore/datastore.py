"""``Datastore``: what applications await."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

import anyio

from aiodatastore.adapters.base import Adapter, Commit, Delete, Put, ReadPolicy
from aiodatastore.arguments import (
    check_timeout,
    check_ttl,
    complete_key,
    complete_keys,
    entities_to_write,
    expected_versions,
    model_key,
)
from aiodatastore.batching import MAX_BATCH_KEYS, Channel
from aiodatastore.bound_query import BoundQuery
from aiodatastore.contention import Contention
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadKeyError,
    DatastoreError,
    EntityExistsError,
    EntityNotFoundError,
    StoreClosedError,
    TransactionStateError,
)
from aiodatastore.ids import IdBlocks
from aiodatastore.key import MAX_ID, Key
from aiodatastore.query import Query
from aiodatastore.rowstore import EXISTS, Capability
from aiodatastore.txn import (
    NonTransactional,
    Propagation,
    Transaction,
    TransactionContext,
    check_options,
    current_frame,
    decorated,
    open_datastores,
    run_in_transaction,
    transaction_of,
    version_conflict,
    within,
)

if TYPE_CHECKING:
    from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo

__all__ = ["MAX_COMMIT_WRITES", "Datastore"]

MAX_COMMIT_WRITES = 5000
"""Entities that one call outside of transactions writes in one commit; longer lists take several."""
MAX_ALLOCATION = 1_000_000_000
"""Ids that one ``allocate_ids`` may ask for."""

_CURRENT = ReadPolicy.CURRENT

P = ParamSpec("P")
T = TypeVar("T")
AnyKey = Key | Entity | str


class Datastore:
    """An entity datastore, wherever its data lives.

    >>> import asyncio
    >>> async def main():
    ...     async with Datastore("memory://") as ds:
    ...         await ds.put(Entity(Key("Person", "ada"), {"name": "Ada", "born": 1815}))
    ...         ada = await ds.get(Key("Person", "ada"))
    ...         return ada["name"], await ds.query("Person").filter("born", "<", 1900).count()
    >>> asyncio.run(main())
    ('Ada', 1)

    Making one does no I/O: open it with ``async with``, or :meth:`open` and :meth:`aclose`. It belongs to the
    event loop it was opened in, under asyncio or trio, and to the process: a forked child has to make its own.

    Gets and commits that are awaited side by side travel together; one that finds nothing under way goes out at once.
    A task that never has to wait, because its data is at hand, lets others run after
    :data:`~aiodatastore.batching.channel.MAX_HOLD_S` seconds. Inside a transaction every method takes part in it.

    ``adapter`` is an URL (``memory://``, ``sqlite:///path``) or an adapter, which is opened and closed with the
    datastore. ``namespace`` and ``project`` are those of :meth:`key` and :meth:`query`. ``require_indexes``: queries
    that need a composite index raise ``NeedIndexError`` instead of running without. ``index_yaml`` (App Engine's
    ``index.yaml``: its text, or a path that ends so) declares composite indexes; those that are missing are built when
    the datastore is opened. ``app_engine_rules``: refuse what App Engine would (queries are strict, nothing is
    embedded). ``page_size``: results read at once. ``timeout``: seconds for every read, write and page of results
    that names none (not for whole transactions).
    ``sort_budget``: results that a sort without an index may hold. Other ``options`` are the adapter's.

    :raises BadArgumentError: a malformed URL, an unknown option
    """

    def __init__(
        self,
        adapter: str | Adapter,
        *,
        namespace: str = "",
        project: str = "",
        require_indexes: bool = False,
        index_yaml: str | os.PathLike[str] | None = None,
        app_engine_rules: bool = False,
        page_size: int | None = None,
        timeout: float | None = None,
        sort_budget: int | None = None,
        **options: Any,
    ) -> None:
        self._channel: Channel | None = None
        self._why_closed = "is not open yet: use 'async with', or await its open() first"
        check_timeout(timeout)
        if page_size is not None and (type(page_size) is not int or page_size < 1):
            raise BadArgumentError(f"page_size: expected an int, 1 or more, or None, got {page_size!r:.80}")
        if require_indexes:
            options["require_indexes"] = True
        if sort_budget is not None:
            options["sort_budget"] = sort_budget
        if isinstance(adapter, Adapter) and options:
            raise BadArgumentError(
                f"{', '.join(options)}: give what concerns the adapter to the adapter, when it is made"
            )
        self.adapter = adapter if isinstance(adapter, Adapter) else _adapter_for(adapter, options)
        """Where entities live."""
        self.namespace = namespace
        self.project = project
        self.app_engine_rules = app_engine_rules
        self.page_size = page_size
        self.timeout = timeout
        self._index_yaml = index_yaml
        self._ids = IdBlocks(self.adapter)
        self._contention = Contention()
        Key("Any", namespace=namespace, project=project)  # refuses what no key can have

    # --------------------------------------------------------------------------------- opening, closing

    def __repr__(self) -> str:
        return f"Datastore({self.url!r})"

    @property
    def url(self) -> str:
        """Where the data lives, without secrets."""
        return self.adapter.url

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the adapter promises beyond the core."""
        return self.adapter.capabilities

    async def open(self) -> None:
        """Make ready; creates what is missing in the store. If it fails it can be tried again.

        :raises TransactionStateError: if it is open already
        :raises UnavailableError: if the store can't be reached or used
        :raises FormatVersionError: if it was written by another version of the format
        """
        if self._channel is not None or self._why_closed == _OPENING:
            raise TransactionStateError(f"{self!r} is open already")
        before, self._why_closed = self._why_closed, _OPENING
        try:
            await self.adapter.open()
            try:
                await self._create_declared_indexes()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self.adapter.aclose()
                raise
        except BaseException:
            self._why_closed = before
            raise
        self._ids = IdBlocks(self.adapter)
        self._contention = Contention()
        self._channel = Channel(self.adapter)
        open_datastores.add(self)

    async def aclose(self) -> None:
        """Refuse new calls, let those under way finish, and release everything. Closing twice is allowed."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        self._why_closed = "was closed"
        open_datastores.discard(self)
        try:
            await channel.wait_idle()
        finally:
            with anyio.CancelScope(shield=True):
                await self.adapter.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_channel", None) is not None:
            warnings.warn(f"unclosed {self!r}: await its aclose()", ResourceWarning, stacklevel=2, source=self)

    def _open_channel(self) -> Channel:
        channel = self._channel
        if channel is None:
            raise StoreClosedError(f"{self!r} {self._why_closed}")
        return channel

    def _leave_behind(self) -> None:
        """In a forked child: nothing of the parent's connections may be used."""
        if self._channel is not None:
            self._channel = None
            self._why_closed = "was opened before this process was forked: make and open one in the child"
            open_datastores.discard(self)

    async def _create_declared_indexes(self) -> None:
        if self._index_yaml is None:
            return
        from aiodatastore.indexing.definitions import IndexState

        for definition in _definitions(await _yaml_text(self._index_yaml)):
            info = await self.adapter.create_index(definition)
            if info.state is not IndexState.SERVING:
                await self.adapter.build_index(definition)

    # ------------------------------------------------------------------------------------------- values

    def key(self, *path: Any, parent: Any = None) -> Key:
        """A key in this datastore's project and namespace (or those of its parent)."""
        if parent is not None:
            return Key(*path, parent=parent)
        return Key(*path, namespace=self.namespace, project=self.project)

    def query(self, kind: Any = None, **parts: Any) -> BoundQuery:
        """A query of this datastore: of a kind (None: of all), or a ready ``Query``.

        ``parts`` are arguments of ``Query``. Namespace and project are the ancestor's, else the datastore's.

        :raises BadArgumentError, BadFilterError, BadValueError: as ``Query`` does
        """
        if isinstance(kind, Query | BoundQuery):
            if parts:
                raise BadArgumentError(f"{', '.join(parts)}: change a ready query with its own methods")
            return BoundQuery(self, kind if isinstance(kind, Query) else kind.query)
        if parts.get("ancestor") is None:
            if self.namespace:
                parts.setdefault("namespace", self.namespace)
            if self.project:
                parts.setdefault("project", self.project)
        if self.app_engine_rules:
            parts.setdefault("strict", True)
        return BoundQuery(self, Query(kind, **parts))

    # --------------------------------------------------------------------------------------------- reads

    @overload
    async def get(  # type: ignore[overload-overlap]  # str is a sequence, too: of characters, which are no keys
        self, keys: AnyKey, *, timeout: float | None = None, read_policy: ReadPolicy = ReadPolicy.STRONG
    ) -> Entity | None: ...
    @overload
    async def get(
        self,
        keys: Sequence[AnyKey],
        *,
        timeout: float | None = None,
        read_policy: ReadPolicy = ReadPolicy.STRONG,
    ) -> list[Entity | None]: ...
    async def get(self, keys: Any, *, timeout: float | None = None, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Any:
        """The entity of a key, or None; for a list or tuple of keys a list, in their order.

        Keys may be given as ``Key``, as an entity that has it, or as URL-safe text. Up to
        :data:`~aiodatastore.batching.channel.MAX_BATCH_KEYS` keys are read at one moment and in one round trip. What is
        returned is the caller's own, also where a key is named twice.

        :raises BadKeyError: if a key is incomplete
        :raises BadArgumentError: if something is no key
        :raises DeadlineExceededError: if it takes more than ``timeout`` seconds
        """
        channel = self._channel
        if (
            type(keys) is Key
            and channel is not None
            and timeout is None
            and current_frame.get() is None
            and keys._pairs[-1][1] is not None
        ):
            # The shortest way, for what is at hand: every line here was measured.
            if perf_counter() >= channel.yield_at:
                await channel.breathe()
            found = channel.lookup_now((keys,)) if read_policy is not _CURRENT else None
            if found is not None:
                return found[0]
            if read_policy is ReadPolicy.STRONG and self.timeout is None:
                return await channel.lookup_one(keys)
        check_timeout(timeout)
        transaction = transaction_of(self)
        if transaction is not None:
            return await transaction.get(keys, timeout=timeout)
        if type(read_policy) is not ReadPolicy:
            raise BadArgumentError(f"read_policy: expected a ReadPolicy, got {read_policy!r:.80}")
        wanted, single = complete_keys(keys)
        entities = await within(self._seconds(timeout), self._get(wanted, read_policy))
        return entities[0] if single else entities

    async def _get(self, keys: Sequence[Key], read_policy: ReadPolicy) -> list[Entity | None]:
        channel = self._open_channel()
        if len(keys) <= MAX_BATCH_KEYS:
            await channel.breathe_if_due()
            at_hand = read_policy is not _CURRENT and len(set(keys)) == len(keys)
            now = channel.lookup_now(keys) if at_hand else None
            return now if now is not None else (await channel.lookup(keys, read_policy)).entities
        entities: list[Entity | None] = []
        for start in range(0, len(keys), MAX_BATCH_KEYS):
            entities += await self._get(keys[start : start + MAX_BATCH_KEYS], read_policy)
        return entities

    async def get_or_insert(self, key: AnyKey, properties: Mapping[str, Any] | None = None, **more: Any) -> Entity:
        """The entity of a complete key, put with these properties if there is none: atomically.

        :raises BadKeyError: if the key is incomplete
        """
        transaction = transaction_of(self)
        if transaction is not None:
            return await transaction.get_or_insert(key, properties, **more)
        wanted = complete_key(key)
        made = Entity(wanted, {**(properties or {}), **more})
        made.validate(self.app_engine_rules)
        while True:
            found = await self.get(wanted)
            if found is not None:
                return found
            try:
                await self.insert(made)
            except EntityExistsError:
                continue
            return made

    # -------------------------------------------------------------------------------------------- writes

    @overload
    async def put(
        self, entities: Entity, *, if_version: int | None = None, ttl: float | None = None, timeout: float | None = None
    ) -> Key: ...
    @overload
    async def put(
        self,
        entities: Sequence[Entity],
        *,
        if_version: Sequence[int | None] | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> list[Key]: ...
    async def put(
        self, entities: Any, *, if_version: Any = None, ttl: float | None = None, timeout: float | None = None
    ) -> Any:
        """Store an entity, or a list or tuple of them, whether they exist or not; their keys.

        Incomplete keys are completed with ids that no other entity has, in the entities themselves; their
        ``version`` becomes the stored one. Entities are copied: what is done to them afterwards changes nothing
        stored. Of entities with the same key the last one wins.

        Up to :data:`MAX_COMMIT_WRITES` entities are one atomic commit; a longer list is written in commits of
        that size, one after the other. For more in one commit, use a transaction.

        :param if_version: put only if the stored entity has this version (0: if there is none); for a list, a list
            of versions, None where any will do. Then nothing of a commit is written unless all of them hold.
        :param ttl: seconds after which the entities are gone; putting one again without it makes it stay. For adapters
            with ``Capability.TTL`` (``redis://``).
        :raises ConflictError: if a version given with ``if_version`` is not the stored one
        :raises UnsupportedError: if ``ttl`` is given and the adapter keeps entities for good
        :raises BadValueError, BadPropertyError, BadRequestError: if an entity can't be stored
        :raises DeadlineExceededError: if ``timeout`` seconds passed before it was sent. What was sent is waited
            for, so that the outcome is known.
        """
        if type(entities) is Entity and if_version is None and ttl is None and timeout is None and self.timeout is None:
            channel = self._channel
            key = entities.key
            if (
                channel is not None
                and current_frame.get() is None
                and type(key) is Key
                and key._pairs[-1][1] is not None
            ):
                # The shortest way, for the most common case.
                entities.validate(self.app_engine_rules)
                commit = Commit({}, (), (Put(entities.snapshot()),), channel.token())
                outcome, cancelled = await channel.commit(commit)
                assert outcome.version is not None  # there was nothing to check
                entities.version = outcome.version_of(key)
                if cancelled is not None:
                    raise cancelled
                return key
        check_timeout(timeout)
        transaction = transaction_of(self)
        if transaction is not None:
            return await transaction.put(entities, if_version=if_version, ttl=ttl, timeout=timeout)
        ttl_s = check_ttl(ttl, self.adapter)
        return await self._put(entities, None, "put", if_version, timeout, ttl_s)

    @overload
    async def insert(self, entities: Entity, *, timeout: float | None = None) -> Key: ...
    @overload
    async def insert(self, entities: Sequence[Entity], *, timeout: float | None = None) -> list[Key]: ...
    async def insert(self, entities: Any, *, timeout: float | None = None) -> Any:
        """As :meth:`put`, for entities that must not exist yet.

        :raises EntityExistsError: if one exists; nothing of its commit was written
        """
        check_timeout(timeout)
        transaction = transaction_of(self)
        if transaction is not None:
            return await transaction.insert(entities, timeout=timeout)
        return await self._put(entities, 0, "insert", None, timeout)

    @overload
    async def update(self, entities: Entity, *, timeout: float | None = None) -> Key: ...
    @overload
    async def update(self, entities: Sequence[Entity], *, timeout: float | None = None) -> list[Key]: ...
    async def update(self, entities: Any, *, timeout: float | None = None) -> Any:
        """As :meth:`put`, for entities that must exist.

        :raises EntityNotFoundError: if one does not; nothing of its commit was written
        """
        check_timeout(timeout)
        transaction = transaction_of(self)
        if transaction is not None:
            return await transaction.update(entities, timeout=timeout)
        return await self._put(entities, EXISTS, "update", None, timeout)

    async def delete(
        self, keys: AnyKey | Sequence[AnyKey], *, if_version: Any = None, timeout: float | None = None
    ) -> None:
        """Delete the entity of a key, or those of a list or tuple; deleting what is absent is allowed.

        Atomic and bounded like :meth:`put`, which see for ``if_version`` and ``timeout``.

        :raises ConflictError: if a version given with ``if_version`` is not the stored one
        :raises BadKeyError: if a key is incomplete
        """
        check_timeout(timeout)
        transaction = transaction_of(self)
        if transaction is not None:
            await transaction.delete(keys, if_version=if_version, timeout=timeout)
            return
        wanted, single = complete_keys(keys)
        expected = expected_versions(if_version, len(wanted), single)
        _refuse_twice(wanted, if_version)
        deadline = self._deadline(timeout)
        for start in range(0, len(wanted), MAX_COMMIT_WRITES):
            part = wanted[start : start + MAX_COMMIT_WRITES]
            checks = _checks(part, expected[start : start + MAX_COMMIT_WRITES])
            writes = [Delete(key) for key in dict.fromkeys(part)]
            try:
                await self._delete_chunk(writes, checks, deadline)
            except DatastoreError as exc:
                _note_earlier(exc, start, len(wanted))
                raise

    async def _delete_chunk(self, writes: list[Delete], checks: dict[Key, int], deadline: float) -> None:
        channel = self._open_channel()
        commit = Commit(checks=checks, writes=writes, token=channel.token(), atomic=bool(checks))
        outcome, cancelled = await channel.commit(commit, deadline)
        if cancelled is not None:
            raise cancelled
        for key, actual in outcome.conflicts.items():
            raise version_conflict(key, checks[key], actual)

    async def _put(
        self,
        value: Any,
        condition: int | None,
        verb: str,
        if_version: Any,
        timeout: float | None,
        ttl_s: float | None = None,
    ) -> Any:
        entities, single = entities_to_write(value, strict=self.app_engine_rules)
        expected = expected_versions(if_version, len(entities), single)
        if condition is not None:
            expected = [condition] * len(entities)
        copies = [entity.snapshot() for entity in entities]
        if condition == 0 or if_version is not None:
            _refuse_twice([entity.key for entity in copies if entity.key.is_complete], True)
        for entity, version in zip(copies, expected, strict=True):
            if version and not entity.key.is_complete:
                raise BadKeyError(f"{verb}: {entity.key!r} is incomplete: nothing can be stored under it yet")
        deadline = self._deadline(timeout)
        for start in range(0, len(entities), MAX_COMMIT_WRITES):
            end = start + MAX_COMMIT_WRITES
            try:
                chunk = copies[start:end]  # in which an entity whose automatic key was taken is replaced
                await self._put_chunk(entities[start:end], chunk, expected[start:end], condition, deadline, ttl_s)
                copies[start:end] = chunk
            except DatastoreError as exc:
                _note_earlier(exc, start, len(entities))
                raise
        keys = [entity.key for entity in copies]
        return keys[0] if single else keys

    async def _put_chunk(
        self,
        sources: Sequence[Entity],
        copies: list[Entity],
        expected: Sequence[int | None],
        condition: int | None,
        deadline: float,
        ttl_s: float | None,
    ) -> None:
        """Commit what fits into one; completes the keys of ``copies`` and, once written, of ``sources``."""
        channel = self._open_channel()
        fresh = [place for place, entity in enumerate(copies) if not entity.key.is_complete]
        incomplete = {place: copies[place].key for place in fresh}
        pending = fresh
        collisions = 0
        written: dict[Key, int] = {}  # what some of several stores have written, if others refused an automatic id
        while True:
            if pending:
                await self._complete_copies(copies, pending, incomplete, collisions, deadline)
            checks = _checks([entity.key for entity in copies], expected)
            atomic = bool(checks)
            for place in fresh:
                checks[copies[place].key] = 0
            writes: dict[Key, Put] = {entity.key: Put(entity, ttl_s) for entity in copies}
            for key in written:
                checks.pop(key, None)
                writes.pop(key, None)
            commit = Commit(checks, (), [*writes.values()], channel.token(), atomic)
            outcome, cancelled = await channel.commit(commit, deadline)
            if outcome.version is not None:
                break
            if cancelled is not None:
                raise cancelled
            automatic = {copies[place].key: place for place in fresh}
            for key, actual in outcome.conflicts.items():
                if key not in automatic:
                    raise _refused(key, condition, checks[key], actual)
            pending = [automatic[key] for key in outcome.conflicts]
            written.update(outcome.versions or {})
            collisions += 1
        for place in fresh:
            if sources[place].key == incomplete[place]:
                sources[place].key = copies[place].key
        for source in sources:
            source.version = written.get(source.key) or outcome.version_of(source.key)
        if cancelled is not None:
            raise cancelled

    async def _complete_copies(
        self,
        copies: list[Entity],
        places: Sequence[int],
        incomplete: Mapping[int, Key],
        collisions: int,
        deadline: float,
    ) -> None:
        keys = [incomplete[place] for place in places]
        left = None if deadline == math.inf else max(0.0, deadline - anyio.current_time())
        skip = 2**collisions if collisions else 0
        completed = await within(left, self._complete(keys, skip=skip))
        for place, key in zip(places, completed, strict=True):
            if collisions:
                copies[place] = copies[place].snapshot()  # the one that met another was the adapter's
            copies[place].key = key

    async def _complete(self, incomplete: Sequence[Key], *, skip: int = 0, verified: bool = False) -> list[Key]:
        """Incomplete keys with automatic ids; ``verified``: of which no entity was stored a moment ago."""
        if len(incomplete) == 1 and not skip and not verified:
            key = incomplete[0]
            ident = self._ids.take_now(key)
            if ident is not None:
                return [_completed(key, ident)]
        self._open_channel()
        groups: dict[tuple[str, str, str], list[int]] = {}
        for place, key in enumerate(incomplete):
            groups.setdefault((key.project, key.namespace, key.kind), []).append(place)
        completed = list(incomplete)
        for places in groups.values():
            ids = await self._ids.take(incomplete[places[0]], len(places), skip=skip)
            for place, ident in zip(places, ids, strict=True):
                completed[place] = _completed(incomplete[place], ident)
        if verified:
            found = await self._get(completed, ReadPolicy.STRONG)
            taken = [place for place, entity in enumerate(found) if entity is not None]
            if taken:
                others = await self._complete(
                    [incomplete[place] for place in taken], skip=max(1, 2 * skip), verified=True
                )
                for place, key in zip(taken, others, strict=True):
                    completed[place] = key
        return completed

    # ----------------------------------------------------------------------------------------------- ids

    async def allocate_ids(self, key: AnyKey, size: int | None = None, *, max: int | None = None) -> tuple[int, int]:
        """Reserve ids for keys like ``key`` (its project, namespace and kind): first and last, inclusive.

        ``size`` ids in a row; or with ``max`` all up to that number that are not in use by anybody yet: if
        there are none, last is less than first. Neither automatic ids nor other allocations ever meet them.

        >>> first, last = await ds.allocate_ids(Key("Task"), 100)    # doctest: +SKIP

        :raises BadArgumentError: both ``size`` and ``max``, one out of range (1 to a billion; 0 to 2**63-1)
        """
        return await within(self.timeout, self._allocate_ids(key, size, max))

    async def _allocate_ids(self, key: Any, size: Any, up_to: Any) -> tuple[int, int]:
        model = model_key(key, need_complete=self.app_engine_rules)
        if size is not None and up_to is not None:
            raise BadArgumentError("allocate_ids takes size or max, not both")
        if size is not None and (type(size) is not int or not 1 <= size <= MAX_ALLOCATION):
            raise BadArgumentError(f"size: expected an int from 1 to {MAX_ALLOCATION}, got {size!r:.80}")
        if up_to is not None and (type(up_to) is not int or not 0 <= up_to <= MAX_ID):
            raise BadArgumentError(f"max: expected an int from 0 to 2**63-1, got {up_to!r:.80}")
        channel = self._open_channel()
        await channel.breathe_if_due()
        if size is not None:
            return await self._ids.allocate(model, size)
        return await self._ids.reserve(model, up_to or 0)

    # -------------------------------------------------------------------------------------- transactions

    def in_transaction(self) -> bool:
        """Whether there is a current transaction of this datastore."""
        return transaction_of(self) is not None

    def begin(self, *, read_only: bool = False) -> Transaction:
        """A transaction to use by hand: through its own methods only, and apart from the current one."""
        return Transaction(self, read_only=read_only)

    def transaction(self, *, read_only: bool = False, propagation: Propagation | None = None) -> TransactionContext:
        """``async with ds.transaction():`` runs a block in a transaction, which is committed at its end.

        There is one attempt: a block can't be run again. ``Rollback`` raised inside ends it quietly, any other
        exception rolls back and passes on (if what was read has changed meanwhile, as the cause of a
        ``TransactionFailedError``).

        :raises TransactionFailedError: if something that was read has changed; nothing was written
        :raises TransactionStateError: if there is a current one, and ``propagation`` does not say what to do
        """
        return TransactionContext(self, propagation, read_only)

    async def run_in_transaction(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        retries: int = 3,
        timeout: float | None = None,
        read_only: bool = False,
        propagation: Propagation | None = None,
        **kwargs: Any,
    ) -> Any:
        """What ``function(*args, **kwargs)`` returns, run in a transaction.

        If something it has read was changed by others, it is run again, up to ``retries`` times, after a pause
        (random, and doubling): it should do nothing that can't be done twice but through the datastore. The same
        holds if it raises: it may have raised because of what had changed. ``Rollback`` ends it quietly: nothing
        is written and None returned.

        ``timeout`` bounds all attempts together; a commit that was sent in time is waited for.

        :raises TransactionFailedError: if every attempt met a conflict, or the time was used up (then it is a
            ``DeadlineExceededError`` as well); nothing was written
        :raises TransactionStateError: if there is a current one, and ``propagation`` does not say what to do
        """
        return await run_in_transaction(
            self,
            function,
            args,
            kwargs,
            retries=retries,
            timeout=timeout,
            read_only=read_only,
            propagation=propagation,
        )

    @overload
    def transactional(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]: ...
    @overload
    def transactional(
        self,
        *,
        retries: int = 3,
        timeout: float | None = None,
        read_only: bool = False,
        propagation: Propagation = Propagation.ALLOWED,
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]: ...
    def transactional(
        self,
        function: Callable[..., Any] | None = None,
        *,
        retries: int = 3,
        timeout: float | None = None,
        read_only: bool = False,
        propagation: Propagation = Propagation.ALLOWED,
    ) -> Any:
        """Decorates an async function: it runs in the current transaction, else in one of its own.

        With or without arguments, which are those of :meth:`run_in_transaction`.
        """

        check_options(retries, timeout, propagation)

        def decorate(wrapped: Callable[..., Any]) -> Callable[..., Any]:
            return decorated(
                wrapped,
                lambda: self,
                retries=retries,
                timeout=timeout,
                read_only=read_only,
                propagation=propagation,
            )

        return decorate if function is None else decorate(function)

    @overload
    def non_transactional(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]: ...
    @overload
    def non_transactional(self, *, allow_existing: bool = True) -> NonTransactional: ...
    def non_transactional(self, function: Callable[..., Any] | None = None, *, allow_existing: bool = True) -> Any:
        """Pauses the current transaction: a decorator of async functions, and ``with ds.non_transactional():``.

        Without ``allow_existing`` it raises ``TransactionStateError`` inside a transaction instead.
        """
        pause = NonTransactional(self, allow_existing)
        return pause if function is None else pause(function)

    def on_commit(self, callback: Callable[[], Any]) -> None:
        """Call a function or coroutine function after the current transaction has been committed.

        See :meth:`Transaction.on_commit <aiodatastore.txn.Transaction.on_commit>`.

        :raises TransactionStateError: outside a transaction
        """
        transaction = transaction_of(self)
        if transaction is None:
            raise TransactionStateError("on_commit: there is no current transaction; outside one, just call it")
        transaction.on_commit(callback)

    # ------------------------------------------------------------------------------------ administration

    async def indexes(self) -> list[IndexInfo]:
        """Composite indexes with their state, in order of their number."""
        return await self._open_channel().adapter.indexes()

    async def create_index(
        self,
        definition: IndexDefinition | str,
        *,
        build: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> IndexInfo:
        """Define a composite index (or, with the text of an ``index.yaml``, all that it has), and build it.

        It is built over existing entities in batches, while writes go on; a build that was interrupted goes on
        where it stopped. With ``build=False`` it stays ``BUILDING``: writes maintain it, queries don't use it yet.
        ``progress`` is called with the entities seen so far. Returns the (last) index.

        :raises BadArgumentError: if the text defines none
        """
        adapter = self._open_channel().adapter
        definitions = _definitions(definition) if isinstance(definition, str) else [definition]
        if not definitions:
            raise BadArgumentError("expected a definition of an index, got a text without any")
        info = None
        for each in definitions:
            info = await adapter.create_index(each)
            if build:
                info = await adapter.build_index(each, progress=progress)
        assert info is not None
        return info

    async def delete_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None, finish: bool = True
    ) -> None:
        """Delete a composite index and its rows, in batches.

        With ``finish=False`` it is only marked ``DELETING``: queries don't use it any more.

        :raises BadRequestError: if there is no such index
        """
        await self._open_channel().adapter.delete_index(definition, progress=progress, finish=finish)

    async def check(self) -> list[str]:
        """Compare indexes with entities; a line for each disagreement. Reads everything."""
        return await self._open_channel().adapter.check()

    async def stats(self) -> dict[str, Any]:
        """Entities, bytes and index rows of each kind, and the store's version."""
        return await self._open_channel().adapter.stats()

    # ------------------------------------------------------------------------------------------- helpers

    def _seconds(self, timeout: float | None) -> float | None:
        return self.timeout if timeout is None else timeout

    def _deadline(self, timeout: float | None) -> float:
        seconds = self.timeout if timeout is None else timeout
        return math.inf if seconds is None else anyio.current_time() + seconds


_OPENING = "is being opened"


def _adapter_for(url: str, options: Mapping[str, Any]) -> Adapter:
    from aiodatastore.adapters.registry import adapter_from_url

    return adapter_from_url(url, **options)


def _completed(key: Key, ident: int) -> Key:
    *above, (kind, _) = key.pairs
    return Key._make(key.project, key.namespace, (*above, (kind, ident)))


def _checks(keys: Sequence[Key], expected: Sequence[int | None]) -> dict[Key, int]:
    return {key: version for key, version in zip(keys, expected, strict=True) if version is not None}


def _refuse_twice(keys: Sequence[Key], conditional: Any) -> None:
    """A condition on what the same call has written before could not be judged."""
    if conditional is not None and len(set(keys)) < len(keys):
        seen: set[Key] = set()
        for key in keys:
            if key in seen:
                raise BadArgumentError(f"{key!r} is named twice in one call with conditions")
            seen.add(key)


def _refused(key: Key, condition: int | None, expected: int, actual: int) -> DatastoreError:
    if condition == 0:
        return EntityExistsError(f"insert: {key!r} exists already; nothing was written", key=key)
    if condition == EXISTS:
        return EntityNotFoundError(f"update: there is no entity {key!r}; nothing was written", key=key)
    return version_conflict(key, expected, actual)


def _note_earlier(exc: DatastoreError, done: int, total: int) -> None:
    if done:
        exc.add_note(f"{done} of the {total} of this call were written, in earlier commits")


def _definitions(text: str) -> list[IndexDefinition]:
    from aiodatastore.indexing.definitions import parse_index_yaml

    return list(parse_index_yaml(text))


async def _yaml_text(source: str | os.PathLike[str]) -> str:
    if isinstance(source, str) and not source.endswith((".yaml", ".yml")):
        return source
    return await anyio.Path(Path(source)).read_text(encoding="utf-8")


def _after_fork() -> None:
    for datastore in list(open_datastores):
        datastore._leave_behind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
