"""The checker of histories bites."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tests.shared.history.check import (
    FOLDER,
    Change,
    Read,
    Seen,
    Torn,
    Whole,
    Write,
    explain_names,
    explain_register,
    explain_torn,
)

Names = Sequence[Change | Seen | Whole]

BAD_NAMES: dict[str, Names] = {
    "two made the same name": [Change(0, 1, 0, "create", "a", ino=5), Change(2, 3, 1, "create", "a", ino=6)],
    "two at the same time, too": [Change(0, 3, 0, "create", "a", ino=5), Change(0, 3, 1, "create", "a", ino=6)],
    "removed twice": [
        Change(0, 1, 0, "create", "a", ino=5),
        Change(2, 5, 0, "unlink", "a"),
        Change(2, 5, 1, "unlink", "a"),
    ],
    "a file is no folder": [Change(0, 1, 0, "create", "a", ino=5), Change(2, 3, 0, "rmdir", "a")],
    "a folder is no file": [Change(0, 1, 0, "mkdir", "a"), Change(2, 3, 0, "unlink", "a")],
    "a file over a folder": [
        Change(0, 1, 0, "mkdir", "a"),
        Change(2, 3, 0, "create", "b", ino=4),
        Change(4, 5, 0, "rename", "b", "a"),
    ],
    "linked a file that is gone": [
        Change(0, 1, 0, "create", "a", ino=5),
        Change(2, 3, 0, "unlink", "a"),
        Change(4, 5, 1, "link", "b", ino=5),
    ],
    "seen too late": [
        Change(0, 1, 0, "create", "a", ino=5),
        Change(2, 3, 0, "unlink", "a"),
        Seen(5, 6, 1, "a", 5),
    ],
    "seen before it was": [Seen(0, 1, 1, "a", 5), Change(2, 3, 0, "create", "a", ino=5)],
    "not seen by the one who made it": [Change(0, 1, 1, "create", "a", ino=5), Seen(1.5, 2, 1, "a", None)],
    "lost at the end": [Change(0, 1, 0, "create", "a", ino=5), Whole(9, 9, frozenset())],
    "left over at the end": [
        Change(0, 1, 0, "create", "a", ino=5),
        Change(2, 3, 0, "rename", "a", "b"),
        Whole(9, 9, frozenset({("a", 5), ("b", 5)})),
    ],
}
GOOD_NAMES: dict[str, Names] = {
    "one after the other": [
        Change(0, 1, 0, "create", "a", ino=5),
        Seen(1, 2, 0, "a", 5),
        Change(3, 4, 1, "rename", "a", "b"),
        Seen(4.5, 5, 0, "a", 5),
        Seen(4.5, 5, 1, "b", "file"),
        Change(6, 7, 1, "mkdir", "a"),
        Seen(7, 8, 1, "a", FOLDER),
        Whole(9, 9, frozenset({("a", FOLDER), ("b", 5)})),
    ],
    "overlapping, in the only order that does": [
        Change(0, 10, 0, "unlink", "a"),
        Change(1, 10, 1, "create", "a", ino=5),
        Seen(2, 10, 2, "a", None),
        Whole(11, 11, frozenset()),
    ],
    "without an answer, and done": [
        Change(0, math.inf, 0, "create", "a", ino=5, sure=False),
        Whole(9, 9, frozenset({("a", 5)})),
    ],
    "without an answer, and not done": [
        Change(0, math.inf, 0, "create", "a", ino=5, sure=False),
        Whole(9, 9, frozenset()),
    ],
    "two names of one file: a rename that does nothing": [
        Change(0, 1, 0, "create", "a", ino=5),
        Change(2, 3, 0, "link", "b", ino=5),
        Change(4, 5, 0, "rename", "a", "b"),
        Whole(9, 9, frozenset({("a", 5), ("b", 5)})),
    ],
    "undone by another one before the answer, and seen as it was in between": [
        Change(0, 1, 0, "create", "a", ino=5),
        Change(2, 5, 1, "rename", "a", "b"),
        Change(3, 4, 0, "rename", "b", "a"),
        Seen(5, 5.5, 1, "a", None),
        Whole(9, 9, frozenset({("a", 5)})),
    ],
    "a folder over a folder": [
        Change(0, 1, 0, "mkdir", "a"),
        Change(0, 1, 1, "mkdir", "b"),
        Change(2, 3, 1, "rename", "a", "b"),
        Whole(9, 9, frozenset({("b", FOLDER)})),
    ],
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_bad_names_are_found(case: str) -> None:
    assert not explain_names(BAD_NAMES[case], lambda _: 1.0)


@pytest.mark.parametrize("case", GOOD_NAMES)
def test_good_names_are_believed(case: str) -> None:
    assert explain_names(GOOD_NAMES[case], lambda _: 1.0)


@pytest.mark.parametrize(
    "events",
    [
        [Write(0, 1, 0, 1), Read(2, 3, 1, 0)],
        [Write(0, 1, 0, 1), Write(2, 3, 0, 2), Read(4, 5, 1, 1)],
        [Write(0, 9, 0, 1), Read(1, 2, 1, 1), Read(3, 4, 1, 0)],
        [Write(0, 9, 0, 1), Write(0, 9, 0, 2), Read(1, 2, 1, 1), Read(3, 4, 1, 2), Read(5, 6, 1, 1)],
        [Read(0, 1, 1, 7)],
    ],
)
def test_bad_registers_are_found(events: list[Write | Read]) -> None:
    assert not explain_register(0, events)


@pytest.mark.parametrize(
    "events",
    [
        [Read(0, 1, 1, 0), Write(2, 3, 0, 1), Read(4, 5, 1, 1)],
        [Write(0, 9, 0, 1), Read(1, 2, 1, 0), Read(3, 4, 1, 1)],
        [Write(0, 9, 0, 1), Write(0, 9, 0, 2), Read(1, 2, 1, 1), Read(3, 4, 1, 2)],
        [Write(0, 9, 0, 1), Read(1, 2, 0, 1), Write(3, 4, 1, 2), Read(10, 11, 1, 1)],
        [Write(0, math.inf, 0, 1, sure=False), Read(1, 2, 1, 0), Read(3, 4, 1, 1)],
        [Write(0, math.inf, 0, 1, sure=False), Write(1, 2, 0, 2), Read(3, 4, 1, 2)],
    ],
)
def test_good_registers_are_believed(events: list[Write | Read]) -> None:
    assert explain_register(0, events)


@pytest.mark.parametrize(
    ("parts", "good"),
    [({1, 2}, True), ({2, 3}, True), ({1, 2, 3}, True), ({0, 1}, False), ({0, 1, 2}, False), ({0, 4}, False)],
)
def test_a_torn_read_needs_a_write_at_that_time(parts: set[int], good: bool) -> None:
    events = [Write(0, 1, 0, 1), Write(1, 9, 1, 2), Write(4, math.inf, 0, 3, sure=False), Write(6, 7, 0, 4)]
    assert explain_torn(Torn(2, 5, 1, frozenset(parts)), events) is good
