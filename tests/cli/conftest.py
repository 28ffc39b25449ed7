"""Running the command line in this process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aiodatastore.cli import main


@dataclass(frozen=True)
class Result:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def rows(self) -> list[list[str]]:
        """A plain table."""
        return [line.split("\t") for line in self.out.splitlines()]


Run = Callable[..., Result]


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("get", url, "/A:1", stdin="...")``; ``code`` is the expected exit code."""

    def run_it(*arguments: object, stdin: str = "", code: int = 0) -> Result:
        capsysbinary.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
        returned = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        result = Result(returned, out.decode(), err.decode())
        assert returned == code, result
        assert "Traceback" not in result.err
        return result

    return run_it


PEOPLE = """\
{"key": "/Person:ada", "properties": {"name": "Ada", "born": 1815, "tags": ["math", "poetry"]}}
{"key": "/Person:bob", "properties": {"name": "Bob", "born": 1950, "tags": ["math"]}}
{"key": "/Person:eve", "properties": {"name": "Eve", "born": 1990, "tags": []}}
{"key": "/Person:ada/Task:1", "properties": {"title": "Note G", "done": false}}
{"key": "/Person:ada/Task:2", "properties": {"title": "Bernoulli", "done": true}}
{"key": "shop/Item:1", "properties": {"price": 2.5}}
"""


@pytest.fixture
def url(tmp_path: Path, run: Run) -> str:
    """A store with a few entities."""
    store = f"sqlite:///{tmp_path}/people.db"
    run("import", store, "-", stdin=PEOPLE)
    return store
