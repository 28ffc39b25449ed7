"""Many new entities at once: through COPY, in the transaction that checks."""

from __future__ import annotations

from typing import Any, Final

import asyncpg

from aiodatastore.adapters.postgres.batches import own_tails, write_arguments, writes
from aiodatastore.adapters.postgres.pool import Connection
from aiodatastore.adapters.postgres.statements import Statements
from aiodatastore.rowstore import RowBatch

__all__ = ["LOADED_PUTS", "load"]

LOADED_PUTS: Final = 500
"""From so many puts on, COPY takes less than the function that writes; it needs four more round trips."""


async def load(
    connection: Connection,
    statements: Statements,
    schema: str,
    slot: bytes,
    number: int,
    batch: RowBatch,
    timeout_s: float,
) -> Any:
    """The function's answer, or None if this has to be done the usual way; then nothing was written.

    The function is called without the puts: it takes the lock, checks, counts the version on and remembers the token.
    What it would write is then copied, in the same transaction.
    """
    keys = [put.key for commit in batch.commits for put in commit.puts]
    if len(set(keys)) < len(keys) or any(
        commit.deletes or commit.index_puts or commit.index_deletes for commit in batch.commits
    ):
        return None
    if await connection.fetchval(statements.existing, keys, timeout=timeout_s):
        return None
    bare = RowBatch([commit._replace(puts=()) for commit in batch.commits], batch.old_rows, batch.fence)
    plain, arguments = write_arguments(slot, number, bare)
    ordinals: list[int] = []
    for commit in batch.commits:
        ordinals.append((ordinals[-1] if ordinals else 0) + writes(commit))
    arguments[3] = ordinals
    transaction = connection.transaction()
    await transaction.start()
    try:
        text = statements.write_plain if plain else statements.write
        answer = await connection.fetchrow(text, *arguments, timeout=timeout_s)
        if answer[0] < 0 or answer[1] is not None or answer[4] is not None:
            await transaction.rollback()
            return None
        entities = []
        rows: list[tuple[bytes, int]] = []
        for commit, ordinal in zip(batch.commits, ordinals, strict=True):
            version = answer[0] + ordinal
            for put in commit.puts:
                entities.append((put.key, version, put.payload, list(put.rows), own_tails(put)))
                rows += put.rows.items()
        rows.sort()  # neighbours share a page
        await connection.copy_records_to_table(
            "entities",
            schema_name=schema,
            columns=("key", "version", "payload", "rows", "tails"),
            records=entities,
            timeout=timeout_s,
        )
        await connection.copy_records_to_table(
            "rows", schema_name=schema, columns=("row", "tail"), records=rows, timeout=timeout_s
        )
    except asyncpg.UniqueViolationError:
        await transaction.rollback()
        return None
    except asyncpg.PostgresError:
        if not connection.is_closed():
            await transaction.rollback()
        raise
    await transaction.commit()
    return answer
