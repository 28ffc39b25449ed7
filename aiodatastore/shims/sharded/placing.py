"""Which shard an entity group belongs to: rendezvous hashing.

Every shard's name is mixed with a hash of the group (the root key with its partition), and the shard where that comes
out greatest has the group (https://en.wikipedia.org/wiki/Rendezvous_hashing). Names decide, not the order in which
shards are given. Of *n* shards each has about one *n*-th of the groups; one that is added takes its share evenly from
all others, and nothing else moves; what one had that is removed goes evenly to those that stay.

The hash is part of what is stored (``rendezvous-1``): BLAKE2b of the group's bytes and of each name, 8 bytes each,
mixed by multiplications modulo 2**64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

from aiodatastore.errors import BadArgumentError
from aiodatastore.indexing.encoding import encode_key
from aiodatastore.key import Key

__all__ = ["HASH", "By", "Placing"]

HASH = "rendezvous-1"

By = Callable[[Key], str | bytes | int]

_MASK = (1 << 64) - 1
_REMEMBERED = 1 << 16


class Placing:
    """Shards by name, and which of them has a group. ``by`` gives, for a root key, what the group is placed by.

    >>> placing = Placing(["a", "b", "c"])
    >>> [placing.number(Key("Person", name)) for name in ("ada", "bob", "eve")]
    [1, 0, 0]
    >>> placing.number(Key("Person", "ada", "Task", 1)) == placing.number(Key("Person", "ada"))
    True
    """

    def __init__(self, names: Sequence[str], by: By | None = None) -> None:
        self.names = tuple(names)
        self._by = by
        self._seeds = [_hash(name.encode()) for name in names]
        # One that is called for each key of each call: a group's place is remembered.
        self._of_root = lru_cache(maxsize=_REMEMBERED)(self._compute)

    def number(self, key: Key) -> int:
        """The number of the shard that a key's entity belongs to."""
        return self._of_root(key._project, key._namespace, key._pairs[0])

    def _compute(self, project: str, namespace: str, pair: tuple[str, int | str | None]) -> int:
        if len(self._seeds) == 1:
            return 0
        root = Key._make(project, namespace, (pair,))
        group = _hash(encode_key(root) if self._by is None else _bytes(self._by(root)))
        scores = [_mixed(group ^ seed) for seed in self._seeds]
        return scores.index(max(scores))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"rendezvous").digest(), "big")


def _mixed(value: int) -> int:
    value = (value ^ (value >> 32)) * 0xD6E8FEB86659FD93 & _MASK
    value = (value ^ (value >> 32)) * 0xD6E8FEB86659FD93 & _MASK
    return value ^ (value >> 32)


def _bytes(value: str | bytes | int) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    if type(value) is int:
        return b"%d" % value
    raise BadArgumentError(f"by: expected a function that gives str, bytes or int for a root key, got {value!r:.80}")
