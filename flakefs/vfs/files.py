"""Operations on open files: open, create, read, write, flush, sync, close.

Concurrency
    Trio task only. What is in memory is answered without a checkpoint. Each change is checked and made without an await
    in between: every wait comes first, and what it was for is looked at again.

Not here
    Buffers (vfs.content), storing (vfs.writeback), fetching (vfs.reading).
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from time import monotonic

from flakefs.errors import (
    AccessDenied,
    BadHandle,
    Exists,
    FileTooLarge,
    InvalidArgument,
    IsDirectory,
    NotMeant,
    Stale,
    TooManySymlinks,
    Unavailable,
)
from flakefs.format.names import checked
from flakefs.namespace import Inode
from flakefs.values import FILE_MAX
from flakefs.vfs import attributes
from flakefs.vfs.base import Base, again
from flakefs.vfs.content import FileContent
from flakefs.vfs.handles import ACCESS_MASK, Handle
from flakefs.vfs.replication import inherited
from flakefs.vfs.requests import Caller

PRIVILEGES = stat.S_ISUID | stat.S_ISGID
Data = bytes | memoryview


class Files(Base):
    async def open(self, ino: int, flags: int, *, named: bool = False) -> int:
        """A handle; honours O_TRUNC. *named*: NotMeant when it turns out to have another name, or none, by now."""
        ns = self.ns
        if ns.shared:
            known = ns.known(ino) if named else None
            place = (known.parent, known.name) if known is not None else None
            inode = await ns.reread(ino)  # what was closed elsewhere before is seen here now
            if named and not (inode.nlink and place in (None, (inode.parent, inode.name))):
                raise NotMeant(f"inode {ino} has gone from the name that it had")
        else:
            inode = ns.peek(ino) or await ns.get(ino)
        kind = inode.mode & 0o170000
        if kind != stat.S_IFREG:
            if kind == stat.S_IFDIR:
                raise IsDirectory(f"inode {ino} ({inode.name!r}) is a folder")
            if kind == stat.S_IFLNK:
                raise TooManySymlinks(f"inode {ino} ({inode.name!r}) is a symbolic link")
            raise InvalidArgument(f"inode {ino} ({inode.name!r}) has no content to open")
        truncating = flags & os.O_TRUNC
        if truncating or flags & ACCESS_MASK:
            ns.check_writable()
        handle = self._opened(inode, flags)
        if truncating:
            try:
                done = False
                if not ns.shared:
                    await self._empty(inode)
                    done = not ns.shared or await ns.committed()
                if not done:
                    await ns.redone(lambda: self._empty(inode))
            except BaseException:
                self._close(handle.id)
                raise
        return handle.id

    async def _empty(self, inode: Inode) -> None:
        if self.ns.shared:
            await self._fresh(inode)
        await self._truncate(inode, 0)
        self.ns.changed(inode)
        attributes.drop_privileges(inode)
        inode.mtime = inode.ctime = self._clock()

    async def _fresh(self, inode: Inode) -> None:
        """Shared mode: read it again when another session changed it."""
        if self.ns.peek(inode.ino) is not inode:
            await self.ns.get(inode.ino)

    async def _store_first(self, ino: int) -> None:
        """Shared mode: what was written to the file is committed."""
        inode = self.ns.peek(ino)
        if inode is not None and (inode.dirty or inode.flying):
            await self.ns.commit()

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller, *, absent: bool = False
    ) -> tuple[int, Inode]:
        """Make a regular file and open it; without O_EXCL one that is there is opened, if *caller* may do that.
        *absent*: NotMeant then, for whoever asks believes that there is none.
        """
        checked(name)
        end = monotonic() + self.ns.patience()
        while True:
            folder = await self._folder(parent)
            rights, gid = attributes.of_new(folder, stat.S_IFREG | (mode & attributes.PERMISSIONS), caller)
            xattrs = inherited(folder, rights)
            try:
                inode = await self.ns.make(
                    folder, name, mode=rights, uid=caller.uid, gid=gid, xattrs=xattrs, now=self._clock()
                )
            except Exists:
                if flags & os.O_EXCL:
                    raise
                if absent:
                    raise NotMeant(f"there is a {name!r} in folder {parent} by now") from None
            else:
                return self._opened(inode, flags).id, inode
            found = await self.ns.child(folder, name)
            if found is not None:
                if stat.S_ISREG(found.mode) and not attributes.may_open(found, flags, caller):
                    raise AccessDenied(f"user {caller.uid} may not open {name!r} in folder {parent}")
                with suppress(NotMeant, Stale):  # somebody else has just taken the name away: it may be free now
                    return await self._open_found(found, flags)
            if monotonic() > end:
                raise Unavailable(f"other sessions make and remove {name!r} in folder {parent} all the time: try again")

    async def _open_found(self, found: Inode, flags: int) -> tuple[int, Inode]:
        handle = await self.open(found.ino, flags, named=True)
        try:
            return handle, await self._shown(found)
        except BaseException:
            self._close(handle)
            raise

    def _opened(self, inode: Inode, flags: int) -> Handle:
        self.ns.hold(inode.ino)
        content = self.writeback.content(inode)
        content.handles += 1
        return self.handles.add(inode, content, flags)

    async def read(self, handle: int, offset: int, size: int) -> Data:
        """Up to *size* bytes; fewer only at the end of the file. Valid until the next write."""
        opened = self.handles.get(handle)
        if opened.content is None or not opened.readable:
            raise BadHandle(f"the handle {handle} is not open for reading")
        inode = opened.inode
        if self.ns.shared:
            await self._fresh(inode)
            if inode.ino in self._appends:
                await self.inode(inode.ino)
        size = min(size, inode.size - offset)
        if offset < 0 or size <= 0:
            return b""
        reader = self.reader
        reader.ahead(opened, offset, size)
        data = reader.read_now(inode, offset, size)
        if data is None:
            data = await reader.read(inode, offset, size, sequential=opened.step > 0)
        self._accessed(inode)
        return data

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """The number of bytes written; with O_APPEND they go to the end of the file whatever *offset* says."""
        opened = self.handles.get(handle)
        content = opened.content
        if content is None or not opened.writable:
            raise BadHandle(f"the handle {handle} is not open for writing")
        ns = self.ns
        if ns.failure is not None:
            raise again(ns.failure)
        ns.check_writable()
        budget = self.writeback.budget
        if budget.failure is not None:
            budget.raise_when_full()
        if budget.over:
            self.writeback.press()
            await budget.wait_for_room()
        await ns.room()
        if ns.shared and opened.append:
            return await self._append(opened, content, data)
        written = await self._write(opened, content, offset, data)
        if opened.synchronous:
            await ns.commit()
        return written

    async def _append(self, opened: Handle, content: FileContent, data: bytes) -> int:
        """Shared mode: at the end that the file has when it is committed; until then nobody sees it (F3)."""
        ino, appends = opened.inode.ino, self._appends
        appends[ino] = appends.get(ino, 0) + 1
        try:
            return await self.ns.redone(lambda: self._write(opened, content, 0, data))
        finally:
            appends[ino] -= 1
            if not appends[ino]:
                del appends[ino]

    async def _write(self, opened: Handle, content: FileContent, offset: int, data: bytes) -> int:
        ns = self.ns
        inode = opened.inode
        if ns.shared:
            await self._fresh(inode)
        while True:
            if opened.append:
                offset = inode.size
            data = _fitting(offset, data)
            stop = offset + len(data)
            if content.map.loaded(offset, stop):
                break
            await ns.load(inode, offset, stop)
        if not data:
            return 0
        ns.changed(inode)
        crowded = content.write(offset, data)
        if inode.mode & PRIVILEGES or inode.xattrs:
            attributes.drop_privileges(inode)
        inode.mtime = inode.ctime = self._clock()
        if ns.shared and not opened.append:
            ns.wrote(inode, offset, stop)
        if crowded >= 0:
            await self.reader.rewrite(content, crowded)
        return len(data)

    async def flush(self, handle: int) -> None:
        """close(2) of one descriptor: says whether what was written is in danger (P2, P3, P8)."""
        opened = self.handles.get(handle)
        if not opened.writable:
            return
        failure = self.ns.failure or self.writeback.budget.overdue()
        if failure is not None:
            content = opened.content
            if content is not None and (content.windows or content.touched or self.ns.failure is not None):
                raise again(failure)
        if self._close_stored or (self.ns.shared and (opened.inode.dirty or opened.inode.flying)):
            await self.ns.commit()

    async def fsync(self, handle: int, datasync: bool = False) -> None:
        """Everything written so far, to any file, is durable on return (P1)."""
        self.handles.get(handle)
        await self.ns.commit()

    async def release(self, handle: int) -> None:
        """The last descriptor of an open() is gone."""
        self._close(handle)

    def _close(self, handle: int) -> None:
        opened = self.handles.remove(handle)
        inode, content = opened.inode, opened.content
        self.ns.release(inode.ino)
        if content is None:
            return
        content.handles -= 1
        if not content.handles and not self._let_go(inode):
            self.writeback.idle(content)

    async def _truncate(self, inode: Inode, size: int) -> None:
        """Set the size; times and rights are the caller's."""
        if inode.mode & 0o170000 != stat.S_IFREG:
            if stat.S_ISDIR(inode.mode):
                raise IsDirectory(f"inode {inode.ino} ({inode.name!r}) is a folder")
            raise InvalidArgument(f"inode {inode.ino} ({inode.name!r}) has no content to cut")
        if size < 0:
            raise InvalidArgument("a size cannot be negative")
        if size > FILE_MAX:
            raise FileTooLarge(f"a file can have at most {FILE_MAX} bytes")
        await self.ns.room()
        await self.ns.truncate(inode, size)
        content = self.writeback.contents.get(inode.ino)
        if content is not None and content.inode is inode:
            content.trim(size)
            self.writeback.budget.wake()


def _fitting(offset: int, data: bytes) -> bytes:
    """What of *data* a file can hold at *offset*; FileTooLarge when that is nothing."""
    if 0 <= offset <= FILE_MAX - len(data):
        return data
    if offset < 0:
        raise InvalidArgument("an offset cannot be negative")
    if offset >= FILE_MAX:
        raise FileTooLarge(f"a file can have at most {FILE_MAX} bytes")
    return data[: FILE_MAX - offset]
