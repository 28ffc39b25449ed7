"""Keys that are others inside: what must hold of the functions, and what is lost where order is."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiodatastore import (
    BadArgumentError,
    BadCursorError,
    BadKeyError,
    Cursor,
    Datastore,
    Entity,
    Key,
    NeedIndexError,
    TransactionFailedError,
    UnsupportedError,
)
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import CorruptDataError
from aiodatastore.key import MAX_ID
from aiodatastore.query import And, Or, PropertyFilter, Query
from aiodatastore.rowstore import Capability
from aiodatastore.shims.key_transform import KeyTransform
from aiodatastore.shims.lowercase_keys import LowercaseKeys
from aiodatastore.shims.nested_path import NestedPath
from aiodatastore.testing import strategies
from aiodatastore.testing.strategies import LOOK_ALIKE_NAMES, World
from aiodatastore.testing.suite.base import assert_same
from tests.shims.stacks import PROFILE
from tests.shims.test_keys_suite import backwards, turned

pytestmark = pytest.mark.anyio

few = settings(
    settings.get_profile(PROFILE),
    max_examples=10 * settings.get_profile(PROFILE).max_examples,
    suppress_health_check=list(HealthCheck),
)
WORLD = World(kinds=("K", "aK"), names=("a", "b"))


def memory() -> Any:
    return adapter_from_url("memory://")


def unordered(adapter: Any) -> KeyTransform:
    return KeyTransform(adapter, encode=backwards, decode=backwards, kinds=(turned, turned))


# ----------------------------------------------------------------------------------- wrong functions


@pytest.mark.parametrize(
    "arguments",
    [
        {"encode": None},
        {"decode": "x"},
        {"kinds": (str.lower,)},
        {"kinds": [str.lower, str.upper]},
        {"partitions": (1, 2)},
        {"keeps_order": 1},
    ],
)
def test_what_is_no_function_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadArgumentError, match=next(iter(arguments))):
        KeyTransform(memory(), **{"encode": backwards, "decode": backwards, **arguments})


def renamed(key: Key, kind: str) -> Key:
    return Key._make(key.project, key.namespace, (*key.pairs[:-1], (kind, key.pairs[-1][1])))


@pytest.mark.parametrize(
    ("encode", "decode", "message"),
    [
        (backwards, lambda key: key, "undo"),
        (lambda key: renamed(key, f"x{key.kind}"), lambda key: renamed(key, key.kind[1:]), "kind"),
        (
            lambda key: Key(*key.path, namespace="n"),
            lambda key: Key(*key.path),
            "partitions",
        ),
        (lambda key: Key(key.kind, str(key)), lambda key: Key.from_string(key.name or ""), "below"),
        (str, lambda key: key, "encode gave"),
        (lambda key: Key("K"), lambda key: key, "encode gave"),
    ],
)
async def test_functions_that_would_lose_entities_are_told_when_one_is_put(
    encode: Any, decode: Any, message: str
) -> None:
    async with Datastore(KeyTransform(memory(), encode=encode, decode=decode)) as ds:
        with pytest.raises(BadKeyError, match=message):
            await ds.put(Entity(Key("K", "ab", "C", "cd")))
        assert await ds.stats() == {**await ds.stats(), "kinds": []}


async def test_errors_of_the_functions_pass() -> None:
    def broken(key: Key) -> Key:
        raise ZeroDivisionError

    async with Datastore(KeyTransform(memory(), encode=broken, decode=broken)) as ds:
        with pytest.raises(ZeroDivisionError):
            await ds.get(Key("K", 1))


# --------------------------------------------------------------------------------------- other order


@few
@given(
    entities=st.lists(WORLD.entities(), max_size=10),
    queries=st.lists(WORLD.queries(), min_size=2, max_size=6),
    size=st.integers(1, 3),
)
def test_without_order_results_are_the_childs(entities: list[Entity], queries: list[Query], size: int) -> None:
    """In its order, all of them, with limits, offsets and cursors; or the query is refused."""

    async def both() -> None:
        async with Datastore("memory://") as inside, Datastore(unordered(memory())) as ds:
            await ds.put([entity.copy() for entity in entities])
            await inside.put([moved(entity) for entity in entities])
            for query in queries:
                if compares_keys(query.filters):
                    with pytest.raises(UnsupportedError, match="order of keys"):
                        await ds.query(query).fetch()
                    continue
                expected = [moved(each) for each in await inside.query(inner(query)).fetch()]
                assert_same(expected, await ds.query(query).fetch())
                assert await ds.query(query).count() == len(expected)
                if query.max_results is None and not query.skip:
                    found: list[Any] = []
                    cursor = None
                    for _ in range(30):
                        page = await ds.query(query).page(size, start=cursor)
                        found += page.entities
                        if not page.more or page.cursor is None:
                            break
                        cursor = Cursor.from_urlsafe(page.cursor.to_urlsafe())
                    assert_same(expected, found)

    anyio.run(both)


def moved(result: Any) -> Any:
    if isinstance(result, Key):
        return backwards(result)
    return Entity._make(backwards(result.key), result, result.unindexed, 0, result.is_projection)


def inner(query: Query) -> Query:
    return unordered(memory()).inner_query(query)[0]


def compares_keys(filters: Any) -> bool:
    return any(
        compares_keys(node.filters) if isinstance(node, And | Or) else node.name == "__key__" and node.op[0] in "<>"
        for node in filters
    )


async def test_without_order_the_capability_goes_and_its_uses_are_refused() -> None:
    async with Datastore(unordered(memory())) as ds:
        assert Capability.KEY_ORDER not in ds.capabilities
        await ds.put([Entity(Key("K", name), {"x": 1}) for name in ("ab", "ba")])
        assert await ds.query("K").filter("__key__", "in", [Key("K", "ab"), Key("K", "c")]).keys() == [Key("K", "ab")]
        assert await ds.query("K").filter("__key__", "!=", Key("K", "ab")).keys() == [Key("K", "ba")]
        with pytest.raises(UnsupportedError, match="order"):
            await ds.query("K").filter(Or(PropertyFilter("__key__", "<", Key("K", "b")))).fetch()
        async with ds.transaction():
            assert len(await ds.query("K").fetch()) == 2
            await ds.put(Entity(Key("Other", 1)))
            assert len(await ds.query("K").fetch()) == 2
            await ds.put(Entity(Key("K", "c")))
            with pytest.raises(UnsupportedError, match="KEY_ORDER"):
                await ds.query("K").fetch()
            with pytest.raises(UnsupportedError, match="KEY_ORDER"):
                await ds.query("K").count()
            assert await ds.get(Key("K", "c")) is not None
        assert await ds.query("K").count() == 3


# ------------------------------------------------------------------------------------ what is kept


async def test_keys_as_values_stay_what_they_were() -> None:
    """They come back, are found and put in order as the application wrote them."""
    keys = [Key("K", "ab"), Key("K", "ba", namespace="n"), Key("a", 1, "b", 2)]
    async with Datastore(unordered(memory())) as ds:
        entity = Entity(Key("K", "holder"), {"keys": keys, "inner": Entity(Key("K"), {"k": keys[0]})})
        await ds.put(entity)
        assert_same(entity, await ds.get(entity.key))
        for key in keys:
            assert await ds.query("K").filter("keys", "=", key).keys() == [entity.key]
        found = await ds.query("K").project("keys").order("keys").fetch()
        assert [each["keys"] for each in found] == sorted(keys)


async def test_indexes_are_named_by_kinds_outside() -> None:
    async with Datastore(unordered(adapter_from_url("memory://", require_indexes=True))) as ds:
        for call in (ds.query("Kind").filter("a", "=", 1).order("b").fetch, ds.query("Kind").order("c", "b").count):
            with pytest.raises(NeedIndexError) as caught:
                await call()
            assert caught.value.definition.kind == "Kind"
            assert "kind: Kind" in caught.value.yaml
            await ds.create_index(caught.value.definition)
            assert await call() in ([], 0)
        assert {info.definition.kind for info in await ds.indexes()} == {"Kind"}
        await ds.put(Entity(Key("Kind", 1)))
        assert [row["kind"] for row in (await ds.stats())["kinds"]] == ["Kind"]
        assert await ds.query("__kind__").keys() == [Key("__kind__", "Kind")]


async def test_cursors_that_are_none_are_refused() -> None:
    async with Datastore(unordered(memory())) as ds:
        await ds.put([Entity(Key("K", n), {"x": n}) for n in (1, 2)])
        query = ds.query("K").order("x")
        page = await query.page(1)
        assert page.cursor is not None
        for position in (b"garbage", page.cursor.position[:-1], b"\xff", page.cursor.position[:1]):
            with pytest.raises(BadCursorError):
                await query.start(Cursor(position, page.cursor.shape)).fetch()
        with pytest.raises(BadCursorError):
            await query.start(Cursor(page.cursor.position, b"x" * 16)).fetch()


# -------------------------------------------------------------------------------------- nested paths

NAMES = [*LOOK_ALIKE_NAMES, "a" * 6, "a" * 7, "ab" * 3, "\U00010000" * 5, "\U0010ffff"]
IDS = [1, 2, 9, 10, 11, 99, 100, 101, 999, 1000, 10**6, 10**18, MAX_ID - 1, MAX_ID]


@pytest.mark.parametrize(("depth", "length"), [(1, 1), (2, 1), (3, 2), (1, 18), (16, 18), (16, 1)])
def test_nested_keys_keep_their_order_and_come_back(depth: int, length: int) -> None:
    shim = NestedPath(memory(), depth=depth, length=length)
    roots = [Key("K", each) for each in (*NAMES, *IDS)] + [Key("Ka", "a"), Key("K", 1, namespace="n")]
    keys = sorted([*roots, *(root.child("C", each) for root in roots for each in ("a", 1))])
    nested = [shim.nested(key) for key in keys]
    assert nested == sorted(nested)
    assert len(set(nested)) == len(keys)
    assert [shim._flat(key) for key in nested] == keys
    for key, inside in zip(keys, nested, strict=True):
        assert len(inside.pairs) == len(key.pairs) + depth
        Key(*inside.path, namespace=inside.namespace)  # is a key that anybody could make
        if key.parent is not None:
            assert shim.nested(key.parent).is_ancestor_of(inside)


@few
@given(pair=st.tuples(strategies.keys(), strategies.keys()), depth=st.integers(1, 4), length=st.integers(1, 4))
def test_nested_keys_compare_as_they_do(pair: tuple[Key, Key], depth: int, length: int) -> None:
    one, two = pair
    shim = NestedPath(memory(), depth=depth, length=length)
    assert (one < two) == (shim.nested(one) < shim.nested(two))
    assert (one == two) == (shim.nested(one) == shim.nested(two))


async def test_paths_that_get_too_deep_are_refused_alone() -> None:
    async with Datastore(NestedPath(memory(), depth=3)) as ds:
        deepest = Key(*itertools.chain.from_iterable(("K", n) for n in range(1, 98)))
        await ds.put(Entity(deepest))
        assert await ds.get([deepest, deepest.child("K", 1)]) == [Entity(deepest), None]
        with pytest.raises(BadKeyError, match="100"):
            await ds.put(Entity(deepest.child("K", 1)))


async def test_what_was_not_nested_is_corrupt() -> None:
    child = memory()
    async with Datastore(NestedPath(child, depth=1)) as ds:
        for path in (("K", "name"), ("K", "xx", "K", "name")):
            await child.commit([put_of(Entity(Key(*path)))])
            with pytest.raises(CorruptDataError, match="NestedPath"):
                await ds.query("K").fetch()


def put_of(entity: Entity) -> Any:
    from aiodatastore.adapters.base import Commit, Put

    return Commit(writes=[Put(entity)])


@pytest.mark.parametrize("arguments", [{"depth": 0}, {"depth": 17}, {"length": 0}, {"length": 19}, {"depth": True}])
def test_wrong_depths_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadArgumentError, match=next(iter(arguments))):
        NestedPath(memory(), **arguments)


# ---------------------------------------------------------------------------------------- lower case


async def test_spellings_are_one_entity() -> None:
    async with Datastore(LowercaseKeys(memory())) as ds:
        await ds.put(Entity(Key("P", "Ada", "C", "X"), {"n": 1}))
        assert await ds.get([Key("P", "ADA", "C", "x"), Key("P", "ada", "C", "X"), Key("p", "ada", "C", "x")]) == [
            Entity(Key("P", "ADA", "C", "x"), {"n": 1}),
            Entity(Key("P", "ada", "C", "X"), {"n": 1}),
            None,
        ]
        assert await ds.query(ancestor=Key("P", "AdA")).keys() == [Key("P", "ada", "C", "x")]
        assert await ds.query("C").filter("__key__", ">=", Key("P", "ADA")).count() == 1
        await ds.put([Entity(Key("K", "A"), {"n": 1}), Entity(Key("K", "a"), {"n": 2})])
        assert await ds.get(Key("K", "A")) == Entity(Key("K", "A"), {"n": 2})
        with pytest.raises(BadKeyError):
            await ds.put(Entity(Key("K", "İ" * 700)))
        assert await ds.get(Key("K", "İ" * 700)) is None


async def test_kinds_in_lower_case_on_request() -> None:
    async with Datastore(LowercaseKeys(memory(), kinds=True)) as ds:
        await ds.put(Entity(Key("Person", "Ada"), {"n": 1}))
        assert await ds.get(Key("PERSON", "ada")) is not None
        assert await ds.query("PersoN").keys() == [Key("person", "ada")]
        assert await ds.query("__kind__").keys() == [Key("__kind__", "person")]
        first, _ = await ds.allocate_ids(Key("Person"), 1)
        second, _ = await ds.allocate_ids(Key("person"), 1)
        assert first != second
    with pytest.raises(BadArgumentError):
        LowercaseKeys(memory(), kinds="yes")  # type: ignore[arg-type]


async def test_conflicts_do_not_depend_on_spelling() -> None:
    """Nor are they lost where one transaction reads by two."""
    async with Datastore(LowercaseKeys(memory())) as ds:
        await ds.put(Entity(Key("K", "a"), {"n": 0}))

        @ds.transactional(retries=100)
        async def add(key: Key) -> None:
            entity = await ds.get(key)
            assert entity is not None
            entity["n"] += 1
            await ds.put(entity)

        async def one(key: Key) -> None:
            await add(key)

        async with anyio.create_task_group() as group:
            for name in ("a", "A") * 10:
                group.start_soon(one, Key("K", name))
        assert await ds.get(Key("K", "a")) == Entity(Key("K", "a"), {"n": 20})
        txn = ds.begin()
        assert await txn.get(Key("K", "a")) is not None
        await ds.put(Entity(Key("K", "a"), {"n": 1}))
        await txn.put(Entity(Key("K", "A"), {"n": 2}))

        async def read_again() -> None:
            await txn.get(Key("K", "A"))
            await txn.get(Key("K", "b"))
            await txn.commit()

        with pytest.raises(TransactionFailedError):
            await read_again()


# ------------------------------------------------------------------------------ what is encoded ahead


async def test_what_one_shim_encoded_is_not_taken_for_anothers() -> None:
    """A collection may hand the same commit to several."""
    one, two = memory(), memory()
    shims = NestedPath(one, depth=1), NestedPath(two, depth=2)
    for shim in shims:
        await shim.open()
    commit = put_of(Entity(Key("K", "name")))
    for shim in shims:
        shim.encode(commit)
        shim.encode(put_of(Entity(Key("K", 1))))
    for shim in shims:
        await shim.commit([commit])
        assert (await shim.lookup([Key("K", "name")])).entities == [Entity(Key("K", "name"))]
        await shim.aclose()


async def test_errors_of_one_commit_leave_its_neighbours() -> None:
    """And are told by its own outcome, whoever encoded it ahead."""
    shim = NestedPath(memory(), depth=3)
    await shim.open()
    deep = Key(*itertools.chain.from_iterable(("K", n) for n in range(1, 99)))
    batch = [put_of(Entity(key)) for key in (Key("K", 1), deep, Key("K", 2))]
    for commit in batch:
        shim.encode(commit)
    outcomes = await shim.commit(batch)
    assert [outcome.committed for outcome in outcomes] == [True, False, True]
    assert isinstance(outcomes[1].error, BadKeyError)
    (outcome,) = await shim.commit(batch[1:2])
    assert isinstance(outcome.error, BadKeyError)
    found = await shim.lookup([deep])
    assert (found.entities, found.version >= 2) == ([None], True)
    await shim.aclose()


# ----------------------------------------------------------------------------- in URLs and in folders


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("namespaced{namespace=acme}:memory://", "Namespaced(EngineAdapter('memory://'), namespace='acme')"),
        ("nested_path{depth=2&length=1}:memory://", "NestedPath(EngineAdapter('memory://'), depth=2, length=1)"),
        ("lowercase_keys{kinds=yes}:memory://", "LowercaseKeys(EngineAdapter('memory://'), kinds=True)"),
        ("symlinks{kinds=A,B}:memory://", "Symlinks(EngineAdapter('memory://'), kinds=['A', 'B'])"),
        ("directories{buckets=4}:memory://", "Directories(EngineAdapter('memory://'), buckets=4)"),
    ],
)
def test_urls_make_them(url: str, shown: str) -> None:
    assert repr(adapter_from_url(url)) == shown


@pytest.mark.parametrize(
    "url", ["namespaced:memory://", "nested_path{depth=99}:memory://", "symlinks:lowercase_keys:memory://"]
)
def test_urls_of_what_can_not_be_are_refused(url: str) -> None:
    with pytest.raises(BadArgumentError):
        adapter_from_url(url)


async def test_a_folder_holds_few_of_many(tmp_path: Path) -> None:
    """In a store of files, which is what nested paths are for."""
    keys = [Key("K", name) for name in LOOK_ALIKE_NAMES] + [Key("K", number) for number in range(1, 60)]
    async with Datastore(NestedPath(adapter_from_url(f"file:///{tmp_path}/store"), depth=2, length=1)) as ds:
        await ds.put([Entity(key, {"n": place}) for place, key in enumerate(keys)])
    async with Datastore(NestedPath(adapter_from_url(f"file:///{tmp_path}/store"), depth=2, length=1)) as ds:
        assert await ds.query("K").keys() == sorted(keys)
        assert [entity and entity["n"] for entity in await ds.get(keys)] == list(range(len(keys)))
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(files) > len(keys)
    assert max(len(list(folder.iterdir())) for folder in {path.parent for path in files}) < len(keys) // 2
