"""The engine: encodings, index rows, planner and execution. It knows bytes and the model, and no storage engine."""

from __future__ import annotations

__all__: list[str] = []
