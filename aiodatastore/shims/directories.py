"""What is directly below a key, known without a query."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final

from aiodatastore.adapters.base import (
    Adapter,
    AggregateResult,
    Aggregation,
    Commit,
    Delete,
    Outcome,
    Page,
    Put,
    ReadPolicy,
    ResultStream,
    RunOptions,
    written_key,
)
from aiodatastore.adapters.registry import parse_int
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, StoreBusyError, UnsupportedError
from aiodatastore.indexing.merging import CursorBounds, Sums
from aiodatastore.indexing.metadata import METADATA_KINDS
from aiodatastore.indexing.normal import normalize
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import EXISTS, Capability
from aiodatastore.shims.base import DEFAULT, ChildStream, Shim
from aiodatastore.shims.extending import ATTEMPTS, Extended, Send, commit_extended, pause
from aiodatastore.shims.key_transform import MetadataStream

__all__ = ["Directories"]

_KIND: Final = "__directory__"
"""Of the entities that list children; applications can't put one of this kind."""
_CHILDREN: Final = "children"
_MAX_BUCKETS: Final = 1024


class Directories(Shim):
    """Keeps a list of the children of every key: ``await shim.children_of(key)``.

    >>> import asyncio
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     shim = Directories(adapter_from_url("memory://"))
    ...     async with Datastore(shim) as ds:
    ...         await ds.put([Entity(Key("Album", 1, "Photo", n)) for n in (1, 2, 3)])
    ...         await ds.delete(Key("Album", 1, "Photo", 2))
    ...         return await shim.children_of(Key("Album", 1))
    >>> asyncio.run(main())
    [Key('Album', 1, 'Photo', 1), Key('Album', 1, 'Photo', 3)]

    Children are the entities whose key is exactly one element longer; the parent itself need not exist. Root entities
    are nobody's children. The list is part of the commit that puts or deletes a child, so it is always right: for
    concurrent writers, after a crash, and in transactions (where ``children_of`` shows what is committed).

    It is kept in entities of kind ``__directory__`` below the parent, in as many parts as ``buckets`` says (the same
    for as long as the data lives), of up to some 20,000 children each. Queries of all kinds, the metadata kinds and
    ``stats`` leave them out. Entities that were written without this shim are listed after ``await shim.rebuild()``.
    Entities with a ``ttl`` below a parent are refused, for nobody tells when they are gone (``UnsupportedError``).

    **Cost.** Reads by key, and queries of a kind: nothing. ``children_of``: one lookup. A commit that puts or deletes
    what has a parent is preceded by a lookup, one round trip for all of a batch; one that adds or removes a child
    writes one entity more. Commits that add or remove children in the same part conflict, and are sent again: more
    ``buckets``, fewer of these.

    :raises BadArgumentError: if ``buckets`` is not an int from 1 to 1024, or the child has lost ``EXACT_KEYS``
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"buckets": parse_int}

    def __init__(self, child: Adapter, *, buckets: int = 16) -> None:
        if type(buckets) is not int or not 1 <= buckets <= _MAX_BUCKETS:
            raise BadArgumentError(f"buckets: expected an int from 1 to {_MAX_BUCKETS}, got {buckets!r:.80}")
        if Capability.EXACT_KEYS not in child.capabilities:
            raise BadArgumentError(
                f"Directories lists keys as they were written, and {child!r} may take several for one: put that above"
            )
        super().__init__(child)
        self.buckets = buckets

    @property
    def settings(self) -> Mapping[str, object]:
        """The parts of a list."""
        return {"buckets": self.buckets}

    # ------------------------------------------------------------------------------------- children

    async def children_of(self, key: Key) -> list[Key]:
        """The keys of the entities directly below a key, in order: all of one moment.

        :raises BadArgumentError: if it is no complete key
        """
        _check_key(key)
        parts = [_child(key, (_KIND, number + 1)) for number in range(self.buckets)]
        found = await self.child.lookup(parts, read_policy=ReadPolicy.CURRENT)
        return sorted(_child(key, each.pairs[0]) for part in found.entities if part for each in part[_CHILDREN])

    async def rebuild(self, *, progress: Callable[[int], None] | None = None) -> None:
        """List what was written without this shim. Goes on beside other writes; doing it twice changes nothing.

        Reads every key, and writes a hundred entities at a time. ``progress`` is called with the children seen so far.
        """
        seen = 0
        for project, namespace in await self.child.partitions():
            stream = self.run(Query(project=project, namespace=namespace, keys_only=True), DEFAULT)
            more = True
            while more:
                page = await stream.next_page()
                more = page.more
                keys = [key for key in page.results if len(key.pairs) > 1]
                for start in range(0, len(keys), 100):
                    await self._list(keys[start : start + 100])
                seen += len(keys)
                if progress is not None and keys:
                    progress(seen)

    async def _list(self, keys: Sequence[Key]) -> None:
        """List those of some keys that have entities."""
        for attempt in range(ATTEMPTS):
            await pause(attempt)
            known = await self._read(keys)
            there = [key for key in keys if known[key] is not None]
            listing = _Listing(self, known)
            for key in there:
                listing.add(key)
            if not listing.changed:
                return
            checks = {key: entity.version for key in there if (entity := known[key]) is not None}
            commit = Commit({**listing.checks, **checks}, (), listing.puts(), os.urandom(16), atomic=False)
            (outcome,) = await self.child.commit([commit])
            if outcome.error is not None:
                raise outcome.error
            if outcome.committed:
                return
        raise StoreBusyError(_BUSY)

    def part(self, key: Key) -> Key:
        """The key of the entity that lists a child."""
        name = _name(key)
        bucket = zlib.crc32(repr(name.pairs).encode()) % self.buckets
        return Key._make(key.project, key.namespace, (*key.pairs[:-1], (_KIND, bucket + 1)))

    async def _read(self, keys: Sequence[Key]) -> dict[Key, Entity | None]:
        """Entities, and the lists that they are on."""
        wanted = list(dict.fromkeys([*keys, *map(self.part, keys)]))
        found = await self.child.lookup(wanted, read_policy=ReadPolicy.CURRENT)
        return dict(zip(wanted, found.entities, strict=True))

    # --------------------------------------------------------------------------------------- writes

    def encode(self, commit: Commit) -> None:
        """What has no parent is encoded ahead; the rest is known when it is committed."""
        if not _touched(commit):
            self.child.encode(commit)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Hand on to the child, with what the lists become.

        :raises StoreBusyError: if others changed the same lists a thousand times in between
        """
        return await self._send(batch, self.child.commit)

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Prepare in the child, with what the lists become."""

        async def send(commits: Sequence[Commit]) -> list[Outcome]:
            return [await self.child.prepare(each, name) for each in commits]

        (outcome,) = await self._send([commit], send)
        return outcome

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        """In the child."""
        outcome = await self.child.resolve(name, commit=commit)
        return None if outcome is None else _without_lists(outcome)

    async def _send(self, batch: Sequence[Commit], send: Send) -> list[Outcome]:
        return await commit_extended(
            batch, touched=_touched, read=self._read, extend=self._extended, send=send, busy=_BUSY
        )

    def _extended(self, commit: Commit, known: Mapping[Key, Entity | None]) -> Extended | Outcome:
        """A commit with the lists that it changes; or what it conflicts with already."""
        listing = _Listing(self, known)
        conflicts: dict[Key, int] = {}
        checks = dict(commit.checks)
        for write in commit.writes:
            key = written_key(write)
            if len(key._pairs) < 2:
                continue
            if isinstance(write, Put) and write.ttl_s is not None:
                error = UnsupportedError(
                    f"{key!r}: what has a parent can't expire in Directories, which would list it for ever",
                    capability=Capability.TTL,
                )
                return Outcome(None, error=error)
            entity = known[key]
            version = 0 if entity is None else entity.version
            wanted = checks.get(key, version)
            if wanted != version and not (wanted == EXISTS and version):
                conflicts[key] = version
            checks[key] = version  # the lists are right only if it is still there, or still absent
            if isinstance(write, Put):
                listing.add(key)
            else:
                listing.remove(key)
        if conflicts:
            return Outcome(None, conflicts)
        writes = [*commit.writes, *listing.puts()]
        longer = Commit(
            {**checks, **listing.checks}, commit.spans, writes, commit.token, commit.atomic, commit.after_prepared
        )
        return Extended(longer, partial(_settled, commit))

    # --------------------------------------------------------------------------------------- queries

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """The child's results, without the lists."""
        if _may_find_lists(query):
            return _Visible(self.child, query, options)
        if query.kind in METADATA_KINDS:
            return self._run_metadata(query, options)
        return self.child.run(query, options)

    def _run_metadata(self, query: Query, options: RunOptions) -> MetadataStream:
        return MetadataStream(self.child, query, options, (query.project_id, query.namespace), _visible)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = DEFAULT
    ) -> AggregateResult:
        """The child's; of queries of all kinds, by reading them."""
        if query.kind in METADATA_KINDS:
            return await self._run_metadata(query, options).aggregate(aggregations)
        if not _may_find_lists(query):
            return await self.child.aggregate(query, aggregations, options)
        stream = _Visible(self.child, Sums.of(query, aggregations), options)
        sums = Sums(aggregations)
        result = AggregateResult([], 0)
        first = more = True
        while more:
            page = await stream.next_page()
            more = page.more
            sums.add(page.results)
            result.version = page.version if first else result.version
            result.newest = max(result.newest, page.newest)
            result.clock = page.clock
            result.checks.update(page.checks)
            result.spans += page.spans
            first = False
        result.values = sums.values
        return result

    async def stats(self) -> dict[str, Any]:
        """The child's, without the lists."""
        stats = await self.child.stats()
        return {**stats, "kinds": [row for row in stats["kinds"] if row["kind"] != _KIND]}


class _Listing:
    """Changes to lists of children, on top of what was read."""

    def __init__(self, shim: Directories, known: Mapping[Key, Entity | None]) -> None:
        self._shim = shim
        self._known = known
        self._lists: dict[Key, dict[Key, None]] = {}
        self.changed: set[Key] = set()

    def _list(self, part: Key) -> dict[Key, None]:
        found = self._lists.get(part)
        if found is None:
            entity = self._known[part]
            found = self._lists[part] = dict.fromkeys(() if entity is None else entity[_CHILDREN])
        return found

    def add(self, key: Key) -> None:
        """A child that is there, or will be."""
        part = self._shim.part(key)
        if _name(key) not in self._list(part):
            self._list(part)[_name(key)] = None
            self.changed.add(part)

    def remove(self, key: Key) -> None:
        """A child that will be gone."""
        part = self._shim.part(key)
        if _name(key) in self._list(part):
            del self._list(part)[_name(key)]
            self.changed.add(part)

    @property
    def checks(self) -> dict[Key, int]:
        """What the lists that change must be."""
        entities = {part: self._known[part] for part in self.changed}
        return {part: 0 if entity is None else entity.version for part, entity in entities.items()}

    def puts(self) -> list[Put | Delete]:
        """The lists that change; empty ones go."""
        writes: list[Put | Delete] = []
        for part in sorted(self.changed):
            names = list(self._lists[part])
            hidden = frozenset({_CHILDREN})
            writes.append(Put(Entity._make(part, {_CHILDREN: names}, hidden, 0)) if names else Delete(part))
        return writes


class _Visible(ChildStream):
    """A query of all kinds, without the lists: offset and limit are applied here."""

    def __init__(self, child: Adapter, query: Query, options: RunOptions) -> None:
        super().__init__(child.run(query._changed(skip=0, max_results=None), replace(options, positions=True)))
        self._positions = options.positions
        self._skip = query.skip
        self._left = query.max_results
        self._end: bytes | None = None
        if query.start_cursor is not None:
            self._end = CursorBounds(query, normalize(query)).start or None
        self._done = False
        self._version = 0
        self._clock: object = None

    async def next_page(self) -> Page:
        """A page of the child's, or what is left of it."""
        if self._done:
            return Page([], self._end, False, self._version, [] if self._positions else None, clock=self._clock)
        page = await self._child.next_page()
        assert page.positions is not None
        results: list[Any] = []
        positions: list[bytes] = []
        skipped = 0
        for position, result in zip(page.positions, page.results, strict=True):
            if self._left == 0 and not self._skip:
                break
            if (result if type(result) is Key else result.key).kind == _KIND:
                continue
            self._end = position
            if self._skip:
                self._skip -= 1
                skipped += 1
                continue
            if self._left is not None:
                self._left -= 1
            results.append(result)
            positions.append(position)
        self._done = not page.more or (self._left == 0 and not self._skip)
        self._version, self._clock = max(page.version, page.newest), page.clock
        page.results = results
        page.positions = positions if self._positions else None
        page.skipped = skipped
        page.end = self._end
        page.more = not self._done
        return page


_BUSY: Final = "others change the same lists of children all the time; nothing was written"


def _settled(commit: Commit, outcome: Outcome) -> Outcome | None:
    """The outcome by what the caller knows of; None if only a list was in the way, or what it did not ask for."""
    asked = commit.checks
    if outcome.version is None and outcome.error is None and not outcome.stale_spans:
        outcome.conflicts = {
            key: version
            for key, version in outcome.conflicts.items()
            if key in asked and (asked[key] != EXISTS or not version)
        }
        if not outcome.conflicts:
            return None
    return _without_lists(outcome)


def _without_lists(outcome: Outcome) -> Outcome:
    if outcome.versions is not None:
        outcome.versions = {key: version for key, version in outcome.versions.items() if key.kind != _KIND}
    return outcome


def _may_find_lists(query: Query) -> bool:
    return any(part.kind is None for part in query.subqueries or (query,))


def _visible(entity: Entity) -> Entity | None:
    """An entity of a metadata kind, unless it tells of lists."""
    return None if entity.key.pairs[0] == ("__kind__", _KIND) else entity


def _touched(commit: Commit) -> list[Key]:
    """What is written below a parent."""
    return [key for key in map(written_key, commit.writes) if len(key._pairs) > 1]


def _child(key: Key, pair: tuple[str, int | str | None]) -> Key:
    return Key._make(key._project, key._namespace, (*key._pairs, pair))


def _name(key: Key) -> Key:
    """A child as lists have it: the last element alone."""
    return Key._make("", "", key._pairs[-1:])


def _check_key(key: object) -> None:
    if not isinstance(key, Key) or not key.is_complete:
        raise BadArgumentError(f"expected a complete key, got {key!r:.200}")
