"""A sorted set of bytes in memory, for the stores that keep their rows there."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

__all__ = ["SortedBytes"]

_CHUNK = 512
"""Most values in one chunk. Measured with 2 million rows: 256 to 1024 cost the same, more and fewer cost more."""


_FILL = 384
"""Values in a chunk that is made full at once: room for some more before it has to be split."""


class SortedBytes:
    """A sorted set of bytes; adding and removing cost O(log n) comparisons and one short memory move.

    Chunks of sorted lists under a list of separators. Compared with ``sortedcontainers.SortedList`` it keeps
    no position index, which makes an addition a third cheaper (2.4 µs against 3.7 µs among 2 million rows);
    :meth:`count` adds up chunk lengths instead.
    """

    __slots__ = ("_chunks", "_separators")

    def __init__(self) -> None:
        self._chunks: list[list[bytes]] = [[]]
        self._separators: list[bytes] = []  # one fewer: values <= separator i are in chunks up to i

    @classmethod
    def of_sorted(cls, values: list[bytes]) -> SortedBytes:
        """A set of values that are in ascending order and different: far less work than adding them."""
        new = cls()
        if values:
            new._chunks = [values[start : start + _FILL] for start in range(0, len(values), _FILL)]
            new._separators = [chunk[-1] for chunk in new._chunks[:-1]]
        return new

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    def chunks(self) -> Iterator[list[bytes]]:
        """The values in order, in lists of a few hundred; not to be changed, nor the set meanwhile."""
        return iter(self._chunks)

    def add(self, value: bytes) -> None:
        """Add a value that is not in the set (the callers have a dict that knows)."""
        i = bisect_left(self._separators, value)
        chunk = self._chunks[i]
        insort(chunk, value)
        if len(chunk) > _CHUNK:
            half = chunk[: _CHUNK // 2]
            del chunk[: _CHUNK // 2]
            self._chunks.insert(i, half)
            self._separators.insert(i, half[-1])

    def remove(self, value: bytes) -> None:
        """Remove a value that is in the set."""
        i = bisect_left(self._separators, value)
        chunk = self._chunks[i]
        del chunk[bisect_left(chunk, value)]
        if not chunk and len(self._chunks) > 1:
            del self._chunks[i]
            del self._separators[min(i, len(self._separators) - 1)]

    def _position(self, value: bytes) -> tuple[int, int]:
        i = bisect_left(self._separators, value)
        return i, bisect_left(self._chunks[i], value)

    def count(self, lo: bytes, hi: bytes) -> int:
        """How many values are in ``[lo, hi)``."""
        if lo >= hi:
            return 0
        (i, a), (j, b) = self._position(lo), self._position(hi)
        return sum(map(len, self._chunks[i:j])) - a + b

    def slice(self, lo: bytes, hi: bytes, limit: int, *, reverse: bool = False) -> list[bytes]:
        """At most ``limit`` values of ``[lo, hi)``, from the lower or (``reverse``) upper end."""
        if lo >= hi or limit <= 0:
            return []
        (i, a), (j, b) = self._position(lo), self._position(hi)
        out: list[bytes] = []
        for part in self._parts_down(i, a, j, b) if reverse else self._parts_up(i, a, j, b):
            missing = limit - len(out)
            out += part if len(part) <= missing else part[:missing]
            if len(out) == limit:
                break
        return out

    def _parts_up(self, i: int, a: int, j: int, b: int) -> Iterator[list[bytes]]:
        chunks = self._chunks
        while i < j:
            yield chunks[i][a:] if a else chunks[i]
            i, a = i + 1, 0
        yield chunks[j][a:b]

    def _parts_down(self, i: int, a: int, j: int, b: int) -> Iterator[list[bytes]]:
        chunks = self._chunks
        while j > i:
            yield chunks[j][:b][::-1]
            j -= 1
            b = len(chunks[j])
        yield chunks[i][a:b][::-1]
