"""What other sessions write into their documents, as it happens.

Purpose
    A thread with a client of its own follows the `sessions` collection by a change stream and hands what changed to
    the trio thread; beside it, whether it can be relied on at the moment.

Invariants
    S1  Between "healthy" and the next "broken" or "gap", every change of a document with another `_id` arrives, once,
        in the order of the commits. A change that was lost (the resume token is no longer known, the collection was
        dropped, nobody took events for too long) is a "gap", before anything later arrives.
    S2  "broken" comes when the cursor fails, or when nothing, not even an empty answer, has come for SILENCE_SECONDS;
        "healthy" once there is an open cursor that answers again. A resumed stream begins where the last one ended,
        so its "healthy" comes with nothing lost.
    S3  What is held in memory is bounded: a full queue is emptied and becomes a "gap".
    S4  Leaving waits for nothing: the thread ends by itself with the next answer, after AWAIT_SECONDS when the server
        answers. (Nothing wakes a getMore that waits for changes, killing its cursor or its session neither.)
    S5  A change is handed over as soon as it is known, or GATHER_SECONDS later when others came just before.

    A change carries the changed fields only, as the commit wrote them: asking the server for the whole document would
    bring a later state of it, without what stood there in between. A field that an update writes with the value it
    had is no change and not in the event; and an update by a pipeline of stages may bring only the changed part of a
    field, as "field.part". So whoever writes news writes the whole field by $set, with something in it that is new.

Concurrency
    The thread owns client and cursor. It and the trio thread share a deque (append, popleft and clear are atomic) and
    single values that one of the two writes. CLOCK_BOOTTIME: it goes on while the machine sleeps or we are stopped.

Not here
    What a session's document means (namespace.sessions).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from time import CLOCK_BOOTTIME, clock_gettime, time
from typing import Any, Literal, NamedTuple

import pymongo
import trio
from bson.errors import BSONError
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.synchronous.command_cursor import CommandCursor

from flakefs.errors import Unavailable
from flakefs.format.documents import SESSIONS, Document
from flakefs.mongo.clients import server_time
from flakefs.mongo.translate import short, translated

log = logging.getLogger(__name__)

SILENCE_SECONDS = 3.0
AWAIT_SECONDS = 1.0
"""After so long without a change the server sends an empty answer."""
GATHER_SECONDS = 0.02
"""While changes come thick, they are fetched at most so often: every question costs this process, and a question that
waits costs the server something at each commit of anybody (all of it together half of what a commit costs)."""
THICK_SECONDS = 0.04
OPEN_SECONDS = 5.0
CLOSE_SECONDS = 1.0
QUEUE_MAX = 10_000
PAUSE_SECONDS = (0.0, 0.05, 0.2, 0.5, 1.0)
"""Before the first and further attempts to open again."""
_unlimited = trio.CapacityLimiter(1_000_000)
LOST_EVENTS = ("invalidate", "drop", "rename", "dropDatabase")


class StreamEvent(NamedTuple):
    kind: Literal["change", "gap", "healthy", "broken"]
    document: Mapping[str, Any] | None = None
    """Of a change: `_id` and the changed fields; one that was taken out is None. A document that was deleted arrives
    as {"_id": ..., "state": "dead"}."""
    lag_seconds: float | None = None
    """Of a change: from the write, by the server's clock, until it arrived."""


GAP = StreamEvent("gap")
HEALTHY = StreamEvent("healthy")
BROKEN = StreamEvent("broken")


class Stream:
    """The trio side; made by watch_sessions()."""

    def __init__(self, client: MongoClient[Document], database: str, own_epoch: int, queue_max: int) -> None:
        # Constant after construction
        self._client = client
        self._database = database
        self._own_epoch = own_epoch
        self._queue_max = queue_max
        self._token = trio.lowlevel.current_trio_token()
        # Written by the thread
        self._queue: deque[StreamEvent] = deque()
        self._open = False  # a cursor is there and has not failed
        self._answered = 0.0  # when the server last answered
        self._cursor: CommandCursor[Document] | None = None
        self._resume: Mapping[str, Any] | None = None  # where the next cursor goes on
        self._begun = False  # there was a cursor
        self._opened = 0.0  # when the cursor was opened, by the server's clock, in seconds since the epoch
        self._offset = 0.0  # of the server's clock from ours
        self.lag_seconds: float | None = None
        """Of the last change."""
        self.problem = ""
        """Why there is no cursor, while there is none."""
        # Written by the trio thread
        self._stopping = threading.Event()
        self._wake = trio.Event()
        self._told: bool | None = None  # the health that was told last

    @property
    def fresh(self) -> bool:
        """Does the server answer through an open cursor, right now? Cheap; not later than the "broken" of events()."""
        return self._open and clock_gettime(CLOCK_BOOTTIME) - self._answered < SILENCE_SECONDS

    def events(self) -> AsyncIterator[StreamEvent]:
        """For ever, for one task; the first is "healthy" or "broken" (S1, S2)."""
        return self

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> StreamEvent:
        queue = self._queue
        while True:
            if queue:
                return queue.popleft()
            fresh = self.fresh
            if queue:
                continue  # what came before the last answer comes before its health
            if fresh != self._told:
                self._told = fresh
                return HEALTHY if fresh else BROKEN
            self._wake = trio.Event()
            if queue or self.fresh != fresh:
                continue
            with trio.move_on_after(SILENCE_SECONDS / 4):
                await self._wake.wait()

    # -- the thread --

    def follow(self) -> None:
        """The life of the thread."""
        attempt = 0
        while not self._stopping.is_set():
            try:
                self._open_cursor()
                attempt = 0
                self._read()
                self.problem = "the server has ended the cursor"
            except (PyMongoError, BSONError) as error:
                if self._cursor is None and not isinstance(translated(error, "the metadata server"), Unavailable):
                    self._resume = None  # the server does not want to go on from there
                self.problem = short(error) if isinstance(error, PyMongoError) else str(error)
            except Exception as error:
                log.exception("the stream of what other sessions change met a bug in FlakeFS; it is opened again")
                self._resume, self.problem = None, repr(error)
            self._close_cursor()
            self._stopping.wait(PAUSE_SECONDS[min(attempt, len(PAUSE_SECONDS) - 1)])
            attempt += 1
        with suppress(PyMongoError), pymongo.timeout(CLOSE_SECONDS):
            self._client.close()

    def _open_cursor(self) -> None:
        """A cursor behind everything that has arrived; or one from now on, and a gap (S1)."""
        resume = self._resume
        source: Document = {} if resume is None else {"resumeAfter": resume}
        pipeline: list[Mapping[str, Any]] = [
            {"$changeStream": source},
            {"$match": {"documentKey._id": {"$ne": self._own_epoch}}},
        ]
        with pymongo.timeout(OPEN_SECONDS):
            local = time()
            server = server_time(self._client).timestamp()
            self._offset = server - (local + time()) / 2
            sessions = self._client[self._database].get_collection(SESSIONS, read_concern=ReadConcern("majority"))
            self._cursor = sessions.aggregate(pipeline, maxAwaitTimeMS=int(AWAIT_SECONDS * 1000))
        self._opened = time() + self._offset
        self._answered = clock_gettime(CLOCK_BOOTTIME)
        begun, self._begun = self._begun, True
        if resume is None:
            if begun:
                self._put(GAP)
            self._catch_up()
        self._tell()

    def _read(self) -> None:
        """Hand over changes until the cursor ends."""
        cursor = self._cursor
        assert cursor is not None
        fetched = 0.0  # when the last changes were
        while cursor.alive and not self._stopping.is_set():
            change = cursor.try_next()
            self._answered = clock_gettime(CLOCK_BOOTTIME)
            if change is None:
                self._resume = getattr(cursor, "_post_batch_resume_token", None) or self._resume
                self._catch_up()
                continue
            self._take(change)
            if not cursor._has_next():
                self._tell()
                before, fetched = fetched, self._answered
                if fetched - before < THICK_SECONDS:
                    self._stopping.wait(GATHER_SECONDS)

    def _take(self, change: Mapping[str, Any]) -> None:
        operation = change["operationType"]
        if operation in LOST_EVENTS:
            self._resume = None  # nothing can be resumed behind these
            raise OperationFailure(f"the collection was changed as a whole ({operation})", 280)
        document: dict[str, Any] = {"_id": change["documentKey"]["_id"]}
        if operation == "update":
            described = change["updateDescription"]
            document |= dict.fromkeys(described.get("removedFields", ()))
            document |= described.get("updatedFields", {})
        elif operation == "delete":
            document["state"] = "dead"
        else:
            document |= change["fullDocument"]
        written = _seconds(change["wallTime"])
        lag = self.lag_seconds = max(0.0, time() + self._offset - written)
        self._resume = change["_id"]
        self._put(StreamEvent("change", document, lag))
        if written >= self._opened:
            self._catch_up()

    def _put(self, event: StreamEvent) -> None:
        """S3. The caller tells; once for all that came with one answer."""
        if len(self._queue) >= self._queue_max:
            self._queue.clear()
            event = GAP
        self._queue.append(event)

    def _catch_up(self) -> None:
        """Everything that was written before the cursor was opened has arrived."""
        if not self._open:
            self._open = True
            self.problem = ""
            self._tell()

    def _close_cursor(self) -> None:
        self._open = False
        self._tell()
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            with suppress(PyMongoError), pymongo.timeout(CLOSE_SECONDS):
                cursor.close()

    def _tell(self) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._awake, idempotent=True)

    # -- the trio thread again --

    def _awake(self) -> None:
        self._wake.set()

    async def started(self) -> None:
        """Return when the first cursor is open, or the first attempt has failed."""
        while not self._begun and not self.problem:
            wake = self._wake
            if wake.is_set():
                wake = self._wake = trio.Event()
                continue
            await wake.wait()

    def stop(self) -> None:
        """S4."""
        self._stopping.set()


@asynccontextmanager
async def watch_sessions(
    client_factory: Callable[[], MongoClient[Document]], database: str, own_epoch: int, *, queue_max: int = QUEUE_MAX
) -> AsyncIterator[Stream]:
    """Follow the documents of all sessions but *own_epoch*, from now on.

    *client_factory* makes a client that this one owns; its socket time-out has to be longer than AWAIT_SECONDS.
    """
    stream = Stream(client_factory(), database, own_epoch, queue_max)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.to_thread.run_sync, stream.follow, abandon_on_cancel=True, limiter=_unlimited))
        try:
            await stream.started()
            yield stream
        finally:
            stream.stop()
            nursery.cancel_scope.cancel()


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
