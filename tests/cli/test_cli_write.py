"""``put`` and ``delete``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Run = Callable[..., Any]


def properties(run: Run, url: str, key: str) -> Any:
    return run("get", url, key, "--json").lines[0]["properties"]


def test_put_creates_the_store(run: Run, tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    result = run("put", url, "/Person:ada", "name=Ada", "born=1815", 'tags=["math"]')
    assert result.out == "/Person:ada\n"
    assert properties(run, url, "/Person:ada") == {"name": "Ada", "born": 1815, "tags": ["math"]}


def test_put_replaces_and_merge_does_not(run: Run, url: str) -> None:
    run("put", url, "/Person:ada", "born=1", "--unindexed", "born")
    assert properties(run, url, "/Person:ada") == {"born": 1}
    run("put", url, "/Person:ada", "name=Ada", "--merge")
    assert properties(run, url, "/Person:ada") == {"born": 1, "name": "Ada"}
    assert run("get", url, "/Person:ada", "--json").lines[0]["unindexed"] == ["born"]
    run("put", url, "/Person:ada", "born=2", "--merge")
    assert "unindexed" not in run("get", url, "/Person:ada", "--json").lines[0]
    run("put", url, "/Person:new", "born=2", "--merge")
    assert properties(run, url, "/Person:new") == {"born": 2}


def test_an_incomplete_key_gets_an_id(run: Run, url: str) -> None:
    key = run("put", url, "/Person:ada/Task", "title=New", "--json").json["keys"][0]
    assert key.startswith("/Person:ada/Task:")
    assert key not in ("/Person:ada/Task:1", "/Person:ada/Task:2")
    assert properties(run, url, key) == {"title": "New"}


def test_insert_and_update(run: Run, url: str) -> None:
    assert "error:" in run("put", url, "/Person:ada", "x=1", "--insert", code=1).err
    assert "error:" in run("put", url, "/Person:nobody", "x=1", "--update", code=1).err
    run("put", url, "/Person:nobody", "x=1", "--insert")
    run("put", url, "/Person:nobody", "x=2", "--update")
    assert properties(run, url, "/Person:nobody") == {"x": 2}


def test_put_lines(run: Run, url: str) -> None:
    lines = '{"key": "/A:1", "properties": {"x": 1}}\n\n{"key": "/A", "properties": {}}\n'
    result = run("put", url, stdin=lines)
    assert result.out.splitlines()[0] == "/A:1"
    assert result.out.splitlines()[1].startswith("/A:")
    assert run("put", url, "-", stdin="").out == ""


def test_lines_are_put_together_or_not_at_all(run: Run, url: str) -> None:
    lines = '{"key": "/A:1", "properties": {}}\n{"key": "/Person:ada", "properties": {}}\n'
    run("put", url, "--insert", stdin=lines, code=1)
    run("get", url, "/A:1", code=3)
    assert "line 2: not JSON" in run("put", url, stdin='{"key": "/A:1", "properties": {}}\n{', code=1).err
    run("get", url, "/A:1", code=3)


def test_wrong_usage_of_put(run: Run, url: str) -> None:
    assert "name=value" in run("put", url, "/A:1", "x", code=2).err
    assert "go with a KEY" in run("put", url, "-", "x=1", code=2).err
    assert "go with a KEY" in run("put", url, "--merge", code=2).err
    assert "reserved" in run("put", url, "/A:1", "__x__=1", code=1).err


def test_delete_keys(run: Run, url: str) -> None:
    assert run("delete", url, "/Person:ada", "/Person:nobody", "--json").json == {"deleted": 2}
    run("get", url, "/Person:ada", code=3)
    run("get", url, "/Person:ada/Task:1")


def test_delete_a_kind(run: Run, url: str) -> None:
    assert "Say --yes" in run("delete", url, "--kind", "Person", code=2).err
    assert run("delete", url, "--kind", "Person", "-f", "born > 1900", "-y").err == "deleted 2\n"
    assert run("query", url, "Person", "--count").out == "1\n"
    assert run("delete", url, "--kind", "Item", "--yes").err == "deleted 0\n"
    assert run("delete", url, "--kind", "Item", "--namespace", "shop", "--yes").err == "deleted 1\n"


def test_delete_a_large_kind(run: Run, url: str) -> None:
    lines = "".join(f'{{"key": "/N:{i}", "properties": {{"i": {i}}}}}\n' for i in range(1, 1201))
    run("import", url, "-", stdin=lines)
    assert run("delete", url, "--kind", "N", "--yes", "--json").json == {"deleted": 1200}
    assert run("check", url).err == "indexes and entities agree\n"


def test_wrong_usage_of_delete(run: Run, url: str) -> None:
    assert "either keys, or --kind" in run("delete", url, code=2).err
    assert "either keys, or --kind" in run("delete", url, "/A:1", "--kind", "A", code=2).err
    assert "conditions go with --kind" in run("delete", url, "/A:1", "-f", "x = 1", code=2).err
