"""What the store asks of the operating system: every call that changes files is here."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiodatastore.errors import StoreFullError, StoreReadOnlyError, UnavailableError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

__all__ = [
    "append",
    "blocks_read",
    "cut",
    "flush",
    "mapped",
    "open_append",
    "put_in_place",
    "read",
    "remove",
    "stat_of",
    "sync",
    "sync_folder",
    "write_new",
]

_STAT = struct.Struct("<qqQ")
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FLUSH_ALL_AT = 64
"""From so many files on, the whole file system is flushed at once: a thousand fsyncs take seconds, that a few."""


@contextmanager
def mapped(what: str | os.PathLike[str]) -> Iterator[None]:
    """No OSError leaves this block.

    :raises StoreFullError: no space, quota used up, file too large
    :raises StoreReadOnlyError: no permission
    :raises UnavailableError: any other
    """
    try:
        yield
    except OSError as exc:
        where = exc.filename or os.fspath(what)
        told = f"{where}: {exc.strerror or exc}"
        if exc.errno in _FULL:
            raise StoreFullError(told) from exc
        if exc.errno in _REFUSED:
            raise StoreReadOnlyError(told) from exc
        raise UnavailableError(told) from exc


def stat_of(found: os.stat_result) -> bytes:
    """What tells a changed file: time, size and number, in 24 bytes."""
    return _STAT.pack(found.st_mtime_ns, found.st_size, found.st_ino & 0xFFFFFFFFFFFFFFFF)


def blocks_read() -> int:
    """How many blocks this thread has waited for a disk to read; always another number where unknown."""
    try:
        return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_inblock
    except AttributeError:
        return time.perf_counter_ns()


def read(path: str) -> bytes:
    """All of a file, by as few calls as can be: that of a small one takes 15 µs."""
    fd = os.open(path, os.O_RDONLY | _BINARY)
    try:
        size = os.fstat(fd).st_size
        data = os.read(fd, size + 1)
        if len(data) >= size:
            return data
        parts = [data]
        while data := os.read(fd, 1 << 24):  # one call gives 2 GB at most
            parts.append(data)
        return b"".join(parts)
    finally:
        os.close(fd)


def write_new(path: str, parts: Iterable[bytes], *, durable: bool = False) -> bytes:
    """Write a file from its beginning; its :func:`stat_of`. What failed leaves no file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666)
    try:
        try:
            for part in parts:
                _write(fd, part)
            if durable:
                sync(fd)
            return stat_of(os.fstat(fd))
        finally:
            os.close(fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def _write(fd: int, data: bytes) -> None:
    done = os.write(fd, data)
    while done < len(data):  # a full disk takes a part first, and refuses the rest
        done += os.write(fd, data[done:])


def put_in_place(path: str, target: str) -> None:
    """Rename, over what is there, into a folder that is made if need be."""
    try:
        os.replace(path, target)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(path, target)


def remove(path: str, root: str) -> None:
    """Remove a file, if it is there, and the folders below ``root`` that become empty by that."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    folder = os.path.dirname(path)
    while len(folder) > len(root):
        try:
            os.rmdir(folder)
        except OSError:  # not empty
            return
        folder = os.path.dirname(folder)


# ------------------------------------------------------------------------------------------ durability


def open_append(path: str) -> int:
    """A descriptor for :func:`append`; the file is made if need be."""
    return os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)


def append(fd: int, offset: int, data: bytes) -> None:
    """Write at a place."""
    os.lseek(fd, offset, os.SEEK_SET)
    _write(fd, data)


def cut(fd: int, size: int) -> None:
    """Forget what is after ``size``."""
    os.ftruncate(fd, size)


def sync(fd: int) -> None:
    """Wait until a file's content is on the disk."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync() leaves it in the drive's cache
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_folder(path: str) -> None:
    """Wait until a folder's names are on the disk."""
    if os.name == "nt":
        return  # folders can't be opened there
    try:
        fd = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return  # removed since
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flush(root: str, paths: Iterable[str]) -> None:
    """Wait until these files (some may be gone) and the folders they are in are on the disk."""
    todo = list(paths)
    if not todo:
        return
    if len(todo) >= _FLUSH_ALL_AT and _sync_file_system(root):
        return
    folders = set()
    for path in todo:
        folder = os.path.dirname(path)
        while len(folder) >= len(root) and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
        try:
            fd = os.open(path, os.O_RDWR | _BINARY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            sync(fd)
        finally:
            os.close(fd)
    for folder in folders:
        sync_folder(folder)


@lru_cache(maxsize=1)
def _syncfs() -> Any:
    """Linux's, which Python does not have."""
    try:
        return ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError, TypeError):
        return None


def _sync_file_system(root: str) -> bool:
    syncfs = _syncfs()
    if syncfs is None:
        return False
    fd = os.open(root, os.O_RDONLY)
    try:
        if syncfs(fd) == 0:
            return True
        code = ctypes.get_errno()
        if code == errno.ENOSYS:
            return False
        raise OSError(code, os.strerror(code), str(Path(root)))
    finally:
        os.close(fd)
