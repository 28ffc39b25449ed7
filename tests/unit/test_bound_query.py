"""Running queries: results, pages, cursors, aggregates; and what transactions see on top of the store."""

from __future__ import annotations

import random
from typing import Any

import pytest

from aiodatastore import Aggregation, Cursor, Order, Query
from aiodatastore.bound_query import BoundQuery
from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, BadCursorError, BadQueryError, DatastoreError, TransactionFailedError
from aiodatastore.key import Key

from .stepping import store

pytestmark = pytest.mark.anyio


def cities(count: int) -> list[Entity]:
    return [Entity(Key("City", n), {"n": n, "even": n % 2 == 0, "name": f"c{n:04}"}) for n in range(1, count + 1)]


def numbers(results: list[Any]) -> list[int]:
    return [(each.id or 0) if isinstance(each, Key) else each["n"] for each in results]


async def test_every_way_to_get_results() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(cities(30))
        query = ds.query("City").filter("even", "=", True).order("-n")
        expected = list(range(30, 0, -2))
        assert numbers([each async for each in query]) == expected
        assert numbers(await query.fetch()) == expected
        assert numbers(await query.fetch(3)) == expected[:3]
        assert numbers(await query.limit(2).fetch(3)) == expected[:2]
        assert numbers(await query.fetch(0)) == []
        assert numbers(await query.keys()) == expected
        assert numbers(await query.keys_only().offset(2).fetch(2)) == expected[2:4]
        assert (await query.first())["n"] == 30
        assert await query.filter("n", ">", 99).first() is None
        assert await query.count() == 15
        assert await query.count(limit=4) == 4
        assert await query.offset(10).count() == 5
        assert await query.sum("n") == sum(expected)
        assert await query.avg("n") == 16
        assert await query.avg("name") is None
        assert await query.sum("name") == 0
        assert await query.aggregate(
            all="count", total=("sum", "n"), mean=("avg", "n"), again=Aggregation("count")
        ) == {"all": 15, "total": 240, "mean": 16, "again": 15}
        assert await query.aggregate() == {}
        assert numbers(await query.reversed().fetch()) == expected[::-1]
        (row,) = await ds.query("City").project("name").limit(1).fetch()
        assert row.is_projection
        assert await ds.query("City").under(Key("City", 3)).count() == 1
        assert await ds.query("City").project("even").distinct().count() == 2
        assert await ds.query("City").project("even").distinct_on("even").count() == 2


async def test_wrong_arguments() -> None:
    ds, _ = store()
    async with ds:
        query = ds.query("City")
        for wrong in (0, -1, "5", 1.5, True):
            with pytest.raises(BadArgumentError):
                await query.page(wrong)  # type: ignore[arg-type]  # this is what is tested
            with pytest.raises(BadArgumentError):
                query.run(page_size=wrong)  # type: ignore[arg-type]  # this is what is tested
        for wrong_aggregate in ("sum", ("max", "n"), 5, ("sum", "n", "m")):
            with pytest.raises(BadArgumentError):
                await query.aggregate(x=wrong_aggregate)  # type: ignore[arg-type]  # this is what is tested
        with pytest.raises(BadArgumentError):
            query.run(read_policy="strong")  # type: ignore[arg-type]  # this is what is tested
        with pytest.raises(BadQueryError):
            query.distinct()
        assert repr(query) == f"<BoundQuery Query('City') of {ds!r}>"
        assert not hasattr(query, "cursor")


async def test_cursors_follow_what_was_pulled() -> None:
    ds, _ = store(page_size=4)
    async with ds:
        await ds.put(cities(10))
        cursors: list[Cursor] = []
        for query in (ds.query("City").order("-n"), ds.query("City").filter("n", "in", list(range(1, 11))).order("n")):
            expected = numbers(await query.fetch())
            results = query.run()
            cursors = [results.cursor]
            async for _ in results:
                cursors.append(results.cursor)
            cursors.append(results.cursor)
            assert cursors[-1] == cursors[-2]
            assert cursors[0].position == b""
            for place, cursor in enumerate(cursors[:-1]):
                read = Cursor.from_urlsafe(cursor.to_urlsafe())
                assert numbers(await query.start(read).fetch()) == expected[place:]
                assert numbers(await query.end(read).fetch()) == expected[:place]
                if place:  # the place before all is the same both ways
                    assert numbers(await query.reversed().start(read).fetch()) == expected[:place][::-1]
        with pytest.raises(BadCursorError):
            await ds.query("City").start(cursors[3]).fetch()
        results = ds.query("City").offset(3).run()
        assert (await anext(results))["n"] == 4
        assert results.skipped == 3
        results = ds.query("City").offset(10).run()
        assert [each async for each in results] == []
        assert results.skipped == 10
        await ds.put(Entity(Key("City", 11), {"n": 11}))
        assert numbers(await ds.query("City").start(results.cursor).fetch()) == [11]


async def test_pages() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(cities(10))
        for size in (1, 3, 5, 10, 11):
            found, cursor, more = [], None, True
            while more:
                page = await ds.query("City").order("name").page(size, start=cursor)
                found += numbers(page.entities)
                cursor, more = page.cursor, page.more
                assert len(page.entities) == size or not more
            assert found == list(range(1, 11))
        first = await ds.query("City").offset(3).page(4)
        assert numbers(first.entities) == [4, 5, 6, 7]
        second = await ds.query("City").offset(3).page(4, start=first.cursor)
        assert numbers(second.entities) == [8, 9, 10]
        assert not second.more
        nothing = await ds.query("City").page(3, start=second.cursor)
        assert (nothing.entities, nothing.more, nothing.cursor) == ([], False, second.cursor)
        limited = await ds.query("City").limit(2).page(5)
        assert (numbers(limited.entities), limited.more) == ([1, 2], False)


async def test_explain_and_page_sizes() -> None:
    ds, _ = store(page_size=3)
    async with ds:
        await ds.put(cities(10))
        assert numbers(await ds.query("City").fetch()) == list(range(1, 11))
        assert numbers(await ds.query("City").fetch(page_size=1)) == list(range(1, 11))
        assert "City" in str(await ds.query("City").filter("n", ">", 3).explain())
        assert str(await ds.query("City").explain()) != str(await ds.query("City").explain(analyze=True))


# ------------------------------------------------------------------------------------- in transactions


VALUES: list[Any] = [None, 1, 2, 3, "a", "b", [1, 2], ["a", 3], [], 2.5]


def random_entity(source: random.Random) -> Entity:
    root = Key("K", source.randrange(1, 6))
    key = source.choice([root, root.child("K", source.randrange(1, 4)), Key("Other", source.randrange(1, 3))])
    names = source.sample("abc", source.randrange(4))
    return Entity(key, {name: source.choice(VALUES) for name in names}, unindexed=source.choice([(), (), ("c",)]))


def random_query(source: random.Random) -> Query:
    kind = source.choice(["K", "K", "K", "K", None])
    query = Query(kind)
    if source.random() < 0.2:
        query = query.under(Key("K", source.randrange(1, 6)))
    if kind is None:
        return _random_part(source, query)
    for name in source.sample("abc", source.choice([0, 0, 1, 1, 2])):
        op = source.choice(["=", "=", "<", ">=", "!=", "in", "not in"])
        scalars = [value for value in VALUES if not isinstance(value, list)]
        value = source.sample(scalars, source.randrange(1, 4)) if "in" in op else source.choice(scalars)
        query = query.filter(name, op, value)
    names = source.sample("abc", source.choice([0, 0, 1, 2]))
    orders = [Order(name, source.random() < 0.5) for name in names]
    if source.random() < 0.2:
        orders.append(Order("__key__", source.random() < 0.5))
    if orders:
        query = query.order(*orders)
    if source.random() < 0.4:
        query = query.project(*source.sample("abc", source.randrange(1, 3)))
        if source.random() < 0.6:
            query = query.distinct()
    elif source.random() < 0.3:
        query = query.keys_only()
    return _random_part(source, query)


def _random_part(source: random.Random, query: Query) -> Query:
    if source.random() < 0.3:
        query = query.offset(source.randrange(5))
    if source.random() < 0.4:
        query = query.limit(source.randrange(6))
    return query


def shown(results: list[Any]) -> list[Any]:
    return [each if isinstance(each, Key) else (each.key, dict(each), each.is_projection) for each in results]


async def snapshot_of(ds: Datastore, query: BoundQuery, page_size: int) -> dict[str, Any]:
    """All that a query can show."""
    results = query.run(page_size=page_size)
    found, cursors = [], [results.cursor]
    async for each in results:
        found.append(each)
        cursors.append(results.cursor)
    shows: dict[str, Any] = {"results": shown(found), "cursors": [cursor.position for cursor in cursors]}
    shows["skipped"] = results.skipped
    shows["count"] = await query.count()
    if not query.query.projection:
        shows["sum"] = await query.sum("a")
        shows["avg"] = await query.avg("b")
    if len(cursors) > 2:
        middle = cursors[len(cursors) // 2]
        plain = query.offset(0)
        shows["after"] = shown(await plain.start(middle).fetch(page_size=page_size))
        shows["before"] = shown(await plain.end(middle).fetch(page_size=page_size))
        if query.query.projection and any(order.name == "__key__" for order in query.query.orders):
            return shows  # what follows the key is not part of the order that reversed() turns round
        shows["back"] = shown(await plain.limit(None).reversed().start(middle).fetch(page_size=page_size))
        shows["front"] = shown(await plain.limit(None).reversed().end(middle).fetch(page_size=page_size))
    return shows


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("seed", range(6))
async def test_a_transaction_shows_what_its_commit_will_leave(seed: int) -> None:
    """Whatever was put and deleted in it: queries inside are those that follow the commit."""
    source = random.Random(seed)
    ds, _ = store(inline=True)
    async with ds:
        for _ in range(6):
            await ds.put([random_entity(source) for _ in range(8)])
            queries: list[BoundQuery] = []
            while len(queries) < 12:
                made = random_query(source)
                try:
                    made.check()
                except DatastoreError:  # not every combination is a query
                    continue
                queries.append(ds.query(made))
            page_size = source.choice([1, 2, 5, 100])
            async with ds.transaction():
                stored = await ds.query(None).keys()
                for _ in range(source.randrange(8)):
                    if stored and source.random() < 0.3:
                        await ds.delete(source.choice(stored))
                    else:
                        await ds.put(random_entity(source))
                inside = [await snapshot_of(ds, query, page_size) for query in queries]
            for query, found in zip(queries, inside, strict=True):
                assert found == await snapshot_of(ds, query, page_size), query


async def test_a_query_sees_what_was_written_before_it_began() -> None:
    ds, _ = store(page_size=2)
    async with ds:
        await ds.put(cities(6))
        async with ds.transaction():
            await ds.delete(Key("City", 2))
            seen = []
            async for each in ds.query("City"):
                seen.append(each["n"])
                each["n"] = 0
                await ds.put(each)
            assert seen == [1, 3, 4, 5, 6]
            assert numbers(await ds.query("City").fetch()) == [0] * 5


async def test_what_a_query_has_seen_is_verified() -> None:
    ds, _ = store(page_size=2)
    async with ds:
        await ds.put(cities(6))

        async def reading(change: Any, *, write: bool) -> list[int]:
            found = []
            async with ds.transaction():
                async for each in ds.query("City").filter("even", "=", True):
                    found.append(each["n"])
                    if len(found) == 2:
                        with ds.non_transactional():
                            await change()
                if write:
                    await ds.put(Entity(Key("Seen", 1), {"found": found}))
            return found

        async def phantom() -> None:
            await ds.put(Entity(Key("City", 100), {"n": 100, "even": True}))

        async def elsewhere() -> None:
            await ds.put(Entity(Key("City", 101), {"n": 101, "even": False}))

        async def behind() -> None:
            await ds.delete(Key("City", 2))

        assert await reading(elsewhere, write=True) == [2, 4, 6]
        # It comes after what was read: the rest is read, and all of it verified, later.
        assert await reading(phantom, write=True) == [2, 4, 6, 100]
        with pytest.raises(TransactionFailedError):
            await reading(behind, write=False)
        assert numbers(await ds.query("City").filter("even", "=", True).fetch()) == [4, 6, 100]


async def test_counts_are_verified() -> None:
    ds, _ = store()
    async with ds:
        await ds.put(cities(6))
        for name in ("count", "sum", "avg"):
            transaction = ds.begin()
            query = transaction.query("City")
            found = await (query.count() if name == "count" else getattr(query, name)("n"))
            await ds.put(Entity(Key("City"), {"n": 1}))
            await transaction.put(Entity(Key("Count", 1), {"n": found}))
            with pytest.raises(TransactionFailedError):
                await transaction.commit()
