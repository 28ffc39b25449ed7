"""Whether batches take half of the calls: whichever way answers more."""

from __future__ import annotations

import pytest

from aiodatastore.batching.halving import Halving


def run(halving: Halving, *, half_s: float, all_s: float, batches: int, pause_s: float = 0.0) -> list[bool]:
    """What it chose for each of some batches of 64 calls, or two of 32, that take these times."""
    now = max(halving._ended, 1.0)
    chosen = []
    for _ in range(batches):
        chosen.append(halving.halves)
        for size, took in ((32, half_s), (32, half_s)) if halving.halves else ((64, all_s),):
            halving.note(size, now, now + took)
            now += took + pause_s
    return chosen


@pytest.mark.parametrize(("half_s", "all_s", "wanted"), [(0.001, 0.003, True), (0.004, 0.005, False)])
def test_the_faster_way_is_taken_and_the_other_looked_at(half_s: float, all_s: float, wanted: bool) -> None:
    chosen = run(Halving(), half_s=half_s, all_s=all_s, batches=2000)
    assert 0.8 < chosen.count(wanted) / len(chosen) < 1


def test_a_machine_that_is_fast_for_a_while_decides_nothing() -> None:
    """What counts is how the two ways compare side by side, not which of them met the better moment."""
    halving, chosen = Halving(), []
    for lap in range(40):
        speed = 3.0 if lap % 2 else 1.0
        chosen += run(halving, half_s=0.001 / speed, all_s=0.003 / speed, batches=60)
    assert chosen.count(True) / len(chosen) > 0.8


def test_it_changes_its_mind() -> None:
    halving = Halving()
    run(halving, half_s=0.001, all_s=0.003, batches=500)
    chosen = run(halving, half_s=0.004, all_s=0.005, batches=3000)
    assert not any(chosen[-10:]) or chosen[-500:].count(False) > 350


def test_time_without_calls_is_not_counted() -> None:
    halving = Halving()
    run(halving, half_s=0.001, all_s=0.003, batches=100, pause_s=1.0)
    assert halving._before == 0.0
