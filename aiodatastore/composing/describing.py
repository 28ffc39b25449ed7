"""What a composition is, and what it promises as a whole: for ``aiodatastore explain``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiodatastore.adapters.base import Adapter
from aiodatastore.rowstore import Capability

__all__ = ["Description", "Part", "describe"]

_SHOWN = 3
"""Parts that lack a capability that are named in text; JSON has all."""


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter of a composition.

    ``label`` is what the one that holds it calls it (a pattern of ``mounted``, a setting such as ``cache``), or "".
    ``url`` is that of a store, "" for what holds others. Nothing here is secret.
    """

    name: str
    label: str
    url: str
    settings: Mapping[str, str]
    children: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = {"name": self.name}
        if self.label:
            found["label"] = self.label
        if self.url:
            found["url"] = self.url
        return {**found, "settings": dict(self.settings), "children": [child.to_dict() for child in self.children]}

    def __str__(self) -> str:
        settings = "".join(f"  {name}={value}" for name, value in self.settings.items() if value not in ("none", ""))
        return f"{self.label + ' = ' if self.label else ''}{self.url or self.name}{settings}"


@dataclass(frozen=True, slots=True)
class Description:
    """A composition as a tree, and for each capability which parts lack it: none if the whole has it.

    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> description = describe(adapter_from_url("memory://"))
    >>> print(description)
    memory://
    <BLANKLINE>
    durable              no   memory://
    ...
    >>> description.lost[Capability.TTL]
    ('memory://',)
    """

    tree: Part
    lost: Mapping[Capability, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        capabilities = {
            capability.value: {"has": not lost, "lost_by": list(lost)} for capability, lost in self.lost.items()
        }
        return {"tree": self.tree.to_dict(), "capabilities": capabilities}

    def __str__(self) -> str:
        lines = [*_drawn(self.tree, "", ""), ""]
        for capability, lost in self.lost.items():
            parts = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
            lines.append(f"{capability.value:<20} {'no ' if lost else 'yes'}  {parts}".rstrip())
        return "\n".join(lines)


def describe(adapter: Adapter) -> Description:
    """The tree of an adapter with the settings of each part, and the capabilities of the whole. Opens nothing.

    What a store only knows when it is open (whether a Redis server is durable) is not promised before.
    """
    lost = {
        capability: () if capability in adapter.capabilities else tuple(dict.fromkeys(_lost_by(adapter, capability)))
        for capability in Capability
    }
    return Description(_part(adapter, ""), lost)


def _part(adapter: Adapter, label: str) -> Part:
    children = list(adapter.children)
    labels = _labels(adapter, children)
    settings: dict[str, str] = {}
    for name, value in adapter.settings.items():
        if isinstance(value, Adapter):
            if not any(value is child for child in children):
                children.append(value)
                labels.append(name)
        else:
            settings[name] = _shown(value)
    parts = tuple(_part(child, each) for child, each in zip(children, labels, strict=True))
    return Part(_name(adapter), label, "" if adapter.children else adapter.url, settings, parts)


def _labels(adapter: Adapter, children: Sequence[Adapter]) -> list[str]:
    """What an adapter calls its children: by its ``names``, if it has as many, or by the setting each was given as."""
    names = getattr(adapter, "names", None)
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names) == len(children):
        return [str(name) for name in names]
    settings = [*adapter.settings, *getattr(adapter, "url_settings", ())]
    given = {name: adapter.settings.get(name, getattr(adapter, name, None)) for name in settings}
    return [next((name for name, value in given.items() if value is child), "") for child in children]


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(map(_shown, sorted(value, key=str) if isinstance(value, set | frozenset) else value))
    return str(value)


def _name(adapter: Adapter) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(adapter).__name__).lower()


def _lost_by(adapter: Adapter, capability: Capability) -> Iterator[str]:
    """The parts that a capability is lost by: those that lack it while all that they hold have it."""
    lacking = [child for child in adapter.children if capability not in child.capabilities]
    if lacking:
        for child in lacking:
            yield from _lost_by(child, capability)
    else:
        yield _name(adapter) if adapter.children else adapter.url


def _drawn(part: Part, first: str, rest: str) -> Iterator[str]:
    yield f"{first}{part}"
    for place, child in enumerate(part.children):
        last = place == len(part.children) - 1
        yield from _drawn(child, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))
