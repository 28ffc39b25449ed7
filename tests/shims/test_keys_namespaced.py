"""Tenants of one store never meet."""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiodatastore import BadArgumentError, BadKeyError, Cursor, Datastore, Entity, Key
from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import BadRequestError, UnavailableError
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.query import Query
from aiodatastore.shims.base import Shim
from aiodatastore.shims.namespaced import Namespaced
from tests.shims.scripts import Step, play, scripts
from tests.shims.stacks import PROFILE
from tests.shims.test_stacks import assert_alike

pytestmark = pytest.mark.anyio

TENANTS = ("a", "a.", "a.b", "a.-b", "a-", "-", ".", "..", "a..b", "b", "A", "_", "n")
"""Names that a careless join would mix up, with themselves or with namespaces inside."""
INSIDE = ("", "b", ".b", "-b", "-.b", "..", "-", "a.b", "n")


class Shared(Shim):
    """A store that is opened and closed by somebody else."""

    async def open(self) -> None:
        """Is open."""

    async def aclose(self) -> None:
        """Stays so."""


few = settings(
    settings.get_profile(PROFILE),
    max_examples=6 * settings.get_profile(PROFILE).max_examples,
    suppress_health_check=list(HealthCheck),
)


@few
@given(
    names=st.lists(st.sampled_from(TENANTS), min_size=2, max_size=2, unique=True),
    turns=st.lists(st.tuples(st.integers(0, 1), scripts(1, 3)), min_size=2, max_size=8),
)
def test_each_tenant_is_as_alone(names: list[str], turns: list[tuple[int, list[Step]]]) -> None:
    """Whatever both do, each sees what it would see in a store of its own."""

    async def both() -> None:
        store = adapter_from_url("memory://")
        async with (
            Datastore(store) as raw,
            Datastore("memory://") as first,
            Datastore("memory://") as second,
        ):
            alone = (first, second)
            tenants = [await tenant_of(store, name) for name in names]
            for who, script in turns:
                for step, one, other in zip(
                    script, await play(alone[who], script), await play(tenants[who], script), strict=True
                ):
                    assert_alike(one, other, step)
            for tenant, plain in zip(tenants, alone, strict=True):
                assert kinds(await tenant.stats()) == kinds(await plain.stats())
                assert await tenant.adapter.partitions() == await plain.adapter.partitions()
                await tenant.aclose()
            together = [len(kinds(await plain.stats())) for plain in alone]
            assert len(kinds(await raw.stats())) == sum(together)

    anyio.run(both)


async def tenant_of(store: Adapter, name: str) -> Datastore:
    ds = Datastore(Namespaced(Shared(store), name))
    await ds.open()
    return ds


def kinds(stats: dict[str, Any]) -> list[tuple[Any, ...]]:
    return sorted((row["project"], row["namespace"], row["kind"], row["entities"]) for row in stats["kinds"])


def inner(tenant: str, namespace: str) -> str:
    shim = Namespaced(adapter_from_url("memory://"), tenant)
    found, _ = shim.inner_query(Query("K", namespace=namespace))
    return found.namespace


def test_no_two_namespaces_meet_and_each_comes_back() -> None:
    pairs = list(itertools.product(TENANTS, INSIDE))
    stored = [inner(*pair) for pair in pairs]
    assert len(set(stored)) == len(pairs)
    for (tenant, namespace), name in zip(pairs, stored, strict=True):
        for other in TENANTS:
            found = Namespaced(adapter_from_url("memory://"), other)._freed_partition(("p", name))
            assert found == (("p", namespace) if other == tenant else None), (tenant, namespace, other)


@pytest.mark.parametrize("tenant", TENANTS)
def test_namespaces_keep_their_order(tenant: str) -> None:
    assert [inner(tenant, namespace) for namespace in sorted(INSIDE)] == sorted(inner(tenant, each) for each in INSIDE)


async def test_what_is_too_long_is_refused_alone() -> None:
    shim = Namespaced(adapter_from_url("memory://"), "t" * 60)
    async with Datastore(shim) as ds:
        long = Key("K", 1, namespace="n" * 40)
        fits = Key("K", 1, namespace="n" * 39)
        with pytest.raises(BadKeyError, match="100"):
            await ds.put(Entity(long))
        await ds.put(Entity(fits))
        assert await ds.get([long, fits, Key("K", 1)]) == [None, Entity(fits), None]
        assert await ds.get(long) is None
        with pytest.raises(BadKeyError):
            await ds.query("K", namespace=long.namespace).fetch()
        results: list[Any] = [None, None]

        async def put(place: int, key: Key) -> None:
            try:
                results[place] = await ds.put(Entity(key))
            except BadKeyError as exc:
                results[place] = exc

        async with anyio.create_task_group() as group:
            group.start_soon(put, 0, long)
            group.start_soon(put, 1, Key("K", 2))
        assert isinstance(results[0], BadKeyError)
        assert results[1] == Key("K", 2)

        async def both() -> None:
            assert await ds.get(long) is None
            await ds.put([Entity(long), Entity(Key("K", 3))])

        with pytest.raises(BadKeyError):
            await ds.run_in_transaction(both)
        assert await ds.get(Key("K", 3)) is None


@pytest.mark.parametrize("name", ["", None, 7, "a/b", "ü", "a" * 101, "." * 51])
def test_what_is_no_tenant_is_refused(name: Any) -> None:
    with pytest.raises(BadArgumentError):
        Namespaced(adapter_from_url("memory://"), name)


async def test_a_cursor_of_another_tenant_leads_nowhere_else() -> None:
    """It is a place in the order of keys, not a way in."""
    store = adapter_from_url("memory://")
    async with Datastore(store):
        one, two = await tenant_of(store, "one"), await tenant_of(store, "two")
        await one.put([Entity(Key("K", n), {"x": n}) for n in range(1, 6)])
        await two.put([Entity(Key("K", n), {"x": n}) for n in range(3, 9)])
        page = await one.query("K").page(3)
        assert page.cursor is not None
        cursor = Cursor.from_urlsafe(page.cursor.to_urlsafe())
        assert [key.id for key in await two.query("K").start(cursor).keys()] == [4, 5, 6, 7, 8]
        assert [key.id for key in await two.query("K").end(cursor).keys()] == [3]
        assert await two.query().count() == 6
        await one.aclose()
        await two.aclose()


async def test_tenants_share_what_they_are_part_of() -> None:
    """It is opened once and closed once, whoever comes and goes first."""
    events: list[str] = []

    class Told(Shim):
        async def open(self) -> None:
            events.append("open")
            await super().open()

        async def aclose(self) -> None:
            events.append("close")
            await super().aclose()

    store = Told(adapter_from_url("memory://"))
    for _ in range(2):
        one, two = Datastore(Namespaced(store, "one")), Datastore(Namespaced(store, "two"))
        async with anyio.create_task_group() as group:
            group.start_soon(one.open)
            group.start_soon(two.open)
        await one.put(Entity(Key("K", 1)))
        await one.aclose()
        await one.aclose()
        assert await two.query("K").count() == 0
        assert events == ["open"]
        await two.aclose()
        assert events == ["open", "close"]
        events.clear()


async def test_one_comes_while_the_last_goes() -> None:
    """The store is open again for who came."""
    events: list[str] = []

    class Slow(Shim):
        async def open(self) -> None:
            events.append("open")
            await anyio.sleep(0.01)
            await super().open()

        async def aclose(self) -> None:
            await anyio.sleep(0.01)
            events.append("close")
            await super().aclose()

    store = Slow(adapter_from_url("memory://"))
    one, *others = (Datastore(Namespaced(store, name)) for name in ("one", "two", "three"))
    await one.open()
    async with anyio.create_task_group() as group:
        group.start_soon(one.aclose)
        await anyio.sleep(0.001)
        for other in others:
            group.start_soon(other.open)
    assert events == ["open", "close", "open"]
    for other in others:
        await other.put(Entity(Key("K", 1)))
        await other.aclose()
    assert events == ["open", "close", "open", "close"]


async def test_a_store_that_does_not_open_can_be_tried_again() -> None:
    class Late(Shim):
        ready = False

        async def open(self) -> None:
            if not self.ready:
                raise UnavailableError("not yet")
            await super().open()

    store = Late(adapter_from_url("memory://"))
    ds = Datastore(Namespaced(store, "one"))
    with pytest.raises(UnavailableError):
        await ds.open()
    store.ready = True
    async with ds:
        assert await ds.query("K").count() == 0


async def test_namespaces_nest() -> None:
    store = adapter_from_url("memory://")
    async with Datastore(Namespaced(Namespaced(store, "acme"), "test")) as ds:
        await ds.put(Entity(Key("K", 1, namespace="x")))
        assert await store.partitions() == [("", "acme.test.x")]
        assert await ds.query("__namespace__").keys() == [Key("__namespace__", "x")]


async def test_indexes_are_each_tenants_own() -> None:
    """Listed, built and deleted by whoever created them; none is taken from another."""
    definition = IndexDefinition("K", (("a", "asc"), ("b", "desc")))
    store = EngineAdapter(MemoryRowStore())
    async with Datastore(store):
        one, two = await tenant_of(store, "one"), await tenant_of(store, "two")
        await one.put([Entity(Key("K", n), {"a": 1, "b": n}) for n in range(3)[1:]])
        await one.create_index(definition)
        assert await two.indexes() == []
        with pytest.raises(BadRequestError, match="no index"):
            await two.delete_index(definition)
        with pytest.raises(BadRequestError, match="no index"):
            await two.adapter.build_index(definition)
        await two.create_index(definition)
        await one.delete_index(definition)
        assert await one.indexes() == []
        assert [info.definition for info in await two.indexes()] == [definition]
        assert [info.definition for info in await store.indexes()] == [definition]
        assert await one.query("K").filter("a", "=", 1).order("-b").keys() == [Key("K", 2), Key("K", 1)]
        for tenant in (one, two):
            assert await tenant.query("__namespace__").count() == (1 if tenant is one else 0)
            await tenant.aclose()


async def test_disagreements_are_counted_not_told() -> None:
    rows = MemoryRowStore()
    store = EngineAdapter(rows)
    async with Datastore(Namespaced(store, "one")) as ds:
        await ds.put(Entity(Key("Secret", "name"), {"x": 1}))
        rows._set_row(min(rows._tails), None)
        other = Namespaced(store, "two")
        (line,) = await other.check()
        assert "Secret" not in line
        assert "1 disagreement" in line
