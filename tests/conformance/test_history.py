"""Serializability: many tasks on every engine, several processes where it has them, and broken stores, caught."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import anyio
import pytest

from aiodatastore import Datastore
from aiodatastore.adapters.base import Commit, Outcome
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.testing.history import (
    WORKLOADS,
    History,
    Recorded,
    Workload,
    check,
    mixed,
    phantom,
    read_modify_write,
    run_workload,
    verify_workload,
    write_skew,
)
from tests.engines import Bound, Place, engines

PROCESSES = 4


def show(history: History) -> str:
    return "\n".join(map(str, verify_workload(history)))


@engines(loops=True)
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_many_tasks(workload: Workload, engine: Bound, place: Place, anyio_backend: str) -> None:
    tasks, transactions = (24, 20) if engine.name == "memory" else (12, 15)

    async def main() -> History:
        async with place.connect() as ds:
            return await run_workload(ds, workload, tasks=tasks, transactions=transactions, items=5)

    history = anyio.run(main, backend=anyio_backend)
    assert history.count("committed") == tasks * transactions
    assert show(history) == ""


WRITER = """
import sys, anyio
from aiodatastore import Datastore
from aiodatastore.testing.history import WORKLOADS, run_workload

async def main(url, workload, client):
    async with Datastore(url) as ds:
        await run_workload(
            ds, WORKLOADS[workload], tasks=4, transactions=20, items=6, client=client,
            record=lambda recorded: print(recorded.to_json()),
        )

anyio.run(main, *sys.argv[1:])
"""


@engines(processes=True)
@pytest.mark.parametrize("workload", ["mixed", "phantom", "list_append"])
def test_several_processes(workload: str, place: Place) -> None:
    commands = [[sys.executable, "-c", WRITER, place.url, workload, f"p{number}"] for number in range(PROCESSES)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    history = History()
    for process in running:
        out, err = process.communicate(timeout=250)
        assert (process.returncode, err) == (0, "")
        for line in out.splitlines():
            history.add(Recorded.from_json(line))
    assert history.count("committed") == PROCESSES * 80
    clients = {each.name.split("-")[0] for each in history.transactions}
    assert len(clients) == PROCESSES
    assert show(history) == ""

    async def recheck() -> list[str]:
        async with place.connect() as ds:
            return await ds.check()

    assert anyio.run(recheck) == []


# ------------------------------------------------------------------------ broken stores are caught


class Forgetful(EngineAdapter):
    """Does not check all that a transaction has read."""

    keys = True
    spans = True

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        return await super().commit(
            [
                Commit(
                    checks=each.checks if self.keys else {},
                    spans=each.spans if self.spans else (),
                    writes=each.writes,
                    token=each.token,
                )
                for each in batch
            ]
        )


class ForgetsKeys(Forgetful):
    keys = False


class ForgetsSpans(Forgetful):
    """No phantom is noticed; what a query found is among the keys."""

    spans = False


class ForgetsOnlyRead(Forgetful):
    """Checks what is written, as snapshot isolation does."""

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        kept = []
        for each in batch:
            written = {getattr(write, "key", None) or write.entity.key for write in each.writes}  # type: ignore[union-attr] # a Put has no key
            checks = {key: version for key, version in each.checks.items() if key in written}
            kept.append(Commit(checks=checks, writes=each.writes, token=each.token))
        return await EngineAdapter.commit(self, kept)


@pytest.mark.parametrize(
    ("broken", "workload", "wanted"),
    [
        (ForgetsKeys, read_modify_write, {"G-single", "G2-item"}),
        (ForgetsOnlyRead, write_skew, {"G2-item"}),
        (ForgetsSpans, phantom, {"G2", "G-single"}),
        (ForgetsKeys, mixed, {"G-single", "G2-item"}),
    ],
)
def test_broken_stores_are_caught(broken: type[EngineAdapter], workload: Workload, wanted: set[str]) -> None:
    async def main(seed: int) -> History:
        async with Datastore(broken(MemoryRowStore())) as ds:
            return await run_workload(ds, workload, tasks=16, transactions=20, items=4, seed=seed)

    found: set[str] = set()
    replayed = False
    for seed in range(20):  # who meets whom is the clock's doing, too
        history = anyio.run(main, seed)
        found.update(each.kind for each in check(history))
        replayed = replayed or any(each.kind == "replay" for each in verify_workload(history))
        if wanted & found and replayed:
            break
    assert wanted & found, f"found only {found}"
    assert replayed
