"""Arithmetic on the extents of one segment of a file.

Purpose
    Every question about byte ranges is answered here, by functions from values to values.
    A "list of extents" is sorted by offset, its extents do not overlap, each has length >= 1,
    and what none covers is a hole.

Invariants
    X1  overlay() and punch() return sorted, non-overlapping lists and never change their argument.
    X2  The bytes that overlay() or punch() do not name read the same before and after.
    X3  Neighbours that continue each other in the same source are one extent.

Not here
    Which segment or window a byte lies in (format.windows), documents (format.documents).

After the habit of Parsec's file_operations: plan purely, act elsewhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

from flakefs.values import Block, ChunkRef, Extent, Source

_OFFSET = itemgetter(0)
_LENGTH = itemgetter(1)


class Slice(NamedTuple):
    """One step of reading: *length* bytes from *source*, or zeros where source is None."""

    offset: int
    length: int
    source: Source | None
    start: int


def overlay(extents: list[Extent], new: Extent) -> list[Extent]:
    """Lay *new* over *extents*: its bytes win."""
    offset, length, _, _ = new
    if not extents:
        return [new]
    last = extents[-1]
    if offset >= last[0] + last[1]:  # appending, the common case
        result = extents.copy()
        _append(result, new)
        return result
    left, right = _around(extents, offset, offset + length)
    result = extents[: left[0]]
    if left[1] is not None:
        result.append(left[1])
    _append(result, new)
    if right[1] is not None:
        _append(result, right[1])
    rest = extents[right[0] :]
    if rest:
        _append(result, rest[0])
        result += rest[1:]
    return result


def overlay_many(extents: list[Extent], news: Iterable[Extent]) -> list[Extent]:
    """Lay all of *news*, sorted and not overlapping, over *extents* in one pass."""
    result: list[Extent] = []
    decided = index = 0  # file bytes before `decided` are in the result, `index` is the first that may lie behind them
    count = len(extents)
    for new in news:
        start = new[0]
        while index < count and extents[index][0] < start:
            old = extents[index]
            stop = old[0] + old[1]
            _append_clipped(result, old, decided, start)
            if stop > start:
                break
            index += 1
        _append(result, new)
        decided = start + new[1]
        while index < count and extents[index][0] + extents[index][1] <= decided:
            index += 1
    for old in extents[index:]:
        _append_clipped(result, old, decided, old[0] + old[1])
    return result


def punch(extents: list[Extent], start: int, stop: int) -> list[Extent]:
    """Make a hole of [start, stop)."""
    if not extents or start >= stop:
        return extents.copy()
    left, right = _around(extents, start, stop)
    result = extents[: left[0]]
    result += [part for part in (left[1], right[1]) if part is not None]
    result += extents[right[0] :]
    return result


def slices(extents: list[Extent], offset: int, length: int) -> list[Slice]:
    """Cover [offset, offset + length) with slices in file order, holes included."""
    result: list[Slice] = []
    position, stop = offset, offset + length
    index = max(bisect_right(extents, offset, key=_OFFSET) - 1, 0)
    while position < stop and index < len(extents):
        at, size, source, start = extents[index]
        index += 1
        if at + size <= position:
            continue
        if at >= stop:
            break
        if at > position:
            result.append(Slice(position, at - position, None, 0))
            position = at
        skip = position - at
        take = min(size - skip, stop - position)
        result.append(Slice(position, take, source, start + skip))
        position += take
    if position < stop:
        result.append(Slice(position, stop - position, None, 0))
    return result


def covered(extents: Iterable[Extent]) -> int:
    """Bytes that are not holes."""
    return sum(map(_LENGTH, extents))


def covered_within(extents: list[Extent], offset: int, length: int) -> int:
    """Bytes of [offset, offset + length) that are not holes."""
    return sum(size for _, size, source, _ in slices(extents, offset, length) if source is not None)


def references(extents: Iterable[Extent]) -> Counter[ChunkRef]:
    """How many extents name each chunk. Literals are not counted; every Block must have its ref."""
    result: Counter[ChunkRef] = Counter()
    for extent in extents:
        source = extent.source
        if isinstance(source, Block):
            assert source.ref is not None, "a block is counted only after it was stored"
            source = source.ref
        if isinstance(source, ChunkRef):
            result[source] += 1
    return result


def problems(extents: list[Extent], start: int, stop: int) -> list[str]:
    """What is wrong with a list that claims to describe file bytes [start, stop); [] when nothing is."""
    found = []
    position = start
    for extent in extents:
        offset, length, source, begin = extent
        if length < 1 or begin < 0:
            found.append(f"extent at {offset} has length {length} from {begin}")
        if offset < position:
            found.append(f"extent at {offset} overlaps or is out of order (expected >= {position})")
        if isinstance(source, ChunkRef) and begin + length > source.length:
            found.append(f"extent at {offset} reaches past the end of its chunk")
        if isinstance(source, bytes) and begin + length > len(source):
            found.append(f"extent at {offset} reaches past the end of its literal bytes")
        position = max(position, offset + length)
    if position > stop:
        found.append(f"extents reach {position}, past {stop}")
    return found


def _append(result: list[Extent], new: Extent) -> None:
    """Append *new*, merged with its neighbour when both are one run of one source (X3)."""
    if result:
        offset, length, source, start = result[-1]
        if (
            offset + length == new.offset
            and start + length == new.start
            and (source is new.source or (isinstance(source, ChunkRef) and source == new.source))
        ):
            result[-1] = Extent(offset, length + new.length, source, start)
            return
    result.append(new)


def _append_clipped(result: list[Extent], old: Extent, low: int, high: int) -> None:
    """Append what *old* has in [low, high)."""
    offset, length, source, begin = old
    start, stop = max(offset, low), min(offset + length, high)
    if stop - start == length:
        _append(result, old)
    elif start < stop:
        _append(result, Extent(start, stop - start, source, begin + start - offset))


def _around(
    extents: list[Extent], start: int, stop: int
) -> tuple[tuple[int, Extent | None], tuple[int, Extent | None]]:
    """What stays on both sides of [start, stop): (whole ones, cut one), (index of first whole one, cut one)."""
    first = bisect_right(extents, start, key=_OFFSET) - 1
    left: Extent | None = None
    if first < 0:
        first = 0
    else:
        offset, length, source, begin = extents[first]
        if offset + length <= start:
            first += 1
        elif offset < start:
            left = Extent(offset, start - offset, source, begin)
    last = bisect_left(extents, stop, lo=first, key=_OFFSET)
    right: Extent | None = None
    if last > 0:
        offset, length, source, begin = extents[last - 1]
        if offset + length > stop:
            skip = stop - offset
            right = Extent(stop, length - skip, source, begin + skip)
    return (first, left), (last, right)
