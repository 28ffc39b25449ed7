"""What a property can hold, and the checks every value passes before it is stored.

Values are of exactly these classes, so that what comes back is of the class that went in: None, ``bool``,
``int`` (64 bit), ``float`` (inf and nan too), ``str``, ``bytes``, aware ``datetime``, ``Key``,
:class:`GeoPoint`, :class:`Text`, :class:`Blob`, ``list``, ``dict`` and ``Entity``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from aiodatastore.errors import (
    BadPropertyError,
    BadRequestError,
    BadValueError,
    IntegerOverflowError,
)
from aiodatastore.key import Key, utf8_length

__all__ = [
    "INT64_MAX",
    "INT64_MIN",
    "MAX_DEPTH",
    "MAX_INDEXED_BYTES",
    "MAX_PROPERTY_NAME_BYTES",
    "MAX_UNINDEXED_BYTES",
    "Blob",
    "GeoPoint",
    "Text",
    "copy_value",
    "validate_property",
    "validate_property_name",
]

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
MAX_INDEXED_BYTES: Final = 1500
"""The greatest length of an indexed str (as UTF-8) or bytes."""
MAX_UNINDEXED_BYTES: Final = 1_048_487
"""The greatest length of a str (as UTF-8) or bytes that no index holds."""
MAX_PROPERTY_NAME_BYTES: Final = 1500
"""The greatest length of a property's name, in bytes of UTF-8."""
MAX_DEPTH: Final = 20
"""How deep dicts and entities may be embedded in one another."""


@dataclass(frozen=True, slots=True, order=True)
class GeoPoint:
    """A point on Earth in degrees; ordered by latitude, then longitude.

    >>> GeoPoint(52.5, 13.4)
    GeoPoint(latitude=52.5, longitude=13.4)

    :raises BadValueError: if the latitude is not in -90..90, the longitude not in -180..180, or no number
    """

    latitude: float
    longitude: float

    def __post_init__(self) -> None:
        latitude, longitude = self.latitude, self.longitude
        if type(latitude) is float is type(longitude) and -90 <= latitude <= 90 and -180 <= longitude <= 180:
            return
        object.__setattr__(self, "latitude", _degrees("latitude", self.latitude, 90))
        object.__setattr__(self, "longitude", _degrees("longitude", self.longitude, 180))


def _degrees(what: str, value: Any, limit: int) -> float:
    if type(value) is not float and type(value) is not int:
        raise BadValueError(f"expected a {what} in degrees (float), got {type(value).__name__} {value!r}")
    if not -limit <= value <= limit:  # also refuses nan
        raise BadValueError(f"a {what} is between -{limit} and {limit} degrees, not {value!r}")
    return float(value)


class Text(str):
    """A long string: up to 1,048,487 bytes, never indexed. Equal to the same ``str``.

    >>> Text("a long story") == "a long story"
    True
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Text({str.__repr__(self)})"


class Blob(bytes):
    """Long bytes: up to 1,048,487, never indexed. Equal to the same ``bytes``.

    >>> Blob(b"GIF89a")
    Blob(b'GIF89a')
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Blob({bytes.__repr__(self)})"


# ------------------------------------------------------------------------------------------------ names

_MAX_KNOWN_NAMES = 4096
known_names: set[str] = set()
"""Property names that passed the checks: the same few come again with every entity."""


def validate_property_name(name: Any) -> None:
    """Check the name of a property.

    :raises BadPropertyError: if it is no str, empty, longer than 1500 bytes of UTF-8, or has a lone surrogate
    :raises BadRequestError: if it is reserved: begins and ends with two underscores
    """
    if type(name) is str and name in known_names:
        return
    check_name_form(name)
    if len(name) >= 4 and name[:2] == "__" == name[-2:]:
        raise BadRequestError(f"property name {name!r} is reserved: names like __x__ are the datastore's own")
    if len(known_names) >= _MAX_KNOWN_NAMES:
        known_names.clear()
    known_names.add(name)


def check_name_form(name: Any) -> None:
    """The part of :func:`validate_property_name` that holds for names in queries, too."""
    if type(name) is not str:
        raise BadPropertyError(f"expected a property name (str), got {type(name).__name__} {name!r}")
    if not name:
        raise BadPropertyError("a property name can't be empty")
    length = utf8_length(name)
    if length is None:
        raise BadPropertyError(f"property name {name!r} has a lone surrogate, which UTF-8 can't hold")
    if length > MAX_PROPERTY_NAME_BYTES:
        raise BadPropertyError(
            f"a property name has at most {MAX_PROPERTY_NAME_BYTES} bytes of UTF-8, {name[:40]!r}... has {length}"
        )


# ----------------------------------------------------------------------------------------------- values


def validate_property(name: str, value: Any, *, indexed: bool) -> None:
    """Check a property's name and value as they are checked when an entity is put.

    :raises BadPropertyError: the name is unusable
    :raises BadRequestError: the name is reserved; a str or bytes is too long, or not Unicode
    :raises BadValueError: a value of a type, or in a range, that can't be stored
    :raises IntegerOverflowError: an int needs more than 64 bits
    """
    validate_property_name(name)
    check = CHECKS.get(type(value), refuse)
    if check is not None:
        check(name, value, indexed, 0)


def refuse(name: str, value: Any, indexed: bool, depth: int) -> NoReturn:
    """Raise for a value of a class that no property holds, with what to do instead."""
    kind = type(value)
    hint = _INSTEAD.get(kind.__name__, "")
    for base in kind.__mro__[1:]:
        if not hint and base in CHECKS:
            hint = f"subclasses would not come back as such: convert it, for example with {base.__name__}()"
    raise BadValueError(
        f"property {name!r}: expected None, bool, int, float, str, bytes, an aware datetime, Key, GeoPoint,"
        f" Text, Blob, a list of these, a dict or an Entity; got {kind.__qualname__} {value!r:.80}"
        + (f" ({hint})" if hint else "")
    )


_INSTEAD = {
    "tuple": "use a list",
    "set": "use a list",
    "frozenset": "use a list",
    "range": "use a list",
    "generator": "use a list",
    "bytearray": "use bytes",
    "memoryview": "use bytes",
    "date": "use an aware datetime, or a str like 2020-02-29",
    "time": "use a str, or an int of microseconds",
    "timedelta": "use an int of microseconds",
    "Decimal": "use a str, or an int of the smallest unit",
    "UUID": "use a str",
}


def _check_int(name: str, value: int, indexed: bool, depth: int) -> None:
    if not INT64_MIN <= value <= INT64_MAX:
        raise IntegerOverflowError(f"property {name!r}: an int has 64 bits, -2**63 to 2**63-1; got {value}")


def _check_str(name: str, value: str, indexed: bool, depth: int) -> None:
    if value.isascii():
        length = len(value)
    else:
        found = utf8_length(value)
        if found is None:
            raise BadRequestError(f"property {name!r}: a str with a lone surrogate can't be stored as UTF-8")
        length = found
    if length > MAX_INDEXED_BYTES and (indexed or length > MAX_UNINDEXED_BYTES):
        _refuse_length(name, "str", length, indexed, Text)


def _check_bytes(name: str, value: bytes, indexed: bool, depth: int) -> None:
    length = len(value)
    if length > MAX_INDEXED_BYTES and (indexed or length > MAX_UNINDEXED_BYTES):
        _refuse_length(name, "bytes", length, indexed, Blob)


def _refuse_length(name: str, kind: str, length: int, indexed: bool, wrapper: type) -> NoReturn:
    limit = MAX_INDEXED_BYTES if indexed else MAX_UNINDEXED_BYTES
    fix = ""
    if indexed and length <= MAX_UNINDEXED_BYTES:
        fix = f"; name the property in unindexed, or wrap the value in {wrapper.__name__}"
    raise BadRequestError(
        f"property {name!r}: {'an indexed' if indexed else 'a'} {kind} has at most {limit} bytes,"
        f" this one has {length}{fix}"
    )


def _check_text(name: str, value: Text, indexed: bool, depth: int) -> None:
    _check_str(name, value, False, depth)


def _check_blob(name: str, value: Blob, indexed: bool, depth: int) -> None:
    _check_bytes(name, value, False, depth)


def _check_datetime(name: str, value: datetime, indexed: bool, depth: int) -> None:
    zone = value.tzinfo
    if zone is UTC:
        return
    if zone is None or value.utcoffset() is None:
        raise BadValueError(
            f"property {name!r}: expected an aware datetime, got the naive {value!r};"
            " if it is UTC, use value.replace(tzinfo=datetime.UTC)"
        )
    try:
        value.astimezone(UTC)
    except OverflowError as exc:
        raise BadValueError(f"property {name!r}: {value!r} is outside the years 1 to 9999 in UTC") from exc


def _check_key(name: str, value: Key, indexed: bool, depth: int) -> None:
    if not value.is_complete:
        raise BadValueError(f"property {name!r}: {value!r} is incomplete; put its entity first")


def _check_list(name: str, value: list[Any], indexed: bool, depth: int) -> None:
    for element in value:
        check = CHECKS.get(type(element), refuse)
        if check is not None:
            if check is _check_list:
                raise BadValueError(f"property {name!r}: a list can't directly hold a list ({element!r:.80})")
            check(name, element, indexed, depth)


def _check_dict(name: str, value: dict[Any, Any], indexed: bool, depth: int) -> None:
    check_embedded(name, value, indexed, depth, frozenset())


def check_embedded(name: str, value: dict[Any, Any], indexed: bool, depth: int, unindexed: frozenset[str]) -> None:
    """Check the properties of a dict or entity that is the value of ``name``."""
    if depth >= MAX_DEPTH:
        raise BadValueError(f"property {name[:80]!r}...: dicts and entities may be embedded {MAX_DEPTH} deep")
    for sub, element in value.items():
        try:
            validate_property_name(sub)
        except (BadPropertyError, BadRequestError) as exc:
            raise type(exc)(f"property {name!r}: {exc}") from exc
        path = f"{name}.{sub}"
        searched = indexed and sub not in unindexed
        if searched and len(path) > MAX_PROPERTY_NAME_BYTES // 4:
            check_name_form(path)
        check = CHECKS.get(type(element), refuse)
        if check is not None:
            check(path, element, searched, depth + 1)


Check = Callable[[str, Any, bool, int], None]

CHECKS: dict[type, Check | None] = {
    type(None): None,
    bool: None,
    float: None,
    GeoPoint: None,
    int: _check_int,
    str: _check_str,
    bytes: _check_bytes,
    Text: _check_text,
    Blob: _check_blob,
    datetime: _check_datetime,
    Key: _check_key,
    list: _check_list,
    dict: _check_dict,
}
"""Class → check(name, value, indexed, depth), None where every instance is fine. ``entity`` adds its own."""


# ----------------------------------------------------------------------------------------------- copies


def copy_value(value: Any) -> Any:
    """A value that shares nothing mutable with ``value``; datetimes are brought to UTC."""
    copier = COPIERS.get(type(value))
    return value if copier is None else copier(value)


def _copy_list(value: list[Any]) -> list[Any]:
    if COPIERS.keys().isdisjoint(map(type, value)):
        return value.copy()
    return [copy_value(element) for element in value]


def _copy_dict(value: dict[str, Any]) -> dict[str, Any]:
    return {name: copy_value(element) for name, element in value.items()}


def _to_utc(value: datetime) -> datetime:
    return value if value.tzinfo is UTC else value.astimezone(UTC)


COPIERS: dict[type, Callable[[Any], Any]] = {list: _copy_list, dict: _copy_dict, datetime: _to_utc}
"""Class → how a private copy is made; what is not listed is shared. ``entity`` adds its own."""
