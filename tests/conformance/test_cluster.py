"""The shipped suite and the golden cases on four shards in a cluster."""

from __future__ import annotations

import logging

import pytest

from aiodatastore.testing.conformance import FILES
from aiodatastore.testing.suite import AdapterSuite, Connect, SideDoor
from tests.conformance.test_golden import CORPUS, run
from tests.engines import CLUSTERS, Place

on_clusters = pytest.mark.parametrize(
    ("engine", "anyio_backend"), [(each, "asyncio") for each in CLUSTERS], indirect=True, ids=map(str, CLUSTERS)
)


@on_clusters
class TestCluster(AdapterSuite):
    @pytest.fixture
    def side_door(self, place: Place) -> SideDoor:
        assert place.door is not None
        return place.door

    @pytest.fixture
    def connect(self, place: Place) -> Connect:
        return place.connect


@pytest.mark.parametrize("engine", CLUSTERS, indirect=True, ids=str)
@pytest.mark.parametrize("file", FILES)
def test_every_case(place: Place, file: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="aiodatastore")
    report = run(CORPUS, place.connect, file)
    assert report.ok, "\n".join(report.lines())
