"""Entity groups spread over several adapters by a stable hash."""

from __future__ import annotations

from aiodatastore.shims.sharded.adapter import Sharded

__all__ = ["Sharded"]
