"""``Cached``: a coherent cache in front of any adapter."""

from __future__ import annotations

from aiodatastore.shims.cached.cache import Cached

__all__ = ["Cached"]
