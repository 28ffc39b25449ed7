"""A folder of golden cases, read from disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiodatastore.errors import BadArgumentError

__all__ = ["Corpus", "load_corpus"]

Record = dict[str, Any]
DATASETS = "datasets"


@dataclass(frozen=True, slots=True)
class Corpus:
    """The records of each file, by its name without ``.jsonl``, and the datasets they refer to."""

    files: Mapping[str, list[Record]]
    datasets: Mapping[str, list[Record]]


def load_corpus(folder: str | Path, names: Iterable[str]) -> Corpus:
    """Read the files of these names that the folder has, and its datasets.

    :raises BadArgumentError: if there is none of them, or one can't be read; the message says where
    """
    path = Path(folder)
    if not path.is_dir():
        raise BadArgumentError(f"{path} is no folder")
    found = {name: _records(path / f"{name}.jsonl") for name in names if (path / f"{name}.jsonl").exists()}
    if not found:
        raise BadArgumentError(f"{path} has none of the files {', '.join(f'{name}.jsonl' for name in names)}")
    datasets = _records(path / f"{DATASETS}.jsonl") if (path / f"{DATASETS}.jsonl").exists() else []
    return Corpus(found, {record["id"]: record["entities"] for record in datasets})


def _records(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as exc:
                raise BadArgumentError(f"{path}, line {number}: {exc}") from exc
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise BadArgumentError(f"{path}, line {number}: expected an object with an id")
            records.append(record)
    return records
