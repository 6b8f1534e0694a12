"""The content hash: BLAKE3, 32 bytes, of the plain content."""

from __future__ import annotations

from blake3 import blake3

HASH_NAME = "blake3"
HASH_BYTES = 32


def chunk_hash(data: bytes | bytearray | memoryview) -> bytes:
    """The name of this content. Releases the GIL for large data."""
    return blake3(data).digest()
