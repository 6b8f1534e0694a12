"""statfs and df: the space of the nodes' disks, how many files there are, and how many more there may be."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount


def test_space_is_that_of_the_disks(shared_mount: Mount) -> None:
    """The node and the metadata lie on the disk of the servers' folder."""
    facts, disk = os.statvfs(shared_mount.path), os.statvfs(shared_mount.servers.folder)
    assert facts.f_blocks * facts.f_frsize == pytest.approx(disk.f_blocks * disk.f_frsize, rel=0.01)
    assert facts.f_bavail * facts.f_frsize == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.2)
    assert facts.f_bavail <= facts.f_bfree <= facts.f_blocks
    assert facts.f_bsize == facts.f_frsize == 4096
    assert facts.f_namemax == 255
    assert facts.f_flag & os.ST_NOSUID
    assert facts.f_flag & os.ST_NODEV


def test_files_are_counted(mounted: Mount) -> None:
    for number in range(100):
        (mounted.path / str(number)).touch()
    mounted.remount()
    facts = os.statvfs(mounted.path)
    assert facts.f_files - facts.f_ffree == 101
    assert facts.f_favail == facts.f_ffree
    disk = os.statvfs(mounted.servers.folder)
    assert 0 < facts.f_ffree * 512 < disk.f_blocks * disk.f_frsize, "the metadata's disk holds no more"


def test_every_path_of_the_mount_says_the_same(shared_mount: Mount, folder: Path) -> None:
    (folder / "f").touch()
    descriptor = os.open(folder / "f", os.O_RDONLY)
    total = {os.statvfs(each).f_blocks for each in (shared_mount.path, folder, folder / "f", descriptor)}
    os.close(descriptor)
    assert len(total) == 1


def test_df_prints_it(shared_mount: Mount) -> None:
    for words in (["df", "--output=fstype,size,avail,itotal,iavail"], ["df", "-h"], ["df", "-i"]):
        printed = subprocess.run([*words, shared_mount.path], capture_output=True, text=True, check=True).stdout
        assert len(printed.splitlines()) == 2
        assert "-" not in printed.splitlines()[1].split()
    kind, size, free, files, more = (
        subprocess.run(
            ["df", "--output=fstype,size,avail,itotal,iavail", shared_mount.path], capture_output=True, text=True
        )
        .stdout.splitlines()[1]
        .split()
    )
    assert kind == "fuse.flakefs"
    assert 0 < int(free) <= int(size)
    assert 0 < int(more) <= int(files)
