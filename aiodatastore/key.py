"""Keys: the names of entities.

A key is a path of (kind, id or name) pairs from a root entity down, inside a partition (project and
namespace). Keys are plain values: they are made without asking the store, and two equal keys are the same
key everywhere.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

from aiodatastore.errors import BadArgumentError, BadKeyError, BadValueError

__all__ = ["MAX_ID", "MAX_NAME_BYTES", "MAX_NAMESPACE_LENGTH", "MAX_PATH_ELEMENTS", "Key"]

MAX_ID: Final = (1 << 63) - 1
"""The greatest numeric id."""
MAX_NAME_BYTES: Final = 1500
"""The greatest length of a kind or of a key's name, in bytes of UTF-8."""
MAX_NAMESPACE_LENGTH: Final = 100
"""The greatest length of a namespace (and of a project), in characters."""
MAX_PATH_ELEMENTS: Final = 100
"""The greatest number of (kind, id or name) pairs in a path."""

_NAMESPACE = re.compile(r"[0-9A-Za-z._-]{0,100}")
_PROJECT = re.compile(r"[0-9A-Za-z._:~-]{0,100}")
_NEEDS_ESCAPE = re.compile('[\x00-\x1f\x7f-\x9f%/:"\u2028\u2029]')
_ID_TEXT = re.compile(r"[1-9][0-9]{0,18}")
_DIGITS = re.compile(r"[0-9]+")
_READABLE = re.compile(r"(?:(?P<project>[^/!]*)!)?(?P<namespace>[^/!]*)(?P<path>/.*)", re.DOTALL)

Pair = tuple[str, "int | str | None"]


class Key:
    """The name of an entity: a path of kinds and ids (numbers) or names (strings), within a partition.

    Keys are immutable, hashable, and totally ordered: by project, namespace, then the path element by
    element (kind, then ids before names), an ancestor before its descendants. A key whose last element has
    neither id nor name is incomplete: the store completes it when its entity is put.

    >>> ada = Key("Person", "ada")
    >>> task = Key("Task", 7, parent=ada)
    >>> task
    Key('Person', 'ada', 'Task', 7)
    >>> task.parent == ada, task.kind, task.id
    (True, 'Task', 7)
    >>> ada < task < Key("Person", "bob")
    True
    >>> print(Key("Country", "GB", "City", 2643743))
    /Country:GB/City:2643743
    >>> ada.child("Task").is_complete
    False

    A kind or name takes 1 to 1500 bytes of UTF-8, an id is 1 to 2**63-1, a path has at most 100 elements, a
    namespace is up to 100 of ``0-9A-Za-z._-`` (a project of these and ``:~``).

    :raises BadArgumentError: a kind, id or name of a wrong type, a bad kind, namespace or parent, no path
    :raises BadValueError: an empty or too long name, an id out of range
    :raises BadKeyError: an incomplete parent or inner element, too many elements
    """

    __slots__ = ("_encoded", "_hash", "_namespace", "_order", "_pairs", "_project")

    _project: str
    _namespace: str
    _pairs: tuple[Pair, ...]
    _hash: int | None
    _order: tuple[Any, ...] | None
    _encoded: bytes | None

    def __init__(
        self, *path: Any, parent: Any = None, namespace: str | None = None, project: str | None = None
    ) -> None:
        pairs = _pairs_of(path)
        if parent is not None:
            above = _parent_key(parent)
            if namespace is not None and namespace != above._namespace:
                raise BadArgumentError(
                    f"namespace {namespace!r} is not the parent's ({above._namespace!r}); leave it out"
                )
            if project is not None and project != above._project:
                raise BadArgumentError(f"project {project!r} is not the parent's ({above._project!r}); leave it out")
            namespace, project, pairs = above._namespace, above._project, above._pairs + pairs
        if len(pairs) > MAX_PATH_ELEMENTS:
            raise BadKeyError(f"a key has at most {MAX_PATH_ELEMENTS} elements, this one has {len(pairs)}")
        self._project = check_project(project)
        self._namespace = check_namespace(namespace)
        self._pairs = pairs
        self._hash = None
        self._order = None
        self._encoded = None

    @classmethod
    def _make(cls, project: str, namespace: str, pairs: tuple[Pair, ...]) -> Key:
        """A key of parts known to be valid: nothing is checked."""
        self = _new(cls)
        self._project = project
        self._namespace = namespace
        self._pairs = pairs
        self._hash = None
        self._order = None
        self._encoded = None
        return self

    @classmethod
    def from_path(
        cls,
        *path: Any,
        parent: Any = None,
        namespace: str | None = None,
        project: str | None = None,
        **extra: object,
    ) -> Key:
        """A key of whole (kind, id or name) pairs, as App Engine's ``Key.from_path``.

        Unlike the constructor it refuses a path of odd length and None in place of an id, which catches a
        forgotten argument; an id of 0 makes the key incomplete.

        :raises BadArgumentError: also for an unknown keyword
        """
        if extra:
            raise BadArgumentError(f"unknown argument {next(iter(extra))!r} (not parent, namespace, project)")
        if not path or len(path) % 2:
            raise BadArgumentError(f"expected pairs of kind and id or name, got {len(path)} arguments")
        if path[-1] is None:
            raise BadArgumentError("expected an id or a name after the last kind, not None (0: incomplete)")
        return cls(*path, parent=parent, namespace=namespace, project=project)

    # ------------------------------------------------------------------------------------- its parts

    @property
    def project(self) -> str:
        """The project of the partition; "" is the default one."""
        return self._project

    @property
    def namespace(self) -> str:
        """The namespace of the partition; "" is the default one."""
        return self._namespace

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The path as (kind, id or name) pairs; an incomplete key's last pair ends with None."""
        return self._pairs

    @property
    def path(self) -> tuple[int | str, ...]:
        """The path as one flat tuple; an incomplete key's ends with its kind."""
        flat: list[int | str] = []
        for kind, ident in self._pairs:
            flat.append(kind)
            if ident is not None:
                flat.append(ident)
        return tuple(flat)

    @property
    def kind(self) -> str:
        """The kind of the last element."""
        return self._pairs[-1][0]

    @property
    def id_or_name(self) -> int | str | None:
        """The last element's id or name; None if the key is incomplete."""
        return self._pairs[-1][1]

    @property
    def id(self) -> int | None:
        """The last element's numeric id, or None."""
        ident = self._pairs[-1][1]
        return ident if type(ident) is int else None

    @property
    def name(self) -> str | None:
        """The last element's name, or None."""
        ident = self._pairs[-1][1]
        return ident if type(ident) is str else None

    @property
    def is_complete(self) -> bool:
        """Whether the last element has an id or a name."""
        return self._pairs[-1][1] is not None

    @property
    def parent(self) -> Key | None:
        """The key one element shorter, or None for a root."""
        pairs = self._pairs
        return Key._make(self._project, self._namespace, pairs[:-1]) if len(pairs) > 1 else None

    @property
    def root(self) -> Key:
        """The key of the first element: App Engine's entity group."""
        pairs = self._pairs
        return Key._make(self._project, self._namespace, pairs[:1]) if len(pairs) > 1 else self

    # ------------------------------------------------------------------------------ other keys from it

    def child(self, kind: str, id_or_name: int | str | None = None) -> Key:
        """The key of an element below this one; incomplete without an id or name.

        :raises BadKeyError: if this key is incomplete
        """
        return Key(kind, id_or_name, parent=self)

    def completed(self, id_or_name: int | str) -> Key:
        """This incomplete key with an id or name.

        :raises BadKeyError: if it is complete already
        """
        *above, (kind, ident) = self._pairs
        if ident is not None:
            raise BadKeyError(f"{self!r} is complete already")
        (last,) = _pairs_of((kind, id_or_name))
        if last[1] is None:
            raise BadArgumentError(f"expected an id or a name, got {id_or_name!r}")
        return Key._make(self._project, self._namespace, (*above, last))

    def is_ancestor_of(self, other: Key) -> bool:
        """Whether ``other`` is below this key. No key is its own ancestor."""
        length = len(self._pairs)
        return (
            length < len(other._pairs)
            and other._pairs[:length] == self._pairs
            and other._namespace == self._namespace
            and other._project == self._project
        )

    def is_descendant_of(self, other: Key) -> bool:
        """Whether this key is below ``other``. No key is its own descendant."""
        return other.is_ancestor_of(self)

    # ------------------------------------------------------------------------------------ comparisons

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Key):
            return NotImplemented
        return self._pairs == other._pairs and self._namespace == other._namespace and self._project == other._project

    def __hash__(self) -> int:
        value = self._hash
        if value is None:
            value = self._hash = hash((self._pairs, self._namespace, self._project))
        return value

    def _sort_key(self) -> tuple[Any, ...]:
        """What orders keys: strings by code point, which is the order of their UTF-8 bytes."""
        order = self._order
        if order is None:
            flat: list[Any] = [self._project, self._namespace]
            for kind, ident in self._pairs:
                rank = 1 if type(ident) is int else 0 if ident is None else 2
                flat += (kind, rank, ident)
            order = self._order = tuple(flat)
        return order

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return self._sort_key() < other._sort_key()

    def __le__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return self._sort_key() <= other._sort_key()

    def __gt__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return self._sort_key() > other._sort_key()

    def __ge__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return self._sort_key() >= other._sort_key()

    def __reduce__(self) -> tuple[Any, ...]:
        return Key._make, (self._project, self._namespace, self._pairs)

    def __copy__(self) -> Key:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Key:
        return self

    # ------------------------------------------------------------------------------------ forms as text

    def __repr__(self) -> str:
        parts = [repr(part) for part in self.path]
        if self._namespace:
            parts.append(f"namespace={self._namespace!r}")
        if self._project:
            parts.append(f"project={self._project!r}")
        return f"Key({', '.join(parts)})"

    def __str__(self) -> str:
        """The readable form; :meth:`from_string` is its exact inverse.

        Ids are bare digits, names that are nothing but digits are quoted; control characters and ``% / : "``
        are percent-escaped; an incomplete key ends with its kind. A namespace, and a project with ``!``, go
        before the first slash.

        >>> print(Key("A", 5, "B", "5", "a/b", "x:y", namespace="geo", project="p"))
        p!geo/A:5/B:"5"/a%2Fb:x%3Ay
        """
        parts = [f"{self._project}!" if self._project else "", self._namespace]
        for kind, ident in self._pairs:
            parts.append("/" + _escape(kind))
            if type(ident) is int:
                parts.append(f":{ident}")
            elif type(ident) is str:
                parts.append(f':"{ident}"' if _DIGITS.fullmatch(ident) else ":" + _escape(ident))
        return "".join(parts)

    @classmethod
    def from_string(cls, text: str) -> Key:
        """The key of a readable form.

        >>> Key.from_string("/Country:GB/City:2643743")
        Key('Country', 'GB', 'City', 2643743)

        :raises BadKeyError: if the text is no key's readable form
        """
        if not isinstance(text, str):
            raise BadArgumentError(f"expected a key's readable form (str), got {text!r}")
        match = _READABLE.fullmatch(text)
        if match is None:
            raise BadKeyError(f"expected a key like /Kind:id_or_name/..., got {text!r}")
        path: list[int | str | None] = []
        for element in match["path"][1:].split("/"):
            kind, colon, ident = element.partition(":")
            path.append(_unescape(kind, text))
            path.append(_identifier(ident, text) if colon else None)
        try:
            key = cls(*path, namespace=match["namespace"], project=match["project"])
        except (BadArgumentError, BadValueError, BadKeyError) as exc:
            raise BadKeyError(f"{text!r} is no key: {exc}") from exc
        return key

    def to_urlsafe(self) -> str:
        """A form of letters, digits, ``-`` and ``_`` alone; :meth:`from_urlsafe` is its exact inverse."""
        return base64.urlsafe_b64encode(str(self).encode()).rstrip(b"=").decode()

    @classmethod
    def from_urlsafe(cls, text: str) -> Key:
        """The key of an URL-safe form.

        :raises BadKeyError: if the text is no key's URL-safe form
        """
        readable = _decode_base64(text)
        try:
            key = cls.from_string(readable.decode())
        except (UnicodeDecodeError, BadKeyError) as exc:
            raise BadKeyError(f"{text!r} is no key in URL-safe form") from exc
        if key.to_urlsafe() != text:
            raise BadKeyError(f"{text!r} is no key in URL-safe form")
        return key

    def to_app_engine(self, app: str | None = None) -> str:
        """App Engine's own URL-safe form (``str(key)`` there), for application ``app`` or else the project.

        Source: ``google.appengine.api.datastore_types.Key.ToTagUri``'s neighbour ``__str__``: the base64 of
        an ``entity_pb.Reference``.

        :raises BadKeyError: if the key is incomplete
        """
        if not self.is_complete:
            raise BadKeyError(f"{self!r} is incomplete and has no App Engine form")
        app = self._project if app is None else app
        elements = bytearray()
        for kind, ident in self._pairs:
            elements += b"\x0b\x12" + _length_delimited(kind)
            if type(ident) is int:
                elements += b"\x18" + _varint(ident)
            else:
                elements += b"\x22" + _length_delimited(str(ident))
            elements += b"\x0c"
        message = b"\x6a" + _length_delimited(app) + b"\x72" + _varint(len(elements)) + elements
        if self._namespace:
            message += b"\xa2\x01" + _length_delimited(self._namespace)
        return base64.urlsafe_b64encode(message).rstrip(b"=").decode()

    @classmethod
    def from_app_engine(cls, text: str, app: str | None = None) -> Key:
        """The key of App Engine's URL-safe form.

        With ``app``, the key must be that application's and comes back in the default project; without, the
        application becomes the project.

        >>> Key.from_app_engine("agtjb25mb3JtYW5jZXIHCxIBYRhkDA", "conformance")
        Key('a', 100)

        :raises BadKeyError: if the text is no such form, or of another application
        """
        found, namespace, pairs = _parse_reference(text, _decode_base64(text + "=" * (-len(text) % 4)))
        if app is not None and found != app:
            raise BadKeyError(f"{text!r} is a key of application {found!r}, not of {app!r}")
        path = [part for pair in pairs for part in pair]
        return cls(*path, namespace=namespace, project=found if app is None else None)


_new = object.__new__


# ------------------------------------------------------------------------------------------------ checks


def check_namespace(namespace: Any) -> str:
    """``namespace`` itself ("" for None), if it is one."""
    if not namespace and (namespace is None or namespace == ""):
        return ""
    if type(namespace) is not str or _NAMESPACE.fullmatch(namespace) is None:
        raise BadArgumentError(
            f"a namespace is up to {MAX_NAMESPACE_LENGTH} characters of 0-9A-Za-z._-, not {namespace!r}"
        )
    return namespace


def check_project(project: Any) -> str:
    """``project`` itself ("" for None), if it is one."""
    if not project and (project is None or project == ""):
        return ""
    if type(project) is not str or _PROJECT.fullmatch(project) is None:
        raise BadArgumentError(
            f"a project is up to {MAX_NAMESPACE_LENGTH} characters of 0-9A-Za-z._:~-, not {project!r}"
        )
    return project


def check_kind(kind: Any) -> str:
    """``kind`` itself, if it is one."""
    if type(kind) is not str:
        raise BadArgumentError(f"expected a kind (str), got {type(kind).__name__} {kind!r}")
    if not kind:
        raise BadArgumentError("a kind can't be empty")
    length = utf8_length(kind)
    if length is None:
        raise BadArgumentError(f"kind {kind!r} has a lone surrogate, which UTF-8 can't hold")
    if length > MAX_NAME_BYTES:
        raise BadArgumentError(f"a kind has at most {MAX_NAME_BYTES} bytes of UTF-8, {kind[:40]!r}... has {length}")
    return kind


def utf8_length(text: str) -> int | None:
    """How many bytes of UTF-8 a string takes; None if it has a lone surrogate."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def _check_identifier(ident: Any) -> int | str | None:
    """An id or name as a path holds it: None for None and 0."""
    if type(ident) is str:
        if not ident:
            raise BadValueError("a key's name can't be empty (None makes an incomplete key)")
        length = utf8_length(ident)
        if length is None:
            raise BadValueError(f"name {ident!r} has a lone surrogate, which UTF-8 can't hold")
        if length > MAX_NAME_BYTES:
            raise BadValueError(
                f"a key's name has at most {MAX_NAME_BYTES} bytes of UTF-8, {ident[:40]!r}... has {length}"
            )
        return ident
    if type(ident) is int:
        if 0 < ident <= MAX_ID:
            return ident
        if ident == 0:
            return None
        raise BadValueError(f"an id is between 1 and 2**63-1 (or 0: incomplete), got {ident}")
    if ident is None:
        return None
    raise BadArgumentError(f"expected an id (int) or a name (str), got {type(ident).__name__} {ident!r}")


def _pairs_of(path: tuple[Any, ...]) -> tuple[Pair, ...]:
    """Checked pairs of a flat path."""
    if len(path) == 2:
        return ((check_kind(path[0]), _check_identifier(path[1])),)
    if not path:
        raise BadArgumentError("expected a kind, then an id or a name; got no path")
    if len(path) % 2:
        path = (*path, None)
    pairs = tuple((check_kind(path[i]), _check_identifier(path[i + 1])) for i in range(0, len(path), 2))
    for kind, ident in pairs[:-1]:
        if ident is None:
            raise BadKeyError(f"only a key's last element may be incomplete, not {kind!r} inside {path!r}")
    return pairs


def _parent_key(parent: Any) -> Key:
    """A complete key of what was given as parent: a key, an entity, or a key's URL-safe form."""
    if isinstance(parent, str):
        parent = Key.from_urlsafe(parent)
    elif isinstance(parent, dict):  # an Entity: a module that this one can't import
        parent = getattr(parent, "key", None)
    if not isinstance(parent, Key):
        raise BadArgumentError("expected a parent that is a Key, an Entity, or a key's URL-safe form")
    if not parent.is_complete:
        raise BadKeyError(f"parent {parent!r} is incomplete; put its entity first, or give it an id or name")
    return parent


# --------------------------------------------------------------------------------------- forms as text


def _escape(text: str) -> str:
    return _NEEDS_ESCAPE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)


def _unescape(text: str, whole: str) -> str:
    if _NEEDS_ESCAPE.sub("", text.replace("%", "")) != text.replace("%", ""):
        raise BadKeyError(f"{text!r} in {whole!r} has a character that must be percent-escaped")
    head, *rest = text.split("%")
    raw = bytearray(head, "utf-8", "surrogatepass")
    for part in rest:
        if re.match(r"[0-9A-Fa-f]{2}", part) is None:
            raise BadKeyError(f"%{part[:2]} in {whole!r} is no percent-escape")
        raw.append(int(part[:2], 16))
        raw += part[2:].encode("utf-8", "surrogatepass")
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise BadKeyError(f"{text!r} in {whole!r} is not UTF-8") from exc


def _identifier(text: str, whole: str) -> int | str:
    if len(text) > 2 and text[0] == text[-1] == '"':
        if not _DIGITS.fullmatch(text[1:-1]):
            raise BadKeyError(f"only a name of digits is quoted, not {text} in {whole!r}")
        return text[1:-1]
    if _DIGITS.fullmatch(text):
        if not _ID_TEXT.fullmatch(text):
            raise BadKeyError(f"{text} in {whole!r} is no id; as a name it would be quoted")
        return int(text)
    return _unescape(text, whole)


def _decode_base64(text: str) -> bytes:
    if not isinstance(text, str):
        raise BadArgumentError(f"expected a key's URL-safe form (str), got {text!r}")
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as exc:
        raise BadKeyError(f"{text!r} is no key in URL-safe form") from exc


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _length_delimited(text: str) -> bytes:
    raw = text.encode()
    return _varint(len(raw)) + raw


def _parse_reference(text: str, message: bytes) -> tuple[str, str, list[list[int | str]]]:
    """Application, namespace and pairs of an ``entity_pb.Reference``."""
    app = namespace = ""
    pairs: list[list[int | str]] = []
    try:
        for tag, value in _fields(message):
            if tag == 0x6A:
                app = bytes(value).decode()
            elif tag == 0xA2:
                namespace = bytes(value).decode()
            elif tag == 0x72:
                for inner, part in _fields(bytes(value)):
                    if inner == 0x0B:
                        pairs.append([])
                    elif inner in {0x12, 0x22}:
                        pairs[-1].append(bytes(part).decode())
                    elif inner == 0x18:
                        pairs[-1].append(int.from_bytes(part, "big"))
                    elif inner != 0x0C:
                        raise ValueError(f"unknown field {inner:#x}")
            else:
                raise ValueError(f"unknown field {tag:#x}")
        if not app or not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError("application or path is missing")
    except (ValueError, IndexError) as exc:
        raise BadKeyError(f"{text!r} is no key in App Engine's form: {exc}") from exc
    return app, namespace, pairs


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """The fields of a message that has strings, integers (given big-endian) and group marks."""
    fields: list[tuple[int, bytes]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(message):
        tag = varint()
        wire = tag & 7
        value = b""
        if wire == 2:
            size = varint()
            if at + size > len(message):
                raise ValueError("it is cut short")
            value = message[at : at + size]
            at += size
        elif wire == 0:
            value = varint().to_bytes(16, "big")
        elif wire not in {3, 4}:
            raise ValueError(f"unknown wire type {wire}")
        fields.append((tag, value))
    return fields
