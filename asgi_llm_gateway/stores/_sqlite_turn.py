"""Whose turn it is to write: processes that share a SQLite file take turns, first come, first served.

SQLite itself lets a writer that finds the file busy sleep and try again; of two that write flat out, one starves for up
to 0.9 s. So a writer locks two side files with flock(2), which the kernel frees when a process dies: who wants to write
holds ``.next`` while it waits for ``.turn``. Whoever has just written finds ``.next`` taken, and stands in line behind.
"""

from __future__ import annotations

import contextlib
import os
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # Windows has none: there SQLite's own way must do
    fcntl = None  # type: ignore[assignment]

_open: WeakSet[Turn] = WeakSet()


class Turn:
    """A place in the line for the file at ``path``. Objects in one process stand in line like processes do.

    Where the side files can't be made or locked, everybody is let through at once: the turn is about fairness, and what
    keeps the data whole is SQLite's own lock.
    """

    def __init__(self, path: str) -> None:
        self._turn = self._next = -1
        if fcntl is None:
            return
        try:
            self._turn = os.open(path + ".turn", os.O_RDWR | os.O_CREAT, 0o600)
            self._next = os.open(path + ".next", os.O_RDWR | os.O_CREAT, 0o600)
            # Some network file systems open, but do not lock.
            fcntl.flock(self._next, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._next, fcntl.LOCK_UN)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        _open.add(self)

    @property
    def real(self) -> bool:
        """The side files are there."""
        return self._turn >= 0

    def take(self) -> bool:
        """Take the turn if nobody has it and nobody stands in line. Never waits."""
        if self._turn < 0:
            return True
        try:
            fcntl.flock(self._next, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._next, fcntl.LOCK_UN)
        return True

    def wait(self) -> None:
        """Stand in line until the turn is ours."""
        if self._turn < 0:
            return
        fcntl.flock(self._next, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX)
        finally:
            fcntl.flock(self._next, fcntl.LOCK_UN)

    def give(self) -> None:
        """Let the next one write."""
        if self._turn >= 0:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the side files; they stay, since another may be about to lock them."""
        for fd in (self._turn, self._next):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._turn = self._next = -1


def _after_fork() -> None:
    """A child has the parent's locks through copies of its descriptors, and would hold them on after its death."""
    for turn in list(_open):
        turn.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
