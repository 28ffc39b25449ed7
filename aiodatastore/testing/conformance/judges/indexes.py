"""``indexes.jsonl``: which indexes serve a query, what is suggested otherwise, and the list of indexes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import NeedIndexError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.key import Key
from aiodatastore.testing.conformance.judges.queries import check_index, run_query
from aiodatastore.testing.conformance.session import Case, Record, Session, outcome_of
from aiodatastore.testing.conformance.surface import build_query

__all__ = ["judge"]


async def judge(session: Session, records: Sequence[Record]) -> None:
    """Judge every record of the file; ``get_indexes`` records are one sequence, in order."""
    async with session.store(require_indexes=True) as ds:
        try:
            for record in records:
                if record["type"] == "get_indexes":
                    with session.case(record) as case:
                        await _get_indexes(case, ds)
        finally:
            await _drop(ds, [info.definition for info in await ds.indexes()])

        async def judge_one(ds: Datastore, record: Record, stored: dict[Key, Entity]) -> None:
            with session.case(record) as case:
                await _need_index(case, ds)

        needs = [record for record in records if record["type"] != "get_indexes"]
        await session.per_dataset(ds, needs, judge_one)


def _definition(data: Mapping[str, Any]) -> IndexDefinition:
    properties = tuple((name, direction) for name, direction in data["properties"])
    return IndexDefinition(data["kind"], properties, data["ancestor"])


async def _drop(ds: Datastore, definitions: Iterable[IndexDefinition]) -> None:
    for definition in definitions:
        await ds.delete_index(definition)


async def _need_index(case: Case, ds: Datastore) -> None:
    record, expected = case.record, case.record["expect"]
    check_index(case, build_query(record["query"]), record["index"])
    defined = list(dict.fromkeys(map(_definition, record["defined"])))
    try:
        for definition in defined:
            await ds.create_index(definition, build=True)
        got = await outcome_of(lambda: run_query(ds, build_query(record["query"]), {}))
    finally:
        await _drop(ds, defined)
    if "error" in expected:
        case.check_error(expected, got)
        assert isinstance(got, NeedIndexError)
        _check_suggestion(case, got)
    elif isinstance(got, Exception):
        raise got
    else:
        case.check(len(got) == expected["results"], "results", expected=expected["results"], got=len(got))


def _check_suggestion(case: Case, error: NeedIndexError) -> None:
    expected = case.record["expect"]
    case.check(error.yaml == expected["yaml"], "yaml", expected=expected["yaml"], got=error.yaml)
    case.check(error.xml == expected["xml"], "xml", expected=expected["xml"], got=error.xml)
    minimal = _definition(expected["minimal"])
    case.check(error.minimal == minimal, "minimal index", expected=minimal, got=error.minimal)
    if expected["minimal"]["most_efficient"]:
        case.check(error.definition == minimal, "recommended index", expected=minimal, got=error.definition)


async def _get_indexes(case: Case, ds: Datastore) -> None:
    """Bring the indexes into the state of the snapshot, then compare what is listed.

    Numbers count up in the order of creation; only their order is compared, for a store may have had indexes.
    """
    expected = case.record["expect"]
    before = {info.definition: str(info.state) for info in await ds.indexes()}
    for data in expected:
        definition, state = _definition(data), data["state"]
        if definition not in before:
            await ds.create_index(definition, build=state == "SERVING")
        if state == "DELETING" and before.get(definition) != state:
            await ds.delete_index(definition, finish=False)
    infos = await ds.indexes()
    got = [_row(info.definition, str(info.state)) for info in infos]
    wanted = [_row(_definition(data), data["state"]) for data in sorted(expected, key=lambda d: d["number"])]
    case.check(got == wanted, "indexes", expected=wanted, got=got)
    numbers = [info.number for info in infos]
    case.check(numbers == sorted(set(numbers)), "numbers", expected=sorted(set(numbers)), got=numbers)


def _row(definition: IndexDefinition, state: str) -> tuple[Any, ...]:
    return definition.kind, definition.ancestor, definition.properties, state
