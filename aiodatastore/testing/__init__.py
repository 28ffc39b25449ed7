"""What proves a datastore: for this package's adapters, and for yours.

- :mod:`aiodatastore.testing.conformance`: golden cases, taken from the reference implementation, against any
  adapter; also on the command line.
- :mod:`aiodatastore.testing.model`: a naive datastore that says what every adapter must answer.

Nothing is imported until you import it: some of these modules need ``aiodatastore[testing]``.
"""

from __future__ import annotations

__all__: list[str] = []
