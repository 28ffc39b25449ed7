"""Connections that break at every step of the protocol: a call succeeds or says UnavailableError, and is done once.

For each call a dry run tells how many messages go each way; then each of them is cut, halved, delayed, held back, or
delivered late, after the client has gone. Then what is stored is looked at over a connection of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.engine import core
from aiodatastore.errors import DeadlineExceededError, UnavailableError
from aiodatastore.testing.proxy import Action, Direction, Fault, Proxy, postgres_messages, redis_messages
from tests.engines import Bound, Place, engines

pytestmark = pytest.mark.anyio

SPLITTERS = {"postgres": postgres_messages, "redis": redis_messages}
COUNTER = Key("Counter", "c")
TO_SERVER, TO_CLIENT = Direction
DELAY_S = 0.02


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or now and then a call would have one message more than in the dry run."""
    monkeypatch.setattr(core, "CATALOG_MAX_AGE_S", 3600.0)


@dataclass
class Setting:
    """A store behind a proxy, and the same store without."""

    proxy: Proxy
    place: Place
    url: str
    behind: Datastore
    direct: Datastore

    async def count(self) -> int:
        """How often the counter was incremented; the log's entries must agree."""
        counter = await self.direct.get(COUNTER)
        assert counter is not None
        entries = await self.direct.query("Entry", ancestor=COUNTER).fetch()
        assert len(entries) == counter["n"]
        assert sorted(entry["n"] for entry in entries) == list(range(1, counter["n"] + 1))
        return int(counter["n"])

    async def increment(self) -> None:
        """A transaction that does harm if it is applied twice, or by half."""

        async def body() -> None:
            counter = await self.behind.get(COUNTER)
            assert counter is not None
            counter["n"] += 1
            await self.behind.put([counter, Entity(Key("Entry", parent=COUNTER), {"n": counter["n"]})])

        await self.behind.run_in_transaction(body)


@asynccontextmanager
async def behind_a_proxy(engine: Bound, place: Place, *, settings: str = "retry_s=30") -> AsyncIterator[Setting]:
    parts = urlsplit(place.url)
    assert parts.hostname is not None
    with Proxy((parts.hostname, parts.port or 0), split=SPLITTERS[engine.name]) as proxy:
        host, _, _ = parts.netloc.rpartition(":")
        url = parts._replace(netloc=f"{host}:{proxy.port}".replace("localhost", "127.0.0.1")).geturl() + "&" + settings
        if engine.name == "postgres":
            url += "&ssl=disable"
        async with place.connect() as direct:
            await direct.put(Entity(COUNTER, {"n": 0}))
            async with Datastore(url) as behind:
                setting = Setting(proxy, place, url, behind, direct)
                for _ in range(2):  # allocates ids ahead, prepares statements
                    await setting.increment()
                yield setting


async def faults_of(
    setting: Setting, call: Callable[[], Awaitable[Any]], *actions: Action, heal: bool = True
) -> AsyncIterator[Fault]:
    """Every fault at every message of a call, which finds its connection ready if ``heal``."""
    await call()
    setting.proxy.watch()
    await call()
    steps = dict(setting.proxy.seen)
    for action in actions:
        for direction in BREAKS[action]:
            for at in range(steps[direction]):
                if heal:
                    await call()  # what the last fault broke is made anew
                fault = Fault(direction, at, action, delay_s=DELAY_S)
                setting.proxy.arm(fault)
                yield fault
                assert setting.proxy.fired == 1, f"nothing was {fault}"
                setting.proxy.watch()


BREAKS: dict[Action, tuple[Direction, ...]] = {
    Action.CUT: (TO_SERVER, TO_CLIENT),
    Action.CUT_INSIDE: (TO_SERVER, TO_CLIENT),
    Action.CUT_AFTER: (TO_SERVER, TO_CLIENT),
    Action.HALF_CLOSE: (TO_SERVER, TO_CLIENT),
    Action.DELAY: (TO_SERVER, TO_CLIENT),
    Action.LATE: (TO_SERVER,),
}


@engines(server=True)
@pytest.mark.parametrize("action", BREAKS, ids=str)
async def test_commits(engine: Bound, place: Place, action: Action) -> None:
    """A lost answer among them: the caller's word is true, and nothing is applied twice, also when it arrives late."""
    async with behind_a_proxy(engine, place) as setting:
        struck = []
        before = await setting.count()
        calls = 0

        async def call() -> None:
            nonlocal calls
            calls += 1
            await setting.increment()

        async for fault in faults_of(setting, call, action):
            before, calls = await setting.count(), 0
            with anyio.fail_after(60):
                try:
                    await call()
                except UnavailableError as exc:
                    done = await setting.count() - before
                    if done not in (0, 1) or (done and ("nothing was written" in str(exc) or exc.nothing_written)):
                        pytest.fail(f"{fault}: applied {done} times, and it says {exc}")
                else:
                    assert await setting.count() == before + 1, str(fault)
            if action is Action.LATE:
                await anyio.sleep(2 * DELAY_S)
                assert await setting.count() == before + 1, f"{fault}: applied once more when it arrived"
            struck.append(fault)
        assert len(struck) >= 2 * len(BREAKS[action])
        assert await setting.direct.check() == []


@engines(server=True)
@pytest.mark.parametrize("operation", ["get", "query", "count", "page", "put", "delete", "allocate"])
async def test_calls(engine: Bound, place: Place, operation: str) -> None:
    """All that is not a transaction goes on as if nothing had been: within ``retry_s`` a broken connection is nobody's
    business."""
    keys = [Key("K", number) for number in range(1, 8)]
    async with behind_a_proxy(engine, place) as setting:
        ds = setting.behind

        async def call() -> Any:
            match operation:
                case "get":
                    return [entity and entity["n"] for entity in await ds.get(keys)]
                case "query":
                    return [entity["n"] for entity in await ds.query("K").filter("n", ">", 2).order("-n").fetch()]
                case "count":
                    return await ds.query("K").filter("tag", "=", "x").count()
                case "page":
                    return [entity["n"] for entity in (await ds.query("K").order("n").page(3)).entities]
                case "put":
                    await ds.put([Entity(key, {"n": key.id, "tag": "x"}) for key in keys])
                case "delete":
                    await ds.delete(keys)
                case _:
                    first, last = await ds.allocate_ids(Key("K"), 1000)
                    return last - first
            return None

        async def state() -> Any:
            return [entity and entity["n"] for entity in await setting.direct.get(keys)]

        await ds.put([Entity(key, {"n": key.id, "tag": "x"}) for key in keys])
        wanted, stored = await call(), await state()
        struck = 0
        async for fault in faults_of(setting, call, *BREAKS):
            with anyio.fail_after(60):
                assert await call() == wanted, str(fault)
            assert await state() == stored, str(fault)
            struck += 1
        assert struck >= 11
        assert await setting.direct.check() == []


@engines(server=True)
async def test_opening(engine: Bound, place: Place) -> None:
    """Every message of the first exchange: it is opened, or it can't be reached; nothing is left half open."""
    async with behind_a_proxy(engine, place) as setting:

        async def call() -> None:
            async with Datastore(setting.url) as ds:
                assert await ds.get(COUNTER) is not None

        struck = 0
        async for fault in faults_of(setting, call, Action.CUT, Action.HALF_CLOSE, heal=False):
            with anyio.fail_after(60):
                await call()
            struck += bool(fault)
        assert struck > 10
        await wait_for_connections(setting.proxy, 1)


async def wait_for_connections(proxy: Proxy, most: int) -> None:
    with anyio.fail_after(60):
        while proxy.connections > most:  # noqa: ASYNC110  (nothing tells)
            await anyio.sleep(0.01)


@engines(server=True)
async def test_a_silent_server_and_a_deadline(engine: Bound, place: Place) -> None:
    """Nothing answers, nothing breaks: a call with a deadline ends at it, and the next one finds another connection."""
    async with behind_a_proxy(engine, place) as setting:
        for direction in (TO_SERVER, TO_CLIENT):
            for call in (
                lambda: setting.behind.get(COUNTER, timeout=0.2),
                lambda: setting.behind.query("Entry").fetch(timeout=0.2),
                lambda: setting.behind.query("Entry").count(timeout=0.2),
            ):
                struck = 0
                while not struck:  # or the machine stalled, and the deadline came before anything was sent
                    setting.proxy.arm(Fault(direction, 0, Action.STALL))
                    with anyio.fail_after(60), pytest.raises(DeadlineExceededError):
                        await call()
                    struck = setting.proxy.fired
                    setting.proxy.watch()
                    with anyio.fail_after(60):
                        assert await setting.behind.get(COUNTER) is not None


@engines(server=True)
async def test_unreachable_for_a_while(engine: Bound, place: Place) -> None:
    """Callers wait; when the server is back all go on, none twice."""
    async with behind_a_proxy(engine, place) as setting:
        before = await setting.count()
        async with anyio.create_task_group() as group:
            with setting.proxy.down():
                for _ in range(10):
                    group.start_soon(setting.increment)
                await anyio.sleep(0.3)
        assert await setting.count() == before + 10
