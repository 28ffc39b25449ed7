"""Reads that go together: which calls a request is for, and when it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

pytest.importorskip("asyncpg")

from aiodatastore.adapters.postgres.joining import Line

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


LOST = 99


class Server:
    """Answers a request with its number, when it is told to."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.order: list[str] = []
        self._answer = asyncio.Event()
        self.line = Line[int, int](self._alone, self._together, max_weight=10)

    async def _alone(self, request: int) -> int:
        return (await self._together([request]))[0]

    async def _together(self, requests: Sequence[int]) -> list[int]:
        self.sent.append(list(requests))
        self.order.append("sent")
        answer = self._answer
        await answer.wait()
        if LOST in requests:
            raise ConnectionError("lost")
        return list(requests)

    async def ask(self, *numbers: int) -> None:
        """The same task asks again and again."""
        for number in numbers:
            assert await self.line.call(number, 1) == number
            self.order.append("woken")

    async def answer(self) -> None:
        """Answer what is under way, and let everybody run."""
        self._answer, answered = asyncio.Event(), self._answer
        answered.set()
        await turns()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_next_goes_before_those_are_woken_that_are_answered() -> None:
    server = Server()
    tasks = [asyncio.create_task(server.ask(number)) for number in (1, 2, 3)]
    await turns()
    assert server.sent == [[1]]
    await server.answer()
    tasks += [asyncio.create_task(server.ask(4))]
    await turns()
    assert server.sent == [[1], [2, 3]]
    server.order.clear()
    await server.answer()
    assert server.order == ["sent", "woken", "woken"]
    assert server.sent == [[1], [2, 3], [4]]
    await server.answer()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert server.line.load == 0


async def test_those_who_were_answered_together_ask_together() -> None:
    server = Server()
    tasks = [asyncio.create_task(server.ask(number, number + 10, number + 20)) for number in (1, 2, 3)]
    await turns()
    for _ in range(5):
        await server.answer()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert server.sent == [[1], [2, 3, 11], [12, 13, 21], [22, 23]]


async def test_one_that_asks_alone_does_not_wait() -> None:
    server = Server()
    task = asyncio.create_task(server.ask(1, 2))
    await turns()
    await server.answer()
    assert server.sent == [[1], [2]]
    await server.answer()
    await task


async def test_no_more_than_fits_goes_together_and_who_is_cancelled_stays() -> None:
    server = Server()
    tasks = [asyncio.create_task(server.ask(number)) for number in range(1, 15)]
    await turns()
    tasks[2].cancel()
    await turns()
    for _ in range(3):
        await server.answer()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert server.sent == [[1], [2, *range(4, 13)], [13, 14]]
    assert server.line.load == 0


async def test_an_error_reaches_all_that_went_together_and_the_next_go_on() -> None:
    server = Server()
    tasks = [asyncio.create_task(server.ask(number)) for number in (1, 2, LOST)]
    await turns()
    await server.answer()
    tasks += [asyncio.create_task(server.ask(4))]
    await turns()
    for _ in range(2):
        await server.answer()
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [type(each) for each in found] == [type(None), ConnectionError, ConnectionError, type(None)]
    assert found[1] is not found[2]
    await asyncio.wait_for(server.line.wait_idle(), 5)


async def test_all_that_wait_may_be_cancelled() -> None:
    server = Server()
    tasks = [asyncio.create_task(server.ask(number)) for number in (1, 2, 3)]
    await turns()
    for task in tasks[1:]:
        task.cancel()
    await turns()
    await server.answer()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    again = asyncio.create_task(server.ask(5))
    await turns()
    await server.answer()
    await asyncio.wait_for(again, 5)
    assert server.sent == [[1], [5]]
