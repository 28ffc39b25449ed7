"""The beginning and end of SQLite's transactions."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["transaction"]


@contextmanager
def transaction(connection: sqlite3.Connection, *, wait_s: float | None = None) -> Iterator[None]:
    """A transaction that reads; or with ``wait_s``, one that writes, if the lock can be had within that time."""
    if connection.in_transaction:  # the last one could not even be rolled back
        connection.execute("ROLLBACK")
    if wait_s is None:
        connection.execute("BEGIN")
    else:
        _begin_to_write(connection, wait_s)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it by itself on some errors
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def _begin_to_write(connection: sqlite3.Connection, wait_s: float) -> None:
    # SQLite's own waiting soon sleeps 100 ms at a time, and this connection must not wait when it reads inline.
    give_up, pause_s = time.monotonic() + wait_s, 0.0005
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, 0.02)
        else:
            return
