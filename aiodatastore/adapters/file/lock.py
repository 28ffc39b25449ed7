"""One process writes: a lock file with its number."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from aiodatastore.errors import StoreBusyError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock"]


class Lock:
    """An exclusive lock on a file, which the operating system gives back when the process ends, however it ends.

    The file says who holds it, for messages only: it stays when the lock is gone.
    """

    def __init__(self, path: str, store: str) -> None:
        self._path = path
        self._store = store
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, at once.

        :raises StoreBusyError: if another holds it, in this process or any; the message says which
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if not _try(fd):
                holder = os.pread(fd, 200, 0) if hasattr(os, "pread") else b""
                raise StoreBusyError(
                    f"{self._store} is open in {_told(holder)}, and one process writes at a time; "
                    "read_only=true opens it beside"
                )
            os.ftruncate(fd, 0)
            os.write(fd, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Give it back; allowed twice. In a forked child, this takes nothing from the parent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                os.close(fd)


def _told(holder: bytes) -> str:
    text = holder.decode(errors="replace").strip()
    pid = text.removeprefix("pid ").partition(" ")[0]
    if not pid.isdigit():
        return "another process"
    if int(pid) == os.getpid():
        return f"this process (pid {pid}) already"
    return f"process {pid}" + text.removeprefix(f"pid {pid}")


def _try(fd: int) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True
    import msvcrt  # type: ignore[unreachable, unused-ignore]

    try:  # a byte far behind what is written, as locked bytes can't be read there
        os.lseek(fd, 1 << 20, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    except OSError:
        return False
    finally:
        os.lseek(fd, 0, os.SEEK_SET)
    return True
