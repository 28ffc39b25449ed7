"""Many new entities at once: through COPY, in the transaction that checks.

What is copied is written here in COPY's binary format
(https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4). The driver can do that from tuples, but takes
half of the client's time for it, most of that to find out of each element of each array that it is no array.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import Any, Final

import asyncpg

from aiodatastore.adapters.postgres.batches import own_tails, write_arguments, writes
from aiodatastore.adapters.postgres.pool import Connection
from aiodatastore.adapters.postgres.statements import Statements
from aiodatastore.rowstore import RowBatch, RowPut

__all__ = ["LOADED_PUTS", "load"]

LOADED_PUTS: Final = 500
"""From so many puts on, COPY takes less than the function that writes; it needs four more round trips."""

_CHUNK: Final = 500
"""Entities (or six times as many rows) that are written at one go, about 3 ms; then other tasks get their turn."""

_START: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END: Final = b"\xff\xff"
_BYTEA, _BIGINT = 17, 20
_columns_and_length = struct.Struct(">hi").pack  # of a row: how many columns it has, and the length of the first
_VERSION = struct.Struct(">q").pack
_array = struct.Struct(">iiiiii").pack  # its length; dimensions, nulls, type of elements, their number, the first's
_length = struct.Struct(">i").pack
_bigint = struct.Struct(">iq").pack
_EIGHT: Final = _length(8)
_NO_ROWS: Final = struct.pack(">iiii", 12, 0, 0, _BYTEA)
_NO_TAILS: Final = struct.pack(">iiii", 12, 0, 0, _BIGINT)


class _Packed(dict[int, bytes]):
    """Numbers as bytes, made as they are met: of thousands few are different."""

    def __init__(self, pack: Callable[[int], bytes]) -> None:
        super().__init__()
        self._pack = pack

    def __missing__(self, number: int) -> bytes:
        packed = self[number] = self._pack(number)
        return packed


# Of at most SHORT lengths.
_LENGTHS = _Packed(_length)
_HEADS = _Packed(partial(_columns_and_length, 2))


def _segments(puts: Sequence[RowPut]) -> list[bytes]:
    """Rows of ``entities``, cut where their version belongs."""
    segments: list[bytes] = []
    rest = b""
    lengths = _LENGTHS
    for put in puts:
        key, payload, rows = put.key, put.payload, put.rows
        segments.append(b"".join((rest, _columns_and_length(5, len(key)), key, _EIGHT)))
        parts = [_length(len(payload)), payload]
        if rows:
            elements = b"".join([part for row in rows for part in (lengths[len(row)], row)])
            parts += (_array(20 + len(elements), 1, 0, _BYTEA, len(rows), 1), elements)
        else:
            parts.append(_NO_ROWS)
        tails = own_tails(put)
        if tails:
            parts.append(_array(20 + 12 * len(tails), 1, 0, _BIGINT, len(tails), 1))
            parts += [_bigint(8, tail) for tail in tails]
        else:
            parts.append(_NO_TAILS)
        rest = b"".join(parts)
    segments.append(rest)
    return segments


def _rows(rows: Iterable[tuple[bytes, int]]) -> bytes:
    """Rows of ``rows``."""
    heads, tails = _HEADS, _Packed(partial(_bigint, 8))
    return b"".join([part for row, tail in rows for part in (heads[len(row)], row, tails[tail])])


class _Copied:
    """A batch as COPY reads it, but for the versions, which are not known before the lock is held.

    What can be done before is done before: nobody else commits while it is held.
    """

    def __init__(self) -> None:
        self._entities: list[tuple[int, list[bytes]]] = []
        self._rows: list[bytes] = []

    @classmethod
    async def of(cls, batch: RowBatch, ordinals: Sequence[int]) -> _Copied:
        """Other tasks get their turn now and then."""
        copied = cls()
        rows: list[tuple[bytes, int]] = []
        for commit, ordinal in zip(batch.commits, ordinals, strict=True):
            puts = list(commit.puts)
            for start in range(0, len(puts), _CHUNK):
                some = puts[start : start + _CHUNK]
                copied._entities.append((ordinal, _segments(some)))
                for put in some:
                    rows += put.rows.items()
                await asyncio.sleep(0)
        rows.sort()  # neighbours share a page
        await asyncio.sleep(0)
        left = iter(rows)
        while chunk := _rows(islice(left, 6 * _CHUNK)):
            copied._rows.append(chunk)
            await asyncio.sleep(0)
        return copied

    async def entities(self, before: int) -> AsyncGenerator[bytes, None]:
        """What goes into ``entities``, where the store's version was ``before``."""
        yield _START
        for ordinal, segments in self._entities:
            yield _VERSION(before + ordinal).join(segments)
            await asyncio.sleep(0)
        yield _END

    async def rows(self) -> AsyncGenerator[bytes, None]:
        """What goes into ``rows``."""
        yield _START
        for chunk in self._rows:
            yield chunk
            await asyncio.sleep(0)
        yield _END


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
    copied = await _Copied.of(batch, ordinals)
    transaction = connection.transaction()
    await transaction.start()
    try:
        text = statements.write_plain if plain else statements.write
        answer = await connection.fetchrow(text, *arguments, timeout=timeout_s)
        if answer[0] < 0 or answer[1] is not None or answer[4] is not None:
            await transaction.rollback()
            return None
        for table, columns, stream in (
            ("entities", ("key", "version", "payload", "rows", "tails"), copied.entities(answer[0])),
            ("rows", ("row", "tail"), copied.rows()),
        ):
            async with aclosing(stream):
                await connection.copy_to_table(
                    table, schema_name=schema, columns=columns, source=stream, format="binary", timeout=timeout_s
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
