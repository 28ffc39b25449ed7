"""Plain values by path beside *py-key-value-aio*, which keeps values without indexes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiodatastore.bench.data import person
from aiodatastore.bench.measure import Subject, compare
from aiodatastore.bench.report import Result
from aiodatastore.bench.workloads import draw_fresh, draw_numbers, each_batch
from aiodatastore.datastore import Datastore
from aiodatastore.keyvalue import KeyValue
from benchmarks.sizes import SEED

if TYPE_CHECKING:
    from benchmarks.suite import Context

__all__ = ["DISK", "MEMORY", "OURS", "plain_values"]

OURS = "KeyValue"
MEMORY = "py-key-value-aio MemoryStore"
DISK = "py-key-value-aio DiskStore"

Numbered = tuple[int, dict[str, Any]]


class _Ours:
    """Paths of one element."""

    def __init__(self, values: KeyValue) -> None:
        self.values = values

    async def load(self, count: int) -> None:
        for batch in each_batch(count, 1000):
            await self.values.put_many({_path(number): person(number) for number in batch})

    def get(self, name: str, count: int) -> Subject:
        get = self.values.get
        return Subject(name, lambda number: get(_path(number)), draw_numbers(count, SEED), ours=True)

    def put(self, name: str, first: int) -> Subject:
        put = self.values.put

        async def operate(numbered: Numbered) -> Any:
            await put(_path(numbered[0]), numbered[1])
            return numbered[0]

        return Subject(name, operate, draw_fresh(first, person), ours=True)


def _path(number: int) -> str:
    return f"/Person:{number}"


class _Peer:
    def __init__(self, store: Any) -> None:
        self.store = store

    async def load(self, count: int) -> None:
        for batch in each_batch(count, 1000):
            await self.store.put_many([_name(number) for number in batch], [person(number) for number in batch])

    def get(self, name: str, count: int) -> Subject:
        get = self.store.get
        return Subject(name, lambda number: get(_name(number)), draw_numbers(count, SEED))

    def put(self, name: str, first: int) -> Subject:
        put = self.store.put

        async def operate(numbered: Numbered) -> Any:
            await put(_name(numbered[0]), numbered[1])
            return numbered[0]

        return Subject(name, operate, draw_fresh(first, person))


def _name(number: int) -> str:
    return f"person-{number}"


@asynccontextmanager
async def _stores(context: Context, engine: str, notes: list[str]) -> AsyncIterator[list[tuple[str, _Ours | _Peer]]]:
    async with AsyncExitStack() as stack:
        name = "memory" if engine == "memory" else "values"
        ds: Datastore = await stack.enter_async_context(context.store(name))
        stores: list[tuple[str, _Ours | _Peer]] = [(OURS, _Ours(KeyValue(ds)))]
        if engine == "memory":
            from key_value.aio.stores.memory import MemoryStore

            stores.append((MEMORY, _Peer(MemoryStore())))
        else:
            try:
                from key_value.aio.stores.disk import DiskStore
            except ImportError:
                notes.append(f"{DISK} was not measured: it needs py-key-value-aio[disk]")
            else:
                disk = await stack.enter_async_context(DiskStore(directory=context.folder / "disk"))
                stores.append((DISK, _Peer(disk)))
        yield stores


async def plain_values(context: Context) -> None:
    """Gets and puts of values in memory and in SQLite."""
    size = context.size
    settings = {"values": size.items}
    get = Result("keyvalue_get", "KeyValue: get of a value by its path", settings=settings)
    put = Result("keyvalue_put", "KeyValue: put of a new value with three items", settings=settings)
    for engine in ("memory", "SQLite"):
        async with _stores(context, engine, put.notes) as stores:
            for _, store in stores:
                await store.load(size.items)
            for tasks in (1, size.tasks):
                gets = [store.get(f"{engine}: {name}", size.items) for name, store in stores]
                get.figures += await compare(gets, size.effort, tasks=tasks)
            for tasks in (1, size.tasks):
                first = 1 + tasks * 10_000_000
                puts = [store.put(f"{engine}: {name}", first) for name, store in stores]
                put.figures += await compare(puts, size.effort, tasks=tasks)
    put.notes.append("Ours keeps indexes and versions. DiskStore is diskcache: SQLite that does not wait for the disk.")
    context.report.add(get)
    context.report.add(put)
