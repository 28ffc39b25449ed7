"""What tests of caches and tiers share: an adapter whose answers they hold back, and entities of one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio

from aiodatastore import Datastore, Entity, Key, ReadPolicy
from aiodatastore.adapters.base import Adapter, Commit, Lookup, Outcome
from aiodatastore.errors import StoreBusyError, UnavailableError
from aiodatastore.shims.base import Shim

__all__ = ["Gate", "entity", "increase", "values", "wait_for"]


class Gate(Shim):
    """Holds the answers of lookups, or of commits, until they are let through; ``held`` are those that wait.

    ``fails``: nothing is done. ``refuses``: commits are not. ``loses``: commits are done, and their answers lost.
    """

    def __init__(self, child: Adapter) -> None:
        super().__init__(child)
        self.lookups: list[tuple[Key, ...]] = []
        self.policies: list[ReadPolicy] = []
        self.held: list[anyio.Event] = []
        self.holds_lookups = self.holds_commits = False
        self.fails = self.loses = self.refuses = False

    async def _hold(self) -> None:
        gate = anyio.Event()
        self.held.append(gate)
        await gate.wait()

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        self.lookups.append(tuple(keys))
        self.policies.append(read_policy)
        if self.fails:
            raise UnavailableError("away")
        found = await self.child.lookup(keys, read_policy=read_policy)
        if self.holds_lookups:
            await self._hold()
        return found

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        if self.refuses:
            raise StoreBusyError("busy")
        if self.fails:
            raise UnavailableError("away")
        outcomes = await self.child.commit(batch)
        if self.holds_commits:
            await self._hold()
        if self.loses:
            raise UnavailableError("lost")
        return outcomes

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        return None


def entity(key: Key, value: int) -> Entity:
    return Entity(key, {"n": value})


async def values(adapter: Adapter, *keys: Key, policy: ReadPolicy = ReadPolicy.STRONG) -> list[int | None]:
    """What lookups find."""
    found = await adapter.lookup(keys, read_policy=policy)
    return [None if each is None else each["n"] for each in found.entities]


async def wait_for(held: list[anyio.Event], count: int) -> None:
    """Until so many are held."""
    with anyio.fail_after(60):
        while len(held) < count:
            await anyio.wait_all_tasks_blocked()


async def until(condition: Callable[[], object]) -> None:
    """Until it holds, which other tasks see to."""
    with anyio.fail_after(60):
        while True:
            if condition():
                return
            await anyio.sleep(0.005)


async def increase(ds: Datastore, key: Key) -> list[int]:
    """Add one in a transaction; what its attempts found."""
    seen: list[int] = []

    @ds.transactional(retries=3)
    async def run() -> None:
        found = await ds.get(key)
        assert found is not None
        seen.append(found["n"])
        found["n"] += 1
        await ds.put(found)

    await run()
    return seen
