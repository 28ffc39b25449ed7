"""What holds for the project as a whole: names, imports, layers, files."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiodatastore
from aiodatastore.adapters import registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aiodatastore"

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(aiodatastore.__path__, "aiodatastore.")
    if not module.name.rpartition(".")[2].startswith("_")
)


@pytest.mark.parametrize("name", ["aiodatastore", *MODULES])
def test_public_modules_say_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert isinstance(module.__all__, list), f"{name} has no __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    found = {each: getattr(module, each) for each in module.__all__}
    defined = {each: what for each, what in found.items() if inspect.isclass(what) or inspect.isfunction(what)}
    assert [each for each, what in defined.items() if what.__qualname__ == each and not what.__doc__] == []


# ---------------------------------------------------------------------------------------------- importing

DRIVERS = {"sqlite3", "aiosqlite", "asyncpg", "redis", "aiofiles", "sqlalchemy", "key_value", "trio", "asyncio"}
HEAVY = DRIVERS | {"yaml", "rich", "click", "msgspec", "anyio", "hypothesis", "pytest"}


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_importing_the_package_loads_no_driver_and_little_else() -> None:
    code = "import sys; before = set(sys.modules); import aiodatastore; print(*set(sys.modules) - before)"
    loaded = {name.partition(".")[0] for name in _python(code).split()}
    assert loaded & HEAVY == set()


def test_making_a_datastore_loads_no_driver_of_another_store() -> None:
    code = "import sys; from aiodatastore import Datastore; Datastore('memory://'); print(*sys.modules)"
    loaded = set(_python(code).split())
    assert loaded & (DRIVERS - {"asyncio"}) == set()


def test_importing_takes_less_than_a_tenth_of_a_second() -> None:
    """Of the processor: how long a busy machine keeps it waiting is another matter."""
    code = (
        "import time; start = time.process_time(); import aiodatastore; took = time.process_time() - start;print(took)"
    )
    assert min(float(_python(code)) for _ in range(5)) < 0.1


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


# ------------------------------------------------------------------------------------------------- layers

LAYERS: dict[str, tuple[str, ...]] = {
    # Each group of modules, and the groups it may import when it is loaded. The model knows nothing of storage, the
    # engine nothing of Datastore, an adapter nothing of transactions.
    "errors": (),
    "model": ("errors",),
    "bytes": ("errors",),
    "indexing": ("errors", "model", "bytes"),
    "payloads": ("errors", "model", "indexing"),
    "contract": ("errors", "model", "bytes", "indexing"),
    "loops": (),
    "adapters": ("errors", "model", "bytes", "indexing", "payloads", "contract", "loops"),
    "txn": ("errors", "model", "bytes", "indexing", "contract", "loops"),
    "datastore": ("errors", "model", "bytes", "indexing", "contract", "txn"),
    "tools": ("errors", "model", "bytes", "indexing", "payloads", "contract", "txn", "datastore"),
    "proof": ("errors", "model", "bytes", "indexing", "payloads", "contract", "adapters", "txn", "datastore", "tools"),
    "command": ("errors", "model", "indexing", "payloads", "contract", "txn", "datastore", "tools", "proof"),
    "front": ("errors",),
}

GROUPS = {
    "errors": "errors",
    "key": "model",
    "values": "model",
    "entity": "model",
    "cursor": "model",
    "query": "model",
    "rowstore": "bytes",
    "indexing": "indexing",
    "serializers": "payloads",
    "adapters.base": "contract",
    "adapters": "adapters",
    "shims": "adapters",
    "composing": "adapters",
    "arguments": "txn",
    "batching": "txn",
    "contention": "txn",
    "ids": "txn",
    "overlay": "txn",
    "txn": "txn",
    "waiting": "loops",
    "bound_query": "txn",
    "datastore": "datastore",
    "jsonl": "payloads",
    "transfer": "tools",
    "keyvalue": "tools",
    "storage": "tools",
    "testing": "proof",
    "bench": "proof",
    "cli": "command",
    "__main__": "command",
    "": "front",
}


def group(module: str) -> str:
    parts = module.split(".")[1:]
    for length in range(len(parts), -1, -1):
        name = ".".join(parts[:length])
        if name in GROUPS and (name or not parts):
            return GROUPS[name]
    raise AssertionError(f"{module} is in no group: say in this file what it may import")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_on_loading(path: Path) -> Iterator[str]:
    """Modules of ours that a module imports when it is loaded: not for type checking only, nor inside functions."""

    def visit(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: absolute imports only"
                assert node.module is not None
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield full if (ROOT / Path(*full.split("."))).with_suffix(".py").exists() else node.module
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                yield from visit(node.body)
                yield from visit(node.orelse)
            elif isinstance(node, ast.Try | ast.ClassDef):
                yield from visit(node.body)

    yield from (
        name for name in visit(ast.parse(path.read_text(encoding="utf-8")).body) if name.startswith("aiodatastore")
    )


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    own = group(module_name(path))
    allowed = {own, *LAYERS[own]}
    wrong = [name for name in imports_on_loading(path) if group(name) not in allowed and name != "aiodatastore"]
    assert wrong == [], f"{own} may import {sorted(allowed)}"


def test_the_layers_have_no_circle() -> None:
    seen: set[str] = set()
    for name, below in LAYERS.items():
        assert set(below) <= seen, f"{name} stands above what it imports"
        seen.add(name)


@pytest.mark.parametrize("name", ["model", "indexing", "txn", "datastore"])
def test_no_event_loop_is_imported_by_name(name: str) -> None:
    for path in SOURCES:
        if group(module_name(path)) == name:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {found.partition(".")[0] for found in names} & {"asyncio", "trio"}, path


# -------------------------------------------------------------------------------------------------- files


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:  # an unpacked archive
        return [
            path for path in ROOT.rglob("*") if path.is_file() and not path.relative_to(ROOT).parts[0].startswith(".")
        ]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    private = ["/" + "work/", "/" + "root/", "/" + "home/", "/" + "tmp/"]
    found = []
    for path in tracked_files():
        if path.suffix in {".md", ".py", ".toml", ".yml", ".yaml", ".txt", ""} and path.stat().st_size < 1 << 20:
            text = path.read_text(encoding="utf-8", errors="ignore")
            found += [f"{path.relative_to(ROOT)}: {each}" for each in private if each in text]
    assert found == []


def test_nobody_is_told_to_install_somebody_elses_project() -> None:
    told = "pip install " + "aiodatastore"
    for path in tracked_files():
        if path.suffix in {".md", ".py", ".toml"}:
            text = path.read_text(encoding="utf-8", errors="ignore").replace('"', "").replace("'", "")
            assert f"{told}\n" not in text.replace(told + "-engine", ""), path
            assert f"{told}[" not in text, path


def test_every_dependency_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    imported = {
        (name.name if isinstance(node, ast.Import) else node.module or "").partition(".")[0]
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    needed = {
        requirement.partition(">")[0].lower().replace("pyyaml", "yaml") for requirement in project["dependencies"]
    }
    assert needed <= imported


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == aiodatastore.__version__


def test_every_scheme_of_ours_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["entry-points"][registry.GROUP]
    assert declared == {scheme: f"{module}:from_url" for scheme, module in registry._BUILT_IN.items()}
    assert set(project["optional-dependencies"]) >= {"postgres", "redis", "file", "all"}


def test_commands_that_the_documentation_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert {one or other for one, other in named} <= targets, page


def test_scripts_can_be_run() -> None:
    for path in (ROOT / ".ci").iterdir():
        assert path.stat().st_mode & 0o111, path
        assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
        subprocess.run(["bash", "-n", path], check=True)


def test_the_readme_has_a_complete_example_of_less_than_twenty_lines() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = readme.partition("```python\n")[2].partition("```")[0]
    assert "asyncio.run(main())" in example
    assert len([line for line in example.splitlines() if line]) < 20
