"""What stands side by side: this library, and each peer, behind one set of methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from aiodatastore.bench.data import Mix, person
from aiodatastore.bench.measure import Subject
from aiodatastore.bench.workloads import Bank, Items, People, Records, Shape, draw_fresh
from aiodatastore.datastore import Datastore

__all__ = ["OURS", "Draw", "Job", "Ours", "Place", "Side", "subject"]

OURS = "aiodatastore"

Draw = Callable[[int], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one benchmark's data are: ``url`` for this library; ``dsn`` and ``space`` (a schema or prefix) for the
    peers; ``folder`` for files."""

    url: str = field(repr=False)  # it may have a password
    dsn: str = field(default="", repr=False)
    space: str = ""
    folder: Path = Path()


class Side:
    """One way of doing the work. ``works`` names what it does: the others of these methods are not there.

    ``load(data, count)`` makes ``people``, ``items``, ``records`` or ``accounts``; peers that use one table share what
    one of them has loaded.
    """

    name: str = ""
    ours: ClassVar[bool] = False
    works: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def open(cls, place: Place) -> AbstractAsyncContextManager[Side]:
        """Connect; close at the end."""
        raise NotImplementedError

    async def load(self, data: str, count: int) -> None:
        """Make data."""
        raise NotImplementedError

    def get(self, name: str, count: int, seed: int) -> Subject:
        """Get by key."""
        raise NotImplementedError

    def put(self, name: str, draw: Draw) -> Subject:
        """Put of something new with three indexed properties."""
        raise NotImplementedError

    def modify(self, name: str, count: int, seed: int) -> Subject:
        """Read-modify-write, atomic, no two of the same at once; one indexed property changes."""
        raise NotImplementedError

    def top(self, name: str, seed: int) -> Subject:
        """Filter, order, limit 20."""
        raise NotImplementedError

    def top_below(self, name: str, seed: int) -> Subject:
        """The same, from a random price downwards."""
        raise NotImplementedError

    def shape(self, name: str, shape: Shape, seed: int) -> Subject:
        """Another query."""
        raise NotImplementedError

    def ycsb(self, name: str, mix: Mix, seed: int) -> Subject:
        """A workload's mix of operations."""
        raise NotImplementedError

    def transfers(self, name: str, accounts: int, seed: int, *, zipf: bool) -> Subject:
        """Take from one account, give to another, if there is enough."""
        raise NotImplementedError

    def increments(self, name: str) -> Subject:
        """Everybody increments the same."""
        raise NotImplementedError

    counted: int = 0
    """Increments that were acknowledged here."""

    async def problems(self, accounts: int, counted: int) -> list[str]:
        """What went wrong with accounts and counter, after so many acknowledged increments."""
        raise NotImplementedError


class Ours(Side):
    """This library, on whichever URL."""

    name = OURS
    ours = True
    works = frozenset({"get", "put", "modify", "query", "shapes", "ycsb", "bank", "counter"})

    def __init__(self, ds: Datastore) -> None:
        self.ds = ds
        self.people = People(ds)
        self.items = Items(ds)
        self.records = Records(ds)
        self._banks: list[Bank] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place) -> AsyncIterator[Side]:
        """Open the datastore of the place."""
        async with Datastore(place.url) as ds:
            yield cls(ds)

    async def load(self, data: str, count: int) -> None:
        """Put them."""
        if data == "accounts":
            await self._bank(count).load()
        else:
            work: People | Items | Records = getattr(self, data)
            await work.load(count)

    def _bank(self, accounts: int) -> Bank:
        self._banks.append(Bank(self.ds, accounts))
        return self._banks[-1]

    def get(self, name: str, count: int, seed: int) -> Subject:
        return self.people.get(name, count, seed)

    def get_by_number(self, name: str, count: int, seed: int) -> Subject:
        """Gets of keys that are made on the way."""
        return self.people.get_by_number(name, count, seed)

    def put(self, name: str, draw: Draw) -> Subject:
        return self.people.put(name, draw)

    def modify(self, name: str, count: int, seed: int) -> Subject:
        return self.people.modify(name, count, seed)

    def top(self, name: str, seed: int) -> Subject:
        return self.items.top(name, seed)

    def top_below(self, name: str, seed: int) -> Subject:
        return self.items.top_below(name, seed)

    def shape(self, name: str, shape: Shape, seed: int) -> Subject:
        return self.items.shape(name, shape, seed)

    def ycsb(self, name: str, mix: Mix, seed: int) -> Subject:
        return self.records.subject(name, mix, seed)

    def transfers(self, name: str, accounts: int, seed: int, *, zipf: bool) -> Subject:
        return self._bank(accounts).transfers(name, seed, zipf=zipf)

    def increments(self, name: str) -> Subject:
        return self._bank(0).increments(name)

    @property
    def counted(self) -> int:  # type: ignore[override]  # here it is counted by the banks
        """Increments that were acknowledged here."""
        return sum(bank.counted for bank in self._banks)

    async def problems(self, accounts: int, counted: int) -> list[str]:
        bank = Bank(self.ds, accounts)
        bank.counted = counted
        return await bank.problems()


@dataclass(frozen=True, slots=True)
class Job:
    """Which work, on how much data. ``first`` is the first number of new people, apart from all others'."""

    work: str
    count: int
    seed: int
    first: int = 0


def subject(side: Side, job: Job, name: str) -> Subject:
    """What a side does of a job."""
    if job.work == "get":
        return side.get(name, job.count, job.seed)
    if job.work == "put":
        return side.put(name, draw_fresh(job.first, person))
    if job.work == "modify":
        return side.modify(name, job.count, job.seed)
    if job.work == "counter":
        return side.increments(name)
    if job.work in {"bank", "bank-zipf"}:
        return side.transfers(name, job.count, job.seed, zipf=job.work == "bank-zipf")
    raise NotImplementedError(job.work)
