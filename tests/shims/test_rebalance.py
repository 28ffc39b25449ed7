"""Shards are added while they are in use: nothing is lost, nothing is doubled, no read is wrong."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import BadArgumentError, TransactionFailedError, UnavailableError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.shims.sharded import Sharded, adapter
from aiodatastore.shims.sharded.layout import Phase
from aiodatastore.shims.sharded.rebalance import rebalance
from tests.shims.gates import until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

GROUPS = 60


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "LAYOUT_MAX_AGE_S", 0.05)


def sharded(folder: Path, names: str) -> Sharded:
    shards = [adapter_from_url(f"sqlite:///{folder}/{name}.db", synchronous="OFF") for name in names]
    return Sharded(shards, names=list(names))


def groups() -> list[Entity]:
    """Roots with a counter, and two below each."""
    return [
        Entity(key, {"n": 0, "of": number})
        for number in range(1, GROUPS + 1)
        for key in (Key("G", number), Key("G", number, "C", 1), Key("G", number, "C", "x"))
    ]


async def places(folder: Path, names: str) -> dict[Key, str]:
    """Where each entity is; a key that is in two shards fails."""
    found: dict[Key, str] = {}
    for name in names:
        async with Datastore(f"sqlite:///{folder}/{name}.db") as ds:
            for key in await ds.query().keys():
                assert key not in found, f"{key!r} is in {name} and in {found[key]}"
                found[key] = name
            assert await ds.check() == []
    return found


async def placed(folder: Path, names: str) -> dict[Key, str]:
    """Where each should be, and that it is there."""
    found = await places(folder, names)
    whole = sharded(folder, names)
    for key, name in found.items():
        assert whole.names[whole.place(key)] == name
    return found


async def test_a_shard_is_added(tmp_path: Path) -> None:
    index = IndexDefinition("C", (("n", "asc"), ("of", "desc")))
    async with Datastore(sharded(tmp_path, "ab")) as ds:
        await ds.put(groups())
        await ds.create_index(index)
        before = {entity.key: entity.version for entity in await ds.query().fetch()}
        first, _ = await ds.allocate_ids(Key("G"), 10)
    old = await places(tmp_path, "ab")
    phases: list[str] = []
    report = await rebalance(sharded(tmp_path, "abc"), progress=lambda phase, count: phases.append(phase))
    new = await placed(tmp_path, "abc")
    moved = {key for key in new if new[key] != old[key]}
    assert {new[key] for key in moved} == {"c"}
    assert report.copied == report.removed == len(moved)
    assert 0.1 < len(moved) / len(new) < 0.6
    assert len(new) == 3 * GROUPS
    assert phases[0] == "copying"
    assert phases[-1] == "cleaning"
    async with Datastore(sharded(tmp_path, "abc")) as ds:
        assert {entity.key for entity in await ds.query().fetch()} == set(old)
        assert [str(info.state) for info in await ds.indexes()] == ["SERVING"]
        for entity in await ds.query().fetch():
            if entity.key in moved:
                assert entity.version > max(before.values())
            else:
                assert entity.version == before[entity.key]
            await ds.put(entity, if_version=entity.version)
        assert (await ds.allocate_ids(Key("G"), 10))[0] > first
        async with ds.transaction():
            (one, *_) = moved
            entity = await ds.get(one)
            assert entity is not None
            await ds.query("C", ancestor=one.root).fetch()
            await ds.put(entity)
    assert (await rebalance(sharded(tmp_path, "abc"))).copied == 0
    with pytest.raises(BadArgumentError, match="rebalance"):
        await Datastore(sharded(tmp_path, "ab")).open()


async def test_from_one_store_that_was_never_sharded(tmp_path: Path) -> None:
    async with Datastore(f"sqlite:///{tmp_path}/a.db") as ds:
        await ds.put(groups())
    with pytest.raises(BadArgumentError, match="rebalance"):
        await Datastore(sharded(tmp_path, "ab")).open()
    await rebalance(sharded(tmp_path, "ab"))
    assert len(await placed(tmp_path, "ab")) == 3 * GROUPS
    await rebalance(sharded(tmp_path, "abcd"))
    assert set((await placed(tmp_path, "abcd")).values()) == set("abcd")


async def test_what_can_not_be_is_refused(tmp_path: Path) -> None:
    async with Datastore(sharded(tmp_path, "ab")) as ds:
        await ds.put(groups())
    async with Datastore(f"sqlite:///{tmp_path}/full.db") as ds:
        await ds.put(Entity(Key("X", 1)))
    with pytest.raises(BadArgumentError, match="not removed"):
        await rebalance(sharded(tmp_path, "ac"))
    full = adapter_from_url(f"sqlite:///{tmp_path}/full.db")
    with pytest.raises(BadArgumentError, match="not empty"):
        await rebalance(Sharded([*sharded(tmp_path, "ab").children, full], names=["a", "b", "full"]))
    with pytest.raises(BadArgumentError, match="recorded as"):
        await rebalance(Sharded(sharded(tmp_path, "bac").children, names=list("abc")))
    assert len(await places(tmp_path, "ab")) == 3 * GROUPS


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("phase", ["copying", "frozen", "cleaning", "switched"])
async def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiodatastore.shims.sharded import rebalance as module

    async with Datastore(sharded(tmp_path, "ab")) as ds:
        await ds.put(groups())
    monkeypatch.setattr(module, "_PAGE", 20)
    interrupted = 0

    async def interrupt(self: Any) -> None:
        nonlocal interrupted
        interrupted += 1
        raise StoppedError

    def progress(now: str, count: int) -> None:
        nonlocal interrupted
        if now == phase and interrupted < 3:
            interrupted += 1
            raise StoppedError

    if phase in ("frozen", "switched"):
        name = "_finish" if phase == "frozen" else "_switched"
        with monkeypatch.context() as patch:
            patch.setattr(module._Rebalance, name, interrupt)
            with pytest.raises(StoppedError):
                await rebalance(sharded(tmp_path, "abc"))
        async with Datastore(whole := sharded(tmp_path, "abc")) as ds:
            assert whole.layout.phase is Phase(phase)
            assert await ds.query().count() == 3 * GROUPS
            assert None not in await ds.get([entity.key for entity in groups()])
    else:
        for _ in range(3):
            with pytest.raises(StoppedError):
                await rebalance(sharded(tmp_path, "abc"), progress=progress)
            async with Datastore(sharded(tmp_path, "abc")) as ds:
                assert len(await ds.query().fetch()) == 3 * GROUPS
                assert await ds.query("C").count() == 2 * GROUPS
    assert interrupted
    await rebalance(sharded(tmp_path, "abc"), progress=progress)
    assert len(await placed(tmp_path, "abc")) == 3 * GROUPS


async def test_in_use_all_the_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters are counted up, entities come and go, queries run: by who knows the old shards, and who knows all."""
    from aiodatastore.shims.sharded import rebalance as module

    monkeypatch.setattr(module, "_PAGE", 10)
    async with Datastore(sharded(tmp_path, "ab")) as ds:
        await ds.put(groups())
    counted: dict[int, int] = dict.fromkeys(range(1, GROUPS + 1), 0)
    done = False
    refused = reads = 0

    async def count_up(ds: Datastore, seed: int) -> None:
        nonlocal refused
        number = seed
        while not done:
            number = number * 7 % 61

            async def once(number: int = number) -> None:
                entity = await ds.get(Key("G", number))
                assert entity is not None, f"{number} is gone"
                entity["n"] += 1
                await ds.put(entity)
                await ds.put(Entity(Key("G", number, "N", entity["n"]), {"n": entity["n"]}))
                if entity["n"] > 2:
                    await ds.delete(Key("G", number, "N", entity["n"] - 2))

            try:
                await ds.run_in_transaction(once, retries=50)
            except TransactionFailedError:
                continue
            except UnavailableError:
                refused += 1
                await anyio.sleep(0.01)
                continue
            counted[number] += 1
            await anyio.sleep(0.001)

    async def look(ds: Datastore) -> None:
        nonlocal reads
        while not done:
            try:
                keys = await ds.query("C").keys()
                assert len(keys) == len(set(keys)) == 2 * GROUPS
                assert [entity["of"] async for entity in ds.query("G").order("of")] == list(range(1, GROUPS + 1))
                assert await ds.query("C").count() == 2 * GROUPS
                assert None not in await ds.get([Key("G", number, "C", 1) for number in range(1, GROUPS + 1)])
            except UnavailableError:
                await anyio.sleep(0.01)
                continue
            reads += 1

    async with Datastore(sharded(tmp_path, "ab")) as old, anyio.create_task_group() as group:
        for seed in (2, 3, 5):
            group.start_soon(count_up, old, seed)
        group.start_soon(look, old)
        await until(lambda: reads and sum(counted.values()) > 10)
        opened = anyio.Event()

        async def with_all() -> None:
            await opened.wait()
            async with Datastore(sharded(tmp_path, "abc")) as ds, anyio.create_task_group() as inner:
                for seed in (11, 13, 17):
                    inner.start_soon(count_up, ds, seed)
                inner.start_soon(look, ds)

        group.start_soon(with_all)
        await rebalance(sharded(tmp_path, "abc"), progress=lambda *_: opened.set())
        before = sum(counted.values())
        await until(lambda: refused)  # who has the old shards is refused at the end
        await until(lambda: reads > 3 and sum(counted.values()) > before + 10)
        done = True
    found = await placed(tmp_path, "abc")
    async with Datastore(sharded(tmp_path, "abc")) as ds:
        assert await ds.check() == []
        for number, times in counted.items():
            entity = await ds.get(Key("G", number))
            assert entity is not None
            assert entity["n"] == times, f"{number} was counted up {times} times"
            names = [key.id for key in await ds.query("N", ancestor=entity.key).keys()]
            assert names == [n for n in (times - 1, times) if n > 0]
    assert len(found) == 3 * GROUPS + sum(min(times, 2) for times in counted.values())


WORKER = textwrap.dedent(
    """
    import sys
    import anyio
    from aiodatastore import Datastore, Key
    from aiodatastore.adapters.registry import adapter_from_url
    from aiodatastore.errors import DatastoreError
    from aiodatastore.shims.sharded import Sharded, adapter

    adapter.LAYOUT_MAX_AGE_S = 0.05
    folder, names = sys.argv[1:]

    async def main():
        shards = [adapter_from_url(f"sqlite:///{folder}/{name}.db") for name in names]
        async with Datastore(Sharded(shards, names=list(names))) as ds:
            print("open", flush=True)
            for number in range(1, 10**9):
                async def once():
                    entity = await ds.get(Key("G", number % 60 + 1))
                    entity["n"] += 1
                    await ds.put(entity)
                    return entity.key.id
                try:
                    print(await ds.run_in_transaction(once, retries=50), flush=True)
                except DatastoreError:
                    await anyio.sleep(0.01)

    anyio.run(main)
    """
)


async def test_other_processes_go_on(tmp_path: Path) -> None:
    """Whatever they were told is written is there; they are killed at the end, in the midst of it."""
    async with Datastore(sharded(tmp_path, "ab")) as ds:
        await ds.put(groups())
    workers: list[subprocess.Popen[str]] = []

    def start(names: str) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), names], stdout=subprocess.PIPE, text=True
        )
        assert read(worker) == "open\n"
        return worker

    def read(worker: subprocess.Popen[str]) -> str:
        assert worker.stdout is not None
        return worker.stdout.readline()

    told = [0] * (GROUPS + 1)
    try:
        workers.append(await anyio.to_thread.run_sync(start, "ab"))
        begun = anyio.Event()

        async def more() -> None:
            await begun.wait()
            workers.append(await anyio.to_thread.run_sync(start, "abc"))

        async with anyio.create_task_group() as group:
            group.start_soon(more)
            await rebalance(sharded(tmp_path, "abc"), progress=lambda *_: begun.set())
        # Who knows all shards goes on.
        for _ in range(30):
            told[int(await anyio.to_thread.run_sync(read, workers[-1]))] += 1
    finally:
        for worker in workers:
            worker.kill()
    for worker in workers:
        lines, _ = await anyio.to_thread.run_sync(worker.communicate)
        for line in lines.splitlines():
            told[int(line)] += 1
    assert sum(told) > 20
    await placed(tmp_path, "abc")
    async with Datastore(sharded(tmp_path, "abc")) as ds:
        for number in range(1, GROUPS + 1):
            entity = await ds.get(Key("G", number))
            assert entity is not None
            assert told[number] <= entity["n"] <= told[number] + len(workers)
