"""Locks hold between processes on one mount: flock, fcntl ranges, locks of open files."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.posix.kit import Person, failing

F_OFD_SETLK = 37
BUSY = (errno.EAGAIN, errno.EACCES)


@pytest.fixture
def file(common: Path) -> Path:
    path = common / "f"
    path.write_bytes(bytes(100))
    path.chmod(0o666)
    return path


@pytest.fixture
def mine(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def test_flock(mine: int, person: Callable[..., Person]) -> None:
    other = person()
    theirs = other.open("f", os.O_RDWR)
    fcntl.flock(mine, fcntl.LOCK_SH)
    other.flock(theirs, fcntl.LOCK_SH | fcntl.LOCK_NB)
    other.flock(theirs, fcntl.LOCK_UN)
    fcntl.flock(mine, fcntl.LOCK_EX)
    for how in (fcntl.LOCK_SH, fcntl.LOCK_EX):
        with failing(*BUSY):
            other.flock(theirs, how | fcntl.LOCK_NB)
    again = os.open(f"/proc/self/fd/{mine}", os.O_RDWR)
    with failing(*BUSY):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)
    other.ask("flock", theirs, fcntl.LOCK_EX)  # waits
    fcntl.flock(mine, fcntl.LOCK_UN)
    other.answer()
    with failing(*BUSY):
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other.close(theirs)
    fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_ranges(mine: int, file: Path, person: Callable[..., Person]) -> None:
    other = person()
    theirs = other.open("f", os.O_RDWR)
    now = fcntl.LOCK_NB
    fcntl.lockf(mine, fcntl.LOCK_EX, 10, 20)
    other.lockf(theirs, fcntl.LOCK_EX | now, 20, 0)
    other.lockf(theirs, fcntl.LOCK_EX | now, 0, 30)  # to the end, however far
    with failing(*BUSY):
        other.lockf(theirs, fcntl.LOCK_SH | now, 1, 29)
    with failing(*BUSY):
        fcntl.lockf(mine, fcntl.LOCK_EX | now, 1, 10**12)
    fcntl.lockf(mine, fcntl.LOCK_UN, 5, 20)
    other.lockf(theirs, fcntl.LOCK_SH | now, 5, 20)
    other.ask("lockf", theirs, fcntl.LOCK_EX, 10, 20)  # waits
    os.close(os.open(file, os.O_RDONLY))  # closing any descriptor of the file drops a process's locks
    other.answer()
    other.close(theirs)
    fcntl.lockf(mine, fcntl.LOCK_EX | now)


def test_locks_of_an_open_file(mine: int, file: Path) -> None:
    """They belong to the open, not to the process, and are not lost when another is closed."""
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    second = os.open(file, os.O_RDWR)
    fcntl.fcntl(mine, F_OFD_SETLK, whole)
    os.close(os.open(file, os.O_RDONLY))
    with failing(*BUSY):
        fcntl.fcntl(second, F_OFD_SETLK, whole)
    fcntl.fcntl(mine, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    fcntl.fcntl(second, F_OFD_SETLK, whole)
    os.close(second)


def test_locks_end_with_their_process(mine: int, folder: Path, person: Callable[..., Person]) -> None:
    person()  # skips when not root
    other = Person(folder, 1001, 2001)
    theirs = other.open("f", os.O_RDWR)
    other.flock(theirs, fcntl.LOCK_EX)
    other.lockf(theirs, fcntl.LOCK_EX)
    with failing(*BUSY):
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other.end()
    fcntl.flock(mine, fcntl.LOCK_EX)
    fcntl.lockf(mine, fcntl.LOCK_EX)
