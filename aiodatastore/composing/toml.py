"""Compositions in a TOML file: ``toml:///shop.toml``.

.. code-block:: toml

    [store]
    use = "cached"
    staleness_s = 5
    cache = { url = "redis://localhost/1?prefix=c" }

    [store.child]
    use = "sharded"
    by = "group"

    [[store.child.children]]
    url = "postgresql://shop:${SHOP_PASSWORD}@db0/shop"
    pool_size = 20

    [[store.child.children]]
    url = "postgresql://shop:${SHOP_PASSWORD}@db1/shop"

A table with ``url`` is a store (or a whole composed URL); what else it has are the store's settings. One with ``use``
is the shim or collection of that name, with ``child`` (a table, or a URL), ``children`` (a list of them) or ``mounts``
(a table from patterns to them); what else it has are its settings, typed as TOML has them. ``toml:///shop.toml`` reads
the table ``store``, ``toml:///shop.toml?store=tests.fast`` the table ``[tests.fast]``. ``toml:////etc/shop.toml`` is an
absolute path; paths inside the file are relative to the working directory, as everywhere.

In every text ``${NAME}`` is replaced by the environment variable of that name, as it is (in a URL, a password must be
percent-encoded there, too), and ``$$`` by a dollar. A variable that is not set is an error.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiodatastore.adapters import registry
from aiodatastore.composing.build import build
from aiodatastore.composing.grammar import MAX_DEPTH, Leaf, Node, Setting
from aiodatastore.errors import BadArgumentError

if TYPE_CHECKING:
    from aiodatastore.adapters.base import Adapter

__all__ = ["from_url", "node_of", "read"]

_SETTINGS: Final[Mapping[str, Callable[[str], Any]]] = {"store": str}
_VARIABLE: Final = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)\}|)")


def from_url(url: str, **options: Any) -> Adapter:
    """The adapter that a file describes; the file is read at once, nothing is opened.

    :raises BadArgumentError: if there is no such file or table, or it can't be understood
    """
    given = dict(registry.split_url(url, {}, settings=_SETTINGS).engine)
    for name in given.keys() & options.keys():
        raise BadArgumentError(f"{name} is given in the URL and as an argument; give it once")
    return build(read(url), {**given, **options})


def read(url: str) -> Leaf | Node:
    """What the file of a ``toml:///path?store=name`` says.

    :raises BadArgumentError: as :func:`from_url` does
    """
    parts = registry.split_url(url, {}, settings=_SETTINGS)
    path = Path(registry.file_path(parts))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        reason = (exc.strerror or "can't be read") if isinstance(exc, OSError) else "is not UTF-8"
        raise BadArgumentError(f"{path}: {reason}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise BadArgumentError(f"{path} is not TOML: {exc}") from exc
    name = parts.settings.get("store", "store")
    table: Any = document
    for part in name.split("."):
        table = table.get(part) if isinstance(table, dict) else None
    if table is None:
        tables = ", ".join(each for each, value in document.items() if isinstance(value, dict))
        raise BadArgumentError(f"{path} has no table [{name}]; it has {tables or 'none'}")
    return node_of(table, name)


def node_of(value: object, where: str, *, depth: int = 0) -> Leaf | Node:
    """A store, shim or collection of a parsed table, or of a URL. ``where``: its place, for messages.

    >>> node_of({"use": "logged", "child": "memory://"}, "store")
    Node(name='logged', where='store', settings=(), children=(Leaf('memory://…', 'store.child'),), \
patterns=None, braced=False)

    :raises BadArgumentError: if it is malformed, or a variable is not set
    """
    if depth >= MAX_DEPTH:
        raise BadArgumentError(f"{where}: stores are nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        return Leaf(_substituted(value, where), where)
    if not isinstance(value, Mapping):
        raise BadArgumentError(f"{where}: expected a table or a URL, got {type(value).__name__}")
    if ("url" in value) == ("use" in value):
        raise BadArgumentError(f"{where}: expected either url, of a store, or use, the name of a shim")
    kind = "url" if "url" in value else "use"
    if not isinstance(value[kind], str):
        raise BadArgumentError(f"{where}.{kind}: expected text, got {type(value[kind]).__name__}")
    if kind == "url":
        options = [(name, _option(each, f"{where}.{name}")) for name, each in value.items() if name != "url"]
        return Leaf(_substituted(value["url"], f"{where}.url"), where, tuple(options))
    held = [name for name in ("child", "children", "mounts") if name in value]
    if len(held) != 1:
        raise BadArgumentError(f"{where}: expected one of child, children and mounts, got {', '.join(held) or 'none'}")
    children, patterns = _held(held[0], value[held[0]], f"{where}.{held[0]}", depth + 1)
    settings = [
        _setting(name, each, f"{where}.{name}", depth + 1)
        for name, each in value.items()
        if name not in ("use", held[0])
    ]
    return Node(value["use"], where, tuple(settings), children, patterns, held[0] != "child")


def _held(form: str, value: Any, where: str, depth: int) -> tuple[tuple[Leaf | Node, ...], tuple[str, ...] | None]:
    if form == "child":
        return (node_of(value, where, depth=depth),), None
    if form == "children":
        if not isinstance(value, list) or not value:
            raise BadArgumentError(f"{where}: expected a list of tables or URLs")
        return tuple(node_of(each, f"{where}[{place}]", depth=depth) for place, each in enumerate(value)), None
    if not isinstance(value, dict) or not value:
        raise BadArgumentError(f"{where}: expected a table from patterns to tables or URLs")
    return tuple(node_of(each, f"{where}.{name}", depth=depth) for name, each in value.items()), tuple(value)


def _setting(name: str, value: object, where: str, depth: int) -> Setting:
    if isinstance(value, dict):
        return Setting(name, node_of(value, where, depth=depth), where)
    return Setting(name, _text(value, where), where)


def _text(value: object, where: str) -> str:
    """A setting as URLs write it, so that it is read and checked in one place."""
    if isinstance(value, str):
        return _substituted(value, where)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return ",".join(_text(each, f"{where}[{place}]") for place, each in enumerate(value))
    raise BadArgumentError(f"{where}: expected text, a number, true, false, or a list of them")


def _option(value: object, where: str) -> object:
    if isinstance(value, str):
        return _substituted(value, where)
    if isinstance(value, bool | int | float):
        return value
    raise BadArgumentError(f"{where}: expected text, a number, true or false")


def _substituted(text: str, where: str) -> str:
    def value_of(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[1]
        if name is None:
            raise BadArgumentError(f"{where}: write ${{NAME}} for an environment variable, $$ for a dollar")
        if name not in os.environ:
            raise BadArgumentError(f"{where}: the environment variable {name} is not set")
        return os.environ[name]

    return _VARIABLE.sub(value_of, text)
