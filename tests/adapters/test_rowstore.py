"""What every row store promises, on each of them."""

from __future__ import annotations

import random
from collections.abc import Mapping

import anyio
import anyio.lowlevel
import pytest

from aiodatastore.errors import CorruptDataError, StoreClosedError
from aiodatastore.rowstore import (
    EXISTS,
    TAIL_MULTI,
    Capability,
    RowBatch,
    RowCommit,
    RowPut,
    RowStore,
    Space,
    Span,
    SpanCheck,
    StaleFenceError,
)
from tests.engines import Bound, engines

from .rows import ALL_KEYS, ALL_ROWS, commit, entities, entity, index_rows, puts, rows_of, seen, versions

pytestmark = [pytest.mark.anyio, engines(loops=True, variants=True)]


def index(lo: bytes, hi: bytes) -> Span:
    return Span(Space.INDEX, lo, hi)


async def test_a_new_store_is_empty(store: RowStore) -> None:
    assert await store.read([b"a"]) == ([None], 0)
    assert await store.read([]) == ([], 0)
    assert await store.scan(ALL_ROWS, 10) == ([], 0)
    assert await store.count(ALL_KEYS) == (0, 0, 0)
    assert store.url


async def test_what_is_put_is_read_in_the_order_asked_for(store: RowStore) -> None:
    assert versions(await commit(store, puts((b"a", b"red"), (b"b", b"")))) == [1]
    assert versions(await commit(store, puts((b"c", b"blue")))) == [2]
    assert await store.read([b"c", b"x", b"a", b"c"]) == ([(2, b"blue"), None, (1, b"red"), (2, b"blue")], 2)
    now = store.read_now([b"b", b"x"])
    if Capability.INLINE_READS in store.capabilities:
        assert now == [(1, b""), None]
        assert store.read_now([b"c"]) == [(2, b"blue")]
        assert store.read_now([b"x"]) == [None]
        assert store.read_now([]) == []
    else:
        assert now is None


@pytest.mark.parametrize("count", [2, 17, 255, 256, 257, 1500])
async def test_many_keys_in_one_read(store: RowStore, count: int) -> None:
    keys = [b"%05d" % n for n in range(count)]
    await commit(store, puts(*[(key, b"p" + key) for key in keys[::2]]))
    shuffled = random.Random(count).sample(keys, count)
    expected = [(1, b"p" + key) if int(key) % 2 == 0 else None for key in shuffled]
    assert (await store.read(shuffled)).records == expected
    now = store.read_now(shuffled)
    assert now is None or now == expected


async def test_awkward_bytes_keep_their_order_and_content(store: RowStore) -> None:
    keys = sorted(
        [b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"a\0b", b"ab", b"\xfe", b"\xff", "ключ".encode(), b"k" * 3000]
    )
    payload = b"\0,\xff,*\x80\0,'\"%,\xc3\x28"
    await commit(store, puts(*[(key, payload) for key in keys]))
    scan = await store.scan(Span(Space.ENTITY, b"", b"\xff\xff"), 1000, with_entities=True)
    assert scan.rows == [(key, 0, 1, payload) for key in keys]
    expected = {row: tail for key in keys for row, tail in rows_of(key, payload).items()}
    for limit in (256, 1000):
        rows = (await store.scan(index(b"", b"\xff" * 9), limit, with_entities=True)).rows
        assert [row[:2] for row in rows] == sorted(expected.items())
        assert {row[3] for row in rows} == {payload}


async def test_payloads_of_every_size(store: RowStore) -> None:
    sizes = [0, 1, 1000, 4096, 70_000, 1_000_000]
    commits = RowCommit(puts=[RowPut(b"k%07d" % size, b"\0" * size, {}) for size in sizes])
    await commit(store, commits)
    rows = (await store.scan(ALL_KEYS, 300, with_entities=True)).rows
    assert [len(row[3] or b"") for row in rows] == sizes
    assert all(row[3] is not None for row in rows)
    assert (await store.scan(ALL_KEYS, 300)).rows[0] == (b"k0000000", 0, 1, None)


async def test_only_empty_payloads(store: RowStore) -> None:
    await commit(store, RowCommit(puts=[RowPut(b"a", b"", {b"i|a": 1})]))
    for limit in (10, 1000):
        assert (await store.scan(ALL_ROWS, limit, with_entities=True)).rows == [(b"i|a", 1, 1, b"")]


# ------------------------------------------------------------------------------------------------ scans


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [0, 1, 7, 256, 257, 999, 1000, 1001, 5000])
async def test_scans_end_at_the_limit_or_the_span(store: RowStore, limit: int, reverse: bool) -> None:
    await commit(store, puts(*[(b"%04d" % n, b"x") for n in range(1200)]))
    every = [b"x|%04d" % n for n in range(1200)][100:1100]
    span = index(b"x|0100", b"x|1100")
    expected = (every[::-1] if reverse else every)[:limit]
    bare = await store.scan(span, limit, reverse=reverse)
    assert bare.rows == [(row, 4, None, None) for row in expected]
    joined = await store.scan(span, limit, reverse=reverse, with_entities=True)
    assert joined.rows == [(row, 4, 1, b"x") for row in expected]
    keys = await store.scan(Span(Space.ENTITY, b"0100", b"1100"), limit, reverse=reverse)
    assert keys.rows == [(row[2:], 0, 1, None) for row in expected]


async def test_an_empty_or_inverted_span_has_no_rows(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x"), (b"b", b"x")))
    for lo, hi in ((b"x|a", b"x|a"), (b"x|b", b"x|a"), (b"y", b"z")):
        assert (await store.scan(index(lo, hi), 10)).rows == []
        assert (await store.scan(index(lo, hi), 10, reverse=True)).rows == []
        assert await store.count(index(lo, hi)) == (0, 0, 1)


async def test_rows_whose_entity_is_absent_are_shown_without(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x")), RowCommit(index_puts={b"x|gone": 4}))
    for limit in (10, 1000):
        rows = (await store.scan(ALL_ROWS, limit, with_entities=True)).rows
        assert rows == [(b"x|a", 1, 1, b"x"), (b"x|gone", 4, None, None)]


async def test_count_tells_rows_and_multi_rows(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x,*y"), (b"b", b"*x,*y"), (b"c", b"x")))
    assert await store.count(ALL_ROWS) == (5, 3, 1)
    assert await store.count(index(b"x", b"y")) == (3, 1, 1)
    assert await store.count(ALL_KEYS) == (3, 0, 1)
    await commit(store, puts((b"b", b"x,y")), RowCommit(deletes=[b"a"]))
    assert await store.count(ALL_ROWS) == (3, 0, 3)


async def test_count_of_more_than_is_counted_inline(store: RowStore) -> None:
    rows = {b"%05d" % n: TAIL_MULTI if n % 3 == 0 else 0 for n in range(6000)}
    await commit(store, RowCommit(index_puts=rows))
    assert await store.count(ALL_ROWS) == (6000, 2000, 1)
    assert await store.count(index(b"01000", b"05096")) == (4096, 1365, 1)


# ---------------------------------------------------------------------------------------------- commits


async def test_overwriting_replaces_the_index_rows(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x,y,*z")))
    await commit(store, puts((b"a", b"y,z,w")))
    assert await index_rows(store) == {b"y|a": 1, b"z|a": 1, b"w|a": 1}
    assert await entities(store) == {b"a": (2, b"y,z,w")}


async def test_deleting_removes_entity_and_rows(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x,y"), (b"b", b"x")))
    assert versions(await commit(store, RowCommit(deletes=[b"a", b"absent"]))) == [2]
    assert await index_rows(store) == {b"x|b": 1}
    assert await store.read([b"a", b"b"]) == ([None, (1, b"x")], 2)


async def test_each_writing_commit_gets_a_greater_version(store: RowStore) -> None:
    outcomes = await commit(
        store, puts((b"a", b"")), RowCommit(), puts((b"b", b"")), RowCommit(deletes=[b"absent"]), puts((b"a", b""))
    )
    assert versions(outcomes) == [1, 1, 2, 3, 4]
    assert versions(await commit(store, RowCommit(deletes=[b"absent"]))) == [5]
    assert versions(await commit(store, RowCommit(checks=[(b"b", 2)]))) == [5]
    assert await store.read([b"a", b"b"]) == ([(4, b""), (2, b"")], 5)
    assert await commit(store) == []


async def test_blind_inserts_do_not_ask_for_old_rows(engine: Bound, store: RowStore) -> None:
    asked = []

    def old_rows(key: bytes, payload: bytes) -> Mapping[bytes, int]:
        asked.append((key, payload))
        return rows_of(key, payload)

    await store.commit(RowBatch([puts((b"a", b"x")), puts((b"b", b"y"))], old_rows))
    assert asked == []
    await store.commit(RowBatch([puts((b"a", b"z")), RowCommit(deletes=[b"a", b"c"])], old_rows))
    assert asked == ([(b"a", b"x"), (b"a", b"z")] if engine.engine.asks_rows else [])


async def test_index_rows_change_without_their_entity(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x")))
    await commit(store, RowCommit(index_puts={b"new|a": 1, b"x|a": 1 | TAIL_MULTI}, index_deletes=[b"absent"]))
    assert await index_rows(store) == {b"new|a": 1, b"x|a": 1 | TAIL_MULTI}
    assert await store.read([b"a"]) == ([(1, b"x")], 2)
    await commit(store, RowCommit(index_puts={b"x|a": 1}, index_deletes=[b"new|a"]))
    assert await index_rows(store) == {b"x|a": 1}
    assert (await store.count(ALL_ROWS)).multi == 0


async def test_removing_rows_that_a_building_index_does_not_have_yet(store: RowStore) -> None:
    """Old rows are those of the definitions of now; an index that is being built lacks some of them."""
    await store.commit(RowBatch([RowCommit(puts=[RowPut(b"a", b"x,later", {b"x|a": 1})])], rows_of))
    await commit(store, puts((b"a", b"y")))
    assert await index_rows(store) == {b"y|a": 1}


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        ((b"a", 1), True),
        ((b"a", 2), False),
        ((b"a", 0), False),
        ((b"a", EXISTS), True),
        ((b"x", 0), True),
        ((b"x", 1), False),
        ((b"x", EXISTS), False),
    ],
)
async def test_versions_are_checked(store: RowStore, check: tuple[bytes, int], holds: bool) -> None:
    await commit(store, puts((b"a", b"x")))
    [outcome] = await commit(store, RowCommit(checks=[check], puts=[entity(b"b", b"y")]))
    [only_checked] = await commit(store, RowCommit(checks=[check]))
    if holds:
        assert (outcome.version, only_checked.version) == (2, 2)
    else:
        actual = {b"a": 1, b"x": 0}[check[0]]
        assert outcome.version is only_checked.version is None
        assert list(outcome.conflicts) == list(only_checked.conflicts) == [(check[0], actual)]
        assert (await store.read([b"b"])).records == [None]


async def test_every_conflict_is_named(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x"), (b"b", b"x")))
    stale = SpanCheck(Space.INDEX, b"x", b"y", 1)
    [outcome] = await commit(store, RowCommit(checks=[(b"a", 7), (b"b", 1), (b"c", 9)], spans=[stale, stale]))
    assert sorted(outcome.conflicts) == [(b"a", 1), (b"c", 0)]
    assert outcome.stale_spans == 2


async def test_a_conflict_does_not_touch_its_neighbours(store: RowStore) -> None:
    conflicting = RowCommit(checks=[(b"a", 5)], puts=[entity(b"b", b"x")])
    assert versions(await commit(store, puts((b"a", b"x")), conflicting, puts((b"c", b"x")))) == [1, None, 2]
    assert await entities(store) == {b"a": (1, b"x"), b"c": (2, b"x")}


async def test_later_commits_see_what_earlier_ones_wrote(store: RowStore) -> None:
    first = RowCommit(checks=[(b"a", 0)], puts=[entity(b"a", b"x")])
    before = await seen(store, ALL_ROWS)
    scanned = RowCommit(spans=[before], puts=[entity(b"never", b"x")])
    counted = RowCommit(spans=[SpanCheck(Space.INDEX, b"x", b"y", 1)], puts=[entity(b"b", b"x")])
    again = RowCommit(checks=[(b"a", 0)], puts=[entity(b"a", b"z")])
    gone = RowCommit(checks=[(b"a", 1)], deletes=[b"a"])
    back = RowCommit(checks=[(b"a", 0)], puts=[entity(b"a", b"w")])
    assert versions(await commit(store, first, scanned, counted, again, gone, back)) == [1, None, 2, None, 3, 4]
    assert await entities(store) == {b"a": (4, b"w"), b"b": (2, b"x")}
    assert await index_rows(store) == {b"w|a": 1, b"x|b": 1}


@pytest.mark.parametrize("span", [index(b"x", b"y"), Span(Space.ENTITY, b"a", b"m")])
async def test_spans_are_checked(store: RowStore, span: Span) -> None:
    await commit(store, puts((b"a", b"x"), (b"b", b"x"), (b"z", b"w")))
    check = await seen(store, span)
    counted = SpanCheck(span.space, span.lo, span.hi, check.count)
    probe = RowCommit(spans=[check, counted])

    async def stale() -> int:
        return (await commit(store, probe))[0].stale_spans

    assert await stale() == 0
    await commit(store, puts((b"z", b"v")))  # outside
    assert await stale() == 0
    await commit(store, puts((b"c", b"x")))  # a phantom
    assert await stale() == 2
    await commit(store, RowCommit(deletes=[b"a"]))  # as many as before, but others
    assert await stale() == 1
    [outcome] = await commit(store, RowCommit(spans=[check], puts=[entity(b"n", b"")]))
    assert outcome.version is None


async def test_a_span_of_entities_notices_new_versions(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x")))
    entity_span, index_span = await seen(store, ALL_KEYS), await seen(store, ALL_ROWS)
    await commit(store, puts((b"a", b"x")))
    [outcome] = await commit(store, RowCommit(spans=[entity_span, index_span]))
    assert outcome.stale_spans == 1


@pytest.mark.parametrize("count", [255, 300, 1100])
async def test_long_spans_are_checked(store: RowStore, count: int) -> None:
    await commit(store, puts(*[(b"%05d" % n, b"x") for n in range(count)]))
    checks = [await seen(store, ALL_ROWS), await seen(store, ALL_KEYS)]
    assert checks[0].count == count
    assert versions(await commit(store, RowCommit(spans=checks), RowCommit(spans=checks, deletes=[b"00007"]))) == [1, 2]
    [outcome] = await commit(store, RowCommit(spans=checks))
    assert outcome.stale_spans == 2


async def test_the_fence_guards_the_whole_batch(store: RowStore) -> None:
    await commit(store, puts((b"fence", b"")))
    assert versions(await commit(store, puts((b"a", b"x")), fence=(b"fence", 1))) == [2]
    with pytest.raises(StaleFenceError):
        await commit(store, puts((b"b", b"x")), puts((b"c", b"x")), fence=(b"fence", 2))
    with pytest.raises(StaleFenceError):
        await commit(store, RowCommit(checks=[(b"a", 2)]), fence=(b"fence", 0))
    assert versions(await commit(store, puts((b"d", b"")), fence=(b"none", 0))) == [3]
    assert set(await entities(store)) == {b"fence", b"a", b"d"}


async def test_a_failed_batch_leaves_nothing(engine: Bound, store: RowStore) -> None:
    if not engine.engine.asks_rows:
        pytest.skip("nothing of ours is called in the middle of a batch")
    await commit(store, puts((b"a", b"x,*y"), (b"b", b"x")), RowCommit(index_puts={b"i": 0}))
    before = await index_rows(store), await entities(store), await store.count(ALL_ROWS)

    def damaged(key: bytes, payload: bytes) -> Mapping[bytes, int]:
        if key == b"b":
            raise CorruptDataError("damaged")
        return rows_of(key, payload)

    first = RowCommit(
        puts=[entity(b"a", b"*x,z"), entity(b"n", b"x")], index_puts={b"i": 7, b"j": 1}, index_deletes=[b"none"]
    )
    for last in (puts((b"b", b"z")), RowCommit(deletes=[b"n", b"b"])):
        with pytest.raises(CorruptDataError):
            await store.commit(RowBatch([first, RowCommit(deletes=[b"a"]), puts((b"a", b"q")), last], damaged))
        assert (await index_rows(store), await entities(store), await store.count(ALL_ROWS)) == before
    assert versions(await commit(store, puts((b"c", b"")))) == [3]


async def test_sequences(store: RowStore) -> None:
    assert await store.allocate(b"s", 10) == 1
    assert await store.allocate(b"s", 5) == 11
    assert await store.allocate(b"other", 1) == 1
    assert await store.allocate(b"s", 0) == 16
    assert await store.allocate(b"s", 1, at_least=100) == 100
    assert await store.allocate(b"s", 1, at_least=50) == 101
    assert await store.allocate(b"s", 0, at_least=200) == 200
    assert await store.allocate(b"s", 1) == 200


async def test_closed_stores_refuse(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x")))
    await store.aclose()
    await store.aclose()
    for call in (
        lambda: store.read([b"a"]),
        lambda: store.read([]),
        lambda: store.scan(ALL_ROWS, 1),
        lambda: store.count(ALL_ROWS),
        lambda: store.allocate(b"s", 1),
        store.sizes,
        lambda: commit(store, puts((b"b", b"x"))),
        lambda: commit(store, RowCommit(checks=[(b"a", 1)])),
    ):
        with pytest.raises(StoreClosedError):
            await call()
    if Capability.INLINE_READS in store.capabilities:
        with pytest.raises(StoreClosedError):
            store.read_now([b"a"])


async def test_sizes_are_bytes(store: RowStore) -> None:
    await commit(store, puts((b"a", b"x")))
    sizes = await store.sizes()
    assert sizes
    assert all(type(size) is int and size >= 0 for size in sizes.values())


# ------------------------------------------------------------------------------------------ concurrency


async def test_reads_beside_commits_see_one_moment(store: RowStore) -> None:
    """Each commit moves a token from one entity to another: no read may see none or two."""
    await commit(store, puts((b"a", b"token"), (b"b", b"")))
    stop = False

    async def move() -> None:
        nonlocal stop
        for n in range(30):
            source, target = (b"a", b"b") if n % 2 == 0 else (b"b", b"a")
            await commit(store, puts((source, b""), (target, b"token")))
            await anyio.lowlevel.checkpoint()
        stop = True

    async def watch() -> None:
        last = 0
        while not stop:
            records, version = await store.read([b"a", b"b"])
            assert sorted(record.payload for record in records if record) == [b"", b"token"]
            scan = await store.scan(ALL_KEYS, 1000, with_entities=True)
            assert sorted(row[3] or b"" for row in scan.rows) == [b"", b"token"]
            assert {row[2] for row in scan.rows} == {scan.version}
            assert (await store.scan(index(b"token", b"token~"), 10)).rows[0][0][-1:] in (b"a", b"b")
            assert (await store.count(ALL_ROWS)).rows == 1
            assert last <= version <= scan.version
            last = scan.version
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        group.start_soon(watch)
        group.start_soon(move)


async def test_concurrent_increments_lose_none(store: RowStore) -> None:
    await commit(store, puts((b"n", b"0")))

    async def increment() -> None:
        for _ in range(5):
            while True:
                [record] = (await store.read([b"n"])).records
                assert record is not None
                await anyio.lowlevel.checkpoint()
                write = RowCommit(
                    checks=[(b"n", record.version)], puts=[entity(b"n", b"%d" % (int(record.payload) + 1))]
                )
                [outcome] = await commit(store, write)
                if outcome.version is not None:
                    break

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(increment)
    assert (await store.read([b"n"])).records == [(41, b"40")]
    assert await index_rows(store) == {b"40|n": 1}


async def test_cancelling_a_commit_leaves_all_or_nothing(store: RowStore) -> None:
    for n in range(20):
        key = b"%02d" % n
        outcomes = []
        with anyio.move_on_after(n * 0.0003):
            outcomes = await commit(store, puts((key, b"x"), (key + b"!", b"y")))
        tries = 0
        while True:
            found = [record is not None for record in (await store.read([key, key + b"!"])).records]
            assert found[0] == found[1]
            rows = (await store.scan(index(b"x|" + key, b"x|" + key + b"\xff"), 10)).rows
            tries += 1
            if bool(rows) == found[0] or tries == 400:
                break
            await anyio.sleep(0.05)  # a server went on with it between the two reads
        if outcomes:
            assert found[0]
        assert bool(rows) == found[0]


# ------------------------------------------------------------------------------------- against a model


class Model:
    """Two dicts: the obvious way, sharing nothing with the stores."""

    def __init__(self) -> None:
        self.entities: dict[bytes, tuple[int, bytes]] = {}
        self.rows: dict[bytes, int] = {}
        self.version = 0

    def commit(self, work: RowCommit) -> int | None:
        for key, expected in work.checks:
            actual = self.entities.get(key, (0, b""))[0]
            if actual != expected and not (expected == EXISTS and actual > 0):
                return None
        for span in work.spans:
            names = self.entities if span.space is Space.ENTITY else self.rows
            if sum(span.lo <= name < span.hi for name in names) != span.count:
                return None
        if not (work.puts or work.deletes or work.index_puts or work.index_deletes):
            return self.version
        self.version += 1
        for key in [*work.deletes, *(put.key for put in work.puts)]:
            old = self.entities.pop(key, None)
            if old is not None:
                for row in rows_of(key, old[1]):
                    self.rows.pop(row, None)
        for put in work.puts:
            self.entities[put.key] = (self.version, put.payload)
            self.rows.update(put.rows)
        return self.version


def random_commit(rng: random.Random, model: Model) -> RowCommit:
    keys = rng.sample([b"k%03d" % n for n in range(60)], rng.randint(1, 6))
    cut = rng.randint(0, len(keys))
    values = [b"a", b"b", b"*b", b"c", b"*c", b"dd", b"*d\0", b"\xff"]
    writes = [entity(key, b",".join(rng.sample(values, rng.randint(0, 4)))) for key in keys[:cut]]
    checked = rng.choice([b"k%03d" % n for n in range(60)])
    actual = model.entities.get(checked, (0, b""))[0]
    checks = [(checked, rng.choice([actual, actual, actual, EXISTS, 0, 3]))] if rng.random() < 0.5 else []
    lo, hi = sorted(rng.choices([b"", b"a", b"b|k02", b"c", b"d", b"k010", b"k050", b"\xff" * 3], k=2))
    space = rng.choice(list(Space))
    names = model.entities if space is Space.ENTITY else model.rows
    count = sum(lo <= name < hi for name in names) + (rng.random() < 0.2)
    spans = [SpanCheck(space, lo, hi, count)] if rng.random() < 0.3 else []
    return RowCommit(checks=checks, spans=spans, puts=writes, deletes=keys[cut:])


@pytest.mark.parametrize("seed", range(4))
async def test_random_commits_agree_with_a_model(store: RowStore, seed: int) -> None:
    rng, model = random.Random(seed), Model()
    for _ in range(60):
        batch, expected = [], []
        for _ in range(rng.choice([1, 1, 2, 5])):
            work = random_commit(rng, model)
            batch.append(work)
            expected.append(model.commit(work))
        assert versions(await commit(store, *batch)) == expected
        assert await entities(store) == model.entities
        assert await index_rows(store) == model.rows
        lo, hi = sorted(rng.choices([*sorted(model.rows), b"", b"\xff\xff"], k=2))
        inside = [name for name in sorted(model.rows) if lo <= name < hi]
        multi = sum(bool(model.rows[name] & TAIL_MULTI) for name in inside)
        assert await store.count(index(lo, hi)) == (len(inside), multi, model.version)
        limit, reverse = rng.randint(1, 30), rng.random() < 0.5
        scan = await store.scan(index(lo, hi), limit, reverse=reverse, with_entities=True)
        assert scan.rows == [
            (name, model.rows[name], *model.entities[name.split(b"|")[-1]])
            for name in (inside[::-1] if reverse else inside)[:limit]
        ]


async def test_a_large_batch_of_new_and_changed_entities(store: RowStore) -> None:
    keys = [b"%05d" % number for number in range(18_000)]
    await commit(store, puts(*((key, b"red,blue") for key in keys[::3])))
    await commit(store, puts(*((key, b"blue,green") for key in keys)), RowCommit(deletes=keys[1:4000:2]))
    left = sorted({*keys} - {*keys[1:4000:2]})
    assert list(await entities(store)) == left
    assert set(await index_rows(store)) == {name + b"|" + key for name in (b"blue", b"green") for key in left}
