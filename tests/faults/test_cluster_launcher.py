"""The launcher of clusters: nodes keep their place through kill -9, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aiodatastore.testing.servers import ServerError, ValkeyCluster
from tests.conftest import missing


def small() -> ValkeyCluster:
    try:
        return ValkeyCluster(masters=2, replicas=0)
    except ServerError as exc:
        missing(exc)


def until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nodes_keep_their_place_and_leave_nothing() -> None:
    with small() as cluster:
        first, second = cluster.nodes
        assert cluster.masters == [first, second]
        assert cluster.replicas == []
        assert (cluster.master_of(0), cluster.master_of(16383)) == (first, second)
        names, ports = [node.id for node in cluster.nodes], [node.port for node in cluster.nodes]
        first.kill9()
        assert not first.is_master
        with pytest.raises(ServerError, match="with nothing"):
            first.command("PING")
        with pytest.raises(ServerError, match="does not work after"):
            cluster.wait_ok(1.0)
        first.start()
        cluster.wait_ok()
        cluster.stop()
        cluster.start()
        assert [node.id for node in cluster.nodes] == names
        assert [node.port for node in cluster.nodes] == ports
        with pytest.raises(ServerError, match="unknown"):
            first.command("NO", "SUCH", "THING")
        pids, folders = [node.pid for node in cluster.nodes], [node.base for node in cluster.nodes]
    assert not [pid for pid in pids if alive(pid)]
    assert not [folder for folder in folders if folder.exists()]
    cluster.remove()
    with pytest.raises(ServerError, match="removed"):
        cluster.start()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_killed_process_leaves_nothing() -> None:
    small().remove()  # skips where there is no server
    code = """
import os, signal
from aiodatastore.testing.servers import ValkeyCluster
cluster = ValkeyCluster(masters=2, replicas=0).start()
for node in cluster.nodes:
    print(node.pid, node.base, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=os.getcwd())
    assert done.returncode == -signal.SIGKILL, done.stderr
    told = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(told) == 2
    until(lambda: not any(alive(int(pid)) or Path(folder).exists() for pid, folder in told))
