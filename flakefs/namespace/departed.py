"""Folders that are gone, and that the kernel or a handle of this session still has.

Purpose
    As on a local file system: who works in a folder that somebody else removed finds it empty and without a name, and
    can make nothing in it. What it was is known from memory alone; its document is deleted.

Invariants
    DE1  A folder departs only when its document was not found by a query that nothing has overtaken, or when this
         session deleted it; only if it was stored before; and only while it is held. It comes back like any other when
         it is not believed any more and is found again.
    DE2  Nothing of it is ever stored: it is never marked dirty, and no times of it are noted.
    DE3  It is forgotten with its last user; of more than DEPARTED_MAX the one that was asked for longest ago is stale,
         and stays for as long only as something else holds it.

Concurrency
    Belongs to the trio thread; nothing here waits.

Not here
    Finding that it is gone (namespace.cache), files without a name (namespace.orphans).
"""

from __future__ import annotations

from cachetools import LRUCache

from flakefs.namespace.inode import Inode

DEPARTED_MAX = 10_000


class Departed(LRUCache[int, Inode]):
    """By number; held fast."""

    def __init__(self) -> None:
        super().__init__(DEPARTED_MAX)

    def takes(self, inode: Inode, held: bool) -> bool:
        """*inode* is no more. Does it stay in memory (DE1)?"""
        inode.nlink = 0
        if inode.entries is None or not held or inode.version == 0:
            self.pop(inode.ino, None)
            return False
        inode.parent, inode.name, inode.was = -inode.ino, b"", None
        inode.gone = inode.dirty = inode.flying = inode.orphaned = False
        inode.forget_entries()
        inode.complete = True
        self[inode.ino] = inode
        return True

    def popitem(self) -> tuple[int, Inode]:
        """DE3."""
        ino, inode = super().popitem()
        inode.expires = -1.0
        return ino, inode
