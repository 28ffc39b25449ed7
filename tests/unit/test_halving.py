"""Whether batches take half of the calls: whichever way answers more."""

from __future__ import annotations

import pytest

from aiodatastore.batching import _Halving


def run(halving: _Halving, *, half_s: float, all_s: float, batches: int, pause_s: float = 0.0) -> list[bool]:
    """What it chose for each of some batches of 64 calls, or two of 32, that take these times."""
    now = 1.0
    chosen = []
    for _ in range(batches):
        chosen.append(halving.halves)
        for size, took in ((32, half_s), (32, half_s)) if halving.halves else ((64, all_s),):
            halving.note(size, now, now + took)
            now += took + pause_s
    return chosen


@pytest.mark.parametrize(("half_s", "all_s", "wanted"), [(0.001, 0.003, True), (0.004, 0.005, False)])
def test_the_faster_way_is_taken_and_the_other_looked_at(half_s: float, all_s: float, wanted: bool) -> None:
    chosen = run(_Halving(), half_s=half_s, all_s=all_s, batches=2000)
    assert 0.8 < chosen.count(wanted) / len(chosen) < 1


def test_it_changes_its_mind() -> None:
    halving = _Halving()
    run(halving, half_s=0.001, all_s=0.003, batches=500)
    chosen = run(halving, half_s=0.004, all_s=0.005, batches=3000)
    assert not any(chosen[-10:]) or chosen[-500:].count(False) > 350


def test_time_without_calls_is_not_counted() -> None:
    halving = _Halving()
    run(halving, half_s=0.001, all_s=0.003, batches=100, pause_s=1.0)
    assert halving._rates == {True: 0.0, False: 0.0}
