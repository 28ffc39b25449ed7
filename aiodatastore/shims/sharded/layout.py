"""How a collection's shards are laid out, as each of them has it recorded, and what phase a rebalance is in.

The record is an entity of a project that no application's query is of. It has the shard's own name, so that shards
that were mixed up are noticed, and every commit to a shard checks the record's version there, so that no process goes
on by a layout that was replaced.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from aiodatastore.adapters.base import Adapter, Commit, Put, ReadPolicy
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, CorruptDataError, StoreReadOnlyError
from aiodatastore.indexing.encoding import encode_key
from aiodatastore.key import Key
from aiodatastore.shims.sharded.placing import HASH
from aiodatastore.shims.sharded.together import all_of
from aiodatastore.shims.sharded.twophase import SYSTEM_PROJECT

__all__ = [
    "DIRTY_KIND",
    "LAYOUT_KEY",
    "Layout",
    "Phase",
    "dirty_note",
    "holds_entities",
    "newest",
    "read_layouts",
    "settle_layout",
    "write_layout",
]

DIRTY_KIND = "Dirty"

LAYOUT_KEY = Key("Layout", 1, project=SYSTEM_PROJECT)
_COMMAND = "'aiodatastore rebalance URL', with the URL of all shards, moves what is there to its place"


class Phase(enum.StrEnum):
    """What is going on. Groups that move are read and written where they were up to ``FROZEN``."""

    STABLE = "stable"
    """Everything is where ``names`` say."""
    COPYING = "copying"
    """Groups that move are copied; who writes one notes that it has to be copied again."""
    FROZEN = "frozen"
    """Writes to groups that move wait, while what was noted is copied."""
    SWITCHED = "switched"
    """Groups that move are read in their new place; writes still wait until every process knows."""
    CLEANING = "cleaning"
    """They are written there, too; what they have left is removed, and is not looked at."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The shards' names, what groups are placed by, and which shard has the sequences of ids.

    ``epoch`` counts phases, ``next`` has the names after a rebalance (else nothing), ``bases`` what is added to the
    versions of a shard: so an entity that moved has a greater version than it ever had. ``own``: the shard that this
    was read from; ``version``: of the record there.
    """

    names: tuple[str, ...]
    by: str
    ids: str
    own: str = ""
    version: int = field(default=0, compare=False)
    epoch: int = 1
    phase: Phase = Phase.STABLE
    next: tuple[str, ...] = ()
    bases: Mapping[str, int] = field(default_factory=dict)
    mover: str = ""
    """Who rebalances: whoever goes on with it writes another name here, and then the one before can't any more."""

    def to_entity(self, own: str) -> Entity:
        """As a shard keeps it."""
        values = {
            "hash": HASH,
            "names": list(self.names),
            "by": self.by,
            "ids": self.ids,
            "own": own,
            "epoch": self.epoch,
            "phase": str(self.phase),
            "next": list(self.next),
            "bases": dict(self.bases),
            "mover": self.mover,
        }
        return Entity(LAYOUT_KEY, values, unindexed=values.keys())

    @classmethod
    def of_entity(cls, entity: Entity) -> Layout:
        """As a shard has kept it.

        :raises CorruptDataError: if it is of another kind
        """
        try:
            if entity["hash"] != HASH:
                raise CorruptDataError(f"this shard's groups are placed by {entity['hash']!r}, not by {HASH}")
            return cls(
                tuple(entity["names"]),
                entity["by"],
                entity["ids"],
                entity["own"],
                entity.version,
                entity["epoch"],
                Phase(entity["phase"]),
                tuple(entity["next"]),
                dict(entity["bases"]),
                entity["mover"],
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise CorruptDataError("the record of this shard's layout is damaged") from exc

    @property
    def authority(self) -> tuple[str, ...]:
        """The names of the shards where everything is to be read."""
        return self.next if self.phase in (Phase.SWITCHED, Phase.CLEANING) else self.names

    @property
    def every_name(self) -> tuple[str, ...]:
        """The names of all shards that have to do with it."""
        return self.next or self.names

    def fits(self, names: Sequence[str]) -> bool:
        """Whether it can be used with shards of these names: those it is read from now, or all it concerns."""
        return set(names) in (set(self.authority), set(self.every_name))


def dirty_note(root: Key) -> Entity:
    """A note that a group was written after it was copied."""
    name = hashlib.blake2b(encode_key(root), digest_size=16).hexdigest()
    return Entity(Key._make(SYSTEM_PROJECT, "", ((DIRTY_KIND, name),)), {"root": root}, unindexed=("root",))


def newest(found: Sequence[Layout | None]) -> Layout | None:
    """Of what the shards have recorded the latest: while a phase changes, some have the one before."""
    return max((layout for layout in found if layout is not None), key=lambda layout: layout.epoch, default=None)


async def read_layouts(shards: Sequence[Adapter]) -> list[Layout | None]:
    """What each shard has recorded."""
    found = await all_of([partial(shard.lookup, [LAYOUT_KEY], read_policy=ReadPolicy.CURRENT) for shard in shards])
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
    while True:
        found = await read_layouts(shards)
        known = newest(found)
        if known is not None:
            _check(known, names, found, by)
        layout = known or Layout(tuple(sorted(names)), by, names[0])
        missing = [place for place, one in enumerate(found) if one is None]
        if not missing:
            return layout
        for place in missing:
            if len(names) > 1 and await holds_entities(shards[place]):
                raise BadArgumentError(
                    f"shard {names[place]} ({shards[place].url}) holds entities but is not known as a shard of "
                    f"{', '.join(sorted(names))}: {_COMMAND}"
                )
        try:
            written = [await write_layout(shards[place], names[place], layout, 0) for place in missing]
        except StoreReadOnlyError:
            return layout  # shards that can't be written are as they are
        if all(written):
            return layout


async def holds_entities(shard: Adapter) -> bool:
    """Whether a shard has entities beside a collection's own records."""
    return any(project != SYSTEM_PROJECT for project, _ in await shard.partitions())


def _check(known: Layout, names: Sequence[str], found: Sequence[Layout | None], by: str) -> None:
    for name, layout in zip(names, found, strict=True):
        if layout is None:
            continue
        if (layout.ids, layout.by) != (known.ids, known.by) or not set(layout.names) <= set(known.every_name):
            raise BadArgumentError(
                f"these shards are not of one collection: {known.own} is one of {', '.join(known.names)}, {name} is "
                f"recorded as {layout.own}, one of {', '.join(layout.names)}"
            )
    if not known.fits(names):
        raise BadArgumentError(
            f"opened as shards {', '.join(sorted(names))}, but their entities are spread over "
            f"{', '.join(known.authority)}: {_COMMAND}"
        )
    for name, layout in zip(names, found, strict=True):
        if layout is not None and layout.own != name:
            raise BadArgumentError(
                f"the shard given as {name} is recorded as {layout.own}: shards are told apart by their names; give "
                "each the name it had (names=)"
            )
    if known.by != by:
        raise BadArgumentError(f"these shards' groups are placed by {known.by!r}, not by {by!r}")
