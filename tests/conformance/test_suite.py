"""The shipped suite, bound to the adapters that need no server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiodatastore import Datastore
from aiodatastore.testing.suite import AdapterSuite, Connect


class TestMemory(AdapterSuite):
    second_connection = False

    @pytest.fixture
    def connect(self) -> Connect:
        def connect(**options: Any) -> Datastore:
            return Datastore("memory://", **options)

        return connect


class TestSQLite(AdapterSuite):
    @pytest.fixture
    def connect(self, tmp_path: Path) -> Connect:
        def connect(**options: Any) -> Datastore:
            return Datastore(f"sqlite:///{tmp_path}/suite.db", **options)

        return connect
