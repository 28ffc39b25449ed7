"""Keys spread into nested parents: many small folders instead of a huge one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import parse_int
from aiodatastore.errors import BadArgumentError, BadKeyError, CorruptDataError
from aiodatastore.key import MAX_PATH_ELEMENTS, Key
from aiodatastore.shims.key_transform import KeyTransform

__all__ = ["NestedPath"]

Element = tuple[str, int | str | None]

_MAX_DEPTH = 16
_MAX_LENGTH = 18


class NestedPath(KeyTransform):
    """Puts ``depth`` parents above every key, each named by ``length`` characters of the key's first name.

    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> nested = NestedPath(adapter_from_url("memory://"), depth=2, length=2)
    >>> print(nested.nested(Key("Person", "lovelace")), nested.nested(Key("Person", "li", "Task", 7)))
    /Person:lo/Person:ve/Person:lovelace /Person:li/Person:1/Person:li/Task:7
    >>> print(nested.nested(Key("Task", 123456)))
    /Task:13/Task:35/Task:123456

    For stores that are slower the more is in one place, such as the folders of ``file://``. Names are cut from their
    beginning (what is too short goes on with id 1), ids are grouped by their leading digits, so that
    ``10 ** length`` ids in a row share a parent; the parents are names alone, no entities. Keys keep their order:
    nothing is lost, all queries and transactions are as without.

    A stored key has ``depth`` elements more: one that would have more than 100 can't be put (``BadKeyError``), and none
    is found. Everything in the store must have been written through this shim, with the same settings: other keys raise
    ``CorruptDataError`` where a query meets them. Costs a few microseconds a key.

    :raises BadArgumentError: if ``depth`` is not an int from 1 to 16, or ``length`` from 1 to 18
    """

    checked = False
    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {"depth": parse_int, "length": parse_int}

    def __init__(self, child: Adapter, *, depth: int = 3, length: int = 2) -> None:
        for name, value, most in (("depth", depth, _MAX_DEPTH), ("length", length, _MAX_LENGTH)):
            if type(value) is not int or not 1 <= value <= most:
                raise BadArgumentError(f"{name}: expected an int from 1 to {most}, got {value!r:.80}")
        self.depth = depth
        self.length = length
        self._steps = [10 ** (length * level) for level in range(depth, 0, -1)]
        super().__init__(child, encode=self.nested, decode=self._flat, keeps_order=True)

    @property
    def settings(self) -> Mapping[str, object]:
        """Depth and length."""
        return {"depth": self.depth, "length": self.length}

    def _parents(self, first: Element) -> tuple[Element, ...]:
        kind, ident = first
        if type(ident) is int:
            top, *rest = self._steps
            base = 10**self.length
            # Ids begin at 1, so every group's number is one more.
            return ((kind, ident // top + 1), *((kind, ident // step % base + 1) for step in rest))
        name = str(ident)
        length = self.length
        # Past the end comes id 1, which is before every name: the shorter name is before the longer one.
        return tuple((kind, name[start : start + length] or 1) for start in range(0, self.depth * length, length))

    def nested(self, key: Key) -> Key:
        """The key that this complete key has in the store.

        :raises BadKeyError: if it would have more than 100 elements
        """
        pairs = key._pairs
        if len(pairs) + self.depth > MAX_PATH_ELEMENTS:
            raise BadKeyError(
                f"a key has at most {MAX_PATH_ELEMENTS} elements, and {key!r} would be stored with {self.depth} more"
            )
        return Key._make(key._project, key._namespace, (*self._parents(pairs[0]), *pairs))

    def _flat(self, key: Key) -> Key:
        pairs = key._pairs[self.depth :]
        if not pairs or self._parents(pairs[0]) != key._pairs[: self.depth]:
            raise CorruptDataError(f"{key!r} was not stored through {self!r}")
        return Key._make(key._project, key._namespace, pairs)
