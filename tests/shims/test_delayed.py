"""``Delayed``: later, by as much as was said. The suite runs on it under ``Timeout``."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from aiodatastore import BadArgumentError, Datastore, Entity, Key
from aiodatastore.adapters.base import Commit, Put
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import Capability
from aiodatastore.shims.delayed import Delayed

pytestmark = pytest.mark.anyio

ADA = Key("Person", "ada")


async def test_each_operation_begins_later() -> None:
    shim = Delayed(adapter_from_url("memory://"), 0.02)
    async with Datastore(shim) as ds:
        for operation in (lambda: ds.get(ADA), lambda: ds.put(Entity(ADA)), lambda: ds.query("Person").fetch(1)):
            start = time.monotonic()
            await operation()
            assert time.monotonic() - start >= 0.019


async def test_only_those_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("aiodatastore.shims.delayed.anyio.sleep", sleep)
    shim = Delayed(adapter_from_url("memory://"), 0.5, operations=["commit"])
    assert Capability.INLINE_READS in shim.capabilities
    assert Capability.INLINE_READS not in Delayed(adapter_from_url("memory://"), 0.5).capabilities
    async with Datastore(shim) as ds:
        await ds.put(Entity(ADA))
        assert await ds.get(ADA) is not None
        await ds.query("Person").fetch(1)
    assert slept == [0.5]
    async with Datastore(Delayed(adapter_from_url("memory://"), 0.25)) as ds:
        await ds.check()  # not what applications do
        assert slept == [0.5]
        await ds.get(ADA)
    assert slept == [0.5, 0.25]


async def test_delays_are_drawn_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def delays(seed: int) -> list[float]:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        with monkeypatch.context() as patch:
            patch.setattr("aiodatastore.shims.delayed.anyio.sleep", sleep)
            async with Datastore(Delayed(adapter_from_url("memory://"), 1.0, jitter=0.25, seed=seed)) as ds:
                for _ in range(50):
                    await ds.get(ADA)
        return slept

    found = await delays(3)
    assert found == await delays(3)
    assert found != await delays(4)
    assert len(found) == 50
    assert 0.75 <= min(found) < 0.85
    assert 1.15 < max(found) <= 1.25


async def test_who_is_cancelled_while_delayed_sent_nothing() -> None:
    child = adapter_from_url("memory://")
    shim = Delayed(child, 30.0, operations=["commit"])
    await shim.open()
    with anyio.move_on_after(0.01):
        await shim.commit([Commit(writes=[Put(Entity(ADA))])])
    assert (await shim.lookup([ADA])).entities == [None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": -1}, "seconds: expected a number, at least 0"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": "1"}, "got '1'"),
        ({"seconds": True}, "got True"),
        ({"seconds": 1, "jitter": 2}, "at most seconds"),
        ({"seconds": 1, "operations": []}, "operations: expected some of lookup, query"),
        ({"seconds": 1, "operations": ["get"]}, "got .'get'."),
        ({"seconds": 1, "operations": "lookup"}, "got 'lookup'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        Delayed(adapter_from_url("memory://"), **arguments)
