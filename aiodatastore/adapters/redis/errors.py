"""What Redis's and its driver's errors are to users, and which of them pass."""

from __future__ import annotations

import ssl

from redis import exceptions

from aiodatastore.errors import (
    BadRequestError,
    CorruptDataError,
    DatastoreError,
    StoreFullError,
    StoreReadOnlyError,
    UnavailableError,
)

__all__ = ["is_refusal", "is_transient", "translate"]

_REFUSALS = (
    exceptions.AuthenticationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    ssl.SSLCertVerificationError,
)
_PASSING = (
    "LOADING",  # reads its file after a restart
    "READONLY",  # has become a replica: another connection may lead to the new master
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY",  # a long script
    "NOREPLICAS",  # min-replicas-to-write
    "UNBLOCKED",  # by a failover
)


def is_refusal(exc: BaseException) -> bool:
    """Whether the server will not have us, however often we ask."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, _REFUSALS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def is_transient(exc: BaseException) -> bool:
    """Whether to try again: the connection broke, or the server says that it can't answer for now."""
    if is_refusal(exc):
        return False
    if isinstance(exc, exceptions.ConnectionError | exceptions.TimeoutError | OSError | TimeoutError):
        return True
    if isinstance(
        exc,
        exceptions.ReadOnlyError | exceptions.MasterDownError | exceptions.ClusterDownError | exceptions.TryAgainError,
    ):
        return True
    # Before Redis 7, an error within a script comes as a text that has the code somewhere.
    return isinstance(exc, exceptions.ResponseError) and (_code(exc) in _PASSING or "-READONLY" in str(exc))


def _code(exc: BaseException) -> str:
    """The first word of the server's answer; redis-py cuts off those that it has classes for."""
    return str(exc).partition(" ")[0].rstrip(":")


_CLUSTER = ("CROSSSLOT", "MOVED", "ASK")


def translate(exc: BaseException, url: str) -> DatastoreError:
    """What an error of the server or the driver is to users."""
    text = str(exc)
    if is_refusal(exc):
        return UnavailableError(f"{url}: the server refuses this connection: {text}")
    if isinstance(exc, exceptions.OutOfMemoryError) or "OOM command" in text:
        return StoreFullError(f"{url}: the server has reached its maxmemory; nothing was written")
    if isinstance(exc, exceptions.ReadOnlyError) or "READONLY" in text:
        return StoreReadOnlyError(f"{url}: the server is a read-only replica")
    if "MISCONF" in text:
        return StoreReadOnlyError(f"{url}: the server refuses writes as it can't save to its disk")
    if "WRONGTYPE" in text:
        return CorruptDataError(f"{url}: a key under this prefix is not of this package: choose another prefix")
    if isinstance(exc, exceptions.MovedError) or _code(exc) in _CLUSTER:
        return UnavailableError(f"{url}: this is a node of a cluster: use redis+cluster://")
    if isinstance(exc, exceptions.ResponseError) and "too big" in text:
        return BadRequestError(f"{url}: the request is larger than the server takes: {text}")
    return UnavailableError(f"{url}: {text or type(exc).__name__}")
