"""How long Hypothesis looks, by ``HYPOTHESIS_PROFILE`` (``brief``, ``long``); quick deletion for the shipped suite."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from aiodatastore.adapters.engine import building, core

__all__ = ["delete_indexes_at_once", "load_profile"]

# No example is wrong for having taken long: on a busy machine any of them may.
settings.register_profile(
    "default",
    max_examples=50,
    derandomize=True,
    deadline=None,
    print_blob=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("brief", settings.get_profile("default"), max_examples=15)
settings.register_profile(
    "long",
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def load_profile() -> None:
    """Make the profile that the environment names the one of all tests that ask for no other."""
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def delete_indexes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting an index waits until no other process can still read it: here 20 ms instead of 0.4 s.

    Hundreds of indexes are deleted in these tests, and all that could read them is in this process. It works in what
    imports it: for a whole folder, in its ``conftest.py``.
    """
    monkeypatch.setattr(building, "CATALOG_MAX_AGE_S", 0.01)
    monkeypatch.setattr(core, "CATALOG_MAX_AGE_S", 0.01)
