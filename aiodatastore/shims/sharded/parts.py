"""Commits over several adapters, taken apart."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiodatastore.adapters.base import Commit, Delete, Put
from aiodatastore.key import Key
from aiodatastore.rowstore import SpanCheck

__all__ = ["Part"]


@dataclass(slots=True)
class Part:
    """What of a commit concerns one of the adapters."""

    checks: dict[Key, int] = field(default_factory=dict)
    spans: list[SpanCheck] = field(default_factory=list)
    writes: list[Put | Delete] = field(default_factory=list)

    def commit(self, whole: Commit) -> Commit:
        """It as a commit of its own."""
        return Commit(self.checks, self.spans, self.writes, whole.token, whole.atomic, whole.after_prepared)
