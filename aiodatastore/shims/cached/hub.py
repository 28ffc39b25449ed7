"""Caches of one process that hold copies of the same store tell each other what they come to know."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from aiodatastore.rowstore import Capability

if TYPE_CHECKING:
    from aiodatastore.adapters.base import Adapter

__all__ = ["Hub", "hub_of"]


class Hub:
    """The open caches over one store, of one thread."""

    def __init__(self) -> None:
        self.members: list[Any] = []

    def others(self, member: object) -> list[Any]:
        """All but one."""
        return [other for other in self.members if other is not member]


_hubs: weakref.WeakValueDictionary[Any, Hub] = weakref.WeakValueDictionary()


def hub_of(child: Adapter) -> Hub:
    """The hub of the store that an adapter reaches, for the running thread: caches of other threads are others.

    Two adapters reach one store if they are the same, hold the same row store, or have the same URL where that names
    a store of several processes. Being told of another store's changes costs some hits, and nothing else.
    """
    store = getattr(child, "store", child)
    place: object = child.url if Capability.MULTI_PROCESS in child.capabilities else id(store)
    name = (os.getpid(), threading.get_ident(), place)
    hub = _hubs.get(name)
    if hub is None:
        hub = _hubs[name] = Hub()
    return hub
