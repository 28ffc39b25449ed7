"""The naive model against the reference implementation's answers."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.query import Order, Query
from aiodatastore.testing.conformance.decode import decode_entity, decode_key, decode_value, path_json
from aiodatastore.testing.conformance.surface import build_query, with_run
from aiodatastore.testing.model import Falling, Model, ModelRow, indexed_values, rank, same
from aiodatastore.values import Blob, GeoPoint, Text

CORPUS = Path(__file__).parent.parent / "data" / "conformance"
Record = dict[str, Any]


def records(name: str) -> Iterator[Record]:
    with (CORPUS / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


@functools.cache
def datasets() -> dict[str, Model]:
    return {
        record["id"]: Model(decode_entity(entity) for entity in record["entities"]) for record in records("datasets")
    }


def shown(query: Query, rows: list[ModelRow]) -> list[Any]:
    """Results as :func:`expected` gives them."""
    if query.projection:
        return [(path_json(row.key), {name: rank(value) for name, value in (row.values or {}).items()}) for row in rows]
    return [path_json(row.key) for row in rows]


def expected(record: Record) -> list[Any] | None:
    """The results a record asks for, None where it asks for something else."""
    expect = record["expect"]
    if record.get("quirk") and not record.get("derived"):
        return record.get("index_order")
    if "rows" in expect:
        return [
            (path, {name: rank(decode_value(value)) for name, value in row.items()}) for path, row in expect["rows"]
        ]
    found: list[Any] | None = expect.get("keys")
    return found


class Tally:
    """Counts what was compared and keeps what differed, so that one run shows all."""

    def __init__(self) -> None:
        self.compared = 0
        self.wrong: list[str] = []

    def compare(self, name: str, got: object, wanted: object) -> None:
        self.compared += 1
        if got != wanted:
            self.wrong.append(f"{name}: got {got!r:.300}, expected {wanted!r:.300}")

    def check(self, at_least: int) -> None:
        assert not self.wrong, "\n".join([f"{len(self.wrong)} differ", *self.wrong[:10]])
        assert self.compared >= at_least


def test_queries() -> None:
    tally = Tally()
    for record in records("queries"):
        wanted = expected(record) if "expect" in record and "query" in record else None
        if wanted is None:
            continue
        model = datasets()[record["dataset"]]
        query = build_query(record["query"], record)
        tally.compare(record["id"], shown(query, model.run(with_run(query, record.get("run", {})))), wanted)
        if isinstance(record.get("count"), int):
            tally.compare(record["id"] + " count", model.count(query), record["count"])
    tally.check(2500)


def test_merged_queries() -> None:
    tally = Tally()
    for record in records("multiquery"):
        if "source" not in record:
            continue
        model = datasets()[record["dataset"]]
        query = build_query(record["source"])
        got = shown(query, model.run(with_run(query, record.get("run", {}))))
        wanted = expected(record)
        assert wanted is not None
        if record.get("ordered") is False and not record["orderings"]:
            got, wanted = sorted(got, key=repr), sorted(wanted, key=repr)
        tally.compare(record["id"], got, wanted)
        if "count" in record:
            tally.compare(record["id"] + " count", model.count(query), record["count"])
    tally.check(400)


def test_unions() -> None:
    tally = Tally()
    for record in records("multiquery"):
        wanted = expected(record)
        if wanted is None or record.get("op", "run") not in ("run", "get") or record.get("ordered") is False:
            continue
        orders = [Order(name, descending=way == "desc") for name, way in record["orderings"]]
        parts = [build_query(part) for part in record["subqueries"]]
        if not parts:
            continue
        query = with_run(Query.union(parts, orders), record.get("run", {}))
        tally.compare(record["id"], shown(query, datasets()[record["dataset"]].run(query)), wanted)
    tally.check(180)


def after(model: Model, query: Query, count: int) -> Any:
    """Where a cursor taken after ``count`` results stands."""
    return model.rows(query)[count - 1].position if count else None


def test_cursors() -> None:
    tally = Tally()
    for record in records("cursors"):
        wanted, kind = expected(record), record["type"]
        if kind == "mutate":
            mutated(record, tally)
        if wanted is None or kind not in ("resume", "until", "window", "after_run", "after_count", "reverse"):
            continue
        model = datasets()[record["dataset"]]
        if kind == "reverse":
            reverse(record, model, tally)
            continue
        query = build_query(record["query"], record)
        run = with_run(query, record.get("run", {}))
        start, end = None, None
        if kind == "after_run":
            first = record["first_run"]
            passed = first.get("offset", 0) + (first["limit"] if first.get("limit") is not None else 10**6)
            start = after(model, query, min(passed, len(model.rows(query))))
        elif kind == "after_count":
            start = after(model, query, min(record["count_limit"], len(model.rows(query))))
        else:
            start = after(model, query, record["cursor"]["after"]) if "cursor" in record else None
            if "end_cursor" in record:
                end = after(model, query, record["end_cursor"]["after"])
                if end is None:
                    tally.compare(record["id"], [], wanted)
                    continue
        tally.compare(record["id"], shown(query, model.run(run, after=start, until=end)), wanted)
    tally.check(300)


def reverse(record: Record, model: Model, tally: Tally) -> None:
    query = build_query(record["forward"], record)
    taken = after(model, query, record["cursor"]["after"])
    rows = [row for row in model.rows(query) if taken is not None and row.position <= taken]
    tally.compare(record["id"], shown(query, rows[::-1]), expected(record))


def mutated(record: Record, tally: Tally) -> None:
    model = Model(decode_entity(entity) for entity in record["entities"])
    query = build_query(record["query"], record)
    tally.compare(record["id"] + " before", shown(query, model.rows(query)), record["before"])
    taken = after(model, query, record["cursor"]["after"])
    for mutation in record["mutations"]:
        if "put" in mutation:
            model.put(decode_entity(mutation["put"]))
        else:
            model.delete(decode_key(mutation["delete"]))
    if record["use"] == "until":
        rows = model.run(query, until=taken) if taken is not None else []
    else:
        rows = model.run(query, after=taken)
    tally.compare(record["id"], shown(query, rows), expected(record))


def test_order_of_values() -> None:
    tally = Tally()
    for record in records("values"):
        name, kind = record["id"], record["type"]
        if kind == "sorted":
            groups = [[rank(decode_value(value)) for value in group] for group in record["groups"]]
            assert all(len(set(group)) == 1 for group in groups), name
            firsts = [group[0] for group in groups]
            tally.compare(name, sorted(set(firsts)), firsts)
        elif kind == "compare":
            left, right = rank(decode_value(record["a"])), rank(decode_value(record["b"]))
            tally.compare(name, (left > right) - (left < right), record["cmp"])
        elif kind == "filter":
            model = Model(
                Entity(Key("V", place + 1), {"x": decode_value(value)}) for place, value in enumerate(record["stored"])
            )
            query = Query("V").filter("x", record["op"], decode_value(record["bound"]))
            matches = sorted((row.key.id or 0) - 1 for row in model.run(query))
            tally.compare(name, matches, sorted(record["matches"]))
    tally.check(400)


def test_order_of_keys() -> None:
    for record in records("keys"):
        if record["type"] == "sorted":
            ranks = [rank(decode_key(key)) for key in record["keys"]]
            assert ranks == sorted(ranks)
        elif record["type"] == "compare":
            left, right = rank(decode_key(record["a"])), rank(decode_key(record["b"]))
            assert (left > right) - (left < right) == record["cmp"], record["id"]


# ----------------------------------------------------------------------- what the corpus does not cover


def entities(**values: Any) -> Model:
    return Model(Entity(Key("K", name), properties) for name, properties in values.items())


def names(model: Model, query: Query) -> list[str]:
    return [str(row.key.name) for row in model.run(query)]


def test_or_is_a_union_in_order() -> None:
    from aiodatastore.query import And, Or, PropertyFilter

    model = entities(a={"x": 1, "y": 9}, b={"x": 2, "y": 8}, c={"x": 3, "y": 1}, d={"x": 4})
    query = Query("K").filter(Or(PropertyFilter("x", "=", 1), PropertyFilter("y", "<", 9)))
    assert names(model, query) == ["a", "b", "c"]
    assert names(model, query.order("-x")) == ["c", "b", "a"]
    both = Query("K").filter(
        Or(And(PropertyFilter("x", ">", 1), PropertyFilter("y", ">", 1)), PropertyFilter("x", "=", 4))
    )
    assert names(model, both) == ["b", "d"]


def test_not_in_is_met_by_one_element() -> None:
    model = entities(a={"x": [1, 2]}, b={"x": [1, 5]}, c={"x": 3}, d={})
    assert names(model, Query("K").filter("x", "not in", [1, 2]).order("x")) == ["c", "b"]
    assert names(model, Query("K").filter("x", "not in", [1, 3]).filter("x", "<", 5)) == ["a"]


def test_inequalities_on_several_properties() -> None:
    model = entities(a={"x": 1, "y": 3}, b={"x": 2, "y": 2}, c={"x": 3, "y": 1}, d={"x": 4})
    assert names(model, Query("K").filter("x", ">", 1).filter("y", ">", 0)) == ["b", "c"]
    assert names(model, Query("K").filter("x", ">", 1).filter("y", ">", 0).order("y")) == ["c", "b"]


def test_merged_projection_shows_the_same_values_of_an_entity_once() -> None:
    model = entities(a={"x": 1, "y": [1, 2], "z": [7, 8]})
    plain = Query("K").project("x").filter("y", ">", 0)
    assert len(model.run(plain)) == 2
    assert len(model.run(plain.filter("z", "in", [7, 8]))) == 1


def test_embedded_values_are_found_under_dotted_names() -> None:
    entity = Entity(
        Key("K", 1),
        {
            "in": {"a": 1, "b": [2, 3], "z": 9},
            "out": {"a": 4},
            "ent": Entity(Key("E", 1), {"c": 5, "d": 6}, unindexed=["d"]),
            "many": [{"e": 7}, {"e": 8}],
        },
        unindexed=["out", "in.z"],
    )
    values = {name: list(found.values()) for name, found in indexed_values(entity).items()}
    assert values == {
        "in.a": [1], "in.b": [2, 3], "ent.c": [5], "many.e": [7, 8], "__key__": [Key("K", 1)],
    }  # fmt: skip


def test_same_is_strict() -> None:
    assert same(float("nan"), float("nan"))
    assert not same(0.0, -0.0)
    assert not same(True, 1)
    assert not same(1, 1.0)
    assert not same(Text("a"), "a")
    assert not same(Blob(b"a"), b"a")
    assert same([1, {"a": [GeoPoint(1, 2)]}], [1, {"a": [GeoPoint(1, 2)]}])
    assert not same({"a": 1}, {"a": True})


def test_falling_ranks_sort_backwards() -> None:
    assert sorted([Falling((1,)), Falling((3,)), Falling((2,))]) == [
        Falling((3,)),
        Falling((2,)),
        Falling((1,)),
    ]


def test_a_model_shares_nothing_with_its_callers() -> None:
    entity = Entity(Key("K", 1), {"x": [1]})
    model = Model([entity])
    entity["x"].append(2)
    found = model.get(Key("K", 1))
    assert found is not None
    assert found["x"] == [1]
    found["x"].append(3)
    again = model.get(Key("K", 1))
    assert again is not None
    assert again["x"] == [1]


def test_unreadable_values_are_refused() -> None:
    with pytest.raises(TypeError, match="no place in the order"):
        rank(object())
