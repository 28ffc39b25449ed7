"""What users type: keys, values, filters, orders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from aiodatastore.errors import DatastoreError
from aiodatastore.jsonl import load_value
from aiodatastore.key import Key
from aiodatastore.query import And, Filter, Op, PropertyFilter

__all__ = [
    "VALUES_HELP",
    "parse_assignment",
    "parse_filter",
    "parse_key",
    "parse_names",
    "parse_value",
]

KEY = "__key__"

VALUES_HELP = """\
\b
Values are JSON, and otherwise strings:
  21   1.5   true   null   "21"   ["a", "b"]   Ada
\b
A prefix names the types that JSON has not:
  key:/Country:GB/City:1        a key
  datetime:2020-02-29T12:00Z    a time (UTC unless an offset is given)
  bytes:AAEC  blob:AAEC         bytes in base64; blob: never indexed
  text:...                      a string that is never indexed
  point:51.5,-0.12              latitude, longitude
  float:nan  float:21           a float that is not written with a point
  str:true                      a string whatever it looks like
"""

_FILTER = re.compile(
    r"""\s* (?P<name> "(?:[^"\\]|\\.)*" | .+? )
        (?: \s* (?P<sign> <= | >= | != | == | = | < | > ) \s* | \s+ (?P<word> not\s+in | in ) (?:\s+|(?=\[)) )
        (?P<value> .* ) \Z""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


def parse_key(text: str, namespace: str = "") -> Key:
    """A key in readable (``/Person:ada``) or URL-safe form; ``namespace`` is for keys that name none.

    :raises click.BadParameter: if it is neither
    """
    try:
        key = Key.from_string(text) if "/" in text else Key.from_urlsafe(text)
    except DatastoreError as exc:
        raise click.BadParameter(
            f"{text!r} is no key: expected one like /Country:GB/City:1, or its URL-safe form ({exc})"
        ) from exc
    if namespace and not key.namespace:
        return Key(*key.path, namespace=namespace, project=key.project)
    return key


def parse_value(text: str) -> Any:
    """A property's value; see :data:`VALUES_HELP`.

    :raises click.BadParameter: if a prefix is followed by what it can't be
    """
    prefix, colon, rest = text.partition(":")
    load = _PREFIXES.get(prefix) if colon else None
    if load is not None:
        try:
            return load(rest)
        except (DatastoreError, ValueError, OverflowError) as exc:
            raise click.BadParameter(f"{text!r}: {exc}") from exc
    try:
        decoded = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text
    try:
        return load_value(decoded)
    except DatastoreError as exc:
        raise click.BadParameter(f"{text!r}: {exc}") from exc


def parse_filter(text: str, namespace: str = "") -> Filter:
    """A filter like ``age >= 21``, ``city in London,Paris`` or ``__key__ > /Person:ada``.

    An array compared with ``=`` (or ``<``, ...) stands for one filter an element, all of which must hold.

    :raises click.BadParameter: if it has no operator, or its value can't be read
    """
    match = _FILTER.match(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no filter: expected one like 'age >= 21' or 'city in London,Paris'")
    name = match["name"].strip()
    if name.startswith('"'):
        name = msgspec.json.decode(name.encode(), type=str)
    op = Op({"==": "="}.get(match["sign"], match["sign"]) or " ".join(match["word"].lower().split()))
    read: Callable[[str], Any] = parse_value
    if name == KEY:
        read = lambda value: parse_key(value.removeprefix("key:"), namespace)  # noqa: E731
    given = match["value"].strip()
    if not given:
        raise click.BadParameter(f'{text!r}: the value is missing; the empty string is written ""')
    several = op in (Op.IN, Op.NOT_IN)
    try:
        if given.startswith("[") and name != KEY:
            value = parse_value(given)
            if several or not isinstance(value, list):
                return PropertyFilter(name, op, value)
            return And(*(PropertyFilter(name, op, element) for element in value))
        value = [read(part.strip()) for part in given.split(",")] if several else read(given)
        return PropertyFilter(name, op, value)
    except DatastoreError as exc:
        raise click.BadParameter(f"{text!r}: {exc}") from exc


def parse_assignment(text: str) -> tuple[str, Any]:
    """Name and value of ``name=value``.

    :raises click.BadParameter: if there is no ``=``
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise click.BadParameter(f"{text!r} is no property: expected name=value")
    return name.strip(), parse_value(value)


def parse_names(given: Sequence[str]) -> tuple[str, ...]:
    """Names of options that may be repeated and may hold several, separated by commas."""
    return tuple(name.strip() for part in given for name in part.split(",") if name.strip())


def _datetime(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _point(text: str) -> Any:
    latitude, _, longitude = text.partition(",")
    return load_value({"$point": [float(latitude), float(longitude)]})


_PREFIXES: dict[str, Callable[[str], Any]] = {
    "str": lambda text: text,
    "float": float,
    "datetime": _datetime,
    "point": _point,
    "key": lambda text: Key.from_string(text) if "/" in text else Key.from_urlsafe(text),
    "bytes": lambda text: load_value({"$bytes": text}),
    "blob": lambda text: load_value({"$blob": text}),
    "text": lambda text: load_value({"$text": text}),
}
