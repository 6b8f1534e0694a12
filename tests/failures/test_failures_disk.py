"""A node's disk runs full: ENOSPC to the writer, nothing damaged, and room helps (P8)."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flakefs.testing.mounted import Mount
from flakefs.testing.servers import Servers

MIB = 1024 * 1024
DISK_MIB = 448
RESERVE_MIB = 96


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system in a file."""
    image, at = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    at.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(image)], check=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop device can be mounted here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.fixture
def small_servers(small_disk: Path) -> Iterator[Servers]:
    """The first node lies on the small disk."""
    with Servers() as running:
        assert running.metadata.pid
        running.server("node1", data=small_disk / "node1")
        yield running
        running.node(1).kill()


@pytest.fixture
def small_mount(small_servers: Servers, tmp_path: Path) -> Iterator[Mount]:
    settings = {
        "engine": {"reserve_bytes": RESERVE_MIB * MIB, "poll_seconds": 0.2},
        "namespace": {"commit_interval_seconds": 0.3},
    }
    mount = Mount(small_servers, tmp_path / "fs", "small", "small_chunks", settings=settings, codec="none")
    mount.mount()
    try:
        yield mount
        mount.close(verify=True)
    finally:
        mount.close(verify=False)


def fill(path: Path) -> int:
    """Write files until there is no space; the number of the one that failed."""
    for number in range(DISK_MIB):
        try:
            write(path / str(number), os.urandom(4 * MIB))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return number
    raise AssertionError("the disk takes more than there is")


def write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_p8_a_full_disk(
    small_mount: Mount, small_servers: Servers, small_disk: Path, until: Callable[..., Any], within: Callable[..., Any]
) -> None:
    mount = small_mount
    mount.expect_log("no node takes new chunks|No space|is full")
    path = mount.path
    (path / "precious").write_bytes(precious := os.urandom(3 * MIB))
    failed = within(fill, path)
    assert failed > 2, "there was no room from the start"

    # What is there can be read, and names can be changed.
    assert (path / "precious").read_bytes() == precious
    (path / "folder").mkdir()
    os.rename(path / "0", path / "folder" / "moved")
    assert small_servers.node(1).pid, "the server died of it"

    # The file that did not fit can be removed, and then everything else is stored.
    (path / str(failed)).unlink()
    within(mount.sync)
    until(lambda: (path / "folder" / "small").write_text("small files live in the metadata"))
    within(mount.sync)
    mount.check_fsck()

    # A further node makes room.
    mount.cli("nodes", "add", f"{small_servers.node_uri(2).rstrip('/')}/small_chunks2")
    content = os.urandom(8 * MIB)
    until(lambda: write(path / "fits now", content))
    mount.remount()
    assert (path / "fits now").read_bytes() == content
    assert (path / "precious").read_bytes() == precious
    assert (path / "folder" / "small").read_text() == "small files live in the metadata"


def test_p8_deleting_makes_room(
    small_mount: Mount, small_disk: Path, until: Callable[..., Any], within: Callable[..., Any]
) -> None:
    """Something else on the disk has taken the room, and goes."""
    mount = small_mount
    mount.expect_log("no node takes new chunks|No space|is full")
    write(mount.path / "before", os.urandom(4 * MIB))
    ballast = small_disk / "ballast"
    room = os.statvfs(small_disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - RESERVE_MIB * MIB // 2)
    until(lambda: refused(mount.path / "refused"))
    ballast.unlink()
    content = os.urandom(4 * MIB)
    until(lambda: write(mount.path / "after", content))
    mount.remount()
    assert (mount.path / "after").read_bytes() == content


def refused(path: Path) -> None:
    """The mount takes notice of the disk a moment later."""
    try:
        write(path, os.urandom(MIB))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        path.unlink()
        return
    raise AssertionError("there is room")
