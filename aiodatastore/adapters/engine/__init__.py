"""An ``Adapter`` of any row store: the engine, once for all of them."""

from __future__ import annotations

from aiodatastore.adapters.engine.adapter import EngineAdapter

__all__ = ["EngineAdapter"]
