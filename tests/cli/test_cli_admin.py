"""``check``, ``stats``, ``bench``, help and errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]

COMMANDS = [
    ["query"],
    ["get"],
    ["put"],
    ["delete"],
    ["import"],
    ["export"],
    ["copy"],
    ["check"],
    ["stats"],
    ["indexes"],
    ["indexes", "list"],
    ["indexes", "build"],
    ["indexes", "delete"],
    ["indexes", "suggest"],
    ["rebalance"],
    ["explain"],
]


def test_stats(run: Run, url: str) -> None:
    result = run("stats", url)
    assert result.rows[0] == ["project", "namespace", "kind", "entities", "bytes", "index_rows"]
    assert [row[1:4] for row in result.rows[1:]] == [
        ["", "Person", "3"],
        ["", "Task", "2"],
        ["shop", "Item", "1"],
    ]
    assert result.err.startswith("6 entities, ")
    assert {row["kind"]: row["entities"] for row in run("stats", url, "--json").json["kinds"]} == {
        "Person": 3,
        "Task": 2,
        "Item": 1,
    }


def test_check_finds_damage(run: Run, url: str) -> None:
    assert run("check", url).err == "indexes and entities agree\n"
    with sqlite3.connect(url.removeprefix("sqlite:///")) as raw:
        raw.execute("DELETE FROM rows WHERE row = (SELECT row FROM rows LIMIT 1)")
    raw.close()
    assert run("check", url, code=1).out.strip()
    assert len(run("check", url, "--json", code=1).json["problems"]) == 1


def test_a_damaged_store_is_one_line(run: Run, tmp_path: Any) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(b"this is no database" * 100)
    result = run("stats", f"sqlite:///{path}", code=1)
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches(run: Run, command: list[str]) -> None:
    text = run(*command, "--help").out
    assert text.startswith("Usage: aiodatastore " + " ".join(command))
    if command[-1] not in ("check", "stats", "list", "build", "delete") or command == ["delete"]:
        assert "Examples:" in text
    assert run(*command, "-h").out == text


def test_help_and_version(run: Run) -> None:
    text = run("--help").out
    assert "A first session:" in text
    for command in COMMANDS:
        assert f"  {command[0]} " in text
    assert run("--version").out.startswith("aiodatastore, version ")
    assert "Usage:" in run(code=2).err


def test_wrong_usage_is_short(run: Run, url: str) -> None:
    for arguments in (["querry", url], ["query", url, "A", "--nonsense"], ["query"], ["get", url]):
        result = run(*arguments, code=2)
        assert result.err.splitlines()[-1].startswith("Error: ")
        assert result.out == ""


def test_bench(run: Run, url: str) -> None:
    before = run("stats", url, "--json").json["kinds"]
    result = run("bench", url, "--size", "tiny", "--only", "get")
    assert "Get by key" in result.out
    assert run("stats", url, "--json").json["kinds"] == before
    assert "Usage: aiodatastore bench" in run("bench", "--help").out
    assert "No such option" in run("bench", url, "--nonsense", code=2).err
