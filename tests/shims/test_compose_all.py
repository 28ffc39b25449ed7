"""Every shim and collection that URLs can name: made of a URL and of a file, described, and used as a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aiodatastore import BadArgumentError, Capability, Datastore, Entity, Key, KeyValue, StoreReadOnlyError
from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.composing import describe
from aiodatastore.composing.names import BUILT_IN, find

pytestmark = pytest.mark.anyio

URLS = {
    "cached": "cached{staleness_s=5&cache={memory://}}:memory://",
    "compressed": "compressed{threshold=10}:memory://",
    "delayed": "delayed{seconds=0.001&seed=3}:memory://",
    "directories": "directories:memory://",
    "encrypted": "encrypted{keys_env=FERNET_KEYS}:memory://",
    "failing": "failing{rate=0}:memory://",
    "limited": "limited{concurrency=3&max_batch=5000}:memory://",
    "logged": "logged{level=DEBUG}:memory://",
    "lowercase_keys": "lowercase_keys:memory://",
    "measured": "measured{name=shop}:memory://",
    "mounted": "mounted:{Person=memory:// | *=memory://}",
    "namespaced": "namespaced{namespace=acme}:memory://",
    "nested_path": "nested_path{depth=2}:memory://",
    "read_only": "read_only:memory://",
    "retrying": "retrying{attempts=3}:memory://",
    "sharded": "sharded{by=group&names=a,b,c}:{memory:// | memory:// | memory://}",
    "symlinks": "symlinks:memory://",
    "tiered": "tiered{staleness_s=5}:{memory:// | memory://}",
    "timeout": "timeout{seconds=30}:memory://",
}
NAMES = sorted(BUILT_IN)
DEEP = "logged:measured:cached{staleness_s=1}:namespaced{namespace=acme}:sharded:{retrying:memory:// | nested_path:memory://}"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    fernet = pytest.importorskip("cryptography.fernet")
    secret: str = fernet.Fernet.generate_key().decode()
    monkeypatch.setenv("FERNET_KEYS", secret)
    return secret


def test_every_name_is_tried() -> None:
    assert sorted(URLS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_names_and_settings_are_what_the_classes_have(name: str) -> None:
    known = find(name)
    assert known.make.__name__.lower() == name.replace("_", "")
    adapter = adapter_from_url(URLS[name])
    assert type(adapter) is known.make
    assert describe(adapter).tree.name == name
    assert set(known.settings) >= set(adapter.settings) - {"mounts"}, "what explain shows can be given in a URL"


@pytest.mark.parametrize("url", [*URLS.values(), DEEP])
def test_descriptions_name_who_lost_a_capability_and_no_secret(url: str, key: str) -> None:
    adapter = adapter_from_url(url)
    found = describe(adapter)
    for capability in Capability:
        assert bool(found.lost[capability]) is (capability not in adapter.capabilities)
    assert key not in f"{found} {found.to_dict()} {adapter!r} {adapter.url}"
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


@pytest.mark.parametrize("name", [*NAMES, "deep"])
async def test_a_store_of_each(name: str) -> None:
    async with Datastore(URLS.get(name, DEEP)) as ds:
        if name == "read_only":
            assert await ds.query("Person").fetch() == []
            with pytest.raises(StoreReadOnlyError):
                await ds.put(Entity(Key("Person", "ada")))
            return
        people = [Entity(Key("Person", f"p{n}"), {"n": n, "bio": "x" * n}, unindexed=["bio"]) for n in range(12)]
        await ds.put(people)
        assert await ds.query("Person").filter("n", ">=", 4).order("-n").fetch() == people[:3:-1]
        assert await ds.query("Person").count() == 12

        async def rename() -> None:
            found = await ds.get(Key("Person", "p3"))
            assert found is not None
            found["n"] = 100
            await ds.put(found)

        await ds.run_in_transaction(rename)
        assert await ds.query("Person").order("-n").keys(1) == [Key("Person", "p3")]
        kv = KeyValue(ds)
        await kv.put_many({"/comedy/actor:john": {"born": 1939}, "/comedy/actor:eric": {"born": 1943}, "/x": [[1]]})
        assert await kv.query("/comedy", type="actor").order("-born").values() == [{"born": 1943}, {"born": 1939}]
        assert await kv.get_many(["/x", "/y"]) == [[[1]], None]
        await ds.delete(people)
        assert await ds.query("Person").count() == 0
        assert await ds.check() == []


def toml_of(adapter: Adapter) -> dict[str, Any]:
    """The table that describes an adapter, by what it shows of itself."""
    tree = describe(adapter).tree.to_dict()

    def table(part: dict[str, Any]) -> dict[str, Any]:
        if "url" in part:
            return {"url": part["url"]}
        known = find(part["name"])
        settings: dict[str, Any] = {
            name: value
            for name, value in part["settings"].items()
            if name in known.settings and value not in ("none", "")
        }
        children = part["children"]
        if known.form == "child":
            settings |= {child["label"]: table(child) for child in children[1:]}
            return {"use": part["name"], **settings, "child": table(children[0])}
        if known.form == "children":
            return {"use": part["name"], **settings, "children": [table(child) for child in children]}
        return {"use": part["name"], **settings, "mounts": {child["label"]: table(child) for child in children}}

    return table(tree)


def written(value: Any) -> str:
    """A value as TOML has it, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {written(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


@pytest.mark.parametrize("url", [*URLS.values(), DEEP])
def test_a_file_says_the_same(url: str, tmp_path: Path) -> None:
    adapter = adapter_from_url(url)
    tmp_path.joinpath("store.toml").write_text(f"store = {written(toml_of(adapter))}\n", encoding="utf-8")
    again = adapter_from_url(f"toml:///{tmp_path}/store.toml")
    assert str(describe(again)) == str(describe(adapter))


def test_every_setting_is_checked() -> None:
    for name in NAMES:
        for setting, read in find(name).settings.items():
            if getattr(read, "__name__", "") in ("parse_int", "parse_float", "parse_bool"):
                held = URLS[name].partition("}:" if "{" in URLS[name].partition(":")[0] else ":")[2]
                with pytest.raises(BadArgumentError, match=f"{name} .*{setting} at character"):
                    adapter_from_url(f"{name}{{{setting}=nonsense}}:{held}")
