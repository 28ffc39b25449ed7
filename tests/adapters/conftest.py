"""Row stores of both engines, made and closed for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.sqlite import SQLiteRowStore
from aiodatastore.rowstore import RowStore


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "sqlite", "sqlite-threads"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[RowStore]:
    made: RowStore
    if request.param == "memory":
        made = MemoryRowStore()
    else:
        made = SQLiteRowStore(tmp_path / "rows.db", inline_reads=request.param == "sqlite", cache_mb=4)
    await made.open()
    yield made
    await made.aclose()
