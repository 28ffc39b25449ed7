"""Entities as lines of JSON: the format of ``import`` and ``export``, version 1.

A file is UTF-8, one JSON object a line. An entity::

    {"key": "/Person:ada/Task:7", "properties": {"title": "Note G", "done": false}, "unindexed": ["title"]}

``key`` is the readable form (with ``project!namespace`` before the first slash, where set); if it ends with a
kind, the entity gets an id when it is imported. ``unindexed`` may be left out. A line with
``"projection": true`` is a row of a query's projection: to be read by others, never imported.

==============================  =======================================================================
value                           JSON
==============================  =======================================================================
None, bool, str, list           ``null``, ``true`` / ``false``, a string, an array
int                             a number without point and exponent
float                           a number with a point or an exponent: ``1.0`` is not ``1``
float that JSON has not         ``{"$float": "nan"}``, ``"inf"``, ``"-inf"``
aware datetime                  ``{"$datetime": "2020-02-29T12:34:56.789012Z"}`` (any offset is read)
bytes                           ``{"$bytes": "AAEC"}`` (base64)
Text, Blob                      ``{"$text": "..."}``, ``{"$blob": "AAEC"}``
GeoPoint                        ``{"$point": [51.5, -0.12]}`` (latitude, longitude)
Key                             ``{"$key": "/Person:ada"}``
embedded Entity                 ``{"$entity": {"key": ..., "properties": ..., "unindexed": [...]}}``
dict                            an object; if one of its names begins with ``$``: ``{"$dict": {...}}``
==============================  =======================================================================

An exported file begins with ``{"aiodatastore": 1, ...}``, which names the version and what was exported, and
ends with ``{"aiodatastore": 1, "end": true, "entities": n}``: without it the file was cut short. Neither is
needed to import a file, and exports may be concatenated. Blank lines are ignored.

Versions of entities are not part of it: the store that imports them gives its own.
"""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from aiodatastore.entity import Entity
from aiodatastore.errors import BadValueError, DatastoreError, FormatVersionError
from aiodatastore.key import MAX_PATH_ELEMENTS, Key
from aiodatastore.values import Blob, GeoPoint, Text

__all__ = [
    "MARK",
    "VERSION",
    "canonical",
    "dump_entity",
    "dump_value",
    "is_mark",
    "load_entity",
    "load_line",
    "load_value",
]

VERSION: Final = 1
MARK: Final = "aiodatastore"
"""The member that tells a file's first and last line from entities."""

_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder().decode


# ---------------------------------------------------------------------------------------- writing


def dump_entity(entity: Entity) -> bytes:
    """The line of an entity, without the line's end. What :func:`load_line` reads is equal, type by type."""
    return _encode(_entity(entity))


def canonical(entity: Entity) -> bytes:
    """Bytes that only the same entity gives: 1, 1.0 and true differ, the order of names doesn't count.

    Equality does not do that: it takes ``True`` for 1, and nan is not even equal to itself.
    """
    return _encode_sorted(_entity(entity))


def dump_value(value: Any) -> Any:
    """A property's value as JSON has it: only None, bool, int, finite float, str, list and dict."""
    if type(value) in _PLAIN:
        return value
    return _DUMP[type(value)](value)


def _entity(entity: Entity) -> dict[str, Any]:
    line: dict[str, Any] = {"key": str(entity.key), "properties": _properties(entity)}
    if entity.unindexed:
        line["unindexed"] = sorted(entity.unindexed)
    if entity.is_projection:
        line["projection"] = True
    return line


def _properties(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: value if type(value) in _PLAIN else _DUMP[type(value)](value) for name, value in properties.items()}


def _dict(value: dict[str, Any]) -> dict[str, Any]:
    plain = _properties(value)
    return {"$dict": plain} if any(name.startswith("$") for name in plain) else plain


def _datetime(value: datetime) -> dict[str, str]:
    return {"$datetime": value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"}


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


_PLAIN = frozenset((type(None), bool, int, str))

_DUMP: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: lambda value: value,
    str: lambda value: value,
    float: lambda value: value if math.isfinite(value) else {"$float": repr(value)},
    list: lambda value: [dump_value(item) for item in value],
    datetime: _datetime,
    bytes: lambda value: {"$bytes": _base64(value)},
    Text: lambda value: {"$text": str.__str__(value)},
    Blob: lambda value: {"$blob": _base64(value)},
    GeoPoint: lambda value: {"$point": [value.latitude, value.longitude]},
    Key: lambda value: {"$key": str(value)},
    Entity: lambda value: {"$entity": _entity(value)},
    dict: _dict,
}


# ---------------------------------------------------------------------------------------- reading


def is_mark(line: Any) -> bool:
    """Whether a decoded line is a file's first or last rather than an entity.

    :raises FormatVersionError: if it names a version that this module can't read
    """
    if not isinstance(line, dict) or MARK not in line or "key" in line:
        return False
    version = line[MARK]
    if version != VERSION:
        raise FormatVersionError(f"lines of format {version!r}; this version of the program reads {VERSION}")
    return True


def load_line(line: bytes | str) -> Entity | dict[str, Any]:
    """The entity of a line, or the plain members of a file's first or last line (see :func:`is_mark`).

    :raises BadValueError: if it is neither; the message says what is wrong
    :raises FormatVersionError: if it is of another version
    """
    try:
        decoded = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadValueError(f"not JSON: {exc}") from exc
    if is_mark(decoded):
        return dict(decoded)
    return load_entity(decoded)


def load_entity(given: Any) -> Entity:
    """The entity of a decoded line. It is well formed; whether it may be stored, ``validate`` says.

    :raises BadValueError: if the line is not of the format
    """
    if not isinstance(given, dict):
        raise BadValueError(f"expected an object with the members key and properties, got {given!r:.80}")
    for member in given:
        if member == "projection":
            raise BadValueError("this is a row of a projection, which lacks the entity's other properties")
        if member not in ("key", "properties", "unindexed"):
            raise BadValueError(f"unknown member {member!r}; an entity has key, properties and unindexed")
    properties = given.get("properties")
    if not isinstance(properties, dict):
        what = f"got {properties!r:.80}" if "properties" in given else "found none"
        raise BadValueError(f"expected a member properties with an object, {what}")
    unindexed = given.get("unindexed", ())
    if not isinstance(unindexed, list | tuple):
        raise BadValueError(f"expected unindexed as an array of names, got {unindexed!r:.80}")
    if "key" not in given:
        raise BadValueError('no key; expected a member "key" like "/Kind:id_or_name"')
    key = _load_key(given["key"])
    loaded: dict[str, Any] = {}
    try:
        for name, value in properties.items():
            loaded[name] = value if type(value) in _PLAIN else load_value(value, name)
    except RecursionError:
        raise BadValueError("values are nested too deeply") from None
    try:
        return Entity(key, loaded, unindexed=unindexed)
    except DatastoreError as exc:
        raise BadValueError(str(exc)) from exc


def load_value(given: Any, name: str = "value") -> Any:
    """The value that :func:`dump_value` gave this for; ``name`` is for messages.

    :raises BadValueError: if it is not of the format
    """
    if isinstance(given, dict):
        tag = next(iter(given)) if len(given) == 1 else ""
        if tag.startswith("$"):
            return _load_tagged(tag, given[tag], name)
        for member in given:
            if member.startswith("$"):
                raise BadValueError(f'{name}: a name begins with $ ({member!r}); write {{"$dict": {{...}}}}')
        return {sub: load_value(value, f"{name}.{sub}") for sub, value in given.items()}
    if isinstance(given, list):
        return [item if type(item) in _PLAIN else load_value(item, name) for item in given]
    return given


def _load_tagged(tag: str, content: Any, name: str) -> Any:
    load = _LOAD.get(tag)
    if load is None:
        raise BadValueError(f"{name}: unknown type {tag!r}; expected one of {', '.join(_LOAD)}")
    try:
        return load(content)
    except (DatastoreError, ValueError, TypeError, OverflowError) as exc:
        raise BadValueError(f"{name}: {content!r:.80} is no {tag}: {exc}") from exc


_LAST = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,99}):(?:([1-9][0-9]{0,17})|([A-Za-z_][A-Za-z0-9_.-]{0,99}))")
_MAX_PARENTS = 10_000
_parents: dict[str, Key] = {}
"""Keys by their readable form, less the last element: a file names the same few, line after line."""


def _load_key(given: Any) -> Key:
    if not isinstance(given, str):
        raise BadValueError(f"expected a key like '/Kind:id_or_name', got {given!r:.80}")
    above, _, last = given.rpartition("/")
    match = _LAST.fullmatch(last) if "/" in above else None
    try:
        if match is None:
            return Key.from_string(given)
        parent = _parents.get(above)
        if parent is None:
            parent = _parent(above)
        if not parent.is_complete or len(parent.pairs) >= MAX_PATH_ELEMENTS:
            return Key.from_string(given)  # which says what is wrong
    except DatastoreError as exc:
        raise BadValueError(str(exc)) from exc
    kind, number, name = match.groups()
    pair = (kind, int(number) if number else name)
    return Key._make(parent.project, parent.namespace, (*parent.pairs, pair))


def _parent(text: str) -> Key:
    parent = Key.from_string(text)
    if len(_parents) >= _MAX_PARENTS:
        _parents.clear()
    _parents[text] = parent
    return parent


def _load_float(given: Any) -> float:
    if given not in ("nan", "inf", "-inf"):
        raise ValueError("expected nan, inf or -inf")
    return float(given)


def _load_datetime(given: Any) -> datetime:
    value = datetime.fromisoformat(_string(given))
    if value.tzinfo is None:
        raise ValueError("it has no offset; add Z if it is UTC")
    return value.astimezone(UTC)


def _load_bytes(given: Any) -> bytes:
    try:
        return b64decode(_string(given), validate=True)
    except binascii.Error as exc:
        raise ValueError(f"not base64 ({exc})") from exc


def _load_point(given: Any) -> GeoPoint:
    if not isinstance(given, list) or len(given) != 2:
        raise ValueError("expected [latitude, longitude]")
    return GeoPoint(*given)


def _load_dict(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError("expected an object")
    return {name: load_value(value, name) for name, value in given.items()}


def _string(given: Any) -> str:
    if not isinstance(given, str):
        raise TypeError("expected a string")
    return given


_LOAD: dict[str, Callable[[Any], Any]] = {
    "$float": _load_float,
    "$datetime": _load_datetime,
    "$bytes": _load_bytes,
    "$text": lambda given: Text(_string(given)),
    "$blob": lambda given: Blob(_load_bytes(given)),
    "$point": _load_point,
    "$key": _load_key,
    "$entity": load_entity,
    "$dict": _load_dict,
}
