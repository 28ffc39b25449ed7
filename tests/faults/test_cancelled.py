"""Every public operation, cancelled at every await once: the store goes on, and nothing is leaked.

Afterwards no connection is lent or doing anything, no lock is held and nothing is left prepared on the server, no
thread is borrowed, and when the store is closed no task is left.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.bound_query import BoundQuery
from aiodatastore.errors import DatastoreError, TransactionClosedError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.testing.suite.base import cancelled_at
from aiodatastore.txn import Transaction
from tests.engines import Bound, Place, PostgresDoor, RedisDoor, engines
from tests.suites import delete_indexes_at_once  # noqa: F401  (a fixture)

pytestmark = pytest.mark.anyio

Body = Callable[[Datastore], Coroutine[Any, Any, object]]

ONE, TWO = Key("K", 1), Key("K", 2)
INDEX = IndexDefinition("K", (("n", "asc"), ("tag", "desc")))
MOST = 150
"""Awaits of one operation: a test that needs more is wrong."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ---------------------------------------------------------------------------------------------- operations


def entities(n: int = 0) -> list[Entity]:
    return [Entity(key, {"n": n, "tag": "x"}) for key in (ONE, TWO)]


async def steps(ds: Datastore) -> None:
    one = await ds.get(ONE)
    await ds.query("K").fetch()
    await ds.put(Entity(ONE, {"n": 1, "was": one is not None}))
    await ds.delete(TWO)


async def transaction(ds: Datastore) -> None:
    async with ds.transaction():
        await steps(ds)


async def by_hand(ds: Datastore, step: Callable[[Transaction], Awaitable[object]], *, commit: bool = True) -> None:
    begun = ds.begin()
    try:
        await step(begun)
        await (begun.commit() if commit else begun.rollback())
    except BaseException:
        with anyio.CancelScope(shield=True), suppress(TransactionClosedError):
            await begun.rollback()
        raise


async def iterate(ds: Datastore) -> None:
    async for _ in ds.query("K").run(page_size=1):
        pass


async def leave_half_way(ds: Datastore) -> None:
    async for _ in ds.query("K").run(page_size=1):
        break


OPERATIONS: dict[str, Body] = {
    "Datastore.allocate_ids": lambda ds: ds.allocate_ids(Key("K"), 3),
    "Datastore.check": lambda ds: ds.check(),
    "Datastore.create_index": lambda ds: ds.create_index(INDEX),
    "Datastore.delete": lambda ds: ds.delete(ONE),
    "Datastore.delete, many": lambda ds: ds.delete([ONE, TWO]),
    "Datastore.delete_index": lambda ds: ds.delete_index(INDEX),
    "Datastore.get": lambda ds: ds.get(ONE),
    "Datastore.get, many": lambda ds: ds.get([ONE, TWO, Key("K", 3)]),
    "Datastore.get_or_insert": lambda ds: ds.get_or_insert(Key("K", "new"), {"n": 1}),
    "Datastore.indexes": lambda ds: ds.indexes(),
    "Datastore.insert": lambda ds: ds.insert(Entity(Key("K"), {"n": 1})),
    "Datastore.put": lambda ds: ds.put(Entity(ONE, {"n": 1})),
    "Datastore.put, many": lambda ds: ds.put(entities(1)),
    "Datastore.put, too many for one commit": lambda ds: ds.put([Entity(Key("L", n)) for n in range(1, 5202)]),
    "Datastore.run_in_transaction": lambda ds: ds.run_in_transaction(steps, ds),
    "Datastore.stats": lambda ds: ds.stats(),
    "Datastore.transaction": transaction,
    "Datastore.update": lambda ds: ds.update(Entity(ONE, {"n": 1})),
    "BoundQuery.aggregate": lambda ds: ds.query("K").aggregate(total=("sum", "n"), count="count"),
    "BoundQuery.avg": lambda ds: ds.query("K").avg("n"),
    "BoundQuery.count": lambda ds: ds.query("K").filter("tag", "=", "x").count(),
    "BoundQuery.explain": lambda ds: ds.query("K").filter("tag", "=", "x").explain(analyze=True),
    "BoundQuery.fetch": lambda ds: ds.query("K").filter("n", ">", 0).order("-n").fetch(),
    "BoundQuery.fetch, merged": lambda ds: ds.query("K").filter("tag", "=", "x").filter("n", "=", 0).fetch(),
    "BoundQuery.first": lambda ds: ds.query("K").first(),
    "BoundQuery.keys": lambda ds: ds.query("K").keys(),
    "BoundQuery.page": lambda ds: ds.query("K").page(1),
    "BoundQuery.run": iterate,
    "BoundQuery.run, left half way": leave_half_way,
    "BoundQuery.sum": lambda ds: ds.query("K").sum("n"),
    "Transaction.allocate_ids": lambda ds: by_hand(ds, lambda txn: txn.allocate_ids(Key("K"), 3)),
    "Transaction.commit": lambda ds: by_hand(ds, lambda txn: txn.put(entities(1))),
    "Transaction.delete": lambda ds: by_hand(ds, lambda txn: txn.delete([ONE, TWO])),
    "Transaction.get": lambda ds: by_hand(ds, lambda txn: txn.get([ONE, TWO])),
    "Transaction.get_or_insert": lambda ds: by_hand(ds, lambda txn: txn.get_or_insert(Key("K", "new"))),
    "Transaction.insert": lambda ds: by_hand(ds, lambda txn: txn.insert(Entity(Key("K"), {"n": 1}))),
    "Transaction.put": lambda ds: by_hand(ds, lambda txn: txn.put(Entity(Key("K"), {"n": 1}))),
    "Transaction.rollback": lambda ds: by_hand(ds, lambda txn: txn.put(entities(1)), commit=False),
    "Transaction.update": lambda ds: by_hand(ds, lambda txn: txn.update(Entity(ONE, {"n": 1}))),
}
ELSEWHERE = {
    "Datastore.open": "test_opening_and_closing",
    "Datastore.aclose": "test_opening_and_closing",
    "Transaction.admit": "internal: called by every query of a transaction",
}


def test_no_operation_is_forgotten() -> None:
    public = {
        f"{owner.__name__}.{name}"
        for owner in (Datastore, BoundQuery, Transaction)
        for name, found in inspect.getmembers(owner, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert public - {name.partition(",")[0] for name in OPERATIONS} - ELSEWHERE.keys() == set()


# --------------------------------------------------------------------------------------------------- leaks


def lent_by(store: Any) -> int:
    """Connections that the store's own pool believes to be in use, or being made."""
    pool = getattr(store, "_pool", None) or getattr(store, "_connections", None)
    return sum(len(getattr(pool, name, ())) for name in ("_lent", "_making", "_waiting"))


def leaks(ds: Datastore, place: Place, most_connections: int) -> Iterator[str]:
    """What should not be while nothing is under way."""
    assert isinstance(ds.adapter, EngineAdapter)
    if lent := lent_by(ds.adapter.store):
        yield f"{lent} connections are lent"
    if borrowed := anyio.to_thread.current_default_thread_limiter().borrowed_tokens:
        yield f"{borrowed} threads are borrowed"
    door = place.door
    if isinstance(door, PostgresDoor):
        backends = door.session.run(
            "SELECT pid, state, query FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE $1",
            f"%{door.schema}%",
        )
        if len(backends) > most_connections:
            yield f"{len(backends)} connections to the server"
        yield from (
            f"a connection is {row['state']}: {row['query'][:80]}" for row in backends if row["state"] != "idle"
        )
        pids = [row["pid"] for row in backends]
        for row in door.session.run("SELECT locktype, mode FROM pg_locks WHERE pid = ANY($1)", pids):
            yield f"a lock is held: {row['locktype']} {row['mode']}"
        for row in door.session.run("SELECT gid FROM pg_prepared_xacts"):
            yield f"a transaction is left prepared: {row['gid']}"
    if isinstance(door, RedisDoor):
        clients = [each for each in door.client.client_list() if each["name"] == "aiodatastore"]
        if len(clients) > most_connections:
            yield f"{len(clients)} connections to the server"
        yield from (f"a client is in a transaction: {each}" for each in clients if {"x", "d"} & set(each["flags"]))
        yield from (f"a client watches keys: {each}" for each in clients if int(each.get("watch", 0)))
        yield from (f"a client is blocked: {each}" for each in clients if "b" in each["flags"])


async def settle(ds: Datastore, place: Place, what: str, most_connections: int = 10) -> None:
    """What was cancelled may still be finishing in the background; then nothing is left of it."""
    found: list[str] = []
    for pause_s in [0.0, 0.001, 0.005, 0.01, 0.05, *[0.1] * 300]:
        found = list(leaks(ds, place, most_connections))
        if not found:
            return
        await anyio.sleep(pause_s)
    pytest.fail(f"{what}: {found}")


def tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks()


async def no_task_but(before: set[asyncio.Task[Any]]) -> None:
    for _ in range(3000):
        if not tasks() - before:
            return
        await anyio.sleep(0.01)
    pytest.fail(f"tasks are left: {tasks() - before}")


# --------------------------------------------------------------------------------------------------- tests


@engines()
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelled_at_every_await(engine: Bound, place: Place, operation: str) -> None:
    body = OPERATIONS[operation]
    before = tasks()
    async with place.connect() as ds:
        for at in range(1, MOST):
            await ds.put(entities())
            if operation == "Datastore.delete_index" and not await ds.indexes():
                await ds.create_index(INDEX)
            came_so_far = await cancelled_at(lambda: body(ds), at)
            with anyio.fail_after(60):
                await settle(ds, place, f"{operation}, cancelled at await {at}")
                assert not ds.in_transaction()
                await ds.put(Entity(Key("After", 1), {"at": at}))
                assert await ds.get(Key("After", 1)) == Entity(Key("After", 1), {"at": at})
            if not came_so_far:
                break
            if operation == "Datastore.create_index":
                for info in await ds.indexes():
                    await ds.delete_index(info.definition)
        else:
            pytest.fail(f"{operation} suspended {MOST} times")
        assert await ds.check() == []
        if engine.engine.connections:
            with anyio.fail_after(60):
                async with place.connect() as other:  # no lock of ours is in its way
                    await other.put(entities(2))
    await no_task_but(before)


@engines()
async def test_opening_and_closing(engine: Bound, place: Place) -> None:
    before = tasks()
    async with place.connect() as ds:
        await ds.put(entities())
    for operation in ("open", "aclose"):
        for at in range(1, MOST):
            ds = place.connect()
            if operation == "aclose":
                await ds.open()
            came_so_far = await cancelled_at(ds.open if operation == "open" else ds.aclose, at)
            with anyio.fail_after(60):
                await ds.aclose()
                async with place.connect() as other:  # no lock is left
                    assert await other.get(ONE) == (entities()[0] if engine.engine.durable else None)
                    await settle(other, place, f"{operation}, cancelled at await {at}", 1)
                with pytest.raises(DatastoreError):
                    await ds.get(ONE)
            if not came_so_far:
                break
        else:
            pytest.fail(f"{operation} suspended {MOST} times")
    await no_task_but(before)
