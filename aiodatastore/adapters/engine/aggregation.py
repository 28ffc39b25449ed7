"""``count``, ``sum`` and ``avg``: on index rows alone where a plan gives exact rows, else on entities.

``count`` counts results. ``sum`` and ``avg`` take the results whose property has exactly one indexed value, and
that an int or a float; lists of several values, datetimes and everything else are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiodatastore.adapters.base import AggregateResult, Aggregation, ReadPolicy, RunOptions
from aiodatastore.adapters.engine.core import Engine, Planned
from aiodatastore.adapters.engine.streams import EngineStream
from aiodatastore.errors import BadArgumentError, DatastoreError
from aiodatastore.indexing.aggregates import Number, RunningSum, single_number
from aiodatastore.indexing.encoding import TAG_FLOAT, TAG_ZERO, decode_key, decode_value
from aiodatastore.indexing.execution import QueryRun
from aiodatastore.indexing.explain import Step
from aiodatastore.indexing.metadata import METADATA_KINDS
from aiodatastore.indexing.normal import NormalQuery
from aiodatastore.indexing.planner import BranchPlan, key_is_bounded
from aiodatastore.indexing.rows import ALTERNATE_SHIFT, indexed_values
from aiodatastore.indexing.scanning import Reader
from aiodatastore.query import Query
from aiodatastore.rowstore import TAIL_MULTI, SpanCount

__all__ = ["aggregate", "count_now"]

_TALLY_SHIFT = 20
_MULTI = TAIL_MULTI >> _TALLY_SHIFT
_STREAMED_COUNT = 1000
"""Up to this limit counting stops at the limit instead of counting the whole span."""


async def aggregate(
    engine: Engine, query: Query, aggregations: Sequence[Aggregation], options: RunOptions
) -> AggregateResult:
    """Aggregate a query's results, the cheapest way that is exact."""
    for function, name in aggregations:
        if function not in ("count", "sum", "avg", "total") or bool(name) == (function == "count"):
            raise BadArgumentError(
                f"an aggregation is count, or sum or avg of a property, got {function!r} of {name!r}"
            )
    if query.kind in METADATA_KINDS:
        return await _of_metadata(engine, query, aggregations, options)
    counts = not options.track and not any([name for _, name in aggregations])
    while True:
        if engine.stale:
            await engine.refresh()
        retired = engine.retired
        if counts:
            counted = await _count_directly(engine, query, options)
            if counted is not None and engine.retired == retired and not engine.stale:
                return AggregateResult([counted.rows] * len(aggregations), counted.version, scans=1)
            counts = False
        reader = Reader(engine.reading(options.read_policy), track=options.track)
        values = await _values(engine, query, reader, aggregations)
        if engine.stale:
            await engine.refresh()
        if engine.retired == retired:
            break  # else rows of an index that was used may have been removed meanwhile
    checks = {decode_key(key): version for key, version in reader.checks.items()}
    version, newest = reader.take_versions()
    return AggregateResult(values, version, checks, reader.spans, newest, rows=reader.rows, scans=reader.scans)


async def _values(
    engine: Engine, query: Query, reader: Reader, aggregations: Sequence[Aggregation]
) -> list[Number | None]:
    if all(function == "count" for function, _ in aggregations):
        counted = await _count(engine, query, reader)
        return [counted] * len(aggregations)
    by_index = [await _by_index(engine, query, reader, item) for item in aggregations]
    if any(item is None for item in by_index):
        return await _by_entities(engine, query, reader, aggregations)
    return [item.value(function) for item, (function, _) in zip(by_index, aggregations, strict=True) if item]


async def _of_metadata(
    engine: Engine, query: Query, aggregations: Sequence[Aggregation], options: RunOptions
) -> AggregateResult:
    """Metadata entities are made in memory, so they are counted there; they have no numbers to add up."""
    page = await EngineStream(engine, query, options).next_page()
    values: dict[str, Any] = {"count": len(page.results), "sum": 0, "avg": None, "total": RunningSum()}
    return AggregateResult([values[function] for function, _ in aggregations], page.version, page.checks, page.spans)


def _run(engine: Engine, query: Query, planned: Planned, reader: Reader) -> QueryRun:
    return QueryRun(
        planned.normal,
        planned.plans,
        reader,
        engine.serializer,
        engine.bounds(query),
        sort_budget=engine.sort_budget,
        page_size=None,
        needed=lambda: engine.needed(query),
    )


# -------------------------------------------------------------------------------------------- count


async def _count_directly(engine: Engine, query: Query, options: RunOptions) -> SpanCount | None:
    """By one request of the store, which is all there is to most counts; None where there is more to it."""
    limit = query.max_results
    if query.start_cursor or query.end_cursor or query.projection or (limit is not None and limit <= _STREAMED_COUNT):
        return None
    direct = engine.plan(query if query.only_keys else query.keys_only()).direct
    if direct is None or direct.span.lo >= direct.span.hi:
        return None
    counted = await engine.reading(options.read_policy).count(direct.span)
    if direct.once and counted.multi:
        return None  # an entity with several rows here is one result
    rows = max(0, counted.rows - query.skip)
    return SpanCount(rows if limit is None else min(rows, limit), 0, counted.version)


def count_now(engine: Engine, query: Query, read_policy: ReadPolicy) -> int | None:
    """The same at once, of a query of keys without limit, offset and cursors; None where that would have to wait."""
    if not engine.refresh_now() or (engine.require_indexes and engine.missing_index(query) is not None):
        return None
    direct = engine.plan(query).direct
    if direct is None or direct.span.lo >= direct.span.hi:
        return None
    counted = engine.reading(read_policy).count_now(direct.span)
    if counted is None or (direct.once and counted.multi) or engine.stale:
        return None
    return counted.rows


async def _count(engine: Engine, query: Query, reader: Reader) -> int:
    # Keys are enough, except where a projection or distinct makes the results.
    keys = query if query.projection or query.only_keys else query.keys_only()
    planned = engine.plan(keys)
    if not planned.plans:
        return 0
    limit = query.max_results
    if limit is None or limit > _STREAMED_COUNT:
        counted = await _count_span(query, planned.normal, planned.plans, reader)
        if counted is not None:
            counted = max(0, counted - query.skip)
            return counted if limit is None else min(counted, limit)
    run = _run(engine, keys, planned, reader)
    total = 0
    while True:
        items, _ = await run.next_items()
        total += len(items)
        if not items or run.finished:
            return total


async def _count_span(query: Query, normal: NormalQuery, plans: Sequence[BranchPlan], reader: Reader) -> int | None:
    """Count a span in the store, where every row of it is a result; None where rows have to be looked at."""
    plan = plans[0]
    access = plan.ordered
    if (
        len(plans) > 1
        or not access.exact
        or plan.filtered is not None
        or len(access.spans) > 1
        or query.projection
        or query.start_cursor
        or query.end_cursor
    ):
        return None
    if access.key_filter and key_is_bounded(plan.branch):
        return None
    span = access.spans[0]
    if normal.orders and reader.track:
        # A transaction that counts verifies how many rows there are: not enough where entities may have several.
        return None
    step = Step("count", span.label)
    counted = await reader.count(step, span.space, span.prefix + access.lo, span.prefix + access.hi)
    if normal.orders and counted.multi:
        return None  # an entity with several rows here is one result
    return counted.rows


# -------------------------------------------------------------------------------------- sum and avg


async def _by_index(engine: Engine, query: Query, reader: Reader, item: Aggregation) -> RunningSum | None:
    """Sum one property from the rows of an index that has it; None where no plan allows."""
    function, name = item
    if function == "count" or query.max_results is not None or query.skip or query.projection:
        return None
    if query.start_cursor or query.end_cursor or query.orders:
        return None
    try:
        projection = query.project(name)
        projection.check()
        planned = engine.plan(projection)
        normal, plans = planned.normal, planned.plans
    except DatastoreError:
        return None  # a property with an equality filter can't be projected
    if [order.name for order in normal.components] != [name] or not all(plan.ordered.exact for plan in plans):
        return None
    total = RunningSum()
    if not plans:
        return total
    ordered = plans[0].ordered
    # Without places the property is fixed by a filter (``in`` with one value), and not in the rows.
    if len(plans) == 1 and len(ordered.spans) == 1 and ordered.spans[0].places and not ordered.backward:
        return await _sum_span(engine, plans[0], reader, total)
    return None


async def _sum_span(engine: Engine, plan: BranchPlan, reader: Reader, total: RunningSum) -> RunningSum:
    """Sum over the rows of one span: only the numbers of it are read."""
    access = plan.ordered
    span = access.spans[0]
    branch = plan.branch
    alternate = 1 << (ALTERNATE_SHIFT + span.places[0])
    step = Step("sum", span.label)
    for first, last in ((TAG_ZERO - 8, TAG_ZERO + 8), (TAG_FLOAT, TAG_FLOAT)):
        lo = span.prefix + max(access.lo, bytes((first,)))
        hi = span.prefix + min(access.hi, bytes((last + 1,)))
        if await _tallied(plan, reader, step, lo, hi, total):
            continue
        while rows := await reader.scan(step, span.space, lo, hi, 1000, reverse=False, join=False):
            lo = rows[-1][0] + b"\x00"
            doubtful: list[bytes] = []
            for row, tail, _, _ in rows:
                length = tail & 0xFFFFF
                key = row[-length:]
                if not branch.key_lo <= key < branch.key_hi or tail & alternate:
                    continue
                if tail & TAIL_MULTI:
                    doubtful.append(row)
                    continue
                total.add(decode_value(row[len(span.prefix) : -length]))
            if doubtful and len(span.places) and plan.branch.equals:
                # Several rows may come from another list property of the index: look at the entities.
                await _add_single(engine, reader, step, doubtful, rows, plan, total)
    return total


async def _tallied(plan: BranchPlan, reader: Reader, step: Step, lo: bytes, hi: bytes, total: RunningSum) -> bool:
    """Sum what the store has grouped by value, where every row counts and no transaction has to verify them."""
    access, branch = plan.ordered, plan.branch
    span = access.spans[0]
    if reader.track or len(span.places) != 1 or (access.key_filter and key_is_bounded(branch)):
        return False
    found = await reader.tally(step, span.space, lo, hi, len(span.prefix))
    if found is None:
        return False
    if branch.equals and any(bits & _MULTI for _, bits, _ in found.values):
        return False  # several rows may come from another property of the index: rows have to be looked at
    alternate = 1 << (ALTERNATE_SHIFT - _TALLY_SHIFT + span.places[0])
    for value, bits, rows in found.values:
        if not bits & (alternate | _MULTI):
            total.add(decode_value(value), rows)
    return True


async def _add_single(
    engine: Engine,
    reader: Reader,
    step: Step,
    doubtful: Sequence[bytes],
    rows: Sequence[tuple[bytes, int, int | None, bytes | None]],
    plan: BranchPlan,
    total: RunningSum,
) -> None:
    lengths = {row: tail & 0xFFFFF for row, tail, _, _ in rows}
    keys = [row[-lengths[row] :] for row in doubtful]
    name = plan.orders[0].name
    for key, record in zip(keys, await reader.read(step, keys), strict=True):
        if record is not None:
            entity = engine.serializer.loads(decode_key(key), record.payload, record.version)
            number = single_number(indexed_values(entity), name)
            if number is not None:
                total.add(number)


async def _by_entities(
    engine: Engine, query: Query, reader: Reader, aggregations: Sequence[Aggregation]
) -> list[Number | None]:
    """Run the query as it is and add up its results."""
    planned = engine.plan(query)
    sums = [RunningSum() for _ in aggregations]
    results = 0
    if planned.plans:
        run = _run(engine, query, planned, reader)
        while True:
            items, _ = await run.next_items()
            results += len(items)
            found = await run.entities(items)
            for entity in found:
                values = indexed_values(entity)
                for (function, name), total in zip(aggregations, sums, strict=True):
                    if function != "count" and (number := single_number(values, name)) is not None:
                        total.add(number)
            if not items or run.finished:
                break
    return [
        results if function == "count" else total.value(function)
        for (function, _), total in zip(aggregations, sums, strict=True)
    ]
