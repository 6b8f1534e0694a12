"""The request handlers for attributes, files and folders: decode what the kernel says, call `vfs`, encode the answer.

Purpose
    Every operation that pyfuse3 exposes, each a few lines. What an operation means is decided in `vfs`.

Invariants
    F1  Every handler is wrapped (fuse.boundary): no exception of ours or of Python reaches pyfuse3's main loop.
    F3  open honours O_TRUNC: libfuse asks the kernel for atomic truncation, so no setattr follows.
    F4  flush, fsync and fsyncdir are really implemented: an ENOSYS would make the kernel report success for ever.
    F6  In a listing, position 1 follows ".", 2 follows "..", and c + 2 follows the entry with cookie c.

Concurrency
    Trio tasks of pyfuse3; nothing here is shared but two small tables, of open folders and of files that are appended
    to, each changed without an await.

Not here
    Permissions (the kernel checks them: default_permissions is always on), errors (fuse.boundary).
"""

from __future__ import annotations

import errno
import os
from collections import deque
from functools import partial

from pyfuse3 import (
    ROOT_INODE,
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    readdir_reply,
)

from flakefs.errors import FlakeError, NoAttribute
from flakefs.fuse.answers import caller
from flakefs.fuse.attributes import changes_of, dot_entry, statvfs_data
from flakefs.fuse.boundary import answered
from flakefs.fuse.caches import KernelCaches
from flakefs.fuse.naming import Naming
from flakefs.fuse.options import FuseOptions
from flakefs.fuse.repeats import Asked, Found, Kind
from flakefs.namespace import Inode
from flakefs.vfs import FileSystem

FIRST_PAGE = 32
"""Entries asked for at first: as many as a reply of 4 KiB can hold; later as many as the last reply took."""


class OpenFolder:
    """An open folder: its number, and how many entries the last reply took."""

    __slots__ = ("ino", "page")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.page = FIRST_PAGE


class Operations(Naming):
    """What pyfuse3 calls, on one FileSystem."""

    supports_dot_lookup = True
    enable_writeback_cache = False  # the kernel would own size and times of dirty files
    enable_acl = False

    def __init__(self, fs: FileSystem, options: FuseOptions, caches: KernelCaches) -> None:
        super().__init__(fs, options, caches)
        # Mutable; changed between checkpoints only
        self._folders: dict[int, OpenFolder] = {}
        self._appending: dict[int, int] = {}  # handles that the kernel caches pages for: inode
        self._looks: deque[tuple[RequestContext, bool]] = deque(maxlen=options.tasks)  # the last getxattr: was it there

    # attributes

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        real = self._stand_ins.real(inode)
        entry = self._entry(self._fs.peek(real) or await self._fs.inode(real))
        entry.st_ino = inode
        return entry

    @answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        changes, inode = changes_of(attr, fields), self._stand_ins.real(inode)
        if self._ns.shared and fh is None and fields.update_size:  # truncate(2): it looks again, fchmod(2) would not
            asked = Asked(Kind.TRUNCATE, ino=inode)
            await self._caches.repeats.once(ctx.pid, asked, partial(self._check_name, inode, reread=True))
        return self._entry(await self._fs.setattr(inode, changes, caller(ctx)), changed=True)

    @answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return await self._fs.access(self._stand_ins.real(inode), mode, caller(ctx))

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name == b"security.capability":  # asked before the first write to each file: answer from memory
            known = self._fs.peek(inode)
            if known is not None and not known.xattrs:
                raise FUSEError(errno.ENODATA)
        if not self._ns.shared:
            return await self._fs.getxattr(inode, name)
        try:
            value = await self._fs.getxattr(inode, name)
        except NoAttribute:
            self._looks.append((ctx, False))
            raise
        self._looks.append((ctx, True))
        return value

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """pyfuse3 makes XATTR_CREATE and XATTR_REPLACE of a getxattr before it, with the same context. On one mount the
        kernel's lock of the inode holds both together; other mounts do not know it, so the look is done once more.
        """
        there = next((there for asked, there in self._looks if asked is ctx), None) if self._looks else None
        await self._fs.setxattr(inode, name, value, create=there is False, replace=there is True)

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        return await self._fs.listxattr(inode, caller(ctx))

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.removexattr(inode, name)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return await self._statfs(ROOT_INODE)

    @answered
    async def _statfs(self, inode: int) -> StatvfsData:
        return statvfs_data(await self._fs.statfs())

    # files

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if self._ns.shared or self._caches.forgetting:
            asked = Asked(Kind.OPEN, ino=inode)
            handle = await self._caches.repeats.once(ctx.pid, asked, partial(self._open_meant, inode, flags))
        else:
            handle = await self._fs.open(inode, flags)
        return self._opened(handle, inode, flags, await self._caches.opened(inode, handle))

    async def _open_meant(self, ino: int, flags: int, found: Found | None) -> int:
        await self._check_name(ino, found)
        return await self._fs.open(ino, flags, named=found is None)

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """For the kernel there is no such name. If there is, it has to look whether it may be opened, and how: it takes
        what it is answered here for a file that was made.
        """
        place = self._stand_ins.real(parent_inode), name
        if not self._ns.shared:
            handle, inode = await self._fs.create(*place, mode, flags, caller(ctx))
        else:

            async def create(found: Found | None) -> tuple[int, Inode]:
                return await self._fs.create(*place, mode, flags, caller(ctx), absent=found is None)

            handle, inode = await self._caches.repeats.once(ctx.pid, Asked(Kind.OPEN, place), create)
        info = self._opened(handle, inode.ino, flags, self._caches.keeps(inode.ino, handle))
        return info, self._given(*place, inode)

    def _opened(self, handle: int, ino: int, flags: int, keep: bool) -> FileInfo:
        """Where a record that is appended goes is decided here, so the kernel must not believe that it knows."""
        direct = False
        if flags & os.O_APPEND:
            direct = self._ns.shared
            if not direct:
                self._appending[handle] = ino
        return FileInfo(fh=FileHandleT(handle), keep_cache=keep, direct_io=direct)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:  # type: ignore[override]  # any buffer
        self._caches.used(fh)
        return await self._fs.read(fh, off, size)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        written = await self._fs.write(fh, off, buf)
        if fh in self._appending and self._ns.shared:  # opened while alone; the kernel has put it into the wrong page
            self._caches.drop_inode(self._appending[fh], content=True)
        return written

    @answered
    async def flush(self, fh: int) -> None:
        self._caches.used(fh)
        await self._fs.flush(fh)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.fsync(fh, datasync)

    @answered
    async def release(self, fh: int) -> None:
        self._appending.pop(fh, None)
        self._caches.used(fh)  # not every program closes: exec
        await self._fs.release(fh)

    # folders

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self._caches.repeats.over(ctx.pid)
        inode = self._stand_ins.real(inode)
        handle = await self._fs.opendir(inode)
        self._folders[handle] = OpenFolder(inode)
        return handle

    @answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        folder = self._folders[fh]
        if start_id < 2 and not await self._reply_dots(folder.ino, start_id, token):
            return
        after, taken = max(start_id - 2, 0), 0
        while True:
            limit = max(folder.page - taken, FIRST_PAGE)
            try:
                page = await self._fs.readdir(fh, after, limit)
            except FlakeError:
                if taken:
                    return  # what is in the reply is counted: the kernel has to get it
                raise
            for cookie, name, inode in page:  # no await until the reply: what is listed is what is there
                older = self._ns.shared and self._caches.has_older_name((folder.ino, name), inode)
                entry = self._passing(inode) if older else self._entry(inode)
                if not readdir_reply(token, name, entry, cookie + 2):
                    folder.page = taken + 1
                    return
                self._fs.remember(inode.ino)
                self._caches.given(folder.ino, name, inode)
                after = cookie
                taken += 1
            if len(page) < limit:
                return

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.fsyncdir(fh)

    @answered
    async def releasedir(self, fh: int) -> None:
        self._folders.pop(fh, None)
        await self._fs.releasedir(fh)

    async def _reply_dots(self, ino: int, start: int, token: ReaddirToken) -> bool:
        """List "." and ".." (the kernel makes neither); they count as no look-up. False: the reply is full."""
        inode = self._fs.peek(ino) or await self._fs.inode(ino)
        if start < 1 and not readdir_reply(token, b".", dot_entry(ino), 1):
            return False
        above = inode.parent if inode.parent > 0 else ino
        return readdir_reply(token, b"..", dot_entry(above), 2)
