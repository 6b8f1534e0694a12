"""flock with a bounded wait.

Invariants
    L1  A lock belongs to one open of the file: it goes when that is closed or its process ends, however it ends.

Concurrency
    Synchronous; waiting polls, because a blocking flock can neither be bounded nor cancelled.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from flakefs.errors import EmbeddedError

_POLL_SECONDS = 0.01


class FileLock:
    """One open of a lock file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EmbeddedError(f"the lock file {path} cannot be opened ({error.strerror}): mend that") from error

    def try_exclusive(self) -> bool:
        """Take it, or turn a shared lock into it, if nobody else has any."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        return self._try(fcntl.LOCK_SH)

    def wait_exclusive(self, seconds: float, check: Callable[[], None] = lambda: None) -> bool:
        """Take it; False when *seconds* are over. *check* is called while it is waited for, and may raise."""
        deadline = time.monotonic() + seconds
        while not self.try_exclusive():
            if time.monotonic() > deadline:
                return False
            check()
            time.sleep(_POLL_SECONDS)
        return True

    def release(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._descriptor)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                return False
            raise
        return True
