"""Examples in Markdown: found, and run as they stand.

- ``python`` blocks of a page run in order, in one namespace and one event loop, in an empty folder; ``await`` is
  allowed at the top. A statement whose last line ends in ``# raises SomeError`` must raise that.
- ``shell`` blocks run in the same folder, each with bash; ``aiodatastore`` is the command of this checkout.
- A ``text`` block directly after one of these is what it prints; ``...`` stands for anything.
- A ``python`` or ``toml`` block that begins with a file's name, as in ``# store.py``, is added to that file in the
  folder instead. A ``pyproject.toml`` is as good as installed: what it says of entry points holds for ``shell`` blocks.
- ``sh`` blocks are shown only: what installs, starts servers or takes long.
- ``postgresql://localhost/...`` and ``redis://localhost/...`` are servers of the tests, and ``sql`` blocks run there:
  see :mod:`tests.docs.servers`.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import io
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiodatastore import Datastore
from tests.docs.servers import Servers

__all__ = ["ROOT", "Block", "blocks", "pages", "run_page"]

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.\w+)$", re.MULTILINE)
_RAISES = re.compile(r"#\s*raises (\w+)\s*$")


@dataclass
class Block:
    """One fenced block; ``output`` is the text that must be printed, None if any may."""

    language: str
    body: str
    line: int
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page; a ``text`` block that is an output belongs to the block before."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        body = inspect.cleandoc("\n" + match["body"]) + "\n"
        language = match["language"].strip()
        follows = found and not text[end : match.start()].strip()
        if language == "text" and follows and found[-1].language in ("python", "shell"):
            found[-1].output = body
        else:
            found.append(Block(language, body, text.count("\n", 0, match.start()) + 2))
        end = match.end()
    return found


def run_page(page: Path, folder: Path, servers: Servers) -> None:
    """Run all examples of a page."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        try:
            for block in blocks(page):
                if _added_to_file(block, folder):
                    continue
                if block.language in ("python", "shell"):
                    block.body = servers.substitute(block.body)
                if block.language == "python":
                    printed = _run_python(block, namespace, page, runner)
                elif block.language == "shell":
                    printed = _run_shell(block, folder)
                else:
                    if block.language == "sql":
                        servers.run_sql(block.body)
                    continue
                if block.output is not None:
                    _compare(block, printed, page)
        finally:
            for value in list(namespace.values()):
                if isinstance(value, Datastore):
                    runner.run(value.aclose())


def _added_to_file(block: Block, folder: Path) -> bool:
    found = _FILE.match(block.body)
    if found is None or block.language not in ("python", "toml"):
        return False
    with (folder / found[1]).open("a", encoding="utf-8") as file:
        file.write(block.body)
    if found[1] == "pyproject.toml":
        project = tomllib.loads((folder / found[1]).read_text(encoding="utf-8"))["project"]
        info = folder / f"{project['name']}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        (info / "entry_points.txt").write_text(
            "".join(
                f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
                for group, entries in project["entry-points"].items()
            )
        )
    return True


def _run_python(block: Block, namespace: dict[str, Any], page: Path, runner: asyncio.Runner) -> str:
    source = "\n" * (block.line - 1) + block.body  # so that tracebacks show the page's lines
    lines = source.splitlines()
    printed = io.StringIO()
    for statement in ast.parse(source, str(page)).body:
        expected = _RAISES.search(lines[(statement.end_lineno or 0) - 1])
        code = compile(
            ast.Module([statement], []), str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        try:
            with redirect_stdout(printed):
                result = eval(code, namespace)
                if inspect.iscoroutine(result):
                    runner.run(result)
        except Exception as exc:
            names = {base.__name__ for base in type(exc).__mro__}
            if expected is None or expected[1] not in names:
                exc.add_note(f"in the example at {page.name}:{statement.lineno}")
                raise
        else:
            assert expected is None, f"{page.name}:{statement.lineno} did not raise"
    return printed.getvalue()


def _run_shell(block: Block, folder: Path) -> str:
    commands = folder / ".bin"
    if not commands.exists():
        commands.mkdir()
        for name, arguments in (("aiodatastore", " -m aiodatastore"), ("python", "")):
            (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
            (commands / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "AIODATASTORE": str(ROOT),
        "COLUMNS": "100",
    }
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", block.body],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"line {block.line}: {done.stderr}{done.stdout[-3000:]}"
    return done.stdout


def _compare(block: Block, printed: str, page: Path) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    wanted = block.output or ""
    if not doctest.OutputChecker().check_output(wanted, printed, flags):
        raise AssertionError(f"{page.name}:{block.line} prints\n{printed}\nthe page shows\n{wanted}")


def pages() -> Iterator[Path]:
    """Every page with examples."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from sorted((ROOT / "examples").rglob("*.md"))
