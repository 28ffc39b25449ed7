"""From what a composed URL or a file says to an adapter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from aiodatastore.adapters import registry
from aiodatastore.composing.grammar import MAX_DEPTH, Leaf, Node, Setting, parse
from aiodatastore.composing.names import Form, Known, find
from aiodatastore.errors import BadArgumentError, DatastoreError

if TYPE_CHECKING:
    from aiodatastore.adapters.base import Adapter

__all__ = ["build", "from_text"]

_SHOWN: Final = (registry.parse_int, registry.parse_float, registry.parse_bool)
"""Readers of settings whose text may stand in messages; any other may be a secret."""

_depth: ContextVar[int] = ContextVar("aiodatastore_composing_depth", default=0)
"""How deep what is being built is nested: through files and settings, too, which may name one another."""


def from_text(text: str, options: Mapping[str, Any]) -> Adapter:
    """The adapter of a composed URL. ``options`` go to every store of it that knows them.

    :raises BadArgumentError: if it is malformed, a shim or setting is unknown, or a combination is refused
    """
    return build(parse(text), options)


def build(node: Leaf | Node, options: Mapping[str, Any]) -> Adapter:
    """The adapter of a parsed composition.

    :raises BadArgumentError: as :func:`from_text` does
    """
    used: set[str] = set()
    adapter = _built(node, options, used)
    for name in options:
        if name not in used:
            raise registry.UnknownOptionError(f"no store of this composition knows an option {name!r:.100}", name)
    return adapter


@contextmanager
def _deeper(where: str) -> Iterator[None]:
    depth = _depth.get()
    if depth >= MAX_DEPTH:
        raise BadArgumentError(f"{where}: stores are nested more than {MAX_DEPTH} deep")
    token = _depth.set(depth + 1)
    try:
        yield
    finally:
        _depth.reset(token)


def _built(node: Leaf | Node, options: Mapping[str, Any], used: set[str]) -> Adapter:
    with _deeper(node.where):
        return _leaf(node, options, used) if isinstance(node, Leaf) else _shim(node, options, used)


def _leaf(leaf: Leaf, options: Mapping[str, Any], used: set[str]) -> Adapter:
    own = dict(leaf.options)
    for name in own.keys() & options.keys():
        raise BadArgumentError(f"{leaf.where}: {name} is given there and as an argument; give it once")
    offered = dict(options)
    while True:  # only the store itself knows what it knows
        try:
            adapter = registry.adapter_from_url(leaf.url, **own, **offered)
        except registry.UnknownOptionError as exc:
            if exc.option not in offered:
                raise BadArgumentError(f"{leaf.where}: {exc}") from None
            del offered[exc.option]
        except BadArgumentError as exc:
            raise BadArgumentError(f"{leaf.where}: {exc}") from None
        else:
            used.update(offered)
            return adapter


def _shim(node: Node, options: Mapping[str, Any], used: set[str]) -> Adapter:
    place = f"{node.name} ({node.where})"
    try:
        known = find(node.name)
    except BadArgumentError as exc:
        raise BadArgumentError(f"{node.where}: {exc}") from None
    except ImportError as exc:
        raise BadArgumentError(f"{place} can't be used: {exc}") from exc
    _check_form(node, known.form, place)
    settings = {setting.name: _value(setting, known, place) for setting in node.settings}
    _check_complete(known, settings, place)
    children = [_built(child, options, used) for child in node.children]
    held: Any = children
    if known.form == "child":
        (held,) = children
    elif known.form == "mounts":
        held = dict(zip(node.patterns or (), children, strict=True))
    try:
        adapter: Adapter = known.make(held, **settings)
    except BadArgumentError as exc:
        raise BadArgumentError(f"{place}: {exc}") from None
    except DatastoreError as exc:
        exc.add_note(f"raised by {place}")
        raise
    return adapter


def _check_form(node: Node, form: Form, place: str) -> None:
    count = len(node.children)
    if form == "child" and (count != 1 or node.patterns is not None):
        got = "patterns" if node.patterns is not None else f"{count} stores"
        raise BadArgumentError(f"{place} holds one store, as in {node.name}:memory://; got {got}")
    if form == "children" and (not node.braced or node.patterns is not None):
        got = "patterns" if node.patterns is not None else "one without braces"
        raise BadArgumentError(f"{place} holds several stores, as in {node.name}:{{URL | URL}}; got {got}")
    if form == "mounts":
        if node.patterns is None:
            raise BadArgumentError(
                f"{place} holds stores with patterns, as in {node.name}:{{Person=URL | *=URL}}; got none"
            )
        for pattern in node.patterns:
            if node.patterns.count(pattern) > 1:
                raise BadArgumentError(f"{place}: the pattern {pattern!r:.80} is given twice")


def _value(setting: Setting, known: Known, place: str) -> Any:
    name, value = setting.name, setting.value
    read = known.settings.get(name)
    if read is None:
        knows = f"it knows {', '.join(sorted(known.settings))}" if known.settings else "it has none"
        raise BadArgumentError(f"{place}: unknown setting {name!r:.80} at {setting.where}; {knows}")
    where = f"{place}, {name} at {setting.where}"
    try:
        if not isinstance(value, str):
            if read is not registry.adapter_from_url:
                raise BadArgumentError("expected text or a number, got a store")
            return _built(value, {}, set())
        if read is registry.adapter_from_url:
            with _deeper(setting.where):
                return _built(parse(value, offset=setting.offset), {}, set())
        return _read(read, value)
    except (BadArgumentError, ValueError) as exc:
        # Not "from exc": what is printed with it may have been made of the text.
        raise BadArgumentError(f"{where}: {exc}") from None


def _read(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except (BadArgumentError, ValueError) as exc:
        if read in _SHOWN:
            got = "" if "://" in text else f", got {text!r:.80}"  # a URL at the wrong place may have a password
            raise ValueError(f"{exc}{got}") from None
        told = str(exc)
        if text and text in told:  # it may be a key
            raise ValueError(f"{getattr(read, '__name__', 'the setting')} can't read it") from None
        raise ValueError(told) from None


def _check_complete(known: Known, settings: Mapping[str, Any], place: str) -> None:
    """What has no default must be given: told here, as a ``TypeError`` would not name what is missing where."""
    try:
        parameters = list(inspect.signature(known.make).parameters.values())[1:]
    except (TypeError, ValueError):  # something that has no signature, in C
        return
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name in settings:
            continue
        if parameter.default is parameter.empty:
            if parameter.name in known.settings:
                raise BadArgumentError(f"{place}: the setting {parameter.name} is missing")
            raise BadArgumentError(f"{place} can only be made in code: it needs {parameter.name}")
