"""What became of each golden case, counted per file."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["FileReport", "Outcome", "Report", "Verdict"]


class Verdict(enum.StrEnum):
    """How a case was judged. All but ``FAILED`` count as passed; the last two are counted apart as well."""

    PASSED = "passed"  # the golden expectation, exactly
    FAILED = "failed"
    BY_RULE = "by rule"  # the expectation that a named rule of this library gives instead
    QUIRK = "quirk"  # what the README's table says to do for a quirk of the stub


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case. ``names`` are the rules or quirks by which it was judged; ``detail`` says what was wrong."""

    id: str
    verdict: Verdict
    names: tuple[str, ...] = ()
    detail: str = ""


@dataclass(slots=True)
class FileReport:
    """The cases of one file, in its order."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)

    def count(self, verdict: Verdict) -> int:
        """How many cases were judged so."""
        return sum(outcome.verdict is verdict for outcome in self.outcomes)

    @property
    def total(self) -> int:
        """How many cases the file has."""
        return len(self.outcomes)

    @property
    def failed(self) -> list[Outcome]:
        """The cases that failed."""
        return [outcome for outcome in self.outcomes if outcome.verdict is Verdict.FAILED]

    def names(self, verdict: Verdict) -> Counter[str]:
        """How many cases each rule (or quirk) decided; a case may count for several."""
        return Counter(n for o in self.outcomes if o.verdict is verdict for n in o.names)

    def line(self) -> str:
        """``queries  1654 passed  0 failed  1654 total  (…)``"""
        failed = len(self.failed)
        line = f"{self.name:<14}{self.total - failed:>6} passed {failed:>6} failed {self.total:>6} total"
        apart = [
            f"{self.count(verdict)} {label}: {_listed(self.names(verdict))}"
            for verdict, label in ((Verdict.BY_RULE, "by our rules"), (Verdict.QUIRK, "quirks of the stub"))
            if self.count(verdict)
        ]
        return line + (f"  ({'; '.join(apart)})" if apart else "")


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


@dataclass(slots=True)
class Report:
    """The whole run. ``problems`` are things that are wrong with no case in particular."""

    files: list[FileReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there was at least one case and all passed."""
        return bool(self.total) and not self.failures and not self.problems

    @property
    def total(self) -> int:
        """How many cases ran."""
        return sum(file.total for file in self.files)

    @property
    def failures(self) -> list[Outcome]:
        """Every failed case."""
        return [outcome for file in self.files for outcome in file.failed]

    def __getitem__(self, name: str) -> FileReport:
        for file in self.files:
            if file.name == name:
                return file
        raise KeyError(name)

    def lines(self) -> Iterator[str]:
        """The report as text: a line a file, the sum, then failures with what was wrong."""
        for file in self.files:
            yield file.line()
        failures = self.failures
        yield f"{'all':<14}{self.total - len(failures):>6} passed {len(failures):>6} failed {self.total:>6} total"
        for outcome in failures:
            yield f"FAILED {outcome.id}: {outcome.detail}"
        for problem in self.problems:
            yield f"PROBLEM {problem}"
