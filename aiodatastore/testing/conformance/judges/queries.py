"""``queries.jsonl``: ordered results, counts, the index a query needs, and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.indexing.suggest import required_index
from aiodatastore.key import Key
from aiodatastore.query import Order, PropertyFilter, Query
from aiodatastore.testing.conformance.decode import decode_value, show
from aiodatastore.testing.conformance.session import (
    Case,
    MismatchError,
    Record,
    Session,
    compare_results,
    is_error,
    outcome_of,
)
from aiodatastore.testing.conformance.surface import build_query, make_order, with_run

__all__ = ["check_index", "judge", "run_query"]


async def judge(session: Session, records: Sequence[Record]) -> None:
    """Judge every record of the file."""
    for record in records:
        if "type" in record:
            with session.case(record) as case:
                _SURFACE[record["type"]](case)

    async def judge_one(ds: Datastore, record: Record, stored: dict[Key, Entity]) -> None:
        with session.case(record) as case:
            await _judge_query(case, ds, stored)

    async with session.store() as ds:
        await session.per_dataset(ds, [r for r in records if "type" not in r], judge_one)


async def _judge_query(case: Case, ds: Datastore, stored: Mapping[Key, Entity]) -> None:
    record = case.record
    data, run = record["query"], record.get("run", {})

    async def results() -> list[Any]:
        return await run_query(ds, build_query(data, record), run)

    got = await outcome_of(results)
    namespace = data.get("ns", "")
    quirk = record.get("quirk")
    if quirk == "text-after-first":
        # What to do: refuse. The class is the one for text in first place.
        case.quirk()
        refused = isinstance(got, Exception) and is_error(got, "BadValueError")
        case.check(refused, "outcome", expected="BadValueError", got=got)
        return
    expected = record["expect"]
    if quirk == "eq-ineq-sort":
        # What to do: position by the inequality's matches, which is index_order.
        case.quirk()
        expected = {"keys": record["index_order"]}
    compare_results(case, expected, got, stored=stored, namespace=namespace)
    if "count" in record:
        await _check_count(case, ds, build_query(data, record), record["count"])
    if "count_args" in record:
        arguments = record["count_args"]
        query = with_run(build_query(data, record), arguments)
        await _check_count(case, ds, query, arguments["value"])
    if "index" in record:
        check_index(case, build_query(data, record), record["index"])


async def run_query(ds: Datastore, query: Query, run: Mapping[str, Any]) -> list[Any]:
    """``Run(**run)`` to the end."""
    others = {name: value for name, value in run.items() if name not in ("limit", "offset")}
    page_size = {"page_size": others.pop("batch_size")} if "batch_size" in others else {}
    stream = ds.query(with_run(query, run)).run(**page_size, **others)
    return [result async for result in stream]


async def _check_count(case: Case, ds: Datastore, query: Query, expected: int) -> None:
    got = await ds.query(query).count()
    case.check(got == expected, "count", expected=expected, got=got)


def check_index(case: Case, query: Query, expected: Mapping[str, Any]) -> None:
    """Compare with the answer of App Engine's ``CompositeIndexForQuery``."""
    index = required_index(query)
    got: dict[str, Any] = {
        "required": index.required,
        "kind": index.kind,
        "equality": sorted(index.equality),
        "ordered": [list(order) for order in index.ordered],
        "group_by": sorted(index.group_by),
        "any_order": sorted(index.any_order),
        "ancestor": index.ancestor,
    }
    defaults: dict[str, Any] = {"kind": None, "ancestor": False}
    for name, value in got.items():
        wanted = expected.get(name, defaults.get(name, []))
        if name in ("equality", "group_by", "any_order"):
            wanted = sorted(wanted)
        case.check(value == wanted, f"index: {name}", expected=wanted, got=value)
    if "recommended" in expected:
        recommended = index.recommended and [list(pair) for pair in index.recommended.properties]
        same = recommended == expected["recommended"]
        case.check(same, "index: recommended", expected=expected["recommended"], got=recommended)


# -------------------------------------------------------------------------------------- surface records


def _filter_string(case: Case) -> None:
    """``query[string] = value``."""
    string, expected = case.record["string"], case.record["expect"]
    key = decode_value({"key": {"path": ["A", 1]}})
    value = key if isinstance(string, str) and string.strip().startswith("__key__") else 1
    try:
        (got,) = Query("Any", strict=True).filter({string: value}).filters
    except Exception as exc:
        if "error" not in expected:
            raise
        case.check_error(expected, exc)
        return
    if not isinstance(got, PropertyFilter) or "error" in expected:
        raise MismatchError(f"filter: expected {show(expected)}, got {show(got)}")
    pair = {"property": got.name, "op": str(got.op)}
    case.check(pair == expected, "filter", expected=expected, got=pair)


def _order_argument(case: Case) -> None:
    """``Order(argument)``."""
    expected = case.record["expect"]
    argument = case.record["argument"]
    try:
        orders: tuple[Order, ...] = make_order(tuple(argument) if isinstance(argument, list) else argument)
    except Exception as exc:
        if "error" not in expected:
            raise
        case.check_error(expected, exc)
        return
    got = [[order.name, "desc" if order.descending else "asc"] for order in orders]
    case.check(got == expected.get("orders"), "orders", expected=expected, got=got)


_SURFACE = {"filter_string": _filter_string, "order_argument": _order_argument}
