"""Adding shards while everything is in use: groups whose place changes are copied, then read and written there.

The layout's record goes through the phases of :class:`~aiodatastore.shims.sharded.layout.Phase`. What holds in each:

- Reads and queries are right at every moment: groups that move are read where they were until all that was written is
  copied, and in their new place afterwards. A process learns of a phase within
  :data:`~aiodatastore.shims.sharded.adapter.LAYOUT_MAX_AGE_S` seconds; each phase is waited for longer than that, and
  an answer that took longer is asked for again.
- Writes are never lost: every commit checks the version of its shard's record, so one that was made by an older layout
  is refused there, and sent again by the new one. While groups are copied, who writes one leaves a note with it, in the
  same commit; at the end writes to groups that move wait (for a few seconds: as long as what was noted last takes to
  copy and two phases to be known), and only these.
- Transactions across the change: what was scanned before is void, and versions in the new place are greater than all
  before, so a stale check never holds.

It can be interrupted at any time and run again: it goes on with the phase it was in, and if the other one is only slow,
that one fails. While nobody goes on, writes to groups that move may have to wait; reads never do.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio

from aiodatastore.adapters.base import Adapter, Commit, Delete, Put, RunOptions
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, CorruptDataError, UnavailableError
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.shims.sharded import adapter as sharded_module
from aiodatastore.shims.sharded.adapter import Sharded
from aiodatastore.shims.sharded.based import Based
from aiodatastore.shims.sharded.layout import (
    DIRTY_KIND,
    LAYOUT_KEY,
    Layout,
    Phase,
    holds_entities,
    newest,
    read_layouts,
    write_layout,
)
from aiodatastore.shims.sharded.placing import Placing
from aiodatastore.shims.sharded.twophase import SYSTEM_PROJECT

__all__ = ["Rebalanced", "rebalance"]

_PAGE = 200
_FEW = 100
"""Notes that are few enough to be left for when writes wait."""
_MOST_PASSES = 20

Progress = Callable[[str, int], None]


@dataclass(slots=True)
class Rebalanced:
    """What a rebalance did (this run of it): entities ``copied`` (each compared after), and ``removed`` where they
    were."""

    copied: int = 0
    removed: int = 0


class _AdvancedError(Exception):
    """Somebody else is a phase further."""


async def rebalance(sharded: Sharded, *, progress: Progress | None = None) -> Rebalanced:
    """Spread what is in some of the shards over all of them; ``sharded`` is not open, and has the new ones, too.

    >>> async def add_one():
    ...     shards = [adapter_from_url(f"postgresql://db{n}/app") for n in range(4)]    # db3 is new, and empty
    ...     await rebalance(Sharded(shards))

    Processes that were started with the old shards go on until the new ones are read; then they raise
    ``UnavailableError``. Start those that know all shards while groups are being copied.
    ``progress`` is called with the phase and how many entities it has seen. Entities that expire are copied without
    the time they had left.

    :raises BadArgumentError: if a shard is missing (none can be removed), a new one is not empty, or another rebalance
        was begun
    :raises UnavailableError: if a shard can't be reached; run it again
    """
    opened: list[Adapter] = []
    try:
        for child in sharded.children:
            await child.open()
            opened.append(child)
        return await _Rebalance(sharded, progress).run()
    finally:
        with anyio.CancelScope(shield=True):
            for child in opened:
                await child.aclose()


class _Rebalance:
    def __init__(self, sharded: Sharded, progress: Progress | None) -> None:
        self._sharded = sharded
        self._names = sharded.names
        self._progress = progress or (lambda phase, count: None)
        self._report = Rebalanced()
        self._layout: Layout
        self._shards: dict[str, Adapter] = {}
        self._fences: dict[str, int] = {}
        self._before: Placing
        self._after: Placing

    async def run(self) -> Rebalanced:
        """All phases that are left."""
        steps = {
            Phase.COPYING: self._copy,
            Phase.FROZEN: self._finish,
            Phase.SWITCHED: self._switched,
            Phase.CLEANING: self._clean,
        }
        try:
            await self._load()
            if self._layout.phase is not Phase.STABLE:
                await self._advance(mover=os.urandom(8).hex())
            while self._layout.phase is not Phase.STABLE:
                await steps[self._layout.phase]()
        except _AdvancedError:
            raise UnavailableError("another process goes on with this rebalance") from None
        return self._report

    # ------------------------------------------------------------------------------------ the record

    async def _load(self) -> None:
        children = self._sharded.children
        found = await read_layouts(children)
        layout = newest(found) or await self._first()
        for name, one in zip(self._names, found, strict=True):
            if one is not None and one.own != name:
                raise BadArgumentError(f"the shard given as {name} is recorded as {one.own}: give each its name")
        if layout.by != self._sharded.by:
            raise BadArgumentError(f"groups are placed by {layout.by!r}, not by {self._sharded.by!r}")
        if layout.phase is Phase.STABLE:
            if set(layout.names) != set(self._names):
                layout = await self._begun(layout)
        elif set(layout.every_name) != set(self._names):
            raise BadArgumentError(
                f"a rebalance to {', '.join(layout.every_name)} was begun: run it with these shards to its end first"
            )
        self._use(layout)

    async def _first(self) -> Layout:
        """The layout of shards that have none recorded: one of them may have everything."""
        holding = [
            name for name, child in zip(self._names, self._sharded.children, strict=True) if await holds_entities(child)
        ]
        if len(holding) > 1:
            raise BadArgumentError(
                f"{' and '.join(holding)} hold entities, and no record says where each belongs: import them instead"
            )
        names = tuple(holding or [self._names[0]])
        return Layout(names, self._sharded.by, names[0])

    async def _begun(self, layout: Layout) -> Layout:
        gone = set(layout.names) - set(self._names)
        if gone:
            raise BadArgumentError(f"shards can be added, not removed: {', '.join(sorted(gone))} is missing")
        for name, child in zip(self._names, self._sharded.children, strict=True):
            if name not in layout.names and await holds_entities(child):
                raise BadArgumentError(f"the new shard {name} ({child.url}) is not empty")
        return replace(layout, phase=Phase.COPYING, next=tuple(sorted(self._names)))

    def _use(self, layout: Layout) -> None:
        self._layout = layout
        self._shards = {
            name: Based(child, base) if (base := layout.bases.get(name, 0)) else child
            for name, child in zip(self._names, self._sharded.children, strict=True)
        }
        if layout.phase is not Phase.STABLE:
            self._before, self._after = (Placing(names, self._sharded._by) for names in (layout.names, layout.next))

    async def _everywhere(self) -> None:
        """Record the layout in every shard, the one that processes look at first; know its version in each."""
        layout = self._layout
        home = layout.ids
        for name in (home, *(name for name in self._names if name != home)):
            shard = self._shards[name]
            while True:
                (found,) = await read_layouts([shard])
                if found is not None and found.epoch > layout.epoch:
                    raise _AdvancedError
                if found is not None and found.epoch == layout.epoch:
                    if found.mover != layout.mover:
                        raise _AdvancedError
                    self._fences[name] = found.version
                    break
                await self._sharded._coordinator.sweep()  # what was left behind would hold it up
                await write_layout(shard, name, replace(layout, own=name), 0 if found is None else found.version)

    async def _advance(self, **changes: object) -> None:
        layout = replace(self._layout, epoch=self._layout.epoch + 1, **changes)  # type: ignore[arg-type]
        self._use(layout)
        await self._everywhere()

    async def _known(self) -> None:
        """Wait until every process knows of the phase."""
        await anyio.sleep(2 * sharded_module.LAYOUT_MAX_AGE_S)

    # -------------------------------------------------------------------------------------- phases

    async def _copy(self) -> None:
        await self._copy_indexes()
        seen = 0
        for name in self._layout.names:
            async for page in _pages(self._shards[name], keys_only=False):
                await self._copy_page([entity for entity in page if self._moves(entity.key)])
                seen += len(page)
                self._progress("copying", seen)
        for _ in range(_MOST_PASSES):
            if await self._copy_noted() < _FEW:
                break
        await self._advance(phase=Phase.FROZEN)

    async def _finish(self) -> None:
        """Nobody writes what moves: copy what was noted last, and switch."""
        while noted := await self._copy_noted():
            self._progress("frozen", noted)
        newest_version = 0
        for name in self._layout.names:
            newest_version = max(newest_version, (await self._shards[name].lookup([LAYOUT_KEY])).version)
        added = set(self._layout.next) - set(self._layout.names)
        # Whatever the new shards count from now on is greater than what the entities had.
        bases = {**self._layout.bases, **dict.fromkeys(added, newest_version + 1)}
        await self._advance(phase=Phase.SWITCHED, bases=bases)

    async def _switched(self) -> None:
        await self._known()
        await self._advance(phase=Phase.CLEANING)

    async def _clean(self) -> None:
        await self._known()
        for name in self._layout.names:
            async for page in _pages(self._shards[name], keys_only=True):
                leftovers = [key for key in page if self._moves(key)]
                if leftovers:
                    await self._commit(name, list(map(Delete, leftovers)))
                    self._report.removed += len(leftovers)
                    self._progress("cleaning", self._report.removed)
        await self._advance(phase=Phase.STABLE, names=self._layout.next, next=())

    # ------------------------------------------------------------------------------------- copying

    def _moves(self, key: Key) -> bool:
        before, after = self._before, self._after
        return before.names[before.number(key)] != after.names[after.number(key)]

    def _target(self, key: Key) -> str:
        return self._after.names[self._after.number(key)]

    async def _commit(self, name: str, writes: Sequence[Put | Delete]) -> None:
        """Write, if the phase is still this one."""
        commit = Commit({LAYOUT_KEY: self._fences[name]}, writes=writes)
        (outcome,) = await self._shards[name].commit([commit])
        if outcome.error is not None:
            raise outcome.error
        if outcome.version is None:
            raise _AdvancedError

    async def _copy_indexes(self) -> None:
        """New shards have the indexes that the others have."""
        wanted = {info.definition for name in self._layout.names for info in await self._shards[name].indexes()}
        for name in set(self._layout.next) - set(self._layout.names):
            for definition in sorted(wanted):
                await self._shards[name].create_index(definition)
                await self._shards[name].build_index(definition)

    async def _copy_page(self, entities: Sequence[Entity]) -> None:
        by_target: dict[str, list[Entity]] = {}
        for entity in entities:
            by_target.setdefault(self._target(entity.key), []).append(entity)
        for name, group in by_target.items():
            await self._commit(name, [Put(entity.snapshot()) for entity in group])
            await self._compare(name, group)
            self._report.copied += len(group)

    async def _compare(self, name: str, entities: Sequence[Entity]) -> None:
        """Whether a shard has them."""
        found = await self._shards[name].lookup([entity.key for entity in entities])
        for entity, copied in zip(entities, found.entities, strict=True):
            if copied is None or _shown(copied) != _shown(entity):
                raise CorruptDataError(f"{entity.key!r} is not in shard {name} as it was copied there: nothing is lost")

    async def _copy_noted(self) -> int:
        """Copy the groups that were written after they were copied; how many."""
        notes = 0
        for name in self._layout.names:
            async for page in _pages(self._shards[name], keys_only=False, query=_NOTES):
                for note in page:
                    await self._copy_group(name, note["root"])
                    # If it was written meanwhile, the note is another one, and stays.
                    await self._shards[name].commit([Commit({note.key: note.version}, writes=[Delete(note.key)])])
                    notes += 1
        return notes

    async def _copy_group(self, name: str, root: Key) -> None:
        target = self._target(root)
        keys: set[Key] = set()
        async for page in _pages(self._shards[name], keys_only=False, query=Query(ancestor=root)):
            await self._copy_page(page)
            keys.update(entity.key for entity in page)
        async for page in _pages(self._shards[target], keys_only=True, query=Query(ancestor=root)):
            gone = [key for key in page if key not in keys]
            if gone:
                await self._commit(target, list(map(Delete, gone)))


def _shown(entity: Entity) -> str:
    """All of an entity, with the types of its values, but its version."""
    plain = entity.snapshot()
    plain.version = 0
    return repr(plain)


_NOTES = Query(DIRTY_KIND, project=SYSTEM_PROJECT)


async def _pages(shard: Adapter, *, keys_only: bool, query: Query | None = None) -> AsyncIterator[list[Any]]:
    """The entities (or keys) of a query, or of all partitions but the collection's own."""
    queries = [query]
    if query is None:
        partitions = await shard.partitions()
        queries = [
            Query(project=project, namespace=namespace)
            for project, namespace in partitions
            if project != SYSTEM_PROJECT
        ]
    for each in queries:
        assert each is not None
        stream = shard.run(each.keys_only() if keys_only else each, RunOptions(page_size=_PAGE))
        more = True
        while more:
            page = await stream.next_page()
            more = page.more
            if page.results:
                yield page.results
