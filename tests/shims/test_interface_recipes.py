"""``InterfaceMapping`` on what people have: memcached, LRUs, diskcache, RocksDB, objects like S3.

The page ``docs/interface-mapping.md`` shows the same lines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest

from aiodatastore import Capability, Datastore, Entity, Key
from aiodatastore.shims import InterfaceMapping

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def exercise(ds: Datastore, *, loses: bool = False) -> None:
    """Puts, queries, a contended counter and deletions."""
    people = [Entity(Key("Person", f"p{n}"), {"n": n, "odd": n % 2 == 1, "text": "ü" * n}) for n in range(40)]
    await ds.put(people)
    found = await ds.query("Person").filter("odd", "=", True).order("-n").fetch()
    if not loses:
        assert found == [each for each in reversed(people) if each["odd"]]
        assert await ds.get([people[3].key, Key("Person", "x")]) == [people[3], None]
        assert await ds.query("Person").filter("n", "<", 10).count() == 10
    await ds.put(Entity(Key("Counter", 1), {"n": 0}))

    async def increment() -> None:
        counter = await ds.get(Key("Counter", 1))
        assert counter is not None
        counter["n"] += 1
        await ds.put(counter)

    async def transaction() -> None:
        await ds.run_in_transaction(increment, retries=50)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(transaction)
    counter = await ds.get(Key("Counter", 1))
    assert counter is not None
    assert counter["n"] == 20
    assert await ds.check() == []
    await ds.delete(await ds.query("Person").keys())
    assert await ds.query("Person").count() == 0


async def test_lru() -> None:
    cachetools = pytest.importorskip("cachetools")
    cache = cachetools.LRUCache(maxsize=1000)
    async with Datastore(InterfaceMapping(cache)) as ds:
        await exercise(ds)
        assert len(cache) == 1
        await ds.put([Entity(Key("K", number), {"n": number}) for number in range(1, 2001)])
        assert await ds.query("K").count() == 1000
        assert await ds.check() == []


async def test_lru_that_is_small() -> None:
    cachetools = pytest.importorskip("cachetools")
    # It has room for what 20 commits put that are under way together, of which one replaces the current payload.
    async with Datastore(InterfaceMapping(cachetools.LRUCache(maxsize=30))) as ds:
        await exercise(ds, loses=True)


async def test_diskcache(tmp_path: Path) -> None:
    diskcache = pytest.importorskip("diskcache")
    index = f"sqlite:///{tmp_path}/index.db"
    with diskcache.Cache(tmp_path / "cache", eviction_policy="none") as cache:
        async with Datastore(InterfaceMapping(cache, index=index, evicts=False, durable=True, shared=True)) as ds:
            assert {Capability.DURABLE, Capability.MULTI_PROCESS} <= ds.capabilities
            await exercise(ds)
            await ds.put(Entity(Key("K", 1), {"n": 1}))
    with diskcache.Cache(tmp_path / "cache", eviction_policy="none") as cache:
        async with Datastore(InterfaceMapping(cache, index=index, evicts=False)) as ds:
            assert await ds.query("K").filter("n", "=", 1).fetch() == [Entity(Key("K", 1), {"n": 1})]
            cache.clear()
            assert await ds.query("K").filter("n", "=", 1).fetch() == []


async def test_rocksdb(tmp_path: Path) -> None:
    rocksdict = pytest.importorskip("rocksdict")
    index = f"sqlite:///{tmp_path}/index.db"
    for number in (1, 2):
        db = rocksdict.Rdict(str(tmp_path / "db"), rocksdict.Options(raw_mode=True))
        try:
            adapter = InterfaceMapping(db, index=index, evicts=False, key_type=bytes, threads=4, get_many="get")
            async with Datastore(adapter) as ds:
                await exercise(ds)
                await ds.put(Entity(Key("K", number), {"n": number}))
                assert await ds.query("K").count() == number
                assert len(await ds.query("K").fetch()) == number
        finally:
            db.close()


# ----------------------------------------------------------------------------------------------- memcached


@pytest.fixture
def memcached() -> Iterator[int]:
    """The port of a memcached with 64 MB."""
    binary = shutil.which(os.environ.get("AIODATASTORE_TEST_MEMCACHED", "memcached"))
    if binary is None:
        pytest.skip("no memcached on the PATH (Debian: apt-get install memcached)")
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)  # it is nobody who writes there
        told = Path(folder) / "port"  # it takes one that is free, and tells: one that was free may not be any more
        process = subprocess.Popen(
            [binary, "-l", "127.0.0.1", "-p", "-1", "-U", "0", "-m", "64", *user],
            env={**os.environ, "MEMCACHED_PORT_FILENAME": str(told)},
        )
        try:
            deadline = time.monotonic() + 60
            while not told.exists():  # it gets this name when it is written
                assert process.poll() is None, "memcached did not start"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield int(told.read_text().removeprefix("TCP INET:"))
        finally:
            process.kill()
            process.wait()


@pytest.fixture
async def client(memcached: int) -> AsyncIterator[Any]:
    aiomcache = pytest.importorskip("aiomcache")
    client = aiomcache.Client("127.0.0.1", memcached)
    yield client
    await client.close()


async def test_memcached(client: Any) -> None:
    def get_many(keys: list[bytes]) -> Any:
        return client.multi_get(*keys)

    async with Datastore(InterfaceMapping(client, key_type=bytes, get_many=get_many)) as ds:
        assert not {Capability.INLINE_READS, Capability.TRIO} & ds.capabilities
        await exercise(ds)
        await ds.put([Entity(Key("K", "ü b" * n), {"n": n}) for n in range(1, 100)])  # keys of all lengths
        assert await ds.query("K").filter("n", ">", 50).count() == 49
        await client.flush_all()
        assert await ds.query("K").filter("n", ">", 50).count() == 0
        assert await ds.get(Key("K", "ü b")) is None
        assert await ds.check() == []


async def test_two_connections_over_one_memcached_with_an_index_in_a_file(client: Any, tmp_path: Path) -> None:
    def connect() -> Datastore:
        index = f"sqlite:///{tmp_path}/index.db"
        return Datastore(InterfaceMapping(client, key_type=bytes, index=index, shared=True))

    async with connect() as one, connect() as two:
        await one.put(Entity(Key("K", 1), {"n": 0}))

        async def add(ds: Datastore) -> None:
            @ds.transactional(retries=100)
            async def increment() -> None:
                found = await ds.get(Key("K", 1))
                assert found is not None
                found["n"] += 1
                await ds.put(found)

            for _ in range(25):
                await increment()

        async with anyio.create_task_group() as group:
            for ds in (one, two):
                group.start_soon(add, ds)
                group.start_soon(add, ds)
        found = await two.get(Key("K", 1))
        assert found is not None
        assert found["n"] == 100


# ---------------------------------------------------------------------------------------------- like S3


class S3:
    """The three methods of an async S3 client that are needed, as aiobotocore has them."""

    class NoSuchKeyError(Exception):
        pass

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}

    async def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        await anyio.lowlevel.checkpoint()
        try:
            return {"Body": self.objects[Bucket, Key]}
        except KeyError:
            raise S3.NoSuchKeyError from None

    async def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> None:  # noqa: N803
        await anyio.lowlevel.checkpoint()
        self.objects[Bucket, Key] = Body

    async def delete_object(self, *, Bucket: str, Key: str) -> None:  # noqa: N803
        await anyio.lowlevel.checkpoint()
        self.objects.pop((Bucket, Key), None)


async def test_like_s3() -> None:
    s3 = S3()

    async def get(key: str) -> bytes | None:
        try:
            answer = await s3.get_object(Bucket="shop", Key=key)
        except S3.NoSuchKeyError:
            return None
        body: bytes = answer["Body"]
        return body

    async def put(key: str, value: bytes) -> None:
        await s3.put_object(Bucket="shop", Key=key, Body=value)

    async def delete(key: str) -> None:
        await s3.delete_object(Bucket="shop", Key=key)

    async with Datastore(InterfaceMapping(s3, get=get, put=put, delete=delete, evicts=False)) as ds:
        await exercise(ds)
        assert [key.partition("@")[0] for _, key in s3.objects] == ["/Counter:1"]
