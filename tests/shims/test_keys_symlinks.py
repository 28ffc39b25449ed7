"""Links: what follows them, what does not, and that nothing is lost while they change."""

from __future__ import annotations

import itertools
import random
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiodatastore import (
    BadArgumentError,
    BadRequestError,
    ConflictError,
    Datastore,
    Entity,
    EntityExistsError,
    EntityNotFoundError,
    Key,
    TransactionFailedError,
    UnsupportedError,
)
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import Capability
from aiodatastore.shims.base import Shim
from aiodatastore.shims.namespaced import Namespaced
from aiodatastore.shims.symlinks import MAX_LINKS, Symlinks
from tests.shims.stacks import PROFILE

pytestmark = pytest.mark.anyio

A, B, C, D = (Key("K", name) for name in "abcd")


def memory() -> Any:
    return adapter_from_url("memory://")


def n(key: Key, number: int) -> Entity:
    return Entity(key, {"n": number})


async def value(reader: Any, key: Key) -> Any:
    entity = await reader.get(key)
    return None if entity is None else entity["n"]


async def test_gets_and_puts_follow_and_deletions_do_not() -> None:
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        await ds.put(n(C, 1))
        await shim.link(B, C)
        await shim.link(A, B)
        assert await ds.get([A, B, C, D]) == [n(A, 1), n(B, 1), n(C, 1), None]
        await ds.put(n(A, 2))
        assert await ds.get([A, B, C]) == [n(A, 2), n(B, 2), n(C, 2)]
        assert (await shim.target(A), await shim.target(C), await shim.target(D)) == (B, None, None)
        await ds.delete(B)
        assert await ds.get([A, B, C]) == [None, None, n(C, 2)]
        await ds.put(n(A, 3))  # what it leads to is made
        assert await ds.get([A, B, C]) == [n(A, 3), n(B, 3), n(C, 2)]
        await ds.delete([A, C])
        assert await ds.get([A, B, C]) == [None, n(B, 3), None]
        assert await ds.check() == []


async def test_entities_by_a_link_are_apart() -> None:
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        await ds.put(Entity(B, {"n": [1]}))
        await shim.link(A, B)
        one, two, three = await ds.get([A, B, A])
        assert one is not None
        assert two is not None
        assert three is not None
        one["n"].append(2)
        two["n"].append(3)
        assert (one["n"], two["n"], three["n"]) == ([1, 2], [1, 3], [1])
        assert await ds.get(A) == Entity(A, {"n": [1]})


async def test_conditions_follow() -> None:
    """Versions, existence and absence are those of what a link leads to."""
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        await shim.link(A, B)
        with pytest.raises(EntityNotFoundError):
            await ds.update(n(A, 1))
        await ds.insert(n(A, 1))
        with pytest.raises(EntityExistsError):
            await ds.insert(n(A, 2))
        await ds.update(n(A, 2))
        entity = await ds.get(A)
        assert entity is not None
        await ds.put(n(B, 3))
        with pytest.raises(ConflictError) as caught:
            await ds.put(n(A, 4), if_version=entity.version)
        assert caught.value.key == A
        entity = await ds.get(A)
        assert entity is not None
        await ds.put(n(A, 5), if_version=entity.version)
        assert await value(ds, B) == 5


async def test_what_would_go_round_or_replace_an_entity_is_refused() -> None:
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        for source, target in ((A, A), (B, B)):
            with pytest.raises(BadRequestError, match="circle"):
                await shim.link(source, target)
        await shim.link(A, B)
        await shim.link(B, C)
        for target in (A, B):
            with pytest.raises(BadRequestError, match="circle"):
                await shim.link(C, target)
        await ds.put(n(D, 1))
        with pytest.raises(EntityExistsError):
            await shim.link(D, A)
        await shim.link(A, D)  # leads elsewhere from now on
        assert await value(ds, A) == 1
        await shim.link(C, A)
        assert await value(ds, B) == 1


async def test_a_chain_has_an_end() -> None:
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        keys = [Key("K", number + 1) for number in range(MAX_LINKS + 2)]
        for source, target in list(itertools.pairwise(keys))[:0:-1]:
            await shim.link(source, target)
        await ds.put(n(keys[1], 7))
        assert await value(ds, keys[-1]) == 7
        with pytest.raises(BadRequestError, match="32"):
            await shim.link(keys[0], keys[1])


@pytest.mark.parametrize("wrong", [("x", B), (A, None), (Key("K"), B), (A, Key("K"))])
async def test_what_is_no_key_is_no_link(wrong: tuple[Any, Any]) -> None:
    shim = Symlinks(memory())
    async with Datastore(shim):
        with pytest.raises(BadArgumentError, match="complete key"):
            await shim.link(*wrong)


async def test_kinds_that_have_links() -> None:
    shim = Symlinks(memory(), kinds=["Alias"])
    async with Datastore(shim) as ds:
        with pytest.raises(BadArgumentError, match="Alias"):
            await shim.link(A, B)
        alias = Key("Alias", 1)
        await shim.link(alias, B)
        await ds.put([n(alias, 1), n(C, 2)])
        assert (await value(ds, B), await value(ds, C)) == (1, 2)
    for kinds in ("Alias", 7, [""], [1]):
        with pytest.raises(BadArgumentError):
            Symlinks(memory(), kinds=kinds)  # type: ignore[arg-type]
    assert Symlinks.url_settings["kinds"]("A,B") == ("A", "B")


def test_a_child_with_several_counters_is_refused() -> None:
    class Counters(Shim):
        @property
        def capabilities(self) -> frozenset[Capability]:
            return super().capabilities - {Capability.ONE_CLOCK}

    with pytest.raises(BadArgumentError, match="ONE_CLOCK"):
        Symlinks(Counters(memory()))


async def test_queries_give_what_links_lead_to() -> None:
    shim = Symlinks(memory())
    target = Key("Target", 1)
    async with Datastore(shim) as ds:
        await ds.put([n(target, 7), n(B, 2)])
        await shim.link(A, target)
        await shim.link(C, Key("Target", 2))
        for read in (ds.query("K"), ds.query("K").order("__key__"), ds.query("K").filter("__key__", "<", D)):
            assert await read.fetch() == [n(A, 7), n(B, 2)]
            assert await read.keys() == [A, B, C]
            assert await read.count() == 3
        assert await ds.query("K").order("-__key__").fetch() == [n(B, 2), n(A, 7)]
        assert await ds.query("K").filter("n", ">", 0).fetch() == [n(B, 2)]
        assert await ds.query(ancestor=A).fetch() == [n(A, 7)]
        assert [each.key for each in await ds.query().fetch()] == [A, B, target]
        page = await ds.query("K").page(1)
        assert page.entities == [n(A, 7)]
        assert await ds.query("K").start(page.cursor).fetch() == [n(B, 2)]
        assert await ds.query("K").project("n").fetch() != []


async def test_queries_in_transactions_see_changes_behind_links() -> None:
    """Of what a link leads to, and of the link."""
    for change in ("target", "link", "neither"):
        for keys_only in (False, True):
            shim = Symlinks(memory())
            async with Datastore(shim) as ds:
                target = Key("Target", 1)
                await ds.put([n(target, 1), n(Key("Target", 2), 1)])
                await shim.link(A, target)
                txn = ds.begin()
                query = txn.query("K")
                assert await (query.keys() if keys_only else query.fetch()) in ([A], [n(A, 1)])
                await txn.put(n(Key("Seen", 1), 1))
                if change == "target":
                    await ds.put(n(target, 2))
                elif change == "link":
                    await shim.link(A, Key("Target", 2))
                if change == "neither" or keys_only:  # its key is what was seen
                    await txn.commit()
                else:
                    with pytest.raises(TransactionFailedError):
                        await txn.commit()


@pytest.mark.parametrize("ask", ["sum", "count", "residual", "ancestor", "kindless", "in"])
async def test_links_behind_which_nothing_changes_make_no_conflict(ask: str) -> None:
    """However they were met; what they lead to is newer than they are."""
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        target = Key("K", "z")
        await shim.link(A, target)
        await ds.put([Entity(target, {"n": 1, "m": 2}), Entity(B, {"n": 2, "m": 1})])
        async with ds.transaction():
            query = ds.query("K")
            match ask:
                case "sum":
                    assert await query.sum("n") == 3
                case "count":
                    assert await query.count() == 3
                case "residual":
                    assert await query.filter("n", ">", 0).filter("m", ">", 0).order("m").keys() == [B, target]
                    assert await query.filter("n", ">", 0).filter("m", ">", 0).sum("m") == 3
                case "ancestor":
                    assert await ds.query(ancestor=A).keys() == [A]
                case "kindless":
                    assert len(await ds.query().fetch()) == 3
                case _:
                    assert await query.filter("__key__", "in", [A, B]).fetch() == [
                        Entity(A, {"n": 1, "m": 2}),
                        Entity(B, {"n": 2, "m": 1}),
                    ]
            await ds.put(n(Key("Seen", 1), 1))
        assert await value(ds, Key("Seen", 1)) == 1


async def test_own_writes_and_queries_do_not_mix() -> None:
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        assert Capability.EXACT_KEYS not in ds.capabilities
        async with ds.transaction():
            await ds.put(n(A, 1))
            assert await value(ds, A) == 1
            with pytest.raises(UnsupportedError, match="EXACT_KEYS"):
                await ds.query("K").fetch()


async def test_a_transaction_conflicts_with_changes_of_a_link() -> None:
    """Also where the new target has the version that the old one had."""
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        await ds.put([n(B, 1), n(C, 2)])  # one commit: one version
        await shim.link(A, B)
        txn = ds.begin()
        assert await value(txn, A) == 1
        await txn.put(n(A, 10))
        await shim.link(A, C)
        with pytest.raises(TransactionFailedError):
            await txn.commit()
        assert (await value(ds, B), await value(ds, C)) == (1, 2)
        txn = ds.begin()
        assert await value(txn, A) == 2
        await txn.put(n(D, 10))
        await ds.put(n(C, 3))
        with pytest.raises(TransactionFailedError):
            await txn.commit()


async def test_nothing_is_lost_while_links_change() -> None:
    """Increments through a link and past it, while it is moved to and fro: all of them count."""
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        await ds.put([n(B, 0), n(C, 0)])
        await shim.link(A, B)
        left = 60
        rng = random.Random(7)

        @ds.transactional(retries=1000)
        async def add(key: Key) -> None:
            entity = await ds.get(key)
            assert entity is not None
            await anyio.lowlevel.checkpoint()
            entity["n"] += 1
            await ds.put(entity)

        async def adder() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await add(rng.choice((A, A, B, C)))

        async def mover() -> None:
            while left > 0:
                await shim.link(A, rng.choice((B, C)))
                await anyio.sleep(0.005)

        async def blind(number: int) -> None:
            await ds.put(n(D, number))

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(adder)
            group.start_soon(mover)
            for number in range(30):
                group.start_soon(blind, number)
        assert await value(ds, B) + await value(ds, C) == 60
        assert await value(ds, D) in range(30)


async def test_concurrent_links_make_no_circle() -> None:
    shim = Symlinks(memory())
    async with Datastore(shim) as ds:
        for _ in range(10):
            refused = 0

            async def link(source: Key, target: Key) -> None:
                nonlocal refused
                try:
                    await shim.link(source, target)
                except BadRequestError:
                    refused += 1

            async with anyio.create_task_group() as group:
                for source, target in ((A, B), (B, C), (C, A)):
                    group.start_soon(link, source, target)
            assert refused == 1
            assert await ds.get([A, B, C]) == [None, None, None]
            await ds.delete([A, B, C])


KEYS = st.sampled_from((A, B, C, D))


@settings(
    settings.get_profile(PROFILE),
    max_examples=20 * settings.get_profile(PROFILE).max_examples,
    suppress_health_check=list(HealthCheck),
)
@given(steps=st.lists(st.tuples(st.sampled_from(("put", "delete", "link", "get", "add")), KEYS, KEYS), max_size=25))
def test_links_are_as_a_dict_of_them(steps: list[tuple[str, Key, Key]]) -> None:
    """Below a namespace, too, whose keys are others."""

    async def both() -> None:
        shim = Symlinks(Namespaced(memory(), "t"))
        links: dict[Key, Key] = {}
        held: dict[Key, int] = {}

        def end(key: Key) -> Key:
            while key in links:
                key = links[key]
            return key

        async with Datastore(shim) as ds:

            async def add(key: Key) -> None:
                await ds.put(n(key, (await value(ds, key) or 0) + 1))

            for number, (what, key, other) in enumerate(steps):
                if what == "put":
                    await ds.put(n(key, number))
                    held[end(key)] = number
                elif what == "add":
                    await ds.run_in_transaction(add, key)
                    held[end(key)] = held.get(end(key), 0) + 1
                elif what == "delete":
                    await ds.delete(key)
                    if links.pop(key, None) is None:
                        held.pop(key, None)
                elif what == "link":
                    passed = [other]
                    while passed[-1] in links:
                        passed.append(links[passed[-1]])
                    if key in held and key not in links:
                        with pytest.raises((EntityExistsError, BadRequestError)):
                            await shim.link(key, other)
                    elif key in passed:
                        with pytest.raises(BadRequestError):
                            await shim.link(key, other)
                    else:
                        await shim.link(key, other)
                        links[key] = other
                for each in (A, B, C, D):
                    assert await value(ds, each) == held.get(end(each))
            found = {each.key: each["n"] for each in await ds.query("K").fetch()}
            assert found == {each: held[end(each)] for each in (A, B, C, D) if end(each) in held}

    anyio.run(both)
