"""Opening a file by path for reading or writing, on the trio side.

Invariants
    O1  A handle that was opened is released, also when the operation fails or is cancelled.
    O2  Writing to a path that is a symlink writes to what it points to, as open(2) does.
    O3  What is made here gets its mode less the umask of this process; below, only the kernel does that.

Concurrency
    Trio thread only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from flakefs.api import replication
from flakefs.api.paths import named, place, reach, shown
from flakefs.errors import Exists, IsDirectory, NotFound, PosixError, TooManySymlinks
from flakefs.namespace import Inode
from flakefs.vfs import Caller, FileSystem

LINKS_MAX = 40


def caller() -> Caller:
    """Who acts: this process."""
    return Caller(os.geteuid(), os.getegid(), _umask(), os.getpid())


def _umask() -> int:
    """Read from /proc, because os.umask() would have to change it for a moment."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    return 0o022


async def open_handle(fs: FileSystem, path: bytes, flags: int, mode: int = 0o666, code: str = "") -> tuple[int, Inode]:
    """(handle, inode) of the regular file *path*; flags as in open(2): O_CREAT, O_EXCL, O_TRUNC and the access mode.

    *code*: the replication code that what is written gets; "" leaves the one that the file has or inherits.
    """
    if not code:
        return await _open_handle(fs, path, flags, mode)
    replication.check(fs, code)
    handle, inode = await _open_handle(fs, path, flags, mode)
    try:
        await replication.give(fs, inode, code)
    except BaseException:
        with trio.CancelScope(shield=True):
            await fs.release(handle)
        raise
    return handle, inode


async def _open_handle(fs: FileSystem, path: bytes, flags: int, mode: int) -> tuple[int, Inode]:
    for _ in range(LINKS_MAX):
        if not flags & os.O_CREAT:
            inode = await reach(fs, path)
        else:
            if path.endswith(b"/"):
                raise IsDirectory(f"{shown(path)} names a folder, not a file")
            parent, name, found = await place(fs, path)
            if found is None:
                who = caller()
                return await fs.create(parent.ino, name, mode & ~who.umask, flags, who)
            if flags & os.O_EXCL:
                raise Exists(f"{shown(path)} exists already")
            if stat.S_ISLNK(found.mode):
                target = await fs.readlink(found.ino)
                path = target if target.startswith(b"/") else path.rpartition(b"/")[0] + b"/" + target
                continue
            inode = found
        if stat.S_ISDIR(inode.mode):
            raise IsDirectory(f"{shown(path)} is a folder")
        if not stat.S_ISREG(inode.mode):
            raise named(PosixError(), path, "is no regular file: it has no content here")
        return await fs.open(inode.ino, flags & ~(os.O_CREAT | os.O_EXCL)), inode
    raise TooManySymlinks(f"{shown(path)}: too many symbolic links")


@asynccontextmanager
async def opened(
    fs: FileSystem, path: bytes, flags: int, mode: int = 0o666, code: str = ""
) -> AsyncIterator[tuple[int, Inode]]:
    """open_handle() for the time of the body; what was written is flushed at its end (O1)."""
    handle, inode = await open_handle(fs, path, flags, mode, code)
    async with releasing(fs, handle):
        yield handle, inode


@asynccontextmanager
async def releasing(fs: FileSystem, handle: int) -> AsyncIterator[None]:
    """Flush *handle* after the body, and release it whatever happens (O1)."""
    try:
        yield
        await fs.flush(handle)
    finally:
        with trio.CancelScope(shield=True):
            await fs.release(handle)


async def require_parent(fs: FileSystem, path: bytes) -> None:
    """Raise NotFound with a hint when the folder of *path* is missing."""
    try:
        await place(fs, path)
    except NotFound as error:
        raise named(error, path, "its folder does not exist; make it first") from error
