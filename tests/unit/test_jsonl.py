"""The line format of export and import."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodatastore.entity import Entity
from aiodatastore.errors import BadValueError, FormatVersionError
from aiodatastore.jsonl import canonical, dump_entity, load_line
from aiodatastore.key import Key
from aiodatastore.values import Blob, GeoPoint, Text

EVERYTHING = Entity(
    Key("A", "x", "B", 7, namespace="n", project="p"),
    {
        "none": None,
        "yes": True,
        "int": -(2**63),
        "one": 1,
        "float": 1.0,
        "nan": math.nan,
        "inf": -math.inf,
        "zero": -0.0,
        "str": 'a\n"é😀\u2028',
        "bytes": b"\x00\xff",
        "time": datetime(2020, 2, 29, 12, 34, 56, 789012, tzinfo=UTC),
        "early": datetime(1, 1, 1, tzinfo=UTC),
        "key": Key("C", "5", namespace="n"),
        "point": GeoPoint(51.5, -0.12),
        "text": Text("long"),
        "blob": Blob(b"\x01"),
        "list": [1, 1.0, True, "1", None, {"a": [b"x"]}],
        "empty": [],
        "dict": {"a": {"b": 1.5}, "c": {}},
        "odd": {"$key": "not a key", "$": 1},
        "one$": {"$dict": {"$float": 1}},
        "entity": Entity(Key("E"), {"x": Text("t"), "y": Entity(Key("F", 1))}, unindexed=["x"]),
    },
    unindexed=["str", "list"],
)


def test_the_format_is_pinned() -> None:
    """Data outlives code: change this only together with VERSION and a reader of the old one."""
    line = json.loads(dump_entity(EVERYTHING))
    assert line == {
        "key": "p!n/A:x/B:7",
        "properties": {
            "none": None,
            "yes": True,
            "int": -(2**63),
            "one": 1,
            "float": 1.0,
            "nan": {"$float": "nan"},
            "inf": {"$float": "-inf"},
            "zero": -0.0,
            "str": 'a\n"é😀\u2028',
            "bytes": {"$bytes": "AP8="},
            "time": {"$datetime": "2020-02-29T12:34:56.789012Z"},
            "early": {"$datetime": "0001-01-01T00:00:00Z"},
            "key": {"$key": 'n/C:"5"'},
            "point": {"$point": [51.5, -0.12]},
            "text": {"$text": "long"},
            "blob": {"$blob": "AQ=="},
            "list": [1, 1.0, True, "1", None, {"a": [{"$bytes": "eA=="}]}],
            "empty": [],
            "dict": {"a": {"b": 1.5}, "c": {}},
            "odd": {"$dict": {"$key": "not a key", "$": 1}},
            "one$": {"$dict": {"$dict": {"$dict": {"$float": 1}}}},
            "entity": {
                "$entity": {
                    "key": "/E",
                    "properties": {
                        "x": {"$text": "t"},
                        "y": {"$entity": {"key": "/F:1", "properties": {}}},
                    },
                    "unindexed": ["x"],
                }
            },
        },
        "unindexed": ["list", "str"],
    }
    assert b'"one":1,"float":1.0,' in dump_entity(EVERYTHING)


def test_every_type_comes_back() -> None:
    loaded = load_line(dump_entity(EVERYTHING))
    assert isinstance(loaded, Entity)
    assert _shape(loaded) == _shape(EVERYTHING)
    assert loaded.key == EVERYTHING.key
    assert loaded.unindexed == EVERYTHING.unindexed


def _shape(value: Any) -> Any:
    """Something whose equality tells types apart, and -0.0 from 0.0."""
    if isinstance(value, Entity):
        return (Entity, value.key, sorted(value.unindexed), [(n, _shape(v)) for n, v in value.items()])
    if isinstance(value, dict):
        return (dict, [(n, _shape(v)) for n, v in value.items()])
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return (type(value), repr(value))


def test_a_projected_row_is_marked_and_never_loaded() -> None:
    row = Entity._make(Key("A", 1), {"x": 1}, frozenset(), 3, True)
    line = dump_entity(row)
    assert json.loads(line)["projection"] is True
    with pytest.raises(BadValueError, match="projection"):
        load_line(line)


def test_offsets_are_read() -> None:
    line = b'{"key": "/A:1", "properties": {"t": {"$datetime": "2020-01-01T02:00:00+02:00"}}}'
    loaded = load_line(line)
    assert loaded["t"] == datetime(2020, 1, 1, tzinfo=UTC)
    assert loaded["t"].tzinfo is UTC


def test_times_are_written_in_utc() -> None:
    local = datetime(2020, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert b"2020-01-01T00:00:00Z" in dump_entity(Entity(Key("A", 1), {"t": local}))


def test_canonical_bytes_tell_types_apart() -> None:
    def of(**properties: Any) -> bytes:
        return canonical(Entity(Key("A", 1), properties))

    assert of(a=1, b=2) == of(b=2, a=1)
    assert of(a=math.nan) == of(a=math.nan)
    assert len({of(a=1), of(a=1.0), of(a=True), of(a="1"), of(a=b"1"), of(a=Text("1")), of(a=[1])}) == 7
    assert of(a=0.0) != of(a=-0.0)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "expected an object"),
        (b"3", "expected an object"),
        (b"{}", "properties"),
        (b'{"key": "/A:1"}', "properties"),
        (b'{"properties": {}}', "no key"),
        (b'{"key": 3, "properties": {}}', "expected a key"),
        (b'{"key": "A", "properties": {}}', "expected a key"),
        (b'{"key": "/A:1", "properties": [], "x": 1}', "unknown member 'x'"),
        (b'{"key": "/A:1", "properties": []}', "properties"),
        (b'{"key": "/A:1", "properties": {}, "unindexed": "a"}', "unindexed"),
        (b'{"key": "/A:1", "properties": {}, "unindexed": [1]}', "unindexed"),
        (b'{"key": "/A:1", "properties": {"a": {"$money": 1}}}', "a: unknown type '$money'"),
        (b'{"key": "/A:1", "properties": {"a": {"$a": 1, "$b": 2}}}', "$dict"),
        (b'{"key": "/A:1", "properties": {"a": {"b": {"$datetime": "2020-01-01T00:00:00"}}}}', "a.b: .*offset"),
        (b'{"key": "/A:1", "properties": {"a": {"$datetime": 5}}}', "a: 5"),
        (b'{"key": "/A:1", "properties": {"a": {"$bytes": "!!"}}}', "base64"),
        (b'{"key": "/A:1", "properties": {"a": {"$float": "1"}}}', "nan, inf or -inf"),
        (b'{"key": "/A:1", "properties": {"a": {"$point": [91, 0]}}}', "latitude"),
        (b'{"key": "/A:1", "properties": {"a": {"$point": 5}}}', "latitude"),
        (b'{"key": "/A:1", "properties": {"a": {"$key": "x"}}}', "a: .*key"),
        (b'{"key": "/A:1", "properties": {"a": {"$text": 1}}}', "expected a string"),
        (b'{"key": "/A:1", "properties": {"a": {"$dict": 1}}}', "expected an object"),
    ],
)
def test_errors_say_what_is_wrong(line: bytes, problem: str) -> None:
    with pytest.raises(BadValueError, match=problem.replace("$", r"\$")):
        load_line(line)


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    line = b'{"key": "/A:1", "properties": {"a": ' + b'{"b":' * 900 + b"1" + b"}" * 900 + b"}}"
    try:
        loaded = load_line(line)
    except BadValueError:
        return
    assert isinstance(loaded, Entity)
    with pytest.raises(BadValueError, match="embedded"):
        loaded.validate()


def test_another_version_is_refused() -> None:
    assert load_line(b'{"aiodatastore": 1, "end": true, "entities": 3}') == {
        "aiodatastore": 1,
        "end": True,
        "entities": 3,
    }
    with pytest.raises(FormatVersionError, match="format 2"):
        load_line(b'{"aiodatastore": 2}')


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_NAMES = _TEXTS.filter(bool) | st.sampled_from(["$", "$key", "$dict", "a.b", "aiodatastore", "key"])
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | _TEXTS
    | st.binary(max_size=20)
    | st.datetimes(timezones=st.just(UTC)).map(lambda time: time.replace(fold=0))
    | st.builds(Text, _TEXTS)
    | st.builds(Blob, st.binary(max_size=20))
    | st.builds(GeoPoint, st.floats(-90, 90), st.floats(-180, 180))
    | st.builds(Key, _NAMES, st.integers(1, 2**63 - 1) | _NAMES)
)


def _embed(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(_NAMES, values, max_size=3)
    return (
        st.lists(values, max_size=3)
        | properties
        | st.builds(Entity, st.builds(Key, _NAMES), properties, unindexed=st.frozensets(_NAMES, max_size=2))
    )


@given(st.dictionaries(_NAMES, st.recursive(_SCALARS, _embed, max_leaves=8), max_size=5))
def test_any_entity_comes_back(properties: dict[str, Any]) -> None:
    entity = Entity(Key("A", 1), properties)
    line = dump_entity(entity)
    assert b"\n" not in line
    assert _shape(load_line(line)) == _shape(entity)


_ELEMENTS = st.tuples(
    _NAMES | st.sampled_from(["Country", "City", "_x"]),
    st.integers(1, 2**63 - 1) | _NAMES | st.sampled_from(["ada", "a.b-c", "5", "10", "_", "A:1"]),
)


@given(st.lists(_ELEMENTS, min_size=1, max_size=3), st.sampled_from(["", "n"]), st.sampled_from(["", "p"]))
def test_any_key_comes_back(elements: list[tuple[str, int | str]], namespace: str, project: str) -> None:
    """Most keys of a file take a shorter way than ``Key.from_string``; it must lead to the same."""
    key = Key(*(part for element in elements for part in element), namespace=namespace, project=project)
    for wanted in (key, key.child("Task"), key.child("Task", 7), key.child("Task", "x")):
        loaded = load_line(dump_entity(Entity(wanted)))
        assert isinstance(loaded, Entity)
        assert loaded.key == wanted


def test_long_and_incomplete_paths_are_refused_as_keys_are() -> None:
    deep = "/A:1" * 101
    for wrong in (deep, "/A/B:1", "/A:0/B:1", "/A:1/B:0", "/A:1/B:", "/A:1//B:1", "x y/A:1/B:1"):
        with pytest.raises(BadValueError, match=r"key|element|no id"):
            load_line(json.dumps({"key": wrong, "properties": {}}))
