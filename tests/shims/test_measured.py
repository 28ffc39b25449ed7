"""``Measured``: figures that are right, in each of their forms."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest

from aiodatastore import BadArgumentError, Datastore, Entity, IndexDefinition, Key, Text, UnavailableError
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import Capability
from aiodatastore.shims.delayed import Delayed
from aiodatastore.shims.failing import Failing
from aiodatastore.shims.measured import BUCKETS_S, Measured
from tests.shims.stacks import ShimSuite

pytestmark = pytest.mark.anyio

ADA = Key("Person", "ada")


class TestSuite(ShimSuite):
    stores_rows = True
    wrap = staticmethod(Measured)


def figures(measured: Measured, operation: str, kind: str = "Person") -> dict[str, Any]:
    found = measured.snapshot()[operation][kind]
    assert sum(found["buckets"].values()) == found["calls"]
    return {name: value for name, value in found.items() if name not in ("seconds", "buckets") and value}


async def test_reads_at_hand_are_counted_each(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    monkeypatch.setattr("aiodatastore.shims.measured.perf_counter", lambda: next(looks) * 0.001)
    measured = Measured(adapter_from_url("memory://"))
    assert Capability.INLINE_READS in measured.capabilities
    async with Datastore(measured) as ds:
        await ds.put(Entity(ADA))
        for calls in range(1, 40):
            await ds.get(ADA)
            assert figures(measured, "lookup") == {"calls": calls, "items": calls, "found": calls}
        await ds.get(Key("Person", "bob"))
        await ds.get([ADA, Key("Person", "bob")])
        await ds.get([ADA, Key("Pet", "rex")])
        for _ in range(20):
            await ds.get(Key("Pet", "rex"))
    assert figures(measured, "lookup") == {"calls": 41, "items": 42, "found": 40}
    assert figures(measured, "lookup", "*") == {"calls": 1, "items": 2, "found": 1}
    assert figures(measured, "lookup", "Pet") == {"calls": 20, "items": 20}
    assert measured.snapshot()["lookup"]["Person"]["seconds"] == pytest.approx(0.041)
    measured.reset()
    assert measured.snapshot() == {}


async def test_index_rows_and_round_trips_are_what_the_store_does() -> None:
    measured = Measured(adapter_from_url("memory://"))
    store: Any = measured.child.store  # type: ignore[attr-defined]
    async with Datastore(measured) as ds:
        index = IndexDefinition("Person", (("tags", "asc"), ("n", "desc")))
        await ds.create_index(index)
        people = [
            Entity(Key("Person", n), {"n": n, "tags": ["a", "b", "a"], "t": Text("x"), "u": 1}, unindexed=["u"])
            for n in range(1, 31)
        ]
        await ds.put(people)
        await ds.put(Entity(Key("Pet", "rex"), {"n": 1}))
        rows = len(store._tails)
        assert rows == 30 * (1 + 1 + 2 + 2) + 2
        assert figures(measured, "commit") == {"calls": 1, "items": 30, "index_rows": rows - 2, "round_trips": 1}
        assert figures(measured, "commit", "Pet") == {"calls": 1, "items": 1, "index_rows": 2, "round_trips": 1}
        stream = measured.run(ds.query("Person").filter("n", "<", 11).query)
        more = True
        while more:
            more = (await stream.next_page()).more
        told = stream.explain()
        query = figures(measured, "query")
        assert query["items"] == 10
        assert (query["index_rows"], query["round_trips"]) == (told.rows, told.scans)
        assert told.rows >= 10
        assert await ds.query("Person").count() == 30
        assert figures(measured, "aggregate") == {"calls": 1, "items": 1, "round_trips": 1}  # counted, not read
        assert await ds.query("Person").filter("n", ">", 20).filter("tags", "=", "a").count() == 10
        read = figures(measured, "aggregate")
        assert read["index_rows"] >= 10
        assert read["round_trips"] >= 2
        await ds.delete([Key("Person", 1), Key("Pet", "rex")])
        assert figures(measured, "commit", "*") == {"calls": 1, "round_trips": 1}
        assert figures(measured, "commit")["items"] == 31
        await ds.allocate_ids(Key("Person"), 10)
        assert figures(measured, "allocate_ids") == {"calls": 1, "items": 10, "round_trips": 1}


async def test_errors_and_conflicts() -> None:
    failing = Failing(adapter_from_url("memory://"), 1.0)
    measured = Measured(failing)
    async with Datastore(measured) as ds:
        for call in (lambda: ds.get(ADA), lambda: ds.put(Entity(ADA)), lambda: ds.query("Person").fetch(1)):
            with pytest.raises(UnavailableError):
                await call()
        failing.enabled = False
        await ds.insert(Entity(ADA))
        with pytest.raises(Exception, match="exists"):
            await ds.insert(Entity(ADA))
        with pytest.raises(Exception, match="index rows"):
            await ds.put(Entity(ADA, {"n": list(range(30_000))}))
    assert figures(measured, "query")["errors"] == {"UnavailableError": 1}
    assert figures(measured, "commit") == {
        "calls": 4,
        "items": 1,
        "index_rows": 1,
        "conflicts": 1,
        "round_trips": 4,
        "errors": {"UnavailableError": 1, "BadRequestError": 1},
    }


async def test_latencies_are_in_their_buckets() -> None:
    measured = Measured(Delayed(adapter_from_url("memory://"), 0.02))
    async with Datastore(measured) as ds:
        await ds.get(ADA)
        await ds.get(ADA)
    found = measured.snapshot()["lookup"]["Person"]
    assert list(found["buckets"]) == [*BUCKETS_S, math.inf]
    assert sum(count for bound, count in found["buckets"].items() if bound >= 0.025) == 2
    assert 0.04 <= found["seconds"] < 60
    assert found["round_trips"] == 2


async def test_many_kinds_are_bounded() -> None:
    measured = Measured(adapter_from_url("memory://"), max_kinds=3)
    async with Datastore(measured) as ds:
        for number in range(10):
            for _ in range(3):
                await ds.get(Key(f"Kind{number}", 1))
            await ds.put(Entity(Key(f"Kind{number}", 1)))
    for operation in ("lookup", "commit"):
        found = measured.snapshot()[operation]
        assert set(found) == {"Kind0", "Kind1", "Kind2", "*"}
        assert found["*"]["calls"] == (21 if operation == "lookup" else 7)


LINE = re.compile(r'aiodatastore_[a-z_]+\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\} [0-9.e+-]+')


async def test_prometheus() -> None:
    measured = Measured(adapter_from_url("memory://"), name='a"b')
    async with Datastore(measured) as ds:
        await ds.put(Entity(Key('K"\n\\', 1)))
        await ds.get(ADA)
    text = measured.prometheus()
    lines = text.removesuffix("\n").split("\n")
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line), line
    labels = r'store="a\"b",operation="commit",kind="K\"\n\\"'
    assert f"aiodatastore_operation_seconds_count{{{labels}}} 1" in lines
    assert f'aiodatastore_operation_seconds_bucket{{{labels},le="+Inf"}} 1' in lines
    assert f"aiodatastore_index_rows_total{{{labels}}} 1" in lines
    # Each metric is in one block, with its type before it.
    names = [line.split(" ")[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    counts = [int(line.rpartition(" ")[2]) for line in lines if f"_bucket{{{labels}" in line]
    assert counts == sorted(counts)
    assert "errors_total{" not in text


async def test_open_telemetry() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([reader], shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    failing = Failing(adapter_from_url("memory://"), 0.0)
    measured = Measured(failing, name="shop", meter_provider=meters, tracer_provider=tracers)
    async with Datastore(measured) as ds:
        await ds.put(Entity(ADA, {"n": 1}))
        await ds.get(ADA)
        await ds.query("Person").fetch(1)
        failing._rate = 1.0
        with pytest.raises(UnavailableError):
            await ds.put(Entity(ADA))
        failing._rate = 0.0
    found = spans.get_finished_spans()
    assert [span.name for span in found] == ["open", "commit Person", "query Person", "commit Person"]
    assert dict(found[1].attributes or {}) == {
        "db.system.name": "aiodatastore",
        "db.namespace": "shop",
        "db.operation.name": "commit",
        "db.collection.name": "Person",
        "aiodatastore.index_rows": 2,
        "aiodatastore.round_trips": 1,
    }
    failed = found[3]
    assert not failed.status.is_ok
    assert (failed.attributes or {})["error.type"] == "UnavailableError"
    assert not failed.events  # texts may have values
    data = reader.get_metrics_data()
    assert data is not None
    points: dict[tuple[str, str], Any] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            attributes = point.attributes or {}
            name = str(attributes["db.operation.name"]) + ("!" if "error.type" in attributes else "")
            points[metric.name, name] = point
    assert points["aiodatastore.calls", "lookup"].value == 1  # at hand: counted, without a span
    assert points["aiodatastore.calls", "commit"].value == 2
    assert points["aiodatastore.index_rows", "commit"].value == 2
    assert points["aiodatastore.errors", "commit!"].value == 1
    assert points["db.client.operation.duration", "query"].count == 1
    assert points["db.client.operation.duration", "commit!"].count == 1
    tracers.shutdown()
    meters.shutdown()


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    Measured(adapter_from_url("memory://"))
    with pytest.raises(BadArgumentError, match=r"pip install .*\[telemetry\]"):
        Measured(adapter_from_url("memory://"), telemetry=True)


@pytest.mark.parametrize("arguments", [{"name": 5}, {"max_kinds": 0}])
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadArgumentError, match="expected"):
        Measured(adapter_from_url("memory://"), **arguments)
