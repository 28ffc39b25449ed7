"""Kill -9 and look: a writer that acknowledges over a pipe, and what must be there after it was killed.

The writer runs tasks side by side; each runs numbered operations one after another, every one a transaction, and
prints a line once it is committed. What the store must hold after operation ``n`` of a task follows from its
names alone (:func:`expected`), so after a kill there are two possibilities for each task and no others: all its
acknowledged operations, or these and the one that was under way, whole.

::

    killer = Killer("sqlite:///tasks.db")
    report = killer.kill(after_s=0.1)        # starts a writer, kills it, returns what it acknowledged
    problems = await verify(url, [report])   # empty if all is well
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import UnavailableError
from aiodatastore.key import Key

__all__ = ["Killer", "Report", "Writer", "expected", "operation", "operations_done", "verify", "write_forever"]

HEAD, PART, AUTO, COUNTER = "CrashHead", "CrashPart", "CrashAuto", "CrashCounter"
KEPT = 5
"""Operations whose parts are kept; older ones are deleted again."""


def _head(writer: str, task: int) -> Key:
    return Key(HEAD, f"{writer}/{task}")


def _parts(head: Key, number: int) -> list[Entity]:
    """What one operation writes: several entities with several index rows each, all different."""
    rng = random.Random(f"{head}/{number}")
    return [
        Entity(
            Key(PART, f"{number}.{index}", parent=head),
            {
                "number": number,
                "tags": [f"t{number % 3}", f"i{index}"],
                "noise": rng.random(),
                "pad": "x" * rng.randint(0, 400),
            },
            unindexed=["pad"],
        )
        for index in range(rng.randint(1, 4))
    ]


def expected(writer: str, task: int, done: int) -> dict[Key, Entity]:
    """Every entity with a key of its own that a task's first ``done`` operations leave behind."""
    if not done:
        return {}
    head = _head(writer, task)
    kept = range(max(1, done - KEPT + 1), done + 1)
    entities = [part for number in kept for part in _parts(head, number)]
    entities.append(Entity(head, {"done": done, "last": list(kept)}))
    return {entity.key: entity for entity in entities}


async def operation(ds: Datastore, writer: str, task: int, number: int) -> None:
    """A task's ``number``-th transaction (from 1): right only after the one before it, and only once."""
    head_key = _head(writer, task)

    async def body() -> None:
        head = await ds.get(head_key)
        last = [] if head is None else head["last"]
        done = 0 if head is None else head["done"]
        counter = await ds.get(Key(COUNTER, writer)) or Entity(Key(COUNTER, writer), {"sum": 0})
        counter["sum"] += 1
        changed = Entity(head_key, {"done": done + 1, "last": [*last, number][-KEPT:]})
        await ds.put([counter, changed, *_parts(head_key, number)])
        await ds.put(Entity(Key(AUTO, parent=head_key), {"number": number}))
        if number > KEPT:
            await ds.delete([part.key for part in _parts(head_key, number - KEPT)])

    await ds.run_in_transaction(body, retries=1000)


async def operations_done(ds: Datastore, writer: str, task: int) -> int:
    """How many operations of a task took effect."""
    head = await ds.get(_head(writer, task))
    return 0 if head is None else int(head["done"])


async def write_forever(url: str, writer: str, tasks: int, *, acknowledge: Any = None) -> None:
    """Run operations in ``tasks`` side by side until killed, calling ``acknowledge(task, number)`` after each."""

    async def one(ds: Datastore, task: int) -> None:
        number = 0
        while True:
            number += 1
            await operation(ds, writer, task, number)
            acknowledge(task, number)

    async with Datastore(url) as ds:
        acknowledge(-1, 0)
        async with anyio.create_task_group() as group:
            for task in range(tasks):
                group.start_soon(one, ds, task)


# --------------------------------------------------------------------------------------- the killer


@dataclass(slots=True)
class Report:
    """What a killed writer had acknowledged: task → its last operation."""

    writer: str
    tasks: int
    acknowledged: dict[int, int] = field(default_factory=dict)
    opened: bool = False
    stderr: str = ""

    @property
    def total(self) -> int:
        """Operations acknowledged."""
        return sum(self.acknowledged.values())


class Writer:
    """A writer process."""

    def __init__(self, url: str, name: str, tasks: int) -> None:
        self.report = Report(name, tasks)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aiodatastore.testing.crash", url, name, str(tasks)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # communicate() reads past a buffer, and would lose what readline() had read ahead
        )

    def wait_open(self, timeout_s: float = 30.0) -> None:
        """Until it has opened the store.

        :raises RuntimeError: if it ends instead
        """
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.kill()
            raise RuntimeError(f"the writer ended by itself:\n{self.report.stderr}")
        self.report.opened = True

    def kill(self) -> Report:
        """Kill -9, at once, and collect what it had said before."""
        self._process.kill()
        out, err = self._process.communicate()
        for line in out.decode().split("\n")[:-1]:  # what follows the last newline was cut
            task, number = map(int, line.split())
            if task < 0:
                self.report.opened = True
            else:
                self.report.acknowledged[task] = number
        self.report.stderr = err.decode(errors="replace")
        return self.report


class Killer:
    """Starts writers on a store and kills them; ``reports`` are those of all killed so far."""

    def __init__(self, url: str, *, tasks: int = 3) -> None:
        self.url = url
        self.tasks = tasks
        self.reports: list[Report] = []

    def kill(self, *, after_s: float, writers: int = 1, wait_open: bool = True) -> list[Report]:
        """Start ``writers`` side by side and kill each after a while (counted from their open, or their start)."""
        running = [Writer(self.url, f"w{len(self.reports) + index}", self.tasks) for index in range(writers)]
        if wait_open:
            for writer in running:
                writer.wait_open()
        reports = []
        for writer in running:
            time.sleep(after_s)
            reports.append(writer.kill())
        self.reports += reports
        return reports


async def verify(url: str, reports: Iterable[Report]) -> list[str]:
    """Open the store and compare it with what its killed writers acknowledged: a line for each disagreement."""
    problems: list[str] = []
    async with Datastore(url) as ds:
        for report in reports:
            if report.stderr:
                problems.append(f"{report.writer} said on stderr: {report.stderr}")
            total = 0
            for task in range(report.tasks):
                done = await _verify_task(ds, report, task, problems)
                total += done
            counter = await ds.get(Key(COUNTER, report.writer))
            counted = 0 if counter is None else counter["sum"]
            if counted != total:
                problems.append(f"{report.writer}: {total} operations are there, its counter says {counted}")
        problems += [f"check: {line}" for line in await ds.check()]
    return problems


async def _verify_task(ds: Datastore, report: Report, task: int, problems: list[str]) -> int:
    """One task of one writer; returns how many operations took effect."""
    head_key = _head(report.writer, task)
    head = await ds.get(head_key)
    done: int = 0 if head is None else head["done"]
    acknowledged = report.acknowledged.get(task, 0)
    name = f"{report.writer}, task {task}"
    if not acknowledged <= done <= acknowledged + 1:
        problems.append(f"{name}: acknowledged {acknowledged} operations, {done} are there")
    wanted = expected(report.writer, task, done)
    found = {entity.key: entity async for entity in ds.query(ancestor=head_key)}
    autos = sorted(entity["number"] for key, entity in found.items() if key.kind == AUTO)
    if autos != list(range(1, done + 1)):
        problems.append(f"{name}: operations 1 to {done} each put one entity by automatic id; found {autos}")
    named = {key: entity for key, entity in found.items() if key.kind != AUTO}
    _compare(name, wanted, named, problems)
    parts = {key: entity for key, entity in wanted.items() if key.kind == PART}
    for remainder in range(3):
        query = ds.query(PART, ancestor=head_key).filter("tags", "=", f"t{remainder}").order("-number")
        keys = [entity.key for entity in await query.fetch()]
        right = [
            key
            for key, entity in sorted(parts.items(), key=lambda item: (-item[1]["number"], item[0]))
            if entity["number"] % 3 == remainder
        ]
        if keys != right:
            problems.append(f"{name}: the index of tags says {keys}, the entities say {right}")
    return done


def _compare(name: str, wanted: dict[Key, Entity], found: dict[Key, Entity], problems: list[str]) -> None:
    for key in wanted.keys() - found.keys():
        problems.append(f"{name}: {key} is missing")
    for key in found.keys() - wanted.keys():
        problems.append(f"{name}: {key} should not be there: {found[key]}")
    for key in found.keys() & wanted.keys():
        if found[key] != wanted[key]:
            problems.append(f"{name}: {key} is {found[key]}, expected {wanted[key]}")


# ------------------------------------------------------------------------------------------- writer


def main(arguments: Sequence[str] | None = None) -> None:
    """The writer process: ``python -m aiodatastore.testing.crash URL NAME TASKS``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("tasks", type=int)
    options = parser.parse_args(arguments)

    def acknowledge(task: int, number: int) -> None:
        os.write(1, f"{task} {number}\n".encode())

    async def run() -> None:
        while True:
            try:
                await write_forever(options.url, options.name, options.tasks, acknowledge=acknowledge)
            except UnavailableError:  # a store that another process is just creating
                await anyio.sleep(0.01)

    anyio.run(run)


if __name__ == "__main__":
    main()
