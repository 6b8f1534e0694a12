"""Taking back what a commit could not store because another session was first.

Purpose
    In shared mode an operation is answered only when it is committed. So when a group meets a conflict, nothing that
    is not committed was answered, except content: what was written is kept and laid over what others stored.

Invariants
    RB1  Afterwards memory has nothing that is not committed but content that was written and answered.
    RB5  Nor has the kernel: a program may have asked for attributes that were taken back, or for old ones while the
         inode was read again.
    RB2  Each range that was written and answered reads as it was written, whatever others stored meanwhile, until a
         later write; the file is at least as long as its end.
    RB4  What a dead session shows was stored, by whomever, a moment ago.
    RB3  References are counted by comparing with the extents that were read again, so they stay exact.

Concurrency
    roll_back() never waits. reload() waits for what it reads and takes it over with no await in between.

Not here
    Doing operations again (namespace.shared).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bson.int64 import Int64
from pymongo.database import Database

from flakefs.format.documents import INODES, Document, InodeRecord, read_inode
from flakefs.format.extents import overlay, punch, slices
from flakefs.namespace.cache import STALE, Cache
from flakefs.namespace.group import Group, join_pending
from flakefs.namespace.inode import Inode, stored_map
from flakefs.namespace.maps import FileMap
from flakefs.namespace.segments import map_of, read_segments
from flakefs.values import SEGMENT_BYTES, Extent

NEVER = -1
"""`version` of an inode that was taken back: no document has it."""
RANGES_FEW = 16
Segments = dict[int, tuple[list[Extent], int]]


def roll_back(cache: Cache, group: Group) -> list[Inode]:
    """Take back *group*, which was not stored, and everything since; the inodes that have to be read again (RB1)."""
    cache.unsettled = group.unsettled | cache.unsettled
    inodes = {**cache.flying, **cache.dirty}
    links = [*cache.flying_links.values(), *cache.dirty_links.values()]
    folders = {*cache.folders, *cache.flying_folders}
    cache.flying, cache.dirty = {}, {}
    cache.flying_links, cache.dirty_links = {}, {}
    cache.folders, cache.flying_folders = {}, {}
    cache.exclusive = False
    folders.update(change.was[0] for change in group.inodes if change.was is not None)
    folders.update(taken.was[0] for taken in group.links if taken.was is not None)
    lost = []
    for inode in inodes.values():
        folders.add(inode.parent)
        if inode.was is not None:
            folders.add(inode.was[0])
        if _take_back(cache, inode):
            lost.append(inode)
    for change in group.inodes:
        if change.orphan > 0:
            change.inode.orphaned = False
    for link in links:
        folders.add(link.parent)
        if link.was is not None:
            folders.add(link.was[0])
        link.gone, link.dirty = True, False
    for ino in folders:
        folder = cache.known.get(ino)
        if folder is not None and folder.entries is not None and not folder.gone:
            folder.forget_entries()
            folder.expires = STALE
            if folder not in lost:
                lost.append(folder)
    cache.touched([inode.ino for inode in inodes.values()])
    return lost


def _take_back(cache: Cache, inode: Inode) -> bool:
    """False: it was never stored, and is no more."""
    never_stored = inode.version == 0
    inode.dirty = inode.flying = inode.fresh = inode.gone = False
    inode.was = None
    inode.asked = 0
    cache.nameless.pop(inode.ino, None)
    if never_stored:
        inode.nlink = 0
        cache.forget(inode)
        return False
    inode.version = NEVER
    inode.expires = STALE
    cache.known[inode.ino] = inode
    join_pending(inode)
    if inode.pending and inode.map is not None:
        cache.mark(inode)  # held fast, and given to who asks as it is, until its content lies on what is stored
    return True


def forsake(cache: Cache) -> bool:
    """The session was declared dead: nothing that it has not stored will ever be, and what it knows is believed for a
    moment only. Was there something that is not stored?
    """
    lost = bool(cache.dirty or cache.flying or cache.dirty_links or cache.flying_links or cache.unsettled)
    for inode in (*cache.dirty.values(), *cache.flying.values()):
        inode.pending = inode.pending_flying = None
    cache.lazy = {}
    cache.times.forget()
    roll_back(cache, Group([], {}))
    cache.doubt_for_ever()
    return lost


class Reload:
    """Reads again what was taken back."""

    def __init__(
        self,
        cache: Cache,
        bury: Callable[[Inode], None],
        wrote: Callable[[Inode], None],
        drop: Callable[[int], None],
    ) -> None:
        self._cache = cache
        self._bury = bury
        self._drop = drop
        """The kernel is to forget the attributes of this inode."""
        self._wrote = wrote
        """Told of each file whose written content was kept: rights that a write takes are taken again."""

    async def reload(self, lost: list[Inode]) -> None:
        cache = self._cache
        inos = [Int64(inode.ino) for inode in lost]
        for ino in inos:
            self._drop(ino)  # RB5
        files = {inode.ino: _segments_of(inode) for inode in lost if inode.pending}
        while True:
            with cache.loading() as touched:
                records, segments = await cache.read(lambda db: _read(db, inos, files), wait=False)
            if not touched.isdisjoint(inos):  # there was news of what was read
                continue
            more = False
            for inode in lost:
                if not (inode.pending and inode.dirty):
                    continue
                record = records.get(inode.ino)
                if record is None:
                    self._lost(inode)
                elif _segments_of(inode) <= files.get(inode.ino, set()):
                    rebase(inode, record, segments.get(inode.ino, {}))
                    self._wrote(inode)
                    if not inode.nlink:
                        cache.lost_name(inode)
                else:  # written to while it was read
                    files[inode.ino] = _segments_of(inode)
                    more = True
            if not more:
                break
        self._take_over(lost, records)
        for ino in inos:
            self._drop(ino)  # RB5

    def _take_over(self, lost: Iterable[Inode], records: dict[int, InodeRecord]) -> None:
        cache = self._cache
        for inode in lost:
            if inode.dirty or inode.gone:
                continue
            record = records.get(inode.ino)
            if record is None:
                cache.forget(inode)
            elif cache.adopt(record, set()) is inode and not inode.nlink and inode.ino not in cache.holds:
                self._bury(inode)

    def _lost(self, inode: Inode) -> None:
        """The file is gone, so is what was written to it."""
        cache = self._cache
        cache.dirty.pop(inode.ino, None)
        inode.dirty = False
        inode.pending = None
        inode.nlink = 0
        cache.forget(inode)


def _segments_of(inode: Inode) -> set[int]:
    """Segments that its pending ranges touch."""
    return {
        number
        for start, stop in inode.pending or ()
        for number in range(start // SEGMENT_BYTES, -(-stop // SEGMENT_BYTES))
    }


def _read(
    db: Database[Document], inos: list[Int64], files: dict[int, set[int]]
) -> tuple[dict[int, InodeRecord], dict[int, Segments]]:
    """Segments first: one that is older than its inode meets its guard."""
    segments: dict[int, Segments] = {}
    for ino, numbers in files.items():
        later = sorted(number for number in numbers if number)
        found = {}
        for number in later:
            for _, extents, version in read_segments(db, ino, number, number + 1):
                found[number] = (extents, version)
        segments[ino] = {number: found.get(number, ([], 0)) for number in later}
    records = [read_inode(document) for document in db[INODES].find({"_id": {"$in": inos}})]
    return {record.ino: record for record in records}, segments


def rebase(inode: Inode, record: InodeRecord, segments: Segments) -> None:
    """Lay the pending ranges over what is stored now (RB2)."""
    old = map_of(inode)
    new = stored_map(record)
    for number, (extents, version) in segments.items():
        new.put(number, extents, version)
    mtime, ctime = inode.mtime, inode.ctime
    pending = inode.pending or []
    for start, stop in pending:
        for number in range(start // SEGMENT_BYTES, -(-stop // SEGMENT_BYTES)):
            first = max(start, number * SEGMENT_BYTES)
            _lay(old, new, number, first, min(stop, (number + 1) * SEGMENT_BYTES) - first)
    inode.version = NEVER
    inode.refresh(record)
    inode.map = new
    inode.size = max(inode.size, *(stop for _, stop in pending))
    inode.mtime, inode.ctime = max(inode.mtime, mtime), max(inode.ctime, ctime)
    inode.expires = 0.0


def _lay(old: FileMap, new: FileMap, number: int, start: int, length: int) -> None:
    extents = new.segment(number)
    for offset, size, source, begin in slices(old.segment(number), start, length):
        if source is None:
            extents = punch(extents, offset, offset + size)
        else:
            extents = overlay(extents, Extent(offset, size, source, begin))
    new.replace(number, extents)
