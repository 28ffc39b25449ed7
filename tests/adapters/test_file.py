# ruff: noqa: ASYNC222, ASYNC240  (tests may touch the disk themselves)
"""What is special to the file store: paths, documents, hand edits, the journal, the lock, the snapshot."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from aiodatastore import Blob, Datastore, Entity, GeoPoint, Key, Text
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.file import FileRowStore, applier, disk
from aiodatastore.adapters.file import store as module
from aiodatastore.adapters.file.documents import JSONDocuments, MixedSerializer
from aiodatastore.adapters.file.journal import read_journal
from aiodatastore.adapters.file.paths import (
    MAX_PATH,
    PathError,
    escape,
    kind_place,
    parse_kind_path,
    parse_path,
    place_of,
    unescape,
)
from aiodatastore.adapters.forking import open_stores
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import (
    BadArgumentError,
    BadRequestError,
    BadValueError,
    CorruptDataError,
    FormatVersionError,
    StoreBusyError,
    StoreClosedError,
    StoreFullError,
    StoreReadOnlyError,
    UnavailableError,
)
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.indexing.encoding import encode_key
from aiodatastore.jsonl import canonical
from aiodatastore.rowstore import Capability, RowCommit, RowPut, Space, Span
from aiodatastore.testing.strategies import entities as any_entities

from .rows import ALL_KEYS, ALL_ROWS, commit, entities, index_rows, puts, rows_of, versions

pytestmark = pytest.mark.anyio

JSON = ".json"


class opened:  # noqa: N801  # reads as a verb: async with opened(path) as store
    """A row store for the time of a block; its index rows can be made anew of payloads."""

    def __init__(self, path: Path, **given: Any) -> None:
        self.store = made(path, **given)

    async def __aenter__(self) -> FileRowStore:
        await self.store.open()
        return self.store

    async def __aexit__(self, *_: object) -> None:
        await self.store.aclose()


def made(path: Path, **given: Any) -> FileRowStore:
    store = FileRowStore(path, **given)
    store.index_rows = rows_of
    return store


def abandon(store: FileRowStore) -> None:
    """What is left of a process that was killed: nothing but its files."""
    store._phase = "closed"
    open_stores.discard(store)
    store._let_go()


def store_of(ds: Datastore) -> FileRowStore:
    adapter = ds.adapter
    assert isinstance(adapter, EngineAdapter)
    assert isinstance(adapter.store, FileRowStore)
    return adapter.store


async def written(ds: Datastore) -> None:
    """Returns when all commits are in their files."""
    behind = store_of(ds)._applier
    assert behind is not None
    await anyio.to_thread.run_sync(behind.drain)


async def abandoned(ds: Datastore) -> None:
    abandon(store_of(ds))
    await ds.aclose()


def datastore(folder: Path, settings: str = "", **options: Any) -> Datastore:
    return Datastore(f"file:///{folder}{settings}", **options)


def key(n: int | str) -> bytes:
    return encode_key(Key("City", n))


def tree(folder: Path) -> set[str]:
    """The files of entities."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".aiodatastore" not in path.parts
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applier, "_RETRY_S", 0.01)


# ------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (Key("Country", "GB", "City", 2643743), "Country/GB/City/2643743.json"),
        (Key("Country", "GB"), "Country/GB.json"),
        (Key("Country", "gb"), "Country/gb^3.json"),
        (Key("Person", "ada"), "Person/ada.json"),
        (Key("Person", "Ada"), "Person/Ada^1.json"),
        (Key("BlogPost", "x1"), "BlogPost^10/x1.json"),
        (Key("task", 7), "task^1/7.json"),
        (Key("Task", "7"), "Task/%37.json"),
        (Key("Task", "con"), "Task/%63on.json"),
        (Key("Task", "nul.txt"), "Task/%6Eul.txt.json"),
        (Key("Task", "lpt1 "), "Task/%6Cpt1%20.json"),
        (Key("Task", "."), "Task/%2E.json"),
        (Key("Task", ".."), "Task/%2E%2E.json"),
        (Key("Task", "a."), "Task/a%2E.json"),
        (Key("Task", " a b "), "Task/%20a b%20.json"),
        (Key("Task", "a/b\\c:d"), "Task/a%2Fb%5Cc%3Ad.json"),
        (Key("Task", "progra~1"), "Task/progra%7E1.json"),
        (Key("Task", "50%^2"), "Task/50%25%5E2.json"),
        (Key("Task", "x.json"), "Task/x%2Ejson.json"),
        (Key("Task", "ada@example.org"), "Task/ada@example.org.json"),
        (Key("@x", "@y"), "%40x/%40y.json"),
        (Key("City", "köln"), "City/köln.json"),
        (Key("City", "Köln"), "City/Köln^1.json"),
        (Key("City", "東京"), "City/東京.json"),
        (Key("City", "straße"), "City/stra%C3%9Fe.json"),
        (Key("City", "e\u0301"), "City/e%CC%81.json"),
        (Key("City", "\u212a"), "City/%E2%84%AA.json"),
        (Key("City", 1, namespace="tenant-1"), "@tenant-1/City/1.json"),
        (Key("City", 1, namespace="Tenant"), "@Tenant^1/City/1.json"),
        (Key("City", 1, namespace="n", project="p:x"), "@@p%3Ax/@n/City/1.json"),
        (Key("City", 1, project="p"), "@@p/City/1.json"),
    ],
)
def test_the_paths_of_keys(given: Key, path: str) -> None:
    place = place_of(encode_key(given), JSON)
    assert place is not None
    assert (place.path, place.is_exact) == (path, True)
    assert parse_path(path, JSON) == encode_key(given)


_AWKWARD = st.sampled_from(
    [
        "con",
        "CON",
        "aux.h",
        "GB",
        "gb",
        "Gb",
        "x.json",
        "X.JSON",
        "7",
        "07",
        "\u0667",
        "a.",
        " a",
        "~",
        "^1",
        "a^1",
        "%41",
        "%",
        "@@",
        "\u00df",
        "\u1e9e",
        "ss",
        "SS",
        "\u017f",
        "s",
        "S",
        "\u212a",
        "K",
        "k",
        "\u0130",
        "i",
        "I",
        "\u0131",
        "\ufb01",
        "\u2126",
        "\u03a9",
        "\u03c9",
        "\u00e9",
        "e\u0301",
        "\u212b",
        "\u00c5",
        "\uac00",
        "\u1100\u1161",
        "\u00b5",
        "\u03bc",
        "\u03c2",
        "\u03c3",
        "\u03a3",
        "\u1c80",
        "\u0432",
        "\u10d0",
        "\u1c90",
        "\u01c5",
        "\x00",
        "\x0a",
        "q" * 300,
        "Q" * 300,
        "\u0436" * 120,
        "a" * 179 + "^",
    ]
)
_TEXTS = st.one_of(
    _AWKWARD,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.text("aAbB.^%1 ", min_size=1, max_size=5),
)
_KEYS = st.builds(
    lambda pairs, namespace: Key(*[part for pair in pairs for part in pair], namespace=namespace),
    st.lists(st.tuples(_TEXTS, st.one_of(_TEXTS, st.integers(1, 2**63 - 1))), min_size=1, max_size=4),
    st.sampled_from(["", "", "a", "A", "con", "a.", ".a"]),
)


def as_seen(path: str) -> str:
    """What is the same to a file system that ignores case and the form of Unicode."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFC", path).casefold()).casefold()


@given(_TEXTS, _TEXTS, st.booleans())
@example("GB", "gb", False)
@example("London", "london^1", False)
@settings(max_examples=300)
def test_names_that_differ_have_files_that_differ_everywhere(first: str, second: str, is_kind: bool) -> None:
    assume(first != second)
    one, other = (escape(text, JSON, is_kind=is_kind) for text in (first, second))
    assert as_seen(one) != as_seen(other)
    for text, escaped in ((first, one), (second, other)):
        assert unescape(escaped, JSON, is_kind=is_kind) in (text, None)
        for form in ("NFC", "NFD"):  # as file systems give them back
            assert unescape(unicodedata.normalize(form, escaped), JSON, is_kind=is_kind) in (text, None)


@given(_TEXTS, st.booleans())
@settings(max_examples=300)
def test_names_are_valid_on_windows_too(text: str, is_kind: bool) -> None:
    escaped = escape(text, JSON, is_kind=is_kind)
    assert 0 < len(escaped.encode()) + len(JSON) <= 255
    assert not set(escaped) & set('<>:"/\\|?*~')
    assert escaped.isprintable()
    assert escaped[-1] not in " ."
    assert escaped[0] not in " .@"
    assert not escaped.casefold().endswith(JSON)
    reserved = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
        f"{p}{n}" for p in ("com", "lpt") for n in "0123456789¹²³"
    }
    assert escaped.partition(".")[0].rstrip(" ").lower() not in reserved
    assert not (escaped.isascii() and escaped.isdigit())  # that is an id


@given(_KEYS)
@example(Key(*["Kind", "x" * 150] * 90))
@example(Key("A" * 1500, "é" * 750))
def test_paths_tell_their_keys_or_the_file_does(given: Key) -> None:
    encoded = encode_key(given)
    place = place_of(encoded, JSON)
    assert place is not None
    assert len(place.path.encode()) <= MAX_PATH
    assert parse_path(place.path, JSON) == (encoded if place.is_exact else None)
    of_kind = kind_place(encoded, ".jsonl")
    assert of_kind is not None
    project, namespace, kind = parse_kind_path(of_kind.path, ".jsonl")
    assert (project, namespace) == (given.project, given.namespace)
    assert kind in (given.kind, None)


@given(_KEYS, _KEYS)
def test_no_two_keys_share_a_path_or_a_folder(first: Key, second: Key) -> None:
    assume(first != second)
    one, other = place_of(encode_key(first), JSON), place_of(encode_key(second), JSON)
    assert one is not None
    assert other is not None
    assert as_seen(one.path) != as_seen(other.path)
    folders = {as_seen("/".join(one.path.split("/")[:end])) for end in range(1, one.path.count("/") + 1)}
    assert as_seen(other.path) not in folders


@pytest.mark.parametrize(
    "path",
    [
        "City.json",
        "City/London.json",
        "City/a%41.json",
        "City/gb.json",
        "City/%FF.json",
        "City/a^0.json",
        "City/a^1^1.json",
        "city/a.json",
        "City/ada/x.json",
        "@n.json",
        "@n/City.json",
        "@/City/1.json",
        "@@/City/1.json",
        "@@/aa/b.json",
        "City/.json",
        "City/con.json",
        "City/a%2fb.json",
        "City/20%.json",
        "@n.x\u00df/City/1.json",
    ],
)
def test_paths_of_no_key_are_refused(path: str) -> None:
    with pytest.raises(PathError):
        parse_path(path, JSON)


@pytest.mark.parametrize(
    "raw", [b"", b"a", b"\x00\x00", b"\x00\x00A\x00\x02\x00\x07", b"\x00\x00A\x00\x10\x00", b"\xffformat"]
)
def test_bytes_that_are_no_key_have_no_path(raw: bytes) -> None:
    assert place_of(raw, JSON) is None
    assert kind_place(raw, JSON) is None


# --------------------------------------------------------------------------------------------- documents


@given(any_entities(), st.sampled_from(["json", "compact", "msgpack"]))
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=100)
def test_documents_keep_every_type(entity: Entity, writes: str) -> None:
    written = MixedSerializer(writes)
    payload = written.dumps(entity)
    for reads in ("json", "msgpack"):
        read = MixedSerializer(reads).loads(entity.key, payload, 7)
        assert canonical(read) == canonical(entity)
        assert list(read) == list(entity)
        assert read.version == 7
    written.check(payload, encode_key(entity.key))
    assert written.key_of(payload) == (encode_key(entity.key) if writes != "msgpack" else None)
    assert (payload.count(b"\n") > 1) == (writes == "json") or writes == "msgpack"


def test_a_document_is_made_for_people_and_diff() -> None:
    entity = Entity(
        Key("Country", "GB", "City", 2643743),
        {
            "name": "London",
            "population": 8961989,
            "area": 1572.0,
            "founded": datetime(47, 1, 1, tzinfo=UTC),
            "tags": ["capital", float("nan")],
            "photo": Blob(b"\x00\x01"),
            "about": Text("x"),
            "at": GeoPoint(51.5, -0.12),
        },
        unindexed=["population"],
    )
    text = JSONDocuments().dumps(entity).decode()
    assert text == textwrap.dedent(
        """\
        {
          "key": "/Country:GB/City:2643743",
          "properties": {
            "name": "London",
            "population": 8961989,
            "area": 1572.0,
            "founded": {
              "$datetime": "0047-01-01T00:00:00Z"
            },
            "tags": [
              "capital",
              {
                "$float": "nan"
              }
            ],
            "photo": {
              "$blob": "AAE="
            },
            "about": {
              "$text": "x"
            },
            "at": {
              "$point": [
                51.5,
                -0.12
              ]
            }
          },
          "unindexed": [
            "population"
          ]
        }
        """
    )
    assert JSONDocuments(pretty=False).dumps(entity) == json.dumps(json.loads(text), separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{\n  "properties": {\n    "a": tru\n  }\n}', "line 3, column 10"),
        ('{"properties": {"a": 1}', "line 1, column 24"),
        ('{"properties": {"a": 1,}}', "line 1, column 24"),
        ("", "line 1, column 1"),
        ("[1]", "expected an object"),
        ('{\n "properties": {\n  "a": 1,\n  "b": {"$datetime": "noon"}\n }\n}', "line 4: b: 'noon' is no $datetime"),
        ('{\n "properties": {\n  "n": 99999999999999999999\n }\n}', "line 3"),
        ('{"properties": {"a": {"$who": 1}}}', "unknown type '$who'"),
        ('{"props": {}}', "unknown member 'props'"),
        ('{"key": "/A:1"}', "expected a member properties"),
        ('{"properties": {"": 1}}', "name"),
        ('{"key": "/A", "properties": {}}', ""),
    ],
)
def test_what_is_wrong_with_a_document_is_told_with_its_line(text: str, told: str) -> None:
    documents = JSONDocuments()

    def look() -> None:
        documents.key_of(text.encode())
        documents.check(text.encode(), key(1))

    with pytest.raises(BadValueError) as caught:
        look()
    assert told in str(caught.value)


# -------------------------------------------------------------------------------------------- hand edits

LONDON = Key("Country", "GB", "City", 2643743)


async def fill(folder: Path, settings: str = "") -> None:
    async with datastore(folder, settings) as ds:
        await ds.put(
            [
                Entity(Key("Country", "GB"), {"name": "Britain"}),
                Entity(LONDON, {"name": "London", "size": 9}),
                Entity(Key("Country", "GB", "City", 2), {"name": "York", "size": 1}),
                Entity(Key("Country", "FR", "City", 3), {"name": "Paris", "size": 2}),
            ]
        )


async def names(ds: Datastore) -> list[str]:
    """The cities by name, which agree with their indexes."""
    assert await ds.adapter.check() == []
    return [city["name"] async for city in ds.query("City").order("name")]


async def test_an_entity_is_a_file_where_its_key_says(folder: Path) -> None:
    await fill(folder)
    assert tree(folder) == {
        "Country/GB.json",
        "Country/GB/City/2643743.json",
        "Country/GB/City/2.json",
        "Country/FR/City/3.json",
    }
    document = json.loads((folder / "Country/GB/City/2643743.json").read_text())
    assert document == {"key": "/Country:GB/City:2643743", "properties": {"name": "London", "size": 9}}
    async with datastore(folder) as ds:
        await ds.delete([Key("Country", "FR", "City", 3), Key("Country", "GB")])
    assert tree(folder) == {"Country/GB/City/2643743.json", "Country/GB/City/2.json"}
    assert not (folder / "Country/FR").exists()


async def test_a_changed_file_is_found_with_its_new_values(folder: Path) -> None:
    await fill(folder)
    async with datastore(folder) as ds:
        before = {city.key: city.version async for city in ds.query("City")}
    path = folder / "Country/GB/City/2643743.json"
    path.write_text(path.read_text().replace("London", "Londinium"))
    async with datastore(folder) as ds:
        assert await names(ds) == ["Londinium", "Paris", "York"]
        assert await ds.query("City").filter("name", "=", "London").count() == 0
        after = {city.key: city.version async for city in ds.query("City")}
        assert after.pop(LONDON) > max(before.values())
        assert before.pop(LONDON)
        assert after == before
    async with datastore(folder) as ds:
        assert await names(ds) == ["Londinium", "Paris", "York"]


async def test_new_and_removed_files_are_new_and_removed_entities(folder: Path) -> None:
    await fill(folder)
    (folder / "Country/GB/City/2.json").unlink()
    (folder / "Country/GB.json").unlink()
    (folder / "Country/FR/City/50.json").write_text('{"properties": {"name": "Lyon"}}')
    (folder / "City").mkdir()
    (folder / "City/atlantis.json").write_text('{"key": "/City:atlantis", "properties": {"name": "Atlantis"}}')
    async with datastore(folder) as ds:
        assert await names(ds) == ["Atlantis", "London", "Lyon", "Paris"]
        assert await ds.get([Key("Country", "GB"), Key("Country", "GB", "City", 2)]) == [None, None]
        assert await ds.query("Country").count() == 0
        lyon = await ds.get(Key("Country", "FR", "City", 50))
        assert lyon is not None
        assert lyon["name"] == "Lyon"
        await ds.delete(lyon.key)
        new = Entity(Key("City"), {"name": "Nova"})
        await ds.put(new)
        assert new.key.id is not None
        assert new.key.id > 50
        assert await names(ds) == ["Atlantis", "London", "Nova", "Paris"]
    assert "Country/FR/City/50.json" not in tree(folder)


async def test_files_that_were_only_touched_or_copied_keep_their_versions(folder: Path, tmp_path: Path) -> None:
    await fill(folder)
    async with datastore(folder) as ds:
        before = {city.key: city.version async for city in ds.query("City")}
    (folder / "Country/GB/City/2.json").touch()
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    for place in (folder, copied):
        async with datastore(place) as ds:
            assert {city.key: city.version async for city in ds.query("City")} == before
            assert await names(ds) == ["London", "Paris", "York"]


async def test_edits_reach_composite_indexes(folder: Path) -> None:
    await fill(folder)
    async with datastore(folder) as ds:
        definition = IndexDefinition("City", (("size", "desc"), ("name", "asc")))
        await ds.adapter.create_index(definition)
        await ds.adapter.build_index(definition)
    path = folder / "Country/GB/City/2.json"
    path.write_text(path.read_text().replace('"size": 1', '"size": 30'))
    async with datastore(folder, require_indexes=True) as ds:
        assert await ds.adapter.check() == []
        found = [city["name"] async for city in ds.query("City").order("-size").order("name")]
        assert found == ["York", "London", "Paris"]
    for name in ("snapshot", "journal", "lock"):
        (folder / ".aiodatastore" / name).unlink()
    async with datastore(folder, require_indexes=True) as ds:  # as after git clone
        assert await ds.adapter.check() == []
        assert [city["name"] async for city in ds.query("City").order("-size").order("name")] == found


async def test_every_unusable_file_is_named_with_its_line(folder: Path) -> None:
    await fill(folder)
    gb = folder / "Country/GB/City"
    (gb / "2.json").write_text('{\n  "properties": {\n    "name": "York",,\n  }\n}\n')
    (gb / "4.json").write_text('{"key": "/Country:GB/City:5", "properties": {}}')
    (gb / "London.json").write_text('{"properties": {}}')
    (gb / "6.json").write_text('{\n"properties": {\n"when": {"$datetime": "2020-01-01T00:00:00"}}}')
    with pytest.raises(CorruptDataError) as caught:
        await datastore(folder).open()
    told = str(caught.value)
    assert "4 files can't be used" in told
    assert "Country/GB/City/2.json: line 3" in told
    assert "Country/GB/City/4.json: it names the key /Country:GB/City:5, whose file is Country/GB/City/5.json" in told
    assert "Country/GB/City/London.json: not the path of a key: 'London' should be 'London^1'" in told
    assert "Country/GB/City/6.json: line 3: when:" in told
    for name in ("4", "London", "6"):
        (gb / f"{name}.json").unlink()
    (gb / "2.json").write_text('{"properties": {"name": "Jorvik"}}')
    async with datastore(folder) as ds:  # the lock was given back
        assert await names(ds) == ["Jorvik", "London", "Paris"]


async def test_damaged_files_can_be_left_alone(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    await fill(folder)
    path = folder / "Country/GB/City/2.json"
    path.write_text("{")
    york = Key("Country", "GB", "City", 2)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "aiodatastore"):
            async with datastore(folder, "?damaged=leave") as ds:
                assert [city["name"] async for city in ds.query("City").order("name")] == ["London", "Paris"]
                with pytest.raises(CorruptDataError, match=r"City/2\.json: line 1"):
                    await ds.get(york)
                await ds.put(Entity(Key("Other", 1)))
        assert "City/2.json" in caplog.text
        assert path.read_text() == "{"
    with pytest.raises(CorruptDataError):
        await datastore(folder).open()
    async with datastore(folder, "?damaged=leave") as ds:
        await ds.put(Entity(york, {"name": "York again"}))
        assert await names(ds) == ["London", "Paris", "York again"]
    async with datastore(folder) as ds:
        assert await names(ds) == ["London", "Paris", "York again"]


async def test_a_damaged_entity_can_be_deleted(folder: Path) -> None:
    await fill(folder)
    (folder / "Country/GB/City/2.json").write_text("{")
    async with datastore(folder, "?damaged=leave") as ds:
        await ds.delete(Key("Country", "GB", "City", 2))
        assert await names(ds) == ["London", "Paris"]
    assert "Country/GB/City/2.json" not in tree(folder)


async def test_edits_while_open_leave_no_stray_index_rows(folder: Path) -> None:
    await fill(folder)
    async with datastore(folder, "?cache_mb=0") as ds:
        path = folder / "Country/GB/City/2.json"
        path.write_text(path.read_text().replace("York", "Jorvik"))
        (folder / "Country/FR/City/3.json").unlink()
        with pytest.raises(CorruptDataError, match=r"City/3\.json is gone"):
            await ds.get(Key("Country", "FR", "City", 3))
        await ds.put(Entity(Key("Country", "GB", "City", 2), {"name": "Ebor"}))
        await ds.delete(Key("Country", "FR", "City", 3))
        assert await names(ds) == ["Ebor", "London"]


async def test_other_files_are_no_business_of_the_store(folder: Path) -> None:
    folder.mkdir()
    (folder / "README.md").write_text("about")
    (folder / "package.json").write_text("{}")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.json").write_text("{")
    await fill(folder)
    (folder / "Country" / "notes.txt").write_text("notes")
    (folder / "Country" / "._GB.json").write_bytes(b"\0")
    async with datastore(folder) as ds:
        assert await names(ds) == ["London", "Paris", "York"]
        await ds.delete([city.key async for city in ds.query("City")])
    assert {"README.md", "package.json", "Country/notes.txt"} < tree(folder)


async def test_a_folder_written_by_hand_is_a_store(folder: Path) -> None:
    (folder / "City").mkdir(parents=True)
    for n in range(1, 4):
        (folder / f"City/{n}.json").write_text(json.dumps({"properties": {"name": f"c{n}"}}))
    async with datastore(folder) as ds:
        assert await names(ds) == ["c1", "c2", "c3"]
        new = Entity(Key("City"), {"name": "c4"})
        await ds.put(new)
        assert new.key.id not in (1, 2, 3)


async def test_ids_go_on_after_a_clone(folder: Path) -> None:
    async with datastore(folder) as ds:
        await ds.put([Entity(Key("City"), {"name": f"c{n}"}) for n in range(5)])
    own = folder / ".aiodatastore"
    kept = {*(own / ".gitignore").read_text().split("\n!")[1:], ".gitignore"}
    assert "store.json\n" in kept
    for path in own.iterdir():
        if path.name not in ("store.json", ".gitignore"):
            path.unlink()
    async with datastore(folder) as ds:
        known = {city.key async for city in ds.query("City")}
        assert len(known) == 5
        more = [Entity(Key("City"), {"name": "new"}) for _ in range(30)]
        await ds.put(more)
        assert not known & {entity.key for entity in more}
        assert await ds.query("City").count() == 35


# -------------------------------------------------------------------------------- layouts and serializers


@pytest.mark.parametrize(
    "settings", ["?layout=kind", "?layout=kind&serializer=json", "?serializer=compact", "?serializer=msgpack"]
)
async def test_layouts_and_serializers(folder: Path, settings: str) -> None:
    await fill(folder, settings)
    expected = {
        "?layout=kind": {"Country.jsonl", "City.jsonl"},
        "?layout=kind&serializer=json": {"Country.jsonl", "City.jsonl"},
        "?serializer=compact": {f"Country/{name}.json" for name in ("GB", "GB/City/2643743", "GB/City/2", "FR/City/3")},
        "?serializer=msgpack": {
            f"Country/{name}.msgpack" for name in ("GB", "GB/City/2643743", "GB/City/2", "FR/City/3")
        },
    }
    assert tree(folder) == expected[settings]
    async with datastore(folder) as ds:  # a store knows its layout, and every serializer reads all
        assert await names(ds) == ["London", "Paris", "York"]
        await ds.put(Entity(LONDON, {"name": "London 2"}))
        await ds.delete(Key("Country", "GB", "City", 2))
    async with datastore(folder, "?serializer=compact") as ds:
        assert await names(ds) == ["London 2", "Paris"]
        await ds.delete([city.key async for city in ds.query("City")])
    assert not any("City" in path for path in tree(folder))


async def test_a_kind_in_one_file_is_lines_in_order(folder: Path) -> None:
    await fill(folder, "?layout=kind")
    path = folder / "City.jsonl"
    lines = path.read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [
        "/Country:FR/City:3",
        "/Country:GB/City:2",
        "/Country:GB/City:2643743",
    ]
    async with datastore(folder) as ds:
        before = {city.key: city.version async for city in ds.query("City")}
    lines[1] = lines[1].replace("York", "Jorvik")
    lines.insert(0, '{"key": "/City:9", "properties": {"name": "Nine"}}')
    path.write_text("\n".join([*lines[:-1], "", ""]))
    async with datastore(folder) as ds:
        assert await names(ds) == ["Jorvik", "Nine", "Paris"]
        paris = await ds.get(Key("Country", "FR", "City", 3))
        assert paris is not None
        assert paris.version == before[paris.key]
    path.write_text(lines[1] + "\n" + lines[1] + "\n")
    with pytest.raises(CorruptDataError, match=r"City\.jsonl: line 2: a second line of the key"):
        await datastore(folder).open()
    path.write_text(lines[1] + "\n{]\n")
    with pytest.raises(CorruptDataError, match=r"City\.jsonl: line 2"):
        await datastore(folder, "?damaged=leave").open()  # the line would be lost when the file is written anew
    path.write_text('{"key": "/Country:GB", "properties": {}}\n')
    with pytest.raises(
        CorruptDataError, match=r"line 1: it is of the key /Country:GB; the file of its kind is Country"
    ):
        await datastore(folder).open()
    path.unlink()
    async with datastore(folder) as ds:
        assert await names(ds) == []
        assert await ds.query("Country").count() == 1


async def test_a_kind_in_one_file_survives_a_crash(folder: Path) -> None:
    await fill(folder, "?layout=kind")
    ds = datastore(folder, "?linger_s=60")
    await ds.open()
    await ds.put([Entity(LONDON, {"name": "London 2"}), Entity(Key("City", 1), {"name": "Bath"})])
    await ds.delete(Key("Country", "FR", "City", 3))
    await abandoned(ds)
    path = folder / "City.jsonl"
    path.write_text(path.read_text().replace("York", "Jorvik"))  # the others are as before the crash
    async with datastore(folder, "?read_only=true") as ds:
        assert await names(ds) == ["Bath", "Jorvik", "London 2"]
    for _ in range(2):
        async with datastore(folder) as ds:
            assert await names(ds) == ["Bath", "Jorvik", "London 2"]
    assert [json.loads(line)["properties"]["name"] for line in path.read_text().splitlines()] == [
        "Bath",
        "Jorvik",
        "London 2",
    ]


async def test_kinds_without_their_store_json_are_not_overlooked(folder: Path) -> None:
    await fill(folder, "?layout=kind")
    shutil.rmtree(folder / ".aiodatastore")
    with pytest.raises(BadArgumentError, match="say layout=kind"):
        await datastore(folder).open()
    async with datastore(folder, "?layout=kind") as ds:
        assert await names(ds) == ["London", "Paris", "York"]


async def test_a_layout_is_for_good(folder: Path) -> None:
    await fill(folder)
    for wrong in ("?layout=kind", "?extension=.js"):
        with pytest.raises(BadArgumentError, match="was made with"):
            await datastore(folder, wrong).open()
    async with datastore(folder, "?layout=entity&extension=.json") as ds:
        assert await names(ds) == ["London", "Paris", "York"]


async def test_long_keys_have_short_paths_and_tell_their_keys(folder: Path) -> None:
    keys = [
        Key("City", "Ä" * 600),
        Key("City", "ä" * 600),
        Key(*["Kind", "x" * 150] * 20),
        Key("C" * 1500, 5, "Child", 1),
    ]
    for chosen in ("", "?serializer=msgpack"):
        place = folder.with_name(f"data{chosen[1:4]}")
        async with datastore(place, chosen) as ds:
            await ds.put([Entity(k, {"n": n}) for n, k in enumerate(keys)])
        (place / ".aiodatastore/snapshot").unlink()
        async with datastore(place) as ds:
            found = await ds.get(keys)
            assert [entity and entity["n"] for entity in found] == [0, 1, 2, 3]
            assert await ds.adapter.check() == []
            await ds.delete(keys)
        assert not tree(place)


@pytest.mark.parametrize(
    "settings",
    [
        "?layout=heap",
        "?extension=json",
        "?extension=.key",
        "?extension=.JSON",
        "?serializer=pickle",
        "?layout=kind&serializer=msgpack",
        "?damaged=repair",
        "?cache_mb=-1",
        "?journal_mb=0",
        "?linger_s=-1",
        "?colour=red",
        "?progress=x",
    ],
)
def test_bad_settings_are_refused(folder: Path, settings: str) -> None:
    with pytest.raises(BadArgumentError):
        adapter_from_url(f"file:///{folder}{settings}")


async def test_payloads_that_are_not_json_have_no_place_in_lines(folder: Path) -> None:
    async with opened(folder, layout="kind", documents=JSONDocuments()) as store:
        with pytest.raises(BadRequestError, match="layout=kind"):
            await commit(store, puts((key(1), b"red")))
        assert (await store.read([key(1)])).records == [None]
    with pytest.raises(BadArgumentError, match="layout=kind"):
        await FileRowStore(folder / "x", layout="kind").open()


# ------------------------------------------------------------------------------------ faults and recovery


class DiedError(OSError):
    """The process is gone; so is every call after the one that was its last."""


CHANGING = ("open", "write", "ftruncate", "fsync", "fdatasync", "replace", "unlink", "rmdir", "makedirs", "lseek")


class Faults:
    """``os`` for the module that changes files: fails at one call, or from it on."""

    def __init__(self, at: int, error: Callable[[], OSError], *, forever: bool) -> None:
        self._at, self._error, self._forever = at, error, forever
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING:
            return real

        def call(*args: Any, **named: Any) -> Any:
            if name == "open" and args[1] & (os.O_WRONLY | os.O_RDWR) == 0:
                return real(*args, **named)
            self.calls += 1
            if self.calls == self._at or (self._forever and self.calls > self._at):
                if name == "write" and self.calls == self._at:
                    real(args[0], bytes(args[1][: len(args[1]) // 2]))
                raise self._error()
            return real(*args, **named)

        return call


@contextmanager
def failing(at: int, error: Callable[[], OSError], *, forever: bool) -> Iterator[Faults]:
    faults = Faults(at, error, forever=forever)
    vars(disk)["os"] = faults
    try:
        yield faults
    finally:
        vars(disk)["os"] = os


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def steps() -> list[RowCommit]:
    """Commits of several entities, overwriting and deleting what came before."""
    return [
        puts((key(1), b"red,*blue"), (key("a"), b"red")),
        puts((key(2), b"red"), (key(1), b"green")),
        RowCommit(deletes=[key("a")], puts=[RowPut(key(3), b"x", rows_of(key(3), b"x"))]),
        RowCommit(puts=[RowPut(key(4), b"y" * 3000, rows_of(key(4), b"y" * 3000))], deletes=[key(2)]),
        puts((key("a"), b"again"), (b"no key", b"red")),
    ]


def after(count: int) -> dict[bytes, bytes]:
    """The payloads after so many of the steps."""
    expected: dict[bytes, bytes] = {}
    for step in steps()[:count]:
        for gone in step.deletes:
            expected.pop(gone, None)
        expected.update({put.key: put.payload for put in step.puts})
    return expected


async def check_state(store: FileRowStore, counts: set[int]) -> int:
    """The store is as after one of these numbers of steps, indexes and all; which one."""
    found = {row: payload for row, (_, payload) in (await entities(store)).items()}
    [count] = [count for count in counts if found == after(count)] or [-1]
    assert count >= 0, (sorted(found), counts)
    expected: dict[bytes, int] = {}
    for name, payload in after(count).items():
        expected.update(rows_of(name, payload))
    assert await index_rows(store) == expected
    multi = sum(row.startswith(b"blue") for row in expected)
    assert await store.count(ALL_ROWS) == (len(expected), multi, (await store.read([])).version)
    return count


def strict_rows(name: bytes, payload: bytes) -> Mapping[bytes, int]:
    """The index rows of what the steps write; anything else is damage."""
    if payload not in {put.payload for step in steps() for put in step.puts}:
        raise CorruptDataError("damaged")
    return rows_of(name, payload)


@pytest.mark.parametrize(("linger_s", "power_fails"), [(0.0, False), (0.0, True), (60.0, False)])
async def test_death_between_any_two_calls_loses_nothing_acknowledged(
    folder: Path, linger_s: float, power_fails: bool, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if anyio_backend == "trio":
        pytest.skip("the files know no event loop")
    monkeypatch.setattr(module, "_TICK_S", 0.0)  # nobody edits here
    at = 0
    while True:
        at += 1
        shutil.rmtree(folder, ignore_errors=True)
        store = made(folder, linger_s=linger_s)
        await store.open()
        acknowledged = 0
        with failing(at, lambda: DiedError(errno.EIO, "died"), forever=True) as faults:
            try:
                for number, step in enumerate(steps(), 1):
                    await commit(store, step)
                    acknowledged = number
                    if number == 3:
                        await anyio.to_thread.run_sync(store._checkpoint)
                    if linger_s == 0:
                        await anyio.sleep(0.002)
                await store.aclose()
            except (UnavailableError, OSError):
                pass
            finally:
                abandon(store)
        if power_fails:
            for path in store._applier.unsynced if store._applier is not None else ():
                if os.path.exists(path):
                    os.truncate(path, 0 if at % 2 else 1)
        again = made(folder)
        again.index_rows = strict_rows
        await again.open()
        await again.aclose()
        async with opened(folder) as again:
            reached = await check_state(again, {acknowledged, min(acknowledged + 1, 5)})
            newest = await commit(again, puts((key("next"), b"red")))
            assert versions(newest) == [reached + 1]
        async with opened(folder) as again:
            assert key("next") in await entities(again)
        if faults.calls < at:
            assert acknowledged == 5
            assert at > 30
            return


async def test_a_full_disk_at_any_call_leaves_a_store_that_works(
    folder: Path, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if anyio_backend == "trio":
        pytest.skip("the files know no event loop")
    monkeypatch.setattr(module, "_TICK_S", 0.0)  # nobody edits here
    at = 0
    failed_at_all = 0
    while True:
        at += 1
        shutil.rmtree(folder, ignore_errors=True)
        store = made(folder, linger_s=0.0)
        await store.open()
        with failing(at, full, forever=False) as faults:
            for number, step in enumerate(steps(), 1):
                for _ in range(2):
                    try:
                        await commit(store, step)
                        break
                    except StoreFullError:
                        failed_at_all += 1
                        await check_state(store, {number - 1})
                await check_state(store, {number})
                if number == 3:
                    try:
                        await anyio.to_thread.run_sync(store._checkpoint)
                    except OSError:
                        failed_at_all += 1
            try:
                await store.aclose()
            except StoreFullError:
                failed_at_all += 1
        async with opened(folder) as again:
            await check_state(again, {5})
        if faults.calls < at:
            assert failed_at_all > 20
            return


async def test_no_space_is_an_error_and_soon_forgotten(folder: Path) -> None:
    async with opened(folder) as store:
        await commit(store, puts((key(1), b"red")))
        with failing(1, full, forever=True):
            for _ in range(3):
                with pytest.raises(UnavailableError):
                    await commit(store, puts((key(2), b"red")))
            assert set(await entities(store)) == {key(1)}
            with pytest.raises(UnavailableError):
                await store.allocate(b"s", 1)
    async with opened(folder) as store:
        assert versions(await commit(store, puts((key(2), b"red")))) == [2]


async def test_no_permission_is_an_error(folder: Path) -> None:
    async with opened(folder) as store:
        with (
            failing(2, lambda: OSError(errno.EACCES, "Permission denied"), forever=False),
            pytest.raises(StoreReadOnlyError, match="Permission denied"),
        ):
            await commit(store, puts((key(2), b"red")))
        assert versions(await commit(store, puts((key(2), b"red")))) == [1]
    not_a_folder = folder / "file"
    not_a_folder.write_text("")
    with pytest.raises(UnavailableError):
        await made(not_a_folder).open()


async def test_the_journal_may_end_anywhere_in_its_last_record(
    folder: Path, tmp_path: Path, anyio_backend: str
) -> None:
    if anyio_backend == "trio":
        pytest.skip("the files know no event loop")
    store = made(folder, linger_s=60.0)
    await store.open()
    journal = folder / ".aiodatastore/journal"
    ends = []
    for step in steps()[:3]:
        await commit(store, step)
        ends.append(journal.stat().st_size)
    abandon(store)
    whole = journal.read_bytes()
    assert len(whole) == ends[-1]
    for end in range(ends[1], ends[2] + 1):
        place = tmp_path / "cut"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        (place / ".aiodatastore/journal").write_bytes(whole[:end])
        async with opened(place, fsync=False) as again:
            await check_state(again, {3 if end == ends[2] else 2})
            await commit(again, puts((key("z"), b"red")))
        async with opened(place, fsync=False) as again:
            assert key("z") in await entities(again)


async def test_damage_inside_the_journal_is_told(folder: Path) -> None:
    store = made(folder, linger_s=60.0)
    await store.open()
    for step in steps():
        await commit(store, step)
    abandon(store)
    journal = folder / ".aiodatastore/journal"
    whole = journal.read_bytes()
    for place in (40, 60, 100):
        journal.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorruptDataError, match="journal: damaged at byte"):
            await made(folder).open()
    journal.write_bytes(b"aiodsjl9" + whole[8:])
    with pytest.raises(FormatVersionError):
        await made(folder).open()
    journal.write_bytes(b"something" + whole[8:])
    with pytest.raises(CorruptDataError, match="not a journal"):
        await made(folder).open()
    journal.write_bytes(whole)
    async with opened(folder) as again:
        await check_state(again, {5})


async def test_files_that_a_power_failure_emptied_come_from_the_journal(folder: Path) -> None:
    ds = datastore(folder)
    await ds.open()
    await ds.put([Entity(Key("City", n), {"name": f"c{n}"}) for n in range(1, 4)])
    await written(ds)
    await abandoned(ds)
    for n, lost in ((1, b""), (2, b"\0" * 50), (3, b'{"key": "/Ci')):
        (folder / f"City/{n}.json").write_bytes(lost)
    async with datastore(folder) as again:
        assert await names(again) == ["c1", "c2", "c3"]
    assert json.loads((folder / "City/2.json").read_text())["properties"] == {"name": "c2"}


async def test_edits_made_after_a_crash_are_kept(folder: Path) -> None:
    await fill(folder)
    ds = datastore(folder)
    await ds.open()
    await ds.put([Entity(Key("City", n), {"name": f"c{n}", "size": n}) for n in range(1, 4)])
    await ds.put(Entity(LONDON, {"name": "London 2"}))
    await written(ds)
    await abandoned(ds)
    for path, old, new in (("City/2.json", "c2", "edited"), ("Country/GB/City/2.json", "York", "Jorvik")):
        (folder / path).write_text((folder / path).read_text().replace(old, new))
    expected = ["Jorvik", "London 2", "Paris", "c1", "c3", "edited"]
    last = 0
    for _ in range(2):
        ds = datastore(folder)
        await ds.open()
        assert await names(ds) == expected
        city = await ds.get(Key("City", 2))
        assert city is not None
        assert city.version > last
        last = city.version
        await ds.put(Entity(Key("City", 1), {"name": "c1"}))
        await abandoned(ds)
    async with datastore(folder) as ds:
        assert await names(ds) == expected
    async with datastore(folder) as ds:
        assert await names(ds) == expected
        city = await ds.get(Key("City", 2))
        assert city is not None
        assert city.version > last


async def test_checkpoints_while_it_is_used(folder: Path) -> None:
    async with opened(folder, journal_mb=1, linger_s=0.0) as store:
        for n in range(60):
            await commit(store, puts((key(n % 7 + 1), b"red,%d," % n + b"x" * 50_000)))
        journal = read_journal(str(folder / ".aiodatastore/journal"), strict=True)
        assert journal is not None
        assert journal.generation > 3
        assert journal.size < 2 << 20
        expected = await entities(store), await index_rows(store)
        abandon(store)
        await store.open()
        assert (await entities(store), await index_rows(store)) == expected


async def test_index_rows_without_entities_survive(folder: Path) -> None:
    store = made(folder)
    await store.open()
    await commit(store, puts((key(1), b"red")))
    await commit(store, RowCommit(index_puts={b"new|" + key(1): len(key(1)), b"gone": 0}))
    await commit(store, RowCommit(index_deletes=[b"gone"]))
    expected = await index_rows(store)
    assert set(expected) == {b"red|" + key(1), b"new|" + key(1)}
    abandon(store)
    for _ in range(2):
        async with opened(folder) as again:
            assert await index_rows(again) == expected
            assert (await again.read([])).version == 3


async def test_sequences_survive_a_crash(folder: Path) -> None:
    store = made(folder)
    await store.open()
    assert await store.allocate(b"s\x00\xff", 10) == 1
    abandon(store)
    async with opened(folder) as again:
        assert await again.allocate(b"s\x00\xff", 5) == 11
    async with opened(folder) as again:
        assert await again.allocate(b"s\x00\xff", 0) == 16
        with pytest.raises(OverflowError):
            await again.allocate(b"s\x00\xff", 1, at_least=2**63)


# ---------------------------------------------------------------------------------------------- snapshots


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "old"])
async def test_a_damaged_snapshot_is_made_anew_from_the_files(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(folder)
    snapshot = folder / ".aiodatastore/snapshot"
    data = snapshot.read_bytes()
    async with datastore(folder) as ds:
        newest = max([city.version async for city in ds.query("City")])
        await ds.put(Entity(Key("City", 1), {"name": "Bath"}))
    if damage == "flip":
        snapshot.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "cut":
        snapshot.write_bytes(data[:-30])
    elif damage == "empty":
        snapshot.write_bytes(b"")
    elif damage == "gone":
        snapshot.unlink()
    else:
        snapshot.write_bytes(data)
    told: list[tuple[int, int | None]] = []
    with caplog.at_level(logging.INFO, "aiodatastore"):
        async with datastore(folder, progress=lambda done, total: told.append((done, total))) as ds:
            assert await names(ds) == ["Bath", "London", "Paris", "York"]
            assert min([city.version async for city in ds.query("City")]) > newest
    assert told[-1] == (5, 5)
    assert "reading all files" in caplog.text
    told.clear()
    async with datastore(folder, progress=lambda done, total: told.append((done, total))) as ds:
        assert await names(ds) == ["Bath", "London", "Paris", "York"]
    assert told == []


async def test_a_clean_open_reads_no_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(folder)
    read: list[str] = []
    real = disk.read

    def noted(path: str) -> bytes:
        read.append(path)
        return real(path)

    monkeypatch.setattr(disk, "read", noted)
    async with datastore(folder) as ds:
        assert await ds.query("City").filter("name", "=", "York").count() == 1
        assert [path for path in read if path.endswith("json") and "store.json" not in path] == []


@pytest.mark.parametrize("text", ["{", "{}", '{"aiodatastore": 2}', "[]"])
async def test_a_damaged_store_json_is_told(folder: Path, text: str) -> None:
    await fill(folder)
    (folder / ".aiodatastore/store.json").write_text(text)
    with pytest.raises(CorruptDataError, match=r"store\.json"):
        await datastore(folder).open()
    (folder / ".aiodatastore/store.json").unlink()
    async with datastore(folder) as ds:
        assert await names(ds) == ["London", "Paris", "York"]


# --------------------------------------------------------------------------------------- other processes


SCRIPT = """
import sys, time
import anyio
from aiodatastore import Datastore, Entity, Key

async def main():
    async with Datastore("file:///" + sys.argv[1]) as ds:
        n = 0
        while True:
            n += 1
            await ds.put([Entity(Key("City", n), {"n": n}), Entity(Key("Town", n), {"n": n})])
            print(n, flush=True)

anyio.run(main)
"""


@contextmanager
def writing(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


async def test_a_second_writer_is_told_who_is_the_first(folder: Path) -> None:
    with writing(folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(StoreBusyError, match=f"is open in process {process.pid} on .*read_only=true"):
            await datastore(folder).open()
        seen = 0
        for _ in range(5):
            async with datastore(folder, "?read_only=true") as ds:
                cities = await ds.query("City").count()
                assert cities == await ds.query("Town").count()
                assert await ds.adapter.check() == []
                assert cities >= seen
                seen = cities
                with pytest.raises(StoreReadOnlyError):
                    await ds.put(Entity(Key("City", 1)))
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.stdout if line.endswith("\n")]
    async with datastore(folder) as ds:
        assert await ds.query("City").count() >= told[-1]
        assert await ds.query("City").count() == await ds.query("Town").count()
        assert await ds.adapter.check() == []


async def test_two_stores_of_one_process_are_two_writers(folder: Path) -> None:
    async with opened(folder):
        with pytest.raises(StoreBusyError, match=rf"open in this process \(pid {os.getpid()}\) already"):
            await made(folder).open()
    async with opened(folder):
        pass


async def test_a_reader_shows_the_state_of_its_opening(folder: Path) -> None:
    with pytest.raises(UnavailableError, match="no such folder"):
        await made(folder, read_only=True).open()
    async with opened(folder, journal_mb=1, linger_s=0.0) as store:
        stop = False
        padding = b"x" * 3000

        async def write() -> None:
            for n in range(1000):
                await commit(store, puts((key(n % 5 + 1), b"n%d,%s" % (n, padding)), (key("same"), b"n%d,z" % n)))
                if stop:
                    return

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            last = 0
            for _ in range(20):
                await anyio.sleep(0.01)
                async with opened(folder, read_only=True) as reader:
                    before = await entities(reader)
                    await anyio.sleep(0.005)
                    assert await entities(reader) == before
                    expected: dict[bytes, int] = {}
                    for name, (_, payload) in before.items():
                        expected.update(rows_of(name, payload or b""))
                    assert await index_rows(reader) == expected
                    version = (await reader.read([])).version
                    assert version >= last
                    last = version
                    if version:
                        assert before[key("same")] == (version, b"n%d,z" % (version - 1))
                    with pytest.raises(StoreReadOnlyError):
                        await commit(reader, puts((key(1), b"")))
                    with pytest.raises(StoreReadOnlyError):
                        await reader.allocate(b"s", 1)
            stop = True


async def test_a_reader_leaves_no_trace(folder: Path) -> None:
    (folder / "City").mkdir(parents=True)
    (folder / "City/1.json").write_text('{"properties": {"name": "One"}}')
    async with datastore(folder, "?read_only=true") as ds:
        assert await names(ds) == ["One"]
    assert not (folder / ".aiodatastore").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_can_do_no_harm(folder: Path) -> None:
    async with opened(folder) as store:
        await commit(store, puts((key(1), b"red")))
        child = os.fork()
        if child == 0:
            try:
                store.read_now([key(1)])
            except StoreClosedError as exc:
                os._exit(0 if "before fork" in str(exc) else 2)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await commit(store, puts((key(2), b"red")))
        with pytest.raises(StoreBusyError):
            await made(folder).open()


async def test_an_unclosed_store_warns_and_lets_go(folder: Path) -> None:
    store = made(folder)
    await store.open()
    await commit(store, puts((key(1), b"red")))
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
        del store
        gc.collect()
    async with opened(folder) as again:
        assert set(await entities(again)) == {key(1)}


# ------------------------------------------------------------------------------------------------- reads


async def test_many_files_are_read_in_a_thread_and_of_one_moment(folder: Path) -> None:
    keys = [key(n) for n in range(1, 301)]
    async with opened(folder, cache_mb=0, linger_s=0.0) as store:
        await commit(store, puts(*[(k, b"r,0") for k in keys]))
        stop = False

        async def write() -> None:
            for n in range(1, 200):
                await commit(store, puts(*[(k, b"r,%d" % n) for k in keys[n % 7 :: 7]], (keys[0], b"r,%d" % n)))
                if stop:
                    return

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            for _ in range(15):
                records, version = await store.read(keys)
                assert max(record.version for record in records if record) == version
                for record in records:
                    assert record is not None
                    assert record.payload == b"r,%d" % (record.version - 1)
                scan = await store.scan(Span(Space.INDEX, b"r|", b"r~"), 1000, with_entities=True)
                assert len(scan.rows) == 300
                for _, _, shown, payload in scan.rows:
                    assert shown is not None
                    assert payload == b"r,%d" % (shown - 1)
                assert len((await store.scan(ALL_KEYS, 1000, with_entities=True)).rows) == 300
            stop = True


async def test_few_files_are_read_at_once_unless_the_disk_is_slow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(folder, cache_mb=0) as store:
        assert Capability.INLINE_READS in store.capabilities
        await commit(store, puts(*[(key(n), b"red") for n in range(1, 101)]))
        await anyio.to_thread.run_sync(store._applier.drain)  # type: ignore[union-attr]
        assert store.read_now([key(1), key(999)]) == [(1, b"red"), None]
        assert store.read_now([key(n) for n in range(1, 101)]) is None
        monkeypatch.setattr(module, "SLOW_S", -1.0)
        monkeypatch.setattr(disk, "blocks_read", lambda: store._blocks + 1)
        for bound in ("_SHARE", "_TURN_AWAY_S"):
            monkeypatch.setattr(module, bound, 1e9)
        assert store.read_now([key(1)]) == [(1, b"red")]
        assert store.read_now([key(1)]) is None  # the disk had to be waited for
        monkeypatch.setattr(disk, "blocks_read", lambda: store._blocks)
        store._inline_from = 0.0
        assert store.read_now([key(1)]) == [(1, b"red")]
        assert store.read_now([key(1)]) == [(1, b"red")]  # no block was read: the machine was busy
        store._inline_from = time.perf_counter() + 60
        assert store.read_now([key(1)]) is None
        assert (await store.read([key(1)])).records == [(1, b"red")]


async def test_the_cache_is_bounded_and_never_stale(folder: Path) -> None:
    async with opened(folder, cache_mb=1, linger_s=0.0) as store:
        for n in range(1, 31):
            await commit(store, puts((key(n), b"x" * 100_000)))
        assert store._cached <= 1 << 20
        assert store._cached == sum(len(payload) + 100 for payload in store._cache.values())
        await commit(store, puts((key(30), b"new")), RowCommit(deletes=[key(29)]))
        assert store.read_now([key(30), key(29), key(1)]) == [(31, b"new"), None, (1, b"x" * 100_000)]
        assert store._cached == sum(len(payload) + 100 for payload in store._cache.values())


async def test_a_cancelled_commit_is_seen_or_was_not(folder: Path) -> None:
    async with opened(folder, linger_s=0.0) as store:
        for n in range(1, 30):
            with anyio.move_on_after(n * 0.0001):
                await commit(store, puts((key(n), b"red"), (key(f"n{n}"), b"red")))
        before = await entities(store)
        abandon(store)
        await store.open()
        assert await entities(store) == before


async def test_a_closed_store_can_be_opened_again(folder: Path) -> None:
    store = made(folder)
    for n in range(3):
        await store.open()
        assert len(await entities(store)) == n
        await commit(store, puts((key(n + 1), b"red")))
        await store.aclose()
        await store.aclose()
    assert repr(store) == f"<FileRowStore file:///{folder} closed>"


# ------------------------------------------------------------------------------------------ measurement


@pytest.mark.slow
@pytest.mark.skipif("AIODATASTORE_BENCH" not in os.environ, reason="a measurement of minutes: set AIODATASTORE_BENCH")
@pytest.mark.timeout(600)
async def test_a_clean_open_of_200_thousand_entities_takes_under_three_seconds(folder: Path) -> None:
    async with datastore(folder) as ds:
        for start in range(1, 200_001, 1000):
            await ds.put(
                [
                    Entity(Key("City", n), {"name": f"city {n}", "country": n % 200, "population": n * 7})
                    for n in range(start, start + 1000)
                ]
            )
    took = []
    for _ in range(3):
        ds = datastore(folder)
        begin = time.perf_counter()
        await ds.open()
        took.append(time.perf_counter() - begin)
        assert await ds.query("City").filter("country", "=", 7).count() == 1000
        await ds.aclose()
    print(f"opened 200 thousand entities in {min(took):.2f} s")
    assert min(took) < 3
