"""How long Hypothesis looks: a short, repeatable profile by default, ``HYPOTHESIS_PROFILE=long`` for a search."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("default", max_examples=50, derandomize=True, deadline=None, print_blob=True, database=None)
settings.register_profile(
    "long",
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
