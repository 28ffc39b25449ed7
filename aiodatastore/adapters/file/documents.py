"""Entities as documents: what the files hold."""

from __future__ import annotations

import json
from typing import Any, Protocol

import msgspec

from aiodatastore import jsonl
from aiodatastore.entity import Entity
from aiodatastore.errors import BadValueError, CorruptDataError, DatastoreError
from aiodatastore.indexing.encoding import decode_key, encode_key
from aiodatastore.key import Key
from aiodatastore.serializers import MsgpackSerializer

__all__ = ["Documents", "JSONSerializer", "MixedSerializer"]

_decode = msgspec.json.Decoder().decode
_PLAIN = frozenset((type(None), bool, int, str, float))
_NOTHING: frozenset[str] = frozenset()


class Documents(Protocol):
    """What a store knows of the payloads in its files, beyond their being bytes."""

    @property
    def names_keys(self) -> bool:
        """Whether what is written from now on names its key."""

    @property
    def extension(self) -> str:
        """What the files of a new store end with."""

    def key_of(self, payload: bytes) -> bytes | None:
        """The encoded key that a document names, None if it names none.

        :raises BadValueError: if it is no document
        """

    def check(self, payload: bytes, key: bytes) -> None:
        """Whether a document that people may have written can be stored.

        :raises BadValueError: if not; the message says where and what
        """


class JSONSerializer:
    """Typed JSON, as in ``export``: ``{"key": ..., "properties": {...}, "unindexed": [...]}``.

    ``pretty``: a member a line, indented by two, for people and for ``diff``; else all on one line. The order of
    properties is the entity's own. What is read back is equal type by type. The key is there for people, and for
    files whose names had to be cut.

    >>> from aiodatastore import Entity, Key
    >>> print(JSONSerializer().dumps(Entity(Key("Country", "GB"), {"area": 242495.0})).decode(), end="")
    {
      "key": "/Country:GB",
      "properties": {
        "area": 242495.0
      }
    }
    """

    names_keys = True
    extension = ".json"

    def __init__(self, *, pretty: bool = True) -> None:
        self._pretty = pretty

    def dumps(self, entity: Entity) -> bytes:
        """The document of an entity."""
        line = jsonl.dump_entity(entity)
        return msgspec.json.format(line, indent=2) + b"\n" if self._pretty else line

    def loads(self, key: Key, payload: bytes, version: int) -> Entity:
        """The entity of a document."""
        try:
            document = _decode(payload)
            properties = document["properties"]
            if not _PLAIN.issuperset(map(type, properties.values())):
                load = jsonl.load_value
                properties = {
                    name: value if type(value) in _PLAIN else load(value, name) for name, value in properties.items()
                }
            unindexed = document.get("unindexed")
            return Entity._make(key, properties, frozenset(unindexed) if unindexed else _NOTHING, version)
        except Exception as exc:  # what damaged bytes come to is not foreseeable
            raise CorruptDataError(f"the document of {key!r} can't be read: {exc}") from exc

    def key_of(self, payload: bytes) -> bytes | None:
        """The encoded key that a document names; it may leave it out where the path tells."""
        document = _document(payload)
        if "key" not in document:
            return None
        key = jsonl.load_entity({"key": document["key"], "properties": {}}).key
        if not key.is_complete:
            raise BadValueError(f"the key {document['key']!r} has neither id nor name at its end")
        return encode_key(key)

    def check(self, payload: bytes, key: bytes) -> None:
        """Whether a document that people may have written can be stored."""
        document = _document(payload)
        try:
            entity = jsonl.load_entity({"key": "/A:1", **document})
            entity.validate()
        except DatastoreError as exc:
            raise BadValueError(f"{_line_of(payload, document, str(exc))}{exc}") from exc


class MixedSerializer:
    """Writes ``json``, ``compact`` (JSON on one line) or ``msgpack``, and reads all three."""

    def __init__(self, writes: str) -> None:
        self._json = JSONSerializer(pretty=writes != "compact")
        self._msgpack = MsgpackSerializer()
        self.names_keys = writes != "msgpack"
        self.extension = ".json" if self.names_keys else ".msgpack"
        self.dumps = self._json.dumps if self.names_keys else self._msgpack.dumps

    def loads(self, key: Key, payload: bytes, version: int) -> Entity:
        """The entity of a payload."""
        if payload[:1] == b"\x01":
            return self._msgpack.loads(key, payload, version)
        return self._json.loads(key, payload, version)

    def key_of(self, payload: bytes) -> bytes | None:
        """The encoded key that a payload names; msgpack names none."""
        return None if payload[:1] == b"\x01" else self._json.key_of(payload)

    def check(self, payload: bytes, key: bytes) -> None:
        """Whether a payload that people may have written can be stored."""
        if payload[:1] != b"\x01":
            return self._json.check(payload, key)
        try:
            self._msgpack.loads(decode_key(key), payload, 0).validate()
        except DatastoreError as exc:
            raise BadValueError(str(exc)) from exc


def _document(payload: bytes) -> dict[str, Any]:
    try:
        document = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadValueError(_told(payload, str(exc))) from exc
    if not isinstance(document, dict):
        raise BadValueError("line 1: expected an object with the members key and properties")
    return document


def _told(payload: bytes, message: str) -> str:
    """Where in a document JSON is malformed: Python's own parser is slower, and tells."""
    try:
        json.loads(payload.decode())
    except json.JSONDecodeError as exc:
        return f"line {exc.lineno}, column {exc.colno}: {exc.msg}"
    except UnicodeDecodeError as exc:
        line = payload.count(b"\n", 0, exc.start) + 1
        return f"line {line}: not UTF-8"
    except (RecursionError, ValueError):
        pass
    return f"line 1: {message}"


def _line_of(payload: bytes, document: dict[str, Any], message: str) -> str:
    """``line 7: `` of the property that a message names, if it is found."""
    properties = document.get("properties")
    for name in properties if isinstance(properties, dict) else ():
        if message.startswith((f"{name}:", f"{name}.")) or repr(name) in message:
            at = payload.find(msgspec.json.encode(name) + b":")
            if at >= 0:
                line = payload.count(b"\n", 0, at) + 1
                return f"line {line}: "
    return ""
