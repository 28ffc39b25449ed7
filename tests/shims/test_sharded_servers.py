"""The suite on stores that are sharded over servers."""

from __future__ import annotations

from aiodatastore.shims.sharded import Sharded
from tests.engines import engines
from tests.shims.stacks import StackSuite


@engines(server=True, loops=True)
class TestOnServers(StackSuite):
    """Two shards: on PostgreSQL with transactions over both, on Redis without."""

    stores = 2
    wrap = staticmethod(lambda *adapters: Sharded(adapters))
