"""Entities in Redis or Valkey: ``redis://host:6379/0?prefix=shop``, ``rediss://``, ``unix:///path/of/the/socket``, and
``redis+cluster://host:6379,host:6379/?prefix=shop``. Where it says ``redis``, ``valkey`` is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiodatastore.adapters import registry

try:
    from aiodatastore.adapters.redis.store import RedisRowStore
except ImportError as exc:
    if (exc.name or "").partition(".")[0] != "redis":
        raise
    raise registry.missing_extra("redis", exc) from exc

if TYPE_CHECKING:
    from aiodatastore.adapters.base import Adapter

__all__ = ["RedisRowStore", "from_url"]


def from_url(url: str, **options: Any) -> Adapter:
    """An adapter for a Redis URL, ``?setting=value`` as in :class:`RedisRowStore`; of a cluster, see
    :class:`~aiodatastore.adapters.redis.clustered.ClusterAdapter`.

    :raises BadArgumentError: if the address is malformed, or a setting is unknown or malformed
    """
    if url.partition("://")[0].lower().endswith("+cluster"):
        from aiodatastore.adapters.redis.clustered import ClusterAdapter

        return ClusterAdapter.from_parts(registry.split_url(url, options, settings=_CLUSTER_SETTINGS))
    parts = registry.split_url(url, options, settings=_SETTINGS)
    scheme = _SCHEMES.get(parts.scheme, parts.scheme)
    return registry.engine(RedisRowStore.from_location(scheme, parts.location, **parts.settings), parts)


_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}
_SETTINGS: dict[str, Callable[[str], Any]] = {
    "prefix": str,
    "db": registry.parse_int,
    "max_connections": registry.parse_int,
    "timeout_s": registry.parse_float,
    "retry_s": registry.parse_float,
    "wait_replicas": registry.parse_int,
    "sweep_s": registry.parse_float,
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": str,
    "ssl_check_hostname": registry.parse_bool,
}
_CLUSTER_SETTINGS: dict[str, Callable[[str], Any]] = {
    "shards": registry.parse_int,
    **{name: parse for name, parse in _SETTINGS.items() if name != "db"},
}
