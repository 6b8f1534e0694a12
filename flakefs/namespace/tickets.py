"""Who waits for a commit.

Purpose
    A ticket for each task that waits until what it changed is stored; and how long the next group is worth waiting for,
    because the same ones will be back.

Invariants
    TK1  A group is never held back by more than half of what the last commit took, nor by GATHER_SECONDS; a lone
         worker is never held back.

Concurrency
    Belongs to the trio thread.

Not here
    When groups are committed (namespace.journal).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

GATHER_SECONDS = 0.005


class Ticket:
    """Somebody who waits for a commit; of an operation in shared mode: of what it changed."""

    __slots__ = ("lost", "need")

    def __init__(self, need: int) -> None:
        self.need = need
        """Number of the cut that takes it along."""
        self.lost = False
        """It was taken back."""


class Tickets:
    def __init__(self) -> None:
        self._tickets: set[Ticket] = set()
        self._crowd = 0  # how many waited when the last commit ended
        self._arrival = trio.Event()

    @contextmanager
    def queued(self, ticket: Ticket) -> Iterator[None]:
        self._tickets.add(ticket)
        self._arrival.set()
        try:
            yield
        finally:
            self._tickets.discard(ticket)

    def lose(self, cut: int) -> None:
        """What was to go with this cut or a later one was taken back."""
        for ticket in self._tickets:
            ticket.lost = ticket.lost or ticket.need >= cut

    def answer(self, done: int) -> None:
        """The cuts after *done* are about to be done."""
        self._crowd = self._waiting(done)

    async def gather(self, done: int, commit_seconds: float) -> None:
        """Who was answered by the last commit is back soon: so wait a little for as many as there were then, that
        they share a commit instead of meeting those in flight by turns (TK1)."""
        if 0 < self._waiting(done) < self._crowd:
            with trio.move_on_after(min(commit_seconds / 2, GATHER_SECONDS)):
                while self._waiting(done) < self._crowd:
                    self._arrival = trio.Event()
                    await self._arrival.wait()

    def _waiting(self, done: int) -> int:
        return sum(ticket.need > done for ticket in self._tickets)
