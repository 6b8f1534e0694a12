"""System calls on attributes through a real mount."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from flakefs.testing.mounted import Mount
from tests.mount.failing import failing


def test_times_have_nanoseconds(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    facts = path.stat()
    assert (facts.st_atime_ns, facts.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_987_654_321)
    os.utime(path, ns=(-1_500_000_000, 0))
    assert path.stat().st_atime_ns == -1_500_000_000


def test_changes_move_the_right_times(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"1")
    os.utime(path, ns=(0, 0))
    os.utime(folder, ns=(0, 0))
    changed = path.stat().st_ctime_ns
    path.chmod(0o600)
    assert path.stat().st_mtime_ns == 0
    assert path.stat().st_ctime_ns > changed
    assert folder.stat().st_mtime_ns == 0
    with path.open("ab") as file:
        file.write(b"2")
    assert path.stat().st_mtime_ns > 0
    assert path.stat().st_size == 2
    (folder / "g").touch()
    assert folder.stat().st_mtime_ns > 0
    changed = path.stat().st_ctime_ns
    os.link(path, folder / "h")
    assert path.stat().st_ctime_ns > changed


def test_mode_and_owner(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"#!/bin/true\n")
    path.chmod(0o6755)
    assert stat.S_IMODE(path.stat().st_mode) == 0o6755
    assert stat.S_ISREG(path.stat().st_mode)
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
        facts = path.stat()
        assert (facts.st_uid, facts.st_gid) == (12345, 54321)
        assert stat.S_IMODE(facts.st_mode) == 0o755, "a change of owner keeps set-user-id"
        os.chown(path, -1, 7)
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 7)


def test_permissions_are_checked_by_the_kernel(folder: Path) -> None:
    assert os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    path = folder / "f"
    path.write_bytes(b"")
    path.chmod(0o600)
    assert not os.access(path, os.X_OK)


def test_umask_applies_once(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(folder / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(folder / "d", 0o777)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((folder / "d").stat().st_mode) == 0o750


def test_extended_attributes(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    assert own(path) == []
    os.setxattr(path, "user.color", b"blue")
    os.setxattr(path, b"user.\xff", bytes(range(256)) * 16)
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.color") == b"blue"
    assert os.getxattr(path, b"user.\xff") == bytes(range(256)) * 16
    assert os.getxattr(path, "user.empty") == b""
    assert own(path) == sorted(["user.color", "user.empty", os.fsdecode(b"user.\xff")])
    with failing(errno.EEXIST):
        os.setxattr(path, "user.color", b"red", os.XATTR_CREATE)
    os.setxattr(path, "user.color", b"red", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.color") == b"red"
    with failing(errno.ENODATA):
        os.setxattr(path, "user.none", b"", os.XATTR_REPLACE)
    os.removexattr(path, "user.color")
    with failing(errno.ENODATA):
        os.getxattr(path, "user.color")
    with failing(errno.ENODATA):
        os.removexattr(path, "user.color")
    os.setxattr(folder, "user.on-a-folder", b"1")
    assert os.getxattr(folder, "user.on-a-folder") == b"1"


def own(path: Path) -> list[str]:
    """Attributes that somebody set; not the facts FlakeFS tells about a file."""
    return sorted(name for name in os.listxattr(path) if not name.startswith("user.flakefs."))


def test_statfs(shared_mount: Mount) -> None:
    facts = os.statvfs(shared_mount.path)
    assert facts.f_namemax == 255
    assert facts.f_bsize > 0
    assert 0 < facts.f_bavail <= facts.f_blocks
    assert facts.f_ffree > 0
    assert shared_mount.path.stat().st_blksize == 1024 * 1024
