"""Compare: whether two stores hold the same, entities and indexes."""

from __future__ import annotations

import contextlib
import os
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread

from aiodatastore.adapters.base import Adapter
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError
from aiodatastore.indexing.definitions import IndexDefinition, IndexState
from aiodatastore.jsonl import canonical
from aiodatastore.key import Key
from aiodatastore.transfer.common import (
    EVERYTHING,
    MAX_DIFFERENCES,
    PAGE_ENTITIES,
    SAVE_INTERVAL_S,
    Difference,
    ProgressCallback,
    Reader,
    Saved,
    Selection,
    Store,
    TransferProgress,
    adapter_of,
)

__all__ = ["Comparison", "compare", "compare_entities", "compare_indexes"]

_NAMES = ("source_entities", "target_entities", "missing", "different", "extra")


@dataclass(slots=True)
class Comparison:
    """What two stores have and where they differ.

    ``missing`` entities the target lacks, ``extra`` ones the source lacks, ``different`` ones have another value, type
    or set of unindexed properties; ``differences`` names at most 100 of them all, in order of their keys.
    ``problems`` are lines about indexes: definitions that one side lacks, and what the stores' own ``check`` found.
    """

    source_entities: int = 0
    target_entities: int = 0
    missing: int = 0
    different: int = 0
    extra: int = 0
    resumed: int = 0
    seconds: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        """Whether there is no difference and no problem."""
        return not (self.missing or self.different or self.extra or self.problems)

    def to_mark(self) -> dict[str, Any]:
        """The counts and differences as plain values, for a progress file."""
        return {
            **{name: getattr(self, name) for name in _NAMES},
            "differences": [[str(each.key), each.problem] for each in self.differences],
        }

    @classmethod
    def from_mark(cls, mark: dict[str, Any]) -> Comparison:
        """What :meth:`to_mark` gave."""
        found = cls(resumed=mark["source_entities"])
        for name in _NAMES:
            setattr(found, name, mark[name])
        found.differences = [Difference(Key.from_string(key), problem) for key, problem in mark["differences"]]
        return found


async def compare(
    source: Store,
    target: Store,
    *,
    selection: Selection = EVERYTHING,
    indexes: bool = True,
    progress_file: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    page_size: int = PAGE_ENTITIES,
) -> Comparison:
    """Read both stores side by side, in order of the keys, and say where they differ.

    Entities are compared value by value and type by type (1 is not 1.0), their unindexed properties too, but not their
    versions, which are each store's own. With ``indexes`` the definitions of composite indexes are compared, and
    each store checks that its index rows are those of its entities; that reads all of it once more, whatever is
    selected. Compare while nobody writes: what changes meanwhile may show as a difference. Memory holds a page of
    each side.

    A ``progress_file`` records how far it came; ``resume`` goes on there, and the file is removed at the end.

    :raises BadArgumentError: if there is nothing to resume from, or the progress is another comparison's
    """
    origin, goal = adapter_of(source), adapter_of(target)
    if origin is goal:
        raise BadArgumentError("source and target of a comparison are the same store")
    started = time.monotonic()
    saved = Saved(progress_file, "compare", {"source": origin.url, "target": goal.url, **selection.to_dict()})
    mark: dict[str, Any] | None = None
    if resume:
        if progress_file is None:
            raise BadArgumentError("to resume a comparison, name its progress file")
        mark = await anyio.to_thread.run_sync(saved.load)
    readers = (Reader(origin, selection, page_size), Reader(goal, selection, page_size))
    for reader in readers:
        await reader.open(count=progress is not None)
    found = await compare_entities(*readers, saved, mark, progress)
    if indexes:
        found.problems = await compare_indexes(origin, goal, selection, progress, both=True)
    await anyio.to_thread.run_sync(saved.remove)
    found.seconds = time.monotonic() - started
    return found


# ---------------------------------------------------------------------------------------- entities


class _Side:
    """One of the two stores: its next entities, in the order that both have."""

    def __init__(self, pages: AsyncGenerator[list[Entity]], by_kind: bool) -> None:
        self._pages = pages
        self._by_kind = by_kind
        self._page: list[Entity] = []
        self._ended = False

    async def fill(self) -> bool:
        """See that there are entities at hand; false at the end."""
        if not self._page and not self._ended:
            found = await anext(self._pages, None)
            self._ended = found is None
            self._page = found or []
        return bool(self._page)

    def place(self, entity: Entity) -> tuple[str, str, str, Key]:
        """Where an entity stands in the order of a :class:`Reader`."""
        key = entity.key
        return key.project, key.namespace, key.kind if self._by_kind else "", key

    def last(self) -> tuple[str, str, str, Key]:
        return self.place(self._page[-1])

    def take(self, bound: tuple[str, str, str, Key]) -> list[Entity]:
        """The entities at hand up to a place, inclusive."""
        cut = bisect_right(self._page, bound, key=self.place)
        taken, self._page = self._page[:cut], self._page[cut:]
        return taken


async def compare_entities(
    source: Reader,
    target: Reader,
    saved: Saved,
    mark: dict[str, Any] | None,
    progress: ProgressCallback | None,
    *,
    kept: dict[str, Any] | None = None,
) -> Comparison:
    """Compare what two opened readers give, from a recorded mark on; ``kept`` is recorded with every mark."""
    found = Comparison.from_mark(mark) if mark else Comparison()
    after = Key.from_string(mark["after"]) if mark else None
    by_kind = bool(source.selection.kinds)
    next_save = time.monotonic() + SAVE_INTERVAL_S
    async with (
        contextlib.aclosing(source.pages(after)) as our_pages,
        contextlib.aclosing(target.pages(after)) as their_pages,
    ):
        ours, theirs = _Side(our_pages, by_kind), _Side(their_pages, by_kind)
        bound: tuple[str, str, str, Key] | None = None
        try:
            while True:
                filled = [side for side in (ours, theirs) if await side.fill()]
                if not filled:
                    return found
                # What stands beyond the end of the shorter page is judged with the next one.
                up_to = min(side.last() for side in filled)
                await anyio.to_thread.run_sync(_judge, ours.take(up_to), theirs.take(up_to), found)
                bound = up_to
                if progress is not None:
                    done = found.source_entities
                    progress(TransferProgress("compare", done, source.total, resumed=found.resumed))
                if time.monotonic() >= next_save:
                    await _save(saved, found, bound[3], kept)
                    next_save = time.monotonic() + SAVE_INTERVAL_S
        except BaseException:
            if bound is not None:
                with anyio.CancelScope(shield=True):
                    await _save(saved, found, bound[3], kept)
            raise


async def _save(saved: Saved, found: Comparison, after: Key, kept: dict[str, Any] | None) -> None:
    mark = {**found.to_mark(), "after": str(after)}
    await anyio.to_thread.run_sync(saved.save, {**kept, "compare": mark} if kept is not None else mark)


def _judge(ours: Sequence[Entity], theirs: Sequence[Entity], found: Comparison) -> None:
    """Add what two pieces of the same range of keys have in common, and have not."""
    there = {entity.key: entity for entity in theirs}
    problems: list[Difference] = []
    for entity in ours:
        other = there.pop(entity.key, None)
        if other is None:
            found.missing += 1
            problems.append(Difference(entity.key, "missing"))
        elif canonical(entity) != canonical(other):
            found.different += 1
            problems.append(Difference(entity.key, "different"))
    if there:
        found.extra += len(there)
        problems += [Difference(key, "extra") for key in there]
        problems.sort(key=lambda each: each.key)
    found.source_entities += len(ours)
    found.target_entities += len(theirs)
    found.differences += problems[: MAX_DIFFERENCES - len(found.differences)]


# ----------------------------------------------------------------------------------------- indexes


async def compare_indexes(
    source: Adapter, target: Adapter, selection: Selection, progress: ProgressCallback | None, *, both: bool
) -> list[str]:
    """Lines about definitions that the target (with ``both``: either) lacks, and of each store's own check."""
    ours, theirs = await _definitions(source, selection), await _definitions(target, selection)
    problems = [f"the target lacks {_told(index)}" for index in sorted(ours - theirs)]
    if both:
        problems += [f"the source lacks {_told(index)}" for index in sorted(theirs - ours)]
    for name, store in (("source", source), ("target", target)):
        if progress is not None:
            progress(TransferProgress("check", 0))
        problems += [f"{name}: {line}" for line in await store.check()]
    return problems


def _told(index: IndexDefinition) -> str:
    names = ", ".join(name if direction == "asc" else f"-{name}" for name, direction in index.properties)
    return f"the index of {index.kind} by {names}{' with ancestor' if index.ancestor else ''}, or has it not ready"


async def _definitions(store: Adapter, selection: Selection) -> set[IndexDefinition]:
    """Those that are ready, of the selected kinds."""
    return {
        info.definition
        for info in await store.indexes()
        if info.state is IndexState.SERVING and (not selection.kinds or info.definition.kind in selection.kinds)
    }
