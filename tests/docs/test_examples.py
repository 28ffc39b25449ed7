"""Every example of the README, the documentation and the docstrings runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import aiodatastore
from tests.docs.fences import ROOT, Block, blocks, pages, run_page
from tests.docs.servers import Servers

PAGES = list(pages())
SHOWN_ONLY = {"sh", "console", "text", "yaml", "toml", "json", "http", "sql", ""}


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """The servers that a page may name."""
    made = Servers(request.getfixturevalue)
    yield made
    made.close()


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.timeout(700)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language in ("python", "shell") for b in blocks(page))], ids=name
)
def test_examples_run_and_print_what_the_page_shows(
    page: Path, tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_page(page, tmp_path, servers)


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


def test_a_wrong_output_and_a_missing_error_are_noticed(
    tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n1\n```\n")
    run_page(page, tmp_path, servers)
    assert blocks(page) == [Block("python", "print(1)\n", 2, "1\n")]
    page.write_text("```python\nprint(1)\n```\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="prints"):
        run_page(page, tmp_path, servers)
    page.write_text("```python\nx = 1  # raises ValueError\n```\n")
    with pytest.raises(AssertionError, match="did not raise"):
        run_page(page, tmp_path, servers)
    page.write_text("```python\nint('x')  # raises ValueError\nimport asyncio\nawait asyncio.sleep(0)\n```\n")
    run_page(page, tmp_path, servers)
    page.write_text("```shell\nexit 3\n```\n")
    with pytest.raises(AssertionError):
        run_page(page, tmp_path, servers)


def test_servers_stand_in_for_localhost(tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        """
```python
import asyncpg
db = await asyncpg.connect("postgresql://me:secret@localhost/shop")
await db.execute("CREATE TABLE t ()")
print(await db.fetch("SELECT * FROM t"))
await db.close()
db = await asyncpg.connect("postgresql://localhost:5432/other")
print(await db.fetchval("SELECT count(*) FROM pg_tables WHERE tablename = 't'"))
await db.close()
from redis import Redis
for url in ("redis://localhost:6379", "redis://localhost/0", "redis://localhost/1"):
    with Redis.from_url(url) as r:
        print(r.incr("n"))
```

```text
[]
0
1
2
1
```

```sql
DROP TABLE t;  -- taken back
CREATE TABLE t (a int);
```

```sql
SELECT * FROM t;
```
"""
    )
    run_page(page, tmp_path, servers)
    for address in ("postgresql://db.example/shop", "redis://localhost:7000/0", "rediss://localhost/0"):
        assert servers.substitute(address) == address
    assert servers.substitute("redis://localhost?prefix=x").endswith("?prefix=x")
    page.write_text(page.read_text() + "\n```sql\nSELECT a FROM t;\n```\n")
    with closing(Servers(servers._session)) as again, pytest.raises(Exception, match='column "a" does not exist'):
        run_page(page, tmp_path, again)
