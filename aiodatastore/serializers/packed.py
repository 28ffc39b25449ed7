"""The default payload: msgpack."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import msgspec

from aiodatastore.entity import Entity
from aiodatastore.errors import CorruptDataError
from aiodatastore.indexing.encoding import decode_key, encode_key
from aiodatastore.key import Key
from aiodatastore.serializers.base import FORMATS, MSGPACK, Reading, Serializer
from aiodatastore.values import Blob, GeoPoint, Text

__all__ = ["MsgpackSerializer", "load_all", "load_msgpack"]


_PLAIN = frozenset((type(None), bool, int, float, str, bytes, datetime))

_EXT_KEY, _EXT_POINT, _EXT_ENTITY, _EXT_TEXT, _EXT_BLOB = 1, 2, 3, 4, 5

_encode = msgspec.msgpack.Encoder().encode
Ext = msgspec.msgpack.Ext


def _to_plain(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    convert = _CONVERTERS.get(kind)
    if convert is None:
        raise TypeError(f"can't store a value of type {kind.__name__}")
    return convert(value)


def _entity_to_plain(entity: Entity) -> Ext:
    key = encode_embedded_key(entity.key)
    return Ext(_EXT_ENTITY, _encode([key, _dict_to_plain(entity), sorted(entity.unindexed)]))


def _dict_to_plain(mapping: dict[str, Any]) -> dict[str, Any]:
    return {name: value if type(value) in _PLAIN else _to_plain(value) for name, value in mapping.items()}


def encode_embedded_key(key: Key) -> list[Any]:
    """An embedded entity's key, which may be incomplete: project, namespace and flat path."""
    return [key.project, key.namespace, *[part for pair in key.pairs for part in pair]]


def _decode_embedded_key(parts: list[Any]) -> Key:
    return Key._make(parts[0], parts[1], tuple(zip(parts[2::2], parts[3::2], strict=True)))


_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    list: lambda value: [item if type(item) in _PLAIN else _to_plain(item) for item in value],
    dict: _dict_to_plain,
    Entity: _entity_to_plain,
    Key: lambda value: Ext(_EXT_KEY, encode_key(value)),
    GeoPoint: lambda value: Ext(_EXT_POINT, _encode([value.latitude, value.longitude])),
    Text: lambda value: Ext(_EXT_TEXT, str.encode(value)),
    Blob: lambda value: Ext(_EXT_BLOB, bytes(value)),
}


def _from_ext(code: int, data: memoryview) -> Any:
    raw = bytes(data)
    if code == _EXT_KEY:
        return decode_key(raw)
    if code == _EXT_POINT:
        return GeoPoint(*_decode(raw))
    if code == _EXT_TEXT:
        return Text(raw.decode())
    if code == _EXT_BLOB:
        return Blob(raw)
    if code == _EXT_ENTITY:
        key, properties, unindexed = _decode(raw)
        return Entity._make(_decode_embedded_key(key), properties, frozenset(unindexed), 0)
    raise ValueError(f"unknown extension {code}")


_decode = msgspec.msgpack.Decoder(ext_hook=_from_ext).decode
_NOTHING: frozenset[str] = frozenset()
_FORMAT = MSGPACK[0]


class MsgpackSerializer(Reading):
    """The default: ``01``, then msgpack of ``[properties]`` or ``[properties, unindexed names]``.

    Extension types: 1 key (its encoding), 2 point, 3 embedded entity, 4 ``Text``, 5 ``Blob``; -1 is msgpack's
    own timestamp. About a microsecond for a small entity in each direction.
    """

    name = "msgpack"

    def dumps(self, entity: Entity) -> bytes:
        """The payload of an entity."""
        body: list[Any] = [_dict_to_plain(entity)]
        if entity.unindexed:
            body.append(sorted(entity.unindexed))
        return b"\x01" + _encode(body)

    def loads(self, key: Key, payload: bytes, version: int) -> Entity:
        """The entity of a payload."""
        if not payload or payload[0] != _FORMAT:
            return self.load_any(key, payload, version)
        try:  # as load_msgpack, without the call
            body = _decode(payload[1:])  # copying a usual payload takes less than making a view of it
            return Entity._make(key, body[0], frozenset(body[1]) if len(body) > 1 else _NOTHING, version)
        except Exception as exc:  # what damaged bytes come to is not foreseeable: wrong types, a point nowhere
            raise CorruptDataError(f"the stored payload of {key!r} can't be read: {exc}") from exc


def load_msgpack(key: Key, payload: bytes, version: int) -> Entity:
    """The entity of a payload that begins with ``01``. Raises whatever damaged bytes come to."""
    body = _decode(payload[1:])
    return Entity._make(key, body[0], frozenset(body[1]) if len(body) > 1 else _NOTHING, version)


FORMATS[MSGPACK] = load_msgpack


def load_all(serializer: Serializer, found: Iterable[tuple[Key, bytes, int]]) -> list[Entity]:
    """The entities of keys, payloads and versions: what ``loads`` of the serializer gives for each.

    For pages of results, where it is the usual one: a fifth less than that many calls take.
    """
    loads = serializer.loads
    if type(serializer) is not MsgpackSerializer:
        return [loads(key, payload, version) for key, payload, version in found]
    decode, make, nothing = _decode, Entity._make, _NOTHING
    entities: list[Entity] = []
    add = entities.append
    for key, payload, version in found:
        try:
            if payload[0] == 1:
                body = decode(payload[1:])
                add(make(key, body[0], frozenset(body[1]) if len(body) > 1 else nothing, version))
                continue
        except Exception:
            pass  # the next line says what it is
        add(loads(key, payload, version))
    return entities
