"""What proves a datastore: for this package's adapters, and for yours.

- :mod:`~aiodatastore.testing.conformance`: golden cases, taken from the reference implementation, against any
  adapter; also on the command line.
- :mod:`~aiodatastore.testing.suite`: pytest classes that hold an adapter to every promise of the contract.
- :mod:`~aiodatastore.testing.stateful` and :mod:`~aiodatastore.testing.strategies`: Hypothesis state machines and
  what they draw from, compared with :mod:`~aiodatastore.testing.model`, a naive datastore.
- :mod:`~aiodatastore.testing.history`: workloads that record what they saw, and a checker of serializability.
- :mod:`~aiodatastore.testing.crash`: kill -9 of a writer, and a look at what it left.

Nothing is imported until you import it: some of these modules need ``aiodatastore-engine[testing]``.
"""

from __future__ import annotations

__all__: list[str] = []
