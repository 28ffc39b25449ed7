"""How deep Hypothesis looks in the tests of shims, and which of them run under trio.

The profiles are not loaded, for some tests here have others: :class:`tests.shims.stacks.ShimSuite` asks for its own.
"""

from __future__ import annotations

import os
from typing import TypeGuard

import pytest
from hypothesis import settings

from tests.suites import delete_indexes_at_once

__all__ = ["delete_indexes_at_once"]

# The suite runs for every shim, on two stores: what a shim does wrong is found in few examples, or `long` finds it.
settings.register_profile("shims", settings.get_profile("default"), max_examples=4)
settings.register_profile("shims-brief", settings.get_profile("shims"), max_examples=2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the suite under trio to the shims for which it can make a difference: it takes minutes."""
    if os.environ.get("HYPOTHESIS_PROFILE") == "long":
        return
    left_out = [item for item in items if _under_trio(item) and not getattr(item.cls, "both_loops", True)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _under_trio(item: pytest.Item) -> TypeGuard[pytest.Function]:
    return isinstance(item, pytest.Function) and "memory-trio" in item.name
