"""``Tiered``: the suite, and what it is for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key, ReadPolicy
from aiodatastore.adapters.base import Adapter, Commit, Moment, Put
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.errors import BadArgumentError, EntityExistsError, StoreBusyError, UnavailableError, UnsupportedError
from aiodatastore.rowstore import Capability
from aiodatastore.shims.base import Shim
from aiodatastore.shims.cached.copies import Copies, Copy
from aiodatastore.shims.key_transform import KeyTransform
from aiodatastore.shims.lowercase_keys import LowercaseKeys
from aiodatastore.shims.tiered import Tiered
from tests.shims.gates import Gate, entity, increase, values, wait_for
from tests.shims.stacks import ShimSuite

A, B = Key("K", "a"), Key("K", "b")

pytestmark = pytest.mark.anyio


class TestTiered(ShimSuite):
    both_loops = True
    stores = 2
    wrap = staticmethod(lambda *tiers: Tiered(tiers))


class Open(Shim):
    """Stays open, so that several shims can share it."""

    async def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def stores(number: int) -> list[Gate]:
    made = [Gate(EngineAdapter(MemoryRowStore())) for _ in range(number)]
    for each in made:
        await each.open()
    return made


def tiered(tiers: Sequence[Adapter], **settings: Any) -> Tiered:
    return Tiered([Open(tier) for tier in tiers], name="here", **settings)


async def put(adapter: Adapter, key: Key, value: int) -> int:
    [outcome] = await adapter.commit([Commit(writes=[Put(entity(key, value))])])
    assert outcome.version is not None
    return outcome.version


async def test_reads_go_down_and_fill_upward() -> None:
    fast, middle, last = await stores(3)
    tiers = tiered([fast, middle, last])
    await put(last, A, 1)
    assert await values(tiers, A, B) == [1, None]
    assert await values(tiers, A, B) == [1, None]
    assert [len(each.lookups) for each in (fast, middle, last)] == [2, 1, 1]
    await fast.commit([Commit(writes=[Put(Entity(each.key)) for each in [*await everything(fast)]])])  # damaged
    assert await values(tiers, A, B) == [1, None]
    assert [len(each.lookups) for each in (fast, middle, last)] == [3, 2, 1]
    found = await tiers.lookup([A])
    assert found.entities[0] is not None
    assert found.entities[0].version == 2
    assert found.moments == [Moment(None, 2)]
    assert tiers.counts["hits"] == (3, 2, 2)


async def everything(adapter: Adapter) -> list[Entity]:
    from aiodatastore import Query

    found: list[Entity] = (await adapter.run(Query()).next_page()).results
    return found


async def test_writes_go_to_all() -> None:
    fast, last = await stores(2)
    tiers = tiered([fast, last])
    version = await put(tiers, A, 1)
    assert await values(tiers, A) == [1]
    assert not last.lookups
    [place] = await Copies(fast, "here").read([A])
    assert place.copy is not None
    assert place.copy.moment == version
    assert not place.marks
    async with Datastore(tiers) as ds:
        await ds.delete(A)
        assert await ds.get(A) is None
        assert await ds.query("K").fetch() == []


async def test_what_is_being_written_is_read_from_the_last() -> None:
    fast, last = await stores(2)
    one, two = tiered([fast, last]), tiered([fast, last])
    await put(one, A, 1)
    async with anyio.create_task_group() as group:
        last.holds_commits = True
        group.start_soon(put, one, A, 2)
        await wait_for(last.held, 1)
        last.holds_commits = False
        assert await values(two, A) == [2]  # it has taken effect, though nobody was told
        [place] = await Copies(fast, "here").read([A])
        assert place.copy is None
        assert len(place.marks) == 1
        last.held[0].set()
    assert await values(two, A) == [2]
    assert len(last.lookups) == 1


async def test_an_old_fill_comes_too_late() -> None:
    fast, last = await stores(2)
    one, two = tiered([fast, last]), tiered([fast, last])
    await put(last, A, 1)
    async with anyio.create_task_group() as group:
        last.holds_lookups = True
        group.start_soon(values, one, A)
        await wait_for(last.held, 1)
        last.holds_lookups = False
        await put(two, A, 2)
        last.held[0].set()
    assert await values(one, A) == [2]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_two_writers_of_one_entity(order: tuple[int, int]) -> None:
    """Whoever ends last, the newer one's copy stays, or none."""
    fast, last = await stores(2)
    gates = [Gate(last), Gate(last)]
    writers = [tiered([fast, gate]) for gate in gates]
    async with anyio.create_task_group() as group:
        for value, (gate, writer) in enumerate(zip(gates, writers, strict=True), 1):
            gate.holds_commits = True
            group.start_soon(put, writer, A, value)
            await wait_for(gate.held, 1)
        [place] = await Copies(fast, "here").read([A])
        assert len(place.marks) == 2
        gates[order[0]].held[0].set()
        await anyio.wait_all_tasks_blocked()
        [place] = await Copies(fast, "here").read([A])
        assert place.copy is None
        assert len(place.marks) == 1
        assert await values(writers[0], A) == [2]
        gates[order[1]].held[0].set()
    assert await values(writers[0], A) == [2]
    [place] = await Copies(fast, "here").read([A])
    assert not place.marks


async def test_a_commit_whose_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark stays, so nobody trusts the copy; after its time it is filled again."""
    now = 1000.0
    monkeypatch.setattr("aiodatastore.shims.cached.copies.time", SimpleNamespace(time=lambda: now))
    fast, last = await stores(2)
    tiers = tiered([fast, last], mark_s=60.0)
    await put(tiers, A, 1)
    last.loses = True
    with pytest.raises(UnavailableError):
        await put(tiers, A, 2)
    last.loses = False
    assert await values(tiers, A) == [2]
    assert await values(tiers, A) == [2]
    assert len(last.lookups) == 2
    now += 59.0
    assert await values(tiers, A) == [2]
    assert len(last.lookups) == 3
    now += 2.0
    assert await values(tiers, A) == [2]
    assert await values(tiers, A) == [2]
    assert len(last.lookups) == 4


async def test_a_commit_that_was_not_sent() -> None:
    """Then nothing is in doubt."""
    fast, last = await stores(2)
    tiers = tiered([fast, last])
    await put(tiers, A, 1)
    last.refuses = True
    with pytest.raises(StoreBusyError):
        await put(tiers, A, 2)
    [place] = await Copies(fast, "here").read([A])
    assert not place.marks
    assert await values(tiers, A) == [1]


async def test_a_tier_that_is_away() -> None:
    """Reads go on, writes don't: nothing of them is written."""
    fast, middle, last = await stores(3)
    tiers = tiered([fast, middle, last])
    await put(tiers, A, 1)
    middle.fails = True
    with pytest.raises(UnavailableError, match="nothing was written") as caught:
        await put(tiers, A, 2)
    assert caught.value.nothing_written
    assert await values(last, A) == [1]
    assert await values(tiers, A, B) == [1, None]
    [place] = await Copies(fast, "here").read([A])
    assert not place.marks
    assert tiers.counts["failures"] >= 1
    fast.fails = middle.fails = False
    await put(tiers, A, 2)
    assert await values(tiers, A) == [2]


async def test_a_conflict_leaves_no_mark() -> None:
    fast, last = await stores(2)
    tiers = tiered([fast, last])
    await put(tiers, A, 1)
    [outcome] = await tiers.commit([Commit({A: 77}, writes=[Put(entity(A, 2)), Put(entity(B, 2))])])
    assert outcome.version is None
    for place in await Copies(fast, "here").read([A, B]):
        assert not place.marks
        assert place.copy is None
    assert await values(tiers, A, B) == [1, None]


async def test_others_that_write_past_the_tiers() -> None:
    """Their commits are seen after the bound; a conflict corrects the copy, and so does a read past it."""
    fast, last = await stores(2)
    tiers = tiered([fast, last], staleness_s=1000)
    now = time.time()
    tiers._now = lambda: now
    async with Datastore(tiers) as ds:
        await ds.put(entity(A, 1))
        await put(last, A, 2)
        assert await ds.get(A) == entity(A, 1)
        now += 1001
        assert await ds.get(A) == entity(A, 2)
        assert await ds.get(B) is None
        await put(last, B, 1)
        with pytest.raises(EntityExistsError):
            await ds.insert(entity(B, 2))
        assert await ds.get(B) == entity(B, 1)
        await put(last, B, 2)
        assert await ds.get([B], read_policy=ReadPolicy.CURRENT) == [entity(B, 2)]
        assert await ds.get(B) == entity(B, 2)
        await put(last, A, 10)
        assert await increase(ds, A) == [2, 10]
        assert await ds.get(A) == entity(A, 11)


async def test_nothing_is_prepared() -> None:
    fast, last = await stores(2)
    tiers = tiered([fast, last])
    assert Capability.TWO_PHASE not in tiers.capabilities
    with pytest.raises(UnsupportedError):
        await tiers.prepare(Commit(), "one")


async def test_the_first_tier_answers_at_once() -> None:
    first, last = EngineAdapter(MemoryRowStore()), EngineAdapter(MemoryRowStore())
    tiers = Tiered([first, last])
    async with Datastore(tiers) as ds:
        assert tiers.lookup_now([A]) is None
        await ds.put(entity(A, 1))
        assert tiers.lookup_now([A]) == [entity(A, 1)]
        found = await ds.get(A)
        assert found is not None
        found["n"] = 5
        assert await ds.get(A) == entity(A, 1)


async def test_copies_that_expire() -> None:
    first, last = await stores(2)
    tiers = tiered([first, last])
    now = 1000.0
    tiers._now = lambda: now
    copies = Copies(first, "here")
    await copies.write([(A, Copy(entity(A, 1), None, 1, now, now + 5), 0)])
    assert await values(tiers, A) == [1]
    now += 6
    assert await values(tiers, A) == [None]


@pytest.mark.parametrize(
    ("tiers", "settings", "why"),
    [
        (["memory://"], {}, "at least two"),
        (["sqlite:///a.db", "sqlite:///a.db"], {}, "same store"),
        (["memory://", "sqlite:///a.db"], {}, "staleness_s"),
        (["null://", "memory://"], {}, "keeps nothing"),
        (["memory://", "null://"], {}, "keeps nothing"),
        (["sqlite:///a.db", "memory://"], {}, "outlive"),
        (["memory://", "memory://"], {"staleness_s": 0}, "staleness_s"),
        (["memory://", "memory://"], {"mark_s": "1"}, "mark_s"),
    ],
)
def test_refused(tiers: list[str], settings: dict[str, Any], why: str) -> None:
    with pytest.raises(BadArgumentError, match=why):
        Tiered([adapter_from_url(url) for url in tiers], **settings)


class Blind(Shim):
    """Answers no queries."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.child.capabilities - {Capability.QUERIES}


def test_refused_tiers() -> None:
    memory = adapter_from_url("memory://")
    with pytest.raises(BadArgumentError, match="same store"):
        Tiered([memory, memory])
    with pytest.raises(BadArgumentError, match="queries"):
        Tiered([memory, Blind(adapter_from_url("memory://"))])
    with pytest.raises(BadArgumentError, match="expected adapters"):
        Tiered(["memory://", "memory://"])  # type: ignore[list-item]
    with pytest.raises(BadArgumentError, match="Tiered: expected a list of adapters"):
        Tiered(memory)  # type: ignore[arg-type]
    with pytest.raises(BadArgumentError, match="several keys may name one entity"):
        Tiered([memory, LowercaseKeys(adapter_from_url("memory://"))])
    with pytest.raises(BadArgumentError, match="give a name"):
        Tiered([memory, KeyTransform(adapter_from_url("memory://"), encode=lambda key: key, decode=lambda key: key)])
    with pytest.raises(BadArgumentError, match="name: expected"):
        Tiered([memory, adapter_from_url("memory://")], name="")
    made = Tiered([memory, adapter_from_url("sqlite:///a.db")], staleness_s=2)
    assert Capability.CURRENT_READS not in made.capabilities
    assert made.children[0] is memory
    assert repr(made).endswith("staleness_s=2, mark_s=60.0)")
