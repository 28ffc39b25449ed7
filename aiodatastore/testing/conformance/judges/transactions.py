"""``transactions.jsonl``: interleavings, retries, nesting and propagation.

What a record expects is first explained: the reference interpreter with App Engine's semantics must come to the
record's outcome, else the record is not what it claims to be. Then the interpreter with our semantics says
what this library must do; where that is the same, the record is judged as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiodatastore.datastore import Datastore
from aiodatastore.errors import BadRequestError, Rollback, TransactionFailedError
from aiodatastore.testing.conformance.decode import decode_entity, decode_key, show
from aiodatastore.testing.conformance.golden import golden_interleaving, golden_run, stub_ids
from aiodatastore.testing.conformance.judges.entities import get_one
from aiodatastore.testing.conformance.reference import (
    Choices,
    Expectation,
    Judged,
    Observation,
    RunExpectation,
    every_choice,
    interpret,
    interpret_run,
    observed_entities,
    observed_entity,
    observed_results,
)
from aiodatastore.testing.conformance.rules import Rule
from aiodatastore.testing.conformance.session import Case, MismatchError, Record, Session, is_error, outcome_of
from aiodatastore.testing.conformance.surface import bind, build_query
from aiodatastore.txn import Propagation

__all__ = ["judge"]

ALL_RULES = frozenset(Rule)


async def judge(session: Session, records: Sequence[Record]) -> None:
    """Judge every record of the file."""
    async with session.store() as ds:
        for record in records:
            async with session.world(ds, record["setup"], record):
                with session.case(record) as case:
                    judge_one = _interleaving if record["type"] == "interleaving" else _run
                    await judge_one(case, ds)


async def _final(ds: Datastore, record: Record) -> list[Observation]:
    return [observed_entity(await ds.get(decode_key(key))) for key, _ in record["final"]]


def _expected(
    interpretation: Callable[[Choices], Judged], differences: Callable[[Judged], list[str]]
) -> tuple[Choices, Judged]:
    """The interpretation that what was observed agrees with.

    :raises MismatchError: if there is none; says how it differs from the first
    """
    first: list[str] = []
    for choices, expected in every_choice(interpretation):
        found = differences(expected)
        if not found:
            return choices, expected
        first = first or found
    raise MismatchError("; ".join(first))


def _apply_rules(case: Case, golden: Judged, explain: Callable[[frozenset[Rule]], Judged]) -> None:
    """Note the rules that decide the case, if what is expected of us is not the golden expectation.

    :raises MismatchError: if App Engine's semantics don't lead to what the record expects
    """
    ours = explain(ALL_RULES)
    if ours == golden:
        return
    if (explained := explain(frozenset())) != golden:
        raise MismatchError(f"no rule explains the record: expected {show(golden)}, App Engine's {show(explained)}")
    rules = [rule for rule in Rule if explain(ALL_RULES - {rule}) != ours or explain(frozenset((rule,))) != golden]
    if not rules:
        raise MismatchError(f"no single rule makes the difference between {show(golden)} and {show(ours)}")
    case.by_rule(*rules)


async def _perform(target: Any, step: Mapping[str, Any], allocated: list[int]) -> Observation:
    """One operation on the datastore or a transaction (they have the same methods)."""
    op = step["op"]
    if op == "get":
        return observed_entity((await target.get([decode_key(step["key"])]))[0])
    if op == "get_one":
        return observed_entity(await get_one(target, decode_key(step["key"])))
    if op == "get_multi":
        return observed_entities(await target.get([decode_key(key) for key in step["keys"]]))
    if op == "put":
        entity = decode_entity(step["entity"])
        complete = entity.key.is_complete
        key = await target.put(entity)
        if complete:
            return {}
        allocated.append(key.id)
        return {"allocated": True}
    if op == "put_multi":
        entities = [decode_entity(data) for data in step["entities"]]
        incomplete = [entity for entity in entities if not entity.key.is_complete]
        await target.put(entities)
        allocated += [entity.key.id or 0 for entity in incomplete]
        return {"allocated": True} if incomplete else {}
    if op == "delete":
        await target.delete(decode_key(step["key"]))
        return {}
    query = bind(target, build_query(step["query"]))
    if op == "count":
        return {"count": await query.count()}
    return observed_results(step["query"], await query.fetch())


# -------------------------------------------------------------------------------------- interleavings


async def _interleaving(case: Case, ds: Datastore) -> None:
    record = case.record
    if record.get("quirk") == "partial-multi-put":
        # What to do: refuse all; as any number of groups is allowed, nothing is to be refused.
        case.quirk()
    steps, allocated = await _run_steps(ds, record)
    final = await _final(ds, record)
    choices, _ = _expected(
        lambda choices: interpret(record, ALL_RULES, allocated, choices),
        lambda expected: _differences(record, expected, steps, final),
    )
    ids = [*stub_ids(record)]
    _apply_rules(case, golden_interleaving(record), lambda rules: interpret(record, rules, ids, choices))


def _differences(
    record: Record, expected: Expectation, steps: Sequence[Any], final: Sequence[Observation]
) -> list[str]:
    found = [
        f"step {number} ({record['steps'][number - 1]['op']}): expected {show(wanted)}, got {show(got)}"
        for number, (wanted, got) in enumerate(zip(expected.steps, steps, strict=True), start=1)
        if not _agree(wanted, got)
    ]
    return found or _difference("final", expected.final, final)


def _agree(wanted: Observation, got: Any) -> bool:
    if wanted is not None and "error" in wanted:
        return isinstance(got, Exception) and is_error(got, wanted["error"])
    return bool(got == wanted)


def _difference(what: str, wanted: object, got: object) -> list[str]:
    return [] if wanted == got else [f"{what}: expected {show(wanted)}, got {show(got)}"]


async def _run_steps(ds: Datastore, record: Record) -> tuple[list[Any], list[int]]:
    """What each step showed (or the error it raised), and the ids given to incomplete keys."""
    transactions: dict[str, Any] = {}
    allocated: list[int] = []
    observed: list[Any] = []
    try:
        for step in record["steps"]:
            if step["op"] == "begin":
                transactions[step["txn"]] = ds.begin(read_only=step.get("read_only", False))
                observed.append(None)
                continue
            target = ds if step["txn"] is None else transactions[step["txn"]]
            try:
                observed.append(await _run_step(target, step, allocated))
            except Exception as exc:
                observed.append(exc)
    finally:
        for transaction in transactions.values():
            await _abandon(transaction)
    return observed, allocated


async def _run_step(target: Any, step: Mapping[str, Any], allocated: list[int]) -> Observation:
    if step["op"] == "rollback":
        await target.rollback()
        return {"outcome": "rolled_back"}
    if step["op"] == "commit":
        try:
            await target.commit()
        except TransactionFailedError:
            return {"outcome": "conflict"}
        return {"outcome": "committed"}
    return await _perform(target, step, allocated)


async def _abandon(transaction: Any) -> None:
    try:
        await transaction.rollback()
    except BadRequestError:  # it has ended
        return


# ----------------------------------------------------------------------------------------------- runs


class RollbackSubclass(Rollback):
    """What a record raises by this name."""


class UserError(Exception):
    """What a record raises by this name."""


RAISES: dict[str, type[Exception]] = {
    "Rollback": Rollback,
    "RollbackSubclass": RollbackSubclass,
    "ValueError": ValueError,
    "UserError": UserError,
    "TransactionFailedError": TransactionFailedError,
    "BadRequestError": BadRequestError,
}


async def _run(case: Case, ds: Datastore) -> None:
    record = case.record
    run = _Run(ds)
    returned = await outcome_of(lambda: run.call(record["call"]))
    final = await _final(ds, record)
    choices, _ = _expected(
        lambda choices: interpret_run(record, ALL_RULES, choices),
        lambda expected: run.differences(expected, record, returned, final),
    )
    _apply_rules(case, golden_run(record), lambda rules: interpret_run(record, rules, choices))


class _Run:
    """Performs a ``run`` record with the library's own functions and decorators."""

    def __init__(self, ds: Datastore) -> None:
        self.ds = ds
        self.log: list[Observation] = []
        self.attempts: dict[int, int] = {}

    def differences(
        self, expected: RunExpectation, record: Record, returned: Any, final: Sequence[Observation]
    ) -> list[str]:
        """What was observed otherwise than expected."""
        if expected.error is not None:
            raised = isinstance(returned, Exception) and is_error(returned, expected.error)
            outcome = [] if raised else [f"outcome: expected {expected.error}, got {show(returned)}"]
        else:
            outcome = _difference("returns", expected.returns, returned)
        return [
            *outcome,
            *_difference("attempts", expected.attempts, self.attempts[id(record["call"])]),
            *_difference("log", expected.log, self.log),
            *_difference("final", expected.final, final),
        ]

    async def call(self, call: Mapping[str, Any]) -> Any:
        api, options = call["api"], dict(call.get("options", {}))
        self.attempts[id(call)] = 0

        async def function(*args: Any) -> Any:
            return await self.body(call, args)

        args = call.get("args", ())
        if api == "plain":
            return await function(*args)
        if api == "NonTransactional":
            pause: Any = self.ds.non_transactional(**options)
            return await pause(function)(*args)
        if api == "Transactional":
            if options.pop("require_new", False):
                options["propagation"] = "NESTED"
            decorate: Any = self.ds.transactional(**_options(options))
            return await decorate(function)(*args)
        if api == "RunInReadOnlyTransaction":
            options["read_only"] = True
        if api == "RunInTransactionCustomRetries":
            options["retries"] = call["retries"]
        return await self.ds.run_in_transaction(function, *args, **_options(options))

    async def body(self, call: Mapping[str, Any], args: Sequence[Any]) -> Any:
        self.attempts[id(call)] = attempt = self.attempts[id(call)] + 1
        for step in call["body"]:
            if attempt not in step.get("attempts", (attempt,)):
                continue
            if "return" in step:
                return step["return"]
            if "return_argument" in step:
                return args[step["return_argument"]]
            await self.step(step)
        return None

    async def step(self, step: Mapping[str, Any]) -> None:
        if "raise" in step:
            raise RAISES[step["raise"]]("raised by the record")
        if "in_transaction" in step:
            self.log.append({"in_transaction": self.ds.in_transaction()})
        elif "call" in step:
            await self.nested_call(step)
        elif step.get("outside"):
            await self.ds.non_transactional()(_perform)(self.ds, step, [])
        else:
            observation = await _perform(self.ds, step, [])
            if observation and "allocated" not in observation:
                self.log.append(observation)

    async def nested_call(self, step: Mapping[str, Any]) -> None:
        try:
            returned = await self.call(step["call"])
        except Exception as exc:
            if not step.get("catch"):
                raise
            self.log.append({"inner_error": _name(exc)})
        else:
            self.log.append({"inner_returned": returned})


def _name(error: Exception) -> str:
    """The name that a record gives an error: that of the nearest class that App Engine has."""
    names = {*RAISES, "TypeError", "BadArgumentError", "EntityNotFoundError", "BadKeyError", "BadValueError"}
    return next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in names), type(error).__name__)


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """App Engine's options as ours; there is no ``xg``, so that one with an unusable value is unknown."""
    ours = {name: value for name, value in options.items() if name != "xg" or type(value) is not bool}
    if "propagation" in ours:
        ours["propagation"] = Propagation[ours["propagation"]]
    return ours
