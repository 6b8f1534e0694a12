"""FileContent and sealing against a bytearray, with a tiny chunk size (C1 to C4, S1 to S3, G3, B1 and B2)."""

from __future__ import annotations

import hashlib
import stat

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flakefs.format.extents import problems, punch
from flakefs.namespace import FileMap, Inode
from flakefs.namespace.maps import SegmentChange
from flakefs.values import SEGMENT_BYTES, Block, ChunkRef, Extent, Source
from flakefs.vfs import sealing
from flakefs.vfs.budget import Budget
from flakefs.vfs.content import FRAGMENTS, FileContent, crowd
from flakefs.vfs.reading import plan
from flakefs.vfs.replication import ATTRIBUTE, own_code
from flakefs.vfs.sealing import seal_content

CHUNK = 16
LITERAL = 6
offsets = st.integers(0, 100)


def new_inode(ino: int = 2, mode: int = stat.S_IFREG | 0o644, xattrs: dict[bytes, bytes] | None = None) -> Inode:
    inode = Inode(ino, 1, b"file", mode, 0, 0, 0, 0, 1, 0, 0, 0, 0, xattrs or {}, b"", 0)
    if stat.S_ISREG(mode):
        inode.map = FileMap()
    return inode


class MemorySink:
    """A Sink whose chunks lie in a dict; `cached` says which of them are at hand."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.zeros = bytes(chunk_size)
        self.budget = Budget(2**40, 30.0)
        self.queued: list[tuple[FileContent, int, Block]] = []
        self.chunks: dict[ChunkRef, bytes] = {}
        self.cached: set[ChunkRef] = set()

    def queue(self, content: FileContent, window: int, block: Block) -> None:
        assert block.code == own_code(content.inode), "G3"
        self.queued.append((content, window, block))

    def resident(self, source: Source) -> bytes | bytearray | None:
        if isinstance(source, Block):
            if source.data is not None:
                return source.data
            assert source.ref is not None
            source = source.ref
        if isinstance(source, ChunkRef):
            return self.chunks[source] if source in self.cached else None
        return source

    def store(self, block: Block) -> None:
        assert block.sealed
        assert block.data is not None
        data = bytes(block.data)
        assert 1 <= len(data) <= self.chunk_size
        digest = hashlib.sha256(data).digest()
        block.ref = ChunkRef(digest, 1, digest[:12], len(data))
        self.chunks[block.ref] = data

    def harden(self, block: Block) -> None:
        block.data = None
        self.budget.drop(block)


def truncate(content: FileContent, size: int) -> None:
    """As Namespace.truncate, for files of one segment."""
    inode = content.inode
    if size < inode.size:
        content.map.replace(0, punch(content.map.segment(0), size, SEGMENT_BYTES))
    inode.size = size
    content.trim(size)


def content_of(content: FileContent, sink: MemorySink) -> bytes:
    """All bytes of the file, wherever they are."""
    result = b""
    for _, length, source, start in plan(content.inode, 0, content.inode.size):
        if source is None:
            result += bytes(length)
            continue
        if isinstance(source, Block) and source.data is None:
            assert source.ref is not None
            source = source.ref
        data = sink.chunks[source] if isinstance(source, ChunkRef) else sink.resident(source)
        assert data is not None
        assert start + length <= len(data)
        result += bytes(data[start : start + length])
    return result


class ContentMachine(RuleBasedStateMachine):
    """Writes, truncations, cuts and commits in any order; the file always reads like the oracle."""

    @initialize()
    def start(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(sealing, "LITERAL_MAX", LITERAL)
        self.sink = MemorySink(CHUNK)
        self.content = FileContent(new_inode(), self.sink)
        self.oracle = bytearray()
        self.flying: tuple[list[SegmentChange], list[Block]] | None = None

    @rule(offset=offsets, data=st.binary(min_size=1, max_size=40))
    def write(self, offset: int, data: bytes) -> None:
        self.put(offset, data)

    @rule(offset=offsets, size=st.integers(1, 40))
    def write_zeros(self, offset: int, size: int) -> None:
        self.put(offset, bytes(size))

    @rule(data=st.binary(min_size=1, max_size=20))
    def append(self, data: bytes) -> None:
        self.put(len(self.oracle), data)

    @rule(window=st.integers(0, 5), byte=st.integers(1, 255))
    def fill(self, window: int, byte: int) -> None:
        self.put(window * CHUNK, bytes([byte]) * CHUNK)

    def put(self, offset: int, data: bytes) -> None:
        self.content.write(offset, data)
        if offset > len(self.oracle):
            self.oracle += bytes(offset - len(self.oracle))
        self.oracle[offset : offset + len(data)] = data

    @rule(size=offsets)
    def truncate(self, size: int) -> None:
        truncate(self.content, size)
        if size <= len(self.oracle):
            del self.oracle[size:]
        else:
            self.oracle += bytes(size - len(self.oracle))

    @rule(code=st.sampled_from(["", "001", "010"]))
    def change_code(self, code: str) -> None:
        self.content.inode.xattrs = {ATTRIBUTE: code.encode()} if code else {}

    @rule(count=st.integers(0, 3))
    def store_queued(self, count: int) -> None:
        for _, window, block in self.sink.queued[:count]:
            if self.content.names(window, block) and block.ref is None:
                self.sink.store(block)
        del self.sink.queued[:count]

    @rule(cached=st.booleans())
    def cut(self, cached: bool) -> None:
        """What the journal does up to the transaction."""
        if self.flying is not None:
            return
        before = bytes(self.oracle)
        for block in seal_content(self.content, CHUNK, self.sink.resident):
            assert block.code == own_code(self.content.inode), "G3"
            self.sink.budget.seal(block)
        blocks = self.content.undurable()
        assert content_of(self.content, self.sink) == before, "S1"
        self.check_sealed(blocks)
        for block in blocks:
            if block.ref is None:
                self.sink.store(block)
            assert block.ref is not None
            if cached:
                self.sink.cached.add(block.ref)
            self.sink.harden(block)
        self.flying = (self.content.map.cut(), blocks)

    def check_sealed(self, blocks: list[Block]) -> None:
        assert not self.content.windows
        extents = self.content.map.segment(0)
        kinds = {type(extent.source) for extent in extents}
        if len(self.oracle) > LITERAL:
            assert bytes not in kinds, "S2: literals in a large file"
        elif bytes in kinds:
            assert kinds == {bytes}, "S2: literals beside chunks"
        for extent in extents:
            source = extent.source
            if isinstance(source, Block):
                assert source.sealed, "S1: an open block is named after a cut"
                assert source.data is None or source in blocks, "C4: a block was forgotten"
        assert problems([e for e in extents if not isinstance(e.source, Block)], 0, SEGMENT_BYTES) == []

    @rule()
    def commit(self) -> None:
        if self.flying is not None:
            self.content.map.committed(self.flying[0])
            self.flying = None

    @rule()
    def fail(self) -> None:
        if self.flying is not None:
            self.content.map.uncut(self.flying[0])
            self.flying = None

    @invariant()
    def reads_like_the_oracle(self) -> None:
        if hasattr(self, "oracle"):
            assert content_of(self.content, self.sink) == bytes(self.oracle), "C2"

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "oracle"):
            self.content.check_invariants()
            self.sink.budget.check_invariants()
            assert self.sink.budget.open_bytes == sum(w.length for w in self.content.windows.values()), "B1"
            assert self.content.map.used <= self.content.inode.size

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()


TestContentMachine = ContentMachine.TestCase
TestContentMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

KIB = 1024
REAL = 64 * KIB


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink(REAL)


@pytest.fixture
def content(sink: MemorySink) -> FileContent:
    return FileContent(new_inode(), sink)


def test_a_whole_window_is_taken_without_a_copy(content: FileContent, sink: MemorySink) -> None:
    data = b"x" * REAL
    content.write(0, data)
    ((_, window, block),) = sink.queued
    assert window == 0
    assert block.data is data
    assert block.sealed
    assert content.windows == {}


def test_a_window_filled_piece_by_piece_is_queued_once(content: FileContent, sink: MemorySink) -> None:
    for at in range(0, REAL, 4 * KIB):
        content.write(at, bytes([1 + at // (4 * KIB)]) * 4 * KIB)
    assert len(sink.queued) == 1
    assert len(content.map.segment(0)) == 1
    assert sink.budget.open_bytes == 0


def test_a_window_written_backwards_is_joined(content: FileContent, sink: MemorySink) -> None:
    for at in reversed(range(0, REAL, 4 * KIB)):
        content.write(at, b"b" * 4 * KIB)
    assert content.map.segment(0) == [Extent(0, REAL, sink.queued[-1][2], 0)]


def test_a_window_of_zeros_becomes_a_hole(content: FileContent, sink: MemorySink) -> None:
    content.write(0, b"x" * REAL)
    content.write(0, bytes(REAL))
    assert content.map.segment(0) == []
    assert content.inode.used == 0
    assert content.inode.size == REAL
    assert not content.names(0, sink.queued[0][2]), "the overwritten block need not be stored"


def test_zeros_written_into_holes_stay_holes(content: FileContent, sink: MemorySink) -> None:
    for at in range(4095, 100 * REAL, 4096):  # as posix_fallocate of glibc does it
        content.write(at, b"\0")
    assert (content.inode.size, content.inode.used, content.windows) == (100 * REAL, 0, {})
    content.write(5, b"data")
    content.write(9, bytes(10))
    content.write(19, b"more")
    assert len(content.map.segment(0)) == 1, "a stream is not cut into pieces by zeros"
    assert content_of(content, sink)[:30] == bytes(5) + b"data" + bytes(10) + b"more" + bytes(7)


def test_bytes_beyond_a_cut_do_not_come_back(content: FileContent, sink: MemorySink) -> None:
    content.write(0, b"secret" * 100)
    truncate(content, 10)
    content.write(300, b"new")
    assert content_of(content, sink) == b"secretsecr" + bytes(290) + b"new"


def test_a_small_file_is_literal_and_not_copied(content: FileContent, sink: MemorySink) -> None:
    data = b"y" * 4096
    content.write(0, data)
    assert seal_content(content, REAL, sink.resident) == []
    (extent,) = content.map.segment(0)
    assert extent.source is data
    assert sink.budget.open_bytes == 0
    assert content.undurable() == []


def test_literals_become_a_chunk_when_the_file_grows(content: FileContent, sink: MemorySink) -> None:
    content.write(0, b"head")
    seal_content(content, REAL, sink.resident)
    content.write(10 * REAL, b"tail")
    blocks = seal_content(content, REAL, sink.resident)
    assert [bytes(block.data or b"") for block in blocks] == [b"headtail"], "S3: small pieces share a block"
    assert content.map.segment(0) == [Extent(0, 4, blocks[0], 0), Extent(10 * REAL, 4, blocks[0], 4)]
    assert content.undurable() == blocks


def test_literals_become_a_chunk_when_only_the_size_grows(content: FileContent, sink: MemorySink) -> None:
    content.write(0, b"head")
    seal_content(content, REAL, sink.resident)
    truncate(content, 5000)
    (block,) = seal_content(content, REAL, sink.resident)
    assert content.undurable() == [block]
    assert content.map.segment(0) == [Extent(0, 4, block, 0)]


def test_a_small_file_with_chunks_that_are_not_at_hand_keeps_them(content: FileContent, sink: MemorySink) -> None:
    content.write(0, b"z" * REAL)
    (block,) = content.undurable()
    sink.store(block)
    sink.harden(block)
    content.map.committed(content.map.cut())
    truncate(content, 100)
    content.write(100, b"more")
    seal_content(content, REAL, sink.resident)
    kinds = [type(extent.source) for extent in content.map.segment(0)]
    assert kinds == [ChunkRef, Block], "S2"
    assert content_of(content, sink) == b"z" * 100 + b"more"


def test_a_file_written_across_two_cuts_ends_in_one_block(content: FileContent, sink: MemorySink) -> None:
    content.write(0, b"1" * 20 * KIB)
    (first,) = seal_content(content, REAL, sink.resident)
    sink.store(first)
    content.write(20 * KIB, b"2" * 30 * KIB)
    (second,) = seal_content(content, REAL, sink.resident)
    assert content.map.segment(0) == [Extent(0, 50 * KIB, second, 0)]


def test_a_window_completed_across_two_cuts_is_one_block(content: FileContent, sink: MemorySink) -> None:
    content.write(0, b"1" * 60 * KIB)
    seal_content(content, REAL, sink.resident)
    content.write(60 * KIB, b"2" * 4 * KIB)
    assert content.map.segment(0) == [Extent(0, REAL, sink.queued[-1][2], 0)]


def test_a_small_change_does_not_rewrite_the_window(content: FileContent, sink: MemorySink) -> None:
    content.write(0, b"1" * REAL)
    content.write(1000, b"2" * 100)
    (block,) = seal_content(content, REAL, sink.resident)
    assert block.data == b"2" * 100


def test_random_small_writes_share_one_block(content: FileContent, sink: MemorySink) -> None:
    for window in range(20):
        content.write(window * REAL + 777, b"%3d" % window)
    (block,) = seal_content(content, REAL, sink.resident)
    assert block.data is not None
    assert len(block.data) == 60, "S3"


def test_fragments_are_noticed_and_crowds_reported(content: FileContent) -> None:
    crowded = [content.write(at * 10, b"x") for at in range(crowd(REAL) + 1)]
    assert content.fragmented == {0}
    assert crowded.count(0) == 1
    assert set(crowded[:-1]) == {-1}
    assert crowd(REAL) > FRAGMENTS


def test_a_forgotten_file_costs_nothing(content: FileContent, sink: MemorySink) -> None:
    content.write(0, b"x" * 100)
    content.forget()
    assert sink.budget.open_bytes == 0
    assert content.windows == {}


def test_an_open_block_charges_once(sink: MemorySink) -> None:
    block = Block(b"abc")
    sink.budget.seal(block)
    sink.budget.seal(block)
    charged = sink.budget.sealed_bytes
    sink.budget.drop(block)
    sink.budget.drop(block)
    assert charged > 3
    assert sink.budget.sealed_bytes == 0, "B2"
