"""Commits that are sent with more than was asked for, on the condition of what was looked up for it.

A shim that keeps something beside the entities (links, lists) looks it up, adds it to the commit with checks of its
versions, and begins again where only these were in the way: the caller's own commit conflicts with nothing.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

import anyio

from aiodatastore.adapters.base import Commit, Outcome
from aiodatastore.errors import DatastoreError, StoreBusyError
from aiodatastore.key import Key

__all__ = ["ATTEMPTS", "Extended", "Send", "commit_extended", "pause"]

ATTEMPTS: Final = 1000
_NO_PAUSE: Final = 3
"""Attempts without a pause between them."""

Seen = TypeVar("Seen")
Send = Callable[[Sequence[Commit]], Awaitable[list[Outcome]]]


class Extended(NamedTuple):
    """A commit as it is sent, and what its outcome is to the caller; None: it has to be tried again."""

    commit: Commit
    settled: Callable[[Outcome], Outcome | None]


async def pause(attempt: int) -> None:
    """Wait before an attempt (the first is 0): not at all before the first ones, then up to 50 ms, at random."""
    if attempt > _NO_PAUSE:
        await anyio.sleep(random.uniform(0, min(0.05, 0.001 * 2 ** min(attempt, 10))))


async def commit_extended(
    batch: Sequence[Commit],
    *,
    touched: Callable[[Commit], Iterable[Key]],
    read: Callable[[list[Key]], Awaitable[Seen]],
    extend: Callable[[Commit, Seen], Extended | Outcome],
    send: Send,
    busy: str,
) -> list[Outcome]:
    """The outcomes of a batch: what it has ``touched`` is ``read``, each commit is made longer and sent.

    ``extend`` may know a commit's outcome at once. A batch that touches nothing is sent as it is. ``busy`` is said if
    others change the same for :data:`ATTEMPTS` times. A round trip for the reading, and one for each attempt.
    """
    outcomes: dict[int, Outcome] = {}
    pending = list(range(len(batch)))
    error: DatastoreError = StoreBusyError(busy)
    for attempt in range(ATTEMPTS):
        keys = dict.fromkeys(key for place in pending for key in touched(batch[place]))
        if not keys and not attempt:
            return await send(batch)
        await pause(attempt)
        try:
            seen = await read(list(keys))
            sent: dict[int, Extended] = {}
            for place in pending:
                extended = extend(batch[place], seen)
                if isinstance(extended, Outcome):
                    outcomes[place] = extended
                else:
                    sent[place] = extended
            found = await send([each.commit for each in sent.values()]) if sent else []
        except DatastoreError as exc:
            if not outcomes:
                raise
            error = exc  # some are committed, which must not be hidden
            break
        pending = []
        for (place, extended), outcome in zip(sent.items(), found, strict=True):
            settled = extended.settled(outcome)
            if settled is None:
                pending.append(place)
            else:
                outcomes[place] = settled
        if not pending:
            break
    return [outcomes.get(place) or Outcome(None, error=error) for place in range(len(batch))]
