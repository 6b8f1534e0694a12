"""chmod: every bit, who may, and set-group-ID by somebody outside the group."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.kit import Person, failing, permissions


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "socket"])
@pytest.mark.parametrize("mode", [0, 0o111, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o7777])
def test_every_bit_is_kept(folder: Path, kind: str, mode: int) -> None:
    path = folder / "it"
    if kind == "folder":
        path.mkdir()
    else:
        types = {"file": stat.S_IFREG, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}
        os.mknod(path, types[kind] | 0o600)
    before = stat.S_IFMT(path.stat().st_mode)
    path.chmod(mode)
    assert path.stat().st_mode == before | mode


def test_through_a_link_and_an_open_file(folder: Path) -> None:
    path, link = folder / "f", folder / "link"
    path.touch(0o600)
    link.symlink_to("f")
    link.chmod(0o640)
    assert permissions(path) == 0o640
    assert permissions(link) == 0o777
    with path.open("rb") as file:
        path.unlink()
        os.fchmod(file.fileno(), 0o604)
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o604


def test_only_the_owner_may(folder: Path, person: Callable[..., Person]) -> None:
    path = folder / "f"
    path.touch()
    os.chown(path, 1001, 2001)
    person(1001, 2001).chmod("f", 0o640)
    assert permissions(path) == 0o640
    with failing(errno.EPERM):
        person(1002, 2001).chmod("f", 0o777)
    assert permissions(path) == 0o640


@pytest.mark.parametrize(("groups", "kept"), [((), False), ((2005,), True)])
def test_set_group_id_needs_membership(
    folder: Path, person: Callable[..., Person], groups: tuple[int, ...], kept: bool
) -> None:
    """The file's group is 2005: not the owner's own one; a supplementary one counts."""
    (folder / "f").touch()
    (folder / "d").mkdir()
    owner = person(1001, 2001, *groups)
    for name in ("f", "d"):
        os.chown(folder / name, 1001, 2005)
        owner.chmod(name, 0o2755)
        assert permissions(folder / name) == (0o2755 if kept else 0o755)


def test_sticky_on_files_and_folders_by_their_owner(folder: Path, person: Callable[..., Person]) -> None:
    (folder / "f").touch()
    (folder / "d").mkdir()
    for name in ("f", "d"):
        os.chown(folder / name, 1001, 2001)
        person(1001, 2001).chmod(name, 0o1755)
        assert permissions(folder / name) == 0o1755
