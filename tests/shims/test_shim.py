"""A shim that does nothing, alone and several times, is as its child."""

from __future__ import annotations

from aiodatastore.shims.base import Shim
from tests.shims.stacks import ShimSuite


class TestShim(ShimSuite):
    wrap = staticmethod(Shim)
    stores_rows = True


class TestShimOfShims(ShimSuite):
    wrap = staticmethod(lambda adapter: Shim(Shim(Shim(adapter))))
    stores_rows = True
