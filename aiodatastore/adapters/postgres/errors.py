"""What the driver's and the server's errors are to users, and which of them are worth another try."""

from __future__ import annotations

import asyncio

import asyncpg

from aiodatastore.errors import (
    BadArgumentError,
    BadRequestError,
    CorruptDataError,
    DatastoreError,
    StoreFullError,
    StoreReadOnlyError,
    UnavailableError,
)

__all__ = ["is_lost", "is_missing", "is_passing", "is_standby", "translate"]

_LOST = (
    OSError,  # refused, reset, unreachable; asyncio's time-outs are OSErrors too
    EOFError,
    asyncio.IncompleteReadError,
    asyncpg.InterfaceError,  # the driver's own: the connection was closed under it
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    asyncpg.TargetServerAttributeNotMatched,
)
_PASSING = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,  # somebody's pg_cancel_backend(), a statement_timeout
    asyncpg.StatementCompletionUnknownError,
    asyncpg.InvalidCachedStatementError,
)
_GONE = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedObjectError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidSchemaNameError,
)


def is_lost(exc: BaseException) -> bool:
    """Whether the connection is gone, or could not be made: another one may do."""
    if isinstance(exc, asyncpg.ClientConfigurationError | ValueError) or _is_poolers_refusal(exc):
        return False
    return isinstance(exc, _LOST)


def _is_poolers_refusal(exc: BaseException) -> bool:
    """Whether pgbouncer lets nobody in who sends settings of a session."""
    return isinstance(exc, asyncpg.ProtocolViolationError) and "unsupported startup parameter" in str(exc)


def is_missing(exc: BaseException) -> bool:
    """Whether the schema, or a part of it, is not there; on a standby: not yet."""
    return isinstance(exc, _GONE)


def is_passing(exc: BaseException) -> bool:
    """Whether the server undid the work for reasons that pass."""
    return isinstance(exc, _PASSING)


def is_standby(exc: BaseException) -> bool:
    """Whether the server, or the session, takes no writes."""
    return isinstance(exc, asyncpg.ReadOnlySQLTransactionError)


def translate(exc: BaseException, url: str) -> DatastoreError:
    """What an error is to users. Messages of the server name objects, never credentials."""
    if isinstance(exc, asyncpg.InsufficientPrivilegeError | asyncpg.ReadOnlySQLTransactionError):
        return StoreReadOnlyError(f"{url}: the role may not do this ({exc})")
    if isinstance(exc, asyncpg.DiskFullError | asyncpg.OutOfMemoryError):
        return StoreFullError(f"{url}: the server has no space left ({exc})")
    if is_missing(exc):
        return CorruptDataError(f"{url}: the schema is not what this package made ({exc})")
    if isinstance(exc, asyncpg.DataCorruptedError | asyncpg.IndexCorruptedError):
        return CorruptDataError(f"{url}: the server reports damaged data ({exc})")
    if isinstance(exc, asyncpg.ProgramLimitExceededError):
        return BadRequestError(f"{url}: larger than PostgreSQL allows ({exc})")
    if _is_poolers_refusal(exc):
        return UnavailableError(f"{url}: this is pgbouncer ({exc}): say pooler=transaction")
    if isinstance(exc, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError):
        return UnavailableError(f"{url}: the server refuses the connection ({exc})")
    if isinstance(exc, asyncpg.ClientConfigurationError):
        return BadArgumentError(f"{url}: {exc}")
    reason = str(exc) or type(exc).__name__
    return UnavailableError(f"{url}: {reason}")
