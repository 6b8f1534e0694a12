"""What clears set-user-ID and set-group-ID, and what set-group-ID on a folder hands on."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.kit import Person, needs_root, permissions

CLEARING = {
    "write": lambda user: user.put("f", b"new"),
    "truncate": lambda user: user.truncate("f", 2),
    "grow": lambda user: user.truncate("f", 200),
    "O_TRUNC": lambda user: user.close(user.open("f", os.O_WRONLY | os.O_TRUNC)),
    "append": lambda user: user.append_records("f", b"a", 1, 10),
}


@pytest.mark.parametrize("change", CLEARING)
@pytest.mark.parametrize(("mode", "left"), [(0o6777, 0o777), (0o4777, 0o777), (0o2766, 0o2766), (0o4666, 0o666)])
@pytest.mark.parametrize("uid", [1001, 1002])
def test_a_change_of_content_by_a_user(
    folder: Path, person: Callable[..., Person], change: str, mode: int, left: int, uid: int
) -> None:
    user = person(uid, 2001)
    path = folder / "f"
    path.write_bytes(b"content")
    os.chown(path, 1001, 2001)
    path.chmod(mode)
    CLEARING[change](user)
    assert permissions(path) == left


@needs_root
def test_capabilities_of_a_program_go_with_a_change_of_its_content(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"program")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(path, "security.capability", capability)
    assert os.getxattr(path, "security.capability")
    path.write_bytes(b"another")
    assert "security.capability" not in os.listxattr(path)


@needs_root
def test_a_folder_with_set_group_id_hands_its_group_on(folder: Path) -> None:
    path = folder / "d"
    path.mkdir()
    os.chown(path, -1, 2005)
    path.chmod(0o2775)
    (path / "file").touch()
    (path / "sub").mkdir(0o755)
    os.mkfifo(path / "fifo")
    (path / "link").symlink_to("x")
    os.mknod(path / "socket", stat.S_IFSOCK | 0o600)
    assert {each.lstat().st_gid for each in path.iterdir()} == {2005}
    assert permissions(path / "sub") == 0o2755
    (path / "sub" / "deeper").mkdir()
    assert (path / "sub" / "deeper").stat().st_gid == 2005
    path.chmod(0o775)
    (path / "later").touch()
    assert (path / "later").stat().st_gid == os.getegid()


@pytest.mark.parametrize(("groups", "kept"), [((), False), ((2005,), True)])
def test_set_group_id_of_a_new_file_needs_membership(
    folder: Path, person: Callable[..., Person], groups: tuple[int, ...], kept: bool
) -> None:
    """In a folder that hands on its group, nobody gets a program that runs as a group he is not in."""
    user = person(1001, 2001, *groups)
    path = folder / "d"
    path.mkdir()
    os.chown(path, -1, 2005)
    path.chmod(0o2777)
    user.close(user.open("d/f", os.O_CREAT | os.O_WRONLY, 0o2775))
    user.mkdir("d/sub", 0o775)
    assert (path / "f").stat().st_gid == 2005
    assert permissions(path / "f") == (0o2775 if kept else 0o775)
    assert permissions(path / "sub") == 0o2775
