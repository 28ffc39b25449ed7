"""Several calls side by side, and what becomes of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

__all__ = ["all_of", "outcomes_of"]

T = TypeVar("T")


async def outcomes_of(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T | Exception]:
    """What each call returned or raised, in order; they run side by side, and all to their ends."""
    answers: list[T | Exception | None] = [None] * len(calls)

    async def run(place: int, call: Callable[[], Awaitable[T]]) -> None:
        try:
            answers[place] = await call()
        except Exception as exc:
            answers[place] = exc

    if len(calls) == 1:
        await run(0, calls[0])
    elif calls:
        async with anyio.create_task_group() as group:
            for place, call in enumerate(calls):
                group.start_soon(run, place, call)
    return answers  # type: ignore[return-value]  # every place was set


async def all_of(calls: Sequence[Callable[[], Awaitable[T]]], *, inline: bool = False) -> list[T]:
    """What each call returned; they run side by side. The first error of one is raised when all are done.

    ``inline``: they need no waiting as a rule, so one after the other is faster than a task for each.
    """
    if inline or len(calls) == 1:
        return [await call() for call in calls]
    answers: list[T] = []
    for answer in await outcomes_of(calls):
        if isinstance(answer, Exception):
            raise answer
        answers.append(answer)
    return answers
