"""Reading later segments of chunk maps, and cutting files off.

Invariants
    S1  A hole costs nothing, however long: only stored segments are read, never all possible ones.
    S2  A file with many stored segments is cut off in steps from its end; each step leaves a file that the journal
        may store, shorter than before and nowhere shorter than asked for.

Concurrency
    Belongs to the trio thread. After each await the map is looked at again.

Not here
    The map itself (namespace.maps).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from bson.int64 import Int64
from pymongo.database import Database

from flakefs.errors import InvalidArgument
from flakefs.format.documents import EXTENTS, Document, read_segment
from flakefs.format.extents import punch
from flakefs.namespace.cache import Cache
from flakefs.namespace.inode import Inode
from flakefs.namespace.maps import FileMap
from flakefs.values import SEGMENT_BYTES, Extent

LOAD_MAX = 4_096
"""Segments that one load() brings into memory: 256 GiB of file offsets."""
STEP_SEGMENTS = 256
"""Stored segments that are dropped in one step: 16 GiB, and 16,384 extents of 1 MiB."""


class Segments:
    def __init__(self, cache: Cache, room: Callable[[], Awaitable[None]]) -> None:
        self._cache = cache
        self._room = room

    async def load(self, inode: Inode, start: int, stop: int) -> None:
        """The segments of file bytes [start, stop) are in memory on return; at most LOAD_MAX of them."""
        first = start // SEGMENT_BYTES
        last = min(-(-stop // SEGMENT_BYTES), first + LOAD_MAX)
        while (span := map_of(inode).missing(first, last)) is not None:
            low, high = span
            version = inode.version
            with self._cache.loading() as touched:
                found = {
                    number: (extents, version)
                    for number, extents, version in await self._cache.read(
                        partial(read_segments, ino=inode.ino, first=low, stop=high)
                    )
                }
                if inode.version != version and self._cache.expiring:
                    continue  # the segments of another state of the file
                file_map = map_of(inode)
                file_map.trim(range(first, last))
                for number in range(low, high):
                    if (inode.ino, number) not in touched:
                        file_map.put(number, *found.get(number, ([], 0)))
        if not inode.dirty:
            self._cache.keep(inode)

    async def truncate(self, inode: Inode, size: int) -> None:
        """Set the size and drop what lies at and beyond it."""
        first = -(-size // SEGMENT_BYTES)  # the first segment that goes as a whole
        while True:
            file_map = map_of(inode)
            if inode.nlink:
                self._cache.check_writable()
            if size >= inode.size:
                break
            if not file_map.loaded(size, size + 1):
                await self.load(inode, size, size + 1)
            elif file_map.missing(first, file_map.tail) is None:
                break
            else:
                await self._drop_step(inode, first)
        if size < inode.size:
            number, edge = divmod(size, SEGMENT_BYTES)
            extents = file_map.segment(number)
            if edge and extents and extents[-1].offset + extents[-1].length > size:
                file_map.replace(number, punch(extents, size, (number + 1) * SEGMENT_BYTES))
            drop_from(file_map, first)
        inode.size = size
        self._cache.mark(inode)

    async def _drop_step(self, inode: Inode, first: int) -> None:
        """Bring the last stored segments at and after *first* into memory; drop them when they are not yet all
        (S2).
        """
        file_map = map_of(inode)
        with self._cache.loading() as touched:
            tail = file_map.tail
            found = await self._cache.read(
                lambda db: read_segments(db, inode.ino, first, tail, limit=STEP_SEGMENTS, from_end=True)
            )
            if inode.map is not file_map or any((inode.ino, number) in touched for number, _, _ in found):
                return
            lowest = found[-1][0] if len(found) == STEP_SEGMENTS else first
            for number, extents, version in found:
                file_map.put(number, extents, version)
            file_map.shrink_tail(lowest)
        if lowest > first:
            drop_from(file_map, lowest)
            inode.size = min(inode.size, lowest * SEGMENT_BYTES)
            self._cache.mark(inode)
            await self._room()


def map_of(inode: Inode) -> FileMap:
    if inode.map is None:
        raise InvalidArgument(f"inode {inode.ino} is no regular file")
    return inode.map


def drop_from(file_map: FileMap, first: int) -> None:
    """Make holes of all segments at and after *first*, which are known."""
    for number in file_map.segments():
        if number >= first:
            file_map.replace(number, [])
    file_map.shrink_tail(first)


def read_segments(
    db: Database[Document], ino: int, first: int, stop: int, *, limit: int = 0, from_end: bool = False
) -> list[tuple[int, list[Extent], int]]:
    """(segment, extents, version) of the stored segments in [first, stop)."""
    cursor = db[EXTENTS].find(
        {"_id": {"$gte": {"i": Int64(ino), "s": Int64(first)}, "$lt": {"i": Int64(ino), "s": Int64(stop)}}}, limit=limit
    )
    if from_end:
        cursor.sort("_id", -1)
    return [read_segment(document)[1:] for document in cursor]
