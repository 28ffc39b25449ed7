"""The shipped suite on every engine."""

from __future__ import annotations

from tests.suites import delete_indexes_at_once

__all__ = ["delete_indexes_at_once"]
