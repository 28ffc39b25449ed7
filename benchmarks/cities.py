"""Import of the world's cities, in a process of its own: ``python -m benchmarks.cities SIDE PATH [COUNT]``.

Prints one JSON object: the rate, and what memory was resident as the import went on.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TypeVar

import anyio

from aiodatastore.bench.measure import resident_bytes
from examples.cities.data import city as make_entity
from examples.cities.data import load

BATCH = 5000
INDEXES = Path(__file__).parent.parent / "examples" / "cities" / "index.yaml"
TABLES = (
    "CREATE TABLE city (id INTEGER PRIMARY KEY, country TEXT, region TEXT, name TEXT, latitude REAL, longitude REAL,"
    " population INTEGER, timezone TEXT)",
    "CREATE INDEX city_path ON city (country, region, id)",
    "CREATE INDEX city_by_name ON city (name)",
    "CREATE INDEX city_location ON city (latitude, longitude)",
    "CREATE INDEX city_population ON city (population)",
    "CREATE INDEX city_timezone ON city (timezone)",
    "CREATE TABLE city_name (city INTEGER, name TEXT, PRIMARY KEY (city, name)) WITHOUT ROWID",
    "CREATE INDEX city_name_name ON city_name (name)",
)

City = dict[str, Any]
T = TypeVar("T")


class Watch:
    """Time and memory of an import as it goes: begins when it is made."""

    def __init__(self, count: int) -> None:
        gc.collect()
        gc.freeze()  # the data that waits to be imported is not part of what is measured
        self._count = count
        self._step = max(BATCH, count // 40)
        self._done = 0
        self._samples: list[tuple[int, float, int]] = [(0, 0.0, resident_bytes())]
        self._processor = process_time()
        self._since = perf_counter()

    def note(self, done: int) -> None:
        """So many are done."""
        if done // self._step != self._done // self._step:
            self._samples.append((done, perf_counter() - self._since, resident_bytes()))
        self._done = done

    def summary(self, tasks: int) -> dict[str, Any]:
        """At the end: what is reported."""
        count, samples, seconds = self._count, self._samples, perf_counter() - self._since
        samples.append((count, seconds, resident_bytes()))
        early = next(sample for sample in samples if sample[0] >= count * 0.2)
        pace = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(samples, samples[4:], strict=False) if b[1] > a[1]]
        return {
            "cities": count,
            "batch": BATCH,
            "tasks": tasks,
            "seconds": seconds,
            "processor_us": (process_time() - self._processor) / count * 1e6,
            "rate": count / seconds,
            "slowest": min(pace, default=count / seconds),
            "rss_early": early[2],
            "rss_late": max(sample[2] for sample in samples[-3:]),
            "samples": [(number, round(at, 3), size) for number, at, size in samples],
        }


async def watch(cities: Sequence[T], put: Callable[[Sequence[T]], Awaitable[Any]], tasks: int) -> dict[str, Any]:
    """Put all of them (cities or other things) in batches."""
    done = 0
    starts = iter(range(0, len(cities), BATCH))
    watching = Watch(len(cities))

    async def work() -> None:
        nonlocal done
        for start in starts:
            batch = cities[start : start + BATCH]
            await put(batch)
            done += len(batch)
            watching.note(done)

    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(work)
    return watching.summary(tasks)


async def import_ours(url: str, cities: Sequence[City]) -> dict[str, Any]:
    """As the demo does it: two batches under way, every property indexed. Then its composite indexes are built."""
    from aiodatastore import Datastore

    async with Datastore(url) as ds:
        found = await watch(cities, lambda batch: ds.put([make_entity(each) for each in batch]), tasks=2)
        since = perf_counter()
        await ds.create_index(INDEXES.read_text(encoding="utf-8"))
        found["build_seconds"] = perf_counter() - since
    names = sum(len({each["name"], *each["alternatenames"]}) for each in cities) / len(cities)
    # kind, five single properties, and one for each of its names
    found["index_rows"] = f"{6 + names:.1f} an entity"
    return found


async def import_by_hand(path: Path, cities: Sequence[City]) -> dict[str, Any]:
    """The same with aiosqlite."""
    from benchmarks.peers.sqlite import connect

    async with connect(path) as db:
        for statement in TABLES:
            await db.execute(statement)

        async def put(batch: Sequence[City]) -> None:
            rows = [
                (
                    c["geonameid"],
                    c["countrycode"],
                    c["admin1code"],
                    c["name"],
                    c["latitude"],
                    c["longitude"],
                    c["population"],
                    c["timezone"],
                )
                for c in batch
            ]
            names = [(c["geonameid"], name) for c in batch for name in dict.fromkeys([c["name"], *c["alternatenames"]])]
            await db.executemany("INSERT INTO city VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            await db.executemany("INSERT INTO city_name VALUES (?, ?)", names)
            await db.commit()

        return await watch(cities, put, tasks=1)


async def run(side: str, path: str, count: int | None) -> dict[str, Any]:
    """One side's import."""
    cities = load(everything=count is None or count > 30_000).cities[:count]
    if side == "aiosqlite":
        return await import_by_hand(Path(path), cities)
    return await import_ours("memory://" if side == "memory" else f"sqlite:///{path}", cities)


if __name__ == "__main__":
    chosen, where, *rest = sys.argv[1:]
    json.dump(anyio.run(run, chosen, where, int(rest[0]) if rest else None), sys.stdout)
