"""Names in folders: look-ups and listings, from memory where possible.

Invariants
    E1  Local knowledge wins: a name that the folder's `entries` has is never changed by what a query brings.
    E2  After every await everything is looked at again; results are built with no await after the last look.
    E3  A listing has every name that is there from its first call to its last exactly once, whatever else is added
        and removed meanwhile: a cookie is abs(document id), and a name keeps its cookie when its document changes.
    E4  An answer that was asked for before something in the folder was forgotten (`doubts`) may be older than what it
        was forgotten for: it says nothing about names.

Concurrency
    Belongs to the trio thread. A folder is loaded by one task at a time; the others wait for it.

Not here
    Changing names (namespace.changes), loading in advance (namespace.prefetch).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import trio
from bson.int64 import Int64

from flakefs.errors import Damaged, NotDirectory
from flakefs.format.documents import INODES, InodeRecord, LinkRecord
from flakefs.format.names import to_stored
from flakefs.namespace.cache import Cache
from flakefs.namespace.folders import Record, at_one_moment, look_up, read_folder, read_page, read_record
from flakefs.namespace.inode import UNKNOWN, Entry, Inode, Link, Unknown, cookie_of
from flakefs.namespace.options import LISTING_MAX, LOOKUP_LOADS

Named = tuple[tuple[Inode, bytes], ...]
"""(folder, name), several."""
Page = list[tuple[int, bytes, int]]
"""(cookie, name, ino)"""

WAKE_SECONDS = 0.01

_COOKIE = itemgetter(0)
_MISSING = object()


class Entries:
    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.loading: dict[int, trio.Event] = {}  # folders that somebody loads

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
        while True:
            found = self.peek_child(parent, name)
            if not isinstance(found, Unknown):
                return found
            _held = await self._look(parent, name)  # held, so that the smallest cache has them at the next look

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
                if inode.dirty or inode.flying:  # it is read again when its commit meets the guard
                    cache.wake()
                    await trio.sleep(WAKE_SECONDS)
                return []
            found, absent = await cache.fetch((ino,))
            if ino in absent and entries.get(name) is entry:
                if cache.shared:  # it went elsewhere
                    forget_name(parent, name)
                    return []
                raise Damaged(
                    f"the name {name!r} in folder {parent.ino} leads to inode {ino}, which is not there: run fsck"
                )
            return list(found.values())
        if name in entries or parent.complete:
            return []
        busy = self.loading.get(parent.ino)
        if busy is not None:
            await busy.wait()
            return []
        most = 0 if parent.large else LOOKUP_LOADS
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
        return held

    async def verify(self, names: Named) -> list[int | None]:
        """Read again what these names lead to, all at one moment: ids of documents, 0 for no such name."""
        cache = self.cache
        query = {"$or": [{"p": Int64(folder.ino), "n": to_stored(name)} for folder, name in names]}
        with cache.loading() as touched:
            records = await cache.read(
                lambda db: at_one_moment(
                    db, lambda moment: [read_record(document) for document in db[INODES].find(query, session=moment)]
                )
            )
            found = {(record.parent, record.name): record for record in records}
            result: list[int | None] = []
            for folder, name in names:
                place = (folder.ino, name)
                record = found.get(place)
                result.append(record[0] if record is not None else 0)
                if place in touched:
                    forget_name(folder, name)
                elif place not in cache.changing and known_id(folder, name) != result[-1]:
                    _learn(folder, name, record)
                if isinstance(record, InodeRecord):
                    cache.adopt(record, touched)
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
            if len(entries) > LISTING_MAX and not (
                parent.dirty or parent.flying or self.cache.loads > 1 or self.cache.busy(parent)
            ):
                entries.clear()  # a large folder: names that were looked up one by one
                parent.aliases = None
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
        while True:
            if parent.entries is None:
                raise NotDirectory(f"{parent.name!r} is not a folder")
            if self.cache.expiring and self.cache.stale(parent):
                await self.cache.get(parent.ino)
            if parent.complete:
                page = self._page(parent, after, limit, None)
            elif parent.large:
                page, more, loaded = await self._large_page(parent, after, ask)
                held += loaded
                if len(page) < limit and more:  # many of them are gone or known with another cookie
                    ask *= 2
                    continue
                del page[limit:]
            else:
                held += await self.load(parent)
                continue
            known = self.cache.known
            result = [(cookie, name, known[ino]) for cookie, name, ino in page if ino in known]
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
        """Without names? UNKNOWN: something was loaded, look again."""
        entries = parent.entries
        assert entries is not None
        if any(entry is not None for entry in entries.values()):
            return False
        if parent.complete:
            return True
        if not parent.large:
            await self.load(parent)
            return UNKNOWN
        page, more, _ = await self._large_page(parent, 0, LOOKUP_LOADS)
        while not page and more:  # all of them are removed here and not yet there
            page, more, _ = await self._large_page(parent, 0, 2 * len(entries) + LOOKUP_LOADS)
        if not page and not any(entry is not None for entry in entries.values()):
            parent.complete = True
        return UNKNOWN if parent.complete else False


# -- changing what memory knows; used by namespace.changes --


def enter(parent: Inode, name: bytes, entry: int | Link, cookie: int | None = None) -> None:
    """*name* leads to *entry* now. *cookie*: where a listing had it until now (E3)."""
    entries = parent.entries
    assert entries is not None
    entries[name] = entry
    aliases = parent.aliases
    if aliases is not None:
        aliases.pop(name, None)
    at = cookie_of(entry)
    if cookie is not None and cookie != at:
        if aliases is None:
            aliases = parent.aliases = {}
        aliases[name] = at = cookie
    order = parent.order
    if order is not None:
        if not order or at > order[-1][0]:
            order.append((at, name))
        else:
            parent.order = None


def leave(parent: Inode, name: bytes) -> None:
    """*name* is gone."""
    entries = parent.entries
    assert entries is not None
    if parent.complete:
        del entries[name]
    else:
        entries[name] = None
    if parent.aliases is not None:
        parent.aliases.pop(name, None)


def has_moved(inode: Inode, entry: Entry, parent: Inode, name: bytes) -> bool:
    """Does the inode have another place than the entry says, because of another session?"""
    return isinstance(entry, int) and (inode.parent != parent.ino or inode.name != name)


def known_id(folder: Inode, name: bytes) -> int | None:
    """The id of the document that holds a name, as far as memory knows; 0: there is none, None: unknown."""
    entries = folder.entries or {}
    if name not in entries:
        return 0 if folder.complete else None
    entry = entries[name]
    return 0 if entry is None else entry if isinstance(entry, int) else entry.id


def _learn(folder: Inode, name: bytes, record: Record | None) -> None:
    """A query says what *name* leads to."""
    entries = folder.entries
    if entries is None:
        return
    if isinstance(record, LinkRecord):
        enter(folder, name, Link(record.id, folder.ino, name, record.ino, record.version))
    elif record is not None:
        enter(folder, name, record.ino)
    elif name in entries:
        leave(folder, name)
    elif not folder.complete:
        entries[name] = None


def forget_name(parent: Inode, name: bytes) -> None:
    """Nothing is known of *name* any more."""
    if parent.entries is not None:
        parent.entries.pop(name, None)
        parent.doubts += 1
        parent.complete = False
        parent.order = None


def cookie_at(parent: Inode, name: bytes, entry: Entry) -> int:
    """The cookie that listings show for a name that is there."""
    assert entry is not None
    return (parent.aliases or {}).get(name) or cookie_of(entry)
