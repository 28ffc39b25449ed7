"""``Tiered``: fast stores before a complete one, which decides."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from aiodatastore.adapters.base import (
    Adapter,
    Commit,
    Lookup,
    Moment,
    Outcome,
    Put,
    ReadPolicy,
)
from aiodatastore.adapters.registry import parse_float
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, DatastoreError, UnavailableError, UnsupportedError
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.shims.base import Shim, listed
from aiodatastore.shims.cached.copies import Copies, Copy, Place, same_clock, space_of

__all__ = ["Tiered"]

_log = logging.getLogger("aiodatastore")

_LOST = frozenset({Capability.CURRENT_READS, Capability.INLINE_READS, Capability.TWO_PHASE})


class _Written(NamedTuple):
    """A write: its key, a copy of the entity (None: deleted), its time to live."""

    key: Key
    entity: Entity | None
    ttl_s: float | None


class Tiered(Shim):
    """Reads go down the tiers until one has a copy, and fill those above; writes go to all; the last one decides.

    >>> import asyncio
    >>> from aiodatastore import Datastore, Entity, Key
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     fast, complete = adapter_from_url("memory://"), adapter_from_url("memory://")
    ...     async with Datastore(Tiered([fast, complete])) as ds:
    ...         await ds.put(Entity(Key("Person", "ada"), {"born": 1815}))
    ...         ada = await ds.get(Key("Person", "ada"))
    ...         return ada["born"], await ds.query("Person").count()
    >>> asyncio.run(main())
    (1815, 1)

    The last tier is the authority for versions, and answers queries and aggregates. Those above it hold copies with
    its versions, not entities of their own; what is asked of them directly is nobody's business but this shim's.

    A commit first marks what it writes in every tier above, then goes to the last, then replaces the marks by the new
    copies. What is marked is not read there, and nobody fills it: so after a commit has returned, whoever reads
    through the same tiers sees it, in whichever process, and also if a process ends half-way. A mark that nobody
    took away counts for ``mark_s`` seconds: a commit must not take longer.

    What differs from :class:`~aiodatastore.shims.cached.Cached`: the tiers are stores (with no bound on their size) and
    nothing is kept in the process beside them; there is no staleness as long as all writers use the same tiers,
    but a tier that can't be reached stops writes (reads go on below it); a commit costs three round trips more for
    each tier. ``staleness_s``: copies older than this are not served; needed where others write to the last tier and
    not to those above: past this shim, or because a tier is of this process alone (``memory://``).

    ``name`` tells this store's copies from others' in the same tiers (None: by what the last tier is made of, and where
    it lives, which has to be the same for all who use the tiers).

    Two-phase commits are not forwarded: a shim of its own in front of each shard is what works there.

    :raises BadArgumentError: if there are fewer than two tiers, or they can't be tiers of each other
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "staleness_s": parse_float,
        "mark_s": parse_float,
        "name": str,
    }

    def __init__(
        self,
        tiers: Sequence[Adapter],
        *,
        staleness_s: float | None = None,
        mark_s: float = 60.0,
        name: str | None = None,
    ) -> None:
        tiers = listed("Tiered", tiers)
        if staleness_s is not None and (type(staleness_s) not in (int, float) or not 0 < staleness_s < math.inf):
            raise BadArgumentError(f"Tiered: staleness_s: expected seconds, more than 0, got {staleness_s!r:.80}")
        if type(mark_s) not in (int, float) or not 0 < mark_s < math.inf:
            raise BadArgumentError(f"Tiered: mark_s: expected seconds, more than 0, got {mark_s!r:.80}")
        if name is not None and (type(name) is not str or not name):
            raise BadArgumentError(f"Tiered: name: expected a str or None, got {name!r:.80}")
        _check_tiers(tiers, staleness_s)
        super().__init__(tiers[-1])
        self.tiers = tiers
        self.staleness_s = staleness_s
        self.mark_s = mark_s
        self.name = name
        space = name or space_of(self.child, "Tiered")
        self._upper = [Copies(tier, space, mark_s) for tier in tiers[:-1]]
        self._inline = Capability.INLINE_READS in tiers[0].capabilities
        self._mortal = Capability.TTL in self.child.capabilities
        self._keeps_fills = True
        self._now = time.time
        self._hits = [0] * len(tiers)
        self._failures = 0
        self._told = False

    @property
    def children(self) -> Sequence[Adapter]:
        """The tiers, the complete one last."""
        return self.tiers

    @property
    def settings(self) -> Mapping[str, object]:
        """How old a copy may be, and a mark."""
        bound = {} if self.staleness_s is None else {"staleness_s": self.staleness_s}
        named = {} if self.name is None else {"name": self.name}
        return {**bound, "mark_s": self.mark_s, **named}

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"Tiered({self.tiers!r}{settings})"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The last tier's, less what no copy can promise; ``INLINE_READS`` if the first one has it."""
        own = self.child.capabilities - _LOST
        if not all(Capability.TRIO in tier.capabilities for tier in self.tiers):
            own -= {Capability.TRIO}
        return own | {Capability.INLINE_READS} if self._inline else own

    @property
    def counts(self) -> dict[str, Any]:
        """``hits``: keys that each tier answered; ``failures``: how often one of the upper tiers did not work."""
        return {"hits": tuple(self._hits), "failures": self._failures}

    async def open(self) -> None:
        """Open the tiers, the last one first."""
        opened: list[Adapter] = []
        try:
            for tier in reversed(self.tiers):
                await tier.open()
                opened.append(tier)
        except BaseException:
            for tier in reversed(opened):
                await tier.aclose()
            raise

    async def aclose(self) -> None:
        """Close the tiers."""
        errors: list[Exception] = []
        for tier in self.tiers:
            try:
                await tier.aclose()
            except Exception as exc:
                errors.append(exc)
        if errors:
            raise errors[0]

    # -------------------------------------------------------------------------------------------- reads

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """Copies in the first tier, if it has all at hand."""
        if not self._inline:
            return None
        places = self._upper[0].read_now(keys)
        if places is None:
            return None
        now = self._now()
        found: list[Entity | None] = []
        for place in places:
            if place.copy is None or not self._serves(place.copy, now):
                return None
            found.append(place.copy.entity)
        self._hits[0] += len(keys)
        return found

    def _serves(self, copy: Copy, now: float) -> bool:
        if self.staleness_s is not None and now - copy.read_at >= self.staleness_s:
            return False
        return copy.expires_at is None or now < copy.expires_at

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """Down the tiers, for what is still missing; then up again, to fill."""
        found: dict[Key, Copy] = {}
        rest = list(dict.fromkeys(keys))
        seen: list[dict[Key, Place]] = []
        for number, copies in enumerate(self._upper):
            places = await self._read(copies, rest)
            seen.append(places)
            if read_policy is ReadPolicy.CURRENT:
                continue
            now = self._now()
            for key, place in places.items():
                if place.copy is not None and self._serves(place.copy, now):
                    found[key] = place.copy
                    self._hits[number] += 1
            rest = [key for key in rest if key not in found]
            if not rest:
                break
        whole: Lookup | None = None
        if rest:
            read_at = self._now()
            answer = await self.child.lookup(rest, read_policy=read_policy)
            self._hits[-1] += len(rest)
            kept = await self._take(rest, answer, read_at, found)
            if len(rest) == len(keys):
                whole = answer
            if not kept or read_policy is ReadPolicy.EVENTUAL:
                return whole or self._answer(keys, found)
        await self._fill(seen, found)
        return whole or self._answer(keys, found)

    async def _read(self, copies: Copies, keys: list[Key]) -> dict[Key, Place]:
        try:
            return dict(zip(keys, await copies.read(keys), strict=True))
        except DatastoreError as exc:
            self._failed(copies, exc)
            return {}

    async def _take(self, keys: list[Key], answer: Lookup, read_at: float, found: dict[Key, Copy]) -> bool:
        """Copies of what the last tier answered; whether they may be kept."""
        lives: Sequence[float | None] = ()
        if self._mortal and self._keeps_fills:
            try:
                lives = await self.child.lifetimes(keys)
            except UnsupportedError:
                self._keeps_fills = False
        for number, key in enumerate(keys):
            entity = answer.entities[number]
            clock, moment = (answer.clock, answer.version) if answer.moments is None else answer.moments[number]
            life = lives[number] if lives else None
            if life == 0:
                answer.entities[number] = entity = None
            expires_at = None if life is None or entity is None else read_at + life
            found[key] = Copy(None if entity is None else entity.snapshot(), clock, moment, read_at, expires_at)
        return self._keeps_fills

    async def _fill(self, seen: list[dict[Key, Place]], found: Mapping[Key, Copy]) -> None:
        """Write copies where older ones, or none, were seen; nobody can have written there since."""
        for copies, places in zip(self._upper, seen, strict=False):
            wanted = [
                (key, found[key], place.version)
                for key, place in places.items()
                if key in found
                and not copies.is_marked(place)
                and _is_newer(found[key], place)
                and copies.can_keep(found[key])
            ]
            if wanted:
                try:
                    await copies.write(wanted)
                except DatastoreError as exc:
                    self._failed(copies, exc)

    def _answer(self, keys: Sequence[Key], found: Mapping[Key, Copy]) -> Lookup:
        each = [found[key] for key in keys]
        entities = [None if copy.entity is None else copy.entity.snapshot() for copy in each]
        whole = Lookup(entities, 0, None, [Moment(copy.clock, copy.moment) for copy in each])
        return whole.part(entities, range(len(entities)))

    # ------------------------------------------------------------------------------------------- writes

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Mark, hand on to the last tier, replace the marks.

        :raises UnavailableError: if a tier above can't be written to; then nothing was written
        """
        written = [[_written(write) for write in commit.writes] for commit in batch]
        keys = list(dict.fromkeys(write.key for each in written for write in each))
        name = os.urandom(8).hex()
        marks = await self._mark(keys, name) if keys else []
        read_at = self._now()
        try:
            outcomes = await self.child.commit(batch)
        except UnavailableError as exc:
            if exc.nothing_written:  # else it may have taken effect: the marks stay
                for upper, marked in zip(self._upper, marks, strict=False):
                    await self._unmark(upper, marked, name, {})
            raise
        copies: dict[Key, Copy] = {}
        wrong: dict[Key, None] = {}
        for each, outcome in zip(written, outcomes, strict=True):
            wrong.update(dict.fromkeys(outcome.conflicts))
            for key, entity, ttl_s in each:
                if outcome.version is None and key not in (outcome.versions or ()):
                    continue
                version = outcome.version_of(key)
                if entity is not None:
                    entity.version = version
                expires_at = None if ttl_s is None else read_at + ttl_s
                copies[key] = Copy(entity, outcome.clock, version, read_at, expires_at)
        for upper, marked in zip(self._upper, marks, strict=False):
            await self._unmark(upper, marked, name, copies)
        if wrong:  # somebody may have written past the tiers
            await self._forget([key for key in wrong if key not in copies])
        return outcomes

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Refused: whoever resolved it would have to know which marks to take away.

        :raises UnsupportedError: always
        """
        raise UnsupportedError("Tiered can't prepare commits", capability=Capability.TWO_PHASE)

    async def _mark(self, keys: list[Key], name: str) -> list[dict[Key, Place]]:
        marks: list[dict[Key, Place]] = []
        for copies in self._upper:
            try:
                marks.append(await copies.mark(keys, name))
            except DatastoreError as exc:
                for upper, marked in zip(self._upper, marks, strict=False):
                    await self._unmark(upper, marked, name, {})
                error = UnavailableError(
                    f"the tier {copies.adapter.url} can't be told of a commit ({exc}); nothing was written"
                )
                error.nothing_written = True
                raise error from exc
        return marks

    async def _unmark(self, upper: Copies, marked: Mapping[Key, Place], name: str, copies: Mapping[Key, Copy]) -> None:
        try:
            await upper.unmark(marked, name, copies)
        except DatastoreError as exc:
            self._failed(upper, exc)  # the marks stay

    async def _forget(self, keys: list[Key]) -> None:
        for copies in self._upper if keys else ():
            try:
                await copies.forget(keys)
            except DatastoreError as exc:
                self._failed(copies, exc)

    def _failed(self, copies: Copies, exc: DatastoreError) -> None:
        self._failures += 1
        if not self._told:
            self._told = True
            _log.warning("the tier %s does not work (%s: %s)", copies.adapter.url, type(exc).__name__, exc)


def _written(write: Any) -> _Written:
    if isinstance(write, Put):
        return _Written(write.entity.key, write.entity.snapshot(), write.ttl_s)
    return _Written(write.key, None, None)


def _is_newer(copy: Copy, place: Place) -> bool:
    there = place.copy
    if there is None or not same_clock(there.clock, copy.clock):
        return True
    return there.moment < copy.moment or there.read_at < copy.read_at


def _check_tiers(tiers: Sequence[Adapter], staleness_s: float | None) -> None:
    """:raises BadArgumentError: if they can't be tiers of each other"""
    if len(tiers) < 2:
        raise BadArgumentError(f"Tiered: expected at least two tiers, got {len(tiers)}")
    if any(tier.url == "null://" for tier in tiers):
        raise BadArgumentError("Tiered: null:// keeps nothing, neither copies nor what they are copies of")
    last = tiers[-1]
    if Capability.QUERIES not in last.capabilities:
        raise BadArgumentError(f"Tiered: the last tier answers queries, and {last.url} can't")
    for tier in tiers:
        if Capability.EXACT_KEYS not in tier.capabilities:
            raise BadArgumentError(
                f"Tiered: in {tier!r:.200} several keys may name one entity, and a commit of one would leave copies "
                "under the others: put the tiers below what changes keys"
            )
    if len({id(tier) for tier in tiers}) < len(tiers) or _repeated(
        tier.url for tier in tiers if Capability.MULTI_PROCESS in tier.capabilities
    ):
        raise BadArgumentError("Tiered: two tiers are the same store: copies would be among what they copy")
    shared = {Capability.MULTI_PROCESS, Capability.DURABLE}
    for tier in tiers[:-1]:
        if not last.capabilities & shared and tier.capabilities & shared:
            raise BadArgumentError(
                f"Tiered: {tier.url} would outlive {last.url}, or share it, and have copies of what is not there"
            )
        alone = Capability.MULTI_PROCESS not in tier.capabilities and Capability.MULTI_PROCESS in last.capabilities
        if alone and staleness_s is None:
            raise BadArgumentError(
                f"Tiered: other processes can write to {last.url} and not to {tier.url}: say with staleness_s how old "
                "its copies may be, or use Cached"
            )


def _repeated(names: Iterable[str]) -> bool:
    found = list(names)
    return len(set(found)) < len(found)
