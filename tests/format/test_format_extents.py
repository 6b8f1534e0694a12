"""Extent arithmetic against a bytearray: X1, X2, X3, slices, references, problems."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flakefs.format.extents import (
    covered,
    covered_within,
    overlay,
    overlay_many,
    problems,
    punch,
    references,
    slices,
)
from flakefs.values import Block, ChunkRef, Extent

SPACE = 200
SOURCE = bytes(range(256)) * 2
CHUNKS = [ChunkRef(bytes([n]) * 32, n, bytes([n]) * 12, SPACE) for n in (1, 2, 3)]
BLOCKS = [Block(bytearray(SOURCE)) for _ in range(2)]
LITERALS = [bytes(reversed(range(200))), bytes(SPACE)]
SOURCES: list[ChunkRef | Block | bytes] = [*CHUNKS, *BLOCKS, *LITERALS]


def content(source: ChunkRef | Block | bytes, start: int, length: int) -> bytes:
    """What a source holds; each of SOURCES holds something else."""
    if isinstance(source, bytes):
        return source[start : start + length]
    number = SOURCES.index(source)
    return bytes((start + i) * (number + 3) % 251 for i in range(length))


@st.composite
def extents(draw: st.DrawFn) -> Extent:
    offset = draw(st.integers(0, SPACE - 1))
    length = draw(st.integers(1, SPACE - offset))
    source = draw(st.sampled_from(SOURCES))
    return Extent(offset, length, source, draw(st.one_of(st.just(offset), st.integers(0, SPACE - length))))


@st.composite
def holes(draw: st.DrawFn) -> tuple[int, int]:
    start = draw(st.integers(0, SPACE))
    return start, draw(st.integers(start, SPACE))


steps = st.lists(st.one_of(extents(), holes()), max_size=30)


def apply(step: Extent | tuple[int, int], found: list[Extent], model: list[int | None]) -> list[Extent]:
    """One step on both; None in the model is a hole."""
    before = list(found)
    if isinstance(step, Extent):
        result = overlay(found, step)
        model[step.offset : step.offset + step.length] = content(step.source, step.start, step.length)
    else:
        start, stop = step
        result = punch(found, start, stop)
        model[start:stop] = [None] * (stop - start)
    assert found == before, "X1: the argument was changed"
    return result


def read(found: list[Extent], offset: int, length: int) -> list[int | None]:
    """Through slices(), whose own promises are checked on the way."""
    result: list[int | None] = []
    position = offset
    for piece in slices(found, offset, length):
        assert piece.offset == position
        assert piece.length > 0
        position += piece.length
        if piece.source is None:
            result += [None] * piece.length
        else:
            result += content(piece.source, piece.start, piece.length)
    assert position == offset + length
    return result


def continues(left: Extent, right: Extent) -> bool:
    same = left.source is right.source or (isinstance(left.source, ChunkRef) and left.source == right.source)
    return same and left.offset + left.length == right.offset and left.start + left.length == right.start


@settings(max_examples=400, deadline=None)
@given(steps)
def test_a_map_reads_like_a_bytearray(todo: list[Extent | tuple[int, int]]) -> None:
    found: list[Extent] = []
    model: list[int | None] = [None] * SPACE
    for step in todo:
        found = apply(step, found, model)
        assert problems(found, 0, SPACE) == [], "X1: sorted, not overlapping"
        assert read(found, 0, SPACE) == model, "X2: bytes that were not named stay"
        assert not any(continues(a, b) for a, b in itertools.pairwise(found)), "X3: one run, one extent"
        assert covered(found) == sum(byte is not None for byte in model)


@settings(max_examples=200, deadline=None)
@given(steps, holes())
def test_slices_of_any_range(todo: list[Extent | tuple[int, int]], window: tuple[int, int]) -> None:
    found: list[Extent] = []
    model: list[int | None] = [None] * SPACE
    for step in todo:
        found = apply(step, found, model)
    start, stop = window
    assert read(found, start, stop - start) == model[start:stop]


@given(steps)
def test_appending_and_general_overlay_agree(todo: list[Extent | tuple[int, int]]) -> None:
    """X3 also through the short cut for appends."""
    found: list[Extent] = []
    model: list[int | None] = [None] * SPACE
    for step in todo:
        found = apply(step, found, model)
    whole: list[Extent] = []
    for extent in found:
        whole = overlay(whole, extent)
    assert whole == found


@settings(max_examples=200, deadline=None)
@given(steps, steps, holes())
def test_many_at_once_are_as_one_by_one(
    below: list[Extent | tuple[int, int]], above: list[Extent | tuple[int, int]], window: tuple[int, int]
) -> None:
    """X1 to X3 for overlay_many; and covered_within counts what is there."""
    found: list[Extent] = []
    news: list[Extent] = []
    model: list[int | None] = [None] * SPACE
    for step in below:
        found = apply(step, found, model)
    for step in above:
        news = apply(step, news, [None] * SPACE)
    before = list(found)
    expected = found
    for new in news:
        expected = overlay(expected, new)
    result = overlay_many(found, news)
    assert found == before
    assert result == expected
    assert problems(result, 0, SPACE) == []
    start, stop = window
    within = sum(length for _, length, source, _ in slices(result, start, stop - start) if source is not None)
    assert covered_within(result, start, stop - start) == within
    assert covered_within(result, 0, SPACE) == covered(result)


def test_neighbours_of_one_chunk_join() -> None:
    """X3"""
    chunk = CHUNKS[0]
    assert overlay([Extent(0, 10, chunk, 0)], Extent(10, 5, chunk, 10)) == [Extent(0, 15, chunk, 0)]
    middle = overlay([Extent(0, 10, chunk, 0), Extent(20, 10, chunk, 20)], Extent(10, 10, chunk, 10))
    assert middle == [Extent(0, 30, chunk, 0)]


def test_references_count_extents_not_bytes() -> None:
    one, two = CHUNKS[:2]
    block = Block(b"abc")
    block.ref = two
    found = [Extent(0, 1, one, 0), Extent(1, 1, one, 5), Extent(2, 1, block, 0), Extent(3, 1, b"x", 0)]
    assert references(found) == Counter({one: 2, two: 1})


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([Extent(5, 5, CHUNKS[0], 0), Extent(0, 5, CHUNKS[0], 0)], "out of order"),
        ([Extent(0, 6, CHUNKS[0], 0), Extent(5, 5, CHUNKS[1], 0)], "overlaps"),
        ([Extent(0, 0, CHUNKS[0], 0)], "length 0"),
        ([Extent(0, 4, CHUNKS[0], -1)], "from -1"),
        ([Extent(0, 10, CHUNKS[0], SPACE - 9)], "past the end of its chunk"),
        ([Extent(0, 10, b"short", 0)], "past the end of its literal"),
        ([Extent(95, 10, CHUNKS[0], 0)], "past 100"),
    ],
)
def test_problems_names_what_is_wrong(found: list[Extent], words: str) -> None:
    said = problems(found, 0, 100)
    assert len(said) == 1
    assert words in said[0]
