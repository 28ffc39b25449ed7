"""What a transaction has read, and when all of it held."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from aiodatastore.adapters.base import MIXED, Commit, Lookup
from aiodatastore.batching import ChainedCommit
from aiodatastore.contention import News
from aiodatastore.entity import Entity
from aiodatastore.errors import TransactionFailedError
from aiodatastore.key import Key
from aiodatastore.rowstore import EXISTS, SpanCheck

if TYPE_CHECKING:
    from aiodatastore.batching import Channel

__all__ = ["View", "conflict", "held"]


class View:
    """What a transaction (with all that is nested in it) has read, and when all of it held."""

    __slots__ = (
        "_lock",
        "clock",
        "contended",
        "doomed",
        "entities",
        "followed",
        "follows",
        "guess",
        "reads",
        "since",
        "spans",
        "until",
    )

    def __init__(self) -> None:
        self.reads: dict[Key, int] = {}
        self.entities: dict[Key, Entity | None] = {}
        self.spans: dict[tuple[Any, ...], SpanCheck] = {}
        self.since: float = 0
        self.until = math.inf
        self.clock: object = None
        """What the two count on; MIXED: nothing, what was read is of several stores, so that each read verifies all."""
        self.doomed = False
        self.contended: set[Key] = set()
        self.follows: ChainedCommit | None = None
        """The commit whose entity was read before it was known to hold; then nothing else was read."""
        self.guess = 0
        """The version that the entity seemed to have."""
        self.followed = False
        """Whether an entity was read that way."""
        self._lock: anyio.Lock | None = None

    @property
    def empty(self) -> bool:
        return not self.reads and not self.spans and self.follows is None

    def follow(self, key: Key, news: News) -> None:
        """Read an entity as a commit writes it that is under way."""
        self.follows = news.commit
        self.followed = True
        self.guess = news.version
        self.entities[key] = news.entity

    async def know(self) -> None:
        """Wait until the commit whose entity was read is known to hold.

        :raises TransactionFailedError: if it does not
        """
        commit = self.follows
        if commit is None:
            return
        if commit.outcome is None:
            await commit.done.wait()
        if self.follows is commit:  # else another task was here
            self.follows = None
            outcome = commit.outcome
            if outcome is None or outcome.version is None:
                raise self.doom((commit.key,))
            entity = self.entities.get(commit.key)
            version = outcome.version_of(commit.key)
            if entity is not None:
                entity.version = version
            known = {commit.key: 0 if entity is None else version}
            self._add(known, (), outcome.version, outcome.version, outcome.clock)
        if self.doomed:
            raise conflict(self.contended)

    def note(self, key: Key, version: int, since: int, until: int, clock: object) -> bool:
        """:meth:`admit` of one entity, where that needs no waiting; False: nothing was added."""
        if since > self.until or until < self.since or clock is not self.clock or key in self.reads:
            return False
        if self._lock is not None and self._lock.locked():
            return False
        self.reads[key] = version
        self.since = max(self.since, since)
        self.until = min(self.until, until)
        return True

    async def admit(
        self,
        channel: Channel,
        reads: Mapping[Key, int],
        spans: Iterable[SpanCheck],
        since: float,
        until: float,
        clock: object,
    ) -> None:
        """Add what was seen, and held at least from ``since`` to ``until`` on a clock.

        :raises TransactionFailedError: if it did not all hold at one moment
        """
        if self._lock is None or not self._lock.locked():
            self._add(reads, spans, since, until, clock)
            if self.since <= self.until:
                return
            reads, spans = {}, ()
            self._lock = self._lock or anyio.Lock()
        async with self._lock:  # while all is verified, nothing is added to it
            if self.doomed:
                raise conflict(self.contended)
            self._add(reads, spans, since, until, clock)
            if self.since > self.until:
                await self._verify(channel)

    def _add(
        self, reads: Mapping[Key, int], spans: Iterable[SpanCheck], since: float, until: float, clock: object
    ) -> None:
        known = self.reads
        if clock is not self.clock:
            self.clock = clock if self.until == math.inf else MIXED
        for key, version in reads.items():
            before = known.get(key)
            if before is None or (before == EXISTS and version > 0):
                known[key] = version
            elif before != version and not (version == EXISTS and before > 0):
                raise self.doom((key,))
        for span in spans:
            place = (span.space, span.lo, span.hi, span.owner)
            earlier = self.spans.get(place)
            if earlier is not None:
                # One of the two may be a count alone: then only the numbers can be compared.
                differ = None not in (earlier.digest, span.digest) and earlier.digest != span.digest
                if differ or earlier.count != span.count:
                    raise self.doom(())
            if earlier is None or earlier.digest is None:
                self.spans[place] = span
        self.since = max(self.since, since)
        self.until = min(self.until, until)
        if self.clock is MIXED:
            self.since, self.until = 1, 0

    async def _verify(self, channel: Channel) -> None:
        """Make sure that all of it holds at one moment: now."""
        outcome, cancelled = await channel.commit(self.as_commit())
        if cancelled is not None:
            raise cancelled
        if outcome.version is None:
            raise self.doom(outcome.conflicts)
        if self.clock is not MIXED:
            self.since = self.until = outcome.version

    def as_commit(self) -> Commit:
        """A commit that only verifies."""
        return Commit(checks=dict(self.reads), spans=tuple(self.spans.values()))

    def doom(self, keys: Iterable[Key]) -> TransactionFailedError:
        self.doomed = True
        self.contended.update(keys)
        return conflict(keys)


def conflict(keys: Iterable[Key], attempts: int = 1) -> TransactionFailedError:
    """The error of a transaction some of whose keys changed."""
    named = ", ".join(map(repr, list(keys)[:3]))
    what = f" ({named})" if named else ""
    return TransactionFailedError(
        f"what this transaction read has changed since{what}: it was rolled back and can be run again",
        attempts=attempts,
    )


def held(found: Lookup) -> tuple[int, int, object]:
    """From when to when all that was found was so, and on which clock."""
    if found.moments is None:
        versions = [found.version if entity is None else entity.version for entity in found.entities]
        return max(versions), found.version, found.clock
    since = until = found.moments[0].version
    for entity, moment in zip(found.entities, found.moments, strict=True):
        since = max(since, moment.version if entity is None else entity.version)
        until = min(until, moment.version)
    return since, until, found.clock
