"""Running queries: pages of results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aiodatastore.adapters.base import Page, ResultStream, RunOptions
from aiodatastore.adapters.engine.core import Engine
from aiodatastore.errors import NeedIndexError
from aiodatastore.indexing.encoding import decode_key
from aiodatastore.indexing.execution import Bounds, QueryRun
from aiodatastore.indexing.explain import Explanation, Step
from aiodatastore.indexing.metadata import METADATA_KINDS, metadata_entities
from aiodatastore.indexing.scanning import Reader
from aiodatastore.query import Query

__all__ = ["EngineStream"]


class EngineStream(ResultStream):
    """A running query on the engine: planned again from where it stands if indexes change under it."""

    def __init__(self, engine: Engine, query: Query, options: RunOptions) -> None:
        self._engine = engine
        self._query = query
        self._options = options
        self._normal, self._plans = engine.plan(query)
        self._planned_with = engine.catalog.version
        self._retired = engine.retired
        self._to_check = engine.require_indexes
        self._bounds = engine.bounds(query, self._normal)
        self._reader = Reader(engine.reading(options.read_policy), track=options.track)
        self._missing: NeedIndexError | None = None
        self._done = not self._plans
        self._metadata = query.kind in METADATA_KINDS
        self._run = self._start()

    def _start(self) -> QueryRun:
        engine = self._engine
        query = self._query
        if not self._metadata and any(not plan.ordered.exact for plan in self._plans):
            self._missing = engine.tell_missing_index(query)
        return QueryRun(
            self._normal,
            self._plans,
            self._reader,
            engine.serializer,
            self._bounds,
            sort_budget=engine.sort_budget,
            page_size=self._options.page_size,
            needed=lambda: engine.needed(query),
        )

    async def next_page(self) -> Page:
        """Read until the page is full. One that fails, or is cancelled, is read again by the next call."""
        if self._metadata:
            return await self._metadata_page()
        engine = self._engine
        before = replace(self._bounds)
        while True:
            await engine.refresh()
            if self._to_check:
                missing = engine.missing_index(self._query)
                if missing is not None:
                    raise missing
                self._to_check = False
            if engine.catalog.version != self._planned_with or engine.retired != self._retired:
                self._plan_again()
            if self._done:
                return Page([], self._bounds.start or None, False, self._reader.version or 0, self._positions([]))
            run = self._run
            try:
                items, skipped = await run.next_items()
                await engine.refresh()
            except BaseException:
                self._rewind(before)
                raise
            if engine.retired == self._retired:
                break
            # It took so long that rows of an index that it used may have been removed under it.
            self._rewind(before)
        self._done = run.finished
        positions = [item[0] for item in items] if self._options.positions else []
        return self._page(run.results(items), positions, skipped)

    def _plan_again(self) -> None:
        engine = self._engine
        self._normal, self._plans = engine.plan(self._query)
        self._planned_with = engine.catalog.version
        self._retired = engine.retired
        self._run = self._start()

    def _rewind(self, bounds: Bounds) -> None:
        """Forget what was read since the bounds were these."""
        self._bounds = replace(bounds)
        self._reader.forget()
        self._planned_with = -1

    def _positions(self, positions: list[bytes]) -> list[bytes] | None:
        return positions if self._options.positions else None

    def _page(self, results: list[Any], positions: list[bytes], skipped: int) -> Page:
        reader = self._reader
        version, newest = reader.take_versions()
        page = Page(
            results,
            self._bounds.start or None,
            not self._done,
            version,
            self._positions(positions),
            skipped,
            newest=newest,
        )
        if reader.track:
            page.checks = {decode_key(key): version for key, version in reader.checks.items()}
            page.spans = reader.spans
            reader.checks, reader.spans = {}, []
        return page

    async def _metadata_page(self) -> Page:
        if self._done:
            return self._page([], [], 0)
        self._done = True
        bounds = self._bounds
        step = self._run.root.add("metadata", self._query.kind or "")
        found = await metadata_entities(self._reader, step, self._query)
        hits = sorted((match for entity in found for match in self._normal.matches(entity)), key=lambda match: match[0])
        hits = [
            match
            for match in hits
            if (match[0] > bounds.start or (bounds.inclusive and match[0] == bounds.start))
            and (bounds.end is None or bounds.before_end(match[0]))
        ]
        skipped = min(bounds.skip, len(hits))
        stop = None if bounds.limit is None else skipped + bounds.limit
        reached = hits[:stop]
        if reached:
            bounds.move(reached[-1][0])
        kept = reached[skipped:]
        return self._page([result for _, result in kept], [position for position, _ in kept], skipped)

    def explain(self) -> Explanation:
        """The plan and what it read."""
        root: Step = self._run.root
        return Explanation(root, self._missing.definition if self._missing else None)
