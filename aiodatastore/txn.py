"""Transactions: optimistic, serializable, and task-safe.

A :class:`Transaction` notes the version of every entity it reads and every span it scans, and buffers its
writes. Its commit sends both; the store verifies and applies them at once, or not at all. No connection and no lock
of the store is held while the application's code runs.

*One moment.* All reads of a transaction are of one moment of the store. Each read narrows the interval in which all
that was seen held: an entity of version 5 found at version 9 held from 5 to 9; that something is absent, and
a scan, held at 9. If the interval would become empty, everything is verified again in one round trip: either all of
it holds now, or the attempt ends as a conflict there and then. A transaction that wrote nothing therefore has
nothing to verify at its end: it took place at that moment, whatever was written since.

*Tasks.* The current transaction is kept in a context variable: tasks started inside take part in it, side by side
if they like. When it ends, it is closed first: whatever of its operations is still under way, in a task that
outlives it, raises :class:`~aiodatastore.errors.TransactionClosedError`, and so does all that this task does
with the datastore later, unless it goes outside with ``non_transactional`` or ``Propagation.INDEPENDENT``.

*Cancellation* rolls back: nothing was sent yet. A commit that was sent is waited for, its ``on_commit`` callbacks
run if it succeeded, and then the cancellation goes on.
"""

from __future__ import annotations

import enum
import functools
import inspect
import math
import random
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import anyio

from aiodatastore.adapters.base import (
    MIXED,
    Adapter,
    AggregateResult,
    Commit,
    Delete,
    Lookup,
    Outcome,
    Page,
    Put,
    ReadPolicy,
)
from aiodatastore.arguments import (
    check_retries,
    check_timeout,
    check_ttl,
    complete_key,
    complete_keys,
    entities_to_write,
    expected_versions,
)
from aiodatastore.batching import MAX_BATCH_KEYS, ChainedCommit, NotSentError
from aiodatastore.contention import MAX_LINES, News
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadKeyError,
    ConflictError,
    DatastoreError,
    DeadlineExceededError,
    EntityExistsError,
    EntityNotFoundError,
    Rollback,
    TransactionClosedError,
    TransactionFailedError,
    TransactionStateError,
    UnavailableError,
)
from aiodatastore.key import Key
from aiodatastore.rowstore import EXISTS, SpanCheck

if TYPE_CHECKING:
    from aiodatastore.batching import Channel
    from aiodatastore.bound_query import BoundQuery
    from aiodatastore.datastore import Datastore

__all__ = ["Propagation", "Transaction", "transactional"]

BACKOFF_S = 0.002
"""Upper bound of the first pause before a retry; it doubles each time. The pause is random below it."""
MAX_BACKOFF_S = 1.0
MAX_COLLISIONS = 64
"""Attempts, beyond the retries, that may be spent on automatic ids that met entities put under explicit ones."""

P = ParamSpec("P")
T = TypeVar("T")


class Propagation(enum.StrEnum):
    """What a transactional call does when there is a transaction already (and when there is none)."""

    ALLOWED = "allowed"
    """Join it; outside begin one."""
    MANDATORY = "mandatory"
    """Join it; outside raise ``TransactionStateError``."""
    INDEPENDENT = "independent"
    """Pause it and begin another, which commits or fails on its own."""
    NESTED = "nested"
    """Begin one within it, whose writes join the outer one's when it ends well and vanish when it does not."""


# ------------------------------------------------------------------------------ the current transaction


class _Frame:
    """What holds inside: the transaction (None: paused) of a datastore; ``outer`` says what of the others."""

    __slots__ = ("datastore", "outer", "transaction")

    def __init__(self, datastore: Datastore, transaction: Transaction | None, outer: _Frame | None) -> None:
        self.datastore = datastore
        self.transaction = transaction
        self.outer = outer


current_frame: ContextVar[_Frame | None] = ContextVar("aiodatastore_transaction", default=None)
open_datastores: weakref.WeakSet[Datastore] = weakref.WeakSet()


def transaction_of(datastore: Datastore) -> Transaction | None:
    """The current transaction of a datastore, ended or not; None outside and where it is paused."""
    frame = current_frame.get()
    while frame is not None:
        if frame.datastore is datastore:
            return frame.transaction
        frame = frame.outer
    return None


# ------------------------------------------------------------------------------------------- what it saw


class _View:
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
            raise _conflict(self.contended)

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
                raise _conflict(self.contended)
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
        return _conflict(keys)


def _conflict(keys: Iterable[Key], attempts: int = 1) -> TransactionFailedError:
    named = ", ".join(map(repr, list(keys)[:3]))
    what = f" ({named})" if named else ""
    return TransactionFailedError(
        f"what this transaction read has changed since{what}: it was rolled back and can be run again",
        attempts=attempts,
    )


def _held(found: Lookup) -> tuple[int, int, object]:
    """From when to when all that was found was so, and on which clock."""
    if found.moments is None:
        versions = [found.version if entity is None else entity.version for entity in found.entities]
        return max(versions), found.version, found.clock
    since = until = found.moments[0].version
    for entity, moment in zip(found.entities, found.moments, strict=True):
        since = max(since, moment.version if entity is None else entity.version)
        until = min(until, moment.version)
    return since, until, found.clock


_NO_NEWS: dict[Key, News] = {}


class _Write:
    """A buffered write; ``entity`` is None for a delete. ``fresh``: the id is automatic, nothing may be there."""

    __slots__ = ("entity", "fresh", "ttl_s")

    def __init__(self, entity: Entity | None, fresh: bool, ttl_s: float | None = None) -> None:
        self.entity = entity
        self.fresh = fresh
        self.ttl_s = ttl_s


class _State(enum.Enum):
    ACTIVE = "is active"
    COMMITTING = "is being committed"
    COMMITTED = "was committed"
    ROLLED_BACK = "was rolled back"
    FAILED = "has failed"


# ------------------------------------------------------------------------------------------ transactions


class Transaction:
    """One attempt of a transaction. Made by ``Datastore``; its methods are those of ``Datastore``, inside it.

    Reads see the store as it was at one moment, and this transaction's own writes on top: gets and queries both.
    Entities that are put are copied; their ``version`` is set when the commit has succeeded. If it does not,
    entities whose incomplete keys were completed get their incomplete keys back.

    From ``Datastore.begin()`` it is used by hand, apart from the current one, and ended with :meth:`commit` or
    :meth:`rollback`; inside ``Datastore.transaction()`` and transactional functions that is done for you.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_channel",
        "_completed",
        "_datastore",
        "_line",
        "_managed",
        "_news",
        "_parent",
        "_queues",
        "_read_policy",
        "_sources",
        "_state",
        "_view",
        "_writes",
        "collided",
        "read_only",
    )

    def __init__(
        self,
        datastore: Datastore,
        *,
        read_only: bool = False,
        parent: Transaction | None = None,
        managed: bool = False,
        queues: bool = False,
        read_policy: ReadPolicy = ReadPolicy.STRONG,
    ) -> None:
        self.read_only = read_only
        """Whether writes are refused."""
        self.collided: list[Key] = []
        """Automatic keys under which the commit found entities."""
        self._datastore = datastore
        self._channel = datastore._open_channel()
        self._parent = parent
        self._managed = managed  # whether the one who runs it retries
        self._read_policy: ReadPolicy = read_policy if parent is None else parent._read_policy
        self._queues = queues  # whether it stands in line for contended keys
        self._line: list[Key] = []
        self._news: dict[Key, News] = _NO_NEWS
        self._view: _View = parent._view if parent is not None else _View()
        self._writes: dict[Key, _Write] = {}
        self._sources: list[Entity] = []
        self._completed: list[tuple[Entity, Key]] = []
        self._callbacks: list[Callable[[], Any]] = []
        self._state = _State.ACTIVE

    def __repr__(self) -> str:
        nested = "nested, " if self._parent is not None else ""
        return f"<Transaction: {nested}{len(self._view.reads)} read, {len(self._writes)} written, {self._state.value}>"

    @property
    def is_active(self) -> bool:
        """Whether it can be used: neither ended nor in conflict."""
        if self._state is not _State.ACTIVE or self._view.doomed:
            return False
        return self._parent is None or self._parent.is_active

    @property
    def adapter(self) -> Adapter:
        """The store it runs on."""
        return self._channel.adapter

    # ------------------------------------------------------------------------------------------ reads

    @overload
    async def get(  # type: ignore[overload-overlap]  # str is a sequence, too: of characters, which are no keys
        self, keys: Key | Entity | str, *, timeout: float | None = None
    ) -> Entity | None: ...
    @overload
    async def get(self, keys: Sequence[Key | Entity | str], *, timeout: float | None = None) -> list[Entity | None]: ...
    async def get(self, keys: Any, *, timeout: float | None = None) -> Any:
        """As ``Datastore.get``, of this transaction's moment and with its own writes.

        :raises TransactionFailedError: if what was read before has changed; the transaction is at its end then
        """
        timeout = self._datastore.timeout if timeout is None else timeout
        if type(keys) is Key and timeout is None and keys._pairs[-1][1] is not None:
            # The shortest way, for the most common case.
            self.check_usable()
            write = self._buffered(keys) if self._writes or self._parent is not None else None
            if write is None:
                if keys not in self._view.entities:
                    await self._read_one(keys)
                one = self._view.entities[keys]
            else:
                one = write.entity
            return None if one is None else one.snapshot()
        check_timeout(timeout)
        wanted, single = complete_keys(keys)
        self.check_usable()
        missing = [key for key in wanted if key not in self._view.entities and self._buffered(key) is None]
        if missing:
            await within(timeout, self._read(missing))
        found = []
        for key in wanted:
            write = self._buffered(key)
            entity = write.entity if write is not None else self._view.entities[key]
            found.append(entity.snapshot() if entity is not None else None)
        return found[0] if single else found

    def query(self, kind: Any = None, **parts: Any) -> BoundQuery:
        """As ``Datastore.query``, run in this transaction."""
        self.check_usable()
        return self._datastore.query(kind, **parts)._within(self)

    async def get_or_insert(self, key: Any, properties: Mapping[str, Any] | None = None, **more: Any) -> Entity:
        """The entity, put with these properties if there was none."""
        self._check_writable()
        found = complete_key(key)
        entity = await self.get(found)
        if entity is None:
            entity = Entity(found, {**(properties or {}), **more})
            await self.put(entity)
        return entity

    async def allocate_ids(self, key: Any, size: int | None = None, *, max: int | None = None) -> tuple[int, int]:
        """As ``Datastore.allocate_ids``; ids stay allocated if the transaction is rolled back."""
        self.check_usable()
        return await self._datastore._allocate_ids(key, size, max)

    async def _read(self, keys: Sequence[Key]) -> None:
        """Bring keys into the view."""
        unique = list(dict.fromkeys(keys))
        if self._queues and not self._line:
            await self._stand_in_line(unique)
        await self._view.know()
        for news in self._news.values():
            if news.commit is not None:
                await news.commit.done.wait()  # what it writes is soon there to be read
        for start in range(0, len(unique), MAX_BATCH_KEYS):
            chunk = unique[start : start + MAX_BATCH_KEYS]
            found = await self._channel.lookup(chunk, self._read_policy)
            self.check_usable()
            versions = {
                key: 0 if entity is None else entity.version for key, entity in zip(chunk, found.entities, strict=True)
            }
            since, until, clock = _held(found)
            await self._view.admit(self._channel, versions, (), since, until, clock)
            self.check_usable()
            for key, entity in zip(chunk, found.entities, strict=True):
                self._view.entities.setdefault(key, entity)

    async def _read_one(self, key: Key) -> None:
        """Bring a key into the view."""
        if self._queues and not self._line:
            await self._stand_in_line((key,))
        view = self._view
        await view.know()
        news = self._news.get(key)
        if news is not None and news.commit is not None:
            if news.commit.outcome is None and view.empty and self._parent is None:
                view.follow(key, news)
                return
            await news.commit.done.wait()
            news = None
        if news is None:
            found = await self._channel.lookup((key,), self._read_policy)
            self.check_usable()
            entity, until, clock = found.entities[0], found.version, found.clock
        else:
            entity, until, clock = news.entity, news.version, news.clock
        version, since = (0, until) if entity is None else (entity.version, entity.version)
        if not view.note(key, version, since, until, clock):
            await view.admit(self._channel, {key: version}, (), since, until, clock)
            self.check_usable()
        view.entities.setdefault(key, entity)

    async def _stand_in_line(self, keys: Iterable[Key]) -> None:
        # In one line at most, and only with nothing held: so that lines can't wait for each other.
        contention = self._datastore._contention
        hot = contention.hot(keys)
        if hot is not None and await contention.enter(hot):
            if self.is_active:
                self._take_place(hot)
            else:
                contention.leave(hot)

    def _take_place(self, key: Key) -> None:
        self._line.append(key)
        news = self._datastore._contention.take_news(key)
        if news is not None:
            self._news = {**self._news, key: news}

    async def admit(self, seen: Page | AggregateResult) -> None:
        """Add what a query has read."""
        self.check_usable()
        await self._view.know()
        if seen.checks or seen.spans:
            newest = max(seen.version, seen.newest)
            await self._view.admit(self._channel, seen.checks, seen.spans, newest, seen.version, seen.clock)
            self.check_usable()

    # ----------------------------------------------------------------------------------------- writes

    @overload
    async def put(
        self, entities: Entity, *, if_version: int | None = None, ttl: float | None = None, timeout: float | None = None
    ) -> Key: ...
    @overload
    async def put(
        self,
        entities: Sequence[Entity],
        *,
        if_version: Sequence[int | None] | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> list[Key]: ...
    async def put(
        self, entities: Any, *, if_version: Any = None, ttl: float | None = None, timeout: float | None = None
    ) -> Any:
        """As ``Datastore.put``; written when the transaction commits. Conditions are judged at once."""
        if type(entities) is Entity and if_version is None and ttl is None and timeout is None:
            key = entities.key
            if type(key) is Key and key._pairs[-1][1] is not None:
                # The shortest way, for the most common case: there is nothing to wait for.
                self._check_writable()
                entities.validate(self._datastore.app_engine_rules)
                before = self._buffered(key)
                self._writes[key] = _Write(entities.snapshot(), before is not None and before.fresh)
                self._sources.append(entities)
                return key
        check_timeout(timeout)
        ttl_s = check_ttl(ttl, self._datastore.adapter)
        timeout = self._datastore.timeout if timeout is None else timeout
        return await within(timeout, self._put(entities, _Condition.NONE, if_version, ttl_s))

    @overload
    async def insert(self, entities: Entity, *, timeout: float | None = None) -> Key: ...
    @overload
    async def insert(self, entities: Sequence[Entity], *, timeout: float | None = None) -> list[Key]: ...
    async def insert(self, entities: Any, *, timeout: float | None = None) -> Any:
        """As ``Datastore.insert``; the absence is part of what the commit verifies."""
        check_timeout(timeout)
        timeout = self._datastore.timeout if timeout is None else timeout
        return await within(timeout, self._put(entities, _Condition.ABSENT, None))

    @overload
    async def update(self, entities: Entity, *, timeout: float | None = None) -> Key: ...
    @overload
    async def update(self, entities: Sequence[Entity], *, timeout: float | None = None) -> list[Key]: ...
    async def update(self, entities: Any, *, timeout: float | None = None) -> Any:
        """As ``Datastore.update``; the entity's version is part of what the commit verifies."""
        check_timeout(timeout)
        timeout = self._datastore.timeout if timeout is None else timeout
        return await within(timeout, self._put(entities, _Condition.PRESENT, None))

    async def delete(self, keys: Any, *, if_version: Any = None, timeout: float | None = None) -> None:
        """As ``Datastore.delete``; done when the transaction commits."""
        check_timeout(timeout)
        wanted, single = complete_keys(keys)
        expected = expected_versions(if_version, len(wanted), single)
        self._check_writable()
        if if_version is not None:
            timeout = self._datastore.timeout if timeout is None else timeout
            await within(timeout, self._expect(wanted, expected))
            self._check_writable()
        for key in wanted:
            before = self._buffered(key)
            self._writes[key] = _Write(None, before is not None and before.fresh)

    async def _put(self, value: Any, condition: _Condition, if_version: Any, ttl_s: float | None = None) -> Any:
        self._check_writable()
        entities, single = entities_to_write(value, strict=self._datastore.app_engine_rules)
        if single and if_version is None and condition is _Condition.NONE and entities[0].key.is_complete:
            return self._buffer(entities, [entities[0].snapshot()], (), True, ttl_s)
        expected = expected_versions(if_version, len(entities), single)
        copies = [entity.snapshot() for entity in entities]
        for entity, version in zip(copies, expected, strict=True):
            if not entity.key.is_complete and (condition is _Condition.PRESENT or version):
                raise BadKeyError(f"{entity.key!r} is incomplete: nothing can be stored under it yet")
        incomplete = [entity.key for entity in copies if not entity.key.is_complete]
        fresh: list[Key] = []
        if incomplete:
            fresh = await self._datastore._complete(incomplete, verified=not self._managed)
            self._check_writable()
        conditional = [entity.key for entity in copies if entity.key.is_complete]
        if conditional and condition is not _Condition.NONE:
            await self._require(conditional, condition)
        if if_version is not None:
            pairs = [(e.key, v) for e, v in zip(copies, expected, strict=True) if e.key.is_complete]
            await self._expect([key for key, _ in pairs], [version for _, version in pairs])
        self._check_writable()
        return self._buffer(entities, copies, fresh, single, ttl_s)

    def _buffer(
        self,
        sources: Sequence[Entity],
        copies: Sequence[Entity],
        fresh: Sequence[Key],
        single: bool,
        ttl_s: float | None,
    ) -> Any:
        """Into the buffer, without a suspension in between."""
        completions = iter(fresh)
        keys = []
        for source, entity in zip(sources, copies, strict=True):
            key = entity.key
            if key.is_complete:
                before = self._buffered(key)
                write = _Write(entity, before is not None and before.fresh, ttl_s)
            else:
                key = next(completions)
                if source.key == entity.key:
                    self._completed.append((source, entity.key))
                    source.key = key
                entity.key = key
                write = _Write(entity, True, ttl_s)
            self._writes[key] = write
            self._sources.append(source)
            keys.append(key)
        return keys[0] if single else keys

    async def _require(self, keys: Sequence[Key], condition: _Condition) -> None:
        unknown = [key for key in keys if self._buffered(key) is None and key not in self._view.entities]
        if unknown:
            await self._read(unknown)
        seen: set[Key] = set()
        for key in keys:
            write = self._buffered(key)
            entity = write.entity if write is not None else self._view.entities[key]
            exists = entity is not None or key in seen
            if condition is _Condition.ABSENT:
                if exists:
                    raise EntityExistsError(f"insert: {key!r} exists already", key=key)
                seen.add(key)
            elif not exists:
                raise EntityNotFoundError(f"update: there is no entity {key!r}", key=key)

    async def _expect(self, keys: Sequence[Key], expected: Sequence[int | None]) -> None:
        """Compare versions with those stored (own writes have none yet)."""
        wanted = [key for key, version in zip(keys, expected, strict=True) if version is not None]
        guessed, guess = self._view.follows, self._view.guess
        await self._view.know()
        unknown = [key for key in wanted if key not in self._view.entities]
        if unknown:
            await self._read(unknown)
        for key, version in zip(keys, expected, strict=True):
            if version is None:
                continue
            entity = self._view.entities[key]
            actual = 0 if entity is None else entity.version
            if guessed is not None and key == guessed.key and version == guess:
                continue  # the version as it was told before it was known
            if actual != version:
                raise version_conflict(key, version, actual)

    # --------------------------------------------------------------------------------------- its buffer

    def _buffered(self, key: Key) -> _Write | None:
        level: Transaction | None = self
        while level is not None:
            write = level._writes.get(key)
            if write is not None:
                return write
            level = level._parent
        return None

    def buffered_writes(self) -> dict[Key, Entity | None]:
        """Every key this transaction has written, and what it put there (None: it was deleted)."""
        writes = self._parent.buffered_writes() if self._parent is not None else {}
        for key, write in self._writes.items():
            writes[key] = write.entity
        return writes

    # ------------------------------------------------------------------------------------------ its end

    def on_commit(self, callback: Callable[[], Any]) -> None:
        """Call ``callback`` (a function or a coroutine function, without arguments) after the commit.

        Never after a rollback or a failed attempt. Callbacks run in the order in which they were given, outside
        of the transaction and out of reach of cancellation; all of them run, then what they raised is raised:
        the commit stands. Those of a nested transaction run when the outermost one has committed.
        """
        self.check_usable()
        if not callable(callback):
            raise BadArgumentError(f"on_commit: expected a function, got {callback!r:.80}")
        self._callbacks.append(callback)

    async def commit(self) -> None:
        """Verify what was read and write what was buffered, at once; then run the callbacks.

        A nested transaction hands both to the one it is in.

        :raises TransactionFailedError: if something read has changed; nothing was written
        :raises TransactionClosedError: if it has ended already
        """
        self.check_usable()
        if not await self._try_commit(math.inf):
            raise _conflict(self._view.contended)

    async def rollback(self) -> None:
        """Forget the writes. Allowed once, also after a conflict.

        :raises TransactionClosedError: if it has ended already
        """
        if self._state is not _State.ACTIVE:
            raise self._closed_error()
        self._discard()

    async def _try_commit(self, deadline: float) -> bool:
        """Commit and run the callbacks; False if there was a conflict."""
        view = self._view
        if view.doomed:
            self._discard(_State.FAILED)
            return False
        if self._parent is not None:
            self._parent.check_usable()
            self._merge_into(self._parent)
            return True
        key = self._chain_key()
        if view.follows is not None and (
            view.follows.outcome is not None or key != view.follows.key or view.reads or view.spans
        ):
            try:
                await view.know()
            except TransactionFailedError:
                self._discard(_State.FAILED)
                return False
        commit = self._as_commit()
        cancelled = None
        if commit is None and view.followed and await self._is_stale():
            # Others may have written since, and told of it before this one began.
            self._discard(_State.FAILED)
            return False
        if commit is not None:
            self._state = _State.COMMITTING
            if key is not None:
                await self._breathe()
            chained = self._chained(commit, key) if key is not None else None
            contention = self._datastore._contention
            waiting = [contention.next(key) for key in self._line]
            try:
                if chained is not None:  # at once: a commit stands in line before those that follow it
                    outcome, cancelled = await self._channel.commit_chained(chained, deadline)
                else:
                    outcome, cancelled = await self._channel.commit(commit, deadline)
            except BaseException as exc:
                # Where the outcome is unknown, a completed key stays: putting it again writes the same entity.
                self._discard(_State.FAILED, restore=not isinstance(exc, UnavailableError))
                raise
            finally:
                if chained is not None:
                    chained.done.set()
                    contention.close(chained.key, chained)
            if outcome.version is None:
                view.contended.update(outcome.conflicts)
                self.collided = [key for key in outcome.conflicts if self._writes.get(key, _NEVER).fresh]
                self._discard(_State.FAILED)
                if cancelled is not None:
                    raise cancelled
                return False
            for source in self._sources:
                write = self._writes.get(source.key)
                if write is not None and write.entity is not None:
                    source.version = outcome.version_of(source.key)
            self._hand_over(waiting, outcome)
        self._state = _State.COMMITTED
        callbacks = self._callbacks
        self._forget()
        if callbacks:
            await self._run_callbacks(callbacks, cancelled)
        elif cancelled is not None:
            raise cancelled
        return True

    def _as_commit(self) -> Commit | None:
        """What to send; None where there is nothing to write: all reads are of one moment already."""
        writes: list[Put | Delete] = []
        checks = dict(self._view.reads)
        for key, write in self._writes.items():
            if write.entity is not None:
                if write.fresh:
                    checks.setdefault(key, 0)
                writes.append(Put(write.entity, write.ttl_s))
            elif not write.fresh:
                writes.append(Delete(key))
        if not writes:
            return None
        token = self._channel.token()
        return Commit(checks=checks, spans=tuple(self._view.spans.values()), writes=writes, token=token)

    async def _breathe(self) -> None:
        try:
            await self._channel.breathe_if_due()
        except BaseException:
            self._discard(_State.FAILED)
            raise

    def _chain_key(self) -> Key | None:
        """The one entity that it writes, if it holds the line for it: then its commit may be followed, and follow."""
        if len(self._writes) != 1:
            return None
        ((key, write),) = self._writes.items()
        return key if key in self._line and write.ttl_s is None else None

    def _chained(self, commit: Commit, key: Key) -> ChainedCommit:
        """The commit as one that others may follow: who is next in line, or comes to it, gets the entity now."""
        follows, guess = self._view.follows, self._view.guess
        if follows is None:
            guess = commit.checks.get(key, 0)
        chained = ChainedCommit(commit.checks, commit.spans, commit.writes, commit.token, key=key, follows=follows)
        entity = self._writes[key].entity
        if entity is not None:
            entity = entity.snapshot()
            entity.version = guess
        self._line.remove(key)
        self._datastore._contention.leave(key, News(entity, guess, chained))
        return chained

    def _merge_into(self, parent: Transaction) -> None:
        for key, write in self._writes.items():
            before = parent._writes.get(key)
            write.fresh = write.fresh or (before is not None and before.fresh)
            parent._writes[key] = write
        parent._sources += self._sources
        parent._completed += self._completed
        parent._callbacks += self._callbacks
        self._state = _State.COMMITTED
        self._forget()

    def _discard(self, state: _State = _State.ROLLED_BACK, *, restore: bool = True) -> None:
        """Roll back, if it has not ended yet: nothing of it was sent."""
        if self._state in (_State.ACTIVE, _State.COMMITTING):
            self._state = state
            if restore:
                for source, key in reversed(self._completed):
                    write = self._writes.get(source.key)
                    if write is not None and write.fresh:
                        source.key = key
            self._forget()

    def _forget(self) -> None:
        """Let go of what only a living transaction needs: a task that outlives it may keep it for long."""
        self._writes = {}
        self._sources = []
        self._completed = []
        self._callbacks = []
        if self._parent is None:
            self._view.entities = {}

    def _hand_over(self, waiting: Sequence[anyio.Event | None], outcome: Outcome) -> None:
        """Leave the lines, telling who stood there before the commit was sent what it wrote."""
        contention = self._datastore._contention
        for key, following in zip(self._line, waiting, strict=True):
            write = self._writes.get(key)
            news = None
            if write is not None and following is not None:
                entity = write.entity
                if entity is not None:
                    entity = entity.snapshot()
                    entity.version = outcome.version_of(key)
                news = News(entity, outcome.version or 0, clock=outcome.clock)
            contention.leave(key, news, following)
        self._line = []

    def _leave_lines(self) -> None:
        while self._line:
            self._datastore._contention.leave(self._line.pop())

    async def _is_stale(self) -> bool:
        """Whether something read has changed by now."""
        view = self._view
        if view.empty:
            return False
        try:
            outcome, cancelled = await self._channel.commit(view.as_commit())
        except DatastoreError:
            return False  # what the application raised says more than that the store can't be asked
        if cancelled is not None:
            raise cancelled
        view.contended.update(outcome.conflicts)
        return not outcome.committed

    async def _run_callbacks(self, callbacks: Iterable[Callable[[], Any]], cancelled: BaseException | None) -> None:
        """Run all of them, then raise what they raised, or the cancellation that came before or meanwhile."""
        outer = current_frame.get()
        current_frame.set(_Frame(self._datastore, None, outer))
        errors: list[Exception] = []
        cancelled_type = anyio.get_cancelled_exc_class()
        try:
            with anyio.CancelScope(shield=True):
                for callback in callbacks:
                    try:
                        result = callback()
                        if inspect.isawaitable(result):
                            await result
                    except Exception as exc:
                        exc.add_note("raised by an on_commit callback: the transaction was committed")
                        errors.append(exc)
                    except cancelled_type as exc:
                        cancelled = exc
        finally:
            current_frame.set(outer)
        error: Exception | None = None
        if errors:
            text = "on_commit callbacks failed: the transaction was committed"
            error = errors[0] if len(errors) == 1 else ExceptionGroup(text, errors)
        if cancelled is not None:
            raise cancelled from error
        if error is not None:
            raise error

    # ------------------------------------------------------------------------------------------- checks

    def check_usable(self) -> None:
        """:raises TransactionClosedError: unless it can be used"""
        if self._state is not _State.ACTIVE or self._view.doomed:
            raise self._closed_error()
        if self._parent is not None:
            self._parent.check_usable()
        self._datastore._open_channel()

    def _check_writable(self) -> None:
        self.check_usable()
        if self.read_only:
            raise TransactionStateError("this transaction is read-only: begin it without read_only to write in it")

    def _closed_error(self) -> TransactionClosedError:
        if self._view.doomed and self._state is _State.ACTIVE:
            return TransactionClosedError(
                "this transaction has met a conflict: let the error pass, so that it is rolled back and run again"
            )
        return TransactionClosedError(
            f"this transaction {self._state.value}: a task that outlives it can't use it; let the transaction "
            "wait for its tasks (a task group inside it), or go outside with non_transactional()"
        )


class _Condition(enum.Enum):
    NONE = enum.auto()
    ABSENT = enum.auto()
    PRESENT = enum.auto()


_NEVER = _Write(None, False)


def version_conflict(key: Key, expected: int, actual: int) -> ConflictError:
    """The error of an ``if_version`` that did not hold."""
    is_there = f"version {actual} is" if actual else "no entity is"
    asked = f"version {expected} was expected" if expected else "none was expected"
    return ConflictError(
        f"{key!r}: {asked}, but {is_there} stored; nothing was written", key=key, expected=expected, actual=actual
    )


async def within(timeout: float | None, operation: Awaitable[T]) -> T:
    """What an operation returns, unless it takes more than ``timeout`` seconds.

    :raises DeadlineExceededError: if it does
    """
    if timeout is None:
        return await operation
    with anyio.move_on_after(timeout):
        return await operation
    raise DeadlineExceededError(f"the timeout of {timeout} s passed: nothing was written")


# ---------------------------------------------------------------------------------------------- running


class _TransactionTimeoutError(TransactionFailedError, DeadlineExceededError):
    """The time of a transaction was used up."""


async def run_in_transaction(
    datastore: Datastore,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    retries: int,
    timeout: float | None,
    read_only: bool,
    propagation: Propagation | None,
) -> Any:
    """See ``Datastore.run_in_transaction``."""
    check_retries(retries)
    check_timeout(timeout)
    inside = transaction_of(datastore)
    how = _how(inside, propagation)
    if how is Propagation.ALLOWED:
        return await within(timeout, _call(function, args, kwargs))
    if how is Propagation.NESTED:
        return await within(timeout, _run_nested(inside, function, args, kwargs, read_only))
    return await _run_new(datastore, function, args, kwargs, retries, timeout, read_only)


def _how(inside: Transaction | None, propagation: Propagation | None) -> Propagation:
    """ALLOWED: join the current one; NESTED: begin one in it; INDEPENDENT: begin one."""
    if propagation is not None and not isinstance(propagation, Propagation):
        raise BadArgumentError(f"propagation: expected a Propagation, got {propagation!r:.80}")
    if inside is None:
        if propagation is Propagation.MANDATORY:
            raise TransactionStateError("propagation MANDATORY: there is no current transaction; call this inside one")
        return Propagation.INDEPENDENT
    if propagation is None:
        inside.check_usable()
        raise TransactionStateError(
            "there is a current transaction already: say with propagation= whether to join it (ALLOWED), to nest "
            "(NESTED), or to begin an independent one (INDEPENDENT)"
        )
    if propagation is Propagation.INDEPENDENT:
        return propagation
    inside.check_usable()
    return Propagation.NESTED if propagation is Propagation.NESTED else Propagation.ALLOWED


async def _call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    result = function(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def _is_rollback(exc: BaseException) -> bool:
    """Whether this is a Rollback, or (from a task group) nothing but Rollbacks."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_rollback, exc.exceptions))
    return isinstance(exc, Rollback)


async def _run_nested(
    parent: Transaction | None,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    read_only: bool,
) -> Any:
    assert parent is not None
    async with TransactionContext(parent._datastore, Propagation.NESTED, read_only):
        return await _call(function, args, kwargs)
    return None  # rolled back


async def _run_new(
    datastore: Datastore,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    retries: int,
    timeout: float | None,
    read_only: bool,
) -> Any:
    deadline = math.inf if timeout is None else anyio.current_time() + timeout
    # One that runs inside of another must not wait in a line that the other may hold.
    queues = transaction_of(datastore) is None
    attempts = conflicts = collisions = 0
    contended: set[Key] = set()
    while True:
        attempts += 1
        # What a cache has may be why the last attempt failed.
        policy = ReadPolicy.STRONG if attempts == 1 else ReadPolicy.CURRENT
        transaction = Transaction(datastore, read_only=read_only, managed=True, queues=queues, read_policy=policy)
        attempt = _Attempt(transaction, contended if queues else ())
        if await attempt.run(function, args, kwargs, deadline):
            return attempt.result
        if attempt.timed_out:
            raise _timed_out(timeout, attempts)
        if transaction.collided and len(transaction.collided) == len(transaction._view.contended):
            collisions += 1
            await _skip_ids(datastore, transaction.collided, collisions)
            if collisions <= MAX_COLLISIONS:
                continue
        contended |= transaction._view.contended.difference(transaction.collided)
        if conflicts >= retries:
            raise _exhausted(attempts, contended) from attempt.error
        pause = random.uniform(0, min(MAX_BACKOFF_S, BACKOFF_S * 2**conflicts))
        conflicts += 1
        if deadline != math.inf and anyio.current_time() + pause >= deadline:
            raise _timed_out(timeout, attempts) from attempt.error
        await anyio.sleep(pause)


class _Attempt:
    """One run of a transactional function, and its commit."""

    __slots__ = ("contended", "error", "result", "timed_out", "transaction")

    def __init__(self, transaction: Transaction, contended: Iterable[Key]) -> None:
        self.transaction = transaction
        self.contended = contended
        self.result: Any = None
        self.error: Exception | None = None
        self.timed_out = False

    async def run(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], deadline: float
    ) -> bool:
        """Whether the transaction is done: committed, or rolled back as the function wished."""
        transaction = self.transaction
        outer = current_frame.get()
        try:
            if deadline == math.inf:
                done = await self._call(function, args, kwargs)
            else:
                done = None
                with anyio.CancelScope(deadline=deadline) as scope:
                    done = await self._call(function, args, kwargs)
                if scope.cancelled_caught:
                    self.timed_out = True
                    return False
            current_frame.set(outer)
            if done is None:
                try:
                    done = await transaction._try_commit(deadline)
                except NotSentError:
                    self.timed_out = True
                    return False
            return done
        finally:
            current_frame.set(outer)
            transaction._discard()
            transaction._leave_lines()

    async def _call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool | None:
        """True: rolled back on request; False: a conflict; None: to be committed."""
        transaction = self.transaction
        contention = transaction._datastore._contention
        for key in sorted(self.contended)[:MAX_LINES]:
            if await contention.enter(key):
                transaction._take_place(key)
        current_frame.set(_Frame(transaction._datastore, transaction, current_frame.get()))
        try:
            self.result = await _call(function, args, kwargs)
        except Exception as exc:
            self.result = None
            try:
                await transaction._view.know()
            except TransactionFailedError:
                self.error = exc
                return False
            if not transaction._view.doomed:
                if _is_rollback(exc):
                    return True
                if not await transaction._is_stale():
                    raise
            self.error = exc
            return False
        return None


async def _skip_ids(datastore: Datastore, collided: Iterable[Key], collisions: int) -> None:
    for key in {(key.project, key.namespace, key.kind): key for key in collided}.values():
        await datastore._ids.take(key, 0, skip=2**collisions)


def _timed_out(timeout: float | None, attempts: int) -> _TransactionTimeoutError:
    return _TransactionTimeoutError(
        f"the transaction's time of {timeout} s was used up in attempt {attempts}: nothing was written",
        attempts=attempts,
    )


def _exhausted(attempts: int, contended: Iterable[Key]) -> TransactionFailedError:
    named = ", ".join(map(repr, sorted(contended)[:3]))
    what = f" on {named}" if named else ""
    return TransactionFailedError(
        f"the transaction met a conflict{what} on each of {attempts} attempts: nothing was written; allow more "
        "retries, or let fewer transactions change the same entities",
        attempts=attempts,
    )


# ---------------------------------------------------------------------------------------- front doors


class TransactionContext:
    """``async with datastore.transaction() as transaction``: one attempt, committed at the end of the block."""

    __slots__ = ("_datastore", "_outer", "_propagation", "_read_only", "_transaction")

    def __init__(self, datastore: Datastore, propagation: Propagation | None, read_only: bool) -> None:
        self._datastore = datastore
        self._propagation = propagation
        self._read_only = read_only
        self._transaction: Transaction | None = None
        self._outer: _Frame | None = None

    async def __aenter__(self) -> Transaction:
        inside = transaction_of(self._datastore)
        how = _how(inside, self._propagation)
        if how is Propagation.ALLOWED and inside is not None:
            return inside
        parent = inside if how is Propagation.NESTED else None
        read_only = self._read_only or (parent is not None and parent.read_only)
        self._transaction = Transaction(
            self._datastore, read_only=read_only, parent=parent, managed=parent is not None and parent._managed
        )
        self._outer = current_frame.get()
        current_frame.set(_Frame(self._datastore, self._transaction, self._outer))
        return self._transaction

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        transaction, self._transaction = self._transaction, None
        if transaction is None:  # joined
            return False
        try:
            if transaction._state is not _State.ACTIVE:  # ended by hand
                return exc is not None and _is_rollback(exc)
            if exc is None:
                current_frame.set(self._outer)
                if not await transaction._try_commit(math.inf):
                    raise _conflict(transaction._view.contended)
                return False
            if not isinstance(exc, Exception):
                return False
            if transaction._parent is not None:
                return _is_rollback(exc) and not transaction._view.doomed
            if _is_rollback(exc):
                return True
            if not transaction._view.doomed and not await transaction._is_stale():
                return False
            if isinstance(exc, TransactionFailedError) and transaction._view.doomed:
                return False
            raise _conflict(transaction._view.contended) from exc
        finally:
            current_frame.set(self._outer)
            transaction._discard()


class NonTransactional:
    """``datastore.non_transactional``: a decorator and context manager that pauses the current transaction."""

    __slots__ = ("_allow_existing", "_datastore", "_outer")

    def __init__(self, datastore: Datastore, allow_existing: bool) -> None:
        self._datastore = datastore
        self._allow_existing = allow_existing
        self._outer: list[_Frame | None] = []

    def __enter__(self) -> None:
        if not self._allow_existing and transaction_of(self._datastore) is not None:
            raise TransactionStateError("this is not allowed inside a transaction (allow_existing=False)")
        self._outer.append(current_frame.get())
        current_frame.set(_Frame(self._datastore, None, self._outer[-1]))

    def __exit__(self, *exc_info: object) -> None:
        current_frame.set(self._outer.pop())

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__()

    def __call__(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        check_async(function)

        @functools.wraps(function)
        async def paused(*args: P.args, **kwargs: P.kwargs) -> T:
            with NonTransactional(self._datastore, self._allow_existing):
                return await function(*args, **kwargs)

        return paused


def check_async(function: Any) -> None:
    """:raises BadArgumentError: unless it is a coroutine function"""
    if not inspect.iscoroutinefunction(inspect.unwrap(function) if callable(function) else function) and not (
        inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004  (its type is asked for)
    ):
        raise BadArgumentError(f"expected an async function (async def without yield), got {function!r:.120}")


def check_options(retries: int, timeout: float | None, propagation: Propagation) -> None:
    """:raises BadArgumentError: if an option of a decorator is not one"""
    check_retries(retries)
    check_timeout(timeout)
    if not isinstance(propagation, Propagation):
        raise BadArgumentError(f"propagation: expected a Propagation, got {propagation!r:.80}")


def decorated(
    function: Callable[..., Any],
    find: Callable[[], Datastore],
    *,
    retries: int,
    timeout: float | None,
    read_only: bool,
    propagation: Propagation,
) -> Callable[..., Any]:
    """``function``, run in a transaction of the datastore that ``find`` finds when it is called."""
    check_async(function)

    @functools.wraps(function)
    async def in_transaction(*args: Any, **kwargs: Any) -> Any:
        return await run_in_transaction(
            find(),
            function,
            args,
            kwargs,
            retries=retries,
            timeout=timeout,
            read_only=read_only,
            propagation=propagation,
        )

    return in_transaction


def find_datastore() -> Datastore:
    """The datastore of the current transaction, else the only open one of the process.

    :raises TransactionStateError: if there is none, or more than one
    """
    frame = current_frame.get()
    while frame is not None:
        if frame.transaction is not None:
            return frame.datastore
        frame = frame.outer
    found = list(open_datastores)
    if len(found) == 1:
        return found[0]
    there = "no datastore is open" if not found else f"{len(found)} datastores are open"
    raise TransactionStateError(
        f"{there}: name the one to use, @transactional(datastore=...), or open exactly one before the call"
    )


@overload
def transactional(function: Callable[P, Awaitable[T]], /) -> Callable[P, Awaitable[T]]: ...
@overload
def transactional(
    *,
    datastore: Datastore | None = None,
    retries: int = 3,
    timeout: float | None = None,
    read_only: bool = False,
    propagation: Propagation = Propagation.ALLOWED,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]: ...
def transactional(
    function: Callable[..., Any] | None = None,
    /,
    *,
    datastore: Datastore | None = None,
    retries: int = 3,
    timeout: float | None = None,
    read_only: bool = False,
    propagation: Propagation = Propagation.ALLOWED,
) -> Any:
    """Run an async function in a transaction; for functions of modules that have no datastore at hand.

    As ``Datastore.transactional``. The datastore is the one given, else that of the current transaction,
    else the only one that is open in this process when the function is called.

    >>> @transactional(retries=5)
    ... async def finish(ds, key):
    ...     task = await ds.get(key)
    ...     task["done"] = True
    ...     await ds.put(task)
    """

    check_options(retries, timeout, propagation)

    def decorate(wrapped: Callable[..., Any]) -> Callable[..., Any]:
        return decorated(
            wrapped,
            find_datastore if datastore is None else lambda: datastore,
            retries=retries,
            timeout=timeout,
            read_only=read_only,
            propagation=propagation,
        )

    return decorate if function is None else decorate(function)
