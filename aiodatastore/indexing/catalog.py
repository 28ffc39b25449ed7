"""The composite indexes of a store: one record, which every batch of writes is fenced by.

Writers maintain every index in the catalog. A batch carries the catalog's version it was prepared with, and the
store refuses it if another process has changed the catalog since, so that no entity is ever written without the
rows of an index that is being built elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import msgspec

from aiodatastore.errors import BadArgumentError, CorruptDataError
from aiodatastore.indexing.definitions import IndexDefinition, IndexInfo, IndexState
from aiodatastore.indexing.rows import SYSTEM, CompositeIndex
from aiodatastore.rowstore import Record

__all__ = ["CATALOG_KEY", "REMOVING", "Catalog", "CatalogEntry"]

CATALOG_KEY = SYSTEM + b"catalog"
REMOVING = b"\xff"
"""Where a build would go on, of a DELETING index whose rows are being removed: after the last row there can be."""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One index: its info, and after which row of the kind indexes a build goes on.

    A DELETING index is maintained until nobody can be using it any more; then its ``resume`` is :data:`REMOVING`.
    """

    info: IndexInfo
    resume: bytes = b""

    @property
    def is_maintained(self) -> bool:
        """Whether writers keep its rows."""
        return self.info.state is not IndexState.DELETING or self.resume != REMOVING

    @property
    def index(self) -> CompositeIndex:
        """For making rows and plans."""
        return CompositeIndex(self.info.number, self.info.definition)


@lru_cache(maxsize=1024)
def _shared(indexes: tuple[CompositeIndex, ...]) -> tuple[CompositeIndex, ...]:
    """The same for equal ones: stores that have the same indexes are told so at a glance."""
    return indexes


@dataclass(frozen=True, slots=True)
class Catalog:
    """All indexes as of one version of the record; immutable."""

    version: int = 0
    entries: tuple[CatalogEntry, ...] = ()
    next_number: int = 1
    maintained: dict[str, tuple[CompositeIndex, ...]] = field(default_factory=dict)
    serving: dict[str, tuple[CompositeIndex, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, version: int, entries: Iterable[CatalogEntry], next_number: int) -> Catalog:
        """A catalog with its lookup tables."""
        catalog = cls(version, tuple(entries), next_number)
        for entry in catalog.entries:
            kind = entry.info.definition.kind
            if entry.is_maintained:
                catalog.maintained[kind] = (*catalog.maintained.get(kind, ()), entry.index)
            if entry.info.state is IndexState.SERVING:
                catalog.serving[kind] = (*catalog.serving.get(kind, ()), entry.index)
        for kind, indexes in catalog.serving.items():
            catalog.serving[kind] = _shared(indexes)
        return catalog

    @classmethod
    def loads(cls, record: Record | None) -> Catalog:
        """The catalog of a stored record."""
        if record is None:
            return cls()
        try:
            next_number, rows = msgspec.msgpack.decode(record.payload)
            entries = [
                CatalogEntry(
                    IndexInfo(
                        number,
                        IndexDefinition(kind, tuple((name, way) for name, way in properties), ancestor),
                        IndexState(state),
                        message,
                        seen,
                    ),
                    resume,
                )
                for number, kind, properties, ancestor, state, message, seen, resume in rows
            ]
        except (ValueError, TypeError, msgspec.DecodeError, BadArgumentError) as exc:
            raise CorruptDataError(f"the store's index catalog can't be read: {exc}") from exc
        return cls.of(record.version, entries, next_number)

    def dumps(self) -> bytes:
        """The payload of the record."""
        rows = [
            [
                entry.info.number,
                entry.info.definition.kind,
                entry.info.definition.properties,
                entry.info.definition.ancestor,
                entry.info.state.value,
                entry.info.message,
                entry.info.seen,
                entry.resume,
            ]
            for entry in self.entries
        ]
        return msgspec.msgpack.encode([self.next_number, rows])

    @property
    def serving_numbers(self) -> frozenset[int]:
        """The numbers of the indexes that queries may use."""
        return frozenset(index.number for indexes in self.serving.values() for index in indexes)

    @property
    def maintained_numbers(self) -> frozenset[int]:
        """The numbers of the indexes whose rows are kept."""
        return frozenset(index.number for indexes in self.maintained.values() for index in indexes)

    def numbered(self, number: int) -> CatalogEntry | None:
        """The entry with a number."""
        return next((entry for entry in self.entries if entry.info.number == number), None)

    def find(self, definition: IndexDefinition) -> CatalogEntry | None:
        """The entry of a definition."""
        return next((entry for entry in self.entries if entry.info.definition == definition), None)

    def with_new(self, definition: IndexDefinition) -> Catalog:
        """With one more index, BUILDING."""
        info = IndexInfo(self.next_number, definition, IndexState.BUILDING)
        return Catalog.of(self.version, (*self.entries, CatalogEntry(info)), self.next_number + 1)

    def with_entry(self, entry: CatalogEntry) -> Catalog:
        """With one entry in place of that of the same number."""
        entries = [entry if entry.info.number == other.info.number else other for other in self.entries]
        return Catalog.of(self.version, entries, self.next_number)

    def with_state(self, entry: CatalogEntry, state: IndexState, message: str = "") -> Catalog:
        """With one index in another state."""
        return self.with_entry(replace(entry, info=replace(entry.info, state=state, message=message)))

    def removing(self, number: int) -> Catalog | None:
        """With a DELETING index that is maintained no longer; None where that is so."""
        entry = self.numbered(number)
        if entry is None or not entry.is_maintained:
            return None
        return self.with_entry(replace(entry, resume=REMOVING))

    def without(self, number: int) -> Catalog:
        """With one index less."""
        entries = [entry for entry in self.entries if entry.info.number != number]
        return Catalog.of(self.version, entries, self.next_number)
