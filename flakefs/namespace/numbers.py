"""Fresh inode numbers.

Invariants
    N1  A number is never given twice, by whichever session, also after a crash: the counter passes it first, durably.
    N2  Whoever needs a number waits for a metadata server that is away as for any answer (mongo.patience). Those who
        stood in line behind somebody who waited in vain are told the same when their time is over, too.

Concurrency
    Belongs to the trio thread. take() never waits; the next batch is fetched while this one lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import trio
from pymongo.database import Database

from flakefs.errors import FlakeError, Unavailable
from flakefs.format.documents import Document
from flakefs.mongo.counters import next_number
from flakefs.mongo.door import Door
from flakefs.mongo.patience import ask

BATCH = 4_096
"""At 2,500 new files a second, one trip to the database in 1.6 s."""


class Numbers:
    def __init__(self, door: Door, database: str, patience: Callable[[], float]) -> None:
        self._door = door
        self._patience = patience
        self._database: Database[Document] = door.client[database]
        self._next = 0
        self._stop = 0
        self._reserve: range | None = None
        self._low = trio.Event()
        self._lock = trio.Lock()
        self._failure: Unavailable | None = None  # of the last attempt

    def take(self) -> int | None:
        """A fresh number, or None: await more()."""
        number = self._next
        if number >= self._stop:
            if self._reserve is None:
                return None
            number, self._stop = self._reserve.start, self._reserve.stop
            self._reserve = None
            self._low.set()
        self._next = number + 1
        return number

    async def more(self) -> None:
        """On return take() has one, if nobody else took it."""
        asked = monotonic()
        async with self._lock:
            if self._next < self._stop or self._reserve is not None:
                return
            failure = self._failure
            if failure is not None and monotonic() - asked >= self._patience() > 0:
                raise Unavailable(str(failure)) from failure  # N2
            self._failure = None
            try:
                self._reserve = await ask(self._door, self._draw, self._patience, since=asked)
            except Unavailable as error:
                self._failure = error
                raise

    async def run(self) -> None:
        """Fetch each batch before the last one is used up."""
        while True:
            await self._low.wait()
            self._low = trio.Event()
            try:
                async with self._lock:
                    if self._reserve is None:
                        self._reserve = await self._door.run(self._draw)
            except FlakeError:
                await trio.sleep(1)  # whoever needs a number asks for himself, and is told
                self._low.set()

    def _draw(self) -> range:
        """In a worker thread. One that was not answered may have taken a batch that nobody uses."""
        first = next_number(self._database, "ino", BATCH)
        return range(first, first + BATCH)
