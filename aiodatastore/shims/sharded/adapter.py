"""Entity groups spread over several adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, ClassVar, Literal

import anyio

from aiodatastore.adapters.base import (
    Adapter,
    AggregateResult,
    Aggregation,
    Commit,
    Delete,
    Lookup,
    Outcome,
    Page,
    Put,
    ReadPolicy,
    ResultStream,
    RunOptions,
    written_key,
)
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, DatastoreError, UnavailableError
from aiodatastore.indexing.normal import cursor_at
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Capability
from aiodatastore.shims.base import DEFAULT, ChildStream, listed
from aiodatastore.shims.sharded.based import Based
from aiodatastore.shims.sharded.layout import (
    LAYOUT_KEY,
    Layout,
    Phase,
    dirty_note,
    newest,
    read_layouts,
    settle_layout,
)
from aiodatastore.shims.sharded.placing import By, Placing
from aiodatastore.shims.sharded.routed import Routed, failed, stores_of

__all__ = ["LAYOUT_MAX_AGE_S", "Sharded"]

LAYOUT_MAX_AGE_S = 1.0
"""So old the layout may be that an answer was read by: who changes it waits for longer than that."""
FREEZE_WAIT_S = 5.0
"""So long a write to a group on the move waits."""


def _by(text: str) -> str:
    if text != "group":
        raise ValueError("expected group (a function can't be written here)")
    return text


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

    - *Adding shards*: :func:`aiodatastore.shims.sharded.rebalance.rebalance`, while everything is in use.

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
        shards = listed("Sharded", shards)
        if names is None:
            names = [str(number) for number in range(len(shards))]
        elif isinstance(names, str) or "" in names or not all(isinstance(name, str) for name in names):
            raise BadArgumentError(f"names: expected a list of names, got {names!r:.200}")
        super().__init__(shards, names)
        self._by: By | None = by if callable(by) else None
        if self._by is None and by != "group":
            raise BadArgumentError(f"by: expected 'group', or a function of a root key, got {by!r:.80}")
        _check_alike(shards)
        self._state = self._state_of(Layout(tuple(sorted(self.names)), self.by, self.names[0]), 0)
        self._fresh_until = math.inf

    @property
    def by(self) -> str:
        """What groups are placed by: ``group``, or the name of the function."""
        return "group" if self._by is None else getattr(self._by, "__qualname__", type(self._by).__qualname__)

    @property
    def settings(self) -> Mapping[str, object]:
        """The shards' names, and what groups are placed by."""
        return {"names": ",".join(self.names), "by": self.by}

    # ------------------------------------------------------------------------------------- its layout

    @property
    def layout(self) -> Layout:
        """As last read."""
        return self._state.layout

    def _state_of(self, layout: Layout, switches: int) -> _State:
        moves = layout.phase is not Phase.STABLE
        return _State(
            layout,
            Placing(layout.authority, self._by),
            [self.names.index(name) if name in self.names else None for name in layout.authority],
            switches,
            (Placing(layout.names, self._by), Placing(layout.next, self._by)) if moves else None,
        )

    async def _opened(self) -> None:
        self.adapters = list(self.children)
        self._fresh_until = math.inf
        if any(Capability.MULTI_PROCESS in child.capabilities for child in self.children):
            self._fresh_until = monotonic() + LAYOUT_MAX_AGE_S
        layout = await settle_layout(self.children, self.names, self.by)
        self._state = self._state_of(layout, self._state.switches + 1)
        await self._reload()

    async def _reload(self) -> None:
        """Read all records, and go by the newest."""
        layout = newest(await read_layouts(self.children))
        while layout is not None:  # else these are shards that can't be written
            if not layout.fits(self.names):
                await self._refuse(layout)
            adapters = [
                Based(child, base) if (base := layout.bases.get(name, 0)) else child
                for name, child in zip(self.names, self.children, strict=True)
            ]
            found = await read_layouts(adapters)  # by versions as they are counted with this layout
            latest = newest(found)
            if latest is not None and latest.epoch == layout.epoch:
                switched = layout.authority != self._state.layout.authority
                fences = [0 if one is None else one.version for one in found]
                self._state = replace(self._state_of(layout, self._state.switches + switched), fences=fences)
                self.adapters = adapters
                return
            layout = latest

    async def _refuse(self, layout: Layout) -> None:
        raise UnavailableError(
            f"{self.url}: the entities are spread over {', '.join(layout.authority)} now, and this process has "
            f"{', '.join(self.names)}: restart it with all shards"
        )

    async def _renew(self, *, force: bool = False) -> None:
        """Make sure that the layout is as it was :data:`LAYOUT_MAX_AGE_S` ago."""
        if not force and monotonic() < self._fresh_until:
            return
        began = monotonic()
        state = self._state
        home = self.names.index(state.layout.ids)
        found = await self.adapters[home].lookup([LAYOUT_KEY], read_policy=ReadPolicy.CURRENT)
        record = found.entities[0]
        version = 0 if record is None else record.version
        if force or (state.fences is not None and version != state.fences[home]):
            await self._reload()
        if self._fresh_until != math.inf:
            self._fresh_until = began + LAYOUT_MAX_AGE_S

    async def _still(self, state: _State) -> bool:
        """Whether what was just read by a layout was read while that was the one to go by."""
        if monotonic() >= self._fresh_until:
            await self._renew()
        return self._state is state

    # ------------------------------------------------------------------------------------------ places

    def place(self, key: Key) -> int:
        """The shard of a key's group."""
        state = self._state
        number = state.numbers[state.placing.number(key)]
        if number is None:
            raise UnavailableError(
                f"{key!r} is in a shard that this process was not given ({', '.join(state.layout.authority)})"
            )
        return number

    def places(self, query: Query) -> Sequence[int]:
        """The shard of the ancestor, or all."""
        if query.ancestor is not None:
            return (self.place(query.ancestor),)
        numbers = [number for number in self._state.numbers if number is not None]
        if len(numbers) < len(self._state.numbers):
            raise UnavailableError(f"this process was not given all of {', '.join(self._state.layout.authority)}")
        return sorted(numbers)

    def sequence_place(self, key: Key) -> int:
        """The shard that has the sequences."""
        return self.names.index(self._state.layout.ids)

    def owner(self, number: int) -> Callable[[Key], bool] | None:
        """While what has moved is still there, too: those whose place it is."""
        state = self._state
        if state.layout.phase not in (Phase.SWITCHED, Phase.CLEANING):
            return None
        return lambda key: state.numbers[state.placing.number(key)] == number

    def tag(self, number: int) -> Hashable:
        """The name, and which time that groups are where they are: what was scanned before they moved is void."""
        return self.names[number], self._state.switches

    def tagged(self, tag: Hashable) -> int | None:
        """The shard, unless groups have moved."""
        return next((number for number in range(len(self.names)) if self.tag(number) == tag), None)

    # ------------------------------------------------------------------------------------------- reads

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """At once, where all the shards that have them can."""
        return None if monotonic() >= self._fresh_until else super().lookup_now(keys)

    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """From each shard at one moment, from all of them side by side."""
        while True:
            await self._renew()
            state = self._state
            found = await super().lookup(keys, read_policy=read_policy)
            if await self._still(state):
                return found

    def run(self, query: Query, options: RunOptions = DEFAULT) -> ResultStream:
        """On the shard that has the results, or on all, merged in order."""
        if self._fresh_until == math.inf:
            return super().run(query, options)
        return _LayoutStream(self, super().run, query, options)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], options: RunOptions = DEFAULT
    ) -> AggregateResult:
        """In each shard, and put together: exact, as if there were one."""
        while True:
            await self._renew()
            state = self._state
            found = await super().aggregate(query, aggregations, options)
            if await self._still(state):
                return found

    # ----------------------------------------------------------------------------------------- commits

    def fenced(self, number: int, commit: Commit) -> Commit:
        """With the version of the shard's record, and notes of the groups it writes that are being copied."""
        state = self._state
        if state.fences is None:
            return commit
        ready = commit.encoded
        if isinstance(ready, _Fenced) and ready.state is state:
            return ready
        writes: Sequence[Put | Delete] = commit.writes
        if state.layout.phase is Phase.COPYING:
            roots = {key.root for key in map(written_key, writes) if state.moves(key)}
            writes = [*writes, *(Put(dirty_note(root)) for root in roots)]
        checks = {**commit.checks, LAYOUT_KEY: state.fences[number]}
        return _Fenced(checks, commit.spans, writes, commit.token, commit.atomic, commit.after_prepared, state=state)

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """As any collection; again where the layout has changed meanwhile, and later where groups are on the move.

        A write to a group that is on the move waits for up to :data:`FREEZE_WAIT_S` seconds, then it has the error
        ``UnavailableError``, and nothing was written.
        """
        outcomes: dict[int, Outcome] = {}
        give_up = 0.0
        renew = False
        while len(outcomes) < len(batch):
            due = [index for index in range(len(batch)) if index not in outcomes]
            try:
                await self._renew(force=renew)
            except DatastoreError as exc:  # of the others the outcome is known
                if isinstance(exc, UnavailableError):
                    exc.nothing_written = True
                outcomes.update((index, failed(exc)) for index in due)
                break
            state = self._state
            sent = [index for index in due if not state.holds(batch[index])]
            for index, outcome in zip(sent, await super().commit([batch[index] for index in sent]), strict=True):
                if LAYOUT_KEY not in outcome.conflicts:
                    outcomes[index] = outcome
            renew = True
            if len(sent) < len(due):
                give_up = give_up or monotonic() + FREEZE_WAIT_S
                if monotonic() > give_up:
                    outcomes.update((index, Outcome(None, error=_on_the_move())) for index in set(due).difference(sent))
                await anyio.sleep(0.05)
        return [outcomes[index] for index in range(len(batch))]


def _on_the_move() -> UnavailableError:
    error = UnavailableError("groups that this commit writes are being moved to another shard: try again")
    error.nothing_written = True
    return error


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """What a layout comes to: replaced as a whole, so that who holds one can tell whether it is still the one."""

    layout: Layout
    placing: Placing
    numbers: list[int | None]
    """Of each shard of ``placing`` its place among those given."""
    switches: int
    moving: tuple[Placing, Placing] | None = None
    """Where groups were and will be."""
    fences: list[int] | None = None
    """The version of each shard's record."""

    def moves(self, key: Key) -> bool:
        """Whether a key's group has another place after the rebalance."""
        if self.moving is None:
            return False
        before, after = self.moving
        return before.names[before.number(key)] != after.names[after.number(key)]

    def holds(self, commit: Commit) -> bool:
        """Whether a commit has to wait."""
        return self.layout.phase in (Phase.FROZEN, Phase.SWITCHED) and any(
            self.moves(written_key(write)) for write in commit.writes
        )


@dataclass(slots=True, eq=False)
class _Fenced(Commit):
    """A commit as a shard gets it."""

    state: _State | None = None


class _LayoutStream(ChildStream):
    """A query whose pages are each read by the layout that there is then."""

    def __init__(
        self, sharded: Sharded, run: Callable[[Query, RunOptions], ResultStream], query: Query, options: RunOptions
    ) -> None:
        super().__init__(run(query, options))
        self._sharded = sharded
        self._run = run
        self._query = query
        self._options = options
        self._state: _State | None = sharded._state
        self._end: bytes | None = None
        self._skipped = self._given = 0
        self._more = True

    async def next_page(self) -> Page:
        """The next page; if groups were moved meanwhile, from where the last one ended."""
        sharded = self._sharded
        while True:
            await sharded._renew()
            state = sharded._state
            if state is not self._state:
                self._child, self._state = self._run(self._rest(), self._options), state
            page = await self._child.next_page()
            if await sharded._still(state):
                break
            self._state = None
        self._end = page.end
        self._skipped += page.skipped
        self._given += len(page.results)
        self._more = page.more
        return page

    def _rest(self) -> Query:
        """What is left of the query."""
        query = self._query
        left = query.max_results
        if not self._more:
            left = 0
        elif left is not None:
            left -= self._given
        if self._end is not None:
            query = query.start(cursor_at(query, self._end))
        return query.offset(max(0, query.skip - self._skipped)).limit(left)


def _check_alike(shards: Sequence[Adapter]) -> None:
    if any(_is_sharded(shard) for shard in shards):
        raise BadArgumentError(
            "a shard is sharded itself: the records of the two would meet; give all the stores to one Sharded"
        )
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


def _is_sharded(adapter: Adapter) -> bool:
    return isinstance(adapter, Sharded) or any(map(_is_sharded, adapter.children))
