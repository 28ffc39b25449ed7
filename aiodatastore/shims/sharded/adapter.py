"""Entity groups spread over several adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from aiodatastore.adapters.base import Adapter
from aiodatastore.errors import BadArgumentError
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.shims.sharded.layout import Layout, settle_layout
from aiodatastore.shims.sharded.placing import By, Placing
from aiodatastore.shims.sharded.routed import Routed, stores_of

__all__ = ["Sharded"]


class Sharded(Routed):
    """Entity groups spread over shards by a stable hash of their root key and partition.

    >>> from aiodatastore import Datastore
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> shards = [adapter_from_url("memory://") for _ in range(4)]
    >>> ds = Datastore(Sharded(shards, names=["a", "b", "c", "d"]))

    - *Where*: all of an entity group (a root key and what is below it) is in one shard, chosen by rendezvous hashing of
      the shards' names (:mod:`aiodatastore.shims.sharded.placing`). ``by`` may be a function that gives for a root key
      what its group is placed by, ``lambda root: root.namespace`` keeps tenants together; it must always give the
      same. ``names`` default to "0", "1", …. Each shard keeps a record of the layout, and opening with another
      one is refused.
    - *Reads and commits* of one group cost what they cost in its shard. A lookup over several shards reads them side by
      side; outside of a transaction it may see a commit in one shard and one before it in another.
    - *Queries* with an ancestor go to its shard. Others go to all of them, side by side, and are merged in order: a
      page costs one round trip, seldom two. Cursors are positions, and the same in every shard.
    - *Transactions* in one shard are as strong as the shard is. What was read in several is verified in each, and is
      serializable. Writes over several shards, or writes in one and reads in another, need shards that can prepare
      commits (``Capability.TWO_PHASE``), else ``CrossShardError`` is raised and nothing was written.
    - *Lists* that are put outside of transactions are split: each shard's part is atomic.
    - *Ids* of a kind come from one shard (the first that the collection had; recorded in its layout), so that they
      never collide; the entities they are for go where their keys belong. One shard, and not one a kind: when
      shards are added, no sequence has to move. It is asked once for hundreds of ids.

    :raises BadArgumentError: if there are no shards, one was given twice, names are repeated, or a shard can't be
        merged with others (its results are in another order, it has another serializer)
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"by": str, "names": lambda text: text.split(",")}

    def __init__(
        self,
        shards: Sequence[Adapter],
        *,
        by: Literal["group"] | By = "group",
        names: Sequence[str] | None = None,
    ) -> None:
        shards = list(shards)
        if names is None:
            names = [str(number) for number in range(len(shards))]
        elif isinstance(names, str) or "" in names or not all(isinstance(name, str) for name in names):
            raise BadArgumentError(f"names: expected a list of names, got {names!r:.200}")
        super().__init__(shards, names)
        self._by: By | None = by if callable(by) else None
        if self._by is None and by != "group":
            raise BadArgumentError(f"by: expected 'group', or a function of a root key, got {by!r:.80}")
        _check_alike(shards)
        self._placing = Placing(self.names, self._by)
        self._layout: Layout | None = None

    @property
    def by(self) -> str:
        """What groups are placed by: ``group``, or the name of the function."""
        return "group" if self._by is None else getattr(self._by, "__qualname__", type(self._by).__qualname__)

    @property
    def settings(self) -> Mapping[str, object]:
        """The shards' names, and what groups are placed by."""
        return {"names": ",".join(self.names), "by": self.by}

    async def _opened(self) -> None:
        self._layout = await settle_layout(self.children, self.names, self.by)

    def place(self, key: Key) -> int:
        """The shard of a key's group."""
        return self._placing.number(key)

    def places(self, query: Query) -> Sequence[int]:
        """The shard of the ancestor, or all."""
        if query.ancestor is not None:
            return (self.place(query.ancestor),)
        return range(len(self.names))

    def sequence_place(self, key: Key) -> int:
        """The shard that has the sequences."""
        return 0 if self._layout is None else self.names.index(self._layout.ids)


def _check_alike(shards: Sequence[Adapter]) -> None:
    stores = [store for shard in shards for store in stores_of(shard)]
    serializers = {
        type(value).__name__ for store in stores if (value := getattr(store, "serializer", None)) is not None
    }
    requires = {value for store in stores if (value := getattr(store, "require_indexes", None)) is not None}
    for setting, values in (("serializer", serializers), ("require_indexes", requires)):
        if len(values) > 1:
            raise BadArgumentError(
                f"all shards must have the same {setting}, got {', '.join(sorted(map(str, values)))}"
            )
