"""The same work done by several processes together, side by side with other such crews.

All crews are there from the beginning, connected and warmed up; rounds alternate among them as in
:func:`aiodatastore.bench.measure.compare`, but last for a time instead of a number of operations. A crew's rate is what
all its processes did, by the longest time any of them took.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time
from typing import Any

import anyio
import anyio.to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from aiodatastore.bench.measure import Effort, Figures, Subject, warm_up
from benchmarks.sides import Job, Place, Side, subject

__all__ = ["compare_crews"]

_MAX_LINE = 64 << 20
_MAX_LATENCIES = 20_000
_START_TIMEOUT_S = 120.0


class _Crew:
    def __init__(self, processes: Sequence[anyio.abc.Process]) -> None:
        self._processes = processes
        self._answers = [BufferedByteReceiveStream(each.stdout) for each in processes if each.stdout is not None]

    async def tell(self, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        """Say something to each (one message: the same to all), and wait for what each answers."""
        for process, message in zip(self._processes, itertools.cycle(messages), strict=False):
            assert process.stdin is not None
            await process.stdin.send(json.dumps(message).encode() + b"\n")
        return [json.loads(await answers.receive_until(b"\n", _MAX_LINE)) for answers in self._answers]


@asynccontextmanager
async def _crew(processes: int) -> AsyncIterator[_Crew]:
    async with AsyncExitStack() as stack:
        started = []
        for _ in range(processes):
            command = [sys.executable, "-m", "benchmarks.processes"]
            process = await anyio.open_process(command, stderr=None, cwd=Path(__file__).parent.parent)
            stack.push_async_exit(process)
            # before it is waited for; after an error it may be in the middle of something
            stack.callback(_end, process)
            started.append(process)
        yield _Crew(started)


def _end(process: anyio.abc.Process) -> None:
    if process.returncode is None:
        process.terminate()


async def compare_crews(
    engine: str,
    sides: Sequence[type[Side]],
    place: Place,
    job: Job,
    effort: Effort,
    *,
    tasks: int,
    processes: int,
    server: Callable[[], float] | None = None,
) -> tuple[list[Figures], dict[str, int]]:
    """Figures of each side, and the increments that were acknowledged to it."""
    figures = [Figures(side.name, tasks, side.ours, processes) for side in sides]
    counted: dict[str, int] = {}
    async with AsyncExitStack() as stack:
        crews = [await stack.enter_async_context(_crew(processes)) for _ in sides]
        # New numbers of each process are apart from all others'.
        first = itertools.count(job.first, 20_000_000)
        for side, crew in zip(sides, crews, strict=True):
            start = {
                "engine": engine,
                "side": side.name,
                "place": {**asdict(place), "folder": str(place.folder)},
                "tasks": tasks,
                "seconds": effort.seconds,
            }
            jobs = [asdict(job) | {"first": next(first), "seed": job.seed + number} for number in range(processes)]
            with anyio.fail_after(_START_TIMEOUT_S):
                await crew.tell(*(start | {"job": each} for each in jobs))
        for number in range(effort.rounds):
            for place_of in range(len(sides)) if number % 2 == 0 else reversed(range(len(sides))):
                await _round(crews[place_of], figures[place_of], server, timed=False)
        for _, (crew, found) in itertools.product(range(max(1, effort.rounds // 2)), zip(crews, figures, strict=True)):
            await _round(crew, found, server, timed=True)
        for side, crew in zip(sides, crews, strict=True):
            counted[side.name] = sum(answer["counted"] for answer in await crew.tell({"do": "end"}))
    return figures, counted


async def _round(crew: _Crew, figures: Figures, server: Callable[[], float] | None, *, timed: bool) -> None:
    await crew.tell({"do": "prepare"})
    before = server() if server else 0.0
    answers = await crew.tell({"do": "go", "timed": timed})
    after = server() if server else 0.0
    done = sum(answer["operations"] for answer in answers)
    figures.operations += done
    for answer in answers:
        figures.misses += answer["misses"]
        figures.errors.update(answer["errors"])
        figures.latencies += answer["latencies"]
    if not timed and done:
        figures.rounds.append(done / max(answer["seconds"] for answer in answers))
        figures.processor.append(sum(answer["processor"] for answer in answers) / done * 1e6)
        if server:
            figures.server.append((after - before) / done * 1e6)


# ------------------------------------------------------------------------------------- in the process


class _Worker:
    def __init__(self, side: Side, work: Subject, tasks: int, seconds: float, expected: int) -> None:
        self._side = side
        self._work = work
        self._tasks = tasks
        self._seconds = seconds
        self._expected = expected
        self._arguments: Sequence[Any] = ()

    async def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["do"] == "prepare":
            self._arguments = self._work.draw(self._expected * 2)
            gc.collect()
            return {}
        if message["do"] == "go":
            return await self._go(timed=message["timed"])
        return {"counted": self._side.counted}

    def _endless(self) -> Iterator[Any]:
        yield from self._arguments
        while True:  # it is faster than in the warm-up: drawing is part of what is measured now
            yield from self._work.draw(self._tasks)

    async def _go(self, *, timed: bool) -> dict[str, Any]:
        figures = Figures(self._work.name, self._tasks)
        arguments = self._endless()
        since, processor = perf_counter(), process_time()
        end = since + self._seconds
        async with anyio.create_task_group() as group:
            for _ in range(self._tasks):
                group.start_soon(_operate, self._work.operate, arguments, end, figures, timed)
        seconds = perf_counter() - since
        step = -(-len(figures.latencies) // _MAX_LATENCIES) or 1
        return {
            "operations": figures.operations,
            "seconds": seconds,
            "processor": process_time() - processor,
            "latencies": [round(each, 1) for each in figures.latencies[::step]],
            "misses": figures.misses,
            "errors": dict(figures.errors),
        }


async def _operate(
    operate: Callable[[Any], Awaitable[Any]], arguments: Iterator[Any], end: float, figures: Figures, timed: bool
) -> None:
    done = misses = 0
    for argument in arguments:
        since = perf_counter_ns() if timed else 0
        try:
            if await operate(argument) is None:
                misses += 1
        except Exception as exc:
            figures.errors[type(exc).__name__] += 1
        if timed:
            figures.latencies.append((perf_counter_ns() - since) / 1000)
        done += 1
        if perf_counter() >= end:
            break
    figures.operations += done
    figures.misses += misses


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _main() -> None:
    """Read messages, a line of JSON each, until there are no more."""
    from benchmarks.engines import ENGINES

    start = json.loads(sys.stdin.readline())
    place = Place(**{**start["place"], "folder": Path(start["place"]["folder"])})
    side_class = next(each for each in ENGINES[start["engine"]].sides if each.name == start["side"])
    async with side_class.open(place) as side:
        work = subject(side, Job(**start["job"]), side.name)
        expected = await warm_up(work, start["tasks"], start["seconds"])
        worker = _Worker(side, work, start["tasks"], start["seconds"], expected)
        _say({})
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            message = json.loads(line)
            _say(await worker.answer(message))
            if message["do"] == "end":
                break


if __name__ == "__main__":
    anyio.run(_main)
