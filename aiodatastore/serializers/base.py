"""What a serializer is, what a payload begins with, and how any of them is read."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Protocol

from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, CorruptDataError
from aiodatastore.key import Key

__all__ = [
    "CUSTOM",
    "FORMATS",
    "JSON",
    "MSGPACK",
    "STEP",
    "STEPS",
    "Reading",
    "Serializer",
    "Step",
    "can_read",
    "check_name",
    "framed",
    "name_of",
    "unframed",
]

MSGPACK: Final = b"\x01"
STEP: Final = b"\x02"
"""Then the name of a step, framed, and what the step made of a payload."""
CUSTOM: Final = b"\x03"
"""Then the name of a serializer of two functions, framed, and what they made of it."""
JSON: Final = b"{"


class Serializer(Protocol):
    """Turns an entity into bytes and back, keeping every type. Called from several threads at once.

    A serializer may have a ``name``, which the store's header keeps (else it is the class's), and a method
    ``reads(name)`` that says whether it reads what another one wrote (else it reads its own payloads alone).
    """

    def dumps(self, entity: Entity) -> bytes:
        """The properties (and which are unindexed) of an entity; its key and version are kept elsewhere."""

    def loads(self, key: Key, payload: bytes, version: int) -> Entity:
        """A new entity of these bytes.

        :raises CorruptDataError: if they are none
        """


class Step(Protocol):
    """What is done to whole payloads: compression, encryption. Called from several threads at once."""

    @property
    def name(self) -> str:
        """Small letters and digits; stands in each payload, and in the store's header."""

    def wrap(self, data: bytes) -> bytes | None:
        """What is stored in place of ``data``; None: leave it as it is."""

    def unwrap(self, data: bytes) -> bytes:
        """What :meth:`wrap` was given.

        :raises ValueError: if it can't be had; the message says why, and has no secrets
        """


class Functions(Protocol):
    """A serializer of two functions, as others read what it wrote."""

    base_name: str

    def load_data(self, key: Key, data: bytes, version: int) -> Entity:
        """The entity of what it made of one."""


FORMATS: Final[dict[bytes, Callable[[Key, bytes, int], Entity]]] = {}
"""What reads the payloads of this package's formats, by their first byte. The module of each puts its own here."""
STEPS: Final[dict[str, Callable[[], Step]]] = {}
"""What makes the steps that need nothing but a package, by name, as the modules of these put them here.

:raises BadArgumentError: (when called) if the package is not installed
"""

_NO_STEPS: Final[Mapping[str, Step]] = MappingProxyType({})


class Reading(ABC):
    """What this package's serializers share: each reads what any of them wrote, if it has the steps for it."""

    name: str = ""
    steps: Mapping[str, Step] = _NO_STEPS
    """Steps that need something this package hasn't, such as a key, by name."""
    functions: Functions | None = None
    """The serializer of two functions that is at work here, if there is one."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @abstractmethod
    def dumps(self, entity: Entity) -> bytes:
        """The payload of an entity."""

    def loads(self, key: Key, payload: bytes, version: int) -> Entity:
        """The entity of a payload."""
        return self.load_any(key, payload, version)

    def reads(self, name: str) -> bool:
        """Whether payloads can be read that a serializer of this name wrote."""
        base, *steps = name.split("+")
        known = base in ("msgpack", "json", "pretty") or (
            self.functions is not None and self.functions.base_name == base
        )
        return known and all(step in self.steps or _built_in_step(step) is not None for step in steps)

    def load_any(self, key: Key, payload: bytes, version: int) -> Entity:
        """The entity of a payload in whichever format.

        :raises CorruptDataError: if it is damaged, or of a step or functions that are not here
        """
        try:
            return self._load(key, payload, version)
        except Exception as exc:  # what damaged bytes come to is not foreseeable
            raise CorruptDataError(f"the stored payload of {key!r} can't be read: {exc}") from exc

    def _load(self, key: Key, payload: bytes, version: int) -> Entity:
        for _ in range(_MAX_STEPS):
            if payload[:1] != STEP:
                break
            name, data = unframed(payload)
            step = self.steps.get(name) or _built_in_step(name)
            if step is None:
                raise ValueError(f"step {name!r} was applied to it, which this serializer ({self.name}) has not")
            payload = step.unwrap(data)
        first = payload[:1]
        if first in FORMATS:
            return FORMATS[first](key, payload, version)
        if first == CUSTOM:
            name, data = unframed(payload)
            if self.functions is None or self.functions.base_name != name:
                raise ValueError(f"serializer {name!r} wrote it, which this is not ({self.name})")
            return self.functions.load_data(key, data, version)
        raise ValueError(f"format {first[0]}" if first else "it is empty")


_MAX_STEPS: Final = 20
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")


def check_name(name: Any) -> str:
    """A name for a step or serializer.

    :raises BadArgumentError: if it can't be one
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise BadArgumentError(
        f"name: expected up to 100 letters and digits (also _ . -), a letter first; got {name!r:.80}"
    )


def name_of(serializer: Serializer) -> str:
    """What the store's header calls a serializer.

    :raises BadArgumentError: if its name can't be written there
    """
    name = getattr(serializer, "name", None) or type(serializer).__name__
    for part in str(name).split("+"):
        check_name(part)
    return str(name)


def can_read(serializer: Serializer, name: str) -> bool:
    """Whether a serializer reads what one of this name wrote."""
    reads = getattr(serializer, "reads", None)
    return name == name_of(serializer) or (reads is not None and bool(reads(name)))


def framed(mark: bytes, name: str, data: bytes) -> bytes:
    """``data`` with a mark and a name before it."""
    raw = name.encode("ascii")
    return b"".join((mark, bytes((len(raw),)), raw, data))


def unframed(payload: bytes) -> tuple[str, bytes]:
    """The name and the data of what :func:`framed` made."""
    end = 2 + payload[1]
    return payload[2:end].decode("ascii"), payload[end:]


@lru_cache(maxsize=8)
def _built_in_step(name: str) -> Step | None:
    """A step that needs nothing but a package.

    :raises BadArgumentError: if that is not installed
    """
    return STEPS[name]() if name in STEPS else None
