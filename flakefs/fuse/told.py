"""Which inode the kernel takes a name for, in shared mode.

Purpose
    After a rename the kernel moves its own entry, whatever the name led to when the rename was done: where another
    mount had just given the name to another file, it would show the old file under the new name, and take a rename to
    the old file's other name for one between two names of one file, which does nothing and succeeds.

Invariants
    TO1  What agrees() affirms is what the kernel believes when it asks by that name: it was told that last, or has
         moved it itself. That it was told to forget the name changes nothing: then it looks it up before it asks. What
         is not known is not affirmed. Nor is a name that was told to lead to another inode before, until the kernel has
         forgotten it: a rename may be on its way that found the name before. Looking a known name up once more holds no
         lock of the folder, forgetting it does: that comes after every such rename.
    TO2  A name that another mount took away from a file with one name is noticed when the kernel is given the new one,
         and dropped at once, before there is news of it: until then the kernel says by itself that a rename between
         both has nothing to do.

Concurrency
    Trio task only; nothing waits.

Not here
    Making the kernel forget (fuse.caches), what it would do wrong (fuse.repeats, fuse.stand_ins).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable
from math import inf
from time import monotonic

from cachetools import LRUCache

from flakefs.namespace import Inode

TOLD_MAX = 20_000
"""Of a name that is not remembered any more a rename takes one more question."""
ON_ITS_WAY_SECONDS = 1.0
"""No request by a name takes longer to get here after the kernel has forgotten the name."""

Place = tuple[int, bytes]
"""(folder, name)"""


class Told:
    def __init__(self) -> None:
        self._inos: LRUCache[Place, int] = LRUCache(TOLD_MAX)
        self._places: LRUCache[int, Place] = LRUCache(TOLD_MAX)  # of each inode the name that was told last
        self._forgotten: LRUCache[Place, int] = LRUCache(TOLD_MAX)  # what names led to that it is to forget
        self._doubted: LRUCache[Place, None] = LRUCache(TOLD_MAX)  # it is to forget them, and may hold something older
        self.empty = True

    def given(self, place: Place, inode: Inode | None) -> bool:
        """The kernel is told that the name leads to *inode*, None: nowhere. Must it forget the name, because it may
        take it for something else yet?
        """
        self.empty = False
        ino = inode.ino if inode is not None else 0
        before = self._inos.get(place) or self._forgotten.pop(place, 0)
        self._inos[place] = ino
        if ino:
            self._places[ino] = place
        if before in (0, ino):
            return False
        self._doubted[place] = None
        return True

    def forget(self, place: Place) -> int:
        """What the kernel was told that the name leads to; 0: nowhere, or that is not remembered."""
        ino = self._inos.pop(place, 0)
        if ino:
            self._forgotten[place] = ino
        return ino

    def forgotten(self, place: Place) -> None:
        """The kernel has forgotten the name, and asks for nothing that it found by it before."""
        self._forgotten.pop(place, None)
        self._doubted.pop(place, None)

    def unknown(self, place: Place) -> None:
        """The kernel holds nothing there."""
        self._inos.pop(place, None)
        self._forgotten.pop(place, None)

    def doubted(self, place: Place) -> None:
        """The kernel may have moved something else there; it is to forget that."""
        self.unknown(place)
        self._doubted[place] = None

    def clear(self) -> list[tuple[Place, int]]:
        """Forget what the kernel was told: the names that lead somewhere, and where."""
        if self.empty:
            return []
        known = [(place, ino) for place, ino in self._inos.items() if ino]
        self._inos, self._places, self.empty = LRUCache(TOLD_MAX), LRUCache(TOLD_MAX), True
        self._forgotten, self._doubted = LRUCache(TOLD_MAX), LRUCache(TOLD_MAX)
        return known

    def other_name(self, place: Place, inode: Inode) -> Place | None:
        """Another name that the kernel takes for this inode, too (TO2)."""
        other = self._places.get(inode.ino)
        return other if other is not None and other != place and self._inos.get(other) == inode.ino else None

    def agrees(self, place: Place, inode: Inode | None) -> bool:
        """Does the kernel take the name for this inode, None: for one that is not there (TO1)?"""
        if place in self._doubted:
            return False
        ino = self._inos.get(place)
        return (self._forgotten.get(place) if ino is None else ino) == (inode.ino if inode is not None else 0)

    def moved(self, old: Place, new: Place, ino: int, other: int = 0) -> None:
        """The kernel has moved its entry of this inode; *other*: it has exchanged it with the one of this."""
        self.unknown(old)
        self._is(new, ino)
        if other:
            self._is(old, other)

    def _is(self, place: Place, ino: int) -> None:
        self.unknown(place)
        self._inos[place] = ino
        self._places[ino] = place


class Leaving:
    """Names that the kernel is being made to forget, and those that it has just forgotten: a request by one may be on
    its way. By the inodes that it takes them for; several each, for one may be followed from name to name.
    """

    def __init__(self) -> None:
        self.names: dict[int, dict[Place, float]] = {}  # until when a request may come; empty: nothing to ask for
        self._pending: dict[Place, set[int]] = {}
        self._gone: deque[tuple[float, int, Place]] = deque()  # in the order in which they may be taken out of names

    def add(self, place: Place, ino: int) -> None:
        self.names.setdefault(ino, {})[place] = inf
        self._pending.setdefault(place, set()).add(ino)

    def dropped(self, except_for: Container[Place], places: Iterable[Place] | None = None) -> None:
        """The kernel has forgotten these names, None: all, but for those that are to be dropped again."""
        self._clean()
        until = monotonic() + ON_ITS_WAY_SECONDS
        for place in list(self._pending if places is None else places):
            if place not in except_for:
                for ino in self._pending.pop(place, ()):
                    self.names[ino][place] = until
                    self._gone.append((until, ino, place))

    def misleads(self, ino: int, place: Place) -> bool:
        """May the kernel take another name than this for the inode?"""
        self._clean()
        return any(other != place for other in self.names.get(ino, ()))

    def holds(self, ino: int, place: Place) -> bool:
        """Does the kernel take another name than this for the inode, as far as we know?"""
        return any(other != place and until == inf for other, until in self.names.get(ino, {}).items())

    def _clean(self) -> None:
        now, gone, names = monotonic(), self._gone, self.names
        while gone and gone[0][0] < now:
            until, ino, place = gone.popleft()
            if names.get(ino, {}).get(place) == until:
                del names[ino][place]
                if not names[ino]:
                    del names[ino]
