"""Export, import and copy: entities streamed between stores and files, in bounded memory, resumable.

Files are JSON lines, described in :mod:`aiodatastore.jsonl`. What moves is read in pages and written in
batches, several of them in flight; memory holds those and no more. Stores change while this runs: what is
written meanwhile is taken in its old or its new state.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import anyio
import anyio.to_thread

from aiodatastore.adapters.base import Adapter, Aggregation, Commit, Put, RunOptions
from aiodatastore.entity import Entity
from aiodatastore.errors import (
    BadArgumentError,
    BadValueError,
    CorruptDataError,
    DatastoreError,
)
from aiodatastore.indexing.definitions import IndexState
from aiodatastore.jsonl import MARK, VERSION, canonical, dump_entity, load_line
from aiodatastore.key import Key
from aiodatastore.query import Query

__all__ = [
    "BATCH_ENTITIES",
    "EVERYTHING",
    "PAGE_ENTITIES",
    "Difference",
    "Selection",
    "TransferProgress",
    "TransferReport",
    "copy",
    "export_entities",
    "import_entities",
]

BATCH_ENTITIES = 4000
PAGE_ENTITIES = 500
BATCH_BYTES = 4 << 20
IN_FLIGHT = 3
MAX_LINE_BYTES = 64 << 20
_COUNT = [Aggregation("count")]
_SAVE_INTERVAL_S = 1.0
_FINGERPRINT_BYTES = 1 << 16


class _Store(Protocol):
    """A ``Datastore``: only its adapter is used."""

    @property
    def adapter(self) -> Adapter: ...


Store = Adapter | _Store


@dataclass(frozen=True, slots=True)
class Selection:
    """What to export or copy: everything by default.

    ``kinds``: only these, whatever their ancestors. ``namespace`` / ``project``: only this partition's ("" is
    the default one), None means all.
    """

    kinds: tuple[str, ...] = ()
    namespace: str | None = None
    project: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(sorted(set(self.kinds))))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for files."""
        return {"kinds": list(self.kinds), "namespace": self.namespace, "project": self.project}


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a transfer has come; None where that isn't known.

    ``entities`` counts those done in this run and before it was resumed, ``resumed`` the latter.
    """

    phase: str
    entities: int
    total_entities: int | None = None
    done_bytes: int = 0
    total_bytes: int | None = None
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose entity in the target is not the source's: ``missing`` or ``different``."""

    key: Key
    problem: str


@dataclass(slots=True)
class TransferReport:
    """What a transfer did.

    ``entities`` were written by this run, ``resumed`` by those before it. ``truncated``: the imported file
    began as an export but lacks its end. ``differences`` (at most 100; ``different`` counts all) is what
    ``verify`` found among ``verified`` entities.
    """

    entities: int = 0
    resumed: int = 0
    done_bytes: int = 0
    seconds: float = 0.0
    truncated: bool = False
    indexes: int = 0
    verified: int = 0
    different: int = 0
    differences: list[Difference] = field(default_factory=list)


ProgressCallback = Callable[[TransferProgress], None]


# ----------------------------------------------------------------------------------------- export


async def export_entities(
    source: Store,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    selection: Selection = EVERYTHING,
    resume: bool = False,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    page_size: int = PAGE_ENTITIES,
) -> TransferReport:
    """Write entities to a file in order of their keys; the file can be imported by any adapter.

    ``resume`` continues a file that an interrupted export of the same selection left: a line that was cut
    short is removed, and what follows the last key is appended. ``target`` may be an open binary file, which
    stays open and can't be resumed. One page is in memory.

    :raises BadArgumentError: if the file exists and is neither to be resumed nor overwritten, or holds
        another selection
    :raises CorruptDataError: if the file to resume is no export
    """
    reader = _Reader(_adapter(source), selection, page_size)
    report = TransferReport()
    started = time.monotonic()
    if isinstance(target, str | os.PathLike):
        path = Path(target)
        state = await anyio.to_thread.run_sync(_open_export, path, selection, resume, overwrite)
        if state.complete:
            report.resumed = state.entities
            return report
        try:
            await _export(reader, state, report, progress)
            await anyio.to_thread.run_sync(_sync, state.file)
        finally:
            state.file.close()
    else:
        await _export(reader, _ExportState(target), report, progress)
    report.seconds = time.monotonic() - started
    return report


@dataclass(slots=True)
class _ExportState:
    """A file being exported to: what it holds already."""

    file: BinaryIO
    after: Key | None = None
    entities: int = 0
    started: bool = False
    complete: bool = False


async def _export(
    reader: _Reader, state: _ExportState, report: TransferReport, progress: ProgressCallback | None
) -> None:
    await reader.open(count=progress is not None)
    report.resumed = state.entities
    done_bytes = 0

    def write(entities: Sequence[Entity]) -> int:
        chunk = b"".join(dump_entity(entity) + b"\n" for entity in entities)
        state.file.write(chunk)
        return len(chunk)

    def write_mark(**members: Any) -> None:
        state.file.write(json.dumps({MARK: VERSION, **members}, ensure_ascii=False).encode() + b"\n")
        state.file.flush()

    if not state.started:
        write_mark(source=reader.adapter.url, **reader.selection.to_dict())
    async with contextlib.aclosing(reader.pages(state.after)) as pages:
        async for entities in pages:
            done_bytes += await anyio.to_thread.run_sync(write, entities)
            report.entities += len(entities)
            if progress is not None:
                done = report.resumed + report.entities
                progress(TransferProgress("export", done, reader.total, done_bytes, resumed=report.resumed))
    report.done_bytes = done_bytes
    write_mark(end=True, entities=report.resumed + report.entities)


def _open_export(path: Path, selection: Selection, resume: bool, overwrite: bool) -> _ExportState:
    if path.exists() and path.stat().st_size and not resume and not overwrite:
        raise BadArgumentError(f"{path} exists; resume it, overwrite it, or choose another name")
    if not resume or not path.exists():
        return _ExportState(path.open("wb"))
    file = path.open("r+b")
    try:
        return _resume_export(file, path, selection)
    except BaseException:
        file.close()
        raise


def _resume_export(file: BinaryIO, path: Path, selection: Selection) -> _ExportState:
    """Find the last whole line, cut off what follows it."""
    state = _ExportState(file, started=True)
    end = position = 0
    last = b""
    for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
        position += len(line)
        if not line.endswith(b"\n"):
            break
        if end == 0:
            _check_header(line, path, selection)
        else:
            state.entities += 1
            last = line
        end = position
    if last:
        found = _load(last, str(path), "its last line", CorruptDataError)
        if not isinstance(found, Entity):
            state.complete, state.entities = True, state.entities - 1
            file.close()
            return state
        state.after = found.key
    if end == 0:
        state.started = False
    file.seek(end)
    file.truncate()
    return state


def _check_header(line: bytes, path: Path, selection: Selection) -> None:
    header = _load(line, str(path), "line 1", CorruptDataError)
    if isinstance(header, Entity):
        raise CorruptDataError(f"{path} is no export: it does not begin with a line that says so")
    wanted = selection.to_dict()
    given = {member: header.get(member) for member in wanted}
    if given != wanted:
        raise BadArgumentError(f"{path} is an export of {given}, which can't go on with {wanted}")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


# ----------------------------------------------------------------------------------------- import


async def import_entities(
    target: Store,
    source: str | os.PathLike[str] | BinaryIO,
    *,
    progress_file: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    batch_size: int = BATCH_ENTITIES,
    in_flight: int = IN_FLIGHT,
) -> TransferReport:
    """Put the entities of a file; what exists under the same keys is overwritten.

    Each batch is one atomic commit; up to ``in_flight`` of them run at a time, so memory holds that many
    batches (of at most ``batch_size`` entities and about 4 MiB). Incomplete keys get ids.

    With a ``progress_file`` it is recorded up to where everything is acknowledged; ``resume`` starts there.
    Lines between that point and the interruption may be put again, which changes nothing but for
    incomplete keys, which get new ids. The progress file is removed at the end.

    :raises BadValueError: if a line is not of the format or its entity can't be stored; what precedes its
        batch has been put
    :raises BadArgumentError: if there is nothing to resume from, or the progress is another file's
    """
    adapter = _adapter(target)
    started = time.monotonic()
    total: int | None = None
    if isinstance(source, str | os.PathLike):
        file, total = await anyio.to_thread.run_sync(_open_import, Path(source))
    else:
        file = source
    try:
        lines = _Lines(file, str(getattr(file, "name", "input")), batch_size)
        saved = _Saved(progress_file, "import")
        if resume:
            if total is None or progress_file is None:
                raise BadArgumentError("to resume an import, name the file and its progress file")
            await anyio.to_thread.run_sync(_resume_import, saved, lines)
        writer = _Writer(adapter, saved, progress, in_flight=in_flight, resumed=lines.entities)
        writer.total_bytes = total
        await writer.run(_import_batches(adapter, lines))
    finally:
        if total is not None:
            file.close()
    report = writer.report
    report.truncated = lines.unfinished
    report.seconds = time.monotonic() - started
    return report


@dataclass(slots=True)
class _Batch:
    """Entities to write together; ``mark`` is the progress to record once they and all before are there."""

    entities: list[Entity]
    size: int
    mark: dict[str, Any]
    where: str = ""
    automatic: dict[Key, Entity] = field(default_factory=dict)
    done: bool = False


class _Lines:
    """Reads a file in batches of entities. Runs in worker threads, one call at a time."""

    def __init__(self, file: BinaryIO, name: str, batch_size: int) -> None:
        self.file = file
        self.name = name
        self.batch_size = batch_size
        self.line = 0
        self.offset = 0
        self.entities = 0
        self.unfinished = False
        self._head = hashlib.blake2b(digest_size=16)
        self._hashed = 0

    def next_batch(self) -> _Batch | None:
        """The next entities, checked; None at the end of the file."""
        entities: list[Entity] = []
        size, first = 0, self.line + 1
        while len(entities) < self.batch_size and size < BATCH_BYTES:
            raw = self._read_line()
            if raw is None:
                break
            if self.line == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")  # editors on Windows put it there
            if not raw.strip():
                continue
            size += len(raw)
            found = _load(raw, self.name, f"line {self.line}", BadValueError)
            if not isinstance(found, Entity):
                self.unfinished = not found.get("end", False)
                continue
            _validate(found, self.name, self.line)
            entities.append(found)
        if not entities and not size:
            return None
        self.entities += len(entities)
        mark = {
            "line": self.line,
            "offset": self.offset,
            "entities": self.entities,
            "unfinished": self.unfinished,
            "head": self._head.hexdigest(),
            "hashed": self._hashed,
        }
        return _Batch(entities, size, mark, f"{self.name}, lines {first} to {self.line}")

    def _read_line(self) -> bytes | None:
        raw = self.file.readline(MAX_LINE_BYTES)
        if not raw:
            return None
        self.line += 1
        if len(raw) >= MAX_LINE_BYTES:
            raise BadValueError(f"{self.name}, line {self.line}: longer than {MAX_LINE_BYTES} bytes")
        self.offset += len(raw)
        if self._hashed < _FINGERPRINT_BYTES:
            part = raw[: _FINGERPRINT_BYTES - self._hashed]
            self._head.update(part)
            self._hashed += len(part)
        return raw

    def skip_to(self, mark: dict[str, Any]) -> None:
        """Go on where a mark was made.

        :raises BadArgumentError: if it was made in another file
        """
        head = self.file.read(mark["hashed"])
        self._head.update(head)
        self._hashed = len(head)
        self.file.seek(0, os.SEEK_END)
        if self._head.hexdigest() != mark["head"] or self.file.tell() < mark["offset"]:
            raise BadArgumentError(f"the progress was recorded for another file than {self.name}")
        self.file.seek(mark["offset"])
        self.line, self.offset, self.entities = mark["line"], mark["offset"], mark["entities"]
        self.unfinished = mark["unfinished"]


def _open_import(path: Path) -> tuple[BinaryIO, int]:
    return path.open("rb"), path.stat().st_size


def _resume_import(saved: _Saved, lines: _Lines) -> None:
    mark = saved.load()
    if mark is not None:
        lines.skip_to(mark)


def _load(
    raw: bytes, name: str, where: str, error: type[BadValueError] | type[CorruptDataError]
) -> Entity | dict[str, Any]:
    try:
        return load_line(raw)
    except BadValueError as exc:
        raise error(f"{name}, {where}: {exc}") from exc


def _validate(entity: Entity, name: str, line: int) -> None:
    try:
        entity.validate()
    except DatastoreError as exc:
        raise type(exc)(f"{name}, line {line}: {exc}") from exc


async def _import_batches(adapter: Adapter, lines: _Lines) -> AsyncGenerator[_Batch]:
    while (batch := await anyio.to_thread.run_sync(lines.next_batch)) is not None:
        incomplete = _without_repeated_keys(batch.entities)
        await _complete_keys(adapter, batch, incomplete)
        yield batch


def _without_repeated_keys(entities: list[Entity]) -> list[Entity]:
    """Of entities with equal keys leave the last; returns those with incomplete keys."""
    last = {entity.key: entity for entity in entities if entity.key.is_complete}
    incomplete = [entity for entity in entities if not entity.key.is_complete]
    if len(last) + len(incomplete) < len(entities):
        kept = {id(entity) for entity in last.values()}
        entities[:] = [e for e in entities if not e.key.is_complete or id(e) in kept]
    return incomplete


async def _complete_keys(adapter: Adapter, batch: _Batch, entities: Sequence[Entity], *, skip: int = 0) -> None:
    """Give ids to entities whose last element has none, after passing over some."""
    groups: dict[tuple[str, str, str], list[Entity]] = {}
    for entity in entities:
        groups.setdefault((entity.key.project, entity.key.namespace, entity.key.kind), []).append(entity)
    for group in groups.values():
        first, _ = await adapter.allocate_ids(group[0].key, len(group) + skip)
        for number, entity in enumerate(group, first + skip):
            entity.key = entity.key.completed(number)
            batch.automatic[entity.key] = entity


def _incomplete(key: Key) -> Key:
    return Key(*key.path[:-1], namespace=key.namespace, project=key.project)


# ------------------------------------------------------------------------------------------- copy


async def copy(
    source: Store,
    target: Store,
    *,
    selection: Selection = EVERYTHING,
    indexes: bool = True,
    verify: bool = False,
    progress_file: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    page_size: int = PAGE_ENTITIES,
    in_flight: int = IN_FLIGHT,
) -> TransferReport:
    """Put the entities of one store into another, overwriting what has the same keys.

    With ``indexes`` the source's composite indexes are created and built in the target first. A
    ``progress_file`` records the last key up to which everything is acknowledged; ``resume`` starts there,
    and the file is removed at the end. ``verify`` reads everything again and compares it with the target,
    value by value and type by type; differences are in the report (those of entities that were written
    meanwhile are none of the copy's).

    :raises BadArgumentError: if there is nothing to resume from, or the progress is another copy's
    """
    origin, goal = _adapter(source), _adapter(target)
    if origin is goal:
        raise BadArgumentError("source and target of a copy are the same store")
    started = time.monotonic()
    saved = _Saved(progress_file, "copy", {"source": origin.url, "target": goal.url, **selection.to_dict()})
    mark: dict[str, Any] | None = None
    if resume:
        if progress_file is None:
            raise BadArgumentError("to resume a copy, name its progress file")
        mark = await anyio.to_thread.run_sync(saved.load)
    copied = await _copy_indexes(origin, goal, selection) if indexes else 0
    reader = _Reader(origin, selection, page_size)
    await reader.open(count=progress is not None)
    writer = _Writer(goal, saved, progress, in_flight=in_flight, resumed=mark["entities"] if mark else 0)
    writer.total_entities = reader.total
    after = Key.from_string(mark["after"]) if mark else None
    await writer.run(_copy_batches(reader, after, writer.report.resumed))
    report = writer.report
    report.indexes = copied
    if verify:
        await _verify(reader, goal, report, progress)
    report.seconds = time.monotonic() - started
    return report


async def _copy_indexes(source: Adapter, target: Adapter, selection: Selection) -> int:
    """Create and build indexes before there is much to build; writes maintain them from then on."""
    count = 0
    for info in await source.indexes():
        definition = info.definition
        if selection.kinds and definition.kind not in selection.kinds:
            continue
        if info.state in (IndexState.SERVING, IndexState.BUILDING):
            if (await target.create_index(definition)).state is not IndexState.SERVING:
                await target.build_index(definition)
            count += 1
    return count


async def _copy_batches(reader: _Reader, after: Key | None, count: int) -> AsyncGenerator[_Batch]:
    async with contextlib.aclosing(reader.pages(after)) as pages:
        async for entities in pages:
            count += len(entities)
            mark = {"after": str(entities[-1].key), "entities": count}
            yield _Batch(entities, 0, mark, f"up to key {entities[-1].key}")


async def _verify(reader: _Reader, target: Adapter, report: TransferReport, progress: ProgressCallback | None) -> None:
    async with contextlib.aclosing(reader.pages()) as pages:
        async for entities in pages:
            found = (await target.lookup([entity.key for entity in entities])).entities
            problems = await anyio.to_thread.run_sync(_compare, entities, found)
            report.verified += len(entities)
            report.different += len(problems)
            report.differences.extend(problems[: 100 - len(report.differences)])
            if progress is not None:
                progress(TransferProgress("verify", report.verified, reader.total))


def _compare(wanted: Sequence[Entity], found: Sequence[Entity | None]) -> list[Difference]:
    problems = []
    for ours, theirs in zip(wanted, found, strict=True):
        if theirs is None:
            problems.append(Difference(ours.key, "missing"))
        elif canonical(ours) != canonical(theirs):
            problems.append(Difference(ours.key, "different"))
    return problems


# ----------------------------------------------------------------------------------------- common


def _adapter(store: Store) -> Adapter:
    return store if isinstance(store, Adapter) else store.adapter


class _Reader:
    """Reads a selection by partition, (selected) kind and key."""

    def __init__(self, adapter: Adapter, selection: Selection, page_size: int) -> None:
        self.adapter = adapter
        self.selection = selection
        self.page_size = page_size
        self.partitions: list[tuple[str, str]] = []
        self.total: int | None = None

    async def open(self, *, count: bool) -> None:
        """Learn which partitions there are, and (on indexes alone, where the adapter can) how many entities."""
        wanted = self.selection
        self.partitions = [
            (project, namespace)
            for project, namespace in await self.adapter.partitions()
            if wanted.project in (None, project) and wanted.namespace in (None, namespace)
        ]
        if count:
            found = [await self.adapter.aggregate(query, _COUNT) for query in self._queries(None)]
            self.total = sum(int(result.values[0] or 0) for result in found)

    async def pages(self, after: Key | None = None) -> AsyncGenerator[list[Entity]]:
        """Pages of entities, beginning with what follows ``after``."""
        options = RunOptions(page_size=self.page_size)
        for query in self._queries(after):
            stream = self.adapter.run(query, options)
            while True:
                page = await stream.next_page()
                if page.results:
                    yield page.results
                if not page.more:
                    break

    def _queries(self, after: Key | None) -> Iterator[Query]:
        for project, namespace in self.partitions:
            for kind in self.selection.kinds or (None,):
                query = Query(kind, namespace=namespace, project=project)
                if after is not None:
                    here = project, namespace, kind
                    at = after.project, after.namespace, kind and after.kind
                    if here < at:
                        continue
                    if here == at:
                        query = query.filter("__key__", ">", after)
                yield query


class _Saved:
    """The progress file of a transfer; without a path it does nothing."""

    def __init__(self, path: str | os.PathLike[str] | None, what: str, of: dict[str, Any] | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self.what = what
        self.head = {MARK: VERSION, "progress": what, **(of or {})}

    def load(self) -> dict[str, Any] | None:
        """The recorded mark; None if nothing was recorded."""
        assert self.path is not None
        try:
            content = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            raise BadArgumentError(f"nothing to resume: there is no {self.path}") from None
        except ValueError as exc:
            raise CorruptDataError(f"{self.path} is no progress file: {exc}") from exc
        if not isinstance(content, dict) or {k: content.get(k) for k in self.head} != self.head:
            raise BadArgumentError(f"{self.path} is the progress of something else")
        mark = content.get("mark")
        return mark if isinstance(mark, dict) else None

    def save(self, mark: dict[str, Any] | None) -> None:
        """Record a mark so that a crash leaves the old record or the new one."""
        if self.path is None:
            return
        new = self.path.with_name(self.path.name + ".new")
        with new.open("w") as file:
            json.dump({**self.head, "mark": mark}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def remove(self) -> None:
        """Forget the progress: all is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class _Writer:
    """Commits batches, several at a time, and records up to where all of them are acknowledged."""

    def __init__(
        self,
        adapter: Adapter,
        saved: _Saved,
        progress: ProgressCallback | None,
        *,
        in_flight: int,
        resumed: int,
    ) -> None:
        self.adapter = adapter
        self.phase = saved.what
        self.report = TransferReport(resumed=resumed)
        self.total_entities: int | None = None
        self.total_bytes: int | None = None
        self._progress = progress
        self._saved = saved
        self._limit = anyio.Semaphore(max(1, in_flight))
        self._pending: deque[_Batch] = deque()
        self._keys: set[Key] = set()
        self._finished = anyio.Event()
        self._mark: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._next_save = 0.0
        self._saving = anyio.Lock()

    async def run(self, batches: AsyncGenerator[_Batch]) -> None:
        """Write all batches. On an error or cancellation, the progress file says what is certain."""
        try:
            async with anyio.create_task_group() as tasks, contextlib.aclosing(batches):
                try:
                    async for batch in batches:
                        await self._limit.acquire()
                        if self._error is not None:
                            break
                        await self._wait_for_keys(batch)
                        self._pending.append(batch)
                        tasks.start_soon(self._commit, batch)
                except Exception as exc:
                    # Raised below: what was read before a bad line is written, and no exception group.
                    self._error = self._error or exc
            if self._error is not None:
                raise self._error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._save()
            raise
        await anyio.to_thread.run_sync(self._saved.remove)

    async def _wait_for_keys(self, batch: _Batch) -> None:
        """Two commits in flight may take effect in any order: never write a key in both."""
        keys = [entity.key for entity in batch.entities]
        while not self._keys.isdisjoint(keys):
            self._finished = anyio.Event()
            await self._finished.wait()
        self._keys.update(keys)

    async def _commit(self, batch: _Batch) -> None:
        keys = [entity.key for entity in batch.entities]
        try:
            await self._put(batch)
            self._keys.difference_update(keys)
        except Exception as exc:
            exc.add_note(batch.where)
            self._error = self._error or exc
            self._keys.clear()  # nothing more will be written
            return
        finally:
            self._limit.release()
            self._finished.set()
        batch.done = True
        self.report.entities += len(batch.entities)
        while self._pending and self._pending[0].done:
            self._mark = self._pending.popleft().mark
        self._tell()
        if time.monotonic() >= self._next_save and not self._saving.locked():
            await self._save()

    async def _put(self, batch: _Batch) -> None:
        """Commit a batch; automatic ids that somebody uses already are replaced."""
        skip = 0
        while batch.entities:
            commit = Commit(checks=dict.fromkeys(batch.automatic, 0), writes=[Put(entity) for entity in batch.entities])
            [outcome] = await self.adapter.commit([commit])
            if outcome.committed:
                return
            used = [batch.automatic.pop(key) for key in outcome.conflicts]
            for entity in used:
                entity.key = _incomplete(entity.key)
            await _complete_keys(self.adapter, batch, used, skip=skip)
            skip = min(max(1, skip * 2), 1 << 20)

    async def _save(self) -> None:
        if self._mark is None or self._saved.path is None:
            return
        async with self._saving:
            await anyio.to_thread.run_sync(self._saved.save, self._mark)
            self._next_save = time.monotonic() + _SAVE_INTERVAL_S

    def _tell(self) -> None:
        mark = self._mark or {}
        self.report.done_bytes = mark.get("offset", 0)
        if self._progress is not None:
            self._progress(
                TransferProgress(
                    self.phase,
                    self.report.resumed + self.report.entities,
                    self.total_entities,
                    self.report.done_bytes,
                    self.total_bytes,
                    self.report.resumed,
                )
            )
