"""Trees that two mounts remove at once, and folders that are open while another mount removes them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount, NewMount, new_mount
from tests.shared.mounts import MARKS, until

__all__ = ["new_mount"]

pytestmark = MARKS

ROUNDS = 5


@pytest.fixture
def two(new_mount: NewMount) -> tuple[Mount, Mount]:
    one = new_mount()
    return one, one.another()


def plant(root: Path) -> None:
    for folder in range(5):
        (root / f"d{folder}" / "e").mkdir(parents=True)
        for file in range(6):
            (root / f"d{folder}" / f"f{file}").write_bytes(b"1")
            (root / f"d{folder}" / "e" / f"g{file}").write_bytes(b"2")


def test_rm_of_one_tree_by_both_says_nothing(two: tuple[Mount, Mount]) -> None:
    one, other = two
    for number in range(ROUNDS):
        name = f"tree{number}"
        plant(one.path / name)
        until((other.path / name / "d4" / "e" / "g5").exists)
        removing = [
            subprocess.Popen(
                ["rm", "-rf", name], cwd=mount.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for mount in two
        ]
        assert [child.communicate(timeout=60)[0] for child in removing] == ["", ""]
        assert [child.returncode for child in removing] == [0, 0]
        assert not (one.path / name).exists()
        until(lambda name=name: not (other.path / name).exists())  # type: ignore[misc]


def answer(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def test_a_folder_that_is_open_and_removed_elsewhere_is_as_on_a_local_disk(
    two: tuple[Mount, Mount], tmp_path: Path
) -> None:
    """At once, and when nothing of it is stored any more."""
    one, other = two

    def facts(descriptor: int) -> list[object]:
        return [
            answer(call)
            for call in (
                lambda: os.fstat(descriptor).st_nlink,
                lambda: os.listdir(descriptor),
                lambda: os.unlink("f", dir_fd=descriptor),
                lambda: os.rmdir("s", dir_fd=descriptor),
                lambda: os.open("f", os.O_RDONLY, dir_fd=descriptor),
                lambda: os.open("n", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor),
                lambda: os.mkdir("m", dir_fd=descriptor),
                lambda: os.rename("f", "g", src_dir_fd=descriptor, dst_dir_fd=descriptor),
                lambda: os.fchmod(descriptor, 0o700),
                lambda: os.fsync(descriptor),
            )
        ]

    def removed(path: Path, remove_by: Path) -> int:
        path.mkdir()
        (path / "f").write_bytes(b"1")
        (path / "s").mkdir()
        until(remove_by.is_dir)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        assert sorted(os.listdir(descriptor)) == ["f", "s"]
        shutil.rmtree(remove_by)
        return descriptor

    local = removed(tmp_path / "x", tmp_path / "x")
    descriptor = removed(other.path / "x", one.path / "x")
    try:
        expected = facts(local)
        assert expected[:3] == [0, [], "ENOENT"]
        until(lambda: not (other.path / "x").exists())
        ino = os.fstat(descriptor).st_ino
        assert facts(descriptor) == expected
        until(lambda: not is_stored(one, ino))
        for _ in range(3):
            (one.path / "more").mkdir()  # its news comes later than that of the folder
            until((other.path / "more").is_dir)
            assert facts(descriptor) == expected
            (one.path / "more").rmdir()
    finally:
        os.close(descriptor)
        os.close(local)


def is_stored(mount: Mount, ino: int) -> bool:
    with mount.servers.metadata.client() as client:
        return client[mount.database]["inodes"].find_one({"_id": ino}) is not None
