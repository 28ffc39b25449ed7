"""What the documentation lists is what there is."""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import aiodatastore
from aiodatastore import errors
from docs._tools import capabilities
from tests.docs.fences import ROOT

DOCS = ROOT / "docs"
REFERENCE = "".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("reference*.md")))
DIRECTIVES = dict(re.findall(r"^::: (\S+)\n(?: +options: (.*))?", REFERENCE, re.MULTILINE))

INTERNAL = set(re.findall(r"`([\w.*]+)`", REFERENCE.partition("## Inside")[2].partition("# Reference")[0]))


def modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(aiodatastore.__path__, "aiodatastore."):
        if not module.name.endswith("__main__"):
            yield module.name


def described(module: str, name: str) -> bool:
    """Whether a directive shows this name."""
    if f"{module}.{name}" in DIRECTIVES:
        return True
    options = DIRECTIVES.get(module)
    if options is None:
        return False
    members = yaml.safe_load(options).get("members") if options else None
    return members is None or name in members


def test_every_name_of_the_package_is_in_the_reference() -> None:
    missing = [
        name
        for name in aiodatastore.__all__
        if name != "__version__"
        and f"aiodatastore.{name}" not in DIRECTIVES
        and not described(getattr(aiodatastore, name).__module__, name)
    ]
    assert missing == []


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_module_is_in_the_reference_or_listed_as_internal(module: str) -> None:
    public = importlib.import_module(module).__all__
    above = itertools.accumulate(module.split("."), "{}.{}".format)
    if module in INTERNAL or any(f"{package}.*" in INTERNAL for package in above if package != module):
        return
    missing = [name for name in public if not described(module, name) and not _described_elsewhere(module, name)]
    assert missing == []


def _described_elsewhere(module: str, name: str) -> bool:
    """Shown by the package that exports it."""
    if name in aiodatastore.__all__ and f"aiodatastore.{name}" in DIRECTIVES:
        return True
    parts = module.split(".")
    homes = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    if module == "aiodatastore.adapters.base":
        homes.append("aiodatastore.rowstore")
    return any(
        described(home, name) and name in getattr(importlib.import_module(home), "__all__", ()) for home in homes
    )


def test_directives_name_what_exists() -> None:
    for path, options in DIRECTIVES.items():
        try:
            found = importlib.import_module(path)
        except ImportError:
            home, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(home), name), path
        else:
            members = yaml.safe_load(options).get("members", []) if options else []
            assert [member for member in members if not hasattr(found, member)] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(
        re.findall(r"- (?:[^:\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


# ----------------------------------------------------------------------------------------------- errors

CLASSES = {
    name: found
    for name, found in vars(errors).items()
    if inspect.isclass(found) and issubclass(found, errors.DatastoreError)
}


def drawn_tree(text: str) -> dict[str, set[str]]:
    """Of each error in a drawn tree, the errors it is drawn below."""
    lines = text[text.index("DatastoreError\n") :].partition("```")[0].splitlines()
    tree: dict[str, set[str]] = {"DatastoreError": set()}
    above: list[str] = ["DatastoreError"]
    for line in lines[1:]:
        found = re.match(r"([│ ]*)[├└]── (\w+)", line)
        if found is None:
            break
        depth = len(found[1]) // 4 + 1
        del above[depth:]
        tree.setdefault(found[2], set()).add(above[-1])
        above.append(found[2])
    return tree


def test_the_page_of_errors_draws_the_tree() -> None:
    drawn = drawn_tree((DOCS / "errors.md").read_text(encoding="utf-8"))
    real = {
        name: {base.__name__ for base in found.__bases__ if issubclass(base, errors.DatastoreError)}
        for name, found in CLASSES.items()
    }
    assert drawn == real


def test_the_page_of_errors_says_which_are_builtin_errors_too() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    for name, found in CLASSES.items():
        for base in found.__bases__:
            if base.__module__ == "builtins" and base is not Exception:
                assert re.search(rf"{name} +also {base.__name__}$", page, re.MULTILINE), (name, base)


def test_the_module_of_errors_draws_the_same_names() -> None:
    assert errors.__doc__ is not None
    assert set(re.findall(r"[├└]── (\w+)", errors.__doc__)) | {"DatastoreError"} == set(CLASSES) == set(errors.__all__)


# ----------------------------------------------------------------------------------------- capabilities


def test_the_table_of_stores_is_what_the_adapters_declare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capabilities.main(["--check"]) == 0, "run python -m docs._tools.capabilities"
    old = capabilities.PAGE.read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    monkeypatch.setattr(capabilities, "PAGE", page)
    page.write_text(old.replace("| `durable` | no |", "| `durable` | yes |"), encoding="utf-8")
    assert capabilities.main(["--check"]) == 1
    assert "run python -m" in capsys.readouterr().err
    assert capabilities.main([]) == 0
    assert page.read_text(encoding="utf-8") == old


def test_what_redis_promises_once_it_is_open_is_no_promise_before() -> None:
    """Else the table would say of a capability both that it is there and that it depends."""
    for (name, capability), _ in capabilities.DEPENDS.items():
        assert capability not in aiodatastore.Datastore(capabilities.STORES[name]).capabilities


@pytest.mark.parametrize("store", ["sqlite", "file", "postgres", "redis"])
def test_every_setting_is_in_the_page_of_its_store(store: str) -> None:
    module = importlib.import_module(f"aiodatastore.adapters.{store}")
    page = (DOCS / "adapters" / f"{store}.md").read_text(encoding="utf-8")
    assert [name for name in module._SETTINGS if f"`{name}" not in page] == []


@pytest.mark.parametrize("store", capabilities.STORES)
def test_pages_of_stores_answer_the_same_questions(store: str) -> None:
    page = (DOCS / "adapters" / f"{store}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    for wanted in ("URL and settings", "Durability", "Isolation", "Limits", "Costs", "When to choose it, and when not"):
        assert wanted in headings, f"{store}.md has no '{wanted}', but {headings}"


def test_numbers_in_the_pages_are_those_of_the_source() -> None:
    from aiodatastore.adapters.sqlite.store import INLINE_KEYS, INLINE_ROWS
    from aiodatastore.batching import MAX_BATCH_KEYS
    from aiodatastore.datastore import MAX_COMMIT_WRITES
    from aiodatastore.indexing.normal import MAX_BRANCHES
    from aiodatastore.indexing.rows import MAX_INDEX_ROWS
    from aiodatastore.key import MAX_NAME_BYTES, MAX_PATH_ELEMENTS
    from aiodatastore.query import MAX_COMPONENTS, MAX_SUBQUERIES
    from aiodatastore.values import MAX_DEPTH, MAX_INDEXED_BYTES, MAX_UNINDEXED_BYTES

    assert INLINE_KEYS == INLINE_ROWS
    claims = {
        "adapters/sqlite.md": [f"up to {INLINE_KEYS} keys or rows"],
        "consistency.md": [f"several keys (up to {MAX_BATCH_KEYS})", f"up to {MAX_COMMIT_WRITES} entities is atomic"],
        "entities.md": [
            f"commits of {MAX_COMMIT_WRITES} entities",
            f"at most {MAX_INDEXED_BYTES} bytes (of UTF-8); unindexed: {MAX_UNINDEXED_BYTES:,}",
            f"up to {MAX_DEPTH} deep",
            f"at most {MAX_INDEX_ROWS:,} index rows",
        ],
        "keys.md": [f"1 to {MAX_NAME_BYTES} bytes", f"at most {MAX_PATH_ELEMENTS} elements"],
        "queries.md": [
            f"there can be {MAX_BRANCHES}",
            f"at most {MAX_COMPONENTS} filters and orders",
            f"Up to {MAX_SUBQUERIES} of them",
        ],
    }
    for page, texts in claims.items():
        written = " ".join((DOCS / page).read_text(encoding="utf-8").split())
        assert [text for text in texts if text not in written] == [], page
