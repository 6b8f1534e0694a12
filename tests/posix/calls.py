"""System calls that Python's os has not, or hides; for the tests and for the processes of other users."""

from __future__ import annotations

import ctypes
import mmap
import os

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_EACCESS, AT_SYMLINK_FOLLOW = -100, 0x100, 0x200, 0x400
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
AnyPath = str | bytes | os.PathLike[str]
LIBC = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def renameat2(source: AnyPath, target: AnyPath, flags: int) -> None:
    checked(LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))


def utimensat(path: AnyPath, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Each time is (seconds, nanoseconds), or (0, NOW), or (0, OMIT)."""
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    checked(LIBC.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def link_open_file(descriptor: int, target: AnyPath) -> None:
    source = b"/proc/self/fd/%d" % descriptor
    checked(LIBC.linkat(AT_FDCWD, source, AT_FDCWD, os.fsencode(target), AT_SYMLINK_FOLLOW))


def faccessat(path: AnyPath, mode: int, flags: int = 0) -> None:
    checked(LIBC.faccessat(AT_FDCWD, os.fsencode(path), mode, flags))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    checked(LIBC.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def put(path: AnyPath, data: bytes, flags: int = os.O_WRONLY | os.O_CREAT) -> None:
    """Write without cutting the file."""
    descriptor = os.open(path, flags, 0o666)
    try:
        assert os.write(descriptor, data) == len(data)
    finally:
        os.close(descriptor)


def take(path: AnyPath, size: int = 1 << 20) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def append_records(path: AnyPath, letter: bytes, count: int, size: int) -> None:
    """*count* records, each one write(2) of *size* equal bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    for _ in range(count):
        assert os.write(descriptor, letter * size) == size
    os.close(descriptor)


def mapped_put(path: AnyPath, offset: int, data: bytes) -> None:
    """Through a shared mapping that stays unsynchronised until it is closed."""
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, 0) as memory:
        memory[offset : offset + len(data)] = data
    os.close(descriptor)
