"""Composite indexes built, and removed, while the store is in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import anyio

from aiodatastore.adapters.engine.core import CATALOG_MAX_AGE_S, Engine
from aiodatastore.errors import BadRequestError, DatastoreError, UnavailableError
from aiodatastore.indexing.catalog import CATALOG_KEY, Catalog, CatalogEntry
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo, IndexState
from aiodatastore.indexing.encoding import decode_key, encode_key
from aiodatastore.indexing.explain import Step
from aiodatastore.indexing.metadata import partitions
from aiodatastore.indexing.rows import (
    CompositeIndex,
    check_row_count,
    composite_rows,
    indexed_values,
    kind_prefix,
)
from aiodatastore.indexing.scanning import Reader
from aiodatastore.rowstore import TAIL_KEY_MASK, Capability, RowBatch, RowCommit, Space, StaleFenceError

__all__ = ["IndexBuilder"]

_AFTER = b"\xff"
_BATCH = 250
_SAVE_EVERY = 20
MAX_PROPERTIES = 40
"""Properties of one index: the 63 bits beside each row tell their types."""
Progress = Callable[[int], None] | None


class IndexBuilder:
    """Creates, fills and removes composite indexes of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create(self, definition: IndexDefinition) -> IndexInfo:
        """Enter an index into the catalog: from here on every writer maintains it.

        One in state ERROR goes back to BUILDING.

        :raises BadRequestError: if it is being deleted, or has too many properties
        """
        if len(definition.properties) > MAX_PROPERTIES:
            count = len(definition.properties)
            raise BadRequestError(f"an index has at most {MAX_PROPERTIES} properties, this one of {count}")

        def change(catalog: Catalog) -> Catalog | None:
            entry = catalog.find(definition)
            if entry is None:
                return catalog.with_new(definition)
            if entry.info.state is IndexState.DELETING:
                raise BadRequestError(f"the index {definition} is being deleted: wait for that, then create it")
            if entry.info.state is IndexState.ERROR:
                return catalog.with_entry(
                    CatalogEntry(replace(entry.info, state=IndexState.BUILDING, message="", seen=0))
                )
            return None

        catalog = await self._engine.change_catalog(change)
        entry = catalog.find(definition)
        assert entry is not None
        return entry.info

    def _entry(self, definition: IndexDefinition) -> CatalogEntry:
        entry = self._engine.catalog.find(definition)
        if entry is None:
            raise BadRequestError(f"there is no index {definition}: create it first")
        return entry

    async def build(self, definition: IndexDefinition, progress: Progress) -> IndexInfo:
        """Add the rows of existing entities, in batches, from where an earlier build stopped.

        Several builds of one index may run at a time: the first one to end makes it SERVING. What can't be indexed
        ends in ERROR; a store that fails does not, the build can go on later.
        """
        engine = self._engine
        await engine.refresh(force=True)
        entry = self._entry(definition)
        if entry.info.state is not IndexState.BUILDING:
            if entry.info.state is IndexState.SERVING:
                return entry.info
            raise BadRequestError(f"the index {definition} is {entry.info.state}: only BUILDING ones are built")
        seen = entry.info.seen
        reader = Reader(engine.store, track=False)
        step = Step("build")
        try:
            for project, namespace in await partitions(reader, step):
                span = kind_prefix(project, namespace, definition.kind)
                if span + _AFTER > entry.resume:
                    seen = await self._build_span(entry, span, max(span, entry.resume), seen, progress)
        except UnavailableError:
            raise
        except DatastoreError as exc:
            await self._set_state(definition, IndexState.ERROR, str(exc), seen)
            raise
        return await self._set_state(definition, IndexState.SERVING, "", seen)

    async def _set_state(self, definition: IndexDefinition, state: IndexState, message: str, seen: int) -> IndexInfo:
        def change(catalog: Catalog) -> Catalog | None:
            entry = catalog.find(definition)
            if entry is None or entry.info.state is IndexState.DELETING:
                raise _deleted(definition)
            if entry.info.state is IndexState.SERVING:
                return None
            return catalog.with_entry(CatalogEntry(replace(entry.info, state=state, message=message, seen=seen)))

        catalog = await self._engine.change_catalog(change)
        entry = catalog.find(definition)
        assert entry is not None
        return entry.info

    async def _build_span(self, entry: CatalogEntry, span: bytes, lo: bytes, seen: int, progress: Progress) -> int:
        engine = self._engine
        reader = Reader(engine.store, track=False)
        step = Step("build")
        batches = 0
        while rows := await reader.scan(step, Space.INDEX, lo, span + _AFTER, _BATCH, reverse=False, join=True):
            catalog = engine.catalog
            current = catalog.numbered(entry.info.number)
            if current is None or current.info.state is IndexState.DELETING:
                raise _deleted(entry.info.definition)
            if current.info.state is IndexState.SERVING:
                return seen  # another build was faster
            puts: dict[bytes, int] = {}
            checks: list[tuple[bytes, int]] = []
            for row, tail, version, payload in rows:
                if payload is None or version is None:
                    continue
                key = row[-(tail & TAIL_KEY_MASK) :]
                checks.append((key, version))
                self._add_rows(puts, entry.index, key, payload)
            outcome = None
            if puts:
                commit = RowCommit(checks=checks, index_puts=puts)
                try:
                    # Fenced, so that nothing is added to an index after its rows were removed.
                    fence = (CATALOG_KEY, catalog.version)
                    outcomes = await engine.store.commit(RowBatch([commit], engine.old_rows, fence))
                except StaleFenceError:
                    await engine.refresh(force=True)
                    continue
                outcome = outcomes[0]
            if outcome is not None and outcome.version is None:
                continue  # one of the entities was written meanwhile: read them again
            lo = rows[-1][0] + b"\x00"
            seen += len(rows)
            batches += 1
            if progress is not None:
                progress(seen)
            if batches % _SAVE_EVERY == 0:
                await self._save(entry.info.definition, lo, seen)
        return seen

    def _add_rows(self, puts: dict[bytes, int], index: CompositeIndex, key: bytes, payload: bytes) -> None:
        found = decode_key(key)
        values = indexed_values(self._engine.serializer.loads(found, payload, 0))
        check_row_count(found, values, (index,))
        composite_rows(puts, index, found, encode_key(found), values)

    async def _save(self, definition: IndexDefinition, resume: bytes, seen: int) -> None:
        """Remember how far the build is, for one that goes on after this process."""

        def change(catalog: Catalog) -> Catalog | None:
            entry = catalog.find(definition)
            if entry is None or entry.info.state is not IndexState.BUILDING:
                return None
            if resume <= entry.resume:
                return None  # another build is further
            return catalog.with_entry(CatalogEntry(replace(entry.info, seen=seen), resume))

        await self._engine.change_catalog(change)

    async def delete(self, definition: IndexDefinition, progress: Progress, *, finish: bool = True) -> None:
        """Take an index out of use, then remove its rows in batches, then forget it.

        :raises BadRequestError: if there is none
        """
        engine = self._engine

        def mark(catalog: Catalog) -> Catalog | None:
            entry = catalog.find(definition)
            if entry is None:
                raise BadRequestError(f"there is no index {definition}")
            if entry.info.state is IndexState.DELETING:
                return None
            return catalog.with_entry(CatalogEntry(replace(entry.info, state=IndexState.DELETING, message="")))

        catalog = await engine.change_catalog(mark)
        entry = catalog.find(definition)
        assert entry is not None
        if not finish:
            return
        number = entry.info.number
        if entry.is_maintained:
            if Capability.MULTI_PROCESS in engine.store.capabilities:
                await anyio.sleep(2 * CATALOG_MAX_AGE_S)  # by then no process reads from it any more
            await engine.change_catalog(lambda catalog: catalog.removing(number))
        reader = Reader(engine.store, track=False)
        step = Step("delete")
        prefix = entry.index.prefix
        removed = 0
        while rows := await reader.scan(step, Space.INDEX, prefix, prefix + _AFTER, 1000, reverse=False, join=False):
            commit = RowCommit(index_deletes=[row[0] for row in rows])
            await engine.store.commit(RowBatch([commit], engine.old_rows))
            removed += len(rows)
            if progress is not None:
                progress(removed)
        await engine.change_catalog(lambda catalog: catalog.without(number))


def _deleted(definition: IndexDefinition) -> BadRequestError:
    return BadRequestError(f"the index {definition} was deleted while it was being built")
