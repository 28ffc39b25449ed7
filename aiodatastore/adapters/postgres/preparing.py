"""Prepared commits: ``PREPARE TRANSACTION`` after the same function that commits batches, and what resolves them.

The function takes the store's writing lock, which belongs to the transaction and so stays with what is prepared: until
it is resolved, other commits of the store wait, reads do not. The version is taken under that lock, so versions and
commits keep one order.

A transaction's name on the server has the oid of the store's ``meta``: schemas that share a database do not meet. The
server must allow prepared transactions (``max_prepared_transactions``, 0 by default).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from datetime import timedelta
from typing import Any, Final

import asyncpg

from aiodatastore.adapters.postgres.batches import outcomes, write_arguments, writes
from aiodatastore.adapters.postgres.functions import LOCK_CLASS
from aiodatastore.adapters.postgres.pool import Connection
from aiodatastore.adapters.postgres.statements import Statements
from aiodatastore.errors import BadRequestError
from aiodatastore.rowstore import RowBatch, RowOutcome

__all__ = ["allowed", "prepare_commit", "prepared_commits", "resolve_commit"]

_MOST_BYTES: Final = 199
_LOCK_WAIT_S: Final = 2
"""So long a try waits for the lock: one that was sent before and did prepare, though its answer was lost, holds it."""
_BUSY_S: Final = 0.02


async def allowed(connection: Connection) -> bool:
    """Whether the server has room for prepared transactions."""
    return int(await connection.fetchval("SELECT current_setting('max_prepared_transactions')")) > 0


async def _prefix(connection: Connection, quoted: str) -> str:
    return f"ads:{await connection.fetchval('SELECT $1::text::regclass::oid', f'{quoted}.meta')}:"


async def _identifier(connection: Connection, quoted: str, name: str) -> str:
    """What a commit is called on the server: nothing in it has to be quoted."""
    text = await _prefix(connection, quoted) + base64.urlsafe_b64encode(name.encode()).decode()
    if len(text) > _MOST_BYTES:
        raise BadRequestError(f"the name of a prepared commit has at most 130 bytes, this one has {len(name)}")
    return text


async def prepare_commit(
    connection: Connection,
    texts: Statements,
    quoted: str,
    slot: bytes,
    batch: RowBatch,
    name: str,
    *,
    long: bool,
    timeout_s: float,
) -> RowOutcome | None:
    """What became of the one commit of a batch; None if the statements for long rows are needed.

    :raises StaleFenceError: if the fence does not hold
    """
    known = await _identifier(connection, quoted, name)
    if await connection.fetchval("SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = $1)", known):
        # Sent before, and the answer was lost. Nobody else has written since: the lock is held.
        version = await connection.fetchval(f"SELECT version FROM {quoted}.meta")
        return RowOutcome(version + writes(batch.commits[0]))
    await connection.execute(f"BEGIN; SET LOCAL lock_timeout = '{_LOCK_WAIT_S}s'", timeout=timeout_s)
    done = False
    try:
        await connection.execute(
            "SELECT pg_advisory_xact_lock($1, $2::text::regclass::oid::int)", LOCK_CLASS, f"{quoted}.meta"
        )
        # What has sent messages can't be prepared: they are sent when it is resolved.
        heard = await connection.fetchval(
            f"WITH was AS (SELECT heard FROM {quoted}.meta WHERE heard > now()),"
            f" now AS (UPDATE {quoted}.meta SET heard = NULL FROM was) SELECT heard FROM was"
        )
        plain, arguments = write_arguments(slot, 1, batch, plain=not long)
        answer: Any = await connection.fetchrow(
            texts.write_plain if plain else texts.write, *arguments, timeout=timeout_s
        )
        if answer[0] == -2:
            return None
        (outcome,) = outcomes(batch, answer)
        if outcome.version is None:
            return outcome
        await connection.execute(f"DELETE FROM {quoted}.tokens WHERE slot = $1", slot)
        if heard is not None:
            await connection.execute(f"UPDATE {quoted}.meta SET heard = $1", heard)
        await connection.execute(f"PREPARE TRANSACTION '{known}'", timeout=timeout_s)
        done = True
        return outcome
    finally:
        if not done and not connection.is_closed() and connection.is_in_transaction():
            await connection.execute("ROLLBACK", timeout=timeout_s)


async def resolve_commit(
    connection: Connection, quoted: str, name: str, *, commit: bool, timeout_s: float
) -> int | None:
    """Apply or forget what was prepared, and the store's version then; None if there is nothing of the name."""
    known = await _identifier(connection, quoted, name)
    while True:
        try:
            await connection.execute(f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED '{known}'", timeout=timeout_s)
        except asyncpg.UndefinedObjectError:
            return None
        except asyncpg.ObjectNotInPrerequisiteStateError:
            await asyncio.sleep(_BUSY_S)  # somebody else is at it
            continue
        break
    version, is_heard = await connection.fetchrow(f"SELECT version, heard > now() FROM {quoted}.meta")
    if commit and is_heard:
        await connection.execute(f"SELECT {quoted}.tell($1::bigint - 1, $1::bigint, NULL)", version)
    return int(version)


async def prepared_commits(connection: Connection, quoted: str) -> list[tuple[str, float]]:
    """The names of what is prepared in the store, and for how many seconds."""
    prefix = await _prefix(connection, quoted)
    found: list[tuple[str, float]] = []
    rows = await connection.fetch(
        "SELECT gid, clock_timestamp() - prepared FROM pg_prepared_xacts"
        " WHERE database = current_database() AND starts_with(gid, $1)",
        prefix,
    )
    for known, age in rows:
        try:
            name = base64.urlsafe_b64decode(known.removeprefix(prefix)).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue  # nothing of ours
        found.append((name, max(0.0, age / timedelta(seconds=1))))
    return found
