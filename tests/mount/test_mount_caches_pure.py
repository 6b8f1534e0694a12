"""What fuse.caches remembers and decides, without a kernel (K1 to K7)."""

from __future__ import annotations

import errno
import threading
import time

import pytest
import trio

from flakefs.fuse import caches, told
from flakefs.fuse.caches import ROOT, KernelCaches
from tests.mount.space import Space


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


async def test_k2_attributes_go_with_names_and_wait_for_none(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread tells what one piece of news changed; while it waits for a folder, another tells of other inodes."""
    told_of: list[tuple[object, int]] = []
    open_again, said = threading.Event(), threading.Semaphore(0)

    def drop_name(item: object) -> None:
        told_of.append((item, threading.get_ident()))
        said.release()
        assert open_again.wait(10)

    def drop_inode(item: object) -> None:
        told_of.append((item, threading.get_ident()))
        said.release()

    async def heard(count: int) -> None:
        for _ in range(count):
            assert await trio.to_thread.run_sync(lambda: said.acquire(timeout=10))

    monkeypatch.setattr(caches, "_drop_name", drop_name)
    monkeypatch.setattr(caches, "_drop_inode", drop_inode)
    space.add(5)
    space.add(6)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.run)
        kernel.drop_inode(5, content=False)
        kernel.drop_entry(5, b"n")
        await heard(2)
        (first, one), (second, other) = told_of
        assert [first, second] == [(5, False), (5, b"n")]
        assert one == other
        kernel.drop_inode(6, content=False)
        kernel.drop_entry(5, b"m")
        await heard(1)
        assert told_of[2][0] == (6, False)
        open_again.set()
        await heard(1)
        assert told_of[3][0] == (5, b"m")
        kernel.drop_inode(6, content=True)
        kernel.drop_entry(6, b"n")
        await heard(2)
        assert {item for item, _ in told_of[4:]} == {(6, True), (6, b"n")}
        nursery.cancel_scope.cancel()
    assert (kernel.dropped_inodes, kernel.dropped_names) == (3, 3)


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
    def kept() -> bool:
        keeps = kernel.keeps(5, 77)
        kernel.used(77)
        return keeps

    inode = space.add(5)
    assert not kept()
    assert kept()
    inode.version += 1
    assert not kept()
    assert kept()
    inode.mtime += 1
    assert not kept()
    kernel.drop_inode(5, content=False)
    assert not kept()
    kernel._inodes.clear()
    assert kept()
    kernel.drop_inode(5, content=True)
    kernel._inodes.clear()
    assert not kept()


async def test_k5_pages_are_old_until_the_kernel_uses_what_was_opened(space: Space, kernel: KernelCaches) -> None:
    """It forgets them when it gets the answer; another open() may be answered before."""
    inode = space.add(5)
    assert not kernel.keeps(5, 71)
    assert not kernel.keeps(5, 72)
    inode.version += 1
    assert not kernel.keeps(5, 73)
    kernel.used(71)
    assert not kernel.keeps(5, 74), "that was for the version before"
    kernel.used(73)
    assert kernel.keeps(5, 75)
    for handle in (72, 74, 75):
        kernel.used(handle)
    assert not kernel._opening


async def test_k5_alone_pages_are_kept_when_nothing_is_left_to_drop(space: Space, kernel: KernelCaches) -> None:
    space.shared = False
    space.add(5)
    assert kernel.keeps(5, 77)
    kernel.drop_inode(5, content=True)
    assert not kernel.keeps(5, 77)
    kernel._inodes.clear()
    assert kernel.keeps(5, 77)
    kernel.drop_all()
    assert not kernel.keeps(5, 77)


async def test_k6_an_open_of_what_others_changed_forgets_its_size(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(caches, "_drop_inode", told.append)
    inode = space.add(5)
    assert not await kernel.opened(5, 77)
    kernel.used(77)
    assert await kernel.opened(5, 78)
    assert told == [(5, False)]
    inode.version, inode.size = 2, 100
    assert not await kernel.opened(5, 78)
    assert told == [(5, False)] * 2
    space.shared = False
    await kernel.opened(5, 78)
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
    now = time.monotonic()
    monkeypatch.setattr("flakefs.fuse.told.monotonic", lambda: now + told.ON_ITS_WAY_SECONDS + 0.1)
    assert not kernel.misled(inode)
    assert not kernel.forgetting


async def test_k7_a_name_that_is_dropped_again_meanwhile_is_not_forgotten(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = space.add(5, ROOT, b"new")
    kernel.given(ROOT, b"old", inode)
    kernel._leaving.add((ROOT, b"late"), 5)
    kernel._leaving.dropped({(ROOT, b"late"): None})
    now = time.monotonic()
    monkeypatch.setattr("flakefs.fuse.told.monotonic", lambda: now + 100.0)
    assert kernel.misled(inode)
    kernel._leaving.dropped({})
    monkeypatch.setattr("flakefs.fuse.told.monotonic", lambda: now + 200.0)
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


async def test_to1_a_name_that_led_elsewhere_is_affirmed_when_the_kernel_has_forgotten_it(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, one, other = (ROOT, b"n"), space.add(5, ROOT, b"n"), space.add(6, ROOT, b"n")
    kernel.given(*place, one)
    kernel.given(*place, other)
    assert not kernel.told.agrees(place, other)
    await forgotten(kernel, monkeypatch)
    kernel.given(*place, other)
    assert kernel.told.agrees(place, other)
    kernel.renamed((ROOT, b"old"), place, 5, 0, agreed=False)
    kernel.given(*place, one)
    assert not kernel.told.agrees(place, one), "the kernel may have moved anything there"
    await forgotten(kernel, monkeypatch)
    kernel.given(*place, one)
    assert kernel.told.agrees(place, one)
    kernel.drop_all()
    kernel.given(*place, other)
    kernel.given(*place, one)
    await forgotten(kernel, monkeypatch)
    kernel.given(*place, one)
    assert kernel.told.agrees(place, one)


async def test_k3_names_in_a_folder_that_is_in_use_do_not_go_with_the_folders(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is told of each that it was given: the file has no name any more, so its own does not tell."""
    folder, inode = space.add(5, ROOT, b"folder"), space.add(6, 5, b"n")
    kernel.given(ROOT, b"folder", folder)
    kernel.given(5, b"n", inode)
    inode.parent, inode.name = -6, b""
    told_of: list[object] = []
    kernel.drop_all()
    monkeypatch.setattr(caches, "_drop_inode", lambda item: None)
    monkeypatch.setattr(caches, "_drop_name", told_of.append)
    await kernel._drop_everything()
    assert (5, b"n") in told_of


async def test_k9_attributes_of_what_the_kernel_did_not_have_yet_are_dropped_once_more(
    space: Space, kernel: KernelCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_of: list[str] = []
    again = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def absent(item: object) -> None:
        told_of.append("first")
        raise FileNotFoundError(errno.ENOENT, "not there")

    def later(ino: int) -> None:
        told_of.append(f"again {ino}")
        token.run_sync_soon(again.set)
        raise FileNotFoundError(errno.ENOENT, "still not there")

    monkeypatch.setattr(caches, "MISSED_SECONDS", 0.01)
    monkeypatch.setattr(caches, "_drop_inode", absent)
    monkeypatch.setattr(caches, "_drop_attributes", later)
    space.add(5, ROOT, b"n")
    kernel.drop_inode(5, content=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.run)
        with trio.fail_after(30):
            await again.wait()
        nursery.cancel_scope.cancel()
    assert told_of == ["first", "again 5"]
