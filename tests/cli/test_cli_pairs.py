"""Copy and compare between any two of the stores."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aiodatastore import Blob, Datastore, Entity, GeoPoint, IndexDefinition, Key, Text
from aiodatastore.transfer import compare, copy
from tests.engines import ENGINES, Bound, Place

Run = Callable[..., Any]
Places = Callable[[str], Place]

PAIRS = [
    pytest.param(source, target, id=f"{source}-{target}")
    for source in ENGINES
    for target in ENGINES
    if source != target or ENGINES[source].durable
]


@pytest.fixture
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    """Empty stores by the names of their engines, as many as are asked for."""
    with ExitStack() as stack:

        def place(name: str) -> Place:
            engine = ENGINES[name]
            session = request.getfixturevalue(engine.session) if engine.session else None
            return stack.enter_context(Bound(engine, session, tmp_path).place())

        yield place


WORLD = [
    Entity(Key("Country", "GB"), {"name": "United Kingdom", "f": 1.0, "n": math.nan, "b": b"\x00\xff"}),
    Entity(Key("Country", "gb"), {"name": "another", "t": datetime(2020, 2, 29, 12, tzinfo=UTC), "none": None}),
    Entity(
        Key("Country", "GB", "City", 2643743), {"name": "London", "at": GeoPoint(51.5, -0.12), "tags": [1, 1.0, True]}
    ),
    Entity(Key("Country", "GB", "City", "2643743"), {"of": Key("Country", "GB"), "empty": []}),
    Entity(Key("é/:%\x00 CON", "../a\\b"), {"text": Text("t" * 5000), "blob": Blob(bytes(range(256)))}),
    Entity(Key("Note", "x" * 1500), {"u": "x" * 3000, "dict": {"$x": [b"1", {"y": 2}]}}, unindexed=["u"]),
    Entity(Key("Note", 1 << 62), {"e": Entity(Key("E", 1), {"y": 1}), "i": -(1 << 63)}),
    Entity(Key("Country", "GB", namespace="n"), {"name": "in a namespace"}),
    Entity(Key("Note", 1, namespace="N", project="p"), {"name": "in a project"}),
    *(Entity(Key("Item", n), {"n": n, "even": n % 2 == 0, "s": f"item {n:04}"}) for n in range(1, 301)),
]
INDEX = IndexDefinition("Item", (("even", "asc"), ("s", "desc")))


async def fill(store: Datastore) -> None:
    await store.put(WORLD)
    await store.adapter.create_index(INDEX)
    await store.adapter.build_index(INDEX)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.anyio
async def test_everything_moves_from_each_store_to_each(
    source: str, target: str, places: Places, anyio_backend: str
) -> None:
    async with places(source).connect() as here, places(target).connect() as there:
        await fill(here)
        report = await copy(here, there, verify=True, page_size=50)
        assert (report.entities, report.indexes) == (len(WORLD), 1)
        assert (report.verified, report.different, report.extra, report.problems) == (len(WORLD), 0, 0, [])

        query = there.query("Item").filter("even", "=", True).order("-s").limit(3)
        assert [found.key.id for found in await query.fetch(3)] == [300, 298, 296]
        page = await here.query("Item").filter("even", "=", True).order("-s").page(3)
        rest = await there.query("Item").filter("even", "=", True).order("-s").page(2, start=page.cursor)
        assert [found.key.id for found in rest.entities] == [294, 292]  # a cursor holds on any store
        assert ((await there.put(Entity("Item"))).id or 0) > 300

        await there.put(Entity(Key("Item", 7), {**WORLD[9 + 6], "n": 7.0}))
        await there.delete(Key("Country", "gb"))
        found = await compare(here, there, page_size=50)
        assert [(each.problem, each.key.id_or_name) for each in found.differences] == [
            ("missing", "gb"),
            ("different", 7),
            ("extra", found.differences[-1].key.id),
        ]
        assert found.problems == []


def test_a_journey_through_all_stores_by_the_command_line(run: Run, places: Places, tmp_path: Path) -> None:
    names = [name for name in ENGINES if ENGINES[name].durable]
    if not names:
        pytest.skip("no store that outlives a command was chosen")
    stores = [places(name).url for name in (*names, names[0])]
    lines = tmp_path / "world.jsonl"
    lines.write_text(
        "".join(
            json.dumps({"key": f"/Item:{n}", "properties": {"n": n, "s": f"é{n}", "tags": ["a", n % 3]}}) + "\n"
            for n in range(1, 201)
        )
    )
    run("import", stores[0], lines)
    run("indexes", "build", stores[0], "--index", "Item tags -n")
    for source, target in itertools.pairwise(stores):
        assert re.search(r"verified 200 in \S+ s, 0 differ\n", run("copy", source, target, "--verify").err)
    assert run("compare", stores[0], stores[-1], "--json").json["same"] is True
    first, last = (run("export", url, "-").lines[1:] for url in (stores[0], stores[-1]))
    assert first == last
    assert run("indexes", "list", stores[-1], "--json").json[0]["state"] == "SERVING"
