"""Composite index definitions, their states, and App Engine's ``index.yaml``.

The notation is App Engine's, so that a file written for one works for the other:
https://cloud.google.com/appengine/docs/standard/python3/configuring-datastore-indexes-with-index-yaml
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiodatastore.errors import BadArgumentError

__all__ = [
    "IndexDefinition",
    "IndexInfo",
    "IndexState",
    "dump_index_yaml",
    "parse_index_yaml",
]

MAX_NAME_BYTES = 1500

Node = Any  # yaml.Node; PyYAML is imported only by who reads a file


class IndexState(enum.StrEnum):
    """Where a composite index is in its life (App Engine's names)."""

    BUILDING = "BUILDING"  # writes maintain it, existing entities are being added; serves no query yet
    SERVING = "SERVING"
    DELETING = "DELETING"  # its rows are being removed; serves no query any more
    ERROR = "ERROR"  # the build failed; `IndexInfo.message` says why


@dataclass(frozen=True, slots=True, order=True)
class IndexDefinition:
    """A composite index: the entities of a kind, sorted by several properties.

    ``properties`` are (name, ``"asc"`` or ``"desc"``) in the order of the index; ``__key__`` is a name like
    any other. A name may appear twice (a list property filtered by equality and sorted by). With ``ancestor``
    the index serves queries under an ancestor, and only those.

    >>> index = IndexDefinition("Task", (("done", "asc"), ("created", "desc")))
    >>> print(index.to_yaml())
    - kind: Task
      properties:
      - name: done
      - name: created
        direction: desc

    :raises BadArgumentError: if the kind or a name is not a non-empty string of at most 1500 bytes, a
        direction is neither ``"asc"`` nor ``"desc"``, or there is no property
    """

    kind: str
    properties: tuple[tuple[str, str], ...]
    ancestor: bool = False

    def __post_init__(self) -> None:
        _check_name("kind", self.kind)
        object.__setattr__(self, "properties", tuple(_property(p) for p in self.properties))
        if not self.properties:
            raise BadArgumentError(f"index of {self.kind}: it has no properties, but needs some")
        if type(self.ancestor) is not bool:
            raise BadArgumentError(f"index of {self.kind}: ancestor is {self.ancestor!r}, expected a bool")

    def __str__(self) -> str:
        """For people: ``Task(done, -created)``."""
        names = ", ".join(("-" if d == "desc" else "") + n for n, d in self.properties)
        return f"{self.kind}({names}{', ancestor' if self.ancestor else ''})"

    def to_yaml(self) -> str:
        """An entry of ``index.yaml``, exactly as App Engine suggests it; odd names are quoted."""
        lines = [f"- kind: {_yaml_scalar(self.kind)}"]
        if self.ancestor:
            lines.append("  ancestor: yes")
        lines.append("  properties:")
        for name, direction in self.properties:
            lines.append(f"  - name: {_yaml_scalar(name)}")
            if direction == "desc":
                lines.append("    direction: desc")
        return "\n".join(lines)

    def to_xml(self) -> str:
        """An element of ``datastore-indexes.xml``, exactly as App Engine suggests it."""
        ancestor = "true" if self.ancestor else "false"
        return "\n".join(
            [
                f'  <datastore-index kind="{_xml_attribute(self.kind)}" ancestor="{ancestor}">',
                *(
                    f'    <property name="{_xml_attribute(name)}" direction="{direction}" />'
                    for name, direction in self.properties
                ),
                "  </datastore-index>",
            ]
        )


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """A composite index of a store.

    ``number`` never changes and is never reused. ``message`` explains ``ERROR``; ``seen`` counts the entities
    that a running or interrupted build has passed.
    """

    number: int
    definition: IndexDefinition
    state: IndexState
    message: str = ""
    seen: int = 0


def dump_index_yaml(definitions: Iterable[IndexDefinition]) -> str:
    """A whole ``index.yaml``; :func:`parse_index_yaml` reads it back as the same definitions."""
    entries = [definition.to_yaml() for definition in definitions]
    if not entries:
        return "indexes: []\n"
    return "indexes:\n\n" + "\n\n".join(entries) + "\n"


def parse_index_yaml(text: str, *, source: str = "index.yaml") -> list[IndexDefinition]:
    """Definitions of an ``index.yaml``, in its order, each once; an empty file has none.

    Also accepts what :meth:`IndexDefinition.to_yaml` and App Engine's error messages show: the list without
    ``indexes:`` above it.

    :raises BadArgumentError: for what is not App Engine's format; says where, as ``source, line n``
    """
    root = _compose(text, source)
    if root is None:
        return []
    reader = _Reader(source)
    entries = root
    if reader.is_map(root):
        entries = reader.members(root, "the file", ("indexes", "application")).get("indexes", root)
        if entries is root or reader.is_null(entries):
            return []
    definitions = [reader.index(node) for node in reader.items(entries, "indexes")]
    return list(dict.fromkeys(definitions))


# ------------------------------------------------------------------------------------ validation


def _check_name(what: str, name: object) -> None:
    if type(name) is not str or not name:
        raise BadArgumentError(f"index: {what} is {name!r}, expected a non-empty str")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadArgumentError(f"index: {what} {name!r} holds a lone surrogate") from None
    if size > MAX_NAME_BYTES:
        raise BadArgumentError(f"index: {what} has {size} bytes, at most {MAX_NAME_BYTES} are allowed")


def _property(given: object) -> tuple[str, str]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise BadArgumentError(f"index: property is {given!r}, expected (name, 'asc' or 'desc')")
    name, direction = given
    _check_name("property name", name)
    if direction not in ("asc", "desc"):
        raise BadArgumentError(f"index: direction of {name!r} is {direction!r}, expected 'asc' or 'desc'")
    return name, direction


# ------------------------------------------------------------------------------------------ text

_PLAIN = re.compile(r"[^\W\d]\w*(?:[.\-]\w+)*\Z")
_RESERVED = frozenset(("yes", "no", "true", "false", "on", "off", "null"))
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def _yaml_scalar(text: str) -> str:
    """``text`` plain where YAML reads it back as this string, otherwise quoted."""
    if _PLAIN.match(text) and text.lower() not in _RESERVED:
        return text
    # A JSON string is a YAML string, but for a few characters that YAML calls unprintable.
    return _UNPRINTABLE.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(text, ensure_ascii=False))


_XML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def _xml_attribute(text: str) -> str:
    return re.sub('[&<>"]|[\x00-\x1f]', lambda m: _XML.get(m[0], f"&#{ord(m[0])};"), text)


# ---------------------------------------------------------------------------------------- reading


def _compose(text: str, source: str) -> Node:
    """The document's tree: nodes know their line, and ``kind: no`` is still the text that was written."""
    import yaml

    try:
        node: Node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        problem = ", ".join(part for part in (exc.context, exc.problem) if part)
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise BadArgumentError(f"{where}: not readable as YAML: {problem}") from exc
    except yaml.YAMLError as exc:
        raise BadArgumentError(f"{source}: not readable as YAML: {exc}") from exc
    if node is not None and node.tag == "tag:yaml.org,2002:null":
        return None
    return node


class _Reader:
    """Reads definitions off a YAML tree; every error says the line."""

    def __init__(self, source: str) -> None:
        self.source = source

    def error(self, node: Node, problem: object) -> BadArgumentError:
        return BadArgumentError(f"{self.source}, line {node.start_mark.line + 1}: {problem}")

    @staticmethod
    def is_map(node: Node) -> bool:
        return bool(node.id == "mapping")

    @staticmethod
    def is_null(node: Node) -> bool:
        return bool(node.tag == "tag:yaml.org,2002:null")

    def members(self, node: Node, what: str, allowed: tuple[str, ...]) -> dict[str, Node]:
        if not self.is_map(node):
            raise self.error(node, f"{what} is {_shown(node)}, expected the members {', '.join(allowed)}")
        found: dict[str, Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key.value, str) else "?"
            if name not in allowed:
                raise self.error(key, f"{what} has no member {name!r}, only {', '.join(allowed)}")
            if name in found:
                raise self.error(key, f"{what} has {name!r} twice")
            found[name] = value
        return found

    def items(self, node: Node, what: str) -> list[Node]:
        if node.id != "sequence":
            raise self.error(node, f"{what} is {_shown(node)}, expected a list (items start with '- ')")
        return list(node.value)

    def string(self, node: Node, what: str) -> str:
        if node.id != "scalar" or node.tag != "tag:yaml.org,2002:str":
            hint = f"; quote it: {json.dumps(node.value)}" if node.id == "scalar" and node.value else ""
            raise self.error(node, f"{what} is {_shown(node)}, expected a string{hint}")
        return str(node.value)

    def boolean(self, node: Node, what: str) -> bool:
        value = str(node.value).lower() if node.id == "scalar" else ""
        if value in ("yes", "true", "on"):
            return True
        if value in ("no", "false", "off"):
            return False
        raise self.error(node, f"{what} is {_shown(node)}, expected yes or no")

    def index(self, node: Node) -> IndexDefinition:
        members = self.members(node, "an index", ("kind", "ancestor", "properties"))
        if "kind" not in members:
            raise self.error(node, "an index has no kind")
        kind = self.string(members["kind"], "kind")
        ancestor = self.boolean(members["ancestor"], "ancestor") if "ancestor" in members else False
        properties = members.get("properties")
        nodes = [] if properties is None or self.is_null(properties) else self.items(properties, "properties")
        if not nodes:
            raise self.error(node, f"the index of {kind} has no properties")
        try:
            return IndexDefinition(kind, tuple(self.property(n) for n in nodes), ancestor)
        except BadArgumentError as exc:
            if str(exc).startswith(self.source):
                raise
            raise self.error(node, exc) from None

    def property(self, node: Node) -> tuple[str, str]:
        members = self.members(node, "a property", ("name", "direction", "mode"))
        if "mode" in members:
            raise self.error(members["mode"], "mode (geospatial) is not supported; use direction: asc or desc")
        if "name" not in members:
            raise self.error(node, "a property has no name")
        name = self.string(members["name"], "name")
        if "direction" not in members:
            return name, "asc"
        given = members["direction"]
        direction = {"asc": "asc", "ascending": "asc", "desc": "desc", "descending": "desc"}.get(
            self.string(given, f"direction of {name!r}")
        )
        if direction is None:
            raise self.error(given, f"direction of {name!r} is {given.value!r}, expected asc or desc")
        return name, direction


def _shown(node: Any) -> str:
    if node.id == "mapping":
        return "a mapping"
    if node.id == "sequence":
        return "a list"
    return repr(node.value) if node.value else "empty"
