"""``query`` and ``get``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]


def keys(result: Any) -> list[str]:
    return [row[0] for row in result.rows[1:]]


def test_a_plain_table_in_a_pipe(run: Run, url: str) -> None:
    result = run("query", url, "Person", "--order", "-born")
    assert result.rows == [
        ["key", "name", "born", "tags"],
        ["/Person:eve", "Eve", "1990", "[]"],
        ["/Person:bob", "Bob", "1950", "[math]"],
        ["/Person:ada", "Ada", "1815", "[math, poetry]"],
    ]
    assert result.err == "3 results\n"


def test_a_cell_is_empty_where_an_entity_lacks_the_property(run: Run, url: str) -> None:
    result = run("query", url)
    assert result.rows[0] == ["key", "name", "born", "tags", "title", "done"]
    assert result.rows[2] == ["/Person:ada/Task:1", "", "", "", "Note G", "false"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["-f", "born < 1900"], ["/Person:ada"]),
        (["--filter", "tags = math", "--filter", "born > 1900"], ["/Person:bob"]),
        (["-f", 'tags = ["math", "poetry"]'], ["/Person:ada"]),
        (["-f", "name in Ada,Eve"], ["/Person:ada", "/Person:eve"]),
        (["-f", "name != Bob"], ["/Person:ada", "/Person:eve"]),
        (["-f", "__key__ > /Person:ada"], ["/Person:bob", "/Person:eve"]),
        (["--any", "name = Ada", "--any", "born > 1980"], ["/Person:ada", "/Person:eve"]),
        (["-o", "-name"], ["/Person:eve", "/Person:bob", "/Person:ada"]),
        (["-o", "tags,-born"], ["/Person:eve", "/Person:bob", "/Person:ada"]),
        (["--offset", "1"], ["/Person:bob", "/Person:eve"]),
        (["--limit", "2"], ["/Person:ada", "/Person:bob"]),
        (["--ancestor", "/Person:ada"], ["/Person:ada"]),
        (["--all"], ["/Person:ada", "/Person:bob", "/Person:eve"]),
    ],
)
def test_conditions(run: Run, url: str, options: list[str], wanted: list[str]) -> None:
    assert sorted(keys(run("query", url, "Person", *options))) == sorted(wanted)
    if any(option in ("-o", "--limit", "--offset") for option in options):
        assert keys(run("query", url, "Person", *options)) == wanted


def test_under_an_ancestor_without_a_kind(run: Run, url: str) -> None:
    result = run("query", url, "--ancestor", "/Person:ada", "--keys-only")
    assert result.rows == [["key"], ["/Person:ada"], ["/Person:ada/Task:1"], ["/Person:ada/Task:2"]]


def test_a_namespace(run: Run, url: str) -> None:
    assert keys(run("query", url, "Item", "--namespace", "shop")) == ["shop/Item:1"]
    assert keys(run("query", url, "Item")) == []
    assert keys(run("query", url, "--namespace", "shop", "-f", "__key__ >= /Item:1")) == ["shop/Item:1"]


def test_projections(run: Run, url: str) -> None:
    result = run("query", url, "Person", "--project", "tags", "--distinct")
    assert [row[1] for row in result.rows] == ["tags", "null", "math", "poetry"]
    run("query", url, "Person", "--distinct", code=2)


def test_pages_by_cursor(run: Run, url: str) -> None:
    first = run("query", url, "Person", "-n", "2")
    assert keys(first) == ["/Person:ada", "/Person:bob"]
    assert "2 results, and more" in first.err
    cursor = first.err.split("--cursor ")[1].split()[0]
    second = run("query", url, "Person", "-n", "2", "--cursor", cursor)
    assert keys(second) == ["/Person:eve"]
    assert second.err == "1 result\n"
    assert "another query" in run("query", url, "Task", "--cursor", cursor, code=1).err
    assert "error:" in run("query", url, "Person", "--cursor", "junk", code=1).err


def test_a_table_shows_a_hundred(run: Run, url: str) -> None:
    lines = "".join(f'{{"key": "/N:{i}", "properties": {{"i": {i}}}}}\n' for i in range(1, 131))
    run("import", url, "-", stdin=lines)
    result = run("query", url, "N")
    assert len(result.rows) == 101
    assert "100 results, and more" in result.err
    assert "(or --all)" in result.err
    assert len(run("query", url, "N", "--all").rows) == 131
    assert len(run("query", url, "N", "--json").lines) == 130
    assert len(run("query", url, "N", "-n", "120").rows) == 121


def test_json_lines_can_be_imported(run: Run, url: str, tmp_path: Any) -> None:
    result = run("query", url, "Person", "--order", "born", "--json")
    assert [line["properties"]["name"] for line in result.lines] == ["Ada", "Bob", "Eve"]
    other = f"sqlite:///{tmp_path}/other.db"
    run("import", other, "-", stdin=result.out)
    assert run("query", other, "Person", "--order", "born", "--format", "jsonl").out == result.out


def test_keys_and_projections_can_not_be_imported(run: Run, url: str) -> None:
    for options in (["--keys-only"], ["--project", "name"]):
        result = run("query", url, "Person", "--json", *options)
        assert "line 1" in run("import", url, "-", stdin=result.out, code=1).err


def test_a_page_of_json_lines_has_a_cursor(run: Run, url: str) -> None:
    first = run("query", url, "Person", "--json", "-n", "2")
    cursor = first.err.split("--cursor ")[1].strip()
    second = run("query", url, "Person", "--json", "--cursor", cursor)
    assert [line["key"] for line in second.lines] == ["/Person:eve"]
    assert second.err == ""


def test_count(run: Run, url: str) -> None:
    assert run("query", url, "Person", "--count").out == "3\n"
    assert run("query", url, "Person", "--count", "-f", "born > 1900", "--json").json == {"count": 2}
    assert run("query", url, "Person", "--count", "-n", "2").out == "2\n"


def test_explain(run: Run, url: str) -> None:
    plan = run("query", url, "Person", "-f", "tags = math", "-o", "-born", "--explain").out
    assert "would be served by:" in plan
    assert "- kind: Person" in plan
    analyzed = run("query", url, "Person", "-f", "born > 1900", "--analyze", "--json").json
    assert analyzed["plan"]
    assert analyzed["needs_index"] is None


def test_get(run: Run, url: str) -> None:
    result = run("get", url, "/Person:ada")
    assert result.rows[0][0].startswith("/Person:ada  (version ")
    assert result.rows[1:] == [
        ["property", "value", "type"],
        ["name", "Ada", "str"],
        ["born", "1815", "int"],
        ["tags", "[math, poetry]", "list"],
    ]


def test_get_several_as_json(run: Run, url: str) -> None:
    result = run("get", url, "/Person:eve", "/Person:nobody", "/Person:ada", "--json", code=3)
    assert [line["key"] for line in result.lines] == ["/Person:eve", "/Person:ada"]
    assert result.err == "not found: /Person:nobody\n"


def test_get_by_urlsafe_key_and_namespace(run: Run, url: str) -> None:
    from aiodatastore.key import Key

    assert run("get", url, Key("Person", "ada").to_urlsafe(), "--json").lines[0]["key"] == "/Person:ada"
    assert run("get", url, "/Item:1", "--namespace", "shop", "--json").lines[0]["key"] == "shop/Item:1"
    assert "expected one like" in run("get", url, "ada", code=2).err
    assert "incomplete" in run("get", url, "/Person", code=1).err


def test_control_characters_do_not_reach_the_terminal(run: Run, url: str) -> None:
    run("put", url, "/Evil:1", "text=str:a\tb\n\x1b[31mred\u2028")
    assert "a\\tb\\n\\u001b[31mred\\u2028" in run("get", url, "/Evil:1").out


def test_every_type_is_shown(run: Run, url: str) -> None:
    run(
        "put",
        url,
        "/All:1",
        "a=null",
        "b=1.0",
        "c=bytes:AAE=",
        "d=datetime:2020-01-01",
        "e=point:1,2",
        "f=key:/A:1",
        'g={"x": [1, {"$bytes": "AA=="}]}',
        "h=text:long",
        "i=float:nan",
    )
    shown = {row[0]: row[1] for row in run("get", url, "/All:1").rows[2:]}
    assert shown == {
        "a": "null",
        "b": "1.0",
        "c": "bytes:AAE=",
        "d": "2020-01-01T00:00:00Z",
        "e": "1.0,2.0",
        "f": "/A:1",
        "g": "{x: [1, bytes:AA==]}",
        "h": "long",
        "i": "nan",
    }


def test_a_store_that_does_not_exist_is_not_created(run: Run, tmp_path: Any) -> None:
    missing = tmp_path / "typo.db"
    for command in (
        ["query", "A"], ["get", "/A:1"], ["stats"], ["check"], ["export", "-"], ["indexes", "list"],
    ):  # fmt: skip
        position = 2 if command[0] == "indexes" else 1
        arguments = [*command[:position], f"sqlite:///{missing}", *command[position:]]
        assert "there is no store" in run(*arguments, code=1).err
        assert not missing.exists()


def test_wrong_urls(run: Run) -> None:
    for wrong in ("nonsense", "ftp://x", "sqlite:"):
        result = run("stats", wrong, code=1)
        assert result.err.startswith(("error:", "Error:"))
        assert len(result.err.splitlines()) <= 2
