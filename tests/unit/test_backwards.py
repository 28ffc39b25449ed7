"""Reading backwards from a cursor: page by page, whatever positions the results, and nothing twice or lost."""

from __future__ import annotations

from typing import Any

import pytest

from aiodatastore import Cursor, Datastore, Entity, Key, Query
from aiodatastore.errors import TransactionFailedError

pytestmark = pytest.mark.anyio

PEOPLE = [
    {"tags": ["a", "c"], "n": 1, "m": 5},
    {"tags": ["b"], "n": 2, "m": [4, 6]},
    {"tags": ["b", "d"], "n": 1, "m": 4},
    {"tags": ["a", "d", "e"], "n": [1, 3], "m": 5},
    {"tags": [], "n": 3, "m": 1},
    {"tags": ["c", "d"], "n": 2, "m": [1, 2, 3]},
]


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(Query("P").order("tags"), id="list"),
        pytest.param(Query("P").order("-tags", "n"), id="two-lists"),
        pytest.param(Query("P").filter("tags", ">", "a"), id="range-of-list"),
        pytest.param(Query("P").filter("tags", "in", ["a", "d"]).order("n"), id="merged"),
        pytest.param(Query("P").project("n", "m").order("-n", "__key__"), id="projected-after-key"),
        pytest.param(Query("P").project("n", "m").distinct_on("n"), id="distinct"),
        pytest.param(Query("P").filter("__key__", "=", Key("P", 2)), id="one-key"),
        pytest.param(Query("P").filter("__key__", "=", Key("P", 6)).project("m"), id="rows-of-one-key"),
    ],
)
async def test_pages_backwards_are_the_results_backwards(query: Query) -> None:
    async with Datastore("memory://") as ds:
        await ds.put([Entity(Key("P", n), properties) for n, properties in enumerate(PEOPLE, start=1)])
        run = ds.query(query).run()
        forward = [result async for result in run]
        assert forward
        for size in (1, 2, 5):
            assert await pages(ds, query.reversed(), run.cursor, size) == forward[::-1]
        for place in range(1, len(forward) + 1):
            end = await cursor_after(ds, query, place)
            assert await ds.query(query.reversed().start(run.cursor).end(end)).fetch() == forward[place:][::-1]


async def cursor_after(ds: Datastore, query: Query, place: int) -> Cursor:
    run = ds.query(query.limit(place)).run()
    async for _ in run:
        pass
    return run.cursor


async def pages(ds: Datastore, query: Query, cursor: Cursor, size: int) -> list[Any]:
    found: list[Any] = []
    while True:
        page = await ds.query(query).page(size, start=cursor)
        found += page.entities
        if not page.more:
            return found
        cursor = Cursor.from_urlsafe(page.cursor.to_urlsafe())


async def test_count_and_results_in_a_transaction_are_of_one_moment() -> None:
    """Both read the same span, one of them without looking at the rows."""
    async with Datastore("memory://") as ds:
        key = Key("P", 1)
        await ds.put(Entity(key, {"n": 1}))
        transaction = ds.begin()
        assert await transaction.query("P").under(key).count() == 1
        await ds.delete(key)
        with pytest.raises(TransactionFailedError):
            await transaction.query("P").under(key).order("-n").fetch()
        await transaction.rollback()
