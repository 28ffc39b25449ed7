"""The named rules by which an outcome may differ from the golden one.

A case is judged by a rule only where the rule decides it: :mod:`.reference` interprets each transaction record
twice, with App Engine's semantics and with ours, and a rule counts for a case if taking it away changes what is
expected. ``docs/conformance.md`` has these rules as a table; a test compares the two.
"""

from __future__ import annotations

import enum

__all__ = ["MERGED_CURSORS", "NO_COUNTERPART", "SURFACE_RULES", "TRANSACTION_RULES", "Rule"]


class Rule(enum.StrEnum):
    """Where ``DESIGN.md`` section 3 goes further than the reference implementation."""

    OWN_WRITES = "own-writes"
    ANY_QUERY = "any-query"
    ANY_GROUPS = "any-groups"
    PER_ENTITY = "per-entity"
    ONE_MOMENT = "one-moment"
    READS_CHECKED = "reads-checked"
    NESTING = "nesting"


TRANSACTION_RULES: dict[Rule, tuple[str, str]] = {
    Rule.OWN_WRITES: (
        "reads see the snapshot, never the transaction's own writes",
        "gets, queries and counts inside a transaction see what it wrote and deleted",
    ),
    Rule.ANY_QUERY: (
        "a query in a transaction needs an ancestor, else `BadRequestError`",
        "any query runs in a transaction",
    ),
    Rule.ANY_GROUPS: (
        "one entity group without `xg`, 25 with it, else `BadRequestError`; an `xg` that is no bool is a "
        "`BadArgumentError`",
        "any number of groups; there is no argument `xg`: the runner leaves a bool out, anything else is an unknown "
        "argument (`TypeError`)",
    ),
    Rule.PER_ENTITY: (
        "any commit to a group that was read conflicts; in a cross-group transaction, groups only read count as "
        "written",
        "only commits to entities that were read, or that change what a query or count showed, conflict",
    ),
    Rule.ONE_MOMENT: (
        "each group has a snapshot of its own, taken when it is first read; if another has changed by then, "
        "`TransactionFailedError` without retry",
        "all reads are of one moment; a read that could mix before and after ends the attempt as a conflict, "
        "which is retried",
    ),
    Rule.READS_CHECKED: (
        "an exception of the function rolls back and propagates",
        "what the function had read is checked first: if it is stale, the exception came from an outdated view, and "
        "counts as a conflict, which is retried (`Rollback` is never questioned)",
    ),
    Rule.NESTING: (
        "propagation `NESTED` (and `require_new`) inside a transaction is refused with `BadRequestError`",
        "a nested transaction's writes join its parent's or vanish",
    ),
}
"""Of each rule, what App Engine does and what we do."""

NO_COUNTERPART = "no-counterpart"
MERGED_CURSORS = "merged-cursors"

SURFACE_RULES: dict[str, tuple[str, str]] = {
    NO_COUNTERPART: (
        "`Query.GetCursor()` before a run, and `MultiQuery.GetIndexList()`, raise `AssertionError`",
        "there are no such calls: only a run has a cursor, and `explain()` shows the indexes",
    ),
    MERGED_CURSORS: (
        "a `MultiQuery` has no cursor (`AssertionError`)",
        "merged queries have cursors; the runner resumes and ends one at every position",
    ),
}
"""Records about calls of App Engine's Python surface that we don't have, or that do more here."""
