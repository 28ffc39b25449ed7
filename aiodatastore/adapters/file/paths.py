"""Where an entity's file is: keys as paths that are valid, and differ, on every file system.

``Key("Country", "GB", "City", 2643743)`` is ``Country/GB/City/2643743.json``; its parent ``Country/GB.json``.
Different keys have paths that differ even where a file system ignores case or normalises Unicode:

- An id is its digits. A name of digits only has its first one escaped (``%37``).
- ``%XX`` (bytes of UTF-8) stands for what some file system does not take: ``< > : " / \\ | ? * % ^ ~``, control
  characters, blanks and dots at either end, ``@`` at the beginning, the first letter of a name that Windows reserves
  (``con``, ``nul.txt``), the dot of a name that ends as the files do, marks, letters without a plain pair of cases,
  and characters that Unicode may still change.
- The expected case is ``Title`` for kinds, ``lower`` for names, and ``GB`` for names of two ASCII letters. Where a text
  differs, ``^`` and a hexadecimal number follow, whose bit n says that character n is of the other case: ``London^1``.
- What would be longer than 180 bytes is cut, with ``^^`` and a digest of all of it: the file then says its key.
- A namespace is a folder ``@namespace``, a project ``@@project``, above the kinds. Paths of more than 800 bytes are
  ``@@/`` and a digest.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from aiodatastore.errors import DatastoreError
from aiodatastore.indexing.encoding import decode_key, encode_key
from aiodatastore.key import MAX_ID, Key

__all__ = [
    "LONG",
    "PathError",
    "Place",
    "escape",
    "key_of",
    "kind_place",
    "parse_kind_path",
    "parse_path",
    "place_of",
    "unescape",
]

MAX_COMPONENT = 180
MAX_PATH = 800
LONG = "@@"
"""The folder of paths that are digests."""

_KEEP = 90
_SIMPLE_NAME = re.compile(r"[a-z_][a-z0-9_-]*")
_SIMPLE_KIND = re.compile(r"[A-Z][a-z0-9_-]*")
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$", "clock$"]
    + [f"{port}{n}" for port in ("com", "lpt") for n in range(10)]
)
_ASCII_ESCAPED = frozenset('<>:"/\\|?*%^~\x7f') | {chr(n) for n in range(32)}
_ESCAPE = re.compile(r"(?:%[0-9A-F]{2})+")
_SUFFIX = re.compile(r"\^([1-9a-f][0-9a-f]*)")
_CUT = re.compile(r"\^\^[0-9a-f]{32}")
_LONG_NAME = re.compile(r"[0-9a-f]{40}")
_ID = re.compile(r"[1-9][0-9]{0,18}")


class PathError(ValueError):
    """A path is not that of any key; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path below the store's folder, with ``/``, and whether the key can be told from it."""

    path: str
    is_exact: bool = True


# -------------------------------------------------------------------------------------- components


@lru_cache(maxsize=4096)
def escape(text: str, extension: str = ".json", *, is_kind: bool = False) -> str:
    """One element of a path; :func:`unescape` is the inverse. It may be cut: then it holds ``^^``.

    ``extension``: what files of the store end with, and no folder may.
    """
    if _SIMPLE_NAME.fullmatch(text) and len(text) < 100 and not is_kind and text not in _RESERVED and len(text) != 2:
        return text
    stem = _escape(text, extension)
    mask = _case_mask(text, is_kind)
    escaped = f"{stem}^{mask:x}" if mask else stem
    if len(escaped.encode()) <= MAX_COMPONENT:
        return escaped
    kept = _cut(stem, _KEEP)
    return f"{kept}^^{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _escape(text: str, extension: str) -> str:
    last = len(text) - 1
    marked = {0} if _needs_mark(text) else set()
    if text[0] in " .@":
        marked.add(0)
    for place in range(last, -1, -1):  # a file system may drop all of them
        if text[place] not in " .":
            break
        marked.add(place)
    if text.casefold().endswith(extension):
        marked.add(len(text) - len(extension))
    out = [_hexed(char) if place in marked or not _is_plain(char) else char for place, char in enumerate(text)]
    escaped = "".join(out)
    if not unicodedata.is_normalized("NFC", escaped):  # letters that compose with each other
        escaped = "".join(char if char.isascii() else _hexed(char) for char in escaped)
    return escaped


def _needs_mark(text: str) -> bool:
    """Whether it is what an id looks like, or what Windows takes for a device."""
    return (text.isascii() and text.isdigit()) or text.partition(".")[0].rstrip(" ").lower() in _RESERVED


def _hexed(char: str) -> str:
    return "".join([f"%{byte:02X}" for byte in char.encode()])


@lru_cache(maxsize=4096)
def _is_plain(char: str) -> bool:
    """Whether a character may stand for itself anywhere: no file system changes it but for its case.

    By Unicode 3.2, which all that run Python know and whose case foldings are fixed for ever.
    """
    if char.isascii():
        return char not in _ASCII_ESCAPED
    old = unicodedata.ucd_3_2_0
    if old.category(char) not in ("Lu", "Ll", "Lo", "Nd") or not unicodedata.is_normalized("NFKC", char):
        return False
    if old.normalize("NFKC", char) != char or 0x1100 <= ord(char) < 0x1200:  # jamo compose with each other
        return False
    folded = char.casefold()
    upper = folded.upper()
    return (
        len(folded) == 1
        and len(upper) == 1
        and char in (folded, upper)
        and folded.casefold() == folded
        and upper.casefold() == folded
        and upper.lower() == folded
        and char.lower() == folded
        and (char == folded or old.category(char) == "Lu")
    )


def _case_mask(text: str, is_kind: bool) -> int:
    """Bit n: character n is not of the case that is expected. Only characters that stand for themselves count."""
    capitals = 2 if not is_kind and len(text) == 2 and text.isascii() and text.isalpha() else int(is_kind)
    mask = 0
    for place, char in enumerate(text):
        folded = char.casefold()
        if folded == char and char.upper() == char:
            continue
        is_upper = char != folded
        if is_upper != (place < capitals) and _is_plain(char):
            mask |= 1 << place
    return mask


def _cut(stem: str, size: int) -> str:
    """At most so many bytes, without half an escape or character at the end, nor a dot or blank."""
    kept = stem.encode()[:size].decode(errors="ignore")
    return re.sub(r"(?:%[0-9A-F]{0,2})+$", "", kept).rstrip(". ") or "long"


def unescape(component: str, extension: str = ".json", *, is_kind: bool = False) -> str | None:
    """The text of a component; None if it was cut.

    :raises PathError: if no text gives this component; the message names the one it should be
    """
    component = unicodedata.normalize("NFC", component)  # as written to file systems that decompose
    if _CUT.search(component):
        return None
    stem, _, _ = component.partition("^")
    try:
        text = _ESCAPE.sub(lambda match: bytes.fromhex(match[0].replace("%", "")).decode(), stem)
    except UnicodeDecodeError as exc:
        raise PathError(f"{component!r} has percent signs that are no UTF-8") from exc
    if not text:
        raise PathError(f"{component!r} is no name")
    right = escape(text, extension, is_kind=is_kind)
    if right != component:
        raise PathError(f"{component!r} should be {right!r}")
    return text


# ------------------------------------------------------------------------------------------- paths


def place_of(encoded: bytes, extension: str) -> Place | None:
    """The place of an encoded key's file; None if the bytes are no key's."""
    key = key_of(encoded)
    if key is None:
        return None
    parts = _partition_parts(key.project, key.namespace, extension)
    for kind, ident in key.pairs:
        parts.append(_kind(kind, extension))
        parts.append(str(ident) if type(ident) is int else escape(str(ident), extension))
    path = "/".join(parts) + extension
    if len(path) > 200 and len(path.encode()) > MAX_PATH:
        digest = hashlib.blake2b(encoded, digest_size=20).hexdigest()
        return Place(f"{LONG}/{digest[:2]}/{digest}{extension}", is_exact=False)
    return Place(path, "^^" not in path)


def key_of(encoded: bytes) -> Key | None:
    """The key of these bytes, None if they are none: a store that is used without an engine may have any."""
    try:
        key = decode_key(encoded)
    except DatastoreError:
        return None
    for kind, ident in key.pairs:
        if not kind or not ident or (type(ident) is int and ident > MAX_ID):
            return None
    again = Key._make(key.project, key.namespace, key.pairs)  # the decoded one remembers what it was decoded from
    return key if encode_key(again) == encoded else None


def _partition_parts(project: str, namespace: str, extension: str) -> list[str]:
    parts = []
    if project:
        parts.append("@@" + escape(project, extension))
    if namespace:
        parts.append("@" + escape(namespace, extension))
    return parts


@lru_cache(maxsize=1024)
def _kind(kind: str, extension: str) -> str:
    if _SIMPLE_KIND.fullmatch(kind) and len(kind) < 100 and kind.lower() not in _RESERVED:
        return kind
    return escape(kind, extension, is_kind=True)


def parse_path(path: str, extension: str) -> bytes | None:
    """The encoded key whose file this is; None where only the file itself can tell.

    :raises PathError: if it is no key's
    """
    parts = path.removesuffix(extension).split("/")
    if parts[0] == LONG:
        if len(parts) != 3 or not _LONG_NAME.fullmatch(parts[2]) or parts[1] != parts[2][:2]:
            raise PathError("it is in the folder of digests and none itself")
        return None
    project, namespace = _take_partition(parts, extension)
    if len(parts) % 2 or not parts:
        raise PathError("it is not at Kind/name, or Kind/name/Kind/name and so on")
    pairs: list[tuple[str, int | str | None]] = []
    is_exact = True
    for place in range(0, len(parts), 2):
        kind = unescape(parts[place], extension, is_kind=True)
        ident = parts[place + 1]
        if _ID.fullmatch(ident) and int(ident) <= MAX_ID:
            pairs.append((kind or "", int(ident)))
            name: str | None = ident
        else:
            name = unescape(ident, extension)
            pairs.append((kind or "", name))
        is_exact = is_exact and kind is not None and name is not None
    if not is_exact or project is None or namespace is None:
        return None
    return _checked(project, namespace, pairs)


def _checked(project: str, namespace: str, pairs: list[tuple[str, int | str | None]]) -> bytes:
    try:
        key = Key(*[part for pair in pairs for part in pair], project=project, namespace=namespace)
        return encode_key(key)
    except DatastoreError as exc:
        raise PathError(str(exc)) from exc


def _take_partition(parts: list[str], extension: str) -> tuple[str | None, str | None]:
    """Remove what stands for project and namespace from the front; None for one that was cut."""
    project: str | None = ""
    namespace: str | None = ""
    if parts[0].startswith("@@"):
        project = unescape(parts.pop(0)[2:], extension)
    if parts and parts[0].startswith("@"):
        namespace = unescape(parts.pop(0)[1:], extension)
    return project, namespace


# --------------------------------------------------------------------------- one file for all of a kind


def kind_place(encoded: bytes, extension: str) -> Place | None:
    """The place of the file that holds all entities of a key's partition and kind; None if it is no key."""
    key = key_of(encoded)
    if key is None:
        return None
    return _kind_place(key.project, key.namespace, key.kind, extension)


@lru_cache(maxsize=1024)
def _kind_place(project: str, namespace: str, kind: str, extension: str) -> Place:
    return Place("/".join([*_partition_parts(project, namespace, extension), _kind(kind, extension)]) + extension)


def parse_kind_path(path: str, extension: str) -> tuple[str | None, str | None, str | None]:
    """Project, namespace and kind (None for one that was cut) of a file that holds all of a kind.

    :raises PathError: if it is no kind's
    """
    parts = path.removesuffix(extension).split("/")
    project, namespace = _take_partition(parts, extension)
    if len(parts) != 1:
        raise PathError("it is neither Kind nor @namespace/Kind")
    return project, namespace, unescape(parts[0], extension, is_kind=True)
