"""Times that shared mode keeps out of guarded documents: of folders whose names change, and of what is read.

Purpose
    A change of a name raises the times of its folder, a read raises an atime. In shared mode a *raise* is written up to
    a second later and without a guard, so that two creates in one folder pass each other. A program may set the same
    times in the meantime (utimensat). Here is which of the two holds, in the store and in memory.

Invariants
    TM1  A time that was set gives way to raises that came after it, and to no other, whenever those are written and by
         whichever mount.
    TM2  Setting a time stores a mark with it (`mset`, `aset`), which goes with the raise that it gives way to. A raise
         came after the setting when its mount knew that mark, or else when its time is later than the mark. A mark is
         later than every raise its mount knew of. So clocks are compared only where neither mount had heard of the
         other, for as long as news takes.
    TM3  Raises without a mark only go up, in any order and however often they are written.
    TM4  What is read from the store is shown with what was committed lately, here or elsewhere, and may be written
         only later; and with nothing that was taken back.

Concurrency
    Belongs to the trio thread, but for write().

Not here
    When raises are written (namespace.shared), news of those of others (namespace.coherence).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import monotonic
from typing import NamedTuple

from bson.int64 import Int64
from pymongo import UpdateOne
from pymongo.database import Database

from flakefs.format.documents import INODES, Document
from flakefs.namespace.inode import ASKED_ATIME, ASKED_MTIME, Inode

LATELY_SECONDS = 60.0
"""A raise is kept for so long at least. It is written within a second, or noted again."""
LATELY_MAX = 10_000
"""Or until so many others have come."""


class Raise(NamedTuple):
    """Of one inode; ns, 0: none."""

    time: int = 0
    """mtime and ctime of a folder."""
    mset: int = 0
    """The mark of the mtime that was set and that this one takes the place of; 0: none was known."""
    atime: int = 0
    aset: int = 0
    """The same of the atime."""


class _Lately:
    """Raises of the last minute or two, by number. Asked for each inode that is read, so it counts no single times."""

    def __init__(self) -> None:
        self._young: dict[int, Raise] = {}
        self._old: dict[int, Raise] = {}
        self._turn = 0.0

    def get(self, ino: int) -> Raise | None:
        return self._young.get(ino) or self._old.get(ino)

    def put(self, ino: int, raised: Raise) -> None:
        now = monotonic()
        if now >= self._turn or len(self._young) >= LATELY_MAX:
            self._old, self._young = self._young, {}
            self._turn = now + LATELY_SECONDS
        self._young[ino] = raised


class Times:
    def __init__(self) -> None:
        # Mutable, between two awaits only
        self.shared = False  # set by the cache
        self.pending: dict[int, Raise] = {}
        """To be written."""
        self._flying: dict[int, Raise] = {}  # being written
        self._lately = _Lately()  # TM4

    def note(self, inode: Inode, raised: Raise) -> None:
        """This session's own raise, which is committed (or needs no commit): to be written."""
        if (raised.time or raised.atime) and inode.nlink:
            self.pending[inode.ino] = joined(self.pending.get(inode.ino), raised)
            self.heard(inode.ino, raised)

    def heard(self, ino: int, raised: Raise) -> None:
        """A raise that is committed; somebody else writes it."""
        if raised.time or raised.atime:
            self._lately.put(ino, joined(self._lately.get(ino), raised))

    def lay_over(self, inode: Inode) -> None:
        """TM4: *inode* is as it was just read."""
        raised = self._lately.get(inode.ino)
        if raised is not None:
            apply(inode, raised)

    def mark(self, inode: Inode, now: int, *, mtime: bool, atime: bool) -> None:
        """TM2: these times of *inode* are set by a program, right after this call. mtime of a file is no such time."""
        raised = self._lately.get(inode.ino) or Raise()
        if mtime and inode.entries is not None:
            inode.mset = max(now, inode.mset + 1, inode.ctime + 1, raised.time + 1)
            inode.asked |= ASKED_MTIME
        if atime:
            # Alone nobody raises it behind our back: then the document needs no mark.
            needed = self.shared or self.pending or self._flying
            inode.aset = max(now, inode.aset + 1, raised.atime + 1) if needed else 0
            inode.asked |= ASKED_ATIME
            if raised.atime:
                self._lately.put(inode.ino, raised._replace(atime=0, aset=0))

    def take(self) -> dict[int, Raise]:
        """What is to be written. done() or give_back() comes next."""
        self._flying, self.pending = self.pending, {}
        return self._flying

    def done(self) -> None:
        self._flying = {}

    def give_back(self) -> None:
        """It may or may not have been written."""
        flying, self._flying = self._flying, {}
        for ino, raised in flying.items():
            later = self.pending.get(ino)
            self.pending[ino] = joined(raised, later) if later is not None else raised
            self.heard(ino, self.pending[ino])

    def forget(self) -> None:
        """Nothing will be written any more."""
        self.pending = {}
        self._lately = _Lately()


def joined(before: Raise | None, later: Raise) -> Raise:
    """Both as one. A mark stays: whoever followed it once has done so."""
    if before is None:
        return later
    return Raise(
        max(before.time, later.time),
        later.mset or before.mset,
        max(before.atime, later.atime),
        later.aset or before.aset,
    )


def apply(inode: Inode, raised: Raise) -> None:
    """TM1 in memory; write() does the same in the store."""
    time, mset, atime, aset = raised
    if time and (not inode.mset or mset == inode.mset or time > inode.mset):
        inode.mtime = time if inode.mset else max(inode.mtime, time)
        inode.ctime = max(inode.ctime, time)
        inode.mset = 0
    if atime and (not inode.aset or aset == inode.aset or atime > inode.aset):
        inode.atime = atime if inode.aset else max(inode.atime, atime)
        inode.aset = 0


class FolderChange:
    """A folder whose names changed in shared mode, outside of its own document's guard."""

    __slots__ = ("alive", "inode", "nlink", "raised")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.nlink = 0
        """Sub-folders that came and went."""
        self.raised = Raise()
        """No time: only the document behind a name changed."""
        self.alive = True
        """At the cut."""

    def touch(self, now: int) -> None:
        """Names change (0: only the document behind one)."""
        raised = Raise(now, self.inode.mset if now else 0)
        apply(self.inode, raised)
        self.raised = joined(self.raised, raised)


def write(db: Database[Document], times: Mapping[int, Raise]) -> None:
    """TM1 in the store. Blocks; may be repeated."""
    updates = [update for ino, raised in times.items() for update in _updates(Int64(ino), raised)]
    db[INODES].bulk_write(updates, ordered=False)


def _updates(ino: Int64, raised: Raise) -> Iterator[UpdateOne]:
    """For each time one update for a document with a mark, and one for a document without: at most one of them changes
    something, whichever comes first.
    """
    if raised.time:
        time = Int64(raised.time)
        after = [{"mset": Int64(raised.mset)}, {"mset": {"$lt": time}}]
        yield UpdateOne(
            {"_id": ino, "$or": after}, {"$set": {"mtime": time}, "$max": {"ctime": time}, "$unset": {"mset": ""}}
        )
        yield UpdateOne({"_id": ino, "mset": {"$exists": False}}, {"$max": {"mtime": time, "ctime": time}})
    if raised.atime:
        time = Int64(raised.atime)
        after = [{"aset": Int64(raised.aset)}, {"aset": {"$lt": time}}]
        yield UpdateOne({"_id": ino, "$or": after}, {"$set": {"atime": time}, "$unset": {"aset": ""}})
        yield UpdateOne({"_id": ino, "aset": {"$exists": False}}, {"$max": {"atime": time}})
