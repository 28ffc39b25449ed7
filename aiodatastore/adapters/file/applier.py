"""Brings commits into their files, behind the callers' backs: the journal has them already."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from aiodatastore.adapters.file.layouts import Layout

__all__ = ["MISSING", "Applier"]

_log = logging.getLogger("aiodatastore")

MISSING: Final = ...
"""What :attr:`Applier.pending` has not."""

_RETRY_S = 1.0
_SLICE = 256
_SHARE = 4


class Applier:
    """A thread that writes files, at most ``max_bytes`` of payloads behind.

    ``files`` is kept up: path → state of the file. Several changes of an entity in a short time are written once.
    """

    def __init__(self, layout: Layout, files: dict[str, bytes], *, linger_s: float, max_bytes: int) -> None:
        self._layout = layout
        self._files = files
        self._linger_s = linger_s
        self._max_bytes = max_bytes
        self.pending: dict[bytes, bytes | None] = {}
        """What is committed and not in its file yet; None: to be removed. Read it from any thread."""
        self.unsynced: set[str] = set()
        """Paths that were written since the disk was last flushed."""
        self.written_at = 0.0
        """When the last file was written, by ``time.monotonic()``."""
        self._bytes = 0
        self._changed = threading.Condition()
        self._is_urgent = False
        self._is_stopped = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def submit(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Have these written. Never waits."""
        with self._changed:
            for key, payload in changes.items():
                self._bytes += _size(payload) - (_size(self.pending[key]) if key in self.pending else 0)
                self.pending[key] = payload
            if self._thread is None and self.pending and not self._is_stopped:
                self._thread = threading.Thread(target=self._work, name="aiodatastore-files", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Wait until less than ``max_bytes`` are to be written. In a thread.

        :raises OSError: why they can't be
        """
        if self._bytes > self._max_bytes:
            self._wait(lambda: self._bytes <= self._max_bytes)

    def drain(self) -> None:
        """Wait until everything is in its file. In a thread, and while nobody submits.

        :raises OSError: why that can't be
        """
        self._wait(lambda: not self.pending)

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            self._error = None
            self._is_urgent = True
            self._changed.notify_all()
            try:
                while not condition():
                    if self._error is not None:
                        raise self._error
                    if self._is_stopped:
                        return
                    self._changed.wait()
            finally:
                self._is_urgent = False

    def stop(self) -> None:
        """End the thread, after the file it is at. In a thread; allowed twice."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        took = 0.0
        while True:
            with self._changed:
                while not self.pending and not self._is_stopped:
                    self._changed.wait()
                pause = time.monotonic() + max(self._linger_s, _SHARE * took if self._layout.holds_all else 0)
                while not self._is_urgent and not self._is_stopped and (left := pause - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._is_stopped:
                    return
                changes = dict(self.pending)
            start = time.monotonic()
            try:
                self._apply(changes)
            except Exception as exc:
                _log.warning("files can't be written at the moment: %s; the journal has what they lack", exc)
                with self._changed:
                    self._error = exc
                    self._changed.notify_all()
                    if not self._is_stopped:
                        self._changed.wait(_RETRY_S)
            took = time.monotonic() - start

    def _apply(self, changes: dict[bytes, bytes | None]) -> None:
        done: list[tuple[list[bytes], str, bytes | None]] = []
        try:
            for one in self._layout.apply(changes):
                done.append(one)
                if len(done) >= _SLICE:
                    self._note(done, changes)
                    if self._is_stopped:
                        return
        finally:
            self._note(done, changes)

    def _note(self, done: list[tuple[list[bytes], str, bytes | None]], changes: dict[bytes, bytes | None]) -> None:
        with self._changed:
            self.written_at = time.monotonic()
            for keys, path, stat in done:
                self.unsynced.add(self._layout.absolute(path))
                if stat is None:
                    self._files.pop(path, None)
                else:
                    self._files[path] = stat
                for key in keys:
                    payload = changes[key]
                    if self.pending.get(key, MISSING) is payload:  # else it was changed again meanwhile
                        del self.pending[key]
                        self._bytes -= _size(payload)
            done.clear()
            self._changed.notify_all()


def _size(payload: bytes | None) -> int:
    return 0 if payload is None else len(payload)
