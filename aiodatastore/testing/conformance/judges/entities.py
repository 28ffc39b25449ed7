"""``entities.jsonl``: what may be stored, as what it comes back, and with which error it is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import DatastoreError, EntityNotFoundError
from aiodatastore.key import Key
from aiodatastore.testing.conformance.decode import (
    decode_argument,
    decode_entity,
    decode_value,
    identical,
    key_json,
    path_json,
    same_entity,
    same_value,
    show,
    unindexed_names,
)
from aiodatastore.testing.conformance.session import Case, MismatchError, Record, Session, outcome_of
from aiodatastore.testing.conformance.surface import make_entity
from aiodatastore.values import GeoPoint

__all__ = ["abbreviated", "get_one", "judge"]

FREE_CHOICE = frozenset(
    (
        "plain-bytes",
        "exact-class",
        "request-size",
        "reserved-accepted",
        "negative-id",
        "inner-incomplete",
        "empty-kind-key",
        "long-kind-key",
    )
)
"""Quirks for which refusing is fine, and so is accepting."""


async def judge(session: Session, records: Sequence[Record]) -> None:
    """Judge every record of the file; ``call`` records are one sequence, in order."""
    async with session.store() as ds, contextlib.AsyncExitStack() as sequence:
        world: Any = None
        for record in records:
            if record["type"] == "call":
                if record["world"] != world:
                    await sequence.aclose()
                    world = record["world"]
                    await sequence.enter_async_context(session.world(ds, world, ()))
                with session.case(record) as case:
                    await _call(case, ds)
        await sequence.aclose()
        for record in records:
            if record["type"] != "call":
                async with session.world(ds, (), record):
                    with session.case(record) as case:
                        await _JUDGES[record["type"]](case, ds)


# ----------------------------------------------------------------------------------------------- put


async def _put(case: Case, ds: Datastore) -> None:
    record, expected = case.record, case.record["expect"]

    async def store() -> tuple[Entity, Entity | None]:
        entity = _constructed(record["entity"])
        incomplete = entity.key
        key = await ds.put(entity)
        case.check(key == entity.key, "key returned", expected=entity.key, got=key)
        case.check(incomplete.is_complete or key.id, "automatic id", got=key)
        return entity, await ds.get(key)

    got = await outcome_of(store)
    if record.get("quirk") in FREE_CHOICE:
        case.quirk()
        _check_free_choice(case, got)
    elif "error" in expected:
        case.check_error(expected, got)
    elif isinstance(got, Exception):
        raise got
    else:
        _check_stored(case, *got)


def _constructed(arguments: Mapping[str, Any]) -> Entity:
    entity = make_entity(arguments)
    for name, value in arguments.get("set", ()):
        entity[decode_value(name)] = decode_value(value)
    return entity


def _check_free_choice(case: Case, got: Any) -> None:
    """RefusedError with a named error, or stored as it was put."""
    if isinstance(got, DatastoreError):
        return
    if isinstance(got, Exception):
        raise got
    entity, stored = got
    properties = case.record["expect"].get("props", {})
    as_put = stored is not None and all(
        identical(stored[name], value) or same_value(properties.get(abbreviated(name)), stored[name])
        for name, value in entity.items()
    )
    case.check(as_put, "stored", expected=entity, got=stored)


def _check_stored(case: Case, entity: Entity, stored: Entity | None) -> None:
    expected = case.record["expect"]
    if stored is None:
        raise MismatchError("the entity is not there after put")
    properties = expected["props"]
    if case.record.get("quirk") == "list-text-reorder":
        # What to do: keep the order.
        case.quirk()
        properties = dict(case.record["entity"]["set"])
    _check_properties(case, properties, stored)
    names = sorted(unindexed_names(stored))
    case.check(names == expected["unindexed"], "unindexed", expected=expected["unindexed"], got=names)
    key = stored.key
    facts = {
        "key_complete": key.is_complete,
        "path_kinds": [kind for kind, _ in key.pairs],
        "ns": key.namespace,
        "auto_id": not {"id", "name"} & case.record["entity"].keys(),
    }
    for fact, got in facts.items():
        case.check(got == expected[fact], fact, expected=expected[fact], got=got)
    for fact, wanted in (("id", key.id), ("name", key.name)):
        if fact in case.record["entity"]:
            given = decode_value(case.record["entity"][fact])
            case.check(wanted == given, fact, expected=given, got=wanted)


def _check_properties(case: Case, expected: Mapping[str, Any], stored: Entity) -> None:
    got = {abbreviated(name): value for name, value in stored.items()}
    case.check(got.keys() == expected.keys(), "properties", expected=sorted(expected), got=sorted(got))
    for name, value in expected.items():
        case.check(same_value(value, got[name]), f"property {name}", expected=value, got=got[name])


def abbreviated(name: str) -> str:
    """A property name as ``expect`` shows it."""
    return f"{name[:3]}...({len(name)} chars)" if len(name) > 200 else name


async def _overwrite(case: Case, ds: Datastore) -> None:
    record = case.record
    second = decode_entity(record["second"])
    await ds.put(decode_entity(record["first"]))
    await ds.put(second)
    await _check_got(case, ds, second.key)


async def _round_trip(case: Case, ds: Datastore) -> None:
    entity = decode_entity(case.record["entity"])
    await ds.put(entity)
    stored = await _check_got(case, ds, entity.key)
    case.check(same_entity(entity, stored), "what comes back", expected=entity, got=stored)


async def _check_got(case: Case, ds: Datastore, key: Key) -> Entity:
    stored = await ds.get(key)
    if stored is None:
        raise MismatchError("the entity is not there after put")
    _check_properties(case, case.record["expect"]["props"], stored)
    names, expected = sorted(unindexed_names(stored)), case.record["expect"]["unindexed"]
    case.check(names == expected, "unindexed", expected=expected, got=names)
    return stored


# --------------------------------------------------------------------------------- keys and points


async def _key(case: Case, ds: Datastore) -> None:
    record, expected = case.record, case.record["expect"]
    options = {name: record[name] for name in ("extra",) if name in record}
    if "ns" in record:
        options["namespace"] = record["ns"]
    if "parent" in record:
        options["parent"] = decode_argument(record["parent"])
    try:
        got: Any = Key.from_path(*map(decode_value, record["path"]), **options)
    except Exception as exc:
        got = exc
    if record.get("quirk") in FREE_CHOICE:
        case.quirk()
        if isinstance(got, DatastoreError):
            return
    if "error" in expected:
        case.check_error(expected, got)
        return
    if isinstance(got, Exception):
        raise got
    path = [decode_value(part) or None for part in expected["path"]]  # an id of 0 is none
    case.check(path_json(got) == path, "path", expected=path, got=path_json(got))
    case.check(got.is_complete == expected["complete"], "complete", expected=expected["complete"], got=got)
    case.check(got.namespace == expected["ns"], "namespace", expected=expected["ns"], got=got.namespace)


async def _geo(case: Case, ds: Datastore) -> None:
    record, expected = case.record, case.record["expect"]
    try:
        got: Any = GeoPoint(_number(record["lat"]), _number(record["lon"]))
    except Exception as exc:
        got = exc
    if "error" in expected:
        case.check_error(expected, got)
    elif isinstance(got, Exception):
        raise got
    else:
        pair = {"lat": repr(got.latitude), "lon": repr(got.longitude)}
        case.check(pair == expected, "point", expected=expected, got=pair)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


# --------------------------------------------------------------------------------------------- calls


async def get_one(ds: Any, argument: Any) -> Any:
    """App Engine's ``Get`` of one: raises where ours returns None. (Of several: as ours.)"""
    found = await ds.get(argument)
    if found is None:
        raise EntityNotFoundError(f"no entity {show(argument)}", key=argument)
    return found


async def _call(case: Case, ds: Datastore) -> None:
    record, expected = case.record, case.record["expect"]
    if record.get("rule") == "projected-entity":
        argument: Any = await _projected(ds, record["world"])
    else:
        argument = decode_argument(record["argument"])

    async def call() -> Any:
        if record["call"] == "Get":
            return await get_one(ds, argument)
        return await (ds.put if record["call"] == "Put" else ds.delete)(argument)

    got = await outcome_of(call)
    if "error" in expected:
        case.check_error(expected, got)
    elif isinstance(got, Exception):
        raise got
    elif "deleted" in expected:
        await _check_deleted(case, ds, argument)
    elif "entity" in expected:
        _check_properties(case, expected["entity"], got)
    elif "entities" in expected:
        case.check(len(got) == len(expected["entities"]), "how many", expected=expected, got=got)
        for wanted, entity in zip(expected["entities"], got, strict=True):
            case.check((wanted is None) == (entity is None), "entity", expected=wanted, got=entity)
            if wanted is not None:
                _check_properties(case, wanted, entity)
    else:
        keys = [key_json(key) for key in got] if isinstance(got, list) else key_json(got)
        wanted = expected["keys"] if "keys" in expected else expected["key"]
        case.check(keys == wanted, "keys", expected=expected, got=keys)


async def _check_deleted(case: Case, ds: Datastore, argument: Any) -> None:
    left = await ds.get(argument)
    gone = left is None or (isinstance(left, list) and not any(left))
    case.check(gone, "after deletion", expected="nothing", got=left)


async def _projected(ds: Datastore, world: Sequence[Record]) -> Entity:
    """Some result of a projection query over what is left of the world."""
    for data in world:
        entity = decode_entity(data)
        for name in entity.keys() - entity.unindexed:
            query = ds.query(entity.kind, namespace=entity.key.namespace).project(name)
            found: Entity | None = await query.first()
            if found is not None:
                return found
    raise MismatchError("nothing is left to project")


_JUDGES = {"put": _put, "overwrite": _overwrite, "round_trip": _round_trip, "key": _key, "geo": _geo}
