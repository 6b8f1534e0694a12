"""Runs blocking work while this process holds the only writing session, and fences each of its writes.

Invariants
    E1  No other session writes while the work runs: open_session() refuses beside a live writer and ends dead ones.
    E2  Every change of a metadata document is a transaction that also writes our own session document, if that is
        still alive: when somebody declared us dead, nothing more is written.

Concurrency
    exclusively() blocks and runs an event loop of its own for the heart-beat: not for the trio thread (a worker thread
    of it is fine).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from flakefs.errors import Fenced, FlakeError, first_leaf
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.mongo.door import Door
from flakefs.namespace.sessions import open_session

T = TypeVar("T")

WRITE_SECONDS = 60.0

Change = Callable[[Database[Document], ClientSession], None]
"""Writes inside a transaction; may run more than once."""


class Writer:
    """The writes of one exclusive session (E2)."""

    def __init__(self, door: Door, database: str, epoch: int) -> None:
        self.door = door
        self.name = database
        self.epoch = epoch

    @property
    def database(self) -> Database[Document]:
        return self.door.client[self.name]

    def write(self, change: Change) -> None:
        """*change*, in one durable transaction."""

        def fenced(session: ClientSession) -> None:
            alive = {"_id": self.epoch, "state": "alive"}
            mine = self.database[d.SESSIONS].update_one(alive, {"$inc": {"commits": 1}}, session=session)
            if mine.matched_count != 1:
                raise Fenced(f"another session has taken over {self.name}; run the command again when it has ended")
            change(self.database, session)

        def call() -> None:
            with self.door.client.start_session() as session:
                session.with_transaction(fenced, write_concern=WriteConcern(w="majority", j=True))

        self.door.run_sync(call, deadline_seconds=WRITE_SECONDS)


def exclusively(metadata: Door, database: str, where: str, work: Callable[[Writer], T]) -> T:
    """The result of *work*. *where* tells others who holds the file system. Raises HeldElsewhere."""
    try:
        return trio.run(partial(_hold, metadata, database, where, work))
    except BaseExceptionGroup as group:
        if group.split(FlakeError)[1] is None:
            raise first_leaf(group) from None
        raise


async def _hold(metadata: Door, database: str, where: str, work: Callable[[Writer], T]) -> T:
    session = await open_session(metadata, database, kind="tool", writable=True, where=where)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.heartbeat_forever)
            result = await trio.to_thread.run_sync(work, Writer(metadata, database, session.epoch))
            nursery.cancel_scope.cancel()
        return result
    finally:
        with trio.CancelScope(shield=True):
            await session.close()
