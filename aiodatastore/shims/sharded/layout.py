"""How a collection's shards are laid out, as each of them has it recorded.

The record is an entity of a project that no application's query is of. It has the shard's own name, so that shards
that were mixed up are noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from aiodatastore.adapters.base import Adapter, Commit, Put
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, CorruptDataError, StoreReadOnlyError
from aiodatastore.key import Key
from aiodatastore.shims.sharded.placing import HASH
from aiodatastore.shims.sharded.routed import SYSTEM_PROJECT
from aiodatastore.shims.sharded.together import all_of

__all__ = ["LAYOUT_KEY", "Layout", "read_layouts", "settle_layout", "write_layout"]

LAYOUT_KEY = Key("Layout", 1, project=SYSTEM_PROJECT)


@dataclass(frozen=True, slots=True)
class Layout:
    """The shards' names, what groups are placed by, and which shard has the sequences of ids.

    ``own``: the shard that this was read from; ``version``: of the record.
    """

    names: tuple[str, ...]
    by: str
    ids: str
    own: str = ""
    version: int = field(default=0, compare=False)

    def to_entity(self, own: str) -> Entity:
        """As a shard keeps it."""
        values = {"hash": HASH, "names": list(self.names), "by": self.by, "ids": self.ids, "own": own}
        return Entity(LAYOUT_KEY, values, unindexed=values.keys())

    @classmethod
    def of_entity(cls, entity: Entity) -> Layout:
        """As a shard has kept it.

        :raises CorruptDataError: if it is of another kind
        """
        try:
            if entity["hash"] != HASH:
                raise CorruptDataError(f"this shard's groups are placed by {entity['hash']!r}, not by {HASH}")
            return cls(tuple(entity["names"]), entity["by"], entity["ids"], entity["own"], entity.version)
        except (KeyError, TypeError) as exc:
            raise CorruptDataError("the record of this shard's layout is damaged") from exc

    def same_as(self, other: Layout) -> bool:
        """Whether two shards have the same layout."""
        return replace(self, own="") == replace(other, own="")


async def read_layouts(shards: Sequence[Adapter]) -> list[Layout | None]:
    """What each shard has recorded."""
    found = await all_of([partial(shard.lookup, [LAYOUT_KEY]) for shard in shards])
    return [None if one.entities[0] is None else Layout.of_entity(one.entities[0]) for one in found]


async def write_layout(shard: Adapter, name: str, layout: Layout, version: int) -> bool:
    """Record it in a shard where the record has this version (0: none); whether it had."""
    commit = Commit(checks={LAYOUT_KEY: version}, writes=[Put(layout.to_entity(name))])
    (outcome,) = await shard.commit([commit])
    if outcome.error is not None:
        raise outcome.error
    return outcome.version is not None


async def settle_layout(shards: Sequence[Adapter], names: Sequence[str], by: str) -> Layout:
    """The layout of shards under these names: as they have it recorded, or recorded now, if they are new.

    :raises BadArgumentError: if they have another one recorded, or hold entities and none
    """
    wanted = Layout(tuple(sorted(names)), by, names[0])
    while True:
        found = await read_layouts(shards)
        known = next((layout for layout in found if layout is not None), None)
        if known is not None:
            wanted = _accepted(known, names, found, by)
        missing = [place for place, layout in enumerate(found) if layout is None]
        if not missing:
            return wanted
        looked = missing if len(names) > 1 else []
        for place, pairs in zip(looked, await all_of([shards[place].partitions for place in looked]), strict=True):
            if any(pair[0] != SYSTEM_PROJECT for pair in pairs):
                raise BadArgumentError(
                    f"shard {names[place]} ({shards[place].url}) holds entities but is not known as a shard of "
                    f"{', '.join(sorted(names))}: {_COMMAND}"
                )
        try:
            calls = [partial(write_layout, shards[place], names[place], wanted, 0) for place in missing]
            written = await all_of(calls)
        except StoreReadOnlyError:
            return wanted  # shards that can't be written are as they are
        if all(written):
            return wanted


_COMMAND = "move what is there to its place with 'aiodatastore rebalance OLD_URL NEW_URL'"


def _accepted(known: Layout, names: Sequence[str], found: Sequence[Layout | None], by: str) -> Layout:
    for name, layout in zip(names, found, strict=True):
        if layout is None:
            continue
        if not layout.same_as(known):
            raise BadArgumentError(
                f"these shards are not of one collection: {known.own} is one of {', '.join(known.names)}, {name} is "
                f"recorded as {layout.own}, one of {', '.join(layout.names)}"
            )
        if set(layout.names) != set(names):
            raise BadArgumentError(
                f"opened as shards {', '.join(sorted(names))}, but their entities are spread over "
                f"{', '.join(layout.names)}: {_COMMAND}"
            )
        if layout.own != name:
            raise BadArgumentError(
                f"the shard given as {name} is recorded as {layout.own}: shards are told apart by their names; give "
                "each the name it had (names=)"
            )
    if known.by != by:
        raise BadArgumentError(f"these shards' groups are placed by {known.by!r}, not by {by!r}: {_COMMAND}")
    return replace(known, own="", version=0)
