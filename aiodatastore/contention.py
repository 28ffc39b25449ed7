"""Lines in front of contended entities, so that transactions of one process don't undo each other's work.

Optimistic transactions that all change one entity waste each other's attempts: one of them commits, the others
start again. After its first conflict a transaction therefore stands in line for the keys that were at fault, and
while there is a line, other transactions that come to read such a key stand in it too. This only saves work: what
is serializable is decided by the store alone, so nobody waits for longer than :data:`PATIENCE_S`, and a circle of
waiting tasks (whatever the application makes them wait for) resolves itself.

Who leaves after a commit hands what it wrote to the next in line, who then need not read it: a counter that many
tasks raise costs one round trip each. Only to one that stood there before the commit was sent: for it the
entity is no older than its own beginning, and whether it is still the newest is verified when it commits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import anyio

from aiodatastore.entity import Entity
from aiodatastore.key import Key

__all__ = ["MAX_LINES", "PATIENCE_S", "Contention", "News"]

PATIENCE_S = 1.0
"""Seconds that a transaction waits in one line before it goes on regardless."""
MAX_LINES = 4
"""Lines that one transaction stands in."""


class News(NamedTuple):
    """An entity (None: deleted) as the commit of this version left it."""

    entity: Entity | None
    version: int


class Contention:
    """The lines of one datastore, by key. A key is *hot* while some transaction holds its place or waits."""

    def __init__(self) -> None:
        self._lines: dict[Key, deque[anyio.Event]] = {}
        self._news: dict[Key, News] = {}

    def hot(self, keys: Iterable[Key]) -> Key | None:
        """The first of the keys that has a line."""
        lines = self._lines
        if not lines:
            return None
        return next((key for key in keys if key in lines), None)

    async def enter(self, key: Key) -> bool:
        """Stand in line for a key; whether its place is now held, and must be left."""
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque()
            return True
        turn = anyio.Event()
        line.append(turn)
        try:
            with anyio.move_on_after(PATIENCE_S):
                await turn.wait()
        except BaseException:
            if turn.is_set():
                self.leave(key)
            else:
                line.remove(turn)
            raise
        if not turn.is_set():
            line.remove(turn)
            return False
        return True

    def next(self, key: Key) -> anyio.Event | None:
        """Who gets the place after the one that has it: for :meth:`leave`."""
        line = self._lines[key]
        return line[0] if line else None

    def take_news(self, key: Key) -> News | None:
        """What the one before left, for the one that has just got the place."""
        return self._news.pop(key, None)

    def leave(self, key: Key, news: News | None = None, to: anyio.Event | None = None) -> None:
        """Give the place to the next in line; and the news, if that is who stood there when they were made."""
        line = self._lines[key]
        self._news.pop(key, None)
        if line:
            first = line.popleft()
            if news is not None and first is to:
                self._news[key] = news
            first.set()
        else:
            del self._lines[key]
