"""What fuse.caches remembers and decides, without a kernel (K1, K2, K4, K5)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flakefs.fuse import FuseOptions, caches
from flakefs.fuse.caches import ROOT, KernelCaches


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
