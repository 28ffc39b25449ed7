"""The narrow waist of bytes: what a storage engine gives, and nothing it needs to know of entities.

A :class:`RowStore` has two ordered spaces of byte rows, atomic commits with checks, and sequences.
:class:`aiodatastore.adapters.engine.EngineAdapter` makes an ``Adapter`` of any of them.
"""

from __future__ import annotations

import enum
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

__all__ = [
    "CORE",
    "EXISTS",
    "TAIL_KEY_MASK",
    "TAIL_MULTI",
    "Capability",
    "Record",
    "Row",
    "RowBatch",
    "RowCommit",
    "RowIntersection",
    "RowListener",
    "RowOutcome",
    "RowPut",
    "RowRead",
    "RowScan",
    "RowStore",
    "Space",
    "Span",
    "SpanCheck",
    "SpanCount",
    "SpanTally",
    "StaleFenceError",
    "Subscription",
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
    TWO_PHASE = "two_phase"  # commits can be prepared, and resolved later: transactions over several stores
    GLOBAL_TRANSACTIONS = "global_transactions"  # one transaction may touch any keys, not only those of one shard
    KEY_ORDER = "key_order"  # results come in the order of their keys, as the application has them
    EXACT_KEYS = "exact_keys"  # keys come back as they were written, and different ones stay different
    CURRENT_READS = "current_reads"  # a read is of what is stored now; without it, a cache may be behind by its bound
    ONE_CLOCK = "one_clock"  # versions of all entities come from one counter, so they tell the order of commits
    QUERIES = "queries"  # every query is answered, and agrees with the entities


CORE = frozenset(
    {
        Capability.GLOBAL_TRANSACTIONS,
        Capability.KEY_ORDER,
        Capability.EXACT_KEYS,
        Capability.CURRENT_READS,
        Capability.ONE_CLOCK,
        Capability.QUERIES,
    }
)
"""What every row store gives an adapter; shims and collections may lose some of it, and then say so."""


class Space(enum.IntEnum):
    """The two ordered spaces of a :class:`RowStore`."""

    ENTITY = 0
    INDEX = 1


@dataclass(frozen=True, slots=True)
class SpanCheck:
    """What a transaction saw of one contiguous span; holds if a new scan would show the same.

    ``digest`` is :meth:`RowStore.digest` of the rows, or None where only their number was seen (``count``). ``owner``
    is for collections, which note there whose span it is.
    """

    space: Space
    lo: bytes
    hi: bytes
    count: int
    digest: bytes | None = None
    owner: tuple[object, ...] = ()


class Record(NamedTuple):
    """A stored entity: its version and payload."""

    version: int
    payload: bytes


Row = tuple[bytes, int, int | None, bytes | None]
"""One row of a scan: ``row, tail, version, payload``.

``row`` are the ordered bytes (in ``Space.ENTITY`` the encoded key), ``tail`` the integer stored with an index row
(0 for entities); ``version`` and ``payload`` are the entity's, if it was joined (None if not; the version always
in the entity space). The lowest 20 bits of ``tail`` are the length of the encoded key that ends ``row``; the rest
belongs to the engine (bit 20: the entity has several rows in this index). A plain tuple: scans make many.
"""

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


class RowIntersection(NamedTuple):
    """Rows that several prefixes share, less the prefix, in order, and the store's version, all of one moment.

    ``resume`` is None if there are no more; else where to go on: as ``lo``, in reverse as ``hi``.
    """

    rows: list[Row]
    resume: bytes | None
    version: int


class SpanTally(NamedTuple):
    """How often each value occurs in a span: (value's bytes, ``tail >> 20``, rows), and the store's version."""

    values: list[tuple[bytes, int, int]]
    version: int


class RowPut(NamedTuple):
    """Write an entity row and exactly these index rows (row → tail) for it.

    ``ttl_s``: seconds after which the entity is gone, for stores with ``Capability.TTL``; None: never.
    """

    key: bytes
    payload: bytes
    rows: Mapping[bytes, int]
    ttl_s: float | None = None


class RowCommit(NamedTuple):
    """One atomic transaction on bytes.

    ``checks``: (key, version), where the version may be 0 (absent) or :data:`EXISTS`. ``puts`` and ``deletes``
    together name a key at most once. ``index_puts`` / ``index_deletes`` change index rows without touching their
    entity (building and deleting composite indexes).
    """

    checks: Sequence[tuple[bytes, int]] = ()
    spans: Sequence[SpanCheck] = ()
    puts: Sequence[RowPut] = ()
    deletes: Sequence[bytes] = ()
    index_puts: Mapping[bytes, int] = MappingProxyType({})
    index_deletes: Sequence[bytes] = ()
    token: bytes = b""
    after_prepared: bool = False
    """Without writes: verified when all that was prepared before is resolved, as those with writes always are."""


class RowBatch(NamedTuple):
    """Transactions to apply in order, in one round trip.

    ``old_rows(key, payload)`` gives the index rows of a stored entity, which the store must remove (or
    keep, where the new entity has them too) when it is overwritten or deleted. A store whose server does that without
    sending payloads back keeps the rows of an entity beside it, and does not ask. ``fence`` is a (key,
    version) that must hold for the whole batch: the index catalog; see :class:`StaleFenceError`.
    """

    commits: Sequence[RowCommit]
    old_rows: Callable[[bytes, bytes], Mapping[bytes, int]]
    fence: tuple[bytes, int] | None = None


class RowOutcome(NamedTuple):
    """``version`` after the commit, or None and what failed: (key, actual version) and stale spans."""

    version: int | None
    conflicts: Sequence[tuple[bytes, int]] = ()
    stale_spans: int = 0


class StaleFenceError(Exception):
    """The fence of a batch did not hold: nothing of the batch was applied. Never reaches users."""


class RowListener(ABC):
    """Who wants to be told of commits, by :meth:`RowStore.subscribe`. Called from the event loop; must not raise."""

    @abstractmethod
    def changed(self, keys: Sequence[bytes], version: int) -> None:
        """Commits up to this version of the store put or deleted these; in order of versions."""

    @abstractmethod
    def confirmed(self, at: float, version: int) -> None:
        """All commits before ``at`` (``time.monotonic``) were told, which are all up to ``version``, or :meth:`gap` was
        called since."""

    @abstractmethod
    def gap(self) -> None:
        """Commits may not have been told: anything may have changed."""


class Subscription(ABC):
    """Messages that are under way, until it is closed."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop them. Closing twice is allowed."""


class RowStore(ABC):
    """A storage engine: two ordered spaces of bytes, atomic commits, sequences.

    Versions are positive integers from one counter a store: each commit that writes gets a greater one than
    all before it, in the order in which commits become visible, and gives it to every entity it puts.
    """

    capabilities: frozenset[Capability] = frozenset()
    url: str = ""
    index_rows: Callable[[bytes, bytes], Mapping[bytes, int]] | None = None
    """All index rows of a stored entity (its key and payload): set by the engine, for stores that make their indexes
    anew when they open. The records of the engine's own (keys from ff on) must be readable before it is called."""

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
    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
        """At most ``limit`` rows of a span from its lower (``reverse``: upper) end.

        Index rows are joined with their entities if ``with_entities``; entity rows carry version and
        payload only then, and the version always.
        """

    def scan_now(
        self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False
    ) -> list[Row] | None:
        """The rows of :meth:`scan`, at once, or None where that would have to wait.

        All are of one moment, of which the version is not told: for who has no use for it. None is the default.
        """
        return None

    @abstractmethod
    async def count(self, span: Span) -> SpanCount:
        """Count rows without fetching them."""

    def count_now(self, span: Span) -> SpanCount | None:
        """Like :meth:`count`, at once, or None where that would have to wait, or take long.

        The version need not be told: 0. None is the default.
        """
        return None

    @abstractmethod
    async def commit(self, batch: RowBatch) -> list[RowOutcome]:
        """Verify and apply, each commit atomically; the later see what the earlier wrote.

        :raises StaleFenceError: if the fence does not hold; nothing was applied
        """

    @abstractmethod
    async def allocate(self, sequence: bytes, size: int, *, at_least: int = 1) -> int:
        """Take ``size`` (may be 0) numbers from a sequence that starts at 1: ``first = max(next, at_least)``;
        afterwards next is ``first + size``. Returns first."""

    # -------------------------------------------------------- what a store may do better than the default

    def digest(self, rows: Iterable[tuple[bytes, int | None]], space: Space) -> bytes:
        """What stands in a :class:`SpanCheck` for (row, version) pairs in order: whatever the store can compute
        again where it commits. Only the store itself compares it."""
        return span_digest(rows, space)

    async def intersect(
        self,
        prefixes: Sequence[bytes],
        lo: bytes,
        hi: bytes,
        limit: int,
        *,
        reverse: bool = False,
        with_entities: bool = False,
    ) -> RowIntersection | None:
        """Index rows ``prefix + rest`` that exist for every prefix, with ``lo <= rest < hi``, in one round trip.

        The rows of the answer are rests; their tail is that of the first prefix, with ``TAIL_MULTI`` if any has it.
        It may stop before ``limit`` after as much work as is decent at one go, and says so in ``resume``. None (the
        default): the engine leapfrogs with :meth:`scan`.
        """
        return None

    async def tally(self, span: Span, skip: int) -> SpanTally | None:
        """Count the rows of an index span by what they have between their first ``skip`` bytes and their key.

        For sums in the store. None (the default): the engine reads the rows.
        """
        return None

    async def prepare(self, batch: RowBatch, name: str) -> RowOutcome:
        """Verify the one commit of a batch and keep it, with all it would conflict with shut out, until it is resolved.

        For stores with ``Capability.TWO_PHASE``. The version is the one that the commit will have. Preparing under a
        name that is prepared already does nothing.

        :raises StaleFenceError: if the fence does not hold; nothing was prepared
        """
        raise NotImplementedError

    async def resolve(self, name: str, *, commit: bool) -> int | None:
        """Apply or forget what was prepared, and the store's version then; None if there is nothing of the name."""
        raise NotImplementedError

    async def prepared(self) -> list[tuple[str, float]]:
        """The names of what is prepared, and for how many seconds."""
        return []

    def replica(self) -> RowStore | None:
        """What answers reads that need not be fresh (``read_policy=EVENTUAL``); None: this store does.

        Opened and closed with this store; only its reading methods are used.
        """
        return None

    async def subscribe(self, listener: RowListener, interval_s: float) -> Subscription | None:
        """Tell of every commit, of whichever process, from now on; None (the default): this store can't.

        About every ``interval_s`` it makes sure that nothing was missed and calls ``confirmed``; when it could not for
        a while, or commits were not told, ``gap`` first.

        :raises UnavailableError: if the store can't be reached
        """
        return None

    async def lifetimes(self, keys: Sequence[bytes]) -> Sequence[float | None]:
        """Seconds that each entity has to live at least; None: it stays, 0: there is none.

        For stores with ``Capability.TTL``. Asked after a read.
        """
        return [None] * len(keys)

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
