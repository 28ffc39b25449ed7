"""Made-up data and mixes of operations, the same in every run: all seeds are fixed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BRANDS",
    "CATEGORIES",
    "WORKLOADS",
    "Mix",
    "Zipfian",
    "item",
    "person",
    "scrambled",
    "ycsb_record",
]

CATEGORIES = 100
BRANDS = 50

_MIX = 0x9E3779B97F4A7C15


def scrambled(number: int) -> int:
    """A well-mixed 64-bit number made of ``number``: what looks random here needs no generator's state."""
    number = (number + 1) * _MIX & 0xFFFFFFFFFFFFFFFF
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return number ^ (number >> 31)


def person(number: int) -> dict[str, Any]:
    """Three properties, all indexed."""
    mixed = scrambled(number)
    return {"name": f"name-{mixed % 1_000_000:06d}", "age": mixed % 100, "score": (mixed >> 20) % 100_000 / 100}


def item(number: int) -> dict[str, Any]:
    """A thing for sale. Indexed: category (100 of them), brand (50), price, rating; not: title and stock."""
    mixed = scrambled(number)
    return {
        "category": f"category-{mixed % CATEGORIES:03d}",
        "brand": f"brand-{(mixed >> 10) % BRANDS:02d}",
        "price": (mixed >> 20) % 1_000_000,
        "rating": (mixed >> 42) % 50 / 10,
        "title": f"A thing for sale, number {number}, of some note",
        "stock": (mixed >> 50) % 1000,
    }


def ycsb_record(number: int, fields: int = 10, size: int = 100) -> dict[str, str]:
    """YCSB's default record: ten fields of a hundred characters."""
    return {f"field{place}": f"{scrambled(number * fields + place):020d}" * (size // 20) for place in range(fields)}


class Zipfian:
    """Numbers from 0 to ``items`` - 1, the smaller the more frequent: YCSB's generator (Gray et al., SIGMOD 1994).

    ``spread`` scatters the frequent ones over the whole range, as YCSB's *scrambled* Zipfian does.
    """

    def __init__(self, items: int, seed: int, *, theta: float = 0.99, spread: bool = True) -> None:
        self._items = items
        self._random = random.Random(seed).random
        self._theta = theta
        self._spread = spread
        self._zeta = sum(1 / place**theta for place in range(1, items + 1))
        self._alpha = 1 / (1 - theta)
        zeta_of_two = 1 + 0.5**theta
        self._eta = (1 - (2 / items) ** (1 - theta)) / (1 - zeta_of_two / self._zeta) if items > 2 else 1.0

    def draw(self) -> int:
        """The next number."""
        uniform = self._random()
        scaled = uniform * self._zeta
        if scaled < 1:
            rank = 0
        elif scaled < 1 + 0.5**self._theta:
            rank = 1
        else:
            rank = int(self._items * math.pow(self._eta * uniform - self._eta + 1, self._alpha))
        rank = min(rank, self._items - 1)
        return scrambled(rank) % self._items if self._spread else rank


@dataclass(frozen=True, slots=True)
class Mix:
    """A YCSB workload: shares of operations, and which records they pick."""

    name: str
    what: str
    read: float = 0.0
    update: float = 0.0
    insert: float = 0.0
    scan: float = 0.0
    modify: float = 0.0
    latest: bool = False

    def operations(self, seed: int, records: int) -> Iterator[tuple[str, int, int]]:
        """Endless (operation, record, length of a scan). With ``latest``, a record counts back from the newest."""
        chance = random.Random(seed)
        zipf = Zipfian(records, seed + 1, spread=not self.latest)
        names = ("read", "update", "insert", "scan", "modify")
        weights = (self.read, self.update, self.insert, self.scan, self.modify)
        while True:
            for name in chance.choices(names, weights, k=1000):
                yield name, zipf.draw(), chance.randint(1, 100) if name == "scan" else 0


WORKLOADS = (
    Mix("A", "50% read, 50% update", read=0.5, update=0.5),
    Mix("B", "95% read, 5% update", read=0.95, update=0.05),
    Mix("C", "100% read", read=1.0),
    Mix("D", "95% read of the latest, 5% insert", read=0.95, insert=0.05, latest=True),
    Mix("E", "95% scan of 1 to 100, 5% insert", scan=0.95, insert=0.05),
    Mix("F", "50% read, 50% read-modify-write", read=0.5, modify=0.5),
)
