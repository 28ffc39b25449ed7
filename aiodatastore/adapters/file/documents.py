"""Entities as documents: what the files hold."""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

import msgspec

from aiodatastore import jsonl
from aiodatastore.entity import Entity
from aiodatastore.errors import BadValueError, CorruptDataError, DatastoreError
from aiodatastore.indexing.encoding import decode_key, encode_key
from aiodatastore.key import Key
from aiodatastore.serializers import JSONSerializer, serializer_named
from aiodatastore.serializers.base import CUSTOM, MSGPACK, STEP
from aiodatastore.serializers.documents import load_json

__all__ = ["Documents", "JSONDocuments", "MixedSerializer"]

_decode = msgspec.json.Decoder().decode
_BINARY: Final = frozenset({MSGPACK, STEP, CUSTOM})
"""First bytes of what is no JSON, which may begin with blanks where people wrote it."""
_EXTENSIONS: Final = {"json": ".json", "pretty": ".json", "msgpack": ".msgpack"}


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


class JSONDocuments(JSONSerializer):
    """JSON (see :class:`~aiodatastore.serializers.JSONSerializer`) that names its key, for files whose names had to be
    cut, and that people may have written."""

    names_keys = True
    extension = ".json"

    def __init__(self, *, pretty: bool = True) -> None:
        super().__init__(pretty=pretty)

    def loads(self, key: Key, payload: bytes, version: int) -> Entity:
        """The entity of a document."""
        try:
            return load_json(key, payload, version)
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
    """Writes what a name says (``json`` is indented here), and reads all that this package writes.

    Only JSON names its keys; what is compressed does not.
    """

    def __init__(self, writes: str) -> None:
        serializer = serializer_named(writes, indented=True)
        self._json = JSONDocuments()
        self._serializer = serializer
        self.name = serializer.name
        self.reads = serializer.reads
        self.names_keys = isinstance(serializer, JSONSerializer)
        self.extension = _EXTENSIONS.get(self.name, ".zst")
        self.dumps = serializer.dumps

    def loads(self, key: Key, payload: bytes, version: int) -> Entity:
        """The entity of a payload."""
        if payload[:1] in _BINARY:
            return self._serializer.loads(key, payload, version)
        return self._json.loads(key, payload, version)

    def key_of(self, payload: bytes) -> bytes | None:
        """The encoded key that a payload names; only JSON does."""
        return None if payload[:1] in _BINARY else self._json.key_of(payload)

    def check(self, payload: bytes, key: bytes) -> None:
        """Whether a payload that people may have written can be stored."""
        if payload[:1] not in _BINARY:
            return self._json.check(payload, key)
        try:
            self._serializer.loads(decode_key(key), payload, 0).validate()
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
