"""Freezing the open blocks of a file, so that they can be stored.

Purpose
    At a cut, and under memory pressure, what was written becomes sealed blocks or literal bytes.

Invariants
    S1  Afterwards the file reads as before, and no open block is named by its map.
    S2  A file of at most LITERAL_MAX bytes whose content is in memory has literals only; every other file has none.
    S3  A sealed block holds only bytes that the map names, at most one chunk size of them. Small pieces of one file
        share a block; what is large enough stays as it is, uncopied.

Concurrency
    Nothing here waits. The map of a file that is sealed outside a cut must be announced by the caller (ns.changed).

Not here
    When to seal (vfs.writeback).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flakefs.format.extents import overlay_many, slices
from flakefs.namespace import FileMap, Inode
from flakefs.values import LITERAL_MAX, SEGMENT_BYTES, Block, ChunkRef, Extent, Source
from flakefs.vfs.content import FileContent
from flakefs.vfs.replication import own_code

Resident = Callable[[Source], bytes | bytearray | None]


def seal_content(content: FileContent, chunk_size: int, resident: Resident) -> list[Block]:
    """Seal all open blocks of one file; the blocks sealed now."""
    inode = content.inode
    if inode.size <= LITERAL_MAX and make_literals(inode, resident):
        for window in list(content.windows):
            content.close_window(window)
        return []
    the_map = content.map
    windows = set(content.windows)
    if has_literals(the_map):
        windows.add(0)
        content.touched.add(0)
    if not windows:
        return []
    code = own_code(inode)
    pieces: list[list[Extent]] = []
    sealed: list[Block] = []
    for window in sorted(windows):
        parts = _parts(the_map, window, chunk_size, resident)
        content.close_window(window)
        if not parts:
            continue
        if _whole(parts) and 4 * parts[0].length >= chunk_size:
            sealed.append(_frozen(parts[0], code))
        else:
            pieces.append(parts)
    for group in _groups(pieces, chunk_size):
        sealed.append(_frozen(group[0], code) if _whole(group) else _packed(the_map, group, resident, code))
    return sealed


def has_literals(the_map: FileMap) -> bool:
    """Literal bytes lie within the first LITERAL_MAX bytes, if anywhere."""
    for offset, _, source, _ in the_map.segment(0):
        if offset >= LITERAL_MAX:
            return False
        if type(source) is bytes:
            return True
    return False


def make_literals(inode: Inode, resident: Resident) -> bool:
    """Give a small file literal bytes, one run for each run of its content (holes stay holes).

    False when some of it is not in memory: then it keeps its chunks.
    """
    the_map = inode.map
    assert the_map is not None, "only regular files have content"
    extents = the_map.segment(0)
    if not extents:
        return True
    if len(extents) == 1 and type(extents[0].source) is bytes:
        return True
    runs: list[tuple[int, list[bytes | bytearray | memoryview]]] = []
    stop = -1
    for offset, length, source, start in extents:
        data = None if isinstance(source, ChunkRef) else resident(source)
        if data is None:
            return False
        part = data if len(data) == length else memoryview(data)[start : start + length]
        if offset == stop:
            runs[-1][1].append(part)
        else:
            runs.append((offset, [part]))
        stop = offset + length
    literals = []
    for offset, parts in runs:
        literal = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        literals.append(Extent(offset, len(literal), literal, 0))
    the_map.replace(0, literals)
    return True


def _parts(the_map: FileMap, window: int, chunk_size: int, resident: Resident) -> list[Extent]:
    """What of *window* has to be sealed now: what open blocks and literals hold, and older content in memory that
    is not longer than that (so that a file written across several commits does not stay in many pieces)."""
    start = window * chunk_size
    plan = slices(the_map.segment(start // SEGMENT_BYTES), start, chunk_size)
    every = [Extent(offset, length, source, begin) for offset, length, source, begin in plan if source is not None]
    parts = [extent for extent in every if _unsealed(extent.source)]
    if 0 < len(parts) < len(every):
        new = sum(extent.length for extent in parts)
        old = sum(extent.length for extent in every) - new
        if old <= new and all(resident(extent.source) is not None for extent in every):
            return every
    return parts


def _unsealed(source: Source) -> bool:
    return type(source) is bytes or (isinstance(source, Block) and not source.sealed)


def _whole(parts: list[Extent]) -> bool:
    """Is this exactly one open block, all of it named?"""
    if len(parts) != 1:
        return False
    _, length, source, start = parts[0]
    return isinstance(source, Block) and not source.sealed and start == 0 and length == len(source.data or b"")


def _frozen(extent: Extent, code: str) -> Block:
    block = extent.source
    assert isinstance(block, Block), "only blocks are frozen as they are"
    block.code = code
    block.sealed = True
    return block


def _groups(pieces: Iterable[list[Extent]], chunk_size: int) -> Iterable[list[Extent]]:
    """Windows' pieces in file order, as many together as one chunk can hold."""
    group: list[Extent] = []
    length = 0
    for parts in pieces:
        more = sum(extent.length for extent in parts)
        if group and length + more > chunk_size:
            yield group
            group, length = [], 0
        group.extend(parts)
        length += more
    if group:
        yield group


def _packed(the_map: FileMap, group: list[Extent], resident: Resident, code: str) -> Block:
    """One sealed block of all pieces of *group*, named in their place."""
    joined = []
    for _, length, source, start in group:
        data = resident(source)
        assert data is not None, "what is packed is in memory"
        joined.append(data if len(data) == length else memoryview(data)[start : start + length])
    block = Block(b"".join(joined))
    block.code = code
    block.sealed = True
    position = 0
    named: dict[int, list[Extent]] = {}  # by segment: thousands of pieces, so all of them in one pass
    for offset, length, _, _ in group:
        named.setdefault(offset // SEGMENT_BYTES, []).append(Extent(offset, length, block, position))
        position += length
    for number, extents in named.items():
        the_map.replace(number, overlay_many(the_map.segment(number), extents))
    return block
