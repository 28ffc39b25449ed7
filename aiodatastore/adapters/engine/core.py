"""What all the engine's work has in common: the store, payloads, the catalog of indexes, and plans."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import TypeAlias

import anyio

from aiodatastore.adapters.base import ReadPolicy
from aiodatastore.adapters.engine.eventual import EventualReads
from aiodatastore.entity import Entity
from aiodatastore.errors import BadCursorError, NeedIndexError
from aiodatastore.indexing.catalog import CATALOG_KEY, Catalog
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.indexing.direct import DirectSpan, direct_span, direct_spans
from aiodatastore.indexing.encoding import decode_key, invert
from aiodatastore.indexing.execution import Bounds
from aiodatastore.indexing.normal import NormalQuery, Prepared, key_direction, normalize, query_name
from aiodatastore.indexing.planner import BranchPlan, plan_branch
from aiodatastore.indexing.rows import SYSTEM, CompositeIndex, entity_rows, indexed_values, stored_rows
from aiodatastore.indexing.suggest import need_index
from aiodatastore.indexing.templates import SpanTemplate, query_shape, span_template
from aiodatastore.query import Query
from aiodatastore.rowstore import Record, RowBatch, RowCommit, RowPut, RowStore
from aiodatastore.serializers import MsgpackSerializer, Serializer

__all__ = ["CATALOG_MAX_AGE_S", "Engine", "Planned"]

_log = logging.getLogger("aiodatastore")

Serving: TypeAlias = Mapping[str, Sequence[CompositeIndex]]
"""The indexes of each kind that queries may use."""

CATALOG_MAX_AGE_S = 0.2
_MAX_PLANS = 512
_MAX_ALIKE = 8
"""Plans of one query for stores whose indexes differ."""


class Planned:
    """A query ready to run.

    ``direct`` is None where more than one span, or work on its rows, is needed; ``union`` where one span is enough, or
    the rows of several are not the results. What ``direct`` was made without is made when it is asked for.
    """

    __slots__ = ("_parts", "_query", "_serving", "direct", "union")

    def __init__(self, query: Query, serving: Serving, direct: DirectSpan | None = None) -> None:
        self._query = query
        self._serving = serving
        self._parts: tuple[NormalQuery, list[BranchPlan]] | None = None
        self.direct = direct
        self.union: list[DirectSpan] | None = None
        if direct is None:
            normal, plans = self._all()
            self.direct = direct_span(normal, plans)
            self.union = direct_spans(normal, plans) if len(plans) > 1 else None

    @property
    def normal(self) -> NormalQuery:
        """The query in normal form."""
        return self._all()[0]

    @property
    def plans(self) -> list[BranchPlan]:
        """A plan for each branch; none where there can be no result."""
        return self._all()[1]

    def _all(self) -> tuple[NormalQuery, list[BranchPlan]]:
        if self._parts is None:
            normal = normalize(self._query)
            serving = self._serving
            plans = [plan_branch(normal, branch, serving.get(branch.kind or "", ())) for branch in normal.branches]
            self._parts = normal, plans
        return self._parts


class Engine:
    """A row store with its serializer and index catalog: plans queries, and makes the index rows of entities."""

    def __init__(
        self,
        store: RowStore,
        *,
        require_indexes: bool = False,
        sort_budget: int = 100_000,
        serializer: Serializer | None = None,
    ) -> None:
        self.store = store
        store.index_rows = self._rows_at_open
        self.serializer: Serializer = serializer or MsgpackSerializer()
        self.require_indexes = require_indexes
        self.sort_budget = sort_budget
        self.catalog = Catalog()
        self.retired = 0
        """How often an index that served was seen to serve no more: what was being read from it may lack rows."""
        self._catalog_read_at = 0.0
        self._refreshing: anyio.Event | None = None
        self._told: set[IndexDefinition] = set()
        self._needs: dict[Hashable, NeedIndexError | None] = {}
        self._plans: dict[Hashable, Planned] = {}
        self._templates: dict[Hashable, SpanTemplate] = {}
        self._planned_with = self.catalog

    # ---------------------------------------------------------------------------------------- plans

    def plan(self, query: Query) -> Planned:
        """The query in normal form, a plan for each branch, and the span that is all of it; with the indexes as last
        read.

        Plans of the same query are made once: they hold no limit, offset or cursor. What is one span is put together
        from the values where they alone differ from those of an earlier query.
        """
        catalog = self.catalog
        prepared: Prepared | None = query._prepared
        if prepared is not None:
            # The same indexes of another engine are the same objects, see Catalog.of.
            serving = catalog.serving
            indexes = [serving.get(branch.kind or "", ()) for branch in prepared.normal.branches]
            for made_with, planned in prepared.plans:
                if made_with == indexes:
                    return planned  # type: ignore[no-any-return]
            planned = Planned(query, serving)
            if len(prepared.plans) >= _MAX_ALIKE:
                prepared.plans.clear()
            prepared.plans.append((indexes, planned))
            return planned
        if catalog is not self._planned_with:
            self._plans, self._templates, self._planned_with = {}, {}, catalog
        name = query_name(query)
        known = None if name is None else self._plans.get(name)
        if known is not None:
            return known
        planned = self._planned_by_shape(query)
        if name is not None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[name] = planned
        return planned

    def _planned_by_shape(self, query: Query) -> Planned:
        serving = self.catalog.serving
        shaped = query_shape(query)
        if shaped is None:
            return Planned(query, serving)
        shape, values = shaped
        template = self._templates.get(shape)
        if template is not None:
            direct = template.direct(query, values)
            if direct is not None:
                return Planned(query, serving, direct)
        planned = Planned(query, serving)
        if planned.direct is not None:
            made = span_template(query, values, planned.plans[0], planned.direct)
            if made is not None:
                if len(self._templates) >= _MAX_PLANS:
                    self._templates.clear()
                self._templates[shape] = made
        return planned

    def bounds(self, query: Query) -> Bounds:
        """Where a query starts and ends.

        :raises BadCursorError: if a cursor belongs to another query
        """
        bounds = Bounds(skip=query.skip, limit=query.max_results)
        if query.start_cursor is None and query.end_cursor is None:
            return bounds
        key_descending, _ = key_direction(query)
        for name, cursor in (("start", query.start_cursor), ("end", query.end_cursor)):
            if cursor is None:
                continue
            position = cursor.position
            if position and cursor.shape != query.shape:
                raise BadCursorError(
                    f"the {name} cursor was made by another query: use it with the same kind, ancestor, filters, "
                    "orders and projection (or their reverse)"
                )
            turned = bool(position) and cursor.inverted != key_descending
            if turned:
                position = invert(position)
            if name == "start":
                bounds.start, bounds.inclusive = position, turned
            else:
                bounds.end, bounds.end_excluded = position, turned
        return bounds

    def missing_index(self, query: Query) -> NeedIndexError | None:
        """What App Engine would say of a query with the indexes that serve, by its rules."""
        place = (query.shape, query.orders, self.catalog.version)  # a query and its reverse have one shape
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

    def reading(self, policy: ReadPolicy) -> RowStore:
        """What to read from."""
        if policy is ReadPolicy.EVENTUAL:
            replica = self.store.replica()
            if replica is not None:
                return EventualReads(self.store, replica, lambda: self.catalog.version)
        return self.store

    # -------------------------------------------------------------------------------------- catalog

    def take_catalog(self, record: Record | None, read_at: float) -> None:
        """Use the catalog of a record whose reading began at ``read_at``, unless a newer one is known."""
        self._catalog_read_at = max(self._catalog_read_at, read_at)
        if (0 if record is None else record.version) > self.catalog.version:
            self._use(Catalog.loads(record))

    def _use(self, catalog: Catalog) -> None:
        if not catalog.serving_numbers >= self.catalog.serving_numbers:
            self.retired += 1
        self.catalog = catalog

    def forget_catalog(self) -> None:
        """Know of no index: what the store is about to hold may be other data."""
        self._use(Catalog())
        self._catalog_read_at = 0.0
        self._refreshing = None

    @property
    def stale(self) -> bool:
        """Whether :meth:`refresh` has anything to do."""
        return monotonic() - self._catalog_read_at > CATALOG_MAX_AGE_S

    def refresh_now(self) -> bool:
        """As :meth:`refresh`, where that needs no waiting; whether the catalog is fresh."""
        now = monotonic()
        if now - self._catalog_read_at > CATALOG_MAX_AGE_S:
            records = self.store.read_now([CATALOG_KEY])
            if records is None:
                return False
            self.take_catalog(records[0], now)
        return True

    async def refresh(self, *, force: bool = False) -> None:
        """See indexes that other processes made or removed, at most :data:`CATALOG_MAX_AGE_S` late.

        That is soon enough: an index serves before anybody uses it, and is maintained for twice as long after it
        was marked for deletion. Who reads for longer refreshes again and looks at :attr:`retired`.
        """
        needed = monotonic() - CATALOG_MAX_AGE_S
        while force or self._catalog_read_at < needed:
            if self._refreshing is not None and not force:
                await self._refreshing.wait()  # one reads for all
                continue
            done = self._refreshing = anyio.Event()
            now = monotonic()
            try:
                records, _ = await self.store.read([CATALOG_KEY])
                self.take_catalog(records[0], now)
            finally:
                self._refreshing = None
                done.set()
            return

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
                changed = replace(changed, version=outcome.version)
                if changed.version > self.catalog.version:
                    self._use(changed)
                return changed

    # ----------------------------------------------------------------------------------------- rows

    def old_rows(self, key: bytes, payload: bytes, catalog: Catalog | None = None) -> Mapping[bytes, int]:
        """The index rows of a stored entity: what an overwrite or delete has to remove.

        ``catalog``: the one that a batch is fenced by. The store may ask in a thread, while another is taken here.
        """
        if key.startswith(SYSTEM):
            return {}
        found = decode_key(key)
        values = indexed_values(self.serializer.loads(found, payload, 0))
        return stored_rows(found, values, (catalog or self.catalog).maintained.get(found.kind, ()))

    def _rows_at_open(self, key: bytes, payload: bytes) -> Mapping[bytes, int]:
        """The index rows of a stored entity, for a store that makes its indexes while it is being opened."""
        self.refresh_now()
        return self.old_rows(key, payload)

    def entity_rows(self, entity: Entity) -> dict[bytes, int]:
        """All index rows of an entity, composite ones included."""
        return entity_rows(entity, self.catalog.maintained.get(entity.key.kind, ()))
