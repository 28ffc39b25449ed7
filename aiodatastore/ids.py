"""Numeric ids, from blocks that are reserved ahead.

For each sequence (project, namespace and kind) one block is kept here, and all ids of this process come from it
in order: those of incomplete keys and those that ``allocate_ids`` asks for. So one round trip serves many
entities, and ranges look as if there were no blocks. What is left of a block when the process ends is not used.
"""

from __future__ import annotations

import anyio

from aiodatastore.adapters.base import Adapter
from aiodatastore.errors import BadRequestError
from aiodatastore.key import MAX_ID, Key

__all__ = ["FIRST_BLOCK", "LARGEST_BLOCK", "IdBlocks"]

FIRST_BLOCK = 16
"""Ids in the first block of a sequence; each further block has twice as many."""
LARGEST_BLOCK = 1024
"""Ids in the largest block."""


class _Block:
    """Ids ``next`` to ``end`` are reserved in the store and used by nobody."""

    __slots__ = ("end", "lock", "next", "size")

    def __init__(self) -> None:
        self.next = 1
        self.end = 0
        self.size = FIRST_BLOCK
        self.lock = anyio.Lock()

    @property
    def left(self) -> int:
        return self.end - self.next + 1


class IdBlocks:
    """Hands out ids; none twice, in any process that uses the store."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._blocks: dict[tuple[str, str, str], _Block] = {}

    def take_now(self, key: Key) -> int | None:
        """An id for an incomplete key like this one, if a block has one left."""
        block = self._blocks.get((key.project, key.namespace, key.kind))
        if block is None or block.next > block.end:
            return None
        block.next += 1
        return block.next - 1

    async def take(self, key: Key, count: int, *, skip: int = 0) -> list[int]:
        """``count`` ids, ascending, for incomplete keys like this one, after passing over ``skip`` ids.

        Who meets entities that were put under ids of their own skips more and more, so that a dense run of a
        million of them costs 20 attempts and not a million.
        """
        block = self._block(key)
        ids: list[int] = []
        while len(ids) < count or skip:
            if block.left <= 0:
                async with block.lock:
                    if block.left <= 0:
                        await self._refill(block, key, max(count - len(ids) + skip, block.size))
                continue
            passed = min(skip, block.left)
            skip -= passed
            block.next += passed
            taken = min(count - len(ids), block.left)
            ids.extend(range(block.next, block.next + taken))
            block.next += taken
        return ids

    async def allocate(self, key: Key, size: int) -> tuple[int, int]:
        """Reserve ``size`` ids in a row: first and last, inclusive."""
        block = self._block(key)
        async with block.lock:
            left = block.left
            if left >= size:
                return self._cut(block, size)
            if left > 0:
                first, last = await self._adapter.allocate_ids(key, size - left)
                # While that was under way, tasks went on taking ids from the block.
                if first == block.end + 1:
                    block.end = last
                    if block.left >= size:
                        return self._cut(block, size)
            return await self._adapter.allocate_ids(key, size)

    async def reserve(self, key: Key, up_to: int) -> tuple[int, int]:
        """Reserve every id up to ``up_to`` that is not used yet: first and last; last < first if none is left."""
        block = self._block(key)
        async with block.lock:
            if block.left > 0 and up_to <= block.end:
                if up_to < block.next:
                    return block.next, block.next - 1
                return self._cut(block, up_to - block.next + 1)
            # All that is left here is up to the bound: nobody may take it while the store is asked.
            first, end = block.next, block.end
            block.next = block.end + 1
            low, high = await self._adapter.reserve_ids(key, up_to)
            if first > end:
                return low, high
            if high < low:
                return first, end
            return (first if low == end + 1 else low), high

    def _block(self, key: Key) -> _Block:
        sequence = (key.project, key.namespace, key.kind)
        block = self._blocks.get(sequence)
        if block is None:
            block = self._blocks[sequence] = _Block()
        return block

    @staticmethod
    def _cut(block: _Block, size: int) -> tuple[int, int]:
        first = block.next
        block.next += size
        return first, block.next - 1

    async def _refill(self, block: _Block, key: Key, size: int) -> None:
        first, last = await self._adapter.allocate_ids(key, size)
        if last > MAX_ID:
            raise BadRequestError(f"no numeric ids are left for keys like {key!r}: allocate none beyond 2**63-1")
        block.next, block.end = first, last
        block.size = min(block.size * 2, LARGEST_BLOCK)
