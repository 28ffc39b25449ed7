"""The table of stores in ``docs/adapters.md``, made of what the adapters declare.

``python -m docs._tools.capabilities`` writes it, ``--check`` only looks whether it is up to date. No store is opened,
but the drivers must be installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import Capability, RowStore

__all__ = ["PAGE", "STORES", "current", "main", "table"]

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "adapters.md"
_MARKED: Final = re.compile(r"(?<=<!-- capabilities -->\n)(.*?)(?=<!-- /capabilities -->)", re.DOTALL)

STORES: Final = {
    "memory": "memory://",
    "sqlite": "sqlite:///never-opened.db",
    "file": "file:///never-opened",
    "postgres": "postgresql://localhost/never-opened",
    "redis": "redis://localhost",
}
"""The stores and a URL of each."""

DEPENDS: Final[Mapping[tuple[str, Capability], str]] = {
    ("redis", Capability.DURABLE): "[as the server is set](adapters/redis.md)",
    ("postgres", Capability.TWO_PHASE): "[as the server is set](adapters/postgres.md)",
}
"""What an adapter knows only when it is open."""

MEANING: Final = {
    Capability.DURABLE: "what was acknowledged survives `kill -9` of the process, and of the server",
    Capability.MULTI_PROCESS: "several processes may have it open at once, serializable among them",
    Capability.TRIO: "runs under trio as well as asyncio",
    Capability.INLINE_READS: "small reads are answered without suspending",
    Capability.TTL: "[entities may expire](entities.md#time-to-live)",
    Capability.TWO_PHASE: "commits can be prepared: [transactions over several stores](shims.md#sharded)",
}
"""What every store has (``rowstore.CORE``) is not in the table: only shims and collections may lack it."""


def _store(url: str) -> RowStore:
    adapter = adapter_from_url(url)
    assert isinstance(adapter, EngineAdapter)
    return adapter.store


def _has(name: str) -> Callable[[RowStore], str]:
    """Whether a store does something itself that it need not."""
    return lambda store: "yes" if getattr(type(store), name) is not getattr(RowStore, name) else "no"


_OWN: Final = {
    "merge joins in the store": _has("intersect"),
    "sums in the store": _has("tally"),
    "reads from a replica": _has("replica"),
}


def _imports(store: str, requirements: list[str]) -> bool:
    """Whether the source of a store imports what its extra installs."""
    drivers = [re.split(r"\W", requirement)[0] for requirement in requirements]
    sources = (ROOT / "aiodatastore" / "adapters" / store).glob("**/*.py")
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    return any(re.search(rf"^\s*(from|import) {driver}\b", text, re.MULTILINE) for driver in drivers)


def table() -> str:
    """The table, as Markdown."""
    stores = {name: _store(url) for name, url in STORES.items()}
    rows = [["", *(f"[{name}](adapters/{name}.md)" for name in stores), "meaning"]]
    rows.append(["---"] * len(rows[0]))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    needed = [f"`[{name}]`" if _imports(name, extras.get(name, [])) else "" for name in stores]
    rows.append(["install", *needed, "the extra it needs"])
    for capability in MEANING:
        cells = [
            "yes" if capability in store.capabilities else DEPENDS.get((name, capability), "no")
            for name, store in stores.items()
        ]
        rows.append([f"`{capability}`", *cells, MEANING[capability]])
    for label, answer in _OWN.items():
        rows.append([label, *map(answer, stores.values()), "in one call" if "store" in label else "if one is given"])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def current() -> str:
    """The table that the page has."""
    found = _MARKED.search(PAGE.read_text(encoding="utf-8"))
    return found[0] if found else ""


def main(arguments: list[str]) -> int:
    """Write the table, or with ``--check`` say whether it would change."""
    made = table()
    if "--check" in arguments:
        if made == current():
            return 0
        print(f"{PAGE.name} has an old table: run python -m docs._tools.capabilities", file=sys.stderr)
        return 1
    PAGE.write_text(_MARKED.sub(lambda _: made, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
