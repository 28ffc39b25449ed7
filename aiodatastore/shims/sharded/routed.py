"""What collections have in common that keep each entity in one of several adapters.

A subclass says where a key's entity lives (:meth:`Routed.place`) and where a query's results may be
(:meth:`Routed.places`); reading, merging, committing and administration are here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import anyio

from aiodatastore.adapters.base import (
    MIXED,
    Adapter,
    AggregateResult,
    Aggregation,
    Commit,
    Lookup,
    Moment,
    Outcome,
    Put,
    ReadPolicy,
    ResultStream,
    RunOptions,
    written_key,
)
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadRequestError,
    CrossShardError,
    DatastoreError,
    DeadlineExceededError,
    UnavailableError,
)
from aiodatastore.indexing.aggregates import RunningSum
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo, IndexState
from aiodatastore.indexing.direct import GivesCounts
from aiodatastore.indexing.merging import Sums
from aiodatastore.indexing.metadata import METADATA_KINDS
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Capability
from aiodatastore.shims.sharded.grouping import Member, outcome_of, rounds, together
from aiodatastore.shims.sharded.parts import Part
from aiodatastore.shims.sharded.streams import Source, counted_below, merged_stream
from aiodatastore.shims.sharded.together import all_of, outcomes_of
from aiodatastore.shims.sharded.twophase import ORPHAN_S, SYSTEM_PROJECT, Coordinator, can_prepare
from aiodatastore.waiting import own_error

__all__ = ["SYSTEM_PROJECT", "Routed", "failed", "stores_of"]

_DEFAULT = RunOptions()
_COUNT = Aggregation("count")

_LEAST = (IndexState.ERROR, IndexState.DELETING, IndexState.BUILDING, IndexState.SERVING)
"""The states of an index, the least advanced first."""


class Routed(Adapter):
    """Adapters, under names, of which each entity has one.

    :raises BadArgumentError: if there is none, one appears twice, or they don't fit together
    """

    def __init__(self, children: Sequence[Adapter], names: Sequence[str]) -> None:
        _check_children(children, names)
        self._given = tuple(children)
        self.adapters = list(children)
        """What is spoken to."""
        self.names = tuple(names)
        """The adapters' names, in their order."""
        self._numbers: dict[Hashable, int] = {name: number for number, name in enumerate(self.names)}
        self._clocks = [object() for _ in children]
        self._coordinator = Coordinator(self)
        self._watches = False
        self._inline = False
        self._refuses = type(self).refusal is not Routed.refusal

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    # ------------------------------------------------------------------------------ what differs

    @abstractmethod
    def place(self, key: Key) -> int:
        """The number of the adapter that a key's entity is in."""

    @abstractmethod
    def places(self, query: Query) -> Sequence[int]:
        """The numbers of the adapters where results of a query may be (a plain one, no union), ascending."""

    def sequence_place(self, key: Key) -> int:
        """The number of the adapter that has the ids of keys like this one."""
        return self.place(key)

    def refusal(self, key: Key) -> DatastoreError | None:
        """Why an entity can't be put under a key; None: it can."""
        return None

    def owner(self, number: int) -> Callable[[Key], bool] | None:
        """Which keys count that an adapter has; None: all."""
        return None

    def tag(self, number: int) -> Hashable:
        """What marks spans of an adapter."""
        return self.names[number]

    def tagged(self, tag: Hashable) -> int | None:
        """The number of the adapter that a tag stands for; None: none any more, so whether it holds can't be told."""
        return self._numbers.get(tag)

    def fenced(self, number: int, commit: Commit) -> Commit:
        """A commit as the adapter gets it."""
        return commit

    # ---------------------------------------------------------------------------------- what it is

    @property
    def children(self) -> Sequence[Adapter]:
        """The adapters, in order."""
        return self._given

    @property
    def settings(self) -> Mapping[str, object]:
        """The names."""
        return {"names": self.names}

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What all of them promise; transactions over several where all of them can prepare commits."""
        shared = frozenset.intersection(*(child.capabilities for child in self.adapters))
        if len(self.adapters) > 1:
            shared -= {Capability.ONE_CLOCK}
            if Capability.TWO_PHASE not in shared:
                shared -= {Capability.GLOBAL_TRANSACTIONS}
        return shared - {Capability.TWO_PHASE}

    @property
    def url(self) -> str:
        """Those of the adapters."""
        return f"{type(self).__name__.lower()}:{{{' | '.join(child.url for child in self.children)}}}"

    async def open(self) -> None:
        """Open all of them; if one can't be, none is."""
        async with AsyncExitStack() as stack:
            for child in self.adapters:
                await child.open()
                stack.push_async_callback(_close, child)
            await self._opened()
            self._inline = Capability.INLINE_READS in self.capabilities
            self._watches = can_prepare(self.adapters) and len(self.adapters) > 1
            if self._watches:
                await self.sweep()
            stack.pop_all()

    async def _opened(self) -> None:
        """What else is to be done when all are open."""

    async def sweep(self, older_than_s: float = ORPHAN_S) -> int:
        """Settle commits over several stores that a process left behind as it ended; how many they were.

        Those that were prepared at least ``older_than_s`` seconds ago are looked for: commits under way are younger (a
        slow one that is settled so fails, and writes nothing). Done when opening, and when a commit has to wait.
        """
        return await self._coordinator.sweep(older_than_s)

    async def aclose(self) -> None:
        """Close all of them."""
        if self._watches:
            self._watches = False
            await self._coordinator.aclose()
        for answer in await outcomes_of([child.aclose for child in self.adapters]):
            if isinstance(answer, Exception):
                raise answer

    # --------------------------------------------------------------------------------------- reads

    def _by_place(self, keys: Sequence[Key]) -> dict[int, list[int]]:
        """The indexes of the keys of each adapter."""
        place = self.place
        found: dict[int, list[int]] = {}
        for index, key in enumerate(keys):
            number = place(key)
            if number in found:
                found[number].append(index)
            else:
                found[number] = [index]
        return found

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """At once, where all the adapters that have them can."""
        if len(keys) == 1:
            return self.adapters[self.place(keys[0])].lookup_now(keys)
        entities: list[Entity | None] = [None] * len(keys)
        for number, indexes in self._by_place(keys).items():
            found = self.adapters[number].lookup_now([keys[index] for index in indexes])
            if found is None:
                return None
            for index, entity in zip(indexes, found, strict=True):
                entities[index] = entity
        return entities

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """From each adapter at one moment, from all of them side by side."""
        groups = self._by_place(keys)
        if len(groups) < 2:
            number = next(iter(groups), 0)
            return self._clocked(number, await self.adapters[number].lookup(keys, read_policy=read_policy))
        calls = [
            partial(self.adapters[number].lookup, [keys[index] for index in indexes], read_policy=read_policy)
            for number, indexes in groups.items()
        ]
        entities: list[Entity | None] = [None] * len(keys)
        moments: list[Moment] = [Moment(MIXED, 0)] * len(keys)
        for (number, indexes), answer in zip(groups.items(), await all_of(calls, inline=self._inline), strict=True):
            found = self._clocked(number, answer)
            for at, index in enumerate(indexes):
                entities[index] = found.entities[at]
                moments[index] = Moment(found.clock, found.version) if found.moments is None else found.moments[at]
        return Lookup(entities, 0, MIXED, moments)

    async def lifetimes(self, keys: Sequence[Key]) -> Sequence[float | None]:
        """From each adapter."""
        groups = self._by_place(keys)
        calls = [
            partial(self.adapters[number].lifetimes, [keys[index] for index in indexes])
            for number, indexes in groups.items()
        ]
        found: list[float | None] = [None] * len(keys)
        for indexes, answer in zip(groups.values(), await all_of(calls), strict=True):
            for index, seconds in zip(indexes, answer, strict=True):
                found[index] = seconds
        return found

    def _clocked(self, number: int, found: Lookup) -> Lookup:
        """An adapter's answer, which counts on a clock of the adapter's own."""
        if found.clock is None:
            clock = found.clock = self._clocks[number]
            if found.moments is not None:
                found.moments = [
                    moment if moment.clock is not None else Moment(clock, moment.version) for moment in found.moments
                ]
        return found

    def _sources(self, numbers: Sequence[int]) -> list[Source]:
        return [
            Source(
                self.names[number], self.adapters[number], self._clocks[number], self.tag(number), self.owner(number)
            )
            for number in numbers
        ]

    def _places_of(self, query: Query) -> Sequence[int]:
        if query.kind in METADATA_KINDS:
            query = Query(namespace=query.namespace, project=query.project_id)
        found = {number for part in query.subqueries or (query,) for number in self.places(part)}
        return sorted(found) or (0,)

    def run(self, query: Query, options: RunOptions = _DEFAULT) -> ResultStream:
        """On the adapter that has the results, or on several, merged in order."""
        return merged_stream(self._sources(self._places_of(query)), query, options)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = _DEFAULT
    ) -> AggregateResult:
        """In each adapter, and put together: exact, as if there were one."""
        if self._inline and not options.track and not any([each != _COUNT for each in aggregations]):
            counted = self._count_now(query, options.read_policy)
            if counted is not None:
                counted.values *= len(aggregations)
                return counted
        sources = self._sources(self._places_of(query))
        plain = all(source.owns is None for source in sources) and query.kind not in METADATA_KINDS
        if len(sources) == 1 and plain:
            found = await sources[0].adapter.aggregate(query, aggregations, options)
            found.clock = sources[0].clock if found.clock is None else found.clock
            found.spans = sources[0].owned(found.spans)
            return found
        for function, name in aggregations:
            if function not in ("count", "sum", "avg", "total") or bool(name) == (function == "count"):
                raise BadArgumentError(f"an aggregation is count, or sum or avg of a property, got {function!r:.80}")
        counts = all(function == "count" for function, _ in aggregations)
        limited = query.max_results is not None or query.skip
        if plain and not query.distinct_names and (counts or not limited):
            return await self._aggregate_each(sources, query, aggregations, options, counts=counts)
        return await self._aggregate_merged(sources, query, aggregations, options)

    def _count_now(self, query: Query, read_policy: ReadPolicy) -> AggregateResult | None:
        """One count of what several adapters have, where all of them can tell at once."""
        if query.max_results is not None or query.skip or query.start_cursor or query.end_cursor or query.projection:
            return None
        if query.kind in METADATA_KINDS:
            return None
        numbers = self._places_of(query)
        if len(numbers) == 1:
            return None
        below = counted_below(query, None)
        total = 0
        for number in numbers:
            adapter = self.adapters[number]
            if not isinstance(adapter, GivesCounts) or self.owner(number) is not None:
                return None
            counted = adapter.count_now(below, read_policy)
            if counted is None:
                return None
            total += counted
        return AggregateResult([total], 0, clock=MIXED, scans=len(numbers))

    async def _aggregate_each(
        self,
        sources: Sequence[Source],
        query: Query,
        aggregations: Sequence[Aggregation],
        options: RunOptions,
        *,
        counts: bool,
    ) -> AggregateResult:
        wanted = None if query.max_results is None else query.max_results + query.skip
        below = counted_below(query, wanted) if counts else query.offset(0).limit(wanted)
        partly = [Aggregation("count" if function == "count" else "total", name) for function, name in aggregations]
        calls = [partial(source.adapter.aggregate, below, partly, options) for source in sources]
        answers = await all_of(calls, inline=self._inline)
        result = AggregateResult([], 0, clock=MIXED)
        for source, answer in zip(sources, answers, strict=True):
            result.checks.update(answer.checks)
            result.spans += source.owned(answer.spans)
            result.rows += answer.rows
            result.scans += answer.scans
        for place, (function, _) in enumerate(aggregations):
            parts: list[Any] = [answer.values[place] for answer in answers]
            if function == "count":
                counted = max(0, sum(parts) - query.skip)
                result.values.append(counted if query.max_results is None else min(counted, query.max_results))
                continue
            total = RunningSum()
            for part in parts:
                total.include(part)
            result.values.append(total.value(function))
        return result

    async def _aggregate_merged(
        self, sources: Sequence[Source], query: Query, aggregations: Sequence[Aggregation], options: RunOptions
    ) -> AggregateResult:
        sums = Sums(aggregations)
        stream = merged_stream(sources, Sums.of(query, aggregations), options)
        result = AggregateResult([], 0, clock=MIXED)
        more = True
        while more:
            page = await stream.next_page()
            more = page.more
            sums.add(page.results)
            result.checks.update(page.checks)
            result.spans += page.spans
        result.values = sums.values
        return result

    # ------------------------------------------------------------------------------------- commits

    def _parts(self, commit: Commit) -> dict[int, Part] | None:
        """What of a commit concerns each adapter; None if it has spans that stand for nothing any more."""
        parts: dict[int, Part] = {}
        place = self.place
        for key, version in commit.checks.items():
            parts.setdefault(place(key), Part()).checks[key] = version
        for span in commit.spans:
            number = self.tagged(span.owner[0])
            if number is None:
                return None
            parts.setdefault(number, Part()).spans.append(replace(span, owner=span.owner[1:]))
        for write in commit.writes:
            key = written_key(write)
            parts.setdefault(place(key), Part()).writes.append(write)
        return parts

    def _only_place(self, commit: Commit) -> int | None:
        """The one adapter that a commit without spans concerns, where it can be handed on as it is."""
        if commit.spans:
            return None
        only = -1
        for key in commit.checks:
            number = self.place(key)
            if only not in (-1, number):
                return None
            only = number
        for write in commit.writes:
            number = self.place(written_key(write))
            if only not in (-1, number):
                return None
            only = number
        return None if only < 0 else only

    @property
    def has_lanes(self) -> bool:
        """Whether there are several adapters."""
        return len(self.adapters) > 1

    def lane(self, keys: Sequence[Key]) -> int | None:
        """The one adapter that has all of them."""
        place = self.place
        numbers = {place(key) for key in keys}
        return numbers.pop() if len(numbers) == 1 else None

    def encode(self, commit: Commit) -> None:
        """Let the adapter encode that the commit goes to, if that is one."""
        number = self._only_place(commit)
        if number is not None:
            fenced = self.fenced(number, commit)
            self.adapters[number].encode(fenced)
            if fenced is not commit:
                commit.encoded = fenced

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Each adapter gets its commits at once; then go those that concern several adapters, together where they can.

        A commit over several adapters has the error ``CrossShardError`` where one of them can't prepare it. One that
        only verifies is verified in each; one that is not ``atomic`` is split.
        """
        outcomes: list[Outcome | None] = [None] * len(batch)
        own: dict[int, list[tuple[int, Commit]]] = {}
        several: list[Member] = []
        for index, commit in enumerate(batch):
            if self._refuses and (error := self._refusal_of(commit)) is not None:
                outcomes[index] = Outcome(None, error=error)
                continue
            number = self._only_place(commit)
            if number is not None:
                own.setdefault(number, []).append((index, commit))
                continue
            parts = self._parts(commit)
            if parts is None:
                outcomes[index] = Outcome(None, stale_spans=1)
            elif len(parts) > 1:
                several.append(Member(index, commit, parts))
            elif parts:
                ((number, part),) = parts.items()
                own.setdefault(number, []).append((index, part.commit(commit)))
            else:
                outcomes[index] = Outcome(0, clock=MIXED)
        answers = await outcomes_of(
            [partial(self._commit_on, number, [commit for _, commit in commits]) for number, commits in own.items()]
        )
        for (_, commits), answer in zip(own.items(), answers, strict=True):
            for place, (index, _) in enumerate(commits):
                outcomes[index] = _outcome(answer, place)
        for groups in rounds(several):
            calls = [partial(self._commit_group, group) for group in groups]
            for group, found in zip(groups, await all_of(calls), strict=True):
                for member, outcome in zip(group, found, strict=True):
                    outcomes[member.place] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _refusal_of(self, commit: Commit) -> DatastoreError | None:
        for write in commit.writes:
            if isinstance(write, Put) and (error := self.refusal(write.entity.key)) is not None:
                return error
        return None

    async def _commit_on(self, number: int, commits: Sequence[Commit]) -> list[Outcome]:
        fenced = [self.fenced(number, commit) for commit in commits]
        if self._watches:
            with self._coordinator.watch():
                found = await self.adapters[number].commit(fenced)
        else:
            found = await self.adapters[number].commit(fenced)
        for outcome in found:
            if outcome.clock is None:
                outcome.clock = self._clocks[number]
        return found

    async def _commit_group(self, group: Sequence[Member]) -> list[Outcome]:
        """The outcomes of commits that concern the same adapters, and have nothing to do with each other."""
        outcomes: dict[int, Outcome] = {}
        left = list(group)
        while len(left) > 1:
            whole = await self._commit_several(*together(left))
            before = len(outcomes)
            for member in left:
                if whole.version is not None:
                    outcomes[member.place] = outcome_of(member, whole)
                elif isinstance(whole.error, UnavailableError | DeadlineExceededError):
                    outcomes[member.place] = failed(whole.error)
                elif own := member.own_of(whole.conflicts):
                    outcomes[member.place] = Outcome(None, own, clock=MIXED)
            if len(outcomes) == before:
                break  # whose data is at fault is not told: each by itself
            left = [member for member in left if member.place not in outcomes]
        for member in left:
            outcomes[member.place] = await self._commit_several(member.commit, member.parts)
        return [outcomes[member.place] for member in group]

    async def _commit_several(self, commit: Commit, parts: Mapping[int, Part]) -> Outcome:
        try:
            if not commit.atomic:
                return await self._commit_split(commit, parts)
            if not commit.writes:
                return await self._verify(commit, parts)
            return await self._commit_together(commit, parts)
        except DatastoreError as exc:
            return Outcome(None, error=exc)

    async def _commit_split(self, commit: Commit, parts: Mapping[int, Part]) -> Outcome:
        """Each part by itself. What was written stands, whatever becomes of the others."""
        answers = await outcomes_of(
            [partial(self._commit_on, number, [part.commit(commit)]) for number, part in parts.items()]
        )
        return self.joined(parts, [_outcome(answer, 0) for answer in answers])

    async def _verify(self, commit: Commit, parts: Mapping[int, Part]) -> Outcome:
        """Whether all of what was read before still holds: then all of it held when the last of it was read."""
        return await self._commit_split(replace(commit, after_prepared=True), parts)

    async def _commit_together(self, commit: Commit, parts: Mapping[int, Part]) -> Outcome:
        """All parts or none."""
        if can_prepare([self.adapters[number] for number in parts]):
            return await self._coordinator.commit(commit, parts)
        named = ", ".join(self.names[number] for number in sorted(parts))
        raise CrossShardError(
            f"this commit concerns {len(parts)} stores ({named}), which can't commit together: nothing was written; "
            "keep what is changed together in one entity group, or use stores that can prepare commits"
        )

    def joined(self, parts: Mapping[int, Part], outcomes: Sequence[Outcome]) -> Outcome:
        """One outcome of all parts'."""
        conflicts: dict[Key, int] = {}
        versions: dict[Key, int] = {}
        written = [0]
        error: DatastoreError | None = None
        failed = False
        stale = 0
        for part, outcome in zip(parts.values(), outcomes, strict=True):
            conflicts.update(outcome.conflicts)
            stale += outcome.stale_spans
            if error is None or (_is_uncertain(outcome.error) and not _is_uncertain(error)):
                error = outcome.error
            failed = failed or outcome.version is None
            if outcome.version is None:
                continue
            for write in part.writes:
                key = written_key(write)
                versions[key] = outcome.version_of(key)
                written.append(versions[key])
        if error is not None and versions:
            total = sum(len(part.writes) for part in parts.values())
            error.add_note(f"{len(versions)} of the {total} of this call were written, in other stores")
            if isinstance(error, UnavailableError):
                error.nothing_written = False  # that was said of one store
        version = None if failed else max(written)
        return Outcome(version, conflicts, stale, error, MIXED, versions)

    # ----------------------------------------------------------------------------------------- ids

    async def allocate_ids(self, key: Key, size: int) -> tuple[int, int]:
        """From the one adapter that has the sequence of the key's partition and kind."""
        return await self.adapters[self.sequence_place(key)].allocate_ids(key, size)

    async def reserve_ids(self, key: Key, up_to: int) -> tuple[int, int]:
        """In the one adapter that has the sequence of the key's partition and kind."""
        return await self.adapters[self.sequence_place(key)].reserve_ids(key, up_to)

    # ------------------------------------------------------------------------------ administration

    def index_places(self, definition: IndexDefinition) -> Sequence[int]:
        """The adapters that need an index."""
        return range(len(self.adapters))

    async def indexes(self) -> list[IndexInfo]:
        """Those of all adapters, each in its least advanced state; one that is missing somewhere is BUILDING."""
        found: dict[IndexDefinition, list[IndexInfo]] = {}
        for infos in await all_of([child.indexes for child in self.adapters]):
            for info in infos:
                found.setdefault(info.definition, []).append(info)
        merged = []
        for definition, infos in found.items():
            least = min(infos, key=lambda info: _LEAST.index(info.state))
            state = least.state
            if len(infos) < len(self.index_places(definition)) and state is IndexState.SERVING:
                state = IndexState.BUILDING
            merged.append((definition, state, least.message, sum(info.seen for info in infos)))
        return [
            IndexInfo(number, definition, state, message, seen)
            for number, (definition, state, message, seen) in enumerate(merged, 1)
        ]

    async def _info(self, definition: IndexDefinition) -> IndexInfo:
        for info in await self.indexes():
            if info.definition == definition:
                return info
        raise BadRequestError(f"there is no index {definition}")

    async def create_index(self, definition: IndexDefinition) -> IndexInfo:
        """In every adapter that needs it."""
        for number in self.index_places(definition):
            await self.adapters[number].create_index(definition)
        return await self._info(definition)

    async def build_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None
    ) -> IndexInfo:
        """In every adapter that needs it, side by side."""
        report = _added_up(progress)
        await all_of(
            [
                partial(self.adapters[number].build_index, definition, progress=partial(report, number))
                for number in self.index_places(definition)
            ]
        )
        return await self._info(definition)

    async def delete_index(
        self,
        definition: IndexDefinition,
        *,
        progress: Callable[[int], None] | None = None,
        finish: bool = True,
    ) -> None:
        """In every adapter that has it."""
        having = [
            number
            for number, infos in enumerate(await all_of([child.indexes for child in self.adapters]))
            if any(info.definition == definition for info in infos)
        ]
        if not having:
            raise BadRequestError(f"there is no index {definition}")
        report = _added_up(progress)
        await all_of(
            [
                partial(self.adapters[number].delete_index, definition, progress=partial(report, number), finish=finish)
                for number in having
            ]
        )

    async def check(self) -> list[str]:
        """Of every adapter; and entities that are in another one than they belong in."""
        lines = []
        for name, found in zip(self.names, await all_of([child.check for child in self.adapters]), strict=True):
            lines += [f"{name}: {line}" for line in found]
        return lines

    async def stats(self) -> dict[str, Any]:
        """Added up; ``version`` is the sum of the adapters' (it grows with each commit), and so are ``sizes``."""
        kinds: dict[tuple[str, str, str], list[int]] = {}
        version = 0
        sizes: dict[str, int] = {}
        for found in await all_of([child.stats for child in self.adapters]):
            version += found["version"]
            for name, size in found.get("sizes", {}).items():
                sizes[name] = sizes.get(name, 0) + size
            for row in found["kinds"]:
                if row["project"] == SYSTEM_PROJECT:
                    continue
                counts = kinds.setdefault((row["project"], row["namespace"], row["kind"]), [0, 0, 0])
                for place, name in enumerate(("entities", "bytes", "index_rows")):
                    counts[place] += row[name]
        rows = [
            {
                "project": project,
                "namespace": namespace,
                "kind": kind,
                "entities": counts[0],
                "bytes": counts[1],
                "index_rows": counts[2],
            }
            for (project, namespace, kind), counts in sorted(kinds.items())
        ]
        return {"kinds": rows, "version": version, "sizes": sizes}

    async def partitions(self) -> list[tuple[str, str]]:
        """Those of all adapters."""
        found = await all_of([child.partitions for child in self.adapters])
        return sorted({pair for pairs in found for pair in pairs if pair[0] != SYSTEM_PROJECT})


def _added_up(progress: Callable[[int], None] | None) -> Callable[[int, int], None]:
    """What each adapter's progress is told to, with its number: hands on the sum of all."""
    counts: dict[int, int] = {}

    def report(number: int, count: int) -> None:
        counts[number] = count
        if progress is not None:
            progress(sum(counts.values()))

    return report


async def _close(child: Adapter) -> None:
    with anyio.CancelScope(shield=True):
        await child.aclose()


def _outcome(answer: list[Outcome] | Exception, place: int) -> Outcome:
    """One outcome of an adapter's answer. Where the adapter failed, its commits did, and not their neighbours."""
    if not isinstance(answer, Exception):
        return answer[place]
    if not isinstance(answer, DatastoreError):
        raise answer
    return failed(answer)


def failed(error: DatastoreError) -> Outcome:
    """The outcome of one of several commits that met an error."""
    copied = own_error(error)
    return Outcome(None, error=copied if isinstance(copied, DatastoreError) else error)


def _is_uncertain(error: DatastoreError | None) -> bool:
    """Whether the commit that met it may have taken effect."""
    if isinstance(error, UnavailableError):
        return not error.nothing_written
    return isinstance(error, DeadlineExceededError)


def stores_of(adapter: Adapter) -> list[Adapter]:
    """The adapters at the bottom of an adapter."""
    below = adapter.children
    return [store for child in below for store in stores_of(child)] if below else [adapter]


def _check_children(children: Sequence[Adapter], names: Sequence[str]) -> None:
    if not children:
        raise BadArgumentError("a collection of stores needs at least one")
    for child in children:
        if not isinstance(child, Adapter):
            raise BadArgumentError(f"expected adapters, got {type(child).__name__}")
    if len(names) != len(children) or len(set(names)) != len(names):
        raise BadArgumentError(f"expected a name of its own for each of {len(children)} stores, got {names!r:.200}")
    stores = [store for child in children for store in stores_of(child)]
    if len({id(store) for store in stores}) < len(stores):
        raise BadArgumentError("one store was given twice: its entities would be found twice")
    urls = [store.url for store in stores if store.url != "memory://"]
    for url in urls:
        if urls.count(url) > 1:
            raise BadArgumentError(f"{url} was given twice: its entities would be found twice")
    if len(children) == 1:
        return
    for child, name in zip(children, names, strict=True):
        for needed, why in (
            (Capability.KEY_ORDER, "results come in another order than their keys', so they can't be merged"),
            (Capability.EXACT_KEYS, "keys don't come back as they were written, so it is not known where they live"),
            (Capability.QUERIES, "some queries are not answered, and what is missing would not show"),
        ):
            if needed not in child.capabilities:
                raise BadArgumentError(f"{name} ({child.url}) can't be one of several stores: {why}")
