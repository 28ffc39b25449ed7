"""``values.jsonl``: ordering and equality of property values, as queries show them.

Values are stored as entities of a kind of their own for each case, so that one batch fills the store for the
whole file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.testing.conformance.decode import decode_value, identical, index_form
from aiodatastore.testing.conformance.session import Case, MismatchError, Record, Session, wipe

__all__ = ["judge"]

TYPE_SAMPLES: dict[str, list[Any]] = {
    "null": [None],
    "int": [-(2**63), 0, 2**63 - 1],
    "datetime": [{"datetime": "0001-01-01T00:00:00.000000"}, {"datetime": "9999-12-31T23:59:59.999999"}],
    "bool": [False, True],
    "str": ["", "\U0010ffff" * 300],
    "bytes": [{"bytes": ""}, {"bytes": "////"}],
    "float": [{"float": "-inf"}, {"float": "0.0"}, {"float": "nan"}],
    "geo": [{"geo": ["-90.0", "-180.0"]}, {"geo": ["90.0", "180.0"]}],
    "key": [{"key": {"path": ["A", 1]}}, {"key": {"path": ["Z", "~"], "ns": "z"}}],
}


async def judge(session: Session, records: Sequence[Record]) -> None:
    """Judge every record of the file."""
    async with session.store() as ds:
        kinds = {record["id"]: f"Value{number}" for number, record in enumerate(records)}
        try:
            for record in records:
                with session.case(record) as case:
                    await _JUDGES[record["type"]](case, ds, kinds[record["id"]])
        finally:
            await wipe(ds, [""])


async def _store(ds: Datastore, kind: str, values: Sequence[Any]) -> None:
    """Entities with x = each of the values (JSON), their ids counting from 1."""
    await ds.put([Entity(Key(kind, n), {"x": decode_value(v)}) for n, v in enumerate(values, start=1)])


async def _ids(query: Any) -> list[Any]:
    return [key.id async for key in query.keys_only()]


async def _sorted(case: Case, ds: Datastore, kind: str) -> None:
    """Store the groups backwards, read them ordered; each member finds exactly its group."""
    groups = [[(rank, value) for value in group] for rank, group in enumerate(case.record["groups"])]
    members = [member for group in reversed(groups) for member in group]
    await _store(ds, kind, [value for _, value in members])
    ranks = {number: rank for number, (rank, _) in enumerate(members, start=1)}
    for descending in (False, True):
        ids = await _ids(ds.query(kind).order("-x" if descending else "x"))
        wanted = sorted(ranks, key=lambda n: (-ranks[n] if descending else ranks[n], n))
        case.check(ids == wanted, "order", expected=wanted, got=ids)
    for rank, value in members:
        found = await _ids(ds.query(kind).filter("x", "=", decode_value(value)))
        same = sorted(n for n in ranks if ranks[n] == rank)
        case.check(found == same, f"x = {value}", expected=same, got=found)


async def _type_order(case: Case, ds: Datastore, kind: str) -> None:
    ranks: dict[int, int] = {}
    values: list[Any] = []
    for rank, names in reversed([*enumerate(case.record["order"])]):
        for name in names.split("|"):
            for value in TYPE_SAMPLES[name]:
                values.append(value)
                ranks[len(values)] = rank
    await _store(ds, kind, values)
    got = [ranks[n] for n in await _ids(ds.query(kind).order("x"))]
    case.check(got == sorted(ranks.values()), "order of types", expected=sorted(ranks.values()), got=got)


async def _compare(case: Case, ds: Datastore, kind: str) -> None:
    a, b, sign = case.record["a"], case.record["b"], case.record["cmp"]
    forms = index_form(decode_value(a)), index_form(decode_value(b))
    own = (forms[0] > forms[1]) - (forms[0] < forms[1])
    case.check(own == sign, "index normal form", expected=sign, got=own)
    await _store(ds, kind, [a, b])
    order = await _ids(ds.query(kind).order("x"))
    wanted = [2, 1] if sign > 0 else [1, 2]
    case.check(order == wanted, "order", expected=wanted, got=order)
    for number, value in ((1, a), (2, b)):
        found = await _ids(ds.query(kind).filter("x", "=", decode_value(value)))
        same = [1, 2] if sign == 0 else [number]
        case.check(found == same, f"x = {value}", expected=same, got=found)


async def _filter(case: Case, ds: Datastore, kind: str) -> None:
    """``matches`` are positions in ``stored``, from 0."""
    record = case.record
    await _store(ds, kind, record["stored"])
    found = await _ids(ds.query(kind).filter("x", record["op"], decode_value(record["bound"])))
    got = sorted(number - 1 for number in found)
    case.check(got == sorted(record["matches"]), "matches", expected=record["matches"], got=got)


async def _sort_value(case: Case, ds: Datastore, kind: str) -> None:
    """The entity comes right before the single-valued entities of the value that positions it."""
    record = case.record
    probes: list[Any] = []
    for value in map(decode_value, record["values"]):
        if not any(identical(value, probe) for probe in probes):
            probes.append(value)
    subject = Entity(Key(kind, 1), {"x": decode_value(record["values"])})
    await ds.put([subject, *(Entity(Key(kind, n), {"x": probe}) for n, probe in enumerate(probes, start=2))])
    for order, expected in (("x", record["asc"]), ("-x", record["desc"])):
        query = ds.query(kind)
        for name, op, bound in record["filters"]:
            query = query.filter(name, op, decode_value(bound))
        found = await _ids(query.order(order))
        if not expected:
            case.check(1 not in found, f"ordered by {order}", expected="no result", got=found)
            continue
        if 1 not in found:
            raise MismatchError(f"ordered by {order}: the entity is not a result")
        after = found[found.index(1) + 1 :]
        if not after:
            raise MismatchError(f"ordered by {order}: expected it before {expected}, it is the last result")
        got = probes[after[0] - 2]
        same = index_form(got) == index_form(decode_value(expected[0]))
        case.check(same, f"positioned, ordered by {order}, by", expected=expected[0], got=got)


_JUDGES: dict[str, Any] = {
    "type_order": _type_order,
    "sorted": _sorted,
    "compare": _compare,
    "filter": _filter,
    "sort_value": _sort_value,
}
