"""What a query over several stores costs: one plan for stores that are alike, and no entity that is not given."""

from __future__ import annotations

import pytest

from aiodatastore import Datastore, Entity, Key, Query
from aiodatastore.adapters.base import Adapter, RunOptions
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.errors import CorruptDataError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.indexing.planner import plan_branch
from aiodatastore.serializers import MsgpackSerializer
from aiodatastore.shims.sharded import Sharded

anyio_test = pytest.mark.anyio
INDEX = IndexDefinition("Item", (("group", "asc"), ("price", "desc")))


class Counting(MsgpackSerializer):
    """Counts what it reads, and fails where it is told to."""

    def __init__(self) -> None:
        self.read = 0
        self.fails = False

    def loads(self, key: Key, payload: bytes, version: int) -> Entity:
        self.read += 1
        if self.fails:
            raise CorruptDataError("damaged")
        return super().loads(key, payload, version)


def items() -> list[Entity]:
    return [Entity(Key("Item", number), {"group": number % 2, "price": number}) for number in range(1, 101)]


@anyio_test
@pytest.mark.parametrize("indexed", [0, 1, 4])
async def test_stores_with_the_same_indexes_have_one_plan(indexed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def counted(*args: object) -> object:
        nonlocal made
        made += 1
        return plan_branch(*args)  # type: ignore[arg-type]

    shards: list[Adapter] = [EngineAdapter(MemoryRowStore()) for _ in range(4)]
    async with Datastore(Sharded(shards)) as ds:
        for shard in shards[:indexed]:
            await shard.create_index(INDEX)
            await shard.build_index(INDEX)
        await ds.put(items())
        monkeypatch.setattr("aiodatastore.adapters.engine.core.plan_branch", counted)
        monkeypatch.setattr("aiodatastore.indexing.normal._prepared", {})
        for limit in (7, 20):
            query = ds.query("Item").filter("group", "=", 1).filter("price", "<", 90)
            found = await query.order("-price").limit(limit).fetch()
            odd = [*range(89, 0, -2)]
            assert [entity["price"] for entity in found] == odd[:limit]
        assert made == (2 if indexed == 1 else 1)


@anyio_test
async def test_only_what_is_given_is_read() -> None:
    serializer = Counting()
    sharded = Sharded([EngineAdapter(MemoryRowStore(), serializer=serializer) for _ in range(4)])
    async with Datastore(sharded) as ds:
        await ds.put(items())
        serializer.read = 0
        stream = sharded.run(Query("Item").order("price").offset(3).limit(20), RunOptions(positions=True))
        serializer.fails = True
        for _ in range(2):
            with pytest.raises(CorruptDataError):
                await stream.next_page()
        serializer.fails = False
        serializer.read = 0
        page = await stream.next_page()
        assert [entity["price"] for entity in page.results] == [*range(4, 24)]
        assert page.skipped == 3
        assert serializer.read == 20
