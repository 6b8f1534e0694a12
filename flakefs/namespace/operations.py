"""Changes of names, as several sessions may make them at once.

Purpose
    Alone, a change is made in memory and answered. In shared mode it is made in memory, committed, and then answered;
    when the commit meets a conflict, it is done again from its beginning, and so finds out that somebody was faster.

Invariants
    OP1  In shared mode nothing is answered that is not committed, and a refusal (Exists, NotFound...) is given only
         when the names concerned were read again, all at one moment, and led to what it was based on.
    OP3  So is the success of an operation that has nothing to change: no guard has tested what it was based on.
    OP4  What is not committed is shown to nobody: the kernel would keep it when it is taken back.
    OP2  An operation that began alone and ended in shared mode is committed before it is answered, too.

Concurrency
    Belongs to the trio thread.

Not here
    The changes themselves (namespace.changes, namespace.renames).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import random
from time import monotonic
from typing import TypeVar

import trio
import trio.lowlevel
from bson.int64 import Int64
from pymongo.client_session import ClientSession
from pymongo.database import Database

from flakefs.errors import (
    Conflict,
    Exists,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    PosixError,
    Stale,
    Unavailable,
)
from flakefs.format.documents import INODES, Document
from flakefs.format.names import to_stored
from flakefs.namespace.bindings import known_id
from flakefs.namespace.cache import STALE, Cache, Place
from flakefs.namespace.coherence import Coherence
from flakefs.namespace.entries import Entries, Named, known_facts
from flakefs.namespace.folders import at_one_moment, lies_inside
from flakefs.namespace.inode import Inode, Unknown
from flakefs.namespace.journal import Journal
from flakefs.namespace.renames import UNCHANGED, IntoItself

T = TypeVar("T")

PAUSE_SECONDS = 0.002
PAUSE_MAX_SECONDS = 0.2
FRESH_LOOKS = 5
"""How often a name is read in vain while others change it, before memory is asked."""
LISTINGS = 5
"""How often a page is read again because names in it are being changed here."""


class Operations:
    def __init__(self, cache: Cache, entries: Entries, journal: Journal, coherence: Coherence) -> None:
        self._cache = cache
        self._entries = entries
        self._journal = journal
        self._coherence = coherence
        self._patience = cache.options.error_timeout_seconds

    async def run(self, operation: Callable[[], Awaitable[T]], names: Named = (), inodes: tuple[Inode, ...] = ()) -> T:
        """OP1. *inodes*: others that it needs fresh."""
        deadline = monotonic() + self._patience
        attempt = 0
        while True:
            try:
                await self._refresh(names, inodes)
            except Stale as error:
                if names:
                    raise NotFound(str(error)) from error
                raise
            try:
                result = await operation()
            except Stale:
                if not names:
                    raise
                self._doubt_folders()  # somebody else has just removed what a name led to
            except IntoItself:
                if await self._lies_inside(names):
                    raise
                self._doubt_folders()
            except (Exists, NotFound, NotEmpty, IsDirectory, NotDirectory) as error:
                if not names or await self._stands(names, inodes, error):
                    raise
            else:
                if result is not UNCHANGED:
                    if await self.committed(names):
                        return result
                elif await self._stands(names, inodes):  # OP3
                    return result
            attempt += 1
            if monotonic() > deadline:
                raise Unavailable("other sessions keep changing the same names: try again")
            await trio.sleep(min(PAUSE_SECONDS * attempt, PAUSE_MAX_SECONDS) * random())

    async def committed(self, names: Named) -> bool:
        """What was changed just now is committed; False: it was taken back."""
        changing = self._cache.changing
        places = tuple((folder.ino, name) for folder, name in names)
        for place in places:
            changing[place] = changing.get(place, 0) + 1
        try:
            await self._journal.commit_changes()
        except Conflict:
            return False
        finally:
            for place in places:
                changing[place] -= 1
                if not changing[place]:
                    del changing[place]
                    self._coherence.changed((place,))
        self._coherence.committed(places)
        self._cache.touched(places)
        return True

    async def settled(self, places: tuple[Place, ...]) -> None:
        """Wait for the commit of changes of these names; there may be new ones on return."""
        if any(place in self._cache.changing for place in places):
            with suppress(Conflict):
                await self._journal.commit_changes()
            await trio.lowlevel.checkpoint()  # those who made the change have to hear of it

    async def look_up(self, parent: Inode, name: bytes, *, fresh: bool = False) -> Inode | None:
        """The inode of that name, or None; nothing that may still be taken back (OP4). *fresh*: read now.
        So is a name that somebody else took away just now: there may be more news of it under way.
        """
        place = (parent.ino, name)
        looks = FRESH_LOOKS if fresh or self._coherence.left_lately(place) else 0
        while True:
            await self.settled((place,))
            if looks:
                looks -= 1
                found = await self._entries.child_now(parent, name)
            else:
                found = await self._entries.child(parent, name)
            if place not in self._cache.changing and not isinstance(found, Unknown):
                return found

    async def listing(self, parent: Inode, after: int, limit: int) -> list[tuple[int, bytes, Inode]]:
        """Entries.listing(); a name that others here keep changing may be one that is taken back (OP4)."""
        for _ in range(LISTINGS):
            page = await self._entries.listing(parent, after, limit)
            if not (changing := self._cache.changing):
                break
            places = tuple((parent.ino, name) for _, name, _ in page)
            if not any(place in changing for place in places):
                break
            await self.settled(places)
        return page

    async def _refresh(self, names: Named, inodes: tuple[Inode, ...]) -> None:
        cache = self._cache
        for inode in (*(folder for folder, _ in names), *inodes):
            if cache.stale(inode) or inode.gone:
                await cache.get(inode.ino)

    async def _stands(self, names: Named, inodes: tuple[Inode, ...], error: PosixError | None = None) -> bool:
        """OP1; otherwise memory knows better now."""
        cache = self._cache
        places = tuple((folder.ino, name) for folder, name in names)
        if any(place in cache.changing for place in places):
            await self.settled(places)
            return False
        based_on = known_facts(names, inodes)
        if isinstance(error, NotEmpty):
            return await self._is_full(names[-1])
        return await self._entries.verify(names, inodes) == based_on

    async def _is_full(self, named: tuple[Inode, bytes]) -> bool:
        """Does this name lead to a folder with entries?"""
        cache = self._cache
        folder, name = named
        ino = known_id(folder, name) or 0
        child = cache.known.get(ino)
        if child is not None and child.entries and not (child.dirty or child.flying or cache.busy(child)):
            child.forget_entries()
        place = {"p": Int64(folder.ino), "n": to_stored(name), "_id": Int64(ino)}

        def look(db: Database[Document], moment: ClientSession) -> bool:
            queries: tuple[Document, Document] = {"p": Int64(ino)}, place
            return all(db[INODES].find_one(query, {"_id": 1}, session=moment) is not None for query in queries)

        return await cache.read(lambda db: at_one_moment(db, lambda moment: look(db, moment)))

    async def _lies_inside(self, names: Named) -> bool:
        """Would a folder come into itself, and not only as far as was known here?"""
        places = [(folder.ino, name) for folder, name in names]
        return await self._cache.read(lambda db: at_one_moment(db, lambda moment: lies_inside(db, places, moment)))

    def _doubt_folders(self) -> None:
        for inode in self._cache.known.values():
            if inode.entries is not None:
                inode.expires = STALE
