"""Lists of children agree with what is there, whatever happens at once."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings

from aiodatastore import BadArgumentError, Datastore, Entity, Key, UnsupportedError
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import Capability
from aiodatastore.shims.base import Shim
from aiodatastore.shims.directories import Directories
from aiodatastore.shims.lowercase_keys import LowercaseKeys
from aiodatastore.shims.nested_path import NestedPath
from aiodatastore.shims.symlinks import Symlinks
from aiodatastore.testing.strategies import World
from aiodatastore.testing.suite.base import cancelled_at
from tests.shims.scripts import Step, play, scripts
from tests.shims.stacks import PROFILE

pytestmark = pytest.mark.anyio

P = Key("P", 1)


def memory() -> Any:
    return adapter_from_url("memory://")


async def children_by_query(ds: Datastore, key: Key) -> list[Key]:
    found = await ds.query(ancestor=key).keys()
    return [each for each in found if len(each.pairs) == len(key.pairs) + 1]


async def test_children_are_one_step_below_in_order() -> None:
    shim = Directories(memory(), buckets=3)
    async with Datastore(shim) as ds:
        keys = [P.child("A", "x"), P.child("A", 2), P.child("B", 1), P.child("A", "x").child("C", 1)]
        await ds.put([Entity(key) for key in keys])
        assert await shim.children_of(P) == sorted(keys[:3])
        assert await shim.children_of(keys[0]) == [keys[3]]
        assert await shim.children_of(keys[3]) == []
        await ds.put(Entity(keys[0], {"again": 1}))
        await ds.delete([keys[0], keys[0].child("C", 9)])
        assert await shim.children_of(P) == [keys[1], keys[2]]
        assert await shim.children_of(keys[0]) == [keys[3]]
        new = await ds.put(Entity(P.child("A")))
        assert new in await shim.children_of(P)
        assert await shim.children_of(Key("P", 1, namespace="n")) == []


async def test_lists_are_nowhere_seen() -> None:
    shim = Directories(memory())
    async with Datastore(shim) as ds:
        await ds.put([Entity(P), *(Entity(P.child("C", n), {"x": n}) for n in range(1, 40))])
        assert await ds.query().count() == 40
        assert len(await ds.query(ancestor=P).fetch()) == 40
        assert await ds.query().keys() == [P, *await shim.children_of(P)]
        assert await ds.query().limit(3).offset(38).keys() == [P.child("C", 38), P.child("C", 39)]
        assert await ds.query().order("__key__").limit(1).keys() == [P]
        assert [key.name for key in await ds.query("__kind__").keys()] == ["C", "P"]
        assert await ds.query("__kind__").count() == 2
        assert [row["kind"] for row in (await ds.stats())["kinds"]] == ["C", "P"]
        assert await ds.query("__property__").keys() == [Key("__kind__", "C", "__property__", "x")]
        seen, cursor, more = [], None, True
        while more:
            page = await ds.query().page(7, start=cursor)
            seen += [entity.key for entity in page.entities]
            cursor, more = page.cursor, page.more
        assert seen == await ds.query().keys()
        async with ds.transaction():
            await ds.delete(P.child("C", 1))
            assert await ds.query().count() == 39
            assert len(await ds.query(ancestor=P).fetch()) == 39


async def test_a_rollback_lists_nothing_and_a_commit_all() -> None:
    shim = Directories(memory())
    async with Datastore(shim) as ds:
        txn = ds.begin()
        await txn.put(Entity(P.child("C", 1)))
        await txn.rollback()
        assert await shim.children_of(P) == []
        async with ds.transaction():
            await ds.put([Entity(P.child("C", n)) for n in (1, 2)])
            assert await shim.children_of(P) == []
        assert await shim.children_of(P) == [P.child("C", 1), P.child("C", 2)]


async def test_writers_side_by_side() -> None:
    """Of the same children, and of one list: what is listed is what is there."""
    shim = Directories(memory(), buckets=2)
    async with Datastore(shim) as ds:

        async def write(first: int) -> None:
            for turn in range(8):
                number = (first * 3 + turn * 5) % 12 + 1
                if (first + turn) % 3:
                    await ds.put(Entity(P.child("C", number), {"by": first}))
                else:
                    await ds.delete(P.child("C", number))

        async with anyio.create_task_group() as group:
            for first in range(8):
                group.start_soon(write, first)
        assert await shim.children_of(P) == await children_by_query(ds, P)
        assert await ds.check() == []


async def test_conditions_are_those_of_the_caller() -> None:
    shim = Directories(memory())
    key = P.child("C", 1)
    async with Datastore(shim) as ds:
        with pytest.raises(Exception, match="no entity"):
            await ds.update(Entity(key))
        await ds.insert(Entity(key))
        with pytest.raises(Exception, match="exists already"):
            await ds.insert([Entity(P.child("C", 2)), Entity(key)])
        await ds.update(Entity(key, {"x": 1}))
        assert await shim.children_of(P) == [key]
        with pytest.raises(Exception, match="version"):
            await ds.delete(key, if_version=1)
        entity = await ds.get(key)
        assert entity is not None
        await ds.delete(key, if_version=entity.version)
        assert await shim.children_of(P) == []


async def test_cancelled_anywhere_lists_agree() -> None:
    shim = Directories(memory())
    async with Datastore(shim) as ds:
        for at in range(1, 30):
            key = P.child("C", at)

            async def body(key: Key = key) -> None:
                await ds.put(Entity(key))

            came = await cancelled_at(body, at)
            assert await shim.children_of(P) == await children_by_query(ds, P)
            if not came:
                break


async def test_what_was_there_before_is_listed_on_request() -> None:
    child = memory()
    shim = Directories(child, buckets=4)
    async with Datastore(shim) as ds:
        plain = Datastore(Opened(child))
        await plain.open()
        keys = [Key("P", n % 3 + 1, "C", n + 1, namespace=space) for n in range(130) for space in ("", "n")]
        await plain.put([Entity(key) for key in keys])
        await plain.aclose()
        assert await shim.children_of(P) == []
        seen: list[int] = []
        for _ in range(2):
            await shim.rebuild(progress=seen.append)
            for number in (1, 2, 3):
                for space in ("", "n"):
                    parent = Key("P", number, namespace=space)
                    assert await shim.children_of(parent) == await children_by_query(ds, parent) != []
        assert max(seen) == 260


class Opened(Shim):
    async def open(self) -> None:
        """Is open."""

    async def aclose(self) -> None:
        """Stays so."""


async def test_what_expires_is_refused_below_a_parent() -> None:
    class Mortal(Shim):
        @property
        def capabilities(self) -> frozenset[Capability]:
            return super().capabilities | {Capability.TTL}

    async with Datastore(Directories(Mortal(memory()))) as ds:
        with pytest.raises(UnsupportedError, match="expire"):
            await ds.put(Entity(P.child("C", 1)), ttl=5)
        assert await ds.get(P.child("C", 1)) is None


@pytest.mark.parametrize("buckets", [0, 1025, 1.0, True, "4"])
def test_wrong_numbers_are_refused(buckets: Any) -> None:
    with pytest.raises(BadArgumentError, match="buckets"):
        Directories(memory(), buckets=buckets)


async def test_what_is_no_key_has_no_children() -> None:
    shim = Directories(memory())
    async with Datastore(shim):
        for wrong in (None, "x", Key("K")):
            with pytest.raises(BadArgumentError, match="complete key"):
                await shim.children_of(wrong)  # type: ignore[arg-type]


@settings(
    settings.get_profile(PROFILE),
    max_examples=6 * settings.get_profile(PROFILE).max_examples,
    suppress_health_check=list(HealthCheck),
)
@given(script=scripts(3, 15))
def test_lists_agree_with_what_is_there(script: list[Step]) -> None:
    async def run() -> None:
        shim = Directories(memory(), buckets=2)
        async with Datastore(shim) as ds:
            await play(ds, script)
            for namespace in ("", "n"):
                keys = await ds.query(namespace=namespace).keys()
                for parent in {key.parent for key in keys if key.parent is not None}:
                    assert await shim.children_of(parent) == await children_by_query(ds, parent) != []
                    for kind in World().kinds:
                        assert await shim.children_of(parent.child(kind, 99)) == []

    anyio.run(run)


@pytest.mark.parametrize("shim", [Directories, Symlinks])
def test_a_child_that_takes_several_keys_for_one_is_refused(shim: Any) -> None:
    for child in (LowercaseKeys(memory()), Symlinks(memory())):
        with pytest.raises(BadArgumentError, match="put that above"):
            shim(child)
    assert shim(NestedPath(memory())).child.depth == 3
