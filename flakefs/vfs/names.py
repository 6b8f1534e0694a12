"""Operations on names: lookup, make, link, remove, rename, list.

Purpose
    Checks names and owners; the namespace does the rest, and keeps the times of folders.

Concurrency
    Trio task only. What is in memory is answered without a checkpoint.

Not here
    Whether the caller may (the kernel, default_permissions), content (vfs.files).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from flakefs.errors import BadHandle, Exists, InvalidArgument, NameTooLong, NotFound, NotPermitted
from flakefs.format.names import checked
from flakefs.namespace import UNKNOWN, Inode, Meant
from flakefs.values import NAME_MAX, SYMLINK_MAX
from flakefs.vfs import attributes
from flakefs.vfs.base import APPEND_LOOKS, Base
from flakefs.vfs.replication import inherited
from flakefs.vfs.requests import Caller

MADE_BY_MKNOD = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)


class Names(Base):
    async def lookup(self, parent: int, name: bytes, *, fresh: bool = False) -> Inode | None:
        """The inode of *name* in *parent*, None when there is no such name. "." and ".." too. *fresh*: what the store
        says now, when others may have changed it.
        """
        folder = await self._folder(parent)
        if name[:1] == b"." and name in (b".", b".."):
            if name == b"." or not folder.parent:
                return folder
            return await self.inode(folder.parent)
        if len(name) > NAME_MAX:
            raise NameTooLong(f"the name {name[:32]!r}... has {len(name)} bytes; at most {NAME_MAX} are possible")
        if self.ns.shared:
            sought = await self.ns.looked_up(folder, name, fresh=fresh)
            for _ in range(APPEND_LOOKS):
                if sought is None or not (self._unsure(sought) and await self._settled()):
                    break
                sought = await self.ns.looked_up(folder, name)
            return sought
        found = self.ns.peek_child(folder, name)
        if found is UNKNOWN:
            return await self.ns.child(folder, name)
        return found

    async def readlink(self, ino: int) -> bytes:
        inode = await self.inode(ino)
        if not stat.S_ISLNK(inode.mode):
            raise InvalidArgument(f"inode {ino} is not a symbolic link")
        self._accessed(inode)
        return inode.target

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in MADE_BY_MKNOD:
            raise NotPermitted("mknod makes files, pipes, sockets and devices only")
        return await self._make(parent, name, kind | (mode & attributes.PERMISSIONS), caller, rdev=rdev)

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        return await self._make(parent, name, stat.S_IFDIR | (mode & attributes.PERMISSIONS), caller)

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        if not target:
            raise NotFound("a symbolic link needs a target")
        if len(target) > SYMLINK_MAX:
            raise NameTooLong(f"the target has {len(target)} bytes; at most {SYMLINK_MAX} are possible")
        if b"\0" in target:
            raise InvalidArgument("the target of a symbolic link cannot contain a NUL byte")
        return await self._make(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    async def _make(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        checked(name)
        folder = await self._folder(parent)
        mode, gid = attributes.of_new(folder, mode, caller)
        return await self.ns.make(
            folder,
            name,
            mode=mode,
            uid=caller.uid,
            gid=gid,
            rdev=rdev,
            target=target,
            xattrs=inherited(folder, mode),
            now=self._clock(),
        )

    async def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """A further name of a file."""
        checked(name)
        inode = await self._inode(ino)
        folder = await self._folder(parent)
        if stat.S_ISDIR(inode.mode):
            if await self.lookup(parent, name) is not None:
                raise Exists(f"there is a {name!r} already")
            raise NotPermitted(f"{inode.name!r} is a folder: folders have one name")
        await self.ns.link(inode, folder, name, now=self._clock())
        return await self._shown(inode)

    async def unlink(self, parent: int, name: bytes) -> Inode:
        """What had the name."""
        folder = await self._folder(parent)
        inode = await self.ns.unlink(folder, name, now=self._clock())
        self._let_go(inode)
        return inode

    async def rmdir(self, parent: int, name: bytes, *, meant: Callable[[Inode], bool] | None = None) -> None:
        """NotMeant when *meant* says no of what would be removed."""
        if name == b".":
            raise InvalidArgument('a folder cannot be removed by the name "."')
        folder = await self._folder(parent)
        await self.ns.rmdir(folder, name, meant=meant, now=self._clock())

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        *,
        noreplace: bool = False,
        exchange: bool = False,
        meant: Meant | None = None,
    ) -> None:
        """As renameat2(2); both flags at once are refused. NotMeant when *meant* says no of what would be moved."""
        if noreplace and exchange:
            raise InvalidArgument("a rename cannot both exchange and not replace")
        checked(name)
        checked(new_name)
        source = await self._folder(parent)
        target = await self._folder(new_parent)
        now = self._clock()
        await self.ns.rename(
            source, name, target, new_name, noreplace=noreplace, exchange=exchange, meant=meant, now=now
        )

    async def opendir(self, ino: int) -> int:
        folder = await self._folder(ino)
        self.ns.hold(ino)
        return self.handles.add(folder, None, os.O_RDONLY).id

    async def readdir(self, handle: int, after: int, limit: int) -> list[tuple[int, bytes, Inode]]:
        """Up to *limit* entries whose cookie is greater than *after*, in ascending order; without "." and ".."."""
        opened = self.handles.get(handle)
        if opened.content is not None:
            raise BadHandle(f"the handle {handle} is that of a file, not of a folder")
        entries = await self.ns.listing(opened.inode, after, limit)
        if self._appends and any(self._unsure(inode) for _, _, inode in entries) and await self._settled():
            entries = await self.ns.listing(opened.inode, after, limit)
        if not after:
            self._accessed(opened.inode)
        return entries

    async def fsyncdir(self, handle: int) -> None:
        """Everything done so far in this file system is durable on return."""
        self.handles.get(handle)
        await self.ns.commit()

    async def releasedir(self, handle: int) -> None:
        self.ns.release(self.handles.remove(handle).inode.ino)

    def remember(self, ino: int, count: int = 1) -> None:
        """The kernel knows the inode, *count* more times."""
        self.ns.hold(ino, count)

    def forget(self, ino: int, count: int = 1) -> None:
        """The kernel has forgotten the inode, *count* times."""
        inode = self.ns.peek(ino)
        self.ns.release(ino, count)
        if inode is not None:
            self._let_go(inode)
