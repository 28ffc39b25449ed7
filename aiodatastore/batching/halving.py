"""Whether a batch takes all calls that wait, or half of them."""

from __future__ import annotations

import math

__all__ = ["TWO_HALVES", "Halving"]

TWO_HALVES = 16
"""Calls from which on a batch may leave half of them to the next."""


class Halving:
    """Whether batches take half of the calls, which is tried: a period of the other way between two of the usual one.

    Halves are better where what a round trip costs whatever is in it is less than what all the tasks do between two
    calls. Compared is with the periods right before and after, as machines are not equally fast all the time.
    """

    __slots__ = ("_before", "_calls", "_ended", "_gain", "_left", "_other", "_since", "_usual", "halves")

    PERIOD = 400
    """Calls after which the rate is taken."""
    LOOK = 16
    """Periods after which the other way is tried."""
    FAVOUR = 1.05
    """How many times as many calls all at once has to answer: where the two are alike, halves are what stays so."""
    PAUSE_S = 0.02
    """A longer time without a batch is no part of a period."""

    def __init__(self) -> None:
        self.halves = self._usual = True
        self._gain = 0.0  # logarithm of how many times as many calls halves answered
        self._before = self._other = 0.0  # rates; 0: not known
        self._left = 2  # periods until the other way is tried
        self._calls = -1
        self._since = self._ended = 0.0

    def has_paused(self, now: float) -> bool:
        """Whether the last batch was so long ago that its tasks do something else."""
        return now - self._ended > self.PAUSE_S

    def note(self, size: int, started: float, answered: float) -> None:
        """A batch was answered."""
        paused, self._ended = self.has_paused(started), answered
        if size < TWO_HALVES // 2:
            return
        if self._calls < 0 or paused:
            self._calls, self._since = 0, answered  # the first one only begins a period
        else:
            self._calls += size
        if self._calls >= self.PERIOD:
            self._end_period(self._calls / max(answered - self._since, 1e-9))
            self._calls, self._since = 0, answered

    def _end_period(self, rate: float) -> None:
        if self.halves is not self._usual:
            self._other, self.halves = rate, self._usual
        elif self._other:
            gain = math.log(self._other / math.sqrt(self._before * rate))
            self._gain = (self._gain + (-gain if self._usual else gain)) / 2
            self._other = 0.0
            self._left = self.LOOK
            self.halves = self._usual = self._gain > -math.log(self.FAVOUR)
        else:
            self._before = rate
            self._left -= 1
            if self._left <= 0:
                self.halves = not self._usual
