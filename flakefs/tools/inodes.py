"""Checks each inode by itself: type, attributes, extents; and walks the chunk maps of files.

Purpose
    The second walk: inodes and later segments are both read in order of the inode number and joined on the way.
    What the extents refer to goes into a Tally (tools.content).

Concurrency
    One thread, blocking, on one Reader.

Not here
    Names and links (tools.tree), whether the chunks exist (tools.content, tools.chunks).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from flakefs.errors import Damaged
from flakefs.format import documents as d
from flakefs.format import extents as x
from flakefs.format.documents import Document, InodeRecord
from flakefs.format.hashing import valid_name
from flakefs.format.windows import CHUNK_SIZE_MAX
from flakefs.tools.content import Tally
from flakefs.tools.problems import Report
from flakefs.tools.reader import Reader
from flakefs.tools.tree import Tree
from flakefs.values import FILE_MAX, LITERAL_MAX, SEGMENT_BYTES, SYMLINK_MAX, ChunkRef, Extent

SEGMENT_PAGE = 100
"""A segment document may be megabytes when its file was written at random."""
TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK)
Segment = tuple[int, list[Extent]]


class Inodes:
    """The second walk."""

    def __init__(self, reader: Reader, report: Report, tree: Tree, tally: Tally) -> None:
        self._reader = reader
        self._report = report
        self._tree = tree
        self._tally = tally
        self._segments = self._read_segments()
        self._next_segment = next(self._segments, None)

    def walk(self) -> None:
        for document in self._reader.stream(d.INODES):
            ino = document["_id"]
            if not isinstance(ino, int) or ino == 0:
                self._report.add("unreadable-document", f"inode {ino!r}", "its number is no inode number")
            elif ino < 0:
                self._tree.check_link(document)
            else:
                self._check(ino, document)
        self._lost_segments(None)
        self._tree.finish()

    def _check(self, ino: int, document: Document) -> None:
        self._report.counts["inodes"] += 1
        self._lost_segments(ino)
        segments = self._segments_of(ino)
        try:
            inode = d.read_inode(document)
            if not isinstance(inode.mode, int) or not 0 <= inode.mode < 2**31:
                raise Damaged(f"its mode is {inode.mode!r}")
            if not well_typed(inode.extents):
                raise Damaged("its extents have fields of wrong types")
        except Damaged as error:
            self._report.add("unreadable-document", f"inode {ino}", str(error))
            self._tree.pass_unreadable(ino)
            self._tally_segments(ino, segments)
            return
        self._tree.check_inode(inode, document["n"])
        self._check_attributes(inode)
        if stat.S_ISREG(inode.mode):
            self._check_map(inode, segments)
        elif inode.extents or segments:
            said = f"its mode is {inode.mode:o}, only regular files have extents"
            self._report.add("extents-misplaced", f"inode {ino}", said)
        self._tally.take(ino, inode.extents)
        self._tally_segments(ino, segments)

    def _check_attributes(self, inode: InodeRecord) -> None:
        where = f"inode {inode.ino}"
        kind = stat.S_IFMT(inode.mode)
        if kind not in TYPES or inode.mode != kind | stat.S_IMODE(inode.mode):
            self._report.add("mode-unknown", where, f"its mode is {inode.mode:o}")
            return
        for name, value, most in (
            ("uid", inode.uid, 2**32 - 1),
            ("gid", inode.gid, 2**32 - 1),
            ("rdev", inode.rdev, FILE_MAX),
        ):
            if not 0 <= value <= most:
                self._report.add("attribute-wrong", where, f"its {name} is {value}")
        if inode.version < 1:
            self._report.add("attribute-wrong", where, f"its version is {inode.version}")
        if kind == stat.S_IFLNK and not 1 <= len(inode.target) <= SYMLINK_MAX:
            self._report.add("target-wrong", where, f"its target has {len(inode.target)} bytes")
        expected = {stat.S_IFREG: max(inode.size, 0), stat.S_IFLNK: len(inode.target)}.get(kind, 0)
        if inode.size != expected:
            self._report.add("size-wrong", where, f"its size is {inode.size}", ino=inode.ino, type=kind)

    def _check_map(self, inode: InodeRecord, segments: list[Segment]) -> None:
        """The whole map of one regular file."""
        where = f"inode {inode.ino}"
        used = end = 0
        literal = inlined(inode.extents)
        for number, extents in ([(0, inode.extents)] if inode.extents else []) + segments:
            start = number * SEGMENT_BYTES
            for said in x.problems(extents, start, start + SEGMENT_BYTES):
                self._report.add("extents-wrong", where, said)
            used += x.covered(extents)
            end = max(end, max((e.offset + e.length for e in extents), default=0))
            if number and inlined(extents):
                self._report.add("literal-wrong", where, f"segment {number} has literal content")
        if literal and max(inode.size, end) > LITERAL_MAX:
            said = f"literal content, but a size of {inode.size} (at most {LITERAL_MAX} may)"
            self._report.add("literal-wrong", where, said)
        elif literal and (segments or literal != len(inode.extents)):
            self._report.add("literal-wrong", where, "literal content and chunks in one file")
        if end > inode.size >= 0:
            said = f"extents reach {end}, its size is {inode.size}"
            self._report.add("extents-past-size", where, said)
        if used != inode.used:
            said = f"extents cover {used} bytes, it says {inode.used}"
            self._report.add("used-wrong", where, said, ino=inode.ino, used=used)
        self._report.counts["files"] += 1

    # The other stream: segments

    def _read_segments(self) -> Iterator[tuple[int, int, list[Extent]]]:
        for document in self._reader.stream(d.EXTENTS, page=SEGMENT_PAGE):
            where = f"segment {document['_id']}"
            try:
                ino, number, extents, _ = d.read_segment(document)
                if not well_typed(extents):
                    raise Damaged("its extents have fields of wrong types")
            except Damaged as error:
                self._report.add("unreadable-document", where, str(error))
                continue
            if number < 1 or number > FILE_MAX // SEGMENT_BYTES:
                self._report.add("extents-wrong", f"inode {ino}", f"there is no segment {number}")
            elif not extents:
                self._report.add("segment-empty", f"inode {ino}", f"segment {number} is empty", id=document["_id"])
            yield ino, number, extents

    def _segments_of(self, ino: int) -> list[Segment]:
        found: list[Segment] = []
        while self._next_segment is not None and self._next_segment[0] == ino:
            found.append(self._next_segment[1:])
            self._next_segment = next(self._segments, None)
        return found

    def _lost_segments(self, upto: int | None) -> None:
        """Segments of inodes below *upto* that did not come by."""
        while self._next_segment is not None and (upto is None or self._next_segment[0] < upto):
            ino = self._next_segment[0]
            segments = self._segments_of(ino)
            end = max((e.offset + e.length for _, extents in segments for e in extents), default=0)
            said = f"{len(segments)} segments, but no inode document"
            self._report.add("segment-lost", f"inode {ino}", said, ino=ino, size=end)
            self._tally_segments(ino, segments)

    def _tally_segments(self, ino: int, segments: list[Segment]) -> None:
        for _, extents in segments:
            self._tally.take(ino, extents)


def inlined(extents: list[Extent]) -> int:
    """How many literals."""
    return sum(isinstance(extent.source, bytes) for extent in extents)


def well_typed(extents: list[Extent]) -> bool:
    """Decoding trusts the numbers in an extent: reading is the hottest path. A check must not."""
    for offset, length, source, start in extents:
        if not (isinstance(offset, int) and isinstance(length, int) and isinstance(start, int)):
            return False
        if isinstance(source, ChunkRef) and not well_formed(source):
            return False
    return True


def well_formed(ref: ChunkRef) -> bool:
    """Numbers and lengths that a chunk can have."""
    return (
        isinstance(ref.volume, int)
        and isinstance(ref.length, int)
        and ref.volume >= 1
        and 1 <= ref.length <= CHUNK_SIZE_MAX
        and valid_name(ref.hash)
    )
