"""Docstrings are written for readers of the source; this makes Markdown of them for the reference.

``:class:`~a.b.C``` and the like become cross-references, doctests and literal blocks fenced code, simple tables
pipe tables, and ``:raises A, B:`` a line for each.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["ToMarkdown", "to_markdown"]

_ROLE = re.compile(r":\w+:`(?P<short>~)?(?P<target>[\w.]+)`")
_TITLED_ROLE = re.compile(r":\w+:`(?P<title>[^`<]+?)\s*<(?P<target>[\w.]+)>`")
_RAISES = re.compile(r"^:raises (?P<names>\w+(?:, \w+)+):(?P<text>.*(?:\n[ \t]+.*)*)", re.MULTILINE)
_RULE = re.compile(r"^=+(  +=+)+$")


class ToMarkdown(griffe.Extension):
    """The extension that ``mkdocs.yml`` names."""

    def on_object(self, *, obj: griffe.Object, loader: Any, **options: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, obj)
        elif obj.is_special:
            obj.public = False  # a __repr__ is no news


def to_markdown(text: str, owner: griffe.Object | None = None) -> str:
    """A docstring as Markdown; short names are looked for in ``owner`` and around it."""
    text = _RAISES.sub(
        lambda found: "\n".join(f":raises {name}:{found['text']}" for name in found["names"].split(", ")), text
    )
    lines = list(_blocks(text.splitlines()))
    return _outside_of_fences("\n".join(lines), owner)


def _blocks(lines: list[str]) -> Any:
    """The lines, with doctests, literal blocks and tables as Markdown has them."""
    place = 0
    while place < len(lines):
        line = lines[place]
        indent = line[: len(line) - len(line.lstrip())]
        if line.lstrip().startswith(">>> "):
            end = place
            while end < len(lines) and lines[end].strip():
                end += 1
            body = [re.sub(r"\s*# doctest:.*", "", each) for each in lines[place:end]]
            yield from (f"{indent}```pycon", *body, f"{indent}```")
            place = end
        elif line.rstrip().endswith("::") and place + 2 < len(lines) and not lines[place + 1].strip():
            head = line.rstrip()[:-1].rstrip(":").rstrip()
            yield from ([f"{head}:", ""] if head.strip() else [""])
            place += 2
            end = place
            deeper = len(indent) + 1
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" " * deeper)):
                end += 1
            body = lines[place:end]
            while body and not body[-1].strip():
                body.pop()
            outer = len(body[0]) - len(body[0].lstrip()) if body else 0
            language = "python" if any("import " in each or "await " in each for each in body) else "text"
            yield from (f"{indent}```{language}", *(each[outer:] for each in body), f"{indent}```", "")
            place = end
        elif _RULE.match(line):
            end = place + 1
            rules = 1
            while end < len(lines) and rules < 3:
                rules += bool(_RULE.match(lines[end]))
                end += 1
            yield from _table(lines[place:end])
            place = end
        else:
            yield line
            place += 1


def _table(lines: list[str]) -> Any:
    starts = [found.start() for found in re.finditer("=+", lines[0])]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    rows: list[list[str]] = []
    for line in lines[1:]:
        if _RULE.match(line):
            continue
        cells = [line[start:end].strip() for start, end in spans]
        if cells[0] or not rows:
            rows.append(cells)
        else:  # goes on
            rows[-1] = [f"{before} {more}".strip() for before, more in zip(rows[-1], cells, strict=True)]
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    yield from ("", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}")
    yield from (f"| {' | '.join(row)} |" for row in body)
    yield ""


def _outside_of_fences(text: str, owner: griffe.Object | None) -> str:
    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("```") else _references(part, owner) for part in parts)


def _references(text: str, owner: griffe.Object | None) -> str:
    text = _TITLED_ROLE.sub(lambda found: _link(found["title"], found["target"]), text)
    return _ROLE.sub(lambda found: _reference(found["target"], bool(found["short"]), owner), text)


def _reference(target: str, short: bool, owner: griffe.Object | None) -> str:
    shown = target.rsplit(".", 1)[-1] if short else target
    path = target
    scope: Any = owner
    while scope is not None and not target.startswith("aiodatastore."):
        first, _, rest = target.partition(".")
        if first in scope.members:
            path = f"{scope.path}.{first}" + (f".{rest}" if rest else "")
            break
        scope = scope.parent
    if not path.startswith("aiodatastore."):
        return f"`{shown}`"
    return _link(shown, path)


def _link(shown: str, path: str) -> str:
    # Optional: docstrings also refer to what is no interface, and so is not in the reference.
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'
