"""Export and import: entities as lines of JSON, in files and streams."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import anyio.to_thread

from aiodatastore.adapters.base import Adapter
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, BadValueError, CorruptDataError, DatastoreError
from aiodatastore.jsonl import MARK, VERSION, dump_entity, load_line
from aiodatastore.key import Key
from aiodatastore.transfer.common import (
    EVERYTHING,
    PAGE_ENTITIES,
    ProgressCallback,
    Reader,
    Saved,
    Selection,
    Store,
    TransferProgress,
    TransferReport,
    adapter_of,
)
from aiodatastore.transfer.writing import IN_FLIGHT, Batch, Writer, complete_keys

__all__ = ["BATCH_ENTITIES", "export_entities", "import_entities"]

BATCH_ENTITIES = 4000
"""Entities of a file that one commit writes, at most."""
BATCH_BYTES = 4 << 20
MAX_LINE_BYTES = 64 << 20
_FINGERPRINT_BYTES = 1 << 16


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
    reader = Reader(adapter_of(source), selection, page_size)
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
    reader: Reader, state: _ExportState, report: TransferReport, progress: ProgressCallback | None
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
    adapter = adapter_of(target)
    started = time.monotonic()
    total: int | None = None
    if isinstance(source, str | os.PathLike):
        file, total = await anyio.to_thread.run_sync(_open_import, Path(source))
    else:
        file = source
    try:
        lines = _Lines(file, str(getattr(file, "name", "input")), batch_size)
        saved = Saved(progress_file, "import")
        if resume:
            if total is None or progress_file is None:
                raise BadArgumentError("to resume an import, name the file and its progress file")
            await anyio.to_thread.run_sync(_resume_import, saved, lines)
        writer = Writer(adapter, saved, progress, in_flight=in_flight, resumed=lines.entities)
        writer.total_bytes = total
        await writer.run(_import_batches(adapter, lines))
        await anyio.to_thread.run_sync(saved.remove)
    finally:
        if total is not None:
            file.close()
    report = writer.report
    report.truncated = lines.unfinished
    report.seconds = time.monotonic() - started
    return report


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

    def next_batch(self) -> Batch | None:
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
        return Batch(entities, size, mark, f"{self.name}, lines {first} to {self.line}")

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


def _resume_import(saved: Saved, lines: _Lines) -> None:
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


async def _import_batches(adapter: Adapter, lines: _Lines) -> AsyncGenerator[Batch]:
    while (batch := await anyio.to_thread.run_sync(lines.next_batch)) is not None:
        incomplete = _without_repeated_keys(batch.entities)
        await complete_keys(adapter, batch, incomplete)
        yield batch


def _without_repeated_keys(entities: list[Entity]) -> list[Entity]:
    """Of entities with equal keys leave the last; returns those with incomplete keys."""
    last = {entity.key: entity for entity in entities if entity.key.is_complete}
    incomplete = [entity for entity in entities if not entity.key.is_complete]
    if len(last) + len(incomplete) < len(entities):
        kept = {id(entity) for entity in last.values()}
        entities[:] = [e for e in entities if not e.key.is_complete or id(e) in kept]
    return incomplete
