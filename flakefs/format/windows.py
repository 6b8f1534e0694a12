"""How a file is divided: segments of the map, and windows of one chunk size.

Rules
    Segment s covers file bytes [s * SEGMENT_BYTES, (s + 1) * SEGMENT_BYTES). Window w covers
    [w * chunk_size, (w + 1) * chunk_size); every chunk size divides SEGMENT_BYTES, so a window lies in one segment.
"""

from __future__ import annotations

from collections.abc import Iterator

from flakefs.values import SEGMENT_BYTES

CHUNK_SIZE_MIN = 64 * 1024
CHUNK_SIZE_MAX = 8 * 1024 * 1024
CHUNK_SIZE_DEFAULT = 1024 * 1024


def segment_of(offset: int) -> int:
    """Segment that holds file byte *offset*."""
    return offset // SEGMENT_BYTES


def segment_range(offset: int, length: int) -> range:
    """Segments that [offset, offset + length) touches."""
    if length <= 0:
        return range(0)
    return range(offset // SEGMENT_BYTES, (offset + length - 1) // SEGMENT_BYTES + 1)


def split(offset: int, length: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut [offset, offset + length) at multiples of *size*: (offset, length) in file order, lengths sum to *length*."""
    stop = offset + length
    while offset < stop:
        step = min(stop, (offset // size + 1) * size) - offset
        yield offset, step
        offset += step


def valid_chunk_size(size: int) -> bool:
    """Powers of two from 64 KiB to 8 MiB."""
    return CHUNK_SIZE_MIN <= size <= CHUNK_SIZE_MAX and size & (size - 1) == 0
