"""Stores that are open when the process forks: the child must leave what they hold to the parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["open_stores"]


class _Store(Protocol):
    def _leave_to_parent(self) -> None: ...


open_stores: weakref.WeakSet[_Store] = weakref.WeakSet()
"""Stores put themselves in when they are opened; in a forked child each is told to ``_leave_to_parent``."""


def _after_fork() -> None:
    for store in list(open_stores):
        store._leave_to_parent()
    open_stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
