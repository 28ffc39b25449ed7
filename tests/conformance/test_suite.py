"""The shipped suite, bound to every engine."""

from __future__ import annotations

import pytest

from aiodatastore.testing.suite import AdapterSuite, Connect, SideDoor
from tests.engines import Bound, Place, engines


@engines(loops=True)
class TestSuite(AdapterSuite):
    @pytest.fixture
    def side_door(self, place: Place) -> SideDoor:
        if place.door is None:
            pytest.skip("nothing but the adapter reads this store")
        return place.door

    @pytest.fixture
    def connect(self, engine: Bound, place: Place) -> Connect:
        self.second_connection = engine.engine.connections
        return place.connect
