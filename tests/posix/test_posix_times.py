"""Which times each operation moves, of the file and of its folder."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from tests.posix.calls import put
from tests.posix.kit import failing, moves, needs_root

DAY_NS = 86_400 * 10**9
Change = Callable[[Path], object]

ON_FILES: dict[str, tuple[Change, str]] = {
    "chmod": (lambda path: path.chmod(0o600), "ctime"),
    "chown": (lambda path: os.chown(path, os.geteuid(), os.getegid()), "ctime"),
    "write": (lambda path: put(path, b"w"), "mtime ctime"),
    "write nothing": (lambda path: put(path, b""), ""),
    "truncate": (lambda path: os.truncate(path, 3), "mtime ctime"),
    "truncate to its size": (lambda path: os.truncate(path, 10), "mtime ctime"),
    "open with O_TRUNC": (lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)), "mtime ctime"),
    "open": (lambda path: os.close(os.open(path, os.O_RDWR)), ""),
    "setxattr": (lambda path: os.setxattr(path, "user.a", b"1"), "ctime"),
    "utime": (lambda path: os.utime(path, ns=(1, 2)), "atime mtime ctime"),
    "stat": (lambda path: path.stat(), ""),
    "fsync": (lambda path: sync(path), ""),
}
ON_FOLDERS: dict[str, Change] = {
    "create": lambda path: (path / "new").touch(),
    "mkdir": lambda path: (path / "new").mkdir(),
    "mkfifo": lambda path: os.mkfifo(path / "new"),
    "mknod": lambda path: os.mknod(path / "new", stat.S_IFSOCK | 0o600),
    "symlink": lambda path: (path / "new").symlink_to("target"),
    "link": lambda path: os.link(path / "file", path / "new"),
    "unlink": lambda path: (path / "file").unlink(),
    "rmdir": lambda path: (path / "sub").rmdir(),
    "rename": lambda path: (path / "file").rename(path / "new"),
    "replace": lambda path: (path / "file").rename(path / "other"),
    "move away": lambda path: (path / "sub").rename(path.parent / f"{path.name}-moved"),
}
IN_VAIN: dict[str, tuple[Change, int]] = {
    "unlink": (lambda path: (path / "missing").unlink(), errno.ENOENT),
    "mkdir": (lambda path: (path / "file").mkdir(), errno.EEXIST),
    "link": (lambda path: os.link(path / "file", path / "other"), errno.EEXIST),
    "rmdir": (lambda path: (path / "full").rmdir(), errno.ENOTEMPTY),
    "rename": (lambda path: (path / "file").rename(path / "full"), errno.EISDIR),
    "truncate": (lambda path: os.truncate(path / "full", 0), errno.EISDIR),
    "setxattr": (lambda path: os.setxattr(path / "file", "user.a", b"", os.XATTR_REPLACE), errno.ENODATA),
}


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder / "file"
    path.write_bytes(b"0123456789")
    return path


@pytest.fixture
def full(folder: Path) -> Path:
    """Has of everything something."""
    path = folder / "work"
    path.mkdir()
    for name in ("file", "other"):
        (path / name).write_bytes(name.encode())
    (path / "sub").mkdir()
    (path / "full").mkdir()
    (path / "full" / "file").touch()
    return path


@pytest.mark.parametrize("name", ON_FILES)
def test_times_of_a_file(file: Path, name: str) -> None:
    change, expected = ON_FILES[name]
    with moves(file.parent), moves(file, *expected.split()):
        change(file)


@pytest.mark.parametrize("name", ON_FOLDERS)
def test_times_of_the_folder(full: Path, name: str) -> None:
    with moves(full, "mtime", "ctime"):
        ON_FOLDERS[name](full)


def test_times_of_the_folder_that_something_moves_to(full: Path) -> None:
    with moves(full, "mtime", "ctime"), moves(full / "sub", "mtime", "ctime"):
        (full / "file").rename(full / "sub" / "file")


def test_times_of_what_gets_loses_and_changes_its_name(full: Path) -> None:
    with moves(full / "file", "ctime"):
        os.link(full / "file", full / "second")
    with moves(full / "file", "ctime"):
        (full / "second").unlink()
    with (full / "file").open("rb") as file:
        before = os.fstat(file.fileno())
        (full / "file").rename(full / "new")
        assert os.fstat(file.fileno()).st_ctime_ns > before.st_ctime_ns
        assert os.fstat(file.fileno()).st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("name", IN_VAIN)
def test_what_fails_moves_nothing(full: Path, name: str) -> None:
    change, code = IN_VAIN[name]
    with moves(full), moves(full / "file"), moves(full / "full"), failing(code):
        change(full)


@needs_root
def test_the_times_of_a_new_file_are_those_of_its_making(folder: Path) -> None:
    (folder / "f").touch()
    facts = (folder / "f").stat()
    assert facts.st_mtime_ns == facts.st_ctime_ns == facts.st_atime_ns
    assert facts.st_mtime_ns == folder.stat().st_mtime_ns


def read(path: Path) -> None:
    """From the file system: not from pages that the kernel has kept."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.read(file.fileno(), 100)


def test_reading_moves_atime_as_relatime_says(file: Path) -> None:
    sync(file)
    with moves(file, "atime"):
        read(file)
    with moves(file):
        read(file)
    os.utime(file, ns=(file.stat().st_ctime_ns - 2 * DAY_NS, 0))
    with moves(file, "atime"):
        read(file)


def test_an_access_time_stays_in_shared_mode(mounted: Mount) -> None:
    """It is stored later than the read, and every open there looks at what is stored."""
    mounted.another()
    file = mounted.path / "file"
    file.write_bytes(b"0123456789")
    with moves(file, "atime"):
        read(file)
    with moves(file):
        read(file)


def test_listing_and_readlink_move_atime(folder: Path) -> None:
    path = folder / "d"
    path.mkdir()
    (path / "f").touch()
    with moves(path, "atime"):
        os.listdir(path)
    with moves(path):
        os.listdir(path)
    (folder / "link").symlink_to("target")
    os.chown(folder / "link", -1, os.getegid(), follow_symlinks=False)
    with moves(folder / "link", "atime"):
        os.readlink(folder / "link")


def test_writing_through_a_mapping_moves_mtime(file: Path) -> None:
    before = file.stat()
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as memory:
        memory[0:1] = b"m"
        memory.flush()
    assert file.stat().st_mtime_ns > before.st_mtime_ns
    assert file.stat().st_ctime_ns > before.st_ctime_ns
