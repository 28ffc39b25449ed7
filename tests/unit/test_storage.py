"""The habits of small REST services."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiodatastore import (
    BadArgumentError,
    BadFilterError,
    Datastore,
    DatastoreError,
    Entity,
    Key,
    StoreClosedError,
    TransactionFailedError,
    TransactionStateError,
    UnavailableError,
)
from aiodatastore.jsonl import load_entity
from aiodatastore.storage import PerProcess, Storage

pytestmark = pytest.mark.anyio


async def test_resources() -> None:
    async with Datastore("memory://", namespace="n") as ds:
        storage = Storage(ds)
        first, second = await storage.next_id("Task"), await storage.next_id("Task")
        assert first != second
        assert await storage.put("Task", first, {"title": "a"}) == first
        assert await storage.put("Task", "named", {"title": "b"}) == "named"
        automatic = await storage.put("Task", None, {"title": "c"})
        assert automatic not in (first, second, "named")
        assert await storage.get("Task", first) == {"title": "a"}
        assert type(await storage.get("Task", first)) is dict
        assert await ds.get(Key("Task", first, namespace="n")) is not None
        await storage.delete("Task", first)
        await storage.delete("Task", first)
        assert await storage.get("Task", first) is None
        with pytest.raises((BadArgumentError, DatastoreError)):
            await storage.get("Task", None)  # type: ignore[arg-type]
        assert repr(storage) == "Storage(Datastore('memory://'))"


async def test_ids_that_are_selected() -> None:
    async with Datastore("memory://") as ds:
        storage = Storage(ds)
        for ident, (age, tags) in enumerate([(30, ["x"]), (20, ["x", "y"]), (40, []), (20, ["y"])], 1):
            await storage.put("P", ident, {"age": age, "tags": tags})
        await storage.put("P", "eve", {"age": 50, "tags": []})
        assert await storage.selected_ids("P") == [1, 2, 3, 4, "eve"]
        assert await storage.selected_ids("P", {"age": 20}) == [2, 4]
        assert await storage.selected_ids("P", {"age": 20, "tags": "x"}) == [2]
        assert await storage.selected_ids("P", {"age": [30, 40]}) == [1, 3]
        assert await storage.selected_ids("P", [("age", ">", 20), ("age", "<=", 40)], sort="-age") == [3, 1]
        assert await storage.selected_ids("P", [], ["age", "-__key__"], limit=2) == [4, 2]
        assert await storage.selected_ids("P", sort="-age", limit=2, offset=1) == [3, 1]
        assert await storage.selected_ids("Q") == []
        with pytest.raises(BadArgumentError, match="expected \\(name, operator, value\\)"):
            await storage.selected_ids("P", ["age > 20"])  # type: ignore[list-item]
        with pytest.raises((BadFilterError, BadArgumentError)):
            await storage.selected_ids("P", [("age", "about", 20)])


async def test_a_transaction_by_hand() -> None:
    async with Datastore("memory://") as ds:
        storage, other = Storage(ds), Storage(ds)
        await storage.put("A", 1, {"n": 1})
        await storage.begin()
        assert storage.in_transaction
        assert not ds.in_transaction()
        await storage.put("A", 2, {"n": 2})
        assert await storage.selected_ids("A") == [1, 2]  # its own writes
        assert await other.selected_ids("A") == [1]
        await storage.rollback()
        assert repr(storage.in_transaction) == "False"
        assert await storage.selected_ids("A") == [1]
        await storage.begin()
        found = await storage.get("A", 1)
        assert found is not None
        await storage.put("A", 1, {"n": found["n"] + 1})
        await storage.commit()
        assert await storage.get("A", 1) == {"n": 2}


async def test_a_transaction_that_conflicts_is_over() -> None:
    async with Datastore("memory://") as ds:
        storage, other = Storage(ds), Storage(ds)
        await storage.put("A", 1, {"n": 1})
        await storage.begin()
        await storage.get("A", 1)
        await storage.put("A", 1, {"n": 2})
        await other.put("A", 1, {"n": 3})
        with pytest.raises(TransactionFailedError):
            await storage.commit()
        assert not storage.in_transaction
        assert await storage.get("A", 1) == {"n": 3}
        await storage.begin(read_only=True)
        with pytest.raises(TransactionStateError):
            await storage.put("A", 1, {"n": 4})
        with pytest.raises(TransactionStateError, match="begun a transaction already"):
            await storage.begin()
        await storage.rollback()
        for end in (storage.commit, storage.rollback):
            with pytest.raises(TransactionStateError, match="has begun no transaction"):
                await end()


async def test_dump() -> None:
    async with Datastore("memory://") as ds:
        entities = [Entity(Key("A", n), {"n": n}) for n in range(1, 400)]
        entities += [Entity(Key("A", 1, "B", "x"), {"b": b"x"}), Entity(Key("C", 1, namespace="n", project="p"))]
        await ds.put(entities)
        async with ds.transaction():
            await ds.put(Entity(Key("A", 1000)))
            lines = [line async for line in Storage(ds).dump()]
            assert ds.in_transaction()
        loaded = [load_entity(json.loads(line)) for line in lines]
        assert sorted(loaded, key=lambda entity: entity.key) == sorted(entities, key=lambda entity: entity.key)
        lines = [line async for line in Storage(ds).dump(limit=3)]
        assert [json.loads(line) for line in lines][3:] == [{"truncated": True}]
        assert len([line async for line in Storage(ds).dump(limit=None)]) == 402
        assert len([line async for line in Storage(ds).dump(limit=402)]) == 402
        assert len([line async for line in Storage(ds).dump(limit=401)]) == 402
        async for line in Storage(ds).dump():
            assert '"/A:1"' in line
            break


# ---------------------------------------------------------------------------------------------- processes


def in_child(body: Callable[[], Any]) -> str:
    """What a function prints in a forked child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: the test run has threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            os.write(writer, str(body()).encode())
            code = 0
        except BaseException as exc:
            os.write(writer, f"{type(exc).__name__}: {exc}".encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


needs_fork = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "win32", reason="no fork here")


@needs_fork
def test_each_process_has_its_own(tmp_path: Path) -> None:
    made: list[Datastore] = []

    def factory() -> Datastore:
        made.append(Datastore(f"sqlite:///{tmp_path}/people.db"))
        return made[-1]

    datastores = PerProcess(factory)

    async def child() -> str:
        ds = await datastores.get()
        assert await datastores.get() is ds
        await ds.put(Entity(Key("P", "child")))
        found = await ds.query("P").count()
        await datastores.aclose()
        return f"{len(made)} made, {found} found"

    async def parent() -> None:
        ds = await datastores.get()
        await ds.put(Entity(Key("P", "parent")))
        told = in_child(lambda: run_in_new_loop(child))
        assert told == "2 made, 2 found"
        assert await datastores.get() is ds
        assert await ds.query("P").count() == 2
        await datastores.aclose()

    anyio.run(parent)


@needs_fork
def test_a_datastore_that_was_opened_before_a_fork_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with Datastore(f"sqlite:///{tmp_path}/people.db") as ds:
            storage = Storage(ds)
            await storage.put("P", 1, {})
            told = in_child(lambda: run_in_new_loop(storage.get, "P", 1))
            assert told.startswith("StoreClosedError: ")
            assert "was opened before this process was forked: make and open one in the child" in told
            assert await storage.get("P", 1) == {}

    anyio.run(main)


def run_in_new_loop(function: Callable[..., Any], *args: Any) -> Any:
    """As a worker does that was forked inside a running event loop."""
    import asyncio

    asyncio.events._set_running_loop(None)
    return asyncio.run(function(*args))


async def test_first_calls_side_by_side_open_one() -> None:
    made: list[Datastore] = []

    def factory() -> Datastore:
        made.append(Datastore("memory://"))
        return made[-1]

    datastores = PerProcess(factory)
    found: list[Datastore] = []

    async def ask() -> None:
        found.append(await datastores.get())

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ask)
    assert found == [made[0]] * 5
    await datastores.aclose()
    await datastores.aclose()
    with pytest.raises(StoreClosedError):
        await made[0].get(Key("A", 1))
    assert await datastores.get() is made[1]
    await datastores.aclose()


def test_each_event_loop_has_its_own() -> None:
    datastores = PerProcess(lambda: Datastore("memory://"))

    async def main() -> Datastore:
        ds = await datastores.get()
        await ds.put(Entity(Key("A", 1)))
        await datastores.aclose()
        return ds

    assert anyio.run(main) is not anyio.run(main)


async def test_what_can_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    datastores = PerProcess(lambda: Datastore(f"sqlite:///{tmp_path}/folder/people.db"))
    with pytest.raises(UnavailableError):
        await datastores.get()
    tmp_path.joinpath("folder").mkdir()
    ds = await datastores.get()
    assert await ds.query().count() == 0
    await datastores.aclose()
