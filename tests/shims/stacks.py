"""The shipped suite for shims and collections, over memory and SQLite, or over engines of one's choice.

A shim joins by one short class::

    class TestReadThing(ShimSuite):
        wrap = staticmethod(lambda adapter: Thing(adapter))

and a collection says how many stores it wants, each of which is one argument::

    class TestThings(ShimSuite):
        stores = 3
        wrap = staticmethod(lambda *adapters: Things(adapters))

On other engines::

    @engines(server=True, loops=True)
    class TestThingsOnServers(StackSuite):
        stores = 3
        wrap = staticmethod(lambda *adapters: Things(adapters))

``wrap`` is called for each connection; where several connections can't share a store through the shim (a cache that may
be behind), set ``second_connection = False``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest

from aiodatastore import Datastore
from aiodatastore.adapters.base import Adapter
from aiodatastore.testing.suite import AdapterSuite, Connect, SideDoor
from tests.engines import ADAPTER_OPTIONS, ENGINES, Bound, Place

__all__ = ["PROFILE", "ShimSuite", "StackSuite", "adapter_of", "shim_stores"]

PROFILE = {"brief": "shims-brief", "long": "long"}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), "shims")
"""How deep Hypothesis looks in the tests of shims; for tests beside the suite: ``settings.get_profile(PROFILE)``."""

_PAIRS = (("memory", "asyncio"), ("memory", "trio"), ("sqlite", "asyncio"))


def shim_stores() -> pytest.MarkDecorator:
    """Run a test on memory, under both event loops, and on SQLite."""
    pairs = [(name, loop) for name, loop in _PAIRS if name in ENGINES]
    return pytest.mark.parametrize(
        ("engine", "anyio_backend"),
        [(ENGINES[name], loop) for name, loop in pairs],
        indirect=True,
        ids=[name if loop == "asyncio" else f"{name}-{loop}" for name, loop in pairs],
    )


def adapter_of(place: Place, **options: Any) -> Adapter:
    """A new, unopened adapter of a place; ``options`` are the adapter's."""
    return place.connect(**options).adapter


class StackSuite(AdapterSuite):
    """The suite on what ``wrap`` makes of the adapters of ``stores`` empty stores.

    ``stores_rows``: entities and index rows are stored as if there were no shim, so the side door sees what the suite
    expects.
    """

    hypothesis_profile: ClassVar[str | None] = PROFILE
    wrap: ClassVar[Callable[..., Adapter]]
    stores: ClassVar[int] = 1
    stores_rows: ClassVar[bool] = False

    @pytest.fixture
    def places(self, engine: Bound) -> Iterator[list[Place]]:
        """Empty stores of the engine."""
        with ExitStack() as stack:
            yield [stack.enter_context(engine.place()) for _ in range(self.stores)]

    @pytest.fixture
    def side_door(self, places: list[Place]) -> SideDoor:
        door = places[0].door
        if door is None or not self.stores_rows:
            pytest.skip("what is stored is not what the suite expects to see")
        return door

    @pytest.fixture
    def connect(self, engine: Bound, places: list[Place]) -> Connect:
        self.second_connection = self.second_connection and engine.engine.connections

        def connect(**options: Any) -> Datastore:
            own = {name: options.pop(name) for name in ADAPTER_OPTIONS if name in options}
            return Datastore(self.wrap(*(adapter_of(place, **own) for place in places)), **options)

        return connect


@shim_stores()
class ShimSuite(StackSuite):
    """It over memory and SQLite.

    ``both_loops``: run it under trio, too; for those that wait, lock or start tasks themselves. The others' own tests
    run under both, and so does the whole suite with ``HYPOTHESIS_PROFILE=long``.
    """

    both_loops: ClassVar[bool] = False
