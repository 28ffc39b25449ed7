"""Sums: exact, rounded once, whatever the order."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodatastore.indexing.aggregates import Number, RunningSum

finite = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))


def summed(numbers: list[Number]) -> RunningSum:
    total = RunningSum()
    for number in numbers:
        total.add(number)
    return total


def rounded(exact: Fraction) -> float:
    try:
        return exact.numerator / exact.denominator
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@given(st.lists(finite))
def test_sums_and_averages_are_the_nearest_there_are(numbers: list[Number]) -> None:
    exact = sum(map(Fraction, numbers), Fraction(0))
    total = summed(numbers)
    if all(type(number) is int for number in numbers):
        assert total.value("sum") == exact
        assert type(total.value("sum")) is int
    else:
        assert total.value("sum") == rounded(exact)
    assert total.value("avg") == (rounded(exact / len(numbers)) if numbers else None)


@given(st.lists(st.tuples(finite, st.integers(1, 5))))
def test_equal_numbers_may_be_added_at_once(pairs: list[tuple[Number, int]]) -> None:
    grouped = RunningSum()
    for number, times in pairs:
        grouped.add(number, times)
    one_by_one = summed([number for number, times in pairs for _ in range(times)])
    for function in ("sum", "avg"):
        assert grouped.value(function) == one_by_one.value(function)


def test_what_is_small_is_not_lost_beside_what_is_large() -> None:
    assert summed([1e300, 1.0, -1e300]).value("sum") == 1.0
    assert summed([0.1] * 10).value("sum") == 1.0
    assert summed([5e-324, 5e-324]).value("sum") == 1e-323


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [([math.inf, 1.0], math.inf), ([1, -math.inf], -math.inf), ([1.7e308, 1.7e308], math.inf)],
)
def test_infinite_sums(numbers: list[Number], wanted: float) -> None:
    assert summed(numbers).value("sum") == wanted


def test_infinities_of_both_signs_and_nan_give_nan() -> None:
    for numbers in ([math.inf, -math.inf], [math.nan, 1.0], [1, math.nan]):
        for function in ("sum", "avg"):
            value = summed(list(numbers)).value(function)
            assert value is not None
            assert math.isnan(value)
