"""Two-phase commits on PostgreSQL: whatever is killed, a commit is there as a whole or not at all."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.base import Adapter, ChangeListener, Commit, Delete, Put
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import TransactionFailedError, UnavailableError
from aiodatastore.rowstore import Capability
from aiodatastore.shims.failing import Failing
from aiodatastore.shims.sharded import Sharded, twophase
from aiodatastore.shims.sharded import adapter as sharded_adapter
from aiodatastore.shims.sharded.rebalance import rebalance
from aiodatastore.testing.history import History, Recorded, check
from aiodatastore.testing.servers import PostgresServer
from tests.engines import ENGINES, PostgresSession, fresh_name
from tests.shims.gates import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif("postgres" not in ENGINES, reason="not among the engines to test"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

KEYS = [Key("K", n) for n in range(1, 17)]


@pytest.fixture
def urls(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Three schemas of one database."""
    session: PostgresSession = request.getfixturevalue("postgres_session")
    ((allowed,),) = session.run("SELECT current_setting('max_prepared_transactions')::int")
    if not allowed:
        pytest.skip("the server allows no prepared transactions")
    separator = "&" if "?" in session.dsn else "?"
    with ExitStack() as stack:
        found = []
        for _ in range(3):
            schema = fresh_name()
            stack.callback(session.run, f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
            found.append(f"{session.dsn}{separator}schema={schema}")
        yield found
        assert session.run("SELECT gid FROM pg_prepared_xacts") == []


@asynccontextmanager
async def opened(urls: Sequence[str]) -> AsyncIterator[tuple[Datastore, Sharded]]:
    adapter = Sharded([adapter_from_url(url) for url in urls])
    async with Datastore(adapter) as ds:
        yield ds, adapter


@asynccontextmanager
async def stores(urls: Sequence[str]) -> AsyncIterator[list[Adapter]]:
    async with AsyncExitStack() as stack:
        found = [adapter_from_url(url) for url in urls]
        for adapter in found:
            await adapter.open()
            stack.push_async_callback(adapter.aclose)
        yield found


async def numbers(ds: Datastore) -> set[Any]:
    return {entity and entity["n"] for entity in await ds.get(KEYS)}


# ------------------------------------------------------------------------------------------ one store


async def test_prepared_and_applied(urls: list[str]) -> None:
    """Versions, index rows, checks and what else a commit has; others wait, readers don't."""
    async with stores(urls[:1] * 2) as (one, other):
        assert Capability.TWO_PHASE in one.capabilities
        (before,) = await one.commit([Commit(writes=[Put(Entity(Key("K", 1), {"n": 1})), Put(Entity(Key("K", 2)))])])
        first = before.version or 0
        prepared = await one.prepare(
            Commit({Key("K", 1): first}, writes=[Put(Entity(Key("K", 1), {"n": 2})), Delete(Key("K", 2))]), "id.näme"
        )
        assert prepared.version == first + 1
        assert [name for name, _ in await other.prepared()] == ["id.näme"]
        assert 0 <= (await other.prepared())[0].age_s < 60
        assert [entity and entity["n"] for entity in (await other.lookup([Key("K", 1)])).entities] == [1]
        done: list[int | None] = []

        async def write() -> None:
            (outcome,) = await other.commit([Commit(writes=[Put(Entity(Key("K", 3)))])])
            done.append(outcome.version)

        async def look() -> None:
            commit = Commit({Key("K", 1): first}, after_prepared=True)
            (outcome,) = await one.commit([commit])
            done.append(outcome.version)

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            group.start_soon(look)
            await anyio.sleep(0.2)
            assert done == []
            assert await one.commit([Commit({Key("K", 1): first})]), "plain verification reads"
            again = await one.prepare(Commit(writes=[Put(Entity(Key("K", 1)))]), "id.näme")
            assert again.version == first + 1
            outcome = await other.resolve("id.näme", commit=True)
            assert outcome is not None
        assert sorted(done, key=bool) == [None, first + 2]
        assert await one.resolve("id.näme", commit=True) is None
        assert await one.prepared() == []
        found = await one.lookup([Key("K", 1), Key("K", 2)])
        assert [entity and (entity["n"], entity.version) for entity in found.entities] == [(2, first + 1), None]
        assert await one.check() == []


async def test_prepared_and_forgotten(urls: list[str]) -> None:
    async with stores(urls[:1]) as (one,):
        conflict = await one.prepare(Commit({Key("K", 1): 5}, writes=[Put(Entity(Key("K", 1)))]), "a.0")
        assert conflict.version is None
        assert conflict.conflicts == {Key("K", 1): 0}
        assert await one.prepared() == []
        long = Entity(Key("K", "x" * 1500, "K", "y" * 1500), {"a": "z" * 1400})
        assert (await one.prepare(Commit(writes=[Put(long)]), "b.0")).version
        assert await one.resolve("b.0", commit=False) is not None
        assert (await one.lookup([long.key])).entities == [None]
        assert (await one.prepare(Commit({Key("K", 1): 0}), "c.0")).version is not None
        await one.resolve("c.0", commit=True)
        assert (await one.prepare(Commit(writes=[Put(long)]), "d.0")).version
        await one.resolve("d.0", commit=True)
        assert (await one.lookup([long.key])).entities == [long]
        assert await one.check() == []


async def test_schemas_of_a_database_do_not_meet(urls: list[str]) -> None:
    async with stores(urls[:2]) as (one, two):
        await one.prepare(Commit(writes=[Put(Entity(Key("K", 1)))]), "same.0")
        assert await two.prepared() == []
        assert await two.resolve("same.0", commit=True) is None
        await two.prepare(Commit(writes=[Put(Entity(Key("K", 1)))]), "same.0")
        await one.resolve("same.0", commit=False)
        await two.resolve("same.0", commit=True)
        assert (await one.lookup([Key("K", 1)])).entities == [None]
        assert (await two.lookup([Key("K", 1)])).entities != [None]


async def test_who_listens_hears_of_it(urls: list[str]) -> None:
    """A transaction that sent messages could not be prepared: they are sent when it is resolved."""
    tell, told = anyio.create_memory_object_stream[int](1000)

    class Listener(ChangeListener):
        def changed(self, keys: Sequence[Key], version: int) -> None:
            tell.send_nowait(version)

        def confirmed(self, at: float, version: int) -> None:
            tell.send_nowait(version)

        def gap(self) -> None:
            tell.send_nowait(-1)

    async def heard(wanted: int) -> None:
        with anyio.fail_after(60):
            async for version in told:
                if version == -1 or version >= wanted:
                    return

    async with tell, told, stores(urls[:1]) as (one,):
        subscription = await one.subscribe(Listener(), 0.2)
        assert subscription is not None
        try:
            (before,) = await one.commit([Commit(writes=[Put(Entity(Key("K", 1)))])])
            await heard(before.version or 0)
            prepared = await one.prepare(Commit(writes=[Put(Entity(Key("K", 1), {"n": 1}))]), "a.0")
            assert prepared.version is not None
            await one.resolve("a.0", commit=True)
            await heard(prepared.version)
            (after,) = await one.commit([Commit(writes=[Put(Entity(Key("K", 2)))])])
            await heard(after.version or 0)
        finally:
            await subscription.aclose()


async def test_a_server_without_prepared_transactions() -> None:
    with PostgresServer(fsync="off", max_prepared_transactions=0) as server:
        urls = [f"{server.dsn}?schema={name}" for name in "ab"]
        async with opened(urls) as (ds, _):
            assert not {Capability.TWO_PHASE, Capability.GLOBAL_TRANSACTIONS} & ds.capabilities


# ------------------------------------------------------------------------------------------- killed

COORDINATOR = textwrap.dedent(
    """
    import os, sys
    import anyio
    from aiodatastore import Datastore, Entity, Key
    from aiodatastore.adapters.registry import adapter_from_url
    from aiodatastore.shims.base import Shim
    from aiodatastore.shims.sharded import Sharded

    what, shard, when, *urls = sys.argv[1:]
    armed = False

    class Exiting(Shim):
        def due(self, name, moment):
            if armed and (name, moment) == (what, when) and urls[int(shard)] == self.location:
                os._exit(9)

        async def call(self, name, work):
            self.due(name, "before")
            answer = await work
            self.due(name, "after")
            return answer

        async def commit(self, batch):
            return await self.call("commit", self.child.commit(batch))

        async def prepare(self, commit, name):
            return await self.call("prepare", self.child.prepare(commit, name))

        async def resolve(self, name, *, commit):
            return await self.call("resolve", self.child.resolve(name, commit=commit))

    def shard_of(url):
        shim = Exiting(adapter_from_url(url))
        shim.location = url
        return shim

    async def main():
        global armed
        async with Datastore(Sharded([shard_of(url) for url in urls])) as ds:
            armed = True
            async with ds.transaction():
                await ds.put([Entity(Key("K", n), {"n": "new"}) for n in range(1, 17)])

    anyio.run(main)
    """
)
STEPS = [
    ("prepare", 2, "before", "old"),
    ("prepare", 2, "after", "old"),
    ("prepare", 1, "after", "old"),
    ("commit", 0, "before", "old"),
    ("commit", 0, "after", "new"),
    ("resolve", 1, "before", "new"),
    ("resolve", 2, "after", "new"),
]


@pytest.mark.parametrize(("what", "shard", "when", "expected"), STEPS)
async def test_the_coordinator_is_killed(urls: list[str], what: str, shard: int, when: str, expected: str) -> None:
    async with opened(urls) as (ds, adapter):
        assert {adapter.place(key) for key in KEYS} == {0, 1, 2}
        await ds.put([Entity(key, {"n": "old"}) for key in KEYS])
        ended = await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                [sys.executable, "-c", COORDINATOR, what, str(shard), when, *urls], capture_output=True, check=False
            )
        )
        assert ended.returncode == 9, ended.stderr.decode()
        await adapter.sweep(0)
        assert await numbers(ds) == {expected}
        async with ds.transaction():  # nothing is in the way
            await ds.put([Entity(key, {"n": "newer"}) for key in KEYS])
        assert await numbers(ds) == {"newer"}
        assert await ds.check() == []


async def test_who_waits_for_an_orphan_settles_it(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twophase, "ORPHAN_S", 0.3)
    monkeypatch.setattr(twophase.Coordinator.sweep, "__defaults__", (0.3,))
    monkeypatch.setattr(Sharded.sweep, "__defaults__", (0.3,))
    async with opened(urls) as (ds, adapter):
        await ds.put([Entity(key, {"n": "old"}) for key in KEYS])
        (key, *_) = (key for key in KEYS if adapter.place(key) == 2)
        await adapter.children[2].prepare(Commit(writes=[Put(Entity(key, {"n": "lost"}))]), "feed.0")
        with anyio.fail_after(60):
            await ds.put(Entity(key, {"n": "new"}))
        found = await ds.get(key)
        assert found is not None
        assert found["n"] == "new"


async def test_a_store_that_was_away_is_told_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others don't wait until what it prepared counts as left behind."""
    monkeypatch.setattr(twophase, "ORPHAN_S", 3600.0)
    away = Failing(adapter_from_url("memory://"), 1.0, operations=["resolve"])
    away.enabled = False
    async with Datastore(Sharded([adapter_from_url("memory://"), away])) as ds:
        await ds.put([Entity(key, {"n": "old"}) for key in KEYS])
        away.enabled = True
        async with ds.transaction():
            await ds.put([Entity(key, {"n": "new"}) for key in KEYS])
        assert away.injected["resolve"]
        assert len(await away.prepared()) == 1
        away.enabled = False
        with anyio.fail_after(60):
            found = await ds.run_in_transaction(lambda: ds.get(KEYS), read_only=True)
            assert {entity and entity["n"] for entity in found} == {"new"}
        assert await away.prepared() == []


async def test_a_server_is_killed_before_it_is_told(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it prepared is there when it is back, and then is what the home says."""
    monkeypatch.setattr(twophase, "_FIRST_PAUSE_S", twophase.ORPHAN_S)  # nobody tells it again: the sweep does
    with PostgresServer(synchronous_commit="on") as home, PostgresServer(synchronous_commit="on") as other:
        urls = [f"{server.dsn}?retry_s=2" for server in (home, other)]
        async with opened(urls) as (ds, adapter):
            await ds.put([Entity(key, {"n": "old"}) for key in KEYS])
            resolve = adapter.children[1].resolve

            async def killed(name: str, *, commit: bool) -> Any:
                if other.running:
                    other.kill9()
                return await resolve(name, commit=commit)

            adapter.children[1].resolve = killed  # type: ignore[method-assign]
            async with ds.transaction():
                await ds.put([Entity(key, {"n": "new"}) for key in KEYS])
            adapter.children[1].resolve = resolve  # type: ignore[method-assign]
            other.start()
            assert len(await adapter.children[1].prepared()) == 1
            assert await adapter.sweep(0) == 1
            assert await numbers(ds) == {"new"}

            commit = adapter.children[0].commit

            async def kills_home(batch: Sequence[Commit]) -> Any:
                adapter.children[0].commit = commit  # type: ignore[method-assign]
                home.kill9()
                return await commit(batch)

            adapter.children[0].commit = kills_home  # type: ignore[method-assign]
            with pytest.raises(UnavailableError):
                await ds.run_in_transaction(lambda: ds.put([Entity(key, {"n": "newer"}) for key in KEYS]))
            home.start()
            assert len(await adapter.children[1].prepared()) == 1, "the home could not be asked"
            assert await adapter.sweep(0) == 1
            assert await numbers(ds) == {"new"}
            assert [await child.prepared() for child in adapter.children] == [[], []]


async def test_a_shard_is_added_while_transactions_go_over_several(
    urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded_adapter, "LAYOUT_MAX_AGE_S", 0.1)
    keys = [Key("K", n) for n in range(1, 101)]
    counted = dict.fromkeys(keys, 0)
    done = False

    async def count_up(ds: Datastore, seed: int) -> None:
        rng = random.Random(seed)
        while not done:
            pair = rng.sample(keys, 2)

            async def once(pair: list[Key] = pair) -> None:
                for entity in await ds.get(pair):
                    assert entity is not None
                    entity["n"] += 1
                    await ds.put(entity)

            try:
                await ds.run_in_transaction(once, retries=30)
            except (TransactionFailedError, UnavailableError):
                await anyio.sleep(0.02)
                continue
            for key in pair:
                counted[key] += 1

    async with opened(urls[:2]) as (old, _), anyio.create_task_group() as group:
        await old.put([Entity(key, {"n": 0}) for key in keys])
        begun = anyio.Event()

        async def with_all() -> None:
            await begun.wait()
            async with opened(urls) as (ds, _), anyio.create_task_group() as inner:
                for seed in (3, 4):
                    inner.start_soon(count_up, ds, seed)

        for seed in (1, 2):
            group.start_soon(count_up, old, seed)
        group.start_soon(with_all)
        await until(lambda: sum(counted.values()) > 10)
        adapter = Sharded([adapter_from_url(url) for url in urls])
        report = await rebalance(adapter, progress=lambda *_: begun.set())
        before = sum(counted.values())
        await until(lambda: sum(counted.values()) > before + 10)
        done = True
    assert report.copied
    async with opened(urls) as (ds, _):
        assert {entity.key: entity["n"] for entity in await ds.query("K").fetch()} == counted
        assert sum(counted.values()) > 20


WORKER = textwrap.dedent(
    """
    import sys
    import anyio
    from aiodatastore import Datastore
    from aiodatastore.adapters.registry import adapter_from_url
    from aiodatastore.shims.sharded import Sharded
    from aiodatastore.testing.history import mixed, run_workload

    client, *urls = sys.argv[1:]

    async def main():
        async with Datastore(Sharded([adapter_from_url(url) for url in urls])) as ds:
            await run_workload(
                ds, mixed, tasks=3, transactions=6, client=client, record=lambda each: print(each.to_json(), flush=True)
            )

    anyio.run(main)
    """
)


async def test_serializable_over_processes(urls: list[str]) -> None:
    async with opened(urls):
        pass

    def run() -> list[str]:
        workers = [
            subprocess.Popen([sys.executable, "-c", WORKER, f"p{n}", *urls], stdout=subprocess.PIPE, text=True)
            for n in range(2)
        ]
        return [worker.communicate(timeout=100)[0] for worker in workers]

    history = History()
    for lines in await anyio.to_thread.run_sync(run):
        for line in lines.splitlines():
            history.add(Recorded.from_json(line))
    assert history.count("committed") == 36
    anomalies = check(history, real_time=False)
    assert not anomalies, "\n".join(map(str, anomalies))
