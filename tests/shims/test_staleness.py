"""What caches promise, put to the test by several processes; and caches that break it, caught."""

from __future__ import annotations

import asyncio
import math
import random
import selectors
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiodatastore import Datastore, Key
from aiodatastore.adapters.base import Adapter, Commit, Lookup, Outcome, ReadPolicy
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.errors import UnavailableError
from aiodatastore.shims.base import Shim
from aiodatastore.shims.cached import Cached
from aiodatastore.shims.cached.flights import Flight
from aiodatastore.shims.tiered import Tiered
from aiodatastore.testing import staleness
from aiodatastore.testing.history import verify_workload
from aiodatastore.testing.staleness import Made, Seen, Timeline, check_staleness, run_processes, run_reads
from tests.engines import ENGINES, Bound

BOUND_S = 0.3
SHARED = [ENGINES[name] for name in ("sqlite", "postgres", "redis") if name in ENGINES]
WAYS = [(engine, way) for engine in SHARED for way in ("time", "push") if engine.server or way == "time"]


def look(
    engine: Bound,
    *,
    bound_s: float,
    real_time: bool,
    reads: int,
    writes: int = 0,
    beside: str | None = None,
    **settings: Any,
) -> None:
    """Let processes run for a second, and check what they saw; for longer, on a new store, until it was enough.

    ``beside``: the setting of ``run_processes`` that names another store, in a file.
    """
    for seconds in (1.0, 4.0, 16.0):
        with engine.place() as place, tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder) / 'beside.db'}?synchronous=OFF"
            if beside is not None:
                settings[beside] = [url] if beside == "tiers" else url
            timeline, history = run_processes(place.url, processes=3, seconds=seconds, **settings)
        assert check_staleness(timeline, bound_s) == []
        assert verify_workload(history, real_time=real_time) == []
        if len(timeline.reads) > reads and len(timeline.writes) > writes:
            return
    pytest.fail("too little was read or written, however long it took")


@pytest.mark.parametrize(("engine", "way"), WAYS, indirect=["engine"], ids=[f"{engine}-{way}" for engine, way in WAYS])
def test_several_processes(engine: Bound, way: str) -> None:
    look(
        engine,
        bound_s=BOUND_S,
        real_time=False,
        reads=100,
        writes=10,
        staleness_s=BOUND_S,
        invalidation=way,
        transactions=8,
    )


@pytest.mark.skipif("sqlite" not in ENGINES, reason="needs SQLite")
@pytest.mark.parametrize("engine", [ENGINES.get("sqlite")], indirect=True, ids=str)
def test_with_a_shared_cache(engine: Bound) -> None:
    """Of three entities each process forgets all but two, so that the cache is asked."""
    look(
        engine,
        bound_s=BOUND_S,
        real_time=False,
        reads=50,
        beside="cache",
        staleness_s=BOUND_S,
        max_entities=2,
        transactions=5,
    )


@pytest.mark.skipif("sqlite" not in ENGINES, reason="needs SQLite")
@pytest.mark.parametrize("engine", [ENGINES.get("sqlite")], indirect=True, ids=str)
def test_tiers(engine: Bound) -> None:
    """All who write through the same tiers see each other's commits at once."""
    look(engine, bound_s=0.0, real_time=True, reads=50, beside="tiers", transactions=5)


# -------------------------------------------------------------------------------- wrong caches are caught


class Hours:
    """Clocks that move by what is waited for, and a little at each look: a machine that stalls does not stop them.

    The event loop's is among them: while nothing can run, its next timer is due at once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        for name in ("monotonic", "time"):
            monkeypatch.setattr(time, name, self.look)

    def look(self) -> float:
        self.now += 2e-6
        return self.now

    def run(self, main: Callable[[], Awaitable[Timeline]]) -> Timeline:
        hours = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                if timeout is None:
                    return super().select()
                found = super().select(0)
                if not found:
                    hours.now += max(0.0, timeout)
                return found

        options = {"loop_factory": lambda: asyncio.SelectorEventLoop(Selector())}
        return anyio.run(main, backend="asyncio", backend_options=options)


class Slow(Shim):
    """Answers late, now and then, so that reads and commits overtake each other."""

    def __init__(self, child: Adapter) -> None:
        super().__init__(child)
        self._rng = random.Random(1)

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        found = await self.child.lookup(keys, read_policy=read_policy)
        await anyio.sleep(self._rng.random() * 0.004)
        return found

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        found = await self.child.commit(batch)
        await anyio.sleep(self._rng.random() * 0.001)
        return found

    def lookup_now(self, keys: Sequence[Key]) -> None:
        return None

    async def open(self) -> None:
        """The test opens and closes the store."""

    async def aclose(self) -> None:
        """See above."""


class Losing(Slow):
    """Loses the answers of some commits, which took effect or did not."""

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        chance = self._rng.random()
        if chance < 0.05:
            raise UnavailableError("not sent")
        found = await super().commit(batch)
        if chance > 0.95:
            raise UnavailableError("lost")
        return found


@pytest.mark.parametrize("seed", range(3))
def test_tiers_whose_writers_fail(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers that end half-way, in the tier or in the last: nobody reads what was overwritten."""

    async def main() -> Timeline:
        fast, last = EngineAdapter(MemoryRowStore()), EngineAdapter(MemoryRowStore())
        timeline = Timeline()
        await fast.open()
        await last.open()
        async with anyio.create_task_group() as group:

            async def process(name: str) -> None:
                tiers = Tiered([Losing(fast), Losing(last)], name="here", mark_s=0.3)
                async with Datastore(tiers) as ds:
                    await run_reads(
                        ds, process=name, tasks=4, items=3, seconds=0.7, writes=0.2, seed=seed, record=timeline.add
                    )

            for name in ("p0", "p1", "p2"):
                group.start_soon(process, name)
        await last.aclose()
        await fast.aclose()
        return timeline

    timeline = Hours(monkeypatch).run(main)
    assert len(timeline.reads) > 100
    assert len(timeline.writes) > 5
    assert [finding for finding in check_staleness(timeline, 0.0) if finding.kind != "unknown"] == []


class Deaf(Cached):
    """Learns nothing from its own commits."""

    def _note(self, *_: Any) -> None:
        pass


class Hasty(Cached):
    """Keeps whatever arrives, whenever it was sent."""


class Eternal(Cached):
    """Serves copies four times as long as it says."""

    def __init__(self, child: Adapter, **settings: Any) -> None:
        super().__init__(child, **{**settings, "staleness_s": 4 * settings["staleness_s"]})


class Sound(Cached):
    """As it should be."""


@pytest.fixture
def _broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = request.getfixturevalue("kind")
    if kind is Hasty:
        monkeypatch.setattr(Flight, "brings", lambda *_: True)


@pytest.mark.parametrize(
    ("kind", "wanted", "room", "writes"),
    [
        (Sound, set(), 1, 0.3),
        (Sound, set(), 10, 0.03),
        (Deaf, {"own commit not seen"}, 10, 0.1),
        (Hasty, {"own commit not seen"}, 1, 0.3),
        (Eternal, {"older than the bound"}, 10, 0.03),
    ],
)
@pytest.mark.usefixtures("_broken")
def test_what_the_checker_sees(
    kind: type[Cached], wanted: set[str], room: int, writes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two caches in this process, each with a name of its own and not told by the other.

    Where there is little room for copies, what is known of a commit must not be forgotten with its copy.
    """

    async def main() -> Timeline:
        store = EngineAdapter(MemoryRowStore())
        timeline = Timeline()
        await store.open()
        async with anyio.create_task_group() as group:

            async def process(name: str) -> None:
                cached = kind(Slow(store), staleness_s=0.05, max_entities=room)
                async with Datastore(cached) as ds:
                    assert cached._hub is not None
                    cached._hub.members.remove(cached)
                    try:
                        await run_reads(
                            ds, process=name, tasks=6, items=3, seconds=1.0, writes=writes, record=timeline.add
                        )
                    finally:
                        cached._hub.members.append(cached)

            group.start_soon(process, "p0")
            group.start_soon(process, "p1")
        await store.aclose()
        return timeline

    timeline = Hours(monkeypatch).run(main)
    assert len(timeline.reads) > 100
    found = {finding.kind for finding in check_staleness(timeline, 0.05)}
    assert found >= wanted
    if not wanted:
        assert not found


def test_the_checker_by_hand() -> None:
    made = [Made("p0", "a", 3, 1.0, 2.0), Made("p0", "a", 7, 3.0, 4.0), Made("p1", "b", 5, 1.0, 9.0)]

    def findings(*reads: Seen) -> list[str]:
        return [finding.kind for finding in check_staleness(Timeline(list(reads), made), 1.0)]

    assert findings(Seen("p0", "a", 3, 4.0, 4.1), Seen("p1", "a", 3, 4.9, 5.0), Seen("p0", "b", 0, 9.9, 10.0)) == []
    assert findings(Seen("p0", "a", 3, 4.1, 4.2)) == ["own commit not seen"]
    assert findings(Seen("p1", "a", 3, 5.1, 5.2)) == ["older than the bound"]
    assert findings(Seen("p1", "a", 0, 3.1, 3.2)) == ["older than the bound"]
    assert findings(Seen("p1", "a", 4, 4.1, 4.2)) == ["unknown"]
    assert findings(Seen("p1", "a", 7, 4.1, 4.2), Seen("p1", "a", 3, 4.3, 4.4)) == ["went back"]
    assert findings(Seen("p1", "a", 7, 4.1, 4.4), Seen("p1", "a", 3, 4.3, 4.4)) == []
    assert Timeline([Seen("p1", "a", 3, 4.5, 4.6)], made).worst_s() == 0.5
    assert Timeline().worst_s() == -math.inf
    events: list[Made | Seen] = [*made, Seen("p1", "a", 3, 4.5, 4.6)]
    for event in events:
        assert staleness.from_line(staleness.to_line(event)) == event


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/store.db?synchronous=OFF"
    assert staleness.main([url, "--processes", "2", "--seconds", "0.3"]) == 0
    assert "as promised" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        staleness.main([])
    capsys.readouterr()
    with pytest.raises(RuntimeError, match="a process ended with 1"):
        run_processes("nowhere://", processes=1)
