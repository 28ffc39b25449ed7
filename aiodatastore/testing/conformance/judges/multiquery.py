"""``multiquery.jsonl``: ``in`` and ``!=``, as filters and as merged queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.testing.conformance.judges.cursors import check_merged_cursor
from aiodatastore.testing.conformance.judges.queries import run_query
from aiodatastore.testing.conformance.rules import MERGED_CURSORS, NO_COUNTERPART
from aiodatastore.testing.conformance.session import Case, Record, Session, compare_results, outcome_of
from aiodatastore.testing.conformance.surface import build_query, build_union, with_run

__all__ = ["judge"]


async def judge(session: Session, records: Sequence[Record]) -> None:
    """Judge every record of the file."""

    async def judge_one(ds: Datastore, record: Record, stored: dict[Key, Entity]) -> None:
        with session.case(record) as case:
            if record["shape"] == "rule":
                await _judge_rule(case, ds, stored)
            else:
                await _judge_source(case, ds, stored)

    async with session.store() as ds:
        await session.per_dataset(ds, records, judge_one)


async def _judge_source(case: Case, ds: Datastore, stored: Mapping[Key, Entity]) -> None:
    """The query as a user writes it and its expansion: both must give the expected results."""
    record = case.record
    run = record.get("run", {})
    for query in (build_query(record["source"]), build_union(record)):
        got = await outcome_of(lambda query=query: run_query(ds, query, run))  # type: ignore[misc]
        _compare(case, got, stored)
        if "count" in record:
            count = await ds.query(query).count()
            case.check(count == record["count"], "count", expected=record["count"], got=count)


def _compare(case: Case, got: Any, stored: Mapping[Key, Entity]) -> None:
    record = case.record
    expected, ordered = record["expect"], True
    if record.get("ordered") is False:
        # The set counts; where a part of it was asked for, the part that index order gives.
        case.quirk()
        ordered = bool(record.get("run"))
        if ordered:
            expected = {"keys": record["index_order"]}
    namespace = record["source"].get("ns", "")
    compare_results(case, expected, got, stored=stored, namespace=namespace, ordered=ordered)


async def _judge_rule(case: Case, ds: Datastore, stored: Mapping[Key, Entity]) -> None:
    record = case.record
    op, run, expected = record["op"], record.get("run", {}), record["expect"]
    if op == "GetCursor":
        case.by_rule(MERGED_CURSORS)
        await check_merged_cursor(case, ds, build_union(record))
    elif op == "GetIndexList":
        # We have no call that lists the indexes a run used (explain() shows them), merged or not.
        case.by_rule(NO_COUNTERPART)
        case.check(not hasattr(ds.query(build_union(record)), "index_list"), "index list", expected="none")
    elif op == "count":

        async def count() -> int:
            return await ds.query(with_run(build_union(record), run)).count()

        got = await outcome_of(count)
        if "error" in expected:
            case.check_error(expected, got)
        else:
            case.check(got == expected["count"], "count", expected=expected["count"], got=got)
    else:
        results = await outcome_of(lambda: run_query(ds, *_rule_query(record)))
        compare_results(case, expected, results, stored=stored)


def _rule_query(record: Mapping[str, Any]) -> tuple[Query, dict[str, Any]]:
    """The union, with ``keys_only`` of ``Run()`` applied, and the other options."""
    query, run = build_union(record), dict(record.get("run", {}))
    if run.pop("keys_only", False):
        query = query.keys_only()
    return query, run
