"""Import of made-up things with five indexed properties, in a process of its own, so that its memory is its own.

``python -m benchmarks.loading`` reads from its input, as JSON, the engine, the side, the place and how many; it prints
the rate, and what memory was resident as the import went on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec

from aiodatastore.bench.data import scrambled
from aiodatastore.bench.workloads import each_batch
from benchmarks.cities import Watch, watch
from benchmarks.sides import Ours, Place, Side

__all__ = ["LINES", "WAYS", "listing"]

LINES = f"{Ours.name}, from a file of JSON lines"

_UNDER_WAY = 3
_COLUMNS = ("name", "category", "price", "rating", "stock")
_TABLE = (
    "CREATE TABLE listing (id bigint PRIMARY KEY, name text NOT NULL, category text NOT NULL, price bigint NOT NULL,"
    " rating double precision NOT NULL, stock bigint NOT NULL)"
)


def listing(number: int) -> dict[str, Any]:
    """Five properties, all indexed."""
    mixed = scrambled(number)
    return {
        "name": f"name-{mixed % 1_000_000:06d}",
        "category": f"category-{mixed % 100:03d}",
        "price": (mixed >> 20) % 1_000_000,
        "rating": (mixed >> 42) % 50 / 10,
        "stock": (mixed >> 50) % 1000,
    }


def _rows(numbers: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    return ((number, *listing(number).values()) for number in numbers)


async def _with_ours(side: Ours, count: int) -> dict[str, Any]:
    from aiodatastore import Entity, Key

    async def put(numbers: Sequence[int]) -> Any:
        return await side.ds.put([Entity(Key("Listing", number), listing(number)) for number in numbers])

    return await watch(range(1, count + 1), put, tasks=2)


async def _with_lines(side: Ours, count: int) -> dict[str, Any]:
    """What ``aiodatastore import`` does."""
    from aiodatastore import Entity, Key
    from aiodatastore.jsonl import dump_entity
    from aiodatastore.transfer import import_entities

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "listings.jsonl"
        with path.open("wb") as file:
            for number in range(1, count + 1):
                file.write(dump_entity(Entity(Key("Listing", number), listing(number))) + b"\n")
        watching = Watch(count)
        await import_entities(
            side.ds, path, in_flight=_UNDER_WAY, progress=lambda progress: watching.note(progress.entities)
        )
        return watching.summary(_UNDER_WAY)


async def _with_asyncpg(side: Any, count: int, *, copy: bool) -> dict[str, Any]:
    await side.pool.execute(_TABLE)
    for column in _COLUMNS:
        await side.pool.execute(f"CREATE INDEX ON listing ({column})")

    async def put(numbers: Sequence[int]) -> Any:
        async with side.pool.acquire() as db:
            if copy:
                await db.copy_records_to_table("listing", records=_rows(numbers))
            else:
                await db.executemany("INSERT INTO listing VALUES ($1, $2, $3, $4, $5, $6)", _rows(numbers))

    return await watch(range(1, count + 1), put, tasks=2)


async def _with_redis(side: Any, count: int) -> dict[str, Any]:
    prefix = side.prefix

    async def put(numbers: Sequence[int]) -> Any:
        for batch in each_batch(len(numbers), 500):
            async with side.client.pipeline(transaction=True) as pipe:
                for number in numbers[batch.start - 1 : batch.stop - 1]:
                    row = listing(number)
                    pipe.set(f"{prefix}listing:{number}", msgspec.json.encode(row))
                    for name in ("name", "category"):
                        pipe.zadd(f"{prefix}listing-{name}", {f"{row[name]}:{number}": 0})
                    for name in ("price", "rating", "stock"):
                        pipe.zadd(f"{prefix}listing-{name}", {str(number): row[name]})
                await pipe.execute()

    return await watch(range(1, count + 1), put, tasks=2)


async def _import(engine: str, way: str, place: Place, count: int) -> dict[str, Any]:
    from benchmarks.peers.postgres import AsyncPG
    from benchmarks.peers.redis import RedisPy

    side_class: type[Side] = Ours if way.startswith(Ours.name) else AsyncPG if engine == "postgres" else RedisPy
    async with side_class.open(place) as side:
        if isinstance(side, Ours):
            return await (_with_lines if way == LINES else _with_ours)(side, count)
        if isinstance(side, AsyncPG):
            return await _with_asyncpg(side, count, copy=way == "asyncpg, COPY")
        return await _with_redis(side, count)


WAYS = {
    "postgres": (Ours.name, LINES, "asyncpg, COPY", "asyncpg, executemany"),
    "redis": (Ours.name, LINES, "redis-py, MULTI of 500"),
    "file": (Ours.name, LINES),
}
"""Who imports, of each engine."""


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    where = Place(**{**asked["place"], "folder": Path(asked["place"]["folder"])})
    json.dump(anyio.run(_import, asked["engine"], asked["way"], where, asked["count"]), sys.stdout)
