"""Sealing a volume so that nobody inserts into it any more.

Purpose
    Mounts choose volumes from a map that they read a moment ago. `seal()` says in the volume's document that it takes
    no new chunks, and `wait_acknowledged()` returns when that has reached everybody who could insert one.

Invariants
    SE1  First the document changes, then the map epoch is raised: a session whose `map` is at least that number has
         read the document after the change, and has nothing under way that it planned before.
    SE2  Only sessions that store chunks are waited for: those that write (`mode` rw) and share the file system. Whoever
         opens an engine for writing shares (app.stack), and a session that is marked `alone` (tools.exclusive: fsck
         --repair, gc without grace) never opens one. That is written when a session registers and never changes.
    SE3  Only sessions that were alive after the change are waited for: one that joins later reads the map later.
    SE4  A session that is dead by the rules of namespace.sessions (process gone, lease run out by the server's clock,
         stopped for its whole lease) is declared dead, so that what it might still insert is never named by a commit.

Concurrency
    Blocks. Several tools may seal the same volume.

Not here
    The other side: who publishes `map` (engine.volumes).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic, sleep
from typing import Any

from flakefs.errors import Fenced, Unavailable
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.mongo.counters import next_number
from flakefs.mongo.door import Door
from flakefs.namespace.sessions import declare_dead, is_dead
from flakefs.tools.holders import server_time
from flakefs.tools.lease import Lease

MAP = "map"
"""The counter of map epochs, and the field of a session's document."""
PATIENCE_SECONDS = 300.0
"""A live session acknowledges within a second or two, or when what it has under way has failed."""
POLL_SECONDS = 0.1

Say = Callable[[str], None]


def seal(door: Door, database: str, lease: Lease) -> int:
    """Make the volume of *lease* take no new chunks; the map epoch to wait for (SE1)."""
    volume = lease.record()
    if volume.state == "sealed" and volume.sealed_at:
        return volume.sealed_at
    if not lease.update({"state": "sealed"}):
        lease.record()  # says why
        raise Fenced(f"volume {volume.id} could not be sealed: run the command again")
    epoch = raise_epoch(door, database)
    lease.update({"sealed_at": epoch})
    return epoch


def raise_epoch(door: Door, database: str) -> int:
    """Tell sessions that the map has changed; to be called after the change."""
    return door.run_sync(lambda: next_number(door.client[database], MAP))


def wait_acknowledged(
    door: Door,
    database: str,
    epoch: int,
    progress: Say | None = None,
    *,
    check: Callable[[], None] | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """Return when nobody works from a map before *epoch* any more. *check* is called again and again, and may raise.

    Raises Unavailable when a live session does not follow for *patience_seconds*.
    """
    began = monotonic()
    watched: dict[int, tuple[Any, float]] = {}
    waited_for: set[int] | None = None
    while True:
        behind = _behind(door, database, epoch, watched)
        if waited_for is None:
            waited_for = set(behind)  # SE3
        behind = {number: document for number, document in behind.items() if number in waited_for}
        if not behind:
            return
        if check is not None:
            check()
        words = _words(next(iter(behind.values())))
        if monotonic() - began > patience_seconds:
            raise Unavailable(
                f"the {words} has not followed a change of the volumes for {patience_seconds:g} s: "
                "look at its log or end it, and run the command again"
            )
        if progress is not None:
            progress(f"waiting for the {words} to follow")
        sleep(POLL_SECONDS)


def acknowledged(door: Door, database: str, epoch: int) -> bool:
    """Has everybody who writes followed, as far as can be seen at once?"""
    return not _behind(door, database, epoch, {})


def _behind(door: Door, database: str, epoch: int, watched: dict[int, tuple[Any, float]]) -> dict[int, Document]:
    """Live sessions that store chunks (SE2) and work from an older map; the dead ones are buried (SE4)."""
    sessions = door.client[database][d.SESSIONS]
    wanted = {"state": "alive", "mode": "rw", "alone": {"$ne": True}, MAP: {"$not": {"$gte": epoch}}}
    found = door.run_sync(lambda: list(sessions.find(wanted, {"news": 0})))
    if not found:
        return {}
    now = server_time(door)
    late = {document["_id"] for document in found if _is_late(document, now)}
    behind = {}
    for document in found:
        number = document["_id"]
        beat, since = watched.get(number, (None, 0.0))
        if beat != document["beat"]:
            since = monotonic()
            watched[number] = (document["beat"], since)
        stopped = number in late and monotonic() - since > float(document["lease"])
        if not (stopped or is_dead(document, late)) or not _declared_dead(door, database, document):
            behind[number] = document
    return behind


def _declared_dead(door: Door, database: str, document: Document) -> bool:
    return door.run_sync(lambda: declare_dead(door.client[database], document))


def _is_late(document: Document, now: datetime) -> bool:
    beat: datetime = document["beat"].replace(tzinfo=None)
    return beat + timedelta(seconds=float(document["lease"])) < now


def _words(document: Document) -> str:
    place = f" at {document['where']}" if document.get("where") else ""
    return f"{document['kind']}{place} on host {document['host']} (process {document['pid']})"
