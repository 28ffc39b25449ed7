"""An :class:`Adapter` of any :class:`~aiodatastore.rowstore.RowStore`: the engine, once for all of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic, perf_counter
from typing import Any

from anyio.lowlevel import checkpoint

from aiodatastore.adapters.base import (
    Adapter,
    AggregateResult,
    Aggregation,
    ChangeListener,
    Commit,
    Lookup,
    Outcome,
    PreparedCommit,
    Put,
    ReadPolicy,
    ResultStream,
    RunOptions,
)
from aiodatastore.adapters.engine.aggregation import aggregate, count_now
from aiodatastore.adapters.engine.building import IndexBuilder
from aiodatastore.adapters.engine.core import Engine
from aiodatastore.adapters.engine.header import FORMAT_KEY, Header
from aiodatastore.adapters.engine.streams import EngineStream, spans_now
from aiodatastore.adapters.engine.verification import check_store, store_stats
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadRequestError,
    DatastoreError,
    StoreReadOnlyError,
)
from aiodatastore.indexing.catalog import CATALOG_KEY, Catalog
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo
from aiodatastore.indexing.direct import GivesCounts, GivesRows, SpanRows
from aiodatastore.indexing.encoding import (
    decode_key,
    encode_key,
    encode_partition,
    encode_text,
)
from aiodatastore.indexing.explain import Step
from aiodatastore.indexing.metadata import METADATA_KINDS, partitions
from aiodatastore.indexing.rows import COMPOSITE_TAG, SYSTEM
from aiodatastore.indexing.scanning import Reader
from aiodatastore.key import MAX_ID, Key
from aiodatastore.query import Query
from aiodatastore.rowstore import (
    CORE,
    Capability,
    Record,
    RowBatch,
    RowCommit,
    RowListener,
    RowPut,
    RowStore,
    Space,
    StaleFenceError,
    Subscription,
)
from aiodatastore.serializers import MsgpackSerializer, Serializer, serializer_named
from aiodatastore.serializers.base import name_of

__all__ = ["EngineAdapter"]

_log = logging.getLogger("aiodatastore")

_COMPOSITE = bytes((COMPOSITE_TAG,))
_MAX_HOLD_S = 0.005
_SLICE = 128
"""Writes that are encoded at one go: about 4 ms of them."""
_DEFAULT = RunOptions()


class EngineAdapter(Engine, Adapter, GivesRows, GivesCounts):
    """Keeps entities in a row store.

    ``require_indexes``: queries that need a composite index raise ``NeedIndexError`` instead of being served
    by residual work. ``sort_budget``: how many results a sort that no index serves may hold. ``serializer``
    writes payloads: an object, or a name (see :mod:`aiodatastore.serializers`); None: the one that the store was
    written with, in a new store msgpack.
    """

    def __init__(
        self,
        store: RowStore,
        *,
        require_indexes: bool = False,
        sort_budget: int = 100_000,
        serializer: Serializer | str | None = None,
    ) -> None:
        writes = serializer_named(serializer) if isinstance(serializer, str) else serializer
        if writes is not None:
            name_of(writes)  # refuses what can't stand in the header
        super().__init__(store, require_indexes=require_indexes, sort_budget=sort_budget, serializer=writes)
        self._serializer_given = writes is not None
        self._builder = IndexBuilder(self)
        self._open_in = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The store's, and what the engine makes of any store."""
        return self.store.capabilities | CORE

    @property
    def url(self) -> str:
        """The store's."""
        return self.store.url

    async def open(self) -> None:
        """Open the store and check the version of the format.

        :raises FormatVersionError: if it was written in another one, or with a serializer that can't be read here
        :raises BadRequestError: if it is open already: two datastores would close it for each other
        """
        if self._open_in == os.getpid():  # what was open before a fork is the parent's
            raise BadRequestError(f"{self.url}: this adapter is open already; make one for each datastore")
        self.forget_catalog()
        await self.store.open()
        self._open_in = os.getpid()
        try:
            now = monotonic()
            records, _ = await self.store.read([FORMAT_KEY, CATALOG_KEY])
            await self._take_header(records[0])
            self.take_catalog(records[1], now)
        except BaseException:
            await self.aclose()
            raise

    async def _take_header(self, record: Record | None) -> None:
        """Check that what is there can be read, and say which serializer writes from now on."""
        if not self._serializer_given:
            self.serializer = MsgpackSerializer()
        while True:
            if record is None:
                found, version = Header((name_of(self.serializer),)), 0
            else:
                found, version = Header.loads(record.payload, self.url), record.version
                if not self._serializer_given:
                    self.serializer = found.own_serializer(self.url)
                found.check(self.serializer, self.url)
            header = found.opened_with(self.serializer)
            if record is not None and header == found:
                return
            commit = RowCommit(checks=[(FORMAT_KEY, version)], puts=[RowPut(FORMAT_KEY, header.dumps(), {})])
            try:
                outcomes = await self.store.commit(RowBatch([commit], self.old_rows))
            except StoreReadOnlyError:
                return  # what can't be written is as good as new, and nothing is written with another serializer
            if outcomes[0].version is not None:
                return
            record = (await self.store.read([FORMAT_KEY])).records[0]  # another process came between

    async def aclose(self) -> None:
        """Close the store."""
        self._open_in = 0
        await self.store.aclose()

    # ---------------------------------------------------------------------------------------- reads

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """Entities, if the store has them at hand."""
        records = self.store.read_now([key._encoded or encode_key(key) for key in keys])
        if records is None:
            return None
        loads = self.serializer.loads
        return [
            None if record is None else loads(key, record[1], record[0])
            for key, record in zip(keys, records, strict=True)
        ]

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """One read of the store."""
        records, version = await self.reading(read_policy).read([key._encoded or encode_key(key) for key in keys])
        loads = self.serializer.loads
        return Lookup(
            [
                None if record is None else loads(key, record.payload, record.version)
                for key, record in zip(keys, records, strict=True)
            ],
            version,
        )

    def run(self, query: Query, options: RunOptions = _DEFAULT) -> ResultStream:
        """Plan a query; pages are read as they are asked for."""
        if self.require_indexes and query.kind not in METADATA_KINDS:
            fresh = self.refresh_now()  # else the first page tells
            missing = self.missing_index(query) if fresh else None
            if missing is not None:
                raise missing
        return EngineStream(self, query, options)

    def spans_now(self, query: Query, read_policy: ReadPolicy) -> list[SpanRows] | None:
        """Of a store that answers at once, where its rows are all there is to the query."""
        return spans_now(self, query, read_policy)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = _DEFAULT
    ) -> AggregateResult:
        """Aggregate on index rows where the plan allows, else on entities."""
        if self.require_indexes:
            await self.refresh()
            missing = self.missing_index(query)
            if missing is not None:
                raise missing
        return await aggregate(self, query, aggregations, options)

    def count_now(self, query: Query, read_policy: ReadPolicy) -> int | None:
        """By one count of a store that answers at once, where that is all there is to it."""
        return count_now(self, query, read_policy)

    def _prepare(self, commit: Commit) -> RowCommit:
        puts: list[RowPut] = []
        deletes: list[bytes] = []
        dumps = self.serializer.dumps
        for write in commit.writes:
            if isinstance(write, Put):
                entity = write.entity
                key = entity.key
                encoded = key._encoded or encode_key(key)
                puts.append(RowPut(encoded, dumps(entity), self.entity_rows(entity), write.ttl_s))
            else:
                deletes.append(encode_key(write.key))
        checks = [(key._encoded or encode_key(key), version) for key, version in commit.checks.items()]
        after = commit.after_prepared
        return RowCommit(checks, commit.spans, puts, deletes, token=commit.token, after_prepared=after)

    def encode(self, commit: Commit) -> None:
        """Encode the entities and their index rows, for the indexes there are now."""
        if len(commit.writes) <= _SLICE:
            try:
                commit.encoded = self.catalog, self._prepare(commit)
            except DatastoreError:
                pass  # commit() tells

    async def _prepared(self, commit: Commit, catalog: Catalog) -> RowCommit:
        if commit.encoded is not None and commit.encoded[0] is catalog:
            ready: RowCommit = commit.encoded[1]
            return ready
        if len(commit.writes) > _SLICE:
            return await self._prepare_in_slices(commit)
        return self._prepare(commit)

    async def _prepare_in_slices(self, commit: Commit) -> RowCommit:
        """The same, while others run now and then."""
        puts: list[RowPut] = []
        deletes: list[bytes] = []
        for start in range(0, len(commit.writes), _SLICE):
            part = self._prepare(Commit(writes=commit.writes[start : start + _SLICE]))
            puts += part.puts
            deletes += part.deletes
            await checkpoint()
        rest = self._prepare(replace(commit, writes=()))
        return rest._replace(puts=puts, deletes=deletes)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Encode entities and their index rows and hand them to the store, in one request."""
        while True:
            outcomes: list[Outcome | None] = [None] * len(batch)
            prepared: list[RowCommit] = []
            places: list[int] = []
            catalog = self.catalog
            since = perf_counter() if len(batch) > 1 else 0.0
            for place, commit in enumerate(batch):
                lost = self._lost_spans(commit) if commit.spans else 0
                if lost:
                    outcomes[place] = Outcome(None, stale_spans=lost)
                    continue
                try:
                    prepared.append(await self._prepared(commit, catalog))
                    places.append(place)
                except DatastoreError as exc:
                    outcomes[place] = Outcome(None, error=exc)
                if since and perf_counter() - since > _MAX_HOLD_S:
                    await checkpoint()
                    since = perf_counter()
            if catalog is not self.catalog:
                continue  # an index was made while others ran
            try:
                fence = (CATALOG_KEY, catalog.version)
                old_rows = partial(self.old_rows, catalog=catalog)
                results = await self.store.commit(RowBatch(prepared, old_rows, fence)) if prepared else []
            except StaleFenceError:
                await self.refresh(force=True)
                continue
            for place, (version, conflicts, stale) in zip(places, results, strict=True):
                found = {decode_key(key): actual for key, actual in conflicts} if conflicts else {}
                outcomes[place] = Outcome(version, found, stale)
            return [outcome for outcome in outcomes if outcome is not None]

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """As :meth:`commit`, up to where it is certain to succeed."""
        while True:
            catalog = self.catalog
            lost = self._lost_spans(commit) if commit.spans else 0
            if lost:
                return Outcome(None, stale_spans=lost)
            try:
                ready = await self._prepared(commit, catalog)
            except DatastoreError as exc:
                return Outcome(None, error=exc)
            if catalog is not self.catalog:
                continue
            fence = (CATALOG_KEY, catalog.version)
            try:
                batch = RowBatch([ready], partial(self.old_rows, catalog=catalog), fence)
                version, conflicts, stale = await self.store.prepare(batch, name)
            except StaleFenceError:
                await self.refresh(force=True)
                continue
            return Outcome(version, {decode_key(key): actual for key, actual in conflicts}, stale)

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        """Tell the store."""
        version = await self.store.resolve(name, commit=commit)
        return None if version is None else Outcome(version)

    async def prepared(self) -> list[PreparedCommit]:
        """The store's."""
        return [PreparedCommit(name, age_s) for name, age_s in await self.store.prepared()]

    def _lost_spans(self, commit: Commit) -> int:
        """How many spans are of indexes that are not maintained any more: whether they hold can't be told."""
        numbers = {
            int.from_bytes(span.lo[1:5], "big")
            for span in commit.spans
            if span.space is Space.INDEX and span.lo[:1] == _COMPOSITE
        }
        return len(numbers - self.catalog.maintained_numbers) if numbers else 0

    async def subscribe(self, listener: ChangeListener, interval_s: float) -> Subscription | None:
        """The store's messages, if it sends some."""
        return await self.store.subscribe(_Decoding(listener), interval_s)

    async def lifetimes(self, keys: Sequence[Key]) -> Sequence[float | None]:
        """As the store says."""
        if Capability.TTL not in self.store.capabilities:
            return [None] * len(keys)
        return await self.store.lifetimes([key._encoded or encode_key(key) for key in keys])

    @staticmethod
    def _sequence(key: Key) -> bytes:
        return encode_partition(key.project, key.namespace) + encode_text(key.kind)

    async def allocate_ids(self, key: Key, size: int) -> tuple[int, int]:
        """Ids from the sequence of the key's partition and kind: unique over all parents.

        :raises BadRequestError: if there are not so many left
        """
        try:
            first = await self.store.allocate(self._sequence(key), size)
        except OverflowError:  # a store need not count further than ids go
            first = MAX_ID
        if first + size > MAX_ID:
            raise BadRequestError(f"fewer than {size} numeric ids are left for keys like {key!r}")
        return first, first + size - 1

    async def reserve_ids(self, key: Key, up_to: int) -> tuple[int, int]:
        """The ids up to a number that the sequence has not passed."""
        sequence = self._sequence(key)
        first = await self.store.allocate(sequence, 0)
        end = min(up_to, MAX_ID - 1)  # the last id of all is never handed out, so the next one is an id, too
        if first <= end:
            # Another process may come between: what it took is its own, the rest of the range is ours.
            first = await self.store.allocate(sequence, end - first + 1)
        if first > end:
            return first, first - 1
        return first, up_to

    # -------------------------------------------------------------------------------------- indexes

    async def indexes(self) -> list[IndexInfo]:
        """The catalog, read afresh."""
        await self.refresh(force=True)
        return [entry.info for entry in self.catalog.entries]

    async def create_index(self, definition: IndexDefinition) -> IndexInfo:
        """Register an index; :meth:`build_index` fills it."""
        return await self._builder.create(definition)

    async def build_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None
    ) -> IndexInfo:
        """Fill an index from existing entities while writes go on."""
        return await self._builder.build(definition, progress)

    async def delete_index(
        self,
        definition: IndexDefinition,
        *,
        progress: Callable[[int], None] | None = None,
        finish: bool = True,
    ) -> None:
        """Mark an index DELETING; unless ``finish`` is false, remove its rows and forget it."""
        await self._builder.delete(definition, progress, finish=finish)

    async def check(self) -> list[str]:
        """Compare all index rows with all entities."""
        await self.refresh(force=True)
        return await check_store(self)

    async def partitions(self) -> list[tuple[str, str]]:
        """Skip through the kinds' index: a seek for each partition."""
        return sorted(await partitions(Reader(self.store, track=False), Step("partitions")))

    async def stats(self) -> dict[str, Any]:
        """Count everything."""
        await self.refresh(force=True)
        return await store_stats(self)


class _Decoding(RowListener):
    """Tells of entities what it is told of rows."""

    def __init__(self, listener: ChangeListener) -> None:
        self._listener = listener

    def changed(self, keys: Sequence[bytes], version: int) -> None:
        self._listener.changed([decode_key(key) for key in keys if key < SYSTEM], version)

    def confirmed(self, at: float, version: int) -> None:
        self._listener.confirmed(at, version)

    def gap(self) -> None:
        self._listener.gap()
