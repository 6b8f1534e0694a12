"""Who uses the file system: sessions that live, and sessions that only say so.

Concurrency
    One thread, blocking.

Not here
    Taking a session and ending dead ones (namespace.sessions).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.mongo import clients
from flakefs.mongo.door import Door
from flakefs.namespace.sessions import boot_id, process_lives
from flakefs.tools.problems import Report
from flakefs.tools.reader import Reader


class Holder(NamedTuple):
    """A session that is marked alive."""

    epoch: int
    writes: bool
    lives: bool
    beat: datetime | None
    """When it was last heard of, by the server's clock."""
    words: str
    here: bool
    """Its process runs, or ran, on this machine."""
    commits: int
    idle: bool
    """Said with its last heart-beat, and no commit since."""
    held: int | None
    """The last commit after which chunks were pinned that look like leaks; None: it does not tell."""


def holders(reader: Reader) -> list[Holder]:
    """All sessions marked alive, by the clock of the metadata server."""
    now = server_time(reader.door)
    return [_holder(document, now) for document in reader.all(d.SESSIONS, {"state": "alive"})]


def server_time(door: Door) -> datetime:
    """The metadata server's clock: leases are its, whatever ours says. No time zone, in UTC, as BSON dates are."""
    return door.run_sync(lambda: clients.server_time(door.client)).replace(tzinfo=None)


def report_holders(found: list[Holder], report: Report) -> None:
    for holder in found:
        kind = "session-live" if holder.lives else "session-gone"
        report.add(kind, f"session {holder.epoch}", holder.words, epoch=holder.epoch)


def _holder(document: Document, now: datetime) -> Holder:
    beat = document.get("beat")
    beat = beat.replace(tzinfo=None) if isinstance(beat, datetime) else None
    lease = document.get("lease")
    pid, start = document.get("pid"), document.get("start")
    if document.get("boot") == boot_id() and isinstance(pid, int) and isinstance(start, int):
        lives = process_lives(pid, start)  # here the process itself says whether it lives
    else:
        lives = beat is not None and isinstance(lease, int | float) and beat + timedelta(seconds=lease) >= now
    words = (
        f"{document.get('kind')} {document.get('where', '')} on host {document.get('host')}, "
        f"process {document.get('pid')}, {'writing' if document.get('mode') == 'rw' else 'reading'}"
    )
    held = document.get("held")
    return Holder(
        epoch=int(document["_id"]),
        writes=document.get("mode") == "rw",
        lives=lives,
        beat=beat,
        words=words,
        here=document.get("boot") == boot_id(),
        commits=int(document.get("commits", 0)),
        idle=document.get("idle") is True,
        held=held if isinstance(held, int) else None,
    )
