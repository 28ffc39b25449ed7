"""The metadata kinds ``__namespace__``, ``__kind__`` and ``__property__``, answered from the indexes.

As in App Engine (https://cloud.google.com/appengine/docs/legacy/standard/python/datastore/metadataqueries), keys
are ``__namespace__`` with the namespace as name (id 1 for the empty one), ``__kind__`` with the kind as name, and
``__property__`` with the property as name below its kind. A ``__property__`` entity has
``property_representation``: the types that its indexed values have. The indexes are skipped through: cost is a
seek for each namespace, kind or property, however many entities there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiodatastore.entity import Entity
from aiodatastore.indexing.encoding import (
    TAG_FALSE,
    TAG_FLOAT,
    TAG_KEY,
    TAG_NULL,
    TAG_POINT,
    TAG_TEXT,
    TAG_ZERO,
    decode_text,
    encode_partition,
    encode_text,
)
from aiodatastore.indexing.explain import Step
from aiodatastore.indexing.rows import property_prefix
from aiodatastore.indexing.scanning import Reader
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.rowstore import Space

__all__ = ["METADATA_KINDS", "kinds", "metadata_entities", "partitions"]

METADATA_KINDS = frozenset(("__namespace__", "__kind__", "__property__"))

_AFTER = b"\xff"
_TYPES = (
    (TAG_NULL, TAG_NULL, "NULL"),
    (TAG_ZERO - 8, TAG_ZERO + 8, "INT64"),
    (TAG_FALSE, TAG_FALSE + 1, "BOOLEAN"),
    (TAG_TEXT, TAG_TEXT, "STRING"),
    (TAG_FLOAT, TAG_FLOAT, "DOUBLE"),
    (TAG_POINT, TAG_POINT, "POINT"),
    (TAG_KEY, TAG_KEY, "REFERENCE"),
)


async def _texts(reader: Reader, step: Step, prefix: bytes, count: int = 1) -> AsyncIterator[tuple[str, ...]]:
    """The different texts that follow a prefix in the index space, ``count`` at a time."""
    lo = prefix
    while rows := await reader.scan(step, Space.INDEX, lo, prefix + _AFTER, 1, reverse=False, join=False):
        row = rows[0][0]
        end = len(prefix)
        found = []
        for _ in range(count):
            start, end = end, row.index(0, end) + 1
            found.append(decode_text(row[start : end - 1]))
        yield tuple(found)
        lo = row[:end] + _AFTER


async def partitions(reader: Reader, step: Step) -> list[tuple[str, str]]:
    """Every (project, namespace) with entities."""
    return [(project, namespace) async for project, namespace in _texts(reader, step, b"\x01", 2)]


async def kinds(reader: Reader, step: Step, project: str, namespace: str) -> list[str]:
    """The kinds of a partition, sorted."""
    prefix = b"\x01" + encode_partition(project, namespace)
    return [kind async for (kind,) in _texts(reader, step, prefix)]


async def metadata_entities(reader: Reader, step: Step, query: Query) -> list[Entity]:
    """All entities of a metadata kind in the query's partition (namespaces: of its project)."""
    project, namespace = query.project_id, query.namespace
    nothing: frozenset[str] = frozenset()
    if query.kind == "__namespace__":
        return [
            Entity._make(Key._make(project, namespace, (("__namespace__", name or 1),)), {}, nothing, 0)
            for owner, name in await partitions(reader, step)
            if owner == project
        ]
    found = await kinds(reader, step, project, namespace)
    if query.kind == "__kind__":
        return [Entity._make(Key._make(project, namespace, (("__kind__", kind),)), {}, nothing, 0) for kind in found]
    entities = []
    for kind in found:
        prefix = b"\x02" + encode_partition(project, namespace) + encode_text(kind)
        async for (name,) in _texts(reader, step, prefix):
            own = property_prefix(project, namespace, kind, name)
            types = []
            for first, last, label in _TYPES:
                lo, hi = own + bytes((first,)), own + bytes((last + 1,))
                if await reader.scan(step, Space.INDEX, lo, hi, 1, reverse=False, join=False):
                    types.append(label)
            key = Key._make(project, namespace, (("__kind__", kind), ("__property__", name)))
            entities.append(Entity._make(key, {"property_representation": types}, nothing, 0))
    return entities
