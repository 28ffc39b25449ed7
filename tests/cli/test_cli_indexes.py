"""``indexes``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]

QUERY = ("Person", "--filter", "tags = math", "--order", "-born")
YAML = "- kind: Person\n  properties:\n  - name: tags\n  - name: born\n    direction: desc\n"


def test_suggest_build_list_delete(run: Run, url: str, tmp_path: Path) -> None:
    assert run("indexes", "suggest", *QUERY).out == YAML
    path = tmp_path / "index.yaml"
    path.write_text(f"indexes:\n{YAML}")
    assert run("indexes", "build", url, path).err == "SERVING Person(tags, -born)\n"
    assert run("indexes", "build", url, path).err == "SERVING Person(tags, -born)\n"
    listed = run("indexes", "list", url)
    assert listed.rows[0][:3] == ["number", "index", "state"]
    assert listed.rows[1][1:3] == ["Person(tags, -born)", "SERVING"]
    assert run("indexes", "list", url, "--yaml").out == f"indexes:\n\n{YAML}"
    result = run("indexes", "suggest", url, *QUERY)
    assert (result.out, result.err) == ("", "no index is missing\n")
    assert "would be served by" not in run("query", url, *QUERY, "--explain").out
    assert run("check", url).err == "indexes and entities agree\n"
    assert run("indexes", "delete", url, path).err == "deleted Person(tags, -born)\n"
    assert run("indexes", "list", url, "--json").json == []
    assert run("check", url).err == "indexes and entities agree\n"


def test_suggest_minimal(run: Run, url: str) -> None:
    run("indexes", "build", url, "--index", "Person tags -born")
    query = (url, *QUERY, "-f", "name = Ada")
    assert [d["properties"][0][0] for d in run("indexes", "suggest", *query, "--json").json] == ["name"]
    assert len(run("indexes", "suggest", *query, "--json").json[0]["properties"]) == 3
    assert run("indexes", "suggest", *query, "--minimal", "--json").json == [
        {"kind": "Person", "ancestor": False, "properties": [["name", "asc"], ["born", "desc"]]}
    ]


def test_suggest_for_alternatives(run: Run) -> None:
    result = run("indexes", "suggest", "A", "--any", "x = 1", "--any", "y = 1", "-o", "z")
    assert result.out.count("- kind: A") == 2


def test_suggest_from_a_log(run: Run, url: str, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    indented = "".join(f"    {line}\n" for line in YAML.splitlines())
    log.write_text(
        "12:00 INFO started\n"
        f"12:01 WARNING a query runs without its composite index; this one would serve it:\n{YAML}"
        f"12:02 WARNING again:\n{YAML}"
        "12:03 ERROR NeedIndexError: add to index.yaml:\n"
        f"{indented.replace('Person', 'Other')}"
        "- kind: of strange\n"
        "12:04 INFO stopped\n"
    )
    result = run("indexes", "suggest", "--log", log)
    assert result.out == f"{YAML}\n{YAML.replace('Person', 'Other')}"
    run("indexes", "build", url, "--index", "Other tags -born")
    assert run("indexes", "suggest", url, "--log", log).out == YAML
    assert run("indexes", "suggest", "--log", "-", stdin=log.read_text()).out == result.out


def test_the_warning_of_a_query_can_be_fed_back(run: Run, url: str, caplog: Any) -> None:
    run("query", url, *QUERY)
    assert run("indexes", "suggest", "--log", "-", stdin=caplog.text).out == YAML


def test_build_from_standard_input_and_of_an_ancestor(run: Run, url: str) -> None:
    run("indexes", "build", url, "-", stdin=YAML)
    run("indexes", "build", url, "--index", "Task done title", "--ancestor")
    assert [row["ancestor"] for row in run("indexes", "list", url, "--json").json] == [False, True]
    run("indexes", "delete", url, "--number", "1")
    assert [row["kind"] for row in run("indexes", "list", url, "--json").json] == ["Task"]
    assert run("indexes", "build", url).err == "nothing to build\n"


def test_wrong_usage(run: Run, url: str, tmp_path: Path) -> None:
    for wrong in ([], [url], [url, "A", "--log", "-"], ["A", "B"], [url, url, "A"]):
        assert "either a KIND" in run("indexes", "suggest", *wrong, code=2).err
    assert "say which" in run("indexes", "delete", url, code=2).err
    assert "no such index" in run("indexes", "delete", url, "--number", "7", code=1).err
    assert "no such index" in run("indexes", "delete", url, "--index", "A x", code=1).err
    assert "expected a kind and its properties" in run("indexes", "build", url, "--index", "A", code=2).err
    path = tmp_path / "index.yaml"
    path.write_text("indexes:\n- kind: A\n")
    assert f"{path}, line 2" in run("indexes", "build", url, path, code=1).err
