"""Extended attributes: namespaces and their rules, sizes, CREATE and REPLACE, facts; ACLs are refused whole."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from tests.posix.kit import Person, failing

ACLS = ("system.posix_acl_access", "system.posix_acl_default")
ACL = struct.pack("<I" + "HHi" * 5, 2, 1, 6, -1, 2, 7, 1001, 4, 4, -1, 16, 7, -1, 32, 4, -1)
"""rw- for the owner, rwx for user 1001, r-- for group and others, with its mask."""


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder / "file"
    path.touch(0o666)
    return path


@pytest.mark.parametrize("size", [0, 1, 4096, 65_535, 65_536])
def test_values_up_to_64_kib(file: Path, shared_mount: Mount, size: int) -> None:
    value = os.urandom(size)
    os.setxattr(file, "user.value", value)
    shared_mount.sync()
    assert os.getxattr(file, "user.value") == value
    assert os.listxattr(file) == ["user.value"]
    os.setxattr(file, "user.value", b"short")
    assert os.getxattr(file, "user.value") == b"short"


def test_what_is_too_large(file: Path) -> None:
    with failing(errno.E2BIG):
        os.setxattr(file, "user.value", bytes(65_537))
    with failing(errno.ERANGE):
        os.setxattr(file, "user." + "n" * 251, b"")
    for number in range(15):
        os.setxattr(file, f"user.{number}", bytes(65_536))
    with failing(errno.ENOSPC):
        for number in range(15, 18):
            os.setxattr(file, f"user.{number}", bytes(65_536))
    assert len(os.listxattr(file)) >= 15


def test_create_and_replace(file: Path) -> None:
    with failing(errno.ENODATA):
        os.setxattr(file, "user.a", b"0", os.XATTR_REPLACE)
    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    with failing(errno.EEXIST):
        os.setxattr(file, "user.a", b"2", os.XATTR_CREATE)
    assert os.getxattr(file, "user.a") == b"1"
    os.setxattr(file, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.a") == b"3"


def test_one_creator_wins(file: Path) -> None:
    for turn in range(20):
        check_that_one_wins([file] * 4, f"user.{turn}")


def test_one_creator_wins_on_two_mounts(mounted: Mount) -> None:
    other = mounted.another()
    (mounted.path / "f").touch()
    for turn in range(20):
        check_that_one_wins([mounted.path / "f", other.path / "f"] * 2, f"user.{turn}")
    with failing(errno.ENODATA):
        os.setxattr(other.path / "f", "user.none", b"", os.XATTR_REPLACE)
    os.removexattr(mounted.path / "f", "user.0")
    with failing(errno.ENODATA):
        os.setxattr(other.path / "f", "user.0", b"", os.XATTR_REPLACE)
    os.setxattr(other.path / "f", "user.0", b"", os.XATTR_CREATE)


def check_that_one_wins(paths: list[Path], name: str) -> None:
    barrier = threading.Barrier(len(paths))

    def create(number: int) -> bool:
        barrier.wait()
        try:
            os.setxattr(paths[number], name, b"%d" % number, os.XATTR_CREATE)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(len(paths)) as pool:
        won = list(pool.map(create, range(len(paths))))
    assert won.count(True) == 1
    assert {os.getxattr(path, name) for path in paths} == {b"%d" % won.index(True)}


def test_user_attributes_follow_the_permission_bits(folder: Path, file: Path, person: Callable[..., Person]) -> None:
    user = person(1001, 2001)
    user.setxattr("file", "user.a", b"1")
    file.chmod(0o644)
    with failing(errno.EACCES):
        user.setxattr("file", "user.a", b"2")
    with failing(errno.EACCES):
        user.removexattr("file", "user.a")
    assert user.getxattr("file", "user.a") == b"1"
    file.chmod(0o600)
    with failing(errno.EACCES):
        user.getxattr("file", "user.a")
    assert user.listxattr("file") == ["user.a"], "as everywhere, the names are no secret"


def test_user_attributes_of_a_sticky_folder_are_its_owner_s(common: Path, person: Callable[..., Person]) -> None:
    common.chmod(0o1777)
    with failing(errno.EPERM):
        person(1001, 2001).setxattr(".", "user.a", b"1")
    os.chown(common, 1001, -1)
    person(1001, 2001).setxattr(".", "user.a", b"1")
    assert os.getxattr(common, "user.a") == b"1"


def test_only_files_and_folders_have_user_attributes(folder: Path) -> None:
    (folder / "link").symlink_to("x")
    os.mkfifo(folder / "fifo")
    for name in ("link", "fifo"):
        with failing(errno.EPERM):
            os.setxattr(folder / name, "user.a", b"1", follow_symlinks=False)
        with failing(errno.ENODATA):
            os.getxattr(folder / name, "user.a", follow_symlinks=False)
        assert os.listxattr(folder / name, follow_symlinks=False) == []


def test_trusted_attributes_are_for_root_alone(folder: Path, file: Path, person: Callable[..., Person]) -> None:
    user = person(1001, 2001)
    os.chown(file, 1001, 2001)
    os.setxattr(file, "trusted.secret", b"1")
    os.setxattr(file, "user.open", b"2")
    (folder / "link").symlink_to("x")
    os.setxattr(folder / "link", "trusted.l", b"3", follow_symlinks=False)
    with failing(errno.EPERM):
        user.setxattr("file", "trusted.more", b"")
    with failing(errno.ENODATA):
        user.getxattr("file", "trusted.secret")
    with failing(errno.EPERM):
        user.removexattr("file", "trusted.secret")
    assert user.listxattr("file") == ["user.open"], "a copying program would fail at what it sees and cannot read"
    assert sorted(os.listxattr(file)) == ["trusted.secret", "user.open"]
    assert os.getxattr(folder / "link", "trusted.l", follow_symlinks=False) == b"3"


def test_security_attributes_are_read_by_all_and_set_by_root(file: Path, person: Callable[..., Person]) -> None:
    user = person(1001, 2001)
    os.chown(file, 1001, 2001)
    os.setxattr(file, "security.label", b"1")
    assert user.getxattr("file", "security.label") == b"1"
    with failing(errno.EPERM):
        user.setxattr("file", "security.label", b"2")
    assert user.listxattr("file") == ["security.label"]


@pytest.mark.parametrize("name", ["system.anything", "strange.name", "nodot"])
def test_other_namespaces_are_not_supported(file: Path, name: str) -> None:
    for attempt in (
        lambda: os.setxattr(file, name, b""),
        lambda: os.getxattr(file, name),
        lambda: os.removexattr(file, name),
    ):
        with failing(errno.EOPNOTSUPP):
            attempt()


def test_facts_are_read_not_listed_and_never_set(file: Path) -> None:
    assert int(os.getxattr(file, "user.flakefs.id")) == file.stat().st_ino
    assert os.listxattr(file) == []
    for name in ("user.flakefs.id", "user.flakefs.new"):
        with failing(errno.EPERM):
            os.setxattr(file, name, b"1")
        with failing(errno.EPERM):
            os.removexattr(file, name)
    with failing(errno.ENODATA):
        os.getxattr(file, "user.flakefs.new")


def test_replication_is_a_fact_that_may_be_set(folder: Path) -> None:
    name = "user.flakefs.replication"
    assert os.getxattr(folder, name) == b"000"
    for value in (b"", b"00", b"0000", b"abc", b"007", b"001"):  # for the last one a second node is missing
        with failing(errno.EINVAL):
            os.setxattr(folder, name, value)
    with failing(errno.EEXIST):
        os.setxattr(folder, name, b"000", os.XATTR_CREATE)
    os.setxattr(folder, name, b"000", os.XATTR_REPLACE)
    assert os.listxattr(folder) == [name]
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_bytes(bytes(10_000))
    (folder / "sub" / "link").symlink_to("file")
    for below in ("sub", "sub/file"):
        assert os.listxattr(folder / below) == [name]
    assert os.listxattr(folder / "sub" / "link", follow_symlinks=False) == []
    os.removexattr(folder / "sub", name)
    with failing(errno.ENODATA):
        os.removexattr(folder / "sub", name)
    (folder / "sub" / "later").touch()
    assert os.listxattr(folder / "sub" / "later") == []
    assert os.getxattr(folder / "sub" / "later", name) == b"000"


@pytest.mark.parametrize("name", ACLS)
def test_acls_are_refused_whole(folder: Path, name: str) -> None:
    with failing(errno.EOPNOTSUPP):
        os.setxattr(folder, name, ACL)
    with failing(errno.EOPNOTSUPP):
        os.getxattr(folder, name)
    assert os.listxattr(folder) == []
    assert folder.stat().st_mode & 0o777 == 0o755
    (folder / "f").touch(0o640)
    assert (folder / "f").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs setfacl")
def test_setfacl_says_so(file: Path) -> None:
    done = subprocess.run(["setfacl", "-m", "u:1001:rwx", file], capture_output=True, text=True)
    assert done.returncode != 0
    assert "not supported" in done.stderr
    assert file.stat().st_mode & 0o777 == 0o666


COPYING = (["cp", "-a"], ["cp", "-a", "--preserve=all"], ["rsync", "-aXA"], ["cp", "-p", "-r"])


def test_copying_programs_keep_what_can_be_kept(folder: Path, tmp_path: Path) -> None:
    """They ask for ACLs, see that there are none, and copy modes and attributes, there and back."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(b"content")
    (source / "f").chmod(0o4640)
    try:
        os.setxattr(source / "f", "user.a", b"1")
    except OSError:
        pytest.skip("the disk for temporary files has no user. attributes")
    for number, command in enumerate(COPYING):
        for start, end in ((source, folder / str(number)), (folder / str(number), tmp_path / str(number))):
            done = subprocess.run([*command, f"{start}/.", f"{end}"], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), command
            assert os.listxattr(end / "f") == ([] if "-p" in command else ["user.a"])
            assert (end / "f").stat().st_mode == (source / "f").stat().st_mode
            assert (end / "f").read_bytes() == b"content"


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs setfacl")
def test_a_copy_of_a_file_with_an_acl_says_that_it_is_lost(folder: Path, tmp_path: Path) -> None:
    """As on every file system without ACLs: the file is copied whole, and the program says what it could not keep."""
    source = tmp_path / "f"
    source.write_bytes(b"content")
    source.chmod(0o640)
    if subprocess.run(["setfacl", "-m", "u:1001:rwx", source], capture_output=True).returncode:
        pytest.skip("the disk for temporary files has no ACLs")
    for command in (["cp", "-a"], ["rsync", "-aA"]):
        done = subprocess.run([*command, source, folder / command[0]], capture_output=True, text=True)
        assert done.returncode != 0
        assert "not supported" in done.stderr
        assert (folder / command[0]).read_bytes() == b"content"
    assert subprocess.run(["cp", "-r", source, folder / "plain"]).returncode == 0
