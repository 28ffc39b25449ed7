"""``redis+cluster://``: the entity groups of a store, spread over slots of one cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from aiodatastore.adapters import registry
from aiodatastore.adapters.redis.cluster import Cluster, Place, hash_tags, parse_seeds
from aiodatastore.adapters.redis.shard import ClusterRowStore
from aiodatastore.errors import BadArgumentError
from aiodatastore.key import Key
from aiodatastore.shims.sharded import Sharded
from aiodatastore.shims.sharded.layout import read_layouts
from aiodatastore.shims.sharded.together import outcomes_of

__all__ = ["MAX_SHARDS", "ClusterAdapter"]

MAX_SHARDS = 1024

_OF_CLUSTER = ("max_connections", "timeout_s")


class ClusterAdapter(Sharded):
    """Entity groups spread over ``shards`` slots of a Redis or Valkey cluster, by one client.

    Each shard is a :class:`~aiodatastore.adapters.redis.shard.ClusterRowStore`: its docstring says what an
    acknowledgement means. Shards are placed so that every node has about equally many. All of an entity group (a root
    key and what is below it) is in one shard: a transaction may write to one group or to several that happen to share
    a shard, else it raises ``CrossShardError``. Queries without an ancestor ask all shards side by side.

    The number of shards is fixed when the store is made, and opening with another is refused;
    ``aiodatastore rebalance`` multiplies it while the store is in use. 16 serve three to eight masters; more of them
    make queries over all groups dearer, each being asked.

    :raises BadArgumentError: if ``shards`` is not between 1 and 1024, or ``prefix`` has braces
    """

    def __init__(
        self,
        cluster: Cluster,
        parts: registry.UrlParts,
        *,
        prefix: str = "aiodatastore",
        shards: int = 16,
        **settings: Any,
    ) -> None:
        if not 1 <= shards <= MAX_SHARDS:
            raise BadArgumentError(f"shards={shards}: expected 1 to {MAX_SHARDS}")
        if not prefix or set(prefix) & set("{}|") or not prefix.isprintable():
            raise BadArgumentError(f"prefix={prefix!r:.100}: expected printable characters but '|', '{{' and '}}'")
        self.cluster = cluster
        self._prefix = prefix
        tags = hash_tags(prefix, shards)
        stores = [ClusterRowStore(cluster, prefix=tag, **settings) for tag in tags]
        names = [tag[len(prefix) + 2 : -1] for tag in tags]
        super().__init__([registry.engine(store, parts) for store in stores], names=names)
        self._slots = [store.slot for store in stores]
        self._nodes: dict[Place | None, int] = {}

    @classmethod
    def from_parts(cls, parts: registry.UrlParts) -> ClusterAdapter:
        """Of a URL taken apart.

        :raises BadArgumentError: if the address or a setting is malformed
        """
        settings = dict(parts.settings)
        of_cluster = {name: settings[name] for name in _OF_CLUSTER if name in settings}
        tls = {name: settings.pop(name) for name in list(settings) if name.startswith("ssl_")}
        settings.pop("max_connections", None)
        scheme = parts.scheme.replace("valkeys", "rediss").replace("valkey", "redis")
        cluster = Cluster(parse_seeds(scheme, parts.location), **of_cluster, **tls)
        return cls(cluster, parts, **settings)

    @property
    def settings(self) -> Mapping[str, object]:
        """How many shards there are."""
        return {"prefix": self._prefix, "shards": len(self.names)}

    @property
    def url(self) -> str:
        """The nodes given, without the password."""
        return f"{self.cluster.shown}?prefix={self._prefix}&shards={len(self.names)}"

    def lane(self, keys: Sequence[Key]) -> int | None:
        """The one node that serves all of them, by a number of its own: shards of a node share round trips."""
        masters = {self.cluster.master(self._slots[self.place(key)]) for key in keys}
        if len(masters) != 1:
            return None
        return self._nodes.setdefault(masters.pop(), len(self._nodes))

    async def open(self) -> None:
        """Find the nodes, and open all shards side by side: a few round trips, however many there are.

        :raises UnavailableError: if no node can be reached within ``retry_s``
        :raises BadArgumentError: if the store was made with another number of shards
        """
        try:
            for answer in await outcomes_of([child.open for child in self.children]):
                if isinstance(answer, Exception):
                    raise answer
            await self._opened()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    async def _opened(self) -> None:
        try:
            await super()._opened()
        except BadArgumentError as exc:
            numbers = {len(layout.names) for layout in await read_layouts(self.children) if layout is not None}
            if numbers and numbers != {len(self.names)}:
                raise BadArgumentError(
                    f"{self.url}: this store was made with shards={max(numbers)}, and can't be opened with "
                    f"shards={len(self.names)}: 'aiodatastore rebalance URL', with a multiple of it, adds shards"
                ) from exc
            raise
