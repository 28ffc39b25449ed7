"""Commits over several shards that go together, and those that must not."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.base import Commit, Delete, Outcome, Put
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.errors import UnavailableError
from aiodatastore.rowstore import Space, SpanCheck
from aiodatastore.shims import Sharded
from aiodatastore.shims.sharded.grouping import MAX_TOGETHER, Member, rounds, together
from aiodatastore.shims.sharded.parts import Part


def member(place: int, shards: Iterable[int], reads: Iterable[int] = (), writes: Iterable[int] = ()) -> Member:
    checks = {Key("K", number): 1 for number in reads}
    puts = [Put(Entity(Key("K", number))) for number in writes]
    parts = {shard: Part() for shard in shards}
    first = next(iter(parts.values()))
    first.checks, first.writes = checks, [*puts]
    return Member(place, Commit(checks, writes=puts), parts)


commits = st.lists(
    st.tuples(
        st.sets(st.integers(0, 3), min_size=2, max_size=3),
        st.sets(st.integers(1, 12), max_size=3),
        st.sets(st.integers(1, 12), max_size=3),
    ),
    max_size=12,
)


@given(commits)
def test_nobody_writes_what_another_one_of_the_round_looks_at(given: list[tuple[set[int], set[int], set[int]]]) -> None:
    members = [member(place, *each) for place, each in enumerate(given)]
    seen: list[int] = []
    for groups in rounds(members):
        beside = [each for group in groups for each in group]
        seen += [each.place for each in beside]
        for each in beside:
            others = [other for other in beside if other is not each]
            looked = {key for other in others for key in other.commit.checks}
            written = {key for other in others for key in other.written}
            assert each.written.isdisjoint(looked | written)
        for group in groups:
            assert len({frozenset(each.parts) for each in group}) == 1
            assert len(group) == 1 or all(each.written for each in group)
    assert sorted(seen) == list(range(len(members)))


def test_what_has_checked_a_span_goes_alone() -> None:
    members = [member(place, [0, 1], writes=[place + 1]) for place in range(3)]
    members[1].parts[1].spans.append(SpanCheck(Space.INDEX, b"a", b"b", 0, b""))
    assert [[[each.place for each in group] for group in groups] for groups in rounds(members)] == [[[0, 2]], [[1]]]


def test_groups_are_bounded_and_their_sum_has_all() -> None:
    members = [member(place, [0, 1], [place + 1], [place + 1]) for place in range(MAX_TOGETHER + 5)]
    (first,), (second,) = rounds(members)
    assert (len(first), len(second)) == (MAX_TOGETHER, 5)
    whole, parts = together(second)
    assert len(whole.checks) == len(whole.writes) == 5
    assert sum(len(part.writes) for part in parts.values()) == 5
    assert sum(len(part.writes) for part in members[-1].parts.values()) == 1  # it is as it was


class Counting(EngineAdapter):
    """Memory that counts what is prepared, and may fail to."""

    def __init__(self) -> None:
        super().__init__(MemoryRowStore())
        self.prepared_writes: list[int] = []
        self.error: Exception | None = None

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        self.prepared_writes.append(len(commit.writes))
        await anyio.sleep(0.001)
        if self.error is not None:
            raise self.error
        return await super().prepare(commit, name)


def over_two(sharded: Sharded, count: int) -> list[tuple[Key, Key]]:
    """Pairs of keys, each in two shards."""
    keys = [Key("Account", number) for number in range(1, 8 * count)]
    first = [key for key in keys if sharded.place(key) == 0]
    second = [key for key in keys if sharded.place(key) == 1]
    return list(zip(first, second, strict=False))[:count]


async def transfer(ds: Datastore, source: Key, target: Key, amount: int) -> None:
    accounts: Any = await ds.get([source, target])
    accounts[0]["balance"] -= amount
    accounts[1]["balance"] += amount
    await ds.put(accounts)


@pytest.mark.anyio
async def test_transfers_that_do_not_meet_go_together() -> None:
    shards = [Counting(), Counting()]
    sharded = Sharded(shards, names=["a", "b"])
    pairs = over_two(sharded, 40)
    async with Datastore(sharded) as ds:
        await ds.put([Entity(key, {"balance": 100}) for pair in pairs for key in pair])
        shards[1].prepared_writes.clear()
        async with anyio.create_task_group() as group:
            for source, target in pairs:
                group.start_soon(ds.run_in_transaction, transfer, ds, source, target, 7)
        for source, target in pairs:
            found: Any = await ds.get([source, target])
            assert [entity["balance"] for entity in found] == [93, 107]
            assert all(entity.version for entity in found)
    assert sum(shards[1].prepared_writes) == 40
    assert len(shards[1].prepared_writes) < 20


@pytest.mark.anyio
async def test_money_stays_where_many_meet() -> None:
    chance = random.Random(7)
    sharded = Sharded([Counting() for _ in range(3)], names=["a", "b", "c"])
    keys = [Key("Account", number) for number in range(1, 13)]
    async with Datastore(sharded) as ds:
        await ds.put([Entity(key, {"balance": 100}) for key in keys])

        async def run(laps: int) -> None:
            for _ in range(laps):
                source, target = chance.sample(keys, 2)
                await ds.run_in_transaction(transfer, ds, source, target, chance.randrange(5), retries=200)

        async with anyio.create_task_group() as group:
            for _ in range(16):
                group.start_soon(run, 6)
        found: Any = await ds.get(keys)
        assert sum(entity["balance"] for entity in found) == 1200


@pytest.mark.anyio
async def test_a_conflict_is_of_the_commit_that_met_it() -> None:
    sharded = Sharded([Counting(), Counting()], names=["a", "b"])
    pairs = over_two(sharded, 3)
    async with Datastore(sharded) as ds:
        await ds.put([Entity(key, {"balance": 1}) for pair in pairs for key in pair])
        versions = {key: (await sharded.lookup([key])).entities[0] for pair in pairs for key in pair}
        batch = []
        for number, pair in enumerate(pairs):
            known = {key: getattr(versions[key], "version", 0) for key in pair}
            if number == 1:
                known[pair[0]] += 1
            batch.append(Commit(known, writes=[Put(Entity(pair[0], {"balance": 2})), Delete(pair[1])]))
        outcomes = await sharded.commit(batch)
        assert [outcome.committed for outcome in outcomes] == [True, False, True]
        assert list(outcomes[1].conflicts) == [pairs[1][0]]
        found: Any = await ds.get([key for pair in pairs for key in pair])
        assert [entity and entity["balance"] for entity in found] == [2, None, 1, 1, 2, None]
        assert found[0].version == outcomes[0].version_of(pairs[0][0])


@pytest.mark.anyio
async def test_a_shard_that_is_gone_fails_each_of_them() -> None:
    shards = [Counting(), Counting()]
    sharded = Sharded(shards, names=["a", "b"])
    pairs = over_two(sharded, 3)
    async with Datastore(sharded) as ds:
        await ds.put([Entity(key, {"balance": 1}) for pair in pairs for key in pair])
        shards[1].error = UnavailableError("gone")
        batch = [Commit({}, writes=[Put(Entity(key, {"balance": 2})) for key in pair]) for pair in pairs]
        outcomes = await sharded.commit(batch)
        assert [type(outcome.error) for outcome in outcomes] == [UnavailableError] * 3
        assert len({id(outcome.error) for outcome in outcomes}) == 3
        shards[1].error = None
        found: Any = await ds.get([key for pair in pairs for key in pair])
        assert [entity["balance"] for entity in found] == [1] * 6
