"""Random stacks of shims behave like their plain child."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiodatastore import Datastore
from aiodatastore.adapters.base import Adapter
from aiodatastore.adapters.registry import adapter_from_url
from aiodatastore.rowstore import CORE, Capability
from aiodatastore.shims.base import Shim
from aiodatastore.shims.cached import Cached
from aiodatastore.shims.compressed import Compressed
from aiodatastore.shims.delayed import Delayed
from aiodatastore.shims.directories import Directories
from aiodatastore.shims.encrypted import Encrypted
from aiodatastore.shims.failing import Failing
from aiodatastore.shims.limited import Limited
from aiodatastore.shims.logged import Logged
from aiodatastore.shims.measured import Measured
from aiodatastore.shims.namespaced import Namespaced
from aiodatastore.shims.nested_path import NestedPath
from aiodatastore.shims.retrying import Retrying
from aiodatastore.shims.tiered import Tiered
from aiodatastore.shims.timeout import Timeout
from aiodatastore.testing.suite.base import assert_same
from tests.shims.scripts import Step, play, scripts
from tests.shims.stacks import PROFILE
from tests.shims.test_keys_suite import boxes

Wrap = Callable[[Adapter], Adapter]

LAYERS: dict[str, Wrap] = {
    "Shim": Shim,
    "KeyTransform": boxes,
    "Namespaced": lambda child: Namespaced(child, "acme"),
    "Namespaced, odd": lambda child: Namespaced(child, "-a.b."),
    "NestedPath": NestedPath,
    "NestedPath, flat": lambda child: NestedPath(child, depth=1, length=1),
    "Directories": lambda child: Directories(child, buckets=2),
    "Logged": lambda child: Logged(child, logger="tests.quiet", level=logging.DEBUG),
    "Measured": Measured,
    "Retrying": Retrying,
    "Timeout": lambda child: Timeout(child, 30.0),
    "Delayed": lambda child: Delayed(child, 0.0),
    "Failing": lambda child: Failing(child, 0.0),
    "Cached": Cached,
    "Cached, small": lambda child: Cached(child, adapter_from_url("memory://"), max_entities=2),
    "Tiered": lambda child: Tiered([adapter_from_url("memory://"), child]),
    "Limited": lambda child: Limited(child, concurrency=8),
    "Compressed": lambda child: Compressed(child, threshold=1),
    "Encrypted": lambda child: Encrypted(child, base64.urlsafe_b64encode(bytes(32)).decode()),
}

ONCE = ("Compressed", "Encrypted")
"""What would be refused a second time: it finds its own mark."""
stacks = st.lists(st.sampled_from(sorted(LAYERS)), min_size=3, max_size=5).filter(
    lambda names: all(names.count(name) <= 1 for name in ONCE)
)

TO_BE_KEPT = CORE - {Capability.CURRENT_READS}  # which caches lose, though not in a process that writes alone

few = settings(
    settings.get_profile(PROFILE),
    max_examples=10 * settings.get_profile(PROFILE).max_examples,
    suppress_health_check=list(HealthCheck),
)


@few
@given(names=stacks, script=scripts())
def test_a_stack_is_as_its_child(names: list[str], script: list[Step]) -> None:
    async def both() -> None:
        stack = adapter_from_url("memory://")
        for name in names:
            stack = LAYERS[name](stack)
        async with Datastore("memory://") as plain, Datastore(stack) as stacked:
            assert stacked.capabilities >= TO_BE_KEPT
            expected = await play(plain, script)
            found = await play(stacked, script)
            for step, one, other in zip(script, expected, found, strict=True):
                assert_alike(one, other, step)
            assert await stacked.check() == []
            assert counts(await stacked.stats()) == counts(await plain.stats())
            assert await stacked.adapter.partitions() == await plain.adapter.partitions()

    anyio.run(both)


def assert_alike(expected: Any, found: Any, step: Step) -> None:
    """Deeply the same, of the same types."""
    try:
        assert_same(_flat(expected), _flat(found))
    except AssertionError as exc:
        raise AssertionError(f"{step}: {exc}") from exc


def counts(stats: dict[str, Any]) -> list[tuple[Any, ...]]:
    return sorted((row["project"], row["namespace"], row["kind"], row["entities"]) for row in stats["kinds"])


def _flat(result: Any) -> list[Any]:
    if isinstance(result, list | tuple):
        return [part for each in result for part in (len(result), *_flat(each))]
    return [result]


def test_every_layer_runs_alone() -> None:
    async def one(name: str) -> None:
        async with Datastore(LAYERS[name](adapter_from_url("memory://"))) as ds:
            assert await ds.query("K").fetch() == []

    for name in LAYERS:
        anyio.run(one, name)


def test_a_stack_that_differs_is_noticed() -> None:
    with pytest.raises(AssertionError, match="got"):
        assert_alike([1, [2, "a"]], [1, [2, b"a"]], Step("get", None))
