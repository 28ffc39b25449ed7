"""Payloads that people can read: JSON."""

from __future__ import annotations

from typing import Final

import msgspec

from aiodatastore import jsonl
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.serializers.base import FORMATS, JSON, Reading

__all__ = ["JSONSerializer", "load_json"]

_decode = msgspec.json.Decoder().decode
_PLAIN: Final = frozenset((type(None), bool, int, str, float))
_NOTHING: Final[frozenset[str]] = frozenset()


class JSONSerializer(Reading):
    """Typed JSON, as in ``export``: ``{"key": ..., "properties": {...}, "unindexed": [...]}``.

    ``pretty``: a member a line, indented by two, for people and for ``diff``; else all on one line. The order of
    properties is the entity's own. What is read back is equal type by type. The key is there for people, and not read.

    >>> from aiodatastore import Entity, Key
    >>> JSONSerializer().dumps(Entity(Key("Country", "GB"), {"area": 242495.0}))
    b'{"key":"/Country:GB","properties":{"area":242495.0}}'
    """

    def __init__(self, *, pretty: bool = False) -> None:
        self._pretty = pretty
        self.name = "pretty" if pretty else "json"

    def dumps(self, entity: Entity) -> bytes:
        """The document of an entity."""
        line = jsonl.dump_entity(entity)
        return msgspec.json.format(line, indent=2) + b"\n" if self._pretty else line


def load_json(key: Key, payload: bytes, version: int) -> Entity:
    """The entity of a document. Raises whatever damaged bytes come to."""
    document = _decode(payload)
    properties = document["properties"]
    if not _PLAIN.issuperset(map(type, properties.values())):
        load = jsonl.load_value
        properties = {name: value if type(value) in _PLAIN else load(value, name) for name, value in properties.items()}
    unindexed = document.get("unindexed")
    return Entity._make(key, properties, frozenset(unindexed) if unindexed else _NOTHING, version)


FORMATS[JSON] = load_json
