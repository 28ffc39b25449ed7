"""Open, use and close in a process of its own under ``-W error``: not a word on stderr, on any engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.engines import Bound, Place, engines

USE = """
import gc
import anyio
from aiodatastore import Datastore, Entity, Key

async def main(url):
    async with Datastore(url) as ds:
        await ds.put([Entity(Key("K", n), {"n": n, "tags": ["a", "b"]}) for n in range(1, 50)])
        assert (await ds.get(Key("K", 7)))["n"] == 7
        assert await ds.query("K").filter("n", ">", 10).count() == 39
        async for entity in ds.query("K").order("-n").run(page_size=5):
            break  # a query left half way
        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(ds.get, Key("K", n + 1))
        async with ds.transaction():
            await ds.delete(Key("K", 1))
        with anyio.move_on_after(0.0005):
            await ds.query("K").fetch()
        assert await ds.check() == []
    async with Datastore(url) as ds:  # once more, in the same loop
        assert await ds.query("K").count() == EXPECTED

import sys
anyio.run(main, sys.argv[1], backend=sys.argv[2])
gc.collect()
"""

FAILS = """
import sys
import anyio
from aiodatastore import Datastore
from aiodatastore.errors import UnavailableError

async def main(url):
    try:
        await Datastore(url).open()
    except UnavailableError:
        return
    raise AssertionError("it was opened")

anyio.run(main, sys.argv[1])
"""


def run(code: str, *arguments: str) -> None:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@engines(loops=True)
def test_nothing_is_said(engine: Bound, place: Place, anyio_backend: str) -> None:
    run(USE.replace("EXPECTED", "48" if engine.engine.durable else "0"), place.url, anyio_backend)


@pytest.mark.parametrize(
    "url",
    ["postgresql://nobody@127.0.0.1:9/nothing?retry_s=0.1", "redis://127.0.0.1:9/0?retry_s=0.1"],
    ids=["postgres", "redis"],
)
def test_nothing_is_said_of_a_server_that_is_not_there(url: str) -> None:
    run(FAILS, url)


def test_the_process_would_notice() -> None:
    with pytest.raises(AssertionError, match="ResourceWarning"):
        run("import socket; s = socket.socket(); del s")
