"""Names in folders: look-ups and listings, from memory where possible.

Invariants
    E1  Local knowledge wins: a name that the folder's `entries` has is never changed by what a query brings.
    E2  After every await everything is looked at again; results are built with no await after the last look.
    E3  A listing has every name that is there from its first call to its last exactly once, whatever else is added
        and removed meanwhile: a cookie is abs(document id), and a name keeps its cookie when its document changes.
    E4  An answer that was asked for before something in the folder was forgotten (`doubts`) may be older than what it
        was forgotten for: it says nothing about names.
    E5  Nobody waits for others to stop changing things: what is not known after some attempts is read at one moment
        (a name), or page by page like that of a large folder (a listing).

Concurrency
    Belongs to the trio thread. A folder is loaded by one task at a time; the others wait for it.

Not here
    Changing names (namespace.changes), loading in advance (namespace.prefetch).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from operator import itemgetter
from time import monotonic
from typing import Any

import trio
from bson.int64 import Int64

from flakefs.errors import Damaged, NotDirectory, Unavailable
from flakefs.format.documents import INODES, Document, InodeRecord, LinkRecord
from flakefs.format.names import to_stored
from flakefs.namespace.ahead import Ahead
from flakefs.namespace.bindings import enter, forget_name, has_moved, known_id, learn
from flakefs.namespace.cache import STALE, WAKE_SECONDS, Cache
from flakefs.namespace.folders import (
    Record,
    at_one_moment,
    look_up,
    read_folder,
    read_name,
    read_page,
    read_record,
)
from flakefs.namespace.inode import UNKNOWN, Inode, Link, Unknown, cookie_of
from flakefs.namespace.options import LISTING_MAX, LOOKUP_LOADS

Named = tuple[tuple[Inode, bytes], ...]
"""(folder, name), several."""
Facts = list[int | None]
"""What memory knows or a query says: ids of documents, 0 for no such name, None for unknown; then yes or no."""
Page = list[tuple[int, bytes, int]]
"""(cookie, name, ino)"""

LOOKS = 20
"""How often a look-up starts again because somebody else has changed something, until it is answered as E5 says."""
LOADS = 5
"""How often a folder is loaded for one question in vain, for the same reason."""

_COOKIE = itemgetter(0)
_MISSING = object()


class Entries:
    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.loading: dict[int, trio.Event] = {}  # folders that somebody loads
        self._ahead = Ahead(cache)

    # -- look-ups --

    def peek_child(self, parent: Inode, name: bytes) -> Inode | Unknown | None:
        """The inode of that name from memory; None: surely no such name; UNKNOWN: ask child()."""
        entries = parent.entries
        if entries is None:
            raise NotDirectory(f"{parent.name!r} is not a folder")
        if self.cache.expiring and self.cache.stale(parent):
            return UNKNOWN
        entry: Any = entries.get(name, _MISSING)
        if entry is _MISSING:
            return None if parent.complete else UNKNOWN
        if entry is None:
            return None
        inode = self.cache.peek(entry if entry.__class__ is int else entry.ino)
        if inode is None or (self.cache.expiring and has_moved(inode, entry, parent, name)):
            return UNKNOWN
        return inode

    async def child(self, parent: Inode, name: bytes) -> Inode | None:
        """The inode of that name, or None. Waits only when memory does not know."""
        for _ in range(LOOKS):
            found = self.peek_child(parent, name)
            if not isinstance(found, Unknown):
                return found
            _held = await self._look(parent, name)  # held, so that the smallest cache has them at the next look
        end = monotonic() + self.cache.options.error_timeout_seconds
        while monotonic() < end:
            found = self.peek_child(parent, name)
            if isinstance(found, Unknown):
                found = await self.child_now(parent, name)
            if not isinstance(found, Unknown):
                return found
        raise Unavailable(f"other sessions keep changing what {name!r} in folder {parent.ino} leads to: try again")

    async def child_now(self, parent: Inode, name: bytes) -> Inode | Unknown | None:
        """The same as it is stored at this moment (E5). UNKNOWN: it is changed here, or was meanwhile."""
        cache = self.cache
        place = (parent.ino, name)
        with cache.loading() as touched:
            record, target = await cache.read(lambda db: at_one_moment(db, lambda m: read_name(db, *place, m)))
            if place in touched or place in cache.changing:
                return UNKNOWN
            forget_name(parent, name)
            if record is None:
                return None
            if target is None:
                raise _leads_nowhere(parent, name, record.ino)
            learn(parent, name, record)
            return cache.adopt(target, touched) or UNKNOWN

    async def reread(self, inode: Inode) -> None:
        """Somebody else has changed it. What is changed here, too, is read again when its commit meets its guard."""
        if inode.dirty or inode.flying:
            self.cache.wake()
            await trio.sleep(WAKE_SECONDS)
        else:
            inode.expires = STALE
            await self.cache.get(inode.ino)

    async def _look(self, parent: Inode, name: bytes) -> list[Inode]:
        """Learn about *name*; what was loaded, to be held until the next look."""
        cache = self.cache
        if cache.expiring and cache.stale(parent):
            await cache.get(parent.ino)
        entries = parent.entries
        assert entries is not None
        entry = entries.get(name)
        if entry is not None:
            ino = entry if isinstance(entry, int) else entry.ino
            inode = cache.peek(ino) if cache.expiring else None
            if inode is not None and has_moved(inode, entry, parent, name):
                forget_name(parent, name)
                if inode.dirty or inode.flying:
                    await self.reread(inode)
                return []
            found, absent = await cache.fetch((ino,))
            if ino in absent and entries.get(name) is entry:
                if cache.expiring:  # it went elsewhere
                    forget_name(parent, name)
                    return []
                raise _leads_nowhere(parent, name, ino)
            await self._ahead.missed(parent, ino)
            return list(found.values())
        if name in entries or parent.complete:
            return []
        inode = self._ahead.take(parent, name)
        if inode is not None:
            self._make_room(parent)
            enter(parent, name, inode.ino)
            return [inode]
        busy = self.loading.get(parent.ino)
        if busy is not None:
            await busy.wait()
            return []
        most = 0 if parent.large or self._ahead.follows(parent) else LOOKUP_LOADS
        with cache.loading() as touched:
            doubts = parent.doubts
            whole, records = await cache.read(lambda db: look_up(db, parent.ino, name, most))
            if parent.doubts != doubts:
                return []  # E4
            held = self.absorb(parent, records, touched)
            if not parent.complete:
                if whole:
                    parent.complete = True
                    cache.keep(parent)
                elif name not in parent.entries and not records:  # type: ignore[operator]
                    parent.entries[name] = None  # type: ignore[index]
        if records and not whole:
            await self._ahead.missed(parent, abs(records[0][0]))
        return held

    async def verify(self, names: Named, inodes: Iterable[Inode] = ()) -> Facts:
        """Read again what these names lead to, and whether the folders and *inodes* have names, all at one moment; as
        known() says it.
        """
        cache = self.cache
        checked = [*(folder for folder, _ in names), *inodes]
        query: Document = {"$or": [{"p": Int64(folder.ino), "n": to_stored(name)} for folder, name in names]}
        query["$or"].append({"_id": {"$in": [Int64(inode.ino) for inode in checked]}})
        with cache.loading() as touched:
            records = await cache.read(
                lambda db: at_one_moment(
                    db, lambda moment: [read_record(document) for document in db[INODES].find(query, session=moment)]
                )
            )
            found = {(record.parent, record.name): record for record in records}
            result: Facts = []
            for folder, name in names:
                place = (folder.ino, name)
                record = found.get(place)
                result.append(record[0] if record is not None else 0)
                if place in touched:
                    forget_name(folder, name)
                elif place not in cache.changing and known_id(folder, name) != result[-1]:
                    forget_name(folder, name)  # nor is what else is known of the folder what it was
                    learn(folder, name, record)
                if isinstance(record, InodeRecord):
                    cache.adopt(record, touched)
        alive = {record.ino for record in records if isinstance(record, InodeRecord) and record.nlink}
        for inode in checked:
            result.append(inode.ino in alive)
            if result[-1] != bool(inode.nlink):
                inode.expires = STALE
        return result

    def absorb(self, parent: Inode, records: Iterable[Record], touched: set[object]) -> list[Inode]:
        """Merge what a query found in *parent* into memory (E1). The inodes that it brought, to be held."""
        held: list[Inode] = []
        entries = parent.entries
        assert entries is not None
        if parent.complete:
            entries = dict(entries)  # nothing new can be learned about names
        else:
            parent.order = None
            self._make_room(parent, 1)
        adopt = self.cache.adopt
        for record in records:
            if isinstance(record, LinkRecord):
                if record.name not in entries:
                    entries[record.name] = Link(record.id, parent.ino, record.name, record.ino, record.version)
                continue
            inode = adopt(record, touched)
            if inode is not None:
                held.append(inode)
            if record.name not in entries:
                entries[record.name] = record.ino
        return held

    def _make_room(self, parent: Inode, loads: int = 0) -> None:
        """In a large folder: forget names that were looked up one by one. *loads*: queries of the caller that run."""
        entries = parent.entries
        used = parent.dirty or parent.flying or self.cache.loads > loads or self.cache.busy(parent)
        if entries and len(entries) > LISTING_MAX and not used:
            entries.clear()
            parent.order = parent.aliases = None

    async def load(self, parent: Inode) -> list[Inode]:
        """Make a folder complete, or `large`. What was loaded, to be held; the caller looks again."""
        busy = self.loading.get(parent.ino)
        if busy is not None:
            await busy.wait()
            return []
        self.loading[parent.ino] = done = trio.Event()
        try:
            with self.cache.loading() as touched:
                doubts = parent.doubts
                records = await self.cache.read(lambda db: read_folder(db, parent.ino, LISTING_MAX))
                if parent.complete or parent.doubts != doubts:  # E4
                    return []
                if records is None:
                    parent.large = True
                    return []
                held = self.absorb(parent, records, touched)
                parent.complete = True
                self.cache.keep(parent)
                return held
        finally:
            del self.loading[parent.ino]
            done.set()

    # -- listings --

    async def listing(self, parent: Inode, after: int, limit: int) -> list[tuple[int, bytes, Inode]]:
        """Up to *limit* names with cookies > *after*, ascending; [] at the end."""
        held: list[Inode] = []
        lost: set[int] = set()
        ask = limit
        loads = LOADS
        while True:
            if parent.entries is None:
                raise NotDirectory(f"{parent.name!r} is not a folder")
            if self.cache.expiring and self.cache.stale(parent):
                await self.cache.get(parent.ino)
            if parent.complete:
                page = self._page(parent, after, limit, None)
            elif parent.large or not loads:
                page, more, loaded = await self._large_page(parent, after, ask)
                held += loaded
                if len(page) < limit and more:  # many of them are gone or known with another cookie
                    ask *= 2
                    continue
                del page[limit:]
            else:
                held += await self.load(parent)
                loads -= 1
                continue
            known, departed = self.cache.known, self.cache.departed
            result = [(cookie, name, known[ino]) for cookie, name, ino in page if ino in known and ino not in departed]
            missing = {ino for _, _, ino in page if ino not in known} - lost
            if self.cache.expiring and not self.cache.doubting:
                missing |= {inode.ino for _, _, inode in result if self.cache.stale(inode)}
            if not missing:
                return result
            found, absent = await self.cache.fetch(missing)
            held += found.values()
            lost |= absent  # names that lead nowhere are left out: fsck finds them

    def _page(self, parent: Inode, after: int, limit: int, horizon: int | None) -> Page:
        """Names that memory knows with after < cookie <= horizon."""
        entries = parent.entries
        assert entries is not None
        aliases = parent.aliases or {}
        order = parent.order
        if order is None or len(order) > 2 * len(entries) + 1000:
            order = parent.order = sorted(
                (aliases.get(name) or cookie_of(entry), name) for name, entry in entries.items() if entry is not None
            )
        page: Page = []
        for index in range(bisect_right(order, after, key=_COOKIE), len(order)):
            cookie, name = order[index]
            if horizon is not None and cookie > horizon:
                break
            entry = entries.get(name)
            if entry is None or cookie != (aliases.get(name) or cookie_of(entry)):
                continue
            page.append((cookie, name, entry if isinstance(entry, int) else entry.ino))
            if len(page) >= limit:
                return page
        if horizon is None:
            parent.order = None  # the end: the next listing makes its own
        return page

    async def _large_page(self, parent: Inode, after: int, limit: int) -> tuple[Page, bool, list[Inode]]:
        """A page of a folder that is not kept in memory: what the database has, corrected by what is known here.

        (page, whether there may be more, what was loaded)
        """
        with self.cache.loading() as touched:
            records = await self.cache.read(lambda db: read_page(db, parent.ino, after, limit))
            more = len(records) >= limit
            horizon = abs(records[-1][0]) if more else None
            entries = parent.entries
            assert entries is not None
            page = self._page(parent, after, limit, horizon)
            held = []
            for record in records:
                if isinstance(record, InodeRecord):
                    inode = self.cache.adopt(record, touched)
                    if inode is not None:
                        held.append(inode)
                if record.name not in entries:
                    page.append((abs(record[0]), record.name, record.ino))
        page.sort()
        return page, more, held

    async def is_empty(self, parent: Inode) -> bool | Unknown:
        """Without names? UNKNOWN: something was loaded, look again. False may be wrong in shared mode (E4)."""
        entries = parent.entries
        assert entries is not None
        if any(entry is not None for entry in entries.values()):
            return False
        if parent.complete:
            return True
        if not parent.large:
            for _ in range(LOADS):
                await self.load(parent)
                if parent.complete or parent.large:
                    return UNKNOWN
        doubts = parent.doubts
        page, more, _ = await self._large_page(parent, 0, LOOKUP_LOADS)
        while not page and more:  # all of them are removed here and not yet there
            page, more, _ = await self._large_page(parent, 0, 2 * len(entries) + LOOKUP_LOADS)
        if page or parent.doubts != doubts or any(entry is not None for entry in (parent.entries or {}).values()):
            return False
        parent.complete = True
        return UNKNOWN


def _leads_nowhere(parent: Inode, name: bytes, ino: int) -> Damaged:
    return Damaged(f"the name {name!r} in folder {parent.ino} leads to inode {ino}, which is not there: run fsck")


def known_facts(names: Named, inodes: Iterable[Inode] = ()) -> Facts:
    """What verify() is to confirm."""
    alive = [bool(inode.nlink) for inode in (*(folder for folder, _ in names), *inodes)]
    return [*(known_id(folder, name) for folder, name in names), *alive]
