"""What SQLite's errors are to users."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiodatastore.errors import (
    BadRequestError,
    CorruptDataError,
    DatastoreError,
    StoreBusyError,
    StoreClosedError,
    StoreFullError,
    StoreReadOnlyError,
    UnavailableError,
)

__all__ = ["mapped", "translate"]


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """No exception of sqlite3 leaves this block."""
    try:
        yield
    except sqlite3.Error as exc:
        raise translate(exc, path) from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFullError(f"{path}: {exc.strerror}") from exc
        raise UnavailableError(f"{path}: {exc.strerror}") from exc


_FULL_IO = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
_ERRORS: dict[int, tuple[type[DatastoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, "another connection held its lock longer than busy_timeout_s"),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, "another connection held its lock longer than busy_timeout_s"),
    sqlite3.SQLITE_FULL: (StoreFullError, "the disk is full"),
    sqlite3.SQLITE_CORRUPT: (CorruptDataError, "the file is damaged"),
    sqlite3.SQLITE_NOTADB: (CorruptDataError, "not a SQLite database"),
    sqlite3.SQLITE_READONLY: (StoreReadOnlyError, "the file can't be written"),
    sqlite3.SQLITE_PERM: (StoreReadOnlyError, "access is not permitted"),
    sqlite3.SQLITE_INTERRUPT: (StoreClosedError, "closed while reading"),
    sqlite3.SQLITE_TOOBIG: (BadRequestError, "a value is larger than SQLite allows"),
}


def translate(exc: sqlite3.Error, path: Path) -> DatastoreError:
    """What an error of sqlite3 is to users."""
    code = getattr(exc, "sqlite_errorcode", None)  # absent on errors of the sqlite3 module itself
    if code is None:
        return StoreClosedError(f"{path}: {exc}")
    if code in _FULL_IO:
        return StoreFullError(f"{path}: the disk is full or refuses writes ({exc})")
    if code & 0xFF == sqlite3.SQLITE_CANTOPEN and not os.access(path if path.exists() else path.parent, os.W_OK):
        return StoreReadOnlyError(f"{path}: the file or its folder can't be written ({exc})")
    if code & 0xFF == sqlite3.SQLITE_ERROR and "no such table" in str(exc):
        return CorruptDataError(f"{path}: the file is damaged ({exc})")
    kind, text = _ERRORS.get(code & 0xFF, (UnavailableError, "SQLite failed"))
    return kind(f"{path}: {text} ({exc})")
