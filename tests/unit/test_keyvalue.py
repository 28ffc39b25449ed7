"""Plain values by path."""

from __future__ import annotations

import copy
import math
import pickle
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiodatastore import (
    BadArgumentError,
    BadFilterError,
    BadKeyError,
    BadRequestError,
    BadValueError,
    Capability,
    Datastore,
    DatastoreError,
    Entity,
    Key,
    Rollback,
    UnsupportedError,
    keyvalue,
)
from aiodatastore.keyvalue import VALUE, Item, KeyValue, PathKey
from tests.engines import Bound, engines

# ------------------------------------------------------------------------------------------------- paths


def test_parts_of_a_path() -> None:
    john = PathKey("/Comedy/MontyPython/Actor:JohnCleese")
    assert str(john) == "/Comedy/MontyPython/Actor:JohnCleese"
    assert repr(john) == "PathKey('/Comedy/MontyPython/Actor:JohnCleese')"
    assert (john.type, john.name) == ("Actor", "JohnCleese")
    assert john.list == ["Comedy", "MontyPython", "Actor:JohnCleese"]
    assert john.namespaces == ("Comedy", "MontyPython", "Actor:JohnCleese")
    assert john.path == PathKey("/Comedy/MontyPython/Actor")
    assert john.path.instance("JohnCleese") == john
    assert john.parent == PathKey("/Comedy/MontyPython")
    assert john.reverse == PathKey("/Actor:JohnCleese/MontyPython/Comedy")
    assert john.parent.path == PathKey("/Comedy")  # without type
    assert PathKey("/Comedy").child("MontyPython/Actor:JohnCleese") == john
    assert (john.is_top_level, PathKey("/Comedy").is_top_level, PathKey("/").is_root) == (False, True, True)
    assert PathKey("/Comedy").parent is None
    assert PathKey("/a:b:c").type == "a"
    assert PathKey("/a:b:c").name == "b:c"
    assert PathKey(["Comedy", "x/y"]) == PathKey("Comedy//x/y/") == PathKey(PathKey("/Comedy/x/y"))


def test_ancestry() -> None:
    above, below, beside = PathKey("/foo"), PathKey("/foo/bar"), PathKey("/foobar")
    assert above.is_ancestor_of(below)
    assert below.is_descendant_of(above)
    assert not above.is_ancestor_of(above)
    assert not above.is_ancestor_of(beside)
    assert PathKey("/").is_ancestor_of(beside)
    assert PathKey.random() != PathKey.random()
    assert PathKey.random().is_top_level


def test_paths_are_values() -> None:
    path = PathKey("/a/B:c")
    with pytest.raises(AttributeError):
        path.x = 1
    for same in (PathKey("/a/B:c"), copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        assert same == path
        assert hash(same) == hash(path)
    assert path != "/a/B:c"
    with pytest.raises(TypeError):
        path < "/a"  # noqa: B015


@pytest.mark.parametrize("path", ["/:x", "/a:", "/a/:", "/a/b:/c"])
def test_elements_that_are_none(path: str) -> None:
    with pytest.raises(BadKeyError, match="type:name"):
        PathKey(path)


def test_what_is_no_path_is_told() -> None:
    for wrong in (5, None, b"/a", ["a", 1]):
        with pytest.raises(BadArgumentError, match="expected a path such as"):
            PathKey(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadKeyError, match="names no value"):
        PathKey("/").to_key()
    for path, name in (("/a", ""), ("/a", "b/c"), ("/", "a"), ("/a:b", "c")):
        with pytest.raises(BadKeyError):
            PathKey(path).instance(name)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/a", Key("Path", "a")),
        ("/Actor:John/5", Key("Actor", "John", "Path", "5")),
        ("/Path:a", Key("Path~", "a")),
        ("/Path~:a", Key("Path~~", "a")),
        ("/path:a~", Key("path", "a~")),
        ("/__x__:__y__", Key("__x__~", "__y__~")),
        ("/__x__~:__y__~", Key("__x__~~", "__y__~~")),
        ("/____", Key("Path", "____~")),
        ("/___", Key("Path", "___")),
        ("/a:b:c", Key("a", "b:c")),
    ],
)
def test_how_paths_are_kept(path: str, key: Key) -> None:
    assert PathKey(path).to_key() == key
    assert PathKey.from_key(key) == PathKey(path)


@pytest.mark.parametrize(
    "key",
    [
        Key("a", 1),
        Key("a/b", "c"),
        Key("a", "b/c"),
        Key("a:b", "c"),
        Key("Path", "a:b"),
        Key("__x__", "a"),
        Key("a", "__x__"),
        Key("A", "b", "C", 1),
    ],
)
def test_keys_that_are_no_paths(key: Key) -> None:
    with pytest.raises(BadKeyError, match="not the key of a path"):
        PathKey.from_key(key)


words = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=6),
    st.sampled_from(["Path", "Path~", "__x__", "__x__~", "____", "~", "a~", "__", "5"]),
)
elements = st.one_of(words, st.builds(lambda a, b: f"{a}:{b}", words, words)).filter(
    lambda text: text[0] != ":" and not (text[-1] == ":" and text.count(":") == 1)
)
paths = st.lists(elements, min_size=1, max_size=4).map(PathKey)


@given(paths, paths)
def test_paths_and_keys_correspond(one: PathKey, other: PathKey) -> None:
    assert PathKey.from_key(one.to_key(namespace="n", project="p")) == one
    assert PathKey(str(one)) == one
    assert (one == other) == (one.to_key() == other.to_key())
    assert (one < other) == (one.to_key() < other.to_key())
    assert (one >= other) == (one.to_key() >= other.to_key())
    assert one.is_ancestor_of(other) == one.to_key().is_ancestor_of(other.to_key())
    assert one.reverse.reverse == one


@given(st.lists(st.tuples(words, st.one_of(words, st.integers(1, 9))), min_size=1, max_size=3))
def test_a_key_is_a_path_or_is_not(pairs: list[tuple[str, str | int]]) -> None:
    key = Key(*[part for pair in pairs for part in pair])
    try:
        path = PathKey.from_key(key)
    except BadKeyError:
        return
    assert path.to_key() == key


# ------------------------------------------------------------------------------------------------ values

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, -0.0, math.inf, "", "text", "ü" * 1000, "x" * 100_000, b"", b"bytes", b"b" * 5000,
    2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**400, -(10**400),
    [], {}, [[]], [[1, [2, [3]]]], [{}], [None], {"a": []}, {"a": [[]]}, [1, 1.0, True, "1", None],
    {"": 1}, {"~": 1}, {"~value": 1}, {"~packed": 2}, {"~~": 3}, {"__x__": 4}, {"~__x__": 5}, {"a.b": 1, "a": {"b": 2}},
    {"name": "Ada", "tags": ["a", "b"], "matrix": [[1, 0], [0, 1]], "big": 10**30, "last": None},
    {"z": 1, "a": [[2]], "m": 3, "b": 2**70}, {"deep": {"er": {"st": [{"x": [[1]]}]}}}, {"n": {"": 1}},
    {"n": {"__x__": 1}}, "\ud800", {"\ud800": 1}, {"a": {"\udfff": ["\ud800x"]}}, ["\ud800"],
    {"k" * 2000: 1}, list(range(30_000)),
    {"many": list(range(5000)), "few": [1, 2]}, {f"p{n}": n for n in range(3000)}, {"t": "y" * 2000, "l": ["y" * 2000]},
    datetime(2024, 2, 29, 12, tzinfo=UTC), {"at": [[datetime(2024, 2, 29, 12, 0, 0, 123457, tzinfo=UTC)]]}, [[b"x"]],
]  # fmt: skip

json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(-(2**80), 2**80), st.floats(allow_nan=False),
        st.text(max_size=20), st.text(st.characters(), max_size=5), st.binary(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(max_size=6), st.sampled_from(["~", "", "__x__", "~value", "~packed"])), inner, max_size=4
        ),
    ),
    max_leaves=12,
)  # fmt: skip


def identical(left: Any, right: Any) -> bool:
    """Equal, and of the same types and order."""
    if type(left) is not type(right):
        return False
    if type(left) is dict:
        return list(left) == list(right) and all(identical(left[name], right[name]) for name in left)
    if type(left) is list:
        return len(left) == len(right) and all(map(identical, left, right))
    return repr(left) == repr(right)


pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value!r:.30}")
async def test_values_come_back_as_they_are(value: Any) -> None:
    async with Datastore("memory://") as ds:
        kv = KeyValue(ds)
        before = copy.deepcopy(value)
        await kv.put("/a", value)
        found = await kv.get("/a")
        assert identical(found, before)
        assert identical(value, before)
        await kv.put("/b", [value])
        await kv.put("/c", {"v": value})
        assert identical(await kv.get_many(["/b", "/c"]), [[before], {"v": before}])
        if type(value) in (list, dict):
            assert found is not value
            found.clear()
            assert identical(await kv.get("/a"), before)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(json_values)
async def test_random_values_come_back_as_they_are(anyio_backend: str, value: Any) -> None:
    async with Datastore("memory://") as ds:
        kv = KeyValue(ds)
        await kv.put("/a/B:c", value)
        assert identical(await kv.get("/a/B:c"), value)
        assert await kv.contains("/a/B:c")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1, 2), "expected None, bool, int, .*got tuple"),
        ({"a": {1}}, r"the value\['a'\]: expected .*got set"),
        ([{"a": object()}], r"the value\[0\]\['a'\]"),
        ({1: 2}, r"expected names \(str\) in a dict, got int 1"),
        (datetime(2024, 1, 1), "naive"),
        (Key("A", 1), "got Key"),
        (type("S", (str,), {})("x"), "got S 'x'"),
    ],
)
async def test_values_that_would_not_come_back_are_refused(value: Any, message: str) -> None:
    async with Datastore("memory://") as ds:
        with pytest.raises(BadValueError, match=message):
            await KeyValue(ds).put("/a", value)


async def test_values_that_are_too_deep_or_too_large_are_refused() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    async with Datastore("memory://") as ds:
        kv = KeyValue(ds)
        with pytest.raises(BadValueError, match="more than 100 deep"):
            await kv.put("/a", deep)
        with pytest.raises(DatastoreError):
            await kv.put("/a", "x" * 2_000_000)
        assert not await kv.contains("/a")


async def test_times_come_back_in_utc() -> None:
    async with Datastore("memory://") as ds:
        kv = KeyValue(ds)
        given_time = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
        await kv.put("/a", {"flat": given_time, "packed": [[given_time]]})
        found = await kv.get("/a")
        assert found == {"flat": given_time, "packed": [[given_time]]}
        assert found["flat"].tzinfo is UTC is found["packed"][0][0].tzinfo


# ------------------------------------------------------------------------------------------ on every engine

SHAPES: list[Any] = [5, "x", None, [[1]], {"n": 1, "tags": ["a"]}, {"n": 2, "b": 10**30}, {"n": 3, "d": {"e": "f"}}]


@engines(loops=True)
class TestOnEveryEngine:
    async def test_a_dictionary(self, engine: Bound) -> None:
        with engine.place() as place:
            async with place.connect() as ds:
                kv = KeyValue(ds)
                await kv.put_many({f"/d/V:{n}": value for n, value in enumerate(SHAPES)})
                await kv.put_many([("/d", "above"), ("/dd/V:1", "beside")])
                wanted = [f"/d/V:{n}" for n in range(len(SHAPES))]
                assert identical(await kv.get_many([*wanted, "/d/V:9"], "none"), [*SHAPES, "none"])
                assert await kv.contains("/d/V:2")
                assert not await kv.contains("/d/V:9")
                assert await kv.get("/d/V:2", "default") is None
                items = await kv.query("/d").fetch()
                assert [str(item.path) for item in items] == ["/d", *wanted]
                assert identical([item.value for item in items[1:]], SHAPES)
                assert await kv.query("/d", type="V").filter("n", ">", 1).order("-n").paths() == [
                    PathKey("/d/V:6"), PathKey("/d/V:5"),
                ]  # fmt: skip
                assert await kv.query("/d", type="V").filter("tags", "=", "a").paths() == [PathKey("/d/V:4")]
                await kv.delete("/d/V:0")
                await kv.delete_many(["/d/V:1", "/d/V:9"])
                assert await kv.query("/d").count() == len(SHAPES) - 1
                assert await kv.clear("/d") == len(SHAPES) - 1
                assert [str(path) for path in await kv.query().paths()] == ["/dd/V:1"]
                assert await ds.check() == []


@engines(loops=True)
async def test_values_expire_where_the_store_promises_it(engine: Bound) -> None:
    with engine.place() as place:
        async with place.connect() as ds:
            kv = KeyValue(ds)
            if Capability.TTL not in ds.capabilities:
                with pytest.raises(UnsupportedError, match="without ttl"):
                    await kv.put("/a", 1, ttl=0.2)
                return
            await kv.put("/d", 4)
            for ttl in (3600, 0.2):
                await kv.put("/a", {"n": 1}, ttl=ttl)
                await kv.put_many({"/b": 2, "/c": [3]}, ttl=ttl)
                if ttl == 3600:
                    assert await kv.query().count() == 4
            for _ in range(400):
                await anyio.sleep(0.05)
                if not await kv.contains("/c"):
                    break
            assert await kv.get_many(["/a", "/b", "/c", "/d"]) == [None, None, None, 4]
            assert await kv.query().values() == [4]


async def test_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    people = {
        "/people/Actor:john": {"born": 1939, "name": "John", "address": {"city": "London"}, "__x__": 1, "": "e"},
        "/people/Actor:eric": {"born": 1943, "name": "Eric", "address": {"city": "Paris"}},
        "/people/Director:terry": {"born": 1940, "name": "Terry"},
        "/people/misc": {"born": 1, "name": "Misc"},
        "/numbers/a": 3,
        "/numbers/b": 1,
        "/numbers/c": [2, 5],
        "/top": "top",
    }
    async with Datastore("memory://") as ds:
        kv = KeyValue(ds)
        await kv.put_many(people)
        actors = kv.query("/people", type="Actor")

        def names(items: list[Item]) -> list[str]:
            return [item.path.name for item in items]

        assert names(await actors.fetch()) == ["eric", "john"]
        assert names(await actors.order("born").fetch()) == ["john", "eric"]
        assert names(await actors.order("-born").fetch(1)) == ["eric"]
        assert await actors.filter("address.city", "=", "Paris").values() == [people["/people/Actor:eric"]]
        assert names(await actors.filter("__x__", "=", 1).fetch()) == ["john"]
        assert names(await actors.filter("", "=", "e").fetch()) == ["john"]
        assert names(await actors.filter("name", "in", ["John", "Terry"]).fetch()) == ["john"]
        assert names(await actors.filter("born", ">=", 1940).order("born").fetch()) == ["eric"]
        assert names(await kv.query("/people").filter("born", ">=", 1940).order("born").fetch()) == ["terry", "eric"]
        assert names(await kv.query("/people").filter("born", "<", 1943).fetch()) == ["misc", "john", "terry"]
        assert names(await kv.query("/people").order("-name").limit(2).offset(1).fetch()) == ["misc", "john"]
        assert await kv.query("/people").filter("born", "<", 1943).count() == 3
        assert await kv.query("/people").filter("name", "=", "Misc").paths() == [PathKey("/people/misc")]
        for query in (kv.query().filter("born", ">", 1), kv.query().order("born")):
            with pytest.raises(BadRequestError, match="only if it has a type"):
                await query.page(2)
        monkeypatch.setattr(keyvalue.store, "MAX_SORTED", 3)
        with pytest.raises(BadRequestError, match="name the type of the paths"):
            await kv.query("/people").order("born").fetch()
        with pytest.raises(BadFilterError):
            kv.query().filter("born", "about", 1)
        assert names(await kv.query("/people", type="").fetch()) == ["misc"]
        assert names(await kv.query("/numbers", type="").order(VALUE).fetch()) == ["b", "c", "a"]
        assert names(await kv.query("/numbers", type="").filter(VALUE, ">", 2).fetch()) == ["a", "c"]
        assert names(await kv.query("/numbers").limit(1).offset(1).fetch()) == ["b"]
        assert await kv.query().count() == len(people)
        assert [item.path async for item in kv.query()] == sorted(map(PathKey, people))
        first = await kv.query().first()
        assert first == Item(PathKey("/numbers/a"), 3)
        assert await kv.query("/nothing").first() is None
        async for item in kv.query("/people").filter("name", "in", ["John", "Eric"]):
            assert item.path.name == "eric"
            break
        page = await kv.query("/people").page(3)
        rest = await kv.query("/people").page(3, page.cursor)
        assert (names(page.items), page.more) == (["eric", "john", "terry"], True)
        assert (names(rest.items), rest.more) == (["misc"], False)
        assert names(await kv.query("/people").start(page.cursor).fetch()) == ["misc"]


async def test_entities_of_the_application_are_values_too() -> None:
    async with Datastore("memory://", namespace="n", project="p") as ds:
        kv = KeyValue(ds)
        await ds.put(Entity(ds.key("Person", "ada"), {"born": 1815}))
        await ds.put(Entity(ds.key("Person", 7), {"born": 1}))  # no path
        await ds.put(Entity(Key("Person", "other"), {"born": 1}))  # in another namespace
        assert await kv.get("/Person:ada") == {"born": 1815}
        assert await kv.query().paths() == [PathKey("/Person:ada")]
        assert [item async for item in kv.query()] == [Item(PathKey("/Person:ada"), {"born": 1815})]
        await kv.put("/Person:bob", {"born": 1950})
        assert await ds.get(ds.key("Person", "bob")) == Entity(ds.key("Person", "bob"), {"born": 1950})
        assert await kv.clear() == 2
        assert await ds.query().count() == 1


async def test_what_is_passed_over_takes_no_place_of_a_limit() -> None:
    async with Datastore("memory://") as ds:
        kv = KeyValue(ds)
        await ds.put([Entity(Key("Person", number), {"born": number}) for number in range(1, 6)])
        await kv.put_many({f"/Person:{name}": {"born": 9} for name in "abc"})
        for query in (kv.query(), kv.query("/", type="Person"), kv.query("/", type="Person").order("born")):
            first = await query.first()
            assert first is not None
            assert first.path == PathKey("/Person:a")
            for limit in range(5):
                assert len(await query.limit(limit).fetch()) == len(await query.paths(limit)) == min(limit, 3)


async def test_a_root_of_its_own() -> None:
    async with Datastore("memory://") as ds:
        one, two = KeyValue(ds, root="/apps/one"), KeyValue(ds, root="/apps/two")
        await one.put("/a/B:c", 1)
        await two.put("/a/B:c", 2)
        assert (await one.get("/a/B:c"), await two.get("/a/B:c")) == (1, 2)
        assert await one.query().fetch() == [Item(PathKey("/a/B:c"), 1)]
        assert await one.query("/a").paths() == [PathKey("/a/B:c")]
        assert await KeyValue(ds).query("/apps").count() == 2
        assert await one.clear() == 1
        assert await two.contains("/a/B:c")
        with pytest.raises(BadKeyError, match="names no value"):
            await one.get("/")
        assert repr(one) == "KeyValue(Datastore('memory://'), root='/apps/one')"


async def test_in_transactions() -> None:
    async with Datastore("memory://") as ds:
        kv = KeyValue(ds)
        await kv.put("/n", 0)

        @ds.transactional
        async def add(rollback: bool = False) -> None:
            await kv.put("/n", await kv.get("/n") + 1)
            assert [item.value for item in await kv.query().fetch()] == [await kv.get("/n")]
            if rollback:
                raise Rollback

        await add()
        await add(rollback=True)
        assert await kv.get("/n") == 1


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("ab"), st.one_of(st.integers(0, 3), st.lists(st.integers(0, 3)), st.text("x"))),
        max_size=8,
    ),
    st.sampled_from([None, ("a", ">", 0), ("a", "=", 1), ("a", "in", [0, 2]), ("b", "!=", 1)]),
    st.sampled_from([(), ("a",), ("-a",), ("b", "-a"), ("-__key__",)]),
    st.integers(0, 2),
    st.one_of(st.none(), st.integers(1, 3)),
)
async def test_what_is_chosen_here_is_what_an_index_would_find(
    values: list[Any], condition: tuple[str, str, Any] | None, orders: tuple[str, ...], offset: int, limit: int | None
) -> None:
    async with Datastore("memory://") as ds:
        kv = KeyValue(ds)
        await kv.put_many({f"/v/T:{place}": value for place, value in enumerate(values)})
        found = []
        for type_ in (None, "T"):
            query = kv.query("/v", type=type_)
            if condition is not None:
                query = query.filter(*condition)
            if orders:
                query = query.order(*orders)
            query = query.offset(offset).limit(limit)
            found.append(await query.fetch())
            assert await query.count() == len(found[-1])
        assert found[0] == found[1]


@settings(deadline=None, max_examples=30)
@given(st.lists(paths, max_size=12, unique=True), st.randoms())
async def test_a_query_gives_what_is_below_its_prefix(some: list[PathKey], rng: random.Random) -> None:
    async with Datastore("memory://") as ds:
        kv = KeyValue(ds)
        await kv.put_many([(path, str(path)) for path in some])
        assert await kv.query().paths() == sorted(some)
        for path in some:
            for prefix in (path, *([path.parent] if path.parent else [])):
                expected = sorted(each for each in some if each == prefix or each.is_descendant_of(prefix))
                assert [item.path for item in await kv.query(prefix).fetch()] == expected
                typed = [each for each in expected if each.type == path.type]
                assert await kv.query(prefix, type=path.type).paths() == typed
