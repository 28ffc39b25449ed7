"""Export, import, copy and compare, through shims and collections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key, OverloadedError, UnsupportedError
from aiodatastore.adapters.base import Commit, Outcome
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.shims import KeyTransform, Shim
from aiodatastore.transfer import compare, copy, export_entities, import_entities

pytestmark = pytest.mark.anyio

SHARDS = "{memory:// | memory:// | memory://}"
TARGETS = [
    f"sharded:{SHARDS}",
    "mounted:{Person=memory:// | *=memory://}",
    f"cached{{staleness_s=5}}:namespaced{{namespace=acme}}:sharded:{SHARDS}",
    "tiered{staleness_s=5}:{memory:// | memory://}",
    "symlinks:nested_path{depth=2}:memory://",
]


def lines(path: Path) -> Path:
    with path.open("w") as file:
        for number in range(60):
            file.write(json.dumps({"key": f"/Person:p{number}", "properties": {"n": number}}) + "\n")
            file.write(json.dumps({"key": f"/Person:p{number}/Task:{number + 1}", "properties": {"n": number}}) + "\n")
            file.write(json.dumps({"key": "/Task", "properties": {"n": number}}) + "\n")
    return path


@pytest.mark.parametrize("url", TARGETS)
async def test_there_and_back(url: str, tmp_path: Path) -> None:
    async with Datastore(url) as one, Datastore("memory://") as two, Datastore(url) as three:
        await one.put([Entity(Key("Task", number), {"mine": True}) for number in range(1, 41)])
        report = await import_entities(one, lines(tmp_path / "in.jsonl"))
        assert report.entities == 180
        assert await one.query("Task").filter("mine", "=", True).count() == 40  # which no automatic id has met
        assert await one.query("Task").count() == 160
        assert (await copy(one, two, verify=True)).different == 0
        assert (await copy(two, three, verify=True)).different == 0
        assert (await compare(one, three)).is_same
        await export_entities(three, tmp_path / "out.jsonl")
        assert tmp_path.joinpath("out.jsonl").read_text().count('"key"') == 220


class Refusing(Shim):
    """Judges no commit."""

    async def commit(self, batch: Sequence[Commit]) -> list[Outcome]:
        return [Outcome(None, error=OverloadedError("not now")) for _ in batch]


async def test_what_a_store_refuses_is_told(tmp_path: Path) -> None:
    async with Datastore(Refusing(adapter_from_url("memory://"))) as ds:
        with anyio.fail_after(60), pytest.raises(OverloadedError, match="not now"):
            await import_entities(ds, lines(tmp_path / "in.jsonl"))


async def test_a_store_without_the_order_of_keys_is_refused_by_name(tmp_path: Path) -> None:
    def swapped(key: Key) -> Key:
        return Key(key.kind, (key.name or "x").swapcase())

    store = KeyTransform(adapter_from_url("memory://"), encode=swapped, decode=swapped)
    async with Datastore(store) as ds, Datastore("memory://") as other:
        await ds.put(Entity(Key("K", "a")))
        with pytest.raises(UnsupportedError, match="order of their keys"):
            await export_entities(ds, tmp_path / "out.jsonl")
        with pytest.raises(UnsupportedError, match="order of their keys"):
            await copy(ds, other)
        with pytest.raises(UnsupportedError, match="order of their keys"):
            await compare(other, ds)
        assert (await copy(other, ds)).entities == 0
