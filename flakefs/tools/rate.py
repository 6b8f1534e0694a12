"""A bound on the bytes a second that a tool moves or reads, so that it leaves the nodes to the mounts.

Concurrency
    Blocks; one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

Check = Callable[[], None]
"""Called before each step and while waiting; may raise (the lease is lost)."""


class Rate:
    """At most so many bytes a second; None: as fast as it goes."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self._rate = bytes_per_second
        self._began = monotonic()
        self._spent = 0

    def spend(self, count: int, check: Check) -> None:
        """Wait until so many bytes more are within the rate."""
        self._spent += count
        while self._rate and (left := self._began + self._spent / self._rate - monotonic()) > 0:
            check()
            sleep(min(left, 0.5))
