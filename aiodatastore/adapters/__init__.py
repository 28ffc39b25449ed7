"""Adapters: where entities live. Import the one you need from its own module; none is loaded from here."""

from __future__ import annotations

__all__: list[str] = []
