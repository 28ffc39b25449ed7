"""Connecting, and the schema: looked for, made, brought up to date."""

from __future__ import annotations

import asyncpg

from aiodatastore.adapters.postgres.pool import Connection
from aiodatastore.adapters.postgres.schema import MIGRATIONS
from aiodatastore.errors import CorruptDataError, FormatVersionError, UnavailableError

__all__ = ["prepare"]

_LOCK_CLASS = 1633972340  # beside that of the writers
_FOUND = "SELECT quote_ident($1::text), to_regclass(quote_ident($1::text) || '.migrations') IS NOT NULL"


async def prepare(connection: Connection, schema: str, url: str, *, read_only: bool = False) -> str:
    """The schema's name as the server quotes it; made if need be and up to date, unless ``read_only``.

    :raises FormatVersionError: if a newer version of this package made it
    :raises UnavailableError: if it has to be made or changed and the role may not
    """
    quoted, found = await connection.fetchrow(_FOUND, schema)
    current = found and await _version(connection, quoted, url) == len(MIGRATIONS)
    if read_only:
        if not current:
            raise UnavailableError(
                f"{url}: the schema {quoted} is not there or not of this version, and read_only=True"
            )
        return str(quoted)
    if not current:
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _LOCK_CLASS, schema)
                await _migrate(connection, schema, quoted, url)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError) as exc:
            raise UnavailableError(
                f"{url}: the schema {quoted} is not there or not of this version, and the role may not make it ({exc})"
            ) from exc
        except (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError, asyncpg.DuplicateFunctionError) as exc:
            raise CorruptDataError(f"{url}: the schema {quoted} holds something else ({exc})") from exc
    await _forget_tokens(connection, quoted)
    return str(quoted)


async def _version(connection: Connection, quoted: str, url: str) -> int:
    try:
        version = await connection.fetchval(f"SELECT max(version) FROM {quoted}.migrations")
    except asyncpg.UndefinedColumnError as exc:
        raise CorruptDataError(f"{url}: the schema {quoted} holds another program's tables") from exc
    if version is not None and version > len(MIGRATIONS):
        raise FormatVersionError(
            f"{url}: the schema is of version {version}, this version of the package reads up to {len(MIGRATIONS)}"
        )
    return version or 0


async def _migrate(connection: Connection, schema: str, quoted: str, url: str) -> None:
    """Run what is missing; another process may have done it while this one waited for the lock."""
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema):
        await connection.execute(f"CREATE SCHEMA {quoted}")
    version = 0
    if (await connection.fetchrow(_FOUND, schema))[1]:
        version = await _version(connection, quoted, url)
    else:
        await connection.execute(f"CREATE TABLE {quoted}.migrations (version int PRIMARY KEY, at timestamptz NOT NULL)")
    for number, migration in enumerate(MIGRATIONS[version:], version + 1):
        await connection.execute(migration.replace("@", quoted))
        await connection.execute(f"INSERT INTO {quoted}.migrations VALUES ($1, now())", number)


async def _forget_tokens(connection: Connection, quoted: str) -> None:
    """Writers that are silent for days will not ask what became of their last batch."""
    try:
        async with connection.transaction():
            await connection.execute(f"DELETE FROM {quoted}.tokens WHERE used < now() - interval '3 days'")
    except (asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError):
        pass  # a reader
