"""A group: everything that changed up to one moment, taken to be stored as a whole.

Invariants
    G1  A cut takes the final state of everything dirty in one step with no await; what changes later belongs to the
        next.
    G2  uncut() leaves everything dirty that was, as if the cut had never happened.
    G3  What was made and is gone again within a group, and has no name and no user, is not in it.

Concurrency
    cut(), uncut() and finish() run in the trio thread. In between a worker thread reads the group.

Not here
    When a group is cut (namespace.journal), how it is written (namespace.commit).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

from flakefs.format.documents import IndexRecord, InodeRecord, LinkRecord
from flakefs.namespace.cache import Cache
from flakefs.namespace.inode import Inode, Link
from flakefs.namespace.maps import SegmentChange
from flakefs.namespace.options import ContentSide
from flakefs.namespace.times import FolderChange, joined
from flakefs.values import Block, ChunkRef


class Action(enum.Enum):
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


class InodeChange(NamedTuple):
    inode: Inode
    action: Action
    record: InodeRecord
    was: tuple[int, bytes] | None
    """Its stored (parent, name), when that changes."""
    segments: list[SegmentChange]
    orphan: int
    """1: an orphan document comes, 2: and this session itself uses the inode, -1: it goes."""
    asked: int
    """Which times programs have set: `Inode.asked`."""


class LinkChange(NamedTuple):
    link: Link
    action: Action
    record: LinkRecord
    was: tuple[int, bytes] | None


class Outcome(NamedTuple):
    """What became of the group's content."""

    kept: list[Block]
    dropped: list[Block]
    instead: dict[ChunkRef, ChunkRef]
    removed: list[IndexRecord]
    documents: int


class Group:
    def __init__(self, blocks: list[Block], unsettled: dict[Block, None]) -> None:
        self.blocks = blocks
        """To be made durable before the commit."""
        self.unsettled = unsettled | dict.fromkeys(blocks)
        """The content side waits to hear of these."""
        self.inodes: list[InodeChange] = []
        self.links: list[LinkChange] = []
        self.outcome: Outcome | None = None
        """Of the last attempt that reached the end of its transaction."""
        # Shared mode
        self.shared = False
        self.exclusive = False
        self.absolute: set[int] = set()
        """Folders whose number of sub-folders is written as it is here."""
        self.folders: list[FolderChange] = []
        """Folders that were stored before, whose names change."""

    @property
    def empty(self) -> bool:
        return not self.inodes and not self.links


def cut(cache: Cache, content: ContentSide) -> Group:
    """Take everything dirty (G1)."""
    cache.cutting = True
    try:
        blocks = content.seal()
    finally:
        cache.cutting = False
    group = Group(blocks, cache.unsettled)
    cache.unsettled = {}
    group.shared = cache.shared
    if cache.shared or cache.folders:
        _take_folders(cache, group)
    dirty, cache.dirty = cache.dirty, {}
    links, cache.dirty_links = cache.dirty_links, {}
    for inode in dirty.values():
        change = _take(cache, inode)
        if change is not None:
            group.inodes.append(change)
            cache.flying[inode.ino] = inode
    for link in links.values():
        link.dirty = False
        if link.gone and link.fresh:
            continue
        action = Action.DELETE if link.gone else Action.INSERT if link.fresh else Action.UPDATE
        group.links.append(LinkChange(link, action, link.record(), link.was))
        link.was = None
        link.fresh = False
        cache.flying_links[link.id] = link
    return group


def _take_folders(cache: Cache, group: Group) -> None:
    """What shared mode keeps beside the documents; of a new folder its document tells it."""
    group.shared = True
    group.exclusive, cache.exclusive = cache.exclusive, False
    cache.flying_folders, cache.folders = cache.folders, {}
    group.absolute = set(cache.absolute)
    for ino, change in cache.flying_folders.items():
        if ino in group.absolute:
            change.nlink = 0
        change.alive = change.inode.nlink > 0
    group.folders = [change for change in cache.flying_folders.values() if not change.inode.fresh]


def _take(cache: Cache, inode: Inode) -> InodeChange | None:
    """The change of one inode; None when nothing of it was or is to be stored (G3)."""
    inode.dirty = False
    file_map = inode.map
    orphan = 0
    action = Action.INSERT if inode.fresh else Action.UPDATE
    if not inode.nlink:
        held = inode.ino in cache.holds
        if inode.fresh and not held and (file_map is None or file_map.empty()):
            cache.forget(inode)
            return None
        others = cache.shared and inode.entries is None and not (inode.free or inode.fresh)
        if not (held or others) and (file_map is None or file_map.empty()):
            action = Action.DELETE
            orphan = -int(inode.orphaned)
            inode.gone = True
        elif not inode.orphaned:
            orphan = 1 + held
            inode.orphaned = True
    segments = file_map.cut() if file_map is not None else []
    change = InodeChange(inode, action, inode.record(), inode.was, segments, orphan, inode.asked)
    inode.was = None
    inode.asked = 0
    inode.fresh = False
    inode.flying = True
    if inode.pending:
        inode.pending_flying, inode.pending = inode.pending, None
    return change


def uncut(cache: Cache, group: Group) -> None:
    """Put everything back (G2); nothing of the group was written."""
    cache.unsettled = group.unsettled | cache.unsettled
    _give_back_folders(cache, group)
    for change in group.inodes:
        inode = change.inode
        inode.flying = False
        join_pending(inode)
        inode.fresh = change.action is Action.INSERT
        inode.was = None if inode.fresh else change.was or inode.was
        inode.asked |= change.asked
        if change.orphan > 0:
            inode.orphaned = False
        inode.gone = False
        if inode.map is not None and change.segments:
            inode.map.uncut(change.segments)
        cache.mark(inode)
    for taken in group.links:
        link = taken.link
        link.fresh = taken.action is Action.INSERT
        link.was = None if link.fresh else taken.was or link.was
        cache.mark_link(link)
    cache.flying = {}
    cache.flying_links = {}


def _give_back_folders(cache: Cache, group: Group) -> None:
    for ino, later in cache.folders.items():
        change = cache.flying_folders.setdefault(ino, later)
        if change is not later:
            change.nlink += later.nlink
            change.raised = joined(change.raised, later.raised)
    cache.folders, cache.flying_folders = cache.flying_folders, {}
    cache.exclusive = cache.exclusive or group.exclusive


def join_pending(inode: Inode) -> None:
    """The ranges of a commit that did not come about are pending again."""
    if inode.pending_flying:
        inode.pending = inode.pending_flying + (inode.pending or [])
        inode.pending_flying = None


def finish(cache: Cache, group: Group, instead: Mapping[ChunkRef, ChunkRef]) -> None:
    """The group is stored: what it holds is the last committed state now."""
    cache.flying = {}
    cache.flying_links = {}
    touched: list[object] = []
    folders, cache.flying_folders = cache.flying_folders, {}
    cache.absolute -= group.absolute
    for folder in folders.values():
        touched.append(folder.inode.ino)
        cache.times.note(folder.inode, folder.raised)
        if not folder.inode.dirty:
            cache.settled(folder.inode)
    for change in group.inodes:
        inode = change.inode
        inode.flying = False
        inode.pending_flying = None
        touched.append(inode.ino)
        touched += ((inode.ino, segment.number) for segment in change.segments if segment.number)
        if change.action is Action.DELETE:
            cache.forget(inode)
            continue
        inode.version = change.record.version + 1
        if inode.map is not None and change.segments:
            inode.map.committed(change.segments, instead)
    for taken in group.links:
        taken.link.version = taken.record.version + 1
    cache.touched(touched)
    if not (group.shared or cache.loads):
        _forget_freed(cache, group)
    for change in group.inodes:
        if not change.inode.dirty and not change.inode.gone:
            cache.settled(change.inode)


def _forget_freed(cache: Cache, group: Group) -> None:
    """Names that the database does not have any more either need not be remembered as absent. A large folder from which
    names are removed all the time is never settled, and would keep them all.
    """
    taken = {(c.record.parent, c.record.name) for c in group.inodes if c.action is not Action.DELETE}
    taken |= {(c.record.parent, c.record.name) for c in group.links if c.action is not Action.DELETE}
    for change in group.inodes:
        if change.was is not None and change.was not in taken:
            parent, name = change.was
            folder = cache.known.get(parent)
            if folder is not None and folder.entries and not folder.complete and folder.entries.get(name, 0) is None:
                del folder.entries[name]
