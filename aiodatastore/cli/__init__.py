"""The command line: ``aiodatastore``, or ``python -m aiodatastore``."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``argv`` is by default that of the process.

    0: done. 1: the store refused or can't be reached, a check found something. 2: wrong usage. 3: an entity
    asked for does not exist. 130: interrupted.
    """
    from aiodatastore.cli.app import run_app

    return run_app(argv)
