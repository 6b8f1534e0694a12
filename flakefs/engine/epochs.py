"""Map epochs: telling others what this session knows of volumes.

Purpose
    Whoever seals a volume or changes its nodes raises the counter `map` afterwards, and waits until every session that
    stores chunks has said that it knows. `Epochs` finds out what may be said.

Invariants
    EP1  An epoch is said only after documents were read that had been changed before the counter reached it: the
         counter is read first, then the documents.
    EP2  and only when all inserts that were planned with an older map are over.

Concurrency
    Trio thread; only run_forever() waits.

Not here
    Reading counter and documents (engine.volumes), waiting for sessions (tools.sealing).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from flakefs.errors import FlakeError

log = logging.getLogger(__name__)

Ticket = int


class Epochs:
    def __init__(self) -> None:
        self._looks = 0
        self._planned: Counter[Ticket] = Counter()
        """Inserts under way, by the look that they were planned with."""
        self._seen: list[tuple[Ticket, int]] = [(0, 0)]
        """(look, epoch) of the looks that found another epoch; the first may be said now."""
        self._more = trio.Event()
        self.said = 0

    def begin(self) -> Ticket:
        """Inserts were planned with the map as it is now; to be given to end()."""
        self._planned[self._looks] += 1
        return self._looks

    def end(self, ticket: Ticket) -> None:
        """They are over, in whatever way."""
        self._planned[ticket] -= 1
        if not self._planned[ticket]:
            del self._planned[ticket]
            if len(self._seen) > 1:
                self._more.set()

    def looked(self, epoch: int) -> None:
        """The map is now what was read after the counter stood at *epoch* (EP1)."""
        self._looks += 1
        if epoch != self._seen[-1][1]:
            self._seen.append((self._looks, epoch))
        if self.known() != self.said:
            self._more.set()

    def known(self) -> int:
        """The epoch that may be said (EP2)."""
        oldest = min(self._planned, default=self._looks)
        while len(self._seen) > 1 and self._seen[1][0] <= oldest:
            del self._seen[0]
        return self._seen[0][1]

    async def run_forever(self, say: Callable[[int], Awaitable[None]]) -> None:
        """Say what is new; after a failure again when there is occasion."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            epoch = self.known()
            if epoch == self.said:
                continue
            try:
                await say(epoch)
                self.said = epoch
            except FlakeError as error:
                log.debug("map epoch %d could not be acknowledged: %s", epoch, error)
