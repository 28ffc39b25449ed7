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
    Expectation,
    Observation,
    RunExpectation,
    interpret,
    interpret_run,
    observed_entities,
    observed_entity,
    observed_results,
)
from aiodatastore.testing.conformance.rules import Rule
from aiodatastore.testing.conformance.session import Case, MismatchError, Record, Session, is_error
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


def _apply_rules(case: Case, golden: Any, explain: Callable[[frozenset[Rule]], Any], ours: Any) -> None:
    """Note the rules that decide the case, if ours differs from the golden expectation.

    :raises MismatchError: if App Engine's semantics don't lead to what the record expects
    """
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
    golden = golden_interleaving(record)
    if record.get("quirk") == "partial-multi-put":
        # What to do: refuse all; as any number of groups is allowed, nothing is to be refused.
        case.quirk()
    steps, allocated = await _run_steps(ds, record)
    ids = [*stub_ids(record)]
    ours = interpret(record, ALL_RULES, allocated)

    def explain(rules: frozenset[Rule]) -> Expectation:
        return interpret(record, rules, allocated if rules == ALL_RULES else ids)

    comparable = interpret(record, ALL_RULES, ids)
    _apply_rules(case, golden, explain, comparable)
    for number, (expected, got) in enumerate(zip(ours.steps, steps, strict=True), start=1):
        _check_step(case, f"step {number} ({record['steps'][number - 1]['op']})", expected, got)
    final = await _final(ds, record)
    case.check(final == ours.final, "final", expected=ours.final, got=final)


def _check_step(case: Case, where: str, expected: Observation, got: Any) -> None:
    if expected is not None and "error" in expected:
        matches = isinstance(got, Exception) and is_error(got, expected["error"])
        case.check(matches, where, expected=expected["error"], got=got)
    else:
        case.check(got == expected, where, expected=expected, got=got)


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
    golden = golden_run(record)
    ours = interpret_run(record, ALL_RULES)
    _apply_rules(case, golden, lambda rules: interpret_run(record, rules), ours)
    await _Run(case, ds).judge(ours)


class _Run:
    """Performs a ``run`` record with the library's own functions and decorators."""

    def __init__(self, case: Case, ds: Datastore) -> None:
        self.case = case
        self.ds = ds
        self.log: list[Observation] = []
        self.attempts: dict[int, int] = {}

    async def judge(self, expected: RunExpectation) -> None:
        check, call = self.case.check, self.case.record["call"]
        got: Any
        try:
            got = await self.call(call)
        except Exception as exc:
            got = exc
        if expected.error is not None:
            matches = isinstance(got, Exception) and is_error(got, expected.error)
            check(matches, "outcome", expected=expected.error, got=got)
        elif isinstance(got, Exception):
            raise got
        else:
            check(got == expected.returns, "returns", expected=expected.returns, got=got)
        attempts = self.attempts[id(call)]
        check(attempts == expected.attempts, "attempts", expected=expected.attempts, got=attempts)
        check(self.log == expected.log, "log", expected=expected.log, got=self.log)
        final = await _final(self.ds, self.case.record)
        check(final == expected.final, "final", expected=expected.final, got=final)

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
