"""The forms that arguments of ``Datastore`` and ``Transaction`` may take, checked before any I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, BadKeyError, UnsupportedError
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability

if TYPE_CHECKING:
    from aiodatastore.adapters.base import Adapter

__all__ = [
    "check_retries",
    "check_timeout",
    "check_ttl",
    "complete_key",
    "complete_keys",
    "entities_to_write",
    "expected_versions",
    "model_key",
]


def check_ttl(ttl: Any, adapter: Adapter) -> float | None:
    """The seconds an entity is to live.

    :raises BadArgumentError: if it is not a positive, finite number
    :raises UnsupportedError: if the adapter keeps entities for good
    """
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl < math.inf:
        raise BadArgumentError(f"ttl: expected a positive number of seconds, got {ttl!r:.80}")
    if Capability.TTL not in adapter.capabilities:
        raise UnsupportedError(
            f"{adapter.url} keeps entities until they are deleted: put without ttl, or use a store that has "
            "Capability.TTL, such as redis://",
            capability=Capability.TTL,
        )
    return float(ttl)


def complete_key(value: Any) -> Key:
    """The complete key that a Key, an Entity or an URL-safe string stands for.

    :raises BadArgumentError: if it is none of these
    :raises BadKeyError: if the key is incomplete, or the string is no key's
    """
    key = _any_key(value)
    if not key.is_complete:
        raise BadKeyError(f"{key!r} is incomplete: give its last element an id or a name (only put completes keys)")
    return key


def complete_keys(value: Any) -> tuple[list[Key], bool]:
    """Complete keys of one, or of a list or tuple; and whether it was one."""
    if isinstance(value, list | tuple):
        return [complete_key(item) for item in value], False
    return [complete_key(value)], True


def model_key(value: Any, *, need_complete: bool) -> Key:
    """The key that stands for a sequence of ids; a list of one is accepted, as App Engine does."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise BadArgumentError(f"expected one key, got {len(value)}")
        (value,) = value
    return complete_key(value) if need_complete else _any_key(value)


def _any_key(value: Any) -> Key:
    if type(value) is Key:
        return value
    if isinstance(value, Entity):
        return value.key
    if isinstance(value, str):
        return Key.from_urlsafe(value)
    raise BadArgumentError(
        "expected a Key, an Entity, the URL-safe text of a key, or a list or tuple of these, "
        f"got {type(value).__name__} {value!r:.80}"
    )


def entities_to_write(value: Any, *, strict: bool) -> tuple[list[Entity], bool]:
    """Valid entities of one, or of a list or tuple; and whether it was one.

    :raises BadArgumentError: if something else is among them
    :raises BadKeyError: if a key is incomplete elsewhere than in its last element
    :raises BadPropertyError, BadValueError, BadRequestError: as ``Entity.validate`` does
    """
    single = isinstance(value, Entity)
    if not single and not isinstance(value, list | tuple):
        raise _no_entity(value)
    entities: Sequence[Any] = (value,) if single else value
    for entity in entities:
        if not isinstance(entity, Entity):
            raise _no_entity(entity)
        entity.validate(strict)
    return list(entities), single


def _no_entity(value: Any) -> BadArgumentError:
    return BadArgumentError(
        f"expected an Entity, or a list or tuple of entities, got {type(value).__name__} {value!r:.80}"
    )


def expected_versions(if_version: Any, count: int, single: bool) -> list[int | None]:
    """One expected version (None: any) for each of ``count`` entities or keys."""
    if if_version is None:
        return [None] * count
    if single:
        return [_version(if_version)]
    if not isinstance(if_version, list | tuple) or len(if_version) != count:
        raise BadArgumentError(
            f"if_version: expected a list of {count} versions (None: any), one for each of the list, "
            f"got {if_version!r:.80}"
        )
    return [None if version is None else _version(version) for version in if_version]


def _version(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise BadArgumentError(
            f"if_version: expected an entity's version (int; 0: it must not exist), got {value!r:.80}"
        )
    return value


def check_timeout(value: Any) -> None:
    """:raises BadArgumentError: unless it is None or a number of seconds, 0 or more"""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        raise BadArgumentError(f"timeout: expected seconds (a number, 0 or more) or None, got {value!r:.80}")


def check_retries(value: Any) -> None:
    """:raises BadArgumentError: unless it is an int, 0 or more"""
    if type(value) is not int or value < 0:
        raise BadArgumentError(f"retries: expected an int, 0 or more, got {value!r:.80}")
