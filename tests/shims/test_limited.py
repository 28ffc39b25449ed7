"""``Limited``: what is too large is refused, and the rest waits in line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from aiodatastore import BadArgumentError, Datastore, Entity, Key, LimitExceededError, OverloadedError
from aiodatastore.adapters.base import Adapter, Commit, Delete, Lookup, Put, ReadPolicy
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import Capability
from aiodatastore.serializers import MsgpackSerializer
from aiodatastore.shims.base import Shim
from aiodatastore.shims.limited import Limited
from tests.shims.stacks import ShimSuite

pytestmark = pytest.mark.anyio

ADA = Key("Person", "ada")


class TestSuite(ShimSuite):
    both_loops = True
    stores_rows = True
    wrap = staticmethod(
        lambda adapter: Limited(adapter, rate=1e6, concurrency=2, max_batch=10**6, max_entity_bytes=10**8)
    )


async def test_entities_that_are_too_large() -> None:
    entity = Entity(ADA, {"text": "x" * 100})
    size = len(MsgpackSerializer().dumps(entity))
    shim = Limited(adapter_from_url("memory://"), max_entity_bytes=size)
    assert Capability.INLINE_READS in shim.capabilities
    assert shim.lookup_now == shim.child.lookup_now
    async with Datastore(shim) as ds:
        await ds.put(entity)
        with pytest.raises(LimitExceededError, match=f"has {size + 1} bytes, at most {size} are allowed") as caught:
            await ds.put(Entity(ADA, {"text": "x" * 101}))
        assert (caught.value.limit, caught.value.allowed, caught.value.given) == ("max_entity_bytes", size, size + 1)
        assert await ds.get(ADA) == entity


async def test_only_the_commit_at_fault_is_refused() -> None:
    shim = Limited(adapter_from_url("memory://"), max_batch=2)
    await shim.open()
    three = Commit(writes=[Delete(Key("Person", n)) for n in (1, 2, 3)])
    one = Commit(writes=[Put(Entity(ADA))])
    outcomes = await shim.commit([three, one, three])
    assert [type(outcome.error) for outcome in outcomes] == [LimitExceededError, type(None), LimitExceededError]
    assert outcomes[1].committed
    outcomes = await shim.commit([three])
    assert isinstance(outcomes[0].error, LimitExceededError)
    assert outcomes[0].error.limit == "max_batch"


async def test_lookups_of_too_many_keys_and_gets_that_travel_together() -> None:
    keys = [Key("Person", n) for n in range(1, 21)]
    for child in (adapter_from_url("memory://"), Waits(adapter_from_url("memory://"))):
        async with Datastore(Limited(child, max_batch=5)) as ds:
            await ds.put([Entity(key) for key in keys[:5]])
            assert len(await ds.get(keys[:5])) == 5
            with pytest.raises(LimitExceededError, match="6 keys in one lookup, at most 5"):
                await ds.get(keys[:6])
            found: list[Key] = []

            async def get(key: Key, ds: Datastore = ds, found: list[Key] = found) -> None:
                entity = await ds.get(key)
                if entity is not None:
                    found.append(key)

            async with anyio.create_task_group() as group:
                for key in keys:
                    group.start_soon(get, key)
            assert sorted(found) == keys[:5]


class Waits(Shim):
    """A store whose lookups wait, for a moment or until they are let ``go``, and that notes how many are under way."""

    def __init__(self, child: Adapter, go: anyio.Event | None = None) -> None:
        super().__init__(child)
        self.go = go
        self.now = self.most = 0
        self.order: list[int | str | None] = []

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.child.capabilities - {Capability.INLINE_READS}

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        self.order.append(keys[0].id_or_name)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await (anyio.sleep(0.001) if self.go is None else self.go.wait())
            return await self.child.lookup(keys)
        finally:
            self.now -= 1


async def settled() -> None:
    """When every task has done what it can."""
    for _ in range(30):
        await anyio.lowlevel.checkpoint()


async def test_no_more_at_once_and_in_order() -> None:
    go = anyio.Event()
    child = Waits(adapter_from_url("memory://"), go)
    shim = Limited(child, concurrency=3)
    assert Capability.INLINE_READS not in shim.capabilities
    await shim.open()
    async with anyio.create_task_group() as group:
        for number in range(1, 31):
            group.start_soon(shim.lookup, [Key("Person", number)])
            await settled()
        assert child.now == 3
        go.set()
    assert child.most == 3
    assert child.order == list(range(1, 31))


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("aiodatastore.shims.limited._clock", lambda: self.now)
        monkeypatch.setattr("aiodatastore.shims.limited.anyio.sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.now += seconds


async def test_no_faster_than_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    shim = Limited(adapter_from_url("memory://"), rate=200.0, burst=5)
    await shim.open()
    took = []
    for _ in range(10):
        await shim.lookup([ADA])
        took.append(clock.now - 1000.0)
    assert took == pytest.approx([0, 0, 0, 0, 0, 0.005, 0.01, 0.015, 0.02, 0.025], abs=1e-4)
    clock.now += 60.0  # no more than the burst is saved
    start = clock.now
    for _ in range(7):
        await shim.lookup([ADA])
    assert clock.now - start == pytest.approx(0.01, abs=1e-4)


async def test_less_than_one_a_second_and_a_burst_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    slow = Limited(adapter_from_url("memory://"), rate=0.5)
    await slow.open()
    for _ in range(3):
        await slow.lookup([ADA])
    assert clock.now - 1000.0 == pytest.approx(4.0, abs=1e-4)
    start = clock.now
    fast = Limited(adapter_from_url("memory://"), rate=50.0)
    await fast.open()
    for _ in range(51):
        await fast.lookup([ADA])
    assert clock.now - start == pytest.approx(0.02, abs=1e-4)


async def test_too_many_who_wait_are_refused() -> None:
    go = anyio.Event()
    shim = Limited(Waits(adapter_from_url("memory://"), go), concurrency=1, max_waiting=2)
    await shim.open()
    told: list[str] = []

    async def get() -> None:
        try:
            await shim.lookup([ADA])
            told.append("found")
        except OverloadedError as exc:
            told.append(f"{exc} {exc.nothing_written}")

    refusal = "2 operations wait already, no more than max_waiting=2 may True"
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(get)
            await settled()
        assert told == [refusal, refusal]
        go.set()
    assert told == [refusal, refusal, "found", "found", "found"]


async def test_who_is_cancelled_leaves_the_line_and_takes_nothing_along() -> None:
    go = anyio.Event()
    child = Waits(adapter_from_url("memory://"), go)
    shim = Limited(child, concurrency=1)
    await shim.open()
    scopes = [anyio.CancelScope() for _ in range(5)]

    async def get(number: int) -> None:
        with scopes[number]:
            await shim.lookup([Key("Person", number + 1)])

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(get, number)
            await settled()
        for number in (0, 1, 3):  # the one under way, the first in line, and one in its midst
            scopes[number].cancel()
        await settled()
        go.set()
    assert child.order == [1, 3, 5]
    assert child.now == 0
    gate = shim._gate
    assert gate is not None
    assert (gate._free, len(gate._line)) == (1, 0)


async def test_who_is_cancelled_while_waiting_for_a_token_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    shim = Limited(adapter_from_url("memory://"), rate=20.0, burst=1)
    await shim.open()
    await shim.lookup([ADA])
    with anyio.CancelScope() as scope:
        scope.cancel()
        await shim.lookup([ADA])
    assert scope.cancelled_caught
    await shim.lookup([ADA])
    assert clock.now - 1000.0 == pytest.approx(0.05, abs=1e-4)


async def test_an_error_gives_the_place_back() -> None:
    shim = Limited(adapter_from_url("memory://"), concurrency=1)  # never opened
    for _ in range(3):
        with pytest.raises(Exception, match="not open"):
            await shim.lookup([ADA])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one limit at least"),
        ({"max_entity_bytes": 0}, "max_entity_bytes: expected an int, 1 or more"),
        ({"max_batch": 1.5}, "max_batch"),
        ({"rate": 0}, "rate: expected a number, greater than 0"),
        ({"concurrency": 0}, "concurrency"),
        ({"burst": 5}, "give a rate, too"),
        ({"max_batch": 5, "max_waiting": 5}, "nobody waits"),
        ({"rate": 5, "max_waiting": -1}, "max_waiting: expected an int, 0 or more"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        Limited(adapter_from_url("memory://"), **arguments)
