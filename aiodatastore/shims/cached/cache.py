"""The cache itself: what is answered from it, what is kept in it, and what makes it forget."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from aiodatastore.adapters.base import (
    MIXED,
    Adapter,
    ChangeListener,
    Commit,
    Lookup,
    Moment,
    Outcome,
    Page,
    Put,
    ReadPolicy,
    ResultStream,
    RunOptions,
    written_key,
)
from aiodatastore.adapters.registry import adapter_from_url, parse_float, parse_int
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, UnsupportedError
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Capability, Subscription
from aiodatastore.shims.base import DEFAULT, PassingStream, Shim
from aiodatastore.shims.cached.copies import Copy, same_clock, space_of
from aiodatastore.shims.cached.entries import Entries, Entry
from aiodatastore.shims.cached.flights import NOTHING, Flight, Flights, Found
from aiodatastore.shims.cached.hub import Hub, hub_of
from aiodatastore.shims.cached.shared import Shared
from aiodatastore.waiting import own_error

__all__ = ["Cached"]

_log = logging.getLogger("aiodatastore")

Invalidation = Literal["auto", "push", "time"]

_MODES = ("auto", "push", "time")
_MAX_FLOORS = 100_000
_PINGS = 3
"""Times in ``staleness_s`` that the store is asked whether all of its messages came."""

_MANY = 1000
"""Writes of one commit from which on no copies are kept: it is a load, and copying would hold the event loop."""


class _Write(NamedTuple):
    """A write: its key, a copy of the entity (None: deleted), its time to live; ``kept``: whether that is a copy."""

    key: Key
    entity: Entity | None
    ttl_s: float | None = None
    kept: bool = True


def parse_invalidation(text: str) -> str:
    """One of the ways in which a cache learns of others' commits.

    :raises ValueError: if it is something else
    """
    if text not in _MODES:
        raise ValueError("expected auto, push or time")
    return text


class Cached(Shim, ChangeListener):
    """Keeps entities that were read or written, and answers gets from them.

    >>> import asyncio
    >>> from aiodatastore import Datastore, Entity, Key
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     cached = Cached(adapter_from_url("memory://"), staleness_s=2.0)
    ...     async with Datastore(cached) as ds:
    ...         await ds.put(Entity(Key("Person", "ada"), {"born": 1815}))
    ...         await ds.get([Key("Person", "ada"), Key("Person", "bob")])  # the second has to be looked for
    ...         await ds.get([Key("Person", "ada"), Key("Person", "bob")])
    ...         return cached.counts["hits"], cached.counts["misses"]
    >>> asyncio.run(main())
    (3, 1)

    - A read never returns what is older than the newest commit that this process made or was told of: by its outcome,
      by a conflict, by a query's result, by another ``Cached`` over the same store in this thread.
    - What others commit is seen after ``staleness_s`` seconds at the latest, counted from when the read was sent that
      brought the copy. Where the store tells of commits (``invalidation="push"``; PostgreSQL, Redis) it is seen
      when the message arrives, usually after milliseconds, and the bound holds also if messages are lost: the store is
      asked three times in ``staleness_s`` whether all have arrived, and what can't be confirmed is not served.
    - Transactions stay serializable: a copy is served with the moment at which it was so, what does not fit together
      is verified, the commit checks the versions, and what runs again after a conflict reads past the cache. A
      transaction that only reads may see a past moment, within the same bound.
    - A key that is absent is remembered as such, for ``negative_ttl_s`` (None: as long as others). What has a time to
      live is not served after it.
    - Tasks that miss a key at the same time share one read. Queries and aggregates go to the child.

    ``cache``: an adapter that several processes share (``redis://``), asked before the child. It holds copies with
    the child's versions, and an older one never replaces a newer. If it fails, reads and commits go on without it; what
    others find there then is bounded by ``staleness_s``, as is all that they read there (what their clocks differ
    by comes on top). Choose one with ``Capability.TTL``: else copies stay there for good. After the child was restored
    from a backup, empty it.

    ``name`` tells this store's copies in the cache from others' (None: by what the child is made of, and where it
    lives). Give one where that is not enough: files of the same path on several machines that share a cache.

    ``max_entities`` and ``max_bytes`` (approximate) bound what is kept in this process; the least recently used
    goes first. ``invalidation``: ``push`` needs a child that tells of commits, ``time`` never asks it to, ``auto``
    takes what there is.

    Cost: a hit takes 2 to 3 µs and no round trip; a miss what the child takes (with a ``cache``: one round trip to it
    before and one after); a commit a copy of each entity (with a ``cache``: two round trips to it).

    :raises BadArgumentError: if a setting is out of range, or the cache can't be one for this child
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "cache": adapter_from_url,
        "max_entities": parse_int,
        "max_bytes": parse_int,
        "staleness_s": parse_float,
        "negative_ttl_s": parse_float,
        "invalidation": parse_invalidation,
        "name": str,
    }

    def __init__(
        self,
        child: Adapter,
        cache: Adapter | None = None,
        *,
        max_entities: int = 100_000,
        max_bytes: int = 64 * 1024 * 1024,
        staleness_s: float = 5.0,
        negative_ttl_s: float | None = None,
        invalidation: Invalidation = "auto",
        name: str | None = None,
    ) -> None:
        if not isinstance(child, Adapter):
            raise BadArgumentError(f"Cached: expected an adapter, got {child!r:.80}")
        for what, number in (("max_entities", max_entities), ("max_bytes", max_bytes)):
            if type(number) is not int or number < 1:
                raise BadArgumentError(f"Cached: {what}: expected an int, 1 or more, got {number!r:.80}")
        if type(staleness_s) not in (int, float) or not 0 < staleness_s < math.inf:
            raise BadArgumentError(f"Cached: staleness_s: expected seconds, more than 0, got {staleness_s!r:.80}")
        if negative_ttl_s is not None and (type(negative_ttl_s) not in (int, float) or not negative_ttl_s >= 0):
            raise BadArgumentError(f"Cached: negative_ttl_s: expected seconds or None, got {negative_ttl_s!r:.80}")
        if invalidation not in _MODES:
            raise BadArgumentError(
                f"Cached: invalidation: expected one of {', '.join(_MODES)}, got {invalidation!r:.80}"
            )
        if name is not None and (type(name) is not str or not name):
            raise BadArgumentError(f"Cached: name: expected a str or None, got {name!r:.80}")
        if Capability.EXACT_KEYS not in child.capabilities:
            raise BadArgumentError(
                f"Cached: in {child!r:.200} several keys may name one entity, and a commit of one would leave copies "
                "under the others: put the cache below what changes keys"
            )
        if cache is not None:
            _check_cache(child, cache)
        super().__init__(child)
        self.cache = cache
        self.staleness_s = float(staleness_s)
        self.negative_ttl_s = negative_ttl_s
        self.invalidation = invalidation
        self._max = (max_entities, max_bytes)
        self._entries = Entries(max_entities, max_bytes)
        self._flights = Flights()
        self.name = name
        self._shared: Shared | None = None
        if cache is not None:
            self._shared = Shared(cache, name or space_of(child, "Cached"), staleness_s + 1)
        self._floors: dict[Key, tuple[Moment, float]] = {}
        self._no_copies_until = -math.inf
        self._prepared: dict[str, list[_Write]] = {}  # what was prepared here and not resolved yet
        self._mortal = Capability.TTL in child.capabilities
        self._keeps_fills = True
        self._hub: Hub | None = None
        self._subscription: Subscription | None = None
        self._epochs = 0
        self._epoch = -1
        self._confirmed_until = -math.inf
        self._confirmed_version = -1
        self._now = time.monotonic
        self._hits = self._misses = self._joined = self._shared_hits = self._invalidations = self._gaps = 0

    # ------------------------------------------------------------------------------------------- about it

    @property
    def children(self) -> Sequence[Adapter]:
        """The child, and the cache if there is one."""
        return (self.child,) if self.cache is None else (self.child, self.cache)

    @property
    def settings(self) -> Mapping[str, object]:
        """Its bounds."""
        max_entities, max_bytes = self._max
        shown: dict[str, object] = {"max_entities": max_entities, "max_bytes": max_bytes}
        shown["staleness_s"] = self.staleness_s
        if self.negative_ttl_s is not None:
            shown["negative_ttl_s"] = self.negative_ttl_s
        shown["invalidation"] = self.invalidation
        if self.name is not None:
            shown["name"] = self.name
        return shown

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The child's, with ``INLINE_READS``, without ``CURRENT_READS``; ``TRIO`` only if the cache has it."""
        own = (self.child.capabilities | {Capability.INLINE_READS}) - {Capability.CURRENT_READS}
        if self.cache is not None and Capability.TRIO not in self.cache.capabilities:
            own -= {Capability.TRIO}
        return own

    @property
    def counts(self) -> dict[str, int]:
        """What happened since it was made (keys looked up, copies dropped), and what it holds now.

        ``hits`` were answered from memory, ``misses`` not; of these ``shared_hits`` from the cache, ``joined`` by
        a read that was under way. ``invalidations``: copies dropped because of a change; ``gaps``: how often all were.
        """
        return {
            "hits": self._hits,
            "misses": self._misses,
            "joined": self._joined,
            "shared_hits": self._shared_hits,
            "invalidations": self._invalidations,
            "gaps": self._gaps,
            "evictions": self._entries.evicted,
            "cache_failures": 0 if self._shared is None else self._shared.failures,
            "entities": len(self._entries),
            "bytes": self._entries.bytes,
        }

    @property
    def is_told(self) -> bool:
        """Whether the child tells of others' commits, and has confirmed of late that it told of all."""
        return self._subscription is not None and self._now() < self._confirmed_until

    async def stats(self) -> dict[str, Any]:
        """The child's, with :attr:`counts` as ``"cache"``."""
        return {**await self.child.stats(), "cache": self.counts}

    def clear(self) -> None:
        """Forget everything that is kept in this process; reads that are under way are not kept either.

        Of the shared cache nothing is used for ``staleness_s``: what is there now is too old afterwards.
        """
        self._entries.clear()
        self._flights.bar_all()
        self._no_copies_until = self._now() + self.staleness_s
        self._floors.clear()

    # --------------------------------------------------------------------------------- opening, closing

    async def open(self) -> None:
        """Open the child and the cache, and ask the child to tell of commits.

        :raises UnsupportedError: if it should (``invalidation="push"``) and can't
        """
        self._forget()
        await self.child.open()
        try:
            if self.invalidation != "time":
                self._subscription = await self.child.subscribe(self, self.staleness_s / _PINGS)
                if self._subscription is None and self.invalidation == "push":
                    raise UnsupportedError(
                        f"Cached: {self.child.url} does not tell of commits: use invalidation='time', and choose "
                        "staleness_s by how old a read may be",
                    )
                if self._subscription is not None:
                    self._epochs += 1
                    self._epoch = self._epochs
            if self._shared is not None:
                await self._shared.open()
        except BaseException:
            await self._unsubscribe()
            await self.child.aclose()
            raise
        self._hub = hub_of(self.child)
        self._hub.members.append(self)

    async def aclose(self) -> None:
        """Close both."""
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.members.remove(self)
        try:
            await self._unsubscribe()
            if self._shared is not None:
                await self._shared.aclose()
        finally:
            self._forget()
            await self.child.aclose()

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._epoch = -1
        if subscription is not None:
            await subscription.aclose()

    def _forget(self) -> None:
        self._entries.clear()
        self._flights = Flights()
        self._floors.clear()
        self._prepared.clear()
        self._epoch = -1
        self._confirmed_until = -math.inf
        self._confirmed_version = -1

    # -------------------------------------------------------------------------------------------- reads

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """Copies of the entities, if all are at hand."""
        now = self._now()
        hits: list[Entry] = []
        entries = self._entries
        for key in keys:
            entry = entries.get(key)
            if entry is None or (now >= entry.until and not self._is_confirmed(entry, now)):
                return None
            entries.touch(key)
            hits.append(entry)
        self._hits += len(keys)
        return [None if entry.entity is None else entry.entity.snapshot() for entry in hits]

    def _is_confirmed(self, entry: Entry, now: float) -> bool:
        return entry.epoch == self._epoch >= 0 and now < self._confirmed_until and now < entry.last

    def _hit(self, key: Key, now: float) -> Found | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.until and not self._is_confirmed(entry, now):
            self._entries.drop(key)
            return None
        self._entries.touch(key)
        moment = entry.moment
        if entry.epoch == self._epoch >= 0 and entry.clock is None and moment < self._confirmed_version:
            moment = self._confirmed_version  # had it changed by then, this cache would have been told
        return entry.entity, entry.clock, moment

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """What is at hand, with the moments at which it was so; the child is asked for the rest."""
        if read_policy is ReadPolicy.CURRENT:
            flight = await self._fetch(keys, read_policy)
            return flight.answer(keys) or self._answer(keys, flight.found)
        found: dict[Key, Found] = {}
        wanted: Sequence[Key] = keys
        while True:
            now = self._now()
            missing: dict[Key, None] = {}
            joined: dict[Key, Flight] = {}
            for key in wanted:
                hit = self._hit(key, now)
                if hit is not None:
                    found[key] = hit
                    continue
                under_way = self._flights.joinable(key)
                if under_way is None:
                    missing[key] = None
                else:
                    joined[key] = under_way
            self._hits += len(wanted) - len(missing) - len(joined)
            self._misses += len(missing) + len(joined)
            self._joined += len(joined)
            if missing:
                flight = await self._fetch(list(missing), read_policy)
                whole = flight.answer(keys)
                if whole is not None:
                    return whole
                found.update(flight.found)
            wanted = await self._join(joined, found)
            if not wanted:
                return self._answer(keys, found)

    async def _join(self, joined: Mapping[Key, Flight], found: dict[Key, Found]) -> list[Key]:
        """Wait for others' reads; the keys of those that were cancelled."""
        again: list[Key] = []
        for key, flight in joined.items():
            await flight.wait()
            if key in flight.found:
                found[key] = flight.found[key]
            elif isinstance(flight.error, Exception):
                raise own_error(flight.error)
            else:
                again.append(key)
        return again

    def _answer(self, keys: Sequence[Key], found: Mapping[Key, Found]) -> Lookup:
        each = [found[key] for key in keys]
        entities = [None if entity is None else entity.snapshot() for entity, _, _ in each]
        moments = [Moment(clock, moment) for _, clock, moment in each]
        whole = Lookup(entities, 0, None, moments)
        return whole.part(entities, range(len(entities)))

    async def _fetch(self, keys: Sequence[Key], read_policy: ReadPolicy) -> Flight:
        """Read from the cache and the child; what arrives is kept, if nothing newer is known by then."""
        flight = Flight(dict.fromkeys(keys), self._now(), self._epoch)
        self._flights.add(flight, joinable=read_policy is not ReadPolicy.EVENTUAL)
        try:
            rest, places = await self._fetch_shared(flight, read_policy)
            if rest:
                await self._fetch_child(flight, rest, places, read_policy)
        except BaseException as exc:
            flight.error = exc
            raise
        finally:
            self._flights.remove(flight)
        return flight

    async def _fetch_shared(self, flight: Flight, read_policy: ReadPolicy) -> tuple[list[Key], dict[Key, int]]:
        """Take what the cache has; which keys are left, and the versions of their places in it."""
        keys = list(flight.keys)
        found = None if self._shared is None else await self._shared.read(keys)
        if found is None:
            return keys, {}
        rest: list[Key] = []
        places: dict[Key, int] = {}
        for key, place in zip(keys, found, strict=True):
            copy = place.copy
            if copy is None or read_policy is ReadPolicy.CURRENT or not self._take_copy(flight, key, copy):
                rest.append(key)
                places[key] = place.version
        return rest, places

    def _take_copy(self, flight: Flight, key: Key, copy: Copy) -> bool:
        now = self._now()
        if now < self._no_copies_until:
            return False
        floor = self._floors.get(key)
        if floor is not None and not _is_at_least(copy, floor[0]):
            return False
        wall = time.time()
        until = now + self.staleness_s - max(0.0, wall - copy.read_at)
        last = math.inf if copy.expires_at is None else now + copy.expires_at - wall
        if copy.entity is None and self.negative_ttl_s is not None:
            last = min(last, now + self.negative_ttl_s - max(0.0, wall - copy.read_at))
        if now >= min(until, last):
            return False
        flight.found[key] = copy.entity, copy.clock, copy.moment
        self._shared_hits += 1
        if flight.brings(key, copy.clock, copy.moment):
            self._keep(key, Entry(copy.entity, copy.clock, copy.moment, until, last))
        return True

    async def _fetch_child(
        self, flight: Flight, keys: list[Key], places: Mapping[Key, int], read_policy: ReadPolicy
    ) -> None:
        started, wall = self._now(), time.time()
        found = await self.child.lookup(keys, read_policy=read_policy)
        lives = await self._lives(keys, found.entities)
        if lives is not None:
            found.entities = [None if life == 0 else entity for entity, life in zip(found.entities, lives, strict=True)]
        if len(keys) == len(flight.keys):
            flight.lookup = found
        until = started + self.staleness_s
        copies: list[tuple[Key, Copy, int]] = []
        for number, (key, entity) in enumerate(zip(keys, found.entities, strict=True)):
            clock, moment = (found.clock, found.version) if found.moments is None else found.moments[number]
            own = None if entity is None else entity.snapshot()
            flight.found[key] = own, clock, moment
            if read_policy is ReadPolicy.EVENTUAL or (entity is not None and not self._keeps_fills):
                continue
            life = None if lives is None else lives[number]
            last = math.inf if life is None or own is None else started + life
            if own is None and self.negative_ttl_s is not None:
                last = started + self.negative_ttl_s
            if not flight.brings(key, clock, moment):
                continue
            self._keep(key, Entry(own, clock, moment, until, last, flight.epoch))
            if self._shared is not None:
                # Who has seen this sees nothing older later, also if the copy here is forgotten.
                self._raise_floor(key, Moment(clock, moment if own is None else own.version))
            if key in places:
                expires_at = None if life is None or own is None else wall + life
                copies.append((key, Copy(own, clock, moment, wall, expires_at), places[key]))
        if copies and self._shared is not None:
            await self._shared.write(copies)

    async def _lives(self, keys: Sequence[Key], found: Sequence[Entity | None]) -> Sequence[float | None] | None:
        """Seconds that each has to live, if they may expire."""
        if not self._mortal or not self._keeps_fills or not any(entity is not None for entity in found):
            return None
        try:
            return await self.child.lifetimes(keys)
        except UnsupportedError:
            self._keeps_fills = False
            _log.warning(
                "Cached: %s does not tell how long entities live: only what is put through the cache is kept",
                self.child.url,
            )
            return None

    def _keep(self, key: Key, entry: Entry) -> None:
        """Keep an entry unless a newer one is there."""
        old = self._entries.get(key)
        if old is not None:
            if old.clock is not entry.clock or entry.clock is MIXED:
                self._entries.drop(key)  # which one is newer can't be told
                return
            if old.moment > entry.moment or (old.moment == entry.moment and old.until > entry.until):
                return
        if entry.last > entry.until or self._now() < entry.until:
            self._entries.set(key, entry)

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """Ask the child; results that are newer than copies of them make these go."""
        return PassingStream(self.child.run(query, options), self.saw)

    def saw(self, page: Page) -> None:
        """A query returned this."""
        entries = self._entries
        if not len(entries) and not len(self._flights):
            return
        for entity in page.results:
            if type(entity) is Entity and entity.version and not entity.is_projection:
                entry = entries.get(entity.key)
                if (
                    entry is not None
                    and entry.version != entity.version
                    and (entity.version > entry.version or page.clock is MIXED)
                ):
                    self._tell(entity.key, Moment(entry.clock, entity.version))

    # ------------------------------------------------------------------------------------------- writes

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Hand on to the child; keep what was written, drop what turned out to be old."""
        written = [_written(commit) for commit in batch]
        flight = Flight({key: None for each in written for key, *_ in each}, self._now(), self._epoch)
        self._flights.add(flight, joinable=False)
        wall = time.time()
        shared: dict[Key, Copy | None] = {}
        try:
            outcomes = await self.child.commit(batch)
            for commit, each, outcome in zip(batch, written, outcomes, strict=True):
                self._note(flight, commit, each, outcome, wall, shared)
        except BaseException as exc:
            # Whatever became of it: copies of before don't count any more, nor reads that are under way.
            self._unknown(flight.keys)
            if self._shared is not None and isinstance(exc, Exception):
                await self._shared.forget(list(flight.keys))
            raise
        finally:
            self._flights.remove(flight)
        if shared and self._shared is not None:
            await self._shared.update(shared)
        return outcomes

    def _note(
        self,
        flight: Flight,
        commit: Commit,
        written: list[_Write],
        outcome: Outcome,
        wall: float,
        shared: dict[Key, Copy | None],
    ) -> None:
        """Draw the conclusions from a commit's outcome; ``shared``: what to write to the cache (None: nothing)."""
        error = outcome.error
        # A store of a collection did not answer: what went there may have been written.
        uncertain = error is not None and not getattr(error, "nothing_written", False)
        if outcome.version is None:
            for key, version in outcome.conflicts.items():
                self._correct(key, version)
            if outcome.versions is None and not uncertain:
                return
        for key, entity, ttl_s, kept in written:
            if outcome.version is None and key not in (outcome.versions or ()):
                if uncertain:
                    self._unknown((key,))
                    shared[key] = None
                continue
            if outcome.clock is MIXED:
                self._unknown((key,))
                shared[key] = None
                continue
            version = outcome.version_of(key)
            moment = Moment(outcome.clock, version)
            self._tell(key, moment)
            if not kept:
                self._entries.drop(key)
                shared[key] = None
                continue
            if entity is not None:
                entity.version = version
            self._keep_written(flight, key, entity, ttl_s, moment)
            shared[key] = Copy(entity, outcome.clock, version, wall, None if ttl_s is None else wall + ttl_s)
        if outcome.version is not None and outcome.clock is not MIXED:
            for key, version in commit.checks.items():
                self._confirm_copy(flight, key, version, Moment(outcome.clock, outcome.version))

    def _keep_written(
        self, flight: Flight, key: Key, entity: Entity | None, ttl_s: float | None, moment: Moment
    ) -> None:
        if flight.brings(key, moment.clock, moment.version):
            started = flight.started
            last = math.inf if ttl_s is None else started + ttl_s
            if entity is None and self.negative_ttl_s is not None:
                last = started + self.negative_ttl_s
            until = started + self.staleness_s
            self._keep(key, Entry(entity, moment.clock, moment.version, until, last, flight.epoch))

    def _confirm_copy(self, flight: Flight, key: Key, version: int, moment: Moment) -> None:
        """A commit found this version of a key in the store: a copy of it is as good as one read then."""
        entry = self._entries.get(key)
        if (
            entry is not None
            and entry.version == version
            and entry.clock is moment.clock
            and entry.moment < moment.version
        ):
            entry.moment = moment.version
            entry.until = max(entry.until, min(entry.last, flight.started + self.staleness_s))
            entry.epoch = max(entry.epoch, flight.epoch)

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Hand on to the child; what it will write is remembered until it is resolved."""
        written = _written(commit)
        outcome = await self.child.prepare(commit, name)
        if outcome.version is None:
            for key, version in outcome.conflicts.items():
                self._correct(key, version)
        elif outcome.error is None:
            self._prepared[name] = written
        return outcome

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        """Hand on to the child. What it wrote is read again: which versions it has is not told for each.

        What another process prepared may have written anything: then all copies go.
        """
        written = self._prepared.pop(name, None)
        if not commit:
            return await self.child.resolve(name, commit=False)
        flight = Flight({key: None for key, *_ in written or ()}, self._now(), self._epoch)
        self._flights.add(flight, joinable=False)
        try:
            return await self.child.resolve(name, commit=True)
        finally:
            if written is None:
                for cache in (self, *self._others()):
                    cache.gap()
            else:
                self._unknown(flight.keys)
            self._flights.remove(flight)
            if self._shared is not None and written:
                await self._shared.forget([key for key, *_ in written])

    # --------------------------------------------------------------------------------- what it is told

    def _others(self) -> list[Cached]:
        return [] if self._hub is None or len(self._hub.members) < 2 else self._hub.others(self)

    def _told(self, key: Key, moment: Moment) -> None:
        """A key changed at this moment."""
        entry = self._entries.get(key)
        if entry is not None and (entry.clock is not moment.clock or entry.moment < moment.version):
            self._entries.drop(key)
            self._invalidations += 1
        self._flights.bar(key, moment)
        if self._shared is not None:
            self._raise_floor(key, moment)

    def _tell(self, key: Key, moment: Moment) -> None:
        """The same, for all caches over this store."""
        self._told(key, moment)
        for other in self._others():
            other._told(key, moment)

    def _correct(self, key: Key, version: int) -> None:
        """A commit found this version of a key in the store, and not the one that it expected."""
        for cache in (self, *self._others()):
            entry = cache._entries.get(key)
            if entry is None or entry.version > version:
                cache._told(key, NOTHING)
            else:
                # A copy of this version stays.
                cache._told(key, Moment(entry.clock, version))

    def _unknown(self, keys: Iterable[Key]) -> None:
        """These may have changed: only what is read from now on counts."""
        for key in keys:
            self._tell(key, NOTHING)

    def _raise_floor(self, key: Key, moment: Moment) -> None:
        """Copies in the cache that are older don't count; after the time that they are served for, none can be."""
        now = self._now()
        floors = self._floors
        before = floors.pop(key, None)
        if before is not None:
            old = before[0]
            if old.clock is not moment.clock:
                moment = NOTHING
            elif old.version > moment.version:
                moment = old
        floors[key] = moment, now + self.staleness_s + 1
        while floors:
            first = next(iter(floors))
            if floors[first][1] > now:
                break
            del floors[first]
        if len(floors) > _MAX_FLOORS:
            floors.clear()
            self._no_copies_until = now + self.staleness_s + 1

    def changed(self, keys: Sequence[Key], version: int) -> None:
        """The store says that these changed at this version of its only clock."""
        moment = Moment(None, version)
        for key in keys:
            self._told(key, moment)

    def confirmed(self, at: float, version: int) -> None:
        """The store says that it has told of all commits before ``at`` (``time.monotonic``), up to a version."""
        self._confirmed_until = at + self.staleness_s
        self._confirmed_version = max(self._confirmed_version, version)

    def gap(self) -> None:
        """Anything may have changed: messages were lost."""
        self._gaps += 1
        self.clear()
        if self._epoch >= 0:
            self._epochs += 1
            self._epoch = self._epochs
        self._confirmed_until = -math.inf
        self._confirmed_version = -1


def _written(commit: Commit) -> list[_Write]:
    """What a commit writes, in copies of its own: the child may do as it likes with the entities."""
    if len(commit.writes) > _MANY:
        return [_Write(written_key(write), None, kept=False) for write in commit.writes]
    return [
        _Write(write.entity.key, write.entity.snapshot(), write.ttl_s)
        if isinstance(write, Put)
        else _Write(write.key, None)
        for write in commit.writes
    ]


def _is_at_least(copy: Copy, moment: Moment) -> bool:
    return moment is not NOTHING and same_clock(copy.clock, moment.clock) and copy.moment >= moment.version


def _check_cache(child: Adapter, cache: Adapter) -> None:
    """:raises BadArgumentError: if one can't hold copies of the other"""
    if not isinstance(cache, Adapter):
        raise BadArgumentError(f"Cached: cache: expected an adapter, got {cache!r:.80}")
    if cache is child or cache in _all_of(child) or child in _all_of(cache):
        raise BadArgumentError("Cached: the cache is (part of) the child itself: copies would be among what they copy")
    urls = {each.url for each in _all_of(child) if Capability.MULTI_PROCESS in each.capabilities}
    if any(each.url in urls for each in _all_of(cache)):
        raise BadArgumentError(f"Cached: the cache {cache.url} is where the child lives: give it a place of its own")
    alone = not child.capabilities & {Capability.MULTI_PROCESS, Capability.DURABLE}
    if alone and Capability.MULTI_PROCESS in cache.capabilities:
        raise BadArgumentError(
            f"Cached: {child.url} is of this process alone, {cache.url} is shared: it would give each process copies "
            "of the others' data"
        )


def _all_of(adapter: Adapter) -> list[Adapter]:
    return [adapter, *(part for child in adapter.children for part in _all_of(child))]
