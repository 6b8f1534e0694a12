"""Which folders fuse.moved looks up again (M1, M2), without a kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from flakefs.errors import Stale, Unavailable
from flakefs.fuse import moved
from flakefs.fuse.moved import Moved
from flakefs.values import ROOT_INO
from tests.mount.space import Space


class Tree(Space):
    """Folders in memory, and those that the store is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[int, Any] = {}
        self.errors: dict[int, Exception] = {}
        self.peek = self.inodes.get

    def folder(self, ino: int, parent: int, name: bytes) -> Any:
        inode = self.add(ino, parent, name)
        inode.entries, inode.nlink = {}, 2
        return inode

    async def get(self, ino: int) -> Any:
        await trio.lowlevel.checkpoint()
        if ino in self.errors:
            raise self.errors[ino]
        return self.stored[ino]


@pytest.fixture
async def tree() -> Tree:
    tree = Tree()
    tree.folder(5, ROOT_INO, b"a")
    tree.folder(6, 5, b"d")
    return tree


class Looks:
    """What is looked up, and when it is answered."""

    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[list[bytes]](100)
        self.free = trio.Event()
        self.free.set()
        self.missed: list[bytes] = []

    async def __call__(self, paths: list[bytes]) -> list[bytes]:
        self.send.send_nowait(paths)
        await self.free.wait()
        return [path for path in paths if path in self.missed]


@asynccontextmanager
async def running(tree: Tree) -> AsyncIterator[tuple[Moved, Looks]]:
    looks = Looks()
    call: Callable[[list[bytes]], Awaitable[list[bytes]]] = looks
    subject = Moved(tree, "/mnt", call)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject.run)
        with trio.fail_after(10):
            yield subject, looks
        nursery.cancel_scope.cancel()


async def test_the_path_is_that_of_the_news_and_of_the_folders_above_as_they_are_stored(tree: Tree) -> None:
    async with running(tree) as (subject, looks):
        tree.stored[8] = tree.folder(8, 5, b"new")
        del tree.inodes[8]
        subject.add(6, (8, b"e"))
        subject.forgotten(subject.take())
        assert await looks.receive.receive() == [b"/mnt/a/new/e"]


async def test_only_folders_that_the_kernel_has_are_looked_up(tree: Tree) -> None:
    async with running(tree) as (subject, looks):
        tree.add(7, 5, b"file")
        tree.folder(9, 5, b"let-go")
        subject.add(7, (5, b"other"))
        subject.add(99, (5, b"unknown"))
        subject.add(9, (5, b"gone"))
        subject.add(6, (5, b"e"))
        assert set(subject.take()) == {9, 6}
        del tree.held[9]
        subject.forgotten({9: (5, b"gone"), 6: (5, b"e")})
        assert await looks.receive.receive() == [b"/mnt/a/e"]


async def test_m1_a_storm_of_news_is_one_look_up_of_each_at_a_time(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "LOOKED_UP_MAX", 3)
    for number in range(20, 30):
        tree.folder(number, 5, b"%d" % number)
    async with running(tree) as (subject, looks):
        looks.free = trio.Event()
        subject.add(6, (5, b"0"))
        subject.forgotten(subject.take())
        assert await looks.receive.receive() == [b"/mnt/a/0"]
        for number in range(100):  # while the kernel makes it wait
            subject.add(6, (5, b"%d" % number))
            subject.forgotten(subject.take())
        for number in range(20, 30):
            subject.add(number, (5, b"n%d" % number))
        subject.forgotten(subject.take())
        assert looks.receive.statistics().current_buffer_used == 0
        looks.free.set()
        assert await looks.receive.receive() == [b"/mnt/a/99", b"/mnt/a/n20", b"/mnt/a/n21"]
        subject.add(30, (5, b"x"))
        subject.add(25, (5, b"y"))
        subject.forgotten(subject.take())
        assert await looks.receive.receive() == [b"/mnt/a/y"]


async def test_m2_what_cannot_be_found_now_is_left_out(tree: Tree) -> None:
    async with running(tree) as (subject, looks):
        tree.errors = {40: Stale("gone"), 41: Unavailable("away")}
        tree.folder(42, ROOT_INO, b"removed").nlink = 0
        for ino, parent in ((50, 40), (51, 41), (52, 42), (53, 54)):
            tree.folder(ino, parent, b"x")
            subject.add(ino, (parent, b"x"))
        tree.folder(54, 54, b"a-circle")
        subject.add(6, (ROOT_INO, b"e"))
        subject.forgotten(subject.take())
        assert await looks.receive.receive() == [b"/mnt/e"]


async def test_one_that_is_missed_is_looked_for_again(tree: Tree, autojump_clock: trio.testing.MockClock) -> None:
    """News of a folder above it comes later."""
    async with running(tree) as (subject, looks):
        looks.missed = [b"/mnt/a/e"]
        tree.folder(7, 5, b"g")
        subject.add(6, (5, b"e"))
        subject.add(7, (5, b"f"))
        subject.forgotten(subject.take())
        assert await looks.receive.receive() == [b"/mnt/a/e", b"/mnt/a/f"]
        tree.inodes[5].name = b"b"
        assert await looks.receive.receive() == [b"/mnt/b/e"]
        looks.missed.append(b"/mnt/b/h")
        subject.add(6, (5, b"h"))
        subject.forgotten(subject.take())
        for _ in range(moved.LOOKS):
            assert await looks.receive.receive() == [b"/mnt/b/h"]
        subject.add(6, (5, b"i"))
        subject.forgotten(subject.take())
        assert await looks.receive.receive() == [b"/mnt/b/i"]
