"""The content of one regular file while it is written: open blocks and the map that names them.

Purpose
    Gathers writes into blocks of at most one chunk-size window each. The map is right after every write; the
    blocks it names are found in memory until the nodes have them.

Invariants
    C1  An open block lies in one window, and byte i of it belongs to file offset base + i, whatever the map says.
        So a write may change it in place: only what the map names is ever read or stored.
    C2  Every written byte is named by the map when write() returns; a byte that nobody wrote reads as zero, also
        where an open block holds older bytes beyond a former end of file.
    C3  A window that one block fills has no open block: it is sealed at once, or made a hole when it is all zeros.
    C4  `touched` holds every segment whose extents may name a block that is not durable.

Concurrency
    Trio task only; nothing here waits. No reference into `windows` is kept across a call.

Not here
    Sealing at a commit (vfs.sealing), storing (vfs.writeback), reading and rewriting (vfs.reading), times and rights
    (vfs.filesystem).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import Protocol

from flakefs.format.extents import covered_within, overlay, punch, slices
from flakefs.format.windows import split
from flakefs.namespace import FileMap, Inode
from flakefs.values import SEGMENT_BYTES, Block, Extent, Source
from flakefs.vfs.budget import Budget
from flakefs.vfs.replication import own_code

FRAGMENTS = 16
"""A window with more extents is rewritten as one block when there is time."""
_OFFSET = itemgetter(0)


def crowd(chunk_size: int) -> int:
    """A window with more extents is rewritten before the write is answered: a segment has to fit into one document
    (16 MiB; an extent takes about 130 bytes, so this stays below 5 MiB)."""
    return min(max(chunk_size // 8192, 2 * FRAGMENTS), 128)


class Sink(Protocol):
    """Where full blocks go, and where content in memory is looked up. Given by vfs.writeback."""

    budget: Budget
    chunk_size: int
    zeros: bytes
    """chunk_size zero bytes."""

    def queue(self, content: FileContent, window: int, block: Block) -> None:
        """Take a sealed block that fills *window*."""

    def resident(self, source: Source) -> bytes | bytearray | None:
        """All bytes of *source* when they are in memory."""


class OpenWindow:
    """The open blocks of one window, sorted by the file offset of their first byte."""

    __slots__ = ("bases", "blocks", "length")

    def __init__(self, base: int, block: Block, length: int) -> None:
        self.bases = [base]
        self.blocks = [block]
        self.length = length
        """Sum of the lengths of the blocks."""


class FileContent:
    """One regular file that is open, or has open blocks."""

    __slots__ = ("_chunk", "_crowd", "_sink", "fragmented", "handles", "inode", "touched", "windows")

    def __init__(self, inode: Inode, sink: Sink) -> None:
        # Constant after construction
        self.inode = inode
        self._sink = sink
        self._chunk = sink.chunk_size
        self._crowd = crowd(sink.chunk_size)
        # Mutable
        self.handles = 0
        self.windows: dict[int, OpenWindow] = {}
        self.touched: set[int] = set()
        self.fragmented: set[int] = set()

    @property
    def map(self) -> FileMap:
        found = self.inode.map
        assert found is not None, "only regular files have content"
        return found

    def write(self, offset: int, data: bytes) -> int:
        """Lay *data* over the file at *offset*; its segments must be loaded. Sets the size, not the times.

        Returns a window that has to be rewritten before much more is written to it, or -1.
        """
        length = len(data)
        chunk = self._chunk
        crowded = -1
        if offset % chunk + length <= chunk:
            crowded = self._piece(offset // chunk, offset, data, length)
        else:
            view = memoryview(data)
            done = 0
            for at, size in split(offset, length, chunk):
                crowded = max(crowded, self._piece(at // chunk, at, view[done : done + size], size))
                done += size
        if offset + length > self.inode.size:
            self.inode.size = offset + length
        return crowded

    def _piece(self, window: int, offset: int, data: bytes | memoryview, length: int) -> int:
        chunk = self._chunk
        if length == chunk:
            self.complete(window, Block(data if type(data) is bytes else bytes(data)))
            return -1
        opened = self.windows.get(window)
        if data[0] == 0 and self._stays_hole(opened, offset, data, length):
            return -1
        if opened is None:
            block, start, grown = Block(data if type(data) is bytes else bytes(data)), 0, length
            opened = self.windows[window] = OpenWindow(offset, block, 0)
        else:
            block, start, grown = _into(opened, offset, data, length)
        opened.length += grown
        self._sink.budget.open_bytes += grown
        number = offset // SEGMENT_BYTES
        the_map = self.map
        before = the_map.segment(number)
        extents = overlay(before, Extent(offset, length, block, start))
        more = length - covered_within(before, offset, length) if len(before) > FRAGMENTS else None
        the_map.replace(number, extents, more)
        self.touched.add(number)
        stop = offset + length
        if stop % chunk == 0 or opened.length >= chunk:
            appending = stop > self.inode.size
            if (appending or 2 * opened.length >= chunk) and self._complete_from_memory(window):
                return -1
        if len(extents) > FRAGMENTS:
            return self._count(window, extents)
        return -1

    def _stays_hole(self, opened: OpenWindow | None, offset: int, data: bytes | memoryview, length: int) -> bool:
        """Zeros written into a hole leave it one (posix_fallocate writes one in each 4 KiB), unless they go on where an
        open block ends: a stream is not to be cut into pieces."""
        if opened is not None:
            index = bisect_right(opened.bases, offset) - 1
            if index >= 0 and offset <= opened.bases[index] + len(opened.blocks[index].data or b""):
                return False
        if data != self._sink.zeros[:length]:
            return False
        there = slices(self.map.segment(offset // SEGMENT_BYTES), offset, length)
        return len(there) == 1 and there[0].source is None

    def _count(self, window: int, extents: list[Extent]) -> int:
        """Notice a fragmented window; the window when it is crowded, else -1."""
        start = window * self._chunk
        first = bisect_left(extents, start, key=_OFFSET)
        count = bisect_left(extents, start + self._chunk, lo=first, key=_OFFSET) - first
        if count > FRAGMENTS:
            self.fragmented.add(window)
        return window if count > self._crowd else -1

    def complete(self, window: int, block: Block) -> None:
        """*block* holds all bytes of *window*: seal it and queue it, or make a hole when all are zero (C3)."""
        chunk = self._chunk
        self.close_window(window)
        self.fragmented.discard(window)
        start = window * chunk
        number = start // SEGMENT_BYTES
        the_map = self.map
        if block.data == self._sink.zeros:
            the_map.replace(number, punch(the_map.segment(number), start, start + chunk))
            return
        the_map.replace(number, overlay(the_map.segment(number), Extent(start, chunk, block, 0)))
        self.touched.add(number)
        block.code = own_code(self.inode)
        block.sealed = True
        self._sink.budget.seal(block)
        self._sink.queue(self, window, block)

    def _complete_from_memory(self, window: int) -> bool:
        """Make one block of *window* when no byte of it is a hole or has to be fetched."""
        start = window * self._chunk
        plan = slices(self.map.segment(start // SEGMENT_BYTES), start, self._chunk)
        parts = []
        for _, length, source, begin in plan:
            data = None if source is None else self._sink.resident(source)
            if data is None:
                return False
            parts.append(data if len(data) == length else memoryview(data)[begin : begin + length])
        source = plan[0].source
        if len(plan) == 1 and isinstance(source, Block) and not source.sealed and len(parts[0]) == self._chunk:
            self.complete(window, source)
        elif len(plan) > 1:
            self.complete(window, Block(b"".join(parts)))
        return True

    def replace(self, window: int, offset: int, data: bytearray) -> None:
        """*data* is what the file holds at *offset* in *window*, put together: one open block replaces all."""
        self.close_window(window)
        self.fragmented.discard(window)
        if len(data) == self._chunk:
            self.complete(window, Block(data))
            return
        block = Block(data)
        self.windows[window] = OpenWindow(offset, block, len(data))
        self._sink.budget.open_bytes += len(data)
        number = offset // SEGMENT_BYTES
        the_map = self.map
        the_map.replace(number, overlay(the_map.segment(number), Extent(offset, len(data), block, 0)))
        self.touched.add(number)

    def close_window(self, window: int) -> None:
        """Forget the open blocks of *window*."""
        opened = self.windows.pop(window, None)
        if opened is not None:
            self._sink.budget.open_bytes -= opened.length

    def trim(self, size: int) -> None:
        """The file was cut to *size*: let go of what open blocks hold beyond it."""
        chunk = self._chunk
        for window in [window for window in self.windows if (window + 1) * chunk > size]:
            if window * chunk >= size:
                self.close_window(window)
            else:
                self._trim_window(window, size)
        self.fragmented = {window for window in self.fragmented if window * chunk < size}
        last = max(size - 1, 0) // SEGMENT_BYTES
        self.touched = {number for number in self.touched if number <= last}

    def _trim_window(self, window: int, size: int) -> None:
        opened = self.windows[window]
        self.close_window(window)
        keep = [(base, block) for base, block in zip(opened.bases, opened.blocks, strict=True) if base < size]
        if not keep:
            return
        for base, block in keep:
            assert block.data is not None, "an open block has its data (C1)"
            if base + len(block.data) > size:
                block.data = block.data[: size - base]
        opened.bases = [base for base, _ in keep]
        opened.blocks = [block for _, block in keep]
        opened.length = sum(len(block.data or b"") for block in opened.blocks)
        self.windows[window] = opened
        self._sink.budget.open_bytes += opened.length

    def forget(self) -> None:
        """The file is gone: nobody will read or store its open blocks."""
        for window in list(self.windows):
            self.close_window(window)
        self.touched.clear()
        self.fragmented.clear()

    def undurable(self) -> list[Block]:
        """Sealed blocks that the map names and the nodes do not safely hold; brings `touched` up to date (C4)."""
        found: dict[Block, None] = {}
        for number in sorted(self.touched):
            pending = False
            for extent in self.map.segment(number) if self._loaded(number) else ():
                source = extent[2]
                if isinstance(source, Block) and source.data is not None:
                    pending = True
                    if source.sealed:
                        found[source] = None
            if not pending:
                self.touched.discard(number)
        return list(found)

    def _loaded(self, number: int) -> bool:
        """A segment that was forgotten is stored as it was."""
        return self.map.loaded(number * SEGMENT_BYTES, (number + 1) * SEGMENT_BYTES)

    def names(self, window: int, block: Block) -> bool:
        """Does the map still name *block* in *window*?"""
        start = window * self._chunk
        number = start // SEGMENT_BYTES
        if number not in self.touched or not self._loaded(number):
            return False
        extents = self.map.segment(number)
        first = bisect_right(extents, start, key=_OFFSET) - 1
        for offset, _, source, _ in extents[max(first, 0) :]:
            if offset >= start + self._chunk:
                return False
            if source is block:
                return True
        return False

    def check_invariants(self) -> None:
        for window, opened in self.windows.items():
            assert opened.bases == sorted(opened.bases), "C1: blocks out of order"
            assert opened.length == sum(len(block.data or b"") for block in opened.blocks), "B1: length drifted"
            for base, block in zip(opened.bases, opened.blocks, strict=True):
                assert not block.sealed, "C3: a sealed block in an open window"
                assert base // self._chunk == window, "C1: a block in the wrong window"
                assert base + len(block.data or b"") <= (window + 1) * self._chunk, "C1: a block crosses windows"


def _into(opened: OpenWindow, offset: int, data: bytes | memoryview, length: int) -> tuple[Block, int, int]:
    """Put *data* into a block that it overlaps or continues, else into a new one: (block, start in it, bytes grown)."""
    index = bisect_right(opened.bases, offset) - 1
    if index >= 0:
        block = opened.blocks[index]
        buffer = block.data
        assert buffer is not None, "an open block has its data (C1)"
        size = len(buffer)
        start = offset - opened.bases[index]
        if start <= size:
            if type(buffer) is not bytearray:
                buffer = block.data = bytearray(buffer)
            buffer[start : start + length] = data
            return block, start, len(buffer) - size
    block = Block(data if type(data) is bytes else bytes(data))
    opened.bases.insert(index + 1, offset)
    opened.blocks.insert(index + 1, block)
    return block, 0, length
