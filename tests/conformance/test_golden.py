"""Every golden case, on every engine, and the honesty of the runner that judges them.

The cases of a file run as one test; the failing ids and what was wrong are the assertion's message.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiodatastore import Datastore, Entity, Key
from aiodatastore.adapters.engine import EngineAdapter
from aiodatastore.adapters.memory import MemoryRowStore
from aiodatastore.errors import BadArgumentError, BadRequestError
from aiodatastore.testing import conformance
from aiodatastore.testing.conformance import FILES, Report, Verdict, run_corpus
from aiodatastore.testing.conformance.session import OpenDatastore
from tests.engines import Place, engines

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "data" / "conformance"
TABLE_ROW = re.compile(r"\| `([a-z-]+)` \| (.+) \| (.+) \|")

Record = dict[str, Any]


@pytest.fixture(autouse=True)
def _no_suggestions(caplog: pytest.LogCaptureFixture) -> None:
    """Hundreds of queries here run without their index; the log would bury what failed."""
    caplog.set_level(logging.ERROR, logger="aiodatastore")


def run(folder: Path, store: str | OpenDatastore, *files: str) -> Report:
    open_datastore = partial(Datastore, store) if isinstance(store, str) else store

    async def main() -> Report:
        return await run_corpus(folder, open_datastore, only=files or None)

    return anyio.run(main)


@engines()
@pytest.mark.parametrize("file", FILES)
def test_every_case(place: Place, file: str) -> None:
    report = run(CORPUS, place.connect, file)
    assert report.ok, "\n".join(report.lines())


def test_under_trio() -> None:
    async def main() -> Report:
        return await run_corpus(CORPUS, lambda **options: Datastore("memory://", **options), only=["transactions"])

    report = anyio.run(main, backend="trio")
    assert report.ok, "\n".join(report.lines())


def test_adapter_of_ones_own() -> None:
    """What has no URL: the options that concern the adapter are given to it."""

    def open_datastore(require_indexes: bool = False, **options: Any) -> Datastore:
        return Datastore(EngineAdapter(MemoryRowStore(), require_indexes=require_indexes), **options)

    report = anyio.run(lambda: run_corpus(CORPUS, open_datastore, only=["indexes", "allocate_ids"]))
    assert report.ok, "\n".join(report.lines())


# -------------------------------------------------------------------- wrong expectations are noticed


def spoil_values(record: Record) -> None:
    kind = record["type"]
    if kind == "type_order":
        record["order"].reverse()
    elif kind == "sorted":
        record["groups"] = [*reversed(record["groups"])] if len(record["groups"]) > 1 else [[5, 6]]
    elif kind == "compare":
        record["cmp"] = (record["cmp"] + 2) % 3 - 1
    elif kind == "filter":
        record["matches"] = [n for n in range(len(record["stored"])) if n not in record["matches"]]
    else:
        record["asc"] = [] if record["asc"] else record["values"][:1]


def spoil_keys(record: Record) -> None:
    kind = record["type"]
    if kind == "sorted":
        record["keys"].reverse()
    elif kind == "compare":
        record["cmp"] = (record["cmp"] + 2) % 3 - 1
    elif kind == "facts":
        record["kind"] += "x"
    else:
        record["expect"] = record["expect"][1:] if record["expect"] else record["keys"][:1]


def spoil_expect(record: Record) -> None:
    """Results, rows, counts or an error: something else."""
    expect = record["expect"]
    for member in ("keys", "rows", "pages", "orders"):
        if member in expect:
            expect[member] = [*expect[member][:-1]] if expect[member] else [["Nobody", 1]]
            if member == "rows" and not record["expect"]["rows"]:
                expect[member] = [[["Nobody", 1], {"x": 1}]]
            return
    if "error" in expect:
        expect["error"] = "NeedIndexError" if expect["error"] != "NeedIndexError" else "BadKeyError"
    elif "count" in expect:
        expect["count"] += 1
    else:
        expect["property"] += "x"


def spoil_entities(record: Record) -> None:
    expect = record["expect"]
    if "error" in expect:
        expect["error"] = "NeedIndexError"
    elif "props" in expect:
        expect["props"]["spoiled"] = 1
    elif "path" in expect:
        expect["ns"] += "x"
    elif "lat" in expect:
        expect["lat"] = "7.5"
    elif expect.get("entity") is not None:
        expect["entity"] = {"spoiled": 1}
    elif "deleted" in expect:
        record["expect"] = {"error": "BadKeyError"}
    else:
        member = "entities" if "entities" in expect else "keys"
        expect[member] = [*expect[member], None]


def spoil_indexes(record: Record) -> None:
    if record["type"] == "get_indexes":
        missing = {"number": 0, "kind": "Spoiled", "ancestor": False, "properties": [["x", "asc"]], "state": "ERROR"}
        record["expect"] = [missing, *record["expect"]]
    elif "results" in record["expect"]:
        record["expect"]["results"] += 1
    else:
        record["expect"]["yaml"] += "\n  - name: spoiled"


def spoil_transactions(record: Record) -> None:
    key, properties = record["final"][0]
    record["final"][0] = [key, {"v": -1} if properties is None else None]


def spoil_allocate_ids(record: Record) -> None:
    for step in record["steps"]:
        expect = step["expect"]
        if "error" in expect:
            expect["error"], step["any_error"] = "NeedIndexError", False
        elif "empty" in expect:
            expect["empty"] = not expect["empty"]
        else:
            continue
        return
    record["steps"][0]["expect"] = {"error": "BadKeyError"}


SPOIL: dict[str, Callable[[Record], None]] = {
    "values": spoil_values,
    "keys": spoil_keys,
    "entities": spoil_entities,
    "queries": spoil_expect,
    "cursors": spoil_expect,
    "multiquery": spoil_expect,
    "indexes": spoil_indexes,
    "transactions": spoil_transactions,
    "allocate_ids": spoil_allocate_ids,
}


@pytest.mark.parametrize("file", FILES)
def test_every_spoiled_expectation_fails(file: str, tmp_path: Path) -> None:
    """But where any error is right, and where a quirk or a call we don't have leaves nothing to compare."""
    records = [json.loads(line) for line in (CORPUS / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]
    spoiled = copy.deepcopy(records)
    for record in spoiled:
        SPOIL[file](record)
    (tmp_path / f"{file}.jsonl").write_text("\n".join(map(json.dumps, spoiled)), encoding="utf-8")
    (tmp_path / "datasets.jsonl").write_bytes((CORPUS / "datasets.jsonl").read_bytes())
    report = run(tmp_path, "memory://", file)
    lenient = {record["id"] for record in records if record.get("any_error") or "quirk" in record}
    unnoticed = [
        outcome.id
        for outcome in report[file].outcomes
        if outcome.verdict is not Verdict.FAILED
        and outcome.id not in lenient
        and not set(outcome.names) & set(conformance.SURFACE_RULES)
    ]
    assert not unnoticed


def test_changed_answers_of_a_transaction_fail(tmp_path: Path) -> None:
    """Each single step that shows something, changed by itself: a rule may not excuse it."""
    records = [json.loads(line) for line in (CORPUS / "transactions.jsonl").read_text(encoding="utf-8").splitlines()]
    spoiled = []
    for record in records:
        for number, step in enumerate(record.get("steps", ())):
            expect = step.get("expect") or {}
            changed = {
                "props": lambda: {"props": {"v": -1}},
                "missing": lambda: {"props": {"v": -1}},
                "keys": lambda expect=expect: {"keys": [*expect["keys"], ["G", "spoiled"]]},
                "outcome": lambda expect=expect: {
                    "outcome": "conflict" if expect["outcome"] == "committed" else "committed"
                },
                "error": lambda: {"error": "NeedIndexError"},
            }
            for member, change in changed.items():
                if member in expect:
                    other = copy.deepcopy(record)
                    other["steps"][number]["expect"] = change()  # type: ignore[operator]
                    other["id"] = f"{record['id']}-{number}"
                    spoiled.append(other)
    assert len(spoiled) > 300
    (tmp_path / "transactions.jsonl").write_text("\n".join(map(json.dumps, spoiled[::3])), encoding="utf-8")
    report = run(tmp_path, "memory://", "transactions")
    assert [outcome.id for outcome in report["transactions"].outcomes if outcome.verdict is not Verdict.FAILED] == []


# ---------------------------------------------------------------------------------- the runner itself


def test_runner_knows_no_case_ids() -> None:
    package = Path(conformance.__file__).parent
    for source in package.rglob("*.py"):
        assert not re.search(r"\b[a-z]-\d{4}\b", source.read_text(encoding="utf-8")), source


def test_table_of_rules_is_the_one_in_the_docs() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    table = {name: (theirs, ours) for name, theirs, ours in TABLE_ROW.findall(text)}
    rules = {str(rule): what for rule, what in conformance.TRANSACTION_RULES.items()}
    assert table == rules | conformance.SURFACE_RULES


def test_every_rule_is_needed_by_some_case(tmp_path: Path) -> None:
    report = run(CORPUS, "memory://", "transactions", "cursors", "multiquery")
    used = {name for file in report.files for name in file.names(Verdict.BY_RULE)}
    # The corpus has no function that raises after what it read has changed.
    key = {"path": ["G", "a"]}
    record = {
        "id": "raises-on-stale-read",
        "type": "run",
        "setup": [{"key": key, "props": {"v": 1}}],
        "call": {
            "api": "RunInTransaction",
            "body": [
                {"op": "get", "key": key},
                {"op": "put", "entity": {"key": key, "props": {"v": 2}}, "outside": True, "attempts": [1]},
                {"raise": "ValueError", "attempts": [1]},
                {"return": "second"},
            ],
        },
        "expect": {"error": "ValueError", "attempts": 1, "log": [{"props": {"v": 1}}]},
        "final": [[key, {"v": 2}]],
    }
    (tmp_path / "transactions.jsonl").write_text(json.dumps(record), encoding="utf-8")
    report = run(tmp_path, "memory://")
    assert report.ok, "\n".join(report.lines())
    used |= report["transactions"].names(Verdict.BY_RULE).keys()
    assert used == {*map(str, conformance.TRANSACTION_RULES), *conformance.SURFACE_RULES}


def test_store_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/used.db"

    async def prepare() -> None:
        async with Datastore(url) as ds:
            await ds.put(Entity(Key("Precious", 1), {"x": 1}))

    async def count() -> int:
        async with Datastore(url) as ds:
            return await ds.query("Precious").count()

    anyio.run(prepare)
    with pytest.raises(BadRequestError, match="Precious"):
        run(CORPUS, url, "keys")
    assert anyio.run(count) == 1


def test_folder_without_a_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadArgumentError, match="none of the files"):
        run(tmp_path, "memory://")


def test_unreadable_records_fail_by_themselves(tmp_path: Path) -> None:
    lines = [
        {"id": "one", "type": "no such type"},
        {"id": "two", "type": "compare", "a": 1, "b": 2, "cmp": -1},
        {"id": "three", "type": "compare", "a": {"what": 1}, "b": 2, "cmp": -1},
    ]
    (tmp_path / "values.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    report = run(tmp_path, "memory://")
    assert [outcome.verdict is Verdict.FAILED for outcome in report["values"].outcomes] == [True, False, True]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    module = [sys.executable, "-m", "aiodatastore.testing.conformance"]
    return subprocess.run([*module, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT)


def test_command_line(tmp_path: Path) -> None:
    done = command(CORPUS, "--url", f"sqlite:///{tmp_path}/new.db", "--only", "allocate_ids")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"allocate_ids +\d+ passed +0 failed +\d+ total", done.stdout)
    assert "FAILED" not in done.stdout


def test_command_line_names_what_failed(tmp_path: Path) -> None:
    wrong = {"id": "made-up", "type": "compare", "a": 1, "b": 2, "cmp": 1}
    (tmp_path / "values.jsonl").write_text(json.dumps(wrong), encoding="utf-8")
    done = command(tmp_path, "--url", "memory://")
    assert done.returncode == 1
    assert "FAILED made-up" in done.stdout


def test_command_line_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    done = command(tmp_path, "--url", "memory://")
    assert done.returncode == 2
    assert "none of the files" in done.stderr
