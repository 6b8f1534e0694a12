"""Who uses the file system: registering, heartbeats, and declaring others dead.

Invariants
    L1  Registering writes one and the same document in the transaction that looks at the others, so of two newcomers
        one starts again and sees the other. A session that wants to be the only writer (`alone`) and any other writer
        exclude each other.
    L2  A session is dead when its document says so, and nothing else: whoever declares it dead writes that, and every
        commit of the session writes the same document guarded by "alive".
    L3  On the same host, in the same pid namespace, the process itself says whether it lives; elsewhere its lease
        does, by the server's clock.
    L4  A session's transactions all run in one session of the driver, whose id (`lsid`) its document names. A server
        keeps the open transaction of a killed client, with its locks, for a minute: who buries the dead ends it. So a
        document is there, as "joining", before the first transaction begins.
    L5  A writer that shares begins only when every live writer before it has acknowledged it (`sees` >= its epoch) or
        is dead: from then on all of them commit before they answer. While it waits it acknowledges others.
    L6  A reader whose user may not write here is not registered (its epoch is UNREGISTERED), and nobody knows of it: a
        file that others remove while it has it open may lose its content.

Concurrency
    Belongs to the trio thread.

The document: `_id` epoch; `host`, `boot` (boot id and pid namespace), `pid`, `start` (ns, when the process began);
`kind`; `mode` rw / ro; `where`; `state` joining / alive / dead; `beat` server date; `lease` seconds; `commits`; `lsid`;
`alone`, `sees`, `shared`, `x`, `news`: see format.news.
`idle`, `held` tell gc what it may take (tools.gc, and rule O10 in docs/format.md).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import psutil
import trio
from bson.int64 import Int64
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from flakefs.errors import Fenced, FlakeError, HeldElsewhere, Refused, Unavailable
from flakefs.format.documents import COUNTERS, SESSIONS, Document
from flakefs.mongo.counters import next_number, raised
from flakefs.mongo.door import Door
from flakefs.mongo.pinned import abort

log = logging.getLogger(__name__)

START_TOLERANCE_NS = 2_000_000_000
"""The start time of a process is computed from a boot time that clock changes can shift by a second."""
KEPT_DEAD = 100
"""Documents of so many sessions stay, for whoever wonders what happened."""
PRESENT: Document = {"$in": ["joining", "alive"]}
REGISTER_SECONDS = 30.0
"""How long a newcomer tries."""
REGISTER_PAUSE_MAX_SECONDS = 0.5
JOIN_SECONDS = 60.0
"""So long, and twice the lease, a newcomer waits for those who are there already."""
JOIN_POLL_SECONDS = 0.02

UNREGISTERED = 0
NOT_ALLOWED = 13

Watched = dict[int, tuple[Any, float]]
"""Epoch -> (last beat, since when it is the last one, by our clock)."""


class Session:
    """A registered session; see the module."""

    def __init__(
        self, door: Door, database: str, driver: ClientSession, *, epoch: int, writable: bool, lease_seconds: float
    ) -> None:
        self.epoch = epoch
        self.driver = driver
        """For one thread at a time (L4)."""
        self.writable = writable
        self.commits = 0
        """Number of the last commit; the journal's."""
        self.fenced = False
        self.when_fenced: Callable[[], None] = lambda: None
        self.when_beat: Callable[[], None] = lambda: None
        self.tell: Callable[[], dict[str, Any]] = dict
        """Facts for people, written with each heartbeat."""
        self.others: frozenset[int] = frozenset()
        """Live writers beside this one, as of the last look."""
        self.sees = epoch
        self.idle: Callable[[], bool] = lambda: False
        """Neither changes nor chunks wait for a commit."""
        self._door = door
        self._database: Database[Document] = door.client[database]
        self._lease_seconds = lease_seconds
        self._watched: Watched = {}

    async def heartbeat_forever(self) -> None:
        """Say "alive" three times per lease. Returns only when the session was declared dead."""
        if self.epoch == UNREGISTERED:
            await trio.sleep_forever()
        while True:
            await trio.sleep(self._lease_seconds / 3)
            try:
                alive = await self._door.run(partial(self._beat, self.tell(), self.idle(), self.commits))
            except FlakeError as error:
                log.info("session %d: no heartbeat: %s", self.epoch, error)
                continue
            if not alive:
                self.fence()
                return
            self.when_beat()

    def fence(self) -> None:
        """It was declared dead."""
        if not self.fenced:
            self.fenced = True
            self.when_fenced()

    async def look(self) -> frozenset[int]:
        """The epochs of the other live writers; those that are dead are declared so."""
        return frozenset(document["_id"] for document in await self._look())

    async def _look(self) -> list[Document]:
        return await self._door.run(lambda: _others(self._database, self.epoch, self._watched))

    async def acknowledge(self, sees: int, shared: bool) -> bool:
        """Write what this session sees; False when it was declared dead."""

        def write() -> bool:
            sessions = self._database[SESSIONS].with_options(write_concern=WriteConcern("majority", j=True))
            fields = {"sees": Int64(sees), "shared": shared, "beat": "$$NOW"}
            return sessions.update_one({"_id": self.epoch, "state": "alive"}, [{"$set": fields}]).matched_count == 1

        return await self._door.run(write)

    async def join(self) -> None:
        """L5. Raises Fenced, and Unavailable when a live session does not answer for long."""
        patience = time.monotonic() + 2 * self._lease_seconds + JOIN_SECONDS
        while True:
            others = await self._look()
            waiting = [x for x in others if x.get("sees", 0) < self.epoch or not x.get("shared")]
            self.others = frozenset(document["_id"] for document in others)
            sees = max(self.epoch, *self.others) if self.others else self.epoch
            if self.others:
                if not await self.acknowledge(sees, True):
                    raise Fenced("another session declared this one dead while it was opening: try again")
                self.sees = sees
            if not waiting:
                return
            if time.monotonic() > patience:
                raise Unavailable(_unanswered(waiting[0]))
            await trio.sleep(JOIN_POLL_SECONDS)

    async def close(self) -> None:
        """Say "dead". A server that does not answer is left to the lease."""
        if self.epoch != UNREGISTERED:
            with suppress(FlakeError), trio.CancelScope(shield=True):
                await self._door.run(self._leave)
        self.driver.end_session()

    def _beat(self, facts: dict[str, Any], idle: bool, commits: int) -> bool:
        fields: Document = {name: {"$literal": value} for name, value in facts.items()}
        still = {"$and": [idle, {"$eq": ["$commits", commits]}]}  # a commit may have been faster than this
        result = self._database[SESSIONS].update_one(
            {"_id": self.epoch, "state": "alive"}, [{"$set": fields | {"beat": "$$NOW", "idle": still}}]
        )
        return result.matched_count == 1

    def _leave(self) -> None:
        _set_dead(self._database, self.epoch)


async def open_session(
    metadata: Door,
    database: str,
    *,
    kind: str,
    writable: bool,
    where: str,
    shared: bool = False,
    lease_seconds: float = 15.0,
) -> Session:
    """Register. A writer that does not share raises HeldElsewhere beside a live one, one that does waits until the
    others know of it (L5). Raises Refused when the user may not write, and *writable* asks for it (L6).
    """
    me = identity() | {"kind": kind, "mode": "rw" if writable else "ro", "where": where, "lease": lease_seconds}
    if writable and not shared:
        me["alone"] = True
    driver = metadata.client.start_session()
    me["lsid"] = driver.session_id["id"]
    try:
        epoch = await metadata.run(lambda: _announce(metadata.client[database], me))
    except Refused as error:
        if error.code != NOT_ALLOWED:
            raise
        if writable:
            raise Refused(
                f"the user of the metadata server may not write into database {database}: mount with -o ro, or give it "
                "the role readWrite there"
            ) from error
        return Session(metadata, database, driver, epoch=UNREGISTERED, writable=False, lease_seconds=lease_seconds)
    try:
        await _admitted(metadata, driver, database, epoch, me)
        session = Session(metadata, database, driver, epoch=epoch, writable=writable, lease_seconds=lease_seconds)
        if writable and shared:
            await session.join()
    except BaseException:
        with suppress(FlakeError), trio.CancelScope(shield=True):
            await metadata.run(lambda: _set_dead(metadata.client[database], epoch))
        raise
    return session


async def _admitted(metadata: Door, driver: ClientSession, database: str, epoch: int, me: Document) -> None:
    """Return when the session is alive."""
    deadline = trio.current_time() + REGISTER_SECONDS
    pause = 0.01
    while not await metadata.run(lambda: _register(driver, database, epoch, me)):
        if trio.current_time() > deadline:
            raise Unavailable(
                f"the file system {database} could not be registered with for {REGISTER_SECONDS:g} s: others register, "
                "or a transaction of a killed process holds the documents; try again"
            )
        await metadata.run(lambda: _end_transactions_of_the_dead(metadata.client, database))
        await trio.sleep(pause)
        pause = min(2 * pause, REGISTER_PAUSE_MAX_SECONDS)


def identity() -> Document:
    """What tells this process from every other one."""
    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": os.getpid(),
        "start": Int64(_started(os.getpid()) or 0),
    }


def boot_id() -> str:
    """This boot of this kernel and this pid namespace: a pid means the same wherever this is equal."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def process_lives(pid: int, start: int) -> bool:
    """Is the process with this pid the one that began at *start*?"""
    found = _started(pid)
    return found is not None and abs(found - start) <= START_TOLERANCE_NS


def _started(pid: int) -> int | None:
    """ns since the epoch; None when there is no such process or it is a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return int(process.create_time() * 1e9)
    except psutil.NoSuchProcess:
        return None


def _set_dead(db: Database[Document], epoch: int) -> None:
    db[SESSIONS].update_one({"_id": epoch}, {"$set": {"state": "dead"}})


def _announce(db: Database[Document], me: Document) -> int:
    """Take an epoch and write the document of a session that wants to join (L4)."""
    epoch = next_number(db, "session")
    fields: dict[str, Any] = {name: {"$literal": value} for name, value in me.items()}
    fields |= {"state": "joining", "beat": "$$NOW", "commits": Int64(0), "sees": Int64(epoch)}
    db[SESSIONS].update_one({"_id": epoch}, [{"$set": fields}], upsert=True)
    return epoch


def _register(driver: ClientSession, database: str, epoch: int, me: Document) -> bool:
    """Make the session alive; False: somebody else registered at the same moment, try again."""
    client: MongoClient[Document] = driver.client
    db = client[database]
    driver.start_transaction(read_concern=ReadConcern("local"), write_concern=WriteConcern("majority", j=True))
    try:
        db[COUNTERS].update_one({"_id": "joined"}, raised(1), upsert=True, session=driver)  # L1
        holder = _bury_the_dead(db, driver, epoch, me)
        if holder is not None:
            raise HeldElsewhere(_sentence(holder))
        db[SESSIONS].update_one({"_id": epoch}, [{"$set": {"state": "alive", "beat": "$$NOW"}}], session=driver)
        db[SESSIONS].delete_many({"state": "dead", "_id": {"$lt": epoch - KEPT_DEAD}}, session=driver)
        driver.commit_transaction()
    except PyMongoError as error:
        if error.has_error_label("TransientTransactionError"):
            return False
        raise
    finally:
        abort(driver)
    return True


def _end_transactions_of_the_dead(client: MongoClient[Document], database: str) -> None:
    """L4: somebody's transaction is in the way; if it is one of a dead process, end it."""
    late = _late(client[database], None)
    found = client[database][SESSIONS].find({"state": PRESENT, "lsid": {"$exists": True}})
    dead = [document for document in found if is_dead(document, late)]
    if dead:
        _end_transactions(client, dead)


def _end_transactions(client: MongoClient[Document], documents: list[Document]) -> None:
    with suppress(OperationFailure):  # without the right to do it, the server's own limit does
        client.admin.command({"killSessions": [{"id": document["lsid"]} for document in documents]})


def _bury_the_dead(db: Database[Document], session: ClientSession, epoch: int, me: Document) -> Document | None:
    """Declare dead whoever is; the live writer that excludes *me*, if there is one (L1, L3)."""
    late = _late(db, session)
    holder: Document | None = None
    for document in db[SESSIONS].find({"state": PRESENT, "_id": {"$ne": epoch}}, session=session):
        if is_dead(document, late):
            db[SESSIONS].update_one(
                {"_id": document["_id"], "state": PRESENT}, {"$set": {"state": "dead"}}, session=session
            )
        elif (
            document["state"] == "alive"
            and me["mode"] == document["mode"] == "rw"
            and (me.get("alone") or document.get("alone"))
        ):
            holder = document
    return holder


def is_dead(document: Document, late: set[int]) -> bool:
    """Has the process of a session that is marked alive ended, as far as can be told? *late*: those whose lease ran
    out (L3).
    """
    if document["boot"] == boot_id():
        return not process_lives(document["pid"], int(document["start"]))
    return document["_id"] in late


def declare_dead(db: Database[Document], document: Document) -> bool:
    """L2; False when it has beaten or ended meanwhile."""
    if "lsid" in document:  # L4: its open transaction would hold its document
        _end_transactions(db.client, [document])
    sessions = db[SESSIONS].with_options(write_concern=WriteConcern("majority", j=True))
    guard = {"_id": document["_id"], "state": "alive", "beat": document["beat"]}
    return sessions.update_one(guard, {"$set": {"state": "dead"}}).modified_count == 1


def _late(db: Database[Document], session: ClientSession | None) -> set[int]:
    """Epochs whose lease has run out, by the server's clock."""
    expired = {"$lt": ["$beat", {"$subtract": ["$$NOW", {"$multiply": ["$lease", 1000]}]}]}
    found = db[SESSIONS].find({"state": PRESENT, "$expr": expired}, {"_id": 1}, session=session)
    return {document["_id"] for document in found}


def _others(db: Database[Document], epoch: int, watched: Watched) -> list[Document]:
    """The documents of other live writers. Those that are dead are declared so: also one of this host that is there,
    but has not beaten for its whole lease while it was *watched*: it is stopped.
    """
    result = []
    others = list(db[SESSIONS].find({"state": "alive", "mode": "rw", "_id": {"$ne": epoch}}, {"news": 0}))
    late = _late(db, None) if others else set()
    for document in others:
        key = document["_id"]
        beat, since = watched.get(key, (None, 0.0))
        if beat != document["beat"]:
            watched[key] = (document["beat"], time.monotonic())
            stopped = False
        else:
            stopped = key in late and time.monotonic() - since > document["lease"]
        if not (stopped or is_dead(document, late)) or not declare_dead(db, document):
            result.append(document)
    return result


def _unanswered(document: Document) -> str:
    place = f" at {document['where']}" if document["where"] else ""
    return (
        f"the {document['kind']}{place} on host {document['host']} (process {document['pid']}) has the file system "
        "open and does not make room for another session: look at its log, or end it"
    )


def _sentence(holder: Document) -> str:
    """Who holds the file system, and what to do."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(holder["start"]) / 1e9))
    place = f" at {holder['where']}" if holder["where"] else ""
    return (
        f"the file system is held by a {holder['kind']}{place} on host {holder['host']} "
        f"(process {holder['pid']}, running since {since}): end it first, or open the file system for reading only"
    )


__all__ = ["Session", "boot_id", "declare_dead", "identity", "is_dead", "open_session", "process_lives"]
