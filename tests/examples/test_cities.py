"""The demo, with a small part of its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiodatastore import Entity, GeoPoint, Key
from examples.cities import __main__ as cities
from examples.cities.data import World, batches, load


@pytest.fixture(scope="module")
def world() -> World:
    return load(at_most=300)


def test_entities_have_their_ancestors_and_all_names_once(world: World) -> None:
    entities = {entity.key: entity for entity in world.entities()}
    assert len(entities) == len(world)
    assert all(key.parent is None or key.parent in entities for key in entities)
    tokyo = entities[Key("Country", "JP", "Region", "40", "City", 1850147)]
    assert tokyo["name"] == "Tokyo"
    assert "東京" in tokyo["names"]
    assert len(set(tokyo["names"])) == len(tokyo["names"])
    assert tokyo["location"] == GeoPoint(35.6895, 139.69171)
    assert Key("Country", "DE") in entities[Key("Country", "CH")]["neighbours"]
    for entity in entities.values():
        entity.validate()


def test_batches_hold_everything_in_order() -> None:
    entities = [Entity(Key("A", number)) for number in range(1, 8)]
    assert [len(batch) for batch in batches(entities, 3)] == [3, 3, 1]
    assert [entity for batch in batches(entities, 3) for entity in batch] == entities


@pytest.mark.parametrize("given", [["--url", "memory://"], []])
def test_the_demo_runs_and_runs_again(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cities.console, "file", None)  # what is printed goes where pytest looks
    for _ in range(2):
        cities.main([*given, "--cities", "400", "--tasks", "8", "--moves", "5"])
        shown = capsys.readouterr().out
        assert "✗" not in shown
        assert "40 transactions in" in shown
        assert '/Country:JP/Region:"40"/City:1850147' in shown
        assert "400 cities of 400, each once: True" in shown
        assert "check: 0 disagreements" in shown
    assert (tmp_path / "build" / "cities.db").exists() == (not given)


def test_a_store_that_was_named_is_updated_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import anyio

    from aiodatastore import Datastore

    monkeypatch.setattr(cities.console, "file", None)
    url = f"sqlite:///{tmp_path}/mine.db"
    mine = Entity(Key("Mine", 1), {"kept": True})

    async def put() -> None:
        async with Datastore(url) as ds:
            await ds.put(mine)

    async def get() -> Entity | None:
        async with Datastore(url) as ds:
            return await ds.get(mine.key)

    anyio.run(put)
    cities.main(["--url", url, "--cities", "50", "--tasks", "2", "--moves", "2"])
    assert anyio.run(get) == mine
