"""The grammar of composed URLs: ``cached{staleness_s=5}:postgresql://localhost/shop``.

::

    store      = URL | shim | collection | mounted
    shim       = name [settings] ":" store
    collection = name [settings] ":" "{" store *( "|" store ) "}"
    mounted    = name [settings] ":" "{" mount *( "|" mount ) "}"
    mount      = pattern "=" store
    settings   = "{" setting *( "&" setting ) "}"
    setting    = name "=" ( text | "{" store "}" )

The three characters ``{ | }`` can't stand in a URL as they are, which is why this is unambiguous: where a path, a name
or a value has one, write ``%7B %7C %7D``. Blanks around stores, bars and braces don't count. The text of a setting and
the pattern of a mount are percent-decoded, a plus sign is a plus sign; URLs are handed on as they are. A URL that
stands alone is not looked at by this grammar.

>>> parse("sharded{by=group}:{memory:// | redis://me:secret@localhost}")
Node(name='sharded', where='character 1', settings=(Setting(name='by', where='character 9'),), \
children=(Leaf('memory://…', 'character 20'), Leaf('redis://…', 'character 32')), patterns=None, braced=True)

There may be passwords in URLs and keys in settings: what represents them does not show them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from aiodatastore.errors import BadArgumentError

__all__ = ["MAX_DEPTH", "Leaf", "Node", "Setting", "is_composed", "leaves", "parse"]

MAX_DEPTH: Final = 32
"""How deep stores may be nested in one another."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^{|}]*")
_COMPOSED: Final = re.compile(r"\s*[a-z][a-z0-9_]*(\{|:(?!//))", re.DOTALL)
_BLANK: Final = " \t\r\n"
_SECOND: Final = re.compile(r"[ \t\r\n][^ \t\r\n]*://")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A store by its URL; ``options`` are what a file says beside it. ``where``: its place, for messages."""

    url: str
    where: str
    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"Leaf('{self.url.partition('://')[0]}://…', {self.where!r})"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as it was written: text (``offset``: where it begins), or a store."""

    name: str
    value: str | Leaf | Node = field(repr=False)
    where: str
    offset: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True)
class Node:
    """A shim or collection by its name, with what it holds.

    ``patterns`` are those of a ``mounted``, one for each child, else None; ``braced``: whether the children were
    written as a list.
    """

    name: str
    where: str
    settings: tuple[Setting, ...] = ()
    children: tuple[Leaf | Node, ...] = ()
    patterns: tuple[str, ...] | None = None
    braced: bool = False


def is_composed(text: str) -> bool:
    """Whether this is to be read by the grammar: a name with settings or a colon, and a URL somewhere.

    >>> is_composed("logged:memory://"), is_composed("memory://"), is_composed("sqlite:tasks.db")
    (True, False, False)
    """
    return "://" in text and _COMPOSED.match(text) is not None


def leaves(node: Leaf | Node) -> Iterator[Leaf]:
    """The stores that a composition is made of, in order; those in settings left out."""
    if isinstance(node, Leaf):
        yield node
    else:
        for child in node.children:
            yield from leaves(child)


def parse(text: str, *, offset: int = 0) -> Leaf | Node:
    """What a composed URL says. Nothing is looked up or made. ``offset`` is added to the places in messages.

    :raises BadArgumentError: if it is malformed, or nested deeper than :data:`MAX_DEPTH`; the message says where, and
        shows nothing of the text, which may hold passwords
    """
    reader = _Reader(text, offset)
    node = reader.store(0)
    reader.skip_blanks()
    if reader.at < len(text):
        raise reader.error(f"expected the end, found {text[reader.at]!r}; write {{ | }} in URLs as %7B %7C %7D")
    return node


class _Reader:
    """Reads a text from front to back; ``at`` is the place of the next character."""

    def __init__(self, text: str, offset: int) -> None:
        self.text = text
        self.at = 0
        self._offset = offset

    def where(self, at: int) -> str:
        return f"character {at + self._offset + 1}"

    def error(self, message: str, at: int | None = None) -> BadArgumentError:
        place = self.where(self.at if at is None else at)
        return BadArgumentError(f"composed URL, {place}: {message}")

    def skip_blanks(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in _BLANK:
            self.at += 1

    def take(self, character: str) -> bool:
        if self.text.startswith(character, self.at):
            self.at += 1
            return True
        return False

    def store(self, depth: int) -> Leaf | Node:
        if depth >= MAX_DEPTH:
            raise self.error(f"stores are nested more than {MAX_DEPTH} deep")
        self.skip_blanks()
        start = self.at
        url = _URL.match(self.text, start)
        if url is not None:
            second = _SECOND.search(url[0])
            if second is not None:
                raise self.error("two stores with nothing between them: expected |", start + second.start() + 1)
            self.at = url.end()
            return Leaf(url[0].rstrip(_BLANK), self.where(start))
        name = _NAME.match(self.text, start)
        if name is None or self.text[name.end() : name.end() + 1] not in (":", "{"):
            raise self.error("expected a store's URL such as memory://, or a shim such as logged:memory://")
        self.at = name.end()
        settings = self.settings(name[0]) if self.take("{") else ()
        if not self.take(":"):
            raise self.error(f"{name[0]}: expected a colon and what it holds, as in {name[0]}:memory://")
        self.skip_blanks()
        where = self.where(start)
        if not self.take("{"):
            return Node(name[0], where, settings, (self.store(depth + 1),))
        children: list[Leaf | Node] = []
        patterns: list[str] = []
        while True:
            pattern = self.pattern()
            if pattern is not None:
                patterns.append(pattern)
            elif patterns:
                raise self.error(f"{name[0]}: expected pattern=URL, as before")
            children.append(self.store(depth + 1))
            if len(patterns) not in (0, len(children)):
                raise self.error(f"{name[0]}: either all that it holds have a pattern, or none")
            self.skip_blanks()
            if self.take("}"):
                return Node(name[0], where, settings, tuple(children), tuple(patterns) if patterns else None, True)
            if not self.take("|"):
                raise self.error(f"{name[0]}: expected | and another, or }} at the end of what it holds")

    def pattern(self) -> str | None:
        """The pattern of a mount, if there is one here: what is before the first ``=`` that no URL has begun before."""
        self.skip_blanks()
        found = re.compile(r"([^={|}]*)=").match(self.text, self.at)
        if found is None or "://" in found[1]:
            return None
        start, self.at = self.at, found.end()
        return self.decoded(found[1].strip(_BLANK), start)

    def settings(self, shim: str) -> tuple[Setting, ...]:
        settings: dict[str, Setting] = {}
        while True:
            self.skip_blanks()
            if not settings and self.take("}"):
                return ()
            start = self.at
            name = _NAME.match(self.text, start)
            if name is None or self.text[name.end() : name.end() + 1] != "=":
                raise self.error(f"{shim}: expected a setting as name=value")
            self.at = name.end() + 1
            if name[0] in settings:
                raise self.error(f"{shim}: {name[0]} is given twice", start)
            settings[name[0]] = self.value(shim, name[0], start)
            self.skip_blanks()
            if self.take("}"):
                return tuple(settings.values())
            if not self.take("&"):
                raise self.error(f"{shim}: expected & and another setting, or }} at the end of the settings")

    def value(self, shim: str, name: str, start: int) -> Setting:
        if not self.take("{"):
            begin = self.at
            while self.at < len(self.text) and self.text[self.at] not in "&{|}":
                self.at += 1
            text = self.decoded(self.text[begin : self.at], begin)
            return Setting(name, text, self.where(start), begin + self._offset)
        begin = self.at
        open_braces = 1
        while open_braces:
            if self.at == len(self.text):
                raise self.error(f"{shim}: the brace of {name} is not closed", begin - 1)
            open_braces += {"{": 1, "}": -1}.get(self.text[self.at], 0)
            self.at += 1
        return Setting(name, self.text[begin : self.at - 1], self.where(start), begin + self._offset)

    def decoded(self, text: str, at: int) -> str:
        try:
            return unquote(text, errors="strict")
        except UnicodeDecodeError as exc:
            raise self.error("percent signs that do not decode as UTF-8", at) from exc
