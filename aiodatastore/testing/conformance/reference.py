"""An interpreter of transaction records, with App Engine's semantics or with ours.

It decides by values and versions of a whole store in a dict and shares no code with the engine or the
transactions it judges. Each rule in :class:`~.rules.Rule` replaces one of App Engine's decisions by ours; with
none the outcome is the golden one, with all it is what this library must do.

One thing is left to the store: conflicts are judged by the spans that were scanned, and to answer a query more may
have been scanned than it shows. Where what it showed is the same, but an entity of its kind under its ancestor is
not, a conflict is as right as none (App Engine has one), and there is an expectation for either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, TypeVar

from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.query import Query
from aiodatastore.testing.conformance.decode import canonical, decode_entity, decode_key, index_form, path_json
from aiodatastore.testing.conformance.rules import Rule
from aiodatastore.testing.conformance.surface import build_query
from aiodatastore.testing.model import Model

__all__ = [
    "Choices",
    "Expectation",
    "Judged",
    "Observation",
    "RunExpectation",
    "every_choice",
    "interpret",
    "interpret_run",
    "observed_entities",
    "observed_entity",
    "observed_results",
]

Rules = frozenset[Rule]
Observation = dict[str, Any] | None
Writes = dict[Key, Entity | None]
Choices = Sequence[bool]

GROUPS = 1
GROUPS_XG = 25
RETRIES = 3
FALLBACK_ID = 10**15
MAX_CHOICES = 1000


class RefusedError(Exception):
    """An operation raises an error; ``names`` are those of its class and what that is derived from."""

    def __init__(self, *names: str) -> None:
        super().__init__(names[0])
        self.names = names


# --------------------------------------------------------------------------------------------- world


@dataclass
class State:
    """Entities, their versions, and the time of the last write to each entity group."""

    model: Model = field(default_factory=Model)
    versions: dict[Key, int] = field(default_factory=dict)
    groups: dict[Key, int] = field(default_factory=dict)
    clock: int = 0

    def copy(self) -> State:
        return State(self.model.copy(), dict(self.versions), dict(self.groups), self.clock)

    def write(self, writes: Mapping[Key, Entity | None], groups: Iterable[Key] = ()) -> None:
        """One commit; ``groups`` count as written as well."""
        self.clock += 1
        for key, entity in writes.items():
            if entity is None:
                self.model.delete(key)
                self.versions.pop(key, None)
            else:
                self.model.put(entity)
                self.versions[key] = self.clock
        for group in {key.root for key in writes} | set(groups):
            self.groups[group] = self.clock

    def searched(self, query: Query) -> dict[Key, int]:
        """The versions of all that a query may have had to look at."""
        kind, ancestor = query.kind, query.ancestor
        return {
            key: version
            for key, version in self.versions.items()
            if (key.project, key.namespace) == (query.project_id, query.namespace)
            and kind in (None, key.kind)
            and (ancestor is None or ancestor == key or ancestor.is_ancestor_of(key))
        }

    def shown(self, query: Query, only_count: bool) -> Any:
        """What a query shows of this state: if it changes, whoever saw it must not commit."""
        if only_count:
            return self.model.count(query)
        rows = self.model.run(query)
        if query.only_keys or query.projection:
            return [row.position for row in rows]
        return [(row.key, self.versions[row.key]) for row in rows]


def _overlaid(model: Model, writes: Mapping[Key, Entity | None]) -> Model:
    copy = model.copy()
    for key, entity in writes.items():
        if entity is None:
            copy.delete(key)
        else:
            copy.put(entity)
    return copy


# --------------------------------------------------------------------------------------- transactions


class QueryRead(NamedTuple):
    """A query that was run (or only counted), what it showed, and all it may have looked at."""

    query: Query
    only_count: bool
    shown: Any
    searched: dict[Key, int]


@dataclass
class View:
    """What a transaction has read, shared with what is nested in it.

    ``since`` and ``until`` bound the moments at which all of it is known to have held.
    """

    entities: dict[Key, Entity | None] = field(default_factory=dict)
    versions: dict[Key, int] = field(default_factory=dict)
    queries: list[QueryRead] = field(default_factory=list)
    groups: dict[Key, int] = field(default_factory=dict)
    snapshots: dict[Key, State] = field(default_factory=dict)
    since: float = 0
    until: float = math.inf
    doomed: bool = False


class Txn:
    """One attempt of a transaction."""

    def __init__(self, world: World, *, xg: bool = False, read_only: bool = False, parent: Txn | None = None) -> None:
        self.world = world
        self.rules = world.rules
        self.limit = GROUPS_XG if xg else GROUPS
        self.read_only = read_only
        self.parent = parent
        self.view: View = parent.view if parent else View()
        self.closed = False
        self.touched: list[Key] = []
        self.writes: Writes = {}

    # -------------------------------------------------------------------------------- what it reads

    def get(self, keys: Sequence[Key]) -> list[Entity | None]:
        self.check_open()
        self._touch(keys)
        return [self._get(key) for key in keys]

    def _get(self, key: Key) -> Entity | None:
        if Rule.OWN_WRITES in self.rules and key in (writes := self._visible_writes()):
            return writes[key]
        view = self.view
        if Rule.ONE_MOMENT in self.rules and key in view.entities:
            return view.entities[key]
        state = self._state(key.root)
        version = state.versions.get(key, 0)
        view.entities[key] = state.model.get(key)
        view.versions.setdefault(key, version)
        self._seen(state, version or state.clock)
        return view.entities[key]

    def query(self, query: Query, *, only_count: bool = False) -> Any:
        """A list of results, or their number."""
        self.check_open()
        if query.ancestor is not None:
            self._touch([query.ancestor])
        elif Rule.ANY_QUERY not in self.rules:
            raise RefusedError("BadRequestError")
        state = self._state(query.ancestor and query.ancestor.root)
        shown = state.shown(query, only_count)
        self.view.queries.append(QueryRead(query, only_count, shown, state.searched(query)))
        self._seen(state, state.clock)
        model = state.model
        if Rule.OWN_WRITES in self.rules:
            model = _overlaid(model, self._visible_writes())
        return model.count(query) if only_count else model.results(query)

    def _visible_writes(self) -> Writes:
        return {**(self.parent._visible_writes() if self.parent else {}), **self.writes}

    def _state(self, group: Key | None) -> State:
        """The state that a read of this group (None: of all) is answered from."""
        world, view = self.world.state, self.view
        if Rule.ONE_MOMENT not in self.rules and group is not None:
            if group not in view.snapshots:
                if self._groups_changed():
                    self._doom()
                view.snapshots[group] = world.copy()
            world = view.snapshots[group]
        if group is not None:
            view.groups.setdefault(group, world.groups.get(group, 0))
        return world

    def _seen(self, state: State, since: int) -> None:
        """Something was read that held from ``since`` to now; if that can be no moment of the rest, verify."""
        view = self.view
        view.since, view.until = max(view.since, since), min(view.until, state.clock)
        if Rule.ONE_MOMENT in self.rules and view.since > view.until:
            if self.is_stale():
                self._doom()
            view.since = view.until = state.clock

    def _doom(self) -> NoReturn:
        self.view.doomed = True
        raise RefusedError("TransactionFailedError")

    def is_stale(self) -> bool:
        """Whether what was read is no longer so."""
        if Rule.PER_ENTITY not in self.rules:
            return self._groups_changed()
        now, view = self.world.state, self.view
        if any(now.versions.get(key, 0) != version for key, version in view.versions.items()):
            return True
        if any(now.shown(read.query, read.only_count) != read.shown for read in view.queries):
            return True
        if any(now.searched(read.query) != read.searched for read in view.queries):
            return self.world.choose()
        return False

    def _groups_changed(self) -> bool:
        now = self.world.state.groups
        return any(now.get(group, 0) != seen for group, seen in self.view.groups.items())

    # ------------------------------------------------------------------------------- what it writes

    def put(self, entity: Entity) -> Key:
        self._enter_to_write()
        key = entity.key if entity.key.is_complete else self.world.completed(entity.key)
        self._touch([key])
        self.writes[key] = Entity(key, entity, unindexed=entity.unindexed)
        return key

    def delete(self, key: Key) -> None:
        self._enter_to_write()
        self._touch([key])
        self.writes[key] = None

    # ----------------------------------------------------------------------------------- how it ends

    def commit(self) -> bool:
        """Whether it committed; otherwise it is a conflict. Without writes there is nothing to verify."""
        self.check_open()
        self.closed = True
        if self.parent is not None:
            self.parent.writes.update(self.writes)
            return True
        if self.writes:
            if self.is_stale():
                return False
            also = () if Rule.PER_ENTITY in self.rules else self.view.groups
            self.world.state.write(self.writes, also)
        return True

    def rollback(self) -> None:
        if self.closed:
            raise RefusedError("BadRequestError")
        self.closed = True

    def check_open(self) -> None:
        """:raises RefusedError: if it has ended, or met a conflict"""
        if self.closed or self.view.doomed:
            raise RefusedError("BadRequestError")

    def _enter_to_write(self) -> None:
        self.check_open()
        if self.read_only:
            raise RefusedError("BadRequestError")

    def _touch(self, keys: Iterable[Key]) -> None:
        for group in dict.fromkeys(key.root for key in keys):
            if group in self.touched:
                continue
            if Rule.ANY_GROUPS not in self.rules and len(self.touched) >= self.limit:
                raise RefusedError("BadRequestError")
            self.touched.append(group)


class World:
    """The store that transactions share, and ids for incomplete keys, in the order in which they are put."""

    def __init__(
        self,
        rules: Rules,
        setup: Iterable[Mapping[str, Any]],
        ids: Iterable[int] = (),
        choices: Choices = (),
    ) -> None:
        self.rules = rules
        self.choices = choices
        self.chosen = 0
        self.state = State()
        self._ids = iter(ids)
        self._spare = FALLBACK_ID
        entities = [decode_entity(data) for data in setup]
        if entities:
            self.state.write({entity.key: entity for entity in entities})

    def choose(self) -> bool:
        """Whether a conflict that the store may see or not is one: no, unless chosen otherwise."""
        self.chosen += 1
        return self.chosen <= len(self.choices) and self.choices[self.chosen - 1]

    def completed(self, key: Key) -> Key:
        self._spare += 1
        return key.completed(next(self._ids, self._spare))

    def final(self, expected: Iterable[Any]) -> list[Observation]:
        """The entities that a record lists at its end."""
        return [observed_entity(self.state.model.get(decode_key(key))) for key, _ in expected]


# -------------------------------------------------------------------------------------- observations


def observed_entity(entity: Entity | None) -> Observation:
    """What a get shows."""
    return {"missing": True} if entity is None else {"props": _properties(entity)}


def _properties(entity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: canonical(value) for name, value in entity.items()}


def observed_results(query: Mapping[str, Any], results: Iterable[Any]) -> Observation:
    """What a query shows."""
    if query.get("projection"):
        rows = [[path_json(r.key), {name: index_form(value) for name, value in r.items()}] for r in results]
        return {"rows": rows}
    return {"keys": [path_json(result if isinstance(result, Key) else result.key) for result in results]}


def observed_entities(entities: Iterable[Entity | None]) -> Observation:
    """What a get of several shows."""
    return {"entities": [None if entity is None else _properties(entity) for entity in entities]}


def perform(target: Any, step: Mapping[str, Any]) -> Observation:
    """One operation on a transaction."""
    op = step["op"]
    if op == "get":
        return observed_entity(target.get([decode_key(step["key"])])[0])
    if op == "get_one":
        (entity,) = target.get([decode_key(step["key"])])
        if entity is None:
            raise RefusedError("EntityNotFoundError")
        return observed_entity(entity)
    if op == "get_multi":
        return observed_entities(target.get([decode_key(key) for key in step["keys"]]))
    if op in ("put", "put_multi"):
        entities = [decode_entity(data) for data in step.get("entities", [step.get("entity")])]
        incomplete = any(not entity.key.is_complete for entity in entities)
        for entity in entities:
            target.put(entity)
        return {"allocated": True} if incomplete else {}
    if op == "delete":
        target.delete(decode_key(step["key"]))
        return {}
    results = target.query(build_query(step["query"]), only_count=op == "count")
    return {"count": results} if op == "count" else observed_results(step["query"], results)


class Outside:
    """Operations outside any transaction: on what is committed, each a commit of its own."""

    def __init__(self, world: World) -> None:
        self.world = world

    def get(self, keys: Sequence[Key]) -> list[Entity | None]:
        return [self.world.state.model.get(key) for key in keys]

    def put(self, entity: Entity) -> Key:
        key = entity.key if entity.key.is_complete else self.world.completed(entity.key)
        self.world.state.write({key: Entity(key, entity, unindexed=entity.unindexed)})
        return key

    def delete(self, key: Key) -> None:
        self.world.state.write({key: None})

    def query(self, query: Query, *, only_count: bool = False) -> Any:
        model = self.world.state.model
        return model.count(query) if only_count else model.results(query)


# -------------------------------------------------------------------------------------- interleavings


@dataclass
class Expectation:
    """What each step of an interleaving shows, and the entities at its end."""

    steps: list[Observation]
    final: list[Observation]
    chosen: int = field(default=0, compare=False)


def interpret(record: Mapping[str, Any], rules: Rules, ids: Iterable[int] = (), choices: Choices = ()) -> Expectation:
    """An ``interleaving`` record. ``ids`` are given to incomplete keys in turn."""
    world = World(rules, record["setup"], ids, choices)
    transactions: dict[str, Txn] = {}
    steps = [_step(world, transactions, step) for step in record["steps"]]
    return Expectation(steps, world.final(record["final"]), world.chosen)


def _step(world: World, transactions: dict[str, Txn], step: Mapping[str, Any]) -> Observation:
    name, op = step["txn"], step["op"]
    if op == "begin":
        transactions[name] = Txn(world, xg=step.get("xg", False), read_only=step.get("read_only", False))
        return None
    target = Outside(world) if name is None else transactions[name]
    try:
        if isinstance(target, Txn) and op == "commit":
            return {"outcome": "committed" if target.commit() else "conflict"}
        if isinstance(target, Txn) and op == "rollback":
            target.rollback()
            return {"outcome": "rolled_back"}
        return perform(target, step)
    except RefusedError as refused:
        return {"error": refused.names[0]}


# ----------------------------------------------------------------------------------------------- runs


@dataclass
class RunExpectation:
    """What a ``run`` record's call returns or raises, how often its function ran, and what it logged."""

    returns: Any
    error: str | None
    attempts: int
    log: list[Observation]
    final: list[Observation]
    chosen: int = field(default=0, compare=False)


def interpret_run(record: Mapping[str, Any], rules: Rules, choices: Choices = ()) -> RunExpectation:
    """A ``run`` record."""
    machine = Machine(World(rules, record["setup"], choices=choices))
    returns, error = None, None
    try:
        returns = machine.call(record["call"])
    except RefusedError as refused:
        error = refused.names[0]
    final = machine.world.final(record["final"])
    attempts, chosen = machine.attempts[id(record["call"])], machine.world.chosen
    return RunExpectation(returns, error, attempts, machine.log, final, chosen)


Judged = TypeVar("Judged", Expectation, RunExpectation)


def every_choice(interpretation: Callable[[Choices], Judged]) -> Iterator[tuple[Choices, Judged]]:
    """Every interpretation that what is left to the store allows; the one without needless conflicts first."""
    pending: list[tuple[bool, ...]] = [()]
    for _ in range(MAX_CHOICES):
        if not pending:
            return
        choices = pending.pop(0)
        result = interpretation(choices)
        yield choices, result
        for spared in range(result.chosen - len(choices)):
            pending.append(choices + (False,) * spared + (True,))


class Machine:
    """Runs calls, keeping the current transaction in a stack (None: paused)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stack: list[Txn | None] = [None]
        self.log: list[Observation] = []
        self.attempts: dict[int, int] = {}

    def call(self, call: Mapping[str, Any]) -> Any:
        api, options = call["api"], dict(call.get("options", {}))
        self.attempts[id(call)] = 0
        if api == "plain":
            return self._body(call)
        if api == "NonTransactional":
            if self.stack[-1] is not None and not options.get("allow_existing", True):
                raise RefusedError("BadRequestError")
            return self._inside(None, call)
        if api == "RunInTransactionCustomRetries":
            options["retries"] = call["retries"]
        if api == "RunInReadOnlyTransaction":
            options["read_only"] = True
        if api == "Transactional":
            options.setdefault("propagation", "ALLOWED")
            if options.pop("require_new", False):
                options["propagation"] = "NESTED"
        return self._transactional(call, options)

    def _transactional(self, call: Mapping[str, Any], options: dict[str, Any]) -> Any:
        _check_options(options, self.world.rules)
        propagation, current = options.get("propagation"), self.stack[-1]
        if current is not None:
            if Rule.ONE_MOMENT in self.world.rules and propagation != "INDEPENDENT":
                current.check_open()  # after a conflict nothing joins it any more
            if propagation in ("ALLOWED", "MANDATORY"):
                return self._body(call)
            if propagation == "NESTED" and Rule.NESTING in self.world.rules:
                return self._nested(current, call)
            if propagation != "INDEPENDENT":
                raise RefusedError("BadRequestError")
        elif propagation == "MANDATORY":
            raise RefusedError("BadRequestError")
        return self._independent(call, options)

    def _independent(self, call: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        for _ in range(options.get("retries", RETRIES) + 1):
            txn = Txn(self.world, xg=options.get("xg", False), read_only=options.get("read_only", False))
            try:
                returns = self._inside(txn, call)
            except RefusedError as refused:
                if self._is_conflict(txn, refused):
                    continue
                if "Rollback" in refused.names:
                    return None
                raise
            if not txn.view.doomed and txn.commit():
                return returns
        raise RefusedError("TransactionFailedError")

    def _is_conflict(self, txn: Txn, refused: RefusedError) -> bool:
        """Whether what a function raised is a conflict, to be run again."""
        if txn.view.doomed:
            return Rule.ONE_MOMENT in self.world.rules
        is_checked = Rule.READS_CHECKED in self.world.rules and "Rollback" not in refused.names
        return is_checked and txn.is_stale()

    def _nested(self, parent: Txn, call: Mapping[str, Any]) -> Any:
        child = Txn(self.world, read_only=parent.read_only, parent=parent)
        try:
            returns = self._inside(child, call)
        except RefusedError as refused:
            if "Rollback" in refused.names and not child.view.doomed:
                return None
            raise
        child.commit()
        return returns

    def _inside(self, txn: Txn | None, call: Mapping[str, Any]) -> Any:
        self.stack.append(txn)
        try:
            return self._body(call)
        finally:
            self.stack.pop()

    def _body(self, call: Mapping[str, Any]) -> Any:
        self.attempts[id(call)] = attempt = self.attempts[id(call)] + 1
        for step in call["body"]:
            if attempt not in step.get("attempts", (attempt,)):
                continue
            if "return" in step:
                return step["return"]
            if "return_argument" in step:
                return call["args"][step["return_argument"]]
            self._run_step(step)
        return None

    def _run_step(self, step: Mapping[str, Any]) -> None:
        if "raise" in step:
            raise RefusedError(*_lineage(step["raise"]))
        if "in_transaction" in step:
            self.log.append({"in_transaction": self.stack[-1] is not None})
        elif "call" in step:
            self._nested_call(step)
        elif step.get("outside"):
            perform(Outside(self.world), step)
        else:
            txn = self.stack[-1]
            observation = perform(txn or Outside(self.world), step)
            if observation and "allocated" not in observation:
                self.log.append(observation)

    def _nested_call(self, step: Mapping[str, Any]) -> None:
        try:
            self.log.append({"inner_returned": self.call(step["call"])})
        except RefusedError as refused:
            if not step.get("catch"):
                raise
            self.log.append({"inner_error": refused.names[0]})


def _lineage(name: str) -> Iterator[str]:
    yield name
    if name == "RollbackSubclass":
        yield "Rollback"


def _check_options(options: Mapping[str, Any], rules: Rules) -> None:
    """App Engine's checks; as there is no ``xg`` for us, a wrong one is an unknown argument."""
    if options.keys() - {"retries", "xg", "propagation", "read_only"}:
        raise RefusedError("TypeError")
    if type(options.get("retries", RETRIES)) is not int or options.get("retries", RETRIES) < 0:
        raise RefusedError("BadArgumentError")
    if type(options.get("xg", False)) is not bool:
        raise RefusedError("TypeError" if Rule.ANY_GROUPS in rules else "BadArgumentError")
