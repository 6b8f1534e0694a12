"""What fuse.caches remembers and decides, and what is answered for it, without a kernel (K1, K2, K4, K5, K7)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from pyfuse3 import FUSEError

from flakefs.errors import NotMeant
from flakefs.fuse import FuseOptions, caches, told
from flakefs.fuse import kernel as kernel_side
from flakefs.fuse.caches import ROOT, KernelCaches
from flakefs.fuse.operations import Operations


class Space:
    """As much of a namespace as is asked."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.inodes: dict[int, Any] = {}
        self.known = self.inodes.get
        self.shared = True
        self.trusted = True
        self.read_only = False

    def add(self, ino: int, parent: int = 9, name: bytes = b"n") -> Any:
        self.held[ino] = 1
        inode = SimpleNamespace(ino=ino, parent=parent, name=name, version=1, mtime=0, size=0, nlink=1)
        inode.map = inode.entries = None
        self.inodes[ino] = inode
        return inode


@pytest.fixture
def space() -> Space:
    return Space()


@pytest.fixture
async def kernel(space: Space) -> KernelCaches:
    return KernelCaches(space, FuseOptions(), "/nowhere")  # type: ignore[arg-type]


async def test_k2_each_change_is_told_once_and_only_of_what_is_known(space: Space, kernel: KernelCaches) -> None:
    space.add(5)
    kernel.drop_inode(5, content=False)
    kernel.drop_inode(5, content=True)
    kernel.drop_inode(5, content=False)
    kernel.drop_inode(6, content=True)
    kernel.drop_inode(ROOT, content=False)
    assert kernel._inodes == {5: True, ROOT: False}
    kernel.drop_entry(5, b"a")
    kernel.drop_entry(5, b"a")
    kernel.drop_entry(6, b"a")
    kernel.drop_entry(ROOT, b"a")
    assert list(kernel._names) == [(5, b"a"), (ROOT, b"a")]


async def test_k2_too_much_is_everything(space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "PENDING_MAX", 3)
    assert kernel.quiet
    for number in range(4):
        assert kernel.quiet
        kernel.drop_entry(ROOT, b"%d" % number)
    assert not kernel.quiet


async def test_k3_what_is_given_while_everything_is_dropped_does_not_last(space: Space, kernel: KernelCaches) -> None:
    space.trusted = False
    assert not kernel.quiet
    space.trusted = True
    assert kernel.quiet
    kernel.drop_all()
    assert not kernel.quiet


async def test_k4_names_that_cannot_be_found_again_are_written_down(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.held[9] = 1
    inode = space.add(5)
    kernel.given(9, b"n", inode)
    assert not kernel._written_down
    kernel.given(9, b"absent", None)
    assert not kernel._written_down
    kernel.given(9, b"other", inode)
    kernel.given(ROOT, b"absent", None)
    assert list(kernel._written_down) == [(9, b"other"), (ROOT, b"absent")]
    monkeypatch.setattr(caches, "WRITTEN_DOWN_MAX", 2)
    kernel.given(ROOT, b"more", None)
    assert list(kernel._written_down) == [(ROOT, b"absent"), (ROOT, b"more")]
    assert list(kernel._names) == [(9, b"other")], "what is not written down any more is not remembered either"


async def test_k5_pages_are_kept_of_what_did_not_change(space: Space, kernel: KernelCaches) -> None:
    inode = space.add(5)
    assert not kernel.keeps(5)
    assert kernel.keeps(5)
    inode.version += 1
    assert not kernel.keeps(5)
    assert kernel.keeps(5)
    inode.mtime += 1
    assert not kernel.keeps(5)
    kernel.drop_inode(5, content=False)
    assert not kernel.keeps(5)
    kernel._inodes.clear()
    assert kernel.keeps(5)
    kernel.drop_inode(5, content=True)
    kernel._inodes.clear()
    assert not kernel.keeps(5)


async def test_k5_alone_pages_are_kept_when_nothing_is_left_to_drop(space: Space, kernel: KernelCaches) -> None:
    space.shared = False
    space.add(5)
    assert kernel.keeps(5)
    kernel.drop_inode(5, content=True)
    assert not kernel.keeps(5)
    kernel._inodes.clear()
    assert kernel.keeps(5)
    kernel.drop_all()
    assert not kernel.keeps(5)


async def test_k6_an_open_of_what_others_changed_forgets_its_size(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(caches, "_drop_inode", told.append)
    inode = space.add(5)
    assert not await kernel.opened(5)
    assert await kernel.opened(5)
    assert told == [(5, False)]
    inode.version, inode.size = 2, 100
    assert not await kernel.opened(5)
    assert told == [(5, False)] * 2
    space.shared = False
    await kernel.opened(5)
    assert len(told) == 2


# -- K7 --


async def forgotten(kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has been told everything that waits."""
    monkeypatch.setattr(caches, "_drop_inode", lambda item: None)
    monkeypatch.setattr(caches, "_drop_name", lambda item: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.run)
        while kernel._all or kernel._names or kernel._at_work:  # noqa: ASYNC110  # there is no event for it
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()


async def test_k7_every_name_that_is_still_to_be_forgotten_misleads(space: Space, kernel: KernelCaches) -> None:
    """The new name is dropped, too, when it was asked for before the news came."""
    inode = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", inode)
    assert not kernel.forgetting
    kernel.given(ROOT, b"new", inode)
    kernel.drop_entry(ROOT, b"old")
    kernel.drop_entry(ROOT, b"new")
    assert kernel.forgetting
    assert kernel.misled(inode)
    inode.nlink = 2
    assert not kernel.misled(inode)
    inode.nlink, inode.name = 1, b"third"
    assert kernel.misled(inode)


async def test_k7_the_right_name_may_be_dropped(space: Space, kernel: KernelCaches) -> None:
    inode = space.add(5, ROOT, b"n")
    kernel.given(ROOT, b"n", inode)
    kernel.drop_entry(ROOT, b"n")
    assert not kernel.misled(inode)


async def test_k7_a_name_misleads_that_nobody_has_heard_of(space: Space, kernel: KernelCaches) -> None:
    """The inode was read again and has another name: the news is still to come."""
    inode = space.add(5, ROOT, b"old")
    kernel.given(ROOT, b"old", inode)
    assert not kernel.misled(inode)
    inode.name = b"new"
    assert kernel.misled(inode)
    kernel.given(ROOT, b"new", inode)
    assert not kernel.misled(inode)


async def test_k7_when_everything_is_dropped_every_name_may_mislead(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode, other = space.add(5, ROOT, b"old"), space.add(6, ROOT, b"other")
    kernel.given(ROOT, b"old", inode)
    kernel.given(ROOT, b"other", other)
    kernel.drop_all()
    inode.name = b"new"
    assert kernel.misled(inode)
    assert not kernel.misled(other)
    await forgotten(kernel, monkeypatch)
    assert kernel.misled(inode), "a request may be on its way"
    now = told.monotonic()
    monkeypatch.setattr(told, "monotonic", lambda: now + told.ON_ITS_WAY_SECONDS + 0.1)
    assert not kernel.misled(inode)
    assert not kernel.forgetting


async def test_k7_a_name_that_is_dropped_again_meanwhile_is_not_forgotten(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", inode)
    kernel._leaving.add((ROOT, b"late"), 5)
    kernel._leaving.dropped({(ROOT, b"late"): None})
    now = told.monotonic()
    monkeypatch.setattr(told, "monotonic", lambda: now + 100.0)
    assert kernel.misled(inode)
    kernel._leaving.dropped({})
    monkeypatch.setattr(told, "monotonic", lambda: now + 200.0)
    kernel.given(ROOT, b"new", inode)
    assert not kernel.misled(inode)


async def test_k7_names_of_before_it_was_alone_are_not_believed(space: Space, kernel: KernelCaches) -> None:
    """TO1: what is changed while alone is not noted."""
    inode = space.add(5, ROOT, b"n")
    kernel.given(ROOT, b"n", inode)
    assert kernel.told.agrees((ROOT, b"n"), inode)
    space.shared = False
    kernel.given(ROOT, b"n", space.add(6, ROOT, b"n"))
    assert kernel.told.empty
    space.shared = True
    assert not kernel.told.agrees((ROOT, b"n"), inode)


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
