"""What is special to stores in a Redis cluster: where shards are, how the nodes that have them are found, settings."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("redis")

from redis import Redis

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.redis import cluster as cluster_module
from aiodatastore.adapters.redis import store as store_module
from aiodatastore.adapters.redis.cluster import Cluster, hash_slot, hash_tags, parse_seeds
from aiodatastore.adapters.redis.clustered import ClusterAdapter
from aiodatastore.adapters.redis.connections import Command, Connections
from aiodatastore.adapters.redis.durability import Persistence
from aiodatastore.adapters.redis.shard import ClusterRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import BadArgumentError, CrossShardError, StoreClosedError, UnavailableError
from aiodatastore.rowstore import Capability, RowCommit, RowPut
from aiodatastore.shims.sharded.rebalance import rebalance
from aiodatastore.testing.servers import GivenServer, ValkeyCluster, ValkeyNode
from tests.engines import CLUSTERS, fresh_name

from .rows import commit, entities, index_rows, puts, rows_of, versions
from .test_redis import Scripted, certificate, connected, let_pass, tls_before, until

__all__ = ["certificate"]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not CLUSTERS, reason="clusters are left out by AIODATASTORE_TEST_ENGINES"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def cluster(valkey_cluster: ValkeyCluster | GivenServer) -> ValkeyCluster:
    """The cluster that tests share: three masters without replicas."""
    if isinstance(valkey_cluster, GivenServer):
        pytest.skip("its nodes can't be told what to do")
    return valkey_cluster


@asynccontextmanager
async def opened(dsn: str, tag: str = "", **settings: Any) -> AsyncIterator[ClusterRowStore]:
    """A store in one slot, for the time of a block."""
    scheme, _, location = dsn.partition("://")
    of_cluster = {name: settings.pop(name) for name in ("max_connections", "timeout_s") if name in settings}
    nodes = Cluster(parse_seeds(scheme, location), **of_cluster)
    made = ClusterRowStore(nodes, prefix=tag or f"{{{fresh_name()}}}", **settings)
    await made.open()
    try:
        yield made
    finally:
        await made.aclose()


# ---------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+cluster://a", "redis+cluster://a:6379/?prefix=aiodatastore&shards=16"),
        ("redis+cluster://a:1,b:2/?shards=4", "redis+cluster://a:1,b:2/?prefix=aiodatastore&shards=4"),
        ("redis+cluster://a:1/0?prefix=shop", "redis+cluster://a:1/?prefix=shop&shards=16"),
        ("redis+cluster://ada:s%40cret@a,b:2", "redis+cluster://ada@a:6379,b:2/?prefix=aiodatastore&shards=16"),
        ("redis+cluster://:s3cret@a", "redis+cluster://a:6379/?prefix=aiodatastore&shards=16"),
        ("redis+cluster://[::1]:7000,b", "redis+cluster://[::1]:7000,b:6379/?prefix=aiodatastore&shards=16"),
        ("rediss+cluster://a?ssl_cert_reqs=none", "rediss+cluster://a:6379/?prefix=aiodatastore&shards=16"),
        ("valkey+cluster://a", "redis+cluster://a:6379/?prefix=aiodatastore&shards=16"),
        ("valkeys+cluster://a", "rediss+cluster://a:6379/?prefix=aiodatastore&shards=16"),
        ("valkey://a", "redis://a:6379/0?prefix=aiodatastore"),
        ("valkeys://a", "rediss://a:6379/0?prefix=aiodatastore"),
    ],
)
def test_urls_are_shown_without_their_password(url: str, shown: str) -> None:
    adapter = adapter_from_url(url)
    assert adapter.url == shown
    texts = [repr(adapter), repr(adapter.settings), *map(repr, adapter.children)]
    if isinstance(adapter, ClusterAdapter):
        texts += [repr(adapter.cluster), repr(adapter.cluster.seeds)]
    assert not [text for text in texts if "cret" in text]


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://a/1",
        "redis+cluster://a?db=0",
        "redis+cluster://a,",
        "redis+cluster://a:port",
        "redis+cluster://ada:s3cret@[a",
        "redis+cluster://ada:s3cret@a:99999,b",
        "redis+cluster://a?shards=0",
        "redis+cluster://a?shards=1025",
        "redis+cluster://a?shards=many",
        "redis+cluster://a?prefix=",
        "redis+cluster://a?prefix={a}",
        "redis+cluster://a?prefix=a|b",
        "redis+cluster://a?max_connections=0",
        "redis+cluster://a?timeout_s=0",
        "redis+cluster://a?wait_replicas=-1",
        "redis+cluster://a?password=s3cret",
        "redis+cluster://a?ssl_ca_certs=ca.pem",
        "redis://a?shards=4",
    ],
)
def test_malformed_urls(url: str) -> None:
    with pytest.raises(BadArgumentError) as caught:
        adapter_from_url(url)
    assert "cret" not in str(caught.value)


def test_passwords_go_to_every_node() -> None:
    seeds = parse_seeds("redis+cluster", "ada:s3%40cret@a:1,b:2/")
    assert [(seed.host, seed.port, seed.username, seed.password) for seed in seeds] == [
        ("a", 1, "ada", "s3@cret"),
        ("b", 2, "ada", "s3@cret"),
    ]


# ------------------------------------------------------------------------------------------ where shards are


def test_slots_are_those_of_the_specification() -> None:
    assert hash_slot(b"123456789") == 0x31C3
    assert hash_slot(b"{user1000}.following") == hash_slot(b"{user1000}.followers") == hash_slot(b"user1000")
    assert hash_slot(b"foo{}{bar}") == 8363
    assert hash_slot(b"foo{{bar}}zap") == hash_slot(b"{bar")
    assert hash_slot(b"foo{bar}{zap}") == hash_slot(b"bar")


async def test_slots_are_those_of_the_server(cluster: ValkeyCluster) -> None:
    for key in (b"123456789", b"{shop.3}|v", b"a{}b", b"{a", b"\xff\0{\xfe}"):
        with Redis(port=cluster.nodes[0].port) as client:
            assert client.execute_command("CLUSTER", "KEYSLOT", key) == hash_slot(key)


def test_where_shards_are_is_part_of_the_stored_format() -> None:
    """Data is found by these names: a change here loses it."""
    assert hash_tags("shop", 4) == ["{shop.1}", "{shop.0}", "{shop.3}", "{shop.2}"]
    numbers = " ".join(tag[6:-1] for tag in hash_tags("shop", 16))
    assert numbers == "41 1 23 12 40 0 22 13 43 3 21 10 42 2 20 11"


@pytest.mark.parametrize("number", [1, 2, 3, 16, 100, 1024])
def test_shards_are_spread_evenly(number: int) -> None:
    slots = [hash_slot(tag.encode()) for tag in hash_tags("app", number)]
    assert [slot * number // 16384 for slot in slots] == list(range(number))
    assert set(hash_tags("app", number)) <= set(hash_tags("app", 2 * number)), "half of twice as many are the same"


async def test_the_number_of_shards_is_fixed(cluster: ValkeyCluster) -> None:
    prefix = fresh_name()
    async with Datastore(f"{cluster.dsn}?prefix={prefix}&shards=4") as ds:
        await ds.put(Entity(Key("Item", 1)))
    for number in (1, 3, 8):
        with pytest.raises(BadArgumentError, match=f"made with shards=4, and can't be opened with shards={number}"):
            await Datastore(f"{cluster.dsn}?prefix={prefix}&shards={number}").open()
    async with Datastore(f"{cluster.dsn}?prefix={prefix}&shards=4") as ds:
        assert await ds.get(Key("Item", 1)) is not None


async def test_shards_are_added_by_rebalancing(cluster: ValkeyCluster) -> None:
    url = f"{cluster.dsn}?prefix={fresh_name()}&shards="
    keys = [Key("Item", number) for number in range(1, 101)]
    async with Datastore(url + "2") as ds:
        await ds.put([Entity(key, {"n": key.id}) for key in keys])
    wider = adapter_from_url(url + "4")
    assert isinstance(wider, ClusterAdapter)
    report = await rebalance(wider)
    assert 20 < report.copied == report.removed < 80
    async with Datastore(url + "4") as ds:
        assert [found is not None and found["n"] for found in await ds.get(keys)] == list(range(1, 101))
        assert await ds.query("Item").count() == 100
        assert await ds.check() == []
    with pytest.raises(BadArgumentError, match="made with shards=4"):
        await Datastore(url + "2").open()


async def test_groups_are_on_all_masters(cluster: ValkeyCluster) -> None:
    prefix = fresh_name()
    async with Datastore(f"{cluster.dsn}?prefix={prefix}") as ds:
        await ds.put([Entity(Key("Item", number), {"n": number}) for number in range(1, 301)])
        assert [item["n"] async for item in ds.query("Item").order("-n").limit(3)] == [300, 299, 298]
        assert await ds.query("Item").count() == 300
        counts = []
        for node in cluster.nodes:
            with Redis(port=node.port) as client:
                counts.append(len(list(client.scan_iter(match=f"{{{prefix}.*|e*Item*", count=1000))))
        assert sum(counts) == 300
        assert min(counts) > 50
        assert await ds.check() == []


async def test_shards_of_one_node_have_one_lane(cluster: ValkeyCluster) -> None:
    """Calls of a node share round trips, those of different nodes do not wait for each other."""
    adapter = adapter_from_url(f"{cluster.dsn}?prefix={fresh_name()}")
    assert isinstance(adapter, ClusterAdapter)
    async with Datastore(adapter):
        masters: dict[int | None, set[object]] = {}
        for number in range(1, 200):
            key = Key("K", number)
            slot = adapter._slots[adapter.place(key)]
            masters.setdefault(adapter.lane([key]), set()).add(adapter.cluster.master(slot))
        assert sorted(masters, key=str) == [0, 1, 2]
        assert all(len(each) == 1 for each in masters.values())
        assert adapter.lane([Key("K", number) for number in range(1, 200)]) is None


async def test_a_transaction_over_shards_is_refused_before_anything_is_written(cluster: ValkeyCluster) -> None:
    async with Datastore(f"{cluster.dsn}?prefix={fresh_name()}") as ds:
        assert Capability.GLOBAL_TRANSACTIONS not in ds.capabilities
        with pytest.raises(CrossShardError):
            async with ds.transaction():
                await ds.put([Entity(Key("Item", number)) for number in range(1, 50)])
        assert await ds.query("Item").count() == 0
        async with ds.transaction():
            await ds.put([Entity(Key("Item", 1, "Part", number)) for number in range(1, 50)])
        assert await ds.query("Part").count() == 49


async def test_entities_of_all_shards_expire(cluster: ValkeyCluster) -> None:
    prefix = fresh_name()
    async with Datastore(f"{cluster.dsn}?prefix={prefix}&shards=4") as ds:
        await ds.put([Entity(Key("Session", number)) for number in range(1, 21)], ttl=60)
        await ds.put(Entity(Key("Session", 100)))
        assert await ds.query("Session").count() == 21
        for node in cluster.nodes:
            with Redis(port=node.port) as client:
                let_pass(client, prefix, 61)
        assert await ds.query("Session").keys() == [Key("Session", 100)]
        assert await ds.check() == []


# --------------------------------------------------------------------------------------------------- opening


async def test_opening_takes_a_few_round_trips_however_many_shards(
    cluster: ValkeyCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{cluster.dsn}?prefix={fresh_name()}"
    async with Datastore(url):
        pass
    exchange = Connections.exchange
    made = after = 0

    async def noted(self: Connections, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        nonlocal made, after
        made += 1
        mine = after + 1
        await asyncio.sleep(0.1)  # whoever does not wait for this one begins meanwhile
        answers = await exchange(self, commands, timeout_s)
        after = max(after, mine)
        return answers

    monkeypatch.setattr(Connections, "exchange", noted)
    async with Datastore(url):
        assert after < 18 < made, "one after another"


async def test_nodes_that_are_gone_among_those_given(cluster: ValkeyCluster) -> None:
    [first, *_] = cluster.nodes
    async with Datastore(f"redis+cluster://127.0.0.1:1,127.0.0.1:{first.port}/?prefix={fresh_name()}&shards=4") as ds:
        await ds.put(Entity(Key("Item", 1)))
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match="no answer within"):
        await Datastore(f"redis+cluster://127.0.0.1:1/?prefix={fresh_name()}&retry_s=0.2&shards=100").open()
    assert time.monotonic() - begun < 15, "each of the shards waits for itself"


async def test_a_server_that_is_no_cluster_and_a_node_taken_for_a_server(
    cluster: ValkeyCluster, valkey_server: Any
) -> None:
    begun = time.monotonic()
    url = valkey_server.dsn.replace("redis://", "redis+cluster://")
    with pytest.raises(UnavailableError, match="cluster support disabled"):
        await Datastore(f"{url}{'&' if '?' in url else '?'}retry_s=60").open()
    _, other = others(cluster, hash_slot(b"app|v"))
    with pytest.raises(UnavailableError, match=r"node of a cluster.*redis\+cluster://"):
        await Datastore(f"redis://127.0.0.1:{other.port}?prefix=app&retry_s=60").open()
    assert time.monotonic() - begun < 50, "it is no use to try again"


async def test_settings_of_all_nodes_are_read(cluster: ValkeyCluster, caplog: pytest.LogCaptureFixture) -> None:
    node = cluster.nodes[1]
    node.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        async with opened(cluster.dsn) as store:
            assert store.durability is not None
            assert (store.durability.persistence, store.durability.eviction) == (Persistence.SNAPSHOTS, "allkeys-lru")
            assert Capability.DURABLE not in store.capabilities
    finally:
        node.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    [told] = [record.message for record in caplog.records if "maxmemory-policy" in record.message]
    assert f"node 127.0.0.1:{node.port}" in told


async def test_the_permissions_that_the_documentation_names(cluster: ValkeyCluster) -> None:
    prefix = fresh_name()
    documented = f"~{{{prefix}.* +@read +@write +@scripting +@connection +time +wait +cluster|slots +cluster|info"
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", "app", "on", ">s3cret", *documented.split(), "+cluster|myid")
    try:
        url = cluster.dsn.replace("://", "://app:s3cret@")
        async with Datastore(f"{url}?prefix={prefix}&shards=4") as ds:
            await ds.put([Entity(Key("Item", number)) for number in range(1, 20)], ttl=60)
            assert await ds.query("Item").count() == 19
            await ds.allocate_ids(Key("Item"), 10)
        with pytest.raises(UnavailableError, match="refuses") as caught:
            await Datastore(f"{url.replace('s3cret', 'wr0ng')}?prefix={prefix}&shards=4").open()
        assert "wr0ng" not in str(caught.value)
    finally:
        for node in cluster.nodes:
            node.command("ACL", "DELUSER", "app")


async def test_tls_with_nodes_under_their_announced_names(certificate: Path) -> None:
    names: dict[str, Any] = {"cluster_announce_hostname": "localhost", "cluster_preferred_endpoint_type": "hostname"}
    with ValkeyCluster(masters=1, replicas=0, **names) as made:
        async with tls_before(made.nodes[0], certificate) as port:
            made.nodes[0].command("CONFIG", "SET", "cluster-announce-port", port)
            url = f"rediss+cluster://localhost:{port}?shards=2&prefix=app"
            async with Datastore(f"{url}&ssl_ca_certs={certificate / 'cert.pem'}") as ds:
                await ds.put([Entity(Key("Item", number)) for number in range(1, 10)])
                assert await ds.query("Item").count() == 9
                assert isinstance(ds.adapter, ClusterAdapter)
                assert list(ds.adapter.cluster.nodes) == [("localhost", port)]
            with pytest.raises(UnavailableError, match="refuses"):
                await Datastore(url).open()


async def test_no_more_connections_to_a_node_than_allowed(cluster: ValkeyCluster) -> None:
    await until_nobody_is_connected(cluster)
    url = f"{cluster.dsn}?prefix={fresh_name()}&max_connections=2"
    async with Datastore(url) as ds:
        await asyncio.gather(*[ds.put(Entity(Key("Item", number))) for number in range(1, 200)])
        await asyncio.gather(*[ds.query("Item").fetch() for _ in range(10)])
        for node in cluster.nodes:
            with Redis(port=node.port) as client:
                assert 1 <= len(connected(client)) <= 2
    await until_nobody_is_connected(cluster)


async def until_nobody_is_connected(cluster: ValkeyCluster) -> None:
    for node in cluster.nodes:
        with Redis(port=node.port) as client:
            await until(lambda client=client: not connected(client))  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------- redirections


def others(cluster: ValkeyCluster, slot: int) -> tuple[ValkeyNode, ValkeyNode]:
    """Who serves a slot, and another master."""
    source = cluster.master_of(slot)
    return source, next(node for node in cluster.masters if node is not source)


async def test_who_has_moved_is_found(cluster: ValkeyCluster) -> None:
    async with opened(cluster.dsn) as store:
        await commit(store, puts((b"a", b"x")))
        assert store.cluster._known is not None
        right, wrong = others(cluster, store.slot)
        for _ in range(2):
            store.cluster._known.moved[store.slot] = ("127.0.0.1", wrong.port)
            assert await entities(store) == {b"a": (1, b"x")}
            assert store.cluster._known.moved[store.slot] == ("127.0.0.1", right.port)
        store.cluster._known.moved[store.slot] = ("127.0.0.1", wrong.port)
        assert versions(await commit(store, puts((b"a", b"y")))) == [2]


async def test_calls_that_are_not_repeated_learn_of_it_for_the_next(
    cluster: ValkeyCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Connections.exchange

    async def slow(self: Connections, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        await asyncio.sleep(0.15)
        return await exchange(self, commands, timeout_s)

    monkeypatch.setattr(cluster_module, "_LEARN_S", 60.0)
    async with opened(cluster.dsn, retry_s=0, timeout_s=60) as store:
        await commit(store, puts((b"a", b"x")))
        monkeypatch.setattr(Connections, "exchange", slow)
        assert store.cluster._known is not None
        store.cluster._known.moved[store.slot] = ("127.0.0.1", 1)
        with pytest.raises(UnavailableError):
            await store.read([b"a"])
        assert (await store.read([b"a"])).records == [(1, b"x")]


@contextlib.contextmanager
def slot_on_its_way(slot: int, source: ValkeyNode, target: ValkeyNode) -> Iterator[None]:
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    try:
        yield
    finally:
        for node in (source, target):
            node.command("CLUSTER", "SETSLOT", slot, "STABLE")


def carry(slot: int, source: ValkeyNode, target: ValkeyNode) -> None:
    with Redis(port=source.port) as client:
        keys: Any = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)


async def test_what_is_there_already_is_asked_for_there(cluster: ValkeyCluster) -> None:
    async with opened(cluster.dsn) as store:
        mortal = RowCommit(puts=[RowPut(b"a", b"x", rows_of(b"a", b"x"), 60)])  # so there is a clock, too
        await commit(store, mortal)
        source, target = others(cluster, store.slot)
        with slot_on_its_way(store.slot, source, target):
            carry(store.slot, source, target)
            assert await store.read([b"a"]) == ([(1, b"x")], 1)
            with Redis(port=target.port) as client:
                client.execute_command("ASKING")
            for node in (target, source, *cluster.masters):
                node.command("CLUSTER", "SETSLOT", store.slot, "NODE", target.id)
        outcomes = await commit(store, RowCommit(checks=[(b"a", 1)], puts=puts((b"a", b"y")).puts))
        assert (versions(outcomes)[0] or 0) > 2, "versions of another node begin further on"
        carry_back = others(cluster, store.slot)
        assert carry_back[0] is target


async def test_no_script_runs_while_its_slot_is_on_its_way(cluster: ValkeyCluster) -> None:
    """It would find some keys and not others, and might fail when half of it is written."""
    async with opened(cluster.dsn) as store:
        mortal = RowCommit(puts=[RowPut(b"a", b"*red", rows_of(b"a", b"*red"), 60)])
        await commit(store, mortal)  # now all keys exist that the next one names
        source, target = others(cluster, store.slot)
        with slot_on_its_way(store.slot, source, target):
            change = RowCommit(puts=[RowPut(b"a", b"*blue", rows_of(b"a", b"*blue"), 60)])
            calls = [asyncio.create_task(commit(store, change)), asyncio.create_task(index_rows(store))]
            await asyncio.sleep(0.3)
            assert not [call for call in calls if call.done()]
        assert versions(await calls[0]) == [2]  # type: ignore[arg-type]
        await calls[1]
        assert list(await index_rows(store)) == [b"blue|a"]


async def test_nodes_that_do_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that send us to each other, for a while or for ever, by a clock that only goes on while they do."""
    moved: dict[str, int] = Counter()
    monkeypatch.setattr(store_module, "time", SimpleNamespace(monotonic=lambda: 0.01 * moved["times"]))
    ports: list[int] = []
    agree = False

    def reply(place: int) -> Callable[[list[bytes]], bytes]:
        def answer(command: list[bytes]) -> bytes:
            if command[:2] == [b"CLUSTER", b"SLOTS"]:
                return b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % ports[0]
            if command[:2] == [b"CLUSTER", b"INFO"]:
                return b"$18\r\ncluster_state:ok\r\n\r\n"
            if command[0] == b"MGET" and not (agree and place == 1):
                moved["times"] += 1
                return b"-MOVED 1 127.0.0.1:%d\r\n" % ports[1 - place]
            return {b"MGET": b"*3\r\n$1\r\n7\r\n$-1\r\n$-1\r\n", b"GET": b"$-1\r\n"}.get(command[0], b"*0\r\n")

        return answer

    async with Scripted(reply(0)) as first, Scripted(reply(1)) as second:
        ports += [int(url.rpartition(":")[2]) for url in (first, second)]
        async with opened(f"redis+cluster://127.0.0.1:{ports[0]}", retry_s=0.3) as store:
            with pytest.raises(UnavailableError, match="don't agree"):
                await store.read([b"a"])
            assert 5 < moved["times"] < 500
            agree = True
            assert await store.read([b"a"]) == ([None], 7)


# ------------------------------------------------------------------------------------------------------ life


async def test_reopening_and_closing(cluster: ValkeyCluster) -> None:
    ds = Datastore(f"{cluster.dsn}?prefix={fresh_name()}&shards=4")
    for _ in range(2):
        await ds.open()
        await ds.put([Entity(Key("Item", number)) for number in range(1, 10)])
        await ds.aclose()
        with pytest.raises(StoreClosedError):
            await ds.get(Key("Item", 1))


async def test_shards_may_be_closed_one_by_one(cluster: ValkeyCluster) -> None:
    nodes = Cluster(parse_seeds("redis+cluster", cluster.dsn.partition("://")[2]))
    first, second = (ClusterRowStore(nodes, prefix=f"{{{fresh_name()}}}") for _ in range(2))
    await first.open()
    await second.open()
    await first.aclose()
    assert (await second.read([])).version == 0
    with pytest.raises(StoreClosedError):
        await first.read([])
    await second.aclose()
    assert not nodes.nodes


async def test_an_unclosed_store_warns(cluster: ValkeyCluster) -> None:
    nodes = Cluster(parse_seeds("redis+cluster", cluster.dsn.partition("://")[2]))
    made = ClusterRowStore(nodes, prefix=f"{{{fresh_name()}}}")
    await made.open()
    with pytest.warns(ResourceWarning, match="unclosed <"):  # noqa: PT031
        del made
        gc.collect()


def test_a_forked_child_is_refused_and_may_open_its_own(cluster: ValkeyCluster) -> None:
    code = f"""
        import asyncio, os
        from aiodatastore.adapters.registry import adapter_from_url
        from aiodatastore.errors import StoreClosedError

        async def main():
            adapter = adapter_from_url("{cluster.dsn}?prefix={fresh_name()}&shards=2")
            await adapter.open()
            if os.fork() == 0:
                try:
                    await adapter.children[0].store.read([b"a"])
                except StoreClosedError as exc:
                    os._exit(0 if "fork" in str(exc) else 2)
                os._exit(1)
            assert os.wait()[1] == 0
            if os.fork() == 0:
                asyncio.events._set_running_loop(None)
                async def again():
                    await adapter.open()
                    await adapter.children[0].store.read([b"a"])
                    await adapter.aclose()
                try:
                    asyncio.run(again())
                finally:
                    os._exit(0 if sys.exc_info()[0] is None else 3)
            assert os.wait()[1] == 0
            await adapter.children[0].store.read([b"a"])
            await adapter.aclose()

        import sys
        asyncio.run(main())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
