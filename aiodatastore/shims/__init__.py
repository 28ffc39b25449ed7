"""Adapters over adapters: caches, shards, namespaces, logs, faults.

>>> from aiodatastore.shims import Null

Each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Cached",
    "Compressed",
    "Delayed",
    "Directories",
    "Encrypted",
    "Failing",
    "InterfaceMapping",
    "KeyTransform",
    "Limited",
    "Logged",
    "LowercaseKeys",
    "Measured",
    "Mounted",
    "Namespaced",
    "NestedPath",
    "Null",
    "ReadOnly",
    "Retrying",
    "Sharded",
    "Shim",
    "Symlinks",
    "Tiered",
    "Timeout",
]

_HOMES = {
    "Cached": "cached",
    "Compressed": "compressed",
    "Delayed": "delayed",
    "Directories": "directories",
    "Encrypted": "encrypted",
    "Failing": "failing",
    "InterfaceMapping": "interface_mapping",
    "KeyTransform": "key_transform",
    "Limited": "limited",
    "Logged": "logged",
    "LowercaseKeys": "lowercase_keys",
    "Measured": "measured",
    "Mounted": "mounted",
    "Namespaced": "namespaced",
    "NestedPath": "nested_path",
    "Null": "null",
    "ReadOnly": "read_only",
    "Retrying": "retrying",
    "Sharded": "sharded",
    "Shim": "base",
    "Symlinks": "symlinks",
    "Tiered": "tiered",
    "Timeout": "timeout",
}

if TYPE_CHECKING:
    from aiodatastore.shims.base import Shim
    from aiodatastore.shims.cached import Cached
    from aiodatastore.shims.compressed import Compressed
    from aiodatastore.shims.delayed import Delayed
    from aiodatastore.shims.directories import Directories
    from aiodatastore.shims.encrypted import Encrypted
    from aiodatastore.shims.failing import Failing
    from aiodatastore.shims.interface_mapping import InterfaceMapping
    from aiodatastore.shims.key_transform import KeyTransform
    from aiodatastore.shims.limited import Limited
    from aiodatastore.shims.logged import Logged
    from aiodatastore.shims.lowercase_keys import LowercaseKeys
    from aiodatastore.shims.measured import Measured
    from aiodatastore.shims.mounted import Mounted
    from aiodatastore.shims.namespaced import Namespaced
    from aiodatastore.shims.nested_path import NestedPath
    from aiodatastore.shims.null import Null
    from aiodatastore.shims.read_only import ReadOnly
    from aiodatastore.shims.retrying import Retrying
    from aiodatastore.shims.sharded import Sharded
    from aiodatastore.shims.symlinks import Symlinks
    from aiodatastore.shims.tiered import Tiered
    from aiodatastore.shims.timeout import Timeout


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
