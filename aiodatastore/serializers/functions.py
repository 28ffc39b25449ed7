"""Serializers of two functions, and plain values as properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from aiodatastore import jsonl
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError
from aiodatastore.key import Key
from aiodatastore.serializers.base import CUSTOM, Reading, check_name, framed
from aiodatastore.values import validate_property_name

__all__ = ["FunctionSerializer", "MappingWrapper"]


class FunctionSerializer(Reading):
    """Payloads written and read by two functions of plain values: ``json``, YAML, CBOR, one's own.

    >>> import json
    >>> from aiodatastore import Entity, Key
    >>> serializer = FunctionSerializer(json.dumps, json.loads, name="stdjson")
    >>> payload = serializer.dumps(Entity(Key("Photo", 1), {"raw": b"\\x00\\x01"}))
    >>> payload[9:]
    b'{"properties": {"raw": {"$bytes": "AAE="}}}'
    >>> serializer.loads(Key("Photo", 1), payload, 7)
    Entity(Key('Photo', 1), {'raw': b'\\x00\\x01'}, version=7)

    ``dumps`` gets ``{"properties": {…}}`` (with ``"unindexed": […]``, if there are any) of None, bool, int, finite
    float, str, list and dict alone, and returns bytes or str; ``loads`` gets the bytes and returns an equal value.
    Other types are written as in exports (:mod:`aiodatastore.jsonl`), so that none is lost. ``name`` stands before
    each payload and in the store's header: who opens the store later needs the serializer of this name.

    :raises BadArgumentError: if one is no function, or the name no name (or that of a serializer of this package)
    """

    def __init__(self, dumps: Callable[[dict[str, Any]], Any], loads: Callable[[bytes], Any], *, name: str) -> None:
        if not all(map(callable, (dumps, loads))):
            raise BadArgumentError("expected two functions: dumps(plain) -> bytes or str, loads(bytes) -> plain")
        if check_name(name) in ("msgpack", "json", "pretty", "compact"):
            raise BadArgumentError(f"name: {name!r} is a serializer of this package")
        self.name = self.base_name = name
        self.functions = self
        self._dumps = dumps
        self._loads = loads

    def dumps(self, entity: Entity) -> bytes:
        """The payload of an entity."""
        plain: dict[str, Any] = {"properties": {name: jsonl.dump_value(value) for name, value in entity.items()}}
        if entity.unindexed:
            plain["unindexed"] = sorted(entity.unindexed)
        written = self._dumps(plain)
        return framed(CUSTOM, self.name, written.encode() if isinstance(written, str) else bytes(written))

    def load_data(self, key: Key, data: bytes, version: int) -> Entity:
        """The entity of what ``dumps`` made."""
        plain = self._loads(data)
        properties = {name: jsonl.load_value(value, name) for name, value in plain["properties"].items()}
        return Entity._make(key, properties, frozenset(plain.get("unindexed", ())), version)


class MappingWrapper:
    """Any value as a mapping of properties, and back: a dict as it is, anything else under one name.

    >>> wrapper = MappingWrapper()
    >>> wrapper.wrap({"a": 1}), wrapper.wrap([1, 2])
    ({'a': 1}, {'@value': [1, 2]})
    >>> wrapper.unwrap({"@value": [1, 2]})
    [1, 2]

    What is unwrapped is always what was wrapped: a dict that has that very name as its only one is wrapped, too.

    :raises BadPropertyError, BadRequestError: if the name can't be a property's
    """

    def __init__(self, name: str = "@value") -> None:
        validate_property_name(name)
        self._name: Final = name

    def wrap(self, value: Any) -> dict[str, Any]:
        """The properties of a value."""
        if isinstance(value, Mapping) and list(value) != [self._name]:
            return dict(value)
        return {self._name: value}

    def unwrap(self, properties: Mapping[str, Any]) -> Any:
        """The value of properties."""
        return properties[self._name] if list(properties) == [self._name] else dict(properties)
