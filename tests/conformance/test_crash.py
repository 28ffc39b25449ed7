"""Kill -9 of writers: what they had acknowledged is there, whole, once, and indexes agree; on every durable engine."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.testing.crash import AUTO, COUNTER, HEAD, PART, Killer, Report, expected, verify
from tests.engines import Bound, Place, engines

SECONDS = 0.12
"""The longest that a writer lives after it has opened the store; on a server five times as long, as the first commit on
a new connection takes its time."""


KILLS = {"sqlite": 50, "file": 50}
"""Where the killed process is what keeps the data; a server goes on (its own end is in ``tests/faults``)."""


@engines(durable=True)
@pytest.mark.parametrize("seed", range(5))
def test_one_writer_killed_again_and_again(seed: int, engine: Bound, place: Place) -> None:
    """Each writer finds what the killed one left."""
    rng = random.Random(seed)
    killer = Killer(place.url)
    longest = SECONDS if engine.name in KILLS else 5 * SECONDS
    for _ in range(KILLS.get(engine.name, 15) // 5):
        reports = killer.kill(after_s=rng.random() * longest)
        assert anyio.run(verify, place.url, reports) == []
    for _ in range(10):
        if sum(report.total for report in killer.reports) > 5:
            break  # else the machine was busy, and let them write too little to lose anything
        reports = killer.kill(after_s=5 * longest)
        assert anyio.run(verify, place.url, reports) == []
    assert anyio.run(verify, place.url, killer.reports) == []
    assert sum(report.total for report in killer.reports) > 5, "the writers hardly wrote"


@engines(durable=True, processes=True)
def test_two_writers_killed_one_after_the_other(place: Place) -> None:
    """The second goes on while the first is dead: ten kills."""
    rng = random.Random(7)
    killer = Killer(place.url)
    for _ in range(5):
        reports = killer.kill(after_s=0.02 + rng.random() * 2 * SECONDS, writers=2)
        assert anyio.run(verify, place.url, reports) == []
    for _ in range(10):
        if sum(report.total for report in killer.reports) > 5:
            break
        reports = killer.kill(after_s=10 * SECONDS, writers=2)
        assert anyio.run(verify, place.url, reports) == []
    assert anyio.run(verify, place.url, killer.reports) == []
    assert sum(report.total for report in killer.reports) > 5, "the writers hardly wrote"


@engines(durable=True)
def test_killed_while_opening(engine: Bound) -> None:
    """At any point of making the store: the next one opens it, or makes it anew. Eight kills."""
    for number in range(6):
        with engine.place() as place:
            killer = Killer(place.url)
            for _ in range(1 if number % 2 else 2):
                killer.kill(after_s=0.12 + number * 0.04, wait_open=False)
            assert anyio.run(verify, place.url, killer.reports) == []
            assert [report for report in killer.kill(after_s=0.05) if report.opened]
            assert anyio.run(verify, place.url, killer.reports) == []


# --------------------------------------------------------------------------- the verifier can see


async def written(url: str, done: int) -> Report:
    """A store as one task's operations leave it, without a writer."""
    report = Report("w", 1, {0: done}, True)
    entities = [entity.copy() for entity in expected("w", 0, done).values()]
    head = Key(HEAD, "w/0")
    entities += [Entity(Key(AUTO, number, parent=head), {"number": number}) for number in range(1, done + 1)]
    entities.append(Entity(Key(COUNTER, "w"), {"sum": done}))
    async with Datastore(url) as ds:
        await ds.put(entities)
    return report


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("nothing", ""),
        ("lost", "3 operations, 2 are there"),
        ("torn", "is missing"),
        ("twice", "by automatic id; found"),
        ("left over", "should not be there"),
        ("changed", "expected"),
        ("counter", "its counter says"),
    ],
)
def test_damage_is_told(damage: str, told: str, tmp_path: Path) -> None:
    """Each way in which a store could be wrong."""
    url = f"sqlite:///{tmp_path}/damaged.db"

    async def main() -> list[str]:
        report = await written(url, 2)
        head = Key(HEAD, "w/0")
        async with Datastore(url) as ds:
            part = next(key for key in expected("w", 0, 2) if key.kind == PART)
            match damage:
                case "lost":
                    report.acknowledged[0] = 3
                case "torn":
                    await ds.delete(part)
                case "twice":
                    await ds.put(Entity(Key(AUTO, parent=head), {"number": 2}))
                case "left over":
                    await ds.put(Entity(Key(PART, "9.9", parent=head), {"number": 9}))
                case "changed":
                    await ds.put(Entity(part, {"number": 1, "tags": []}))
                case "counter":
                    await ds.put(Entity(Key(COUNTER, "w"), {"sum": 3}))
        return await verify(url, [report])

    problems = anyio.run(main)
    assert bool(problems) == bool(told)
    assert told in "\n".join(problems)
