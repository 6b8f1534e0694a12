"""What is answered for what fuse.caches and fuse.told remember: calls that are refused once, and stand-ins."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pyfuse3 import FUSEError

from flakefs.errors import Exists, NotMeant
from flakefs.fuse import FuseOptions, caches, repeats
from flakefs.fuse import kernel as kernel_side
from flakefs.fuse.caches import ROOT, KernelCaches
from flakefs.fuse.operations import Operations
from flakefs.fuse.repeats import Asked, Repeats
from flakefs.fuse.stand_ins import FIRST
from tests.mount.space import Space


class Files:
    """As much of a FileSystem as is asked."""

    chunk_size = 1 << 20

    def __init__(self, space: Space) -> None:
        self.ns = space
        self.asked: list[bool] = []  # at each open: named?
        self.fresh: list[bool] = []  # at each look-up
        self.places: list[object] = []  # at each look-up and rename
        self.found: Any = None
        self.exists = False
        self.remembered: list[int] = []
        self.forgotten: list[int] = []
        self.meant: list[bool] = []  # at each rename

    async def inode(self, ino: int) -> Any:
        return self.ns.add(ino, ROOT, b"new")  # it was not in memory

    async def open(self, ino: int, flags: int, *, named: bool = False) -> int:
        self.asked.append(named)
        return 77

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

    async def opendir(self, ino: int) -> int:
        return 78

    async def readlink(self, ino: int) -> bytes:
        return b"target of %d" % ino

    async def rename(self, *places: object, meant: Callable[..., bool], **options: bool) -> None:
        self.places.append(places)
        if self.exists:
            raise Exists("there")
        self.meant.append(meant(self.ns.inodes[5], None))
        if not self.meant[-1]:
            raise NotMeant("elsewhere")


def context(pid: int) -> Any:
    return SimpleNamespace(pid=pid)


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


# -- which call is repeated --

OLD, NEW = (ROOT, b"old"), (ROOT, b"new")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """What each thread is seen to call."""
    seen: dict[int, bytes] = {}
    monkeypatch.setattr(repeats, "system_call", lambda thread: seen.get(thread, b""))
    return seen


async def ask(memory: Repeats, thread: int, asked: Asked = 5) -> bool:
    """Is it done whatever it finds?"""

    async def call(again: bool) -> bool:
        if not again:
            raise NotMeant("elsewhere")
        return again

    try:
        return await memory.once(thread, asked, call)
    except NotMeant:
        return False


async def test_rp1_a_call_is_refused_once(calls: dict[int, bytes]) -> None:
    memory, rename = Repeats(), (OLD, NEW, 0)
    for asked in (rename, 5):
        assert [await ask(memory, 7, asked), await ask(memory, 8, asked)] == [False, False]
        assert [await ask(memory, 7, asked), await ask(memory, 8, asked)] == [True, True]
        assert not await ask(memory, 7, asked), "the next one is another call"
        assert await ask(memory, 7, asked)


async def test_rp1_where_calls_cannot_be_seen_a_rename_is_the_one_that_was_refused(calls: dict[int, bytes]) -> None:
    memory = Repeats()
    for first, then in (((OLD, NEW, 0), (OLD, NEW, 1)), ((OLD, NEW, 0), 5), (5, (OLD, NEW, 0))):
        assert not await ask(memory, 7, first)
        assert not await ask(memory, 7, then)
        assert await ask(memory, 7, then)
    calls[7] = b"82 1 2"
    assert not await ask(memory, 7, (OLD, NEW, 0))
    assert await ask(memory, 7, ((9, b"old"), NEW, 0)), "seen to be the same call, which found another folder"


async def test_rp1_another_call_is_not_the_repeat(calls: dict[int, bytes]) -> None:
    memory = Repeats()
    calls[7] = b"82 1 2"
    assert not await ask(memory, 7, (OLD, NEW, 0))
    assert memory.is_repeating(7, OLD)
    calls[7] = b"82 1 3"
    assert not memory.is_repeating(7, OLD)
    calls[7] = b"82 1 2"
    assert not await ask(memory, 7, (OLD, NEW, 0)), "that was over"
    del calls[7]
    assert await ask(memory, 7, (OLD, NEW, 0)), "not seen any more"


async def test_rp1_what_is_missing_ends_a_rename(calls: dict[int, bytes]) -> None:
    memory, rename = Repeats(), (OLD, NEW, 0)
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


async def test_rp1_an_open_is_of_what_was_looked_up_last(
    calls: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Repeats()
    for ino, asked, repeated in ((6, 6, True), (6, 5, False), (0, 5, False)):
        assert not await ask(memory, 7, 5)
        memory.looked_up(7, OLD, 0)
        memory.looked_up(7, OLD, ino)
        assert await ask(memory, 7, asked) == repeated
        memory.over(7)
    assert not await ask(memory, 7, 5)
    memory.looked_up(7, OLD, 6)
    now = repeats.monotonic()
    monkeypatch.setattr(repeats, "monotonic", lambda: now + repeats.AT_ONCE_SECONDS + 1)
    assert not await ask(memory, 7, 6), "a later one"


async def test_rp1_a_repeat_may_wait_for_a_server(calls: dict[int, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(repeats, "monotonic", lambda: clock.now)
    memory = Repeats()
    rename = (OLD, NEW, 0)
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
    assert await ask(memory, 0, (OLD, NEW, 0))
    assert not memory.is_repeating(0, OLD)


async def test_rp2_a_thread_repeats_after_a_refusal_only(calls: dict[int, bytes]) -> None:
    memory = Repeats()
    assert not memory.is_repeating(7, OLD)
    assert not await ask(memory, 7)
    assert memory.is_repeating(7, OLD)
    assert not memory.is_repeating(8, OLD)
    assert await ask(memory, 7)
    assert not memory.is_repeating(7, OLD)
