"""Row stores of every engine, made and closed for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiodatastore.rowstore import RowStore
from tests.engines import Place


@pytest.fixture
async def store(place: Place, anyio_backend: str) -> AsyncIterator[RowStore]:
    """An open, empty row store; choose engines with :func:`tests.engines.engines`."""
    made = place.row_store()
    await made.open()
    yield made
    await made.aclose()
