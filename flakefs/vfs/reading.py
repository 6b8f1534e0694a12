"""Reading file content: from memory when it is there, else planned, fetched and looked at again.

Invariants
    R1  A read returns what one moment's map said: the answer is put together without an await, from sources that
        are all at hand; what is missing is fetched and then the map is looked at again.
    R2  Fetched chunks are kept by the reader until it is done, so a small cache cannot starve it.
    R3  A chunk that is missing is an error only while the map names it: an overwrite may have removed it meanwhile.

Concurrency
    Trio task only. read_now() never waits.

Not here
    The cache and its verification (engine), times (vfs.filesystem).
"""

from __future__ import annotations

from flakefs.engine import Engine
from flakefs.errors import ChunkMissing
from flakefs.format.extents import Slice, slices
from flakefs.format.windows import segment_range
from flakefs.namespace import Inode, Namespace
from flakefs.values import SEGMENT_BYTES, Block, ChunkRef
from flakefs.vfs.content import FileContent
from flakefs.vfs.handles import Handle

NEAR = 2 * 1024 * 1024
"""A read this near to the expected offset counts as sequential: the kernel sends several at once, in any order."""
AHEAD_BYTES = 4 * 1024 * 1024
"""Read-ahead goes on in steps of this size, as the engine asks for so much in one query."""
MAP_AHEAD_CHUNKS = 256
"""So many chunks beyond a sequential read are looked up together with those that it needs."""
Fetched = dict[ChunkRef, bytes]
Data = bytes | memoryview


def plan(inode: Inode, offset: int, length: int) -> list[Slice]:
    """The slices of [offset, offset + length), all of whose segments are loaded."""
    the_map = inode.map
    assert the_map is not None, "only regular files have content"
    first = offset // SEGMENT_BYTES
    stop = offset + length
    if stop <= (first + 1) * SEGMENT_BYTES:
        return slices(the_map.segment(first), offset, length)
    result: list[Slice] = []
    for number in segment_range(offset, length):
        start = max(offset, number * SEGMENT_BYTES)
        result += slices(the_map.segment(number), start, min(stop, (number + 1) * SEGMENT_BYTES) - start)
    return result


class Reader:
    """Reads for all open files of one file system."""

    def __init__(self, ns: Namespace, engine: Engine, chunk_size: int, read_ahead_bytes: int) -> None:
        # Dependencies
        self._ns = ns
        self._engine = engine
        # Constant after construction
        self._chunk = chunk_size
        self._read_ahead = read_ahead_bytes
        self._zeros = memoryview(bytes(1024 * 1024))

    def read_now(self, inode: Inode, offset: int, length: int) -> Data | None:
        """The bytes when all is in memory, else None."""
        the_map = inode.map
        assert the_map is not None, "only regular files have content"
        if not the_map.loaded(offset, offset + length):
            return None
        return self._joined(plan(inode, offset, length), None)

    async def read(self, inode: Inode, offset: int, length: int, *, sequential: bool = False) -> Data:
        """*length* bytes at *offset*, all within the file; waits for what is not in memory. *sequential*: what follows
        will be wanted too.
        """
        got: Fetched = {}
        suspect: set[ChunkRef] = set()
        while True:
            the_map = inode.map  # a session that only reads may replace it
            if the_map is not None and not the_map.loaded(offset, offset + length):
                further = MAP_AHEAD_CHUNKS * self._chunk if sequential else 0
                await self._ns.load(inode, offset, min(inode.size, offset + length + further))
                continue
            steps = plan(inode, offset, length)
            data = self._joined(steps, got)
            if data is not None:
                return data
            await self._fetch(self._missing(steps, got), got, suspect)

    async def rewrite(self, content: FileContent, window: int) -> None:
        """Put the extents of a fragmented window together into one open block."""
        inode = content.inode
        start = window * self._chunk
        got: Fetched = {}
        suspect: set[ChunkRef] = set()
        while True:
            if not content.map.loaded(start, start + self._chunk):
                await self._ns.load(inode, start, start + self._chunk)
                continue
            steps = plan(inode, start, self._chunk)
            while steps and steps[0].source is None:
                steps.pop(0)
            while steps and steps[-1].source is None:
                steps.pop()
            if len(steps) < 2:
                content.fragmented.discard(window)
                return
            missing = self._missing(steps, got)
            if not missing:
                break
            await self._fetch(missing, got, suspect)
        if self._ns.peek(inode.ino) is inode:
            self._ns.changed(inode)
            content.replace(window, steps[0].offset, bytearray(self._joined(steps, got) or b""))

    def ahead(self, handle: Handle, offset: int, length: int) -> None:
        """Have the engine load what a sequential reader will ask for after [offset, offset + length)."""
        limit = self._read_ahead
        if not limit:
            return
        if abs(offset - handle.next) > NEAR:
            handle.next = handle.ahead = offset + length
            handle.step = 0
            return
        stop = offset + length
        if stop > handle.next:
            handle.next = stop
        inode = handle.inode
        batch = min(max(handle.step // 2, self._chunk), AHEAD_BYTES)
        if handle.ahead - handle.next > handle.step - batch and handle.step:
            return
        handle.step = min(max(2 * handle.step, 2 * self._chunk), limit)
        start = max(handle.ahead, handle.next)
        until = handle.next + handle.step
        if until - start > batch:
            until -= (until - start) % batch  # whole queries, and none for a rest of one chunk
        until = min(until, inode.size)
        the_map = inode.map
        if the_map is not None and not the_map.loaded(start, until):
            until = (start // SEGMENT_BYTES + 1) * SEGMENT_BYTES  # the rest when its segment has been read
        if start >= until or the_map is None or not the_map.loaded(start, until):
            return
        handle.ahead = until
        refs = self._missing(plan(inode, start, until - start), {})
        if refs:
            self._engine.prefetch(refs)

    async def _fetch(self, missing: list[ChunkRef], got: Fetched, suspect: set[ChunkRef]) -> None:
        """Put the chunks into *got*, or into *suspect* the first time that one is missing (R3)."""
        try:
            if len(missing) == 1:
                got[missing[0]] = await self._engine.fetch(missing[0])
            else:
                got.update(zip(missing, await self._engine.fetch_many(missing), strict=True))
        except ChunkMissing:
            if not suspect.isdisjoint(missing):  # named twice, missed twice
                raise
            suspect.update(missing)

    def _missing(self, steps: list[Slice], got: Fetched) -> list[ChunkRef]:
        """Stored chunks that are neither in memory nor in *got*, each once."""
        found: dict[ChunkRef, None] = {}
        for _, _, source, _ in steps:
            ref = source.ref if isinstance(source, Block) and source.data is None else source
            if isinstance(ref, ChunkRef) and ref not in got and self._engine.peek(ref) is None:
                found[ref] = None
        return list(found)

    def _joined(self, steps: list[Slice], got: Fetched | None) -> Data | None:
        """The bytes of *steps*, or None when one of them is not at hand."""
        if len(steps) == 1:
            _, length, source, start = steps[0]
            if source is None:
                return bytes(length)
            if isinstance(source, Block) and source.data is not None and not source.sealed:
                return bytes(source.data[start : start + length])  # it may change before the answer is sent
            data = self._data(source, got)
            if data is None or (type(data) is bytes and len(data) == length):
                return data
            return memoryview(data)[start : start + length]
        parts: list[Data] = []
        for _, length, source, start in steps:
            if source is None:
                parts.append(self._zeros[:length] if length <= len(self._zeros) else bytes(length))
                continue
            data = self._data(source, got)
            if data is None:
                return None
            parts.append(memoryview(data)[start : start + length])
        return b"".join(parts)

    def _data(self, source: Block | ChunkRef | bytes, got: Fetched | None) -> bytes | bytearray | None:
        if type(source) is bytes:
            return source
        if isinstance(source, Block):
            if source.data is not None:
                return source.data
            assert source.ref is not None, "a block without data is stored (V2)"
            source = source.ref
        if got:
            found = got.get(source)  # type: ignore[arg-type]
            if found is not None:
                return found
        return self._engine.peek(source)  # type: ignore[arg-type]


def clipped(inode: Inode, offset: int, size: int) -> int:
    """How many of *size* bytes at *offset* the file has."""
    return max(0, min(size, inode.size - offset))
