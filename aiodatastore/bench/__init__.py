"""Measuring a datastore: what ``aiodatastore bench URL`` runs, and what the project's own benchmarks are made of."""

from __future__ import annotations

from aiodatastore.bench.cli import run_url

__all__ = ["run_url"]
