"""Folders loaded before they are asked for, so that walking a cold tree costs few round trips.

Purpose
    Whoever lists a folder will likely look into its sub-folders. One query brings the entries of many folders. A folder
    that was loaded in advance and is then listed shows that somebody walks the tree: from there on queries also take
    what lies below other folders that were loaded in advance (the frontier), level by level.

Invariants
    A1  Bounded: at most DOCUMENTS_MAX documents and FOLDERS_MAX folders in one query, and a quarter of the cache
        for one walk.
    A2  Nothing depends on it: what fails is forgotten.

Concurrency
    Belongs to the trio thread; run() is one task.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import groupby
from time import monotonic

import trio
from bson.int64 import Int64
from pymongo.database import Database

from flakefs.errors import FlakeError
from flakefs.format.documents import INODES, Document
from flakefs.namespace.entries import Entries
from flakefs.namespace.folders import Record, read_record
from flakefs.namespace.inode import Inode

DOCUMENTS_MAX = 5_000
FOLDERS_MAX = 500
FRONTIER_MAX = 5_000
ABSORB_BATCH = 500
"""Documents merged into memory before others may run."""


class Batch:
    """Folders to be loaded together; whoever wants one of them meanwhile waits for `done`."""

    def __init__(self) -> None:
        self.folders: dict[int, Inode] = {}
        self.done = trio.Event()
        self.deep = False


class Prefetch:
    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._cache = entries.cache
        self._budget = self._cache.options.cached_inodes // 4
        self._next = Batch()
        self._event = trio.Event()
        self._frontier: dict[int, None] = {}  # loaded in advance, with sub-folders that are perhaps unknown

    def listed(self, folder: Inode) -> None:
        """*folder* is being listed from its beginning."""
        if self._budget:
            self._claim(self._next, (folder,))
            if self._next.folders:
                self._next.deep = self._next.deep or folder.prefetched
                self._event.set()

    async def run(self) -> None:
        try:
            while True:
                await self._event.wait()
                self._event = trio.Event()
                batch, self._next = self._next, Batch()
                try:
                    await self._walk(batch)
                except FlakeError:
                    await trio.sleep(1)  # A2
        finally:
            self._budget = 0  # nobody will load what is claimed from now on
            self._release(self._next)

    async def _walk(self, batch: Batch) -> None:
        budget = self._budget
        while True:
            if batch.deep:
                self._widen(batch)
            if not batch.folders:
                return
            budget -= await self._load(batch, min(budget, DOCUMENTS_MAX))
            if budget <= 0 or not batch.deep or self._next.folders:  # somebody waits for the next batch
                return
            batch = Batch()
            batch.deep = True

    def _widen(self, batch: Batch) -> None:
        """Fill the batch from the frontier."""
        known = self._cache.known
        while self._frontier and len(batch.folders) < FOLDERS_MAX:
            ino = next(iter(self._frontier))
            del self._frontier[ino]
            folder = known.get(ino)
            if folder is not None:
                self._claim(batch, (folder,))

    def _claim(self, batch: Batch, folders: Iterable[Inode]) -> None:
        """Add the sub-folders that are worth loading."""
        known = self._cache.known
        loading = self._entries.loading
        stale = monotonic() if self._cache.read_only else 0.0
        for folder in folders:
            for entry in (folder.entries or {}).values():
                inode = known.get(entry) if isinstance(entry, int) else None
                if (
                    inode is not None
                    and inode.entries is not None
                    and not (inode.complete or inode.large)
                    and inode.ino not in loading
                    and inode.expires >= stale
                ):
                    if len(batch.folders) >= FOLDERS_MAX:
                        return
                    batch.folders[inode.ino] = inode
                    loading[inode.ino] = batch.done

    def _release(self, batch: Batch) -> None:
        for ino in batch.folders:
            self._entries.loading.pop(ino, None)
        batch.done.set()

    async def _load(self, batch: Batch, limit: int) -> int:
        """Load them together; how many documents that were."""
        by_ino = batch.folders
        try:
            with self._cache.loading() as touched:
                doubts = {ino: folder.doubts for ino, folder in by_ino.items()}
                query = partial(read_folders, inos=sorted(by_ino), limit=limit + 1)
                groups, count = await self._cache.read(query, wait=False)
                if count > limit:  # the last ones were not read, and one perhaps not whole
                    last = max(groups)
                    by_ino = {ino: folder for ino, folder in by_ino.items() if ino < last}
                merged = 0
                for ino, folder in by_ino.items():
                    if not folder.complete and not folder.gone and folder.doubts == doubts[ino]:
                        records = groups.get(ino, [])
                        self._entries.absorb(folder, records, touched)
                        folder.complete = folder.prefetched = True
                        self._cache.keep(folder)
                        if folder.nlink > 2 and len(self._frontier) < FRONTIER_MAX:
                            self._frontier[ino] = None
                        merged += len(records)
                    if merged > ABSORB_BATCH:
                        merged = 0
                        await trio.lowlevel.checkpoint()
                return count
        finally:
            self._release(batch)


def read_folders(db: Database[Document], inos: list[int], limit: int) -> tuple[dict[int, list[Record]], int]:
    """(entries by folder, how many documents); of the last folder perhaps not all when *limit* was reached."""
    cursor = db[INODES].find({"p": {"$in": [Int64(ino) for ino in inos]}}, limit=limit, batch_size=limit + 1)
    documents = list(cursor.sort([("p", 1), ("_id", 1)]))
    groups = {
        int(ino): [read_record(document) for document in group]
        for ino, group in groupby(documents, key=lambda document: document["p"])
    }
    return groups, len(documents)
