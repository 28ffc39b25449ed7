"""A contended workload: people move between a few cities, and every move is one transaction."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from aiodatastore import Datastore, Entity, Key, Rollback

__all__ = ["Report", "move_people"]

REGISTER = Key("Register", "moves")
"""One entity that every move changes: nothing could be more contended."""


@dataclass
class Report:
    """What happened: moves that succeeded, that were refused, and how often the function ran for that.

    Nobody got lost if ``people_before == people_after``, and ``told``, the callbacks after commits, is ``moved``.
    """

    moved: int = 0
    refused: int = 0
    attempts: int = 0
    told: int = 0
    seconds: float = 0.0
    people_before: int = 0
    people_after: int = 0
    registered: int = 0

    @property
    def transactions(self) -> int:
        return self.moved + self.refused

    @property
    def nobody_lost(self) -> bool:
        return self.people_before == self.people_after

    @property
    def retried(self) -> int:
        return self.attempts - self.transactions


async def move_people(
    ds: Datastore, cities: Sequence[Key], *, tasks: int, moves: int, registered: bool, seed: int = 1
) -> Report:
    """``moves`` transactions by each of ``tasks`` tasks side by side.

    With ``registered``, every move that succeeds is also counted in one entity, :data:`REGISTER`.
    """
    report = Report()

    # More retries than the default 3: many tasks fight for few entities here.
    @ds.transactional(retries=1000)
    async def move(source: Key, target: Key, people: int) -> bool:
        report.attempts += 1
        origin, destination = await ds.get([source, target])
        assert origin is not None
        assert destination is not None
        if origin["population"] < people:
            raise Rollback  # move() returns None then
        origin["population"] -= people
        destination["population"] += people
        await ds.put([origin, destination])
        if registered:
            counter = await ds.get(REGISTER) or Entity(REGISTER, {"moves": 0})
            counter["moves"] += 1
            await ds.put(counter)
        ds.on_commit(tell)
        return True

    def tell() -> None:
        report.told += 1

    async def worker(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        for _ in range(moves):
            source, target = chance.sample(cities, 2)
            if await move(source, target, chance.randint(1, 2_000_000)):
                report.moved += 1
            else:
                report.refused += 1

    if registered:
        await ds.delete(REGISTER)
    report.people_before = await _people(ds)
    start = time.perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(worker, number)
    report.seconds = time.perf_counter() - start
    report.people_after = await _people(ds)
    register = await ds.get(REGISTER)
    report.registered = register["moves"] if register else 0
    return report


async def _people(ds: Datastore) -> int:
    return int(await ds.query("City").sum("population"))
