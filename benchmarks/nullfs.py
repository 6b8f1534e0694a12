"""A pyfuse3 file system that keeps names and attributes in memory and no content at all.

Purpose
    The upper bound: what any file system in pyfuse3 can reach on this machine, because it does nothing but answer.
    Reads give zeros. Run as `python nullfs.py MOUNTPOINT`; it ends when it is unmounted.

Not here
    Permissions (the kernel checks them), limits, and anything that would cost time.
"""

from __future__ import annotations

import errno
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

ZEROS = bytes(1 << 20)


class NullFS(pyfuse3.Operations):
    """Names, attributes; nothing else. A file handle is the inode number."""

    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self._attributes: dict[int, EntryAttributes] = {}
        self._children: dict[int, dict[bytes, int]] = {}
        self._parent: dict[int, int] = {}
        self._targets: dict[int, bytes] = {}
        self._listings: dict[int, list[tuple[bytes, int]]] = {}
        self._next = pyfuse3.ROOT_INODE
        self._new(self._next, stat.S_IFDIR | 0o755, 0, 0)

    def _new(self, parent: int, mode: int, uid: int, gid: int) -> EntryAttributes:
        ino = self._next
        self._next = ino + 1
        entry = EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = mode
        entry.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        entry.st_uid = uid
        entry.st_gid = gid
        now = time.time_ns()
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = now
        self._attributes[ino] = entry
        if stat.S_ISDIR(mode):
            self._children[ino] = {}
            self._parent[ino] = parent
        return entry

    def _add(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        entry = self._new(parent, mode, ctx.uid, ctx.gid)
        self._children[parent][name] = entry.st_ino
        return entry

    def _drop(self, ino: int) -> None:
        entry = self._attributes[ino]
        entry.st_nlink -= 1
        if entry.st_nlink == 0:
            self._targets.pop(ino, None)

    # Names

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name == b"..":
            return self._attributes[self._parent[parent_inode]]
        ino = parent_inode if name == b"." else self._children[parent_inode].get(name)
        if ino is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes[ino]

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._add(parent_inode, name, mode, ctx)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._add(parent_inode, name, stat.S_IFDIR | mode, ctx)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        entry = self._add(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        entry.st_size = len(target)
        self._targets[entry.st_ino] = target
        return entry

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._targets[inode]

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        entry = self._attributes[inode]
        entry.st_nlink += 1
        self._children[new_parent_inode][new_name] = inode
        return entry

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._drop(self._children[parent_inode].pop(name))

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        ino = self._children[parent_inode][name]
        if self._children[ino]:
            raise FUSEError(errno.ENOTEMPTY)
        del self._children[parent_inode][name]

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        ino = self._children[parent_inode_old].pop(name_old)
        replaced = self._children[parent_inode_new].get(name_new)
        if replaced is not None:
            self._drop(replaced)
        self._children[parent_inode_new][name_new] = ino
        if ino in self._parent:
            self._parent[ino] = parent_inode_new

    # Attributes

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes[inode]

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        entry = self._attributes[inode]
        if fields.update_mode:
            entry.st_mode = attr.st_mode
        if fields.update_uid:
            entry.st_uid = attr.st_uid
        if fields.update_gid:
            entry.st_gid = attr.st_gid
        if fields.update_size:
            entry.st_size = attr.st_size
        if fields.update_atime:
            entry.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            entry.st_mtime_ns = attr.st_mtime_ns
        return entry

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(pyfuse3.ENOATTR)

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = answer.f_bfree = answer.f_bavail = 1 << 28
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 28
        answer.f_namemax = 255
        return answer

    # Files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=inode)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry = self._add(parent_inode, name, mode, ctx)
        return FileInfo(fh=entry.st_ino), entry

    async def read(self, fh: int, off: int, size: int) -> bytes:
        size = min(size, max(0, self._attributes[fh].st_size - off))
        return ZEROS if size == len(ZEROS) else ZEROS[:size]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        entry = self._attributes[fh]
        end = off + len(buf)
        if end > entry.st_size:
            entry.st_size = end
        return len(buf)

    async def flush(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    # Folders: a listing is what was there at opendir, its cookie a position in it

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self._listings[inode] = list(self._children[inode].items())
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._listings[fh]
        for position in range(start_id, len(listing)):
            name, ino = listing[position]
            if not pyfuse3.readdir_reply(token, name, self._attributes[ino], position + 1):
                break

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass

    async def releasedir(self, fh: int) -> None:
        pass

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass


def serve(operations: pyfuse3.Operations, mountpoint: str, name: str) -> None:
    """Answer until unmounted."""
    pyfuse3.init(operations, mountpoint, {*pyfuse3.default_options, f"fsname={name}", f"subtype={name}"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    serve(NullFS(), sys.argv[1], "nullfs")
