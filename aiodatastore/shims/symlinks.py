"""Keys that stand for other keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

from aiodatastore.adapters.base import (
    MIXED,
    Adapter,
    AggregateResult,
    Aggregation,
    Commit,
    Delete,
    Lookup,
    Moment,
    Outcome,
    Page,
    Put,
    ReadPolicy,
    ResultStream,
    RunOptions,
)
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadRequestError,
    EntityExistsError,
    StoreBusyError,
    UnsupportedError,
)
from aiodatastore.key import Key, check_kind
from aiodatastore.query import Query
from aiodatastore.rowstore import EXISTS, Capability
from aiodatastore.shims.base import DEFAULT, ChildStream, Shim
from aiodatastore.shims.extending import ATTEMPTS, Extended, commit_extended, pause

__all__ = ["Symlinks"]

MAX_LINKS: Final = 32
"""How many links may follow one another."""
_TARGET: Final = "__symlink__"
"""The only property of a link; applications can't put one of this name."""


class Symlinks(Shim):
    """Lets a key stand for another one: ``await shim.link(source, target)``.

    >>> import asyncio
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     shim = Symlinks(adapter_from_url("memory://"))
    ...     async with Datastore(shim) as ds:
    ...         await ds.put(Entity(Key("Release", "1.2"), {"n": 12}))
    ...         await shim.link(Key("Release", "latest"), Key("Release", "1.2"))
    ...         return (await ds.get(Key("Release", "latest")))["n"], await ds.query("Release").count()
    >>> asyncio.run(main())
    (12, 2)

    A get of a link gives the entity it leads to, under the key that was asked for; a put writes there; a deletion
    removes the link alone. Links may lead to links, up to 32, and to what does not exist yet: a get finds nothing then,
    and a put makes it. What is below a link is not below its target.

    **Queries** find a link by what it is: an entity of its own kind and key, without any property. So queries of a
    kind, of an ancestor or by ``__key__`` find it and give the entity it leads to (nothing, if there is none, though
    ``count`` counts the link); filters, orders and projections of properties don't.

    **Transactions** hold: a commit verifies the links that its reads and writes went through, and they count as what
    they lead to: whoever read through a link conflicts with a change of the link and with one of the entity.

    Lost is ``EXACT_KEYS``, for two keys may be one entity: use one of them in a transaction, for by another it does not
    see its own write, and a query in a transaction that has written what it might find raises ``UnsupportedError``. So
    is ``TWO_PHASE``.

    **Cost.** Reads that meet no link: nothing. Each link on the way: one more lookup, for all of a call together. A
    commit looks up what it puts, and what it checks, before it is sent: one round trip more; and
    where others write the same keys, it is sent again. ``kinds`` names the kinds that may have links, so that others
    pay nothing; None: all.

    The keys of links are those of this shim's child: what is above it (a namespace, say) may have others.

    :raises BadArgumentError: if ``kinds`` are no names of kinds, the child has several counters of versions (as
        collections of stores have, which can't hold this shim either), or has lost ``EXACT_KEYS``
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "kinds": lambda text: tuple(part for part in text.split(",") if part)
    }

    def __init__(self, child: Adapter, *, kinds: Iterable[str] | None = None) -> None:
        if kinds is not None and not _is_collection(kinds):
            raise BadArgumentError(f"kinds: expected names of kinds, or None for all, got {kinds!r:.80}")
        if Capability.ONE_CLOCK not in child.capabilities:
            raise BadArgumentError(
                f"Symlinks needs a store whose versions tell the order of commits (ONE_CLOCK), which {child!r} does not"
                " promise: links are for single stores, not for several as one"
            )
        if Capability.EXACT_KEYS not in child.capabilities:
            raise BadArgumentError(
                f"{child!r} may store several keys as one, so links could meet: put that above Symlinks"
            )
        super().__init__(child)
        self.kinds = None if kinds is None else frozenset(map(check_kind, kinds))

    @property
    def settings(self) -> Mapping[str, object]:
        """The kinds that may have links."""
        return {} if self.kinds is None else {"kinds": sorted(self.kinds)}

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The child's, but for ``EXACT_KEYS`` and ``TWO_PHASE``."""
        return self.child.capabilities - {Capability.EXACT_KEYS, Capability.TWO_PHASE}

    def _may_link(self, key: Key) -> bool:
        return self.kinds is None or key.kind in self.kinds

    # ---------------------------------------------------------------------------------------- links

    async def link(self, source: Key, target: Key) -> None:
        """Make ``source`` stand for ``target``; a link that is there already leads there from now on.

        Atomic, whatever others do meanwhile.

        :raises BadArgumentError: if one is no complete key, or the kind of ``source`` is none of ``kinds``
        :raises BadRequestError: if ``target`` leads to ``source``, or through 32 links
        :raises EntityExistsError: if ``source`` is an entity
        """
        for what, key in (("source", source), ("target", target)):
            if not _is_complete(key):
                raise BadArgumentError(f"{what}: expected a complete key, got {key!r:.200}")
        if not self._may_link(source):
            raise BadArgumentError(f"{source!r} can't be a link: kinds are {sorted(self.kinds or ())}")
        for attempt in range(ATTEMPTS):
            await pause(attempt)
            seen = await _Seen.read(self.child, [source, target], ReadPolicy.CURRENT)
            there = seen.entities[source]
            if there is not None and _TARGET not in there:
                raise EntityExistsError(f"{source!r} is an entity, and can't become a link", key=source)
            beyond = seen.chain(target).passed
            if source in beyond:
                raise BadRequestError(f"{target!r} leads to {source!r}: a link there would go round in a circle")
            if len(beyond) > MAX_LINKS:
                raise BadRequestError(f"{target!r} leads through {MAX_LINKS} links, which are as many as there may be")
            checks = {**beyond, source: 0 if there is None else there.version}
            link = Entity._make(source, {_TARGET: target}, frozenset({_TARGET}), 0)
            (outcome,) = await self.child.commit([Commit(checks, (), [Put(link)], os.urandom(16))])
            if outcome.error is not None:
                raise outcome.error
            if outcome.committed:
                return
        raise StoreBusyError(f"{source!r} and {target!r} change all the time")

    async def target(self, source: Key) -> Key | None:
        """Where a link leads, one step; None if ``source`` is no link."""
        (entity,) = (await self.child.lookup([source])).entities
        return None if entity is None else entity.get(_TARGET)

    # ---------------------------------------------------------------------------------------- reads

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """The child's, unless a link is among them."""
        entities = self.child.lookup_now(keys)
        if entities is not None:
            for entity in entities:
                if entity is not None and _TARGET in entity:
                    return None
        return entities

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """The child's, links followed; all of one moment."""
        found = await self.child.lookup(keys, read_policy=read_policy)
        if not any(entity is not None and _TARGET in entity for entity in found.entities):
            return found
        seen = await _Seen.read(self.child, keys, read_policy, found)
        chains = [seen.chain(key) for key in keys]
        entities = [chain.entity(key) for key, chain in zip(keys, chains, strict=True)]
        if seen.moments is None:
            return Lookup(entities, seen.version, seen.clock)
        moments = [seen.moment(chain) for chain in chains]
        if None in moments and read_policy is not ReadPolicy.CURRENT:
            return await self.lookup(keys, read_policy=ReadPolicy.CURRENT)  # parts of it were never so together
        known = [moment or Moment(MIXED, 0) for moment in moments]
        clock = MIXED if None in moments else seen.clock
        return Lookup(entities, seen.version, clock, known)

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """The child's results, links replaced by what they lead to."""
        stream = self.child.run(query, options)
        if query.projection or (query.only_keys and not options.track) or not self._may_find_links(query):
            return stream
        return _LinkStream(self, stream, options)

    def _may_find_links(self, query: Query) -> bool:
        parts = query.subqueries or (query,)
        return self.kinds is None or any(part.kind is None or part.kind in self.kinds for part in parts)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = DEFAULT
    ) -> AggregateResult:
        """The child's: a link is one, without anything to add up."""
        found = await self.child.aggregate(query, aggregations, options)
        doubtful = [key for key in found.checks if self._may_link(key)]
        if doubtful:
            seen = await _Seen.read(self.child, doubtful, ReadPolicy.CURRENT)
            seen.correct(found.checks, doubtful)
            found.newest = max(found.newest, found.version, seen.version)
        return found

    # --------------------------------------------------------------------------------------- writes

    def _touched(self, commit: Commit) -> list[Key]:
        """What may be a link, and be followed."""
        keys = [write.entity.key for write in commit.writes if isinstance(write, Put)]
        return [key for key in (*keys, *commit.checks) if self.kinds is None or key.kind in self.kinds]

    def encode(self, commit: Commit) -> None:
        """What meets no link is encoded ahead; the rest is known when it is committed."""
        if not self._touched(commit):
            self.child.encode(commit)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Look up what is a link, and commit on the condition that it still is.

        :raises StoreBusyError: if others changed the same keys a thousand times in between
        """
        return await commit_extended(
            batch,
            touched=self._touched,
            read=lambda keys: _Seen.read(self.child, keys, ReadPolicy.CURRENT),
            extend=_extended,
            send=self.child.commit,
            busy="others change the same keys all the time; nothing was written",
        )

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Not supported.

        :raises UnsupportedError: always
        """
        raise UnsupportedError("what may go through links can't be prepared", capability=Capability.TWO_PHASE)


class _Chain:
    """A key and what it leads to. ``passed``: the version of each key on the way, the end included (0: absent)."""

    __slots__ = ("end", "found", "passed")

    def __init__(self, key: Key, entities: Mapping[Key, Entity | None]) -> None:
        self.passed: dict[Key, int] = {}
        while True:
            entity = entities[key]
            if key in self.passed or len(self.passed) > MAX_LINKS:
                raise BadRequestError(f"the links from {next(iter(self.passed))!r} go round in a circle, or too far")
            self.passed[key] = 0 if entity is None else entity.version
            if entity is None or _TARGET not in entity:
                break
            key = entity[_TARGET]
        self.end = key
        self.found = entity

    @property
    def version(self) -> int:
        """What stands for all of it: it changes whenever a part of it does. 0: it leads to nothing."""
        return 0 if self.found is None else max(self.passed.values())

    def entity(self, key: Key) -> Entity | None:
        """What it leads to, as the entity of this key."""
        if self.found is None:
            return None
        entity = self.found.copy()
        entity.key = key
        entity.version = self.version
        return entity


class _Seen:
    """Entities, and those that links among them lead to: all of one lookup."""

    def __init__(self, keys: list[Key], found: Lookup) -> None:
        self.entities = dict(zip(keys, found.entities, strict=True))
        self.version = found.version
        self.clock = found.clock
        self.moments = None if found.moments is None else dict(zip(keys, found.moments, strict=True))

    @classmethod
    async def read(cls, child: Adapter, keys: Sequence[Key], policy: ReadPolicy, found: Lookup | None = None) -> _Seen:
        """Read again with what links lead to, until nothing is missing. ``found`` was read already."""
        wanted = list(dict.fromkeys(keys))
        if found is not None and len(wanted) < len(keys):
            found = None
        for _ in range(MAX_LINKS + 2):
            seen = cls(wanted, found or await child.lookup(wanted, read_policy=policy))
            found = None
            targets = [entity[_TARGET] for entity in seen.entities.values() if entity is not None and _TARGET in entity]
            missing = [key for key in dict.fromkeys(targets) if key not in seen.entities]
            if not missing:
                return seen
            wanted = [*wanted, *missing]
        raise BadRequestError(f"links from {wanted[0]!r} or its like lead through more than {MAX_LINKS} others")

    def chain(self, key: Key) -> _Chain:
        """What a key leads to."""
        return _Chain(key, self.entities)

    def correct(self, checks: dict[Key, int], keys: Sequence[Key]) -> None:
        """A commit checks a link by all that it leads to, so that is what must have been seen of it."""
        for key in keys:
            entity = self.entities[key]
            if entity is not None and _TARGET in entity and entity.version == checks[key]:
                checks[key] = self.chain(key).version

    def moment(self, chain: _Chain) -> Moment | None:
        """When a chain was so; None, if what caches had of it never was together."""
        assert self.moments is not None
        moments = [self.moments[key] for key in chain.passed]
        last = min(moments, key=lambda moment: moment.version)
        if any(moment.clock is not last.clock for moment in moments) or max(chain.passed.values()) > last.version:
            return None
        return last


class _Followed:
    """A commit as the child gets it: conditions on each key on the way, writes at its end."""

    def __init__(self, commit: Commit, seen: _Seen) -> None:
        self.conflicts: dict[Key, int] = {}
        self._ends: dict[Key, Key] = {}
        checks: dict[Key, int] = {}
        for key, version in commit.checks.items():
            if key not in seen.entities:
                checks[key] = version
                continue
            chain = seen.chain(key)
            if version != chain.version and not (version == EXISTS and chain.version):
                self.conflicts[key] = chain.version
            checks.update(chain.passed)
        writes: dict[Key, Put | Delete] = {}
        for write in commit.writes:
            if isinstance(write, Delete):
                writes[write.key] = write
                continue
            entity = write.entity
            if entity.key not in seen.entities:
                writes[entity.key] = write
                continue
            chain = seen.chain(entity.key)
            checks.update(chain.passed)
            if chain.end != entity.key:
                self._ends[entity.key] = chain.end
                write = Put(Entity._make(chain.end, entity, entity._unindexed, entity.version), write.ttl_s)  # noqa: PLW2901
            writes[chain.end] = write
        self.commit = Commit(
            checks, commit.spans, list(writes.values()), commit.token, commit.atomic, commit.after_prepared
        )

    def outer(self, outcome: Outcome) -> Outcome:
        """The outcome by the keys that the commit named."""
        if outcome.versions is not None and self._ends:
            versions = dict(outcome.versions)
            versions.update({key: versions[end] for key, end in self._ends.items() if end in versions})
            outcome.versions = versions
        return outcome


class _LinkStream(ChildStream):
    """A running query whose results may be links."""

    def __init__(self, shim: Symlinks, child: ResultStream, options: RunOptions) -> None:
        super().__init__(child)
        self._shim = shim
        self._track = options.track
        self._policy = ReadPolicy.CURRENT if options.track else options.read_policy
        self._page: Page | None = None

    async def next_page(self) -> Page:
        """The child's; one more lookup if there are links in it."""
        page = self._page = self._page or await self._child.next_page()  # kept, if the lookup fails or is cancelled
        entities = [each for each in page.results if type(each) is not Key]
        links = [entity.key for entity in entities if _TARGET in entity]
        known = {entity.key for entity in entities}
        doubtful = [key for key in page.checks if key not in known and self._shim._may_link(key)]
        if links or doubtful:
            await self._follow(page, links, doubtful)
        self._page = None
        return page

    async def _follow(self, page: Page, links: Sequence[Key], doubtful: Sequence[Key]) -> None:
        seen = await _Seen.read(self._shim.child, [*links, *doubtful], self._policy)
        seen.correct(page.checks, doubtful)
        chains = {key: seen.chain(key) for key in links}
        results: list[Any] = []
        positions: list[bytes] = []
        for place, result in enumerate(page.results):
            chain = None if type(result) is Key else chains.get(result.key)
            if chain is not None:
                if self._track:
                    page.checks[result.key] = chain.version
                result = chain.entity(result.key)  # noqa: PLW2901
                if result is None:
                    continue
            results.append(result)
            if page.positions is not None:
                positions.append(page.positions[place])
        page.results = results
        page.positions = None if page.positions is None else positions
        page.newest = max(page.newest, page.version, seen.version)


def _is_complete(key: object) -> bool:
    return isinstance(key, Key) and key.is_complete


def _is_collection(given: object) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str | bytes)


def _extended(commit: Commit, seen: _Seen) -> Extended | Outcome:
    followed = _Followed(commit, seen)
    if followed.conflicts:
        return Outcome(None, followed.conflicts)

    def settled(outcome: Outcome) -> Outcome | None:
        """None if links or entities have changed meanwhile."""
        if outcome.committed or outcome.error is not None or outcome.stale_spans:
            return followed.outer(outcome)
        return None

    return Extended(followed.commit, settled)
