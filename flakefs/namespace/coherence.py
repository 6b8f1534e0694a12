"""What other sessions changed, taken over into memory.

Invariants
    CO1  After news of a commit no clean inode and no name that it changed is answered from what was known before.
    CO2  What is not committed here is left alone: it meets its guard. A name that this session itself changed lately
         becomes unknown: the news may be older than the change. So does one of which news came while a change of it
         waited for its commit, once nothing of it waits: the news may be younger.
    CO3  When news may have been lost, nothing that is clean is believed any more; and the times of folders once more
         when those of that moment are written (namespace.times).

Concurrency
    Belongs to the trio thread; nothing here waits.

Not here
    Where news comes from (mongo.stream), when it is trusted (namespace.shared).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Protocol

from cachetools import LRUCache

from flakefs.format.news import CONTENT, GONE, BindingNews, News, decode_news
from flakefs.namespace.bindings import enter, forget_name, leave
from flakefs.namespace.cache import STALE, Cache, Place
from flakefs.namespace.inode import Inode, Link
from flakefs.namespace.times import Raise, apply

RECENT_SECONDS = 30.0
"""News is never later than this: a stream that lags more has been given up."""
RECENT_MAX = 10_000
LATE_SECONDS = 3.0
"""Times of which the news was lost are written by then."""
LEFT_SECONDS = 1.0
"""After this time news of what took a name's place has come."""


class KernelSide(Protocol):
    """Caches above this layer that are told of changes. Given by `fuse`; nothing waits."""

    def drop_inode(self, ino: int, *, content: bool) -> None: ...

    def drop_entry(self, parent: int, name: bytes) -> None: ...

    def named(self, ino: int, parent: int, name: bytes) -> None: ...  # and drop_entry() is called for its old name

    def drop_all(self) -> None: ...


class Coherence:
    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.kernel: KernelSide | None = None
        self.unnamed: Callable[[int], None] = lambda ino: None  # set once: the last name of an inode went elsewhere
        # Mutable
        self._recent: dict[Place, float] = {}
        self._missed: set[Place] = set()  # names in changes of ours, of which there was news meanwhile
        self._left: LRUCache[Place, float] = LRUCache(RECENT_MAX)  # names that somebody else took away: when
        self._numbers: dict[int, int] = {}
        self._late: float | None = None  # when folders are read again, because news was lost (CO3)
        self.applied = 0

    def changed(self, places: tuple[Place, ...]) -> None:
        """No change of these names here waits for its commit any more (CO2)."""
        for place in places:
            if place in self._missed:
                self._missed.discard(place)
                folder = self._cache.known.get(place[0])
                if folder is not None:
                    forget_name(folder, place[1])

    def committed(self, places: tuple[Place, ...]) -> None:
        """This session has changed these names (CO2)."""
        recent, now = self._recent, monotonic()
        for place in places:
            recent.pop(place, None)
            recent[place] = now
        while recent:
            place, when = next(iter(recent.items()))
            if now - when < RECENT_SECONDS and len(recent) <= RECENT_MAX:
                break
            del recent[place]

    def left_lately(self, place: Place) -> bool:
        """Has there been news lately that the name went away?"""
        when = self._left.get(place) if self._left else None
        return when is not None and monotonic() < when + LEFT_SECONDS

    def take(self, document: Mapping[str, Any]) -> None:
        """A change of another session's document."""
        value = document.get("news")
        if value is None:
            return
        news = decode_news(value)
        epoch = document["_id"]
        before = self._numbers.get(epoch)
        self._numbers[epoch] = news.number
        if not self._cache.shared:  # late news of a session that has left: older than what was made here since
            return
        self.applied += 1
        if news.all or (before is not None and news.number > before + 1):
            self.drop_all()
        else:
            self._apply(news)

    def drop_all(self) -> None:
        """CO3. Alone there is no news to lose: what this session knows is all there is, committed or not."""
        cache = self._cache
        if not cache.shared:
            return
        self._late = monotonic() + LATE_SECONDS
        self._missed.update(cache.changing)  # the news that is lost may have been of them
        for inode in list(cache.known.values()):
            inode.expires = STALE
            if inode.entries is None:
                continue
            if inode.ino in cache.absolute and (inode.dirty or inode.flying):
                # What was made alone is not committed: nobody else can have changed it. It stays complete, too: of a
                # name that was removed from a complete folder only that tells, until the commit.
                continue
            kept = {name: entry for name, entry in inode.entries.items() if (inode.ino, name) in cache.changing}
            inode.forget_entries()
            inode.entries = kept
        cache.touched(list(cache.known))
        self.forget_kernel()

    def doubt_times(self) -> None:
        """CO3. To be called now and then."""
        if self._late is None or monotonic() < self._late:
            return
        self._late = None
        cache = self._cache
        for inode in list(cache.known.values()):
            if inode.entries is not None:
                inode.expires = STALE
                self.drop_attributes(inode.ino)
        cache.touched(list(cache.known))

    def forget_kernel(self) -> None:
        """The kernel believes nothing that it was told."""
        if self.kernel is not None:
            self.kernel.drop_all()

    def drop_attributes(self, ino: int) -> None:
        """What the kernel was told about this inode was taken back."""
        if self.kernel is not None:
            self.kernel.drop_inode(ino, content=False)

    def _apply(self, news: News) -> None:
        cache, kernel = self._cache, self.kernel
        known = cache.known
        for ino, version, what in news.inodes:
            inode = known.get(ino)
            if inode is not None and (version > inode.version or what & GONE):
                inode.expires = STALE
            if what & GONE:
                self.unnamed(ino)
            if kernel is not None:
                kernel.drop_inode(ino, content=bool(what & CONTENT))
        cache.touched([ino for ino, *_ in (*news.inodes, *news.folders)])
        cache.touched([(parent, name) for parent, name, _, _, _ in news.bindings])
        for binding in news.bindings:
            place = (binding.parent, binding.name)
            if not binding.ino:
                self._left[place] = monotonic()
            else:
                self._left.pop(place, None)  # what took its place is known
            folder = known.get(binding.parent)
            if folder is not None and folder.entries is not None:
                self._bind(folder, binding)
            if kernel is not None:
                kernel.drop_entry(binding.parent, binding.name)
                if binding.ino:
                    kernel.named(binding.ino, binding.parent, binding.name)
        for ino, time, nlink, mset in news.folders:
            folder = known.get(ino)
            raised = Raise(time, mset)
            cache.times.heard(ino, raised)  # also for a folder that is read before it is written
            if folder is not None:
                apply(folder, raised)
                if nlink:
                    folder.expires = STALE
            if kernel is not None:
                kernel.drop_inode(ino, content=False)

    def _bind(self, folder: Inode, binding: BindingNews) -> None:
        parent, name, id, ino, version = binding
        place = (parent, name)
        if place in self._cache.changing:
            self._missed.add(place)
            return
        if place in self._recent:
            forget_name(folder, name)
            return
        entries = folder.entries
        assert entries is not None
        entry = entries.get(name)
        there = entry.id if isinstance(entry, Link) else entry
        if ino:
            if there != id:
                enter(folder, name, ino if id > 0 else Link(id, parent, name, ino, version))
            elif isinstance(entry, Link) and not entry.dirty:
                entry.version = max(entry.version, version)
        elif there == id:
            leave(folder, name)
        elif there is None and not folder.complete:
            entries[name] = None


__all__ = ["Coherence", "KernelSide"]
