"""Which index a query needs: App Engine's answers, from the golden cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aiodatastore.indexing.definitions import IndexDefinition, parse_index_yaml
from aiodatastore.indexing.suggest import (
    RequiredIndex,
    minimal_index,
    missing_indexes,
    need_index,
    required_index,
    required_indexes,
)
from aiodatastore.key import Key
from aiodatastore.query import And, Op, Or, PropertyFilter, Query

CORPUS = Path(__file__).parent.parent / "data" / "conformance"


def _records(name: str) -> list[dict[str, Any]]:
    with (CORPUS / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _query(golden: dict[str, Any]) -> Query:
    """The golden query's shape; what its filters compare with doesn't matter here."""
    query = Query(golden.get("kind"))
    for name, op, _ in golden.get("filters", []):
        query = query.filter(name, op, Key("Person", 1) if name == "__key__" else 1)
    if "ancestor" in golden:
        query = query.under(Key(*golden["ancestor"]["path"]))
    for name, direction in golden.get("orders", []):
        query = query.order("-" + name if direction == "desc" else name)
    if golden.get("projection"):
        query = query.project(*golden["projection"])
        if golden.get("distinct"):
            query = query.distinct()
    return query


def _required(golden: dict[str, Any]) -> RequiredIndex:
    return RequiredIndex(
        required=golden["required"],
        kind=golden.get("kind"),
        equality=tuple(golden.get("equality", ())),
        ordered=tuple((name, direction) for name, direction in golden.get("ordered", ())),
        group_by=tuple(golden.get("group_by", ())),
        any_order=tuple(golden.get("any_order", ())),
        ancestor=golden.get("ancestor", False),
    )


def _definitions(golden: list[dict[str, Any]]) -> list[IndexDefinition]:
    return [IndexDefinition(d["kind"], d["properties"], d["ancestor"]) for d in golden]


@pytest.mark.parametrize("file", ["queries.jsonl", "indexes.jsonl"])
def test_required_index_is_app_engines(file: str) -> None:
    cases = [case for case in _records(file) if "index" in case]
    assert len(cases) >= 160
    wrong = []
    for case in cases:
        got = required_index(_query(case["query"]))
        recommended = [list(p) for p in got.recommended.properties] if got.recommended else []
        if got != _required(case["index"]) or recommended != case["index"].get("recommended", []):
            wrong.append((case["id"], got))
    assert wrong == []


def test_need_index_is_app_engines() -> None:
    cases = [case for case in _records("indexes.jsonl") if case["type"] == "need_index"]
    assert len(cases) >= 160
    wrong = []
    for case in cases:
        query, defined, expect = _query(case["query"]), _definitions(case["defined"]), case["expect"]
        error = need_index(query, defined)
        if error is None:
            if not expect.get("served"):
                wrong.append((case["id"], "served"))
            continue
        minimal = {
            "most_efficient": error.minimal == error.definition,
            "kind": error.minimal.kind,
            "ancestor": error.minimal.ancestor,
            "properties": [list(p) for p in error.minimal.properties],
        }
        if (error.yaml, error.xml, minimal) != (expect.get("yaml"), expect.get("xml"), expect.get("minimal")):
            wrong.append((case["id"], error.yaml))
        # What is suggested must help: either index, added to those defined, serves the query.
        assert need_index(query, [*defined, error.definition]) is None
        assert need_index(query, [*defined, error.minimal]) is None
        assert parse_index_yaml(error.yaml) == [error.definition]
    assert wrong == []


def _index(*names: str, kind: str = "A", ancestor: bool = False) -> IndexDefinition:
    properties = tuple((n.lstrip("-"), "desc" if n.startswith("-") else "asc") for n in names)
    return IndexDefinition(kind, properties, ancestor)


def test_defined_indexes_serve_together() -> None:
    query = Query("A").filter("a", "=", 1).filter("b", "=", 1).order("-c")
    assert minimal_index(query, []) == _index("a", "b", "-c")
    assert minimal_index(query, [_index("a", "-c")]) == _index("b", "-c")
    assert minimal_index(query, [_index("a", "-c"), _index("b", "-c")]) is None
    assert minimal_index(query, [_index("a", "c")]) == _index("a", "b", "-c")
    assert minimal_index(query, [_index("a", "-c", kind="B")]) == _index("a", "b", "-c")


def test_an_index_without_ancestor_helps_an_ancestor_query() -> None:
    query = Query("A").filter("a", "=", 1).order("c").under(Key("P", 1))
    assert minimal_index(query, [_index("a", "c")]) == _index("c", ancestor=True)
    assert minimal_index(query, [_index("a", "c"), _index("c", ancestor=True)]) is None


def test_an_ancestor_index_serves_no_other_query() -> None:
    query = Query("A").filter("a", "=", 1).order("c")
    assert minimal_index(query, [_index("a", "c", ancestor=True)]) == _index("a", "c")


def test_the_error_explains_itself() -> None:
    error = need_index(Query("A").filter("a", "=", 1).filter("b", "=", 1).order("c"), [_index("a", "c")])
    assert error is not None
    assert "add to index.yaml:\n- kind: A\n" in str(error)
    assert str(error).endswith(_index("b", "c").to_yaml())
    assert error.definition == _index("a", "b", "c")
    assert error.minimal == _index("b", "c")


def test_in_and_not_equal_are_one_branch_each() -> None:
    assert minimal_index(Query("A").filter("a", "in", [1, 2]), []) is None
    assert minimal_index(Query("A").filter("a", "!=", 1), []) is None
    assert minimal_index(Query("A").filter("a", "in", [1, 2]).order("b"), []) == _index("a", "b")
    [index] = required_indexes(Query("A").filter("a", "!=", 1).filter("b", "in", [1, 2]))
    assert index == RequiredIndex(True, "A", equality=("b",), ordered=(("a", None),))


def test_or_needs_an_index_for_each_branch() -> None:
    either = Or(
        And(PropertyFilter("a", Op.EQ, 1), PropertyFilter("b", Op.EQ, 1)),
        PropertyFilter("d", Op.EQ, 1),
    )
    query = Query("A").filter(either).order("c")
    assert [minimal for _, minimal in missing_indexes(query, [])] == [_index("a", "b", "c"), _index("d", "c")]
    assert missing_indexes(query, [_index("a", "c"), _index("d", "c")]) == [(_index("a", "b", "c"), _index("b", "c"))]
    error = need_index(query, [])
    assert error is not None
    assert "2 composite indexes that are not defined" in str(error)
    assert parse_index_yaml(error.yaml) == [_index("a", "b", "c"), _index("d", "c")]
    assert need_index(query, parse_index_yaml(error.yaml)) is None


def test_or_inside_and_is_distributed() -> None:
    either = Or(PropertyFilter("a", Op.EQ, 1), PropertyFilter("b", Op.GT, 1))
    query = Query("A").filter(either).filter("c", "=", 1).filter("d", "=", 1)
    required = required_indexes(query)
    assert [index.required for index in required] == [False, True]
    assert required_index(query) == required[1]
    assert need_index(query, [_index("c", "d", "b")]) is None


def test_a_union_needs_what_its_parts_need() -> None:
    parts = [Query("A").filter("a", "=", 1).order("c"), Query("A").filter("b", "=", 1).order("c")]
    union = Query.union(parts, orders=("c",))
    assert [minimal for _, minimal in missing_indexes(union, [])] == [_index("a", "c"), _index("b", "c")]


def test_several_inequality_properties() -> None:
    query = Query("A").filter("a", ">", 1).filter("b", "<", 5)
    assert required_index(query) == RequiredIndex(True, "A", ordered=(("a", None),), any_order=("b",))
    ordered = query.order("b", "-c")
    assert required_index(ordered).recommended == _index("b", "-c", "a")
    assert need_index(ordered, [_index("b", "-c", "-a")]) is None


def test_a_key_inequality_beside_another_property_needs_nothing_more() -> None:
    query = Query("A").filter("__key__", ">", Key("A", 1)).filter("a", ">", 1)
    assert required_index(query) == RequiredIndex(False, "A", ordered=(("a", None),))
