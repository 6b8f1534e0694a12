"""The one door to pymongo: worker threads, deadlines, error translation.

Purpose
    pymongo blocks, so every call to a server runs in a worker thread of a door, under a deadline, and comes back as a
    result or as one of our errors.

Invariants
    D1  No call waits for ever: it ends within its deadline plus the time to get a thread; and a call that has waited
        its whole deadline for a thread while the server answered nobody fails without being tried.
    D2  No pymongo error passes; errors of ours pass untouched.
    D3  A call that raises Unavailable may have taken effect: callers are repeatable.
    D4  `silent_since` is the begin of the first call that the server has not answered since it last answered one.

Concurrency
    run() from any number of trio tasks; run_sync() from any thread. At most `threads` calls of run() are in pymongo at
    once. A cancelled task waits for its call to end (which D1 bounds), so that nothing goes on behind its back, unless
    it said that its call changes nothing that matters (`abandon`).

Not here
    Making clients (mongo.clients), what an error means (mongo.translate), trying again (mongo.patience).
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

import pymongo
import trio
from bson.errors import BSONError
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from flakefs.errors import Unavailable
from flakefs.format.documents import Document
from flakefs.mongo.translate import translated

__all__ = ["Door", "translated"]

T = TypeVar("T")

CLOSE_SECONDS = 2.0
"""Saying goodbye to the server is a courtesy: a server that does not answer may not delay the end of a mount."""
CLOSE_SILENT_SECONDS = 0.1
"""The same for a server that is known not to answer."""


class Door:
    """One client's way in. Owns the client: close() ends it."""

    def __init__(
        self, client: MongoClient[Document], *, name: str, deadline_seconds: float = 10.0, threads: int = 8
    ) -> None:
        # Constant after construction
        self.client = client
        self.name = name
        self.deadline_seconds = deadline_seconds
        self._limiter = trio.CapacityLimiter(threads)
        # Mutable; written by any thread, each write a single store
        self._answered = 0.0  # monotonic time of the last call that the server answered
        self.silent_since: float | None = None
        """Monotonic (D4); None while it answers."""

    @property
    def answered(self) -> float:
        """Monotonic time of the last call that the server answered; 0 when there is none."""
        return self._answered

    async def run(self, call: Callable[[], T], *, deadline_seconds: float | None = None, abandon: bool = False) -> T:
        """Run the blocking *call* in a worker thread. Always a checkpoint.

        FlakeErrors raised by *call* pass; driver errors whose meaning the caller knows (DuplicateKeyError...) are to be
        caught inside *call*. *abandon*: a cancelled task does not wait for the end of its call, which only reads.
        """
        return await trio.to_thread.run_sync(
            self._guarded,
            call,
            self.deadline_seconds if deadline_seconds is None else deadline_seconds,
            monotonic(),
            limiter=self._limiter,
            abandon_on_cancel=abandon,
        )

    def run_sync(self, call: Callable[[], T], *, deadline_seconds: float | None = None) -> T:
        """The same in the calling thread, for code without an event loop."""
        deadline = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        return self._guarded(call, deadline, monotonic())

    def close(self) -> None:
        """End the client; short even when the server is gone. Only calls that were abandoned may be running."""
        try:
            with pymongo.timeout(CLOSE_SECONDS if self.silent_since is None else CLOSE_SILENT_SECONDS):
                self.client.close()
        except PyMongoError:
            pass  # the connection is gone either way

    def _guarded(self, call: Callable[[], T], deadline: float, asked: float) -> T:
        if monotonic() - asked > deadline and self._answered < asked:
            if self.silent_since is None:
                self.silent_since = asked
            raise Unavailable(
                f"{self.name} has answered nobody for {deadline:g} s: check that it runs and can be reached"
            )
        try:
            with pymongo.timeout(deadline):
                result = call()
        except (PyMongoError, BSONError) as error:
            failure = translated(error, self.name)
            if not isinstance(failure, Unavailable):
                self._note_answer()
            elif self.silent_since is None:
                self.silent_since = max(asked, self._answered)
            raise failure from error
        self._note_answer()
        return result

    def _note_answer(self) -> None:
        self._answered = monotonic()
        self.silent_since = None

    def statistics(self) -> dict[str, Any]:
        """Calls in pymongo and waiting for a thread."""
        numbers = self._limiter.statistics()
        return {"running": numbers.borrowed_tokens, "waiting": numbers.tasks_waiting}
