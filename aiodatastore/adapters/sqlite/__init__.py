"""Entities in one SQLite file: ``sqlite:///relative.db``, ``sqlite:////absolute/path.db``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiodatastore.adapters import registry
from aiodatastore.adapters.sqlite.store import SQLiteRowStore

if TYPE_CHECKING:
    from aiodatastore.adapters.engine import EngineAdapter

__all__ = ["SQLiteRowStore", "from_url"]


def from_url(url: str, **options: Any) -> EngineAdapter:
    """An adapter for ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, ``?setting=value`` as in the class.

    :raises BadArgumentError: if the path is missing, or a setting is unknown or malformed
    """
    parts = registry.split_url(url, options, settings=_SETTINGS)
    return registry.engine(SQLiteRowStore(registry.file_path(parts), **parts.settings), parts)


def _parse_inline(text: str) -> bool | str:
    return text if text == "auto" else registry.parse_bool(text)


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "synchronous": str.upper,
    "busy_timeout_s": registry.parse_float,
    "inline_reads": _parse_inline,
    "cache_mb": registry.parse_int,
    "checkpoint_mb": registry.parse_int,
    "page_size": registry.parse_int,
    "read_only": registry.parse_bool,
}
