"""Random scripts of what an application does: two datastores that should be alike play the same one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from aiodatastore import Cursor, Datastore, Entity, Key, Rollback
from aiodatastore.query import Query
from aiodatastore.testing.strategies import World

__all__ = ["Step", "play", "scripts"]

WORLDS = (World(kinds=("K", "Ka"), names=("a", "b")), World(kinds=("K", "Ka"), names=("a", "b"), namespace="n"))
METADATA = ("__kind__", "__namespace__", "__property__")


@dataclass(frozen=True)
class Step:
    """One call, or (``transaction``) several."""

    name: str
    argument: Any
    more: Any = None


def _steps(world: World) -> SearchStrategy[Step]:
    entities, keys = world.entities(), world.keys()
    queries = world.queries()
    unlimited = world.queries(limits=False)
    incomplete = st.builds(lambda parent: Entity(parent.child("K"), {"a": 1}), keys)
    metadata = st.builds(
        lambda kind, limit, offset: Query(kind, namespace=world.namespace, limit=limit, offset=offset),
        st.sampled_from(METADATA),
        st.sampled_from((None, None, 1, 2)),
        st.sampled_from((0, 0, 1)),
    )
    return st.one_of(
        st.builds(Step, st.just("put"), st.lists(entities, min_size=1, max_size=4)),
        st.builds(Step, st.just("put"), st.lists(entities, min_size=1, max_size=4)),
        st.builds(Step, st.just("insert"), entities),
        st.builds(Step, st.just("update"), entities),
        st.builds(Step, st.just("delete"), st.lists(keys, min_size=1, max_size=3)),
        st.builds(Step, st.just("get"), st.lists(keys, min_size=1, max_size=4)),
        st.builds(Step, st.just("complete"), incomplete),
        st.builds(Step, st.just("query"), queries),
        st.builds(Step, st.just("query"), queries),
        st.builds(Step, st.just("query"), metadata),
        st.builds(Step, st.just("count"), st.one_of(queries, metadata)),
        st.builds(Step, st.just("sum"), world.queries(projections=False)),
        st.builds(Step, st.just("pages"), unlimited, st.integers(1, 3)),
        st.builds(Step, st.just("pages"), metadata.map(lambda query: query.limit(None).offset(0)), st.integers(1, 3)),
        st.builds(Step, st.just("back"), unlimited, st.integers(1, 4)),
        st.builds(Step, st.just("allocate"), keys, st.integers(1, 5)),
    )


def scripts(min_size: int = 4, max_size: int = 12) -> SearchStrategy[list[Step]]:
    """Something to work on, then steps in two namespaces, some of them in transactions that commit or roll back."""
    many = st.lists(st.one_of([world.entities() for world in WORLDS]), min_size=8, max_size=16)
    step = st.one_of([_steps(world) for world in WORLDS])
    transaction = st.builds(Step, st.just("transaction"), st.lists(step, min_size=1, max_size=4), st.booleans())
    steps = st.lists(st.one_of(step, step, step, transaction), min_size=min_size, max_size=max_size)
    return st.builds(lambda first, rest: [first, *rest], st.builds(Step, st.just("put"), many), steps)


async def play(ds: Datastore, script: list[Step]) -> list[Any]:
    """What each step returned, or the type of what it raised."""
    results: list[Any] = []
    for step in script:
        try:
            results.append(await _one(ds, step))
        except Exception as exc:
            results.append(type(exc))
    return results


async def _one(ds: Datastore, step: Step) -> Any:
    argument: Any = step.argument
    match step.name:
        case "put":
            await ds.put([entity.copy() for entity in argument])
        case "insert" | "update":
            await getattr(ds, step.name)(argument.copy())
        case "delete":
            await ds.delete(argument)
        case "get":
            return await ds.get(argument)
        case "complete":
            return await ds.put(argument.copy())
        case "query":
            return await ds.query(argument).fetch()
        case "count":
            return await ds.query(argument).count()
        case "sum":
            query = ds.query(argument)
            return None if argument.only_keys else repr([await query.sum("a"), await query.avg("b")])
        case "pages":
            return await _pages(ds, argument, step.more)
        case "back":
            running = ds.query(argument).run()
            seen = [result async for result in _taken(running, step.more)]
            cursor = running.cursor
            back = await ds.query(argument.reversed()).start(cursor).fetch() if not argument.distinct_names else None
            return seen, cursor.to_urlsafe(), back, await ds.query(argument).end(cursor).fetch()
        case "allocate":
            first, last = await ds.allocate_ids(Key(argument.kind, namespace=argument.namespace), step.more)
            return last - first
        case _:
            return await _transaction(ds, step)
    return None


async def _pages(ds: Datastore, query: Query, size: int) -> list[Any]:
    found: list[Any] = []
    cursor: Cursor | None = None
    for _ in range(30):
        page = await ds.query(query).page(size, start=cursor)
        cursor = page.cursor
        found.append((page.entities, cursor and cursor.to_urlsafe()))
        if not page.more or cursor is None:
            break
        cursor = Cursor.from_urlsafe(cursor.to_urlsafe())
    return found


async def _taken(running: Any, count: int) -> Any:
    async for result in running:
        yield result
        count -= 1
        if not count:
            return


async def _transaction(ds: Datastore, step: Step) -> list[Any]:
    async with ds.transaction():
        results = await play(ds, step.argument)
        if step.more:
            raise Rollback
        return results
    return []
