"""A pyfuse3 pass-through over a local folder: every request becomes the same system call on the folder's file system.

Purpose
    What a simple pyfuse3 file system costs when the local disk does the storing. Run as `python passthrough.py FOLDER
    MOUNTPOINT`; it ends when it is unmounted.

Invariants
    T1  `_names` has for every inode number that the kernel may use the places where it is known to be; a path is made
        by walking up, so renaming a folder moves all that lies in it.

Concurrency
    Trio task only; system calls block it, as in the usual pyfuse3 examples.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Sequence

import pyfuse3
from nullfs import serve
from pyfuse3 import ROOT_INODE, EntryAttributes, FileInfo, FUSEError, RequestContext

FIELDS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks")
TIMES = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")


def attributes(found: os.stat_result, ino: int) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = ino
    for field in FIELDS + TIMES:
        setattr(entry, field, getattr(found, field))
    return entry


def failing(error: OSError) -> FUSEError:
    return FUSEError(error.errno or errno.EIO)


class Passthrough(pyfuse3.Operations):
    """An inode number is the one of the local file; a file handle is a file descriptor."""

    enable_writeback_cache = False

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = os.fsencode(os.path.abspath(folder))
        self._top = os.stat(folder).st_ino
        self._names: dict[int, list[tuple[int, bytes]]] = {}
        self._lookups: dict[int, int] = {}
        self._listings: dict[int, tuple[int, list[os.DirEntry[bytes]]]] = {}

    # Inode numbers and paths

    def _path(self, ino: int, name: bytes | None = None) -> bytes:
        parts = [] if name is None else [name]
        while ino != ROOT_INODE:
            places = self._names.get(ino)
            if not places:
                raise FUSEError(errno.ESTALE)
            ino, part = places[-1]
            parts.append(part)
        parts.append(self._folder)
        return b"/".join(reversed(parts))

    def _entry(self, parent: int, name: bytes, path: bytes) -> EntryAttributes:
        """Attributes of a name that the kernel now knows."""
        try:
            found = os.lstat(path)
        except OSError as error:
            raise failing(error) from None
        ino = ROOT_INODE if found.st_ino == self._top else found.st_ino
        if ino != ROOT_INODE and name not in (b".", b".."):
            places = self._names.setdefault(ino, [])
            if (parent, name) not in places:
                places.append((parent, name))
        self._lookups[ino] = self._lookups.get(ino, 0) + 1
        return attributes(found, ino)

    def _forget_name(self, parent: int, name: bytes, ino: int) -> None:
        places = self._names.get(ino, [])
        if len(places) > 1 and (parent, name) in places:
            places.remove((parent, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            left = self._lookups.get(ino, 0) - count
            if left > 0:
                self._lookups[ino] = left
            else:
                self._lookups.pop(ino, None)
                self._names.pop(ino, None)

    # Names

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(parent_inode, name, self._path(parent_inode, name))

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._made(parent_inode, name, ctx, lambda path: os.mknod(path, mode & ~ctx.umask, rdev))

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._made(parent_inode, name, ctx, lambda path: os.mkdir(path, mode & ~ctx.umask))

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._made(parent_inode, name, ctx, lambda path: os.symlink(target, path))

    def _made(self, parent, name, ctx, make) -> EntryAttributes:
        path = self._path(parent, name)
        try:
            make(path)
            os.lchown(path, ctx.uid, ctx.gid)
        except OSError as error:
            raise failing(error) from None
        return self._entry(parent, name, path)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        try:
            return os.readlink(self._path(inode))
        except OSError as error:
            raise failing(error) from None

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        path = self._path(new_parent_inode, new_name)
        try:
            os.link(self._path(inode), path, follow_symlinks=False)
        except OSError as error:
            raise failing(error) from None
        return self._entry(new_parent_inode, new_name, path)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._removed(parent_inode, name, os.unlink)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._removed(parent_inode, name, os.rmdir)

    def _removed(self, parent, name, remove) -> None:
        path = self._path(parent, name)
        try:
            ino = os.lstat(path).st_ino
            remove(path)
        except OSError as error:
            raise failing(error) from None
        self._forget_name(parent, name, ino)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        old, new = self._path(parent_inode_old, name_old), self._path(parent_inode_new, name_new)
        try:
            ino = os.lstat(old).st_ino
            os.rename(old, new)
        except OSError as error:
            raise failing(error) from None
        if ino in self._names:
            self._names[ino] = [place for place in self._names[ino] if place != (parent_inode_old, name_old)]
            self._names[ino].append((parent_inode_new, name_new))

    # Attributes

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        try:
            return attributes(os.lstat(self._path(inode)), inode)
        except OSError as error:
            raise failing(error) from None

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        path = self._path(inode)
        try:
            if fields.update_size:
                os.truncate(path if fh is None else fh, attr.st_size)
            if fields.update_mode:
                os.chmod(path, stat.S_IMODE(attr.st_mode))
            if fields.update_uid or fields.update_gid:
                os.lchown(path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)
            if fields.update_atime or fields.update_mtime:
                now = os.lstat(path)
                atime = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
                mtime = attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
                os.utime(path, ns=(atime, mtime), follow_symlinks=False)
            return attributes(os.lstat(path), inode)
        except OSError as error:
            raise failing(error) from None

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        try:
            return os.getxattr(self._path(inode), name, follow_symlinks=False)
        except OSError as error:
            raise failing(error) from None

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        answer, local = pyfuse3.StatvfsData(), os.statvfs(self._folder)
        for field in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
            "f_namemax",
        ):
            setattr(answer, field, getattr(local, field))
        return answer

    # Files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        try:
            return FileInfo(fh=os.open(self._path(inode), flags & ~os.O_CREAT))
        except OSError as error:
            raise failing(error) from None

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        path = self._path(parent_inode, name)
        try:
            handle = os.open(path, flags | os.O_CREAT, mode & ~ctx.umask)
            if ctx.uid or ctx.gid:
                os.fchown(handle, ctx.uid, ctx.gid)
        except OSError as error:
            raise failing(error) from None
        return FileInfo(fh=handle), self._entry(parent_inode, name, path)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        try:
            return os.pwrite(fh, buf, off)
        except OSError as error:
            raise failing(error) from None

    async def flush(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        os.fdatasync(fh) if datasync else os.fsync(fh)

    async def release(self, fh: int) -> None:
        os.close(fh)

    # Folders: a listing is what was there at opendir, its cookie a position in it

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        path = self._path(inode)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with os.scandir(path) as entries:
                self._listings[handle] = inode, list(entries)
        except OSError as error:
            raise failing(error) from None
        return handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        inode, entries = self._listings[fh]
        for position in range(start_id, len(entries)):
            name = entries[position].name
            try:
                entry = self._entry(inode, name, self._path(inode, name))
            except FUSEError:
                continue  # gone since opendir
            if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                await self.forget([(entry.st_ino, 1)])
                break

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        os.fsync(fh)

    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]
        os.close(fh)


if __name__ == "__main__":
    os.umask(0)
    serve(Passthrough(sys.argv[1]), sys.argv[2], "passthrough")
