"""A row store in one slot of a cluster: the store of a single server, sent to whichever node serves its slot."""

from __future__ import annotations

import logging
from typing import Any

from aiodatastore.adapters.redis.cluster import Cluster, hash_slot
from aiodatastore.adapters.redis.connections import Link
from aiodatastore.adapters.redis.store import RedisRowStore
from aiodatastore.errors import BadArgumentError

__all__ = ["ClusterRowStore"]

_log = logging.getLogger("aiodatastore")


class ClusterRowStore(RedisRowStore):
    """Rows in one slot of a Redis or Valkey cluster: ``prefix`` has a hash tag, ``{shop.3}``.

    As :class:`RedisRowStore`, one script and so one atomic commit, on the node that serves the slot. When that changes
    (a failover, resharding), calls go on with the new one, within ``retry_s``. What an acknowledgement means:

    - Replication is asynchronous. Without ``wait_replicas``, commits that were acknowledged may be lost when a master
      fails: those that its replica had not received yet.
    - With ``wait_replicas=1`` a commit is acknowledged when a replica has it in memory. It survives the failure of its
      master if that replica takes over; so with one replica a master, it does. This is no consensus: a commit that was
      not acknowledged may be there or not; with several replicas, one that lacks it may win the election after all;
      and what master and replica had only in memory is gone if both fail.
    - No commit is applied twice: its number and outcome are replicated with it. Versions and ids that the failed master
      may have given are not given again, so a transaction that read what is lost conflicts.

    :raises BadArgumentError: if a setting is out of range, or ``prefix`` has no hash tag
    """

    def __init__(self, cluster: Cluster, *, prefix: str, **settings: Any) -> None:
        tag = prefix.encode()
        if not (tag.startswith(b"{") and tag.find(b"}") > 1):
            raise BadArgumentError(f"prefix={prefix!r:.100}: expected a hash tag, as in {{shop}}")
        super().__init__(cluster.seeds[0], prefix=prefix, **settings)
        self.cluster = cluster
        self.slot = hash_slot(tag)
        self.url = f"{cluster.named}?prefix={prefix}"
        self._guard = (self._layout.guard,)
        self._mark = b"c"

    def _connect(self) -> Link:
        return self.cluster.link(self.slot)

    async def _begin(self) -> None:
        """Find the nodes, once for all stores of the cluster; the first read tells what else is to be told."""
        self._durability = await self.cluster.begin(self._find, _log)

    async def _find(self) -> None:
        await self._send([(b"GET", self._layout.version)])

    async def sizes(self) -> dict[str, int]:
        """As of any; the server's memory is not this store's alone, and left out."""
        return {name: size for name, size in (await super().sizes()).items() if name != "server_bytes"}
