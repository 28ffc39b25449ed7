"""The checker finds what it must: histories with known anomalies, and none in histories that are serial."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from aiodatastore.testing.history import (
    Anomaly,
    Append,
    Find,
    History,
    Read,
    ReadList,
    Recorded,
    Write,
    check,
    verify_workload,
)


def history(**transactions: list[object] | Recorded) -> History:
    recorded = []
    for name, ops in transactions.items():
        recorded.append(ops if isinstance(ops, Recorded) else Recorded(name, ops))  # type: ignore[arg-type] # tests pass ops
    return History(recorded)


def kinds(anomalies: list[Anomaly]) -> list[str]:
    return sorted(each.kind for each in anomalies)


def only(anomalies: list[Anomaly]) -> Anomaly:
    assert len(anomalies) == 1, [str(each) for each in anomalies]
    return anomalies[0]


def tagged(item: str, value: str, *tags: str) -> Write:
    return Write(item, value, frozenset(tags))


# ---------------------------------------------------------------------------------- known anomalies


def test_g0_write_cycle() -> None:
    found = only(
        check(
            history(
                t1=[Append("x", "x1"), Append("y", "y1")],
                t2=[Append("x", "x2"), Append("y", "y2")],
                t3=[ReadList("x", ("x1", "x2")), ReadList("y", ("y2", "y1"))],
            )
        )
    )
    assert found.kind == "G0"
    assert set(found.transactions) == {"t1", "t2"}
    assert "which no serial order can have" in str(found)


def test_g1a_aborted_read() -> None:
    found = only(check(history(t1=Recorded("t1", [Write("x", "x1")], status="aborted"), t2=[Read("x", "x1")])))
    assert (found.kind, found.transactions) == ("G1a", ("t1", "t2"))


def test_g1a_of_a_list() -> None:
    found = check(history(t1=Recorded("t1", [Append("x", "x1")], status="aborted"), t2=[ReadList("x", ("x1",))]))
    assert "G1a" in kinds(found)


def test_g1b_intermediate_read() -> None:
    found = only(check(history(t1=[Write("x", "x1"), Write("x", "x2")], t2=[Read("x", "x1")])))
    assert found.kind == "G1b"


def test_a_value_from_nowhere() -> None:
    assert only(check(history(t1=[Read("x", "?")]))).kind == "garbage read"


def test_g1c_circular_information_flow() -> None:
    found = only(check(history(t1=[Write("x", "x1"), Read("y", "y2")], t2=[Write("y", "y2"), Read("x", "x1")])))
    assert found.kind == "G1c"


def test_lost_update_without_versions() -> None:
    found = only(
        check(
            history(
                t0=[Write("x", "x0")],
                t1=[Read("x", "x0"), Write("x", "x1")],
                t2=[Read("x", "x0"), Write("x", "x2")],
            )
        )
    )
    assert found.title == "lost update of x"


def test_lost_update_with_versions() -> None:
    found = only(
        check(
            history(
                t0=Recorded("t0", [Write("x", "x0")], version=1),
                t1=Recorded("t1", [Read("x", "x0"), Write("x", "x1")], version=2),
                t2=Recorded("t2", [Read("x", "x0"), Write("x", "x2")], version=3),
            )
        )
    )
    assert (found.kind, found.title) == ("G-single", "lost update of x")


def test_lost_update_of_the_first_write() -> None:
    found = only(check(history(t1=[Read("x", None), Write("x", "x1")], t2=[Read("x", None), Write("x", "x2")])))
    assert found.title == "lost update of x"


def test_lost_append() -> None:
    found = check(
        history(
            t1=[ReadList("x", ()), Append("x", "x1")],
            t2=[ReadList("x", ()), Append("x", "x2")],
            t3=[ReadList("x", ("x2",))],
        )
    )
    assert found
    assert all(each.kind.startswith("G") for each in found)


def test_read_skew() -> None:
    found = only(
        check(
            history(
                t0=Recorded("t0", [Write("x", "x0"), Write("y", "y0")], version=1),
                t1=Recorded("t1", [Read("x", "x0"), Read("y", "y2")]),
                t2=Recorded("t2", [Write("x", "x2"), Write("y", "y2")], version=2),
            )
        )
    )
    assert (found.kind, "read skew" in found.title) == ("G-single", True)


def test_g2_write_skew() -> None:
    found = only(
        check(
            history(
                t0=Recorded("t0", [Write("x", "x0"), Write("y", "y0")], version=1),
                t1=Recorded("t1", [Read("x", "x0"), Read("y", "y0"), Write("x", "x1")], version=2),
                t2=Recorded("t2", [Read("x", "x0"), Read("y", "y0"), Write("y", "y2")], version=3),
            )
        )
    )
    assert (found.kind, "write skew" in found.title) == ("G2-item", True)


def test_g2_write_skew_of_absent_entities() -> None:
    found = only(check(history(t1=[Read("x", None), Write("y", "y1")], t2=[Read("y", None), Write("x", "x2")])))
    assert found.kind == "G2-item"


def test_g2_phantom() -> None:
    found = only(
        check(
            history(
                t1=Recorded("t1", [Find("red", {}), tagged("a", "a1", "red")], version=1),
                t2=Recorded("t2", [Find("red", {}), tagged("b", "b2", "red")], version=2),
            )
        )
    )
    assert (found.kind, "phantom" in found.title) == ("G2", True)


def test_phantom_where_items_move_in_and_out() -> None:
    """Both see one red item and think they may take it (or another) out: none is left."""
    found = check(
        history(
            t0=Recorded("t0", [tagged("a", "a0", "red"), tagged("b", "b0", "red")], version=1),
            t1=Recorded("t1", [Find("red", {"a": "a0", "b": "b0"}), tagged("a", "a1")], version=2),
            t2=Recorded("t2", [Find("red", {"a": "a0", "b": "b0"}), tagged("b", "b2")], version=3),
        )
    )
    assert kinds(found) == ["G2-item"]


def test_phantom_seen_by_half() -> None:
    found = only(
        check(
            history(
                t1=Recorded("t1", [tagged("a", "a1", "red"), tagged("b", "b1", "red")], version=1),
                t2=Recorded("t2", [Find("red", {"a": "a1"})]),
            )
        )
    )
    assert (found.kind, "phantom" in found.title) == ("G-single", True)


def test_a_query_returns_what_does_not_match() -> None:
    found = check(history(t1=Recorded("t1", [tagged("a", "a1", "blue")], version=1), t2=[Find("red", {"a": "a1"})]))
    assert "wrong result" in kinds(found)


def test_reading_the_past_after_the_fact() -> None:
    stale = history(
        t1=Recorded("t1", [Write("x", "x1")], version=1, start=1.0, end=2.0),
        t2=Recorded("t2", [Read("x", None)], start=3.0, end=4.0),
    )
    assert only(check(stale)).kind == "real time"
    assert not check(stale, real_time=False)
    stale.transactions[1].start = 1.5
    assert not check(stale)


def test_reads_that_contradict_each_other() -> None:
    found = check(
        history(
            t1=[Append("x", "x1")],
            t2=[Append("x", "x2")],
            t3=[ReadList("x", ("x1", "x2"))],
            t4=[ReadList("x", ("x2", "x1"))],
        )
    )
    assert "incompatible order" in kinds(found)


def test_an_append_applied_twice() -> None:
    found = check(history(t1=[Append("x", "x1")], t2=[ReadList("x", ("x1", "x1"))]))
    assert "duplicate" in kinds(found)


def test_own_writes_must_show() -> None:
    assert "internal" in kinds(check(history(t1=[Write("x", "x1"), Read("x", None)])))
    assert "internal" in kinds(check(history(t1=[Append("x", "x1"), ReadList("x", ())])))


def test_an_unknown_outcome_counts_once_it_was_seen() -> None:
    lost = Recorded("t1", [Read("x", None), Write("x", "x1")], status="unknown")
    other = [Read("x", None), Write("x", "x2")]
    assert not check(history(t1=lost, t2=other))
    assert check(history(t1=lost, t2=other, t3=[Read("x", "x1")]))


def test_a_list_to_which_nobody_appended_in_the_end() -> None:
    """Who appended failed, or may have, and nobody read the list."""
    failed = Recorded("t1", [Append("l1", "a")], status="aborted")
    lost = Recorded("t2", [Append("l2", "b")], status="unknown")
    assert not check(history(t1=failed, t2=lost, t3=[Write("x", "x1")]))


def test_an_unknown_outcome_is_seen_through_others_of_unknown_outcome() -> None:
    """Only who took effect can have been read by what took effect."""
    first = Recorded("t1", [Write("x", "x1")], status="unknown")
    second = Recorded("t2", [Read("x", "x1"), Write("y", "y1")], status="unknown")
    assert not check(history(t1=first, t2=second, t3=[Read("y", "y1")]))
    found = check(history(t1=first, t2=second, t3=[Read("y", "y1"), Read("x", None)]))
    assert kinds(found) == ["G-single"]


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="same name"):
        check(History([Recorded("t"), Recorded("t")]))


def test_records_survive_their_text_form() -> None:
    recorded = Recorded(
        "t",
        [Read("x", "1", 3), tagged("x", "2", "a", "b"), Write("y", "3", None), ReadList("l", ("p", "q")),
         Append("l", "r"), Find("a", {"x": "2"}), Find("a", {}, 7)],
        "aborted", 1.5, 2.5, 9,
    )  # fmt: skip
    assert Recorded.from_json(recorded.to_json()) == recorded


def test_the_replay_notices_what_a_count_saw() -> None:
    wrong = history(
        t1=Recorded("t1", [tagged("a", "a1", "red")], version=1),
        t2=Recorded("t2", [Find("red", {}, 0), Write("b", "b2")], version=2),
    )
    assert not check(wrong)
    assert kinds(verify_workload(wrong)) == ["replay"]
    wrong.transactions[1].ops[0] = Find("red", {}, 1)
    assert not verify_workload(wrong)


def test_the_replay_lets_readers_stand_anywhere() -> None:
    writes = {f"t{n}": Recorded(f"t{n}", [Write("x", f"x{n}"), Write("y", f"y{n}")], version=n) for n in (1, 2)}
    assert not verify_workload(history(**writes, r=[Read("x", "x1"), Read("y", "y1")]))
    assert not verify_workload(history(**writes, r=[Read("x", None)]))
    assert "replay" in kinds(verify_workload(history(**writes, r=[Read("x", "x1"), Read("y", "y2")])))


# ------------------------------------------------------------------------------- simulated engines


State = dict[str, tuple[str, frozenset[str]]]


def red(state: State) -> dict[str, str]:
    return {item: value for item, (value, tags) in state.items() if "red" in tags}


class Engine:
    """A store of versions whose isolation can be chosen; transactions of a random program, interleaved."""

    def __init__(self, isolation: str, seed: int) -> None:
        self.isolation = isolation
        self.rng = random.Random(seed)
        self.values: list[State] = [{}]
        self.history = History()

    def run(self, transactions: int = 40, side_by_side: int = 4) -> History:
        waiting = [self.transaction(f"t{number}") for number in range(transactions)]
        running = [waiting.pop() for _ in range(side_by_side)]
        while running:
            chosen = self.rng.choice(running)
            try:
                next(chosen)
            except StopIteration:
                running.remove(chosen)
                if waiting:
                    running.append(waiting.pop())
        return self.history

    def transaction(self, name: str) -> Iterator[None]:
        recorded = Recorded(name)
        snapshot = len(self.values) - 1
        own: State = {}
        seen: list[Callable[[State], bool]] = []
        for step in range(3):
            item = self.rng.choice("xyz")
            state = {**self.values[-1 if self.isolation == "read committed" else snapshot], **own}
            if self.rng.random() < 0.3:
                found = red(state)
                recorded.ops.append(Find("red", found))
                seen.append(self.query_holds(found, own, snapshot))
            else:
                value = state[item][0] if item in state else None
                recorded.ops.append(Read(item, value))
                if item not in own:
                    seen.append(lambda last, item=item, value=value: self.value(last, item) == value)  # type: ignore[misc] # bound now
            yield
            if self.rng.random() < 0.6:
                own[item] = (f"{name}.{step}", frozenset(["red"] if self.rng.random() < 0.5 else []))
                recorded.ops.append(Write(item, *own[item]))
            yield
        if not self.allowed(snapshot, own, seen):
            recorded.status = "aborted"
        elif own:
            self.values.append({**self.values[-1], **own})
            recorded.version = len(self.values) - 1
        self.history.add(recorded)

    @staticmethod
    def value(state: State, item: str) -> str | None:
        return state[item][0] if item in state else None

    def query_holds(self, found: dict[str, str], own: State, snapshot: int) -> Callable[[State], bool]:
        others = {item: value for item, value in found.items() if item not in own}
        if self.isolation == "no phantom checks":
            return lambda last: all(self.value(last, item) == value for item, value in others.items())
        return lambda last: last == self.values[snapshot]

    def allowed(self, snapshot: int, own: State, seen: list[Callable[[State], bool]]) -> bool:
        last, then = self.values[-1], self.values[snapshot]
        if self.isolation == "read committed" or not own:
            return True
        if self.isolation == "snapshot":
            return all(last.get(item) == then.get(item) for item in own)
        return all(holds(last) for holds in seen)


@pytest.mark.parametrize("seed", range(20))
def test_serializable_engines_pass(seed: int) -> None:
    recorded = Engine("serializable", seed).run()
    assert recorded.count("committed") > 5
    assert not [str(each) for each in verify_workload(recorded)]


@pytest.mark.parametrize(
    ("isolation", "wanted"),
    [
        ("read committed", {"G-single"}),
        ("snapshot", {"G2-item"}),
        ("no phantom checks", {"G2"}),
    ],
)
def test_weaker_engines_fail(isolation: str, wanted: set[str]) -> None:
    found: set[str] = set()
    for seed in range(20):
        recorded = Engine(isolation, seed).run()
        anomalies = check(recorded)
        found.update(each.kind for each in anomalies)
        if anomalies:
            assert verify_workload(recorded)[-1].kind == "replay", "both proofs see it"
    assert wanted <= found
