"""The content of a file, chunk by chunk and without a local copy.

Invariants
    B1  Pieces come in file order and do not overlap; what lies between two is a hole.
    B2  Memory holds a few pieces, whatever the size of the file.

Concurrency
    Trio thread only. A file that is changed meanwhile gives the old or the new content of each segment.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

from flakefs.format.hashing import content_hash_of, own_code_of
from flakefs.format.windows import segment_of
from flakefs.namespace import Inode
from flakefs.values import SEGMENT_BYTES, Block, ChunkRef, Extent
from flakefs.vfs import FileSystem

SEGMENTS_AT_ONCE = 64
"""Segments of the map loaded by one query; the namespace takes at most 4,096."""
BATCH_BYTES = 8 * 1024 * 1024


class Piece(NamedTuple):
    """A run of file bytes and where it is stored."""

    offset: int
    """Offset in the file."""
    data: bytes
    hash: bytes | None
    """BLAKE3 of the chunk it is taken from (of the whole chunk: `data` may be a part of it); None: literal content."""
    chunk: str | None
    """Id of the chunk in its volume."""
    volume: int | None
    replication: str = ""
    """The code that the file asked for when it was written; "" for the one of the file system."""


async def extents(
    fs: FileSystem, inode: Inode, start: int = 0, stop: int | None = None
) -> AsyncGenerator[Extent, None]:
    """The extents that touch [start, stop), in file order; the whole file by default. For use in aclosing()."""
    if inode.map is None:
        return
    stop = inode.size if stop is None else min(stop, inode.size)
    position = start
    while position < stop:
        until = min(stop, (segment_of(position) + SEGMENTS_AT_ONCE) * SEGMENT_BYTES)
        await fs.ns.load(inode, position, until)
        for number in range(segment_of(position), segment_of(until - 1) + 1):
            for extent in inode.map.segment(number):
                if extent.offset < until and extent.offset + extent.length > position:
                    yield extent
        position = until


async def settled(fs: FileSystem, inode: Inode) -> None:
    """Store the file's open blocks, so that its map names chunks only."""
    async with aclosing(extents(fs, inode)) as found:
        waiting = [True async for extent in found if isinstance(extent.source, Block)]
    if waiting:
        await fs.sync()


async def batch(fs: FileSystem, ino: int, start: int) -> tuple[list[Piece], int | None]:
    """Pieces from file offset *start* on, a few megabytes; and where the next batch starts, None at the end."""
    inode = await fs.inode(ino)
    wanted: list[Extent] = []
    length = 0
    following: int | None = None
    async with aclosing(extents(fs, inode, start)) as found:
        async for extent in found:
            if length >= BATCH_BYTES:
                following = extent.offset
                break
            wanted.append(extent)
            length += extent.length
    if any(isinstance(extent.source, Block) for extent in wanted):
        await fs.sync()
        return await batch(fs, ino, start)
    refs = [extent.source for extent in wanted if isinstance(extent.source, ChunkRef)]
    contents = iter(await fs.engine.fetch_many(refs) if refs else [])
    return [_piece(extent, contents.__next__) for extent in wanted], following


def _piece(extent: Extent, content: object) -> Piece:
    source = extent.source
    assert not isinstance(source, Block)
    assert callable(content)
    if isinstance(source, ChunkRef):
        data: bytes = content()
        part = data[extent.start : extent.start + extent.length]
        name = source.hash
        return Piece(extent.offset, part, content_hash_of(name), source.key.hex(), source.volume, own_code_of(name))
    return Piece(extent.offset, source[extent.start : extent.start + extent.length], None, None, None)
