"""Copy: one store into another, whichever they are."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anyio.to_thread

from aiodatastore.adapters.base import Adapter
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError
from aiodatastore.indexing.definitions import IndexState
from aiodatastore.key import MAX_ID, Key
from aiodatastore.transfer.common import (
    EVERYTHING,
    PAGE_ENTITIES,
    ProgressCallback,
    Reader,
    Saved,
    Selection,
    Store,
    TransferReport,
    adapter_of,
)
from aiodatastore.transfer.comparing import compare_entities, compare_indexes
from aiodatastore.transfer.writing import IN_FLIGHT, Batch, Writer

__all__ = ["copy"]

MAX_RESERVED_ID = MAX_ID >> 1
"""Greater ids were chosen by somebody: after them, too few would be left to hand out."""


async def copy(
    source: Store,
    target: Store,
    *,
    selection: Selection = EVERYTHING,
    indexes: bool = True,
    verify: bool = False,
    progress_file: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    page_size: int = PAGE_ENTITIES,
    in_flight: int = IN_FLIGHT,
) -> TransferReport:
    """Put the entities of one store into another, overwriting what has the same keys.

    With ``indexes`` the source's composite indexes are created and built in the target first. In the end ids up to the
    greatest of each kind are reserved in the target, so that new entities get others. Versions are the target's own,
    and what would expire in the source stays in the target.

    ``verify`` then reads both sides as :func:`~aiodatastore.transfer.compare` does, indexes included: what is missing
    or different in the target is in the report (an entity that was written meanwhile may be among it).

    A ``progress_file`` records the last key up to which everything is acknowledged, or compared; ``resume`` goes on
    there, and the file is removed at the end.

    :raises BadArgumentError: if there is nothing to resume from, or the progress is another copy's
    """
    origin, goal = adapter_of(source), adapter_of(target)
    if origin is goal:
        raise BadArgumentError("source and target of a copy are the same store")
    started = time.monotonic()
    saved = Saved(progress_file, "copy", {"source": origin.url, "target": goal.url, **selection.to_dict()})
    if resume and progress_file is None:
        raise BadArgumentError("to resume a copy, name its progress file")
    mark = (await anyio.to_thread.run_sync(saved.load) if resume else None) or {}
    reader = Reader(origin, selection, page_size)
    if mark.get("copied"):
        report = TransferReport(resumed=mark["entities"])
        await reader.open(count=progress is not None)
    else:
        report = await _copy(reader, goal, saved, mark, progress, indexes=indexes, in_flight=in_flight)
    report.seconds = time.monotonic() - started
    if verify:
        # Who interrupts the comparison need not copy again.
        kept = {"copied": True, "entities": report.resumed + report.entities}
        await anyio.to_thread.run_sync(saved.save, {**kept, "compare": mark.get("compare")})
        there = Reader(goal, selection, page_size)
        await there.open(count=False)
        found = await compare_entities(reader, there, saved, mark.get("compare"), progress, kept=kept)
        report.verified = found.source_entities
        report.different = found.missing + found.different
        report.extra = found.extra
        report.differences = [each for each in found.differences if each.problem != "extra"]
        if indexes:
            report.problems = await compare_indexes(origin, goal, selection, progress, both=False)
        report.verify_seconds = time.monotonic() - started - report.seconds
    await anyio.to_thread.run_sync(saved.remove)
    return report


async def _copy(
    reader: Reader,
    goal: Adapter,
    saved: Saved,
    mark: dict[str, Any],
    progress: ProgressCallback | None,
    *,
    indexes: bool,
    in_flight: int,
) -> TransferReport:
    copied = await _copy_indexes(reader.adapter, goal, reader.selection) if indexes else 0
    await reader.open(count=progress is not None)
    writer = Writer(goal, saved, progress, in_flight=in_flight, resumed=mark.get("entities", 0))
    writer.total_entities = reader.total
    ids = _Ids(mark.get("ids", ()))
    after = Key.from_string(mark["after"]) if mark else None
    await writer.run(_copy_batches(reader, after, writer.report.resumed, ids))
    await ids.reserve(goal)
    writer.report.indexes = copied
    return writer.report


async def _copy_indexes(source: Adapter, target: Adapter, selection: Selection) -> int:
    """Create and build indexes before there is much to build; writes maintain them from then on."""
    count = 0
    for info in await source.indexes():
        definition = info.definition
        if selection.kinds and definition.kind not in selection.kinds:
            continue
        if info.state in (IndexState.SERVING, IndexState.BUILDING):
            if (await target.create_index(definition)).state is not IndexState.SERVING:
                await target.build_index(definition)
            count += 1
    return count


async def _copy_batches(reader: Reader, after: Key | None, count: int, ids: _Ids) -> AsyncGenerator[Batch]:
    async with contextlib.aclosing(reader.pages(after)) as pages:
        async for entities in pages:
            count += len(entities)
            ids.see(entities)
            mark = {"after": str(entities[-1].key), "entities": count, "ids": ids.to_mark()}
            yield Batch(entities, 0, mark, f"up to key {entities[-1].key}")


class _Ids:
    """The greatest id of each kind; a kind has one sequence, whatever its keys' parents."""

    def __init__(self, mark: Sequence[Sequence[Any]]) -> None:
        self._greatest: dict[tuple[str, str, str], int] = {
            (project, namespace, kind): greatest for project, namespace, kind, greatest in mark
        }

    def see(self, entities: Sequence[Entity]) -> None:
        greatest = self._greatest
        for entity in entities:
            key = entity.key
            for kind, ident in key.pairs:  # ancestors too, which may have no entity
                if type(ident) is int and ident <= MAX_RESERVED_ID:
                    of = key.project, key.namespace, kind
                    if greatest.get(of, 0) < ident:
                        greatest[of] = ident

    def to_mark(self) -> list[list[Any]]:
        return [[*of, greatest] for of, greatest in self._greatest.items()]

    async def reserve(self, target: Adapter) -> None:
        """See that the target hands out none of them."""
        for (project, namespace, kind), greatest in self._greatest.items():
            await target.reserve_ids(Key(kind, namespace=namespace, project=project), greatest)
