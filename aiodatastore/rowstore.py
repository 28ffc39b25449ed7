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
    "EXISTS",
    "TAIL_KEY_MASK",
    "TAIL_MULTI",
    "Capability",
    "Record",
    "Row",
    "RowBatch",
    "RowCommit",
    "RowOutcome",
    "RowPut",
    "RowRead",
    "RowScan",
    "RowStore",
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


class RowPut(NamedTuple):
    """Write an entity row and exactly these index rows (row → tail) for it."""

    key: bytes
    payload: bytes
    rows: Mapping[bytes, int]


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


class RowBatch(NamedTuple):
    """Transactions to apply in order, in one round trip.

    ``old_rows(key, payload)`` gives the index rows of a stored entity, which the engine must remove (or
    keep, where the new entity has them too) when it is overwritten or deleted. ``fence`` is a (key,
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
    async def scan(self, span: Span, limit: int, *, reverse: bool = False, with_entities: bool = False) -> RowScan:
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
