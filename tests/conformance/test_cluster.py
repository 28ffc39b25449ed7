"""The shipped suite and golden cases on shards in a cluster."""

from __future__ import annotations

import logging

import pytest

from aiodatastore.testing.suite import AdapterSuite, Connect, SideDoor
from tests.conformance.test_golden import CORPUS, run
from tests.engines import CLUSTERS, SLOTS, Place

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
@pytest.mark.parametrize("file", ["allocate_ids", "cursors", "entities", "multiquery"])
def test_cases_on_four_shards(place: Place, file: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="aiodatastore")
    report = run(CORPUS, place.connect, file)
    assert report.ok, "\n".join(report.lines())


@pytest.mark.parametrize("engine", SLOTS, indirect=True, ids=str)
def test_cases_of_transactions_on_one_shard(place: Place) -> None:
    """Others than those need a shard that has all."""
    report = run(CORPUS, place.connect, "transactions")
    assert report.ok, "\n".join(report.lines())
