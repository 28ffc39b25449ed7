"""What is measured beside the file adapter: *aiofiles*, and the same in one trip to a thread.

A put writes a temporary file, has it on the disk (fsync), renames it and has the folder on the disk, as anything must
that says "it is stored". There are no indexes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from aiodatastore.bench.measure import Subject
from aiodatastore.bench.workloads import draw_distinct, draw_numbers
from benchmarks.sides import Draw, Place, Side

__all__ = ["AioFiles", "AioFilesParsed", "ThreadedFiles"]

_PATIENCE_S = 120.0

_dumps = msgspec.json.encode
_loads = msgspec.json.decode


class _Files(Side):
    def __init__(self, folder: Path) -> None:
        self.theirs = folder
        self.own = folder.parent / f"{folder.name}-{type(self).__name__}"
        self.own.mkdir(exist_ok=True)
        self._lock = anyio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place) -> AsyncIterator[Side]:
        """Nothing is held open."""
        yield cls(place.folder)

    async def load(self, data: str, count: int) -> None:
        """Ours has written the files that are read here, or does so behind its callers' backs: wait for them."""
        if data == "people":
            with anyio.fail_after(_PATIENCE_S):
                while len(self._found()) < count:  # noqa: ASYNC110 -- it is others who write them
                    await anyio.sleep(0.05)

    def _found(self) -> list[Path]:
        return sorted(self.theirs.glob("BenchPerson*/**/*.json"))

    def _documents(self, count: int) -> list[Path]:
        """The files of people, as our store has written them."""
        found = self._found()
        if not found:
            raise FileNotFoundError(f"no files of people below {self.theirs}")
        return found[:count]

    def _read(self, name: str, count: int, seed: int, read: Any) -> Subject:
        paths = self._documents(count)
        draw = draw_numbers(len(paths), seed)
        return Subject(name, read, lambda wanted: [paths[number - 1] for number in draw(wanted)])


class AioFiles(_Files):
    """``async with aiofiles.open(...)``: a trip to a thread for each step. The bytes only."""

    name = "aiofiles"
    works = frozenset({"get", "put", "modify"})

    def get(self, name: str, count: int, seed: int) -> Subject:
        import aiofiles

        async def operate(path: Path) -> Any:
            async with aiofiles.open(path, "rb") as file:
                return await file.read()

        return self._read(name, count, seed, operate)

    def put(self, name: str, draw: Draw) -> Subject:
        async def operate(numbered: tuple[int, dict[str, Any]]) -> Any:
            await self._write(self.own / f"{numbered[0]}.json", _dumps(numbered[1]))
            return numbered[0]

        return Subject(name, operate, draw)

    async def _write(self, path: Path, content: bytes) -> None:
        import aiofiles
        import aiofiles.os

        temporary = path.with_suffix(".new")
        async with aiofiles.open(temporary, "wb") as file:
            await file.write(content)
            await file.flush()
            await anyio.to_thread.run_sync(os.fsync, file.fileno())
        await aiofiles.os.replace(temporary, path)
        await anyio.to_thread.run_sync(_sync_folder, path.parent)

    def modify(self, name: str, count: int, seed: int) -> Subject:
        import aiofiles

        paths = self._documents(count)
        draw = draw_distinct(len(paths), seed)

        async def operate(path: Path) -> Any:
            async with self._lock:
                async with aiofiles.open(path, "rb") as file:
                    row = _loads(await file.read())
                await self._write(self.own / path.name, _dumps(row))  # ours keeps its own file as it is
            return row

        return Subject(name, operate, lambda wanted: [paths[number - 1] for number in draw(wanted)])


class AioFilesParsed(_Files):
    """The same, and its JSON parsed."""

    name = "aiofiles, and parsed"
    works = frozenset({"get"})

    def get(self, name: str, count: int, seed: int) -> Subject:
        import aiofiles

        async def operate(path: Path) -> Any:
            async with aiofiles.open(path, "rb") as file:
                return _loads(await file.read())

        return self._read(name, count, seed, operate)


class ThreadedFiles(_Files):
    """Plain functions, in one trip to a thread."""

    name = "plain files in a thread"
    works = frozenset({"get", "put"})

    def get(self, name: str, count: int, seed: int) -> Subject:
        def read(path: Path) -> bytes:
            return path.read_bytes()

        async def operate(path: Path) -> Any:
            return await anyio.to_thread.run_sync(read, path)

        return self._read(name, count, seed, operate)

    def put(self, name: str, draw: Draw) -> Subject:
        async def operate(numbered: tuple[int, dict[str, Any]]) -> Any:
            await anyio.to_thread.run_sync(_write_safely, self.own / f"{numbered[0]}.json", _dumps(numbered[1]))
            return numbered[0]

        return Subject(name, operate, draw)


def _write_safely(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
