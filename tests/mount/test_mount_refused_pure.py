"""What is answered for what fuse.caches and fuse.told remember: calls that are refused once (K7, TO1, TO2, TO5)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pyfuse3 import FUSEError

from flakefs.errors import NotMeant
from flakefs.fuse import FuseOptions, caches
from flakefs.fuse import kernel as kernel_side
from flakefs.fuse.caches import ROOT, KernelCaches
from flakefs.fuse.operations import Operations
from tests.mount.space import Space


class Files:
    """As much of a FileSystem as is asked."""

    chunk_size = 1 << 20

    def __init__(self, space: Space) -> None:
        self.ns = space
        self.asked: list[bool] = []  # at each open: named?
        self.fresh: list[bool] = []  # at each look-up
        self.found: Any = None
        self.meant: list[bool] = []  # at each rename

    async def inode(self, ino: int) -> Any:
        return self.ns.add(ino, ROOT, b"new")  # it was not in memory

    async def open(self, ino: int, flags: int, *, named: bool = False) -> int:
        self.asked.append(named)
        return 77

    async def lookup(self, parent: int, name: bytes, *, fresh: bool) -> Any:
        self.fresh.append(fresh)
        return self.found

    def remember(self, ino: int) -> None:
        pass

    async def rename(self, *places: object, meant: Callable[..., bool], **options: bool) -> None:
        self.meant.append(meant(self.ns.inodes[5], None))
        if not self.meant[-1]:
            raise NotMeant("elsewhere")


def context(pid: int) -> Any:
    return SimpleNamespace(pid=pid)


@pytest.fixture
async def files(space: Space) -> Files:
    return Files(space)


@pytest.fixture
async def operations(files: Files, kernel: KernelCaches) -> Operations:
    return Operations(files, FuseOptions(), kernel)  # type: ignore[arg-type]


async def refused(call: Awaitable[object]) -> None:
    with pytest.raises(FUSEError) as raised:
        await call
    assert raised.value.errno == errno.ESTALE


@pytest.mark.parametrize("known", [True, False])
async def test_k7_an_open_is_refused_once(
    operations: Operations,
    kernel: KernelCaches,
    files: Files,
    space: Space,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    """Also when the inode is not in memory."""
    monkeypatch.setattr(caches, "_drop_inode", lambda item: None)
    inode = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", inode)
    kernel.drop_entry(ROOT, b"old")
    if not known:
        del space.inodes[5]
    await refused(operations.open(5, 0, context(7)))
    await refused(operations.open(5, 0, context(8)))
    assert not files.asked
    for pid in (7, 8):
        assert (await operations.open(5, 0, context(pid))).fh == 77
    assert files.asked == [False, False]
    await refused(operations.open(5, 0, context(7)))


async def test_k7_an_open_of_who_cannot_be_told_apart_is_not_refused(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TO2: its repeat would not be known, and ESTALE reach the program."""
    monkeypatch.setattr(caches, "_drop_inode", lambda item: None)
    inode = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", inode)
    kernel.drop_entry(ROOT, b"old")
    assert (await operations.open(5, 0, context(0))).fh == 77
    assert files.asked == [False]


async def test_to2_a_repeat_that_finds_nothing_is_over(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space
) -> None:
    """The next open() of the thread is another one."""
    inode = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", inode)
    kernel.drop_entry(ROOT, b"old")
    await refused(operations.open(5, 0, context(7)))
    for _ in range(2):
        await operations.lookup(ROOT, b"old", context(7))
    assert files.fresh == [True, False]
    await refused(operations.open(5, 0, context(7)))


async def test_to2_after_a_rename_that_was_not_meant_names_are_forgotten(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space
) -> None:
    inode = space.add(5, ROOT, b"old")
    rename = (ROOT, b"old", ROOT, b"new", 0)
    kernel.given(ROOT, b"old", inode)
    await operations.rename(*rename, context(7))
    await operations.rename(ROOT, b"new", ROOT, b"old", 0, context(0))
    assert files.meant == [True, True]
    assert not kernel._names
    kernel.told.unknown((ROOT, b"old"))
    await refused(operations.rename(*rename, context(7)))
    assert not kernel._names
    await operations.rename(*rename, context(7))
    assert list(kernel._names) == [(ROOT, b"new")]
    kernel._names.clear()
    await operations.rename(*rename, context(0))
    assert files.meant[2:] == [False, True, True]
    assert list(kernel._names) == [(ROOT, b"new")]


async def test_to1_a_rename_while_alone_is_not_noted(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rename(*places: object, **options: bool) -> None:
        return None

    monkeypatch.setattr(files, "rename", rename)
    inode = space.add(5, ROOT, b"old")
    kernel.given(ROOT, b"old", inode)
    space.shared = False
    await operations.rename(ROOT, b"old", ROOT, b"new", 0, context(7))
    space.shared = True
    assert not kernel.told.agrees((ROOT, b"old"), inode)


@pytest.mark.parametrize("links", [1, 2])
async def test_to5_the_target_of_a_rename_is_refused_once(
    kernel: KernelCaches, space: Space, monkeypatch: pytest.MonkeyPatch, links: int
) -> None:
    """And nobody else is refused a look-up."""
    renaming = {7, 8}
    monkeypatch.setattr(caches, "is_renaming", lambda thread: thread in renaming)
    old, new = (ROOT, b"old"), (ROOT, b"new")
    inode = space.add(5, *new)
    inode.mode, inode.nlink = stat.S_IFREG, links
    assert not kernel.hides(new, inode, 7, fresh=False)
    kernel.given(*old, inode)
    assert not kernel.hides(old, inode, 7, fresh=False)
    with pytest.raises(NotMeant):
        kernel.hides(new, inode, 7, fresh=False)
    for thread in (7, 9, 0):
        assert not kernel.hides(new, inode, thread, fresh=False)
    kernel.drop_entry(*old)
    with pytest.raises(NotMeant):
        kernel.hides(new, inode, 8, fresh=False)
    kernel.told.found_nothing(8)
    inode.mode = stat.S_IFLNK
    if links == 1:
        with pytest.raises(NotMeant):
            kernel.hides(new, inode, 8, fresh=False)
    else:
        assert not kernel.hides(new, inode, 8, fresh=False)


async def test_to5_what_moves_during_the_repeat_is_kept_back(
    kernel: KernelCaches, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    renaming = {7, 8}
    monkeypatch.setattr(caches, "is_renaming", lambda thread: thread in renaming)
    old, new = (ROOT, b"old"), (ROOT, b"new")
    inode, other = space.add(5, *new), space.add(6, *old)
    for thread in (7, 8, 9):
        kernel.told.refused(thread)
    assert not kernel.hides(old, inode, 7, fresh=True)
    assert not kernel.hides(old, inode, 7, fresh=True)
    assert not kernel.hides(new, inode, 8, fresh=True)
    assert not kernel.hides(old, inode, 9, fresh=True)
    assert not kernel.hides(new, inode, 9, fresh=True), "it does not rename"
    assert kernel.hides(new, inode, 7, fresh=True)
    kernel.told.refused(7)
    assert not kernel.hides(old, inode, 7, fresh=True), "another call: that is the name to be renamed"
    assert not kernel.hides(new, other, 7, fresh=True)
    inode.nlink = 2
    kernel.told.refused(7)
    assert not kernel.hides(old, inode, 7, fresh=True)
    assert not kernel.hides(new, inode, 7, fresh=True), "both may be there"


async def test_to5_a_look_up_of_a_rename_is_answered_estale(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "is_renaming", lambda thread: True)
    files.found = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", files.found)
    await refused(operations.lookup(ROOT, b"new", context(7)))
    monkeypatch.setattr(operations, "_entry", lambda inode: inode)
    assert await operations.lookup(ROOT, b"old", context(7)) is files.found
    kept_back = await operations.lookup(ROOT, b"new", context(7))
    assert (kept_back.st_ino, kept_back.entry_timeout) == (0, 0)
    assert not kernel.told.agrees((ROOT, b"new"), files.found)
    files.found = None
    await operations.lookup(ROOT, b"old", context(7))
    assert files.fresh == [False, True, True, True]


def test_to5_who_renames_is_seen_by_its_system_call() -> None:
    assert not kernel_side.is_renaming(os.getpid()), "it reads"
    assert not kernel_side.is_renaming(2**30)
