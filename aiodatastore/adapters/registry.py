"""From a URL to an adapter: ``memory://``, ``sqlite:///tasks.db?synchronous=NORMAL``, and what others register.

Shims and collections are written around it: ``cached{staleness_s=5}:postgresql://localhost/shop``, see
:mod:`aiodatastore.composing`.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qsl, unquote

from aiodatastore.errors import BadArgumentError

if TYPE_CHECKING:
    from aiodatastore.adapters.base import Adapter
    from aiodatastore.adapters.engine import EngineAdapter
    from aiodatastore.rowstore import RowStore
    from aiodatastore.serializers import Serializer

__all__ = [
    "UnknownOptionError",
    "UrlParts",
    "adapter_from_url",
    "engine",
    "file_path",
    "missing_extra",
    "parse_bool",
    "parse_float",
    "parse_int",
    "parse_serializer",
    "refuse_location",
    "split_url",
]

GROUP: Final = "aiodatastore.adapters"
"""The entry point group: name a scheme, point it at a ``from_url(url, **options) -> Adapter``."""

# Known without an installed distribution's metadata, so that a checkout works as it is.
_BUILT_IN: Final = {
    "file": "aiodatastore.adapters.file",
    "memory": "aiodatastore.adapters.memory",
    "null": "aiodatastore.shims.null",
    "postgres": "aiodatastore.adapters.postgres",
    "postgresql": "aiodatastore.adapters.postgres",
    "redis": "aiodatastore.adapters.redis",
    "redis+cluster": "aiodatastore.adapters.redis",
    "rediss": "aiodatastore.adapters.redis",
    "rediss+cluster": "aiodatastore.adapters.redis",
    "sqlite": "aiodatastore.adapters.sqlite",
    "toml": "aiodatastore.composing.toml",
    "unix": "aiodatastore.adapters.redis",
    "valkey": "aiodatastore.adapters.redis",
    "valkey+cluster": "aiodatastore.adapters.redis",
    "valkeys": "aiodatastore.adapters.redis",
    "valkeys+cluster": "aiodatastore.adapters.redis",
}


class UnknownOptionError(BadArgumentError):
    """A store has no such option. ``option`` is its name."""

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message)
        self.option = option


# As in composing.grammar, which is not imported for plain URLs.
_COMPOSED: Final = re.compile(r"\s*[a-z][a-z0-9_]*(\{|:(?!//))")


def adapter_from_url(url: str, **options: Any) -> Adapter:
    """The adapter a URL names; nothing is opened. ``options`` override nothing in the URL, they add to it.

    The URL may be a composition of shims and collections; ``options`` then go to each store of it that knows them.

    :raises BadArgumentError: if the URL is malformed, nothing serves its scheme, or an option is unknown; if a
        composition names an unknown shim or setting, or would break a promise

    >>> adapter_from_url("memory://").url
    'memory://'
    """
    if type(url) is str and "://" in url and _COMPOSED.match(url):
        from aiodatastore.composing.build import from_text

        return from_text(url, options)
    return _factory(_scheme(url))(url, **options)


def _scheme(url: str) -> str:
    if not isinstance(url, str):
        raise BadArgumentError(f"a store is named by a URL such as sqlite:///tasks.db, got {type(url).__name__}")
    scheme, separator, _ = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        got = "" if "@" in url else f", got {url!r:.200}"  # there may be a password before the @
        raise BadArgumentError(f"a store is named by a URL such as sqlite:///tasks.db or memory://{got}")
    return scheme.lower()


def _factory(scheme: str) -> Callable[..., Adapter]:
    if scheme in _BUILT_IN:
        return cast("Callable[..., Adapter]", importlib.import_module(_BUILT_IN[scheme]).from_url)
    from importlib.metadata import entry_points  # costs 20 ms, and only others' adapters need it

    found = entry_points(group=GROUP)
    for entry in found:
        if entry.name == scheme:
            return cast("Callable[..., Adapter]", entry.load())
    known = ", ".join(f"{name}://" for name in sorted({*_BUILT_IN, *found.names}))
    raise BadArgumentError(f"no adapter for {scheme}://; known are {known}")


# -------------------------------------------------------------------------------- for adapters' from_url


@dataclass(frozen=True, slots=True)
class UrlParts:
    """A store's URL taken apart: ``location`` is what is between ``://`` and ``?``, percent signs as they are.

    ``settings`` are for the row store, ``engine`` for ``EngineAdapter``.
    """

    scheme: str
    location: str
    settings: Mapping[str, Any]
    engine: Mapping[str, Any]


def parse_bool(text: str) -> bool:
    """``true``/``false``, ``yes``/``no``, ``on``/``off``, ``1``/``0``, in any case.

    :raises ValueError: if it is something else
    """
    lower = text.lower()
    if lower in ("true", "yes", "on", "1"):
        return True
    if lower in ("false", "no", "off", "0"):
        return False
    raise ValueError("expected true or false")


def parse_int(text: str) -> int:
    """Decimal digits, with a minus sign if need be.

    :raises ValueError: if it is something else (``1_000``, ``1e3``, blanks)
    """
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError("expected an integer")
    return int(text)


def parse_float(text: str) -> float:
    """A finite number.

    :raises ValueError: if it is something else
    """
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", text) or not math.isfinite(float(text)):
        raise ValueError("expected a number")
    return float(text)


def parse_serializer(text: str) -> Serializer:
    """``msgpack``, ``json``, ``pretty``, ``compact``, each also with ``+zstd``.

    :raises ValueError: if it is something else
    """
    from aiodatastore.serializers import serializer_named  # not for those that name none

    try:
        return serializer_named(text)
    except BadArgumentError as exc:
        raise ValueError(str(exc)) from exc


_ENGINE: Final[Mapping[str, Callable[[str], Any] | None]] = {
    "require_indexes": parse_bool,
    "sort_budget": parse_int,
    "serializer": parse_serializer,
}


def split_url(url: str, options: Mapping[str, Any], *, settings: Mapping[str, Callable[[str], Any]]) -> UrlParts:
    """Take a URL apart and sort its parameters and the ``options`` into the store's and the engine's.

    ``settings`` names the store's own and how each is read from text (raising ValueError).

    :raises BadArgumentError: if one is unknown, malformed or given twice
    """
    rest = url.partition("://")[2]
    location, _, query = rest.partition("?")
    if "#" in rest:
        raise BadArgumentError(f"{_scheme(url)}:// URL: write # as %23 in paths and values")
    parsers: dict[str, Callable[[str], Any] | None] = {**_ENGINE, **settings}
    values: dict[str, Any] = {}
    for name, text in _parameters(query):
        parse = parsers.get(name)
        if name not in parsers or parse is None:
            raise _unknown(name, url, [known for known, reader in parsers.items() if reader is not None])
        if name in values:
            raise BadArgumentError(f"{name} is given twice in the URL")
        try:
            values[name] = parse(text)
        except ValueError as exc:
            given = name if "://" in text else f"{name}={text!r:.100}"  # a URL at the wrong place may have a password
            raise BadArgumentError(f"{given} in the URL: {exc}") from exc
    for name, value in options.items():
        if name not in parsers:
            raise _unknown(name, url, list(parsers))
        if name in values:
            raise BadArgumentError(f"{name} is given in the URL and as an argument; give it once")
        values[name] = value
    return UrlParts(
        _scheme(url),
        location,
        {name: value for name, value in values.items() if name in settings},
        {name: value for name, value in values.items() if name not in settings},
    )


def _parameters(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as exc:
        raise BadArgumentError("the URL's parameters are malformed: expected ?name=value&name=value") from exc


def _unknown(name: str, url: str, known: list[str]) -> UnknownOptionError:
    return UnknownOptionError(
        f"unknown option {name!r:.100} for {_scheme(url)}://; known are {', '.join(sorted(known))}", name
    )


def refuse_location(parts: UrlParts, why: str) -> None:
    """For stores that live nowhere.

    :raises BadArgumentError: if the URL says where
    """
    if parts.location not in ("", "/"):
        raise BadArgumentError(why)


def file_path(parts: UrlParts) -> str:
    """The path of ``scheme:///relative/path`` or ``scheme:////absolute/path``, percent signs decoded.

    :raises BadArgumentError: if there is none, or a host
    """
    scheme, location = parts.scheme, parts.location
    if not location.startswith("/") or location == "/":
        raise BadArgumentError(
            f"{scheme}:// URL: expected {scheme}:///relative/path or {scheme}:////absolute/path, without a host"
        )
    try:
        return unquote(location[1:], errors="strict")
    except UnicodeDecodeError as exc:
        raise BadArgumentError(f"{scheme}:// URL: the path's percent signs do not decode as UTF-8") from exc


def missing_extra(extra: str, exc: ImportError) -> BadArgumentError:
    """The error of an adapter whose driver is not installed."""
    return BadArgumentError(
        f'{exc.name or extra} is not installed: run pip install "aiodatastore-engine[{extra}]" to use this store'
    )


def engine(store: RowStore, parts: UrlParts) -> EngineAdapter:
    """An ``Adapter`` of a row store, with the engine's options from the URL."""
    from aiodatastore.adapters.engine import EngineAdapter

    return EngineAdapter(store, **parts.engine)
