"""How many bytes of content the nodes do not safely hold yet, and who waits because of it.

Invariants
    B1  `open_bytes` is the sum of the lengths of all open blocks; `sealed_bytes` of the sealed, not yet durable ones.
    B2  A block is charged once, however often it is added or dropped.
    B3  A writer that waits for room is woken by every change that could let it go on: room, or a failure.

Concurrency
    Trio task only. Only wait_for_room() waits.

Not here
    Who stores and when (vfs.writeback).
"""

from __future__ import annotations

import math

import trio

from flakefs.errors import FlakeError, NoSpace, Unavailable
from flakefs.values import Block

BLOCK_OVERHEAD = 512
"""Charged for each sealed block beside its bytes, so that many tiny ones are bounded too."""


class Budget:
    """The dirty bytes of one file system."""

    def __init__(self, limit: int, patience_seconds: float) -> None:
        # Constant after construction
        self.limit = limit
        self._patience = patience_seconds
        # Mutable
        self.open_bytes = 0
        self.sealed_bytes = 0
        self.failure: FlakeError | None = None
        self._failing_since = 0.0
        self._sealed: dict[Block, int] = {}
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def over(self) -> bool:
        return self.open_bytes + self.sealed_bytes >= self.limit

    @property
    def waiters(self) -> int:
        return len(self._waiting)

    def seal(self, block: Block) -> None:
        """Charge a block that was just sealed (its bytes are no longer counted as open)."""
        if block not in self._sealed and block.data is not None:
            charge = len(block.data) + BLOCK_OVERHEAD
            self._sealed[block] = charge
            self.sealed_bytes += charge

    def drop(self, block: Block) -> None:
        """The block is durable, or nobody needs it any more."""
        charge = self._sealed.pop(block, 0)
        if charge:
            self.sealed_bytes -= charge
            self.wake()

    def drop_durable(self) -> None:
        """Drop all blocks that the engine has relieved of their data."""
        for block in [block for block in self._sealed if block.data is None]:
            self.sealed_bytes -= self._sealed.pop(block)
        self.wake()

    def wake(self) -> None:
        if self._waiting and not self.over:
            self._waiting.unpark_all()

    def failed(self, error: FlakeError) -> None:
        """Storing does not work at the moment."""
        if self.failure is None:
            self._failing_since = trio.current_time()
        self.failure = error
        self._waiting.unpark_all()

    def overdue(self) -> FlakeError | None:
        """The failure that those who ask have to be told of now: no space, or no answer for the whole patience."""
        failure = self.failure
        if failure is None or isinstance(failure, NoSpace):
            return failure
        return failure if trio.current_time() - self._failing_since >= self._patience else None

    def recovered(self) -> None:
        self.failure = None

    def raise_when_full(self) -> None:
        """Tell a writer at once that the nodes take no more (P8)."""
        if isinstance(self.failure, NoSpace):
            raise NoSpace(str(self.failure))

    async def wait_for_room(self) -> None:
        """Return when less than the limit is dirty; raises NoSpace, or Unavailable after the patience (P3)."""
        while self.over:
            self.raise_when_full()
            remaining = math.inf
            if self.failure is not None:
                remaining = self._failing_since + self._patience - trio.current_time()
                if remaining <= 0:
                    raise Unavailable(f"written data could not be stored for {self._patience:g} s: {self.failure}")
            with trio.move_on_after(remaining):
                await self._waiting.park()

    def check_invariants(self) -> None:
        assert self.sealed_bytes == sum(self._sealed.values()), "B1: sealed bytes drifted"
        assert self.open_bytes >= 0, "B1: open bytes negative"
