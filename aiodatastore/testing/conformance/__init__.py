"""The golden cases, run against any adapter.

On the command line::

    python -m aiodatastore.testing.conformance CORPUS_DIR --url sqlite:///scratch.db [--only queries]

and in Python :func:`run_corpus`. A corpus is a folder of JSON Lines files in the format that
``tests/data/conformance/README.md`` describes; ``docs/conformance.md`` says how cases are judged.
"""

from __future__ import annotations

from aiodatastore.testing.conformance.report import FileReport, Outcome, Report, Verdict
from aiodatastore.testing.conformance.rules import SURFACE_RULES, TRANSACTION_RULES, Rule
from aiodatastore.testing.conformance.runner import FILES, run_corpus

__all__ = [
    "FILES",
    "SURFACE_RULES",
    "TRANSACTION_RULES",
    "FileReport",
    "Outcome",
    "Report",
    "Rule",
    "Verdict",
    "run_corpus",
]
