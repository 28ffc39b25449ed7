"""Export, import, copy and compare: entities streamed between stores and files, in bounded memory, resumable.

Files are JSON lines, described in :mod:`aiodatastore.jsonl`. What moves is read in pages and written in
batches, several of them in flight; memory holds those and no more. Stores change while this runs: what is
written meanwhile is taken in its old or its new state.
"""

from __future__ import annotations

from aiodatastore.transfer.common import (
    EVERYTHING,
    PAGE_ENTITIES,
    Difference,
    Selection,
    TransferProgress,
    TransferReport,
)
from aiodatastore.transfer.comparing import Comparison, compare
from aiodatastore.transfer.copying import copy
from aiodatastore.transfer.files import BATCH_ENTITIES, export_entities, import_entities

__all__ = [
    "BATCH_ENTITIES",
    "EVERYTHING",
    "PAGE_ENTITIES",
    "Comparison",
    "Difference",
    "Selection",
    "TransferProgress",
    "TransferReport",
    "compare",
    "copy",
    "export_entities",
    "import_entities",
]
