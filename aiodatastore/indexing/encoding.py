"""Order-preserving bytes for keys and property values: stored format, version 1.

Byte order is the datastore's order (``memcmp``), every encoding is prefix-free, so components can be
concatenated and a descending component is simply inverted. The order itself is App Engine's:
null < int, datetime < bool < bytes, str < float < point < key.

===========  =====================================================================================
what         bytes
===========  =====================================================================================
text         UTF-8 (or the bytes), ``00`` → ``01 01``, ``01`` → ``01 02``, ended by ``00``
key          project text, namespace text, then an element each: kind text, id or name
id           ``n`` (1–8, its length), ``n`` bytes big-endian
name         ``10``, text
null         ``05``
int          ``14`` for 0; ``14+n``, n bytes; negative ``14-n``, n bytes of the complement
datetime     as the int of its microseconds since 1970-01-01 UTC
bool         ``20`` false, ``21`` true
str, bytes   ``30``, text
float        ``40``, 8 bytes: IEEE 754, sign bit flipped, negative ones inverted; one nan, after +inf
point        ``50``, latitude and longitude as floats
key value    ``60``, key, ``00``
===========  =====================================================================================

A key is a prefix of its descendants and of nothing else: they are the range from it to itself + ``ff``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from aiodatastore.errors import BadKeyError, BadValueError, CorruptDataError
from aiodatastore.key import Key
from aiodatastore.values import GeoPoint

__all__ = [
    "FORMAT_VERSION",
    "component_end",
    "decode_key",
    "decode_text",
    "decode_value",
    "encode_key",
    "encode_partition",
    "encode_text",
    "encode_value",
    "invert",
    "is_alternate",
    "key_end",
]

FORMAT_VERSION = 1

_INVERT = bytes(range(255, -1, -1))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FLOAT = struct.Struct(">d")
_FLOAT_PAIR = struct.Struct(">dd")
_UINT64 = struct.Struct(">Q")
_UINT64_PAIR = struct.Struct(">QQ")
_SIGN = 1 << 63
_ALL = (1 << 64) - 1
_NAN = b"\x40" + _UINT64.pack(0x7FF8000000000000 ^ _SIGN)

TAG_NULL = 0x05
TAG_ZERO = 0x14
TAG_FALSE, TAG_TRUE = 0x20, 0x21
TAG_TEXT = 0x30
TAG_FLOAT = 0x40
TAG_POINT = 0x50
TAG_KEY = 0x60
_NAME = 0x10


def invert(data: bytes) -> bytes:
    """Every byte complemented: turns the ascending order of prefix-free encodings around."""
    return data.translate(_INVERT)


def _escape(raw: bytes) -> bytes:
    if 1 in raw:  # asking for an int takes 30 ns, for bytes ten times as long: that tries an int first, and fails
        raw = raw.replace(b"\x01", b"\x01\x02")
    if 0 in raw:
        raw = raw.replace(b"\x00", b"\x01\x01")
    return raw + b"\x00"


def _unescape(data: bytes) -> bytes:
    if 1 in data:
        return data.replace(b"\x01\x01", b"\x00").replace(b"\x01\x02", b"\x01")
    return data


@lru_cache(maxsize=4096)
def encode_text(text: str) -> bytes:
    """A short text that repeats (kinds, property names, namespaces), encoded."""
    return _escape(text.encode())


@lru_cache(maxsize=4096)
def decode_text(data: bytes) -> str:
    """The text of an encoded one, without its end."""
    return _unescape(data).decode()


@lru_cache(maxsize=1024)
def encode_partition(project: str, namespace: str) -> bytes:
    """What every key of a project and namespace begins with."""
    return encode_text(project) + encode_text(namespace)


# --------------------------------------------------------------------------------------------- keys


_LENGTHS = [bytes((length,)) for length in range(9)]


def encode_key(key: Key) -> bytes:
    """The bytes of a complete key; remembered in the key.

    :raises BadKeyError: if the key is incomplete
    """
    encoded = key._encoded
    if encoded is None:
        parts = [encode_partition(key.project, key.namespace)]
        for kind, id_or_name in key.pairs:
            parts.append(encode_text(kind))
            if type(id_or_name) is int:
                length = (id_or_name.bit_length() + 7) >> 3
                parts.append(_LENGTHS[length] + id_or_name.to_bytes(length, "big"))
            elif id_or_name is None:
                raise BadKeyError(f"a complete key is needed, got {key!r}: put() completes it, or give it an id")
            else:
                parts.append(b"\x10" + _escape(id_or_name.encode()))  # type: ignore[union-attr]
        encoded = b"".join(parts)
        key._encoded = encoded
    return encoded


@lru_cache(maxsize=4096)
def decode_key(data: bytes) -> Key:
    """The key of these bytes. Keys are immutable: those decoded of late are given again.

    :raises CorruptDataError: if they are none
    """
    size = len(data)
    if data[:2] == b"\x00\x00" and size > 4:  # the default partition; one element is all most keys have
        end = data.find(0, 2)
        if end > 0 and data[end + 1] == size - end - 2 <= 8:
            pair = (decode_text(data[2:end]), int.from_bytes(data[end + 2 :], "big"))
            key = Key._make("", "", (pair,))
            key._encoded = data
            return key
    key, end = _decode_key(data, 0, size)
    if end != size:
        raise CorruptDataError(f"not an encoded key: {data[:80].hex()}")
    key._encoded = data
    return key


def _decode_key(data: bytes, pos: int, stop: int) -> tuple[Key, int]:
    """Decode until ``stop`` or a terminator ``00`` in place of a kind; the position after the elements."""
    try:
        end = data.index(0, pos)
        project = decode_text(data[pos:end]) if end > pos else ""
        pos = end + 1
        end = data.index(0, pos)
        namespace = decode_text(data[pos:end]) if end > pos else ""
        pos = end + 1
        pairs: list[tuple[str, int | str | None]] = []
        while pos < stop and data[pos]:
            end = data.index(0, pos)
            kind = decode_text(data[pos:end])
            length = data[end + 1]
            pos = end + 2
            if length == _NAME:
                end = data.index(0, pos)
                pairs.append((kind, _unescape(data[pos:end]).decode()))
                pos = end + 1
            elif 1 <= length <= 8:
                pairs.append((kind, int.from_bytes(data[pos : pos + length], "big")))
                pos += length
            else:
                raise ValueError(f"tag {length:#x}")
        if not pairs or pos > stop:
            raise ValueError("no path")
    except (ValueError, IndexError) as exc:
        raise CorruptDataError(f"not an encoded key: {data[:80].hex()} ({exc})") from exc
    return Key._make(project, namespace, tuple(pairs)), pos


# ------------------------------------------------------------------------------------------- values


_POSITIVE = [bytes((TAG_ZERO + length,)) for length in range(9)]


def _encode_int(value: int) -> bytes:
    if value > 0:
        length = (value.bit_length() + 7) >> 3
        return _POSITIVE[length] + value.to_bytes(length, "big")
    if value == 0:
        return b"\x14"
    value = -value
    length = (value.bit_length() + 7) >> 3
    return bytes((TAG_ZERO - length,)) + ((1 << (length << 3)) - 1 - value).to_bytes(length, "big")


def _encode_datetime(value: datetime) -> bytes:
    if value.tzinfo is None:
        raise BadValueError(f"datetimes must be aware, got {value!r}: add tzinfo=datetime.timezone.utc")
    delta = value - _EPOCH
    return _encode_int((delta.days * 86400 + delta.seconds) * 1000000 + delta.microseconds)


def _float_bits(value: float) -> bytes:
    bits: int = _UINT64.unpack(_FLOAT.pack(value))[0]
    return _UINT64.pack(bits ^ _ALL if bits & _SIGN else bits | _SIGN)


def _encode_float(value: float) -> bytes:
    if value != value:  # nan: one canonical encoding, so that it equals itself
        return _NAN
    return b"\x40" + _float_bits(value)


def _encode_str(value: str) -> bytes:
    raw = value.encode()
    if 0 in raw or 1 in raw:
        return b"\x30" + _escape(raw)
    return b"\x30%b\x00" % raw


def _encode_point(value: GeoPoint) -> bytes:
    latitude, longitude = _UINT64_PAIR.unpack(_FLOAT_PAIR.pack(value.latitude, value.longitude))
    return b"\x50" + _UINT64_PAIR.pack(
        latitude ^ _ALL if latitude & _SIGN else latitude | _SIGN,
        longitude ^ _ALL if longitude & _SIGN else longitude | _SIGN,
    )


ENCODERS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"\x05",
    bool: lambda value: b"\x21" if value else b"\x20",
    int: _encode_int,
    datetime: _encode_datetime,
    float: _encode_float,
    str: _encode_str,
    bytes: lambda value: b"\x30" + _escape(value),
    GeoPoint: _encode_point,
    Key: lambda value: b"\x60" + encode_key(value) + b"\x00",
}


def encode_value(value: Any) -> bytes:
    """The bytes of one indexable value (not a list, not an embedded entity).

    :raises BadValueError: if values of this type are not indexed
    """
    encoder = ENCODERS.get(type(value))
    if encoder is None:
        raise BadValueError(f"a value of type {type(value).__name__} has no place in an index: {value!r:.200}")
    return encoder(value)


def is_alternate(value: Any) -> bool:
    """Whether the value is the rarer of two types with one encoding: a datetime, not an int; bytes, not str."""
    kind = type(value)
    return kind is datetime or kind is bytes


def component_end(data: bytes, pos: int, *, inverted: bool = False) -> int:
    """Where the value that starts at ``pos`` ends.

    :raises CorruptDataError: if no value starts there
    """
    flip = 0xFF if inverted else 0
    try:
        tag = data[pos] ^ flip
        if tag == TAG_TEXT:
            return data.index(flip, pos) + 1
        if TAG_ZERO - 8 <= tag <= TAG_ZERO + 8:
            end = pos + 1 + abs(tag - TAG_ZERO)
        elif tag in (TAG_NULL, TAG_FALSE, TAG_TRUE):
            end = pos + 1
        elif tag == TAG_FLOAT:
            end = pos + 9
        elif tag == TAG_POINT:
            end = pos + 17
        elif tag == TAG_KEY:
            end = _key_end(data, pos + 1, flip)
        else:
            raise ValueError(f"tag {tag:#x}")
        if end > len(data):
            raise ValueError("cut short")
    except (ValueError, IndexError) as exc:
        raise CorruptDataError(f"no encoded value at {pos} of {data[:80].hex()}") from exc
    return end


def _key_end(data: bytes, pos: int, flip: int) -> int:
    end = data.index(flip, data.index(flip, pos) + 1) + 1
    while data[end] != flip:
        end = data.index(flip, end) + 1
        length = data[end] ^ flip
        end = data.index(flip, end + 1) + 1 if length == _NAME else end + 1 + length
    return end + 1


def key_end(data: bytes, pos: int, *, inverted: bool = False) -> int:
    """Where a key and its terminator ``00`` end.

    :raises CorruptDataError: if there is none
    """
    try:
        return _key_end(data, pos, 0xFF if inverted else 0)
    except (ValueError, IndexError) as exc:
        raise CorruptDataError(f"no encoded key at {pos} of {data[:80].hex()}") from exc


def decode_value(data: bytes, *, alternate: bool = False) -> Any:
    """The value of exactly these (not inverted) bytes; ``alternate`` as :func:`is_alternate` tells of it.

    :raises CorruptDataError: if they are no value
    """
    tag = data[0]
    if tag == TAG_TEXT:
        raw = _unescape(data[1:-1])
        return raw if alternate else raw.decode()
    if TAG_ZERO - 8 <= tag <= TAG_ZERO + 8:
        number = int.from_bytes(data[1:], "big")
        if tag < TAG_ZERO:
            number -= (1 << ((TAG_ZERO - tag) << 3)) - 1
        return _EPOCH + number * _MICROSECOND if alternate else number
    if tag == TAG_NULL:
        return None
    if tag in (TAG_FALSE, TAG_TRUE):
        return tag == TAG_TRUE
    if tag == TAG_FLOAT:
        return _decode_float(data[1:9])
    if tag == TAG_POINT:
        return GeoPoint(_decode_float(data[1:9]), _decode_float(data[9:17]))
    if tag == TAG_KEY:
        return decode_key(data[1:-1])
    raise CorruptDataError(f"not an encoded value: {data[:80].hex()}")


def _decode_float(data: bytes) -> float:
    bits: int = _UINT64.unpack(data)[0]
    value: float = _FLOAT.unpack(_UINT64.pack(bits ^ _SIGN if bits & _SIGN else bits ^ _ALL))[0]
    return value
