"""What the parts of the suite share: fixtures, comparison, and cancellation at a chosen place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from aiodatastore.datastore import Datastore
from aiodatastore.entity import Entity
from aiodatastore.key import Key
from aiodatastore.rowstore import Capability
from aiodatastore.testing.model import same

__all__ = ["Connect", "SideDoor", "StoreTests", "assert_same", "cancelled_at", "examples", "together"]

T = TypeVar("T")


class Connect(Protocol):
    """Gives a new, unopened datastore on the test's store; ``options`` are the datastore's."""

    def __call__(self, **options: Any) -> Datastore: ...


class SideDoor(ABC):
    """Looks at, and damages, what is stored without the adapter, so that a store can't pass by agreeing with itself."""

    @abstractmethod
    def entity_keys(self) -> list[bytes]:
        """The encoded key of every stored entity, in order; the store's own records left out."""

    @abstractmethod
    def index_row_count(self) -> int:
        """How many index rows there are."""

    @abstractmethod
    def drop_index_row(self) -> None:
        """Remove one index row."""

    @abstractmethod
    def damage_payload(self, key: bytes) -> None:
        """Overwrite an entity's payload with bytes that no serializer writes."""


class StoreTests:
    """Fixtures of every part. Override ``connect``; the rest where it applies.

    ``second_connection``: whether what ``connect`` gives, called again, is the same store while the first is open.
    ``hypothesis_profile``: the profile that says how many examples are drawn; None: the one that is loaded where the
    class is made.
    """

    pytestmark = pytest.mark.anyio
    second_connection: bool = True
    hypothesis_profile: ClassVar[str | None] = None

    def __init_subclass__(cls, **more: Any) -> None:
        """Give every class its own of the tests that draw examples: Hypothesis binds settings to functions."""
        super().__init_subclass__(**more)
        profile = settings() if cls.hypothesis_profile is None else settings.get_profile(cls.hypothesis_profile)
        for name in dir(cls):
            drawn = getattr(getattr(cls, name), "drawn", None)
            if isinstance(drawn, _Drawn):
                setattr(cls, name, drawn.bound(profile))

    @pytest.fixture
    def connect(self) -> Connect:
        """How to reach an empty store."""
        raise NotImplementedError("override the fixture `connect`")

    @pytest.fixture
    def side_door(self) -> SideDoor:
        """A way around the adapter."""
        pytest.skip("no side door given")

    @pytest.fixture(autouse=True)
    def promised_loop(self, connect: Connect, anyio_backend_name: str) -> None:
        """Skips an event loop that the adapter does not promise to run under."""
        if anyio_backend_name == "trio" and Capability.TRIO not in connect().capabilities:
            pytest.skip("the adapter does not promise to run under trio")

    def needs(self, ds: Datastore, *wanted: Capability) -> None:
        """Skips a test of what the adapter does not promise."""
        for capability in wanted:
            if capability not in ds.capabilities:
                pytest.skip(f"the adapter does not promise {capability.name}")

    @pytest.fixture
    async def ds(self, connect: Connect) -> AsyncIterator[Datastore]:
        """An open datastore; afterwards its indexes must agree with its entities."""
        async with connect() as datastore:
            yield datastore
            problems = await datastore.check()
        assert problems == []

    @pytest.fixture
    async def other(self, connect: Connect, ds: Datastore) -> AsyncIterator[Datastore]:
        """A second connection to the same store."""
        if not self.second_connection:
            pytest.skip("one connection a store")
        async with connect() as datastore:
            yield datastore


@dataclass(frozen=True)
class _Drawn:
    """A test that draws examples: of 100 that the profile has, ``count``."""

    test: Callable[..., Any]
    count: int
    strategies: Mapping[str, SearchStrategy[Any]]

    def bound(self, profile: settings) -> Callable[..., Any]:
        """The test as pytest runs it; its store is kept between examples."""
        bounds = settings(
            profile,
            max_examples=profile.max_examples * self.count // 100 or 1,
            deadline=None,
            suppress_health_check=[
                HealthCheck.function_scoped_fixture,
                HealthCheck.differing_executors,
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
            ],
        )
        test: Callable[..., Any] = bounds(given(**self.strategies)(self.test))
        test.__dict__["drawn"] = self
        return test


def examples(count: int, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Hypothesis' ``given`` for the suite's tests: ``count`` is how many of 100 examples of the profile are drawn."""
    return lambda test: _Drawn(test, count, strategies).bound(settings())


def assert_same(expected: object, actual: object) -> None:
    """Equal and of the same types, deeply; says where not."""
    if isinstance(expected, (list, tuple)) and isinstance(actual, (list, tuple)):
        assert len(actual) == len(expected), f"{len(actual)} results, expected {len(expected)}: {actual!r:.2000}"
        for place, (left, right) in enumerate(zip(expected, actual, strict=True)):
            assert same(left, right), f"[{place}]: got {right!r:.2000}, expected {left!r:.2000}"
    else:
        assert same(expected, actual), f"got {actual!r:.2000}, expected {expected!r:.2000}"


def numbered(kind: str, count: int, **properties: Any) -> list[Entity]:
    """Entities with ids 1, 2, … and their number as property ``n``."""
    return [Entity(Key(kind, number), {"n": number, **properties}) for number in range(1, count + 1)]


async def together(*bodies: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run bodies side by side."""
    async with anyio.create_task_group() as group:
        for body in bodies:
            group.start_soon(body)


async def gather(bodies: Iterable[Callable[[], Awaitable[T]]]) -> Sequence[T | Exception]:
    """Run bodies side by side; what each returned or raised, in order."""
    results: dict[int, T | Exception] = {}

    async def one(place: int, body: Callable[[], Awaitable[T]]) -> None:
        try:
            results[place] = await body()
        except Exception as exc:
            results[place] = exc

    async with anyio.create_task_group() as group:
        for place, body in enumerate(bodies):
            group.start_soon(one, place, body)
    return [results[place] for place in sorted(results)]


class _Cancelling:
    """Awaits a coroutine and cancels a scope as it suspends for the ``at``-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, scope: anyio.CancelScope) -> None:
        self.coroutine = coroutine
        self.left = at
        self.scope = scope

    def __await__(self) -> Generator[Any, Any, Any]:
        send, answer = self.coroutine.send, None
        step: Callable[[Any], Any] = send
        while True:
            try:
                waiting_for = step(answer)
            except StopIteration as stop:
                return stop.value
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()
            try:
                step, answer = send, (yield waiting_for)
            except BaseException as exc:
                step, answer = self.coroutine.throw, exc


async def cancelled_at(body: Callable[[], Coroutine[Any, Any, object]], at: int) -> bool:
    """Run ``body``, cancelled as it suspends for the ``at``-th time; whether it came so far."""
    with anyio.CancelScope() as scope:
        cancelling = _Cancelling(body(), at, scope)
        await cancelling
        return cancelling.left <= 0
    return True
