"""How deep Hypothesis looks in the tests of shims, and how long index deletion waits.

The profiles are not loaded, for tests elsewhere have others: :class:`tests.shims.stacks.ShimSuite` asks for its own.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from aiodatastore.adapters.engine import building, core

# The suite runs for every shim, on two stores: what a shim does wrong is found in few examples, or `long` finds it.
settings.register_profile("shims", max_examples=4, derandomize=True, deadline=None, print_blob=True, database=None)
settings.register_profile("shims-brief", settings.get_profile("shims"), max_examples=2)
settings.register_profile(
    "long",
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def _no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting an index waits until no other process can still read it: here 20 ms instead of 0.4 s."""
    monkeypatch.setattr(building, "CATALOG_MAX_AGE_S", 0.01)
    monkeypatch.setattr(core, "CATALOG_MAX_AGE_S", 0.01)
