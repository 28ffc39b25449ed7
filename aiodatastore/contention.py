"""Lines in front of contended entities, so that transactions of one process don't undo each other's work.

Optimistic transactions that all change one entity waste each other's attempts: one of them commits, the others
start again. After its first conflict a transaction therefore stands in line for the keys that were at fault, and
while there is a line, other transactions that come to read such a key stand in it too. This only saves work: what
is serializable is decided by the store alone, so nobody waits for longer than :data:`PATIENCE_S`, and a circle of
waiting tasks (whatever the application makes them wait for) resolves itself.

Who commits hands what it writes to the next in line, who then need not read it, nor wait for the commit: it works on
that, and its own commit follows the other. Those that wait for the store together go there as one, as only the last
of their values stays: a counter that many tasks raise costs them one round trip together. Until the commit before is
known to hold, a transaction that goes on this way reads nothing else, and neither what it returns nor what it raises
counts. The next in line stood there before the commit was sent: for it the entity is no older than its own beginning.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import anyio

from aiodatastore.batching import ChainedCommit
from aiodatastore.entity import Entity
from aiodatastore.key import Key

__all__ = ["HOT_S", "MAX_LINES", "PATIENCE_S", "Contention", "News"]

PATIENCE_S = 1.0
"""Seconds that a transaction waits in one line before it goes on regardless."""
MAX_LINES = 4
"""Lines that one transaction stands in."""
HOT_S = 0.05
"""Seconds that a line is kept for when nobody stands in it."""
_MANY = 1000


class News(NamedTuple):
    """An entity (None: deleted) as a commit leaves it.

    ``version`` is that of the commit if ``commit`` is None, which is to say that it holds; else the one before.
    """

    entity: Entity | None
    version: int
    commit: ChainedCommit | None = None
    clock: object = None


class _Line:
    """``held``: somebody has the place. If nobody has: ``news`` tells of the last one's commit while it is under way;
    afterwards the line is kept ``until`` then."""

    __slots__ = ("held", "news", "until", "waiting")

    def __init__(self) -> None:
        self.held = True
        self.news: News | None = None
        self.until = 0.0
        self.waiting: deque[anyio.Event] = deque()


class Contention:
    """The lines of one datastore, by key.

    A key is *hot* while some transaction holds its place, waits, or commits, and a moment longer: those whose commits
    went together come again together, and would all read the same if there was no line.
    """

    def __init__(self) -> None:
        self._lines: dict[Key, _Line] = {}

    def idle(self) -> bool:
        """Whether nobody has a place or waits for one, and no commit is under way that could be followed."""
        return not any(line.held or line.news for line in self._lines.values())

    def hot(self, keys: Iterable[Key]) -> Key | None:
        """The first of the keys that has a line."""
        lines = self._lines
        if not lines:
            return None
        for key in keys:
            line = lines.get(key)
            if line is not None:
                if line.held or line.news is not None or time.monotonic() < line.until:
                    return key
                del lines[key]
        return None

    async def enter(self, key: Key) -> bool:
        """Stand in line for a key; whether its place is now held, and must be left."""
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = _Line()
            return True
        if not line.held:
            line.held = True
            return True
        turn = anyio.Event()
        line.waiting.append(turn)
        try:
            with anyio.move_on_after(PATIENCE_S):
                await turn.wait()
        except BaseException:
            if turn.is_set():
                self.leave(key, line.news)
            else:
                line.waiting.remove(turn)
            raise
        if not turn.is_set():
            line.waiting.remove(turn)
            return False
        return True

    def next(self, key: Key) -> anyio.Event | None:
        """Who gets the place after the one that has it: for :meth:`leave`."""
        waiting = self._lines[key].waiting
        return waiting[0] if waiting else None

    def take_news(self, key: Key) -> News | None:
        """What the one before left, for the one that has just got the place."""
        line = self._lines[key]
        news, line.news = line.news, None
        return news

    def leave(self, key: Key, news: News | None = None, to: anyio.Event | None = None) -> None:
        """Give the place to the next in line, or who comes next.

        Who comes gets the news while their commit is under way. Of one that is known to hold only ``to``
        is told, if it is the next: who came later has to see what others may have written since.
        """
        line = self._lines[key]
        under_way = news is not None and news.commit is not None and news.commit.outcome is None
        line.news = news if under_way or (line.waiting and line.waiting[0] is to) else None
        if line.waiting:
            line.waiting.popleft().set()
        else:
            line.held = False
            if not under_way:
                self._rest(line)

    def close(self, key: Key, commit: ChainedCommit) -> None:
        """The outcome of a commit is known: nobody is to follow it any more."""
        line = self._lines.get(key)
        if line is not None and not line.held and line.news is not None and line.news.commit is commit:
            line.news = None
            self._rest(line)

    def _rest(self, line: _Line) -> None:
        now = time.monotonic()
        line.until = now + HOT_S
        if len(self._lines) > _MANY:
            self._lines = {key: each for key, each in self._lines.items() if each.held or each.news or now < each.until}
