"""Inodes of large folders, read before they are asked for.

Purpose
    Whoever goes through a large folder name by name (rm -r, tar) meets inodes that are not in memory, one after the
    other, in the order of the listing: one query brings those that follow.

Invariants
    R1  Nothing is believed for having been read in advance: an inode in memory says itself which name it has now.
    R2  Bounded: AHEAD_MAX inodes of each of the FOLDERS_MAX last folders. Who jumps about causes no further queries.
    R3  Only while this session is alone, so that no news of others has to be minded.

Concurrency
    Belongs to the trio thread.

Not here
    Sub-folders loaded in advance (namespace.prefetch).
"""

from __future__ import annotations

from cachetools import LRUCache

from flakefs.format.documents import InodeRecord
from flakefs.namespace.cache import Cache
from flakefs.namespace.folders import read_page
from flakefs.namespace.inode import Inode

AHEAD_FIRST = 16
AHEAD_MAX = 512
"""Inodes that one query brings; it is doubled up to that."""
NEAR = 1_000
"""So far after what was read last is still the same direction."""
FOLDERS_MAX = 4


class Run:
    """How one folder was gone through lately."""

    __slots__ = ("end", "inodes", "size", "start")

    def __init__(self) -> None:
        self.start = self.end = 0
        """Cookies of what was read last."""
        self.size = 0
        self.inodes: dict[bytes, Inode] = {}


class Ahead:
    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._runs: LRUCache[int, Run] = LRUCache(FOLDERS_MAX)

    def follows(self, parent: Inode) -> bool:
        """Was a name in it looked for lately that memory did not have?"""
        return parent.ino in self._runs

    def take(self, parent: Inode, name: bytes) -> Inode | None:
        """The inode of that name, if it was read in advance (R1)."""
        run = self._runs.get(parent.ino)
        if run is None or self._cache.expiring:
            return None
        inode = run.inodes.pop(name, None)
        if inode is None or inode.gone or inode.expires < 0 or inode.place != (parent.ino, name):
            return None
        return inode

    async def missed(self, parent: Inode, cookie: int) -> None:
        """An entry of *parent* was not in memory: read what follows it when that is what is asked for next."""
        cache = self._cache
        if cache.expiring:  # R3
            self._runs.clear()
            return
        run = self._runs.get(parent.ino)
        if run is None:
            run = self._runs[parent.ino] = Run()
        if not run.start < cookie <= run.end + NEAR:
            run.size = 0
        elif run.size:
            run.size = min(2 * run.size, AHEAD_MAX)
        else:
            run.size = AHEAD_FIRST
        run.start = run.end = cookie
        run.inodes = {}
        if not run.size:
            return
        limit = run.size
        with cache.loading() as touched:
            records = await cache.read(lambda db: read_page(db, parent.ino, cookie, limit))
            if not records or cache.expiring:
                return
            adopted = [cache.adopt(record, touched) for record in records if isinstance(record, InodeRecord)]
        run.end = max(run.end, abs(records[-1][0]))
        run.inodes = {inode.name: inode for inode in adopted if inode is not None}
