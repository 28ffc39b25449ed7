"""Sharded stores are as one: the suite, the golden cases, random queries, and what is special about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodatastore import Datastore, Entity, Key, Query
from aiodatastore.adapters.base import Adapter, Commit, Outcome, Put
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import (
    BadArgumentError,
    ConflictError,
    CrossShardError,
    DatastoreError,
    TransactionFailedError,
    UnavailableError,
)
from aiodatastore.rowstore import Capability
from aiodatastore.shims.base import Shim
from aiodatastore.shims.failing import Failing
from aiodatastore.shims.sharded import Sharded, twophase
from aiodatastore.shims.sharded.placing import Placing
from aiodatastore.testing import strategies
from aiodatastore.testing.conformance import FILES, run_corpus
from tests.shims.stacks import PROFILE, ShimSuite

CORPUS = Path(__file__).parents[1] / "data" / "conformance"
WORLD = strategies.World()

anyio_test = pytest.mark.anyio
PLACED = [0, 0, 2, 1, 2, 1, 0, 0, 2, 2, 0, 0]


class TestThreeShards(ShimSuite):
    both_loops = True
    stores = 3
    wrap = staticmethod(lambda *shards: Sharded(shards))


def memory(count: int) -> list[Adapter]:
    return [adapter_from_url("memory://") for _ in range(count)]


class Alone(Shim):
    """A store that can't prepare commits."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.child.capabilities - {Capability.TWO_PHASE}


class Faulty(Shim):
    """Raises where it is told to, before or after the child did what was asked."""

    def __init__(self, child: Adapter) -> None:
        super().__init__(child)
        self.fails: dict[str, bool] = {}

    def _due(self, name: str, *, after: bool) -> None:
        if self.fails.get(name) is after:
            del self.fails[name]
            raise UnavailableError(f"{name} failed")

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        writes = any(commit.writes for commit in batch)
        if writes:
            self._due("commit", after=False)
        found = await self.child.commit(batch)
        if writes:
            self._due("commit", after=True)
        return found

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        self._due("prepare", after=False)
        found = await self.child.prepare(commit, name)
        self._due("prepare", after=True)
        return found

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        self._due("resolve", after=False)
        return await self.child.resolve(name, commit=commit)


@asynccontextmanager
async def opened(*shards: Adapter) -> AsyncIterator[tuple[Datastore, Sharded]]:
    adapter = Sharded(shards)
    async with Datastore(adapter) as ds:
        yield ds, adapter


def keys_of(adapter: Sharded, number: int, count: int, kind: str = "K") -> list[Key]:
    """The first keys of a kind that are in one of the shards."""
    found = [key for n in range(1, 1000) if adapter.place(key := Key(kind, n)) == number]
    return found[:count]


# ------------------------------------------------------------------------------------------------ placing


def test_groups_are_spread_evenly() -> None:
    placing = Placing([f"shard{n}" for n in range(8)])
    counts = Counter(placing.number(Key("Person", n)) for n in range(1, 8001))
    assert all(850 < count < 1150 for count in counts.values()), counts
    assert len(counts) == 8


def test_a_shard_that_is_added_takes_its_share_and_nothing_else_moves() -> None:
    before, after = Placing(["a", "b", "c"]), Placing(["a", "b", "c", "d"])
    keys = [Key("Person", n) for n in range(1, 4001)]
    moved = [key for key in keys if before.number(key) != after.number(key)]
    assert all(after.number(key) == 3 for key in moved)
    assert 0.2 < len(moved) / len(keys) < 0.3


def test_the_hash_never_changes() -> None:
    """It is part of what is stored."""
    placing = Placing(["a", "b", "c", "d"])
    keys = [*(Key("Person", n) for n in range(1, 11)), Key("P", "é", namespace="n"), Key("P", "é", "C", 1)]
    assert [placing.number(key) for key in keys] == PLACED


def test_names_decide_and_not_their_order() -> None:
    one, other = Placing(["a", "b", "c"]), Placing(["c", "a", "b"])
    for n in range(1, 200):
        key = Key("K", n)
        assert one.names[one.number(key)] == other.names[other.number(key)]


def test_a_function_may_say_what_groups_are_placed_by() -> None:
    placing = Placing(["a", "b", "c"], lambda root: root.namespace)
    assert len({placing.number(Key("K", n, namespace="tenant")) for n in range(1, 50)}) == 1
    with pytest.raises(BadArgumentError, match="str, bytes or int"):
        Placing(["a", "b"], lambda root: None).number(Key("K", 1))  # type: ignore[arg-type,return-value]


# ------------------------------------------------------------------------------------------ refused


def test_what_can_not_be_sharded_is_refused() -> None:
    class Unordered(Shim):
        @property
        def capabilities(self) -> frozenset[Capability]:
            return self.child.capabilities - {Capability.KEY_ORDER}

    one, two = memory(2)
    for shards, message in (
        ([], "at least one"),
        ([one, one], "given twice"),
        ([one, Shim(one)], "given twice"),
        ([adapter_from_url("sqlite:///a.db"), adapter_from_url("sqlite:///a.db")], "given twice"),
        ([one, Unordered(two)], "another order"),
        ([one, Shim(Sharded([two]))], "sharded itself"),
        ([one, EngineAdapter(MemoryRowStore(), require_indexes=True)], "same require_indexes"),
        ([one, "memory://me:secret@host"], "expected adapters, got str"),
        (one, r"expected a list of adapters, \[one, two, …\], got EngineAdapter"),
        ("memory://", "expected a list of adapters"),
    ):
        with pytest.raises(BadArgumentError, match=message) as caught:
            Sharded(shards)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)
    for names in (["a"], ["a", "a"], "ab", ["a", ""]):
        with pytest.raises(BadArgumentError, match="name"):
            Sharded([one, two], names=names)
    with pytest.raises(BadArgumentError, match="by"):
        Sharded([one, two], by="kind")  # type: ignore[arg-type]


@anyio_test
async def test_another_layout_is_refused(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in "abc"]

    def sharded(*chosen: int, names: Sequence[str] | None = None) -> Datastore:
        return Datastore(Sharded([adapter_from_url(urls[number]) for number in chosen], names=names))

    async with sharded(0, 1) as ds:
        await ds.put([Entity(Key("K", n)) for n in range(1, 20)])
    async with sharded(1, 0, names=["1", "0"]) as ds:  # the order does not matter
        assert len(await ds.query("K").keys()) == 19
    for wrong, message in (
        (sharded(0, 1, 2), "rebalance"),
        (sharded(0), "rebalance"),
        (sharded(1, 0), "recorded as"),
        (sharded(0, 1, names=["x", "y"]), "rebalance"),
    ):
        with pytest.raises(BadArgumentError, match=message):
            await wrong.open()
    async with Datastore(urls[2]) as ds:
        await ds.put(Entity(Key("K", 1)))
    with pytest.raises(BadArgumentError, match="holds entities"):
        await Datastore(Sharded([adapter_from_url(urls[2]), adapter_from_url(f"sqlite:///{tmp_path}/d.db")])).open()


# ------------------------------------------------------------------------------------------- queries


@pytest.mark.parametrize("file", [file for file in FILES if file not in ("keys", "values", "entities")])
def test_golden_cases(file: str) -> None:
    # What was read in several shards is verified at once, so some of those transactions see earlier that they fail.
    by: Any = (lambda root: "") if file == "transactions" else "group"

    def connect(require_indexes: bool = False, **options: Any) -> Datastore:
        shards = [EngineAdapter(MemoryRowStore(), require_indexes=require_indexes) for _ in range(3)]
        return Datastore(Sharded(shards, by=by), **options)

    report = anyio.run(lambda: run_corpus(CORPUS, connect, only=[file]))
    assert report.ok, "\n".join(report.lines())


@settings(settings.get_profile(PROFILE))
@given(
    st.lists(WORLD.entities(), max_size=40, unique_by=lambda entity: entity.key),
    st.lists(WORLD.queries(), min_size=5, max_size=20),
    st.sampled_from([None, 1, 2, 7]),
)
def test_random_queries_answer_as_one_store_does(
    entities: list[Entity], queries: list[Query], page_size: int | None
) -> None:
    async def main() -> None:
        async with Datastore("memory://") as plain, opened(*memory(3)) as (ds, _):
            await plain.put([entity.copy() for entity in entities])
            await ds.put(entities)
            for query in queries:
                await compare(plain, ds, query, page_size)

    anyio.run(main)


async def compare(plain: Datastore, ds: Datastore, query: Query, page_size: int | None) -> None:
    """Results, their cursors, what is before and behind each, and aggregates."""
    expected, found = (each.query(query).run(page_size=page_size) for each in (plain, ds))
    cursors = []
    async for result in expected:
        other = await anext(found)
        assert shown([other]) == shown([result])
        assert (found.cursor, found.skipped) == (expected.cursor, expected.skipped)
        cursors.append(expected.cursor)
    assert [each async for each in found] == []
    assert (found.cursor, found.skipped) == (expected.cursor, expected.skipped)
    for cursor in cursors[:2] + cursors[-1:]:
        for bounded in (query.start(cursor), query.end(cursor), *_reversed(query, cursor)):
            assert shown(await ds.query(bounded).fetch()) == shown(await plain.query(bounded).fetch())
    assert await ds.query(query).count() == await plain.query(query).count()
    for name in ("a", "b"):
        try:
            total = await plain.query(query).sum(name)
        except DatastoreError:
            continue
        assert repr(await ds.query(query).sum(name)) == repr(total)
        assert repr(await ds.query(query).avg(name)) == repr(await plain.query(query).avg(name))


def shown(results: Sequence[Any]) -> str:
    """Results as text; versions count in each shard by themselves."""
    for result in results:
        if isinstance(result, Entity):
            result.version = 0
    return repr(results)


def _reversed(query: Query, cursor: object) -> list[Query]:
    try:
        backwards = query.offset(0).reversed()
        backwards.check()
    except DatastoreError:
        return []
    return [backwards.start(cursor), backwards.end(cursor)]  # type: ignore[arg-type]


@anyio_test
async def test_sums_of_floats_are_exact() -> None:
    """Rounded once, not in every shard."""
    async with opened(*memory(4)) as (ds, _):
        numbers = [0.1 * n for n in range(1, 400)] + [1e16, -1e16, 3]
        await ds.put([Entity(Key("K", n), {"x": x}) for n, x in enumerate(numbers, 1)])
        assert await ds.query("K").sum("x") == math.fsum(numbers)
        assert await ds.query("K").avg("x") == float(sum(map(Fraction, numbers)) / len(numbers))


@anyio_test
async def test_metadata_of_all_shards_is_met_once() -> None:
    async with opened(*memory(3)) as (ds, adapter):
        for number in range(3):
            for at, key in enumerate(keys_of(adapter, number, 2)):
                await ds.put(Entity(key, {"x": [1, "a", None][number], f"own{number}": at}))
        assert [key.name for key in await ds.query("__kind__").keys()] == ["K"]
        assert len(await ds.query("__namespace__").keys()) == 1
        found = {
            entity.key.name: entity["property_representation"] for entity in await ds.query("__property__").fetch()
        }
        assert found == {"own0": ["INT64"], "own1": ["INT64"], "own2": ["INT64"], "x": ["NULL", "INT64", "STRING"]}
        assert await ds.query("__property__").count() == 4
        assert await ds.adapter.partitions() == [("", "")]
        (row,) = (await ds.stats())["kinds"]
        assert row["entities"] == 6


@anyio_test
async def test_limits_and_offsets() -> None:
    async with opened(*memory(4)) as (ds, _):
        await ds.put([Entity(Key("K", n), {"n": n}) for n in range(1, 301)])
        for offset in (0, 1, 70, 299, 300, 400):
            for limit in (None, 0, 1, 63, 150, 300):
                results = ds.query("K").order("n").offset(offset).limit(limit).run()
                with anyio.fail_after(60):
                    found = [entity["n"] async for entity in results]
                    counted = await ds.query("K").order("n").offset(offset).limit(limit).count()
                expected = list(range(1, 301))[offset:][:limit]
                assert found == expected
                assert counted == len(expected)
                assert results.skipped == min(offset, 300)


@anyio_test
async def test_a_page_reads_little_more_than_it_gives() -> None:
    async with opened(*memory(16)) as (ds, _):
        await ds.put([Entity(Key("K", n), {"n": n}) for n in range(1, 2001)])
        page = await ds.query("K").order("n").page(100)
        assert [entity["n"] for entity in page.entities] == list(range(1, 101))
        explained = await ds.query("K").order("n").limit(100).explain(analyze=True)
        assert 100 <= explained.rows < 400
        assert "merge of 16" in str(explained)
        alone = await ds.query("K", ancestor=Key("K", 7)).explain(analyze=True)
        assert "merge" not in str(alone)


# ------------------------------------------------------------------------------- lists and transactions


@anyio_test
@pytest.mark.parametrize("first", ["before", "after"])
async def test_nothing_was_written_only_if_no_shard_may_have(first: Literal["before", "after"]) -> None:
    second: Literal["before", "after"] = "after" if first == "before" else "before"
    shards = [Failing(adapter_from_url("memory://"), 1.0, when=when) for when in (first, second)]
    for shard in shards:
        shard.enabled = False
    async with Datastore(Sharded(shards)) as ds:
        for shard in shards:
            shard.enabled = True
        with pytest.raises(UnavailableError) as caught:
            await ds.put([Entity(Key("A", f"k{number}")) for number in range(8)])
        for shard in shards:
            shard.enabled = False
        assert 0 < await ds.query("A").count() < 8
        assert not caught.value.nothing_written


@anyio_test
async def test_a_list_is_split_over_shards_that_can_not_commit_together() -> None:
    async with opened(*map(Alone, memory(3))) as (ds, adapter):
        entities = [Entity(Key("K", n), {"n": n}) for n in range(1, 31)]
        await ds.put(entities)
        assert Capability.GLOBAL_TRANSACTIONS not in ds.capabilities
        stored = await ds.get([entity.key for entity in entities])
        assert [entity.version for entity in entities] == [one.version for one in stored if one is not None]
        await ds.delete([entity.key for entity in entities])
        assert await ds.query("K").count() == 0
        one, two = keys_of(adapter, 0, 1)[0], keys_of(adapter, 1, 1)[0]
        with pytest.raises(CrossShardError, match="nothing was written"):
            async with ds.transaction():
                await ds.put([Entity(one), Entity(two)])
        assert await ds.get([one, two]) == [None, None]
        with pytest.raises(CrossShardError):
            await ds.insert([Entity(one), Entity(two)])
        assert await ds.get([one, two]) == [None, None]


@anyio_test
async def test_what_was_read_in_several_shards_is_of_one_moment() -> None:
    """Also where they can't commit together: each is asked again."""
    async with opened(*map(Alone, memory(2))) as (ds, adapter):
        one, two = keys_of(adapter, 0, 1)[0], keys_of(adapter, 1, 1)[0]
        await ds.put([Entity(one, {"n": 1}), Entity(two, {"n": 1})])

        async def get_both() -> None:
            async with ds.transaction(read_only=True):
                await ds.get(one)
                with ds.non_transactional():
                    await ds.put(Entity(one, {"n": 2}))
                    await ds.put(Entity(two, {"n": 2}))
                await ds.get(two)

        async def query_and_get() -> None:
            async with ds.transaction(read_only=True):
                await ds.query("K").filter("n", "=", 2).fetch()
                with ds.non_transactional():
                    await ds.put(Entity(one, {"n": 3}))
                await ds.get(two)

        for body in (get_both, query_and_get):
            with pytest.raises(TransactionFailedError):
                await body()


@anyio_test
async def test_ids_never_collide() -> None:
    async with opened(*memory(5)) as (ds, adapter):
        first, last = await ds.allocate_ids(Key("K"), 100)
        entities = [Entity(Key("K")) for _ in range(200)]
        await ds.put(entities)
        ids = [entity.key.id for entity in entities]
        assert len(set(ids)) == 200
        assert not set(range(first, last + 1)) & set(ids)
        assert len({adapter.place(entity.key) for entity in entities}) == 5
        assert (await ds.allocate_ids(Key("K"), max=10_000))[1] == 10_000
        entity = Entity(Key("K"))
        await ds.put(entity)
        assert (entity.key.id or 0) > 10_000


# -------------------------------------------------------------------------------- two-phase commits


@anyio_test
@pytest.mark.parametrize(
    ("shard", "what", "after", "written"),
    [
        (1, "prepare", False, False),
        (1, "prepare", True, False),
        (0, "commit", False, False),
        (0, "commit", True, True),
        (1, "resolve", False, True),
    ],
)
async def test_all_or_nothing_whatever_fails(
    monkeypatch: pytest.MonkeyPatch, shard: int, what: str, after: bool, written: bool
) -> None:
    monkeypatch.setattr(twophase, "_FIRST_PAUSE_S", twophase.ORPHAN_S)  # nobody tells it again: the sweep does
    shards = [Faulty(child) for child in memory(3)]
    async with opened(*shards) as (ds, adapter):
        keys = [keys_of(adapter, number, 1)[0] for number in range(3)]
        await ds.put([Entity(key, {"n": 0}) for key in keys])
        shards[shard].fails[what] = after

        async def change() -> None:
            async with ds.transaction():
                entities = await ds.get(keys)
                for entity in entities:
                    assert entity is not None
                    entity["n"] += 1
                    await ds.put(entity)

        if written:
            await change()
        else:
            with pytest.raises(UnavailableError):
                await change()
        assert await adapter.sweep(0) == (1 if what == "resolve" else 0)
        found = await ds.get(keys)
        assert [entity and entity["n"] for entity in found] == [int(written)] * 3
        assert [await child.prepared() for child in shards] == [[], [], []]
        await change()  # nothing is in the way
        assert (await ds.stats())["kinds"][0]["entities"] == 3


@anyio_test
async def test_a_slow_coordinator_fails_once_it_was_given_up() -> None:
    """Whoever settles its commit writes that it is aborted, so that it can't take place any more."""
    held, go = anyio.Event(), anyio.Event()

    class Slow(Shim):
        waits = False

        async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
            if self.waits and any(len(commit.writes) > 1 for commit in batch):
                held.set()
                await go.wait()
            return await self.child.commit(batch)

    first, second = memory(2)
    slow = Slow(first)
    async with opened(slow, second) as (ds, adapter):
        one, two = keys_of(adapter, 0, 1)[0], keys_of(adapter, 1, 1)[0]
        slow.waits = True
        refused = []

        async def both() -> None:
            try:
                async with ds.transaction():
                    await ds.put([Entity(one), Entity(two)])
            except TransactionFailedError as exc:
                refused.append(exc)

        async with anyio.create_task_group() as group:
            group.start_soon(both)
            await held.wait()
            assert len(await second.prepared()) == 1
            assert await adapter.sweep(0) == 1
            go.set()
        assert refused
        assert await ds.get([one, two]) == [None, None]


@anyio_test
async def test_who_reads_in_several_shards_never_sees_half_of_a_commit() -> None:
    """Between the home's commit and the others' the reader waits."""
    resolving, go = anyio.Event(), anyio.Event()

    class Slow(Shim):
        async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
            resolving.set()
            await go.wait()
            return await self.child.resolve(name, commit=commit)

    first, second = memory(2)
    async with opened(first, Slow(second)) as (ds, adapter):
        one, two = keys_of(adapter, 0, 1)[0], keys_of(adapter, 1, 1)[0]
        seen = []

        async def write() -> None:
            async with ds.transaction():
                await ds.put([Entity(one, {"n": 1}), Entity(two, {"n": 1})])

        async def read() -> None:
            await resolving.wait()
            assert await first.lookup([one]) is not None
            commit = Commit(checks={one: (await ds.get(one)).version, two: 0})  # type: ignore[union-attr]
            (outcome,) = await adapter.commit([commit])
            seen.append(outcome.version)

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            group.start_soon(read)
            await resolving.wait()
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert seen == [], "waits until the other part is there"
            go.set()
        assert seen == [None]


@anyio_test
async def test_the_error_of_one_shard_is_not_its_neighbours() -> None:
    shards = [Faulty(child) for child in memory(2)]
    async with opened(*shards) as (ds, adapter):
        one, two = keys_of(adapter, 0, 1)[0], keys_of(adapter, 1, 1)[0]
        shards[0].fails["commit"] = False
        outcomes = await adapter.commit([Commit(writes=[Put(Entity(one))]), Commit(writes=[Put(Entity(two))])])
        assert isinstance(outcomes[0].error, UnavailableError)
        assert outcomes[1].version
        with pytest.raises(ConflictError):
            await ds.put([Entity(one), Entity(two)], if_version=[0, 77])
        assert await ds.get(one) is None
        await ds.put([Entity(one), Entity(two)], if_version=[0, outcomes[1].version])


@anyio_test
async def test_nothing_of_the_collections_own_is_seen() -> None:
    async with opened(*memory(2)) as (ds, adapter):
        one, two = keys_of(adapter, 0, 1)[0], keys_of(adapter, 1, 1)[0]
        async with ds.transaction():
            await ds.put([Entity(one), Entity(two)])
        assert await ds.query().keys() == sorted([one, two])
        assert await ds.query("__namespace__").count() == 1
        assert await ds.check() == []
