"""Writing batches: several at a time, and what is acknowledged is recorded."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread

from aiodatastore.adapters.base import Adapter, Commit, Put
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.transfer.common import SAVE_INTERVAL_S, ProgressCallback, Saved, TransferProgress, TransferReport

__all__ = ["IN_FLIGHT", "Batch", "Writer", "complete_keys"]

IN_FLIGHT = 3
"""Commits under way at a time."""


@dataclass(slots=True)
class Batch:
    """Entities to write together; ``mark`` is the progress to record once they and all before are there."""

    entities: list[Entity]
    size: int
    mark: dict[str, Any]
    where: str = ""
    automatic: dict[Key, Entity] = field(default_factory=dict)
    done: bool = False


async def complete_keys(adapter: Adapter, batch: Batch, entities: Sequence[Entity], *, skip: int = 0) -> None:
    """Give ids to entities whose last element has none, after passing over some."""
    groups: dict[tuple[str, str, str], list[Entity]] = {}
    for entity in entities:
        groups.setdefault((entity.key.project, entity.key.namespace, entity.key.kind), []).append(entity)
    for group in groups.values():
        first, _ = await adapter.allocate_ids(group[0].key, len(group) + skip)
        for number, entity in enumerate(group, first + skip):
            entity.key = entity.key.completed(number)
            batch.automatic[entity.key] = entity


def incomplete(key: Key) -> Key:
    return Key(*key.path[:-1], namespace=key.namespace, project=key.project)


class Writer:
    """Commits batches, several at a time, and records up to where all of them are acknowledged."""

    def __init__(
        self,
        adapter: Adapter,
        saved: Saved,
        progress: ProgressCallback | None,
        *,
        in_flight: int,
        resumed: int,
    ) -> None:
        self.adapter = adapter
        self.phase = saved.what
        self.report = TransferReport(resumed=resumed)
        self.total_entities: int | None = None
        self.total_bytes: int | None = None
        self._progress = progress
        self._saved = saved
        self._limit = anyio.Semaphore(max(1, in_flight))
        self._pending: deque[Batch] = deque()
        self._keys: set[Key] = set()
        self._finished = anyio.Event()
        self._mark: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._next_save = 0.0
        self._saving = anyio.Lock()

    async def run(self, batches: AsyncGenerator[Batch]) -> None:
        """Write all batches. On an error or cancellation, the progress file says what is certain.

        After success it is the caller's to remove.
        """
        try:
            async with anyio.create_task_group() as tasks, contextlib.aclosing(batches):
                try:
                    async for batch in batches:
                        await self._limit.acquire()
                        if self._error is not None:
                            break
                        await self._wait_for_keys(batch)
                        self._pending.append(batch)
                        tasks.start_soon(self._commit, batch)
                except Exception as exc:
                    # Raised below: what was read before a bad line is written, and no exception group.
                    self._error = self._error or exc
            if self._error is not None:
                raise self._error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._save()
            raise

    async def _wait_for_keys(self, batch: Batch) -> None:
        """Two commits in flight may take effect in any order: never write a key in both."""
        keys = [entity.key for entity in batch.entities]
        while not self._keys.isdisjoint(keys):
            self._finished = anyio.Event()
            await self._finished.wait()
        self._keys.update(keys)

    async def _commit(self, batch: Batch) -> None:
        keys = [entity.key for entity in batch.entities]
        try:
            await self._put(batch)
            self._keys.difference_update(keys)
        except Exception as exc:
            exc.add_note(batch.where)
            self._error = self._error or exc
            self._keys.clear()  # nothing more will be written
            return
        finally:
            self._limit.release()
            self._finished.set()
        batch.done = True
        self.report.entities += len(batch.entities)
        while self._pending and self._pending[0].done:
            self._mark = self._pending.popleft().mark
        self._tell()
        if time.monotonic() >= self._next_save and not self._saving.locked():
            await self._save()

    async def _put(self, batch: Batch) -> None:
        """Commit a batch; automatic ids that somebody uses already are replaced.

        Several stores may each write their part by itself: what was written then is not sent again.
        """
        skip = 0
        left = batch.entities
        while left:
            checks = dict.fromkeys(batch.automatic, 0)
            commit = Commit(checks=checks, writes=[Put(entity) for entity in left], atomic=False)
            [outcome] = await self.adapter.commit([commit])
            if outcome.committed:
                return
            if outcome.error is not None:
                raise outcome.error
            over = {*outcome.conflicts, *(outcome.versions or ())}
            left = [entity for entity in left if entity.key not in over]
            # What was in the commit is the adapter's: what takes its place is new.
            used = [batch.automatic[key].snapshot() for key in outcome.conflicts]
            for key in over:
                batch.automatic.pop(key, None)
            for entity in used:
                entity.key = incomplete(entity.key)
            await complete_keys(self.adapter, batch, used, skip=skip)
            left += used
            skip = min(max(1, skip * 2), 1 << 20)

    async def _save(self) -> None:
        if self._mark is None or self._saved.path is None:
            return
        async with self._saving:
            await anyio.to_thread.run_sync(self._saved.save, self._mark)
            self._next_save = time.monotonic() + SAVE_INTERVAL_S

    def _tell(self) -> None:
        mark = self._mark or {}
        self.report.done_bytes = mark.get("offset", 0)
        if self._progress is not None:
            self._progress(
                TransferProgress(
                    self.phase,
                    self.report.resumed + self.report.entities,
                    self.total_entities,
                    self.report.done_bytes,
                    self.total_bytes,
                    self.report.resumed,
                )
            )
