"""What the metadata server's clock says: the age of a chunk is by it, and ours may be hours off.

Invariants
    CL1  now() follows the server's clock as of the last answer, whatever is done to ours meanwhile; before the first
         answer it is ours. Where ours was put forward meanwhile it may be ahead, and never behind: what is taken for
         older than it is stays, what is taken for younger may go.
    CL2  key() differs from a key by our clock only when that is off by more than SLACK_SECONDS, and is as unique.
    CL3  An answer counts for REFRESH_SECONDS, and no longer when the machine's two clocks, the one that is set and the
         one that is not, have parted: it was paused, or somebody set the time.

Concurrency
    Any thread: each value is replaced as a whole. refresh() blocks.
"""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime, time
from typing import NamedTuple

from flakefs.errors import FlakeError
from flakefs.mongo.clients import server_time
from flakefs.mongo.door import Door

REFRESH_SECONDS = 600.0
"""Meanwhile clocks drift by less than a second."""
PARTED_SECONDS = 5.0
SLACK_SECONDS = 30.0
PATIENCE_SECONDS = 5.0
"""A writer waits."""
PAUSE_SECONDS = 30.0
"""After a question without answer, when an older answer is there to go by."""


class _Answer(NamedTuple):
    server: float
    unset: float
    """Seconds since this machine began."""
    wall: float


class ServerClock:
    def __init__(self, metadata: Door) -> None:
        self._metadata = metadata
        self._answer: _Answer | None = None
        self._silent_until = 0.0
        """By the clock that is not set: no question before."""

    def refresh(self) -> None:
        """Ask again when the last answer does not count any more (CL3)."""
        began, wall = clock_gettime(CLOCK_BOOTTIME), time()
        last = self._answer
        if last is not None:
            seconds = began - last.unset
            parted = abs(wall - last.wall - seconds) >= PARTED_SECONDS
            if began < self._silent_until or (seconds < REFRESH_SECONDS and not parted):
                return
        try:
            now = self._metadata.run_sync(lambda: server_time(self._metadata.client), deadline_seconds=PATIENCE_SECONDS)
        except FlakeError:
            self._silent_until = clock_gettime(CLOCK_BOOTTIME) + PAUSE_SECONDS
        else:
            self._answer = _Answer(now.timestamp(), began, wall)

    def now(self) -> float:
        if self._answer is None:
            return time()
        server, unset, wall = self._answer
        return server + max(clock_gettime(CLOCK_BOOTTIME) - unset, time() - wall)

    def key(self, key: bytes) -> bytes:
        """*key*, made just now by our clock, as if made by the server's."""
        off = self.now() - time()
        if abs(off) <= SLACK_SECONDS:
            return key
        return (int.from_bytes(key[:4], "big") + int(off)).to_bytes(4, "big") + key[4:]
