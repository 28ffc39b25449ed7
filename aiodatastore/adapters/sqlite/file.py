"""The file of a store: checked, made, connected to."""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from aiodatastore.adapters.sqlite.statements import APPLICATION_ID, FORMAT_VERSION, SCHEMA
from aiodatastore.adapters.sqlite.transactions import transaction
from aiodatastore.errors import CorruptDataError, FormatVersionError, UnavailableError

__all__ = ["StoreFile"]


@dataclass(frozen=True, slots=True)
class StoreFile:
    """A path and how to open it; settings as in ``SQLiteRowStore``."""

    path: Path
    synchronous: str
    busy_timeout_s: float
    checkpoint_bytes: int
    page_size: int
    read_only: bool

    def check_path(self) -> None:
        """:raises UnavailableError: if it can't be such a file"""
        if not self.path.parent.is_dir():
            raise UnavailableError(f"{self.path}: the folder {self.path.parent} does not exist; make it first")
        if self.path.is_dir():
            raise UnavailableError(f"{self.path} is a folder, expected a file")
        if self.read_only and not self.path.exists():
            raise UnavailableError(f"{self.path} does not exist, and read_only=True does not create it")

    def connect(self, cache_kib: int, timeout_s: float) -> sqlite3.Connection:
        """A new connection, for one thread at a time."""
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode={'ro' if self.read_only else 'rwc'}",
            uri=True,
            timeout=timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in (
                f"cache_size = -{cache_kib}",
                f"synchronous = {self.synchronous}",
                "secure_delete = OFF",
                "temp_store = MEMORY",
            ):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:  # the first to look at the file: it may be none of SQLite's
            connection.close()
            raise
        return connection

    def prepare(self, writer: sqlite3.Connection) -> None:
        """Check the file's format, or make it if the file is new."""
        if not self._is_ours(writer):
            if self.read_only:
                raise CorruptDataError(f"{self.path} is empty, and read_only=True does not fill it")
            self._create(writer)
        elif not self.read_only:
            self._enter_wal_mode(writer)
        page_size = writer.execute("PRAGMA page_size").fetchone()[0]
        writer.execute(f"PRAGMA wal_autocheckpoint = {max(1, self.checkpoint_bytes // page_size)}")
        writer.execute(f"PRAGMA journal_size_limit = {self.checkpoint_bytes}")

    def _is_ours(self, connection: sqlite3.Connection) -> bool:
        """Whether the file is a store of this format; false if it is empty.

        :raises CorruptDataError: if it is something else
        """
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if not (application or version or tables):
            return False
        if application != APPLICATION_ID:
            raise CorruptDataError(f"{self.path} is another program's SQLite database, not a datastore")
        if version != FORMAT_VERSION:
            raise FormatVersionError(f"{self.path} has format version {version}; this version reads {FORMAT_VERSION}")
        return True

    def _create(self, writer: sqlite3.Connection) -> None:
        writer.execute(f"PRAGMA page_size = {self.page_size}")
        self._enter_wal_mode(writer)
        with transaction(writer, wait_s=self.busy_timeout_s):
            if not self._is_ours(writer):  # unless another process has made it just now
                for statement in SCHEMA.split(";"):
                    writer.execute(statement)
                writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                writer.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    def _enter_wal_mode(self, writer: sqlite3.Connection) -> None:
        # SQLite does not wait here, whatever the timeout, when several processes make the same new file.
        give_up, mode = time.monotonic() + self.busy_timeout_s, ""
        while not mode:
            try:
                mode = writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise UnavailableError(f"{self.path}: this file system does not support SQLite's WAL mode")

    def wal_bytes(self) -> int:
        """The size of the write-ahead log."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0
