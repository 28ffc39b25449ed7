"""A store of any object that gets, sets and deletes bytes under a key, with an index kept beside."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import anyio

from aiodatastore.adapters.base import Adapter, Commit, Delete
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.adapters.threads import to_the_end
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, CorruptDataError, DatastoreError, UnavailableError
from aiodatastore.indexing.encoding import decode_key, encode_key
from aiodatastore.indexing.rows import SYSTEM
from aiodatastore.key import Key
from aiodatastore.rowstore import (
    EXISTS,
    TAIL_KEY_MASK,
    Capability,
    Record,
    Row,
    RowBatch,
    RowCommit,
    RowIntersection,
    RowOutcome,
    RowRead,
    RowScan,
    RowStore,
    Space,
    Span,
    SpanCount,
    SpanTally,
    StaleFenceError,
)
from aiodatastore.values import Blob, Text

__all__ = ["InterfaceMapping"]

_log = logging.getLogger("aiodatastore")

T = TypeVar("T")
Rows = Callable[[bytes, bytes], Mapping[bytes, int]]
Method = str | Callable[..., Any] | None

_GET: Final = ("get", "__getitem__")
_PUT: Final = ("set", "put", "__setitem__")
_DELETE: Final = ("delete", "remove", "pop", "__delitem__")

_GENERATION: Final = 16
"""Characters that tell one payload of an entity from its others."""
_READABLE: Final = 160
"""Characters of a key that are written out; of longer ones the end is a digest. memcached takes 250 in all."""
_AT_ONCE: Final = 32
"""Calls that are under way side by side."""
_PAGE: Final = 500


class InterfaceMapping(EngineAdapter):
    """Keeps entities in any object that has methods like ``get``, ``set`` and ``delete``: a memcached or S3 client, a
    ``diskcache.Cache``, an LRU, a LevelDB, a ``dict``.

    >>> import asyncio
    >>> async def main():
    ...     objects = {}
    ...     async with Datastore(InterfaceMapping(objects, evicts=False)) as ds:
    ...         await ds.put(Entity(Key("Person", "ada"), {"born": 1815}))
    ...         print(*[name.partition("@")[0] for name in objects])
    ...         return await ds.query("Person").filter("born", "<", 1900).keys()
    >>> asyncio.run(main())
    /Person:ada
    [Key('Person', 'ada')]

    The payload of an entity lives in the object, as bytes under a text: the readable form of its key, ``@``, and a name
    that no other payload has. ``index`` has, for each entity, its version, that name and its indexed properties, and
    all index rows: ``memory://`` (for objects that live no longer than the process: what they hold is out of reach when
    the datastore is closed) or ``sqlite:///path`` (for those that stay). A commit puts the new payloads into the
    object, is then judged and applied in the index, all of it at once, and at last removes the payloads that it
    replaced.

    What that promises:

    - Transactions are as serializable as the index: commits are judged by its versions. A crash leaves payloads that
      nothing names, never half a commit.
    - An entity that the object has lost (evicted, expired, removed by others) is absent: gets, queries and counts don't
      show it, and where one meets it, its index rows are removed. With ``evicts`` every count and every query for keys
      looks whether the entities are still there, which reads them; without (for objects that lose nothing) they are
      answered by the index alone, and only what reads the entity itself notices. ``if_version`` is judged by the index.
    - ``durable``: that the object, too, survives ``kill -9``, so that the whole is as durable as the index. ``shared``:
      that other processes have the same object, so that the whole may be opened by several if the index may.

    The methods are found by name: ``get`` or ``__getitem__``; ``set``, ``put`` or ``__setitem__``; ``delete``,
    ``remove``, ``pop`` or ``__delitem__``. Others are named, or given as functions, with ``get``, ``put`` and
    ``delete``. ``get`` returns bytes, and None or a ``LookupError`` where there is nothing; deleting what is absent may
    raise a ``LookupError``. ``get_many`` (None: one by one) takes a list of keys and returns a mapping, or a sequence
    in their order. Each may be async. Sync ones are called in the event loop, which is right for what is in memory;
    with ``threads`` they are called in up to so many threads. ``key_type``: ``str``, or ``bytes`` for objects that want
    these. ``prefix`` begins every key.

    The object is used while the datastore is open, and belongs to the caller: it is neither opened nor closed. Errors
    of its own become ``UnavailableError``. Other ``options`` are those of the engine (``require_indexes``,
    ``sort_budget``, ``serializer``).

    :raises BadArgumentError: if it has no such methods, or ``index`` is another kind of store
    """

    def __init__(
        self,
        obj: Any,
        *,
        index: str | Adapter = "memory://",
        evicts: bool = True,
        get: Method = None,
        put: Method = None,
        delete: Method = None,
        get_many: Method = None,
        threads: int = 0,
        key_type: type[str] | type[bytes] = str,
        prefix: str = "",
        durable: bool = False,
        shared: bool = False,
        **options: Any,
    ) -> None:
        if type(threads) is not int or threads < 0:
            raise BadArgumentError(f"threads: expected an int, 0 or more, got {threads!r:.80}")
        if key_type is not str and key_type is not bytes:
            raise BadArgumentError(f"key_type: expected str or bytes, got {key_type!r:.80}")
        calls = _Calls(obj, get, put, delete, get_many, threads)
        names = _Names(prefix, key_type)
        store = ObjectRowStore(calls, names, _index_store(index), evicts=evicts, durable=durable, shared=shared)
        super().__init__(store, **options)
        store.strip = self._indexed_part
        store.forget = self._forget
        self._settings = {"index": store.index.url, "evicts": evicts, "threads": threads, "prefix": prefix}

    @property
    def settings(self) -> Mapping[str, object]:
        """Where the index is, and how the object is used."""
        return self._settings

    def _indexed_part(self, key: bytes, payload: bytes) -> bytes:
        """A payload without what no index holds: it has the same index rows."""
        entity = self.serializer.loads(decode_key(key), payload, 0)
        plain = {
            name: value
            for name, value in entity.items()
            if name not in entity.unindexed and type(value) is not Text and type(value) is not Blob
        }
        return payload if len(plain) == len(entity) else self.serializer.dumps(Entity(entity.key, plain))

    async def _forget(self, gone: Iterable[tuple[bytes, int]]) -> None:
        """Delete entities of these versions whose payloads are gone."""
        keys = [(decode_key(key), version) for key, version in gone]
        await self.commit([Commit(checks={key: version}, writes=[Delete(key)]) for key, version in keys])


def _index_store(index: str | Adapter) -> RowStore:
    adapter = adapter_from_url(index) if isinstance(index, str) else index
    if isinstance(adapter, EngineAdapter):
        store = adapter.store
        # Other stores know the index rows of what they overwrite, and don't say what that was.
        if isinstance(store, MemoryRowStore) or store.url.startswith("sqlite://"):
            return store
    raise BadArgumentError(f"index: expected memory:// or sqlite:///path, got {adapter.url}")


# ------------------------------------------------------------------------------------------- the object


class _Names:
    """The names of payloads."""

    def __init__(self, prefix: str, key_type: type[str] | type[bytes]) -> None:
        if len(prefix) > 64 or quote(prefix, safe="/:.,;!+*") != prefix:
            raise BadArgumentError(
                f"prefix: expected up to 64 letters, digits and -_.~/:,;!+* (they go into keys), got {prefix!r:.100}"
            )
        self._prefix = prefix
        self._bytes = key_type is bytes

    def name(self, key: bytes, generation: str) -> str | bytes:
        text = quote(str(decode_key(key)), safe='/:."!%')
        if len(text) > _READABLE:
            text = f"{text[: _READABLE - 33]}~{hashlib.blake2b(key, digest_size=16).hexdigest()}"
        name = f"{self._prefix}{text}@{generation}"
        return name.encode("ascii") if self._bytes else name


class _Calls:
    """The methods of the object, whatever their names, and sync or not."""

    def __init__(self, obj: Any, get: Method, put: Method, delete: Method, get_many: Method, threads: int) -> None:
        self.kind = type(obj).__name__
        self._get = _method(obj, get, _GET, "get")
        self._put = _method(obj, put, _PUT, "put")
        self._delete = _method(obj, delete, _DELETE, "delete")
        self._get_many = None if get_many is None else _method(obj, get_many, (), "get_many")
        self._threads = threads
        self._limiter: anyio.CapacityLimiter | None = None
        self.is_async = any(map(inspect.iscoroutinefunction, (self._get, self._put, self._delete, self._get_many)))
        self.inline = False
        """Whether ``get`` answers at once: known after :meth:`probe`."""

    async def probe(self, name: str | bytes) -> None:
        """Call ``get`` once, for what is not there."""
        if self._threads:
            self._limiter = anyio.CapacityLimiter(self._threads)
        elif not self.is_async:
            found = _mapped(self.kind, "get", lambda: self._get(name))
            if inspect.isawaitable(found):
                self.is_async = True
                await self._awaited("get", found)
            self.inline = not self.is_async
            return
        await self.get(name)

    def get_now(self, name: str | bytes) -> bytes | None:
        return self._bytes(_mapped(self.kind, "get", lambda: self._get(name)))

    async def get(self, name: str | bytes) -> bytes | None:
        return self._bytes(await self._call("get", self._get, name))

    async def get_all(self, names: Sequence[str | bytes]) -> list[bytes | None]:
        """The values of some names, None where absent."""
        if self.inline:
            return [self.get_now(name) for name in names]
        if self._get_many is None or len(names) < 2:
            return await _side_by_side([lambda name=name: self.get(name) for name in names])  # type: ignore[misc]
        found: list[bytes | None] = []
        for start in range(0, len(names), _PAGE):
            part = list(names[start : start + _PAGE])
            answer = await self._call("get_many", self._get_many, part)
            values = [answer.get(name) for name in part] if isinstance(answer, Mapping) else list(answer)
            if len(values) != len(part):
                raise CorruptDataError(f"{self.kind}: get_many of {len(part)} keys returned {len(values)} values")
            found += map(self._bytes, values)
        return found

    async def put_all(self, values: Sequence[tuple[str | bytes, bytes]]) -> None:
        await _side_by_side([lambda each=each: self._put_one(*each) for each in values])  # type: ignore[misc]

    async def _put_one(self, name: str | bytes, value: bytes) -> None:
        if await self._call("put", self._put, name, value) is False:
            raise UnavailableError(f"{self.kind} did not take {len(value)} bytes: it returned False")

    async def delete_all(self, names: Sequence[str | bytes]) -> None:
        """Remove what nobody needs any more; what can't be removed is told to the log."""
        try:
            await _side_by_side(
                [lambda name=name: self._call("delete", self._delete, name) for name in names]  # type: ignore[misc]
            )
        except DatastoreError as exc:
            _log.warning("%s keeps payloads that were replaced: %s", self.kind, exc)

    async def _call(self, what: str, method: Callable[..., Any], *args: Any) -> Any:
        if self._limiter is not None and not inspect.iscoroutinefunction(method):
            answer = await to_the_end(lambda: _mapped(self.kind, what, lambda: method(*args)), self._limiter)
        else:
            answer = _mapped(self.kind, what, lambda: method(*args))
        return await self._awaited(what, answer) if inspect.isawaitable(answer) else answer

    async def _awaited(self, what: str, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except LookupError:
            return None
        except DatastoreError:
            raise
        except Exception as exc:
            raise _failed(self.kind, what, exc) from exc

    def _bytes(self, value: Any) -> bytes | None:
        if value is None or type(value) is bytes:
            return value
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        raise CorruptDataError(
            f"{self.kind}: get returned {type(value).__name__}, expected the bytes that were set: no decoding, please"
        )


def _method(obj: Any, given: Method, names: Sequence[str], what: str) -> Callable[..., Any]:
    if callable(given):
        return given
    for name in (given,) if given is not None else names:
        found = getattr(obj, name, None)
        if callable(found):
            method: Callable[..., Any] = found
            return method
    wanted = f"the method {given!r}" if given is not None else f"one of the methods {', '.join(names)}"
    raise BadArgumentError(f"{what}: {type(obj).__name__} has not {wanted}; name it, or give a function")


def _mapped(kind: str, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except LookupError:
        return None
    except DatastoreError:
        raise
    except Exception as exc:
        raise _failed(kind, what, exc) from exc


def _failed(kind: str, what: str, exc: Exception) -> UnavailableError:
    # What it says is the client's own, and may have the address of a server, or what was to be stored: see the cause.
    return UnavailableError(f"{kind} failed to {what.replace('_', ' ')}: {type(exc).__name__}")


async def _side_by_side(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """What calls return, up to so many at a time; the first error, once all that began have ended."""
    if len(calls) == 1:
        return [await calls[0]()]
    results: dict[int, T] = {}
    errors: list[Exception] = []
    waiting = iter(enumerate(calls))

    async def work() -> None:
        for place, call in waiting:
            if errors:
                return
            try:
                results[place] = await call()
            except Exception as exc:
                errors.append(exc)

    async with anyio.create_task_group() as group:
        for _ in range(min(_AT_ONCE, len(calls))):
            group.start_soon(work)
    if errors:
        raise errors[0]
    return [results[place] for place in range(len(calls))]


# ---------------------------------------------------------------------------------------- the row store


class _Wanted(NamedTuple):
    """An entity whose payload is wanted: its key, and its record in the index."""

    key: bytes
    version: int
    marker: bytes


def _is_own(key: bytes) -> bool:
    """Whether it is a record of the engine's own, which stays in the index."""
    return key.startswith(SYSTEM)


def _generation() -> str:
    return urlsafe_b64encode(os.urandom(_GENERATION * 3 // 4)).decode("ascii")


class ObjectRowStore(RowStore):
    """The rows of :class:`InterfaceMapping`: payloads in the object, all else in ``index``.

    Where the index has a payload, there is the name of the real one, and the indexed part of it.
    """

    def __init__(
        self, calls: _Calls, names: _Names, index: RowStore, *, evicts: bool, durable: bool, shared: bool
    ) -> None:
        self.index = index
        self.url = f"interface-mapping://{calls.kind}"
        self.strip: Callable[[bytes, bytes], bytes] = lambda key, payload: payload
        self.forget: Callable[[Iterable[tuple[bytes, int]]], Awaitable[None]]
        self._calls = calls
        self._names = names
        self._evicts = evicts
        self._lost = frozenset(
            {
                Capability.TTL,
                Capability.TWO_PHASE,
                *([] if durable and not evicts else [Capability.DURABLE]),
                *([] if shared else [Capability.MULTI_PROCESS]),
            }
        )

    @property
    def capabilities(self) -> frozenset[Capability]:  # type: ignore[override]  # known in part when it is open
        """Those of the index, less what the object does not keep up with."""
        lost = set(self._lost)
        if not self._calls.inline:
            lost.add(Capability.INLINE_READS)
        if self._calls.is_async:
            lost.add(Capability.TRIO)
        return self.index.capabilities - lost

    @property
    def index_rows(self) -> Rows | None:
        """As in ``RowStore``."""
        return self.index.index_rows

    @index_rows.setter
    def index_rows(self, function: Rows | None) -> None:
        if function is not None:
            self.index.index_rows = lambda key, marker: function(key, _indexed(key, marker))

    async def open(self) -> None:
        """Open the index, and look whether the object answers."""
        await self.index.open()
        try:
            await self._calls.probe(self._names.name(_PROBE, "A" * _GENERATION))
        except BaseException:
            await self.index.aclose()
            raise

    async def aclose(self) -> None:
        """Close the index."""
        await self.index.aclose()

    # ---------------------------------------------------------------------------------------- payloads

    def _name(self, wanted: _Wanted) -> str | bytes:
        return self._names.name(wanted.key, wanted.marker[:_GENERATION].decode("ascii"))

    async def _payloads(self, wanted: Sequence[_Wanted]) -> dict[bytes, bytes] | None:
        """The payloads of entities by key; None if some are gone: then they were forgotten, and all is to be read anew.

        A payload may be gone because the entity was written meanwhile: then nothing is forgotten.
        """
        theirs = [each for each in wanted if not _is_own(each.key)]
        found = await self._calls.get_all([self._name(each) for each in theirs]) if theirs else []
        gone = [each for each, payload in zip(theirs, found, strict=True) if payload is None]
        if gone:
            await self._forget_if_unchanged(gone)
            return None
        payloads = {each.key: payload for each, payload in zip(theirs, found, strict=True) if payload is not None}
        payloads.update((each.key, each.marker) for each in wanted if _is_own(each.key))
        return payloads

    async def _forget_if_unchanged(self, gone: Sequence[_Wanted]) -> None:
        records, _ = await self.index.read([each.key for each in gone])
        lost = [
            (each.key, record.version)
            for each, record in zip(gone, records, strict=True)
            if record is not None and record.payload[:_GENERATION] == each.marker[:_GENERATION]
        ]
        if lost:
            _log.debug("%s has lost %d entities: their index rows are removed", self.url, len(lost))
            await self.forget(lost)

    def read_now(self, keys: Sequence[bytes]) -> list[Record | None] | None:
        """At once, if both the index and the object can."""
        if not self._calls.inline:
            return None
        records = self.index.read_now(keys)
        if records is None:
            return None
        found: list[Record | None] = []
        for key, record in zip(keys, records, strict=True):
            if record is None or _is_own(key):
                found.append(record)
                continue
            payload = self._calls.get_now(self._name(_Wanted(key, record.version, record.payload)))
            if payload is None:
                return None  # read() forgets it
            found.append(Record(record.version, payload))
        return found

    async def read(self, keys: Sequence[bytes]) -> RowRead:
        """The index says of which versions, the object has the payloads."""
        while True:
            records, version = await self.index.read(keys)
            payloads = await self._payloads(_wanted(zip(keys, records, strict=True)))
            if payloads is not None:
                return RowRead(
                    [
                        None if record is None else Record(record.version, payloads[key])
                        for key, record in zip(keys, records, strict=True)
                    ],
                    version,
                )

    # ------------------------------------------------------------------------------------------- scans

    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
        """Rows of the index, joined with payloads of the object."""
        joined = with_entities or self._evicts
        while True:
            found = await self.index.scan(span, limit, reverse=reverse, with_entities=joined)
            rows = await self._joined(found.rows, span.space, with_entities) if joined else found.rows
            if rows is not None:
                return RowScan(rows, found.version)

    async def _joined(self, rows: Sequence[Row], space: Space, with_entities: bool) -> list[Row] | None:
        """Rows with their payloads, or (only to see that they are there) without; None: read again."""
        keys = [row[0] if space is Space.ENTITY else row[0][-(row[1] & TAIL_KEY_MASK) :] for row in rows]
        wanted = {
            key: _Wanted(key, row[2], row[3])
            for key, row in zip(keys, rows, strict=True)
            if row[2] is not None and row[3] is not None
        }
        payloads = await self._payloads(list(wanted.values()))
        if payloads is None:
            return None
        if with_entities:
            return [(row[0], row[1], row[2], payloads.get(key)) for key, row in zip(keys, rows, strict=True)]
        if space is Space.ENTITY:
            return [(row[0], row[1], row[2], None) for row in rows]
        return [(row[0], row[1], None, None) for row in rows]

    async def count(self, span: Span) -> SpanCount:
        """Counted by the index; where the object may lose entities, once it is seen that they are there."""
        while True:
            counted = await self.index.count(span)
            if not self._evicts or not counted.rows or await self._all_there(span):
                return counted

    async def _all_there(self, span: Span) -> bool:
        lo, there = span.lo, True
        while True:
            found = await self.index.scan(span._replace(lo=lo), _PAGE, with_entities=True)
            there = await self._joined(found.rows, span.space, False) is not None and there
            if len(found.rows) < _PAGE:
                return there
            lo = found.rows[-1][0] + b"\x00"

    async def intersect(
        self,
        prefixes: Sequence[bytes],
        lo: bytes,
        hi: bytes,
        limit: int,
        *,
        reverse: bool = False,
        with_entities: bool = False,
    ) -> RowIntersection | None:
        """As the index does it, joined with payloads of the object."""
        joined = with_entities or self._evicts
        while True:
            found = await self.index.intersect(prefixes, lo, hi, limit, reverse=reverse, with_entities=joined)
            if found is None or not joined:
                return found
            rows = await self._joined(found.rows, Space.INDEX, with_entities)
            if rows is not None:
                return found._replace(rows=rows)

    async def tally(self, span: Span, skip: int) -> SpanTally | None:
        """As the index does it, unless what it counts may be gone."""
        return None if self._evicts else await self.index.tally(span, skip)

    def digest(self, rows: Iterable[tuple[bytes, int | None]], space: Space) -> bytes:
        """The index's."""
        return self.index.digest(rows, space)

    async def sizes(self) -> dict[str, int]:
        """The index's."""
        return await self.index.sizes()

    async def allocate(self, sequence: bytes, size: int, *, at_least: int = 1) -> int:
        """From the index."""
        return await self.index.allocate(sequence, size, at_least=at_least)

    # ----------------------------------------------------------------------------------------- commits

    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        """New payloads into the object, then all else into the index, then replaced payloads out of the object."""
        await self._meet(batch.commits)
        run = _Batch(self, batch)
        outcomes: list[RowOutcome] = []
        with anyio.CancelScope(shield=True):  # what was set is either named by the index or removed
            try:
                await self._calls.put_all(run.new)
            except UnavailableError as exc:
                await self._calls.delete_all([name for name, _ in run.new])
                exc.nothing_written = True
                raise
            try:
                outcomes = await self.index.commit(run.batch)
            except (StaleFenceError, UnavailableError) as exc:
                if isinstance(exc, StaleFenceError) or exc.nothing_written:
                    await self._calls.delete_all([name for name, _ in run.new])
                raise
            await self._calls.delete_all(run.replaced(outcomes))
        return outcomes

    async def _meet(self, commits: Sequence[RowCommit]) -> None:
        """Forget what has to exist, or not to, and is in the index alone."""
        if self._evicts:
            keys = {key for commit in commits for key, version in commit.checks if version in (EXISTS, 0)}
            if keys:
                await self.read(list(keys))


_PROBE: Final = encode_key(Key("probe", 1))


def _wanted(records: Iterable[tuple[bytes, Record | None]]) -> list[_Wanted]:
    unique = {key: _Wanted(key, *record) for key, record in records if record is not None}
    return list(unique.values())


def _indexed(key: bytes, marker: bytes) -> bytes:
    return marker if _is_own(key) else marker[_GENERATION:]


class _Batch:
    """A batch as the index gets it, and what becomes of the payloads."""

    def __init__(self, store: ObjectRowStore, batch: RowBatch) -> None:
        self._store = store
        self._old_rows = batch.old_rows
        self._overwritten: dict[bytes, set[str]] = {}
        self._given: list[dict[bytes, str]] = []
        self.new: list[tuple[str | bytes, bytes]] = []
        """The new payloads, with their names."""
        self.batch = RowBatch([self._marked(commit) for commit in batch.commits], self._asked, batch.fence)

    def _marked(self, commit: RowCommit) -> RowCommit:
        store, given, puts = self._store, dict[bytes, str](), []
        for put in commit.puts:
            if _is_own(put.key):
                puts.append(put)
                continue
            generation = given[put.key] = _generation()
            self.new.append((store._names.name(put.key, generation), put.payload))
            marker = generation.encode("ascii") + store.strip(put.key, put.payload)
            puts.append(put._replace(payload=marker, ttl_s=None))
        self._given.append(given)
        return commit._replace(puts=puts)

    def _asked(self, key: bytes, marker: bytes) -> Mapping[bytes, int]:
        """The index asks for the rows of what it overwrites; maybe in a thread, and in an attempt that fails."""
        if not _is_own(key):
            self._overwritten.setdefault(key, set()).add(marker[:_GENERATION].decode("ascii"))
        return self._old_rows(key, _indexed(key, marker))

    def replaced(self, outcomes: Sequence[RowOutcome]) -> list[str | bytes]:
        """The names of payloads that nothing names any more."""
        current: dict[bytes, str | None] = {}
        useless: dict[bytes, set[str]] = {}
        for commit, given, outcome in zip(self.batch.commits, self._given, outcomes, strict=True):
            if outcome.version is None:
                for key, generation in given.items():
                    useless.setdefault(key, set()).add(generation)
                continue
            current.update(given)
            current.update(dict.fromkeys(commit.deletes))
        for key in current:
            useless.setdefault(key, set()).update(self._overwritten.get(key, ()))
        name = self._store._names.name
        return [
            name(key, generation)
            for key, generations in useless.items()
            for generation in generations
            if generation != current.get(key)
        ]
