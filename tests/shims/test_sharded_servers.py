"""The suite on stores that are sharded over servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest

from aiodatastore import Datastore
from aiodatastore.shims.sharded import Sharded
from aiodatastore.testing.suite import AdapterSuite, Connect, SideDoor
from tests.engines import ADAPTER_OPTIONS, Bound, Place, engines
from tests.shims.stacks import PROFILE, adapter_of


@engines(server=True, loops=True)
class TestOnServers(AdapterSuite):
    """Two shards: on PostgreSQL with transactions over both, on Redis without."""

    hypothesis_profile: ClassVar[str | None] = PROFILE

    @pytest.fixture
    def places(self, engine: Bound) -> Iterator[list[Place]]:
        """Empty stores."""
        with ExitStack() as stack:
            yield [stack.enter_context(engine.place()) for _ in range(2)]

    @pytest.fixture
    def side_door(self) -> SideDoor:
        pytest.skip("what is stored is not what the suite expects to see")

    @pytest.fixture
    def connect(self, places: list[Place]) -> Connect:
        def connect(**options: Any) -> Datastore:
            own = {name: options.pop(name) for name in ADAPTER_OPTIONS if name in options}
            return Datastore(Sharded([adapter_of(place, **own) for place in places]), **options)

        return connect
