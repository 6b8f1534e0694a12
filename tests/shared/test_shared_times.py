"""Times of folders, which shared mode writes outside of the commits: none is lost (P1), and everybody shows them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from flakefs.errors import NotFound, Unavailable
from flakefs.namespace import shared as module
from flakefs.namespace.group import cut, uncut
from flakefs.namespace.times import write
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes
from tests.shared.conftest import ROOT, eventually, put, shared, two, until
from tests.shared.times import (
    FUTURE,
    all_show,
    by_hand,
    deaf,
    folder_of,
    heard,
    known_names,
    listen,
    set_mtime,
    stored,
    write_times,
)

__all__ = ["by_hand"]


async def test_they_survive_the_end_of_a_mount_while_the_server_is_away(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [Unavailable("away")] * 3

    def away(*args: Any) -> None:
        if failures:
            raise failures.pop()
        write(*args)

    monkeypatch.setattr(module, "write", away)
    async with fresh.open() as other:
        async with fresh.open() as one:
            await shared(one)
            folder = (await one.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
            await put(one.fs, b"f", b"", parent=folder)
            mtime = (await one.fs.ns.get(folder)).mtime
        assert not failures
        assert (await stored(other, folder))["mtime"] == mtime
    await fresh.assert_sound_now()


@pytest.mark.usefixtures("by_hand")
async def test_none_is_lost_when_writing_fails_or_a_cut_is_undone(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TM4"""

    def fail(*args: Any) -> None:
        raise RuntimeError("a bug")

    async with two(fresh) as (one, other):
        ino = await folder_of(one, other)
        await put(one.fs, b"f", b"", parent=ino)
        mtime = (await one.fs.inode(ino)).mtime
        with monkeypatch.context() as patch:
            patch.setattr(module, "write", fail)
            with pytest.raises(RuntimeError):
                await write_times(one)
        await write_times(one)
        await all_show(ino, mtime, one, other)
        folder, cache = await one.fs.inode(ino), one.fs.ns._cache
        cache.names_changed(folder, mtime + 1)
        group = cut(cache, one.fs.ns._journal._content)
        cache.names_changed(folder, mtime + 2)
        uncut(cache, group)
        await put(one.fs, b"g", b"")  # makes a commit
        await write_times(one)
        await all_show(ino, mtime + 2, one, other)


@pytest.mark.usefixtures("by_hand")
async def test_a_name_that_was_taken_back_leaves_no_time(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """TM4, RB5"""
    dropped: list[int] = []
    kernel = SimpleNamespace(
        drop_inode=lambda ino, *, content: dropped.append(ino),
        drop_entry=lambda parent, name: None,
        named=lambda ino, parent, name: None,
        drop_all=lambda: None,
    )
    async with two(fresh) as (one, other):
        ino = await folder_of(one, other)
        await put(one.fs, b"f", b"", parent=ino)
        await heard(other, one)
        assert b"f" in await known_names(other, ino)
        other.fs.ns.attach_kernel(kernel)
        kept = deaf(other, monkeypatch)
        await one.fs.unlink(ino, b"f")
        with pytest.raises(NotFound):
            await other.fs.unlink(ino, b"f")
        assert ino in dropped
        listen(other, kept, monkeypatch)
        await write_times(one, other)
        await all_show(ino, (await one.fs.inode(ino)).mtime, one, other)


@pytest.mark.usefixtures("by_hand")
async def test_a_folder_read_before_its_time_is_written_has_it(fresh: Fresh) -> None:
    """TM4: by a mount that heard of the name before it knew the folder, and by one that comes later."""
    async with two(fresh) as (one, other):
        ino = await folder_of(one)
        await set_mtime(one, ino, FUTURE)
        await put(one.fs, b"f", b"", parent=ino)
        await heard(other, one)
        assert other.fs.peek(ino) is None
        mtime = (await one.fs.inode(ino)).mtime
        assert mtime < time.time_ns()
        assert (await stored(one, ino))["mtime"] == FUTURE
        assert (await other.fs.inode(ino)).mtime == mtime
        async with fresh.open() as third:
            assert (await third.fs.inode(ino)).mtime == mtime
        await all_show(ino, mtime, one, other)


@pytest.mark.usefixtures("by_hand")
async def test_a_folder_that_is_read_again_keeps_a_time_that_is_not_written_yet(fresh: Fresh) -> None:
    """TM4"""
    async with two(fresh) as (one, other):
        ino = await folder_of(one, other)
        await put(one.fs, b"f", b"", parent=ino)
        mtime = (await one.fs.inode(ino)).mtime
        await heard(other, one)
        await other.fs.setattr(ino, Changes(mode=0o700), ROOT)
        await heard(one, other)
        assert (await one.fs.inode(ino)).mode & 0o777 == 0o700
        assert [(await stack.fs.inode(ino)).mtime for stack in (one, other)] == [mtime, mtime]
        await write_times(one)
        await all_show(ino, mtime, one, other)


async def test_a_time_whose_news_was_lost_is_shown_when_it_is_written(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CO3"""
    monkeypatch.setattr(module, "TIMES_SECONDS", 0.01)
    async with two(fresh) as (one, other):
        assert other.fs.ns._shared is not None
        ino = await folder_of(one, other)
        write_now = other.fs.ns._shared.write_times
        monkeypatch.setattr(other.fs.ns._shared, "write_times", trio.lowlevel.checkpoint)
        lost = deaf(one, monkeypatch)
        await put(other.fs, b"f", b"", parent=ino)
        await until(lambda: any("news" in document for document in lost))
        listen(one, [], monkeypatch)
        one.fs.ns.coherence.drop_all()
        mtime = (await other.fs.inode(ino)).mtime
        assert (await one.fs.inode(ino)).mtime < mtime
        await write_now()
        one.fs.ns.coherence._late = 0.0  # now

        async def is_shown() -> bool:
            return (await one.fs.inode(ino)).mtime == mtime

        await eventually(is_shown)
