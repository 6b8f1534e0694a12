"""Small values that every layer shares.

Purpose
    The types that cross layer borders: where a chunk is, which bytes of a file it holds,
    and content that is still on its way to the nodes.

Invariants
    V1  A ChunkRef names one immutable chunk for ever: content never changes, keys are never reused.
    V2  A Block's life goes one way: open (data may grow) -> sealed (data never changes again)
        -> stored (`ref` is set, data still here) -> durable (`data` is None, the nodes have it).
    V3  An Extent lies inside one segment of its file and inside its source.

Concurrency
    Values are immutable and go anywhere. A Block belongs to the trio thread; worker threads
    may read the data of a sealed one.

Not here
    Arithmetic on extents (format.extents), how they are stored (format.documents).
"""

from __future__ import annotations

from typing import NamedTuple

ROOT_INO = 1
"""Inode number of the top folder of every file system."""

SEGMENT_BYTES = 64 * 1024 * 1024
"""File offsets covered by one segment of a chunk map; every chunk size divides it."""

LITERAL_MAX = 4096
"""A file of at most this many bytes keeps its content in its inode document."""

NAME_MAX = 255
SYMLINK_MAX = 4095
XATTR_MAX = 65536
FILE_MAX = 2**63 - 1
"""Largest file size and offset in bytes."""


def readable(size: int) -> str:
    """A number of bytes for people: 1.5 GiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


class ChunkRef(NamedTuple):
    """One stored chunk: what it is (hash), where it is (volume and key), how long its plain content is."""

    hash: bytes
    """Its name: BLAKE3 of the plain content, 32 bytes; 3 digits more for a code of its own (format.hashing)."""
    volume: int
    """Volume id, >= 1."""
    key: bytes
    """Key in the volume, the 12 bytes of an ObjectId."""
    length: int
    """Plain length in bytes, >= 1."""


class Block:
    """A run of file content that the nodes do not safely hold yet.

    Made by `vfs` (open), sealed by `vfs`, given its `ref` and later relieved of its `data` by `engine`.
    `namespace` reads only `ref` and `stored_bytes`.
    """

    __slots__ = ("code", "data", "ref", "sealed", "stored_bytes")

    def __init__(self, data: bytes | bytearray) -> None:
        self.data: bytes | bytearray | None = data
        self.sealed = False
        self.ref: ChunkRef | None = None
        self.stored_bytes = 0
        """Encoded length on each replica, in bytes; set together with `ref`."""
        self.code = ""
        """The replication code that its file asks for; "" for the one of the file system. Set before it is sealed."""


Source = ChunkRef | Block | bytes
"""What an extent takes its bytes from: a stored chunk, a block in memory, or the literal bytes."""


class Extent(NamedTuple):
    """File bytes [offset, offset + length) are source bytes [start, start + length)."""

    offset: int
    length: int
    source: Source
    start: int


class Space(NamedTuple):
    """What the nodes can hold, in bytes (as their disks say) and what they hold (as we count)."""

    total_bytes: int
    free_bytes: int
    """For new chunks, all their copies together."""
    chunks: int
    stored_bytes: int
    """On each replica."""
