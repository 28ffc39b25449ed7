"""``Cached`` and ``Tiered`` over PostgreSQL and Valkey: the suite."""

from __future__ import annotations

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.base import Adapter
from aiodatastore.shims.cached import Cached
from aiodatastore.shims.tiered import Tiered
from tests.engines import ENGINES, Bound, Place
from tests.shims.stacks import StackSuite, adapter_of


def on(name: str) -> pytest.MarkDecorator:
    """On one engine, if it is tested at all."""
    return pytest.mark.parametrize("engine", [ENGINES[name]] if name in ENGINES else [], indirect=True, ids=str)


@on("postgres")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestCachedOnPostgres(StackSuite):
    """Told by messages, with a shared cache on the same server."""

    stores = 2
    wrap = staticmethod(lambda one, two: Cached(two, one, staleness_s=1.0, invalidation="push"))


@on("redis")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestTiersOnValkey(StackSuite):
    """And a cache in front."""

    stores = 2
    wrap = staticmethod(lambda *tiers: Cached(Tiered(tiers), staleness_s=1.0))


@on("redis")
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("way", ["cached", "shared", "tiered"])
async def test_what_others_let_expire_is_not_served_after(engine: Bound, place: Place, way: str) -> None:
    """Nobody tells when it does; the cache has asked."""
    later = Key("K", "b")
    store = adapter_of(place)
    with engine.place() as beside:
        made: Adapter
        if way == "tiered":
            made = Tiered([adapter_of(beside), store])
        else:
            made = Cached(store, adapter_of(beside) if way == "shared" else None, staleness_s=60.0, invalidation="time")
        async with Datastore(made) as ds, place.connect() as other:
            await other.put(Entity(later, {"n": 1}), ttl=3600)
            for ttl in (0.5, 3.0, 20.0):  # the shortest in which a busy machine reads it twice
                key = Key("K", f"for {ttl} s")
                await other.put(Entity(key, {"n": 1}), ttl=ttl)
                found = await ds.get([key, later])
                if await ds.get(key) is not None:
                    break
            else:
                pytest.fail("it is never there")
            assert found == [Entity(key, {"n": 1}), Entity(later, {"n": 1})]
            with anyio.fail_after(60):
                while await other.get(key) is not None:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
            assert await ds.get([key, later]) == [None, Entity(later, {"n": 1})]
