"""What is measured beside the memory adapter: *py-key-value-aio*, its ``MemoryStore``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiodatastore.bench.data import person
from aiodatastore.bench.measure import Subject
from aiodatastore.bench.workloads import draw_numbers

__all__ = ["KeyValueMemory"]

Numbered = tuple[int, dict[str, Any]]
Draw = Callable[[int], Sequence[Any]]


class KeyValueMemory:
    """py-key-value-aio's memory store. It has no indexes; values are mappings, as entities are."""

    def __init__(self) -> None:
        from key_value.aio.stores.memory import MemoryStore

        self.store = MemoryStore()

    async def load_people(self, count: int) -> None:
        """Put as many."""
        for number in range(1, count + 1):
            await self.store.put(f"person-{number}", person(number))

    def get(self, name: str, count: int, seed: int) -> Subject:
        """Gets of keys that are at hand."""
        keys = [f"person-{number}" for number in range(1, count + 1)]
        draw = draw_numbers(count, seed)
        return Subject(name, self.store.get, lambda wanted: [keys[number - 1] for number in draw(wanted)])

    def get_by_number(self, name: str, count: int, seed: int) -> Subject:
        """Gets of keys that are made on the way."""
        get = self.store.get
        return Subject(name, lambda number: get(f"person-{number}"), draw_numbers(count, seed))

    def put(self, name: str, draw: Draw) -> Subject:
        """Puts of new values."""
        put = self.store.put

        async def operate(numbered: Numbered) -> Any:
            await put(f"person-{numbered[0]}", numbered[1])
            return numbered[0]

        return Subject(name, operate, draw)
