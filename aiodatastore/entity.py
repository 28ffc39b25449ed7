"""Entities: a key and named values."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from aiodatastore.errors import BadArgumentError, BadRequestError, BadValueError
from aiodatastore.key import Key, check_kind
from aiodatastore.values import (
    CHECKS,
    COPIERS,
    INT64_MAX,
    INT64_MIN,
    MAX_INDEXED_BYTES,
    Blob,
    GeoPoint,
    Text,
    check_embedded,
    check_name_form,
    known_names,
    refuse,
    validate_property_name,
)

__all__ = ["Entity"]

_NOTHING: Final[frozenset[str]] = frozenset()


class Entity(dict[str, Any]):
    """What the datastore keeps: a ``dict`` of properties with a key.

    >>> ada = Entity(Key("Person", "ada"), {"name": "Ada", "tags": ["math", "poetry"]}, unindexed=["tags"])
    >>> ada["born"] = 1815
    >>> ada.kind, ada["name"], ada.is_saved
    ('Person', 'Ada', False)
    >>> Entity("Task").key
    Key('Task')

    ``key`` may be incomplete: putting the entity completes it. ``unindexed`` names properties that no index
    holds: they can't be searched, and may be long. ``version`` is the store's for this state of the entity, 0
    if it was never saved. Values are checked when the entity is put (or by :meth:`validate`).

    Two entities are equal if keys, properties and unindexed names are; versions don't count.

    :raises BadArgumentError: if the key is neither a Key nor a kind, or ``unindexed`` no iterable of names
    :raises BadPropertyError: if a name in ``unindexed`` can't be one
    """

    __slots__ = ("_unindexed", "is_projection", "key", "version")

    key: Key
    """The entity's key."""
    version: int
    """The version that the store gave to this state; 0 if it was never saved."""
    is_projection: bool
    """Whether this is a row of a projection: it lacks the other properties and can't be put."""
    _unindexed: frozenset[str]

    def __init__(
        self,
        key: Key | str,
        properties: Mapping[str, Any] | None = None,
        *,
        unindexed: Iterable[str] = (),
        version: int = 0,
    ) -> None:
        if type(key) is not Key:
            if type(key) is not str:
                raise BadArgumentError(f"expected a Key or a kind (str), got {type(key).__name__}")
            key = Key(key)
        if properties is None:
            super().__init__()
        elif isinstance(properties, Mapping):
            super().__init__(properties)
        else:
            raise BadArgumentError(f"expected a mapping of properties, got {type(properties).__name__}")
        self.key = key
        self._unindexed = _names(unindexed) if unindexed != () else _NOTHING
        self.version = version
        self.is_projection = False

    @classmethod
    def _make(
        cls,
        key: Key,
        properties: Mapping[str, Any],
        unindexed: frozenset[str],
        version: int,
        is_projection: bool = False,
    ) -> Entity:
        """An entity of parts known to be valid: nothing is checked, values are not copied."""
        self = _new(cls)
        self.update(properties)
        self.key = key
        self._unindexed = unindexed
        self.version = version
        self.is_projection = is_projection
        return self

    @classmethod
    def of_kind(
        cls,
        kind: str,
        parent: Key | Entity | str | None = None,
        *,
        name: str | None = None,
        id: int | None = None,
        unindexed_properties: Iterable[str] = (),
        namespace: str | None = None,
        **extra: object,
    ) -> Entity:
        """An empty entity of App Engine's arguments: ``Entity(kind, parent, _app, name, id, ...)``.

        Unlike in a key, an id of 0 is an error here, as there.

        :raises BadArgumentError: a bad kind, parent, namespace or unknown argument; both a name and an id
        :raises BadValueError: a bad name or id
        :raises BadKeyError: an incomplete parent
        """
        if extra:
            raise BadArgumentError(f"unknown argument {next(iter(extra))!r}")
        check_kind(kind)
        if id is not None and name is not None:
            raise BadArgumentError(f"expected a name or an id, not both ({name!r} and {id!r})")
        if id is not None and (type(id) is not int or id == 0):
            raise BadValueError(f"expected an id from 1 to 2**63-1, got {id!r}")
        if name is not None and type(name) is not str:
            raise BadValueError(f"expected a name (str), got {type(name).__name__} {name!r:.80}")
        key = Key(kind, id if name is None else name, parent=parent, namespace=namespace)
        return cls(key, unindexed=unindexed_properties)

    # ------------------------------------------------------------------------------------- its parts

    @property
    def unindexed(self) -> frozenset[str]:
        """Names of properties that no index holds. Set it to any iterable of names."""
        return self._unindexed

    @unindexed.setter
    def unindexed(self, names: Iterable[str]) -> None:
        self._unindexed = _names(names)

    @property
    def kind(self) -> str:
        """The kind of the key."""
        return self.key.kind

    @property
    def is_saved(self) -> bool:
        """Whether this came from the store, or was put there."""
        return self.version > 0

    @property
    def entity_group(self) -> Key:
        """The root of the key's path."""
        return self.key.root

    # ---------------------------------------------------------------------------------------- copies

    def snapshot(self) -> Entity:
        """A copy that shares nothing mutable with this entity; datetimes are brought to UTC."""
        new = _new(Entity)
        new.update(self)
        if not _COPIED.isdisjoint(map(type, self.values())):
            for name, value in self.items():
                if type(value) in _COPIED:
                    new[name] = COPIERS[type(value)](value)
        new.key = self.key
        new._unindexed = self._unindexed
        new.version = self.version
        new.is_projection = self.is_projection
        return new

    def copy(self) -> Entity:
        """A deep copy, with the same key and version."""
        return self.snapshot()

    def __copy__(self) -> Entity:
        return Entity._make(self.key, self, self._unindexed, self.version, self.is_projection)

    def __deepcopy__(self, memo: dict[int, Any]) -> Entity:
        return self.snapshot()

    def __reduce__(self) -> tuple[Any, ...]:
        return Entity._make, (self.key, dict(self), self._unindexed, self.version, self.is_projection)

    # ---------------------------------------------------------------------------------------- checks

    def validate(self, strict: bool = False) -> None:
        """Check that this can be put; ``strict`` adds App Engine's rule that nothing is embedded.

        :raises BadPropertyError: a property name is unusable
        :raises BadRequestError: a reserved name, a too long or ill-formed str, or this is a projection's row
        :raises BadValueError: a value that can't be stored; the message names the property
        """
        if type(self.key) is not Key:
            raise BadArgumentError(f"an entity's key is a Key, not {self.key!r:.80}")
        for element, ident in self.key._pairs:
            if element[0] == "_" or (type(ident) is str and ident[0] == "_"):
                _check_reserved(self.key)
        if self.is_projection:
            raise BadRequestError(
                f"{self.key!r} is a projection's row and lacks the rest; get the entity before you put it"
            )
        unindexed = self._unindexed
        for name, value in self.items():
            if name not in known_names or type(name) is not str:
                validate_property_name(name)
            kind = type(value)
            if kind is str:  # what most values are, without a call
                if len(value) <= MAX_INDEXED_BYTES and value.isascii():
                    continue
            elif kind is int and INT64_MIN <= value <= INT64_MAX:
                continue
            check = CHECKS.get(kind, refuse)
            if check is not None:
                check(name, value, name not in unindexed, 0)
        if strict:
            self._validate_flat()

    def _validate_flat(self) -> None:
        for name, value in self.items():
            for element in value if type(value) is list else (value,):
                if isinstance(element, dict):
                    _refuse_embedded(name, element)

    # ------------------------------------------------------------------------------------ comparisons

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Entity):
            return False
        return self.key == other.key and self._unindexed == other._unindexed and dict.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # as a dict's

    def __repr__(self) -> str:
        more = f", unindexed={sorted(self._unindexed)!r}" if self._unindexed else ""
        if self.version:
            more += f", version={self.version}"
        return f"Entity({self.key!r}, {dict.__repr__(self)}{more})"

    # -------------------------------------------------------------------------------------------- XML

    def to_xml(self) -> str:
        """The entity as App Engine's XML: its kind, key and properties in order of their names.

        Source: ``google.appengine.api.datastore.Entity.ToXml``. A list gives an element for each value; bytes
        are URL-safe base64; characters that XML has no way to write become U+FFFD. Where App Engine puts the
        current day into the key's tag URI, this puts the day of its launch: the same entity gives the same
        text every day. An incomplete key is left out.

        >>> print(Entity(Key("Pet", "rex"), {"age": 4}).to_xml())
        <entity kind="Pet" key="L1BldDpyZXg">
          <key>tag:gmail.com,2008-04-07:Pet[L1BldDpyZXg]</key>
          <property name="age" type="int">4</property>
        </entity>
        <BLANKLINE>
        """
        return _to_xml(self, self.key)


_new: Callable[[type[Entity]], Entity] = dict.__new__


def _names(names: Any) -> frozenset[str]:
    """Checked names of unindexed properties."""
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise BadArgumentError(f"expected an iterable of names of unindexed properties, got {names!r:.80}")
    found = frozenset(names)
    for name in found:
        if type(name) is not str:
            raise BadArgumentError(f"expected names (str) of unindexed properties, got {name!r:.80}")
        check_name_form(name)
    return found


def _check_reserved(key: Key) -> None:
    for kind, ident in key.pairs:
        for what, text in (("kind", kind), ("key name", ident)):
            if type(text) is str and len(text) >= 4 and text[:2] == "__" == text[-2:]:
                raise BadRequestError(f"{what} {text!r} in {key!r} is reserved: names like __x__ can't be put")


def _refuse_embedded(name: str, value: Any) -> None:
    """Raise as App Engine does for a value that is a dict or an entity."""
    raise BadValueError(
        f"property {name!r}: App Engine's rules allow no embedded {type(value).__name__}: {value!r:.80}"
    )


def _check_entity(name: str, value: Entity, indexed: bool, depth: int) -> None:
    if type(value.key) is not Key:
        raise BadValueError(f"property {name!r}: the embedded entity's key is a Key, not {value.key!r:.80}")
    check_embedded(name, value, indexed, depth, value.unindexed)


CHECKS[Entity] = _check_entity
COPIERS[Entity] = Entity.snapshot
_COPIED = frozenset(COPIERS)


# --------------------------------------------------------------------------------------------------- XML

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_XML_TYPES: dict[type, str] = {
    type(None): "null",
    bool: "bool",
    int: "int",
    float: "float",
    str: "string",
    bytes: "bytestring",
    Text: "text",
    Blob: "blob",
    datetime: "gd:when",
    Key: "key",
    GeoPoint: "georss:point",
    dict: "entity:proto",
    Entity: "entity:proto",
}


def _to_xml(properties: Mapping[str, Any], key: Key | None) -> str:
    lines = []
    kind = f" kind={_attribute(key.kind)}" if key is not None else ""
    if key is not None and key.is_complete:
        kind += f" key={_attribute(_key_text(key))}"
        lines.append(f"  <key>{_tag_uri(key)}</key>")
    for name in sorted(properties):
        value = properties[name]
        for element in value if type(value) is list else (value,):
            kind_name = _attribute(_XML_TYPES.get(type(element), type(element).__name__.lower()))
            lines.append(f"  <property name={_attribute(name)} type={kind_name}>{_xml_value(element)}</property>")
    return "\n".join([f"<entity{kind}>", *lines, "</entity>"]) + "\n"


def _xml_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Key):
        return _tag_uri(value)
    if isinstance(value, GeoPoint):
        return f"<georss:point>{value.latitude} {value.longitude}</georss:point>"
    if isinstance(value, bytes):
        return base64.urlsafe_b64encode(value).decode()
    if isinstance(value, Entity):
        return "\n" + _to_xml(value, value.key)
    if isinstance(value, dict):
        return "\n" + _to_xml(value, None)
    return _escaped(str(value))


def _tag_uri(key: Key) -> str:
    """RFC 4151, as App Engine's ``Key.ToTagUri``."""
    partition = f"{key.project}!{key.namespace}" if key.namespace else key.project
    authority = f"{partition}.gmail.com" if partition else "gmail.com"
    return _escaped(f"tag:{authority},2008-04-07:{key.kind}[{_key_text(key)}]")


def _key_text(key: Key) -> str:
    return key.to_app_engine() if key.project else key.to_urlsafe()


def _escaped(text: str) -> str:
    # Not xml.sax.saxutils: importing it takes longer than importing this package.
    text = _NOT_XML.sub("\ufffd", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _attribute(text: str) -> str:
    quoted = _escaped(text).replace('"', "&quot;")
    for space, escape in (("\n", "&#10;"), ("\r", "&#13;"), ("\t", "&#9;")):
        quoted = quoted.replace(space, escape)
    return f'"{quoted}"'
