"""Values as entities: what properties hold is searched, what they can't is packed beside them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from aiodatastore.entity import Entity
from aiodatastore.errors import BadValueError, DatastoreError
from aiodatastore.key import Key
from aiodatastore.values import INT64_MAX, INT64_MIN, MAX_INDEXED_BYTES, Blob, Text, validate_property

__all__ = ["VALUE", "from_entity", "stored_name", "to_entity"]

VALUE: Final = "~value"
"""The property of a value that is no dict: a name for filters and orders."""

_PACKED: Final = "~packed"
_PACKED_VALUE: Final = "~packed_value"
_MAX_NESTING: Final = 100
_MAX_SEARCHED: Final = 1000
"""Elements of one property that are searched: more are kept, unindexed."""
_MAX_ROWS: Final = 15_000


def to_entity(key: Key, value: Any) -> Entity:
    """The entity that keeps a value.

    :raises BadValueError: if it is of a type that can't be kept exactly
    """
    _check(value, "the value", 0)
    properties: dict[str, Any] = {}
    packed: list[tuple[int, str, Any]] = []
    if type(value) is dict:
        for place, (name, item) in enumerate(value.items()):
            stored, native = stored_name(name), _native(item)
            if _fits(stored, native):
                properties[stored] = native
            else:
                packed.append((place, name, item))
        if packed:
            properties[_PACKED] = Blob(_pack(packed))
    else:
        native = _native(value)
        if _fits(VALUE, native):
            properties[VALUE] = native
        else:
            properties[_PACKED_VALUE] = Blob(_pack(value))
    return Entity(key, properties, unindexed=_too_many(properties))


def from_entity(entity: Entity) -> Any:
    """The value that an entity keeps."""
    if VALUE in entity:
        return _plain(entity[VALUE])
    if _PACKED_VALUE in entity:
        return _unpack(entity[_PACKED_VALUE])
    items = [(name[1:] if name[0] == "~" else name, _plain(item)) for name, item in entity.items() if name != _PACKED]
    if _PACKED in entity:
        for place, name, item in _unpack(entity[_PACKED]):
            items.insert(place, (name, item))
    return dict(items)


def _check(value: Any, where: str, depth: int) -> None:
    kind = type(value)
    if kind is list or kind is dict:
        if depth >= _MAX_NESTING:
            raise BadValueError(f"{where[:80]}...: lists and dicts are nested more than {_MAX_NESTING} deep")
        for name, item in value.items() if kind is dict else enumerate(value):
            if kind is dict and type(name) is not str:
                raise BadValueError(f"{where}: expected names (str) in a dict, got {type(name).__name__} {name!r:.80}")
            _check(item, f"{where}[{name!r:.40}]", depth + 1)
    elif kind is datetime:
        if value.utcoffset() is None:
            raise BadValueError(f"{where}: expected an aware datetime, got the naive {value!r}")
    elif kind not in _SCALARS:
        raise BadValueError(
            f"{where}: expected None, bool, int, float, str, list, dict, bytes or an aware datetime, "
            f"got {kind.__qualname__} {value!r:.80}; what is not exactly of these would not come back as it is"
        )


_SCALARS: Final = frozenset((type(None), bool, int, float, str, bytes))


def stored_name(name: str) -> str:
    """The property that keeps the item of this name."""
    return f"~{name}" if not name or name[0] == "~" or _is_reserved(name) else name


def _is_reserved(name: str) -> bool:
    return len(name) >= 4 and name[:2] == "__" == name[-2:]


def _native(value: Any) -> Any:
    """A value as a property holds it: what is long is of the classes that are."""
    kind = type(value)
    if kind is str:
        return Text(value) if len(value) > MAX_INDEXED_BYTES // 4 and _bytes(value) > MAX_INDEXED_BYTES else value
    if kind is bytes:
        return Blob(value) if len(value) > MAX_INDEXED_BYTES else value
    if kind is list:
        return [_native(item) for item in value]
    if kind is dict:
        return {name: _native(item) for name, item in value.items()}
    return value


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _fits(name: str, value: Any) -> bool:
    """Whether a property of this name can hold the value."""
    try:
        validate_property(name, value, indexed=True)
    except DatastoreError:
        return False
    return True


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is Text:
        return str(value)
    if kind is Blob:
        return bytes(value)
    if kind is list:
        return [_plain(item) for item in value]
    if kind is dict:
        return {name: _plain(item) for name, item in value.items()}
    return value


def _too_many(properties: Mapping[str, Any]) -> list[str]:
    """The properties that have too many elements to be searched."""
    counts = sorted((_elements(value), name) for name, value in properties.items())
    total, unindexed = 0, []
    for count, name in counts:
        total += count
        if count > _MAX_SEARCHED or total > _MAX_ROWS:
            unindexed.append(name)
    return unindexed


def _elements(value: Any) -> int:
    if type(value) is list:
        return sum(map(_elements, value))
    return 1 + sum(map(_elements, value.values())) if type(value) is dict else 1


# Packed values are msgpack with two extensions: 1 an integer beyond 64 bits, 2 a str that is not Unicode, and 3 a dict
# with a name of these.


def _pack(value: Any) -> bytes:
    import msgspec

    return msgspec.msgpack.encode(_packable(value))


def _packable(value: Any) -> Any:
    import msgspec

    kind = type(value)
    if kind is int and not INT64_MIN <= value <= INT64_MAX:
        return msgspec.msgpack.Ext(1, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if kind is str and not value.isascii() and _has_surrogates(value):
        return msgspec.msgpack.Ext(2, value.encode("utf-8", "surrogatepass"))
    if kind is list or kind is tuple:
        return [_packable(item) for item in value]
    if kind is dict:
        if any(not name.isascii() and _has_surrogates(name) for name in value):
            return msgspec.msgpack.Ext(3, _pack([[name, item] for name, item in value.items()]))
        return {name: _packable(item) for name, item in value.items()}
    return value


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _unpack(data: bytes) -> Any:
    import msgspec

    return msgspec.msgpack.decode(data, ext_hook=_from_ext)


def _from_ext(code: int, data: memoryview) -> Any:
    raw = bytes(data)
    if code == 1:
        return int.from_bytes(raw, "big", signed=True)
    return raw.decode("utf-8", "surrogatepass") if code == 2 else dict(_unpack(raw))
