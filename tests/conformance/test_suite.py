"""The shipped suite, bound to the adapters that need no server."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aiodatastore import Datastore
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.rowstore import Record
from aiodatastore.testing.suite import AdapterSuite, Connect, SideDoor

OWN = b"\xff"
"""What the keys of a store's own records begin with."""


class MemoryDoor(SideDoor):
    def __init__(self) -> None:
        self.store = MemoryRowStore()

    def entity_keys(self) -> list[bytes]:
        return sorted(key for key in self.store._records if key < OWN)

    def index_row_count(self) -> int:
        return len(self.store._tails)

    def drop_index_row(self) -> None:
        self.store._set_row(min(self.store._tails), None)

    def damage_payload(self, key: bytes) -> None:
        self.store._records[key] = Record(self.store._records[key].version, b"garbage")


class TestMemory(AdapterSuite):
    second_connection = False

    @pytest.fixture
    def side_door(self) -> MemoryDoor:
        return MemoryDoor()

    @pytest.fixture
    def connect(self, side_door: MemoryDoor) -> Connect:
        def connect(**options: Any) -> Datastore:
            own = {name: options.pop(name) for name in ("require_indexes", "sort_budget") if name in options}
            return Datastore(EngineAdapter(side_door.store, **own), **options)

        return connect


class SQLiteDoor(SideDoor):
    def __init__(self, path: Path) -> None:
        self.path = path

    def _run(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            return connection.execute(statement, parameters).fetchall()

    def entity_keys(self) -> list[bytes]:
        return [key for (key,) in self._run("SELECT key FROM entities WHERE key < ? ORDER BY key", OWN)]

    def index_row_count(self) -> int:
        ((count,),) = self._run("SELECT count(*) FROM rows")
        return int(count)

    def drop_index_row(self) -> None:
        self._run("DELETE FROM rows WHERE row = (SELECT min(row) FROM rows)")

    def damage_payload(self, key: bytes) -> None:
        self._run("UPDATE entities SET payload = ? WHERE key = ?", b"garbage", key)


class TestSQLite(AdapterSuite):
    @pytest.fixture
    def side_door(self, tmp_path: Path) -> SideDoor:
        return SQLiteDoor(tmp_path / "suite.db")

    @pytest.fixture
    def connect(self, tmp_path: Path) -> Connect:
        def connect(**options: Any) -> Datastore:
            return Datastore(f"sqlite:///{tmp_path}/suite.db", synchronous="NORMAL", **options)

        return connect
