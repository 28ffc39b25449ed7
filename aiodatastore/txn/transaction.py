"""One attempt of a transaction: what it reads, what it is about to write, and its end."""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio

from aiodatastore.adapters.base import Adapter, AggregateResult, Commit, Delete, Outcome, Page, Put, ReadPolicy
from aiodatastore.arguments import (
    check_timeout,
    check_ttl,
    complete_key,
    complete_keys,
    entities_to_write,
    expected_versions,
)
from aiodatastore.batching import MAX_BATCH_KEYS, ChainedCommit
from aiodatastore.contention import News
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadKeyError,
    ConflictError,
    DatastoreError,
    DeadlineExceededError,
    EntityExistsError,
    EntityNotFoundError,
    TransactionClosedError,
    TransactionFailedError,
    TransactionStateError,
    UnavailableError,
)
from aiodatastore.key import Key
from aiodatastore.txn.current import Frame, current_frame
from aiodatastore.txn.view import View, conflict, held

if TYPE_CHECKING:
    from aiodatastore.bound_query import BoundQuery
    from aiodatastore.datastore import Datastore

__all__ = ["State", "Transaction", "version_conflict", "within"]

T = TypeVar("T")


_NO_NEWS: dict[Key, News] = {}


class _Write:
    """A buffered write; ``entity`` is None for a delete. ``fresh``: the id is automatic, nothing may be there."""

    __slots__ = ("entity", "fresh", "ttl_s")

    def __init__(self, entity: Entity | None, fresh: bool, ttl_s: float | None = None) -> None:
        self.entity = entity
        self.fresh = fresh
        self.ttl_s = ttl_s


class State(enum.Enum):
    """How far a transaction is, as messages say it."""

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
        self._view: View = parent._view if parent is not None else View()
        self._writes: dict[Key, _Write] = {}
        self._sources: list[Entity] = []
        self._completed: list[tuple[Entity, Key]] = []
        self._callbacks: list[Callable[[], Any]] = []
        self._state = State.ACTIVE

    def __repr__(self) -> str:
        nested = "nested, " if self._parent is not None else ""
        return f"<Transaction: {nested}{len(self._view.reads)} read, {len(self._writes)} written, {self._state.value}>"

    @property
    def is_active(self) -> bool:
        """Whether it can be used: neither ended nor in conflict."""
        if self._state is not State.ACTIVE or self._view.doomed:
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
            since, until, clock = held(found)
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
            raise conflict(self._view.contended)

    async def rollback(self) -> None:
        """Forget the writes. Allowed once, also after a conflict.

        :raises TransactionClosedError: if it has ended already
        """
        if self._state is not State.ACTIVE:
            raise self._closed_error()
        self._discard()

    async def _try_commit(self, deadline: float) -> bool:
        """Commit and run the callbacks; False if there was a conflict."""
        view = self._view
        if view.doomed:
            self._discard(State.FAILED)
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
                self._discard(State.FAILED)
                return False
        commit = self._as_commit()
        cancelled = None
        if commit is None and view.followed and await self._is_stale():
            # Others may have written since, and told of it before this one began.
            self._discard(State.FAILED)
            return False
        if commit is not None:
            self._state = State.COMMITTING
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
                self._discard(State.FAILED, restore=not isinstance(exc, UnavailableError))
                raise
            finally:
                if chained is not None:
                    chained.done.set()
                    contention.close(chained.key, chained)
            if outcome.version is None:
                view.contended.update(outcome.conflicts)
                self.collided = [key for key in outcome.conflicts if self._writes.get(key, _NEVER).fresh]
                self._discard(State.FAILED)
                if cancelled is not None:
                    raise cancelled
                return False
            for source in self._sources:
                write = self._writes.get(source.key)
                if write is not None and write.entity is not None:
                    source.version = outcome.version_of(source.key)
            self._hand_over(waiting, outcome)
        self._state = State.COMMITTED
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
            self._discard(State.FAILED)
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
        self._state = State.COMMITTED
        self._forget()

    def _discard(self, state: State = State.ROLLED_BACK, *, restore: bool = True) -> None:
        """Roll back, if it has not ended yet: nothing of it was sent."""
        if self._state in (State.ACTIVE, State.COMMITTING):
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
        current_frame.set(Frame(self._datastore, None, outer))
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
        if self._state is not State.ACTIVE or self._view.doomed:
            raise self._closed_error()
        if self._parent is not None:
            self._parent.check_usable()
        self._datastore._open_channel()

    def _check_writable(self) -> None:
        self.check_usable()
        if self.read_only:
            raise TransactionStateError("this transaction is read-only: begin it without read_only to write in it")

    def _closed_error(self) -> TransactionClosedError:
        if self._view.doomed and self._state is State.ACTIVE:
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
