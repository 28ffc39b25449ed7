"""The shims and collections that URLs and files can name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, cast

from aiodatastore.errors import BadArgumentError

__all__ = ["GROUP", "Form", "Known", "find", "known_names"]

GROUP: Final = "aiodatastore.shims"
"""The entry point group: name a shim as URLs name it, point it at its class.

The class has ``url_settings``. Its constructor takes what it holds, and the settings as keyword arguments. A class
attribute ``url_form`` says what it holds: ``"child"`` (one adapter: the default), ``"children"`` (a list of them) or
``"mounts"`` (a mapping from patterns to adapters).
"""

Form = Literal["child", "children", "mounts"]


class Known(NamedTuple):
    """A shim's class, and what it holds."""

    make: Callable[..., Any]
    form: Form
    settings: Mapping[str, Callable[[str], Any]]


# Known without an installed distribution's metadata, so that a checkout works as it is; imported when used.
BUILT_IN: Final[Mapping[str, tuple[str, str, Form]]] = {
    "cached": ("aiodatastore.shims.cached", "Cached", "child"),
    "compressed": ("aiodatastore.shims.compressed", "Compressed", "child"),
    "delayed": ("aiodatastore.shims.delayed", "Delayed", "child"),
    "directories": ("aiodatastore.shims.directories", "Directories", "child"),
    "encrypted": ("aiodatastore.shims.encrypted", "Encrypted", "child"),
    "failing": ("aiodatastore.shims.failing", "Failing", "child"),
    "limited": ("aiodatastore.shims.limited", "Limited", "child"),
    "logged": ("aiodatastore.shims.logged", "Logged", "child"),
    "lowercase_keys": ("aiodatastore.shims.lowercase_keys", "LowercaseKeys", "child"),
    "measured": ("aiodatastore.shims.measured", "Measured", "child"),
    "mounted": ("aiodatastore.shims.mounted", "Mounted", "mounts"),
    "namespaced": ("aiodatastore.shims.namespaced", "Namespaced", "child"),
    "nested_path": ("aiodatastore.shims.nested_path", "NestedPath", "child"),
    "read_only": ("aiodatastore.shims.read_only", "ReadOnly", "child"),
    "retrying": ("aiodatastore.shims.retrying", "Retrying", "child"),
    "sharded": ("aiodatastore.shims.sharded", "Sharded", "children"),
    "symlinks": ("aiodatastore.shims.symlinks", "Symlinks", "child"),
    "tiered": ("aiodatastore.shims.tiered", "Tiered", "children"),
    "timeout": ("aiodatastore.shims.timeout", "Timeout", "child"),
}

_IN_CODE_ONLY: Final = {
    "interface_mapping": "it is made of an object: InterfaceMapping(obj)",
    "key_transform": "it is made of two functions: KeyTransform(child, …)",
    "null": "it holds nothing: write null://",
}


def find(name: str) -> Known:
    """The class of a name.

    :raises BadArgumentError: if nothing has it, or it can only be made in code
    """
    if name in _IN_CODE_ONLY:
        raise BadArgumentError(f"{name} can't be written so: {_IN_CODE_ONLY[name]}")
    if name in BUILT_IN:
        module, attribute, form = BUILT_IN[name]
        made = getattr(importlib.import_module(module), attribute)
        return Known(made, form, made.url_settings)
    for entry in _others():
        if entry.name == name:
            made = entry.load()
            return Known(made, cast("Form", getattr(made, "url_form", "child")), getattr(made, "url_settings", {}))
    raise BadArgumentError(f"there is no shim {name!r:.80}; known are {', '.join(known_names())}")


def known_names() -> list[str]:
    """All names, sorted: ours and what other distributions register."""
    return sorted({*BUILT_IN, *(entry.name for entry in _others())})


def _others() -> Any:
    from importlib.metadata import entry_points  # costs 20 ms, and only others' shims need it

    return entry_points(group=GROUP)
