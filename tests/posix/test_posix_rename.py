"""rename: every pair of kinds, over open files, folders that move, exchanging."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.calls import EXCHANGE, NOREPLACE, WHITEOUT, renameat2
from tests.posix.kit import failing


def full_folder(path: Path) -> None:
    path.mkdir()
    (path / "in").touch()


KINDS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"f"),
    "empty folder": lambda path: path.mkdir(),
    "full folder": full_folder,
    "link": lambda path: path.symlink_to("target"),
    "fifo": lambda path: os.mkfifo(path),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "nothing": lambda path: None,
}


def answer(source: str, target: str) -> int:
    """What rename(2) says about replacing a *target* by a *source*."""
    if source == "nothing":
        return errno.ENOENT
    if target == "nothing":
        return 0
    if "folder" in source:
        if "folder" not in target:
            return errno.ENOTDIR
        return errno.ENOTEMPTY if target == "full folder" else 0
    return errno.EISDIR if "folder" in target else 0


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_every_pair_of_kinds(folder: Path, source: str, target: str) -> None:
    for mode in ("plain", "noreplace", "exchange"):
        (folder / mode).mkdir()
        old, new = folder / mode / "old", folder / mode / "new"
        KINDS[source](old)
        KINDS[target](new)
        number = old.lstat().st_ino if source != "nothing" else 0
        replaced = new.lstat().st_ino if target != "nothing" else 0
        if mode == "plain":
            code = answer(source, target)
        elif source == "nothing":
            code = errno.ENOENT
        elif mode == "noreplace":
            code = 0 if target == "nothing" else errno.EEXIST
        else:
            code = errno.ENOENT if target == "nothing" else 0
        flags = {"plain": 0, "noreplace": NOREPLACE, "exchange": EXCHANGE}[mode]
        if code:
            with failing(code):
                renameat2(old, new, flags)
            assert sorted(os.listdir(folder / mode)) == sorted(
                name for name, kind in (("new", target), ("old", source)) if kind != "nothing"
            )
            continue
        renameat2(old, new, flags)
        assert new.lstat().st_ino == number
        assert os.path.lexists(old) == (mode == "exchange")
        if mode == "exchange":
            assert old.lstat().st_ino == replaced


def test_two_names_of_one_file_stay(folder: Path) -> None:
    (folder / "one").touch()
    os.link(folder / "one", folder / "two")
    os.rename(folder / "one", folder / "two")
    os.rename(folder / "one", folder / "one")
    assert sorted(os.listdir(folder)) == ["one", "two"]
    assert (folder / "one").stat().st_nlink == 2


def test_a_file_that_is_replaced_has_one_name_less(folder: Path) -> None:
    (folder / "one").write_bytes(b"old")
    os.link(folder / "one", folder / "two")
    (folder / "new").write_bytes(b"new")
    with (folder / "one").open("rb") as opened:
        os.rename(folder / "new", folder / "one")
        assert (folder / "two").stat().st_nlink == 1
        assert os.fstat(opened.fileno()).st_nlink == 1
        os.rename(folder / "one", folder / "two")
        assert os.fstat(opened.fileno()).st_nlink == 0
        assert opened.read() == b"old"
    assert (folder / "two").read_bytes() == b"new"


def test_a_folder_never_lies_in_itself(folder: Path) -> None:
    (folder / "a" / "b" / "c").mkdir(parents=True)
    for target in ("a/new", "a/b/new", "a/b/c/new"):
        with failing(errno.EINVAL):
            os.rename(folder / "a", folder / target)
    for target in ("a", "a/b"):
        with failing(errno.ENOTEMPTY, errno.EINVAL):
            os.rename(folder / "a/b/c", folder / target)
        with failing(errno.EINVAL):
            renameat2(folder / "a/b/c", folder / target, EXCHANGE)
    assert (folder / "a" / "b" / "c").is_dir()


def test_what_lies_in_a_folder_moves_along(folder: Path) -> None:
    (folder / "from" / "d" / "deep").mkdir(parents=True)
    (folder / "to").mkdir()
    (folder / "from" / "d" / "deep" / "f").write_bytes(b"moved")
    descriptor = os.open(folder / "from" / "d" / "deep", os.O_RDONLY)
    os.rename(folder / "from" / "d", folder / "to" / "e")
    try:
        assert (folder / "to" / "e" / "deep" / "f").read_bytes() == b"moved"
        assert os.stat("f", dir_fd=descriptor).st_size == 5
        assert os.stat("../..", dir_fd=descriptor).st_ino == (folder / "to").stat().st_ino
        assert (folder / "from").stat().st_nlink == 2
        assert (folder / "to").stat().st_nlink == 3
        with failing(errno.ENOENT):
            os.stat(folder / "from" / "d" / "deep" / "f")
    finally:
        os.close(descriptor)


def test_a_folder_replaces_an_empty_one_that_is_open(folder: Path) -> None:
    (folder / "new").mkdir()
    (folder / "new" / "f").touch()
    (folder / "old").mkdir()
    descriptor = os.open(folder / "old", os.O_RDONLY)
    try:
        os.rename(folder / "new", folder / "old")
        assert os.listdir(descriptor) == []
        assert os.fstat(descriptor).st_nlink == 0
        assert os.listdir(folder / "old") == ["f"]
    finally:
        os.close(descriptor)


def test_flags_that_are_refused(folder: Path) -> None:
    (folder / "f").touch()
    (folder / "g").touch()
    for flags in (WHITEOUT, NOREPLACE | EXCHANGE, 64):
        with failing(errno.EINVAL):
            renameat2(folder / "f", folder / "g", flags)
    with failing(errno.EXDEV):
        os.rename(folder / "f", "/dev/shm/never")


def test_there_is_always_one_of_the_two(folder: Path) -> None:
    """A reader of a file that is replaced again and again never meets nothing, nor a half of each."""
    path = folder / "f"
    path.write_bytes(b"0" * 5000)
    wrong: list[str] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            try:
                if len(set(path.read_bytes())) != 1:
                    wrong.append("mixed")
            except OSError as error:
                wrong.append(str(error))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(300):
        (folder / "new").write_bytes(b"%d" % (number % 10) * 5000)
        os.rename(folder / "new", path)
    ended.set()
    reader.join()
    assert not wrong
    assert os.listdir(folder) == ["f"]
