"""mkdir and rmdir: link counts, modes, emptiness, folders that are somebody's working directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.kit import Person, failing, permissions


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o700, 0o151, 0])
@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_mode_and_umask(folder: Path, mode: int, umask: int) -> None:
    os.umask(umask)
    (folder / "d").mkdir(mode)
    os.close(os.open(folder / "f", os.O_CREAT | os.O_WRONLY, mode))
    os.mkfifo(folder / "p", mode)
    assert {permissions(path) for path in folder.iterdir()} == {mode & ~umask}


def test_link_counts_of_folders(folder: Path) -> None:
    """Two, and one for each sub-folder; files do not count."""
    assert folder.stat().st_nlink == 2
    for number in range(1, 6):
        (folder / str(number)).mkdir()
        (folder / f"f{number}").touch()
        assert folder.stat().st_nlink == 2 + number
    (folder / "1").rename(folder / "2" / "1")
    assert (folder.stat().st_nlink, (folder / "2").stat().st_nlink) == (6, 3)
    (folder / "3").rename(folder / "4")
    assert folder.stat().st_nlink == 5
    (folder / "5").rmdir()
    assert folder.stat().st_nlink == 4
    (folder / "2" / "1").rmdir()
    assert (folder / "2").stat().st_nlink == 2


def test_what_mkdir_refuses(folder: Path) -> None:
    (folder / "f").touch()
    (folder / "dangling").symlink_to("missing")
    (folder / "d").mkdir()
    for name in ("f", "dangling", "d"):
        with failing(errno.EEXIST):
            (folder / name).mkdir()
    assert not (folder / "missing").exists()


def test_what_rmdir_refuses(folder: Path) -> None:
    (folder / "f").touch()
    (folder / "full" / "d").mkdir(parents=True)
    (folder / "link").symlink_to("full/d")
    for name, code in (
        ("f", errno.ENOTDIR),
        ("link", errno.ENOTDIR),
        ("full", errno.ENOTEMPTY),
        ("missing", errno.ENOENT),
    ):
        with failing(code):
            (folder / name).rmdir()
    for path, code in ((f"{folder}/full/d/.", errno.EINVAL), (f"{folder}/full/d/..", errno.ENOTEMPTY)):
        with failing(code):
            os.rmdir(path)
    assert (folder / "full" / "d").is_dir()


def test_a_folder_that_is_removed_while_it_is_used(folder: Path, person: Callable[..., Person]) -> None:
    path = folder / "d"
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        path.rmdir()
        assert os.fstat(descriptor).st_nlink == 0
        assert os.listdir(descriptor) == []
        for attempt in (
            lambda: os.mkdir("new", dir_fd=descriptor),
            lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor),
            lambda: os.symlink("x", "new", dir_fd=descriptor),
            lambda: os.stat("new", dir_fd=descriptor),
            lambda: os.rename(folder, "new", dst_dir_fd=descriptor),
        ):
            with failing(errno.ENOENT, errno.EINVAL):
                attempt()
        path.mkdir()
        assert path.stat().st_ino != os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def test_listing_a_folder_that_changes(folder: Path) -> None:
    """Every name that stays is listed once, whatever comes, goes and is renamed meanwhile."""
    stays = {f"stays-{number:04}" for number in range(1500)}
    for name in stays:
        (folder / name).touch()
    for number in range(500):
        (folder / f"goes-{number}").touch()
    seen: list[str] = []
    with os.scandir(folder) as entries:
        for turn, entry in enumerate(entries):
            seen.append(entry.name)
            if turn % 4 == 0 and turn < 1600:
                (folder / f"goes-{turn // 4}").unlink()
                (folder / f"comes-{turn}").touch()
            if turn % 100 == 0:
                (folder / f"goes-{499 - turn // 100}").rename(folder / f"moved-{turn}")
    assert len(seen) == len(set(seen))
    assert stays <= set(seen)
    assert len(os.listdir(folder)) == 2000


def test_seekdir_and_rewinddir(folder: Path) -> None:
    names = {f"n{number}" for number in range(300)}
    for name in names:
        (folder / name).touch()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        assert set(os.listdir(descriptor)) == names
        (folder / "later").touch()
        assert set(os.listdir(descriptor)) == names | {"later"}, "os.listdir rewinds"
    finally:
        os.close(descriptor)
