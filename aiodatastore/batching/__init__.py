"""What runs side by side in one event loop travels together.

A :class:`~aiodatastore.batching.lines.Batcher` has at most one batch on its way. A call that finds none goes out at
once and alone; calls that arrive meanwhile wait, and the first of them takes all that wait (up to a bound) along when
its turn comes: the baton goes from task to task, and no background task is needed. One round trip then serves every
get, and one round trip and one ``fsync`` every commit, that was awaited while the last was under way. An adapter over
several stores has a line for each of them, so that none waits for another.

That may leave the store and the tasks waiting for each other: all tasks are answered at once, work, and ask at once.
So a batch may take half of them, and is on its way before the tasks of the last one run: the store works for one half
while the event loop works for the other. Where a round trip costs the same whatever is in it, that is slower: which of
the two ways answers more calls is tried now and then (:class:`~aiodatastore.batching.halving.Halving`). After a batch
of several its tasks are likely to ask again, all at once: then the first of them waits for the others, one turn of the
event loop.

What happens between two awaits:

- A waiting call that is cancelled leaves the line; if it was just given the baton, it passes it on.
- A *lookup* whose leader is cancelled goes back to the front of the line; nobody else notices.
- A *commit* that was sent is never cancelled: it runs where no cancellation reaches it (neither a cancel scope's
  nor ``asyncio``'s own), and whoever waits for it waits until its outcome is known. The cancellation is kept and
  handed to the caller with the outcome.
- An error of the store reaches every call of the batch, each as an exception of its own; an error that one
  call's data caused reaches that call alone.
"""

from aiodatastore.batching.chains import ChainedCommit
from aiodatastore.batching.channel import MAX_BATCH_KEYS, MAX_HOLD_S, MIN_HOLD_S, Channel
from aiodatastore.batching.commits import LARGE_WRITES, MAX_BATCH_WRITES, CommitBatcher, NotSentError
from aiodatastore.batching.lines import Batcher

__all__ = [
    "LARGE_WRITES",
    "MAX_BATCH_KEYS",
    "MAX_BATCH_WRITES",
    "MAX_HOLD_S",
    "MIN_HOLD_S",
    "Batcher",
    "ChainedCommit",
    "Channel",
    "CommitBatcher",
    "NotSentError",
]
