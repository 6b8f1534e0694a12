"""Changing names: make, link, unlink, rmdir.

Invariants
    H1  A change is checked and made with no await in between: it loads what it needs, looks again, and only then
        acts.
    H2  Whatever changes a folder's names marks the folder, so that it stays in memory until they are stored.
    H3  An inode with nlink 0 has no name; it lives while it is held, and its document goes with the last release.
    H4  In shared mode a name is changed by one operation at a time, from its look to its commit: of a name that was
        taken and freed within one group nothing would be stored, so no guard would test that it was free.

Concurrency
    Belongs to the trio thread.

Not here
    rename (namespace.renames), permissions (vfs).
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from bson.int64 import Int64

from flakefs.errors import (
    Damaged,
    Exists,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotMeant,
    NotPermitted,
    TooManyLinks,
)
from flakefs.format.documents import INODES, LinkRecord, read_link
from flakefs.format.names import checked
from flakefs.namespace.bindings import cookie_at, enter, forget_name, leave
from flakefs.namespace.cache import Cache, Place
from flakefs.namespace.entries import Entries
from flakefs.namespace.inode import UNKNOWN, Inode, Link, Unknown
from flakefs.namespace.maps import FileMap
from flakefs.namespace.numbers import Numbers
from flakefs.namespace.options import LINK_MAX

SMALL_SEGMENTS = 4
"""A file of at most so many stored segments goes in one commit; a larger one in steps."""

HEIRS = 8
"""Further links of a file that are looked at first; any one of them will do."""

Heir = tuple[Link, Inode]
"""A further link that becomes an inode's first name, and its folder."""


def _links(search: dict[str, object], most: int, db: Any) -> list[LinkRecord]:
    return [read_link(document) for document in db[INODES].find(search).limit(most)]


class Changes:
    def __init__(
        self,
        cache: Cache,
        entries: Entries,
        numbers: Numbers,
        *,
        room: Callable[[], Awaitable[None]],
        release_content: Callable[[Inode], None],
    ) -> None:
        self.cache = cache
        self.entries = entries
        self._numbers = numbers
        self._room = room
        self._release_content = release_content
        self.unused: Callable[[int], None] = lambda ino: None  # set once: shared mode, nobody here uses it any more
        self.settled: Callable[[tuple[Place, ...]], Awaitable[None]]  # set once: returns after the commit of a change
        self._dirty_max = cache.options.dirty_documents_max

    # -- new names --

    async def make(
        self,
        parent: Inode,
        name: bytes,
        *,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
        xattrs: dict[bytes, bytes] | None = None,
        now: int,
    ) -> Inode:
        """A new file of any type; Exists when the name is taken, NotFound when the folder was removed."""
        cache = self.cache
        checked(name)
        is_folder = stat.S_ISDIR(mode)
        while True:
            await self._new_name(parent, name)
            ino = self._numbers.take()
            if ino is not None:
                break
            await self._numbers.more()
        if is_folder and parent.nlink >= LINK_MAX:
            raise TooManyLinks(f"the folder {parent.name!r} has {LINK_MAX} sub-folders, more are not possible")
        inode = Inode(
            ino,
            parent.ino,
            name,
            mode,
            uid,
            gid,
            rdev,
            len(target),
            2 if is_folder else 1,
            now,
            now,
            now,
            now,
            xattrs or {},
            target,
            0,
        )
        if is_folder:
            inode.entries = {}
            inode.complete = True
            cache.count_folder(parent, 1)
        elif stat.S_ISREG(mode):
            inode.map = FileMap()
        enter(parent, name, ino)
        cache.names_changed(parent, now)
        cache.add(inode)
        return inode

    async def link(self, inode: Inode, parent: Inode, name: bytes, *, now: int) -> None:
        """A further name for a file."""
        checked(name)
        if inode.entries is not None:
            raise NotPermitted(f"{inode.name!r} is a folder: folders have one name")
        while True:
            await self._new_name(parent, name)
            if not inode.nlink:
                raise NotFound(f"inode {inode.ino} has no name any more: it cannot get a new one")
            if inode.nlink >= LINK_MAX:
                raise TooManyLinks(f"{inode.name!r} has {LINK_MAX} names, more are not possible")
            number = self._numbers.take()
            if number is not None:
                break
            await self._numbers.more()
        link = Link(-number, parent.ino, name, inode.ino, 0)
        enter(parent, name, link)
        self.cache.mark_link(link)
        inode.nlink += 1
        inode.ctime = now
        self.cache.mark(inode)
        self.cache.names_changed(parent, now)

    async def _new_name(self, parent: Inode, name: bytes) -> None:
        """On return, with no await since the last look: *name* is free and may be taken."""
        await self.begin()
        if await self._look(parent, name) is not None:
            raise Exists(f"there is a {name!r} already")
        self.check(parent)

    # -- names that go --

    async def unlink(self, parent: Inode, name: bytes, *, now: int) -> Inode:
        """Remove a name of something that is no folder; the inode it named."""
        await self.begin()
        heir: Heir | None = None
        while True:
            inode = await self.existing(parent, name)
            if inode.entries is not None:
                raise IsDirectory(f"{name!r} is a folder")
            if not self.needs_heir(parent, name, inode, heir):
                break
            heir = await self.find_heir(inode)
        self.check(parent)
        self.drop_name(parent, name, inode, heir, now)
        self.cache.names_changed(parent, now)
        return inode

    async def rmdir(
        self, parent: Inode, name: bytes, *, meant: Callable[[Inode], bool] | None = None, now: int
    ) -> Inode:
        """Remove an empty folder; NotMeant when *meant*, which is asked with no await before the change, says no."""
        await self.begin()
        while True:
            inode = await self.existing(parent, name)
            if inode.entries is None:
                raise NotDirectory(f"{name!r} is not a folder")
            empty = await self.entries.is_empty(inode)
            if empty is UNKNOWN:
                continue
            if not empty:
                raise NotEmpty(f"the folder {name!r} is not empty")
            if meant is not None and not meant(inode):
                raise NotMeant(f"{name!r} leads elsewhere by now")
            break
        self.check(parent)
        self.drop_folder(parent, name, inode, now)
        self.cache.names_changed(parent, now)
        return inode

    # -- steps that never wait; also for renames --

    async def begin(self) -> None:
        """Refuse when nothing can be changed; wait while too much is not stored."""
        self.cache.check_writable()
        if len(self.cache.dirty) + len(self.cache.dirty_links) > self._dirty_max:
            await self._room()

    def check(self, *parents: Inode) -> None:
        """The last check before a change of the names in these folders."""
        self.cache.check_writable()
        for parent in parents:
            if not parent.nlink:
                raise NotFound(f"the folder {parent.ino} was removed")

    async def existing(self, parent: Inode, name: bytes) -> Inode:
        """What *name* names, looked at with no await since; NotFound."""
        inode = await self._look(parent, name)
        if inode is None:
            raise NotFound(f"there is no {name!r}")
        return inode

    async def _look(self, parent: Inode, name: bytes) -> Inode | None:
        """What *name* names, looked at with no await since, and in no change that waits for its commit (H4)."""
        changing = self.cache.changing
        while True:
            found = self.entries.peek_child(parent, name)
            if isinstance(found, Unknown):
                found = await self.entries.child(parent, name)
            if not changing or (parent.ino, name) not in changing:
                return found
            await self.uncommitted(((parent.ino, name),))

    async def uncommitted(self, places: tuple[Place, ...]) -> bool:
        """H4: were there changes of these names that wait for their commit? It was waited for, look again."""
        changing = self.cache.changing
        if not changing or not any(place in changing for place in places):
            return False
        await self.settled(places)
        return True

    def needs_heir(self, parent: Inode, name: bytes, inode: Inode, heir: Heir | None) -> bool:
        """Is this the name in the inode's own document, with others left, and *heir* not (any more) one of them?"""
        assert parent.entries is not None
        if inode.nlink < 2 or isinstance(parent.entries[name], Link):
            return False
        if heir is None:
            return True
        link, home = heir
        assert home.entries is not None
        return link.gone or link.ino != inode.ino or home.entries.get(link.name) is not link

    async def find_heir(self, inode: Inode) -> Heir | None:
        """One of the further links of *inode*; may be outdated when the caller looks. None: memory was, because others
        have made or removed some; look again.
        """
        cache = self.cache
        version = inode.version
        ours: list[Int64] = []
        for links in (cache.dirty_links, cache.flying_links):
            for link in list(links.values()):
                if link.ino == inode.ino:
                    if not link.gone:
                        return link, await cache.get(link.parent)
                    ours.append(Int64(link.id))
        search = {"i": Int64(inode.ino), "_id": {"$nin": ours}}
        for most in (HEIRS, 0):  # of thousands of names one is wanted
            records = await cache.read(partial(_links, search, most))
            for record in records:
                home = await cache.get(record.parent)
                held = await self.entries.child(home, record.name)
                assert home.entries is not None
                entry = home.entries.get(record.name)
                if isinstance(entry, Link) and entry.ino == inode.ino and held is not None:
                    return entry, home
                if cache.shared and (home.ino, record.name) not in cache.changing:
                    forget_name(home, record.name)  # somebody else's, of which there was no news yet
            if cache.shared and records:
                return None
            if len(records) < HEIRS:
                break
        if any(link.ino == inode.ino for link in (*cache.dirty_links.values(), *cache.flying_links.values())):
            return None
        if cache.shared:
            await self.entries.reread(inode)
        if inode.version == version and inode.nlink > 1 and not (cache.shared and (inode.dirty or inode.flying)):
            raise Damaged(f"inode {inode.ino} claims {inode.nlink} names, but only one is there: run fsck")
        return None

    def drop_name(self, parent: Inode, name: bytes, inode: Inode, heir: Heir | None, now: int) -> None:
        """Take *name* off a file. The caller marks *parent*."""
        assert parent.entries is not None
        entry = parent.entries[name]
        leave(parent, name)
        inode.nlink -= 1
        inode.ctime = now
        self.cache.mark(inode)
        if isinstance(entry, Link):
            entry.gone = True
            self.cache.mark_link(entry)
        elif inode.nlink:
            assert heir is not None
            link, home = heir
            enter(home, link.name, inode.ino, cookie_at(home, link.name, link))
            inode.move(link.parent, link.name)
            link.gone = True
            self.cache.mark_link(link)
            self.cache.names_changed(home, 0)  # H2
        else:
            self._make_nameless(inode)

    def drop_folder(self, parent: Inode, name: bytes, inode: Inode, now: int) -> None:
        """Remove a folder that is empty. The caller marks *parent*."""
        leave(parent, name)
        self.cache.count_folder(parent, -1)
        self.cache.exclusive = self.cache.shared
        inode.nlink = 0
        inode.ctime = now
        self.cache.mark(inode)
        self._make_nameless(inode)

    def _make_nameless(self, inode: Inode) -> None:
        inode.move(-inode.ino, b"")
        self.cache.nameless[inode.ino] = inode
        if inode.ino not in self.cache.holds:
            self.bury(inode)

    # -- who uses an inode --

    def hold(self, ino: int, count: int = 1) -> None:
        """*count* more users: open handles, look-ups of the kernel."""
        holds = self.cache.holds
        holds[ino] = holds.get(ino, 0) + count

    def release(self, ino: int, count: int = 1) -> None:
        """*count* users less; without any, an inode without a name is no more (H3)."""
        holds = self.cache.holds
        left = holds.get(ino, 0) - count
        if left > 0:
            holds[ino] = left
            return
        if left < 0:
            raise InvalidArgument(f"inode {ino} is released more often than it was held")
        del holds[ino]
        inode = self.cache.nameless.get(ino)
        if inode is not None:
            self.bury(inode)
        elif ino in self.cache.departed:
            self.cache.forget(self.cache.departed[ino])
        elif self.cache.shared:
            self.unused(ino)

    def bury(self, inode: Inode) -> None:
        """No name and nobody who uses it: the next commit deletes it, or a task releases its content in steps
        first. Others may use it in shared mode: then an orphan document comes, or this session is taken off it.
        """
        if self.cache.shared and not inode.free and inode.entries is None and not inode.fresh:
            if inode.orphaned:
                self.unused(inode.ino)
            else:
                self.cache.mark(inode)
            return
        file_map = inode.map
        if file_map is not None and not file_map.empty():
            if file_map.whole() and len(file_map.segments()) <= SMALL_SEGMENTS:
                file_map.clear()
            else:
                self._release_content(inode)
        self.cache.mark(inode)
