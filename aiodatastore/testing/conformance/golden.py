"""What a transaction record says, in the form in which the reference interpreter and the runner say it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiodatastore.testing.conformance.decode import canonical, decode_value, index_form
from aiodatastore.testing.conformance.reference import Expectation, Observation, RunExpectation

__all__ = ["golden_interleaving", "golden_run", "stub_ids"]


def golden_interleaving(record: Mapping[str, Any]) -> Expectation:
    """An ``interleaving`` record's expectation."""
    steps = [_observation(step.get("expect")) for step in record["steps"]]
    return Expectation(steps, _final(record))


def golden_run(record: Mapping[str, Any]) -> RunExpectation:
    """A ``run`` record's expectation."""
    expect = record["expect"]
    log = [_observation(entry) for entry in expect.get("log", ())]
    return RunExpectation(expect.get("returns"), expect.get("error"), expect["attempts"], log, _final(record))


def stub_ids(record: Mapping[str, Any]) -> Iterable[int]:
    """The ids that the stub gave to incomplete keys."""
    return [step["expect"]["stub_id"] for step in record.get("steps", ()) if "stub_id" in (step.get("expect") or {})]


def _final(record: Mapping[str, Any]) -> list[Observation]:
    return [
        {"missing": True} if properties is None else {"props": _properties(properties)}
        for _, properties in record["final"]
    ]


def _properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {name: canonical(decode_value(value)) for name, value in properties.items()}


def _observation(expect: Any) -> Observation:
    if not isinstance(expect, dict):
        return None
    if "props" in expect:
        return {"props": _properties(expect["props"])}
    if "entities" in expect:
        return {"entities": [None if p is None else _properties(p) for p in expect["entities"]]}
    if "rows" in expect:
        return {"rows": [[path, _row(row)] for path, row in expect["rows"]]}
    if "allocated" in expect:
        return {"allocated": True}
    return dict(expect)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: index_form(decode_value(value)) for name, value in row.items()}
