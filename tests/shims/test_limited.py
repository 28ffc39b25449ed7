"""``Limited``: what is too large is refused, and the rest waits in line."""

from __future__ import annotations

import time
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
    """A store whose lookups wait, and that notes how many are under way."""

    def __init__(self, child: Adapter, seconds: float = 0.001) -> None:
        super().__init__(child)
        self.seconds = seconds
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
            await anyio.sleep(self.seconds)
            return await self.child.lookup(keys)
        finally:
            self.now -= 1


async def test_no_more_at_once_and_in_order() -> None:
    child = Waits(adapter_from_url("memory://"))
    shim = Limited(child, concurrency=3)
    assert Capability.INLINE_READS not in shim.capabilities
    await shim.open()
    async with anyio.create_task_group() as group:
        for number in range(1, 31):
            group.start_soon(shim.lookup, [Key("Person", number)])
            await anyio.lowlevel.checkpoint()
    assert child.most == 3
    assert child.order == list(range(1, 31))


async def test_no_faster_than_the_rate() -> None:
    shim = Limited(adapter_from_url("memory://"), rate=200.0, burst=5)
    await shim.open()
    start = time.monotonic()
    for _ in range(5):
        await shim.lookup([ADA])
    assert time.monotonic() - start < 0.02
    for _ in range(10):
        await shim.lookup([ADA])
    assert time.monotonic() - start >= 0.045
    await anyio.sleep(0.1)  # no more than the burst is saved
    start = time.monotonic()
    for _ in range(7):
        await shim.lookup([ADA])
    assert time.monotonic() - start >= 0.009


async def test_too_many_who_wait_are_refused() -> None:
    child = Waits(adapter_from_url("memory://"), 0.02)
    shim = Limited(child, concurrency=1, max_waiting=2)
    await shim.open()
    told: list[str] = []

    async def get() -> None:
        try:
            await shim.lookup([ADA])
            told.append("found")
        except OverloadedError as exc:
            told.append(f"{exc} {exc.nothing_written}")

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(get)
    refusal = "2 operations wait already, no more than max_waiting=2 may True"
    assert sorted(told) == [refusal, refusal, "found", "found", "found"]


async def test_who_is_cancelled_leaves_the_line_and_takes_nothing_along() -> None:
    child = Waits(adapter_from_url("memory://"), 0.02)
    shim = Limited(child, concurrency=1)
    await shim.open()
    scopes = [anyio.CancelScope() for _ in range(5)]

    async def get(number: int) -> None:
        with scopes[number]:
            await shim.lookup([Key("Person", number + 1)])

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(get, number)
            await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.005)
        for number in (0, 1, 3):  # the one under way, the first in line, and one in its midst
            scopes[number].cancel()
    assert child.order == [1, 3, 5]
    assert child.now == 0
    gate = shim._gate
    assert gate is not None
    assert (gate._free, len(gate._line)) == (1, 0)


async def test_who_is_cancelled_while_waiting_for_a_token_takes_none() -> None:
    shim = Limited(adapter_from_url("memory://"), rate=20.0, burst=1)
    await shim.open()
    await shim.lookup([ADA])
    start = time.monotonic()
    with anyio.move_on_after(0.01):
        await shim.lookup([ADA])
    await shim.lookup([ADA])
    assert 0.045 <= time.monotonic() - start < 0.095


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
