"""The chunk map of one regular file in memory.

Purpose
    The extents of a file by segment: which are known, which changed since the last commit, and what they were then.

Invariants
    M1  Lists of extents are never changed in place, so whoever holds one holds a snapshot.
    M2  No document exists for a segment >= `_tail` that is not in `_segments`: what is not there is a hole.
    M3  `used` is the number of bytes that the extents of all segments cover, stored ones that are not loaded
        included.
    M4  A segment is forgotten only when it is neither changed nor part of the commit that runs.

Concurrency
    Belongs to the trio thread; nothing here waits. Between cut() and committed() or uncut() worker threads read the
    lists of the cut.

Not here
    Arithmetic (format.extents), reading segments (namespace.segments), documents (namespace.commit).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flakefs.format.extents import covered
from flakefs.values import SEGMENT_BYTES, Block, ChunkRef, Extent

KEPT_SEGMENTS = 4_096
"""Clean segments of one file that stay in memory; a segment of 1 MiB chunks has 64 extents."""
KEPT_EXTENTS = 65_536
EXTENT_BYTES = 250
"""About what an extent with its source costs."""

_HOLE: list[Extent] = []


class SegmentChange(NamedTuple):
    """A segment that changed between two cuts."""

    number: int
    new: list[Extent]
    old: list[Extent]
    """At the cut before; the references to count are the difference."""
    version: int
    """Of its stored document; 0: there is none (always for segment 0, which lies in the inode)."""


class FileMap:
    """FileMap() is the map of a new file: empty and wholly known."""

    __slots__ = ("_before", "_flying", "_segments", "_tail", "_versions", "used")

    def __init__(self) -> None:
        self.used = 0
        self._segments: dict[int, list[Extent]] = {}
        self._tail = 0
        self._before: dict[int, list[Extent]] | None = None  # changed ones: what they were at the last cut
        self._flying: set[int] | None = None  # in the commit that runs
        self._versions: dict[int, int] | None = None  # of the stored documents of later segments

    @classmethod
    def stored(cls, first: list[Extent], size: int, used: int) -> FileMap:
        """The map of a stored file: its first segment is in the inode document."""
        new = cls()
        new.used = used
        new._segments[0] = first
        new._tail = max(1, -(-size // SEGMENT_BYTES))
        return new

    # -- for everybody --

    def loaded(self, start: int, stop: int) -> bool:
        """Are the segments of file bytes [start, stop) in memory?"""
        first = start // SEGMENT_BYTES
        last = min(-(-stop // SEGMENT_BYTES), self._tail)
        if first >= last:
            return True
        segments = self._segments
        if last - first == 1:
            return first in segments
        return last - first <= len(segments) and all(number in segments for number in range(first, last))

    def segment(self, number: int) -> list[Extent]:
        """Extents of a loaded segment; not to be changed."""
        found = self._segments.get(number)
        if found is None:
            assert number >= self._tail, "load() first"
            return _HOLE
        return found

    def replace(self, number: int, extents: list[Extent], grown: int | None = None) -> None:
        """Give a loaded segment other extents. The caller marks the inode changed. *grown*: how many bytes more they
        cover, when the caller knows.
        """
        old = self.segment(number)
        before = self._before
        if before is None:
            before = self._before = {}
        if number not in before:
            before[number] = old
        same = len(old) - 1
        if grown is not None:
            self.used += grown
        elif same > 4 and extents[:same] == old[:same]:  # one was added or changed at the end: do not sum all again
            self.used += covered(extents[same:]) - old[same].length
        else:
            self.used += covered(extents) - covered(old)
        self._segments[number] = extents

    def segments(self) -> list[int]:
        """Numbers of the loaded segments that have extents."""
        return [number for number, extents in self._segments.items() if extents]

    # -- for loading and forgetting --

    def missing(self, first: int, last: int) -> tuple[int, int] | None:
        """[first, last) without what is known at its ends; None when all is known."""
        last = min(last, self._tail)
        while first < last and first in self._segments:
            first += 1
        while first < last and last - 1 in self._segments:
            last -= 1
        return (first, last) if first < last else None

    def put(self, number: int, extents: list[Extent], version: int) -> None:
        """A segment as it is stored, or a hole (version 0). What is known already stays."""
        if number not in self._segments and number < self._tail:
            self._segments[number] = extents
            if version:
                self._remember(number, version)

    def shrink_tail(self, tail: int) -> None:
        """The caller has made sure that M2 holds for this smaller tail."""
        self._tail = min(self._tail, tail)

    @property
    def tail(self) -> int:
        return self._tail

    def whole(self) -> bool:
        """Is every segment known?"""
        segments, tail = self._segments, self._tail
        if tail == 1:  # most files
            return 0 in segments
        return tail <= len(segments) and all(number in segments for number in range(tail))

    def empty(self) -> bool:
        """Is the file surely one hole?"""
        return not any(self._segments.values()) and self.whole()

    def clear(self) -> None:
        """Make holes of all loaded segments."""
        for number in self.segments():
            self.replace(number, _HOLE)

    def trim(self, keep: range = range(0), *, force: bool = False) -> None:
        """Forget clean segments outside of *keep* when there are many (M4)."""
        segments = self._segments
        many = len(segments) > KEPT_SEGMENTS or (len(segments) > 16 and self.extents() > KEPT_EXTENTS)
        if not many and not force:
            return
        segments.setdefault(0, _HOLE)  # it has no document of its own to be read again
        pinned = set(self._before or ()) | (self._flying or set())
        for number in [n for n in segments if n and n not in keep and n not in pinned]:
            if number >= self._tail:
                self._tail = number + 1
            del segments[number]
            if self._versions:
                self._versions.pop(number, None)

    def extents(self) -> int:
        return sum(map(len, self._segments.values()))

    def weight(self) -> int:
        """Bytes of memory beyond the inode's own, about."""
        total = 0
        for extents in self._segments.values():
            total += EXTENT_BYTES * len(extents)
            if len(extents) == 1 and isinstance(extents[0].source, bytes):
                total += len(extents[0].source)
        return total

    # -- for the journal --

    @property
    def changed(self) -> bool:
        """Since the last cut?"""
        return bool(self._before)

    def cut(self) -> list[SegmentChange]:
        """What changed since the last cut; from now on changes count from here."""
        before = self._before
        if not before:
            return []
        versions = self._versions or {}
        changes = [
            SegmentChange(number, self._segments.get(number, _HOLE), old, versions.get(number, 0))
            for number, old in before.items()
        ]
        self._flying = set(before)
        self._before = None
        return changes

    def uncut(self, changes: list[SegmentChange]) -> None:
        """The cut never happened."""
        before = self._before
        if before is None:
            before = self._before = {}
        for change in changes:
            before[change.number] = change.old
        self._flying = None

    def committed(self, changes: list[SegmentChange], instead: Mapping[ChunkRef, ChunkRef] = {}) -> None:
        """The cut is stored. Blocks give way to their refs, or to those that are stored instead."""
        for number, new, _, version in changes:
            if number:
                if new:
                    self._remember(number, version + 1)
                elif self._versions:
                    self._versions.pop(number, None)
            if self._segments.get(number) is new and (instead or any(isinstance(e.source, Block) for e in new)):
                self._segments[number] = resolved(new, instead)
        self._flying = None

    def _remember(self, number: int, version: int) -> None:
        if self._versions is None:
            self._versions = {}
        self._versions[number] = version


def resolved(extents: Iterable[Extent], instead: Mapping[ChunkRef, ChunkRef]) -> list[Extent]:
    """The extents as they are stored: refs for blocks, and for refs in *instead* the right ones."""
    result = []
    for extent in extents:
        source = extent.source
        if isinstance(source, Block):
            assert source.ref is not None, "what is stored has its ref"
            result.append(extent._replace(source=instead.get(source.ref, source.ref)))
        elif instead and isinstance(source, ChunkRef) and source in instead:
            result.append(extent._replace(source=instead[source]))
        else:
            result.append(extent)
    return result
