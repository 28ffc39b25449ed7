"""Names of values: paths, and the keys they stand for."""

from __future__ import annotations

import builtins
import re
import uuid
from collections.abc import Sequence
from typing import Any, Final

from aiodatastore.errors import BadArgumentError, BadKeyError
from aiodatastore.key import Key

__all__ = ["UNTYPED", "PathKey", "element_of", "kind_of"]

UNTYPED: Final = "Path"
"""The kind of an element without type."""
_OWN_KIND: Final = re.compile(r"(?:Path|__.*__)~*", re.DOTALL)
_RESERVED: Final = re.compile(r"__.*__~*", re.DOTALL)


class PathKey:
    """The name of a value: a path of elements, each of which may have a type. The ``Key`` of the classic ``datastore``.

    >>> john = PathKey("/Comedy/MontyPython/Actor:JohnCleese")
    >>> john.type, john.name, john.parent
    ('Actor', 'JohnCleese', PathKey('/Comedy/MontyPython'))
    >>> john.namespaces
    ('Comedy', 'MontyPython', 'Actor:JohnCleese')
    >>> john.child("Sketch:CheeseShop").is_descendant_of(PathKey("/Comedy"))
    True
    >>> print(john.to_key())
    /Path:Comedy/Path:MontyPython/Actor:JohnCleese

    Immutable, hashable, and ordered as the results of queries are: by types and names, element by element, above before
    below. Slashes are not doubled and not at the end; the root, which is no value's, is ``/``. What is before the first
    colon of an element is its type.

    :raises BadArgumentError: if it is no text, PathKey or list of elements
    :raises BadKeyError: if an element has a colon and no type, or no name
    """

    __slots__ = ("_elements",)

    _elements: tuple[str, ...]

    def __init__(self, path: str | PathKey | Sequence[str] = "/") -> None:
        if isinstance(path, PathKey):
            elements: Sequence[str] = path._elements
        else:
            parts = [path] if isinstance(path, str) else path
            if not isinstance(parts, builtins.list | tuple) or not all(isinstance(part, str) for part in parts):
                raise BadArgumentError(f"expected a path such as /Comedy/Actor:JohnCleese, got {path!r:.80}")
            elements = [str(element) for part in parts for element in part.split("/") if element]
            for element in elements:
                if not _is_element(element):
                    raise BadKeyError(f"the element {element!r:.80} of a path: expected name, or type:name")
        object.__setattr__(self, "_elements", tuple(elements))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a PathKey can't be changed: {name}")

    @classmethod
    def _make(cls, elements: tuple[str, ...]) -> PathKey:
        self = cls.__new__(cls)
        object.__setattr__(self, "_elements", elements)
        return self

    @classmethod
    def random(cls) -> PathKey:
        """A path of one element that no other has: 32 hexadecimal digits."""
        return cls._make((uuid.uuid4().hex,))

    # ------------------------------------------------------------------------------------- its parts

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The elements, as they are written."""
        return self._elements

    @property
    def list(self) -> builtins.list[str]:
        """The elements as a list."""
        return [*self._elements]

    @property
    def type(self) -> str:
        """The type of the last element, "" if it has none."""
        return _split(self._elements[-1])[0] if self._elements else ""

    @property
    def name(self) -> str:
        """The name of the last element; "" for the root."""
        return _split(self._elements[-1])[1] if self._elements else ""

    @property
    def parent(self) -> PathKey | None:
        """The path without its last element; None for those of one element."""
        return PathKey._make(self._elements[:-1]) if len(self._elements) > 1 else None

    @property
    def path(self) -> PathKey:
        """The path with the type in place of the last element; without type, without it.

        >>> PathKey("/Comedy/Actor:JohnCleese").path
        PathKey('/Comedy/Actor')
        """
        above = self._elements[:-1]
        return PathKey._make((*above, self.type) if self.type else above)

    @property
    def reverse(self) -> PathKey:
        """The elements in the opposite order."""
        return PathKey._make(self._elements[::-1])

    @property
    def is_top_level(self) -> bool:
        """Whether it has one element."""
        return len(self._elements) == 1

    @property
    def is_root(self) -> bool:
        """Whether it is ``/``, which names no value."""
        return not self._elements

    # -------------------------------------------------------------------------------- others from it

    def child(self, other: str | PathKey) -> PathKey:
        """The path with more elements at its end."""
        return PathKey._make((*self._elements, *PathKey(other)._elements))

    def instance(self, name: str) -> PathKey:
        """The path with its last element as the type of a name: the opposite of :attr:`path`.

        >>> PathKey("/Comedy/Actor").instance("JohnCleese")
        PathKey('/Comedy/Actor:JohnCleese')

        :raises BadKeyError: if the name is empty or has a slash, the path is the root or has a type already
        """
        if not name or "/" in name:
            raise BadKeyError(f"expected a name without slash, got {name!r:.80}")
        if not self._elements or self.type:
            raise BadKeyError(f"{self!r} has no last element that could be a type")
        return PathKey._make((*self._elements[:-1], f"{self._elements[-1]}:{name}"))

    def is_ancestor_of(self, other: PathKey) -> bool:
        """Whether ``other`` is below. No path is its own ancestor; the root is everyone's."""
        mine, theirs = self._elements, other._elements
        return len(mine) < len(theirs) and theirs[: len(mine)] == mine

    def is_descendant_of(self, other: PathKey) -> bool:
        """Whether it is below ``other``."""
        return other.is_ancestor_of(self)

    # ------------------------------------------------------------------------------------------ keys

    def to_key(self, *, namespace: str = "", project: str = "") -> Key:
        """The key of the entity that holds the value.

        :raises BadKeyError: for the root, and if it has more than 100 elements
        :raises BadArgumentError, BadValueError: if a type or a name has more than 1500 bytes
        """
        if not self._elements:
            raise BadKeyError("the root path / names no value")
        flat = [part for element in self._elements for part in _pair(element)]
        return Key(*flat, namespace=namespace, project=project)

    @classmethod
    def from_key(cls, key: Key) -> PathKey:
        """The path of a key, whatever its namespace and project.

        :raises BadKeyError: if it is no path's: it has a numeric id, or a slash or colon where paths can't
        """
        elements = []
        for kind, name in key.pairs:
            element = element_of(kind, name)
            if element is None:
                raise BadKeyError(f"{key!r} is not the key of a path")
            elements.append(element)
        return cls._make(tuple(elements))

    # ------------------------------------------------------------------------------------ comparisons

    def _order(self) -> tuple[tuple[str, str], ...]:
        return tuple(map(_pair, self._elements))

    def __eq__(self, other: object) -> bool:
        return self._elements == other._elements if isinstance(other, PathKey) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._elements)

    def __lt__(self, other: object) -> bool:
        return self._order() < other._order() if isinstance(other, PathKey) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self._order() <= other._order() if isinstance(other, PathKey) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self._order() > other._order() if isinstance(other, PathKey) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self._order() >= other._order() if isinstance(other, PathKey) else NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        return PathKey._make, (self._elements,)

    def __str__(self) -> str:
        return "/" + "/".join(self._elements)

    def __repr__(self) -> str:
        return f"PathKey({str(self)!r})"


def _split(element: str) -> tuple[str, str]:
    type_, colon, name = element.partition(":")
    return (type_, name) if colon else ("", element)


def _pair(element: str) -> tuple[str, str]:
    """The kind and the name of an element."""
    type_, name = _split(element)
    kind = kind_of(type_)
    return kind, f"{name}~" if _RESERVED.fullmatch(name) else name


def kind_of(type_: str) -> str:
    """The kind of elements of a type."""
    if not type_:
        return UNTYPED
    return f"{type_}~" if _OWN_KIND.fullmatch(type_) else type_


def element_of(kind: str, name: object) -> str | None:
    """The element of a kind and a name, if there is one."""
    if not isinstance(name, str) or "/" in name or "/" in kind:
        return None
    bare = name[:-1] if _RESERVED.fullmatch(name) else name
    type_ = "" if kind == UNTYPED else kind[:-1] if _OWN_KIND.fullmatch(kind) else kind
    element = f"{type_}:{bare}" if type_ else bare
    return element if _is_element(element) and _pair(element) == (kind, name) else None


def _is_element(element: str) -> bool:
    return bool(element) and element[0] != ":" and not (element[-1] == ":" and element.count(":") == 1)
