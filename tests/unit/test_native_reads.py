"""What a store may do better than the engine's default gives the same answers: intersections, tallies, replicas."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.base import ReadPolicy
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.errors import UnavailableError
from aiodatastore.rowstore import TAIL_KEY_MASK, TAIL_MULTI, RowIntersection, RowRead, RowStore, Space, Span, SpanTally

pytestmark = pytest.mark.anyio


class NativeStore(MemoryRowStore):
    """Intersects and tallies, a few rows at a time."""

    asked = 0
    tallied = 0
    work = 7

    async def intersect(
        self,
        prefixes: Sequence[bytes],
        lo: bytes,
        hi: bytes,
        limit: int,
        *,
        reverse: bool = False,
        with_entities: bool = False,
    ) -> RowIntersection | None:
        self.asked += 1
        first, *others = prefixes
        span = Span(Space.INDEX, first + lo, first + hi)
        rows, version = await self.scan(span, self.work, reverse=reverse, with_entities=with_entities)
        found = []
        for row, tail, entity_version, payload in rows:
            rest = row[len(first) :]
            tails = [self._tails.get(prefix + rest) for prefix in others]
            if None not in tails:
                multi = TAIL_MULTI if any((other or 0) & TAIL_MULTI for other in tails) else 0
                found.append((rest, tail | multi, entity_version, payload))
        if len(rows) < self.work:
            return RowIntersection(found, None, version)
        last = rows[-1][0][len(first) :]
        return RowIntersection(found[:limit], last if reverse else last + b"\0", version)

    async def tally(self, span: Span, skip: int) -> SpanTally | None:
        self.tallied += 1
        rows, version = await self.scan(span, 10**9)
        counts = Counter((row[skip : -(tail & TAIL_KEY_MASK)], tail >> 20) for row, tail, _, _ in rows)
        return SpanTally([(value, bits, count) for (value, bits), count in counts.items()], version)


def some_entities(count: int) -> list[Entity]:
    rng = random.Random(3)
    return [
        Entity(
            Key("P", number + 1) if number % 3 else Key("P", 1, "P", number + 1),
            {
                "a": rng.randrange(2),
                "b": rng.choice([1, 2, [1, 2], [2, 3]]),
                "c": rng.choice("xy"),
                "n": rng.choice([1, 2.5, 2**70 // 2**8, -3, "text", None, [1, 2], True]),
            },
        )
        for number in range(count)
    ]


async def test_intersections_by_the_store_give_what_the_engine_gives() -> None:
    native = NativeStore()
    async with Datastore(EngineAdapter(native)) as ours, Datastore("memory://") as plain:
        for ds in (ours, plain):
            await ds.put(some_entities(300))
        for order in ("__key__", "-__key__"):
            for filters in ({"a =": 1, "b =": 2}, {"a =": 0, "b =": 1, "c =": "x"}, {"b =": 1, "c =": "z"}):
                found = []
                for ds in (ours, plain):
                    query = ds.query("P", filters=filters).order(order)
                    page = await query.page(13)
                    rest = await query.start(page.cursor).fetch() if page.cursor else []
                    found.append(
                        (
                            await query.fetch(),
                            await query.keys_only().fetch(),
                            await query.limit(5).offset(3).fetch(),
                            await query.count(),
                            page.entities,
                            rest,
                            await ds.query("P", ancestor=Key("P", 1), filters=filters).fetch(),
                        )
                    )
                assert found[0] == found[1]
    assert native.asked > 50


async def test_a_transaction_leapfrogs_and_notices_what_comes_between() -> None:
    native = NativeStore()
    async with Datastore(EngineAdapter(native)) as ds:
        await ds.put(some_entities(100))
        before = native.asked
        runs = 0

        @ds.transactional(retries=3)
        async def count_and_note() -> None:
            nonlocal runs
            runs += 1
            found = await ds.query("P", filters={"a =": 1, "c =": "x"}).fetch()
            if runs == 1:
                async with ds.non_transactional():
                    await ds.put(Entity(Key("P", 1000), {"a": 1, "c": "x"}))
            await ds.put(Entity(Key("Note", 1), {"found": len(found)}))

        await count_and_note()
        assert runs == 2
        assert native.asked == before
        note = await ds.get(Key("Note", 1))
        assert note is not None
        assert note["found"] == await ds.query("P", filters={"a =": 1, "c =": "x"}).count()


async def test_sums_by_the_store_are_the_engine_s() -> None:
    native = NativeStore()
    async with Datastore(EngineAdapter(native)) as ours, Datastore("memory://") as plain:
        for ds in (ours, plain):
            await ds.put(some_entities(200))
        for filters in ({}, {"c =": "x"}, {"n >": 1}):
            for ancestor in (None, Key("P", 1)):
                sums = [await ds.query("P", filters=filters, ancestor=ancestor).sum("n") for ds in (ours, plain)]
                averages = [await ds.query("P", filters=filters, ancestor=ancestor).avg("n") for ds in (ours, plain)]
                assert sums[0] == sums[1]
                assert averages[0] == averages[1]
    assert native.tallied


# ------------------------------------------------------------------------------------------- replicas


class Unreachable(MemoryRowStore):
    async def read(self, keys: Sequence[bytes]) -> RowRead:
        raise UnavailableError("gone")


class Replicated(MemoryRowStore):
    def __init__(self, replica: MemoryRowStore) -> None:
        super().__init__()
        self.other = replica

    async def open(self) -> None:
        await super().open()
        await self.other.open()

    def replica(self) -> RowStore | None:
        return self.other

    def read_now(self, keys: Sequence[bytes]) -> list[None] | None:  # type: ignore[override]
        return None

    def follow(self) -> None:
        """Bring the replica up to date."""
        for name in ("_records", "_keys", "_tails", "_rows", "_multi", "_version"):
            setattr(self.other, name, getattr(self, name))
        self.other._get = self.other._records.get


async def test_eventual_reads_come_from_the_replica() -> None:
    store = Replicated(MemoryRowStore())
    async with Datastore(EngineAdapter(store)) as ds:
        await ds.put(Entity(Key("P", 1), {"a": 1}))
        assert await ds.get(Key("P", 1), read_policy=ReadPolicy.EVENTUAL) is None
        assert await ds.query("P").fetch(read_policy=ReadPolicy.EVENTUAL) == []
        assert await ds.get(Key("P", 1)) is not None
        assert len(await ds.query("P").fetch()) == 1
        store.follow()
        assert await ds.get(Key("P", 1), read_policy=ReadPolicy.EVENTUAL) is not None
        assert len(await ds.query("P").fetch(read_policy=ReadPolicy.EVENTUAL)) == 1


async def test_a_replica_older_than_the_indexes_is_passed_over() -> None:
    store = Replicated(MemoryRowStore())
    async with Datastore(EngineAdapter(store)) as ds:
        await ds.put(Entity(Key("P", 1), {"a": 1, "b": 2}))
        await ds.create_index("indexes:\n- kind: P\n  properties:\n  - name: a\n  - name: b\n")
        query = ds.query("P").order("a").order("b")
        assert len(await query.fetch(read_policy=ReadPolicy.EVENTUAL)) == 1


async def test_a_replica_that_is_gone_is_passed_over() -> None:
    async with Datastore(EngineAdapter(Replicated(Unreachable()))) as ds:
        await ds.put(Entity(Key("P", 1), {"a": 1}))
        assert await ds.get(Key("P", 1), read_policy=ReadPolicy.EVENTUAL) is not None
