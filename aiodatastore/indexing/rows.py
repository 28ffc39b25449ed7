"""The index rows of an entity: stored format, version 1.

=========  ==============================================================================================
index      row
=========  ==============================================================================================
kind       ``01``, partition, kind, key
property   ``02``, partition, kind, property, value, key: one for each distinct indexed value
composite  ``03``, number (4 bytes), partition, [ancestor key ``00``,] components, key: one for each
           combination (and each ancestor, the entity itself included); descending components inverted
=========  ==============================================================================================

Kind, property and partition are encoded texts. The integer ``tail`` beside a row has the length of its key
(bits 0–19), whether the entity has several rows in this index (bit 20), and for each component, from bit 21
on, whether it is the rarer of two types that share an encoding (datetime, not int; bytes, not str).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiodatastore.entity import Entity
from aiodatastore.errors import BadRequestError
from aiodatastore.indexing.encoding import (
    ENCODERS,
    encode_key,
    encode_partition,
    encode_text,
    encode_value,
    invert,
)
from aiodatastore.key import Key
from aiodatastore.rowstore import TAIL_MULTI
from aiodatastore.values import Blob, GeoPoint, Text

if TYPE_CHECKING:
    from aiodatastore.indexing.definitions import IndexDefinition

__all__ = [
    "ALTERNATE_SHIFT",
    "COMPOSITE_TAG",
    "MAX_INDEX_ROWS",
    "SYSTEM",
    "CompositeIndex",
    "IndexedValues",
    "check_row_count",
    "entity_rows",
    "composite_prefix",
    "composite_rows",
    "index_rows",
    "indexed_values",
    "kind_prefix",
    "property_prefix",
    "stored_rows",
]

MAX_INDEX_ROWS = 20_000
ALTERNATE_SHIFT = 21

COMPOSITE_TAG = 0x03
SYSTEM = b"\xff"
"""What keys of the store's own records begin with: after every key, as no text begins so."""

IndexedValues = dict[str, dict[bytes, bool]]
"""Property → encoded value → whether it is the rarer type of its encoding; in order of appearance."""


@dataclass(frozen=True, slots=True)
class CompositeIndex:
    """A composite index that writes maintain, or that queries may use.

    ``properties`` are the definition's up to ``__key__``: every row ends in its key anyway, and is read in both
    directions of it.
    """

    number: int
    definition: IndexDefinition
    properties: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        stored = itertools.takewhile(lambda column: column[0] != "__key__", self.definition.properties)
        object.__setattr__(self, "properties", tuple(stored))

    @property
    def prefix(self) -> bytes:
        """What its rows of every partition begin with."""
        return bytes((COMPOSITE_TAG,)) + self.number.to_bytes(4, "big")


@lru_cache(maxsize=4096)
def kind_prefix(project: str, namespace: str, kind: str) -> bytes:
    """What the kind index's rows begin with."""
    return b"\x01" + encode_partition(project, namespace) + encode_text(kind)


def property_prefix(project: str, namespace: str, kind: str, name: str) -> bytes:
    """What a property index's rows begin with."""
    return _prefixes_of(project, namespace, kind)[name]


def composite_prefix(index: CompositeIndex, project: str, namespace: str, ancestor: Key | None = None) -> bytes:
    """What a composite index's rows (of an ancestor) begin with."""
    prefix = index.prefix + encode_partition(project, namespace)
    return prefix if ancestor is None else prefix + encode_key(ancestor) + b"\x00"


class _Prefixes(dict[str, bytes]):
    """The property prefixes of one kind, made as they are met."""

    __slots__ = ("_kind",)

    def __init__(self, project: str, namespace: str, kind: str) -> None:
        super().__init__()
        self._kind = b"\x02" + encode_partition(project, namespace) + encode_text(kind)

    def __missing__(self, name: str) -> bytes:
        prefix = self._kind + encode_text(name)
        if len(self) < 1000:  # kinds whose properties are data must not fill memory
            self[name] = prefix
        return prefix


_prefixes_of = lru_cache(maxsize=1024)(_Prefixes)

_PLAIN = frozenset((type(None), bool, int, float, str, GeoPoint, Key))


def indexed_values(entity: Entity) -> IndexedValues:
    """What the indexes know of an entity.

    An empty list counts as null; ``Text``, ``Blob`` and unindexed properties have no values; the properties of
    an embedded entity appear under dotted names, which ``unindexed`` may name as well.
    """
    values: IndexedValues = {}
    unindexed = entity.unindexed
    for name, value in entity.items():
        if name in unindexed:
            continue
        kind = type(value)
        if name in values:  # as dotted names of an embedded entity may be
            _collect(values, name, value, unindexed)
        elif kind in _PLAIN:
            values[name] = {ENCODERS[kind](value): False}
        elif kind is list and value and _PLAIN.issuperset(map(type, value)):
            if len(set(map(type, value))) == 1:  # nearly always
                values[name] = dict.fromkeys(map(ENCODERS[type(value[0])], value), False)
            else:
                values[name] = {ENCODERS[type(element)](element): False for element in value}
        else:
            _collect(values, name, value, unindexed)
    return values


def _collect(values: IndexedValues, name: str, value: Any, unindexed: frozenset[str]) -> None:
    kind = type(value)
    if kind is Text or kind is Blob:
        return
    if kind is list:
        if not value:
            values.setdefault(name, {}).setdefault(encode_value(None), False)
        for element in value:
            _collect(values, name, element, unindexed)
    elif kind is dict or kind is Entity:
        own = value.unindexed if kind is Entity else ()
        for child, element in value.items():
            dotted = f"{name}.{child}"
            if child not in own and dotted not in unindexed:
                _collect(values, dotted, element, unindexed)
    else:
        values.setdefault(name, {}).setdefault(encode_value(value), kind is datetime or kind is bytes)


def entity_rows(entity: Entity, composites: Sequence[CompositeIndex] = ()) -> dict[bytes, int]:
    """:func:`index_rows` of an entity: in one pass where its values are plain ones and lists of them.

    :raises BadRequestError: if there would be more than :data:`MAX_INDEX_ROWS`, naming the properties
    """
    key = entity.key
    if composites:
        return index_rows(key, indexed_values(entity), composites)
    encoded = key._encoded or encode_key(key)
    length = len(encoded)
    project, namespace, kind = key.project, key.namespace, key.kind
    rows = {kind_prefix(project, namespace, kind) + encoded: length}
    prefixes = _prefixes_of(project, namespace, kind)
    unindexed = entity.unindexed
    for name, value in entity.items():
        if name in unindexed:
            continue
        value_type = type(value)
        if value_type in _PLAIN:
            rows[prefixes[name] + ENCODERS[value_type](value) + encoded] = length
        elif value_type is datetime or value_type is bytes:
            rows[prefixes[name] + ENCODERS[value_type](value) + encoded] = length | 1 << ALTERNATE_SHIFT
        elif value_type is list and value and _PLAIN.issuperset(map(type, value)):
            found = {ENCODERS[type(element)](element) for element in value}
            prefix = prefixes[name]
            tail = length | TAIL_MULTI if len(found) > 1 else length
            for encoded_value in found:
                rows[prefix + encoded_value + encoded] = tail
        else:
            return index_rows(key, indexed_values(entity))
    if len(rows) > MAX_INDEX_ROWS:
        return index_rows(key, indexed_values(entity))  # which tells where they come from
    return rows


def index_rows(key: Key, values: IndexedValues, composites: Sequence[CompositeIndex] = ()) -> dict[bytes, int]:
    """Every index row of an entity: row → tail. ``composites`` are those of its kind.

    :raises BadRequestError: if there would be more than :data:`MAX_INDEX_ROWS`, naming the properties
    """
    encoded = encode_key(key)
    length = len(encoded)
    project, namespace, kind = key.project, key.namespace, key.kind
    rows = {kind_prefix(project, namespace, kind) + encoded: length}
    check_row_count(key, values, composites)
    prefixes = _prefixes_of(project, namespace, kind)
    for name, found in values.items():
        prefix = prefixes[name]
        if len(found) == 1:
            for value, alternate in found.items():
                rows[prefix + value + encoded] = length | 1 << ALTERNATE_SHIFT if alternate else length
        else:
            tail = length | TAIL_MULTI
            for value, alternate in found.items():
                rows[prefix + value + encoded] = tail | 1 << ALTERNATE_SHIFT if alternate else tail
    for index in composites:
        composite_rows(rows, index, key, encoded, values)
    return rows


def stored_rows(key: Key, values: IndexedValues, composites: Sequence[CompositeIndex] = ()) -> dict[bytes, int]:
    """The index rows that a stored entity has: never refused, or it could be neither changed nor deleted.

    Of an index that came after it and would need too many of its rows it has none: the build refused them.
    """
    try:
        return index_rows(key, values, composites)
    except BadRequestError:
        pass
    rows = index_rows(key, values)
    encoded = encode_key(key)
    for index in composites:
        try:
            check_row_count(key, values, (index,))
        except BadRequestError:
            continue
        composite_rows(rows, index, key, encoded, values)
    return rows


def composite_rows(
    rows: dict[bytes, int], index: CompositeIndex, key: Key, encoded: bytes, values: IndexedValues
) -> None:
    """Add an entity's rows of one composite index; none if it lacks one of the properties."""
    columns: list[list[tuple[bytes, int]]] = []
    for place, (name, direction) in enumerate(index.properties):
        found = values.get(name)
        if not found:
            return
        bit = 1 << (ALTERNATE_SHIFT + place)
        descending = direction == "desc"
        columns.append([(invert(v) if descending else v, bit if alternate else 0) for v, alternate in found.items()])
    combinations = [
        (b"".join([value for value, _ in combination]), sum([bit for _, bit in combination]))
        for combination in itertools.product(*columns)
    ]
    tail = len(encoded) | (TAIL_MULTI if len(combinations) > 1 else 0)
    owners: Iterable[Key | None] = _with_ancestors(key) if index.definition.ancestor else (None,)
    for owner in owners:
        prefix = composite_prefix(index, key.project, key.namespace, owner)
        for components, bits in combinations:
            rows[prefix + components + encoded] = tail | bits


def _with_ancestors(key: Key) -> Iterable[Key]:
    current: Key | None = key
    while current is not None:
        yield current
        current = current.parent


def check_row_count(key: Key, values: IndexedValues, composites: Sequence[CompositeIndex]) -> None:
    """Refuse an entity with too many index rows, before they are made.

    :raises BadRequestError: naming the properties at fault
    """
    total = sum(map(len, values.values()))
    if total <= MAX_INDEX_ROWS and not composites:
        return
    counts: dict[str, int] = {name: len(found) for name, found in values.items()}
    for index in composites:
        combinations = len(key.pairs) if index.definition.ancestor else 1
        for name, _ in index.properties:
            combinations *= len(values.get(name, ()))
        total += combinations
        if combinations > 1:
            counts["(" + ", ".join(name for name, _ in index.properties) + ")"] = combinations
    if total > MAX_INDEX_ROWS:
        worst = sorted(counts.items(), key=lambda item: -item[1])[:3]
        told = ", ".join(f"{name}: {count}" for name, count in worst)
        raise BadRequestError(
            f"{key!r} would have {total} index rows, at most {MAX_INDEX_ROWS} are allowed; most come from {told}. "
            "Shorten these lists or name the properties in `unindexed`"
        )
