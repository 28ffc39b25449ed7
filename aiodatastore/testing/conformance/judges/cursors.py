"""``cursors.jsonl``: resuming from cursors, end cursors, paging, and what a cursor survives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiodatastore.cursor import Cursor
from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import DatastoreError
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.testing.conformance.decode import decode_entity, decode_key
from aiodatastore.testing.conformance.rules import MERGED_CURSORS, NO_COUNTERPART
from aiodatastore.testing.conformance.session import Case, Record, Session, compare_results, outcome_of
from aiodatastore.testing.conformance.surface import build_query, with_run

__all__ = ["check_merged_cursor", "cursor_after", "judge"]

Stored = Mapping[Key, Entity]


async def judge(session: Session, records: Sequence[Record]) -> None:
    """Judge every record of the file."""

    async def judge_one(ds: Datastore, record: Record, stored: dict[Key, Entity]) -> None:
        with session.case(record) as case:
            await _JUDGES[record["type"]](case, ds, stored)

    async with session.store() as ds:
        await session.per_dataset(ds, [record for record in records if "dataset" in record], judge_one)
        for record in records:
            if "dataset" not in record:
                stored = {entity.key: entity for entity in map(decode_entity, record["entities"])}
                async with session.world(ds, record["entities"], record):
                    await judge_one(ds, record, stored)


async def cursor_after(ds: Datastore, query: Query, after: int | None) -> Cursor:
    """The cursor of a run after that many results (None: all)."""
    results = ds.query(query).run()
    count = 0
    while count != after:
        try:
            await anext(results)
        except StopAsyncIteration:
            break
        count += 1
    return results.cursor


async def _results(ds: Datastore, query: Query) -> list[Any]:
    return [result async for result in ds.query(query).run()]


async def _compare(
    case: Case, stored: Stored, run: Callable[[], Awaitable[Any]], expected: Mapping[str, Any] | None = None
) -> None:
    got = await outcome_of(run)
    record = case.record
    namespace = record["query"].get("ns", "")
    compare_results(case, expected or record["expect"], got, stored=stored, namespace=namespace)


async def _between(case: Case, ds: Datastore, stored: Stored) -> None:
    """``resume``, ``until`` and ``window``."""
    record = case.record
    query = build_query(record["query"])

    async def run() -> list[Any]:
        part = query
        if "cursor" in record:
            part = part.start(await cursor_after(ds, query, record["cursor"]["after"]))
        if "end_cursor" in record:
            part = part.end(await cursor_after(ds, query, record["end_cursor"]["after"]))
        return await _results(ds, with_run(part, record.get("run", {})))

    await _compare(case, stored, run)


async def _after_run(case: Case, ds: Datastore, stored: Stored) -> None:
    record = case.record
    query = build_query(record["query"])

    async def run() -> list[Any]:
        cursor = await cursor_after(ds, with_run(query, record["first_run"]), None)
        return await _results(ds, query.start(cursor))

    await _compare(case, stored, run)


async def _after_count(case: Case, ds: Datastore, stored: Stored) -> None:
    """Our count leaves no cursor behind; it is the one after as many results as were counted."""
    record = case.record
    query = build_query(record["query"])

    async def run() -> list[Any]:
        counted = await ds.query(query).count(limit=record["count_limit"])
        cursor = await cursor_after(ds, query.limit(counted), None)
        return await _results(ds, query.start(cursor))

    await _compare(case, stored, run)


async def _pages(case: Case, ds: Datastore, stored: Stored) -> None:
    record = case.record
    query, size, expected = build_query(record["query"]), record["page_size"], record["expect"]["pages"]
    pages: list[list[Any]] = []
    cursor: Cursor | None = None
    while len(pages) <= len(expected):
        page = await ds.query(query).page(size, start=cursor)
        pages.append(page.entities)
        cursor = page.cursor
        if len(page.entities) < size:
            break
    case.check(len(pages) == len(expected), "pages", expected=len(expected), got=len(pages))
    member = "rows" if "projection" in record["query"] else "keys"
    for wanted, got in zip(expected, pages, strict=True):
        compare_results(case, {member: wanted}, got, stored=stored, namespace=record["query"].get("ns", ""))


async def _reverse(case: Case, ds: Datastore, stored: Stored) -> None:
    record = case.record

    async def run() -> list[Any]:
        cursor = await cursor_after(ds, build_query(record["forward"]), record["cursor"]["after"])
        return await _results(ds, build_query(record["reversed"]).start(cursor))

    await _compare(case, stored, run)


async def _mutate(case: Case, ds: Datastore, stored: Stored) -> None:
    record = case.record
    query = build_query(record["query"])
    now = dict(stored)
    before = {"rows" if "projection" in record["query"] else "keys": record["before"]}
    await _compare(case, stored, lambda: _results(ds, query), before)

    async def run() -> list[Any]:
        cursor = await cursor_after(ds, query, record["cursor"]["after"])
        for mutation in record["mutations"]:
            if "put" in mutation:
                entity = decode_entity(mutation["put"])
                await ds.put(entity)
                now[entity.key] = entity
            else:
                await ds.delete(decode_key(mutation["delete"]))
        return await _results(ds, query.start(cursor) if record["use"] == "resume" else query.end(cursor))

    await _compare(case, now, run)


async def _foreign(case: Case, ds: Datastore, stored: Stored) -> None:
    record = case.record

    async def run() -> list[Any]:
        cursor = await cursor_after(ds, build_query(record["query"]), record["cursor"]["after"])
        return await _results(ds, build_query(record["used_with"]).start(cursor))

    got = await outcome_of(run)
    if record.get("quirk") == "cursor-foreign":
        # Unspecified; refusing is fine, and so is what the stub does.
        case.quirk()
        if isinstance(got, DatastoreError):
            return
    compare_results(case, record["expect"], got, stored=stored)


# ---------------------------------------------------------------------------------- argument records


async def _argument(case: Case, ds: Datastore, stored: Stored) -> None:
    record = case.record
    query = build_query(record["query"])
    rule = record["rule"]
    if rule == "get-cursor-before-run":
        # Only a run has a cursor: a query that wasn't run has no such attribute.
        case.by_rule(NO_COUNTERPART)
        case.check(not hasattr(ds.query(query), "cursor"), "a query without a run", expected="no cursor")
        return
    if rule == "multiquery-has-no-cursor":
        case.by_rule(MERGED_CURSORS)
        await check_merged_cursor(case, ds, Query.union([query, query], query.orders))
        return

    async def run() -> list[Any]:
        return await _results(ds, await _ARGUMENTS[rule](ds, query))

    got = await outcome_of(run)
    if record.get("quirk") == "cursor-lenient-base64":
        # What to do: refuse.
        case.quirk()
        case.check(isinstance(got, DatastoreError), "outcome", expected="an error", got=got)
        return
    compare_results(case, record["expect"], got, stored=stored)


async def check_merged_cursor(case: Case, ds: Datastore, query: Query) -> None:
    """Cursors of a merged query resume and end it at every position."""
    everything = await _results(ds, query)
    for after in range(len(everything) + 1):
        cursor = Cursor.from_urlsafe((await cursor_after(ds, query, after)).to_urlsafe())
        rest = await _results(ds, query.start(cursor))
        case.check(rest == everything[after:], f"resumed after {after}", expected=everything[after:], got=rest)
        head = await _results(ds, query.end(cursor))
        case.check(head == everything[:after], f"ended after {after}", expected=everything[:after], got=head)


async def _start_is_string(ds: Datastore, query: Query) -> Query:
    return query.start("cursor")  # type: ignore[arg-type]  # this is what is tested


async def _end_is_string(ds: Datastore, query: Query) -> Query:
    return query.end("cursor")  # type: ignore[arg-type]  # this is what is tested


async def _not_string(ds: Datastore, query: Query) -> Query:
    return query.start(Cursor.from_urlsafe(5))  # type: ignore[arg-type]  # this is what is tested


async def _garbage(ds: Datastore, query: Query) -> Query:
    return query.start(Cursor.from_urlsafe("Z2FyYmFnZSBvZiBzb21lIGxlbmd0aA=="))


async def _not_base64(ds: Datastore, query: Query) -> Query:
    return query.start(Cursor.from_urlsafe("!!!"))


async def _fresh_start(ds: Datastore, query: Query) -> Query:
    return query.start(Cursor())


async def _fresh_end(ds: Datastore, query: Query) -> Query:
    return query.end(Cursor())


async def _websafe(ds: Datastore, query: Query) -> Query:
    return query.start(Cursor.from_urlsafe((await cursor_after(ds, query, 3)).to_urlsafe()))


async def _bytes(ds: Datastore, query: Query) -> Query:
    data = str(await cursor_after(ds, query, 3)).encode("ascii")
    return query.start(Cursor.from_urlsafe(data.decode("ascii")))


_ARGUMENTS: dict[str, Callable[[Datastore, Query], Awaitable[Query]]] = {
    "start-cursor-is-string": _start_is_string,
    "end-cursor-is-string": _end_is_string,
    "websafe-not-string": _not_string,
    "websafe-garbage": _garbage,
    "websafe-not-base64-alphabet": _not_base64,
    "fresh-cursor-as-start": _fresh_start,
    "fresh-cursor-as-end": _fresh_end,
    "roundtrip-websafe": _websafe,
    "roundtrip-bytes": _bytes,
}

_JUDGES = {
    "resume": _between,
    "until": _between,
    "window": _between,
    "after_run": _after_run,
    "after_count": _after_count,
    "pages": _pages,
    "reverse": _reverse,
    "mutate": _mutate,
    "foreign": _foreign,
    "argument": _argument,
}
