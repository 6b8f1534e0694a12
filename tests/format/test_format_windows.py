"""Segments and windows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flakefs.format.windows import (
    CHUNK_SIZE_DEFAULT,
    CHUNK_SIZE_MAX,
    CHUNK_SIZE_MIN,
    segment_of,
    segment_range,
    split,
    valid_chunk_size,
)
from flakefs.values import FILE_MAX, SEGMENT_BYTES

sizes = st.sampled_from([2**n for n in range(16, 24)])


@given(st.integers(0, FILE_MAX), st.integers(0, 2**28), sizes)
def test_split_covers_the_range_in_windows(offset: int, length: int, size: int) -> None:
    position = offset
    for at, step in split(offset, length, size):
        assert at == position
        assert step > 0
        assert at // size == (at + step - 1) // size, "a piece lies in one window"
        position += step
    assert position == offset + length


@given(st.integers(0, FILE_MAX), st.integers(1, 2**40))
def test_segment_range_is_the_segments_of_first_to_last_byte(offset: int, length: int) -> None:
    found = segment_range(offset, length)
    assert found.start == segment_of(offset)
    assert found.stop - 1 == segment_of(offset + length - 1)
    assert segment_range(offset, 0) == range(0)


@given(st.integers(0, 2**25))
def test_only_powers_of_two_in_bounds_are_chunk_sizes(size: int) -> None:
    assert valid_chunk_size(size) == (size in {2**n for n in range(16, 24)})


def test_every_chunk_size_divides_a_segment() -> None:
    assert valid_chunk_size(CHUNK_SIZE_MIN)
    assert valid_chunk_size(CHUNK_SIZE_MAX)
    assert valid_chunk_size(CHUNK_SIZE_DEFAULT)
    assert all(SEGMENT_BYTES % 2**n == 0 for n in range(16, 24))
