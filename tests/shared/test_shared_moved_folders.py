"""Folders in which programs of another mount work while they are moved (K8 of fuse.caches)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount, NewMount, new_mount
from tests.shared.mounts import MARKS, until

__all__ = ["new_mount"]

pytestmark = MARKS

WORKER = """
import os, sys
for line in sys.stdin:
    try:
        print(os.getcwd(), *sorted(os.listdir("..")), flush=True)
    except OSError as error:
        print(error, flush=True)
"""


class Worker:
    """A program whose working folder is on a mount, and which never looks that folder's name up."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def says(self) -> str:
        """Where it is, and what is in the folder above."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("?\n")
        self._child.stdin.flush()
        return self._child.stdout.readline().strip()


@contextmanager
def working_in(folder: Path) -> Iterator[Worker]:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        yield Worker(child)
        assert child.stdin is not None
        child.stdin.close()


@pytest.fixture
def two(new_mount: NewMount) -> tuple[Mount, Mount]:
    one = new_mount()
    return one, one.another()


def test_k8_who_works_in_a_folder_knows_where_it_is(two: tuple[Mount, Mount]) -> None:
    one, other = two
    (one.path / "a" / "d" / "inner").mkdir(parents=True)
    (one.path / "b" / "deep" / "deeper").mkdir(parents=True)
    until((other.path / "a" / "d" / "inner").is_dir)
    with working_in(other.path / "a" / "d") as outer, working_in(other.path / "a" / "d" / "inner") as inner:
        assert outer.says() == f"{other.path / 'a' / 'd'} d"
        # To a folder that the other mount has never seen
        os.rename(one.path / "a" / "d", one.path / "b" / "deep" / "deeper" / "e")
        now = other.path / "b" / "deep" / "deeper" / "e"
        until(lambda: outer.says() == f"{now} e")
        assert inner.says() == f"{now / 'inner'} inner"
        # Within its folder
        os.rename(one.path / "b" / "deep" / "deeper" / "e", one.path / "b" / "deep" / "deeper" / "f")
        until(lambda: outer.says() == f"{other.path / 'b' / 'deep' / 'deeper' / 'f'} f")
        # With a folder above it
        os.rename(one.path / "b" / "deep", one.path / "a" / "flat")
        now = other.path / "a" / "flat" / "deeper" / "f"
        until(lambda: outer.says() == f"{now} f")
        assert inner.says() == f"{now / 'inner'} inner"
        # Back and forth
        for _ in range(50):
            os.rename(one.path / "a" / "flat", one.path / "a" / "other")
            os.rename(one.path / "a" / "other", one.path / "a" / "flat")
        until(lambda: outer.says() == f"{now} f")


def test_k8_a_folder_that_is_open_can_be_moved_on(two: tuple[Mount, Mount]) -> None:
    """The kernel does not move its entry to the new place while it holds the locks of a rename: ESTALE."""
    one, other = two
    for name in ("a", "b", "c"):
        (one.path / name).mkdir()
    (one.path / "a" / "d").mkdir()
    until((other.path / "a" / "d").is_dir)
    descriptor = os.open(other.path / "a" / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rename(one.path / "a" / "d", one.path / "b" / "d")
        until(lambda: moved(other.path / "b" / "d", other.path / "c" / "d"))
        until((one.path / "c" / "d").is_dir)
        assert os.listdir(other.path / "c") == ["d"]
        assert not os.listdir(other.path / "b")
    finally:
        os.close(descriptor)


def moved(old: Path, new: Path) -> bool:
    """Is the old name gone? Without looking it up by itself."""
    try:
        os.rename(old, new)
    except OSError:
        return False
    return True
