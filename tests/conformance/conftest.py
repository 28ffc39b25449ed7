"""How long Hypothesis looks, by ``HYPOTHESIS_PROFILE`` (``brief``, ``long``)."""

from __future__ import annotations

import os

from hypothesis import settings

from tests.suites import delete_indexes_at_once

__all__ = ["delete_indexes_at_once"]

settings.register_profile("default", max_examples=50, derandomize=True, deadline=None, print_blob=True, database=None)
settings.register_profile("brief", settings.get_profile("default"), max_examples=15)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
