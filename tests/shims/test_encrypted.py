"""``Encrypted``: what can't be read without the key, what can, and which queries are refused."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.fernet import Fernet

from aiodatastore import (
    BadArgumentError,
    BadFilterError,
    BadRequestError,
    CorruptDataError,
    Datastore,
    Entity,
    IndexDefinition,
    Key,
    Or,
    PropertyFilter,
    Query,
    Text,
)
from aiodatastore.adapters.base import Commit, Put
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.rowstore import Capability
from aiodatastore.shims.compressed import Compressed
from aiodatastore.shims.encrypted import Encrypted
from tests.shims.stacks import ShimSuite

pytestmark = pytest.mark.anyio

KEY = Fernet.generate_key()
ADA = Key("Patient", "ada")


class TestSuite(ShimSuite):
    """All indexed values stay in clear, so that every query is answered."""

    stores_rows = True
    wrap = staticmethod(lambda adapter: Encrypted(adapter, KEY))


class TestCompressedAndEncrypted(ShimSuite):
    stores_rows = True
    wrap = staticmethod(lambda adapter: Compressed(Encrypted(adapter, KEY), threshold=0))


def raw(store: MemoryRowStore) -> bytes:
    """Everything that is stored."""
    return b"".join([*store._tails, *store._records, *(record.payload for record in store._records.values())])


def secret(**more: Any) -> Entity:
    properties = {
        "ward": "WARD",
        "diagnosis": "SECRET1",
        "notes": [Text("SECRET2"), Text("SECRET3")],
        "mixed": ["CLEAR", Text("SECRET4")],
        "address": {"city": "SECRET5", "more": [{"zip": "SECRET6"}]},
        "file": "SECRET7",
        **more,
    }
    return Entity(ADA, properties, unindexed=["file"])


async def test_what_is_named_or_unindexed_is_nowhere_in_the_store() -> None:
    for arguments in ({"properties": ["diagnosis", "address"]}, {"except_properties": ["ward", "mixed"]}):
        store = MemoryRowStore()
        shim = Encrypted(EngineAdapter(store), KEY, **arguments)  # type: ignore[arg-type]
        async with Datastore(shim) as ds:
            await ds.put(secret())
            everything = raw(store)
            assert b"SECRET" not in everything
            assert all(visible in everything for visible in (b"WARD", b"CLEAR", b"Patient", b"file"))
            assert b"diagnosis" not in everything
            assert await ds.get(ADA) == secret()
            assert await ds.query("Patient").filter("ward", "=", "WARD").fetch(2) == [secret()]
            assert await ds.query("Patient").filter("mixed", "=", "CLEAR").count() == 1
            async with ds.transaction():
                assert await ds.get(ADA) == secret()
                await ds.put(secret(diagnosis="SECRET8"))
                assert (await ds.query("Patient").fetch(1))[0]["diagnosis"] == "SECRET8"
            assert b"SECRET" not in raw(store)
            assert await ds.check() == []
            found = await ds.get(ADA)
        assert found == secret(diagnosis="SECRET8")
        assert list(found) == list(secret())


QUERY = Query("Patient")


@pytest.mark.parametrize(
    "query",
    [
        QUERY.filter("diagnosis", "=", "gout"),
        QUERY.order("-diagnosis"),
        QUERY.project("diagnosis"),
        QUERY.filter("address.city", ">", "A"),
        QUERY.filter("address.more.zip", "=", "A"),
        QUERY.filter("address", "=", None),
        QUERY.filter(Or(PropertyFilter("ward", "=", "B"), PropertyFilter("diagnosis", "=", "gout"))),
        Query.union([QUERY.filter("ward", "=", "B"), QUERY.filter("diagnosis", "=", "gout")]),
    ],
)
async def test_queries_by_what_is_encrypted_are_refused(query: Query) -> None:
    for arguments in ({"properties": ["diagnosis", "address"]}, {"except_properties": ["ward"]}):
        shim = Encrypted(EngineAdapter(MemoryRowStore()), KEY, **arguments)  # type: ignore[arg-type]
        async with Datastore(shim) as ds:
            for ask in (ds.query(query).fetch(1), ds.query(query).count()):
                with pytest.raises(BadFilterError, match="is encrypted and in no index"):
                    await ask
            async with ds.transaction():
                with pytest.raises(BadFilterError):
                    await ds.query(query).fetch(1)


async def test_other_queries_aggregates_and_indexes() -> None:
    shim = Encrypted(EngineAdapter(MemoryRowStore()), KEY, properties=["age", "a.b"])
    assert Capability.QUERIES not in shim.capabilities
    assert Capability.QUERIES in Encrypted(EngineAdapter(MemoryRowStore()), KEY).capabilities
    async with Datastore(shim) as ds:
        await ds.put(Entity(ADA, {"age": 36, "height": 170, "a": {"c": 1}, "a.b": 5}))
        assert await ds.query("Patient").sum("height") == 170
        with pytest.raises(BadFilterError, match="an aggregate can't use it"):
            await ds.query("Patient").sum("age")
        with pytest.raises(BadFilterError, match="an index can't use it"):
            await ds.create_index(IndexDefinition("Patient", (("height", "asc"), ("age", "asc"))))
        assert await ds.query("Patient").filter("a.c", "=", 1).filter("__key__", ">=", ADA).count() == 1
        assert await ds.get(ADA) == Entity(ADA, {"age": 36, "height": 170, "a": {"c": 1}, "a.b": 5})


async def test_keys_are_rotated_and_a_wrong_one_says_so() -> None:
    child = EngineAdapter(MemoryRowStore())
    await child.open()
    other = Fernet.generate_key()
    old, both, new = (Encrypted(child, keys) for keys in (KEY, [other, KEY], other))
    await old.commit([Commit(writes=[Put(secret())])])
    assert both.lookup_now([ADA]) == [secret()]
    for ask in (lambda: new.lookup([ADA]), lambda: new.run(QUERY).next_page()):
        with pytest.raises(CorruptDataError, match=r"encrypted properties of Key\('Patient', 'ada'\)") as caught:
            await ask()
        told = f"{caught.value} {caught.value.__cause__!r}"
        assert "SECRET" not in told
        assert other.decode() not in told
    await both.commit([Commit(writes=[Put(secret())])])
    assert new.lookup_now([ADA]) == [secret()]


async def test_a_commit_that_another_one_has_encoded_is_packed_anew() -> None:
    """As by collections that write the same to several stores."""
    other = Encrypted(EngineAdapter(MemoryRowStore()), Fernet.generate_key())
    plain = EngineAdapter(MemoryRowStore())
    shim = Encrypted(EngineAdapter(MemoryRowStore()), KEY)
    commit = Commit(writes=[Put(secret())])
    for adapter in (other, plain, shim):
        await adapter.open()
    other.encode(commit)
    for adapter in (shim, other, plain):
        await adapter.commit([commit])
        assert adapter.lookup_now([ADA]) == [secret()]
    assert b"SECRET2" not in raw(shim.child.store)  # type: ignore[attr-defined]


async def test_what_was_written_before_is_read_and_its_name_is_reserved() -> None:
    shim = Encrypted(EngineAdapter(MemoryRowStore()), KEY, properties=["diagnosis"])
    await shim.open()
    await shim.child.commit([Commit(writes=[Put(secret())])])
    assert shim.lookup_now([ADA]) == [secret()]
    [outcome] = await shim.commit([Commit(writes=[Put(Entity(ADA, {"~encrypted": 1}))])])
    assert isinstance(outcome.error, BadRequestError)


def test_keys_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATIENT_KEYS", f"{KEY.decode()}, {Fernet.generate_key().decode()}")
    for shim in (
        Encrypted(EngineAdapter(MemoryRowStore()), KEY),
        Encrypted(EngineAdapter(MemoryRowStore()), keys_env="PATIENT_KEYS"),
    ):
        assert KEY.decode() not in f"{shim!r} {shim.settings!r} {shim.url} {vars(shim)!r}"
    assert "PATIENT_KEYS" in repr(shim)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected keys, or keys_env"),
        ({"keys": KEY, "keys_env": "X"}, "expected keys, or keys_env"),
        ({"keys_env": "NO_SUCH_VARIABLE"}, "no variable 'NO_SUCH_VARIABLE'"),
        ({"keys": "hunter2"}, "a key is malformed"),
        ({"keys": []}, "expected a key at least"),
        ({"keys": KEY, "properties": "name"}, "properties: expected names"),
        ({"keys": KEY, "properties": [5]}, "properties: expected names"),
        ({"keys": KEY, "properties": ["a"], "except_properties": ["b"]}, "not both"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgumentError, match=message) as caught:
        Encrypted(EngineAdapter(MemoryRowStore()), **arguments)
    assert "hunter2" not in str(caught.value)
