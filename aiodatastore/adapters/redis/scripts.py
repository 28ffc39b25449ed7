"""The server-side scripts: their texts, by which name the server knows them, and what an answer means."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib import resources
from typing import Final

__all__ = ["ALLOCATE", "COMMIT", "COUNT", "INTERSECT", "LIFETIMES", "SCAN", "SWEEP", "TALLY", "Script"]


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, sent by its hash and, if the server does not know that (it was restarted), as a text."""

    text: bytes = field(repr=False)
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode())


def _load(*names: str) -> Script:
    folder = resources.files(__package__) / "lua"
    return Script(b"\n".join((folder / f"{name}.lua").read_bytes() for name in names))


COMMIT: Final = _load("commit")
SWEEP: Final = _load("sweep")
SCAN: Final = _load("fresh", "scan")
COUNT: Final = _load("fresh", "count")
INTERSECT: Final = _load("fresh", "intersect")
TALLY: Final = _load("fresh", "tally")
ALLOCATE: Final = _load("allocate")
LIFETIMES: Final = _load("lifetimes")
