"""The content hash, BLAKE3 of the plain content, and the name of a chunk.

Purpose
    A chunk is de-duplicated within one replication code. Its *name* (`ChunkRef.hash`, `h` of extents and of chunks on
    nodes, `_id` of the index) is the content hash; when the file asked for a code of its own, the three digits of that
    code follow, also when they equal the file system's code at that moment: that one may change.

Invariants
    H1  content_hash_of(chunk_name(h, c)) == h and own_code_of(chunk_name(h, c)) == c.
    H2  Content is verified against content_hash_of(name) alone.
"""

from __future__ import annotations

from blake3 import blake3

HASH_NAME = "blake3"
HASH_BYTES = 32
OWN_NAME_BYTES = HASH_BYTES + 3
"""Length of the name of a chunk whose file has a replication code of its own."""


def chunk_hash(data: bytes | bytearray | memoryview) -> bytes:
    """The hash of this content. Releases the GIL for large data."""
    return blake3(data).digest()


def chunk_name(content_hash: bytes, code: str) -> bytes:
    """The name of a chunk; *code* "" means the one of the file system."""
    return content_hash + code.encode("ascii") if code else content_hash


def content_hash_of(name: bytes) -> bytes:
    """The hash that the content of the chunk must have."""
    return name[:HASH_BYTES]


def own_code_of(name: bytes) -> str:
    """The replication code its files asked for; "" when it is the one of the file system."""
    return name[HASH_BYTES:].decode("ascii", "replace")


def valid_name(name: bytes) -> bool:
    """Can a chunk have this name?"""
    if len(name) == HASH_BYTES:
        return True
    return len(name) == OWN_NAME_BYTES and name[HASH_BYTES:].isdigit()
