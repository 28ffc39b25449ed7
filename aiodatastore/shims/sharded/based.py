"""A shard whose versions are greater by a constant than those it counts itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiodatastore.adapters.base import (
    Adapter,
    AggregateResult,
    Aggregation,
    Commit,
    Lookup,
    Moment,
    Outcome,
    Page,
    ReadPolicy,
    ResultStream,
    RunOptions,
)
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.shims.base import DEFAULT, PassingStream, Shim

__all__ = ["Based"]


class Based(Shim):
    """Adds ``base`` to every version that comes up, and takes it from those that go down.

    Entities that move here from shards that have counted further so get greater versions than they had.
    """

    def __init__(self, child: Adapter, base: int) -> None:
        super().__init__(child)
        self.base = base

    def _up(self, entities: Sequence[Any]) -> None:
        for entity in entities:
            if isinstance(entity, Entity) and entity.version:
                entity.version += self.base

    def _ups(self, versions: Mapping[Key, int]) -> dict[Key, int]:
        return {key: version + self.base if version > 0 else version for key, version in versions.items()}

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """The child's."""
        found = self.child.lookup_now(keys)
        if found is not None:
            self._up(found)
        return found

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """The child's."""
        found = await self.child.lookup(keys, read_policy=read_policy)
        self._up(found.entities)
        moments = found.moments
        if moments is not None:
            moments = [Moment(moment.clock, moment.version + self.base) for moment in moments]
        return Lookup(found.entities, found.version + self.base, found.clock, moments)

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """The child's."""
        return PassingStream(self.child.run(query, options), self._page_up)

    def _page_up(self, page: Page) -> None:
        self._up(page.results)
        page.version += self.base
        if page.newest:
            page.newest += self.base
        page.checks = self._ups(page.checks)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = DEFAULT
    ) -> AggregateResult:
        """The child's."""
        found = await self.child.aggregate(query, aggregations, options)
        return replace(
            found,
            version=found.version + self.base,
            newest=found.newest and found.newest + self.base,
            checks=self._ups(found.checks),
        )

    def _down(self, commit: Commit) -> Commit:
        base = self.base
        # What was never greater than the base is of the time before the entity moved: it is no version of the child's.
        checks = {
            key: version if version <= 0 else version - base if version > base else _NEVER
            for key, version in commit.checks.items()
        }
        return replace(commit, checks=checks, encoded=None)

    def _outcome(self, outcome: Outcome) -> Outcome:
        version = None if outcome.version is None else outcome.version + self.base
        versions = None if outcome.versions is None else self._ups(outcome.versions)
        return replace(outcome, version=version, conflicts=self._ups(outcome.conflicts), versions=versions)

    def encode(self, commit: Commit) -> None:
        """When it is sent."""

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """The child's."""
        return [self._outcome(each) for each in await self.child.commit([self._down(commit) for commit in batch])]

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """The child's."""
        return self._outcome(await self.child.prepare(self._down(commit), name))

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        """The child's."""
        found = await self.child.resolve(name, commit=commit)
        return None if found is None else self._outcome(found)


_NEVER = (1 << 63) - 1
