"""``Failing``: faults where and as often as was said, the same in each run. The suite runs on it under ``Retrying``."""

from __future__ import annotations

from typing import Any

import pytest

from aiodatastore import BadArgumentError, Datastore, Entity, Key, StoreBusyError, UnavailableError
from aiodatastore.adapters.base import Commit, Put, RunOptions
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.shims.failing import Failing

pytestmark = pytest.mark.anyio

ADA = Key("Person", "ada")


async def opened(rate: float, **options: Any) -> Failing:
    shim = Failing(adapter_from_url("memory://"), rate, **options)
    await shim.open()
    return shim


async def test_before_nothing_happened_and_after_it_did() -> None:
    for when, written in (("before", False), ("after", True)):
        shim = await opened(1.0, when=when, operations=["commit"])
        with pytest.raises(UnavailableError, match=f"on purpose, {when} commit") as caught:
            await shim.commit([Commit(writes=[Put(Entity(ADA))])])
        assert caught.value.nothing_written == (not written)
        assert ((await shim.lookup([ADA])).entities[0] is not None) == written
        assert shim.injected == {"commit": 1}


async def faults(seed: int, when: str = "both") -> list[str]:
    shim = await opened(0.3, seed=seed, when=when)
    told: list[str] = []
    for _ in range(200):
        try:
            await shim.lookup([ADA])
            told.append("")
        except UnavailableError as exc:
            told.append(str(exc))
    return told


async def test_faults_are_drawn_from_the_seed() -> None:
    found = await faults(1)
    assert found == await faults(1)
    assert found != await faults(2)
    failed = [told for told in found if told]
    assert 30 < len(failed) < 90
    assert set(failed) == {"fault on purpose, before lookup", "fault on purpose, after lookup"}
    early = await faults(1, "before")
    assert [bool(told) for told in early] == [bool(told) for told in found]  # which fail doesn't depend on when


async def test_what_is_at_hand_may_fail_too() -> None:
    shim = await opened(1.0)
    with pytest.raises(UnavailableError):
        shim.lookup_now([ADA])
    shim.enabled = False
    assert shim.lookup_now([ADA]) == [None]
    assert shim.injected == {"lookup": 1}


async def test_a_page_whose_answer_was_lost_is_read_again() -> None:
    shim = Failing(adapter_from_url("memory://"), 0.5, seed=5, when="after", operations=["query"])
    async with Datastore(shim) as ds:
        await ds.put([Entity(Key("Person", number), {"n": number}) for number in range(1, 40)])
        query = ds.query("Person").query
        stream = shim.run(query, RunOptions(page_size=3))
        found: list[int] = []
        more = True
        while more:
            try:
                page = await stream.next_page()
            except UnavailableError:
                continue
            found += [entity["n"] for entity in page.results]
            more = page.more
    assert found == list(range(1, 40))
    assert shim.injected["query"] > 3


async def test_other_errors() -> None:
    shim = await opened(1.0, error=StoreBusyError)
    with pytest.raises(StoreBusyError):
        await shim.lookup([ADA])
    shim = await opened(1.0, error=lambda text: RuntimeError(text.upper()))
    with pytest.raises(RuntimeError, match="BEFORE LOOKUP"):
        await shim.lookup([ADA])
    parse = Failing.url_settings["error"]
    assert parse("StoreBusyError") is StoreBusyError
    with pytest.raises(ValueError, match="name of an error"):
        parse("__name__")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.1}, "rate: expected a number, at least 0 and at most 1"),
        ({"rate": -0.1}, "rate"),
        ({"rate": 1, "when": "during"}, "when: expected one of before, after, both"),
        ({"rate": 1, "operations": ["put"]}, "operations"),
        ({"rate": 1, "error": "UnavailableError"}, "error: expected a class"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        Failing(adapter_from_url("memory://"), **arguments)
