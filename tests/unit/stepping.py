"""An adapter in memory whose calls can be counted, slowed down, held up and made to fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel

from aiodatastore.adapters.base import Commit, Lookup, Outcome, ReadPolicy
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.key import Key

__all__ = ["Gate", "SteppingAdapter", "store"]


class Gate:
    """Holds calls up until it is opened; tells when one has arrived."""

    def __init__(self) -> None:
        self.arrived = anyio.Event()
        self.opened = anyio.Event()

    async def __call__(self) -> None:
        self.arrived.set()
        await self.opened.wait()


class SteppingAdapter(EngineAdapter):
    """Memory, with every call on record.

    ``inline`` answers what it can without waiting, as memory does; otherwise every call suspends. ``before`` and
    ``after`` run around each lookup and commit.
    """

    def __init__(self, *, inline: bool = False, **options: Any) -> None:
        super().__init__(MemoryRowStore(), **options)
        self.inline = inline
        self.lookups: list[list[Key]] = []
        self.commits: list[list[Commit]] = []
        self.before_lookup: Callable[[], Any] | None = None
        self.before_commit: Callable[[], Any] | None = None
        self.after_commit: Callable[[], Any] | None = None
        self.lookup_error: Exception | None = None
        self.commit_error: Exception | None = None
        self.closed = 0

    @property
    def sizes(self) -> list[int]:
        """How many commits each batch had."""
        return [len(batch) for batch in self.commits]

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        return super().lookup_now(keys) if self.inline else None

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        self.lookups.append(list(keys))
        if self.before_lookup is not None:
            await self.before_lookup()
        elif not self.inline:
            await anyio.lowlevel.checkpoint()
        if self.lookup_error is not None:
            raise self.lookup_error
        return await super().lookup(keys, read_policy=read_policy)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        self.commits.append(list(batch))
        if self.before_commit is not None:
            await self.before_commit()
        elif not self.inline:
            await anyio.lowlevel.checkpoint()
        if self.commit_error is not None:
            raise self.commit_error
        outcomes = await super().commit(batch)
        if self.after_commit is not None:
            await self.after_commit()
        return outcomes

    async def aclose(self) -> None:
        self.closed += 1
        await super().aclose()


def store(**options: Any) -> tuple[Datastore, SteppingAdapter]:
    """A datastore in memory, not open yet, and its adapter."""
    adapter = SteppingAdapter(inline=options.pop("inline", False))
    return Datastore(adapter, **options), adapter
