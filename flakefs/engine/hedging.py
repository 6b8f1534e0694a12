"""When to ask a second replica: how fast each node usually is, and how often that may be done.

Purpose
    A read that takes much longer than the reads of its node usually do is asked of another replica as well, and the
    first good answer wins. The idea, and that it costs little when it is done for the slowest few percent only, is of
    J. Dean and L. A. Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013.

Invariants
    HE1  The delay follows the node's own 95th percentile, for reads of that size, within DELAY_MIN and DELAY_MAX.
    HE2  In the long run at most HEDGED_PART of the reads are asked twice, so that hedging cannot double the load of
         nodes that are slow because they are busy.
    HE3  What was observed is forgotten with time: a node that was slow, and is asked less since, gets another chance.

Concurrency
    Trio thread; nothing waits.

Not here
    Asking (engine.asking), the order of replicas (engine.nearness).
"""

from __future__ import annotations

from collections import deque

DELAY_FIRST = 0.25
"""Seconds, while little is known of a node: its first reads make connections."""
DELAY_MIN = 0.02
DELAY_MAX = 1.0
SAMPLES = 64
"""Reads of which the percentile is taken;"""
SAMPLES_LEAST = 8
"""fewer say nothing."""
PERCENTILE = 0.95
UNIT_BYTES = 256 * 1024
"""So many bytes take about as long as asking does."""
NEWEST_PART = 0.2
"""What the newest read counts in the mean."""
HALF_LIFE_SECONDS = 5.0
"""After so long without a read the mean counts half (HE3)."""
HEDGED_PART = 0.1
HEDGES_AT_ONCE = 10.0


class Pace:
    """How fast one node has answered lately; the times are those of one unit."""

    __slots__ = ("_last", "_mean", "_recent")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=SAMPLES)
        self._mean = 0.0
        self._last = 0.0

    def note(self, seconds: float, size: int, now: float) -> None:
        """A read of *size* plain bytes took so long, or takes longer than that."""
        unit = seconds / _units(size)
        known = self.seconds(now)
        self._mean = unit if known is None else known + NEWEST_PART * (unit - known)
        self._recent.append(unit)
        self._last = now

    def seconds(self, now: float) -> float | None:
        """The moving average (EWMA) of one unit; None when nothing is known."""
        if not self._recent:
            return None
        return float(self._mean * 0.5 ** ((now - self._last) / HALF_LIFE_SECONDS))

    def delay(self, size: int) -> float:
        """Seconds after which a read of *size* bytes is one of the slow ones (HE1)."""
        if len(self._recent) < SAMPLES_LEAST:
            return DELAY_FIRST
        slow = sorted(self._recent)[int(PERCENTILE * (len(self._recent) - 1))]
        return min(max(slow * _units(size), DELAY_MIN), DELAY_MAX)

    def forget(self) -> None:
        """It was away: what was known of it says nothing any more."""
        self._recent.clear()


class Budget:
    """HE2."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = HEDGES_AT_ONCE

    def earn(self) -> None:
        """One read was asked."""
        self._left = min(HEDGES_AT_ONCE, self._left + HEDGED_PART)

    def spend(self) -> bool:
        """May one be asked twice now?"""
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _units(size: int) -> float:
    return 1 + size / UNIT_BYTES
