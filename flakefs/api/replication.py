"""Replication codes of files and folders, on the trio side.

Invariants
    RC1  A code that cannot be is refused before anything is made, emptied or written.

Concurrency
    Trio thread only.

Not here
    What a code means (format.placement), who inherits it (vfs.replication), the file system's own (engine.admin).
"""

from __future__ import annotations

import stat

from flakefs.api.paths import reach, shown
from flakefs.errors import InvalidArgument, NoAttribute
from flakefs.namespace import Inode
from flakefs.vfs import FileSystem
from flakefs.vfs.replication import ATTRIBUTE, own_code


async def code_at(fs: FileSystem, path: bytes) -> tuple[str, bool]:
    """(code that new content at *path* gets, is it the path's own and not the file system's?)."""
    inode = await _kept_by(fs, path)
    return own_code(inode) or fs.default_code, bool(own_code(inode))


async def change(fs: FileSystem, path: bytes, code: str | None) -> None:
    """Give *path* a code of its own, or with None take it away: then the file system's counts again."""
    inode = await _kept_by(fs, path)
    if code is not None:
        check(fs, code)  # before vfs finds out, which would log it: here the caller is told
        await fs.setxattr(inode.ino, ATTRIBUTE, code.encode())
        return
    try:
        await fs.removexattr(inode.ino, ATTRIBUTE)
    except NoAttribute:
        raise NoAttribute(f"{shown(path)} has no replication code of its own") from None


def check(fs: FileSystem, code: str) -> None:
    """Raise InvalidArgument for a code that is none, or that the nodes cannot satisfy (RC1)."""
    fs.check_replication(code.encode())


async def give(fs: FileSystem, inode: Inode, code: str) -> None:
    """The code for what is about to be written; "" leaves the one it has."""
    if code and own_code(inode) != code:
        await fs.setxattr(inode.ino, ATTRIBUTE, code.encode())


async def _kept_by(fs: FileSystem, path: bytes) -> Inode:
    inode = await reach(fs, path)
    if not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)):
        raise InvalidArgument(f"{shown(path)} is neither a file nor a folder: it has no content to replicate")
    return inode
