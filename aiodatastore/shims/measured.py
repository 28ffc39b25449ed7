"""Counts and latencies of every operation: as a dict, for Prometheus, for OpenTelemetry."""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from aiodatastore.adapters.base import Adapter, AggregateResult, Lookup, Outcome, Page, Put, written_key
from aiodatastore.adapters.engine.core import Engine
from aiodatastore.adapters.registry import missing_extra, parse_bool, parse_int
from aiodatastore.entity import Entity
from aiodatastore.errors import BadArgumentError, DatastoreError
from aiodatastore.indexing.rows import entity_rows, indexed_values
from aiodatastore.key import Key
from aiodatastore.shims.around import SEVERAL, Around, Call, whole_number

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["BUCKETS_S", "Measured"]

T = TypeVar("T")

BUCKETS_S: Final = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005),
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the histograms' buckets, in seconds; one more has what took longer."""

_COUNTED: Final = {
    "items": "Entities and keys asked for or written, results, and ids",
    "found": "Entities that lookups found",
    "conflicts": "Commits that were refused by their checks",
    "index_rows": "Index rows that queries read, and that the entities of commits have",
    "round_trips": "Requests to the store",
}


class _Series:
    """What is known of one operation on one kind. Plain attributes: reads at hand are counted within 0.3 µs."""

    __slots__ = ("buckets", "conflicts", "errors", "found", "index_rows", "items", "round_trips", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0
        self.items = 0
        self.found = 0
        self.conflicts = 0
        self.index_rows = 0
        self.round_trips = 0
        self.errors: Counter[str] = Counter()

    def took(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            "calls": sum(self.buckets),
            "seconds": self.seconds,
            "buckets": dict(zip((*BUCKETS_S, float("inf")), self.buckets, strict=True)),
            "errors": dict(self.errors),
            **{name: getattr(self, name) for name in _COUNTED},
        }


_TIMED: Final = 32


class _AtHand:
    """Reads of one entity of one kind that needed no waiting, since the last that was timed.

    A clock takes 0.1 µs, and such a read a few: one of :data:`_TIMED` is timed, and stands for those after it.
    """

    __slots__ = ("count", "missed", "seconds", "series")

    def __init__(self, series: _Series) -> None:
        self.series = series
        self.count = 0
        self.missed = 0
        self.seconds = 0.0

    def flush(self) -> None:
        """Hand the count over to the series."""
        series, count = self.series, self.count
        if count:
            series.buckets[bisect_left(BUCKETS_S, self.seconds)] += count
            series.seconds += count * self.seconds
            series.items += count
            series.found += count - self.missed
            self.count = self.missed = 0


class Measured(Around):
    """Counts what is done on each kind, and how long it takes.

    >>> import asyncio
    >>> from aiodatastore import Datastore, Entity, Key
    >>> from aiodatastore.adapters.registry import adapter_from_url
    >>> async def main():
    ...     measured = Measured(adapter_from_url("memory://"))
    ...     async with Datastore(measured) as ds:
    ...         await ds.put(Entity(Key("Person", "ada"), {"name": "Ada", "born": 1815}))
    ...     return {name: measured.snapshot()["commit"]["Person"][name] for name in ("calls", "items", "index_rows")}
    >>> asyncio.run(main())
    {'calls': 1, 'items': 1, 'index_rows': 3}

    :meth:`snapshot` gives the figures as a dict, :meth:`prometheus` as the text that Prometheus scrapes. With
    ``telemetry=True`` they go to OpenTelemetry (``pip install "aiodatastore-engine[telemetry]"``), to the global
    providers or those given: counters, a histogram ``db.client.operation.duration``, and a span for each operation.
    Reads that are at hand (``INLINE_READS``) are in the counters; the histogram and a span would take longer than they
    do. One in 32 of them is timed, and stands for those after it.

    Operations are those that reach this shim: gets that travelled together are one lookup, commits one commit, a page
    of a query is one query. Of each, by kind (``*``: several in one call, or all; and beyond ``max_kinds`` kinds):

    - ``calls``, ``seconds`` in all, and ``buckets`` of :data:`BUCKETS_S`; ``errors`` by class, of calls and of commits;
    - ``items``: keys looked up, results, values of aggregates, ids, and entities written, always with their own kind;
      ``found``: entities found; ``conflicts``: commits that were refused by their checks;
    - ``index_rows``: read by a query as its plan tells (see ``explain``), and by an aggregate; of the entities that a
      commit put, composite ones included where the child is a store, or shims around one. Rows that an overwrite leaves
      as they are count;
    - ``round_trips``: requests to the store. A lookup and a commit count as one, queries and aggregates as the store
      tells, what is at hand as none. What a cache or collection below makes of them, a shim below it can tell.

    ``name`` tells several such shims apart: label ``store`` in Prometheus, attribute ``db.namespace`` in OpenTelemetry.

    :raises BadArgumentError: if telemetry is wanted and OpenTelemetry not installed
    """

    url_settings: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "name": str,
        "telemetry": parse_bool,
        "max_kinds": parse_int,
    }

    def __init__(
        self,
        child: Adapter,
        *,
        name: str = "",
        telemetry: bool = False,
        max_kinds: int = 200,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        super().__init__(child)
        if not isinstance(name, str):
            raise BadArgumentError(f"name: expected a str, got {name!r:.80}")
        self._name = name
        self._max_kinds = whole_number("max_kinds", max_kinds)
        self._series: dict[str, dict[str, _Series]] = {}
        self._at_hand: dict[str, _AtHand] = {}
        self._engine = _engine_of(child)
        self._telemetry: _Telemetry | None = None
        if telemetry or meter_provider is not None or tracer_provider is not None:
            self._telemetry = _Telemetry(self, meter_provider, tracer_provider)
        self.__dict__["lookup_now"] = self._counting_lookup_now()  # a closure, as it is called for each entity

    @property
    def settings(self) -> Mapping[str, object]:
        """Name, and whether telemetry is sent."""
        return {"name": self._name, "telemetry": self._telemetry is not None, "max_kinds": self._max_kinds}

    # --------------------------------------------------------------------------------------- reading

    def snapshot(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The figures so far: operation → kind → figure; see the class. The dict is the caller's."""
        self._flush()
        return {
            operation: {kind: series.to_dict() for kind, series in sorted(kinds.items())}
            for operation, kinds in sorted(self._series.items())
        }

    def reset(self) -> None:
        """Begin anew. Not for figures that Prometheus or OpenTelemetry collect: theirs only grow."""
        self._series.clear()
        self._at_hand.clear()

    def prometheus(self) -> str:
        """The figures as text: https://prometheus.io/docs/instrumenting/exposition_formats/."""
        self._flush()
        lines = [
            "# HELP aiodatastore_operation_seconds How long operations took",
            "# TYPE aiodatastore_operation_seconds histogram",
        ]
        for labels, series in self._labelled():
            total = 0
            for bound, count in zip((*map(repr, BUCKETS_S), "+Inf"), series.buckets, strict=True):
                total += count
                lines.append(f'aiodatastore_operation_seconds_bucket{{{labels},le="{bound}"}} {total}')
            lines.append(f"aiodatastore_operation_seconds_sum{{{labels}}} {series.seconds!r}")
            lines.append(f"aiodatastore_operation_seconds_count{{{labels}}} {total}")
        for name, text in _COUNTED.items():
            lines += [f"# HELP aiodatastore_{name}_total {text}", f"# TYPE aiodatastore_{name}_total counter"]
            lines += [
                f"aiodatastore_{name}_total{{{labels}}} {getattr(each, name)}" for labels, each in self._labelled()
            ]
        lines += [
            "# HELP aiodatastore_errors_total Operations and commits that failed, by error",
            "# TYPE aiodatastore_errors_total counter",
        ]
        for labels, series in self._labelled():
            lines += [
                f'aiodatastore_errors_total{{{labels},error="{_escaped(error)}"}} {count}'
                for error, count in sorted(series.errors.items())
            ]
        return "\n".join(lines) + "\n"

    def _labelled(self) -> Iterator[tuple[str, _Series]]:
        store = f'store="{_escaped(self._name)}",' if self._name else ""
        for operation, kinds in sorted(self._series.items()):
            for kind, series in sorted(kinds.items()):
                yield f'{store}operation="{operation}",kind="{_escaped(kind)}"', series

    # -------------------------------------------------------------------------------------- counting

    def _of(self, operation: str, kind: str) -> _Series:
        kinds = self._series.setdefault(operation, {})
        series = kinds.get(kind)
        if series is None:
            if len(kinds) >= self._max_kinds:
                kind = SEVERAL
            series = kinds.setdefault(kind, _Series())
        return series

    def _counting_lookup_now(self) -> Callable[[Sequence[Key]], list[Entity | None] | None]:
        inner = self.child.lookup_now
        at_hand = self._at_hand
        timed = _TIMED

        def lookup_now(keys: Sequence[Key]) -> list[Entity | None] | None:
            try:
                (key,) = keys
                hand = at_hand[key._pairs[-1][0]]
                count = hand.count
            except (KeyError, ValueError):  # the first of its kind; several keys
                return self._timed_lookup_now(inner, keys)
            if count >= timed:
                return self._timed_lookup_now(inner, keys)
            found = inner(keys)  # an error is that of a closed store: nobody is helped by its count
            if found:
                hand.count = count + 1
                if found[0] is None:
                    hand.missed += 1
            return found

        return lookup_now

    def _timed_lookup_now(
        self, inner: Callable[[Sequence[Key]], list[Entity | None] | None], keys: Sequence[Key]
    ) -> list[Entity | None] | None:
        start = perf_counter()
        found = inner(keys)
        if found is None:
            return None
        seconds = perf_counter() - start
        if len(keys) != 1:
            self._note_found(self._of("lookup", Call("lookup", keys=keys).kind), found, seconds)
            return found
        hand = self._at_hand.get(keys[0].kind)
        if hand is None:
            hand = _AtHand(self._of("lookup", keys[0].kind))
            if len(self._at_hand) >= self._max_kinds:
                self._note_found(hand.series, found, seconds)
                return found
            self._at_hand[keys[0].kind] = hand
        hand.flush()
        hand.seconds = seconds
        hand.count = 1
        hand.missed = int(found[0] is None)
        return found

    def _flush(self) -> None:
        for hand in self._at_hand.values():
            hand.flush()

    @staticmethod
    def _note_found(series: _Series, entities: Sequence[Entity | None], seconds: float) -> None:
        series.took(seconds)
        series.items += len(entities)
        series.found += sum(entity is not None for entity in entities)

    @staticmethod
    def _failed(series: _Series, exc: BaseException, seconds: float) -> None:
        series.took(seconds)
        series.errors[type(exc).__name__] += 1

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Do it, and count it."""
        operation, kind = call.operation, call.kind
        telemetry = self._telemetry
        span = telemetry.span(operation, kind) if telemetry is not None else nullcontext()
        with span as running:
            start = perf_counter()
            try:
                answer = await work()
            except BaseException as exc:
                seconds = perf_counter() - start
                series = self._of(operation, kind)
                series.round_trips += operation != "query"
                self._failed(series, exc, seconds)
                if telemetry is not None:
                    telemetry.note(running, operation, kind, seconds, error=type(exc).__name__)
                raise
            seconds = perf_counter() - start
            series = self._of(operation, kind)
            rows, trips = self._note(call, series, answer, seconds)
            if telemetry is not None:
                telemetry.note(running, operation, kind, seconds, rows=rows, trips=trips)
        return answer

    def _note(self, call: Call, series: _Series, answer: Any, seconds: float) -> tuple[int, int]:
        """Count what came of it; its index rows and round trips."""
        rows, trips = 0, 1
        if isinstance(answer, Lookup):
            self._note_found(series, answer.entities, seconds)
        else:
            series.took(seconds)
        if isinstance(answer, Page):
            series.items += len(answer.results)
            rows, trips = _read_since(call)
            series.index_rows += rows
        elif call.commits:
            rows = self._note_commits(call, series, [answer] if isinstance(answer, Outcome) else answer)
        elif call.operation in ("allocate_ids", "reserve_ids"):
            series.items += answer[1] - answer[0] + 1
        elif isinstance(answer, AggregateResult):
            series.items += len(answer.values)
            rows, trips = answer.rows, answer.scans or 1
            series.index_rows += rows
        series.round_trips += trips
        return rows, trips

    def _note_commits(self, call: Call, series: _Series, outcomes: Iterable[Outcome]) -> int:
        total = 0
        for commit, outcome in zip(call.commits, outcomes, strict=True):
            if outcome.error is not None:
                series.errors[type(outcome.error).__name__] += 1
            elif not outcome.committed:
                series.conflicts += 1
            else:
                for write in commit.writes:
                    own = self._of(call.operation, written_key(write).kind)
                    own.items += 1
                    rows = self._rows(write.entity) if isinstance(write, Put) else 0
                    own.index_rows += rows
                    total += rows
        return total

    def _rows(self, entity: Entity) -> int:
        composites = self._engine.catalog.maintained.get(entity.key.kind, ()) if self._engine is not None else ()
        try:
            if composites:
                return len(entity_rows(entity, composites))
            return 1 + sum(map(len, indexed_values(entity).values()))
        except DatastoreError:  # nothing that counts may harm
            return 0


def _engine_of(adapter: Adapter) -> Engine | None:
    """The engine below, if there is just one."""
    while len(adapter.children) == 1:
        adapter = adapter.children[0]
    return adapter if isinstance(adapter, Engine) else None


def _read_since(call: Call) -> tuple[int, int]:
    """Index rows and requests of a query since the last page, by its plan."""
    if call.stream is None:
        return 0, 0
    explanation = call.stream.explain()
    (rows, trips), call.read = call.read, (explanation.rows, explanation.scans)
    if call.read[0] < rows or call.read[1] < trips:  # planned anew, and so counted from 0
        rows = trips = 0
    return call.read[0] - rows, call.read[1] - trips


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class _Telemetry:
    """The same for OpenTelemetry, with the names of its conventions for databases:
    https://opentelemetry.io/docs/specs/semconv/database/."""

    def __init__(
        self, measured: Measured, meter_provider: MeterProvider | None, tracer_provider: TracerProvider | None
    ) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError as exc:
            raise missing_extra("telemetry", exc) from exc
        self._attributes: dict[str, str] = {"db.system.name": "aiodatastore"}
        if measured._name:
            self._attributes["db.namespace"] = measured._name
        self._kind = trace.SpanKind.CLIENT
        self._error = trace.Status(trace.StatusCode.ERROR)
        self._observation = metrics.Observation
        self._tracer = trace.get_tracer("aiodatastore", tracer_provider=tracer_provider)
        meter = metrics.get_meter("aiodatastore", meter_provider=meter_provider)
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "Duration of operations",
            explicit_bucket_boundaries_advisory=list(BUCKETS_S),
        )
        measured_ref = weakref.ref(measured)  # a meter keeps its instruments for good
        for name, text in (("calls", "Operations"), *_COUNTED.items()):
            meter.create_observable_counter(
                f"aiodatastore.{name}", [_observer(measured_ref, self._observed, name)], description=text
            )
        meter.create_observable_counter(
            "aiodatastore.errors", [_observer(measured_ref, self._observed, "errors")], description="Errors by class"
        )

    def _with(self, operation: str, kind: str) -> dict[str, str]:
        return {**self._attributes, "db.operation.name": operation, "db.collection.name": kind}

    def _observed(self, measured: Measured, name: str) -> Iterator[Observation]:
        measured._flush()
        for operation, kinds in list(measured._series.items()):
            for kind, series in list(kinds.items()):
                attributes = self._with(operation, kind)
                if name == "errors":
                    for error, count in list(series.errors.items()):
                        yield self._observation(count, {**attributes, "error.type": error})
                else:
                    yield self._observation(
                        sum(series.buckets) if name == "calls" else getattr(series, name), attributes
                    )

    def span(self, operation: str, kind: str) -> AbstractContextManager[Span]:
        """A span for an operation. Texts of errors may have values, so exceptions are not recorded, but their class."""
        return self._tracer.start_as_current_span(
            f"{operation} {kind}" if kind else operation,
            kind=self._kind,
            attributes=self._with(operation, kind),
            record_exception=False,
            set_status_on_exception=False,
        )

    def note(
        self, span: Any, operation: str, kind: str, seconds: float, *, error: str = "", rows: int = 0, trips: int = 1
    ) -> None:
        """An operation has ended."""
        attributes = self._with(operation, kind)
        if error:
            attributes["error.type"] = error
            span.set_attribute("error.type", error)
            span.set_status(self._error)
        else:
            span.set_attribute("aiodatastore.index_rows", rows)
            span.set_attribute("aiodatastore.round_trips", trips)
        self._duration.record(seconds, attributes)


def _observer(
    measured: weakref.ref[Measured], observed: Callable[[Measured, str], Iterable[Observation]], name: str
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        found = measured()
        return () if found is None else observed(found, name)

    return observe
