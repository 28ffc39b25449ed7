"""Commits over several adapters that have nothing to do with each other, put together into one.

A commit that is prepared holds up what comes after it until it is resolved, so that commits over several adapters
follow one another, three round trips each. Many that go as one need these only once. The sum of commits is
as serializable as they are one by one if none of them writes what another one reads or writes: then it does not
matter in which order they take place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from aiodatastore.adapters.base import MIXED, Commit, Outcome, written_key
from aiodatastore.key import Key
from aiodatastore.shims.sharded.parts import Part

__all__ = ["MAX_TOGETHER", "Member", "outcome_of", "rounds", "together"]

MAX_TOGETHER: Final = 64
"""Commits in one. If one of them meets a conflict, all others go again."""


class Member(NamedTuple):
    """A commit: its place in the batch, and its part for each adapter."""

    place: int
    commit: Commit
    parts: Mapping[int, Part]

    @property
    def joins(self) -> bool:
        """Whether it may go with others."""
        commit = self.commit
        return commit.atomic and bool(commit.writes) and not any(part.spans for part in self.parts.values())

    @property
    def written(self) -> set[Key]:
        """The keys of its writes."""
        return set(map(written_key, self.commit.writes))

    def own_of(self, conflicts: Mapping[Key, int]) -> dict[Key, int]:
        """Those of the conflicts that it has met."""
        return {key: conflicts[key] for key in self.commit.checks if key in conflicts}


def rounds(members: Sequence[Member]) -> Iterator[list[list[Member]]]:
    """What can go side by side, in groups of which each can be one commit; then what has to come after, and so on.

    Only commits that write, atomically, and have checked no spans go with others: what lies in a span is not known.
    """
    left: list[Member] = []
    alone: list[Member] = []
    for member in members:
        (left if member.joins else alone).append(member)
    while left:
        groups: dict[frozenset[int], list[Member]] = {}
        later: list[Member] = []
        read: set[Key] = set()
        written: set[Key] = set()
        for member in left:
            own = member.written
            looked = member.commit.checks.keys()
            group = groups.setdefault(frozenset(member.parts), [])
            if (
                len(group) < MAX_TOGETHER
                and written.isdisjoint(looked)
                and written.isdisjoint(own)
                and read.isdisjoint(own)
            ):
                group.append(member)
                read |= looked
                written |= own
            else:
                later.append(member)
        yield [group for group in groups.values() if group]
        left = later
    for member in alone:
        yield [[member]]


def together(members: Sequence[Member]) -> tuple[Commit, dict[int, Part]]:
    """The members of a group as one commit, and its parts."""
    parts: dict[int, Part] = {}
    for member in members:
        for number, part in member.parts.items():
            whole = parts.setdefault(number, type(part)())
            whole.checks.update(part.checks)
            whole.writes += part.writes
    checks = {key: version for member in members for key, version in member.commit.checks.items()}
    writes = [write for member in members for write in member.commit.writes]
    after = any(member.commit.after_prepared for member in members)
    return Commit(checks, (), writes, members[0].commit.token, True, after), parts


def outcome_of(member: Member, whole: Outcome) -> Outcome:
    """Of one that has taken place as a part of the whole."""
    versions = {key: whole.version_of(key) for key in member.written}
    return Outcome(max(versions.values()), clock=MIXED, versions=versions)
