"""Reading the catalog of indexes again: one reads for all who need it at the time."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.errors import UnavailableError
from aiodatastore.rowstore import RowRead

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def nothing_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog that was read stays fresh, however long the machine takes."""
    monkeypatch.setattr("aiodatastore.adapters.engine.core.CATALOG_MAX_AGE_S", 60.0)


class _Slow(MemoryRowStore):
    """Reads when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.fails = 0
        self.gate = anyio.Event()
        self.gate.set()

    async def read(self, keys: Sequence[bytes]) -> RowRead:
        self.reads += 1
        await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise UnavailableError("away")
        return await super().read(keys)


async def _opened() -> tuple[EngineAdapter, _Slow]:
    store = _Slow()
    adapter = EngineAdapter(store)
    await adapter.open()
    store.reads = 0
    store.gate = anyio.Event()
    adapter._catalog_read_at = float("-inf")
    return adapter, store


async def test_many_who_need_it_read_once() -> None:
    adapter, store = await _opened()
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(adapter.refresh)
        await anyio.wait_all_tasks_blocked()
        store.gate.set()
    assert store.reads == 1
    assert not adapter.stale
    await adapter.aclose()


async def test_a_read_that_takes_long_is_waited_for_once_more_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodatastore.adapters.engine.core.CATALOG_MAX_AGE_S", 0.001)
    adapter, store = await _opened()
    async with anyio.create_task_group() as group:
        group.start_soon(adapter.refresh)
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.01)
        for _ in range(20):
            group.start_soon(adapter.refresh)  # what is under way began too early for these
        await anyio.wait_all_tasks_blocked()
        store.gate.set()
    assert store.reads == 2
    await adapter.aclose()


async def test_if_the_one_who_reads_fails_or_is_cancelled_another_one_reads() -> None:
    adapter, store = await _opened()
    errors: list[UnavailableError] = []

    async def refresh() -> None:
        try:
            await adapter.refresh()
        except UnavailableError as exc:
            errors.append(exc)

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(refresh)
                await anyio.wait_all_tasks_blocked()
                for _ in range(3):
                    group.start_soon(refresh)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        store.fails = 1
        await anyio.wait_all_tasks_blocked()
        store.gate.set()
    assert len(errors) == 1
    assert store.reads == 3
    assert not adapter.stale
    await adapter.aclose()
