"""Row stores of every engine, made and closed for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from aiodatastore.adapters.file import store as file_store
from aiodatastore.adapters.sqlite import store as sqlite_store
from aiodatastore.rowstore import RowStore
from tests.engines import Place, PostgresSession, fresh_name


@pytest.fixture
async def store(place: Place, anyio_backend: str) -> AsyncIterator[RowStore]:
    """An open, empty row store; choose engines with :func:`tests.engines.engines`."""
    made = place.row_store()
    await made.open()
    yield made
    await made.aclose()


@pytest.fixture
def space(postgres_session: PostgresSession) -> Iterator[str]:
    """A schema's name in PostgreSQL, not made yet."""
    name = fresh_name()
    yield name
    postgres_session.run(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


@pytest.fixture(autouse=True)
def read_inline_though_the_machine_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores read in threads for a while after a read has waited for a disk, as one may here while others use it."""
    monkeypatch.setattr(sqlite_store, "SLOW_S", float("inf"))
    monkeypatch.setattr(file_store, "SLOW_S", float("inf"))
