"""Datastore outside of transactions: forms of arguments, conditions, ids, life and death."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiodatastore import IndexDefinition, IndexState
from aiodatastore.adapters.base import ReadPolicy
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.datastore import MAX_COMMIT_WRITES, Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadKeyError,
    BadRequestError,
    BadValueError,
    ConflictError,
    EntityExistsError,
    EntityNotFoundError,
    NeedIndexError,
    StoreBusyError,
    StoreClosedError,
    TransactionStateError,
)
from aiodatastore.key import Key
from aiodatastore.query import Query
from tests.unit.stepping import Gate, SteppingAdapter, store

pytestmark = pytest.mark.anyio

ADA = Key("Person", "ada")


def task(**values: Any) -> Entity:
    return Entity(Key("Task"), values)


# -------------------------------------------------------------------------------------- gets and puts


@pytest.mark.parametrize("inline", [True, False])
async def test_forms_of_keys(inline: bool) -> None:
    ds, _ = store(inline=inline)
    async with ds:
        ada = Entity(ADA, {"name": "Ada"})
        assert await ds.put(ada) == ADA
        missing = Key("Person", "x")
        assert await ds.get(ADA) == await ds.get(ada) == await ds.get(ADA.to_urlsafe()) == ada
        assert await ds.get(missing) is None
        assert await ds.get([missing, ADA, ada, ADA.to_urlsafe()]) == [None, ada, ada, ada]
        assert await ds.get((ADA,)) == [ada]
        assert await ds.get([]) == []
        await ds.delete([])
        await ds.delete([ADA, ada, ADA.to_urlsafe(), missing])
        assert await ds.get(ADA) is None
        await ds.delete(ADA)


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        (None, BadArgumentError),
        (5, BadArgumentError),
        ([ADA, 5], BadArgumentError),
        ({ADA}, BadArgumentError),
        (Key("A"), BadKeyError),
        ([ADA, Key("A")], BadKeyError),
        ("junk!", BadKeyError),
        (["junk!"], BadKeyError),
    ],
)
async def test_wrong_keys_are_refused_before_any_io(argument: Any, error: type[Exception]) -> None:
    ds, adapter = store()
    async with ds:
        for operation in (ds.get, ds.delete):
            with pytest.raises(error):
                await operation(argument)
    assert not adapter.lookups
    assert not adapter.commits


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        (None, BadArgumentError),
        (ADA, BadArgumentError),
        ("x", BadArgumentError),
        ({"name": "x"}, BadArgumentError),
        ([Entity(ADA), 5], BadArgumentError),
        (Entity(ADA, {"x": object()}), BadValueError),
        ([Entity(ADA, {"x": 1}), Entity(ADA, {"x": 1 << 63})], BadValueError),
        (Entity(Key("__reserved__", 1)), BadRequestError),
    ],
)
async def test_wrong_entities_are_refused_before_any_io(argument: Any, error: type[Exception]) -> None:
    ds, adapter = store()
    async with ds:
        for operation in (ds.put, ds.insert, ds.update):
            with pytest.raises(error):
                await operation(argument)
    assert not adapter.commits


async def test_put_completes_keys_and_sets_versions() -> None:
    ds, _ = store()
    async with ds:
        first, second = task(n=1), Entity(ADA)
        keys = await ds.put([first, second])
        assert keys == [first.key, second.key]
        assert first.key.is_complete
        assert first.version == second.version > 0
        before = first.version
        await ds.put(first)
        assert first.version > before
        assert await ds.put([]) == []
        found = await ds.get(keys)
        assert found == [first, second]
        assert [each.version for each in found if each is not None] == [first.version, second.version]


async def test_what_is_put_is_copied_and_what_is_read_is_nobody_elses() -> None:
    for inline in (True, False):
        ds, _ = store(inline=inline)
        async with ds:
            inner = ["a"]
            ada = Entity(ADA, {"tags": inner, "inner": {"x": [1]}})
            gate = ds.adapter.before_commit = Gate()  # type: ignore[attr-defined]  # it is a SteppingAdapter
            async with anyio.create_task_group() as group:
                group.start_soon(ds.put, ada)
                await gate.arrived.wait()
                inner.append("b")
                ada["inner"]["x"].append(2)
                ada["more"] = True
                gate.opened.set()
            found = await ds.get([ADA, ADA])
            assert [dict(each) for each in found if each is not None] == [{"tags": ["a"], "inner": {"x": [1]}}] * 2
            assert found[0] is not None
            found[0]["tags"].append("z")
            found[0]["inner"]["x"].append("z")
            assert found[1] == await ds.get(ADA) == await ds.query("Person").first()


async def test_of_equal_keys_the_last_wins() -> None:
    ds, _ = store()
    async with ds:
        first, last = Entity(ADA, {"n": 1}), Entity(ADA, {"n": 2})
        assert await ds.put([first, last]) == [ADA, ADA]
        assert await ds.get(ADA) == last
        assert first.version == last.version > 0


async def test_insert_and_update() -> None:
    ds, _ = store()
    async with ds:
        with pytest.raises(EntityNotFoundError) as missing:
            await ds.update(Entity(ADA, {"n": 0}))
        assert missing.value.key == ADA
        assert await ds.insert(Entity(ADA, {"n": 1})) == ADA
        with pytest.raises(EntityExistsError) as existing:
            await ds.insert([Entity(Key("Person", "x")), Entity(ADA, {"n": 2})])
        assert existing.value.key == ADA
        assert await ds.get([ADA, Key("Person", "x")]) == [Entity(ADA, {"n": 1}), None]
        assert await ds.update([Entity(ADA, {"n": 3})]) == [ADA]
        assert (await ds.insert(task())).is_complete
        with pytest.raises(BadKeyError):
            await ds.update(task())
        with pytest.raises(BadArgumentError, match="twice"):
            await ds.insert([Entity(Key("A", 1)), Entity(Key("A", 1))])


async def test_if_version() -> None:
    ds, _ = store()
    async with ds:
        ada = Entity(ADA, {"n": 1})
        await ds.put(ada, if_version=0)
        first = ada.version
        with pytest.raises(ConflictError) as conflict:
            await ds.put(Entity(ADA), if_version=0)
        assert (conflict.value.key, conflict.value.expected, conflict.value.actual) == (ADA, 0, first)
        ada["n"] = 2
        await ds.put(ada, if_version=first)
        with pytest.raises(ConflictError):
            await ds.put(Entity(ADA), if_version=first)
        other = Entity(Key("Person", "x"))
        with pytest.raises(ConflictError):
            await ds.put([other, ada], if_version=[None, first])
        assert await ds.get([other.key, ADA]) == [None, ada]
        await ds.put([other, ada], if_version=[None, ada.version])
        with pytest.raises(ConflictError):
            await ds.delete(ADA, if_version=first)
        with pytest.raises(ConflictError):
            await ds.delete([other, ada], if_version=[other.version, first])
        await ds.delete([other, ada], if_version=[other.version, ada.version])
        assert await ds.get([other.key, ADA]) == [None, None]
        with pytest.raises(ConflictError) as gone:
            await ds.delete(ADA, if_version=5)
        assert gone.value.actual == 0
        await ds.put(task(), if_version=0)


@pytest.mark.parametrize("wrong", [-1, True, "1", 1.0, [1]])
async def test_wrong_versions(wrong: Any) -> None:
    ds, adapter = store()
    async with ds:
        with pytest.raises(BadArgumentError, match="if_version"):
            await ds.put(Entity(ADA), if_version=wrong)
        with pytest.raises(BadArgumentError, match="if_version"):
            await ds.delete([ADA], if_version=wrong if isinstance(wrong, int) else [wrong])
        with pytest.raises(BadKeyError):
            await ds.put(task(), if_version=3)
    assert not adapter.commits


@pytest.mark.parametrize("wrong", [-1, True, "1", float("nan")])
async def test_wrong_timeouts(wrong: Any) -> None:
    ds, adapter = store()
    with pytest.raises(BadArgumentError, match="timeout"):
        store(timeout=wrong)
    async with ds:
        for operation in (
            lambda: ds.get(ADA, timeout=wrong),
            lambda: ds.put(Entity(ADA), timeout=wrong),
            lambda: ds.delete(ADA, timeout=wrong),
            lambda: ds.query("A").fetch(timeout=wrong),
            lambda: ds.run_in_transaction(int, timeout=wrong),
        ):
            with pytest.raises(BadArgumentError, match="timeout"):
                await operation()
    assert not adapter.commits


async def test_read_policies() -> None:
    for inline in (True, False):
        ds, _ = store(inline=inline)
        async with ds:
            await ds.put(Entity(ADA))
            assert await ds.get(ADA, read_policy=ReadPolicy.EVENTUAL) == Entity(ADA)
            assert await ds.query("Person").fetch(read_policy=ReadPolicy.EVENTUAL) == [Entity(ADA)]
            with pytest.raises(BadArgumentError, match="read_policy"):
                await ds.get([ADA], read_policy="soon")  # type: ignore[call-overload]  # this is what is tested


async def test_long_lists_are_written_in_parts() -> None:
    ds, adapter = store()
    async with ds:
        entities = [task(n=n) for n in range(MAX_COMMIT_WRITES + 10)]
        keys = await ds.put(entities)
        assert len(set(keys)) == len(entities)
        assert [len(batch[0].writes) for batch in adapter.commits] == [MAX_COMMIT_WRITES, 10]
        assert await ds.get(keys) == entities
        duplicate = Entity(keys[-1], {})
        with pytest.raises(EntityExistsError) as error:
            await ds.insert([*(task() for _ in range(MAX_COMMIT_WRITES)), duplicate])
        assert f"{MAX_COMMIT_WRITES} of the {MAX_COMMIT_WRITES + 1}" in "".join(error.value.__notes__)
        await ds.delete(keys)
        assert await ds.query("Task").count() == MAX_COMMIT_WRITES


async def test_get_or_insert() -> None:
    ds, _ = store()
    async with ds:
        found: list[Entity] = []

        async def one(number: int) -> None:
            found.append(await ds.get_or_insert(ADA, {"number": number}, more=True))

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(one, number)
        assert len({each["number"] for each in found}) == 1
        assert all(each == found[0] and each.version == found[0].version > 0 for each in found)
        assert len({id(each) for each in found}) == 8
        with pytest.raises(BadKeyError):
            await ds.get_or_insert(Key("A"))


async def test_app_engine_rules() -> None:
    ds, _ = store(app_engine_rules=True)
    async with ds:
        with pytest.raises(BadValueError):
            await ds.put(Entity(ADA, {"inner": {"x": 1}}))
        assert ds.query("A").query.strict
        with pytest.raises(BadKeyError):
            await ds.allocate_ids(Key("A"), 1)


# ----------------------------------------------------------------------------------------------- ids


async def test_ids_are_handed_out_in_order_from_blocks() -> None:
    ds, adapter = store()
    calls: list[int] = []
    original = adapter.allocate_ids

    async def counted(key: Key, size: int) -> tuple[int, int]:
        calls.append(size)
        return await original(key, size)

    adapter.allocate_ids = counted  # type: ignore[method-assign]  # to count its calls
    async with ds:
        ids = [(await ds.put(task())).id for _ in range(40)]
        assert ids == list(range(1, 41))
        assert calls == [16, 32]
        assert await ds.allocate_ids(Key("Task"), 3) == (41, 43)
        assert (await ds.put(task())).id == 44
        assert await ds.allocate_ids(Key("Task"), 100) == (45, 144)
        assert (await ds.put(Entity(Key("Task", parent=ADA)))).id == 145
        assert (await ds.put(Entity(Key("Other")))).id == 1
        assert (await ds.put(Entity(Key("Task", namespace="n")))).id == 1


async def test_reserving_up_to_a_maximum() -> None:
    ds, _ = store()
    async with ds:
        assert await ds.allocate_ids(Key("T"), max=0) == (1, 0)
        assert await ds.allocate_ids(Key("T")) == (1, 0)
        assert (await ds.put(Entity(Key("T")))).id == 1
        assert await ds.allocate_ids(Key("T"), max=5) == (2, 5)
        assert await ds.allocate_ids(Key("T"), max=4) == (6, 5)
        assert (await ds.put(Entity(Key("T")))).id == 6
        assert await ds.allocate_ids(Key("T"), max=100) == (7, 100)
        assert (await ds.put(Entity(Key("T")))).id == 101
        assert await ds.allocate_ids(Key("T"), max=2**62) == (102, 2**62)
        assert (await ds.put(Entity(Key("T")))).id == 2**62 + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": -1},
        {"size": "5"},
        {"size": 1.5},
        {"size": True},
        {"size": 10**9 + 1},
        {"max": -1},
        {"max": "5"},
        {"max": True},
        {"max": 2**63},
        {"size": 1, "max": 1},
    ],
)
async def test_wrong_allocations(wrong: dict[str, Any]) -> None:
    ds, _ = store()
    async with ds:
        with pytest.raises(BadArgumentError):
            await ds.allocate_ids(Key("T"), **wrong)
        for model in (None, 5, [Key("T", 1), Key("T", 1)]):
            with pytest.raises(BadArgumentError):
                await ds.allocate_ids(model, 1)  # type: ignore[arg-type]  # this is what is tested
        with pytest.raises(BadKeyError):
            await ds.allocate_ids("T", 1)


async def test_ids_of_several_processes_are_disjoint() -> None:
    shared = MemoryRowStore()
    stores = [SteppingAdapter() for _ in range(3)]
    seen: set[int] = set()
    reserved: list[tuple[int, int]] = []
    source = random.Random(5)
    datastores = [Datastore(each) for each in stores]
    for each in stores:
        each.store = shared
    await shared.open()
    shared.open = anyio.lowlevel.checkpoint  # type: ignore[method-assign]  # open once for all
    for ds in datastores:
        await ds.open()
    try:
        for _ in range(300):
            ds = source.choice(datastores)
            match source.randrange(4):
                case 0:
                    first, last = await ds.allocate_ids(Key("T"), source.choice([1, 5, 30]))
                    reserved.append((first, last))
                case 1:
                    first, last = await ds.allocate_ids(Key("T"), max=max(seen, default=0) + source.randrange(50))
                    reserved.append((first, last))
                case _:
                    ident = (await ds.put(Entity(Key("T")))).id
                    assert ident is not None
                    first = last = ident
            new = set(range(first, last + 1))
            assert not new & seen
            seen |= new
    finally:
        for ds in datastores:
            await ds.aclose()
    assert sum(first <= last for first, last in reserved) > 20


async def test_tasks_that_need_ids_at_once_share_blocks() -> None:
    ds, _ = store()
    async with ds:
        entities = [task(n=n) for n in range(100)]
        async with anyio.create_task_group() as group:
            for each in entities:
                group.start_soon(ds.put, each)
        assert len({each.key for each in entities}) == 100
        assert await ds.query("Task").count() == 100


async def test_automatic_ids_pass_over_explicit_ones() -> None:
    ds, adapter = store()
    async with ds:
        await ds.put([Entity(Key("Task", n), {"explicit": True}) for n in range(1, 400)])
        adapter.commits.clear()
        new = [task(explicit=False) for _ in range(5)]
        for each in new:
            await ds.put(each)
        await ds.put([task(explicit=False) for _ in range(5)])
        assert len(adapter.commits) < 30
        assert await ds.query("Task").filter("explicit", "=", True).count() == 399
        assert await ds.query("Task").filter("explicit", "=", False).count() == 10
        # A collision with one of a list moves that one only.
        block = await ds.allocate_ids(Key("Task"), 1)
        await ds.put(Entity(Key("Task", block[1] + 2), {"explicit": True}))
        some = [task(explicit=False) for _ in range(4)]
        await ds.put(some)
        assert some[0].key.id == block[1] + 1
        assert await ds.query("Task").filter("explicit", "=", True).count() == 400


# ------------------------------------------------------------------------------------- opening, closing


async def test_use_before_and_after() -> None:
    ds, adapter = store()
    operations: list[Any] = [
        lambda: ds.get(ADA),
        lambda: ds.get([ADA]),
        lambda: ds.put(Entity(ADA)),
        lambda: ds.put(task()),
        lambda: ds.delete(ADA),
        lambda: ds.query("A").fetch(),
        lambda: ds.query("A").count(),
        lambda: ds.allocate_ids(ADA, 1),
        lambda: ds.run_in_transaction(lambda: ds.get(ADA)),
        ds.indexes,
        ds.check,
        ds.stats,
    ]
    for operation in operations:
        with pytest.raises(StoreClosedError, match=r"not open yet.*async with"):
            await operation()
    async with ds:
        transaction = ds.begin()
        results = ds.query("A").run()
        with pytest.raises(TransactionStateError, match="open already"):
            await ds.open()
    for operation in [*operations, lambda: transaction.get(ADA), lambda: anext(results)]:
        with pytest.raises(StoreClosedError, match="was closed"):
            await operation()
    await ds.aclose()
    assert adapter.closed == 1
    with pytest.raises(StoreClosedError):
        ds.begin()


async def test_opening_may_be_tried_again() -> None:
    ds, adapter = store()
    original, failing = adapter.open, True

    async def unwilling() -> None:
        if failing:
            raise StoreBusyError("busy")
        await original()

    adapter.open = unwilling  # type: ignore[method-assign]  # to fail once
    with pytest.raises(StoreBusyError):
        await ds.open()
    with pytest.raises(StoreClosedError):
        await ds.get(ADA)
    failing = False
    async with ds:
        assert await ds.get(ADA) is None


async def test_dropped_open_it_warns() -> None:
    ds, _ = store()
    await ds.open()
    adapter = ds.adapter
    holder = [ds]
    del ds
    with pytest.warns(ResourceWarning, match="unclosed Datastore"):
        holder.clear()
    gc.collect()
    await adapter.aclose()
    ds, _ = store()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del ds
        gc.collect()


async def test_what_it_shows_of_itself() -> None:
    ds, adapter = store()
    assert repr(ds) == f"Datastore({adapter.url!r})"
    assert ds.adapter is adapter
    assert ds.capabilities == adapter.capabilities
    assert ds.url == adapter.url


async def test_wrong_options() -> None:
    with pytest.raises(BadArgumentError):
        store(page_size=0)
    with pytest.raises(BadArgumentError, match="adapter"):
        Datastore(SteppingAdapter(), require_indexes=True)
    with pytest.raises(BadArgumentError, match="namespace"):
        store(namespace="not this")


async def test_partitions() -> None:
    ds, _ = store(namespace="n", project="p")
    async with ds:
        assert ds.key("A", 1) == Key("A", 1, namespace="n", project="p")
        assert ds.key("B", parent=Key("A", 1)) == Key("A", 1, "B")
        await ds.put([Entity(ds.key("A", 1)), Entity(Key("A", 2))])
        assert await ds.query("A").keys() == [ds.key("A", 1)]
        assert await ds.query("A", namespace="", project="").keys() == [Key("A", 2)]
        assert await ds.query("A", ancestor=Key("A", 2)).keys() == [Key("A", 2)]
        assert await ds.query(Query("A")).keys() == [Key("A", 2)]
        with pytest.raises(BadArgumentError):
            ds.query(Query("A"), namespace="n")


async def test_indexes_are_declared_built_and_required(tmp_path: Path) -> None:
    text = "indexes:\n- kind: T\n  properties:\n  - name: a\n  - name: b\n    direction: desc\n"
    path = tmp_path / "index.yaml"
    path.write_text(text)
    for source in (text, path, str(path)):
        adapter = SteppingAdapter(require_indexes=True)
        async with Datastore(adapter, index_yaml=source) as ds:
            (info,) = await ds.indexes()
            assert info.state is IndexState.SERVING
            await ds.put(Entity(Key("T", 1), {"a": 1, "b": 2, "c": 3}))
            assert len(await ds.query("T").order("a", "-b").fetch()) == 1
            with pytest.raises(NeedIndexError):
                await ds.query("T").order("a", "-c").fetch()
            seen: list[int] = []
            await ds.create_index(text.replace("b", "c"), progress=seen.append)
            assert len(await ds.query("T").order("a", "-c").fetch()) == 1
            assert seen
            waiting = IndexDefinition("T", (("c", "asc"), ("b", "asc")))
            assert (await ds.create_index(waiting, build=False)).state is IndexState.BUILDING
            await ds.delete_index(waiting)
            assert await ds.check() == []
            await ds.delete_index(info.definition, finish=False)
            assert [each.state for each in await ds.indexes()] == [IndexState.DELETING, IndexState.SERVING]
            assert (await ds.stats())["kinds"][0]["kind"] == "T"
            with pytest.raises(BadArgumentError):
                await ds.create_index("indexes: []\n")


FORK = """
import os, sys, anyio
from aiodatastore import Datastore, Key, StoreClosedError
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
ds = Datastore(EngineAdapter(MemoryRowStore()))
anyio.run(ds.open)
child = os.fork()
if not child:
    try:
        anyio.run(ds.get, Key("A", 1))
    except StoreClosedError as error:
        os._exit(7 if "forked" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert anyio.run(ds.get, Key("A", 1)) is None
anyio.run(ds.aclose)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_forked_child_is_told() -> None:
    done = await anyio.run_process([sys.executable, "-c", FORK], check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_importing_loads_no_driver_and_no_event_loop() -> None:
    code = (
        "import sys; import aiodatastore; print(*sorted(sys.modules));"
        "assert not [n for n in aiodatastore.__all__ if getattr(aiodatastore, n) is None];"
        "assert not {'sqlite3', 'asyncpg', 'redis', 'aiofiles'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "anyio" not in done.stdout.split()
