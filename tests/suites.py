"""What the folders have in common that run the shipped suite: the deepest look of Hypothesis, and quick deletion."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from aiodatastore.adapters.engine import building, core

__all__ = ["delete_indexes_at_once"]

settings.register_profile(
    "long",
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def delete_indexes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting an index waits until no other process can still read it: here 20 ms instead of 0.4 s.

    Hundreds of indexes are deleted in these tests, and all that could read them is in this process. It works in what
    imports it: for a whole folder, in its ``conftest.py``.
    """
    monkeypatch.setattr(building, "CATALOG_MAX_AGE_S", 0.01)
    monkeypatch.setattr(core, "CATALOG_MAX_AGE_S", 0.01)
