"""Symbolic links up to 4095 bytes, and the special files: pipes, sockets, devices."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from tests.posix.kit import failing, needs_root, permissions


@pytest.mark.parametrize("length", [1, 255, 1023, 4094, 4095])
def test_targets(folder: Path, shared_mount: Mount, length: int) -> None:
    link = os.path.join(os.fsencode(folder), b"link")
    target = (b"\xff/x" * 2000)[:length]
    os.symlink(target, link)
    shared_mount.sync()
    assert os.readlink(link) == target
    facts = os.lstat(link)
    assert (facts.st_size, facts.st_mode, facts.st_nlink) == (length, stat.S_IFLNK | 0o777, 1)


def test_what_symlink_refuses(folder: Path) -> None:
    (folder / "f").touch()
    with failing(errno.ENAMETOOLONG):
        (folder / "link").symlink_to("x" * 4096)
    with failing(errno.ENOENT):
        os.symlink("", folder / "link")
    with failing(errno.EEXIST):
        (folder / "f").symlink_to("x")
    with failing(errno.EINVAL):
        os.readlink(folder / "f")


def test_forty_links_may_follow_each_other(folder: Path) -> None:
    (folder / "0").write_bytes(b"end")
    for number in range(1, 42):
        (folder / str(number)).symlink_to(str(number - 1))
    assert (folder / "40").read_bytes() == b"end"
    with failing(errno.ELOOP):
        (folder / "41").read_bytes()


def test_a_link_is_followed_as_it_is_now(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "f").write_bytes(name.encode())
    for name in ("one", "two", "one"):
        (folder / "new").symlink_to(name)
        os.rename(folder / "new", folder / "current")
        assert (folder / "current" / "f").read_bytes() == name.encode()


def test_a_pipe_carries_bytes(folder: Path) -> None:
    path = folder / "pipe"
    os.mkfifo(path, 0o640)
    assert path.stat().st_mode == stat.S_IFIFO | 0o640
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    path.write_bytes(b"through")
    reader.join()
    assert got == [b"through"]
    assert path.stat().st_size == 0


def test_a_socket_can_be_bound_and_reached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # the name of a socket has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        assert stat.S_ISSOCK(os.stat("s").st_mode)
        client.connect("s")
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(10) == b"hello"
    with socket.socket(socket.AF_UNIX) as client, failing(errno.ECONNREFUSED):
        client.connect("s")


@needs_root
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize("number", [(0, 0), (1, 3), (255, 255), (4095, 1_048_575)])
def test_device_nodes_keep_their_numbers(folder: Path, shared_mount: Mount, kind: int, number: tuple[int, int]) -> None:
    path = folder / "device"
    os.mknod(path, kind | 0o620, os.makedev(*number))
    shared_mount.sync()
    facts = path.stat()
    assert (stat.S_IFMT(facts.st_mode), permissions(path)) == (kind, 0o620)
    assert (os.major(facts.st_rdev), os.minor(facts.st_rdev)) == number


def test_devices_are_not_opened(folder: Path) -> None:
    """FUSE mounts are nodev."""
    if os.geteuid():
        with failing(errno.EPERM):
            os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with failing(errno.EACCES):
            (folder / "null").open("rb")


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK])
def test_mknod(folder: Path, kind: int) -> None:
    path = folder / "it"
    os.mknod(path, kind | 0o6751)
    assert path.stat().st_mode == kind | 0o6751
    with failing(errno.EEXIST):
        os.mknod(path, kind | 0o600)
    path.unlink()
    assert os.listdir(folder) == []
