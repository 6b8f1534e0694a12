"""A namespace for tests of what stands above it."""

from __future__ import annotations

from stat import S_IFREG
from types import SimpleNamespace
from typing import Any


class Space:
    """As much of a namespace as is asked."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.inodes: dict[int, Any] = {}
        self.known = self.inodes.get
        self.shared = True
        self.trusted = True
        self.read_only = False

    def add(self, ino: int, parent: int = 9, name: bytes = b"n") -> Any:
        self.held[ino] = 1
        inode = SimpleNamespace(ino=ino, parent=parent, name=name, version=1, mtime=0, size=0, nlink=1)
        inode.mode, inode.uid, inode.gid, inode.rdev, inode.target = S_IFREG, 0, 0, 0, b""
        inode.atime = inode.ctime = inode.used = 0
        inode.map = inode.entries = None
        self.inodes[ino] = inode
        return inode

    async def reread(self, ino: int) -> Any:
        return self.inodes[ino]
