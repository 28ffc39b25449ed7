"""How rows are kept in Redis: names of keys, members of sorted sets, and the request of a commit.

===============  ==========================================================================================
key              content
===============  ==========================================================================================
``P|v``          the store's version in digits, and an ``x`` if any entity may expire
``P|n``          exists until the next entity expires (the *clock*)
``P|e`` + key    an entity: version (8 bytes) and payload
``P|r``          hash, key → version and the entity's index rows: what an overwrite must remove, what checks read
``P|k``          sorted set of all entity keys
``P|i``          sorted set of all index rows
``P|m``          sorted set of the index rows with ``TAIL_MULTI``, to count them
``P|x``          sorted set, key by the time it expires (milliseconds)
``P|s``          hash, sequence → next number
``P|t`` + lane   number and outcome of the last batch of one lane of commits, for an hour
``P|o``          in a cluster: the node that wrote last
``P|q``          in a cluster: hash, sequence → the node that counted last
``P|g``          in a cluster: never exists; scripts name it so that they don't run while the slot is being moved
===============  ==========================================================================================

``P`` is the prefix, which has no ``|``: so the keys of two prefixes never meet. It may contain a hash tag in braces,
which puts all of them into one slot of a cluster. Everywhere a key or row is *escaped*: ``00`` becomes ``00 ff``. A
member of an index is the escaped row, ``00 01``, and a tail: members are then ordered as rows are (Redis compares
them with memcmp, and their scores are equal), though one row may be the beginning of another, and a bound is just
the escaped bytes. The tail has the length of the escaped key in its lowest 22 bits and ``tail >> 20`` above them,
without leading zeros.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from aiodatastore.errors import BadRequestError
from aiodatastore.rowstore import TAIL_KEY_MASK, RowBatch, RowCommit, Space

__all__ = ["Layout", "decode_member", "digest", "encode_batch", "escape", "unescape", "writes"]

_LENGTH_BITS = 22
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_FLAGS_SHIFT = 20
_END = b"\x00\x01"
_MAX_HEAD = 0xFFFF
_MAX_ARGUMENTS = 1_000_000  # Redis refuses more than 1024 * 1024

_LONGEST_S = 1e11  # three thousand years: times have to stay within what Redis takes

_header = struct.Struct(">6I").pack
_check = struct.Struct(">Iq").pack
_span = struct.Struct(">BI").pack
_put = struct.Struct(">IQ").pack
_place = struct.Struct(">I").pack


class Layout:
    """The names of one store's keys."""

    def __init__(self, prefix: bytes) -> None:
        base = prefix + b"|"
        self.version = base + b"v"
        self.clock = base + b"n"
        self.entity = base + b"e"
        self.heads = base + b"r"
        self.names = base + b"k"
        self.rows = base + b"i"
        self.multi = base + b"m"
        self.expiries = base + b"x"
        self.sequences = base + b"s"
        self.lane = base + b"t"
        self.guard = base + b"g"
        self.counters = base + b"q"
        self.common = (self.version, self.clock, self.rows, self.multi, self.names, self.heads, self.expiries)


def escape(data: bytes) -> bytes:
    """Bytes in which ``00`` is followed by ``ff``, in the same order."""
    return data.replace(b"\0", b"\0\xff")


def unescape(data: bytes) -> bytes:
    """The inverse of :func:`escape`."""
    return data.replace(b"\0\xff", b"\0")


@lru_cache(maxsize=4096)
def _pack_tail(flags: int, length: int) -> bytes:
    number = flags << _LENGTH_BITS | length
    return number.to_bytes((number.bit_length() + 7) >> 3, "big")


def decode_member(member: bytes) -> tuple[bytes, int]:
    """Row and tail of an index's member."""
    escaped, _, packed = member.partition(_END)
    number = int.from_bytes(packed, "big")
    length = number & _LENGTH_MASK
    zeros = escaped.count(b"\0", len(escaped) - length)
    return escaped.replace(b"\0\xff", b"\0"), (number >> _LENGTH_BITS) << _FLAGS_SHIFT | length - zeros


def digest(rows: Iterable[tuple[bytes, int | None]], space: Space) -> bytes:
    """What stands for the rows of a scan: as the commit's script computes it."""
    if space is Space.ENTITY:
        parts = [escape(row) + _END + (version or 0).to_bytes(8, "big") for row, version in rows]
    else:
        parts = [escape(row) + _END for row, _ in rows]
    return hashlib.sha1(b"".join(parts), usedforsecurity=False).hexdigest().encode()


def writes(commit: RowCommit) -> bool:
    """Whether it changes anything."""
    return bool(commit.puts or commit.deletes or commit.index_puts or commit.index_deletes)


def _pack_rows(rows: Mapping[bytes, int], escaped_key_length: int) -> bytes:
    """Index rows less the key that ends each, with their tails."""
    parts: list[bytes] = []
    append = parts.append
    for row, tail in rows.items():
        head = row[: len(row) - (tail & TAIL_KEY_MASK)].replace(b"\0", b"\0\xff")
        size = len(head)
        if size < 512:
            append(_SIZES[size])
        elif size <= _MAX_HEAD:
            append(size.to_bytes(2, "big"))
        else:
            raise BadRequestError(f"an index row of {len(row)} bytes is too long for Redis: shorten the values")
        append(head)
        append(_sized_tail(tail, escaped_key_length))
    return b"".join(parts)


_SIZES = [size.to_bytes(2, "big") for size in range(512)]


@lru_cache(maxsize=4096)
def _sized_tail(tail: int, length: int) -> bytes:
    packed = _pack_tail(tail >> _FLAGS_SHIFT, length)
    return bytes((len(packed),)) + packed


def encode_batch(batch: RowBatch, layout: Layout) -> tuple[list[bytes], list[bytes], bytes]:
    """The entities that a batch names (as keys of Redis), the arguments of its script from the fence on (less the
    number in the lane and the flags), and these: ``x`` if any entity is given a time to live, ``r`` if the script needs
    what it needs for spans and for index rows without their entity.

    :raises BadRequestError: if the batch has more parts than Redis takes
    """
    places: dict[bytes, int] = {}
    arguments: list[bytes] = []
    base = layout.entity
    names: list[bytes] = []

    def place_of(key: bytes) -> int:
        place = places.get(key)
        if place is None:
            places[key] = place = len(places) + 1
            names.append(base + key.replace(b"\0", b"\0\xff"))
        return place

    fence = b"" if batch.fence is None else _check(place_of(batch.fence[0]), batch.fence[1])
    mortal = rare = False
    for commit in batch.commits:
        checks, spans, puts, deletes, index_puts, index_deletes = commit[:6]
        header = [_header(len(checks), len(spans), len(puts), len(deletes), len(index_puts), len(index_deletes))]
        rest: list[bytes] = []
        if spans or index_puts or index_deletes:
            rare = True
        header += [_check(place_of(key), version) for key, version in checks]
        for span in spans:
            header.append(_span(span.space, span.count))
            rest += (b"[" + escape(span.lo), b"(" + escape(span.hi), span.digest or b"")
        for key, payload, rows, ttl_s in puts:
            place = place_of(key)
            ms = 0
            if ttl_s is not None:
                ms, mortal = max(1, round(min(ttl_s, _LONGEST_S) * 1000)), True
            header.append(_put(place, ms))
            rest.append(payload)
            rest.append(_pack_rows(rows, len(names[place - 1]) - len(base)))
        header += [_place(place_of(key)) for key in deletes]
        for row, tail in index_puts.items():
            length = tail & TAIL_KEY_MASK
            key = row[len(row) - length :]
            header.append(_place(place_of(key) if key else 0))
            rest += (escape(row), _pack_tail(tail >> _FLAGS_SHIFT, len(escape(key))))
        rest += map(escape, index_deletes)
        arguments.append(b"".join(header))
        arguments += rest
    if len(arguments) + len(names) > _MAX_ARGUMENTS:
        raise BadRequestError("the commit has too many parts for Redis (a million): make several of it")
    return names, [fence, *arguments], (b"x" if mortal else b"") + (b"r" if rare else b"")
