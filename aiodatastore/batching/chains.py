"""Commits of one contended entity that follow each other without waiting: in one batch they become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from aiodatastore.adapters.base import Commit, Delete, Outcome
from aiodatastore.key import Key

__all__ = ["ChainedCommit", "Chains"]


@dataclass(slots=True, eq=False)
class ChainedCommit(Commit):
    """A commit that writes one entity, and may follow another one of it whose outcome is not known yet.

    ``follows``: what it has read of the entity is what that one writes; it holds only if that one does. In one batch
    the two become one commit. ``outcome`` is set as soon as it is known, and stays None if it never will be.
    """

    key: Key = field(kw_only=True)
    follows: ChainedCommit | None = None
    outcome: Outcome | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


class Chains:
    """The chained commits of a batch made into those to send, and outcomes of these into theirs."""

    def __init__(self, batch: Sequence[Commit]) -> None:
        self.sent: list[Commit] = []
        self._batch = batch
        self._members: list[list[int]] = []
        self._outcomes: list[Outcome | None] = [None] * len(batch)
        places: dict[int, int] = {}
        for number, commit in enumerate(batch):
            if type(commit) is not ChainedCommit or commit.follows is None:
                places[id(commit)] = self._add(number, commit)
                continue
            parent = commit.follows
            place = places.get(id(parent))
            if place is not None:
                first = self.sent[place]
                self.sent[place] = Commit(first.checks, first.spans, commit.writes, first.token)
                self._members[place].append(number)
                places[id(commit)] = place
            elif parent.outcome is None or parent.outcome.version is None:
                self._outcomes[number] = Outcome(None, {commit.key: 0})
            else:
                version = 0 if isinstance(parent.writes[0], Delete) else parent.outcome.version_of(commit.key)
                checks = {**commit.checks, commit.key: version}
                places[id(commit)] = self._add(number, Commit(checks, commit.spans, commit.writes, commit.token))

    def _add(self, number: int, commit: Commit) -> int:
        self.sent.append(commit)
        self._members.append([number])
        return len(self.sent) - 1

    def outcomes(self, sent: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes of the batch.

        Of commits that became one the last has its version. The others have one that the entity never has: it is
        older than the stored one, and newer than what they read or equal to it.
        """
        for outcome, members in zip(sent, self._members, strict=True):
            last = members[-1]
            for number in members:
                if number == last:
                    self._outcomes[number] = outcome
                elif outcome.version is not None:
                    self._outcomes[number] = Outcome(outcome.version - 1, clock=outcome.clock)
                elif outcome.error is not None:  # the last one's data is at fault
                    self._outcomes[number] = Outcome(None, {self._key(number): 0})
                else:
                    self._outcomes[number] = outcome
        found = [outcome for outcome in self._outcomes if outcome is not None]
        for commit, outcome in zip(self._batch, found, strict=True):
            if type(commit) is ChainedCommit:
                commit.outcome = outcome
                commit.follows = None  # or a chain would never be forgotten
        return found

    def _key(self, number: int) -> Key:
        commit = self._batch[number]
        assert isinstance(commit, ChainedCommit)
        return commit.key
