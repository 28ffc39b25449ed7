"""The two narrow waists: :class:`Adapter` (entities) and :class:`RowStore` (bytes).

``Datastore`` and every shim speak to :class:`Adapter` only. A storage engine implements :class:`RowStore`,
about six methods over ordered bytes, and :class:`aiodatastore.adapters.engine.EngineAdapter` makes an
``Adapter`` of it, so that index maintenance, planning and query semantics exist once.
"""

from __future__ import annotations

import enum
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from aiodatastore.key import Key

if TYPE_CHECKING:
    from aiodatastore.entity import Entity
    from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo
    from aiodatastore.indexing.explain import Explanation
    from aiodatastore.query import Query

__all__ = [
    "EXISTS",
    "Adapter",
    "AggregateResult",
    "Aggregation",
    "Capability",
    "Commit",
    "Delete",
    "Lookup",
    "Outcome",
    "Page",
    "Put",
    "ReadPolicy",
    "Record",
    "ResultStream",
    "Row",
    "RowBatch",
    "RowCommit",
    "RowOutcome",
    "RowPut",
    "RowRead",
    "RowScan",
    "RowStore",
    "RunOptions",
    "Space",
    "Span",
    "SpanCheck",
    "SpanCount",
    "StaleFenceError",
    "span_digest",
]

EXISTS = -1
"""In a check, instead of a version: the entity must exist, in whichever version."""


class Capability(enum.StrEnum):
    """What an adapter may promise beyond the core contract. Docs, tests and error texts read this list."""

    DURABLE = "durable"  # acknowledged commits survive kill -9 of the process
    MULTI_PROCESS = "multi_process"  # several processes may open the same store, serializable among them
    TRIO = "trio"  # runs under trio as well as asyncio
    INLINE_READS = "inline_reads"  # small reads are answered without suspending
    TTL = "ttl"  # entities may expire


class ReadPolicy(enum.StrEnum):
    """How fresh a read outside transactions must be (App Engine's ``read_policy``)."""

    STRONG = "strong"
    EVENTUAL = "eventual"


# ---------------------------------------------------------------------------------------- entities


@dataclass(frozen=True, slots=True)
class Put:
    """Write an entity. The entity belongs to the adapter from here on: nobody else changes it."""

    entity: Entity


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an entity; deleting what is absent is allowed."""

    key: Key


class Space(enum.IntEnum):
    """The two ordered spaces of a :class:`RowStore`."""

    ENTITY = 0
    INDEX = 1


@dataclass(frozen=True, slots=True)
class SpanCheck:
    """What a transaction saw of one contiguous span; holds if a new scan would show the same.

    ``digest`` is :func:`span_digest` of the rows, or None where only their number was seen (``count``).
    """

    space: Space
    lo: bytes
    hi: bytes
    count: int
    digest: bytes | None = None


@dataclass(slots=True)
class Commit:
    """One transaction: checked and applied atomically, or not at all.

    ``checks`` maps keys to the version they must have (0: absent, :data:`EXISTS`: any), ``spans`` what was
    scanned, ``writes`` has at most one entry a key. Without writes it only verifies. ``token`` names the
    commit, so that an adapter whose answer was lost can learn whether it took effect.
    """

    checks: Mapping[Key, int] = field(default_factory=dict)
    spans: Sequence[SpanCheck] = ()
    writes: Sequence[Put | Delete] = ()
    token: bytes = b""


@dataclass(slots=True)
class Outcome:
    """What became of one :class:`Commit`.

    ``version``: the store's version after it (the new version of everything it wrote), or None if a check
    failed; then ``conflicts`` maps each key at fault to its actual version, and ``stale_spans`` says how
    many spans had changed.
    """

    version: int | None
    conflicts: Mapping[Key, int] = field(default_factory=dict)
    stale_spans: int = 0

    @property
    def committed(self) -> bool:
        """Whether the checks held (and the writes, if any, are in the store)."""
        return self.version is not None


@dataclass(slots=True)
class Lookup:
    """Entities in the order of the keys asked for, None where absent, all of one moment.

    ``version`` is the store's version at that moment: nothing here is newer, and what is committed later
    gets a greater one.
    """

    entities: list[Entity | None]
    version: int


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
    ``checks`` / ``spans`` are what a transaction adds to its commit, if tracked.
    """

    results: list[Any]
    end: bytes | None
    more: bool
    version: int
    positions: list[bytes] | None = None
    skipped: int = 0
    checks: dict[Key, int] = field(default_factory=dict)
    spans: list[SpanCheck] = field(default_factory=list)


class ResultStream(ABC):
    """A running query. Holds one page (or a bounded sort) in memory; needs no closing."""

    @abstractmethod
    async def next_page(self) -> Page:
        """The next page; empty with ``more`` false at the end."""

    @abstractmethod
    def explain(self) -> Explanation:
        """The plan, with what each step has read so far."""


class Aggregation(NamedTuple):
    """``function`` is ``count``, ``sum`` or ``avg``; ``property`` is "" for count."""

    function: str
    property: str = ""


@dataclass(slots=True)
class AggregateResult:
    """Values in the order asked for; ``avg`` of nothing is None, ``sum`` of nothing 0."""

    values: list[int | float | None]
    version: int
    checks: dict[Key, int] = field(default_factory=dict)
    spans: list[SpanCheck] = field(default_factory=list)


class Adapter(ABC):
    """Stores entities. What ``Datastore`` and every shim speak to; shims hold one as ``child``.

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

    @abstractmethod
    async def open(self) -> None:
        """Make ready; creates what is missing. Opening twice is an error of the caller."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release everything. Closing twice is allowed."""

    def lookup_now(self, keys: Sequence[Key]) -> list[Entity | None] | None:
        """The entities at once, if that needs no waiting; None: use :meth:`lookup`."""
        return None

    @abstractmethod
    async def lookup(self, keys: Sequence[Key], *, read_policy: ReadPolicy = ReadPolicy.STRONG) -> Lookup:
        """Entities of complete keys, in one consistent view."""

    @abstractmethod
    def run(self, query: Query, options: RunOptions = RunOptions()) -> ResultStream:  # noqa: B008
        """Start a query; nothing is read before the first page.

        :raises NeedIndexError: if indexes are required and none serves it
        """

    @abstractmethod
    async def aggregate(
        self,
        query: Query,
        aggregations: Sequence[Aggregation],
        options: RunOptions = RunOptions(),  # noqa: B008
    ) -> AggregateResult:
        """Aggregate a query's results (its limit and offset included), on index rows alone where possible."""

    @abstractmethod
    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        """Apply transactions in order, each atomic by itself, all in one round trip; one outcome each."""

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
        self, definition: IndexDefinition, *, progress: Callable[[int], None] | None = None
    ) -> None:
        """Mark DELETING, remove its rows in batches, forget it."""

    @abstractmethod
    async def check(self) -> list[str]:
        """Compare indexes with entities; a line for each disagreement, empty if all is well. Reads everything."""

    @abstractmethod
    async def stats(self) -> dict[str, Any]:
        """``{"kinds": [{"project", "namespace", "kind", "entities", "bytes", "index_rows"}, …], "version": int}``."""


# ------------------------------------------------------------------------------------------- bytes


class Record(NamedTuple):
    """A stored entity: its version and payload."""

    version: int
    payload: bytes


class Row(NamedTuple):
    """One row of a scan.

    ``row`` are the ordered bytes (in ``Space.ENTITY`` the encoded key), ``tail`` the integer stored with an
    index row (0 for entities); ``version`` and ``payload`` are the entity's, if it was joined (None if not).
    The lowest 20 bits of ``tail`` are the length of the encoded key that ends ``row``; the rest belongs to
    the engine (bit 20: the entity has several rows in this index).
    """

    row: bytes
    tail: int
    version: int | None
    payload: bytes | None


TAIL_KEY_MASK = (1 << 20) - 1
TAIL_MULTI = 1 << 20


class Span(NamedTuple):
    """Rows with ``lo <= row < hi`` of one space."""

    space: Space
    lo: bytes
    hi: bytes


class RowRead(NamedTuple):
    """Records in the order of the keys, None where absent, and the store's version, all of one moment."""

    records: list[Record | None]
    version: int


class RowScan(NamedTuple):
    """Rows in order and the store's version, all of one moment."""

    rows: list[Row]
    version: int


class SpanCount(NamedTuple):
    """Rows in a span, how many of them have ``TAIL_MULTI`` set, and the store's version."""

    rows: int
    multi: int
    version: int


@dataclass(frozen=True, slots=True)
class RowPut:
    """Write an entity row and exactly these index rows (row → tail) for it.

    ``bare`` writes leave index rows alone: the index builder uses it to touch what has no payload change.
    """

    key: bytes
    payload: bytes
    rows: Mapping[bytes, int]


@dataclass(frozen=True, slots=True)
class RowCommit:
    """One atomic transaction on bytes.

    ``checks``: (key, version) as in :class:`Commit`. ``puts`` and ``deletes`` together name a key at most
    once. ``index_puts`` / ``index_deletes`` change index rows without touching their entity (building and
    deleting composite indexes).
    """

    checks: Sequence[tuple[bytes, int]] = ()
    spans: Sequence[SpanCheck] = ()
    puts: Sequence[RowPut] = ()
    deletes: Sequence[bytes] = ()
    index_puts: Mapping[bytes, int] = field(default_factory=dict)
    index_deletes: Sequence[bytes] = ()
    token: bytes = b""


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Transactions to apply in order, in one round trip.

    ``old_rows(key, payload)`` gives the index rows of a stored entity, which the engine must remove (or
    keep, where the new entity has them too) when it is overwritten or deleted. ``fence`` is a (key,
    version) that must hold for the whole batch: the index catalog; see :class:`StaleFenceError`.
    """

    commits: Sequence[RowCommit]
    old_rows: Callable[[bytes, bytes], Mapping[bytes, int]]
    fence: tuple[bytes, int] | None = None


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """``version`` after the commit, or None and what failed: (key, actual version) and stale spans."""

    version: int | None
    conflicts: Sequence[tuple[bytes, int]] = ()
    stale_spans: int = 0


class StaleFenceError(Exception):
    """The fence of a batch did not hold: nothing of the batch was applied. Never reaches users."""


class RowStore(ABC):
    """A storage engine: two ordered spaces of bytes, atomic commits, sequences.

    Versions are positive integers from one counter a store: each commit that writes gets a greater one than
    all before it, in the order in which commits become visible, and gives it to every entity it puts.
    """

    capabilities: frozenset[Capability] = frozenset()
    url: str = ""

    @abstractmethod
    async def open(self) -> None:
        """Make ready; create what is missing."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release everything; allowed twice."""

    def read_now(self, keys: Sequence[bytes]) -> list[Record | None] | None:
        """Like :meth:`read`, at once, or None where that would have to wait."""
        return None

    @abstractmethod
    async def read(self, keys: Sequence[bytes]) -> RowRead:
        """Records by encoded key, all of one moment."""

    @abstractmethod
    async def scan(
        self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False
    ) -> RowScan:
        """At most ``limit`` rows of a span from its lower (``reverse``: upper) end.

        Index rows are joined with their entities if ``with_entities``; entity rows carry version and
        payload only then, and the version always.
        """

    @abstractmethod
    async def count(self, span: Span) -> SpanCount:
        """Count rows without fetching them."""

    @abstractmethod
    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        """Verify and apply, each commit atomically; the later see what the earlier wrote.

        :raises StaleFenceError: if the fence does not hold; nothing was applied
        """

    @abstractmethod
    async def allocate(self, sequence: bytes, size: int, *, at_least: int = 1) -> int:
        """Take ``size`` (may be 0) numbers from a sequence that starts at 1: ``first = max(next, at_least)``;
        afterwards next is ``first + size``. Returns first."""

    async def sizes(self) -> dict[str, int]:
        """What the engine knows of its own size, in bytes: for ``stats``."""
        return {}


def span_digest(rows: Iterable[tuple[bytes, int | None]], space: Space) -> bytes:
    """16 bytes that stand for the rows of a scan: of each the bytes, and in the entity space the version."""
    digest = hashlib.blake2b(digest_size=16)
    update = digest.update
    for row, version in rows:
        update(len(row).to_bytes(4, "big"))
        update(row)
        if space is Space.ENTITY:
            update((version or 0).to_bytes(8, "big"))
    return digest.digest()
