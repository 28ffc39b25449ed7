"""What one shim costs a memory get and put, and what stacks of them do.

Each is measured beside a plain memory store with the same data, in many rounds that alternate and are so short that
most are not interrupted: the difference is less than what a machine does between two long ones. A second plain store
stands among the shims; what it differs by is what can't be told apart here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from aiodatastore import shims
from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.bench.data import person
from aiodatastore.bench.measure import Effort, Figures, Subject, compare
from aiodatastore.bench.report import Curve, Result
from aiodatastore.bench.workloads import People, draw_fresh
from aiodatastore.datastore import Datastore
from benchmarks.sizes import SEED

if TYPE_CHECKING:
    from benchmarks.suite import Context

__all__ = ["DEEPEST", "PASSING", "PLAIN", "PLAIN_IS", "SHIMS", "STACKS", "THROUGH", "one_shim", "stacks"]

PLAIN, THROUGH = "plain", "through it"
PLAIN_IS = "plain is"
DEEPEST = 5

Wrap = Callable[[Adapter], Adapter]


@dataclass(frozen=True, slots=True)
class Case:
    """One way of wrapping. ``passing``: it hands gets through as they are, and is to cost little. ``work`` is that of
    gets: ``get`` or, with keys made on the way, ``get_by_number``."""

    name: str
    wrap: Wrap
    passing: bool = True
    writes: bool = True
    work: str = "get"


class _Opened(shims.Shim):
    """A store that someone else has opened and will close."""

    async def open(self) -> None:
        return

    async def aclose(self) -> None:
        return


def _late(name: str) -> Wrap:
    """The shim of this name, which is imported when it is needed."""
    return lambda child: cast("Adapter", getattr(shims, name)(child))


def _logged(child: Adapter) -> Adapter:
    return shims.Logged(child, logger="aiodatastore.bench", level=logging.DEBUG)  # which is not enabled


def _namespaced(child: Adapter) -> Adapter:
    return shims.Namespaced(child, "tenant")


def _tiered(child: Adapter) -> Adapter:
    return cast("Adapter", shims.Tiered([adapter_from_url("memory://"), child]))


def _encrypted(child: Adapter) -> Adapter:
    from cryptography.fernet import Fernet

    return cast("Adapter", shims.Encrypted(child, Fernet.generate_key()))


SHIMS = (
    Case("nothing (another plain store)", lambda child: child),
    Case("Shim", shims.Shim),
    Case("ReadOnly", shims.ReadOnly, writes=False),
    Case("Logged, level off", _logged),
    Case("Measured", shims.Measured),
    Case("Retrying", shims.Retrying),
    Case("Timeout", lambda child: shims.Timeout(child, 60.0)),
    Case("Limited, size of entities", lambda child: shims.Limited(child, max_entity_bytes=1_000_000)),
    Case("Limited, size of batches", lambda child: shims.Limited(child, max_batch=100_000)),
    Case("Compressed, small entities", _late("Compressed")),
    Case("Encrypted, indexed properties", _encrypted),
    Case("Namespaced", _namespaced),
    Case("Namespaced, key made on the way", _namespaced, writes=False, work="get_by_number"),
    Case("LowercaseKeys", _late("LowercaseKeys"), passing=False),
    Case("NestedPath", _late("NestedPath"), passing=False),
    Case("Symlinks", _late("Symlinks"), passing=False),
    Case("Directories", _late("Directories"), passing=False),
    Case("Cached", lambda child: shims.Cached(child, staleness_s=3600.0), passing=False),
    Case("Tiered, found in the first", _tiered, passing=False),
    Case("Mounted", lambda child: shims.Mounted({"*": child}), passing=False),
    Case("Sharded, one shard", lambda child: shims.Sharded([child]), passing=False),
)
"""All of them; those that pass gets through, first."""

PASSING = tuple(case.name for case in SHIMS if case.passing)

STACKS: dict[str, Sequence[Wrap]] = {
    "Shim": [shims.Shim] * DEEPEST,
    "Logged": [_logged] * DEEPEST,
    "Retrying": [shims.Retrying] * DEEPEST,
    "mixed": [
        _namespaced,
        lambda child: shims.Limited(child, max_batch=100_000),
        shims.Retrying,
        shims.Measured,
        _logged,
    ],
}
"""From the store outwards."""


@asynccontextmanager
async def _people(wrap: Wrap, count: int) -> AsyncIterator[People]:
    """As many people in a memory store, as they are seen through shims; they are put through them, or below."""
    store = adapter_from_url("memory://")
    async with Datastore(wrap(store)) as ds:
        people = People(ds)
        if isinstance(ds.adapter, shims.ReadOnly):
            async with Datastore(_Opened(store)) as loader:
                await People(loader).load(count)
        else:
            await people.load(count)
        await ds.get([people.key(number) for number in range(1, count + 1)])  # caches and tiers keep them from now on
        yield people


async def _pair(case: str, wrap: Wrap, count: int, effort: Effort, works: Sequence[tuple[str, int]]) -> list[Figures]:
    """Figures of a plain store and a wrapped one: for each work and number of tasks two of them."""
    figures: list[Figures] = []
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(_people(lambda child: child, count))
        wrapped = await stack.enter_async_context(_people(wrap, count))
        for work, tasks in works:
            both = ((PLAIN, plain), (THROUGH, wrapped))
            subjects = [_subject(people, work, f"{case}: {name}", count) for name, people in both]
            subjects[1].ours = False
            # Tasks have to be started in each round: that must not be what it consists of.
            own = effort if tasks == 1 else Effort(max(1, effort.rounds // 4), effort.seconds * 8)
            figures += await compare(subjects, own, tasks=tasks, alike=True)
    return figures


def _subject(people: People, work: str, name: str, count: int) -> Subject:
    if work == "get":
        return people.get(name, count, SEED)
    if work == "get_by_number":
        return people.get_by_number(name, count, SEED)
    return people.put(name, draw_fresh(count + 1, person))


async def one_shim(context: Context) -> None:
    """Each shim over a memory store: a get, and puts."""
    size = context.size
    settings = {"entities": size.items}
    get = Result("shims_get", "memory: get by key through one shim", settings=settings, compared=PLAIN_IS)
    put = Result("shims_put", "memory: put through one shim", settings=settings, compared=PLAIN_IS)
    get.notes.append("A key at hand knows its encoding; what a key shim makes of it is encoded for each get.")
    for result in (get, put):
        for case in SHIMS:
            works = [(case.work, 1)] if result is get else [("put", 1), ("put", size.tasks)]
            if result is put and not case.writes:
                continue
            try:
                result.figures += await _pair(case.name, case.wrap, size.items, size.pair, works)
            except ImportError as exc:
                result.notes.append(f"{case.name}: not measured: {exc}")
        result.figures.sort(key=lambda figures: figures.tasks)
        context.report.add(result)


async def stacks(context: Context) -> None:
    """Stacks of one to five shims over a memory store: a get."""
    size = context.size
    result = Result(
        "shims_stacks",
        "memory: get by key through stacks of shims",
        settings={"entities": size.items},
        compared=PLAIN_IS,
    )
    result.curve = Curve("shims", "time of a get, of one without shims")
    for name, layers in STACKS.items():
        result.curve.add(name, 0, 1.0)
        for depth in range(1, DEEPEST + 1):
            case = f"{name} × {depth}"

            def wrap(child: Adapter, layers: Sequence[Wrap] = layers[:depth]) -> Adapter:
                for layer in layers:
                    child = layer(child)
                return child

            result.figures += await _pair(case, wrap, size.items, size.pair, [("get", 1)])
            result.curve.add(name, depth, result.ratio(f"{case}: {PLAIN}", f"{case}: {THROUGH}"))
    result.notes.append("Mixed: Namespaced, Limited, Retrying, Measured, Logged, from the store outwards.")
    context.report.add(result)
