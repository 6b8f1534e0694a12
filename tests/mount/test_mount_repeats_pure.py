"""Which call is the repeat of one that was refused (fuse.repeats)."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from flakefs.errors import NotMeant
from flakefs.fuse import repeats
from flakefs.fuse.caches import ROOT
from flakefs.fuse.repeats import Asked, Found, Kind, Repeats

OLD, NEW = (ROOT, b"old"), (ROOT, b"new")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """What each thread is seen to call."""
    seen: dict[int, bytes] = {}
    monkeypatch.setattr(repeats, "system_call", lambda thread: seen.get(thread, b""))
    return seen


def opening(ino: int) -> Asked:
    return Asked(Kind.OPEN, ino=ino)


RENAME = Asked(Kind.RENAME, OLD, new=NEW)
LINK = Asked(Kind.LINK, NEW)
OPEN = opening(5)


async def ask(memory: Repeats, thread: int, asked: Asked = OPEN) -> bool:
    """Is it done whatever it finds?"""

    async def call(found: Found | None) -> bool:
        if found is None:
            raise NotMeant("elsewhere")
        return True

    try:
        return await memory.once(thread, asked, call)
    except NotMeant:
        return False


async def test_rp1_a_call_is_refused_once(calls: dict[int, bytes]) -> None:
    memory, rename = Repeats(), RENAME
    for asked in (rename, opening(5)):
        assert [await ask(memory, 7, asked), await ask(memory, 8, asked)] == [False, False]
        assert [await ask(memory, 7, asked), await ask(memory, 8, asked)] == [True, True]
        assert not await ask(memory, 7, asked), "the next one is another call"
        assert await ask(memory, 7, asked)


async def test_rp1_where_calls_cannot_be_seen_a_rename_is_the_one_that_was_refused(calls: dict[int, bytes]) -> None:
    memory = Repeats()
    for first, then in ((RENAME, RENAME._replace(flags=1)), (RENAME, opening(5)), (opening(5), RENAME)):
        assert not await ask(memory, 7, first)
        assert not await ask(memory, 7, then)
        assert await ask(memory, 7, then)
    calls[7] = b"82 1 2"
    assert not await ask(memory, 7, RENAME)
    assert await ask(memory, 7, RENAME._replace(place=(9, b"old"))), (
        "seen to be the same call, which found another folder"
    )


async def test_rp1_another_call_is_not_the_repeat(calls: dict[int, bytes]) -> None:
    memory = Repeats()
    calls[7] = b"82 1 2"
    assert not await ask(memory, 7, RENAME)
    assert memory.is_repeating(7, OLD)
    calls[7] = b"82 1 3"
    assert not memory.is_repeating(7, OLD)
    calls[7] = b"82 1 2"
    assert not await ask(memory, 7, RENAME), "that was over"
    del calls[7]
    assert await ask(memory, 7, RENAME), "not seen any more"


async def test_rp1_what_is_missing_ends_a_rename(calls: dict[int, bytes]) -> None:
    memory, rename = Repeats(), RENAME
    assert not await ask(memory, 7, rename)
    memory.looked_up(7, OLD, 5)
    memory.looked_up(7, NEW, 0)
    assert await ask(memory, 7, rename), "the new name may be missing"
    assert not await ask(memory, 7, rename)
    memory.looked_up(7, OLD, 0)
    assert not await ask(memory, 7, rename)
    memory.looked_up(7, OLD, 0)
    assert memory.is_repeating(7, OLD), "the kernel held it, and looks once more"
    memory.looked_up(7, OLD, 5)
    assert await ask(memory, 7, rename)
    assert not await ask(memory, 7, rename)
    memory.looked_up(7, OLD, 0)
    assert not memory.is_repeating(7, NEW), "another call"
    assert not memory.is_repeating(7, OLD)


async def test_rp1_what_is_missing_ends_a_link_but_for_its_new_name(calls: dict[int, bytes]) -> None:
    memory = Repeats()
    for kind in (RENAME, opening(5)):
        assert not await ask(memory, 7, LINK)
        assert not await ask(memory, 7, kind), "another call"
        memory.over(7)
    for found in (5, 0):
        assert not await ask(memory, 7, LINK)
        memory.looked_up(7, OLD, found)
        assert memory.is_repeating(7, OLD)
        memory.looked_up(7, NEW, 0)
        assert await ask(memory, 7, LINK) == bool(found)
        memory.over(7)
    assert not await ask(memory, 7, LINK)
    assert not await ask(memory, 7, LINK._replace(place=OLD)), "another call"


async def test_rp1_an_open_is_of_what_was_looked_up_last(
    calls: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Repeats()
    for ino, asked, repeated in ((6, 6, True), (6, 5, False), (0, 5, False)):
        assert not await ask(memory, 7)
        memory.looked_up(7, OLD, 0)
        memory.looked_up(7, OLD, ino)
        assert await ask(memory, 7, opening(asked)) == repeated
        memory.over(7)
    assert not await ask(memory, 7)
    memory.looked_up(7, OLD, 6)
    now = time.monotonic()
    monkeypatch.setattr("flakefs.fuse.repeats.monotonic", lambda: now + repeats.AT_ONCE_SECONDS + 1)
    assert not await ask(memory, 7, opening(6)), "a later one"


async def test_rp1_a_repeat_may_wait_for_a_server(calls: dict[int, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("flakefs.fuse.repeats.monotonic", lambda: clock.now)
    memory = Repeats()
    rename = RENAME
    assert not await ask(memory, 7, rename)
    for place in (OLD, NEW):
        clock.now += 45.0
        assert memory.is_repeating(7, place)
        memory.looked_up(7, place, 5)
    assert await ask(memory, 7, rename), "ESTALE would reach the program"
    assert not await ask(memory, 7)
    clock.now += 45.0
    assert await ask(memory, 7)
    assert not await ask(memory, 7)
    clock.now += 61.0
    assert not memory.is_repeating(7, OLD)
    assert not await ask(memory, 7)


async def test_rp1_who_cannot_be_told_apart_is_not_refused(calls: dict[int, bytes]) -> None:
    memory = Repeats()
    assert await ask(memory, 0)
    assert await ask(memory, 0, RENAME)
    assert not memory.is_repeating(0, OLD)


async def test_rp1_an_open_that_is_repeated_may_find_the_name_there_or_missing(calls: dict[int, bytes]) -> None:
    """O_CREAT: the kernel asks to make what is missing, and to open what is there."""
    memory, making = Repeats(), Asked(Kind.OPEN, OLD)
    for first in (making, opening(5)):
        for found, then, repeated in (
            (0, making, True),
            (6, opening(6), True),
            (0, opening(5), False),
            (6, making, False),
            (0, Asked(Kind.OPEN, NEW), False),
        ):
            assert not await ask(memory, 7, first)
            memory.looked_up(7, OLD, found)
            assert await ask(memory, 7, then) == repeated
            memory.over(7)


async def test_rp4_a_repeat_knows_what_it_has_found(calls: dict[int, bytes]) -> None:
    memory, known = Repeats(), []

    async def call(found: Found | None) -> None:
        known.append(found)
        if found is None:
            raise NotMeant("elsewhere")

    for asked in (RENAME, Asked(Kind.REMOVE, OLD)):
        with pytest.raises(NotMeant):
            await memory.once(7, asked, call)
        memory.looked_up(7, OLD, 5)
        memory.looked_up(7, NEW, 0)
        memory.looked_up(7, OLD, 6)
        await memory.once(7, asked, call)
        await memory.once(0, asked, call)
        assert known == [None, {OLD: 6, NEW: 0}, {}]
        known.clear()


async def test_rp2_a_thread_repeats_after_a_refusal_only(calls: dict[int, bytes]) -> None:
    memory = Repeats()
    assert not memory.is_repeating(7, OLD)
    assert not await ask(memory, 7)
    assert memory.is_repeating(7, OLD)
    assert not memory.is_repeating(8, OLD)
    assert await ask(memory, 7)
    assert not memory.is_repeating(7, OLD)
