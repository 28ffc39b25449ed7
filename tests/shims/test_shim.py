"""A shim that does nothing is as its child."""

from __future__ import annotations

from typing import Any

import pytest

from aiodatastore import Datastore
from aiodatastore.errors import BadArgumentError
from aiodatastore.shims.base import Shim
from tests.shims.stacks import ShimSuite


class TestShim(ShimSuite):
    both_loops = True
    wrap = staticmethod(Shim)
    stores_rows = True


@pytest.mark.parametrize("child", ["memory://", None, Datastore("memory://")])
def test_what_it_holds_is_an_adapter(child: Any) -> None:
    with pytest.raises(BadArgumentError, match="Shim: expected an adapter, got"):
        Shim(child)
