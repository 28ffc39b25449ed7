"""A shim that does nothing is as its child."""

from __future__ import annotations

from aiodatastore.shims.base import Shim
from tests.shims.stacks import ShimSuite


class TestShim(ShimSuite):
    wrap = staticmethod(Shim)
    stores_rows = True
