"""Content of files without a name, released in steps; and what dead sessions left.

Invariants
    O1  An inode without a name whose content is not yet released is named by an orphan document, in the same
        transaction that takes its last name: whatever ends this process, a later session finds it.
    O2  In shared mode every file that loses its last name gets one, with the sessions that may use it (`waits`). Each
        takes itself off when it has no user of it; who finds that no live one is left deletes the inode.

Concurrency
    Belongs to the trio thread; run() is one task.

Not here
    Deciding that nobody uses an inode (namespace.changes), orphan documents (namespace.commit).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from bson.int64 import Int64
from pymongo.database import Database

from flakefs.errors import FlakeError
from flakefs.format.documents import ORPHANS, SESSIONS, Document
from flakefs.namespace.cache import Cache
from flakefs.namespace.inode import Inode
from flakefs.namespace.segments import Segments

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
ADOPT_BATCH = 500
SWEEP_SECONDS = 5.0
UNNAMED_MAX = 100_000
LEAVE_SECONDS = 3.0
LEAVE_PAUSE_SECONDS = 0.1


class Orphans:
    def __init__(self, cache: Cache, segments: Segments, *, epoch: int) -> None:
        self._cache = cache
        self._segments = segments
        self._epoch = epoch
        self._waiting: dict[int, Inode] = {}
        self._event = trio.Event()
        self._unused: dict[int, None] = {}  # to be taken off
        self._unnamed: dict[int, None] = {}  # lost their last name elsewhere
        self.sweep_soon = False
        self.bury: Callable[[Inode], None] = lambda inode: None  # set once by whoever builds both

    def release_content(self, inode: Inode) -> None:
        """Drop everything in *inode* bit by bit; then its document goes too."""
        self._waiting[inode.ino] = inode
        self._event.set()

    def unnamed(self, ino: int) -> None:
        """Another session removed the last name of an inode (O2)."""
        self._unnamed[ino] = None
        if ino not in self._cache.holds:
            self.unused(ino)
        while len(self._unnamed) > UNNAMED_MAX:
            del self._unnamed[next(iter(self._unnamed))]

    def unused(self, ino: int) -> None:
        """Nobody here uses the inode, which has perhaps no name (O2)."""
        inode = self._cache.known.get(ino)
        if ino in self._unnamed or (inode is not None and not inode.nlink):
            self._unnamed.pop(ino, None)
            self._unused[ino] = None
            self._event.set()

    def sweep(self) -> None:
        """Look for orphans that nobody waits for."""
        self.sweep_soon = True
        self._event.set()

    async def run(self) -> None:
        """First what dead sessions left, then what is asked for."""
        await self._retried(self._adopt)
        while True:
            await self._retried(self._drain)
            await self._retried(self._take_off)
            if self.sweep_soon:
                self.sweep_soon = False
                await self._retried(self._look_for_own)
                await self._retried(self._take_off)
                self.sweep_soon = False
                await self._retried(self._adopt)
            self._event = trio.Event()
            if not (self._unused or self._waiting or self.sweep_soon):
                with trio.move_on_after(SWEEP_SECONDS if self._cache.shared else float("inf")) as timer:
                    await self._event.wait()
                self.sweep_soon = self.sweep_soon or timer.cancelled_caught

    async def leave(self) -> None:
        """The session ends: nobody shall wait for it; what nobody waits for goes. A server that is away for a moment
        is asked again: what is left here stays until another session comes.
        """
        end = trio.current_time() + LEAVE_SECONDS
        while True:
            try:
                await self._cache.read(partial(_take_off_all, epoch=self._epoch))
                await self._adopt()
                return
            except FlakeError as error:
                if trio.current_time() >= end:
                    log.info("files without a name are left to the next session: %s", error)
                    raise
            await trio.sleep(LEAVE_PAUSE_SECONDS)

    async def _take_off(self) -> None:
        cache = self._cache
        while self._unused:
            inos = list(self._unused)[:ADOPT_BATCH]
            ready = [ino for ino in inos if ino not in cache.flying and ino not in cache.dirty]
            if not ready:
                await trio.sleep(0.02)  # the commit that makes the orphan document comes first
                continue
            ready = [ino for ino in ready if ino not in cache.holds]
            if ready:
                await cache.read(partial(_take_off, inos=[Int64(ino) for ino in ready], epoch=self._epoch))
                self.sweep_soon = True
            for ino in inos:
                if ino not in cache.flying and ino not in cache.dirty:
                    self._unused.pop(ino, None)

    async def _drain(self) -> None:
        while self._waiting:
            inode = next(iter(self._waiting.values()))
            await self._segments.truncate(inode, 0)
            del self._waiting[inode.ino]
            self.bury(inode)

    async def _look_for_own(self) -> None:
        """Orphans that wait for this session: it may have missed that they became some."""
        cache = self._cache
        for ino in await cache.read(partial(_waiting_for, epoch=self._epoch)):
            if ino in cache.holds:
                self._unnamed[ino] = None
            else:
                self._unused[ino] = None

    async def _adopt(self) -> None:
        """Take over orphans of sessions that are dead or unknown."""
        last = 0
        while True:
            inos = await self._cache.read(partial(_dead_orphans, epoch=self._epoch, after=last))
            if not inos:
                return
            last = inos[-1]
            found, absent = await self._cache.fetch(inos)
            named = {ino for ino, inode in found.items() if inode.nlink}
            for ino in set(found) - named:
                inode = found[ino]
                if inode.gone or inode.dirty or inode.flying or (inode.orphaned and not self._cache.expiring):
                    continue
                inode.orphaned = inode.free = True
                self._cache.nameless[ino] = inode
                if ino not in self._cache.holds:
                    self.bury(inode)
            wrong = [Int64(ino) for ino in absent | named]
            if wrong:  # documents that name nothing
                await self._cache.read(partial(_delete, inos=wrong))
            await self._drain()

    async def _retried(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
                return
            except FlakeError:  # the journal tells and retries; this can wait
                await trio.sleep(PAUSE_SECONDS)


def _delete(db: Database[Document], inos: list[Int64]) -> None:
    db[ORPHANS].delete_many({"_id": {"$in": inos}})


def _take_off(db: Database[Document], inos: list[Int64], epoch: int) -> None:
    db[ORPHANS].update_many({"_id": {"$in": inos}}, {"$pull": {"waits": epoch}})


def _waiting_for(db: Database[Document], epoch: int) -> list[int]:
    return [int(document["_id"]) for document in db[ORPHANS].find({"waits": epoch}, {"_id": 1})]


def _take_off_all(db: Database[Document], epoch: int) -> None:
    db[ORPHANS].update_many({"waits": epoch}, {"$pull": {"waits": epoch}})


def _dead_orphans(db: Database[Document], epoch: int, after: int) -> list[int]:
    """Those whose session is dead or left them to the others, and that no live one waits for (O2)."""
    alive = [document["_id"] for document in db[SESSIONS].find({"state": "alive"}, {"_id": 1})]
    query = {
        "_id": {"$gt": Int64(after)},
        "waits": {"$nin": [*alive, epoch]},
        "$or": [{"session": {"$nin": [*alive, epoch]}}, {"waits": {"$exists": True}}],
    }
    cursor = db[ORPHANS].find(query, {"_id": 1}).sort("_id", 1).limit(ADOPT_BATCH)
    return [int(document["_id"]) for document in cursor]
