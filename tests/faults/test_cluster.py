"""A cluster of three masters and three replicas whose nodes are killed, held up, promoted, and lose slots, under load.

Callers see success or UnavailableError. With ``wait_replicas=1`` nothing acknowledged is lost; without, what a replica
had not received is. Nothing is applied twice, and no transaction in part, in either case.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, TypeVar

import pytest

pytest.importorskip("redis")

from redis import Redis

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.redis.cluster import hash_slot, hash_tags
from aiodatastore.errors import UnavailableError
from aiodatastore.testing.history import WORKLOADS, History, run_workload, verify_workload
from aiodatastore.testing.servers import ServerError, ValkeyCluster, ValkeyNode
from tests.conftest import missing
from tests.engines import fresh_name

T = TypeVar("T")

TASKS = 12
PAD = "x" * 1_000_000
WRITTEN_NOTHING = "nothing was written"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def shared() -> Iterator[ValkeyCluster]:
    try:
        made = ValkeyCluster(node_timeout_ms=1500)  # who is silent for less is on a busy machine
    except ServerError as exc:
        missing(exc)
    with made:
        yield made


@pytest.fixture
def cluster(shared: ValkeyCluster) -> ValkeyCluster:
    """A cluster that works, with a replica for each master."""
    return shared.start()


def url_of(cluster: ValkeyCluster, prefix: str, **settings: Any) -> str:
    more = "".join(f"&{name}={value}" for name, value in settings.items())
    return f"{cluster.dsn}?prefix={prefix}{more}"


async def in_thread(call: Callable[[], T]) -> T:
    return await asyncio.to_thread(call)


async def until_master(node: ValkeyNode) -> None:
    async with asyncio.timeout(60):
        while not await in_thread(lambda: node.is_master):  # noqa: ASYNC110  (nothing tells)
            await asyncio.sleep(0.01)


class Load:
    """Tasks that count and leave an entity for each time, until they are told to stop: two in each entity group, with
    connections of their own.
    """

    def __init__(self, ds: Datastore, other: Datastore) -> None:
        self.ds = ds
        self.other = other
        self.stopping = False
        self.acknowledged: set[tuple[int, int]] = set()
        self.refused: set[tuple[int, int]] = set()
        """Of which it was said that nothing was written."""
        self.unknown: set[tuple[int, int]] = set()
        self.slowest_s = 0.0

    @staticmethod
    def root(task: int) -> Key:
        return Key("Count", f"group {task // 2}")

    async def work(self, task: int) -> None:
        for number in count(1):
            if self.stopping:
                return
            begun = time.monotonic()
            try:
                ds = self.other if task % 2 else self.ds
                await ds.run_in_transaction(self._increment, ds, task, number, retries=1000)
            except UnavailableError as exc:
                (self.refused if WRITTEN_NOTHING in str(exc) else self.unknown).add((task, number))
                await asyncio.sleep(0.01)
            else:
                self.acknowledged.add((task, number))
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun)

    async def _increment(self, ds: Datastore, task: int, number: int) -> None:
        root = self.root(task)
        counter = await ds.get(root) or Entity(root, {"n": 0})
        counter["n"] += 1
        await ds.put([counter, Entity(Key("Step", f"{task}/{number}", parent=root), {"at": counter["n"]})])

    async def found(self) -> set[tuple[int, int]]:
        """What is there, of which nothing is there twice or in part."""
        there: set[tuple[int, int]] = set()
        for root in {self.root(task) for task in range(TASKS)}:
            counter = await self.ds.get(root)
            steps = await self.ds.query("Step", ancestor=root).fetch()
            assert sorted(step["at"] for step in steps) == list(range(1, len(steps) + 1)), "applied twice, or in part"
            assert len(steps) == (0 if counter is None else counter["n"])
            for step in steps:
                task, _, number = str(step.key.name).partition("/")
                there.add((int(task), int(number)))
        assert await self.ds.query("Step").count() == len(there)
        return there


@asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    """Load for the time of a block, and nothing that contradicts what was told at its end."""
    async with Datastore(url) as ds, Datastore(url) as other:
        made = Load(ds, other)
        tasks = [asyncio.create_task(made.work(task)) for task in range(TASKS)]
        try:
            await asyncio.sleep(0.2)
            yield made
            await until_all_move(made, tasks)
        finally:
            made.stopping = True
            await asyncio.gather(*tasks)
        found = await made.found()
        assert not made.refused & found, "it took effect, though it was said that nothing was written"
        assert found <= made.acknowledged | made.unknown
        assert await ds.check() == []


async def until_all_move(made: Load, tasks: list[asyncio.Task[None]]) -> None:
    """Until every task succeeds again: the store has healed."""
    before = set(made.acknowledged)
    async with asyncio.timeout(60):
        while {task for task, _ in made.acknowledged - before} < set(range(TASKS)):
            await asyncio.sleep(0.01)
            for task in tasks:
                if task.done():
                    task.result()


@pytest.mark.parametrize("patience", [{"retry_s": 60, "timeout_s": 60}, {"retry_s": 0}], ids=["patient", "impatient"])
async def test_masters_killed_again_and_again(cluster: ValkeyCluster, patience: dict[str, int]) -> None:
    retry_s = patience["retry_s"]
    rng = random.Random(retry_s)
    longest_s = 0.0
    async with load(url_of(cluster, fresh_name(), wait_replicas=1, **patience)) as made:
        for _ in range(3):
            await asyncio.sleep(rng.random() * 0.3)
            victim = rng.choice(await in_thread(lambda: cluster.masters))
            begun = time.monotonic()
            await in_thread(victim.kill9)
            await in_thread(cluster.wait_ok)  # a replica has taken over
            await in_thread(victim.start)
            await in_thread(cluster.wait_ok)  # and has a replica again
            longest_s = max(longest_s, time.monotonic() - begun)
            assert not victim.is_master
    assert await lost(cluster, made) == set()
    if retry_s:
        assert made.slowest_s < longest_s + 10, "callers go on soon after the cluster does"
        assert not made.unknown
        assert not made.refused, "a replica took over in time: nobody had to know"
    else:
        assert made.unknown | made.refused


async def lost(cluster: ValkeyCluster, made: Load) -> set[tuple[int, int]]:
    async with Datastore(made.ds.url) as ds:
        made.ds = ds
        return made.acknowledged - await made.found()


async def test_what_transactions_see_stays_serializable(cluster: ValkeyCluster) -> None:
    prefix = fresh_name()
    url = url_of(cluster, prefix, shards=1, wait_replicas=1, retry_s=60, timeout_s=60)
    history = History()
    async with Datastore(url) as ds, Datastore(url) as other:
        clients = [
            asyncio.create_task(run_workload(each, WORKLOADS["mixed"], tasks=6, transactions=50, items=5, client=name))
            for name, each in (("a", ds), ("b", other))
        ]
        kills = 0
        while kills < 2 and not all(client.done() for client in clients):
            await asyncio.sleep(0.2)
            victim = await in_thread(lambda: cluster.master_of(hash_slot(hash_tags(prefix, 1)[0].encode())))
            await in_thread(victim.kill9)
            await in_thread(cluster.wait_ok)
            await in_thread(victim.start)
            await in_thread(cluster.wait_ok)
            kills += 1
        for client in clients:
            for each in (await client).transactions:
                history.add(each)
    assert kills
    assert history.count("committed") == 2 * 6 * 50
    assert "\n".join(map(str, verify_workload(history))) == ""


class Chosen:
    """A root key in the first shard of a store, the master of that shard, and its replica."""

    def __init__(self, cluster: ValkeyCluster, prefix: str) -> None:
        self.slot = hash_slot(hash_tags(prefix, 1)[0].encode())
        self.master = cluster.master_of(self.slot)
        name = self.master.id
        lines = [line.split() for line in self.master.command("CLUSTER", "NODES").splitlines()]
        [replica] = [words[0] for words in lines if words[3] == name]
        self.replica = next(node for node in cluster.replicas if node.id == replica)


async def fail_over_without_what_was_last_written(
    cluster: ValkeyCluster, chosen: Chosen, write: Callable[[], Awaitable[None]]
) -> None:
    """The replica does not receive the last of what ``write`` writes (what the system buffers, it does: several
    megabytes), and takes over.
    """
    chosen.replica.pause()
    try:
        await write()
        await in_thread(chosen.master.kill9)
    finally:
        chosen.replica.resume()
    await until_master(chosen.replica)
    await in_thread(cluster.start)


@pytest.mark.parametrize("wait_replicas", [0, 1])
async def test_what_no_replica_has_is_lost_unless_it_is_waited_for(cluster: ValkeyCluster, wait_replicas: int) -> None:
    prefix = fresh_name()
    chosen = Chosen(cluster, prefix)
    acknowledged: list[Key] = []
    async with Datastore(url_of(cluster, prefix, shards=1, wait_replicas=wait_replicas, timeout_s=2)) as ds:
        await ds.put(Entity(Key("Item", 1), {"n": 1}))

        async def write() -> None:
            for key in [Key("Item", number) for number in range(100, 102 if wait_replicas else 130)]:
                try:
                    await ds.put(Entity(key, {"n": 1, "pad": PAD}, unindexed=["pad"]))
                    acknowledged.append(key)
                except UnavailableError as exc:
                    assert "is written, but 0 instead of wait_replicas=1" in str(exc)  # noqa: PT017

        await fail_over_without_what_was_last_written(cluster, chosen, write)
        there = [entity is not None for entity in await ds.get(acknowledged)]
        if wait_replicas:
            assert acknowledged == []
        else:
            assert len(there) == 30
            assert not all(there), "the replica had received what it should not have"
        assert await ds.get(Key("Item", 1)) is not None


async def test_versions_and_ids_are_not_given_a_second_time(cluster: ValkeyCluster) -> None:
    """Else a transaction would take what another wrote for what it had read, and two entities would have one key."""
    prefix = fresh_name()
    chosen = Chosen(cluster, prefix)
    async with Datastore(url_of(cluster, prefix, shards=1)) as ds:
        key = Key("Item", 1)
        await ds.put(Entity(key, {"n": 0, "pad": PAD}, unindexed=["pad"]))
        ids: list[int] = []
        versions: list[int] = []

        async def write() -> None:
            for number in range(1, 30):
                await ds.put(Entity(key, {"n": number, "pad": PAD}, unindexed=["pad"]))
                found = await ds.get(key)
                assert found is not None
                versions.append(found.version)
                ids.extend(await ds.allocate_ids(Key("Item"), 1000))

        await fail_over_without_what_was_last_written(cluster, chosen, write)
        survivor = await ds.get(key)
        assert survivor is not None
        assert survivor["n"] < 29, "the replica had received what it should not have"
        for number in range(100, 130):
            await ds.put(Entity(key, {"n": number}))
            changed = await ds.get(key)
            assert changed is not None
            assert changed.version not in versions
        assert (await ds.allocate_ids(Key("Item"), 1))[0] > max(ids)


def promote(node: ValkeyNode) -> None:
    """Have a replica take over in order."""
    end = time.monotonic() + 60
    asked = float("-inf")
    while not node.is_master:
        now = time.monotonic()
        assert now < end
        if now > asked + 6:  # the node itself gives up after five seconds
            asked = now
            with contextlib.suppress(ServerError):  # it is one by now
                node.command("CLUSTER", "FAILOVER")
        time.sleep(0.01)


async def test_a_planned_failover_is_not_noticed(cluster: ValkeyCluster) -> None:
    async with load(url_of(cluster, fresh_name(), retry_s=60)) as made:
        for node in await in_thread(lambda: cluster.replicas):
            await in_thread(lambda node=node: promote(node))  # type: ignore[misc]
        await in_thread(cluster.wait_ok)
    assert not made.unknown | made.refused
    assert await lost(cluster, made) == set()


async def test_a_master_that_is_held_up_is_replaced(cluster: ValkeyCluster) -> None:
    """Its connections stay open and nothing comes: each exchange is given up after ``timeout_s``."""
    prefix = fresh_name()
    chosen = Chosen(cluster, prefix)
    victim, replica = chosen.master, chosen.replica
    async with load(url_of(cluster, prefix, timeout_s=0.5, wait_replicas=1)) as made:
        victim.pause()
        try:
            await until_master(replica)
        finally:
            victim.resume()
        await in_thread(cluster.wait_ok)
    assert await lost(cluster, made) == set()


async def test_a_cluster_that_is_gone_comes_back(cluster: ValkeyCluster) -> None:
    async with Datastore(url_of(cluster, fresh_name(), retry_s=0.5, shards=100)) as ds:
        await ds.put(Entity(Key("Item", 1), {"n": 1}))
        await in_thread(cluster.stop)
        begun = time.monotonic()
        for call in (lambda: ds.get(Key("Item", 1)), lambda: ds.put(Entity(Key("Item", 2))), ds.query("Item").fetch):
            with pytest.raises(UnavailableError):
                await call()
        assert time.monotonic() - begun < 30, "each of the shards waits for itself"
        await in_thread(cluster.start)
        assert await ds.get(Key("Item", 1)) is not None


# ------------------------------------------------------------------------------------------- resharding


async def move(slot: int, source: ValkeyNode, target: ValkeyNode, cluster: ValkeyCluster, pause_s: float) -> None:
    """Move a slot key by key, as ``valkey-cli --cluster reshard`` does."""

    def begin() -> list[bytes]:
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        with Redis(port=source.port) as client:
            keys: list[bytes] = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10_000)
        return keys

    def migrate(keys: list[bytes]) -> None:
        with Redis(port=source.port) as client:
            client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def end() -> None:
        for node in (target, source, *cluster.masters):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    keys = await in_thread(begin)
    random.Random(slot).shuffle(keys)
    for start in range(0, len(keys), max(1, len(keys) // 4)):
        part = keys[start : start + max(1, len(keys) // 4)]
        await in_thread(lambda part=part: migrate(part))  # type: ignore[misc]
        await asyncio.sleep(pause_s)
    await in_thread(end)


async def test_slots_that_are_moved_while_in_use(cluster: ValkeyCluster) -> None:
    prefix = fresh_name()
    async with load(url_of(cluster, prefix, shards=4, retry_s=60)) as made:
        for tag in hash_tags(prefix, 4)[:2]:
            slot = hash_slot(tag.encode())
            source = cluster.master_of(slot)
            target = next(node for node in cluster.masters if node is not source)
            await move(slot, source, target, cluster, 0.1)
            await in_thread(cluster.wait_ok)  # replicas have heard of it, too
            assert cluster.master_of(slot) is target
            await asyncio.sleep(0.1)
    assert not made.unknown | made.refused
    assert await lost(cluster, made) == set()
