"""The request handlers: decode what the kernel says, call `vfs`, encode the answer.

Purpose
    Every operation that pyfuse3 exposes, each a few lines. What an operation means is decided in `vfs`.

Invariants
    F1  Every handler is wrapped (fuse.boundary): no exception of ours or of Python reaches pyfuse3's main loop.
    F2  Each answer that gives the kernel an inode (lookup, create, mknod, mkdir, symlink, link, each listed name except
        "." and "..") is counted once with `fs.remember`, in the same step as the answer is made; `forget` takes back.
    F3  open honours O_TRUNC: libfuse asks the kernel for atomic truncation, so no setattr follows.
    F4  flush, fsync and fsyncdir are really implemented: an ENOSYS would make the kernel report success for ever.
    F5  Time-outs are long while what others change comes to us (fuse.caches), and 0 while it may not; see
        SETTLING_SECONDS for attributes after a change.
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
from collections.abc import Sequence
from functools import partial

from pyfuse3 import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
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
from pyfuse3 import Operations as Handlers

from flakefs.errors import Exists, NoAttribute, NotMeant
from flakefs.fuse.attributes import changes_of, dot_entry, entry_maker, no_entry, statvfs_data
from flakefs.fuse.boundary import answered, silent
from flakefs.fuse.caches import KernelCaches
from flakefs.fuse.options import FuseOptions
from flakefs.fuse.stand_ins import StandIns
from flakefs.namespace import Inode
from flakefs.vfs import Caller, FileSystem

FIRST_PAGE = 32
"""Entries asked for at first: as many as a reply of 4 KiB can hold; later as many as the last reply took."""
SETTLING_SECONDS = 1.0
"""The kernel takes the attributes in the answer to a change (before Linux 6.16 to setattr, too) whatever their age: it
might have been told before that another mount changed them. So in shared mode it believes them for so long only.
"""


class OpenFolder:
    """An open folder: its number, and how many entries the last reply took."""

    __slots__ = ("ino", "page")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.page = FIRST_PAGE


def caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.umask, ctx.pid)


class Operations(Handlers):
    """What pyfuse3 calls, on one FileSystem."""

    supports_dot_lookup = True
    enable_writeback_cache = False  # the kernel would own size and times of dirty files
    enable_acl = False

    def __init__(self, fs: FileSystem, options: FuseOptions, caches: KernelCaches) -> None:
        super().__init__()
        # Dependencies
        self._fs = fs
        self._ns = fs.ns
        self._caches = caches
        # Constant after construction
        seconds = options.read_only_cache_seconds if fs.ns.read_only else options.cache_seconds
        self._lasting = entry_maker(seconds, fs.chunk_size)
        self._settling = entry_maker(seconds, fs.chunk_size, attributes_seconds=min(seconds, SETTLING_SECONDS))
        self._passing = entry_maker(0, fs.chunk_size)
        self._missing = no_entry(seconds)
        self._missing_now = no_entry(0)
        # Mutable; changed between checkpoints only
        self._stand_ins = StandIns()
        self._folders: dict[int, OpenFolder] = {}
        self._appending: dict[int, int] = {}  # handles that the kernel caches pages for: inode
        self._looks: deque[tuple[RequestContext, bool]] = deque(maxlen=options.tasks)  # the last getxattr: was it there

    def ino_of(self, fh: int) -> int:
        """For the log (fuse.boundary)."""
        return self._fs.handles.ino_of(fh)

    # names

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        place, repeats = (self._stand_ins.real(parent_inode), name), self._caches.repeats
        fresh = repeats.is_repeating(ctx.pid, place)
        inode = await self._fs.lookup(*place, fresh=fresh)
        repeats.looked_up(ctx.pid, place, inode.ino if inode is not None else 0)
        if inode is None:
            if not self._caches.quiet:
                return self._missing_now
            self._caches.given(*place, None)
            return self._missing
        if self._ns.shared and self._caches.stands_in(place, inode, ctx.pid):
            return self._stand_ins.made_of(self._passing(inode), inode.ino)
        older = self._ns.shared and self._caches.has_older_name(place, inode)
        self._fs.remember(inode.ino)
        self._caches.given(*place, inode)
        return self._passing(inode) if older else self._entry(inode)

    @silent
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            if real := self._stand_ins.forget(ino):
                self._caches.drop_inode(real, content=False)
            else:
                self._fs.forget(ino, count)

    @answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        inode = await self._fs.mknod(parent_inode, name, mode, rdev, caller(ctx))
        return self._given(parent_inode, name, inode)

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        inode = await self._fs.mkdir(parent_inode, name, mode, caller(ctx))
        return self._given(parent_inode, name, inode)

    @answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = await self._fs.symlink(parent_inode, name, target, caller(ctx))
        return self._given(parent_inode, name, inode)

    @answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        if self._ns.shared:
            call = partial(self._check_name, inode, reread=True)
            await self._caches.repeats.once(ctx.pid, (new_parent_inode, new_name), call)
        linked = await self._fs.link(inode, new_parent_inode, new_name)
        return self._given(new_parent_inode, new_name, linked)

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.unlink(parent_inode, name)
        self._caches.told.unknown((parent_inode, name))

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.rmdir(parent_inode, name)
        self._caches.told.unknown((parent_inode, name))

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        exchange, noreplace = bool(flags & RENAME_EXCHANGE), bool(flags & RENAME_NOREPLACE)
        real, told = self._stand_ins.real, self._caches.told
        old, new = (real(parent_inode_old), name_old), (real(parent_inode_new), name_new)
        if not self._ns.shared:
            await self._fs.rename(*old, *new, noreplace=noreplace, exchange=exchange)
            told.clear()  # what is changed while alone is not noted
            return
        agreed, moved, other = False, 0, 0

        async def rename(again: bool) -> None:
            def meant(source: Inode, target: Inode | None) -> bool:
                nonlocal agreed, moved, other
                agreed = self._caches.quiet and told.agrees(old, source) and (not exchange or told.agrees(new, target))
                moved, other = source.ino, target.ino if exchange and target is not None else 0
                return again or agreed

            try:
                await self._fs.rename(*old, *new, noreplace=noreplace, exchange=exchange, meant=meant)
            except Exists:
                if not again:
                    raise NotMeant(f"there is a {name_new!r}, which the kernel was told is not there") from None
                self._caches.drop_entry(*new)  # it would go on believing that
                raise

        await self._caches.repeats.once(ctx.pid, (old, new, flags), rename)
        self._caches.renamed(old, new, moved, other, agreed=agreed)

    @answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._fs.readlink(self._stand_ins.real(inode))

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
        changes = changes_of(attr, fields)
        if self._ns.shared and fh is None and fields.update_size:  # truncate(2): it looks again, fchmod(2) would not
            await self._caches.repeats.once(ctx.pid, inode, partial(self._check_name, inode, reread=True))
        return self._entry(await self._fs.setattr(inode, changes, caller(ctx)), changed=True)

    @answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return await self._fs.access(inode, mode, caller(ctx))

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
            handle = await self._caches.repeats.once(ctx.pid, inode, partial(self._open_meant, inode, flags))
        else:
            handle = await self._fs.open(inode, flags)
        return self._opened(handle, inode, flags, await self._caches.opened(inode, handle))

    async def _open_meant(self, ino: int, flags: int, again: bool) -> int:
        await self._check_name(ino, again)
        return await self._fs.open(ino, flags, named=not again)

    async def _check_name(self, ino: int, again: bool, *, reread: bool = False) -> None:
        """K7: NotMeant, but not *again*, when the kernel may take another name for it than the one that it has."""
        if not again:
            known = await self._ns.reread(ino) if reread else self._ns.known(ino) or await self._fs.inode(ino)
            if self._caches.misled(known):
                raise NotMeant(f"the name by which inode {ino} was found leads elsewhere by now")

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, inode = await self._fs.create(parent_inode, name, mode, flags, caller(ctx))
        info = self._opened(handle, inode.ino, flags, self._caches.keeps(inode.ino, handle))
        return info, self._given(parent_inode, name, inode)

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
            page = await self._fs.readdir(fh, after, limit)
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

    # helpers

    def _entry(self, inode: Inode, *, changed: bool = False) -> EntryAttributes:
        """*changed*: in the answer to a change."""
        if not self._caches.quiet:
            return self._passing(inode)
        return self._settling(inode) if changed and self._ns.shared else self._lasting(inode)

    def _given(self, parent: int, name: bytes, inode: Inode) -> EntryAttributes:
        """The attributes of an inode that a change here gave this name."""
        self._fs.remember(inode.ino)
        self._caches.given(parent, name, inode)
        return self._entry(inode, changed=True)

    async def _reply_dots(self, ino: int, start: int, token: ReaddirToken) -> bool:
        """List "." and ".." (the kernel makes neither); they count as no look-up. False: the reply is full."""
        inode = self._fs.peek(ino) or await self._fs.inode(ino)
        if start < 1 and not readdir_reply(token, b".", dot_entry(ino), 1):
            return False
        above = inode.parent if inode.parent > 0 else ino
        return readdir_reply(token, b"..", dot_entry(above), 2)
