"""How much each benchmark does: ``tiny`` for the tests, ``small`` while working, ``full`` for the kept results."""

from __future__ import annotations

from dataclasses import dataclass

from aiodatastore.bench.measure import Effort

__all__ = ["SEED", "SIZES", "Size"]

SEED = 20240229


@dataclass(frozen=True, slots=True)
class Size:
    """Entities to read, items to query (few and many), YCSB records, accounts, cities to import, subprocesses, other
    things to import.

    ``pair`` is for two that differ little: many short rounds. ``tasks``: how many work side by side, where it is not
    one; ``spread``: the same where it is varied; ``processes``: of how many processes, each with ``tasks`` tasks,
    besides one.
    """

    tasks: int
    spread: tuple[int, ...]
    processes: tuple[int, ...]
    people: int
    items: int
    many_items: int
    shape_items: int
    records: int
    accounts: int
    cities: int | None
    imports: int
    listings: int
    effort: Effort
    mixed: Effort
    pair: Effort


SIZES = {
    "tiny": Size(8, (1, 8), (2,), 200, 200, 600, 200, 100, 10, 200, 1, 200, *[Effort(1, 0.002)] * 3),
    "small": Size(
        64,
        (1, 8, 64, 256),
        (2,),
        10_000,
        10_000,
        50_000,
        10_000,
        5_000,
        100,
        20_000,
        5,
        50_000,
        Effort(5, 0.2),
        Effort(3, 0.4),
        Effort(51, 0.005),
    ),
    "full": Size(
        64,
        (1, 8, 64, 256),
        (2,),
        100_000,
        10_000,
        1_000_000,
        10_000,
        100_000,
        100,
        None,
        15,
        500_000,
        Effort(7, 0.4),
        Effort(5, 1.0),
        Effort(101, 0.005),
    ),
}
"""``cities=None``: all of them."""
