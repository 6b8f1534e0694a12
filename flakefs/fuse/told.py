"""Which inode the kernel takes a name for, in shared mode, and renames of names that lead elsewhere by now.

Purpose
    After a rename the kernel moves its own entry, whatever the name led to when the rename was done: where another
    mount had just given the name to another file, it would show the old file under the new name, and take a rename to
    the old file's other name for one between two names of one file, which does nothing and succeeds.

Invariants
    TO1  What agrees() affirms is what the kernel believes: it was told that last, or has moved it itself, and was not
         told to forget it. What is not known is not affirmed.
    TO2  A rename that is refused for that is refused once: with ESTALE the kernel looks all names up again and repeats
         the call. The second time it is done, and the kernel is to forget the names afterwards. So is the open() of a
         file by a name that has gone elsewhere.
    TO3  The look-ups of a call that is repeated are answered by the store: memory may have heard of a part only.
    TO4  A name that another mount took away from a file with one name is noticed when the kernel is given the new one,
         and dropped at once, before there is news of it: until then the kernel says by itself that a rename between
         both has nothing to do. (Nothing can be done about a rename that asks for the new name while it holds the
         folder. ESTALE would not do: mkdir(2) and link(2) do not look again, but fail with it.)

Concurrency
    Trio task only; nothing waits.

Not here
    Making the kernel forget (fuse.caches), the rename (namespace.renames).
"""

from __future__ import annotations

from time import monotonic

from cachetools import LRUCache

from flakefs.namespace import Inode

TOLD_MAX = 20_000
"""Of a name that is not remembered any more a rename takes one more question."""
REPEATED_MAX = 1_000
REPEAT_SECONDS = 5.0
"""The kernel repeats a call at once, unless a look-up before it fails."""

Place = tuple[int, bytes]
"""(folder, name)"""
Rename = tuple[int, Place, Place, int]
"""(thread that asks, old, new, flags)"""
Asked = Rename | int
"""A rename, or the thread that asks to open something: it may be another inode the second time."""


class Told:
    def __init__(self) -> None:
        self._inos: LRUCache[Place, int] = LRUCache(TOLD_MAX)
        self._places: LRUCache[int, Place] = LRUCache(TOLD_MAX)  # of each inode the name that was told last
        self._refused: LRUCache[Asked, float] = LRUCache(REPEATED_MAX)  # TO2: when
        self._repeating: LRUCache[int, float] = LRUCache(REPEATED_MAX)  # TO3: threads, since when

    def given(self, place: Place, inode: Inode | None) -> None:
        """The kernel is told that the name leads to *inode*, None: nowhere."""
        self._inos[place] = inode.ino if inode is not None else 0
        if inode is not None:
            self._places[inode.ino] = place

    def forget(self, place: Place) -> int:
        """What the kernel was told that the name leads to; 0: nowhere, or that is not remembered."""
        return self._inos.pop(place, 0)

    def clear(self) -> None:
        self._inos.clear()
        self._places.clear()

    def other_name(self, place: Place, inode: Inode) -> Place | None:
        """Another name that the kernel takes for this inode, too (TO4)."""
        other = self._places.get(inode.ino)
        return other if other is not None and other != place and self._inos.get(other) == inode.ino else None

    def agrees(self, place: Place, inode: Inode | None) -> bool:
        """Does the kernel take the name for this inode, None: for one that is not there (TO1)?"""
        return self._inos.get(place) == (inode.ino if inode is not None else 0)

    def is_repeated(self, asked: Asked) -> bool:
        """TO2: was the same refused just now?"""
        if not self._refused:
            return False
        when = self._refused.pop(asked, None)
        self._repeating.pop(_thread(asked), None)
        return when is not None and monotonic() < when + REPEAT_SECONDS

    def refused(self, asked: Asked) -> None:
        self._refused[asked] = self._repeating[_thread(asked)] = monotonic()

    def is_repeating(self, thread: int) -> bool:
        """TO3: does the thread look names up for a call that is repeated?"""
        if not self._repeating:
            return False
        when = self._repeating.get(thread)
        return when is not None and monotonic() < when + REPEAT_SECONDS

    def moved(self, old: Place, new: Place, *, exchange: bool) -> None:
        """The kernel has moved its entry, or exchanged two."""
        inos = self._inos
        one, other = inos.pop(old, None), inos.pop(new, None)
        if one is not None:
            inos[new] = one
            self._places[one] = new
        if exchange and other is not None:
            inos[old] = other
            self._places[other] = old


def _thread(asked: Asked) -> int:
    return asked if isinstance(asked, int) else asked[0]
