"""Keys: order, facts and limits as the golden cases have them, and text forms that are exact inverses."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodatastore import errors
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, BadKeyError, BadValueError
from aiodatastore.key import MAX_ID, Key
from aiodatastore.testing.conformance.decode import decode_argument, decode_key, decode_value

CORPUS = Path(__file__).parent.parent / "data" / "conformance"


def records(name: str, kind: str) -> Iterator[dict[str, Any]]:
    with (CORPUS / name).open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["type"] == kind:
                yield record


kinds = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6) | st.sampled_from(
    ["A", "a/b", "a:b", "5", '"', '"5"', "%41", "%", " ", "\x00", "\u2028", "\x85", "é", "😀", "//", "!"]
)
names = kinds | st.sampled_from(["05", "-1", "٣", '"05"', "9" * 30])
identifiers = st.integers(1, MAX_ID) | names
partitions = st.text("09AZaz._-", max_size=8)


@st.composite
def keys(draw: st.DrawFn) -> Key:
    path = draw(st.lists(st.tuples(kinds, identifiers), min_size=1, max_size=4))
    flat: list[Any] = [part for pair in path for part in pair]
    if draw(st.booleans()):
        flat.append(draw(kinds))
    return Key(*flat, namespace=draw(partitions), project=draw(partitions))


# ------------------------------------------------------------------------------------------------ golden


def test_sorted_as_the_golden_cases_are() -> None:
    for record in records("keys.jsonl", "sorted"):
        ordered = [decode_key(key) for key in record["keys"]]
        shuffled = sorted(ordered, key=repr)
        assert sorted(shuffled) == ordered, record["id"]


def test_compares_as_the_golden_cases_do() -> None:
    for record in records("keys.jsonl", "compare"):
        a, b = decode_key(record["a"]), decode_key(record["b"])
        assert (a > b) - (a < b) == record["cmp"], record["id"]
        assert (a >= b) - (a <= b) == record["cmp"], record["id"]
        assert (a == b) == record["equal"], record["id"]
        assert a != b or hash(a) == hash(b), record["id"]


def test_facts_of_the_golden_cases() -> None:
    for record in records("keys.jsonl", "facts"):
        key = decode_key(record["key"])
        assert key.kind == record["kind"], record["id"]
        assert (key.id, key.name) == (record.get("key_id"), record.get("key_name")), record["id"]
        assert key.namespace == record.get("namespace", ""), record["id"]
        assert key.parent == (decode_key(record["parent"]) if record["parent"] else None), record["id"]
        assert key.root == decode_key(record["entity_group"]), record["id"]
        assert key.is_complete == record["complete"], record["id"]


def test_app_engines_own_text_form() -> None:
    for record in records("keys.jsonl", "facts"):
        key = decode_key(record["key"])
        if isinstance(record["urlsafe"], str):
            assert key.to_app_engine(record["app"]) == record["urlsafe"], record["id"]
            assert Key.from_app_engine(record["urlsafe"], record["app"]) == key, record["id"]
        else:
            with pytest.raises(BadKeyError):
                key.to_app_engine(record["app"])


def test_descendants_of_the_golden_cases() -> None:
    for record in records("keys.jsonl", "descendants"):
        ancestor = decode_key(record["ancestor"])
        found = [key for key in map(decode_key, record["keys"]) if key == ancestor or key.is_descendant_of(ancestor)]
        assert sorted(found) == [decode_key(key) for key in record["expect"]], record["id"]


@pytest.mark.parametrize("record", [pytest.param(r, id=r["id"]) for r in records("entities.jsonl", "key")])
def test_from_path_accepts_and_refuses_as_app_engine(record: dict[str, Any]) -> None:
    options: dict[str, Any] = {"extra": 1} if "extra" in record else {}
    if "ns" in record:
        options["namespace"] = record["ns"]
    if "parent" in record:
        options["parent"] = decode_argument(record["parent"])
    path = [decode_value(part) for part in record["path"]]
    expected = record["expect"].get("error")
    if record.get("any_error") or "quirk" in record:
        with pytest.raises(errors.DatastoreError):
            Key.from_path(*path, **options)
    elif expected:
        with pytest.raises(getattr(errors, expected)):
            Key.from_path(*path, **options)
    else:
        assert Key.from_path(*path, **options).namespace == record["expect"]["ns"]


# --------------------------------------------------------------------------------------------- text forms


@given(keys())
def test_every_text_form_has_an_exact_inverse(key: Key) -> None:
    assert Key.from_string(str(key)) == key
    assert Key.from_urlsafe(key.to_urlsafe()) == key
    assert eval(repr(key)) == key
    assert key.to_urlsafe().replace("-", "").replace("_", "").isalnum()
    if key.is_complete:
        assert Key.from_app_engine(key.to_app_engine("app"), "app") == Key(*key.path, namespace=key.namespace)


@given(keys(), keys())
def test_different_keys_have_different_texts(a: Key, b: Key) -> None:
    assert (str(a) == str(b)) == (a == b)


@given(st.text(max_size=12) | st.text('/AB:1"%2F!', max_size=12).map("/".__add__))
def test_a_text_is_read_in_one_way_or_refused(text: str) -> None:
    try:
        key = Key.from_string(text)
    except BadKeyError:
        return
    assert Key.from_string(str(key)) == key


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (Key("Country", "GB", "City", 2643743), "/Country:GB/City:2643743"),
        (Key("A", "5"), '/A:"5"'),
        (Key("A", "05"), '/A:"05"'),
        (Key("A", '"5"'), "/A:%225%22"),
        (Key("A", "a/b", "C:D", "100%"), "/A:a%2Fb/C%3AD:100%25"),
        (Key("A", "line\nbreak"), "/A:line%0Abreak"),
        (Key("A", "é 日本"), "/A:é 日本"),
        (Key("A", 1, "B"), "/A:1/B"),
        (Key("A", 1, namespace="n"), "n/A:1"),
        (Key("A", 1, project="p"), "p!/A:1"),
        (Key("A", 1, project="p", namespace="n"), "p!n/A:1"),
    ],
)
def test_readable_form(key: Key, text: str) -> None:
    assert str(key) == text
    assert Key.from_string(text) == key


@pytest.mark.parametrize(
    "text",
    ["", "/", "A:1", "/A:", "/:1", "/A:0", "/A:007", '/A:"x"', "/A:%", "/A:%4", "/A:%FF", "/A/B:1", "/A:1:2", "/A:a\nb",
     "n n/A:1", "/A:9223372036854775808", "a!b!c/A:1"],
)  # fmt: skip
def test_texts_that_are_no_key(text: str) -> None:
    with pytest.raises(BadKeyError):
        Key.from_string(text)


@pytest.mark.parametrize("text", ["", "junk!", "abcd", "L0E6MQ==", "L0E6MR", "é", "L0E6MQ\n"])
def test_urlsafe_texts_that_are_no_key(text: str) -> None:
    assert Key("A", 1).to_urlsafe() == "L0E6MQ"
    with pytest.raises(BadKeyError):
        Key.from_urlsafe(text)


@pytest.mark.parametrize("text", ["", "junk!", "abcd", "agtjb25mb3JtYW5jZXIHCxIBYRhk", "agFhcgA"])
def test_app_engine_texts_that_are_no_key(text: str) -> None:
    with pytest.raises(BadKeyError):
        Key.from_app_engine(text)


def test_app_engine_application_becomes_the_project() -> None:
    key = Key.from_app_engine("agtjb25mb3JtYW5jZXIHCxIBYRhkDA")
    assert key == Key("a", 100, project="conformance")
    assert key.to_app_engine() == "agtjb25mb3JtYW5jZXIHCxIBYRhkDA"
    with pytest.raises(BadKeyError, match="conformance"):
        Key.from_app_engine("agtjb25mb3JtYW5jZXIHCxIBYRhkDA", "other")


# ------------------------------------------------------------------------------------------------ parts


def test_look_alikes_are_different() -> None:
    alike = [
        Key("A", 1),
        Key("A", "1"),
        Key("A"),
        Key("A", 1, "B"),
        Key("A", 1, namespace="n"),
        Key("A", 1, project="p"),
    ]
    assert len(set(alike)) == len(alike)
    assert not Key("A", "a").is_ancestor_of(Key("A", "ab"))
    assert not Key("A", "a").is_ancestor_of(Key("A", "a"))
    assert not Key("A", "a").is_ancestor_of(Key("A", "a", "B", 1, namespace="n"))
    assert not Key("A", "a").is_ancestor_of(Key("A", "a", "B", 1, project="p"))


def test_incomplete_keys() -> None:
    for key in (Key("A", 1, "B"), Key("A", 1, "B", None), Key("A", 1, "B", 0), Key("A", 1).child("B")):
        assert key == Key("A", 1, "B")
        assert (key.path, key.pairs) == (("A", 1, "B"), (("A", 1), ("B", None)))
        assert (key.is_complete, key.id_or_name) == (False, None)
        assert key.completed(7) == Key("A", 1, "B", 7)
    with pytest.raises(BadKeyError):
        Key("A", 1).completed(2)
    with pytest.raises(BadArgumentError):
        Key("A").completed(0)
    with pytest.raises(BadKeyError):
        Key("A", None, "B", 1)
    with pytest.raises(BadKeyError):
        Key("A").child("B", 1)


def test_parents() -> None:
    above = Key("A", 1, namespace="n", project="p")
    below = Key("B", 2, "C", "x", parent=above)
    assert below == Key("A", 1, "B", 2, "C", "x", namespace="n", project="p")
    assert below.parent == above.child("B", 2)
    assert below.root == above == below.parent.root
    assert above.parent is None
    assert above.root is above
    assert Key("B", 2, parent=above.to_urlsafe()).parent == above
    assert Key("B", 2, parent=Entity(above)).parent == above
    for bad in ({"namespace": "m"}, {"namespace": ""}, {"project": "q"}):
        with pytest.raises(BadArgumentError):
            Key("B", 2, parent=above, **bad)
    for wrong in (5, {"key": above}, object()):
        with pytest.raises(BadArgumentError):
            Key("B", 2, parent=wrong)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ((), BadArgumentError),
        (("",), BadArgumentError),
        ((5, 1), BadArgumentError),
        (("k" * 1501, 1), BadArgumentError),
        (("\ud800", 1), BadArgumentError),
        (("A", True), BadArgumentError),
        (("A", 1.5), BadArgumentError),
        (("A", b"n"), BadArgumentError),
        (("A", ""), BadValueError),
        (("A", "é" * 751), BadValueError),
        (("A", "\udfff"), BadValueError),
        (("A", -1), BadValueError),
        (("A", MAX_ID + 1), BadValueError),
        (("A", 1) * 101, BadKeyError),
    ],
)
def test_what_no_key_can_have(path: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        Key(*path)


def test_limits_are_inclusive() -> None:
    assert Key("k" * 1500, "é" * 750, namespace="n" * 100).name == "é" * 750
    assert Key("A", MAX_ID).id == MAX_ID
    assert len(Key(*("A", 1) * 100).pairs) == 100
    for wrong in ("n" * 101, "a b", "é", "a/b", 5, False, "a\n"):
        with pytest.raises(BadArgumentError):
            Key("A", 1, namespace=wrong)  # type: ignore[arg-type]
        with pytest.raises(BadArgumentError):
            Key("A", 1, project=wrong)  # type: ignore[arg-type]


def test_keys_never_change_and_can_be_copied() -> None:
    key = Key("A", 1, "B", "x", namespace="n")
    for name in ("kind", "namespace", "project", "pairs", "path", "id", "unknown"):
        with pytest.raises(AttributeError):
            setattr(key, name, "x")
    assert copy.copy(key) is key is copy.deepcopy(key)
    assert pickle.loads(pickle.dumps(key)) == key
    assert Key._make("", "n", (("A", 1), ("B", "x"))) == key


def test_order_with_other_things() -> None:
    assert Key("A", 1) != ("A", 1)
    with pytest.raises(TypeError):
        assert Key("A", 1) < "A"
    assert Key("A") < Key("A", 1) < Key("A", MAX_ID) < Key("A", "!") < Key("A", "!", "A") < Key("B")
    assert Key("Z", project="a") < Key("A", project="b")
