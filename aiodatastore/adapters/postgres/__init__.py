"""Entities in PostgreSQL: ``postgresql://user:password@host:port/database?schema=name``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiodatastore.adapters import registry

try:
    from aiodatastore.adapters.postgres.store import PostgresRowStore
except ImportError as exc:
    if exc.name != "asyncpg":
        raise
    raise registry.missing_extra("postgres", exc) from exc

if TYPE_CHECKING:
    from aiodatastore.adapters.engine import EngineAdapter

__all__ = ["PostgresRowStore", "from_url"]


def from_url(url: str, **options: Any) -> EngineAdapter:
    """An adapter for a PostgreSQL URL, ``?setting=value`` as in the class, and libpq's own (``sslmode``, …).

    :raises BadArgumentError: if a setting is unknown or malformed
    """
    parts = registry.split_url(url, options, settings={**_SETTINGS, **dict.fromkeys(_LIBPQ, str)})
    settings = dict(parts.settings)
    passed = {name: settings.pop(name) for name in _LIBPQ if name in settings}
    dsn: str | None = f"postgresql://{parts.location}" + (f"?{urlencode(passed)}" if passed else "")
    if "pool" in settings and not parts.location and not passed:
        dsn = None
    return registry.engine(PostgresRowStore(dsn, **settings), parts)


def _refuse(text: str) -> Any:
    raise ValueError("give the pool itself as an argument")


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "schema": str,
    "pool": _refuse,
    "min_size": registry.parse_int,
    "max_size": registry.parse_int,
    "retry_s": registry.parse_float,
    "command_timeout_s": registry.parse_float,
    "connect_timeout_s": registry.parse_float,
    "statement_cache_size": registry.parse_int,
    "pooler": str,
    "replica": str,
    "target_session_attrs": str,
    "read_only": registry.parse_bool,
    "ssl": str,
}

_LIBPQ = (
    "application_name",
    "dbname",
    "host",
    "passfile",
    "password",
    "port",
    "service",
    "servicefile",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "user",
)
