"""What the metadata server's clock says: the age of a chunk is by it, and ours may be hours off.

Invariants
    CL1  now() follows the server's clock as of the last answer, whatever is done to ours meanwhile; before the first
         answer it is ours.
    CL2  key() differs from a key by our clock only when that is off by more than SLACK_SECONDS, and is as unique.

Concurrency
    Any thread: one value is replaced as a whole. refresh() blocks.
"""

from __future__ import annotations

from contextlib import suppress
from time import CLOCK_BOOTTIME, clock_gettime, time

from flakefs.errors import FlakeError
from flakefs.mongo.clients import server_time
from flakefs.mongo.door import Door

REFRESH_SECONDS = 600.0
"""Meanwhile clocks drift by less than a second."""
SLACK_SECONDS = 30.0
PATIENCE_SECONDS = 5.0
"""A writer waits."""


class ServerClock:
    def __init__(self, metadata: Door) -> None:
        self._metadata = metadata
        self._answer: tuple[float, float] | None = None
        """(seconds since this machine began, server's seconds), at the last answer."""

    def refresh(self) -> None:
        """Ask again when the last answer is old. A server that does not answer is asked the next time."""
        began = clock_gettime(CLOCK_BOOTTIME)
        if self._answer is not None and began - self._answer[0] < REFRESH_SECONDS:
            return
        with suppress(FlakeError):
            now = self._metadata.run_sync(lambda: server_time(self._metadata.client), deadline_seconds=PATIENCE_SECONDS)
            self._answer = began, now.timestamp()

    def now(self) -> float:
        if self._answer is None:
            return time()
        began, server = self._answer
        return server + clock_gettime(CLOCK_BOOTTIME) - began

    def key(self, key: bytes) -> bytes:
        """*key*, made just now by our clock, as if made by the server's."""
        off = self.now() - time()
        if abs(off) <= SLACK_SECONDS:
            return key
        return (int.from_bytes(key[:4], "big") + int(off)).to_bytes(4, "big") + key[4:]
