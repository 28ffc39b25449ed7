"""Every example of the README, the documentation and the docstrings runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import warnings
from pathlib import Path

import pytest

import aiodatastore
from tests.docs.fences import ROOT, Block, blocks, pages, run_page

PAGES = list(pages())
SHOWN_ONLY = {"sh", "console", "text", "yaml", "toml", "json", "http", "sql", ""}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language in ("python", "shell") for b in blocks(page))], ids=name
)
def test_examples_run_and_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_of_a_language_that_is_run_or_meant_to_be_read(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= SHOWN_ONLY | {"python", "shell"}
    for block in blocks(page):
        if block.language == "sh":
            command = block.body.startswith("aiodatastore") and not block.body.startswith("aiodatastore bench")
            assert not command, f"line {block.line}: commands that can run should"


MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(aiodatastore.__path__, "aiodatastore.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("module", ["aiodatastore", *MODULES])
def test_docstring_examples_run(module: str) -> None:
    found = importlib.import_module(module)
    failed, _ = doctest.testmod(found, optionflags=doctest.ELLIPSIS, extraglobs=_names())
    assert failed == 0


def _names() -> dict[str, object]:
    return {each: getattr(aiodatastore, each) for each in aiodatastore.__all__}


def test_a_wrong_output_and_a_missing_error_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n1\n```\n")
    run_page(page, tmp_path)
    assert blocks(page) == [Block("python", "print(1)\n", 2, "1\n")]
    page.write_text("```python\nprint(1)\n```\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="prints"):
        run_page(page, tmp_path)
    page.write_text("```python\nx = 1  # raises ValueError\n```\n")
    with pytest.raises(AssertionError, match="did not raise"):
        run_page(page, tmp_path)
    page.write_text("```python\nint('x')  # raises ValueError\nimport asyncio\nawait asyncio.sleep(0)\n```\n")
    run_page(page, tmp_path)
    page.write_text("```shell\nexit 3\n```\n")
    with pytest.raises(AssertionError):
        run_page(page, tmp_path)
