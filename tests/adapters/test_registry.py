"""URLs of stores, with their settings."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiodatastore.adapters import registry
from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.registry import adapter_from_url, parse_bool, parse_float, parse_int
from aiodatastore.adapters.sqlite import SQLiteRowStore
from aiodatastore.errors import BadArgumentError
from aiodatastore.rowstore import Capability


def engine_of(url: str, **options: Any) -> EngineAdapter:
    adapter = adapter_from_url(url, **options)
    assert isinstance(adapter, EngineAdapter)
    return adapter


def sqlite_of(url: str, **options: Any) -> SQLiteRowStore:
    store = engine_of(url, **options).store
    assert isinstance(store, SQLiteRowStore)
    return store


@pytest.mark.parametrize("url", ["memory://", "memory:///", "MEMORY://"])
def test_memory(url: str) -> None:
    adapter = engine_of(url)
    assert isinstance(adapter.store, MemoryRowStore)
    assert adapter.url == "memory://"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///tasks.db", "tasks.db"),
        ("sqlite:///data/tasks.db", "data/tasks.db"),
        ("sqlite:////var/lib/tasks.db", "/var/lib/tasks.db"),
        ("sqlite:///a%20b%23%3F%25.db", "a b#?%.db"),
        ("sqlite:///%D0%BA%D0%BB%D1%8E%D1%87.db", "ключ.db"),
        ("sqlite:///ключ+1.db?cache_mb=2", "ключ+1.db"),
    ],
)
def test_sqlite_paths(url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_of(url).url == f"sqlite:///{tmp_path.joinpath(path)}"
    assert list(tmp_path.iterdir()) == []  # nothing is opened


def test_settings_go_to_the_store_and_options_to_the_engine() -> None:
    url = "sqlite:///a.db?synchronous=normal&busy_timeout_s=0.5&inline_reads=no&require_indexes=true"
    adapter = engine_of(url, cache_mb=7, sort_budget=5)
    store = adapter.store
    assert isinstance(store, SQLiteRowStore)
    assert (store._file.synchronous, store._busy_timeout_s, store._cache_kib) == ("NORMAL", 0.5, 7 * 1024)
    assert Capability.INLINE_READS not in store.capabilities
    assert (adapter.require_indexes, adapter.sort_budget) == (True, 5)
    assert sqlite_of("sqlite:///a.db?inline_reads=auto&read_only=1&page_size=8192&checkpoint_mb=3")._read_only
    assert engine_of("memory://?sort_budget=9").sort_budget == 9


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("tasks.db", {}, "sqlite:///tasks.db or memory://, got 'tasks.db'"),
        ("", {}, "named by a URL"),
        ("://x", {}, "named by a URL"),
        ("nonsense://x", {}, "no adapter for nonsense://; known are file://, memory://, .*sqlite://, .*unix://"),
        ("redis://localhost?nonsense=1", {}, "unknown option 'nonsense' for redis://; known are .*retry_s"),
        (
            "postgresql://localhost/db?nonsense=1",
            {},
            "unknown option 'nonsense' for postgresql://; known are .*retry_s",
        ),
        ("file:///data?nonsense=1", {}, "unknown option 'nonsense' for file://; known are .*layout"),
        ("memory://somewhere", {}, "takes no path"),
        (
            "memory://?cache_mb=1",
            {},
            "unknown option 'cache_mb' for memory://; known are require_indexes, serializer, sort_budget",
        ),
        ("memory://", {"cache_mb": 1}, "unknown option 'cache_mb' for memory://"),
        ("sqlite:///a.db?cash_mb=1", {}, "unknown option 'cash_mb' for sqlite://; known are .*cache_mb"),
        ("sqlite:///a.db?serializer=x", {}, "serializer='x' in the URL: expected msgpack, json, .* got 'x'"),
        ("sqlite:///a.db?serializer=msgpack+fernet", {}, "expected msgpack, json"),
        ("sqlite:///a.db?cache_mb=1&cache_mb=2", {}, "cache_mb is given twice"),
        ("sqlite:///a.db?cache_mb=1", {"cache_mb": 1}, "cache_mb is given in the URL and as an argument"),
        ("sqlite:///a.db?cache_mb=1e3", {}, "cache_mb='1e3' in the URL: expected an integer"),
        ("sqlite:///a.db?cache_mb=", {}, "expected an integer"),
        ("sqlite:///a.db?busy_timeout_s=nan", {}, "busy_timeout_s='nan' in the URL: expected a number"),
        ("sqlite:///a.db?read_only=maybe", {}, "read_only='maybe' in the URL: expected true or false"),
        ("sqlite:///a.db?synchronous=SOMETIMES", {}, "expected OFF, NORMAL, FULL or EXTRA"),
        ("sqlite:///a.db?cache_mb", {}, "parameters are malformed"),
        ("sqlite:///a.db#x", {}, "write # as %23"),
        ("sqlite:///a%FF.db", {}, "do not decode"),
        ("sqlite://a.db", {}, "sqlite:///relative/path or sqlite:////absolute/path"),
        ("sqlite://", {}, "expected sqlite:///relative/path"),
        ("sqlite:///", {}, "expected sqlite:///relative/path"),
        ("sqlite:///:memory:", {}, "memory://"),
    ],
)
def test_what_is_wrong_is_said(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        adapter_from_url(url, **options)


@pytest.mark.parametrize("url", [5, None, Path("a.db")])
def test_only_text_is_a_url(url: Any) -> None:
    with pytest.raises(BadArgumentError, match=r"got (int|NoneType|PosixPath)"):
        adapter_from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@db.example/x?nonsense=1",
        "redis://me:hunter2@db.example/x",
        "redis://me:hunter2@db.example?nonsense=1",
        "file://me:hunter2@db.example/x",
        "what://me:hunter2@db.example",
        "me:hunter2@db.example",
        "sqlite://me:hunter2@host/a.db",
        "memory://me:hunter2@host",
        "sqlite:///a.db?password=hunter2",
    ],
)
def test_passwords_do_not_show(url: str) -> None:
    with pytest.raises(BadArgumentError) as caught:
        adapter_from_url(url)
    assert "hunter2" not in str(caught.value)


def test_entry_points_add_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"{__name__}:make_theirs"
    theirs = importlib.metadata.EntryPoint("theirs", here, registry.GROUP)
    found = importlib.metadata.EntryPoints([theirs])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: found)
    assert adapter_from_url("theirs://x", colour="red") is THEIRS
    assert asked == [("theirs://x", {"colour": "red"})]
    with pytest.raises(BadArgumentError, match=r"known are file://, memory://, .*sqlite://, theirs://"):
        adapter_from_url("others://")


THEIRS = engine_of("memory://")
asked: list[tuple[str, dict[str, Any]]] = []


def make_theirs(url: str, **options: Any) -> Adapter:
    asked.append((url, options))
    return THEIRS


def test_texts_are_read_strictly() -> None:
    assert [parse_bool(text) for text in ("true", "YES", "on", "1")] == [True] * 4
    assert [parse_bool(text) for text in ("false", "No", "off", "0")] == [False] * 4
    assert [parse_int(text) for text in ("0", "-5", "007")] == [0, -5, 7]
    assert [parse_float(text) for text in ("0", "-1.5", "2.", "1e3")] == [0.0, -1.5, 2.0, 1000.0]
    for parse, texts in (
        (parse_bool, ("", "2", "t", "truе", " true")),
        (parse_int, ("", "1_0", "1.0", " 1", "٣", "+1", "9" * 19)),
        (parse_float, ("", "inf", "nan", "1_0", " 1", "1e999", ".5.")),
    ):
        for text in texts:
            with pytest.raises(ValueError, match="expected"):
                parse(text)


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [("postgresql://localhost/db", "asyncpg", "postgres"), ("redis://localhost", "redis", "redis")],
)
def test_a_missing_driver_names_the_line_that_installs_it(url: str, driver: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{driver!r}] = None\n"
        "from aiodatastore import Datastore\n"
        "from aiodatastore.errors import BadArgumentError\n"
        f"try: Datastore({url!r})\n"
        "except BadArgumentError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert f'pip install "aiodatastore-engine[{extra}]"' in done.stdout
