"""A cache before PostgreSQL: what a hit, a miss and a commit cost beside the same without it."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.bench.data import Zipfian, person
from aiodatastore.bench.measure import Subject, compare
from aiodatastore.bench.report import Curve, Result
from aiodatastore.bench.workloads import People, draw_distinct, draw_fresh
from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.shims import Cached
from benchmarks.sides import Place
from benchmarks.sizes import SEED

if TYPE_CHECKING:
    from benchmarks.suite import Context

__all__ = [
    "ALONE",
    "COMMIT_PUSHED",
    "HIT",
    "CACHED",
    "COMMIT",
    "MISS",
    "PUSHED",
    "SHARED_HIT",
    "SHARES",
    "commits",
    "gets",
    "second_level",
    "share_name",
    "sweep",
]

ALONE = "PostgreSQL"
HIT, MISS, COMMIT = "hit", "miss", "commit"
COMMIT_PUSHED = "commit, others are told"
SHARED_HIT = "hit in the second level"
CACHED = "Cached"
PUSHED = "Cached, told by the store"
SHARES = (1, 3, 10, 30, 100)
"""Percent of the entities that the cache holds at most."""

_FEW = 16
"""Entities that a cache holds which is to miss: of all that are read in turn, what is asked for is never among them."""
_LONG_S = 3600.0
_WRITES = 0.1


@asynccontextmanager
async def _cached(place: Place, **settings: Any) -> AsyncIterator[tuple[People, Cached]]:
    """People in a place, behind a cache."""
    cached = Cached(adapter_from_url(place.url), **settings)
    async with Datastore(cached) as ds:
        yield People(ds), cached


@asynccontextmanager
async def _uncached(place: Place) -> AsyncIterator[People]:
    async with Datastore(place.url) as ds:
        yield People(ds)


def _peer(subject: Subject) -> Subject:
    subject.ours = False
    return subject


async def _warm(people: People, count: int) -> None:
    await people.ds.get([people.key(number) for number in range(1, count + 1)])


def _in_turn(people: People, name: str, count: int) -> Subject:
    """Gets of all keys in turn: nothing comes again soon."""
    keys = [people.key(number) for number in range(1, count + 1)]
    draw = draw_distinct(count, SEED)
    return Subject(name, people.ds.get, lambda wanted: [keys[number - 1] for number in draw(wanted)], ours=True)


async def gets(context: Context) -> None:
    """Hits and misses beside gets from PostgreSQL."""
    size, engine = context.size, context.engines["postgres"]
    count = size.items
    result = Result(
        "cached_get",
        "Cached over PostgreSQL: get by key",
        settings={"entities": count, **engine.settings},
        compared="cached is",
    )
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(engine.place("cached_get"))
        alone = await stack.enter_async_context(_uncached(place))
        await alone.load(count)
        enter = stack.enter_async_context
        hitting, _ = await enter(_cached(place, invalidation="time", staleness_s=_LONG_S))
        told, _ = await enter(_cached(place, invalidation="push"))
        missing, _ = await enter(_cached(place, invalidation="time", max_entities=_FEW))
        await _warm(hitting, count)
        await _warm(told, count)
        for tasks in (1, size.tasks):
            subjects = [
                hitting.get(f"{HIT}: {CACHED}", count, SEED),
                told.get(f"{HIT}: {PUSHED}", count, SEED),
                _peer(alone.get(f"{HIT}: {ALONE}", count, SEED)),
                _in_turn(missing, f"{MISS}: {CACHED}", count),
                _peer(_in_turn(alone, f"{MISS}: {ALONE}", count)),
            ]
            result.figures += await compare(subjects, size.effort, tasks=tasks, server=engine.meter())
    context.report.add(result)


async def commits(context: Context) -> None:
    """Puts through a cache beside those to PostgreSQL, with and without telling others."""
    size, engine = context.size, context.engines["postgres"]
    result = Result(
        "cached_put",
        "Cached over PostgreSQL: put of a new entity, 3 indexed properties",
        settings={"index_rows": 4, **engine.settings},
        compared="cached is",
    )
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        # A place for each: who asks to be told makes all writers of the place tell.
        places = [await enter(engine.place(f"cached_put_{name}")) for name in ("alone", "time", "push")]
        alone = await enter(_uncached(places[0]))
        timed, _ = await enter(_cached(places[1], invalidation="time"))
        told, _ = await enter(_cached(places[2], invalidation="push"))
        listener, _ = await enter(_cached(places[2], invalidation="push"))
        await _warm(listener, _FEW)
        for tasks in (1, size.tasks):
            start = 1 + tasks * 10_000_000
            subjects = [
                timed.put(f"{COMMIT}: {CACHED}", draw_fresh(start, person)),
                _peer(alone.put(f"{COMMIT}: {ALONE}", draw_fresh(start, person))),
                told.put(f"{COMMIT_PUSHED}: {CACHED}", draw_fresh(start, person)),
                _peer(alone.put(f"{COMMIT_PUSHED}: {ALONE}", draw_fresh(start + 5_000_000, person))),
            ]
            result.figures += await compare(subjects, size.effort, tasks=tasks, server=engine.meter())
    result.notes.append("Told: the commit sends NOTIFY as well, and two caches of this process LISTEN.")
    context.report.add(result)


async def second_level(context: Context) -> None:
    """A cache in Redis behind that in memory: what is found only there, what is found nowhere, and commits."""
    size, engine, redis = context.size, context.engines["postgres"], context.engines["redis"]
    count = size.items
    result = Result(
        "cached_shared",
        "Cached over PostgreSQL with a second level in Redis",
        settings={"entities": count, **engine.settings, **redis.settings},
        compared="cached is",
    )
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        place = await enter(engine.place("cached_shared"))
        second = await enter(redis.place("cached_shared"))
        written = await enter(engine.place("cached_written"))
        alone = await enter(_uncached(place))
        beside = await enter(_uncached(written))
        await alone.load(count)
        cache = adapter_from_url(second.url)
        settings: dict[str, Any] = {"invalidation": "time", "max_entities": _FEW, "staleness_s": _LONG_S}
        both, adapter = await enter(_cached(place, cache=cache, **settings))
        cache = adapter_from_url((await enter(redis.place("cached_written"))).url)
        writing, _ = await enter(_cached(written, cache=cache, invalidation="time"))
        redis_alone = await enter(_uncached(await enter(redis.place("cached_beside"))))
        await redis_alone.load(count)
        await _warm(both, count)
        before = adapter.counts
        for tasks in (1, size.tasks):
            start = 1 + tasks * 10_000_000
            subjects = [
                _in_turn(both, f"{SHARED_HIT}: {CACHED}", count),
                _peer(_in_turn(alone, f"{SHARED_HIT}: {ALONE}", count)),
                _peer(_in_turn(redis_alone, f"{SHARED_HIT}: Redis", count)),
                writing.put(f"{COMMIT}: {CACHED}", draw_fresh(start, person)),
                _peer(beside.put(f"{COMMIT}: {ALONE}", draw_fresh(start + 5_000_000, person))),
            ]
            result.figures += await compare(subjects, size.effort, tasks=tasks)
        found = {name: number - before[name] for name, number in adapter.counts.items()}
        result.notes.append("What a second level spares is the database's work; on one machine it is no nearer.")
        result.facts["of the reads, found in Redis"] = found["shared_hits"] / max(1, found["misses"])
    context.report.add(result)


class _Mixed:
    """Gets and puts of keys that are drawn by Zipf's law."""

    def __init__(self, people: People, count: int) -> None:
        self.ds = people.ds
        self.keys = [people.key(number) for number in range(1, count + 1)]

    def subject(self, name: str) -> Subject:
        """The same operations in the same order for each."""
        chance, zipf = random.Random(SEED), Zipfian(len(self.keys), SEED + 1)
        numbers = itertools.count(1)

        def draw(count: int) -> Sequence[tuple[Key, int]]:
            """Keys, each with the number of what is to be written there; 0: it is read."""
            return [(self.keys[zipf.draw()], next(numbers) if chance.random() < _WRITES else 0) for _ in range(count)]

        return Subject(name, self._operate, draw, ours=True)

    def _operate(self, asked: tuple[Key, int]) -> Awaitable[Any]:
        key, number = asked
        return self.ds.put(Entity(key, person(number))) if number else self.ds.get(key)


async def sweep(context: Context) -> None:
    """Caches of several sizes under gets and puts by Zipf's law, beside none."""
    size, engine = context.size, context.engines["postgres"]
    count = size.items
    result = Result(
        "cached_zipf",
        "Cached over PostgreSQL: 90% gets, 10% puts, keys by Zipf's law",
        settings={"entities": count, "zipfian": 0.99, "writes": _WRITES, **engine.settings},
        compared="cached is",
    )
    result.curve = Curve("hit ratio of the gets", "times as fast as without a cache")
    for tasks in (1, size.tasks):
        async with AsyncExitStack() as stack:
            # A place for each: caches of one process over one store tell each other of what they write.
            subjects, caches = [], []
            for share in (*SHARES, 0):
                place = await stack.enter_async_context(engine.place(f"cached_zipf_{share}"))
                if share:
                    settings = {"max_entities": max(1, count * share // 100), "staleness_s": _LONG_S}
                    people, cached = await stack.enter_async_context(_cached(place, invalidation="time", **settings))
                    caches.append(cached)
                else:
                    people = await stack.enter_async_context(_uncached(place))
                await people.load(count)
                subject = _Mixed(people, count).subject(share_name(share))
                subject.ours = bool(share)
                subjects.append(subject)
            for subject in subjects:  # until a cache holds what it will hold
                for asked in subject.draw(count):
                    await subject.operate(asked)
            before = [cached.counts for cached in caches]
            result.figures += await compare(subjects, size.mixed, tasks=tasks, server=engine.meter())
            for share, cached, counts in zip(SHARES, caches, before, strict=True):
                found = {name: number - counts[name] for name, number in cached.counts.items()}
                hits = found["hits"] / max(1, found["hits"] + found["misses"])
                told = f"{tasks} task{'s' if tasks > 1 else ''}"
                result.facts[f"{share_name(share)}, {told}: hit ratio"] = hits
                result.curve.add(told, hits, result.ratio(share_name(share), share_name(0), tasks))
    result.notes.append("Each takes the keys in the same order. What is put is kept in the cache, too.")
    context.report.add(result)


def share_name(share: int) -> str:
    """What caches of this size are called; 0: there is none."""
    return f"{CACHED}, {share}% of the entities" if share else ALONE
