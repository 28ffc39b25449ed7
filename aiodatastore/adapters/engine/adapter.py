"""An :class:`Adapter` of any :class:`~aiodatastore.rowstore.RowStore`: the engine, once for all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic, perf_counter
from typing import Any

from anyio.lowlevel import checkpoint

from aiodatastore.adapters.base import (
    Adapter,
    AggregateResult,
    Aggregation,
    Commit,
    Lookup,
    Outcome,
    Put,
    ReadPolicy,
    ResultStream,
    RunOptions,
)
from aiodatastore.adapters.engine.aggregation import aggregate
from aiodatastore.adapters.engine.building import IndexBuilder
from aiodatastore.adapters.engine.streams import EngineStream
from aiodatastore.adapters.engine.verification import check_store, store_stats
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadCursorError,
    DatastoreError,
    FormatVersionError,
    NeedIndexError,
    StoreReadOnlyError,
)
from aiodatastore.indexing.catalog import CATALOG_KEY, Catalog
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo
from aiodatastore.indexing.encoding import (
    FORMAT_VERSION,
    decode_key,
    encode_key,
    encode_partition,
    encode_text,
    invert,
)
from aiodatastore.indexing.execution import Bounds
from aiodatastore.indexing.explain import Step
from aiodatastore.indexing.metadata import METADATA_KINDS, partitions
from aiodatastore.indexing.normal import NormalQuery, normalize
from aiodatastore.indexing.planner import BranchPlan, plan_branch
from aiodatastore.indexing.rows import SYSTEM, index_rows, indexed_values
from aiodatastore.indexing.scanning import Reader
from aiodatastore.indexing.suggest import need_index
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import (
    Capability,
    Record,
    RowBatch,
    RowCommit,
    RowPut,
    RowStore,
    StaleFenceError,
)
from aiodatastore.serializers import MsgpackSerializer, Serializer

__all__ = ["EngineAdapter"]

_log = logging.getLogger("aiodatastore")

_FORMAT_KEY = SYSTEM + b"format"
_CATALOG_MAX_AGE_S = 1.0
_MAX_HOLD_S = 0.005
_DEFAULT = RunOptions()


class EngineAdapter(Adapter):
    """Keeps entities in a row store.

    ``require_indexes``: queries that need a composite index raise ``NeedIndexError`` instead of being served
    by residual work. ``sort_budget``: how many results a sort that no index serves may hold. ``serializer``
    writes payloads.
    """

    def __init__(
        self,
        store: RowStore,
        *,
        require_indexes: bool = False,
        sort_budget: int = 100_000,
        serializer: Serializer | None = None,
    ) -> None:
        self.store = store
        self.serializer: Serializer = serializer or MsgpackSerializer()
        self.require_indexes = require_indexes
        self.sort_budget = sort_budget
        self.catalog = Catalog()
        self._catalog_read_at = 0.0
        self._told: set[IndexDefinition] = set()
        self._needs: dict[tuple[bytes, int], NeedIndexError | None] = {}
        self._builder = IndexBuilder(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The store's."""
        return self.store.capabilities

    @property
    def url(self) -> str:
        """The store's."""
        return self.store.url

    async def open(self) -> None:
        """Open the store and check the version of the format.

        :raises FormatVersionError: if it was written in another one
        """
        await self.store.open()
        try:
            records, _ = await self.store.read([_FORMAT_KEY, CATALOG_KEY])
            if records[0] is None:
                await self._write_format()
            elif records[0].payload != b"%d" % FORMAT_VERSION:
                found = records[0].payload[:20].decode("ascii", "replace")
                raise FormatVersionError(
                    f"{self.url} is in format {found}, this version of the package reads {FORMAT_VERSION}: "
                    "use the version that wrote it, or export there and import here"
                )
            self._take_catalog(records[1])
        except BaseException:
            await self.store.aclose()
            raise

    async def _write_format(self) -> None:
        put = RowPut(_FORMAT_KEY, b"%d" % FORMAT_VERSION, {})
        commit = RowCommit(checks=[(_FORMAT_KEY, 0)], puts=[put])
        try:
            await self.store.commit(RowBatch([commit], self.old_rows))
        except StoreReadOnlyError:
            pass  # an empty store that can't be written is as good as a new one

    async def aclose(self) -> None:
        """Close the store."""
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
        records, version = await self.store.read([encode_key(key) for key in keys])
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
        stream = EngineStream(self, query, options)
        if self.require_indexes and query.kind not in METADATA_KINDS:
            self._refresh_now()
            missing = self.missing_index(query)
            if missing is not None:
                raise missing
        return stream

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

    def plan(self, query: Query) -> tuple[NormalQuery, list[BranchPlan]]:
        """The query in normal form and a plan for each branch, with the indexes as last read."""
        normal = normalize(query)
        serving = self.catalog.serving
        plans = [plan_branch(normal, branch, serving.get(branch.kind or "", ())) for branch in normal.branches]
        return normal, plans

    def bounds(self, query: Query, normal: NormalQuery) -> Bounds:
        """Where a query starts and ends.

        :raises BadCursorError: if a cursor belongs to another query
        """
        bounds = Bounds(skip=query.skip, limit=query.max_results)
        for name, cursor in (("start", query.start_cursor), ("end", query.end_cursor)):
            if cursor is None:
                continue
            position = cursor.position
            if position and cursor.shape != query.shape:
                raise BadCursorError(
                    f"the {name} cursor was made by another query: use it with the same kind, ancestor, filters, "
                    "orders and projection (or their reverse)"
                )
            turned = bool(position) and cursor.inverted != normal.key_descending
            if turned:
                position = invert(position)
            if name == "start":
                bounds.start, bounds.inclusive = position, turned
            else:
                bounds.end, bounds.end_excluded = position, turned
        return bounds

    def missing_index(self, query: Query) -> NeedIndexError | None:
        """What App Engine would say of a query with the indexes that serve, by its rules."""
        place = (query.shape, self.catalog.version)
        if place not in self._needs:
            if len(self._needs) > 1000:
                self._needs.clear()
            defined = [index.definition for found in self.catalog.serving.values() for index in found]
            self._needs[place] = need_index(query, defined)
        return self._needs[place]

    def needed(self, query: Query) -> NeedIndexError:
        """The error for a sort beyond the budget."""
        missing = self.missing_index(query)
        if missing is None:
            return NeedIndexError(
                f"more than {self.sort_budget} results would have to be sorted in memory, and no composite index "
                "can serve this query: give it a limit, fewer orders, or raise sort_budget"
            )
        return NeedIndexError(
            f"more than {self.sort_budget} results would have to be sorted in memory; give the query a limit, raise "
            f"sort_budget, or define the index\n{missing.yaml}",
            definition=missing.definition,
            yaml=missing.yaml,
            xml=missing.xml,
        )

    def tell_missing_index(self, query: Query) -> NeedIndexError | None:
        """Log, once a definition, which index would serve a query that needs one."""
        missing = self.missing_index(query)
        if missing is not None and missing.definition not in self._told:
            self._told.add(missing.definition)
            _log.warning("a query runs without its composite index; this one would serve it:\n%s", missing.yaml)
        return missing

    # -------------------------------------------------------------------------------------- catalog

    def _take_catalog(self, record: Record | None) -> None:
        self._catalog_read_at = monotonic()
        if (0 if record is None else record.version) != self.catalog.version:
            self.catalog = Catalog.loads(record)

    def _refresh_now(self) -> bool:
        records = self.store.read_now([CATALOG_KEY])
        if records is None:
            return False
        self._take_catalog(records[0])
        return True

    async def refresh(self, *, force: bool = False) -> None:
        """See indexes that other processes made: at once where reads are inline, else at most a second late."""
        if not force and (
            monotonic() - self._catalog_read_at < _CATALOG_MAX_AGE_S
            if Capability.INLINE_READS not in self.capabilities
            else self._refresh_now()
        ):
            return
        records, _ = await self.store.read([CATALOG_KEY])
        self._take_catalog(records[0])

    async def change_catalog(self, change: Callable[[Catalog], Catalog | None]) -> Catalog:
        """Replace the catalog by ``change`` of its newest state, until nobody came between; None: leave it."""
        while True:
            await self.refresh(force=True)
            changed = change(self.catalog)
            if changed is None:
                return self.catalog
            commit = RowCommit(
                checks=[(CATALOG_KEY, self.catalog.version)], puts=[RowPut(CATALOG_KEY, changed.dumps(), {})]
            )
            outcome = (await self.store.commit(RowBatch([commit], self.old_rows)))[0]
            if outcome.version is not None:
                self.catalog = replace(changed, version=outcome.version)
                return self.catalog

    # --------------------------------------------------------------------------------------- writes

    def old_rows(self, key: bytes, payload: bytes) -> Mapping[bytes, int]:
        """The index rows of a stored entity: what an overwrite or delete has to remove."""
        if key.startswith(SYSTEM):
            return {}
        return self.entity_rows(self.serializer.loads(decode_key(key), payload, 0))

    def entity_rows(self, entity: Entity) -> dict[bytes, int]:
        """All index rows of an entity, composite ones included."""
        key = entity.key
        return index_rows(key, indexed_values(entity), self.catalog.maintained.get(key.kind, ()))

    def _prepare(self, commit: Commit) -> RowCommit:
        puts: list[RowPut] = []
        deletes: list[bytes] = []
        dumps = self.serializer.dumps
        for write in commit.writes:
            if isinstance(write, Put):
                entity = write.entity
                key = entity.key
                puts.append(RowPut(key._encoded or encode_key(key), dumps(entity), self.entity_rows(entity)))
            else:
                deletes.append(encode_key(write.key))
        checks = [(key._encoded or encode_key(key), version) for key, version in commit.checks.items()]
        return RowCommit(checks, commit.spans, puts, deletes, token=commit.token)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Encode entities and their index rows and hand them to the store, in one request."""
        while True:
            outcomes: list[Outcome | None] = [None] * len(batch)
            prepared: list[RowCommit] = []
            places: list[int] = []
            catalog = self.catalog
            since = perf_counter() if len(batch) > 1 else 0.0
            for place, commit in enumerate(batch):
                try:
                    prepared.append(self._prepare(commit))
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
                results = await self.store.commit(RowBatch(prepared, self.old_rows, fence)) if prepared else []
            except StaleFenceError:
                await self.refresh(force=True)
                continue
            for place, (version, conflicts, stale) in zip(places, results, strict=True):
                found = {decode_key(key): actual for key, actual in conflicts} if conflicts else {}
                outcomes[place] = Outcome(version, found, stale)
            return [outcome for outcome in outcomes if outcome is not None]

    @staticmethod
    def _sequence(key: Key) -> bytes:
        return encode_partition(key.project, key.namespace) + encode_text(key.kind)

    async def allocate_ids(self, key: Key, size: int) -> tuple[int, int]:
        """Ids from the sequence of the key's partition and kind: unique over all parents."""
        first = await self.store.allocate(self._sequence(key), size)
        return first, first + size - 1

    async def reserve_ids(self, key: Key, up_to: int) -> tuple[int, int]:
        """The ids up to a number that the sequence has not passed."""
        sequence = self._sequence(key)
        first = await self.store.allocate(sequence, 0)
        if first <= up_to:
            # Another process may come between: what it took is its own, the rest of the range is ours.
            first = await self.store.allocate(sequence, up_to - first + 1)
        if first > up_to:
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
