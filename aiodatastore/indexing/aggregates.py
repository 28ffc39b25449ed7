"""Sums and averages: which values count, and adding them up."""

from __future__ import annotations

from aiodatastore.indexing.encoding import TAG_FLOAT, TAG_ZERO, decode_value
from aiodatastore.indexing.rows import IndexedValues

__all__ = ["Number", "RunningSum", "single_number"]

Number = int | float


class RunningSum:
    """A sum and how many numbers it has; ints stay exact."""

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.total: Number = 0
        self.count = 0

    def add(self, value: Number) -> None:
        """One more number."""
        self.total += value
        self.count += 1

    def value(self, function: str) -> Number | None:
        """The ``sum`` (0 of nothing) or the ``avg`` (None of nothing)."""
        if function == "sum":
            return self.total
        return self.total / self.count if self.count else None


def single_number(values: IndexedValues, name: str) -> Number | None:
    """The property's value, if it has exactly one and that is an int or a float (no datetime)."""
    found = values.get(name)
    if found is None or len(found) != 1:
        return None
    for value, alternate in found.items():
        tag = value[0]
        if not alternate and (TAG_ZERO - 8 <= tag <= TAG_ZERO + 8 or tag == TAG_FLOAT):
            number: Number = decode_value(value)
            return number
    return None
