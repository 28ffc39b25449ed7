"""What happens in time and what does not, by a clock that stands still but when a test moves it.

A machine that stalls for a moment, which any of them may, lets no timeout pass here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiodatastore import Propagation
from aiodatastore.entity import Entity
from aiodatastore.errors import DeadlineExceededError, Rollback, TransactionFailedError
from aiodatastore.key import Key

from .stepping import store

pytestmark = pytest.mark.anyio

A = Key("T", "a")
Backend = tuple[str, dict[str, Any]]


class StillLoop(asyncio.SelectorEventLoop):
    """An event loop whose time a test moves."""

    now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "asyncio":
        return "asyncio", {"loop_factory": StillLoop}
    pytest.importorskip("trio")
    from trio.testing import MockClock

    return "trio", {"clock": MockClock()}


@pytest.fixture
def advance(anyio_backend: Backend) -> Callable[[float], None]:
    """Lets time pass, for a task that runs in the loop."""
    name, options = anyio_backend
    if name == "trio":
        jump: Callable[[float], None] = options["clock"].jump
        return jump

    def move(seconds: float) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, StillLoop)
        loop.now += seconds

    return move


async def turns(number: int = 20) -> None:
    """Let other tasks, and timers that are due, get as far as they can."""
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


async def add(ds: Any) -> int:
    found = await ds.get(A) or Entity(A, {"n": 0})
    found["n"] += 1
    await ds.put(found)
    result: int = found["n"]
    return result


async def test_time_passes_only_when_it_is_told_to(advance: Callable[[float], None]) -> None:
    begun = anyio.current_time()
    with anyio.move_on_after(1.0) as scope:
        await turns()
        assert anyio.current_time() == begun
        advance(1.5)
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() == begun + 1.5


async def test_what_was_sent_in_time_is_waited_for_and_reported(advance: Callable[[float], None]) -> None:
    ds, adapter = store()

    async def long_answer() -> None:
        await turns()
        advance(0.7)
        await turns()

    adapter.after_commit = long_answer
    async with ds:
        written = Entity(A, {"n": 1})
        await ds.put(written, timeout=0.5)
        assert written.version > 0
        entities = [Entity(Key("T", number)) for number in range(1, 4)]
        async with anyio.create_task_group() as group:
            for each in entities:  # the last ones wait for the first, which leaves them half a second
                group.start_soon(partial(ds.put, each, timeout=1.2))
        assert all(each.version > 0 for each in entities)
        assert len(adapter.sizes) == 3


async def test_what_could_not_be_sent_in_time_was_not_written(advance: Callable[[float], None]) -> None:
    ds, adapter = store()
    refused: list[DeadlineExceededError] = []

    async def put(number: int) -> None:
        try:
            await ds.put(Entity(Key("T", number)), timeout=0.5)
        except DeadlineExceededError as exc:
            refused.append(exc)

    async def long_answer() -> None:
        await turns()
        advance(0.7)
        await turns()

    adapter.after_commit = long_answer
    async with ds:
        async with anyio.create_task_group() as group:
            for number in (1, 2, 3):
                group.start_soon(put, number)
        assert len(refused) == 2
        assert all("nothing was written" in str(exc) for exc in refused)
        assert await ds.query("T").count() == 1


async def test_timeouts_of_transactions(advance: Callable[[float], None]) -> None:
    ds, adapter = store()
    async with ds:
        await ds.put(Entity(A, {"n": 1}))

        async def slow() -> None:
            await add(ds)
            advance(1)
            await anyio.sleep_forever()

        with pytest.raises(TransactionFailedError, match="nothing was written") as failed:
            await ds.run_in_transaction(slow, timeout=0.02)
        assert isinstance(failed.value, DeadlineExceededError)
        assert failed.value.attempts == 1

        async def long_answer() -> None:
            await turns()
            advance(0.05)
            await turns()

        adapter.after_commit = long_answer
        assert await ds.run_in_transaction(add, ds, timeout=0.03) == 2
        adapter.after_commit = None
        found = await ds.get(A)
        assert found is not None
        assert found["n"] == 2
        async with ds.transaction():
            with pytest.raises(DeadlineExceededError):
                await ds.run_in_transaction(slow, timeout=0.01, propagation=Propagation.ALLOWED)
            raise Rollback


async def test_a_transaction_that_meets_conflicts_for_too_long(advance: Callable[[float], None]) -> None:
    ds, _ = store()
    attempts = 0

    async def contended() -> None:
        nonlocal attempts
        attempts += 1
        await add(ds)
        with ds.non_transactional():
            await ds.put(Entity(A, {"n": 5}))

    async def pass_time() -> None:
        while True:
            advance(0.001)
            await anyio.lowlevel.checkpoint()

    async with ds, anyio.create_task_group() as group:
        await ds.put(Entity(A, {"n": 1}))
        group.start_soon(pass_time)
        begun = anyio.current_time()
        with pytest.raises(TransactionFailedError) as failed:
            await ds.run_in_transaction(contended, timeout=0.5, retries=10_000)
        assert anyio.current_time() - begun < 0.6
        group.cancel_scope.cancel()
    assert isinstance(failed.value, DeadlineExceededError)
    assert failed.value.attempts == attempts > 1
