"""The command as a process: pipes, terminals, interruptions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "aiodatastore"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def lines(count: int, size: int = 20) -> str:
    return "".join(
        json.dumps({"key": f"/N:{i}", "properties": {"i": i, "s": "x" * size}}) + "\n" for i in range(1, count + 1)
    )


def test_import_query_and_pipe(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/n.db"
    done = subprocess.run(
        [*COMMAND, "import", url, "-"], input=lines(50), text=True, env=ENVIRONMENT, capture_output=True, check=True
    )
    assert "imported 50 entities" in done.stderr
    done = subprocess.run(
        [*COMMAND, "query", url, "N", "--json"], text=True, env=ENVIRONMENT, capture_output=True, check=True
    )
    assert len(done.stdout.splitlines()) == 50


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/n.db"
    subprocess.run(
        [*COMMAND, "import", url, "-"],
        input=lines(5000, 300),
        text=True,
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
    )
    for command in (["query", url, "N", "--json"], ["export", url, "-"], ["query", url, "N", "--all"]):
        process = subprocess.Popen(
            [*COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
        process.stderr.close()
        assert process.wait(100) == 0, err
        assert err == ""


def test_bytes_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/n.db"
    environment = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    put = [*COMMAND, "put", url, "/City:München", "name=東京"]
    done = subprocess.run(put, env=environment, capture_output=True, check=True)
    assert done.stdout == "/City:München\n".encode()
    done = subprocess.run([*COMMAND, "query", url, "City"], env=environment, capture_output=True, check=True)
    assert "東京".encode() in done.stdout


PRESSES_CTRL_C = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell is born deaf to it

def press():
    while not os.path.exists(sys.argv[3] + ".progress"):
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press, daemon=True).start()
from aiodatastore.cli import main
sys.exit(main())
"""


@pytest.mark.skipif(os.name != "posix", reason="signals and terminals are those of POSIX")
def test_an_interrupted_import_resumes(tmp_path: Path) -> None:
    """It is interrupted from within: it is not done, then, before the signal comes."""
    url = f"sqlite:///{tmp_path}/n.db"
    path = tmp_path / "n.jsonl"
    path.write_text(lines(20_000, 200))
    done = subprocess.run(
        [sys.executable, "-c", PRESSES_CTRL_C, "import", url, str(path), "--batch", "2"],
        text=True,
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
    done = subprocess.run(
        [*COMMAND, "import", url, str(path), "--resume", "--json"],
        text=True,
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["resumed"] > 0
    assert report["resumed"] + report["entities"] == 20_000
    count = subprocess.run(
        [*COMMAND, "query", url, "N", "--count"], text=True, env=ENVIRONMENT, capture_output=True, check=True
    )
    assert count.stdout == "20000\n"


def on_a_terminal(arguments: list[str]) -> tuple[int, str]:
    """Run the command with a terminal for its output; its exit code and what the terminal got."""
    import pty

    master, slave = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment, close_fds=True
    )
    os.close(slave)
    chunks = []
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # what Linux says at the end of a terminal
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    return process.wait(100), b"".join(chunks).decode().replace("\r\n", "\n")


@pytest.mark.skipif(os.name != "posix", reason="signals and terminals are those of POSIX")
def test_tables_and_progress_on_a_terminal(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/n.db"
    path = tmp_path / "n.jsonl"
    path.write_text(lines(3000))
    code, shown = on_a_terminal(["import", url, str(path)])
    assert code == 0
    assert "imported 3,000 entities" in shown
    code, shown = on_a_terminal(["query", url, "N", "-n", "3"])
    assert code == 0
    assert "\x1b[" in shown
    plain = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"key\s+i\s+s\s*\n.*─", plain)
    assert re.search(r"/N:1\s+1\s+x{20}", plain)
    assert "3 results, and more" in plain
    code, shown = on_a_terminal(["get", url, "/N:99999"])
    assert (code, "not found" in shown) == (3, True)
