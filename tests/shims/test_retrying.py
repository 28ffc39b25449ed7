"""``Retrying``: what is tried again, and what is not, as it may have taken effect."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiodatastore import (
    BadArgumentError,
    Datastore,
    Entity,
    Key,
    StoreBusyError,
    StoreClosedError,
    StoreFullError,
    StoreReadOnlyError,
    UnavailableError,
)
from aiodatastore.adapters.base import Adapter, Commit, Delete, Outcome, Put
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.entity import Entity as StoredEntity
from aiodatastore.rowstore import EXISTS, Capability
from aiodatastore.shims.base import Shim
from aiodatastore.shims.failing import Failing
from aiodatastore.shims.retrying import Retrying
from tests.shims.stacks import ShimSuite

pytestmark = pytest.mark.anyio

ADA, BOB = Key("Person", "ada"), Key("Person", "bob")


def patient(adapter: Adapter, rate: float, **options: Any) -> Retrying:
    return Retrying(Failing(adapter, rate, **options), attempts=50, base_s=0.0, max_s=0.0)


class TestSuite(ShimSuite):
    """A third of all operations fails before it is begun, of reads afterwards, too: nobody notices."""

    stores_rows = True
    wrap = staticmethod(
        lambda adapter: patient(
            Retrying(
                Failing(adapter, 0.3, seed=1, when="both", operations=["lookup", "query", "aggregate", "allocate_ids"]),
                attempts=50,
                base_s=0.0,
                max_s=0.0,
            ),
            0.3,
            seed=2,
        )
    )


class Scripted(Shim):
    """Each commit does the next of ``script``: ``before``, ``after`` and ``lost`` fail, the first for certain."""

    def __init__(self, child: Adapter, *script: str) -> None:
        super().__init__(child)
        self.script = list(script)
        self.tries = 0

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        self.tries += 1
        what = self.script.pop(0) if self.script else ""
        outcomes = await self.child.commit(batch) if what in ("", "after") else []
        if not what:
            return outcomes
        error = UnavailableError(f"try {self.tries} failed")
        error.nothing_written = what == "before"
        raise error


async def opened(*script: str, **options: Any) -> tuple[Retrying, Scripted]:
    scripted = Scripted(adapter_from_url("memory://"), *script)
    shim = Retrying(scripted, **{"attempts": 4, "base_s": 0.0, "max_s": 0.0, **options})
    await shim.open()
    return shim, scripted


def put(key: Key = ADA, n: int = 1) -> Put:
    return Put(StoredEntity(key, {"n": n}))


async def version_of(shim: Adapter, key: Key = ADA) -> int:
    found = (await shim.lookup([key])).entities[0]
    return 0 if found is None else found.version


async def test_commits_that_certainly_wrote_nothing() -> None:
    shim, scripted = await opened("before", "before", "before")
    [outcome] = await shim.commit([Commit(writes=[put()])])
    assert outcome.committed
    assert scripted.tries == 4
    assert await version_of(shim) == outcome.version


async def test_attempts_come_to_an_end() -> None:
    shim, scripted = await opened(*["before"] * 9)
    with pytest.raises(UnavailableError, match="try 4 failed"):
        await shim.commit([Commit(writes=[put()])])
    assert scripted.tries == 4


UNSAFE = [
    Commit(writes=[put()]),
    Commit({ADA: 0}, writes=[put()]),  # an insert: what was inserted may have been deleted since
    Commit({ADA: EXISTS}, writes=[put()]),
    Commit({BOB: 1}, writes=[put()]),  # it checks what it does not write
    Commit({ADA: 0}, writes=[Delete(ADA)]),
    Commit({ADA: 1}, writes=[put(), put(BOB)], atomic=False),
]


@pytest.mark.parametrize("commit", UNSAFE)
async def test_what_may_have_taken_effect_is_not_repeated(commit: Commit) -> None:
    shim, scripted = await opened("before", "after")
    with pytest.raises(UnavailableError, match="try 2 failed"):
        await shim.commit([commit])
    assert scripted.tries == 2
    # Not beside a harmless one either.
    scripted.script = ["after"]
    with pytest.raises(UnavailableError, match="try 3 failed"):
        await shim.commit([Commit({BOB: 0}), commit])
    assert scripted.tries == 3


async def test_a_change_of_a_version_is_repeated_as_it_cannot_happen_twice() -> None:
    shim, scripted = await opened()
    [first] = await shim.commit([Commit(writes=[put()])])
    assert first.version is not None
    # It had taken effect: the repeat meets itself, and nobody can tell.
    scripted.script = ["after"]
    change = Commit({ADA: first.version}, writes=[put(n=2)])
    [outcome] = await shim.commit([change])
    assert isinstance(outcome.error, UnavailableError)
    assert str(outcome.error) == "try 2 failed"
    assert scripted.tries == 3
    version = await version_of(shim)
    assert version > first.version
    # It had not, though that was not certain: the repeat succeeds.
    scripted.script = ["lost"]
    [outcome] = await shim.commit([Commit({ADA: version}, writes=[put(n=3)])])
    assert outcome.committed
    assert await version_of(shim) == outcome.version


async def test_after_doubt_the_first_error_counts() -> None:
    shim, scripted = await opened()
    await shim.commit([Commit(writes=[put()])])
    version = await version_of(shim)
    scripted.script = ["after", "before", "before", "before"]
    [outcome] = await shim.commit([Commit({ADA: version}, writes=[put(n=2)])])
    assert str(outcome.error) == "try 2 failed"
    assert scripted.tries == 5


async def test_neighbours_of_a_doubtful_commit_have_their_own_outcomes() -> None:
    shim, scripted = await opened()
    await shim.commit([Commit(writes=[put()]), Commit(writes=[put(BOB)])])
    ada, bob = await version_of(shim), await version_of(shim, BOB)
    scripted.script = ["after"]
    stale = Commit({BOB: bob + 100})
    fresh = Commit({BOB: bob}, writes=[put(BOB, 2)])
    outcomes = await shim.commit([Commit({ADA: ada}, writes=[put(n=2)]), stale, fresh])
    assert [type(outcome.error) for outcome in outcomes] == [UnavailableError, type(None), UnavailableError]
    assert outcomes[1].conflicts == {BOB: outcomes[1].conflicts[BOB]}
    assert await version_of(shim, BOB) > bob


class Halved(Shim):
    """Half of a batch fails by itself, as where it goes to several stores."""

    tries = 0
    certain = True

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        self.tries += 1
        outcomes: list[Outcome] = []
        for place, commit in enumerate(batch):
            if place % 2 or self.tries > 2:
                outcomes += await self.child.commit([commit])
                continue
            error = UnavailableError(f"try {self.tries} failed")
            error.nothing_written = self.certain
            outcomes.append(Outcome(None, error=error))
        return outcomes


async def test_commits_that_failed_by_themselves_are_tried_again_by_themselves() -> None:
    child = Halved(adapter_from_url("memory://"))
    shim = Retrying(child, base_s=0.0, max_s=0.0)
    await shim.open()
    batch = [Commit(writes=[put(Key("Person", number))]) for number in range(1, 6)]
    outcomes = await shim.commit(batch)
    assert child.tries == 3
    assert all(outcome.committed for outcome in outcomes)
    for number, outcome in enumerate(outcomes, 1):
        assert await version_of(shim, Key("Person", number)) == outcome.version
    child.tries, child.certain = 0, False
    checked = Commit({Key("Person", 5): outcomes[4].version or 0}, writes=[put(Key("Person", 5))])
    outcomes = await shim.commit([*batch[:4], checked])
    assert child.tries == 3
    assert [type(outcome.error) for outcome in outcomes] == [
        UnavailableError,
        type(None),
        UnavailableError,
        type(None),
        type(None),
    ]


async def test_a_transaction_through_it_is_applied_once() -> None:
    failing = Failing(adapter_from_url("memory://"), 0.4, seed=3, when="both")
    async with Datastore(Retrying(failing, attempts=30, base_s=0.0, max_s=0.0)) as ds:
        failing.enabled = False
        await ds.put(Entity(ADA, {"n": 0}))
        failing.enabled = True
        certain = doubtful = 0

        async def count() -> None:
            found = await ds.get(ADA)
            assert found is not None
            found["n"] += 1
            await ds.put(found)

        for _ in range(100):
            try:
                await ds.run_in_transaction(count)
                certain += 1
            except UnavailableError:
                doubtful += 1
        failing.enabled = False
        found = await ds.get(ADA)
    assert found is not None
    assert certain <= found["n"] <= certain + doubtful
    assert certain > 40
    assert doubtful > 5


async def test_a_store_that_another_process_holds(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    child = adapter_from_url(f"sqlite:///{path}?busy_timeout_s=0.01")
    async with Datastore(Retrying(child, attempts=100, base_s=0.005, max_s=0.02)) as ds:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusyError) as busy:
                await child.commit([Commit(writes=[put()])])
            assert busy.value.nothing_written
            async with anyio.create_task_group() as group:
                group.start_soon(ds.put, Entity(ADA, {"n": 7}))
                await anyio.sleep(0.05)
                other.execute("ROLLBACK")
        found = await ds.get(ADA)
    assert found == Entity(ADA, {"n": 7})


@pytest.mark.parametrize("error", [StoreClosedError, StoreReadOnlyError, StoreFullError, ValueError])
async def test_what_does_not_pass_is_raised_at_once(error: type[Exception]) -> None:
    failing = Failing(adapter_from_url("memory://"), 1.0, error=error)
    await failing.open()
    shim = Retrying(failing, base_s=0.0)
    with pytest.raises(error):
        await shim.lookup([ADA])
    with pytest.raises(error):
        shim.lookup_now([ADA])
    assert failing.injected == {"lookup": 2}


async def test_reads_at_hand_that_fail_are_left_to_those_that_can_wait() -> None:
    failing = Failing(adapter_from_url("memory://"), 1.0, error=StoreBusyError)
    await failing.open()
    shim = Retrying(failing)
    assert Capability.INLINE_READS in shim.capabilities
    assert shim.lookup_now([ADA]) is None


async def test_opening_is_tried_again_and_what_changes_something_is_not() -> None:
    failing = Failing(adapter_from_url("memory://"), 0.5, seed=1, operations=["open"])
    async with Datastore(Retrying(failing, attempts=30, base_s=0.0)):
        assert failing.injected["open"] >= 1
    failing = Failing(adapter_from_url("memory://"), 1.0, when="after")
    shim = Retrying(failing, base_s=0.0)
    failing.enabled = False
    await shim.open()
    failing.enabled = True
    with pytest.raises(UnavailableError):
        await shim.reserve_ids(Key("Person"), 10)
    assert failing.injected == {"reserve_ids": 1}


async def test_pauses_double_and_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("aiodatastore.shims.retrying.anyio.sleep", sleep)
    for seed in range(100):
        failing = Failing(adapter_from_url("memory://"), 1.0)
        with pytest.raises(UnavailableError):
            await Retrying(failing, 6, base_s=0.1, max_s=0.5, seed=seed).lookup([ADA])
    for place, most in enumerate((0.1, 0.2, 0.4, 0.5, 0.5)):
        found = slept[place::5]
        assert len(found) == 100
        assert 0 <= min(found) < most / 4
        assert most * 0.75 < max(found) <= most


async def test_cancellation_ends_the_pauses() -> None:
    failing = Failing(adapter_from_url("memory://"), 1.0)
    with anyio.move_on_after(0.02) as scope:
        await Retrying(failing, 10**6, base_s=0.001, max_s=0.001).lookup([ADA])
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attempts": 0}, "attempts: expected an int, 1 or more"),
        ({"attempts": 2.0}, "attempts"),
        ({"base_s": -1}, "base_s"),
        ({"base_s": 3, "max_s": 2}, "max_s: expected at least base_s"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        Retrying(adapter_from_url("memory://"), **arguments)
