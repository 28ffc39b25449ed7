"""A store of any object that gets, sets and deletes."""

from __future__ import annotations

import gc
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import anyio.lowlevel
import pytest

from aiodatastore import (
    BadArgumentError,
    Capability,
    CorruptDataError,
    Datastore,
    Entity,
    EntityNotFoundError,
    IndexDefinition,
    Key,
    TransactionFailedError,
    UnavailableError,
)
from aiodatastore.adapters.base import Adapter
from aiodatastore.shims import InterfaceMapping
from aiodatastore.testing.history import WORKLOADS, History, Workload, run_workload, verify_workload
from aiodatastore.testing.suite import AdapterSuite, Connect
from tests.shims.stacks import PROFILE

pytestmark = pytest.mark.anyio


class Slow:
    """An object with async methods of other names."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self.failing = ""
        self.under_way = self.most = 0

    async def fetch(self, key: bytes) -> bytes | None:
        await self._step("fetch")
        return self.objects.get(key)

    async def put(self, key: bytes, value: bytes) -> bool:
        await self._step("put")
        self.objects[key] = value
        return True

    async def remove(self, key: bytes) -> None:
        await self._step("remove")
        del self.objects[key]

    async def _step(self, what: str) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await anyio.lowlevel.checkpoint()
        self.under_way -= 1
        if self.failing == what:
            raise OSError("cut")


class LRU(OrderedDict[str, bytes]):
    """Keeps the last so many."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __setitem__(self, key: str, value: bytes) -> None:
        super().__setitem__(key, value)
        while len(self) > self.size:
            self.popitem(last=False)


# ------------------------------------------------------------------------------------------------ the suite


class TestOfDict(AdapterSuite):
    """Sync, in memory, with an index that is in memory, too."""

    hypothesis_profile: ClassVar[str | None] = PROFILE
    second_connection = False

    @pytest.fixture(params=["asyncio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def connect(self) -> Connect:
        objects: dict[str, bytes] = {}
        engine = ("require_indexes", "sort_budget", "serializer")

        def connect(**options: Any) -> Datastore:
            own = {name: options.pop(name) for name in engine if name in options}
            return Datastore(InterfaceMapping(objects, **own), **options)

        return connect


class TestOfAsyncObject(AdapterSuite):
    """Async, with bytes for keys and an index in a file; several connections."""

    hypothesis_profile: ClassVar[str | None] = PROFILE

    @pytest.fixture(params=["asyncio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def connect(self, tmp_path: Path) -> Connect:
        objects = Slow()
        index = f"sqlite:///{tmp_path}/index.db?synchronous=OFF"
        engine = ("require_indexes", "sort_budget", "serializer")

        def connect(**options: Any) -> Datastore:
            own = {name: options.pop(name) for name in engine if name in options}
            adapter = InterfaceMapping(
                objects, get="fetch", index=index, key_type=bytes, evicts=False, durable=True, shared=True, **own
            )
            return Datastore(adapter, **options)

        return connect


# ------------------------------------------------------------------------------------------ what is kept where


async def test_what_the_object_holds() -> None:
    objects: dict[str, bytes] = {}
    async with Datastore(InterfaceMapping(objects, prefix="app:")) as ds:
        await ds.put([Entity(Key("Person", "ada"), {"x": 1}), Entity(Key("K", "ü \n" * 100), {"x": 1})])
        names = sorted(objects)
        assert names[1].startswith("app:/Person:ada@")
        assert all(name.isascii() and name.isprintable() and " " not in name and len(name) <= 250 for name in names)
        await ds.put(Entity(Key("Person", "ada"), {"x": 2}))
        assert len(objects) == 2
        assert sorted(objects)[1] != names[1]
        await ds.delete([Key("Person", "ada"), Key("K", "ü \n" * 100)])
        assert objects == {}


async def test_refused_commits_leave_nothing_in_the_object() -> None:
    objects: dict[str, bytes] = {}
    async with Datastore(InterfaceMapping(objects)) as ds:
        await ds.put(Entity(Key("K", 1), {"x": 1}))
        before = dict(objects)
        with pytest.raises(EntityNotFoundError):
            await ds.update([Entity(Key("K", 1), {"x": 2}), Entity(Key("K", 2), {"x": 2})])
        transaction = ds.begin()
        entity = await transaction.get(Key("K", 1))
        assert entity is not None
        await transaction.put(entity)
        await ds.put(Entity(Key("K", 1), {"x": 3}))
        with pytest.raises(TransactionFailedError):
            await transaction.commit()
        assert len(objects) == 1
        assert objects != before


async def test_unindexed_properties_are_in_the_object_alone() -> None:
    objects: dict[str, bytes] = {}
    adapter = InterfaceMapping(objects)
    async with Datastore(adapter) as ds:
        await ds.put(Entity(Key("K", 1), {"long": "z" * 100_000, "x": 5}, unindexed=["long"]))
        assert sum(map(len, objects.values())) > 100_000
        assert (await adapter.store.sizes())["entity_bytes"] < 1000
        found = await ds.query("K").filter("x", "=", 5).fetch()
        assert len(found[0]["long"]) == 100_000
        await ds.create_index(IndexDefinition("K", (("x", "asc"), ("y", "desc"))))
        await ds.put(Entity(Key("K", 1), {"x": 6, "y": 1}))
        await ds.delete(Key("K", 1))
        assert await ds.check() == []
        assert (await adapter.store.sizes())["index_bytes"] == 0


async def test_a_file_index_finds_what_the_object_kept(tmp_path: Path) -> None:
    objects: dict[str, bytes] = {}
    index = f"sqlite:///{tmp_path}/index.db"
    for number in (1, 2, 3):
        async with Datastore(InterfaceMapping(objects, index=index)) as ds:
            await ds.put(Entity(Key("K", number), {"x": number}))
            assert await ds.query("K").order("-x").keys() == [Key("K", n) for n in range(number, 0, -1)]


# ------------------------------------------------------------------------------------------------- eviction


async def test_what_the_object_lost_is_absent_everywhere() -> None:
    objects = LRU(10)
    async with Datastore(InterfaceMapping(objects)) as ds:
        await ds.put([Entity(Key("K", number), {"n": number, "t": ["a", number]}) for number in range(1, 31)])
        left = [Key("K", number) for number in range(21, 31)]
        assert await ds.query("K").count() == 10
        assert await ds.query("K").keys() == left
        assert await ds.query("K").filter("t", "=", "a").filter("n", ">", 0).order("n").keys() == left
        assert await ds.get(Key("K", 1)) is None
        assert [entity["n"] for entity in await ds.query("K").order("-n").fetch()] == list(range(30, 20, -1))
        assert await ds.query("K").sum("n") == sum(range(21, 31))
        assert await ds.check() == []
        assert (await ds.stats())["kinds"][0]["entities"] == 10


@pytest.mark.parametrize("way", ["get", "query", "count", "keys", "insert", "update", "check", "stats", "zigzag"])
async def test_each_way_to_meet_a_lost_entity(way: str) -> None:
    objects: dict[str, bytes] = {}
    async with Datastore(InterfaceMapping(objects)) as ds:
        entities = [Entity(Key("K", number), {"a": 1, "b": 2}) for number in (1, 2, 3)]
        await ds.put(entities)
        del objects[next(name for name in objects if "K:2@" in name)]
        left = [Key("K", 1), Key("K", 3)]
        match way:
            case "get":
                assert await ds.get(entities[1].key) is None
            case "query":
                assert [entity.key for entity in await ds.query("K").fetch()] == left
            case "count":
                assert await ds.query("K").count() == 2
            case "keys":
                assert await ds.query("K").filter("a", "=", 1).keys() == left
            case "zigzag":
                assert await ds.query("K").filter("a", "=", 1).filter("b", "=", 2).keys() == left
            case "insert":
                await ds.insert(Entity(Key("K", 2), {"a": 1}))
                await ds.delete(Key("K", 2))
            case "update":
                with pytest.raises(EntityNotFoundError):
                    await ds.update(Entity(Key("K", 2), {"a": 1}))
            case "check":
                assert await ds.check() == []
            case "stats":
                assert (await ds.stats())["kinds"][0]["entities"] == 2
        assert len(objects) == 2
        assert await ds.query("K").keys() == left
        assert await ds.check() == []


async def test_without_eviction_the_index_answers_alone() -> None:
    objects: dict[str, bytes] = {}
    async with Datastore(InterfaceMapping(objects, evicts=False)) as ds:
        await ds.put([Entity(Key("K", number)) for number in (1, 2, 3)])
        objects.clear()
        assert await ds.query("K").count() == 3
        assert len(await ds.query("K").keys()) == 3
        assert await ds.query("K").fetch() == []
        assert await ds.query("K").count() == 0


async def test_a_transaction_that_meets_a_lost_entity() -> None:
    objects: dict[str, bytes] = {}
    async with Datastore(InterfaceMapping(objects)) as ds:
        await ds.put(Entity(Key("K", 1), {"n": 1}))
        objects.clear()

        @ds.transactional
        async def renew() -> None:
            assert await ds.get(Key("K", 1)) is None
            await ds.put(Entity(Key("K", 1), {"n": 2}))

        await renew()
        found = await ds.get(Key("K", 1))
        assert found is not None
        assert found["n"] == 2


# ------------------------------------------------------------------------------------------ serializability


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_many_tasks_over_two_connections(workload: Workload, tmp_path: Path) -> None:
    objects = Slow()
    history = History()

    def connect() -> Datastore:
        index = f"sqlite:///{tmp_path}/index.db?synchronous=OFF"
        return Datastore(InterfaceMapping(objects, get="fetch", index=index, key_type=bytes, shared=True))

    async def client(ds: Datastore, name: str) -> None:
        await run_workload(ds, workload, tasks=6, transactions=8, items=4, client=name, record=history.add)

    async def main() -> None:
        async with connect() as one, connect() as two:
            async with anyio.create_task_group() as group:
                group.start_soon(client, one, "one")
                group.start_soon(client, two, "two")
            kept = await one.query().count()
            assert await two.check() == []
        assert len(objects.objects) == kept  # nothing was left behind

    anyio.run(main)
    assert history.count("committed") == 2 * 6 * 8
    assert "\n".join(map(str, verify_workload(history))) == ""


# ------------------------------------------------------------------------------------------ kinds of objects


async def test_threads() -> None:
    objects: dict[str, bytes] = {}
    adapter = InterfaceMapping(objects, threads=3)
    async with Datastore(adapter) as ds:
        assert Capability.INLINE_READS not in ds.capabilities
        assert Capability.TRIO in ds.capabilities
        await ds.put([Entity(Key("K", number), {"n": number}) for number in range(1, 51)])
        assert await ds.query("K").sum("n") == 1275
        await ds.delete(await ds.query("K").keys())
    assert objects == {}


async def test_inline_reads_are_known_once_it_is_open() -> None:
    assert Capability.INLINE_READS not in InterfaceMapping({}).capabilities
    async with Datastore(InterfaceMapping({})) as ds:
        assert Capability.INLINE_READS in ds.capabilities
    slow = Slow()
    adapter = InterfaceMapping(slow, get=lambda key: slow.fetch(key), key_type=bytes)  # noqa: PLW0108
    async with Datastore(adapter) as ds:  # only its answer tells that it is async
        assert not {Capability.INLINE_READS, Capability.TRIO} & ds.capabilities
        await ds.put([Entity(Key("K", number)) for number in range(1, 101)])
        await ds.get([Key("K", number) for number in range(1, 101)])
        assert 1 < slow.most <= 32


async def test_many_at_once() -> None:
    class Client(dict[str, bytes]):
        asked = 0

        def get_multi(self, keys: list[str]) -> dict[str, bytes]:
            self.asked += 1
            return {key: self[key] for key in keys if key in self}

        def in_order(self, keys: list[str]) -> tuple[bytes | None, ...]:
            return tuple(self.get(key) for key in keys)

    client = Client()
    async with Datastore(InterfaceMapping(client, threads=1, get_many="get_multi")) as ds:
        await ds.put([Entity(Key("K", number), {"n": number}) for number in range(1, 31)])
        assert len(await ds.query("K").fetch()) == 30
        assert 1 <= client.asked <= 3  # not for each of them
    async with Datastore(InterfaceMapping(client, threads=1, get_many=client.in_order)) as ds:
        entities = [Entity(Key("K", 1), {"n": 1}), Entity(Key("K", 2), {"n": 2})]
        await ds.put(entities)
        assert await ds.get([Key("K", 1), Key("K", 9), Key("K", 2)]) == [entities[0], None, entities[1]]


@pytest.mark.parametrize("failing", ["fetch", "put", "remove"])
async def test_errors_of_the_object(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    async with Datastore(InterfaceMapping(slow, get="fetch", key_type=bytes)) as ds:
        await ds.put(Entity(Key("K", 1), {"n": 1}))
        slow.failing = failing
        if failing == "remove":
            await ds.put(Entity(Key("K", 1), {"n": 2}))  # which is committed
            assert "Slow keeps payloads that were replaced" in caplog.text
        else:
            with pytest.raises(UnavailableError, match=r"^Slow failed to (get|put): OSError$") as caught:
                await (ds.get(Key("K", 1)) if failing == "fetch" else ds.put(Entity(Key("K", 1), {"n": 2})))
            assert caught.value.nothing_written is (failing == "put")
            assert str(caught.value.__cause__) == "cut"
        slow.failing = ""
        found = await ds.get(Key("K", 1))
        assert found is not None
        assert found["n"] == (2 if failing == "remove" else 1)


async def test_an_object_that_refuses_or_decodes_is_told() -> None:
    async with Datastore(InterfaceMapping({}, put=lambda key, value: False)) as ds:
        with pytest.raises(UnavailableError, match=r"did not take [0-9]+ bytes"):
            await ds.put(Entity(Key("K", 1)))
    objects: dict[str, bytes] = {}

    def get(key: str) -> object:
        return "text" if key in objects else None

    async with Datastore(InterfaceMapping(objects, get=get)) as ds:
        await ds.put(Entity(Key("K", 1)))
        with pytest.raises(CorruptDataError, match="get returned str"):
            await ds.get(Key("K", 1))


async def test_an_object_that_does_not_answer_is_told_when_it_is_opened() -> None:
    slow = Slow()
    slow.failing = "fetch"
    with pytest.raises(UnavailableError, match="Slow failed to get"):
        await Datastore(InterfaceMapping(slow, get="fetch")).open()
    gc.collect()  # nothing was left open


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"obj": object()}, "get: object has not one of the methods get, __getitem__"),
        ({"get": "fetch"}, "get: dict has not the method 'fetch'"),
        ({"index": "postgresql://localhost/x"}, "index: expected memory:// or sqlite:///path"),
        ({"index": "null://x"}, "null:// keeps nothing"),
        ({"threads": -1}, "threads: expected an int"),
        ({"key_type": int}, "key_type: expected str or bytes"),
        ({"prefix": "a b"}, "prefix: expected"),
        ({"sort_budgets": 1}, "sort_budgets"),
    ],
)
def test_what_is_wrong_is_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((BadArgumentError, TypeError), match=message):
        InterfaceMapping(**{"obj": {}, **arguments})


def test_what_it_promises(tmp_path: Path) -> None:
    def promised(**options: Any) -> frozenset[Capability]:
        adapter: Adapter = InterfaceMapping({}, index=f"sqlite:///{tmp_path}/x.db", **options)
        return adapter.capabilities

    both = {Capability.DURABLE, Capability.MULTI_PROCESS}
    assert not both & promised()
    assert both <= promised(durable=True, shared=True, evicts=False)
    assert Capability.DURABLE not in promised(durable=True)
    assert InterfaceMapping({}, threads=2).settings == {
        "index": "memory://", "evicts": True, "threads": 2, "prefix": "",
    }  # fmt: skip
