"""The inodes in memory, and which of them must stay there.

Purpose
    One table for everything the namespace knows: clean inodes in an LRU, dirty ones and those of the running commit
    held fast, and the rule by which what a query brings is merged with what is known here.

Invariants
    C1  `known` has every Inode object that exists, so there is one per ino while anybody holds it.
    C2  What is dirty, flying, nameless or lazy is held strongly; so what is uncommitted is always found in `known`.
    C3  What is in memory wins over what a query brings. A document that a commit touched while the query ran, and
        that is no longer in memory, is not believed: it is read again.
    C4  An inode of which only the access time changed by reading is `lazy`: it becomes dirty with its next other
        change, when there are LAZY_MAX, after LAZY_SECONDS, or at the end.
    C5  In shared mode what others changed is *stale* (`expires` < 0): nobody is given it before it was read again.
        What is dirty, or in a commit that runs, is never replaced: it meets its guard.
    C6  A question waits for a metadata server that is away (mongo.patience), for error_timeout at most; at the end of
        a session nobody waits.

Concurrency
    Belongs to the trio thread. Methods that are not async never wait; after each await the caller looks again.

Not here
    Names (namespace.entries), commits (namespace.journal).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TypeVar
from weakref import WeakValueDictionary

import trio
from bson.int64 import Int64
from cachetools import LRUCache
from pymongo.database import Database

from flakefs.errors import FlakeError, ReadOnly, Stale
from flakefs.format.documents import INODES, Document, InodeRecord, read_inode
from flakefs.mongo.door import Door
from flakefs.mongo.patience import ask
from flakefs.namespace.departed import Departed
from flakefs.namespace.inode import Inode, Link, from_record
from flakefs.namespace.options import LISTING_MAX, NamespaceOptions
from flakefs.namespace.times import FolderChange, Raise, Times, apply
from flakefs.values import Block

T = TypeVar("T")

TRUST_SECONDS = 1.0
"""How long a session that only reads believes what it has read."""
TOMBSTONES_MAX = 10_000
WAKE_SECONDS = 0.01
LAZY_SECONDS = 30.0
LAZY_MAX = 10_000
DOUBT_SECONDS = 0.05
"""How long a session that cannot hear of others' changes believes what it has read."""
STALE = -1.0
"""`expires` of an inode that has to be read again."""

Place = tuple[int, bytes]
"""(parent, name)"""


class Cache:
    def __init__(self, door: Door, database: str, options: NamespaceOptions, *, read_only: bool) -> None:
        # Constant after construction
        self.door = door
        self.database: Database[Document] = door.client[database]
        self.options = options
        self.read_only = read_only
        self._group_documents = options.group_documents
        self._patience = options.error_timeout_seconds
        # Set once by the journal
        self.wake: Callable[[], None] = lambda: None
        # Mutable, between two awaits only
        self.known: WeakValueDictionary[int, Inode] = WeakValueDictionary()
        size = options.cached_inodes
        self.clean: LRUCache[int, Inode] = LRUCache(size, getsizeof=lambda inode: min(inode.weight(), size))
        self.dirty: dict[int, Inode] = {}
        self.dirty_links: dict[int, Link] = {}
        self.flying: dict[int, Inode] = {}
        self.flying_links: dict[int, Link] = {}
        self.nameless: dict[int, Inode] = {}
        self.departed = Departed()
        self.lazy: dict[int, Inode] = {}
        self._lazy_since = 0.0
        self.holds: dict[int, int] = {}
        self.unsettled: dict[Block, None] = {}
        self.failure: FlakeError | None = None
        self.closed = read_only  # changes are refused: read_only, or failure is set
        self.cutting = False
        self.ending = False  # C6
        self._loads: dict[int, set[object]] = {}
        # Shared mode
        self.when_shared: Callable[[bool], None] = lambda shared: None  # set once
        self.shared = False  # others are there: what is answered is committed
        self.expiring = read_only  # there may be stale inodes
        self.doubting = read_only  # what is read is believed for a moment only
        self.dead = False  # the session was declared so
        self.folders: dict[int, FolderChange] = {}
        self.flying_folders: dict[int, FolderChange] = {}
        self.absolute: set[int] = set()  # folders that were dirty when it began: their count is written as it is
        self.exclusive = False  # the next group excludes all commits of others
        self.changing: dict[Place, int] = {}  # names that operations changed which are not answered yet
        self.times = Times()

    # -- looking, without waiting --

    def peek(self, ino: int) -> Inode | None:
        """The inode, if it is in memory (and, for a session that only reads, fresh)."""
        inode = self.dirty.get(ino)
        if inode is not None:
            return inode
        inode = self.clean.get(ino)
        if inode is None:
            inode = self.known.get(ino)
            if inode is None:
                return None
            self.keep(inode)
        if self.expiring and self.stale(inode):
            return None
        return inode

    def stale(self, inode: Inode) -> bool:
        """Has it to be read again (C4)?"""
        if inode.expires >= (monotonic() if self.doubting else 0.0):
            return False
        return not (inode.dirty or inode.flying or self.busy(inode))

    def busy(self, folder: Inode) -> bool:
        """Are names in it changed and not committed, outside of its own document?"""
        return folder.ino in self.folders or folder.ino in self.flying_folders

    def current(self, ino: int) -> Inode | None:
        """The inode, if it is in memory and fresh, whether it was used lately or not."""
        inode = self.known.get(ino)
        return None if inode is None or (self.expiring and self.stale(inode)) else inode

    # -- what must be stored --

    def check_writable(self) -> None:
        """Raise ReadOnly, with the reason, when changes are refused."""
        if self.closed and not self.cutting:
            if self.failure is not None:
                raise ReadOnly(f"nothing can be changed at the moment: {self.failure}") from self.failure
            raise ReadOnly("the file system is opened for reading only: mount it read-write to change it")

    def changed(self, inode: Inode) -> None:
        """*inode* differs from what is stored: part of the next commit."""
        if self.closed:
            self.check_writable()
        if not inode.dirty:
            self.mark(inode)

    def mark(self, inode: Inode) -> None:
        """The same without asking whether changes are allowed."""
        if not (inode.dirty or inode.ino in self.departed):  # DE2
            inode.dirty = True
            dirty = self.dirty
            dirty[inode.ino] = inode
            if self.lazy:
                self.lazy.pop(inode.ino, None)
            if len(dirty) >= self._group_documents:
                self.wake()

    def accessed(self, inode: Inode, now: int) -> None:
        """Somebody read it (C4)."""
        if self.shared:
            raised = Raise(atime=now, aset=inode.aset)
            apply(inode, raised)
            self.times.note(inode, raised)
            return
        inode.atime, inode.aset = now, 0
        lazy = self.lazy
        if not inode.dirty and inode.ino not in lazy:
            if not lazy:
                self._lazy_since = monotonic()
            lazy[inode.ino] = inode
            if len(lazy) >= LAZY_MAX:
                self.mark_lazy()

    def mark_lazy(self, *, older: float = 0.0) -> None:
        """What is lazy is dirty now, when that began *older* seconds ago."""
        if self.lazy and monotonic() - self._lazy_since >= older:
            lazy, self.lazy = self.lazy, {}
            for inode in lazy.values():
                self.mark(inode)

    def mark_link(self, link: Link) -> None:
        if not link.dirty:
            link.dirty = True
            self.dirty_links[link.id] = link
            if len(self.dirty_links) >= self._group_documents:
                self.wake()

    def names_changed(self, folder: Inode, now: int) -> None:
        """Names in *folder* changed (0: only the document behind one): it stays in memory until that is stored."""
        if self.shared:
            self._folder(folder).touch(now)
            return
        if now:
            folder.mtime = folder.ctime = now
            folder.mset = 0
        self.mark(folder)

    def count_folder(self, parent: Inode, count: int) -> None:
        """*parent* has so many sub-folders more; names_changed() comes next."""
        parent.nlink += count
        if self.shared:
            self._folder(parent).nlink += count

    def _folder(self, inode: Inode) -> FolderChange:
        change = self.folders.get(inode.ino)
        if change is None:
            change = self.folders[inode.ino] = FolderChange(inode)
        return change

    def share(self) -> None:
        """Shared mode begins. Nobody else writes until everything dirty is committed."""
        for inode in self.lazy.values():
            self.times.note(inode, Raise(atime=inode.atime))
        self.lazy = {}
        self.absolute |= {i.ino for i in (*self.dirty.values(), *self.flying.values()) if i.entries is not None}
        self.shared = self.times.shared = self.expiring = True
        self.when_shared(True)

    def doubt(self, doubting: bool) -> None:
        """Is nothing heard of what others change?"""
        self.doubting = doubting or self.dead

    def end_sharing(self) -> None:
        """Nobody else is there, and everything is committed."""
        self.shared = self.times.shared = False
        self.doubt(False)
        self.when_shared(False)

    def doubt_for_ever(self) -> None:
        """Nobody tells of changes any more: what is clean is forgotten, and what is read again soon."""
        self.expiring = self.doubting = self.dead = True
        for inode in list(self.known.values()):
            inode.expires = STALE
            if inode.entries is not None and not (inode.dirty or inode.flying or self.busy(inode)):
                inode.forget_entries()
        self.touched(list(self.known))

    def add(self, inode: Inode) -> None:
        """An inode that was just made."""
        self.known[inode.ino] = inode
        self.mark(inode)

    # -- what stays in memory --

    def keep(self, inode: Inode) -> None:
        """Make it the most recently used one, with its present weight."""
        self.clean[inode.ino] = inode

    def settled(self, inode: Inode) -> None:
        """A commit stored it and nothing changed since: it may leave memory like any other."""
        if inode.map is not None:
            inode.map.trim()
        entries = inode.entries
        if entries and not self._loads:
            if len(entries) > max(LISTING_MAX, 2 * self.options.cached_inodes):
                inode.forget_entries()
                inode.large = True
            elif not inode.complete and len(entries) > TOMBSTONES_MAX:
                inode.entries = {name: entry for name, entry in entries.items() if entry is not None}
        if inode.nlink:
            self.keep(inode)

    def forget(self, inode: Inode) -> None:
        """Its document is gone."""
        self.nameless.pop(inode.ino, None)
        self.lazy.pop(inode.ino, None)
        if self.departed.takes(inode, inode.ino in self.holds):
            self._believe(inode)
            return
        inode.gone = True
        self.clean.pop(inode.ino, None)
        self.known.pop(inode.ino, None)

    def _believe(self, inode: Inode) -> None:
        """It is as the store says now."""
        seconds = TRUST_SECONDS if self.read_only else DOUBT_SECONDS
        inode.expires = monotonic() + seconds if self.doubting else 0.0

    # -- reading --

    @contextmanager
    def loading(self) -> Iterator[set[object]]:
        """Around a query and the use of its answer: the ids of documents that commits touched meanwhile (C3)."""
        touched: set[object] = set()
        self._loads[id(touched)] = touched
        try:
            yield touched
        finally:
            del self._loads[id(touched)]

    @property
    def loads(self) -> int:
        """Queries that run."""
        return len(self._loads)

    def touched(self, ids: Iterable[object]) -> None:
        """A commit stored these documents."""
        if self._loads:
            ids = list(ids)
            for load in self._loads.values():
                load.update(ids)

    async def read(self, query: Callable[[Database[Document]], T], *, wait: bool = True) -> T:
        """Run *query*, which is repeatable, in a worker thread. *wait*: for a server that is away, too (C6)."""
        if not wait:
            return await self.door.run(lambda: query(self.database))
        return await ask(self.door, lambda: query(self.database), self.patience)

    def patience(self) -> float:
        """Seconds that whoever needs an answer waits for one."""
        return 0.0 if self.ending else self._patience

    def adopt(self, record: InodeRecord, touched: set[object]) -> Inode | None:
        """The inode that a query brought; None when the answer may be older than a commit (C3)."""
        inode = self.known.get(record.ino)
        if inode is None:
            if record.ino in touched:
                return None
            inode = from_record(record)
            self.times.lay_over(inode)
            self.known[record.ino] = inode
        elif self.expiring and (self.stale(inode) or self._is_older(inode, record)):
            if record.ino in touched:
                return None
            inode.refresh(record, keep_entries=self.departed.pop(record.ino, None) is None and not self.doubting)
            self.times.lay_over(inode)
        else:
            if not inode.dirty:
                self.keep(inode)
            return inode
        if self.expiring and not (inode.nlink or self.read_only):
            self.lost_name(inode)
        self._believe(inode)
        self.keep(inode)
        return inode

    def _is_older(self, inode: Inode, record: InodeRecord) -> bool:
        return inode.version < record.version and self.is_stored(inode) and not self.busy(inode)

    def lost_name(self, inode: Inode) -> None:
        """Its document has no name, so an orphan document names it."""
        inode.orphaned = True
        self.nameless[inode.ino] = inode

    async def fetch(self, inos: Iterable[int]) -> tuple[dict[int, Inode], set[int]]:
        """Read inodes: (found, surely absent). One that a commit touches meanwhile may be in neither."""
        wanted = [Int64(ino) for ino in inos]
        with self.loading() as touched:
            records = await self.read(
                lambda db: [read_inode(document) for document in db[INODES].find({"_id": {"$in": wanted}})]
            )
            found = {}
            for record in records:
                inode = self.adopt(record, touched)
                if inode is not None:
                    found[record.ino] = inode
            absent = set(map(int, wanted)) - {record.ino for record in records} - touched
        for ino in list(absent):
            inode = self.known.get(ino)
            if inode is not None and (self.read_only or (self.expiring and self.is_stored(inode))):
                self.forget(inode)
                inode = self.departed.get(ino)
            if inode is not None:  # not stored yet, or departed
                found[ino] = inode
                absent.discard(ino)
        return found, absent

    @staticmethod
    def is_stored(inode: Inode) -> bool:
        """As far as this session knows, its document is there as it is in memory."""
        return inode.version != 0 and not (inode.dirty or inode.flying)

    async def get(self, ino: int) -> Inode:
        """The inode; Stale when there is none. Waits only when it is not in memory."""
        inode = self.peek(ino)
        while inode is None:
            found, absent = await self.fetch((ino,))
            if ino in absent:
                raise Stale(f"there is no inode {ino} (any more)")
            inode = found.get(ino)
        while inode.gone and inode.flying and self.shared and self.failure is None:  # it may be taken back
            self.wake()
            await trio.sleep(WAKE_SECONDS)
        if inode.gone:
            raise Stale(f"there is no inode {ino} any more")
        return inode
