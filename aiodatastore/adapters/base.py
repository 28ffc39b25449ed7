"""The narrow waist of entities: what a datastore, and every shim, stores them in.

``Datastore`` and every shim speak to :class:`Adapter` only. A storage engine implements the other waist,
:class:`aiodatastore.rowstore.RowStore`, and :class:`aiodatastore.adapters.engine.EngineAdapter` makes an ``Adapter``
of it, so that index maintenance, planning and query semantics exist once.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiodatastore.errors import DatastoreError, UnsupportedError
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability, SpanCheck, Subscription

if TYPE_CHECKING:
    from aiodatastore.entity import Entity
    from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo
    from aiodatastore.indexing.explain import Explanation
    from aiodatastore.query import Query
    from aiodatastore.serializers import Serializer

__all__ = [
    "Adapter",
    "AggregateResult",
    "Aggregation",
    "ChangeListener",
    "Commit",
    "Delete",
    "Lookup",
    "MIXED",
    "Moment",
    "Outcome",
    "Page",
    "PreparedCommit",
    "Put",
    "ReadPolicy",
    "ResultStream",
    "RunOptions",
    "Unread",
    "written_key",
]


class ReadPolicy(enum.StrEnum):
    """How fresh a read outside transactions must be (App Engine's ``read_policy``).

    ``STRONG``: what is stored; with a cache in between, no older than it promises. ``EVENTUAL``: a replica may answer.
    ``CURRENT``: what is stored, past every cache; transactions that run again after a conflict read so.
    """

    STRONG = "strong"
    EVENTUAL = "eventual"
    CURRENT = "current"


MIXED: Final = object()
"""As a ``clock``: what was read is of several stores, so their versions do not say whether it held at one moment."""


class Moment(NamedTuple):
    """When something was so: ``version`` counts on ``clock`` (None: the adapter has only one)."""

    clock: object
    version: int


# ---------------------------------------------------------------------------------------- entities


@dataclass(frozen=True, slots=True)
class Put:
    """Write an entity. The entity belongs to the adapter from here on: nobody else changes it.

    ``ttl_s``: seconds after which it is gone, where the adapter has ``Capability.TTL``; None: it stays.
    """

    entity: Entity
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an entity; deleting what is absent is allowed."""

    key: Key


def written_key(write: Put | Delete) -> Key:
    """The key that a write is for."""
    return write.entity.key if isinstance(write, Put) else write.key


@dataclass(slots=True)
class Commit:
    """One transaction: checked and applied atomically, or not at all.

    ``checks`` maps keys to the version they must have (0: absent, :data:`EXISTS`: any), ``spans`` what was
    scanned, ``writes`` has at most one entry a key. Without writes it only verifies. ``token`` names the
    commit, so that an adapter whose answer was lost can learn whether it took effect. Where ``atomic`` is false (a
    list that is put outside of transactions), an adapter of several stores may write to each by itself; if some refuse
    and others don't, ``Outcome.versions`` has what was written.
    """

    checks: Mapping[Key, int] = field(default_factory=dict)
    spans: Sequence[SpanCheck] = ()
    writes: Sequence[Put | Delete] = ()
    token: bytes = b""
    atomic: bool = True
    after_prepared: bool = False
    """Without writes: verify when all that was prepared before is resolved, as commits that write always do."""
    encoded: Any = field(default=None, repr=False, compare=False)
    """What the adapter made of it ahead, see :meth:`Adapter.encode`; nobody else looks at it."""


@dataclass(slots=True)
class Outcome:
    """What became of one :class:`Commit`.

    ``version``: the store's version after it (the new version of everything it wrote), or None if a check
    failed; then ``conflicts`` maps each key at fault to its actual version, and ``stale_spans`` says how
    many spans had changed. ``error``: the commit itself can't be written (too many index rows, too large); its
    neighbours are not touched by that. ``clock``: what ``version`` counts on; where a commit wrote to several stores
    it is :data:`MIXED`, and ``versions`` has that of each entity.
    """

    version: int | None
    conflicts: Mapping[Key, int] = field(default_factory=dict)
    stale_spans: int = 0
    error: DatastoreError | None = None
    clock: object = None
    versions: Mapping[Key, int] | None = None

    @property
    def committed(self) -> bool:
        """Whether the checks held (and the writes, if any, are in the store)."""
        return self.version is not None

    def version_of(self, key: Key) -> int:
        """The version that the commit gave an entity it wrote."""
        return (self.version or 0) if self.versions is None else self.versions.get(key, self.version or 0)


@dataclass(slots=True)
class Lookup:
    """Entities in the order of the keys asked for, None where absent, all of one moment.

    ``version`` is the store's version at that moment: nothing here is newer, and what is committed later
    gets a greater one. An adapter that answers from several stores, or from a cache, says in ``moments`` when each
    entity was so; ``clock`` is :data:`MIXED` if they are on several clocks. An entity of version 5 whose moment is
    9 was so from 5 to 9; an absent one at its moment.
    """

    entities: list[Entity | None]
    version: int
    clock: object = None
    moments: Sequence[Moment] | None = None

    def part(self, entities: list[Entity | None], places: Sequence[int]) -> Lookup:
        """The lookup of some of its entities: those at these places."""
        if self.moments is None:
            return Lookup(entities, self.version, self.clock)
        moments = [self.moments[place] for place in places]
        clock, version = moments[0] if moments else (self.clock, self.version)
        if all(moment.clock is clock for moment in moments):
            return Lookup(entities, max((moment.version for moment in moments), default=version), clock, moments)
        return Lookup(entities, self.version, MIXED, moments)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run a query.

    ``track``: collect what a transaction must check at commit. ``positions``: give every result its
    position. ``page_size``: results a page, None lets the adapter choose.
    """

    track: bool = False
    positions: bool = False
    page_size: int | None = None
    read_policy: ReadPolicy = ReadPolicy.STRONG


@dataclass(slots=True)
class Page:
    """Some results of a query, in order.

    ``results`` are entities (for projections: with only the projected properties, ``is_projection`` true)
    or keys (``keys_only``). ``positions`` (if asked for) has one for each: bytes that order results of this
    query, and of the same query on another adapter, exactly as the query does. ``end`` is the last result's
    position, ``skipped`` how many results the offset passed over, ``more`` whether another page may follow.
    ``checks`` / ``spans`` are what a transaction adds to its commit, if tracked. ``version`` is the store's at the
    first of the reads that this page is made of, ``newest`` at the last: if they differ, a transaction verifies
    that all of it held at one moment.
    """

    results: list[Any]
    end: bytes | None
    more: bool
    version: int
    positions: list[bytes] | None = None
    skipped: int = 0
    checks: dict[Key, int] = field(default_factory=dict)
    spans: list[SpanCheck] = field(default_factory=list)
    newest: int = 0
    clock: object = None


class Unread(NamedTuple):
    """An entity as it is stored: what a stream may give after :meth:`ResultStream.defer`."""

    serializer: Serializer
    key: bytes
    version: int
    payload: bytes


class ResultStream(ABC):
    """A running query. Holds one page (or a bounded sort) in memory; needs no closing."""

    @abstractmethod
    async def next_page(self) -> Page:
        """The next page; empty with ``more`` false at the end."""

    def defer(self) -> bool:
        """Let entities be :class:`Unread`, for who may not need all of them; whether any will be.

        To be called before the first page.
        """
        return False

    @abstractmethod
    def explain(self) -> Explanation:
        """The plan, with what each step has read so far."""


class Aggregation(NamedTuple):
    """``function`` is ``count``, ``sum`` or ``avg``; ``property`` is "" for count.

    Collections ask for a ``total``, which adapters may refuse: the sum as it goes on
    (:class:`~aiodatastore.indexing.aggregates.RunningSum`), exact, with how many numbers it has.
    """

    function: str
    property: str = ""


@dataclass(slots=True)
class AggregateResult:
    """Values in the order asked for; ``avg`` of nothing is None, ``sum`` of nothing 0. The rest as in :class:`Page`.

    ``rows`` and ``scans`` are how many index rows were read and requests made, where the adapter tells.
    """

    values: list[int | float | None]
    version: int
    checks: dict[Key, int] = field(default_factory=dict)
    spans: list[SpanCheck] = field(default_factory=list)
    newest: int = 0
    clock: object = None
    rows: int = 0
    scans: int = 0


class PreparedCommit(NamedTuple):
    """A commit that was prepared and not resolved yet: its name and how many seconds ago that was."""

    name: str
    age_s: float


class ChangeListener(ABC):
    """Who wants to be told of commits, by :meth:`Adapter.subscribe`. Called from the event loop; must not raise."""

    @abstractmethod
    def changed(self, keys: Sequence[Key], version: int) -> None:
        """Commits up to this version of the store wrote these; in order of versions."""

    @abstractmethod
    def confirmed(self, at: float, version: int) -> None:
        """All commits before ``at`` (``time.monotonic``) were told, which are all up to ``version``, or :meth:`gap` was
        called since."""

    @abstractmethod
    def gap(self) -> None:
        """Commits may not have been told: anything may have changed."""


class Adapter(ABC):
    """Stores entities. What ``Datastore`` and every shim speak to; shims and collections hold others.

    Inputs were validated by ``Datastore``: keys are complete (but in ``allocate_ids``), entities are private
    copies. Every method may raise :class:`~aiodatastore.errors.UnavailableError` and its subclasses; a
    cancelled ``commit`` returns only when its outcome is known.
    """

    @property
    @abstractmethod
    def capabilities(self) -> frozenset[Capability]:
        """What this adapter promises beyond the core."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where data lives, without secrets: for messages and reprs."""

    @property
    def children(self) -> Sequence[Adapter]:
        """The adapters that this one holds, in order; none for a store."""
        return ()

    @property
    def settings(self) -> Mapping[str, object]:
        """What it was made with, without secrets: for ``aiodatastore explain`` and reprs."""
        return {}

    @abstractmethod
    async def open(self) -> None:
        """Make ready; creates what is missing. Opening twice is an error of the caller."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release everything. Closing twice is allowed."""

    @property
    def has_lanes(self) -> bool:
        """Whether :meth:`lane` tells of several stores."""
        return False

    def lane(self, keys: Sequence[Key]) -> int | None:
        """Which of several stores is the only one that keys concern; None: it is not one, or not known.

        A hint: calls of one store travel together, and don't wait for those of others. What it says of a key may
        change.
        """
        return None

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """The entities at once, if that needs no waiting; None: use :meth:`lookup`."""
        return None

    @abstractmethod
    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """Entities of complete keys, in one consistent view."""

    @abstractmethod
    def run(self, query: Query, options: RunOptions = RunOptions()) -> ResultStream:
        """Start a query; nothing is read before the first page.

        :raises NeedIndexError: if indexes are required and none serves it
        """

    @abstractmethod
    async def aggregate(
        self,
        query: Query,
        aggregations: Sequence[Aggregation],
        options: RunOptions = RunOptions(),
    ) -> AggregateResult:
        """Aggregate a query's results (its limit and offset included), on index rows alone where possible."""

    @abstractmethod
    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Apply transactions in order, each atomic by itself, all in one round trip; one outcome each."""

    def encode(self, commit: Commit) -> None:
        """Encode ahead what :meth:`commit` will need, and keep it in ``commit.encoded``.

        Called while the commit waits for the one before it and there is nothing better to do. What can't be
        encoded is told by :meth:`commit`.
        """
        return

    # Two-phase commit, of adapters with ``Capability.TWO_PHASE``: what a transaction over several stores is made of.

    async def prepare(self, commit: Commit, name: str) -> Outcome:
        """Verify a commit and make sure that it can be applied, whatever happens; nothing of it is seen yet.

        Until :meth:`resolve` no other commit that it would conflict with succeeds; it survives what ``DURABLE``
        commits do. If a check fails (``Outcome.version`` is None), nothing was prepared. ``name`` is unique.
        """
        raise UnsupportedError(f"{self.url} can't prepare commits", capability=Capability.TWO_PHASE)

    async def resolve(self, name: str, *, commit: bool) -> Outcome | None:
        """Apply or forget what was prepared under a name; None if there is nothing of this name (any more)."""
        raise UnsupportedError(f"{self.url} can't prepare commits", capability=Capability.TWO_PHASE)

    async def prepared(self) -> list[PreparedCommit]:
        """What was prepared here and not resolved, by whichever process."""
        return []

    # What caches ask for.

    async def subscribe(self, listener: ChangeListener, interval_s: float) -> Subscription | None:
        """Tell of every commit, of whichever process, from now on; None: this adapter can't.

        After :meth:`~ChangeListener.confirmed` has not been called for a while (about ``interval_s`` is usual), commits
        may have been missed; when it goes on, a gap is told first if some were. An adapter that changes keys has to
        change those it tells, too.

        :raises UnavailableError: if the store can't be reached
        """
        return None

    async def lifetimes(self, keys: Sequence[Key]) -> Sequence[float | None]:
        """Seconds that each entity has to live at least: None: it stays, 0: there is none (any more).

        To be asked after a lookup, by who keeps what was found.

        :raises UnsupportedError: if entities may expire and this adapter can't tell when
        """
        if Capability.TTL not in self.capabilities:
            return [None] * len(keys)
        raise UnsupportedError(f"{self.url} can't tell how long entities live", capability=Capability.TTL)

    @abstractmethod
    async def allocate_ids(self, key: Key, size: int) -> tuple[int, int]:
        """Reserve ``size`` ids for keys like ``key`` (its partition and kind): first and last, inclusive."""

    @abstractmethod
    async def reserve_ids(self, key: Key, up_to: int) -> tuple[int, int]:
        """Reserve every id up to ``up_to`` not handed out yet: first and last; last < first if none was left."""

    @abstractmethod
    async def indexes(self) -> list[IndexInfo]:
        """Composite indexes with their state, in order of their number."""

    @abstractmethod
    async def create_index(self, definition: IndexDefinition) -> IndexInfo:
        """Register an index as BUILDING (or return the existing one); writes maintain it from now on."""

    @abstractmethod
    async def build_index(
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None
    ) -> IndexInfo:
        """Fill a BUILDING index from existing data, in batches, while writes go on; then SERVING.

        Resumes where an interrupted build stopped. ``progress`` is called with the entities seen so far.
        """

    @abstractmethod
    async def delete_index(
        self,
        definition: IndexDefinition,
        *,
        progress: Callable[[int], None] | None = None,
        finish: bool = True,
    ) -> None:
        """Mark DELETING; unless ``finish`` is false, remove its rows in batches and forget it."""

    @abstractmethod
    async def check(self) -> list[str]:
        """Compare indexes with entities; a line for each disagreement, empty if all is well. Reads everything."""

    @abstractmethod
    async def stats(self) -> dict[str, Any]:
        """``{"kinds": [{"project", "namespace", "kind", "entities", "bytes", "index_rows"}, …], "version": int}``."""

    async def partitions(self) -> list[tuple[str, str]]:
        """Every (project, namespace) that has entities, sorted. This default reads everything."""
        return sorted({(row["project"], row["namespace"]) for row in (await self.stats())["kinds"]})
