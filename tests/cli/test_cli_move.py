"""``import``, ``export`` and ``copy``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiodatastore.errors import UnavailableError

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress files of copies go to the current folder."""
    monkeypatch.chdir(tmp_path)


def test_there_and_back(run: Run, url: str, tmp_path: Path) -> None:
    assert "exported 6 entities" in run("export", url, tmp_path / "all.jsonl").err
    other = "sqlite:///other.db"
    report = run("import", other, tmp_path / "all.jsonl", "--json").json
    assert (report["entities"], report["truncated"]) == (6, False)
    run("export", other, tmp_path / "again.jsonl")
    first, again = ((tmp_path / name).read_text().splitlines()[1:] for name in ("all.jsonl", "again.jsonl"))
    assert again == first
    assert sorted(path.name for path in tmp_path.iterdir() if "progress" in path.name) == []


def test_export_to_a_pipe(run: Run, url: str) -> None:
    result = run("export", url, "-", "--kind", "Person")
    assert [line.get("key") for line in result.lines] == [
        None,
        "/Person:ada",
        "/Person:bob",
        "/Person:eve",
        None,
    ]
    assert [line["key"] for line in run("export", url, "-", "--namespace", "shop").lines[1:-1]] == ["shop/Item:1"]


def test_export_does_not_overwrite(run: Run, url: str, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    run("export", url, path)
    whole = path.read_bytes()
    assert "--resume, or --overwrite" in run("export", url, path, code=2).err
    path.write_bytes(whole[:300])
    run("export", url, path, "--resume")
    assert path.read_bytes() == whole
    path.write_bytes(b"junk\n")
    assert "line 1" in run("export", url, path, "--resume", code=1).err
    run("export", url, path, "--overwrite")
    assert path.read_bytes() == whole


def test_a_truncated_export_is_reported(run: Run, url: str, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    run("export", url, path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert "cut short" in run("import", "sqlite:///other.db", path).err


def test_an_import_names_the_line_and_resumes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    good = [f'{{"key": "/N:{i}", "properties": {{"i": {i}}}}}' for i in range(1, 31)]
    path.write_text("\n".join([*good[:25], "oops", *good[25:]]))
    result = run("import", "sqlite:///n.db", path, "--batch", "10", code=1)
    assert result.err.startswith(f"error: {path}, line 26: not JSON")
    assert (tmp_path / "n.jsonl.progress").exists()
    path.write_text("\n".join(good))
    resumed = run("import", "sqlite:///n.db", path, "--resume", "--json").json
    assert (resumed["resumed"], resumed["entities"]) == (20, 10)
    assert run("query", "sqlite:///n.db", "N", "--count").out == "30\n"
    assert "nothing to resume" in run("import", "sqlite:///n.db", path, "--resume", code=1).err


def test_standard_input_is_not_resumed(run: Run, url: str) -> None:
    assert "can't be resumed" in run("import", url, "-", "--resume", code=2).err
    assert "need a file" in run("export", url, "-", "--resume", code=2).err
    assert "does not exist" in run("import", url, "nothing.jsonl", code=2).err


def test_copy_and_verify(run: Run, url: str) -> None:
    result = run("copy", url, "sqlite:///copy.db", "--verify")
    assert "copied 6 entities" in result.err
    assert re.search(r"verified 6 in \S+ s, 0 differ", result.err)
    report = run("copy", url, "sqlite:///copy.db", "--kind", "Task", "--json").json
    assert report["entities"] == 2
    assert run("export", "sqlite:///copy.db", "-").lines[1:] == run("export", url, "-").lines[1:]


def test_compare(run: Run, url: str) -> None:
    copy = "sqlite:///copy.db"
    run("copy", url, copy)
    result = run("compare", url, copy)
    assert result.out == ""
    assert "the same: 6 and 6 entities" in result.err
    run("put", copy, "/Person:ada", "name=Ada", "born=1815.0", 'tags=["math", "poetry"]')
    run("delete", copy, "/Person:bob")
    run("put", copy, "/Person:joe", "name=Joe")
    run("indexes", "build", copy, "--index", "Person name -born")
    result = run("compare", url, copy, code=1)
    assert result.out.splitlines() == ["different /Person:ada", "missing /Person:bob", "extra /Person:joe"]
    assert "the source lacks the index of Person by name, -born" in result.err
    assert "not the same: 6 and 6 entities" in result.err
    assert "1 missing, 1 different, 1 extra, 1 problems of indexes" in result.err
    report = run("compare", url, copy, "--json", code=1).json
    assert (report["same"], report["missing"], report["different"], report["extra"]) == (False, 1, 1, 1)
    assert report["differences"][0] == ["different", "/Person:ada"]
    assert run("compare", url, copy, "--kind", "Task", "--no-indexes", "--json").json["same"] is True
    assert run("compare", url, copy, "--namespace", "shop", "--no-indexes", "--json").json["source_entities"] == 1
    assert "the same store" in run("compare", url, url, code=2).err
    assert "there is no store" in run("compare", url, "sqlite:///nowhere.db", code=1).err


def test_what_the_target_has_besides_is_told_and_no_difference_of_a_copy(run: Run, url: str) -> None:
    run("put", "sqlite:///copy.db", "/Person:joe", "name=Joe")
    result = run("copy", url, "sqlite:///copy.db", "--verify")
    assert re.search(r"verified 6 in \S+ s, 0 differ; the target has 1 besides", result.err)


def test_copy_takes_indexes_along(run: Run, url: str) -> None:
    run("indexes", "build", url, "--index", "Person tags -born")
    run("copy", url, "sqlite:///copy.db")
    assert run("indexes", "list", "sqlite:///copy.db", "--json").json[0]["state"] == "SERVING"
    run("copy", url, "sqlite:///bare.db", "--no-indexes")
    assert run("indexes", "list", "sqlite:///bare.db", "--json").json == []


def test_copy_onto_itself_is_wrong_usage(run: Run, url: str) -> None:
    assert "the same store" in run("copy", url, url, code=2).err


def test_a_copy_resumes(run: Run, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from aiodatastore.transfer.writing import Writer

    put = Writer._put

    async def fail(self: Writer, batch: Any) -> None:
        await put(self, batch)
        if batch.entities[0].key.namespace:
            raise UnavailableError("unplugged")

    monkeypatch.setattr(Writer, "_put", fail)
    result = run("copy", url, "sqlite:///copy.db", code=1)
    assert result.err.startswith("error: unplugged\n  (up to key shop/Item:1)")
    assert len(list(tmp_path.glob("*.progress"))) == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    report = run("copy", url, "sqlite:///copy.db", "--resume", "--verify", "--json").json
    assert (report["resumed"], report["entities"], report["different"]) == (5, 1, 0)
    assert not list(tmp_path.glob("*.progress"))
