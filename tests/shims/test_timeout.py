"""``Timeout``: what takes too long is given up, and what was sent is told of."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from aiodatastore import BadArgumentError, Datastore, DeadlineExceededError, Entity, Key
from aiodatastore.adapters.base import Commit, Put
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import Capability
from aiodatastore.shims.delayed import Delayed
from aiodatastore.shims.timeout import Timeout
from tests.shims.stacks import ShimSuite

pytestmark = pytest.mark.anyio

ADA = Key("Person", "ada")


class TestSuite(ShimSuite):
    stores_rows = True
    wrap = staticmethod(lambda adapter: Timeout(Delayed(adapter, 0.00005, jitter=0.00005), 60.0, commit_seconds=60.0))


async def opened(*slow: str, delay_s: float = 30.0, seconds: float = 0.02, **options: Any) -> Timeout:
    """Open, for which there is all the time, with so little for the rest."""
    shim = Timeout(Delayed(adapter_from_url("memory://"), delay_s, operations=slow), 60.0, **options)
    await shim.open()
    shim._seconds = seconds
    return shim


async def test_reads_are_given_up() -> None:
    shim = await opened("lookup", "query", "aggregate", "allocate_ids")
    async with Datastore(adapter_from_url("memory://")) as ds:
        query = ds.query("Person").query
    with pytest.raises(DeadlineExceededError, match=r"^no answer to lookup of Person within 0.02 s$"):
        await shim.lookup([ADA])
    with pytest.raises(DeadlineExceededError, match="query of Person"):
        await shim.run(query).next_page()
    with pytest.raises(TimeoutError):
        await shim.aggregate(query, [])
    with pytest.raises(DeadlineExceededError, match="allocate_ids of Person"):
        await shim.allocate_ids(Key("Person"), 1)


async def test_a_page_that_was_given_up_is_read_by_the_next_call() -> None:
    shim = Timeout(Delayed(adapter_from_url("memory://"), 0.05, operations=["query"]), 60.0)
    async with Datastore(shim) as ds:
        await ds.put([Entity(Key("Person", number)) for number in range(1, 6)])
        stream = shim.run(ds.query("Person").query)
        shim._seconds = 0.01
        with pytest.raises(DeadlineExceededError):
            await stream.next_page()
        shim._seconds = 60.0
        assert len((await stream.next_page()).results) == 5


async def test_a_commit_is_waited_for() -> None:
    shim = await opened("commit", delay_s=0.05, seconds=0.01)
    await shim.commit([Commit(writes=[Put(Entity(ADA))])])
    assert shim.lookup_now([ADA]) == [Entity(ADA)]


async def test_a_commit_may_be_given_up_if_one_wants_that() -> None:
    shim = await opened("commit", commit_seconds=0.01)
    with pytest.raises(DeadlineExceededError, match=r"commit of Person within 0.01 s: it may have taken effect"):
        await shim.commit([Commit(writes=[Put(Entity(ADA))])])
    with pytest.raises(DeadlineExceededError, match=r"within 0.01 s$"):  # it only verified
        await shim.commit([Commit(checks={ADA: 0})])


async def test_what_is_at_hand_is_answered_at_once() -> None:
    shim = await opened("commit", seconds=0.001)
    assert Capability.INLINE_READS in shim.capabilities
    assert shim.lookup_now([ADA]) == [None]


async def test_cancellation_from_outside_passes() -> None:
    shim = await opened("lookup", seconds=60.0)
    with anyio.move_on_after(0.005) as scope:
        await shim.lookup([ADA])
    assert scope.cancelled_caught


@pytest.mark.parametrize("arguments", [{"seconds": 0}, {"seconds": -1}, {"seconds": 1, "commit_seconds": 0}])
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadArgumentError, match="seconds: expected a number, greater than 0"):
        Timeout(adapter_from_url("memory://"), **arguments)
