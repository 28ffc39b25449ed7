"""``explain``, and composed URLs in the other commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import PEOPLE, Run


def test_a_store_and_a_shim(run: Run, tmp_path: Path) -> None:
    url = f"read_only:sqlite:///{tmp_path}/people.db"
    lines = run("explain", url).out.splitlines()
    assert lines[0] == "read_only"
    assert lines[1] == f"└── sqlite:///{tmp_path}/people.db"
    assert any(line.split()[:2] == ["durable", "yes"] for line in lines)
    assert any(line.split()[:3] == ["ttl", "no", f"sqlite:///{tmp_path}/people.db"] for line in lines)
    assert list(tmp_path.iterdir()) == []  # nothing was opened


def test_as_json(run: Run) -> None:
    found = run("explain", "timeout{seconds=2}:memory://", "--json").json
    assert found["tree"]["name"] == "timeout"
    assert found["tree"]["settings"]["seconds"] == "2.0"
    assert found["tree"]["children"][0]["url"] == "memory://"
    assert found["capabilities"]["durable"] == {"has": False, "lost_by": ["memory://"]}


def test_opening(run: Run, tmp_path: Path) -> None:
    run("explain", f"timeout{{seconds=60}}:sqlite:///{tmp_path}/new.db", "--open")
    assert tmp_path.joinpath("new.db").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense:memory://", "character 1: there is no shim 'nonsense'"),
        (
            "read_only:timeout{seconds=x}:memory://",
            "timeout (character 11), seconds at character 19: expected a number",
        ),
        ("read_only:memory://hunter2", "character 11: memory://"),
        ("read_only:", "a store is named by a URL"),
        ("toml:///no/such/file.toml", "no/such/file.toml: No such file"),
    ],
)
def test_refusals_say_where(run: Run, url: str, message: str) -> None:
    error = run("explain", url, code=1).err
    assert message in error
    assert "hunter2" not in error


def test_commands_take_composed_urls(run: Run, tmp_path: Path) -> None:
    url = f"timeout{{seconds=30}}:sqlite:///{tmp_path}/people.db"
    for command in (("query", url, "Person"), ("stats", url), ("export", url, tmp_path / "x.jsonl")):
        assert "there is no store at sqlite:///" in run(*command, code=1).err
    run("import", url, "-", stdin=PEOPLE)
    assert run("query", url, "Person", "--count").out == "3\n"
    assert run("get", url, "/Person:ada", "--json").json["properties"]["name"] == "Ada"
    run("export", url, tmp_path / "people.jsonl")
    copied = f"timeout{{seconds=30}}:sqlite:///{tmp_path}/copy.db"
    run("copy", url, copied, "--verify")
    assert run("check", copied).code == 0
    run("compare", url, f"sqlite:///{tmp_path}/copy.db")
    assert "read" in run("put", f"read_only:sqlite:///{tmp_path}/copy.db", "/Person:zoe", "name=Zoe", code=1).err
    tmp_path.joinpath("store.toml").write_text(f"[store]\nuse = 'read_only'\nchild = '{url}'\n", encoding="utf-8")
    assert run("query", f"toml:///{tmp_path}/store.toml", "Person", "--count").out == "3\n"
