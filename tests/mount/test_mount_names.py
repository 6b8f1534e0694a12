"""System calls on names and folders through a real mount."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

import pytest

from tests.mount.failing import failing

NOREPLACE = 1
EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(source: Path, target: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_folders(folder: Path) -> None:
    path = folder / "d"
    path.mkdir(0o750)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert folder.stat().st_nlink == 3
    (path / "f").touch()
    with failing(errno.ENOTEMPTY):
        path.rmdir()
    with failing(errno.EISDIR):
        path.unlink()
    with failing(errno.ENOTDIR):
        (path / "f").rmdir()
    (path / "f").unlink()
    path.rmdir()
    assert folder.stat().st_nlink == 2
    with failing(errno.ENOENT):
        path.rmdir()


def test_symlinks(folder: Path) -> None:
    link = folder / "link"
    target = b"../" * 100 + b"\xff odd"
    os.symlink(target, os.fsencode(link))
    assert os.readlink(os.fsencode(link)) == target
    assert stat.S_ISLNK(link.lstat().st_mode)
    assert link.lstat().st_size == len(target)
    (folder / "real").write_text("through")
    (folder / "good").symlink_to("real")
    assert (folder / "good").read_text() == "through"
    with failing(errno.ELOOP):
        (folder / "loop").symlink_to("loop")
        (folder / "loop").read_bytes()


def test_hard_links(folder: Path) -> None:
    one, two, three = folder / "one", folder / "two", folder / "three"
    one.write_bytes(b"shared")
    os.link(one, two)
    os.link(two, three)
    assert one.stat().st_nlink == 3
    assert one.stat().st_ino == two.stat().st_ino == three.stat().st_ino
    two.write_bytes(b"changed")
    one.unlink()
    assert three.read_bytes() == b"changed"
    assert three.stat().st_nlink == 2
    os.rename(two, three)  # two names of one file: nothing happens
    assert two.exists()
    with failing(errno.EEXIST):
        os.link(two, three)
    with failing(errno.EPERM):
        os.link(folder, folder / "loop")


def test_rename_replaces(folder: Path) -> None:
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    os.rename(folder / "a", folder / "b")
    assert (folder / "b").read_bytes() == b"a"
    assert not (folder / "a").exists()
    (folder / "d").mkdir()
    (folder / "e").mkdir()
    (folder / "e" / "f").touch()
    with failing(errno.ENOTEMPTY):
        os.rename(folder / "d", folder / "e")
    with failing(errno.EINVAL):
        os.rename(folder / "e", folder / "e" / "inside")
    os.rename(folder / "e", folder / "d")
    assert (folder / "d" / "f").exists()
    with failing(errno.EISDIR):
        os.rename(folder / "b", folder / "d")
    with failing(errno.ENOTDIR):
        os.rename(folder / "d", folder / "b")


def test_rename_to_another_folder_moves_the_parent(folder: Path) -> None:
    (folder / "from" / "child").mkdir(parents=True)
    (folder / "to").mkdir()
    os.rename(folder / "from" / "child", folder / "to" / "moved")
    assert (folder / "to" / "moved" / "..").stat().st_ino == (folder / "to").stat().st_ino
    assert (folder / "from").stat().st_nlink == 2
    assert (folder / "to").stat().st_nlink == 3


def test_rename_noreplace_and_exchange(folder: Path) -> None:
    a, b = folder / "a", folder / "b"
    a.write_bytes(b"a")
    b.mkdir()
    with failing(errno.EEXIST):
        renameat2(a, b, NOREPLACE)
    renameat2(a, b, EXCHANGE)
    assert a.is_dir()
    assert b.read_bytes() == b"a"
    renameat2(b, folder / "c", NOREPLACE)
    assert (folder / "c").read_bytes() == b"a"
    with failing(errno.ENOENT):
        renameat2(a, folder / "nothing", EXCHANGE)
    with failing(errno.EINVAL):
        renameat2(a, folder / "free", 4)  # RENAME_WHITEOUT


@pytest.mark.parametrize("name", [b"x" * 255, b"\xff\xfe\x01", "größe 文件 🦑".encode(), b" ", b"new\nline", b"-rf"])
def test_names_are_any_bytes(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)
    with open(path, "wb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(folder)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name
    os.rename(path, path[:-1] + b"!")
    os.unlink(path[:-1] + b"!")


def test_names_longer_than_255_bytes(folder: Path) -> None:
    with failing(errno.ENAMETOOLONG):
        (folder / ("x" * 256)).touch()
    with failing(errno.ENAMETOOLONG):
        (folder / ("ü" * 128)).mkdir()


def test_special_files(folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o640)
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(folder / "regular", stat.S_IFREG | 0o600)
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((folder / "socket").stat().st_mode)
    assert (folder / "regular").read_bytes() == b""
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert (folder / "null").stat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISCHR((folder / "null").stat().st_mode)


def test_f5_listings_have_dots_and_every_name_once(folder: Path) -> None:
    names = {f"file-{number:04}" for number in range(5000)}
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
    listed = os.listdir(folder)
    assert len(listed) == 5000
    assert set(listed) == names
    raw = raw_entries(folder)
    assert raw[b"."] == folder.stat().st_ino
    assert raw[b".."] == folder.parent.stat().st_ino
    assert raw[b"file-0042"] == (folder / "file-0042").stat().st_ino


def raw_entries(path: Path) -> dict[bytes, int]:
    """Name -> d_ino by getdents64(2), which hides nothing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    found = {}
    buffer = ctypes.create_string_buffer(4096)
    while (got := _libc.syscall(217, descriptor, buffer, 4096)) > 0:
        at = 0
        while at < got:
            length = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
            name = buffer.raw[at + 19 : at + length].split(b"\0")[0]
            assert name not in found, f"{name!r} is listed twice"
            found[name] = int.from_bytes(buffer.raw[at : at + 8], "little")
            at += length
    os.close(descriptor)
    assert got == 0
    return found


def test_removing_while_listing(folder: Path) -> None:
    for number in range(1000):
        (folder / str(number)).touch()
    seen = []
    with os.scandir(folder) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen, key=int) == [str(number) for number in range(1000)]
    assert os.listdir(folder) == []
    folder.rmdir()


def test_an_open_folder_that_is_removed(folder: Path) -> None:
    path = folder / "d"
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    path.rmdir()
    assert os.listdir(descriptor) == []
    with failing(errno.ENOENT):
        os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.close(descriptor)


def test_f2_thousands_of_names_come_and_go(folder: Path) -> None:
    """Look-up counts: names that the kernel forgets and learns again stay right."""
    for turn in range(3):
        for number in range(300):
            (folder / f"{turn}-{number}").write_bytes(b"x")
        for number in range(0, 300, 2):
            (folder / f"{turn}-{number}").unlink()
        drop_caches()
    assert len(os.listdir(folder)) == 450
    assert (folder / "1-7").read_bytes() == b"x"
    with failing(errno.ENOENT):
        (folder / "1-8").stat()


def drop_caches() -> None:
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("2\n")


def test_missing_names_are_remembered_and_then_made(folder: Path) -> None:
    path = folder / "later"
    for _ in range(3):
        with failing(errno.ENOENT):
            path.stat()
    path.touch()
    assert path.exists()
    path.unlink()
    with failing(errno.ENOENT):
        path.stat()
    (folder / "other").touch()
    os.rename(folder / "other", path)
    assert path.exists()
