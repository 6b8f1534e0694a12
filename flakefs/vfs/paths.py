"""From paths to inodes, for callers without a kernel.

Rules
    L1  Components and symbolic links as in path_resolution(7); a path and an absolute link target start at the top
        folder of the file system. After 40 links it is a loop.

Concurrency
    What is in memory is answered without a checkpoint.
"""

from __future__ import annotations

import stat

from flakefs.errors import InvalidArgument, NotDirectory, NotFound, TooManySymlinks
from flakefs.namespace import Inode
from flakefs.values import ROOT_INO
from flakefs.vfs.filesystem import FileSystem

LINKS_MAX = 40


async def resolve(fs: FileSystem, path: bytes, *, follow: bool = True) -> Inode:
    """The inode that *path* names; *follow* a symbolic link at its end, too. Raises NotFound."""
    return await _walk(fs, path, follow or path.endswith(b"/"))


async def resolve_parent(fs: FileSystem, path: bytes) -> tuple[Inode, bytes]:
    """(folder, last name) of *path*; the name need not exist. The top folder has no parent."""
    head, _, name = path.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise InvalidArgument(f"{_text(path)} does not end in a name that could be made, moved or removed")
    folder = await _walk(fs, head, True)
    if not stat.S_ISDIR(folder.mode):
        raise NotDirectory(f"{_text(head)} is not a folder")
    return folder, name


async def _walk(fs: FileSystem, path: bytes, follow: bool) -> Inode:
    rest = path.split(b"/")[::-1]  # what is still to go, next component last
    current = await fs.inode(ROOT_INO)
    links = 0
    while rest:
        name = rest.pop()
        if name in (b"", b"."):
            if not stat.S_ISDIR(current.mode):
                raise NotDirectory(f"{_text(path)}: {current.name!r} is not a folder")
            continue
        found = await fs.lookup(current.ino, name)
        if found is None:
            raise NotFound(f"there is no {_text(path)}")
        if stat.S_ISLNK(found.mode) and (rest or follow):
            links += 1
            if links > LINKS_MAX:
                raise TooManySymlinks(f"{_text(path)} leads through more than {LINKS_MAX} symbolic links")
            if found.target.startswith(b"/"):
                current = await fs.inode(ROOT_INO)
            rest += found.target.split(b"/")[::-1]
            continue
        current = found
    return current


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace") or "/"
