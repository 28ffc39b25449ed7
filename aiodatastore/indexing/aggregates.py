"""Sums and averages: which values count, and adding them up."""

from __future__ import annotations

import math
from typing import Any

from aiodatastore.indexing.encoding import TAG_FLOAT, TAG_ZERO, decode_value
from aiodatastore.indexing.rows import IndexedValues

__all__ = ["Number", "RunningSum", "single_number"]

Number = int | float


_MANTISSA = float(1 << 53)
_SCALE = 1074 + 53
"""Every float's mantissa is an integer of 2**-53rds, and no exponent is below -1073."""


class RunningSum:
    """A sum and how many numbers it has.

    Exact, and rounded once at the end: the same whatever the order of the numbers is, so a store may group them.
    """

    __slots__ = ("_ints", "_is_float", "_mantissas", "_special", "count")

    def __init__(self) -> None:
        self._ints = 0
        self._mantissas: dict[int, int] = {}  # of floats: exponent → sum of mantissas, in 2**-53rds
        self._special = 0.0  # infinities and nan
        self._is_float = False
        self.count = 0

    def add(self, value: Number, times: int = 1) -> None:
        """One more number, or several equal ones."""
        self.count += times
        if type(value) is int:
            self._ints += value * times
            return
        self._is_float = True
        if math.isfinite(value):
            mantissa, exponent = math.frexp(value)
            self._mantissas[exponent] = self._mantissas.get(exponent, 0) + int(mantissa * _MANTISSA) * times
        else:
            self._special += value

    def include(self, other: RunningSum) -> None:
        """The numbers of another sum, too."""
        self.count += other.count
        self._ints += other._ints
        self._special += other._special
        self._is_float = self._is_float or other._is_float
        for exponent, mantissa in other._mantissas.items():
            self._mantissas[exponent] = self._mantissas.get(exponent, 0) + mantissa

    def _scaled(self) -> int:
        """The sum of the finite numbers, in 2**-1127ths."""
        floats = sum(mantissa << (_SCALE - 53 + exponent) for exponent, mantissa in self._mantissas.items())
        return (self._ints << _SCALE) + floats

    @property
    def total(self) -> Number:
        """The sum: an int where all numbers are, else the float nearest to it."""
        if not self._is_float:
            return self._ints
        if self._special:  # also true of nan
            return self._special
        return _ratio(self._scaled(), 1 << _SCALE)

    def value(self, function: str) -> Any:
        """The ``sum`` (0 of nothing), the ``avg`` (None of nothing), or this ``total`` itself, to go on with."""
        if function == "total":
            return self
        if function == "sum":
            return self.total
        if not self.count:
            return None
        if not self._is_float:
            return _ratio(self._ints, self.count)
        if self._special:
            return self._special
        return _ratio(self._scaled(), self.count << _SCALE)


def _ratio(numerator: int, denominator: int) -> float:
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


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
