"""Runs a corpus against a datastore."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from aiodatastore.errors import BadArgumentError, BadRequestError
from aiodatastore.testing.conformance.corpus import Corpus, load_corpus
from aiodatastore.testing.conformance.judges import JUDGES
from aiodatastore.testing.conformance.report import FileReport, Outcome, Report, Verdict
from aiodatastore.testing.conformance.session import OpenDatastore, Record, Session

__all__ = ["FILES", "run_corpus"]

FILES: tuple[str, ...] = tuple(JUDGES)
"""The files that a corpus may have, in the order in which they run."""


async def run_corpus(
    folder: str | Path,
    open_datastore: OpenDatastore,
    *,
    only: Iterable[str] | None = None,
    on_file: Callable[[FileReport], None] | None = None,
) -> Report:
    """Judge every golden case in a folder.

    ``open_datastore(**options)`` gives a new, unopened ``Datastore`` with these options; each must be of the
    same store, or of a new one. The store has to be empty, and is emptied afterwards (allocated ids stay
    allocated). ``only`` names the files to run, ``on_file`` is called as each is done.

    >>> async def conformance_of_my_adapter():
    ...     report = await run_corpus("corpus", lambda **options: Datastore(MyAdapter(), **options))
    ...     assert report.ok, "\\n".join(report.lines())

    :raises BadArgumentError: if the folder has no such files, or they can't be read
    :raises BadRequestError: if the store is not empty
    """
    names = FILES if only is None else tuple(only)
    if unknown := set(names) - set(FILES):
        raise BadArgumentError(f"no such file: {', '.join(sorted(unknown))}; there are {', '.join(FILES)}")
    corpus = load_corpus(folder, names)
    await _refuse_unless_empty(open_datastore)
    report = Report()
    for name in corpus.files:
        file = await _run_file(corpus, name, open_datastore)
        report.files.append(file)
        if on_file is not None:
            on_file(file)
    report.problems += await _leftovers(open_datastore)
    return report


async def _run_file(corpus: Corpus, name: str, open_datastore: OpenDatastore) -> FileReport:
    records = corpus.files[name]
    session = Session(name, open_datastore, corpus.datasets)
    problem = "the judge gave no verdict"
    try:
        await JUDGES[name](session, records)
    except Exception as exc:
        problem = f"not judged: {type(exc).__name__}: {exc}"
    _complete(session.report, records, problem)
    return session.report


def _complete(report: FileReport, records: list[Record], problem: str) -> None:
    """Outcomes in the order of the records; a record without one has failed."""
    outcomes = {outcome.id: outcome for outcome in report.outcomes}
    report.outcomes = [
        outcomes.get(record["id"], Outcome(record["id"], Verdict.FAILED, detail=problem)) for record in records
    ]


async def _contents(open_datastore: OpenDatastore) -> list[str]:
    async with open_datastore() as ds:
        stats = await ds.stats()
        found = [
            f"{row['entities']} entities of kind {row['kind']!r} in namespace {row['namespace']!r}"
            + (f" of project {row['project']!r}" if row["project"] else "")
            for row in stats["kinds"]
            if row["entities"]
        ]
        return found + [f"the index {info.definition}" for info in await ds.indexes()]


async def _refuse_unless_empty(open_datastore: OpenDatastore) -> None:
    if found := await _contents(open_datastore):
        raise BadRequestError(f"the store must be empty, but has {'; '.join(found[:5])}")


async def _leftovers(open_datastore: OpenDatastore) -> list[str]:
    return [f"left behind in the store: {what}" for what in await _contents(open_datastore)]
