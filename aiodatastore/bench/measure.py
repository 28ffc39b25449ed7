"""How things are timed here.

Subjects that do the same work are measured *side by side*: after a warm-up, in rounds that alternate (A B, B A, A B
...), so that whatever else the machine does meets all of them; a subject's rate is the median of its rounds. No clock
is read inside these rounds. Percentiles come from extra rounds in which every operation is timed. The processor time of
an operation (of all threads) is told as well: other programs on the machine disturb it less. Where a server works for
the subjects and can be seen, so is what an operation costs there.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter, perf_counter_ns, process_time
from typing import Any

import anyio

__all__ = ["Effort", "Figures", "Subject", "compare", "measure_round", "percentile", "resident_bytes", "warm_up"]

_MAX_OPERATIONS = 500_000


@dataclass(slots=True)
class Subject:
    """Something to measure: ``operate(argument)`` is one operation, and None as its result is a miss.

    ``draw(count)`` gives the arguments of a round before its clock starts.
    """

    name: str
    operate: Callable[[Any], Awaitable[Any]]
    draw: Callable[[int], Sequence[Any]]
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: ``rounds`` of about ``seconds`` each (and half as many timed ones)."""

    rounds: int
    seconds: float


@dataclass(slots=True)
class Figures:
    """What was measured of one subject.

    ``rounds``: operations a second; ``processor``, ``server``: microseconds of processor time an operation, here and
    in the server, in each round; ``latencies``: microseconds as seen by the caller. ``tasks``: of each process.
    """

    name: str
    tasks: int
    ours: bool = False
    processes: int = 1
    rounds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    operations: int = 0
    misses: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Operations a second: the median of the rounds."""
        return statistics.median(self.rounds) if self.rounds else 0.0

    @property
    def processor_us(self) -> float:
        """Microseconds of processor time an operation: the median of the rounds."""
        return statistics.median(self.processor) if self.processor else 0.0

    @property
    def server_us(self) -> float | None:
        """The same of the server; None if it can't be seen."""
        return statistics.median(self.server) if self.server else None

    @property
    def crowd(self) -> str:
        """Tasks, and of how many processes if more than one."""
        return str(self.tasks) if self.processes == 1 else f"{self.processes} × {self.tasks}"

    def percentiles(self) -> dict[str, float]:
        """Median, p90, p99 and the greatest latency; empty if none was timed."""
        if not self.latencies:
            return {}
        ordered = sorted(self.latencies)
        return {
            "median": percentile(ordered, 50),
            "p90": percentile(ordered, 90),
            "p99": percentile(ordered, 99),
            "max": ordered[-1],
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the raw rounds, and percentiles instead of every latency."""
        return {
            "name": self.name,
            "ours": self.ours,
            "tasks": self.tasks,
            "processes": self.processes,
            "rate_per_s": round(self.rate, 2),
            "rounds_per_s": [round(rate, 2) for rate in self.rounds],
            "processor_us": round(self.processor_us, 2),
            "server_us": None if self.server_us is None else round(self.server_us, 2),
            "latency_us": {name: round(value, 2) for name, value in self.percentiles().items()},
            "timed_operations": len(self.latencies),
            "operations": self.operations,
            "misses": self.misses,
            "errors": dict(self.errors),
        }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of ordered values.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.0
    """
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def resident_bytes() -> int:
    """Memory of this process that is in RAM; where only the peak is known, that."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


async def _work(operate: Callable[[Any], Awaitable[Any]], arguments: Iterable[Any], figures: Figures) -> None:
    misses = 0
    for argument in arguments:
        try:
            if await operate(argument) is None:
                misses += 1
        except Exception as exc:
            figures.errors[type(exc).__name__] += 1
    figures.misses += misses


async def _work_timed(operate: Callable[[Any], Awaitable[Any]], arguments: Iterable[Any], figures: Figures) -> None:
    note = figures.latencies.append
    for argument in arguments:
        since = perf_counter_ns()
        try:
            if await operate(argument) is None:
                figures.misses += 1
        except Exception as exc:
            figures.errors[type(exc).__name__] += 1
        note((perf_counter_ns() - since) / 1000)


async def measure_round(
    subject: Subject, arguments: Sequence[Any], tasks: int, figures: Figures, *, timed: bool
) -> float:
    """Run all operations, shared out among the tasks; seconds it took."""
    work = _work_timed if timed else _work
    figures.operations += len(arguments)
    if tasks == 1:
        since = perf_counter()
        await work(subject.operate, arguments, figures)
        return perf_counter() - since
    shared: Iterator[Any] = iter(arguments)
    since = perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(work, subject.operate, shared, figures)
    return perf_counter() - since


async def warm_up(subject: Subject, tasks: int, seconds: float, *, tries: int = 1) -> int:
    """Operate for a while; how many operations fit into ``seconds``, at the best of ``tries``."""
    scratch = Figures(subject.name, tasks)
    count = tasks
    while True:
        took = min(
            [await measure_round(subject, subject.draw(count), tasks, scratch, timed=False) for _ in range(tries)]
        )
        if took >= seconds / 4 or count >= _MAX_OPERATIONS:
            break
        count = min(_MAX_OPERATIONS, max(count * 2, int(count * seconds / 3 / max(took, 1e-6))))
    return max(tasks, min(_MAX_OPERATIONS, int(count * seconds / took)))


async def compare(
    subjects: Sequence[Subject],
    effort: Effort,
    *,
    tasks: int = 1,
    server: Callable[[], float] | None = None,
    alike: bool = False,
) -> list[Figures]:
    """Measure subjects side by side, each with ``tasks`` tasks that share its operations.

    ``server`` tells the seconds of processor time that the server behind them has used so far. ``alike``: they differ
    by little; each round then has as many operations of all of them, however short it is, and no garbage is collected
    between rounds, which would take longer than they do.
    """
    counts = [
        await warm_up(subject, tasks, effort.seconds, tries=min(7, effort.rounds) if alike else 1)
        for subject in subjects
    ]
    collect: Callable[[], object] = gc.collect
    if alike:
        counts = [min(counts)] * len(counts)
        gc.collect()
        collect = tuple
    figures = [Figures(subject.name, tasks, subject.ours) for subject in subjects]
    places = list(range(len(subjects)))
    for number in range(effort.rounds):
        for place in places if number % 2 == 0 else reversed(places):
            arguments = subjects[place].draw(counts[place])
            collect()
            there, since = server() if server else 0.0, process_time()
            took = await measure_round(subjects[place], arguments, tasks, figures[place], timed=False)
            figures[place].processor.append((process_time() - since) / len(arguments) * 1e6)
            if server:
                figures[place].server.append((server() - there) / len(arguments) * 1e6)
            figures[place].rounds.append(len(arguments) / took)
    for _, place in itertools.product(range(max(1, effort.rounds // 2)), places):
        arguments = subjects[place].draw(max(tasks, counts[place] // 2))
        collect()
        await measure_round(subjects[place], arguments, tasks, figures[place], timed=True)
    return figures
