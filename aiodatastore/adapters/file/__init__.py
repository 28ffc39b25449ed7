"""Entities in readable files: ``file:///relative/folder``, ``file:////absolute/folder``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiodatastore.adapters import registry
from aiodatastore.adapters.file.documents import MixedSerializer
from aiodatastore.adapters.file.store import FileRowStore
from aiodatastore.errors import BadArgumentError

if TYPE_CHECKING:
    from aiodatastore.adapters.engine import EngineAdapter

__all__ = ["FileRowStore", "from_url"]


def from_url(url: str, **options: Any) -> EngineAdapter:
    """An adapter for ``file:///relative`` or ``file:////absolute``, ``?setting=value`` as in :class:`FileRowStore`.

    ``serializer`` is ``json`` (the default: indented, as ``pretty``), ``compact`` (JSON on one line) or ``msgpack``,
    also with ``+zstd``; what the others wrote is read all the same. An object writes payloads of its own.

    :raises BadArgumentError: if the path is missing, or a setting is unknown or malformed
    """
    parts = registry.split_url(url, options, settings=_SETTINGS)
    settings = dict(parts.settings)
    layout = settings.get("layout")
    chosen = settings.pop("serializer", "compact" if layout == "kind" else "json")
    documents = None
    serializer: Any = chosen
    if isinstance(chosen, str):
        documents = serializer = MixedSerializer(chosen)
        if layout == "kind" and not documents.names_keys:
            raise BadArgumentError("layout=kind keeps a line of JSON for each entity: use serializer=json or compact")
    store = FileRowStore(registry.file_path(parts), documents=documents, **settings)
    return registry.engine(
        store, registry.UrlParts(parts.scheme, parts.location, {}, {**parts.engine, "serializer": serializer})
    )


def _no_text(text: str) -> Any:
    raise ValueError("expected a function; give it as an argument")


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "serializer": str,
    "layout": str,
    "extension": str,
    "read_only": registry.parse_bool,
    "fsync": registry.parse_bool,
    "damaged": str,
    "cache_mb": registry.parse_int,
    "journal_mb": registry.parse_int,
    "linger_s": registry.parse_float,
    "progress": _no_text,
}
