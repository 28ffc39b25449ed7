"""The habits of small REST services: numbered resources, lists of ids, a transaction begun and ended by hand.

Nothing here can't be done with :class:`~aiodatastore.Datastore` itself; it is what such services write around one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, TransactionStateError
from aiodatastore.jsonl import dump_entity
from aiodatastore.key import Key

if TYPE_CHECKING:
    from aiodatastore.bound_query import BoundQuery, QueryResults
    from aiodatastore.datastore import Datastore
    from aiodatastore.txn import Transaction

__all__ = ["PerProcess", "Storage"]

Ident = int | str
Conditions = Mapping[str, Any] | Iterable[tuple[str, str, Any]]


class Storage:
    """Resources by kind and id, for one request of a service: cheap to make, and not shared by tasks.

    >>> import asyncio
    >>> async def main():
    ...     async with Datastore("memory://") as ds:
    ...         storage = Storage(ds)
    ...         await storage.begin()
    ...         for title, done in (("Note G", False), ("Bernoulli", True), ("Tea", False)):
    ...             await storage.put("Task", await storage.next_id("Task"), {"title": title, "done": done})
    ...         await storage.commit()
    ...         print(await storage.selected_ids("Task", {"done": False}, sort="-title", limit=10))
    ...         print(await storage.get("Task", 2))
    >>> asyncio.run(main())
    [3, 1]
    {'title': 'Bernoulli', 'done': True}

    Between :meth:`begin` and :meth:`commit` or :meth:`rollback` everything it does is part of one transaction;
    otherwise of the datastore's current one, if there is one, or each call stands for itself. Resources are entities of
    the datastore's namespace, without parents.
    """

    def __init__(self, datastore: Datastore) -> None:
        self.datastore = datastore
        """Where the resources are."""
        self._transaction: Transaction | None = None

    def __repr__(self) -> str:
        return f"Storage({self.datastore!r})"

    # ------------------------------------------------------------------------------------ transactions

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction was begun and not ended."""
        return self._transaction is not None

    async def begin(self, *, read_only: bool = False) -> None:
        """Begin a transaction: what is read from here on is of one moment, what is written waits for :meth:`commit`.

        :raises TransactionStateError: if one was begun already
        """
        if self._transaction is not None:
            raise TransactionStateError(f"{self!r} has begun a transaction already: commit or roll back first")
        self._transaction = self.datastore.begin(read_only=read_only)

    async def commit(self) -> None:
        """Write everything since :meth:`begin`, or nothing. Either way the transaction is over.

        :raises TransactionFailedError: if something that was read has changed: begin again, or answer 409
        :raises TransactionStateError: if none was begun
        """
        await self._ended("commit").commit()

    async def rollback(self) -> None:
        """Forget everything since :meth:`begin`.

        :raises TransactionStateError: if none was begun
        """
        await self._ended("rollback").rollback()

    def _ended(self, what: str) -> Transaction:
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            raise TransactionStateError(f"{what}: {self!r} has begun no transaction")
        return transaction

    @property
    def _here(self) -> Datastore | Transaction:
        return self.datastore if self._transaction is None else self._transaction

    # --------------------------------------------------------------------------------------- resources

    async def next_id(self, kind: str) -> int:
        """A number that no resource of the kind has or gets: never given twice, also where transactions fail."""
        first, _ = await self.datastore.allocate_ids(self.datastore.key(kind), 1)
        return first

    async def get(self, kind: str, ident: Ident) -> dict[str, Any] | None:
        """The properties of a resource, or None."""
        found = await self._here.get(self._key(kind, ident))
        return None if found is None else dict(found)

    async def put(self, kind: str, ident: Ident | None, properties: Mapping[str, Any]) -> Ident:
        """Store a resource, new or not; its id, which is an automatic one if it was None."""
        key = self.datastore.key(kind) if ident is None else self._key(kind, ident)
        entity = Entity(key, properties)
        await self._here.put(entity)
        found = entity.key.id_or_name
        assert found is not None
        return found

    async def delete(self, kind: str, ident: Ident) -> None:
        """Delete a resource; one that is absent may be deleted."""
        await self._here.delete(self._key(kind, ident))

    def _key(self, kind: str, ident: Ident) -> Key:
        key = self.datastore.key(kind, ident)
        if not key.is_complete:
            raise BadArgumentError(f"expected the id of a {kind}, got {ident!r:.80}")
        return key

    async def selected_ids(
        self,
        kind: str,
        conditions: Conditions = (),
        sort: str | Iterable[str] = (),
        limit: int | None = None,
        *,
        offset: int = 0,
    ) -> list[Ident]:
        """The ids of resources, without reading them.

        ``conditions``: a mapping from names to the values they must equal (of a list: one of which must), or (name,
        operator, value) triples; all must hold. ``sort``: names of properties, descending with a minus before them;
        without it by id, numbers first.

        :raises BadFilterError, BadValueError, BadArgumentError: if a condition can't be understood
        """
        query: BoundQuery = self.datastore.query(kind) if self._transaction is None else self._transaction.query(kind)
        if isinstance(conditions, Mapping):
            triples = [(name, "in" if type(value) is list else "=", value) for name, value in conditions.items()]
        else:
            triples = [_triple(each) for each in conditions]
        for name, operator, value in triples:
            query = query.filter(name, operator, value)
        names = [sort] if isinstance(sort, str) else [*sort]
        if names:
            query = query.order(*names)
        if offset:
            query = query.offset(offset)
        keys = await query.keys(limit)
        return [key.id_or_name for key in keys if key.id_or_name is not None]

    # ----------------------------------------------------------------------------------------- looking

    def dump(self, limit: int | None = 1000) -> AsyncIterator[str]:
        """Everything that is stored, of all namespaces and kinds, as lines of JSON in the order of keys: for debugging.

        Streams, a page at a time, outside of transactions. After ``limit`` entities a last line says so:
        ``{"truncated": true}``. Lines are those of ``aiodatastore export``; what reads all of a large store better is
        that command.
        """
        return _Dump(self.datastore, limit)


class _Dump(AsyncIterator[str]):
    """Lines; no async generator, so that it may be left at any place."""

    def __init__(self, datastore: Datastore, limit: int | None) -> None:
        self._datastore = datastore
        self._left = limit
        self._partitions: Iterator[tuple[str, str]] | None = None
        self._results: QueryResults | None = None

    async def __anext__(self) -> str:
        if self._left is not None and self._left < 0:
            raise StopAsyncIteration
        if self._partitions is None:
            self._partitions = iter(await self._datastore.adapter.partitions())
        while True:
            if self._results is None:
                for project, namespace in self._partitions:
                    with self._datastore.non_transactional():
                        query = self._datastore.query(None, project=project, namespace=namespace)
                        self._results = query.run()
                    break
                else:
                    raise StopAsyncIteration
            entity = await anext(self._results, None)
            if entity is not None:
                break
            self._results = None
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                return '{"truncated": true}'
        return dump_entity(entity).decode("utf-8")


def _triple(condition: Any) -> tuple[str, str, Any]:
    if not isinstance(condition, tuple | list) or len(condition) != 3:
        raise BadArgumentError(f"conditions: expected (name, operator, value), got {condition!r:.100}")
    name, operator, value = condition
    return name, operator, value


class PerProcess:
    """A datastore for each process, opened when it is first needed: for servers that fork their workers.

    >>> datastores = PerProcess(lambda: Datastore("memory://"))
    >>> async def handle(request):
    ...     ds = await datastores.get()
    ...     return await ds.get(Key("Person", request))
    >>> import asyncio
    >>> async def main():
    ...     print(await handle("ada"))
    ...     await datastores.aclose()
    >>> asyncio.run(main())
    None

    A datastore belongs to the process and the event loop that opened it. One that was opened before a fork raises
    ``StoreClosedError`` in the child, rather than share its parent's connections; from here every process, and every
    event loop of it, gets one of its own. ``factory`` makes it, unopened.
    """

    def __init__(self, factory: Callable[[], Datastore]) -> None:
        self._factory = factory
        self._process = os.getpid()
        self._open: dict[Any, Datastore] = {}
        self._locks: dict[Any, anyio.Lock] = {}

    async def get(self) -> Datastore:
        """The open datastore of this process and event loop.

        :raises UnavailableError: if it can't be opened; the next call tries again
        """
        if self._process != os.getpid():
            self._process = os.getpid()
            self._open, self._locks = {}, {}  # the parent's, who closes them
        loop = anyio.lowlevel.current_token()
        datastore = self._open.get(loop)
        if datastore is None:
            lock = self._locks.setdefault(loop, anyio.Lock())
            async with lock:
                datastore = self._open.get(loop)
                if datastore is None:
                    datastore = self._factory()
                    await datastore.open()
                    self._open[loop] = datastore
        return datastore

    async def aclose(self) -> None:
        """Close that of this process and event loop, if there is one; :meth:`get` opens another."""
        if self._process != os.getpid():
            return
        loop = anyio.lowlevel.current_token()
        self._locks.pop(loop, None)
        datastore = self._open.pop(loop, None)
        if datastore is not None:
            await datastore.aclose()
