"""Permission bits: owner, group, supplementary groups, others, root; searching and listing folders."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flakefs.testing.mounted import NewMount
from tests.posix.calls import AT_EACCESS
from tests.posix.kit import Person, failing, needs_root

WHO = {
    "owner": (1001, 2009, (), 6),
    "group": (1002, 2001, (), 3),
    "supplementary": (1002, 2009, (2004, 2001, 2007), 3),
    "other": (1003, 2009, (2004,), 0),
}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("bits", range(8))
def test_one_class_counts(folder: Path, person: Callable[..., Person], who: str, bits: int) -> None:
    """The first class that fits decides, also when a later one would allow more."""
    uid, gid, groups, shift = WHO[who]
    user = person(uid, gid, *groups)
    path = folder / "f"
    path.write_bytes(b"#!/bin/true\n")
    path.chmod(bits << shift | {6: 0o077, 3: 0o007, 0: 0}[shift])
    os.chown(path, 1001, 2001)
    for wanted in range(8):
        for flags in (0, AT_EACCESS):
            if wanted & ~bits:
                with failing(errno.EACCES):
                    user.faccessat("f", wanted, flags)
            else:
                user.faccessat("f", wanted, flags)
    for need, how in ((os.R_OK, os.O_RDONLY), (os.W_OK, os.O_WRONLY), (os.R_OK | os.W_OK, os.O_RDWR)):
        if need & ~bits:
            with failing(errno.EACCES):
                user.open("f", how)
        else:
            user.close(user.open("f", how))


@needs_root
def test_root_may_all_but_run_what_nobody_may(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x")
    os.chown(path, 1001, 2001)
    path.chmod(0)
    assert path.read_bytes() == b"x"
    assert os.access(path, os.R_OK | os.W_OK)
    assert not os.access(path, os.X_OK)
    path.chmod(0o001)
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("bits", range(8))
def test_folders(folder: Path, person: Callable[..., Person], bits: int) -> None:
    """Reading lists, executing searches, changing needs both writing and searching."""
    user = person(1002, 2009, 2001)
    path = folder / "d"
    path.mkdir()
    for name in ("f", "g"):
        (path / name).write_bytes(b"x")
        (path / name).chmod(0o666)
    for name in ("one", "two"):
        (path / name).mkdir()
    os.chown(path, 1001, 2001)
    path.chmod(bits << 3)
    lists, changes, searches = bits & 4, bits & 2 and bits & 1, bits & 1
    attempts: list[tuple[int, Callable[[], object]]] = [
        (lists, lambda: user.listdir("d")),
        (searches, lambda: user.stat("d/f")),
        (searches, lambda: user.take("d/f")),
        (searches, lambda: user.put("d/f", b"y")),
        (changes, lambda: user.mkdir("d/new", 0o755)),
        (changes, lambda: user.rename("d/one", "d/three")),
        (changes, lambda: user.rmdir("d/two")),
        (changes, lambda: user.symlink("x", "d/link")),
        (changes, lambda: user.put("d/made", b"")),
        (changes, lambda: user.link("d/f", "d/again")),
        (changes, lambda: user.unlink("d/g")),
    ]
    for allowed, attempt in attempts:
        if allowed:
            attempt()
        else:
            with failing(errno.EACCES):
                attempt()


def test_moving_a_folder_elsewhere_needs_writing_to_it(common: Path, person: Callable[..., Person]) -> None:
    """Its ".." changes."""
    user = person(1001, 2001)
    for name in ("from", "to"):
        user.mkdir(name, 0o755)
    user.mkdir("from/d", 0o755)
    os.chown(common / "from" / "d", 0, 0)
    user.rename("from/d", "from/e")
    with failing(errno.EACCES, errno.EPERM):
        user.rename("from/e", "to/e")
    os.chown(common / "from" / "e", 1001, 2001)
    user.rename("from/e", "to/e")
    assert (common / "to" / "e" / "..").stat().st_ino == (common / "to").stat().st_ino


def test_an_open_file_stays_open_when_its_mode_changes(folder: Path, person: Callable[..., Person]) -> None:
    user = person(1001, 2001)
    (folder / "f").touch()
    os.chown(folder / "f", 1001, 2001)
    descriptor = user.open("f", os.O_RDWR)
    (folder / "f").chmod(0)
    assert user.write(descriptor, b"still") == 5
    assert user.pread(descriptor, 10, 0) == b"still"
    user.close(descriptor)
    with failing(errno.EACCES):
        user.open("f", os.O_RDONLY)


def test_new_files_belong_to_who_makes_them(common: Path, person: Callable[..., Person]) -> None:
    user = person(1003, 2003, 2004)
    user.umask(0o027)
    try:
        user.put("f", b"")
        user.mkdir("d", 0o777)
        user.mkfifo("p", 0o666)
        user.symlink("x", "l")
    finally:
        user.umask(0)
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in common.iterdir()}
    assert owners == {(1003, 2003)}
    assert [path.lstat().st_mode & 0o777 for path in sorted(common.iterdir())] == [0o750, 0o640, 0o777, 0o640]


@needs_root
def test_without_allow_other_nobody_else_gets_in(new_mount: NewMount) -> None:
    """Not even with mode 0777, and not to learn what is there."""
    mount = new_mount()
    (mount.path / "d").mkdir(0o777)
    stranger = Person(mount.path.parent, 1001, 2001)
    try:
        attempts: list[Callable[[], object]] = [lambda: stranger.stat("mnt"), lambda: stranger.listdir("mnt/d")]
        for attempt in attempts:
            with failing(errno.EACCES):
                attempt()
    finally:
        stranger.end()
    assert os.listdir(mount.path) == ["d"]
