"""``ReadOnly``: what reads passes, what writes does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from aiodatastore import Datastore, Entity, Key, StoreReadOnlyError
from aiodatastore.adapters.base import Commit, Delete, Put
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.indexing.definitions import IndexDefinition
from aiodatastore.rowstore import Capability
from aiodatastore.shims.read_only import ReadOnly

pytestmark = pytest.mark.anyio

ADA = Key("Person", "ada")
INDEX = IndexDefinition("Person", (("name", "asc"), ("born", "asc")))


async def filled() -> ReadOnly:
    child = EngineAdapter(MemoryRowStore())
    shim = ReadOnly(child)
    await shim.open()
    await child.commit([Commit(writes=[Put(Entity(ADA, {"name": "Ada"}))])])
    return shim


async def test_reads_pass_at_hand() -> None:
    shim = await filled()
    assert shim.lookup_now == shim.child.lookup_now
    assert Capability.INLINE_READS in shim.capabilities
    found = shim.lookup_now([ADA])
    assert found is not None
    assert found[0] == Entity(ADA, {"name": "Ada"})
    assert (await shim.lookup([ADA])).entities == found


async def test_only_commits_that_write_are_refused() -> None:
    shim = await filled()
    version = (await shim.lookup([ADA])).version
    verify, stale = Commit(checks={ADA: version}), Commit(checks={ADA: version + 5})
    outcomes = await shim.commit([Commit(writes=[Delete(ADA)]), verify, stale, Commit(writes=[Put(Entity(ADA))])])
    assert [type(outcome.error) for outcome in outcomes] == [
        StoreReadOnlyError,
        type(None),
        type(None),
        StoreReadOnlyError,
    ]
    assert [outcome.committed for outcome in outcomes] == [False, True, False, False]
    assert outcomes[2].conflicts == {ADA: version}
    assert isinstance(outcomes[0].error, StoreReadOnlyError)
    assert outcomes[0].error.nothing_written
    assert (await shim.commit([])) == []
    assert (await shim.lookup([ADA])).entities[0] is not None


@pytest.mark.parametrize(
    "write",
    [
        lambda shim: shim.allocate_ids(Key("Person"), 1),
        lambda shim: shim.reserve_ids(Key("Person"), 10),
        lambda shim: shim.create_index(INDEX),
        lambda shim: shim.build_index(INDEX),
        lambda shim: shim.delete_index(INDEX),
        lambda shim: shim.prepare(Commit(writes=[Delete(ADA)]), "one"),
    ],
)
async def test_whatever_changes_something_is_refused(write: Callable[[ReadOnly], Awaitable[object]]) -> None:
    shim = await filled()
    with pytest.raises(StoreReadOnlyError, match="memory:// is read-only here"):
        await write(shim)
    assert await shim.indexes() == []
    assert await shim.child.allocate_ids(Key("Person"), 1) == (1, 1)


async def test_read_only_transactions_work_and_others_say_why_not() -> None:
    child = EngineAdapter(MemoryRowStore())
    async with Datastore(ReadOnly(child)) as ds:
        await child.commit([Commit(writes=[Put(Entity(ADA, {"name": "Ada"}))])])
        async with ds.transaction(read_only=True):
            assert await ds.get(ADA) is not None
            assert await ds.query("Person").count() == 1
        with pytest.raises(StoreReadOnlyError, match="nothing is written"):
            await ds.put(Entity(ADA, {"name": "Bob"}))
        with pytest.raises(StoreReadOnlyError):
            async with ds.transaction():
                await ds.delete(ADA)
        found = await ds.get(ADA)
    assert found is not None
    assert found["name"] == "Ada"
