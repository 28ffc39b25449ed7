"""What a query did: a tree of steps with what each has read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Explanation", "Step"]


@dataclass(slots=True)
class Step:
    """One step of a plan. ``rows`` and ``entities`` count what it read from the store, ``scans`` how often."""

    label: str
    detail: str = ""
    children: list[Step] = field(default_factory=list)
    rows: int = 0
    entities: int = 0
    scans: int = 0

    def add(self, label: str, detail: str = "") -> Step:
        """A new child."""
        child = Step(label, detail)
        self.children.append(child)
        return child

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Step]]:
        """This step and all below, with their depth."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The plan of a query.

    ``str()`` shows it as an indented tree. ``index`` is the composite index (an ``IndexDefinition``) that
    would serve the query without residual work, or None if nothing is missing.
    """

    root: Step
    index: Any = None

    @property
    def rows(self) -> int:
        """Index rows read."""
        return sum(step.rows for _, step in self.root.walk())

    @property
    def entities(self) -> int:
        """Entities read."""
        return sum(step.entities for _, step in self.root.walk())

    @property
    def scans(self) -> int:
        """Requests to the store."""
        return sum(step.scans for _, step in self.root.walk())

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""

        def plain(step: Step) -> dict[str, Any]:
            return {
                "step": step.label,
                "detail": step.detail,
                "rows": step.rows,
                "entities": step.entities,
                "scans": step.scans,
                "steps": [plain(child) for child in step.children],
            }

        needed = self.index.to_yaml() if self.index is not None else None
        return {"plan": plain(self.root), "needs_index": needed}

    def __str__(self) -> str:
        lines = []
        for depth, step in self.root.walk():
            read = f"  [{step.scans} scans, {step.rows} rows, {step.entities} entities]" if step.scans else ""
            detail = f" {step.detail}" if step.detail else ""
            lines.append(f"{'  ' * depth}{step.label}{detail}{read}")
        if self.index is not None:
            lines.append("would be served by:")
            lines.extend(f"  {line}" for line in self.index.to_yaml().splitlines())
        return "\n".join(lines)
