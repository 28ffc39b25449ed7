"""The JSON of a corpus as this package's values, and values in index normal form.

Index normal form is written here from the description in the corpus's README and shares no code with the
engine, so that a store can't pass by agreeing with itself.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import enum
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.values import Blob, GeoPoint, Text

__all__ = [
    "UnreadableError",
    "canonical",
    "decode_argument",
    "decode_entity",
    "decode_key",
    "decode_value",
    "identical",
    "index_form",
    "key_form",
    "key_json",
    "path_json",
    "same_entity",
    "same_value",
    "show",
    "unindexed_names",
]

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)


class UnreadableError(Exception):
    """A corpus holds what its format does not describe."""


class _StrSubclass(str):
    pass


class _IntEnum(enum.IntEnum):
    ONE = 1


# ----------------------------------------------------------------------------------------- to values


def decode_value(data: Any, *, project: str = "") -> Any:
    """A property value, or a Python object that is none (``invalid``)."""
    if isinstance(data, list):
        return [decode_value(item, project=project) for item in data]
    if not isinstance(data, dict):
        return data
    if "invalid" in data:
        return _invalid(data, project)
    if len(data) != 1:
        raise UnreadableError(f"no value: {data!r}")
    ((tag, content),) = data.items()
    if tag == "key":
        return decode_key(content, project=project)
    decoder = _TAGS.get(tag)
    if decoder is None:
        raise UnreadableError(f"no value: {data!r}")
    return decoder(content)


def _repeat(content: Any) -> Any:
    unit, times = content
    return unit * times


def _raw(content: Any) -> bytes:
    if isinstance(content, dict):
        text: str = _repeat(content["repeat"])
        return text.encode()
    return base64.b64decode(content, validate=True)


def _datetime(content: str) -> dt.datetime:
    return dt.datetime.fromisoformat(content).replace(tzinfo=dt.UTC)


def _text(content: Any) -> Text:
    return Text(_repeat(content["repeat"]) if isinstance(content, dict) else content)


_TAGS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "bytes": _raw,
    "datetime": _datetime,
    "datetime_tz": dt.datetime.fromisoformat,
    "geo": lambda pair: GeoPoint(float(pair[0]), float(pair[1])),
    "text": _text,
    "blob": lambda content: Blob(_raw(content)),
    "repeat": _repeat,
    "range": lambda bounds: list(range(*bounds)),
}


def _invalid(data: Mapping[str, Any], project: str) -> Any:
    what = data["invalid"]
    if what == "plain_bytes":
        return base64.b64decode(data["v"], validate=True)
    items = [decode_value(item, project=project) for item in data.get("items", ())]
    make = _INVALID.get(what)
    if make is None:
        raise UnreadableError(f"no object: {data!r}")
    return make(items)


_INVALID: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": lambda items: {"a": items},
    "object": lambda items: object(),
    "complex": lambda items: complex(1, 2),
    "decimal": lambda items: decimal.Decimal("1.5"),
    "date": lambda items: dt.date(2020, 1, 1),
    "time": lambda items: dt.time(12, 30),
    "timedelta": lambda items: dt.timedelta(1),
    "bytearray": lambda items: bytearray(b"x"),
    "str_subclass": lambda items: _StrSubclass("x"),
    "int_enum": lambda items: _IntEnum.ONE,
    "entity": lambda items: Entity(Key("Embedded", 1)),
    "range": lambda items: range(3),
    "generator": lambda items: (item for item in items),
}


def decode_key(data: Mapping[str, Any], *, project: str = "") -> Key:
    """A KEY; null at its end makes it incomplete."""
    return Key(*data["path"], namespace=data.get("ns", ""), project=project)


def decode_entity(data: Mapping[str, Any], *, project: str = "") -> Entity:
    """An ENTITY. (A bare KEY, as in ``{"entity": KEY}``, is an entity without properties.)"""
    if "path" in data:
        return Entity(decode_key(data, project=project))
    properties = {name: decode_value(value, project=project) for name, value in data["props"].items()}
    return Entity(decode_key(data["key"], project=project), properties, unindexed=data.get("unindexed", ()))


def decode_argument(data: Any, *, project: str = "") -> Any:
    """What is passed to a call: KEY, ``{"entity": …}``, ``{"key_string": KEY}``, sequences of them, or junk."""
    if isinstance(data, list):
        return [decode_argument(item, project=project) for item in data]
    if not isinstance(data, dict):
        return data
    if "path" in data:
        return decode_key(data, project=project)
    if "entity" in data:
        return decode_entity(data["entity"], project=project)
    if "key_string" in data:
        return decode_key(data["key_string"], project=project).to_urlsafe()
    if data.get("invalid") == "tuple":
        return tuple(decode_argument(item, project=project) for item in data.get("items", ()))
    return decode_value(data, project=project)


# ------------------------------------------------------------------------------------ to normal form


def index_form(value: Any) -> tuple[Any, ...]:
    """Index normal form of a single value, or of an empty list: comparable, equal where the index is equal."""
    form = _FORMS.get(type(value))
    if form is None:
        raise UnreadableError(f"not a single indexed value: {value!r}")
    return form(value)


def _float_form(value: float) -> int:
    """An integer in IEEE order, nan after everything."""
    if math.isnan(value):
        return 1 << 64
    bits: int = struct.unpack(">q", struct.pack(">d", value))[0]
    return bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF) - 1


def _list_form(value: list[Any]) -> tuple[Any, ...]:
    if value:
        raise UnreadableError(f"not a single indexed value: {value!r}")
    return (0,)


_FORMS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    type(None): lambda value: (0,),
    list: _list_form,
    int: lambda value: (1, value),
    dt.datetime: lambda value: (1, (value - EPOCH) // MICROSECOND),
    bool: lambda value: (2, value),
    bytes: lambda value: (3, value),
    str: lambda value: (3, value.encode()),
    float: lambda value: (4, _float_form(value)),
    GeoPoint: lambda value: (5, _float_form(value.latitude), _float_form(value.longitude)),
    Key: lambda value: (6, *key_form(value)),
}


def canonical(value: Any) -> Any:
    """A stored value as something that is equal only to the same class and content."""
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if isinstance(value, Text | Blob):
        return type(value).__name__, value[:]
    return type(value).__name__, index_form(value)


def key_form(key: Key) -> tuple[Any, ...]:
    """A key as a comparable tuple in the datastore's order, within a project."""
    elements = tuple((kind.encode(), *_element(ident)) for kind, ident in key.pairs)
    return key.namespace.encode(), elements


def _element(ident: int | str | None) -> tuple[int, Any]:
    if ident is None:
        return 0, 0
    return (1, ident) if isinstance(ident, int) else (2, ident.encode())


# -------------------------------------------------------------------------------- comparing with JSON


def same_value(expected: Any, actual: Any, *, project: str = "") -> bool:
    """Whether a stored value is what a record expects: same class, same content, same order.

    Understands the abbreviations of ``expect``: ``{"length": n}`` for a long list or string.
    """
    if isinstance(expected, dict) and len(expected) == 1:
        ((tag, content),) = expected.items()
        if tag == "length":
            return isinstance(actual, list | str | bytes) and len(actual) == content
        if isinstance(content, dict) and "length" in content:
            is_kind = type(actual).__name__ == {"text": "Text", "blob": "Blob"}.get(tag, tag)
            return is_kind and len(actual) == content["length"]
    if isinstance(expected, list):
        return (
            type(actual) is list
            and len(actual) == len(expected)
            and all(same_value(e, a, project=project) for e, a in zip(expected, actual, strict=True))
        )
    return identical(decode_value(expected, project=project), actual)


def identical(a: Any, b: Any) -> bool:
    """Whether two values are of the same class and content, nan and -0.0 and time zones included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dt.datetime):
        return bool(a == b) and a.utcoffset() == b.utcoffset()
    if isinstance(a, float | GeoPoint):
        return index_form(a) == index_form(b)
    return bool(a == b)


def same_entity(a: Entity, b: Entity) -> bool:
    """Whether two entities have the same key, the same properties to the letter, and index the same of them."""
    return (
        a.key == b.key
        and a.keys() == b.keys()
        and all(identical(value, b[name]) for name, value in a.items())
        and unindexed_names(a) == unindexed_names(b)
    )


def unindexed_names(entity: Entity) -> set[str]:
    """The properties that have something which is in no index."""
    return {
        name
        for name, value in entity.items()
        if name in entity.unindexed
        or any(isinstance(v, Text | Blob) for v in (value if isinstance(value, list) else [value]))
    }


def path_json(key: Key) -> list[Any]:
    """A key's path as a record has it."""
    path: list[Any] = []
    for kind, ident in key.pairs:
        path += (kind, ident)
    return path


def key_json(key: Key) -> dict[str, Any]:
    """A key as a record has it."""
    return {"path": path_json(key), **({"ns": key.namespace} if key.namespace else {})}


def show(value: object, limit: int = 300) -> str:
    """A value for a message, cut to a readable length."""
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
