"""``Cached``: the suite, and what it is for: no read is older than what this process knows."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key, ReadPolicy
from aiodatastore.adapters.base import MIXED, Adapter, Commit, Delete, Lookup, Moment, Outcome, Put
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import (
    BadArgumentError,
    ConflictError,
    EntityExistsError,
    TransactionFailedError,
    UnavailableError,
    UnsupportedError,
)
from aiodatastore.rowstore import Capability
from aiodatastore.shims.base import Shim
from aiodatastore.shims.cached import Cached
from aiodatastore.shims.cached.copies import Copies, Copy, space_of
from aiodatastore.shims.cached.shared import Shared
from aiodatastore.shims.failing import Failing
from aiodatastore.shims.key_transform import KeyTransform
from aiodatastore.shims.lowercase_keys import LowercaseKeys
from aiodatastore.shims.namespaced import Namespaced
from aiodatastore.shims.sharded import Sharded
from tests.shims.gates import Gate, entity, increase, values, wait_for
from tests.shims.stacks import ShimSuite

A, B, C = Key("K", "a"), Key("K", "b"), Key("K", "c")

pytestmark = pytest.mark.anyio


class TestCached(ShimSuite):
    both_loops = True
    stores_rows = True
    wrap = staticmethod(lambda adapter: Cached(adapter, staleness_s=0.05))


class TestCachedTwice(ShimSuite):
    """With a cache that is shared, over another cache."""

    wrap = staticmethod(lambda adapter: Cached(Cached(adapter), adapter_from_url("memory://"), max_entities=3))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, *caches: Cached) -> None:
        self.now = 1000.0
        for cache in caches:
            cache._now = self

    def __call__(self) -> float:
        return self.now


def gated(cache: Adapter | None = None, **settings: Any) -> tuple[EngineAdapter, Gate, Cached]:
    store = EngineAdapter(MemoryRowStore())
    gate = Gate(store)
    return store, gate, Cached(gate, cache, **settings)


async def put_behind(store: Adapter, key: Key, value: int | None) -> int:
    """As another process would."""
    [outcome] = await store.commit([Commit(writes=[Delete(key) if value is None else Put(entity(key, value))])])
    assert outcome.version is not None
    return outcome.version


# ------------------------------------------------------------------------------------------------ hits


async def test_what_was_read_or_written_is_answered_from_memory() -> None:
    _, gate, cached = gated()
    async with Datastore(cached) as ds:
        assert await ds.get([A, B]) == [None, None]
        await ds.put(entity(A, 1))
        assert await ds.get([A, B]) == [entity(A, 1), None]
        assert cached.lookup_now([A, B]) == [entity(A, 1), None]
        assert gate.lookups == [(A, B)]
        assert cached.counts["hits"] == 4
        assert cached.counts["misses"] == 2
        assert (await cached.stats())["cache"]["entities"] == 2


async def test_entities_are_the_callers_own() -> None:
    _, _, cached = gated()
    async with Datastore(cached) as ds:
        await ds.put(Entity(A, {"n": [1]}))
        for _ in range(3):
            found = await ds.get(A)
            assert found is not None
            assert found["n"] == [1]
            found["n"].append(2)
        given = Entity(B, {"n": [1]})
        await ds.put(given)
        given["n"].append(2)
        assert (await ds.get(B)) == Entity(B, {"n": [1]})


async def test_read_policies() -> None:
    """``CURRENT`` goes past the cache and refreshes it; what a replica said is not kept."""
    store, _gate, cached = gated()
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        await put_behind(store, A, 2)
        assert await ds.get(A, read_policy=ReadPolicy.EVENTUAL) == entity(A, 1)
        assert await ds.get([A], read_policy=ReadPolicy.CURRENT) == [entity(A, 2)]
        assert await ds.get(A) == entity(A, 2)
        assert await ds.get(B, read_policy=ReadPolicy.EVENTUAL) is None
        assert cached.lookup_now([B]) is None
        await put_behind(store, A, 3)
        assert await ds.get(A, read_policy=ReadPolicy.CURRENT) == entity(A, 3)


async def test_bounds() -> None:
    _, _, cached = gated(max_entities=2)
    async with Datastore(cached) as ds:
        await ds.put([entity(A, 1), entity(B, 1)])
        await ds.get(A)
        await ds.put(entity(C, 1))
        assert cached.lookup_now([A])
        assert cached.lookup_now([C])
        assert cached.lookup_now([B]) is None
        assert cached.counts["evictions"] == 1
    _, _, small = gated(max_bytes=5000)
    async with Datastore(small) as ds:
        await ds.put([Entity(Key("K", n), {"text": "x" * 1000}, unindexed=["text"]) for n in range(1, 21)])
        await ds.put(Entity(A, {"text": "x" * 6000}, unindexed=["text"]))
        assert 0 < small.counts["bytes"] <= 5000
        assert small.lookup_now([A]) is None
        small.clear()
        assert small.counts["bytes"] == small.counts["entities"] == 0


async def test_large_commits_are_not_kept() -> None:
    """What they wrote is known to have changed."""
    _, _, cached = gated()
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        await ds.put([entity(A, 2), *(entity(Key("K", n), n) for n in range(1, 1500))])
        assert cached.counts["entities"] == 0
        assert await ds.get(A) == entity(A, 2)


# ------------------------------------------------------------------------------------------- staleness


async def test_others_commits_are_seen_after_the_bound() -> None:
    store, _, cached = gated(staleness_s=2)
    clock = Clock(cached)
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        await put_behind(store, A, 2)
        clock.now += 1.9
        assert await ds.get(A) == entity(A, 1)
        clock.now += 0.2
        assert await ds.get(A) == entity(A, 2)


async def test_the_bound_counts_from_when_the_read_was_sent() -> None:
    store, gate, cached = gated(staleness_s=2)
    clock = Clock(cached)
    async with Datastore(cached), anyio.create_task_group() as group:
        gate.holds_lookups = True
        group.start_soon(values, cached, A)
        await wait_for(gate.held, 1)
        await put_behind(store, A, 1)
        clock.now += 1.5
        gate.holds_lookups = False
        gate.held[0].set()
        await anyio.wait_all_tasks_blocked()
        assert cached.lookup_now([A]) == [None]
        clock.now += 0.6
        assert await values(cached, A) == [1]


async def test_absent_keys_have_a_bound_of_their_own() -> None:
    _, gate, cached = gated(staleness_s=10, negative_ttl_s=1)
    clock = Clock(cached)
    async with Datastore(cached):
        await values(cached, A)
        await values(cached, A)
        assert len(gate.lookups) == 1
        clock.now += 1.1
        await values(cached, A)
        assert len(gate.lookups) == 2
    _, gate, cached = gated(negative_ttl_s=0)
    async with Datastore(cached):
        await values(cached, A)
        await values(cached, A)
        assert len(gate.lookups) == 2


async def test_a_commit_that_finds_the_version_renews_the_copy() -> None:
    _, gate, cached = gated(staleness_s=2)
    clock = Clock(cached)
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        clock.now += 1.5
        version = (await cached.lookup([A])).entities[0].version  # type: ignore[union-attr]
        await cached.commit([Commit({A: version}, writes=[Put(entity(B, 1))])])
        clock.now += 1.5
        found = await cached.lookup([A])
        assert not gate.lookups
        assert found.moments == [Moment(None, version + 1)]


# ------------------------------------------------------------------------------------- fills and commits


async def test_a_fill_that_is_overtaken_by_a_commit_is_not_kept() -> None:
    store, gate, cached = gated()
    async with Datastore(cached) as ds, anyio.create_task_group() as group:
        await put_behind(store, A, 1)
        gate.holds_lookups = True
        found: list[Any] = []

        async def read() -> None:
            found.extend(await values(cached, A))

        group.start_soon(read)
        await wait_for(gate.held, 1)
        gate.holds_lookups = False
        await ds.put(entity(A, 2))
        assert cached.lookup_now([A]) == [entity(A, 2)]
        cached._entries.clear()  # evicted: what is known of the commit must not be forgotten with it
        gate.held[0].set()
        await anyio.wait_all_tasks_blocked()
        assert found == [1]  # it was sent before
        assert cached.lookup_now([A]) is None
        assert await values(cached, A) == [2]


async def test_who_reads_after_a_commit_does_not_join_a_read_from_before() -> None:
    store, gate, cached = gated()
    async with Datastore(cached) as ds, anyio.create_task_group() as group:
        await put_behind(store, A, 1)
        gate.holds_lookups = True
        group.start_soon(values, cached, A)
        await wait_for(gate.held, 1)
        gate.holds_lookups = False
        await ds.put(entity(A, 2))
        cached._entries.clear()
        with anyio.fail_after(60):
            assert await values(cached, A) == [2]
        gate.held[0].set()


async def test_answers_of_commits_that_arrive_in_the_wrong_order() -> None:
    _, gate, cached = gated()
    async with Datastore(cached), anyio.create_task_group() as group:
        gate.holds_commits = True
        group.start_soon(cached.commit, [Commit(writes=[Put(entity(A, 1))])])
        await wait_for(gate.held, 1)
        gate.holds_commits = False
        await cached.commit([Commit(writes=[Put(entity(A, 2))])])
        cached._entries.clear()
        gate.held[0].set()
        await anyio.wait_all_tasks_blocked()
        assert cached.lookup_now([A]) is None
        assert await values(cached, A) == [2]


async def test_a_read_between_a_commit_and_its_answer() -> None:
    """It may see either; afterwards only the new value is seen."""
    store, gate, cached = gated()
    async with Datastore(cached), anyio.create_task_group() as group:
        await put_behind(store, A, 1)
        assert await values(cached, A) == [1]
        gate.holds_commits = True
        group.start_soon(cached.commit, [Commit(writes=[Put(entity(A, 2))])])
        await wait_for(gate.held, 1)
        assert await values(cached, A) == [1]
        gate.held[0].set()
        await anyio.wait_all_tasks_blocked()
        assert await values(cached, A) == [2]


async def test_a_commit_whose_answer_is_lost() -> None:
    """The key is read again, and reads that were under way are not kept."""
    _store, gate, cached = gated()
    async with Datastore(cached) as ds, anyio.create_task_group() as group:
        await ds.put([entity(A, 1), entity(B, 1)])
        gate.holds_lookups = True
        cached._entries.drop(B)
        group.start_soon(values, cached, B)
        await wait_for(gate.held, 1)
        gate.holds_lookups = False
        gate.loses = True
        with pytest.raises(UnavailableError):
            await ds.put([entity(A, 2), entity(B, 2)])
        gate.loses = False
        gate.held[0].set()
        await anyio.wait_all_tasks_blocked()
        assert cached.lookup_now([A]) is None
        assert cached.lookup_now([B]) is None
        assert await ds.get([A, B]) == [entity(A, 2), entity(B, 2)]


@pytest.mark.parametrize("atomic", [True, False])
async def test_a_commit_whose_answer_a_store_of_a_collection_loses(atomic: bool) -> None:
    """It is told in the outcome, not raised; what may have been written is read again."""
    store, gate = adapter_from_url("memory://"), Failing(adapter_from_url("memory://"), 1.0, when="after")
    gate.enabled = False
    keys = [Key("A", f"k{number}") for number in range(8)]
    async with Datastore(Cached(Sharded([store, gate]), staleness_s=60)) as ds:

        async def write(value: int) -> None:
            entities = [entity(key, value) for key in keys]
            await (ds.run_in_transaction(ds.put, entities) if atomic else ds.put(entities))

        await write(1)
        await ds.get(keys)
        gate.enabled = True
        with pytest.raises(UnavailableError):
            await write(2)
        gate.enabled = False
        assert await ds.get(keys) == await ds.get(keys, read_policy=ReadPolicy.CURRENT)


async def test_a_conflict_tells() -> None:
    store, _, cached = gated()
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        known = await ds.get(A)
        await put_behind(store, A, 2)
        assert known is not None
        with pytest.raises(ConflictError):
            await ds.put(entity(A, 3), if_version=known.version)
        assert await ds.get(A) == entity(A, 2)
        assert await ds.get(B) is None
        await put_behind(store, B, 1)
        with pytest.raises(EntityExistsError):
            await ds.insert(entity(B, 2))
        assert await ds.get_or_insert(B) == entity(B, 1)
        assert await ds.get(C) is None
        await put_behind(store, C, 1)
        assert await ds.get_or_insert(C) == entity(C, 1)  # would ask for ever if it went on believing the copy
        await put_behind(store, C, None)
        with pytest.raises(Exception, match="no entity"):
            await ds.update(entity(C, 2))
        assert await ds.get(C) is None


async def test_a_query_tells() -> None:
    store, _, cached = gated()
    async with Datastore(cached) as ds:
        await ds.put([entity(A, 1), entity(B, 1)])
        await put_behind(store, A, 2)
        assert await ds.get(A) == entity(A, 1)
        assert await ds.query("K").fetch() == [entity(A, 2), entity(B, 1)]
        assert await ds.get(A) == entity(A, 2)
        assert cached.counts["invalidations"] == 1


async def test_an_older_read_does_not_replace_a_newer_one() -> None:
    """Two reads, of which the first answers last, and nobody was told of the commit between."""
    store, gate, cached = gated()
    async with Datastore(cached), anyio.create_task_group() as group:
        await put_behind(store, A, 1)
        gate.holds_lookups = True
        group.start_soon(values, cached, A)
        await wait_for(gate.held, 1)
        gate.holds_lookups = False
        await put_behind(store, A, 2)
        assert await values(cached, A, policy=ReadPolicy.CURRENT) == [2]
        gate.held[0].set()
        await anyio.wait_all_tasks_blocked()
        assert cached.lookup_now([A]) == [entity(A, 2)]


async def test_clear_is_not_undone_by_a_read_under_way() -> None:
    _, gate, cached = gated()
    async with Datastore(cached), anyio.create_task_group() as group:
        gate.holds_lookups = True
        group.start_soon(values, cached, A)
        await wait_for(gate.held, 1)
        cached.clear()
        gate.held[0].set()
        await anyio.wait_all_tasks_blocked()
        assert cached.lookup_now([A]) is None


# ------------------------------------------------------------------------------------------ one fetch


async def test_concurrent_misses_cause_one_read() -> None:
    _, gate, cached = gated()
    async with Datastore(cached), anyio.create_task_group() as group:
        gate.holds_lookups = True
        found: list[Any] = []

        async def read(*keys: Key) -> None:
            found.append(await values(cached, *keys))

        group.start_soon(read, A)
        await wait_for(gate.held, 1)
        for _ in range(5):
            group.start_soon(read, A)
        group.start_soon(read, B, A)
        await wait_for(gate.held, 2)
        assert gate.lookups == [(A,), (B,)]
        for held in gate.held:
            held.set()
        await anyio.wait_all_tasks_blocked()
        assert sorted(map(len, found)) == [1] * 6 + [2]
        assert cached.counts["joined"] == 6


async def test_a_cancelled_read_is_taken_over() -> None:
    store, gate, cached = gated()
    async with Datastore(cached), anyio.create_task_group() as group:
        await put_behind(store, A, 1)
        gate.holds_lookups = True
        found: list[Any] = []

        async def read(scope: anyio.CancelScope) -> None:
            with scope:
                found.extend(await values(cached, A))

        scopes = [anyio.CancelScope() for _ in range(4)]
        group.start_soon(read, scopes[0])
        await wait_for(gate.held, 1)
        for scope in scopes[1:]:
            group.start_soon(read, scope)
        await anyio.wait_all_tasks_blocked()
        scopes[0].cancel()
        scopes[1].cancel()
        await wait_for(gate.held, 2)
        gate.held[1].set()
        await anyio.wait_all_tasks_blocked()
        assert found == [1, 1]
        assert len(gate.lookups) == 2


async def test_an_error_reaches_all_who_wait() -> None:
    _, gate, cached = gated()
    async with Datastore(cached), anyio.create_task_group() as group:
        gate.holds_lookups = True
        errors: list[Exception] = []

        async def read() -> None:
            try:
                await cached.lookup([A])
            except UnavailableError as exc:
                errors.append(exc)

        held = gate._hold

        async def hold_and_fail() -> None:
            await held()
            raise UnavailableError("away")

        gate._hold = hold_and_fail  # type: ignore[method-assign]
        for _ in range(3):
            group.start_soon(read)
        await wait_for(gate.held, 1)
        await anyio.wait_all_tasks_blocked()
        gate.held[0].set()
        await anyio.wait_all_tasks_blocked()
        assert len(gate.lookups) == 1
        assert len({id(error) for error in errors}) == 3


# ---------------------------------------------------------------------------------------- transactions


async def test_a_stale_copy_costs_a_retry() -> None:
    store, gate, cached = gated()
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        await put_behind(store, A, 10)
        assert await increase(ds, A) == [1, 10]
        assert gate.policies == [ReadPolicy.CURRENT]
        assert await ds.get(A) == entity(A, 11)


async def test_a_transaction_sees_no_mixture() -> None:
    """One entity from memory, the other changed with it by another process."""
    store, _, cached = gated()
    async with Datastore(cached) as ds:
        await ds.put([entity(A, 1), entity(B, 1)])
        cached._entries.drop(B)
        made = [entity(A, 2), entity(B, 2)]
        await store.commit([Commit(writes=[Put(each) for each in made])])
        seen: list[Any] = []

        @ds.transactional(retries=3)
        async def both() -> None:
            first, second = await ds.get(A), await ds.get(B)
            assert first is not None
            assert second is not None
            seen.append((first["n"], second["n"]))

        await both()
        assert seen == [(2, 2)]
        transaction = ds.begin()
        await put_behind(store, A, 3)
        assert await transaction.get(A) == entity(A, 2)
        await put_behind(store, B, 3)
        cached._entries.drop(B)
        with pytest.raises(TransactionFailedError):
            await transaction.get(B)
        await transaction.rollback()


async def test_moments_of_a_mixture() -> None:
    store, _, cached = gated()
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        await put_behind(store, C, 1)
        found = await cached.lookup([A, B])
        assert found.moments is not None
        assert found.clock is None
        first, second = found.moments
        assert first.version < second.version == found.version


# ------------------------------------------------------------------------------ several caches, two phases


async def test_caches_of_one_process_tell_each_other() -> None:
    store = EngineAdapter(MemoryRowStore())
    first, second = Cached(store), Cached(Shim(store))
    second.child.store = store.store  # type: ignore[attr-defined]  # a shim has none: so they are known to be one
    async with Datastore(first) as ds:
        await second_open(second)
        await ds.put(entity(A, 1))
        assert await values(second, A) == [1]
        await ds.put(entity(A, 2))
        assert second.lookup_now([A]) is None
        assert await values(second, A) == [2]
        second._hub.members.remove(second)  # type: ignore[union-attr]


async def second_open(cached: Cached) -> None:
    """Open a cache over a store that is open."""
    from aiodatastore.shims.cached.hub import hub_of

    cached._hub = hub_of(cached.child)
    cached._hub.members.append(cached)


async def test_two_connections_to_one_file(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    async with Datastore(Cached(adapter_from_url(url))) as first, Datastore(Cached(adapter_from_url(url))) as second:
        await first.put(entity(A, 1))
        assert await second.get(A) == entity(A, 1)
        await second.put(entity(A, 2))
        assert await first.get(A) == entity(A, 2)
        await first.delete(A)
        assert await second.get(A) is None


class TwoPhase(Shim):
    """Keeps what is prepared, and commits it when it is resolved."""

    def __init__(self, child: Adapter) -> None:
        super().__init__(child)
        self.waiting: dict[str, Commit] = {}
        self.loses = False

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        if name == "refused":
            return Outcome(None, dict.fromkeys(commit.checks, 99))
        self.waiting[name] = commit
        return Outcome(0)

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        waiting = self.waiting.pop(name, None)
        if waiting is None or not commit:
            return None
        [outcome] = await self.child.commit([waiting])
        if self.loses:
            raise UnavailableError("lost")
        return outcome


async def test_what_is_resolved_is_seen() -> None:
    store = EngineAdapter(MemoryRowStore())
    phases = TwoPhase(store)
    cached = Cached(phases)
    async with Datastore(cached) as ds:
        await ds.put([entity(A, 1), entity(B, 1)])
        await cached.prepare(Commit(writes=[Put(entity(A, 2))]), "one")
        assert await ds.get(A) == entity(A, 1)
        await cached.resolve("one", commit=True)
        assert cached.lookup_now([A]) is None
        assert await ds.get(A) == entity(A, 2)
        await cached.prepare(Commit(writes=[Put(entity(A, 3))]), "two")
        await cached.resolve("two", commit=False)
        assert await ds.get(A) == entity(A, 2)
        await cached.prepare(Commit(writes=[Put(entity(A, 4))]), "three")
        phases.loses = True
        with pytest.raises(UnavailableError):
            await cached.resolve("three", commit=True)
        phases.loses = False
        assert await ds.get(A) == entity(A, 4)
        assert cached.lookup_now([B]) is not None
        phases.waiting["orphan"] = Commit(writes=[Put(entity(B, 5))])  # another process prepared it
        await cached.resolve("orphan", commit=True)
        assert await ds.get(B) == entity(B, 5)
        await cached.prepare(Commit({B: 1}), "refused")
        assert cached.lookup_now([B]) is None


class SeveralStores(Shim):
    """Answers commits as a collection does that wrote to several stores."""

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        found = await self.child.commit(batch)
        for outcome, commit in zip(found, batch, strict=True):
            outcome.clock = MIXED
            outcome.versions = {
                write.entity.key if isinstance(write, Put) else write.key: outcome.version or 0
                for write in commit.writes
            }
            outcome.version = None if not commit.atomic else outcome.version
        return found


async def test_commits_to_several_stores_drop_what_they_wrote() -> None:
    store = EngineAdapter(MemoryRowStore())
    cached = Cached(SeveralStores(store))
    async with Datastore(cached):
        await values(cached, A, B)
        await cached.commit([Commit(writes=[Put(entity(A, 1))])])
        assert cached.lookup_now([A]) is None
        assert await values(cached, A, B) == [1, None]
        await cached.commit([Commit(writes=[Put(entity(B, 1))], atomic=False)])  # some of it was refused
        assert cached.lookup_now([B]) is None


# ------------------------------------------------------------------------------------------------- push


class Telling(Gate):
    """Tells of commits when the test says so."""

    listener: Any = None
    closed = False

    async def subscribe(self, listener: Any, interval_s: float) -> Any:
        self.listener, self.interval_s = listener, interval_s
        return self

    async def aclose(self) -> None:
        if self.listener is not None and not self.closed:
            self.closed = True
        else:
            await super().aclose()


@contextmanager
def telling(**settings: Any) -> Iterator[tuple[EngineAdapter, Telling, Cached, Clock]]:
    store = EngineAdapter(MemoryRowStore())
    told = Telling(store)
    cached = Cached(told, **settings)
    yield store, told, cached, Clock(cached)
    assert told.closed


async def test_messages_invalidate() -> None:
    with telling(staleness_s=3) as (store, told, cached, _):
        async with Datastore(cached) as ds:
            assert told.interval_s == 1
            await ds.put([entity(A, 1), entity(B, 1)])
            version = await put_behind(store, A, 2)
            assert await ds.get(A) == entity(A, 1)
            cached.changed([A], version)
            assert await ds.get(A) == entity(A, 2)
            cached.changed([A], version)  # of what is known already
            assert cached.lookup_now([A, B]) is not None


async def test_what_is_confirmed_is_served_for_longer() -> None:
    with telling(staleness_s=3) as (store, _told, cached, clock):
        async with Datastore(cached) as ds:
            await ds.put(entity(A, 1))
            await values(cached, B)
            assert [cached.is_told] == [False]
            for _ in range(10):
                clock.now += 2
                cached.confirmed(clock.now - 0.5, 7)
            assert [cached.is_told] == [True]
            assert cached.lookup_now([A, B]) == [entity(A, 1), None]
            assert (await cached.lookup([A, B])).moments == [Moment(None, 7)] * 2
            clock.now += 2.6  # the connection is silent
            assert [cached.is_told] == [False]
            assert cached.lookup_now([A]) is None
            await put_behind(store, A, 2)
            assert await ds.get(A) == entity(A, 2)


async def test_a_gap_drops_everything() -> None:
    with telling(staleness_s=3) as (store, told, cached, clock):
        async with Datastore(cached), anyio.create_task_group() as group:
            await values(cached, A)
            told.holds_lookups = True
            group.start_soon(values, cached, B)
            await wait_for(told.held, 1)
            await put_behind(store, A, 2)
            cached.gap()
            assert cached.lookup_now([A]) is None
            told.held[0].set()
            told.holds_lookups = False
            await anyio.wait_all_tasks_blocked()
            assert cached.lookup_now([B]) is None  # it was read before
            assert await values(cached, A) == [2]
            clock.now += 2
            cached.confirmed(clock.now, 9)
            clock.now += 2
            assert cached.lookup_now([A]) == [entity(A, 2)]


async def test_a_message_overtakes_a_fill() -> None:
    with telling() as (store, told, cached, _):
        async with Datastore(cached), anyio.create_task_group() as group:
            told.holds_lookups = True
            group.start_soon(values, cached, A)
            await wait_for(told.held, 1)
            cached.changed([A], await put_behind(store, A, 1))
            told.held[0].set()
            told.holds_lookups = False
            await anyio.wait_all_tasks_blocked()
            assert cached.lookup_now([A]) is None
            assert await values(cached, A) == [1]


async def test_push_where_there_is_none() -> None:
    with pytest.raises(UnsupportedError, match="staleness_s"):
        await Datastore(Cached(adapter_from_url("memory://"), invalidation="push")).open()


# ------------------------------------------------------------------------------------------- shared cache


async def test_a_shared_cache_serves_others(tmp_path: Any) -> None:
    store, gate, _ = gated()
    cache = EngineAdapter(MemoryRowStore())
    await cache.open()
    shared = Held(cache)
    first, second = Cached(gate, shared), Cached(gate, shared)
    async with Datastore(first) as ds:
        await put_behind(store, A, 1)
        await ds.get([A, B])
        assert await values(second, A, B) == [1, None]
        assert len(gate.lookups) == 1
        assert second.counts["shared_hits"] == 2
        found = await second.lookup([A])
        assert found.entities[0] is not None
        assert found.entities[0].version == 2
        await ds.put(entity(A, 2))
        third = Cached(gate, shared)
        assert await values(third, A) == [2]
        assert len(gate.lookups) == 1
        await ds.delete(A)
        assert await values(Cached(gate, shared), A) == [None]


class Held(Shim):
    """Stays open, and fails if it is told to."""

    fails = False

    async def open(self) -> None:
        if self.fails:
            raise UnavailableError("the cache is away")

    async def aclose(self) -> None:
        pass

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        if self.fails:
            raise UnavailableError("the cache is away")
        return await self.child.lookup(keys)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        if self.fails:
            raise UnavailableError("the cache is away")
        return await self.child.commit(batch)


async def test_a_cache_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing fails with it, and what it could not be told does not come back."""
    _store, gate, _ = gated()
    inner = EngineAdapter(MemoryRowStore())
    await inner.open()
    shared = Held(inner)
    cached = Cached(gate, shared)
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        shared.fails = True
        with caplog.at_level(logging.WARNING, "aiodatastore"):
            await ds.put(entity(A, 2))
            await ds.get(B)
        assert len([record for record in caplog.records if "does not work" in record.message]) == 1
        shared.fails = False
        cached._shared._rests_until = 0  # type: ignore[union-attr]
        cached._entries.clear()
        assert await ds.get(A) == entity(A, 2)  # the copy of 1 is still there
        assert cached.counts["cache_failures"] >= 1


async def test_a_cache_that_is_away_at_first() -> None:
    _store, gate, _ = gated()
    inner = EngineAdapter(MemoryRowStore())
    await inner.open()
    shared = Held(inner)
    shared.fails = True
    cached = Cached(gate, shared, name="here")
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        shared.fails = False
        cached._shared._rests_until = 0  # type: ignore[union-attr]
        await ds.get(B)
        assert (await Copies(inner, "here").read([B]))[0].copy is not None


async def test_a_late_fill_does_not_replace_a_newer_copy() -> None:
    """Process one reads the old value, process two commits a new one and writes it to the cache, then one's arrives."""
    store, gate, _ = gated()
    inner = EngineAdapter(MemoryRowStore())
    await inner.open()
    one, two = Cached(gate, Held(inner), name="here"), Cached(store, Held(inner), name="here")
    async with Datastore(one), anyio.create_task_group() as group:
        await two._shared.open()  # type: ignore[union-attr]
        gate.holds_lookups = True
        group.start_soon(values, one, A)
        await wait_for(gate.held, 1)
        await two.commit([Commit(writes=[Put(entity(A, 1))])])
        gate.held[0].set()
        await anyio.wait_all_tasks_blocked()
        [place] = await Copies(inner, "here").read([A])
        assert place.copy is not None
        assert place.copy.entity == entity(A, 1)


async def test_after_a_gap_the_shared_cache_is_not_trusted() -> None:
    store, gate, _ = gated()
    inner = EngineAdapter(MemoryRowStore())
    await inner.open()
    cached = Cached(gate, Held(inner), staleness_s=5)
    clock = Clock(cached)
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1))
        await put_behind(store, A, 2)
        cached.gap()
        assert await ds.get(A) == entity(A, 2)
        clock.now += 6
        cached._entries.clear()
        assert await ds.get(A) == entity(A, 2)
        assert cached.counts["shared_hits"] == 1


async def test_what_was_seen_is_not_unseen() -> None:
    """Also if another process has put an older copy into the shared cache meanwhile."""
    store, inner = EngineAdapter(MemoryRowStore()), EngineAdapter(MemoryRowStore())
    await inner.open()
    cached = Cached(store, Held(inner), name="here")
    async with Datastore(cached):
        old = await put_behind(store, A, 1)
        await put_behind(store, A, 2)
        assert await values(cached, A) == [2]
        cached._entries.clear()  # evicted
        copies = Copies(inner, "here")
        [place] = await copies.read([A])
        older = Copy(Entity(A, {"n": 1}, version=old), None, old, time.time())
        assert await copies.write([(A, older, place.version)]) == [True]
        assert await values(cached, A) == [2]


async def test_messages_say_nothing_of_copies_of_others() -> None:
    """Of a copy in the shared cache it is not known whether this process was listening when it was read."""
    store = EngineAdapter(MemoryRowStore())
    told, inner = Telling(store), EngineAdapter(MemoryRowStore())
    await inner.open()
    cached = Cached(told, Held(inner), staleness_s=5, name="here")
    clock = Clock(cached)
    async with Datastore(cached):
        found = Entity(A, {"n": 1}, version=1)
        await Copies(inner, "here").write([(A, Copy(found, None, 1, time.time()), 0)])
        assert await values(cached, A) == [1]
        clock.now += 4
        cached.confirmed(clock.now, 0)
        clock.now += 2
        assert cached.lookup_now([A]) is None


async def test_an_older_commit_does_not_replace_a_newer_copy() -> None:
    inner = EngineAdapter(MemoryRowStore())
    shared = Shared(Held(inner), "here", 5)
    await inner.open()
    await shared.update({A: Copy(entity(A, 9), None, 9, 0.0)})
    await shared.update({A: Copy(entity(A, 5), None, 5, 0.0), B: None})
    [place] = await shared.copies.read([A])
    assert place.copy is not None
    assert place.copy.moment == 9
    await shared.update({A: None})
    [place] = await shared.copies.read([A])
    assert place.copy is None
    await inner.aclose()


async def test_copies() -> None:
    inner = EngineAdapter(MemoryRowStore())
    await inner.open()
    copies = Copies(inner, "here")
    found = Entity(A, {"n": [1, "x"], "t": "y" * 3000}, unindexed=["t"], version=4)
    assert (
        await copies.write([(A, Copy(found, "shard-1", 9, 1.5, 2.5), 0), (B, Copy(None, None, 9, 1.5), 0)])
        == [True] * 2
    )
    first, second, third = await copies.read([A, B, C])
    assert first.copy == Copy(found, "shard-1", 9, 1.5, 2.5)
    assert first.copy.entity is not None
    assert first.copy.entity.version == 4
    assert first.copy.entity.unindexed == {"t"}
    assert second.copy == Copy(None, None, 9, 1.5)
    assert third.version == 0
    assert third.copy is None
    assert await copies.write([(A, Copy(None, None, 10, 1.5), first.version - 1)]) == [False]
    assert [place.copy for place in await Copies(inner, "elsewhere").read([A])] == [None]
    assert not copies.can_keep(Copy(None, MIXED, 1, 1.0))
    # A clock without a name is this process's own: others know that there is one.
    assert await copies.write([(C, Copy(None, object(), 3, 1.5), 0)]) == [True]
    assert (await copies.read([C]))[0].copy == Copy(None, MIXED, 3, 1.5)
    await inner.aclose()


def test_spaces() -> None:
    """Copies of different stores, and of different views of a store, don't meet; those of the same do."""
    url = "sqlite:///a.db"

    def made() -> list[Adapter]:
        store = adapter_from_url(url)
        return [store, Namespaced(store, "a"), Namespaced(store, "b"), Shim(Namespaced(store, "a"))]

    assert len({space_of(each, "") for each in made()}) == 4
    assert [space_of(each, "") for each in made()] == [space_of(each, "") for each in made()]
    one, two = adapter_from_url("memory://"), adapter_from_url("memory://")
    assert space_of(one, "") == space_of(one, "") != space_of(two, "")
    with pytest.raises(BadArgumentError, match="give a name"):
        Cached(KeyTransform(one, encode=lambda key: key, decode=lambda key: key), two)
    with pytest.raises(BadArgumentError, match="name: expected"):
        Cached(one, two, name="")


async def test_a_shared_cache_of_two_tenants() -> None:
    store, cache = EngineAdapter(MemoryRowStore()), EngineAdapter(MemoryRowStore())
    await store.open()
    await cache.open()
    tenants = [Cached(Namespaced(Held(store), name), Held(cache)) for name in ("a", "b")]
    async with Datastore(tenants[0]) as first, Datastore(tenants[1]) as second:
        await first.put(entity(A, 1))
        assert await second.get(A) is None
        tenants[0].clear()
        await second.put(entity(A, 2))
        assert await first.get(A) == entity(A, 1)
    await store.aclose()


async def test_a_shared_cache_over_shards() -> None:
    """Copies carry no clock that others would know: what a transaction reads of them is verified."""
    from aiodatastore.shims.sharded import Sharded

    shards = Held(Sharded([adapter_from_url("memory://"), adapter_from_url("memory://")]))
    await shards.child.open()
    cache = EngineAdapter(MemoryRowStore())
    await cache.open()
    one, two = Cached(shards, Held(cache)), Cached(shards, Held(cache))
    async with Datastore(one) as ds:
        await ds.put([entity(A, 1), entity(B, 1)])
        one.clear()
        assert await ds.get([A, B]) == [entity(A, 1), entity(B, 1)]
    async with Datastore(two) as ds:
        assert await ds.get([A, B]) == [entity(A, 1), entity(B, 1)]
        assert two.counts["shared_hits"] == 2
        await ds.put(entity(A, 2))

        @ds.transactional
        async def both() -> list[Any]:
            return [await ds.get(A), await ds.get(B)]

        assert await both() == [entity(A, 2), entity(B, 1)]
    three = Cached(shards, Held(cache))
    async with Datastore(three) as ds:
        assert await ds.get(A) == entity(A, 2)
        assert three.counts["shared_hits"] == 1
    await shards.child.aclose()


# ------------------------------------------------------------------------------------------------ ttl


class Mortal(Gate):
    """Says how long entities live; they don't, here."""

    lives: dict[Key, float | None]
    tells = True

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.child.capabilities | {Capability.TTL}

    async def lifetimes(self, keys: Sequence[Key]) -> Sequence[float | None]:
        if not self.tells:
            raise UnsupportedError("not here")
        return [self.lives.get(key) for key in keys]

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        plain = [
            Commit(each.checks, each.spans, [Put(w.entity) for w in each.writes if isinstance(w, Put)])
            for each in batch
        ]
        return await self.child.commit(plain)


async def test_what_expires_is_not_served_after() -> None:
    store = EngineAdapter(MemoryRowStore())
    gate = Mortal(store)
    gate.lives = {B: 3.0, C: 0.0}
    cached = Cached(gate, staleness_s=100)
    clock = Clock(cached)
    async with Datastore(cached) as ds:
        await ds.put(entity(A, 1), ttl=2)
        for key in (B, C):
            await put_behind(store, key, 1)
        assert await ds.get([A, B, C]) == [entity(A, 1), entity(B, 1), None]
        clock.now += 1
        [found] = (await cached.lookup([A])).entities
        assert found is not None
        await cached.commit([Commit({A: found.version})])  # it is current, which does not make it live longer
        clock.now += 1.1
        assert cached.lookup_now([A]) is None
        assert cached.lookup_now([B]) == [entity(B, 1)]
        clock.now += 1
        assert cached.lookup_now([B]) is None
        gate.tells = False
        await ds.get(B)
        assert cached.lookup_now([B]) is None  # it may expire, and nobody says when
        await ds.put(entity(B, 2))
        assert cached.lookup_now([B]) == [entity(B, 2)]


async def test_lifetimes_through_a_shim_of_keys() -> None:
    gate = Mortal(EngineAdapter(MemoryRowStore()))
    inner = Key("K", "a", namespace="tenant")
    gate.lives = {inner: 3.0}
    cached = Cached(Namespaced(gate, "tenant"), staleness_s=100)
    clock = Clock(cached)
    async with Datastore(cached) as ds:
        await put_behind(gate.child, inner, 1)
        assert await ds.get(A) == entity(A, 1)
        assert cached.lookup_now([A]) == [entity(A, 1)]
        clock.now += 3.1
        assert cached.lookup_now([A]) is None


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "settings",
    [
        {"staleness_s": 0},
        {"staleness_s": float("inf")},
        {"staleness_s": "1"},
        {"max_entities": 0},
        {"max_bytes": 1.5},
        {"negative_ttl_s": -1},
        {"invalidation": "sometimes"},
        {"cache": "memory://"},
    ],
)
def test_refused_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(BadArgumentError, match=next(iter(settings))):
        Cached(adapter_from_url("memory://"), **settings)


def test_refused_caches() -> None:
    memory, sqlite = adapter_from_url("memory://"), adapter_from_url("sqlite:///a.db")
    with pytest.raises(BadArgumentError, match="expected an adapter"):
        Cached("memory://")  # type: ignore[arg-type]
    with pytest.raises(BadArgumentError, match="itself"):
        Cached(memory, memory)
    with pytest.raises(BadArgumentError, match="itself"):
        Cached(Shim(memory), memory)
    with pytest.raises(BadArgumentError, match="where the child lives"):
        Cached(sqlite, adapter_from_url("sqlite:///a.db"))
    with pytest.raises(BadArgumentError, match="several keys may name one entity"):
        Cached(LowercaseKeys(memory))
    with pytest.raises(BadArgumentError, match="this process alone"):
        Cached(memory, sqlite)
    cached = Cached(sqlite, memory)
    assert Capability.CURRENT_READS not in cached.capabilities
    assert Capability.INLINE_READS in cached.capabilities
    assert cached.children == (sqlite, memory)
    assert "staleness_s=5.0" in repr(cached)
