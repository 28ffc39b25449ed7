"""The adapter conformance suite: pytest classes that every adapter, ours or yours, runs.

A store joins by one short class with a fixture that connects to it::

    from aiodatastore import Datastore
    from aiodatastore.testing.suite import AdapterSuite

    class TestMyStore(AdapterSuite):
        @pytest.fixture
        def connect(self, tmp_path):
            return lambda **options: Datastore(f"mystore://{tmp_path}", **options)

Every test starts with an empty store and runs under each event loop that anyio's pytest plugin offers; override its
``anyio_backend`` fixture to choose. :class:`AdapterSuite` is all of it; the parts can be taken alone.
"""

from __future__ import annotations

from aiodatastore.testing.suite.base import Connect, SideDoor, StoreTests
from aiodatastore.testing.suite.concurrency import ConcurrencyTests
from aiodatastore.testing.suite.entities import EntityTests
from aiodatastore.testing.suite.indexes import IndexTests
from aiodatastore.testing.suite.queries import QueryTests
from aiodatastore.testing.suite.transactions import TransactionTests

__all__ = [
    "AdapterSuite",
    "ConcurrencyTests",
    "Connect",
    "EntityTests",
    "IndexTests",
    "QueryTests",
    "SideDoor",
    "StoreTests",
    "TransactionTests",
]


class AdapterSuite(EntityTests, QueryTests, TransactionTests, IndexTests, ConcurrencyTests):
    """The whole contract."""
