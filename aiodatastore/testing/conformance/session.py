"""What the judges of the file types share: cases, stores, datasets and the comparison of outcomes."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.testing.conformance.decode import (
    UnreadableError,
    decode_entity,
    decode_value,
    index_form,
    path_json,
    same_entity,
    show,
)
from aiodatastore.testing.conformance.report import FileReport, Outcome, Verdict

__all__ = [
    "Case",
    "MismatchError",
    "OpenDatastore",
    "Record",
    "Session",
    "compare_results",
    "is_error",
    "namespaces_in",
    "outcome_of",
    "wipe",
]

Record = dict[str, Any]
OpenDatastore = Callable[..., Datastore]

DELETE_BATCH = 400


class MismatchError(Exception):
    """What was observed is not what the record expects."""


class Case:
    """One record being judged."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.verdict = Verdict.PASSED
        self.names: tuple[str, ...] = ()

    def by_rule(self, *rules: str) -> None:
        """The expectation is this library's, by these named rules."""
        self.verdict, self.names = Verdict.BY_RULE, rules

    def quirk(self) -> None:
        """The expectation is what the README's table of quirks leaves or asks for."""
        self.verdict, self.names = Verdict.QUIRK, (self.record["quirk"],)

    def check(self, condition: object, what: str, *, expected: object = None, got: object = None) -> None:
        """:raises MismatchError: unless the condition holds"""
        if not condition:
            raise MismatchError(f"{what}: expected {show(expected)}, got {show(got)}")

    def check_error(self, expected: Mapping[str, Any], got: object) -> None:
        """:raises MismatchError: unless ``got`` is the error that is expected (any class for ``any_error``)"""
        matches = isinstance(got, Exception) and (
            self.record.get("any_error") or expected.get("any_error") or is_error(got, expected["error"])
        )
        self.check(matches, "outcome", expected=expected["error"], got=got)


class Session:
    """A run over one corpus file."""

    def __init__(self, name: str, open_datastore: OpenDatastore, datasets: Mapping[str, Sequence[Record]]) -> None:
        self.report = FileReport(name)
        self._open = open_datastore
        self._datasets = datasets

    def dataset(self, name: str) -> Sequence[Record]:
        """The entities (JSON) of a dataset."""
        try:
            return self._datasets[name]
        except KeyError:
            raise UnreadableError(f"the corpus has no dataset {name!r}") from None

    @contextlib.contextmanager
    def case(self, record: Record) -> Iterator[Case]:
        """Judge a record: an exception inside is its failure."""
        case = Case(record)
        detail = ""
        try:
            yield case
        except MismatchError as exc:
            case.verdict, detail = Verdict.FAILED, str(exc)
        except Exception as exc:
            frame = traceback.extract_tb(exc.__traceback__)[-1]
            where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
            case.verdict, detail = Verdict.FAILED, f"unexpected {show(exc)} ({where})"
        names = case.names if case.verdict is not Verdict.FAILED else ()
        self.report.outcomes.append(Outcome(record["id"], case.verdict, names, detail))

    @contextlib.asynccontextmanager
    async def store(self, **options: Any) -> AsyncIterator[Datastore]:
        """An open store with App Engine's rules."""
        async with self._open(app_engine_rules=True, **options) as ds:
            yield ds

    @contextlib.asynccontextmanager
    async def world(self, ds: Datastore, entities: Iterable[Record], record: Any) -> AsyncIterator[None]:
        """An empty store filled with ``entities``, and emptied of all that ``record`` names afterwards."""
        entities = list(entities)
        try:
            if entities:
                await ds.put([decode_entity(entity) for entity in entities])
            yield
        finally:
            await wipe(ds, namespaces_in([entities, record]))

    async def per_dataset(
        self,
        ds: Datastore,
        records: Iterable[Record],
        judge: Callable[[Datastore, Record, dict[Key, Entity]], Awaitable[None]],
    ) -> None:
        """Load each dataset once and judge all records that refer to it."""
        groups: dict[str, list[Record]] = {}
        for record in records:
            groups.setdefault(record["dataset"], []).append(record)
        for name, group in groups.items():
            entities = self.dataset(name)
            stored = {entity.key: entity for entity in map(decode_entity, entities)}
            async with self.world(ds, entities, ()):
                for record in group:
                    await judge(ds, record, stored)


# ------------------------------------------------------------------------------------------- stores


def namespaces_in(data: Any) -> set[str]:
    """Every namespace that occurs in some JSON, and the default one."""
    found = {""}
    stack = [data]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            found.update(ns for name in ("ns", "namespace") if isinstance(ns := item.get(name), str))
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return found


async def wipe(ds: Datastore, namespaces: Iterable[str]) -> None:
    """Delete every entity of some namespaces (those that no key can have are skipped)."""
    for namespace in namespaces:
        try:
            query = ds.query(None, namespace=namespace)
        except Exception:  # a record that tests a bad namespace
            continue
        keys = [key async for key in query.keys_only()]
        for start in range(0, len(keys), DELETE_BATCH):
            await ds.delete(keys[start : start + DELETE_BATCH])


# ---------------------------------------------------------------------------------------- comparing


async def outcome_of(operation: Callable[[], Awaitable[Any]]) -> Any:
    """What an operation returns, or the exception it raises."""
    try:
        return await operation()
    except Exception as exc:
        return exc


def is_error(error: BaseException, name: str) -> bool:
    """Whether an exception is of the class of this name, or of one derived from it."""
    return any(cls.__name__ == name for cls in type(error).__mro__)


def compare_results(
    case: Case,
    expected: Mapping[str, Any],
    got: Any,
    *,
    stored: Mapping[Key, Entity] | None = None,
    namespace: str = "",
    ordered: bool = True,
) -> None:
    """Compare query results with ``{"keys": …}``, ``{"rows": …}`` or ``{"error": …}``.

    ``stored`` holds what whole entities must be equal to.
    """
    if "error" in expected:
        case.check_error(expected, got)
        return
    if isinstance(got, Exception):
        raise MismatchError(f"outcome: expected results, got {show(got)}")
    wanted: list[Any]
    actual: list[Any]
    if "rows" in expected:
        wanted = [(path, _row_form(row)) for path, row in expected["rows"]]
        actual = [(path_json(entity.key), _row_form_of(case, entity)) for entity in got]
    else:
        wanted = [(path, None) for path in expected["keys"]]
        actual = [(path_json(result if isinstance(result, Key) else result.key), None) for result in got]
        _check_whole(case, got, stored)
    for result in got:
        key = result if isinstance(result, Key) else result.key
        case.check(key.namespace == namespace, "namespace of a result", expected=namespace, got=key)
    if not ordered:
        wanted, actual = sorted(wanted, key=repr), sorted(actual, key=repr)
    if wanted != actual:
        raise MismatchError(_difference(wanted, actual))


def _row_form(row: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {name: index_form(decode_value(value)) for name, value in row.items()}


def _row_form_of(case: Case, entity: Entity) -> dict[str, tuple[Any, ...]]:
    case.check(entity.is_projection, "a projected entity", got=entity)
    return {name: index_form(value) for name, value in entity.items()}


def _check_whole(case: Case, results: Iterable[Any], stored: Mapping[Key, Entity] | None) -> None:
    if stored is None:
        return
    for result in results:
        if isinstance(result, Entity):
            original = stored.get(result.key)
            same = original is not None and same_entity(result, original) and not result.is_projection
            case.check(same, f"entity {result.key!r}", expected=original, got=result)


def _difference(wanted: list[Any], actual: list[Any]) -> str:
    everything = f"expected {show([w for w, _ in wanted])}, got {show([a for a, _ in actual])}"
    for index, (w, a) in enumerate(zip(wanted, actual, strict=False)):
        if w != a:
            return f"results differ at {index}: expected {show(w)}, got {show(a)}; {everything}"
    return f"expected {len(wanted)} results, got {len(actual)}; {everything}"
