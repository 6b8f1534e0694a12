"""What is answered for what fuse.caches and fuse.told remember: calls that are refused once, and stand-ins."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pyfuse3 import EntryAttributes, FUSEError

from flakefs.errors import Exists, NotMeant
from flakefs.fuse import FuseOptions, caches
from flakefs.fuse import kernel as kernel_side
from flakefs.fuse.caches import ROOT, KernelCaches
from flakefs.fuse.operations import Operations
from flakefs.fuse.stand_ins import FIRST
from tests.mount.space import Space


class Files:
    """As much of a FileSystem as is asked."""

    chunk_size = 1 << 20

    def __init__(self, space: Space) -> None:
        self.ns = space
        self.asked: list[bool] = []  # at each open: named?
        self.fresh: list[bool] = []  # at each look-up
        self.places: list[Any] = []  # at each look-up and rename
        self.found: Any = None
        self.exists = False
        self.remembered: list[int] = []
        self.forgotten: list[int] = []
        self.meant: list[bool] = []  # at each rename
        self.linked: list[int] = []
        self.removals: list[bool] = []
        self.target: Any = None  # of a rename

    async def inode(self, ino: int) -> Any:
        return self.ns.add(ino, ROOT, b"new")  # it was not in memory

    async def open(self, ino: int, flags: int, *, named: bool = False) -> int:
        self.asked.append(named)
        return 77

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        return b""

    async def lookup(self, parent: int, name: bytes, *, fresh: bool) -> Any:
        self.fresh.append(fresh)
        self.places.append((parent, name))
        return self.found

    def peek(self, ino: int) -> Any:
        return self.ns.inodes.get(ino)

    def remember(self, ino: int) -> None:
        self.remembered.append(ino)

    def forget(self, ino: int, count: int) -> None:
        self.forgotten.append(ino)

    async def link(self, ino: int, parent: int, name: bytes) -> Any:
        self.linked.append(ino)
        return self.ns.inodes[ino]

    async def rmdir(self, parent: int, name: bytes, *, meant: Callable[[Any], bool] | None = None) -> None:
        if meant is not None and not meant(self.ns.inodes[5]):
            raise NotMeant("elsewhere")
        self.removals.append(True)

    async def unlink(self, parent: int, name: bytes) -> Any:
        return self.ns.inodes[5]

    async def create(self, parent: int, name: bytes, *how: object, absent: bool = False) -> tuple[int, Any]:
        if absent:
            raise NotMeant("it is there")
        return 79, self.ns.inodes[5]

    async def setattr(self, ino: int, *change: object) -> Any:
        return self.ns.inodes[ino]

    async def opendir(self, ino: int) -> int:
        return 78

    async def readlink(self, ino: int) -> bytes:
        return b"target of %d" % ino

    async def rename(self, *places: object, meant: Callable[..., bool], **options: bool) -> None:
        self.places.append(places)
        if self.exists:
            raise Exists("there")
        self.meant.append(meant(self.ns.inodes[5], self.target))
        if not self.meant[-1]:
            raise NotMeant("elsewhere")


def context(pid: int) -> Any:
    return SimpleNamespace(pid=pid, uid=0, gid=0, umask=0)


@pytest.fixture
async def files(space: Space) -> Files:
    return Files(space)


@pytest.fixture
def renaming(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Threads that are seen to rename."""
    threads = {7}
    monkeypatch.setattr(caches, "is_renaming", lambda thread: thread in threads)
    return threads


@pytest.fixture
async def operations(files: Files, kernel: KernelCaches) -> Operations:
    return Operations(files, FuseOptions(), kernel)  # type: ignore[arg-type]


async def refused(call: Awaitable[object]) -> None:
    with pytest.raises(FUSEError) as raised:
        await call
    assert raised.value.errno == errno.ESTALE


async def opened_by_an_old_name(operations: Operations, kernel: KernelCaches, space: Space) -> Any:
    """Thread 7 was refused to open the inode that this is."""
    inode = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", inode)
    kernel.drop_entry(ROOT, b"old")
    await refused(operations.open(5, 0, context(7)))
    return inode


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
    """RP1: its repeat would not be known, and ESTALE reach the program."""
    monkeypatch.setattr(caches, "_drop_inode", lambda item: None)
    inode = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", inode)
    kernel.drop_entry(ROOT, b"old")
    assert (await operations.open(5, 0, context(0))).fh == 77
    assert files.asked == [False]


async def test_k5_pages_are_kept_while_somebody_who_has_read_keeps_the_file_open(
    operations: Operations, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_drop_inode", lambda item: None)
    space.add(5, ROOT, b"n")
    for read in (False, True):
        assert not (await operations.open(5, 0, context(7))).keep_cache
        if read:
            await operations.read(77, 0, 10)
    assert (await operations.open(5, 0, context(8))).keep_cache


async def test_rp4_a_folder_is_removed_if_the_kernel_takes_the_name_for_it(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space
) -> None:
    """Else it would take another one for removed, which may be in use."""
    folder, other = space.add(5, ROOT, b"n"), space.add(6, ROOT, b"n")
    await refused(operations.rmdir(ROOT, b"n", context(7)))  # it was told nothing
    files.found = other
    await operations.lookup(ROOT, b"n", context(7))
    assert not files.removals
    await operations.rmdir(ROOT, b"n", context(7))  # others give the name away all the time
    await refused(operations.rmdir(ROOT, b"n", context(7)))
    files.found = folder
    await operations.lookup(ROOT, b"n", context(7))
    await operations.rmdir(ROOT, b"n", context(7))
    await operations.rmdir(ROOT, b"n", context(0))  # who cannot be told apart is not refused
    kernel.told.forgotten((ROOT, b"n"))
    kernel.given(ROOT, b"n", folder)
    await operations.rmdir(ROOT, b"n", context(7))
    assert files.removals == [True] * 4


async def test_a_rename_over_a_folder_needs_the_kernel_to_believe_in_it(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space
) -> None:
    source, target = space.add(5, ROOT, b"old"), space.add(6, ROOT, b"new")
    source.entries, target.entries = {}, {}
    files.target = target
    kernel.given(ROOT, b"old", source)

    def rename() -> Awaitable[None]:
        return operations.rename(ROOT, b"old", ROOT, b"new", 0, context(7))

    await refused(rename())
    files.found = space.add(7, ROOT, b"new")
    await operations.lookup(ROOT, b"new", context(7))
    await rename()
    assert list(kernel._names) == [(ROOT, b"new")], "it is not what the kernel took it for"
    for place in ((ROOT, b"old"), (ROOT, b"new")):
        kernel.told.forgotten(place)
    kernel.given(ROOT, b"old", source)
    kernel.given(ROOT, b"new", target)
    kernel.told.forgotten((ROOT, b"new"))
    kernel.given(ROOT, b"new", target)
    await rename()
    assert files.meant == [False, True, True]


async def test_a_file_that_another_mount_made_first_is_opened_by_the_kernel(
    operations: Operations, space: Space
) -> None:
    """It has to look who may, and takes what it is answered for made by the caller."""
    space.add(5, ROOT, b"n")
    await refused(operations.create(ROOT, b"n", 0o644, os.O_RDWR, context(7)))
    await operations.lookup(ROOT, b"n", context(7))
    info, _ = await operations.create(ROOT, b"n", 0o644, os.O_RDWR, context(7))
    assert info.fh == 79, "it was missing, when the kernel looked again"
    await operations.create(ROOT, b"n", 0o644, os.O_RDWR, context(0))


async def test_what_an_unlink_really_removed_is_asked_for_again(
    operations: Operations, kernel: KernelCaches, space: Space
) -> None:
    """The kernel has counted the links of what it took the name for."""
    inode, other = space.add(5, ROOT, b"n"), space.add(6, ROOT, b"n")
    kernel.given(ROOT, b"n", inode)
    await operations.unlink(ROOT, b"n", context(7))
    assert not kernel._inodes
    kernel.given(ROOT, b"n", other)
    await operations.unlink(ROOT, b"n", context(7))
    assert kernel._inodes == {5: False}


async def test_f5_attributes_in_the_answer_to_a_change_do_not_last_while_others_write(
    operations: Operations, files: Files, space: Space
) -> None:
    """Neither does anything while what is to be dropped is not."""
    space.add(5, ROOT, b"n")
    fields: Any = SimpleNamespace(
        **{f"update_{name}": False for name in ("mode", "uid", "gid", "size", "atime", "mtime")}
    )

    async def seconds() -> list[tuple[float, float]]:
        made = [
            await operations.setattr(5, EntryAttributes(), fields, None, context(0)),
            await operations.link(5, ROOT, b"n", context(0)),
            await operations.getattr(5, context(0)),
        ]
        return [(entry.attr_timeout, entry.entry_timeout) for entry in made]

    long = FuseOptions().cache_seconds
    assert await seconds() == [(1.0, long), (1.0, long), (long, long)]
    space.trusted = False
    assert await seconds() == [(0.0, 0.0)] * 3
    space.trusted, space.shared = True, False
    assert await seconds() == [(long, long)] * 3


async def test_k7_a_link_is_refused_once(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space
) -> None:
    """The repeat may be of another inode."""
    inode, other = space.add(5, ROOT, b"new"), space.add(6, ROOT, b"old")
    kernel.given(ROOT, b"old", inode)
    await refused(operations.link(5, ROOT, b"link", context(7)))
    assert not files.linked
    files.found = other
    await operations.lookup(ROOT, b"old", context(7))
    files.found = None
    await operations.lookup(ROOT, b"link", context(7))
    assert files.fresh == [True, True]
    await operations.link(6, ROOT, b"link", context(7))
    await operations.link(5, ROOT, b"link", context(0))
    assert files.linked == [6, 5]
    space.shared = False
    await operations.link(5, ROOT, b"link", context(7))
    assert files.linked == [6, 5, 5]


async def test_rp1_a_folder_that_is_opened_is_no_repeat(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space
) -> None:
    """Of the file that it was: the next open() of the thread is another one."""
    await opened_by_an_old_name(operations, kernel, space)
    await operations.opendir(6, context(7))
    await refused(operations.open(5, 0, context(7)))


async def test_rp1_an_open_finds_its_name_missing_and_there(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space
) -> None:
    """The kernel asks twice for what it held: a second ESTALE would reach the program."""
    inode = await opened_by_an_old_name(operations, kernel, space)
    await operations.lookup(ROOT, b"old", context(7))
    files.found = inode
    await operations.lookup(ROOT, b"old", context(7))
    assert files.fresh == [True, True]
    kernel.drop_entry(ROOT, b"old")
    assert (await operations.open(5, 0, context(7))).fh == 77


async def test_rp1_a_repeat_that_finds_nothing_is_over(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space
) -> None:
    """The next open() of the thread is another one."""
    await opened_by_an_old_name(operations, kernel, space)
    await operations.lookup(ROOT, b"old", context(7))
    assert files.fresh == [True]
    await refused(operations.open(5, 0, context(7)))


async def test_rp1_after_a_rename_that_was_not_meant_names_are_forgotten(
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


# -- stand-ins --


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK])
async def test_si1_a_rename_is_shown_another_file(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space, renaming: set[int], kind: int
) -> None:
    """Each time, as long as the kernel may take another name for it; and nobody else is."""
    inode = files.found = space.add(5, ROOT, b"new")
    inode.mode, inode.entries = kind, {} if kind == stat.S_IFDIR else None
    assert not kernel.stands_in((ROOT, b"new"), inode, 7)
    kernel.given(ROOT, b"old", inode)
    assert not kernel.stands_in((ROOT, b"old"), inode, 7)
    for thread in (9, 0):
        assert not kernel.stands_in((ROOT, b"new"), inode, thread)
    shown = [await operations.lookup(ROOT, b"new", context(7)) for _ in range(2)]
    assert [entry.st_ino for entry in shown] == [FIRST, FIRST + 1]
    assert [entry.entry_timeout for entry in shown] == [0, 0]
    assert [entry.st_mode for entry in shown] == [kind, kind]
    assert list(kernel._names) == [(ROOT, b"old")]
    assert not files.remembered
    assert (await operations.lookup(ROOT, b"new", context(9))).st_ino == 5
    assert files.remembered == [5]


async def test_si1_a_file_with_several_names_is_always_another(
    kernel: KernelCaches, space: Space, renaming: set[int]
) -> None:
    """Two names of one file are nothing to rename; whether they are, the store knows. None of them is dropped."""
    inode = space.add(5, ROOT, b"new")
    inode.nlink = 2
    assert kernel.stands_in((ROOT, b"new"), inode, 7)
    kernel.given(ROOT, b"old", inode)
    assert kernel.stands_in((ROOT, b"new"), inode, 7)
    assert not kernel.stands_in((ROOT, b"new"), inode, 9)
    assert not kernel._names


async def test_si2_what_is_asked_of_a_stand_in_is_answered_for_the_inode(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space, renaming: set[int]
) -> None:
    folder = files.found = space.add(5, ROOT, b"new")
    folder.entries = {}
    kernel.given(ROOT, b"old", folder)
    number = (await operations.lookup(ROOT, b"new", context(7))).st_ino
    assert (await operations.getattr(number, context(7))).st_ino == number
    files.found = space.add(6, 5, b"in it")
    await operations.lookup(number, b"in it", context(7))
    assert files.places[-1] == (5, b"in it")
    await operations.rename(number, b"in it", number, b"moved", 0, context(0))
    assert files.places[-1] == (5, b"in it", 5, b"moved")
    assert await operations.readlink(number, context(7)) == b"target of 5"
    kernel._inodes.clear()
    await operations.forget([(number, 1), (6, 1)])
    assert files.forgotten == [6]
    assert kernel._inodes == {5: False}, "its attributes are asked for again"
    assert operations._stand_ins.real(number) == number
    assert not operations._stand_ins.forget(number)


async def test_si1_the_name_that_a_stand_in_was_shown_for_may_be_renamed(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space, renaming: set[int]
) -> None:
    inode = files.found = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", inode)
    await operations.lookup(ROOT, b"new", context(7))
    await operations.rename(ROOT, b"new", ROOT, b"third", 0, context(7))
    assert files.meant == [True]


async def test_k7_a_name_that_is_there_after_all_is_looked_up_again(
    operations: Operations, kernel: KernelCaches, files: Files, space: Space
) -> None:
    """RENAME_NOREPLACE: the kernel was told that there is no such name, and would go on believing it."""
    files.exists = True
    rename = (ROOT, b"old", ROOT, b"new", 1)
    await refused(operations.rename(*rename, context(7)))
    assert not kernel._names
    for pid in (7, 0):
        with pytest.raises(FUSEError) as raised:
            await operations.rename(*rename, context(pid))
        assert raised.value.errno == errno.EEXIST
        assert list(kernel._names) == [(ROOT, b"new")]
        kernel._names.clear()


def test_si1_who_renames_is_seen_by_its_system_call() -> None:
    assert not kernel_side.is_renaming(os.getpid()), "it reads"
    assert not kernel_side.is_renaming(2**30)
    assert kernel_side.system_call(2**30) == b""
