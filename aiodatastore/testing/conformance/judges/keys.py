"""``keys.jsonl``: order, ancestry and facts of keys, both as Python values and as a store sees them."""

from __future__ import annotations

from collections.abc import Sequence

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.testing.conformance.decode import decode_key, key_form
from aiodatastore.testing.conformance.session import Case, Record, Session, is_error

__all__ = ["judge"]


async def judge(session: Session, records: Sequence[Record]) -> None:
    """Judge every record of the file."""
    async with session.store() as ds:
        for record in records:
            with session.case(record) as case:
                await _JUDGES[record["type"]](case, session, ds)


async def _sorted(case: Case, session: Session, ds: Datastore) -> None:
    keys = [decode_key(data) for data in case.record["keys"]]
    case.check(sorted(keys) == keys, "order in Python", expected=keys, got=sorted(keys))
    await _check_stored_order(case, session, ds, keys)
    if len({key.namespace for key in keys}) == 1:
        async with session.world(ds, (), case.record):
            await ds.put([Entity(key) for key in reversed(keys)])
            found = [key async for key in ds.query(None, namespace=keys[0].namespace).keys_only()]
            case.check(found == keys, "order of entities", expected=keys, got=found)


async def _check_stored_order(case: Case, session: Session, ds: Datastore, keys: Sequence[Key]) -> None:
    """Order as property values; equal ones in any order."""
    async with session.world(ds, (), ()):
        stored = {
            Key("Holder", n): Entity(Key("Holder", n), {"x": key}) for n, key in enumerate(reversed(keys), start=1)
        }
        await ds.put(list(stored.values()))
        found = [entity["x"] async for entity in ds.query("Holder").order("x")]
        case.check(found == list(keys), "order as values", expected=list(keys), got=found)


async def _compare(case: Case, session: Session, ds: Datastore) -> None:
    record = case.record
    a, b = decode_key(record["a"]), decode_key(record["b"])
    sign = (a > b) - (a < b)
    case.check(sign == record["cmp"], "cmp", expected=record["cmp"], got=sign)
    case.check((a <= b, a >= b) == (sign <= 0, sign >= 0), "<= and >=", got=(a <= b, a >= b))
    case.check((a == b) is record["equal"], "==", expected=record["equal"], got=a == b)
    case.check(not record["equal"] or hash(a) == hash(b), "hashes of equal keys")
    await _check_stored_order(case, session, ds, [a, b] if record["cmp"] <= 0 else [b, a])


async def _facts(case: Case, session: Session, ds: Datastore) -> None:
    record = case.record
    key = decode_key(record["key"])
    parent = record["parent"] and decode_key(record["parent"])
    facts = {
        "kind": (key.kind, record["kind"]),
        "id": (key.id, record.get("key_id")),
        "name": (key.name, record.get("key_name")),
        "namespace": (key.namespace, record.get("namespace", key.namespace)),
        "parent": (key.parent, parent),
        # An incomplete root has no entity group of its own yet; ours is the root, which equals the record's.
        "entity group": (key.root, decode_key(record["entity_group"])),
        "complete": (key.is_complete, record["complete"]),
    }
    for fact, (got, expected) in facts.items():
        case.check(got == expected, fact, expected=expected, got=got)
    if isinstance(record["urlsafe"], dict):
        _check_no_urlsafe(case, key)
        return
    urlsafe = key.to_app_engine(record["app"])
    case.check(urlsafe == record["urlsafe"], "urlsafe", expected=record["urlsafe"], got=urlsafe)
    back = Key.from_app_engine(urlsafe, record["app"])
    case.check(back == key, "key of urlsafe", expected=key, got=back)
    for text, inverse in ((key.to_urlsafe(), Key.from_urlsafe), (str(key), Key.from_string)):
        case.check(inverse(text) == key, f"key of {text}", expected=key, got=inverse(text))


def _check_no_urlsafe(case: Case, key: Key) -> None:
    wanted = case.record["urlsafe"]["error"]
    try:
        got: object = key.to_app_engine(case.record["app"])
    except Exception as exc:
        got = exc
        if is_error(exc, wanted):
            return
    case.check(False, "urlsafe", expected=wanted, got=got)


async def _descendants(case: Case, session: Session, ds: Datastore) -> None:
    ancestor = decode_key(case.record["ancestor"])
    await _check_found(case, session, ds, ds.query(None, namespace=ancestor.namespace).under(ancestor))
    below = [key for key in map(decode_key, case.record["keys"]) if ancestor.is_ancestor_of(key)]
    expected = [key for key in map(decode_key, case.record["expect"]) if key != ancestor]
    case.check(sorted(below) == sorted(expected), "is_ancestor_of", expected=expected, got=below)


async def _range(case: Case, session: Session, ds: Datastore) -> None:
    bound = decode_key(case.record["bound"])
    query = ds.query(None, namespace=bound.namespace).filter("__key__", case.record["op"], bound)
    await _check_found(case, session, ds, query)


async def _check_found(case: Case, session: Session, ds: Datastore, query: object) -> None:
    async with session.world(ds, (), case.record):
        await ds.put([Entity(decode_key(data)) for data in case.record["keys"]])
        found = [entity.key async for entity in query]  # type: ignore[attr-defined]  # a BoundQuery
    expected = sorted(map(decode_key, case.record["expect"]), key=key_form)
    case.check(found == expected, "found", expected=expected, got=found)


_JUDGES = {
    "sorted": _sorted,
    "compare": _compare,
    "facts": _facts,
    "descendants": _descendants,
    "range": _range,
}
