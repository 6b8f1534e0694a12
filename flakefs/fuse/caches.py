"""What the kernel remembers of this mount, and how it is made to forget what others changed.

Purpose
    The kernel answers from names, attributes and pages that it was given before. When other sessions write, the
    namespace says what has changed (KernelSide), and tasks here tell the kernel.

Invariants
    K1  The calls of KernelSide never wait. The kernel is told in threads: it makes us wait while a request about the
        same folder or page is open, and that request may be waiting for the trio thread.
    K2  Each change is told once, however often it came until then; what the kernel cannot know (it does not hold the
        inode) is not told. More than PENDING_MAX changes are told as "everything".
    K3  After drop_all() nothing that the kernel was given before is believed: neither by answers of ours (`quiet` is
        False until all is dropped, and then time-outs are 0 and pages are not kept) nor, afterwards, by the kernel.
    K4  So every name that can not be found again from the inodes in memory is written down when the kernel is given it:
        names directly below the root (a folder's entry takes along everything below it), and further hard links.
    K5  Pages outlive an open() only when the file is what it was at an open() here that made the kernel forget them,
        which it has done when it uses what was opened (`keeps`, `used`), or when nobody else writes and nothing is
        still to be dropped.
    K6  In shared mode the kernel knows no older size of a file than open() found. Dropping attributes alone waits for
        no request, so an open() may wait for it.
    K7  An open(), truncate() or link() by a name that has gone elsewhere, and that the kernel is still to forget or
        forgot a moment ago (the request may be older), is refused once, with NotMeant: the kernel looks the name up
        again, and takes what it leads to now. That holds for every name that the kernel was given while shared (the
        last TOLD_MAX), also when everything is dropped, and not for files with further hard links: each of their names
        may be meant.
    K8  A folder that the kernel has and that another session moved is looked up by its new name when the old one is
        dropped (fuse.moved).
    K9  An inode that the kernel did not have when it was to forget its attributes is dropped once more: the answer that
        gives it to the kernel, with older ones, may have been on its way.

Concurrency
    Trio task only, but for the functions that call the kernel. The order is right without a lock: an answer that was
    on its way when a name is dropped is in the kernel first, because dropping waits for the requests of its folder;
    attributes that were on their way are refused by the kernel by their age, but for those of K9 and those in answers
    to changes (fuse.answers).

Not here
    What changed (namespace.coherence).
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import pyfuse3
import trio
from cachetools import LRUCache

from flakefs.fuse.kernel import is_renaming
from flakefs.fuse.moved import Moved
from flakefs.fuse.options import FuseOptions
from flakefs.fuse.repeats import Repeats
from flakefs.fuse.told import Leaving, Place, Told
from flakefs.namespace import Inode, Namespace

log = logging.getLogger(__name__)

ROOT: int = pyfuse3.ROOT_INODE
PENDING_MAX = 50_000
BATCH = 1_000
WRITTEN_DOWN_MAX = 100_000
SEEN_MAX = 20_000
NORMAL = (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EBUSY)
"""The kernel does not know it, or has something mounted on it."""
END_SECONDS = 2.0
MISSED_SECONDS = 0.7
"""The answer is with the kernel by then."""
GONE = (errno.ENOTCONN, errno.EBADF, errno.ENODEV, errno.EINVAL)
"""The mount has ended."""

_unlimited = trio.CapacityLimiter(1_000_000)

T = TypeVar("T")
State = tuple[int, int, int]
"""(version, mtime, size) of a file"""


class KernelCaches:
    """One for each mount; see the module."""

    def __init__(self, ns: Namespace, options: FuseOptions, mountpoint: str) -> None:
        # Dependencies
        self._ns = ns
        # Constant after construction
        self._held: Mapping[int, int] = ns.held
        self._known: Callable[[int], Inode | None] = ns.known
        self._mountpoint = mountpoint
        self._read_only = ns.read_only
        # Mutable; changed between checkpoints only
        self._inodes: dict[int, bool] = {}  # to be dropped: with content?
        self._names: dict[Place, None] = {}
        self._all = False  # everything is to be dropped
        self._asked = 0  # how often that was asked for
        self._at_work: deque[None] = deque()  # one for each thread that calls the kernel; taken off by the thread
        self._naming = False  # a thread works for _run_names
        self._ended = False  # the threads are to come back
        self._written_down: dict[Place, None] = {}  # K4, in the order in which they were given
        self._seen: LRUCache[int, State] = LRUCache(SEEN_MAX)  # K5
        self._opening: dict[int, tuple[int, State]] = {}  # by handle; the kernel may still have older pages
        self.told = Told()  # in shared mode
        self._leaving = Leaving()  # K7
        self.repeats = Repeats()  # in shared mode
        self._missed: deque[int] = deque()  # inodes that it did not have when it was to forget their attributes
        self._moved = Moved(ns, mountpoint, self._not_found)  # K8
        self._wake_inodes = trio.Event()
        self._wake_names = trio.Event()
        self.dropped_inodes = self.dropped_names = self.dropped_all = 0

    # -- KernelSide --

    def drop_inode(self, ino: int, *, content: bool) -> None:
        if content:
            self._seen.pop(ino, None)
        if ino in self._held or ino == ROOT:
            self._inodes[ino] = content or self._inodes.get(ino, False)
            self._wake_inodes.set()
            if len(self._inodes) > PENDING_MAX:
                self.drop_all()

    def drop_entry(self, parent: int, name: bytes) -> None:
        if parent in self._held or parent == ROOT:
            self._written_down.pop((parent, name), None)
            ino = self.told.forget((parent, name))
            if ino:
                self._leaving.add((parent, name), ino)
            self._names[parent, name] = None
            self._wake_names.set()
            if len(self._names) > PENDING_MAX:
                self.drop_all()
        else:
            self.told.forgotten((parent, name))

    def named(self, ino: int, parent: int, name: bytes) -> None:
        self._moved.add(ino, (parent, name))  # its old name wakes those who drop

    def drop_all(self) -> None:
        self._all = True
        self._asked += 1
        self._seen.clear()
        for place, ino in self.told.clear():
            self._leaving.add(place, ino)
            self._names[place] = None  # a name in a folder that is in use does not go with the folder's
        self._wake_names.set()

    # -- for the handlers --

    @property
    def quiet(self) -> bool:
        """May the kernel keep what it is given for long?"""
        return not self._all and self._ns.trusted

    def given(self, parent: int, name: bytes, inode: Inode | None) -> None:
        """The kernel is given this name, None: that there is no such name (K4)."""
        if self._ns.shared:
            if self.told.given((parent, name), inode):
                self.drop_entry(parent, name)
        elif not self.told.empty:  # what is changed while alone is not noted
            self.told.clear()
        if parent == ROOT or (inode is not None and (inode.parent != parent or inode.name != name)):
            written_down = self._written_down
            written_down[parent, name] = None
            if len(written_down) > WRITTEN_DOWN_MAX:
                self.drop_entry(*next(iter(written_down)))

    def renamed(self, old: Place, new: Place, ino: int, other: int, *, agreed: bool) -> None:
        """A rename is done, of what the kernel takes the old name for if *agreed*. *other*: what came there, or 0."""
        if agreed:
            self.told.moved(old, new, ino, other)
            return
        self.told.unknown(old)
        for place in (old, new) if other else (new,):
            self.drop_entry(*place)
            self.told.doubted(place)
        for each in (ino, other):
            self.drop_inode(each, content=False)  # the kernel has changed the time of something else

    def keeps(self, ino: int, handle: int) -> bool:
        """At an open(): are the pages that the kernel may have of the file right (K5)?"""
        if not self._ns.trusted:
            return False
        if not self._ns.shared and not self._read_only:
            return not (self._all or self._inodes or self._at_work)
        inode = self._known(ino)
        if inode is None:
            return False
        now = (inode.version, inode.mtime, inode.size)
        if self._seen.get(ino) == now:
            return ino not in self._inodes
        self._opening[handle] = ino, now
        return False

    def used(self, handle: int) -> None:
        """The kernel works with what was opened: what open() answered is done (K5)."""
        opening = self._opening.pop(handle, None)
        if opening is not None:
            ino, state = opening
            self._seen[ino] = state

    async def opened(self, ino: int, handle: int) -> bool:
        """keeps(), before an open() is answered. When the file is not what it was, the kernel has forgotten its size on
        return, too: a read would be cut at the old one for as long as the news is under way (K6)."""
        keeps = self.keeps(ino, handle)
        if not keeps and self._ns.shared:
            await self._tell(_drop_inode, [(ino, False)])
        return keeps

    def has_older_name(self, place: Place, inode: Inode) -> bool:
        """Does the kernel still take a name for this file that is not its own any more (TO2)?"""
        if inode.nlink > 1 or inode.entries is not None:  # a folder's entry is moved by the kernel
            return False
        other = self.told.other_name(place, inode)
        if other is not None:
            self.drop_entry(*other)
        return self._leaving.holds(inode.ino, place)

    def stands_in(self, place: Place, inode: Inode, thread: int) -> bool:
        """SI1: is this asked by a rename, of an inode that the kernel may take another name for? It is given this name,
        too, then, in the guise of another.
        """
        linked = inode.nlink > 1 and inode.entries is None
        other = self.told.other_name(place, inode)
        if not (linked or other is not None or self._leaving.holds(inode.ino, place)):
            return False
        if not thread or not is_renaming(thread):
            return False
        if other is not None and not linked:
            self.drop_entry(*other)
        self.given(*place, inode)
        return True

    @property
    def forgetting(self) -> bool:
        """May any name mislead?"""
        return bool(self._leaving.names)

    def misled(self, inode: Inode) -> bool:
        """K7: may the kernel still take a name for this inode that it does not have any more?"""
        if inode.nlink > 1:
            return False
        place = (inode.parent, inode.name)
        return self._leaving.misleads(inode.ino, place) or self.told.other_name(place, inode) is not None

    # -- tasks --

    async def run(self) -> None:
        """Tell the kernel, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_inodes)
            nursery.start_soon(self._run_names)
            nursery.start_soon(self._run_missed)
            nursery.start_soon(self._moved.run)

    async def _run_inodes(self) -> None:
        while True:
            await self._wake_inodes.wait()
            self._wake_inodes = trio.Event()
            while self._inodes:
                if self._names and not (self._naming or self._all or any(self._inodes.values())):
                    break  # they go along with the names: one thread less to wake
                await self._tell(_drop_inode, self._take_inodes())

    async def _run_missed(self) -> None:
        """Once more, a moment later (K9)."""
        while True:
            await trio.sleep(MISSED_SECONDS)
            missed = {self._missed.popleft() for _ in range(len(self._missed))}
            await trio.sleep(MISSED_SECONDS)
            await self._tell(_drop_attributes, [ino for ino in missed if ino in self._held])

    def _take_inodes(self) -> list[tuple[int, bool]]:
        batch, self._inodes = self._inodes, {}
        self.dropped_inodes += len(batch)
        return list(batch.items())

    async def _run_names(self) -> None:
        while True:
            await self._wake_names.wait()
            self._wake_names = trio.Event()
            while self._all or self._names:
                if self._all:
                    await self._drop_everything()
                    continue
                batch, self._names = self._names, {}
                moved = self._moved.take()
                self.dropped_names += len(batch)
                attributes = [] if any(self._inodes.values()) else self._take_inodes()  # those wait for nothing (K6)
                items: list[tuple[int, bool] | Place] = [*attributes, *batch]
                self._naming = True
                await self._tell(_drop, items)
                self._naming = False
                self._moved.forgotten(moved)
                self._forgotten(batch)

    def _forgotten(self, places: Iterable[Place]) -> None:
        """The kernel has forgotten these names; those that are to be dropped again it may have been given meanwhile."""
        if self._leaving.names:
            self._leaving.dropped(self._names, places)
        if not self.told.empty:
            for place in places:
                if place not in self._names:
                    self.told.forgotten(place)

    async def _drop_everything(self) -> None:
        """K3."""
        asked = -1
        held: list[int] = []
        moved: dict[int, Place] = {}
        dropped: list[Place] = []
        while asked != self._asked:
            asked = self._asked
            self.dropped_all += 1
            held = list(self._held)
            names = [*self._written_down, *self._names]
            self._written_down, self._names, self._inodes = {}, {}, {}
            moved |= self._moved.take()
            await self._tell(_drop_name, names)
            dropped += names
            for at in range(0, len(held), BATCH):
                batch = [(ino, self._known(ino)) for ino in held[at : at + BATCH] if ino in self._held]
                await self._tell(_drop_name, [(i.parent, i.name) for _, i in batch if i is not None and i.parent > 0])
                await self._tell(_drop_inode, [(ino, inode is None or inode.map is not None) for ino, inode in batch])
            await self._tell(_drop_inode, [(ROOT, False)])
        self._all = False
        self._moved.forgotten(moved)
        self._forgotten(dropped)
        self._leaving.dropped(self._names)
        self._naming = True
        await self._moved.all_again(held)
        self._naming = False

    async def _not_found(self, paths: list[bytes]) -> list[bytes]:
        """Look them up; those that are not there, or that the kernel could not take to their place now."""
        missed: list[bytes] = []

        def look(path: bytes) -> None:
            try:
                os.lstat(path)
            except OSError:
                missed.append(path)

        await self._tell(look, paths)
        return missed

    async def _tell(self, call: Callable[[T], None], items: list[T]) -> None:
        """Run *call* for each of *items* in a thread, which is left behind when the mount ends."""
        if items:
            self._at_work.append(None)
            await trio.to_thread.run_sync(self._in_thread, call, items, abandon_on_cancel=True, limiter=_unlimited)

    def _in_thread(self, call: Callable[[T], None], items: list[T]) -> None:
        try:
            for item in items:
                if self._ended:
                    return
                try:
                    call(item)
                except OSError as error:
                    if error.errno in GONE:
                        return
                    if isinstance(item, tuple) and isinstance(item[1], bool):
                        self._missed.append(item[0])
                    if error.errno not in NORMAL:
                        log.warning("the kernel does not forget %r, which another session changed: %s", item, error)
        finally:
            self._at_work.pop()

    async def end(self) -> None:
        """After run() was cancelled: return when no thread calls the kernel any more, or after END_SECONDS."""
        self._ended = True
        with trio.move_on_after(END_SECONDS):
            while self._at_work:  # noqa: ASYNC110  # threads take themselves off
                await trio.sleep(0.005)


def _drop(item: tuple[int, bool] | Place) -> None:
    number, other = item
    if isinstance(other, bytes):
        _drop_name((number, other))
    else:
        _drop_inode((number, other))


def _drop_inode(item: tuple[int, bool]) -> None:
    ino, content = item
    pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=not content)


def _drop_attributes(ino: int) -> None:
    pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=True)


def _drop_name(item: Place) -> None:
    parent, name = item
    pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name))
