"""What is special to the row store in memory: its sorted set, and that it never waits."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from typing import Any

import anyio
import pytest

from aiodatastore.adapters import sortedbytes
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.sortedbytes import SortedBytes
from aiodatastore.rowstore import TAIL_MULTI, Capability, RowBatch, RowCommit

from .rows import ALL_KEYS, ALL_ROWS, commit, entities, puts, rows_of


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The answer of a coroutine that does not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it suspended")


def test_nothing_suspends() -> None:
    store = MemoryRowStore()
    at_once(store.open())
    assert store.capabilities == {Capability.TRIO, Capability.INLINE_READS, Capability.TWO_PHASE}
    assert at_once(commit(store, puts((b"a", b"x"))))[0].version == 1
    assert at_once(store.read([b"a"])) == ([(1, b"x")], 1)
    assert at_once(store.scan(ALL_ROWS, 5)).rows == [(b"x|a", 1, None, None)]
    assert at_once(store.count(ALL_KEYS)) == (1, 0, 1)
    assert at_once(store.allocate(b"s", 1)) == 1
    assert at_once(store.sizes()) == {"entity_bytes": 2, "index_bytes": 3}
    at_once(store.aclose())


async def _waits(store: MemoryRowStore) -> None:
    with anyio.move_on_after(0.02) as scope:
        await commit(store, puts((b"b", b"x")))
    assert scope.cancelled_caught
    assert (await store.read([b"b"])).records == [None]


def test_one_commit_is_prepared_at_a_time() -> None:
    store = MemoryRowStore()
    at_once(store.open())
    batch = RowBatch([RowCommit(checks=[(b"a", 0)], puts=puts((b"a", b"x")).puts)], rows_of)
    assert at_once(store.prepare(batch, "one")).version == 1
    assert at_once(store.prepare(batch, "one")).version == 1
    assert at_once(store.read([b"a"])).records == [None]
    assert [name for name, _ in at_once(store.prepared())] == ["one"]
    anyio.run(_waits, store)
    assert at_once(store.resolve("other", commit=True)) is None
    assert at_once(store.resolve("one", commit=True)) == 1
    assert at_once(store.resolve("one", commit=True)) is None
    assert at_once(store.prepare(batch, "two")).conflicts == [(b"a", 1)]
    assert at_once(store.prepared()) == []
    assert at_once(store.prepare(batch._replace(commits=[puts((b"c", b"x"))]), "three")).version == 2
    assert at_once(store.resolve("three", commit=False)) == 1
    assert at_once(commit(store, puts((b"c", b"x"))))[0].version == 2
    at_once(store.aclose())


def test_what_was_read_is_not_changed_by_later_writes() -> None:
    store = MemoryRowStore()
    at_once(store.open())
    at_once(commit(store, puts((b"a", b"x"), (b"b", b"x"))))
    scan = at_once(store.scan(ALL_ROWS, 100, with_entities=True))
    copy = list(scan.rows)
    at_once(commit(store, puts((b"a", b"y"), (b"c", b"x")), RowCommit(deletes=[b"b"])))
    assert scan.rows == copy


def test_closing_forgets_and_opening_starts_anew() -> None:
    store = MemoryRowStore()
    at_once(store.open())
    at_once(commit(store, puts((b"a", b"x"))))
    at_once(store.aclose())
    at_once(store.open())
    assert at_once(entities(store)) == {}
    assert at_once(commit(store, puts((b"a", b"x"))))[0].version == 1


@pytest.mark.parametrize("chunk", [2, 3, 8, 512])
def test_the_sorted_set_agrees_with_a_sorted_list(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sortedbytes, "_CHUNK", chunk)
    monkeypatch.setattr(sortedbytes, "_FILL", max(1, chunk * 3 // 4))
    rng = random.Random(chunk)
    values = [bytes(rng.choices(range(3), k=rng.randint(0, 6))) for _ in range(400)]
    model = set(values[:100] if chunk > 2 else [])
    ours = SortedBytes.of_sorted(sorted(model))
    assert [value for part in ours.chunks() for value in part] == sorted(model)
    check_structure(ours, chunk)
    for step in range(3000):
        value = rng.choice(values)
        growing = (step // 500) % 2 == 0
        if value not in model and (growing or rng.random() < 0.2):
            ours.add(value)
            model.add(value)
        elif value in model and not growing:
            ours.remove(value)
            model.remove(value)
        if step % 10 == 0:
            lo, hi = rng.choices([*values, b"", b"\xff"], k=2)
            inside = sorted(found for found in model if lo <= found < hi)
            limit = rng.randint(0, 40)
            assert len(ours) == len(model)
            assert ours.count(lo, hi) == len(inside)
            assert ours.slice(lo, hi, limit) == inside[:limit]
            assert ours.slice(lo, hi, limit, reverse=True) == inside[::-1][:limit]
            check_structure(ours, chunk)


def check_structure(ours: SortedBytes, chunk: int) -> None:
    """Chunks are in order, between their separators, not too long, and empty only if there is just one."""
    chunks, separators = ours._chunks, ours._separators
    assert len(chunks) == len(separators) + 1
    assert separators == sorted(separators)
    for i, part in enumerate(chunks):
        assert part == sorted(part)
        assert 0 < len(part) <= chunk or len(chunks) == 1
        if part and i < len(separators):
            assert part[-1] <= separators[i]
        if part and i:
            assert part[0] > separators[i - 1]


def test_multi_rows_are_counted_as_rows_change() -> None:
    store = MemoryRowStore()
    at_once(store.open())
    rng, model = random.Random(1), dict[bytes, int]()
    for _ in range(300):
        row = b"%02d" % rng.randrange(40)
        if rng.random() < 0.3:
            model.pop(row, None)
            at_once(commit(store, RowCommit(index_deletes=[row])))
        else:
            model[row] = rng.choice([0, 5, TAIL_MULTI, TAIL_MULTI | 7])
            at_once(commit(store, RowCommit(index_puts={row: model[row]})))
        counted = at_once(store.count(ALL_ROWS))
        assert (counted.rows, counted.multi) == (len(model), sum(bool(tail & TAIL_MULTI) for tail in model.values()))
