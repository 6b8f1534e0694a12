"""One tool at a time works on a volume.

Purpose
    A tool that changes where a volume lies, or what lies in it, holds the volume's lease: the field `work` of its
    document says who, what and until when.

Invariants
    LE1  The lease is taken by one update that the server decides by its own clock; a live holder is never overtaken.
    LE2  A thread renews it while the work goes on. A tool that dies leaves a lease that runs out; a tool on the same
         machine, where the end of a process can be seen, takes it over at once.
    LE3  Nothing is switched without the lease: who changes nodes of a volume adds `guard()` to the update.
    LE4  `check()` raises as soon as the lease may have run out, by our clock counted from before the last renewal.

Concurrency
    Blocks; one thread works, one renews. check() from any thread.

Not here
    What is done under it (tools.moving, tools.replicas, tools.vacuum).
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from time import CLOCK_BOOTTIME, clock_gettime
from typing import Any

from pymongo.write_concern import WriteConcern

from flakefs.errors import Fenced, FlakeError, HeldElsewhere, UsageError
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.format.records import VolumeRecord, read_volume
from flakefs.mongo.door import Door
from flakefs.namespace.sessions import boot_id, identity, process_lives

LEASE_SECONDS = 30.0
RENEW_SECONDS = 8.0
DURABLE = WriteConcern("majority", j=True)


class VolumeTaken(HeldElsewhere):
    """Another tool works on the volume."""


class VolumeGone(UsageError):
    """There is no such volume, or no longer."""


class Lease:
    """A lease that is held; made by volume_lease()."""

    def __init__(self, door: Door, database: str, volume: int, by: str, taken: float) -> None:
        # Constant after construction
        self.volume = volume
        self.by = by
        self._volumes = door.client[database].get_collection(d.VOLUMES, write_concern=DURABLE)
        self._door = door
        self._end = threading.Event()
        # Written by the renewing thread, each write a single store
        self.lost = False
        self._sure_until = taken + LEASE_SECONDS

    def check(self) -> None:
        """LE4; raises Fenced."""
        if self.lost or _now() > self._sure_until:
            self.lost = True
            raise Fenced(
                f"the work on volume {self.volume} stood still for so long that another tool may have taken it over: "
                "run the command again, it goes on from there"
            )

    def guard(self) -> Document:
        """What an update of the volume's document asks for besides (LE3)."""
        return {"_id": self.volume, "work.by": self.by}

    def record(self) -> VolumeRecord:
        """The volume as it is now. Raises Fenced when it is gone or no longer ours."""
        self.check()
        document = self._door.run_sync(lambda: self._volumes.find_one(self.guard()))
        if document is None:
            self.lost = True
            self.check()
        assert document is not None
        return read_volume(document)

    def update(self, changes: Mapping[str, Any], **also: Any) -> bool:
        """$set *changes* in the volume's document when the fields in *also* are as given; durable on return."""
        self.check()
        wanted, update = self.guard() | also, {"$set": dict(changes)}
        return self._door.run_sync(lambda: self._volumes.update_one(wanted, update).matched_count == 1)

    def renew_forever(self) -> None:
        while not self._end.wait(RENEW_SECONDS) and not self.lost:
            begun = _now()
            with suppress(FlakeError):  # a server that is away for a moment; check() knows when it was too long
                if self._door.run_sync(self._renew):
                    self._sure_until = begun + LEASE_SECONDS
                else:
                    self.lost = True

    def _renew(self) -> bool:
        return self._volumes.update_one(self.guard(), [{"$set": {"work.until": _until()}}]).matched_count == 1

    def give_back(self) -> None:
        """Done. A server that does not answer is left to the time that runs out."""
        self._end.set()
        with suppress(FlakeError):
            self._door.run_sync(lambda: self._volumes.update_one(self.guard(), {"$unset": {"work": ""}}))


@contextmanager
def volume_lease(door: Door, database: str, volume_id: int, what: str) -> Iterator[Lease]:
    """Hold the lease of a volume. *what* tells others what is being done. Raises VolumeTaken, VolumeGone."""
    lease = Lease(door, database, volume_id, _myself(), _now())
    renewer = threading.Thread(target=lease.renew_forever, name=f"lease of volume {volume_id}", daemon=True)
    try:
        if _take(door, database, volume_id, lease.by, what) is None:
            raise VolumeGone(f"there is no volume {volume_id}")
        renewer.start()
        yield lease
    finally:  # also when Ctrl-C came while it was being taken
        lease.give_back()
        if renewer.ident is not None:
            renewer.join()


def _take(door: Door, database: str, volume: int, by: str, what: str) -> Document | None:
    """The document with the lease taken; None when there is no such volume."""
    volumes = door.client[database].get_collection(d.VOLUMES, write_concern=DURABLE)
    fields = {"by": {"$literal": by}, "what": {"$literal": what}, "until": _until()}
    free = {"$or": [{"work": {"$exists": False}}, {"$expr": {"$lt": ["$work.until", "$$NOW"]}}]}

    def take(wanted: Document) -> bool:
        return volumes.update_one({"_id": volume} | wanted, [{"$set": {"work": fields}}]).matched_count == 1

    def take_free() -> Document | None:
        took = take(free)
        found = volumes.find_one({"_id": volume})
        if found is not None and not took:
            work = found.get("work") or {}
            if work.get("by") == by:  # an answer was lost, and the driver asked again
                return found
            if not _is_over(str(work.get("by"))) or not take({"work.by": work.get("by")}):  # LE2
                raise VolumeTaken(_sentence(volume, work))
        return found

    return door.run_sync(take_free)


def _now() -> float:
    """Goes on while the machine sleeps, as the server's clock does."""
    return clock_gettime(CLOCK_BOOTTIME)


def _until() -> Document:
    return {"$add": ["$$NOW", int(LEASE_SECONDS * 1000)]}


def _myself() -> str:
    """Who: for people, and for a tool on this machine that wants to know whether the process lives."""
    me = identity()
    return f"process {me['pid']} on host {socket.gethostname()} {int(me['start'])}.{_here()}.{secrets.token_hex(4)}"


def _here() -> str:
    """This boot and pid namespace, short."""
    return sha256(boot_id().encode()).hexdigest()[:12]


def _is_over(by: str) -> bool:
    """Did this process run here, and has it ended?"""
    words = by.split()
    try:
        start, here, _ = words[-1].split(".")
        return here == _here() and not process_lives(int(words[1]), int(start))
    except (ValueError, IndexError):
        return False


def holder_text(by: str) -> str:
    """`by` without what only programs read."""
    return by.rsplit(" ", 1)[0] if by.count(".") >= 2 else by


def _sentence(volume: int, work: Mapping[str, Any]) -> str:
    until = work.get("until")
    when = f"until {until:%H:%M:%S} UTC, unless it goes on" if until is not None else "now"
    return (
        f"volume {volume} is being worked on ({work.get('what')}) by {holder_text(str(work.get('by')))}, {when}: "
        "try again when it has finished"
    )


__all__ = ["LEASE_SECONDS", "Lease", "VolumeGone", "VolumeTaken", "holder_text", "volume_lease"]
