"""``rebalance``: shards are added from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiodatastore.shims.sharded import adapter

Run = Callable[..., Any]


def test_a_shard_is_added(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "LAYOUT_MAX_AGE_S", 0.02)
    two, three = (
        f"sharded:{{{' | '.join(f'sqlite:///{tmp_path}/{number}.db' for number in range(count))}}}" for count in (2, 3)
    )
    for name in "abcdefghij":
        run("put", two, f"/Person:{name}", "n=1")
    assert "rebalance" in run("put", three, "/Person:x", "n=1", code=1).err
    done = run("rebalance", three, "--json")
    assert done.json["copied"] == done.json["removed"] > 0
    assert "copying" in done.err
    assert sum(row["entities"] for row in run("stats", three, "--json").json["kinds"]) == 10
    assert run("rebalance", three, "--json").json == {"copied": 0, "removed": 0}
    run("rebalance", f"sqlite:///{tmp_path}/0.db", code=2)
