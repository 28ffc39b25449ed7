"""Things that went wrong once in the engine: indexes that come and go while the store is used, pages that fail."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from aiodatastore.adapters.base import Commit, Delete, Put, RunOptions
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadRequestError,
    CorruptDataError,
    NeedIndexError,
    StoreBusyError,
    TransactionFailedError,
)
from aiodatastore.indexing.definitions import IndexDefinition, IndexState
from aiodatastore.key import MAX_ID, Key
from aiodatastore.query import Or, PropertyFilter, Query
from aiodatastore.rowstore import Record, RowBatch, RowOutcome, RowScan, Space, Span
from aiodatastore.serializers import MsgpackSerializer
from aiodatastore.values import Blob, GeoPoint

pytestmark = pytest.mark.anyio

AB = IndexDefinition("T", (("a", "asc"), ("b", "desc")))
BY_AB = Query("T").order("a", "-b")


class Store(MemoryRowStore):
    """In which a test can do something, or fail, before a commit or scan."""

    def __init__(self) -> None:
        super().__init__()
        self.before_commit: Any = None
        self.before_scan: Any = None
        self.reads_now = True

    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        if self.before_commit is not None:
            await self.before_commit(batch)
        return await super().commit(batch)

    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
        if self.before_scan is not None:
            await self.before_scan(span)
        return await super().scan(span, limit, reverse=reverse, with_entities=with_entities)

    def read_now(self, keys: Sequence[bytes]) -> list[Record | None]:
        return super().read_now(keys) if self.reads_now else None  # type: ignore[return-value]  # as others may


@asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[tuple[Store, EngineAdapter]]:
    store = Store()
    adapter = EngineAdapter(store, **options)
    await adapter.open()
    yield store, adapter
    await adapter.aclose()


def other(store: Store, **options: Any) -> EngineAdapter:
    """Another process's engine on the same store."""
    return EngineAdapter(store, **options)


async def put(adapter: EngineAdapter, *entities: Entity) -> None:
    for outcome in await adapter.commit([Commit(writes=[Put(entity)]) for entity in entities]):
        assert outcome.error is None
        assert outcome.committed


def some(count: int) -> list[Entity]:
    return [Entity(Key("T", n), {"a": n // 3, "b": n}) for n in range(1, count + 1)]


async def keys(adapter: EngineAdapter, query: Query) -> list[Key]:
    stream = adapter.run(query.keys_only())
    found: list[Key] = []
    while True:
        page = await stream.next_page()
        found += page.results
        if not page.more:
            return found


async def test_an_entity_too_large_for_a_later_index_can_be_changed_and_deleted() -> None:
    wide = [Entity(Key("T", n), {"a": list(range(150)), "b": list(range(150))}) for n in (1, 2)]
    async with engine() as (_, adapter):
        await put(adapter, *wide)
        await adapter.create_index(AB)
        with pytest.raises(BadRequestError, match="index rows"):
            await adapter.build_index(AB)
        assert [info.state for info in await adapter.indexes()] == [IndexState.ERROR]
        assert await adapter.check() == []
        assert (await adapter.stats())["kinds"][0]["entities"] == 2
        await adapter.commit([Commit(writes=[Delete(Key("T", 1))])])
        await put(adapter, Entity(Key("T", 2), {"a": 1, "b": 2}))
        await adapter.create_index(AB)
        assert (await adapter.build_index(AB)).state is IndexState.SERVING
        assert await adapter.check() == []
        assert await keys(adapter, BY_AB) == [Key("T", 2)]


async def test_two_builds_of_one_index_end_in_one_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodatastore.adapters.engine.building._BATCH", 5)
    async with engine() as (store, adapter):
        await put(adapter, *some(300))
        await adapter.create_index(AB)
        slow = other(store)

        async def overtake(batch: RowBatch) -> None:
            store.before_commit = None
            assert (await adapter.build_index(AB)).state is IndexState.SERVING

        store.before_commit = overtake
        assert (await slow.build_index(AB)).state is IndexState.SERVING
        assert [info.state for info in await adapter.indexes()] == [IndexState.SERVING]
        assert await adapter.check() == []


async def test_a_build_of_a_deleted_index_leaves_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodatastore.adapters.engine.building._BATCH", 5)
    async with engine() as (store, adapter):
        await put(adapter, *some(60))
        info = await adapter.create_index(AB)
        slow = other(store)

        async def remove(batch: RowBatch) -> None:
            store.before_commit = None
            await adapter.delete_index(AB)

        store.before_commit = remove
        with pytest.raises(BadRequestError, match="deleted"):
            await slow.build_index(AB)
        prefix = b"\x03" + info.number.to_bytes(4, "big")
        assert (await store.count(Span(Space.INDEX, prefix, prefix + b"\xff"))).rows == 0


async def test_a_build_that_a_busy_store_interrupts_can_go_on() -> None:
    async with engine() as (store, adapter):
        await put(adapter, *some(10))
        await adapter.create_index(AB)

        async def busy(batch: RowBatch) -> None:
            raise StoreBusyError("busy")

        store.before_commit = busy
        with pytest.raises(StoreBusyError):
            await adapter.build_index(AB)
        store.before_commit = None
        assert [info.state for info in await adapter.indexes()] == [IndexState.BUILDING]
        assert (await adapter.build_index(AB)).state is IndexState.SERVING


async def test_an_index_marked_for_deletion_is_kept_up_for_those_who_have_not_heard_of_it() -> None:
    async with engine() as (store, adapter):
        await put(adapter, *some(5))
        await adapter.create_index(AB)
        await adapter.build_index(AB)
        late = other(store)
        await late.refresh(force=True)
        await adapter.delete_index(AB, finish=False)
        await put(adapter, Entity(Key("T", 99), {"a": 0, "b": 7}))
        late._catalog_read_at = float("inf")  # its catalog is not old enough to be read again
        assert late.catalog.serving_numbers
        assert Key("T", 99) in await keys(late, BY_AB)
        late._catalog_read_at = 0.0
        assert Key("T", 99) in await keys(late, BY_AB)
        assert not late.catalog.serving_numbers
        await adapter.delete_index(AB)
        assert await adapter.indexes() == []
        assert await adapter.check() == []


async def test_a_page_is_read_again_if_its_index_is_removed_under_it() -> None:
    async with engine() as (store, adapter):
        entities = some(2000)
        await put(adapter, *entities)
        await adapter.create_index(AB)
        await adapter.build_index(AB)
        expected = await keys(adapter, BY_AB)
        scans = 0

        async def remove(span: Span) -> None:
            nonlocal scans
            scans += span.lo.startswith(b"\x03")
            if scans == 2:
                store.before_scan = None
                await adapter.delete_index(AB)

        store.before_scan = remove
        assert await keys(adapter, BY_AB) == expected
        assert store.before_scan is None


async def test_what_a_transaction_saw_in_an_index_that_is_gone_is_a_conflict() -> None:
    async with Datastore(EngineAdapter(MemoryRowStore())) as ds:
        await ds.put(some(5))
        await ds.create_index(AB)
        transaction = ds.begin()
        assert len(await transaction.query("T").order("a", "-b").keys_only().fetch()) == 5
        await transaction.put(Entity(Key("Other", 1), {"count": 5}))
        await ds.delete_index(AB)
        await ds.put(Entity(Key("T", 99), {"a": 0, "b": 7}))
        with pytest.raises(TransactionFailedError):
            await transaction.commit()


async def test_a_page_that_failed_is_read_by_the_next_call() -> None:
    async with engine() as (store, adapter):
        await put(adapter, *some(400))
        expected = await keys(adapter, Query("T"))
        stream = adapter.run(Query("T").offset(3), RunOptions(page_size=100))
        found: list[Key] = []
        calls = 0
        skipped = 0

        async def fail(span: Span) -> None:
            nonlocal calls
            calls += 1
            if calls % 2:
                raise StoreBusyError("busy")

        store.before_scan = fail
        more = True
        while more:
            try:
                page = await stream.next_page()
            except StoreBusyError:
                continue
            found += [entity.key for entity in page.results]
            skipped += page.skipped
            more = page.more
        assert skipped == 3
        assert found == expected[3:]


async def test_a_page_that_was_cancelled_half_way_is_read_by_the_next_call() -> None:
    async with engine() as (store, adapter):
        await put(adapter, *some(300))
        query = Query("T").filter("a", ">", 0).filter("b", ">", 100)  # too few of the first rows are results
        expected = await keys(adapter, query)
        stream = adapter.run(query.limit(150), RunOptions(page_size=200))
        scans = 0

        async def hang(span: Span) -> None:
            nonlocal scans
            scans += 1
            if scans == 2:
                store.before_scan = None
                scope.cancel()
                await anyio.sleep_forever()

        store.before_scan = hang
        with anyio.CancelScope() as scope:
            await stream.next_page()
        assert scope.cancelled_caught
        found: list[Key] = []
        more = True
        while more:
            page = await stream.next_page()
            found += [entity.key for entity in page.results]
            more = page.more
        assert found == expected[:150]


async def test_a_count_in_a_transaction_notices_entities_that_changed_their_number_of_values() -> None:
    async with Datastore("memory://") as ds:
        await ds.put([Entity(Key("T", 1), {"n": 1}), Entity(Key("T", 2), {"n": 2})])
        transaction = ds.begin()
        assert await transaction.query("T").filter("n", ">", 0).count() == 2
        await transaction.put(Entity(Key("Other", 1), {"count": 2}))
        await ds.delete(Key("T", 1))
        await ds.put(Entity(Key("T", 2), {"n": [2, 3]}))  # as many rows as before, of one entity
        with pytest.raises(TransactionFailedError):
            await transaction.commit()


async def test_the_last_id_of_all_ends_a_sequence(tmp_path: Path) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path}/ids.db"):
        async with Datastore(url) as ds:
            first, last = await ds.allocate_ids(Key("T"), max=MAX_ID)
            assert first == 1
            assert last >= MAX_ID - 1
            with pytest.raises(BadRequestError, match="ids are left"):
                await ds.allocate_ids(Key("T"), 5)
            with pytest.raises(BadRequestError, match="ids are left"):
                await ds.put(Entity(Key("T"), {}))
            first, last = await ds.allocate_ids(Key("T"), max=MAX_ID)
            assert last < first
            await ds.put(Entity(Key("U"), {}))


async def test_an_index_that_another_process_built_is_found_where_nothing_can_be_read_at_once() -> None:
    async with engine() as (store, adapter):
        await put(adapter, *some(5))
        store.reads_now = False
        late = other(store, require_indexes=True)
        await late.refresh(force=True)
        with pytest.raises(NeedIndexError):
            await keys(late, BY_AB)
        await adapter.create_index(AB)
        await adapter.build_index(AB)
        late._catalog_read_at = 0.0
        assert len(await keys(late, BY_AB)) == 5


async def test_an_index_of_very_many_properties_is_refused() -> None:
    async with engine() as (_, adapter):
        with pytest.raises(BadRequestError, match="at most 40 properties"):
            await adapter.create_index(IndexDefinition("T", tuple((f"p{n}", "asc") for n in range(41))))


async def test_an_older_catalog_never_takes_the_place_of_a_newer_one() -> None:
    async with engine() as (store, adapter):
        before = store.read_now([b"\xffcatalog"])[0]
        await adapter.create_index(AB)
        adapter.take_catalog(before, 0.0)
        assert [entry.info.definition for entry in adapter.catalog.entries] == [AB]


async def test_an_adapter_opened_again_knows_nothing_of_what_its_store_has_forgotten() -> None:
    ds = Datastore(adapter_from_url("memory://"))
    async with ds:
        await ds.create_index(AB)
    async with ds:
        assert await ds.indexes() == []
        await ds.put(some(3))
        assert await ds.check() == []


async def test_whatever_a_damaged_payload_comes_to_is_corrupt_data() -> None:
    serializer = MsgpackSerializer()
    key = Key("T", 1)
    point = serializer.dumps(Entity(key, {"p": GeoPoint(1.0, 2.0)}))
    latitude = point.index(struct.pack(">d", 1.0))
    damaged = [
        point[:latitude] + struct.pack(">d", 1e9) + point[latitude + 8 :],
        b"\x01" + msgspec.msgpack.encode({"p": 1}),
        b"\x01" + msgspec.msgpack.encode([5]),
        b"\x01" + msgspec.msgpack.encode(None),
        b"",
    ]
    for payload in damaged:
        with pytest.raises(CorruptDataError):
            serializer.loads(key, payload, 1)


async def test_a_page_of_entities_too_large_to_be_packed_into_one_value_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def limited(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 200_000)
        return connection

    monkeypatch.setattr(sqlite3, "connect", limited)
    async with Datastore(f"sqlite:///{tmp_path}/large.db", inline_reads=False) as ds:
        large = [Entity(Key("T", n), {"b": Blob(bytes(10_000))}) for n in range(1, 31)]
        await ds.put(large)
        assert await ds.query("T").fetch() == large
        assert await ds.get([entity.key for entity in large]) == large


async def test_pages_of_large_entities_have_few_of_them() -> None:
    async with engine() as (_, adapter):
        for n in range(1, 101):
            await put(adapter, Entity(Key("T", n), {"b": Blob(bytes(400_000))}))
        stream = adapter.run(Query("T"))
        sizes: list[int] = []
        more = True
        while more:
            page = await stream.next_page()
            sizes.append(len(page.results))
            more = page.more
        assert sum(sizes) == 100
        assert max(sizes[1:]) <= 10


async def test_whether_a_query_needs_an_index_does_not_depend_on_what_was_asked_before() -> None:
    async with engine(require_indexes=True) as (_, adapter):
        await put(adapter, *some(9))
        await adapter.create_index(AB)
        await adapter.build_index(AB)
        for _ in range(2):
            with pytest.raises(NeedIndexError):  # by App Engine's rules, which read an index one way only
                await keys(adapter, BY_AB.reversed())
            assert len(await keys(adapter, BY_AB)) == 9


async def test_a_cursor_outside_the_range_of_a_branch_finds_nothing_there() -> None:
    lists = {1: [3, 2], 2: [1], 3: [2], 4: [0, 3], 5: [1], 6: [1]}
    async with Datastore("memory://") as ds:
        await ds.put([Entity(Key("T", n), {"a": int(n in (3, 4, 5)), "l": found}) for n, found in lists.items()])
        query = ds.query("T").filter(Or(PropertyFilter("l", ">=", 2), PropertyFilter("a", "<", 1))).order("-l")
        expected = [1, 4, 3, 2, 6]
        assert [entity.key.id for entity in await query.fetch()] == expected
        page = await query.page(1)
        found = [page.entities[0].key.id]
        while page.more:
            page = await query.page(1, page.cursor)
            found.append(page.entities[0].key.id)
        assert found == expected


async def test_an_adapter_is_open_in_one_datastore_at_a_time() -> None:
    """Else the second would begin a memory store anew, and the first to be closed would close it for both."""
    adapter = EngineAdapter(MemoryRowStore())
    async with Datastore(adapter) as ds:
        await ds.put(Entity(Key("A", 1)))
        with pytest.raises(BadRequestError, match="open already"):
            await Datastore(adapter).open()
        assert await ds.get(Key("A", 1)) is not None
    async with Datastore(adapter) as ds:
        assert await ds.get(Key("A", 1)) is None  # it is memory
