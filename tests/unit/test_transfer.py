"""Export, import and copy."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiodatastore.adapters.base import Commit, Delete, Outcome, Put, RunOptions
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadRequestError,
    BadValueError,
    CorruptDataError,
    FormatVersionError,
    UnavailableError,
)
from aiodatastore.indexing.definitions import IndexDefinition, IndexState
from aiodatastore.jsonl import canonical
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.transfer import (
    Difference,
    Selection,
    TransferProgress,
    compare,
    copy,
    export_entities,
    import_entities,
)
from aiodatastore.values import Blob, GeoPoint, Text

pytestmark = pytest.mark.anyio


class Store(EngineAdapter):
    """A memory store whose commits can be watched, delayed and made to fail."""

    def __init__(self) -> None:
        super().__init__(MemoryRowStore())
        self.committed = 0
        self.largest = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.fail_after: int | None = None
        self.delays: list[float] = []
        self.gate: anyio.Event | None = None

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.fail_after is not None:
                if self.fail_after == 0:
                    raise UnavailableError("unplugged")
                self.fail_after -= 1
            if self.gate is not None:
                await self.gate.wait()
            if self.delays:
                await anyio.sleep(self.delays.pop(0))
            self.largest = max(self.largest, *(len(commit.writes) for commit in batch))
            self.committed += len(batch)
            return await super().commit(batch)
        finally:
            self.in_flight -= 1


@pytest.fixture
async def source() -> AsyncIterator[Store]:
    store = Store()
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
async def target() -> AsyncIterator[Store]:
    store = Store()
    await store.open()
    yield store
    await store.aclose()


async def fill(store: Store, entities: Sequence[Entity]) -> None:
    await store.commit([Commit(writes=[Put(entity.snapshot()) for entity in entities])])
    store.committed = store.most_in_flight = store.largest = 0


async def content(store: Store) -> list[bytes]:
    found: list[bytes] = []
    for project, namespace in await store.partitions():
        stream = store.run(Query(project=project, namespace=namespace), RunOptions(page_size=1000))
        more = True
        while more:
            page = await stream.next_page()
            found += [canonical(entity) for entity in page.results]
            more = page.more
    return found


def many(count: int, kind: str = "N") -> list[Entity]:
    return [Entity(Key(kind, i), {"i": i, "s": f"name {i}"}) for i in range(1, count + 1)]


WORLD = [
    Entity(Key("A", 1), {"x": 1, "f": 1.0, "n": math.nan, "b": b"\x00", "t": datetime(2020, 1, 1, tzinfo=UTC)}),
    Entity(Key("A", 1, "B", "5"), {"k": Key("A", 1), "p": GeoPoint(1.0, 2.0), "l": [1, 1.0, True, None]}),
    Entity(Key("A", "é/:%"), {"text": Text("t"), "blob": Blob(b"b"), "u": "x" * 2000}, unindexed=["u"]),
    Entity(Key("B", 2), {"e": Entity(Key("E"), {"y": 1}), "d": {"$x": [b"1"]}}),
    Entity(Key("A", 1, namespace="n"), {"x": 2}),
    Entity(Key("C", 1, namespace="n", project="p"), {"x": 3}),
]


# ----------------------------------------------------------------------------------------- export


async def test_everything_goes_through_a_file(source: Store, target: Store, tmp_path: Path) -> None:
    await fill(source, WORLD)
    path = tmp_path / "all.jsonl"
    report = await export_entities(source, path)
    assert report.entities == len(WORLD)
    report = await import_entities(target, path)
    assert (report.entities, report.truncated) == (len(WORLD), False)
    assert await content(target) == await content(source)
    assert await target.check() == []


async def test_export_is_in_key_order_with_a_first_and_a_last_line(source: Store, tmp_path: Path) -> None:
    await fill(source, WORLD)
    path = tmp_path / "all.jsonl"
    await export_entities(source, path, page_size=2)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert lines[0]["aiodatastore"] == 1
    assert lines[-1] == {"aiodatastore": 1, "end": True, "entities": len(WORLD)}
    keys = [Key.from_string(line["key"]) for line in lines[1:-1]]
    assert keys == sorted(entity.key for entity in WORLD)


async def test_export_of_a_selection(source: Store) -> None:
    await fill(source, WORLD)

    async def keys(**selection: Any) -> list[str]:
        file = io.BytesIO()
        await export_entities(source, file, selection=Selection(**selection))
        lines = [json.loads(line) for line in file.getvalue().splitlines()]
        return [line["key"] for line in lines if "key" in line]

    assert await keys(kinds=("A",), namespace="", project="") == ["/A:1", "/A:é%2F%3A%25"]
    assert await keys(kinds=("A",)) == ["/A:1", "/A:é%2F%3A%25", "n/A:1"]
    assert await keys(kinds=("B", "A"), namespace="") == ["/A:1", "/A:é%2F%3A%25", '/A:1/B:"5"', "/B:2"]
    assert await keys(namespace="n") == ["n/A:1", "p!n/C:1"]
    assert await keys(kinds=("Z",)) == []


async def test_an_existing_file_is_not_overwritten_unless_asked(source: Store, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("precious")
    with pytest.raises(BadArgumentError, match="exists"):
        await export_entities(source, path)
    assert path.read_text() == "precious"
    await export_entities(source, path, overwrite=True)
    assert b"precious" not in path.read_bytes()


@pytest.mark.parametrize("kinds", [(), ("A", "B", "C"), ("B",)])
async def test_an_export_resumes_from_every_byte(source: Store, tmp_path: Path, kinds: tuple[str, ...]) -> None:
    await fill(source, WORLD)
    whole = tmp_path / "whole.jsonl"
    selection = Selection(kinds)
    await export_entities(source, whole, selection=selection)
    wanted = whole.read_bytes()
    part = tmp_path / "part.jsonl"
    for size in range(0, len(wanted) + 1, 7):
        part.write_bytes(wanted[:size])
        report = await export_entities(source, part, selection=selection, resume=True)
        assert part.read_bytes() == wanted
        assert report.entities + report.resumed == wanted.count(b"\n") - 2
    report = await export_entities(source, part, selection=selection, resume=True)
    assert report.entities == 0


async def test_what_is_no_export_is_not_resumed(source: Store, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("dear diary\nmore\n", '{"key": "/A:1", "properties": {}}\n'):
        path.write_text(text)
        with pytest.raises(CorruptDataError, match=r"line 1|no export"):
            await export_entities(source, path, resume=True)
        assert path.read_text() == text


async def test_an_export_of_something_else_is_not_resumed(source: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    await export_entities(source, path, selection=Selection(("A",)))
    with pytest.raises(BadArgumentError, match="can't go on"):
        await export_entities(source, path, resume=True)


async def test_export_tells_its_progress(source: Store) -> None:
    await fill(source, many(25))
    seen: list[TransferProgress] = []
    await export_entities(source, io.BytesIO(), progress=seen.append, page_size=10)
    assert [(p.entities, p.total_entities) for p in seen] == [(10, 25), (20, 25), (25, 25)]


# ----------------------------------------------------------------------------------------- import


def write_lines(path: Path, entities: Sequence[Entity]) -> Path:
    path.write_bytes(b"".join(canonical(entity) + b"\n" for entity in entities))
    return path


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    with anyio.fail_after(60):
        while True:
            if condition():
                return
            await anyio.sleep(0.005)


async def open_when(store: Store, in_flight: int) -> None:
    """Let commits go once so many are under way, and those that could come too have had time to."""
    assert store.gate is not None
    await until(lambda: store.in_flight >= in_flight)
    await anyio.sleep(0.05)
    store.gate.set()


async def test_batches_are_bounded_and_several_in_flight(target: Store, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "n.jsonl", many(1000))
    target.gate = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(open_when, target, 3)
        report = await import_entities(target, path, batch_size=100, in_flight=3)
    assert report.entities == 1000
    assert (target.committed, target.largest, target.most_in_flight) == (10, 100, 3)
    assert report.done_bytes == path.stat().st_size


async def test_large_entities_make_small_batches(target: Store, tmp_path: Path) -> None:
    entities = [Entity(Key("N", i), {"text": Text("x" * 1_000_000)}) for i in range(1, 13)]
    await import_entities(target, write_lines(tmp_path / "n.jsonl", entities))
    assert target.largest <= 5


async def test_plain_lines_need_no_header(target: Store) -> None:
    lines = b'\xef\xbb\xbf{"key": "/A:1", "properties": {"x": 1}}\r\n\r\n  \n{"properties": {}, "key": "/A:2"}'
    report = await import_entities(target, io.BytesIO(lines))
    assert (report.entities, report.truncated) == (2, False)
    assert await content(target) == [
        canonical(Entity(Key("A", 1), {"x": 1})),
        canonical(Entity(Key("A", 2))),
    ]


async def test_an_empty_file_is_fine(target: Store) -> None:
    assert (await import_entities(target, io.BytesIO())).entities == 0


async def test_concatenated_exports_and_a_truncated_one(source: Store, target: Store) -> None:
    await fill(source, WORLD)
    file = io.BytesIO()
    await export_entities(source, file)
    whole = file.getvalue()
    report = await import_entities(target, io.BytesIO(whole + whole))
    assert (report.entities, report.truncated) == (len(WORLD), False)
    report = await import_entities(target, io.BytesIO(whole[: whole.rindex(b'{"aiodatastore"')]))
    assert (report.entities, report.truncated) == (len(WORLD), True)


async def test_the_last_line_of_a_key_wins_across_batches(target: Store, tmp_path: Path) -> None:
    entities = [Entity(Key("N", i % 5 + 1), {"i": i}) for i in range(100)]
    target.delays = [0.03, 0.02, 0.01, 0.0] * 10
    await import_entities(target, write_lines(tmp_path / "n.jsonl", entities), batch_size=3, in_flight=8)
    found = (await target.lookup([Key("N", i) for i in range(1, 6)])).entities
    assert [entity["i"] for entity in found if entity] == [95, 96, 97, 98, 99]


async def test_a_bad_line_is_named_and_what_precedes_it_is_there(target: Store, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "n.jsonl", many(10))
    with path.open("ab") as file:
        file.write(b'{"key": "/N:11", "properties": {"a": {"$what": 1}}}\n')
    with pytest.raises(BadValueError, match=r"n\.jsonl, line 11: a: unknown type"):
        await import_entities(target, path, batch_size=5)
    assert len(await content(target)) == 10


@pytest.mark.parametrize(
    ("line", "error", "problem"),
    [
        (b'{"key": "/A:1", "properties": {"__x__": 1}}', BadRequestError, "line 1: .*reserved"),
        (b'{"key": "/A:1", "properties": {"x": 9223372036854775808}}', BadValueError, "line 1: .*64 bits"),
        (b'{"key": "/A:1", "properties": {"x": [[]]}}', BadValueError, "line 1: .*list"),
        (b'{"aiodatastore": 2}', FormatVersionError, "format 2"),
    ],
)
async def test_what_can_not_be_stored_is_refused(
    target: Store, line: bytes, error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        await import_entities(target, io.BytesIO(line))
    assert await content(target) == []


async def test_incomplete_keys_get_ids_that_nobody_has(target: Store) -> None:
    await fill(target, [Entity(Key("A", i), {"mine": True}) for i in range(1, 40)])
    lines = b"".join(b'{"key": "/A", "properties": {"new": %d}}\n' % i for i in range(20))
    lines += b'{"key": "/A:5/A", "properties": {"new": 20}}\n'
    report = await import_entities(target, io.BytesIO(lines), batch_size=6)
    assert report.entities == 21
    found = [json.loads(line) for line in await content(target)]
    assert len(found) == 39 + 21
    assert sum("mine" in line["properties"] for line in found) == 39
    assert sorted(line["properties"]["new"] for line in found if "new" in line["properties"]) == [*range(21)]


async def test_an_import_resumes_where_all_is_acknowledged(target: Store, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "n.jsonl", many(100))
    progress = tmp_path / "n.progress"
    target.fail_after = 5
    with pytest.raises(UnavailableError, match="unplugged") as caught:
        await import_entities(target, path, progress_file=progress, batch_size=10, in_flight=2)
    assert any("lines 51 to 60" in note for note in caught.value.__notes__)
    assert json.loads(progress.read_text())["mark"]["line"] == 50
    target.fail_after, target.committed = None, 0
    report = await import_entities(target, path, progress_file=progress, resume=True, batch_size=10)
    assert (report.resumed, report.entities, target.committed) == (50, 50, 5)
    assert not progress.exists()
    assert len(await content(target)) == 100


async def test_a_later_commit_does_not_hide_one_that_failed(target: Store, tmp_path: Path) -> None:
    """The record is the point up to which everything is there, whatever finished after it."""
    path = write_lines(tmp_path / "n.jsonl", many(40))
    progress = tmp_path / "n.progress"
    real, calls = target.commit, 0

    async def commit(batch: Sequence[Commit]) -> list[Outcome]:
        nonlocal calls
        calls += 1
        if calls == 2:
            await until(lambda: target.committed == 3)  # the others are done
            raise UnavailableError("unplugged")
        return await real(batch)

    target.commit = commit  # type: ignore[method-assign]  # a fault for one call
    with pytest.raises(UnavailableError):
        await import_entities(target, path, progress_file=progress, batch_size=10, in_flight=4)
    assert len(await content(target)) == 30
    assert json.loads(progress.read_text())["mark"]["line"] == 10
    report = await import_entities(target, path, progress_file=progress, resume=True)
    assert (report.resumed, report.entities) == (10, 30)
    assert len(await content(target)) == 40


async def test_a_cancelled_import_resumes(target: Store, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "n.jsonl", many(100))
    progress = tmp_path / "n.progress"
    target.delays = [0.0] * 3 + [3600.0] * 10

    async def cancel() -> None:
        await until(lambda: (target.committed, target.in_flight) == (3, 2))
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        await import_entities(target, path, progress_file=progress, batch_size=10, in_flight=2)
    assert group.cancel_scope.cancelled_caught
    assert json.loads(progress.read_text())["mark"]["line"] == 30
    target.delays = []
    await import_entities(target, path, progress_file=progress, resume=True)
    assert len(await content(target)) == 100


async def test_progress_of_another_file_is_refused(target: Store, tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", many(30, "A"))
    other = write_lines(tmp_path / "b.jsonl", many(30, "B"))
    progress = tmp_path / "progress"
    target.fail_after = 1
    with pytest.raises(UnavailableError):
        await import_entities(target, first, progress_file=progress, batch_size=10, in_flight=1)
    target.fail_after = None
    with pytest.raises(BadArgumentError, match="another file"):
        await import_entities(target, other, progress_file=progress, resume=True)
    first.write_bytes(first.read_bytes()[:40])
    with pytest.raises(BadArgumentError, match="another file"):
        await import_entities(target, first, progress_file=progress, resume=True)


async def test_nothing_to_resume(target: Store, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "n.jsonl", many(1))
    with pytest.raises(BadArgumentError, match="nothing to resume"):
        await import_entities(target, path, progress_file=tmp_path / "none", resume=True)
    with pytest.raises(BadArgumentError, match="name the file"):
        await import_entities(target, path, resume=True)
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(CorruptDataError, match="no progress file"):
        await import_entities(target, path, progress_file=tmp_path / "junk", resume=True)
    (tmp_path / "copy").write_text('{"aiodatastore": 1, "progress": "copy"}')
    with pytest.raises(BadArgumentError, match="something else"):
        await import_entities(target, path, progress_file=tmp_path / "copy", resume=True)


async def test_import_tells_its_progress(target: Store, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "n.jsonl", many(30))
    seen: list[TransferProgress] = []
    await import_entities(target, path, progress=seen.append, batch_size=10, in_flight=1)
    assert [p.entities for p in seen] == [10, 20, 30]
    assert seen[-1].done_bytes == seen[-1].total_bytes == path.stat().st_size


async def test_a_line_without_end_is_refused(target: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aiodatastore.transfer.files.MAX_LINE_BYTES", 1000)
    with pytest.raises(BadValueError, match="line 1: longer than 1000"):
        await import_entities(target, io.BytesIO(b"x" * 2000))


# ------------------------------------------------------------------------------------------- copy


async def test_copy_and_verify(source: Store, target: Store) -> None:
    await fill(source, WORLD)
    await fill(target, [Entity(Key("A", 1), {"old": True}), Entity(Key("Z", 1))])
    report = await copy(source, target, verify=True, page_size=2)
    assert (report.entities, report.verified, report.different) == (len(WORLD), len(WORLD), 0)
    assert set(await content(source)) < set(await content(target))
    assert await target.check() == []


async def test_verify_finds_what_differs(source: Store, target: Store) -> None:
    await fill(source, [Entity(Key("A", i), {"x": 1}) for i in range(1, 5)])
    await fill(target, [Entity(Key("A", 9), {"x": 1})])
    real, broken = target.commit, False

    async def commit(batch: Sequence[Commit]) -> list[Outcome]:
        nonlocal broken
        outcomes = await real(batch)
        if not broken:
            broken = True
            await real([Commit(writes=[Put(Entity(Key("A", 1), {"x": True})), Delete(Key("A", 2))])])
        return outcomes

    target.commit = commit  # type: ignore[method-assign]  # a store that loses and changes data
    report = await copy(source, target, verify=True)
    assert [(d.key.id, d.problem) for d in report.differences] == [(1, "different"), (2, "missing")]
    assert (report.verified, report.different, report.extra) == (4, 2, 1)


async def test_verify_looks_at_the_indexes_of_both_sides(source: Store, target: Store) -> None:
    await fill(source, many(3))
    index = IndexDefinition("N", (("i", "asc"), ("s", "desc")))
    await source.create_index(index)
    await source.build_index(index)
    report = await copy(source, target, verify=True)
    assert report.problems == []
    rows = target.store
    assert isinstance(rows, MemoryRowStore)
    rows._set_row(min(rows._tails), None)
    await target.delete_index(index)
    problems = (await compare(source, target)).problems
    assert problems[0] == "the target lacks the index of N by i, -s, or has it not ready"
    assert problems[1].startswith("target: index row missing")
    assert len(problems) == 2
    assert (await compare(target, source)).problems[0].startswith("the source lacks the index of N")
    assert (await compare(source, target, indexes=False)).is_same


async def test_new_entities_of_the_target_get_ids_of_their_own(source: Store, target: Store) -> None:
    await fill(source, [Entity(Key("A", 7)), Entity(Key("A", 9, "B", 70)), Entity(Key("C", 1 << 62))])
    await copy(source, target, page_size=1)
    assert (await target.allocate_ids(Key("A"), 1))[0] == 10
    assert (await target.allocate_ids(Key("A", 1, "B"), 1))[0] == 71
    assert (await target.allocate_ids(Key("C"), 1))[0] == 1  # else hardly any would be left


async def test_large_entities_are_read_few_at_a_time(source: Store, target: Store) -> None:
    await fill(source, [Entity(Key("N", i), {"text": Text("x" * 500_000)}) for i in range(1, 101)])
    report = await copy(source, target)
    assert report.entities == 100
    assert target.largest == 64  # the first page does not know yet
    assert target.committed >= 5


# ---------------------------------------------------------------------------------------- compare


@pytest.mark.parametrize("selection", [Selection(), Selection(("A", "B", "C", "N"))], ids=["all", "kinds"])
@pytest.mark.parametrize("page_size", [1, 3, 500])
async def test_compare_names_every_difference(
    source: Store, target: Store, page_size: int, selection: Selection
) -> None:
    """Whatever the pages, which begin and end elsewhere on the two sides."""
    await fill(source, [*WORLD, *many(20)])
    await fill(target, [*WORLD, *many(20)])
    assert (await compare(source, target, selection=selection, page_size=page_size)).is_same
    await source.commit([Commit(writes=[Delete(Key("N", i)) for i in (1, 2, 3, 4, 20)])])
    await target.commit(
        [
            Commit(
                writes=[
                    Put(Entity(Key("A", 1), {**WORLD[0], "x": 1.0})),
                    Put(Entity(Key("N", 7), many(7)[-1], unindexed=["s"])),
                    Delete(Key("N", 10)),
                    Delete(Key("C", 1, namespace="n", project="p")),
                    Put(Entity(Key("N", "z"))),
                ]
            )
        ]
    )
    found = await compare(source, target, selection=selection, page_size=page_size)
    assert found.differences == [
        Difference(Key("A", 1), "different"),
        *(Difference(Key("N", i), "extra") for i in (1, 2, 3, 4)),
        Difference(Key("N", 7), "different"),
        Difference(Key("N", 10), "missing"),
        Difference(Key("N", 20), "extra"),
        Difference(Key("N", "z"), "extra"),
        Difference(Key("C", 1, namespace="n", project="p"), "missing"),
    ]
    assert (found.missing, found.different, found.extra) == (2, 2, 6)
    assert (found.source_entities, found.target_entities) == (21, 25)
    assert not found.is_same


async def test_compare_with_an_empty_store(source: Store, target: Store) -> None:
    assert (await compare(source, target)).is_same
    await fill(source, many(130))
    found = await compare(source, target)
    assert (found.missing, len(found.differences), found.is_same) == (130, 100, False)
    assert (await compare(target, source)).extra == 130
    with pytest.raises(BadArgumentError, match="same store"):
        await compare(source, source)


async def test_a_comparison_resumes(source: Store, target: Store, tmp_path: Path) -> None:
    await fill(source, many(100))
    await fill(target, [entity for entity in many(100) if entity.key.id not in (5, 95)])
    file = tmp_path / "compare.progress"
    real, pages = target.run, 0

    def run(query: Query, options: RunOptions = RunOptions()) -> Any:  # noqa: B008
        stream = real(query, options)
        fetch = stream.next_page

        async def next_page() -> Any:
            nonlocal pages
            pages += 1
            if pages == 5:
                raise UnavailableError("unplugged")
            return await fetch()

        stream.next_page = next_page  # type: ignore[method-assign]
        return stream

    target.run = run  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await compare(source, target, progress_file=file, page_size=10)
    assert json.loads(file.read_text())["mark"]["source_entities"] > 0
    found = await compare(source, target, progress_file=file, resume=True, page_size=10)
    assert 0 < found.resumed < 100
    assert (found.source_entities, found.target_entities) == (100, 98)
    assert found.differences == [Difference(Key("N", i), "missing") for i in (5, 95)]
    assert not file.exists()
    with pytest.raises(BadArgumentError, match="nothing to resume"):
        await compare(source, target, progress_file=file, resume=True)
    with pytest.raises(BadArgumentError, match="name its progress file"):
        await compare(source, target, resume=True)


async def test_a_copy_whose_verification_was_interrupted_is_not_made_again(
    source: Store, target: Store, tmp_path: Path
) -> None:
    await fill(source, many(30))
    file = tmp_path / "copy.progress"
    real = target.run

    def run(query: Query, options: RunOptions = RunOptions()) -> Any:  # noqa: B008
        raise UnavailableError("unplugged")

    target.run = run  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await copy(source, target, verify=True, progress_file=file)
    target.run = real  # type: ignore[method-assign]
    target.committed = 0
    report = await copy(source, target, verify=True, progress_file=file, resume=True)
    assert (report.entities, report.resumed, report.verified, target.committed) == (0, 30, 30, 0)
    assert not file.exists()


async def test_compare_tells_its_progress(source: Store, target: Store) -> None:
    await fill(source, many(25))
    await fill(target, many(25))
    seen: list[TransferProgress] = []
    await compare(source, target, progress=seen.append, page_size=10)
    assert [(p.phase, p.entities) for p in seen] == [
        ("compare", 10),
        ("compare", 20),
        ("compare", 25),
        ("check", 0),
        ("check", 0),
    ]
    assert seen[0].total_entities == 25


# ------------------------------------------------------------------------------------ copy, resumed


async def test_a_copy_resumes_after_the_last_key(source: Store, target: Store, tmp_path: Path) -> None:
    await fill(source, [*many(50), *WORLD])
    progress = tmp_path / "copy.progress"
    target.fail_after = 3
    with pytest.raises(UnavailableError):
        await copy(source, target, progress_file=progress, page_size=10, in_flight=1)
    assert json.loads(progress.read_text())["mark"]["entities"] == 30
    target.fail_after = None
    with pytest.raises(BadArgumentError, match="something else"):
        await copy(source, target, progress_file=progress, resume=True, selection=Selection(("A",)))
    report = await copy(source, target, progress_file=progress, resume=True, verify=True)
    assert (report.resumed, report.entities, report.different) == (30, 26, 0)
    assert not progress.exists()
    assert await content(target) == await content(source)


async def test_copy_takes_indexes_along(source: Store, target: Store) -> None:
    await fill(source, many(5))
    index = IndexDefinition("N", (("i", "asc"), ("s", "desc")))
    await source.create_index(index)
    await source.build_index(index)
    report = await copy(source, target)
    assert report.indexes == 1
    assert [(i.definition, i.state) for i in await target.indexes()] == [(index, IndexState.SERVING)]
    assert await target.check() == []
    await target.delete_index(index)
    assert (await copy(source, target, indexes=False)).indexes == 0
    assert await target.indexes() == []


async def test_copy_onto_itself_is_refused(source: Store) -> None:
    with pytest.raises(BadArgumentError, match="same store"):
        await copy(source, source)


async def test_memory_stays_bounded(source: Store, target: Store) -> None:
    """Of a long copy only the batches in flight are in memory, and one that is being read."""
    await fill(source, many(2000))
    alive = 0
    real = source.run

    def run(query: Query, options: RunOptions = RunOptions()) -> Any:  # noqa: B008
        stream = real(query, options)
        fetch = stream.next_page

        async def next_page() -> Any:
            nonlocal alive
            alive = max(alive, read - target.committed)
            count()
            return await fetch()

        read = 0

        def count() -> None:
            nonlocal read
            read += 1

        stream.next_page = next_page  # type: ignore[method-assign]
        return stream

    source.run = run  # type: ignore[method-assign]
    target.delays = [0.002] * 100
    await copy(source, target, page_size=50, in_flight=3)
    assert target.committed == 40
    assert alive <= 5


async def test_files_are_closed_on_errors(source: Store, tmp_path: Path) -> None:
    before = _open_files()
    path = tmp_path / "x.jsonl"
    path.write_text("junk\n")
    for _ in range(5):
        with pytest.raises(BadValueError):
            await import_entities(source, path)
        with pytest.raises(CorruptDataError):
            await export_entities(source, path, resume=True)
    assert _open_files() == before


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
