"""How the plain bytes of a chunk become the stored ones.

Invariants
    K1  decode(*encode(data, codec), len(data)) == data for every codec and all data.
    K2  The stored bytes are never longer than the plain ones: what does not shrink is stored as it is ("none").

Concurrency
    Called in worker threads; zstandard's compressors are not to be shared between threads, so each thread has its own.
"""

from __future__ import annotations

import threading

import lz4.block
import zstandard

from flakefs.errors import ChunkCorrupt

CODECS = ("zstd", "lz4", "none")
CODEC_DEFAULT = "zstd"
ZSTD_LEVEL = 1
PROBE_BYTES = 16 * 1024
"""Compressed as a sample from the middle of large content: incompressible data is left alone for 2 % of the price."""
WORTHWHILE = 0.95
"""Stored only when it shrinks to this share; otherwise reading would pay for nothing."""

_local = threading.local()


def encode(data: bytes | bytearray, codec: str) -> tuple[str, bytes]:
    """(codec used, stored bytes). *codec* is one of CODECS."""
    if codec == "none" or len(data) < 64:
        return "none", bytes(data)
    if len(data) >= 4 * PROBE_BYTES:
        middle = len(data) // 2
        sample = memoryview(data)[middle : middle + PROBE_BYTES]
        if len(_compress(sample, codec)) > WORTHWHILE * PROBE_BYTES:
            return "none", bytes(data)
    stored = _compress(data, codec)
    if len(stored) > WORTHWHILE * len(data):
        return "none", bytes(data)
    return codec, stored


def decode(codec: str, stored: bytes, length: int) -> bytes:
    """The plain bytes. Raises ChunkCorrupt when the stored ones cannot be what encode() made of *length* bytes."""
    try:
        if codec == "zstd":
            if (
                zstandard.frame_content_size(stored) != length
            ):  # a damaged header must not make us allocate what it says
                raise ChunkCorrupt(f"stored bytes are no zstd data of {length} bytes")
            plain: bytes = _decompressor().decompress(stored, max_output_size=length)
        elif codec == "lz4":
            plain = lz4.block.decompress(stored, uncompressed_size=length)
        elif codec == "none":
            plain = stored
        else:
            raise ChunkCorrupt(f"a chunk is stored with the unknown codec {codec!r}; a newer FlakeFS may know it")
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
        raise ChunkCorrupt(f"stored bytes are no {codec} data: {error}") from error
    if len(plain) != length:
        raise ChunkCorrupt(f"stored bytes decode to {len(plain)} bytes instead of {length}")
    return plain


def decode_unsized(codec: str, stored: bytes, at_most: int) -> bytes:
    """The same when only a bound of the plain length is known: for tools that check a chunk by its hash."""
    try:
        if codec == "zstd":
            length = zstandard.frame_content_size(stored)
            if not 0 <= length <= at_most:
                raise ChunkCorrupt(f"stored bytes are no zstd data of at most {at_most} bytes")
            return decode(codec, stored, length)
        if codec == "lz4":
            return bytes(lz4.block.decompress(stored, uncompressed_size=at_most))
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
        raise ChunkCorrupt(f"stored bytes are no {codec} data: {error}") from error
    return decode(codec, stored, len(stored))


def _compress(data: bytes | bytearray | memoryview, codec: str) -> bytes:
    if codec == "lz4":
        return bytes(lz4.block.compress(data, store_size=False))
    compressor = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False)
    return bytes(compressor.compress(data))


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    return decompressor
