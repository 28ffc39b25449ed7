"""What all tests share: the event loops that asynchronous tests run on."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop of tests marked ``anyio``: each runs on both."""
    name: str = request.param
    if name == "trio":
        pytest.importorskip("trio")
    return name
