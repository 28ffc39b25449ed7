"""Was it too old? Workloads of reads and commits on caches, and a checker of what they promise.

A cache promises: a read is no older than the newest commit that its own process had made before the read began, and no
older than any commit that had ended a bound before. :func:`check_staleness` takes that literally. Every read is noted
with the version it found and when it began, every commit with the version it made and when it had ended; by the clock
that all processes of a machine share. A version that was overwritten may be read until the next one's commit had ended
(by its own process), or that and the bound (by others); and who has seen a version sees no older one later.

Transactions on the same stores must be serializable whatever the cache does, which :mod:`aiodatastore.testing.history`
checks. ``python -m aiodatastore.testing.staleness URL`` runs both, with several processes::

    python -m aiodatastore.testing.staleness sqlite:///tasks.db --processes 3 --staleness-s 0.2

What caches that are wrong in known ways make of it is part of this package's own tests.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from aiodatastore.adapters.base import Adapter
from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import TransactionFailedError, UnavailableError
from aiodatastore.key import Key
from aiodatastore.testing.history import History, Recorded, mixed, run_workload, verify_workload

__all__ = ["Finding", "Made", "Seen", "Timeline", "check_staleness", "main", "run_processes", "run_reads"]

KIND = "Staleness"


@dataclass(frozen=True, slots=True)
class Seen:
    """A read that found this version of an item (0: nothing). Times are of ``time.monotonic``."""

    process: str
    item: str
    version: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Made:
    """A commit that gave an item this version."""

    process: str
    item: str
    version: int
    start: float
    end: float


@dataclass(slots=True)
class Timeline:
    """What happened, in any order."""

    reads: list[Seen] = field(default_factory=list)
    writes: list[Made] = field(default_factory=list)

    def add(self, event: Seen | Made) -> None:
        """Record one."""
        if isinstance(event, Seen):
            self.reads.append(event)
        else:
            self.writes.append(event)

    def worst_s(self) -> float:
        """The oldest that anything was when it was read: seconds since the end of the commit that overwrote it."""
        deadlines = _Deadlines(self.writes)
        return max((read.start - deadlines.ended(read) for read in self.reads), default=-math.inf)


@dataclass(frozen=True, slots=True)
class Finding:
    """A read that broke the promise, and how."""

    kind: str
    text: str
    read: Seen

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def to_line(event: Seen | Made) -> str:
    """An event as JSON."""
    return json.dumps(
        [type(event).__name__, event.process, event.item, event.version, event.start, event.end], separators=(",", ":")
    )


def from_line(line: str) -> Seen | Made:
    """The inverse of :func:`to_line`."""
    kind, *fields = json.loads(line)
    return (Seen if kind == "Seen" else Made)(*fields)


class _Deadlines:
    """When a version had been overwritten: by a process itself, by anybody."""

    def __init__(self, writes: Iterable[Made]) -> None:
        self._writes: dict[str, list[Made]] = defaultdict(list)
        for write in writes:
            self._writes[write.item].append(write)
        for each in self._writes.values():
            each.sort(key=lambda write: write.version)

    def newer(self, read: Seen) -> list[Made]:
        """Commits that overwrote what was read."""
        return [write for write in self._writes.get(read.item, ()) if write.version > read.version]

    def ended(self, read: Seen) -> float:
        """When the first of them had ended; never: infinity."""
        return min((write.end for write in self.newer(read)), default=math.inf)


def check_staleness(timeline: Timeline, bound_s: float) -> list[Finding]:
    """What was read though it was too old, or had never been written, or went back in time.

    ``bound_s``: seconds after the end of another process's commit in which what it overwrote may still be read.
    """
    deadlines = _Deadlines(timeline.writes)
    known = {(write.item, write.version) for write in timeline.writes}
    findings: list[Finding] = []
    for read in timeline.reads:
        if read.version and (read.item, read.version) not in known:
            findings.append(Finding("unknown", f"{read.item} had version {read.version}, which nobody wrote", read))
        for write in deadlines.newer(read):
            own = write.process == read.process
            age = read.start - write.end
            if age > (0.0 if own else bound_s):
                whose = "its own process" if own else f"{write.process}, and the bound is {bound_s:g} s"
                findings.append(
                    Finding(
                        "own commit not seen" if own else "older than the bound",
                        f"{read.process} read version {read.version} of {read.item} {age:.6f} s after the end of the "
                        f"commit of version {write.version} by {whose}",
                        read,
                    )
                )
                break
    return findings + _backward(timeline.reads)


def _backward(reads: Iterable[Seen]) -> list[Finding]:
    """Reads of a process that found less than one that had ended before they began."""
    findings: list[Finding] = []
    grouped: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    for read in reads:
        grouped[read.process, read.item].append(read)
    for each in grouped.values():
        by_end = sorted(each, key=lambda read: read.end)
        newest: Seen | None = None
        place = 0
        for read in sorted(each, key=lambda read: read.start):
            while place < len(by_end) and by_end[place].end < read.start:
                if newest is None or by_end[place].version > newest.version:
                    newest = by_end[place]
                place += 1
            if newest is not None and read.version < newest.version:
                findings.append(
                    Finding(
                        "went back",
                        f"{read.process} read version {read.version} of {read.item} after it had read {newest.version}",
                        read,
                    )
                )
    return findings


# ------------------------------------------------------------------------------------------- workload


async def run_reads(
    ds: Datastore,
    *,
    process: str = "p0",
    tasks: int = 4,
    seconds: float = 1.0,
    items: int = 5,
    seed: int = 0,
    writes: float = 0.1,
    pause_s: float = 0.002,
    record: Callable[[Seen | Made], object],
) -> None:
    """Get and put for some seconds, in tasks side by side, and record each.

    ``writes`` is the share of puts, half of them in transactions that read first; ``pause_s`` the longest pause of a
    task between two of its steps. Puts that raise ``UnavailableError`` are not recorded: what they wrote, if they did,
    is a version that nobody is known to have written.
    """
    over = time.monotonic() + seconds

    async def read(numbers: Sequence[int]) -> None:
        start = time.monotonic()
        entities = await ds.get([Key(KIND, number) for number in numbers])
        end = time.monotonic()
        for number, entity in zip(numbers, entities, strict=True):
            record(Seen(process, f"s{number}", 0 if entity is None else entity.version, start, end))

    async def write(number: int, rng: random.Random) -> None:
        entity = Entity(Key(KIND, number), {"by": process, "at": rng.random()})
        start = time.monotonic()
        try:
            if rng.random() < 0.5:
                await ds.put(entity)
            else:
                async with ds.transaction():
                    await ds.get(entity.key)
                    await ds.put(entity)
        except (TransactionFailedError, UnavailableError):
            return  # nothing was promised of it
        record(Made(process, f"s{number}", entity.version, start, time.monotonic()))

    async def task(number: int) -> None:
        rng = random.Random(f"{seed}/{process}/{number}")
        while time.monotonic() < over:
            if rng.random() < writes:
                await write(rng.randint(1, items), rng)
            else:
                await read(rng.sample(range(1, items + 1), rng.randint(1, min(2, items))))
            await anyio.sleep(rng.random() * pause_s)

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(task, number)


# ------------------------------------------------------------------------------------------ processes


def run_processes(
    url: str,
    *,
    processes: int = 3,
    seconds: float = 2.0,
    staleness_s: float = 0.25,
    invalidation: str = "auto",
    cache: str | None = None,
    transactions: int = 15,
    max_entities: int = 1000,
    tiers: Sequence[str] = (),
) -> tuple[Timeline, History]:
    """Run caches over one store in several processes; what they saw, and what their transactions did.

    With ``tiers`` there is no cache, but ``Tiered`` with these before the store.

    :raises RuntimeError: if one of them fails
    """
    settings = {
        "url": url,
        "seconds": seconds,
        "staleness_s": staleness_s,
        "invalidation": invalidation,
        "cache": cache,
        "transactions": transactions,
        "max_entities": max_entities,
        "tiers": list(tiers),
    }
    command = [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__, "--worker"]
    running: list[subprocess.Popen[str]] = []
    timeline, history = Timeline(), History()
    try:
        for number in range(processes):
            running.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            # The URL may have a password: not on a command line that everybody can read.
            stdin = running[-1].stdin
            assert stdin is not None
            stdin.write(json.dumps({**settings, "process": f"p{number}"}) + "\n")
            stdin.flush()
        for each in running:
            out, err = each.communicate(timeout=60 + 10 * seconds)
            if each.returncode != 0:
                raise RuntimeError(f"a process ended with {each.returncode}: {err}")
            for line in out.splitlines():
                if line.startswith("e"):
                    timeline.add(from_line(line[1:]))
                else:
                    history.add(Recorded.from_json(line[1:]))
    finally:
        for each in running:
            if each.poll() is None:
                each.kill()
                each.communicate()
    return timeline, history


def _made(settings: dict[str, Any]) -> Adapter:
    from aiodatastore.adapters.registry import adapter_from_url
    from aiodatastore.shims.cached import Cached
    from aiodatastore.shims.tiered import Tiered

    store = adapter_from_url(settings["url"])
    if settings["tiers"]:
        return Tiered([*map(adapter_from_url, settings["tiers"]), store])
    cache = settings["cache"]
    return Cached(
        store,
        None if cache is None else adapter_from_url(cache),
        staleness_s=settings["staleness_s"],
        invalidation=settings["invalidation"],
        max_entities=settings["max_entities"],
    )


async def _work(settings: dict[str, Any]) -> None:
    store = _made(settings)
    process, seconds = settings["process"], settings["seconds"]
    lines: list[str] = []  # told at the end: who waits for a reader of its output holds up its event loop
    async with Datastore(store) as ds, anyio.create_task_group() as group:

        async def transactions() -> None:
            await run_workload(
                ds,
                mixed,
                tasks=2,
                transactions=settings["transactions"],
                client=process,
                record=lambda recorded: lines.append("t" + recorded.to_json()),
            )

        group.start_soon(transactions)
        await run_reads(
            ds,
            process=process,
            tasks=3,
            seconds=seconds,
            record=lambda event: lines.append("e" + to_line(event)),
        )
    print(*lines, sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 if the promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m aiodatastore.testing.staleness", description=_first_line())
    parser.add_argument("url", nargs="?", help="the store that is cached")
    parser.add_argument("--cache", help="a shared cache")
    parser.add_argument("--tier", action="append", default=[], help="a store before it: Tiered, whose bound is 0")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--staleness-s", type=float, default=0.25)
    parser.add_argument("--invalidation", default="auto", choices=("auto", "push", "time"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        anyio.run(_work, json.loads(sys.stdin.readline()))
        return 0
    if options.url is None:
        parser.error("which store?")
    timeline, history = run_processes(
        options.url,
        processes=options.processes,
        seconds=options.seconds,
        staleness_s=options.staleness_s,
        invalidation=options.invalidation,
        cache=options.cache,
        tiers=options.tier,
    )
    bound_s = 0.0 if options.tier else options.staleness_s
    wrong = [
        *map(str, check_staleness(timeline, bound_s)),
        *map(str, verify_workload(history, real_time=False)),
    ]
    print(
        f"{len(timeline.reads)} reads, {len(timeline.writes)} writes, {history.count('committed')} transactions; the "
        f"oldest read was {max(0.0, timeline.worst_s()):.4f} s behind, the bound is {bound_s:g} s"
    )
    for line in wrong:
        print(line)
    print("wrong" if wrong else "as promised")
    return 1 if wrong else 0


def _first_line() -> str:
    return (__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
