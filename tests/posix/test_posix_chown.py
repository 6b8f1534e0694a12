"""chown: numbers as they are, who may, set-user-ID and set-group-ID go."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.kit import Person, failing, needs_root, permissions

LARGEST = 2**32 - 2


def owner_of(path: Path) -> tuple[int, int]:
    facts = path.lstat()
    return facts.st_uid, facts.st_gid


@needs_root
@pytest.mark.parametrize("numbers", [(0, 0), (12345, 54321), (LARGEST, LARGEST)])
def test_numbers_are_shown_as_they_were_set(folder: Path, numbers: tuple[int, int]) -> None:
    path = folder / "f"
    path.touch()
    os.chown(path, *numbers)
    assert owner_of(path) == numbers
    os.chown(path, -1, -1)
    assert owner_of(path) == numbers
    os.chown(path, 7, -1)
    os.chown(path, -1, 8)
    assert owner_of(path) == (7, 8)


@needs_root
def test_the_link_itself_or_what_it_points_to(folder: Path) -> None:
    path, link = folder / "f", folder / "link"
    path.touch()
    link.symlink_to("f")
    os.lchown(link, 5, 6)
    os.chown(link, 7, 8)
    assert owner_of(link) == (5, 6)
    assert owner_of(path) == (7, 8)


def test_an_owner_may_only_give_to_a_group_of_his(folder: Path, person: Callable[..., Person]) -> None:
    path = folder / "f"
    path.touch()
    os.chown(path, 1001, 2001)
    owner = person(1001, 2001, 2005)
    owner.chown("f", -1, 2005)
    assert owner_of(path) == (1001, 2005)
    owner.chown("f", 1001, 2001)
    assert owner_of(path) == (1001, 2001)
    for uid, gid in ((-1, 2006), (1002, -1), (0, 2001)):
        with failing(errno.EPERM):
            owner.chown("f", uid, gid)
    with failing(errno.EPERM):
        person(1002, 2001).chown("f", -1, 2001)
    assert owner_of(path) == (1001, 2001)


@pytest.mark.parametrize(
    ("mode", "left"), [(0o6755, 0o755), (0o4755, 0o755), (0o6711, 0o711), (0o2745, 0o2745), (0o4644, 0o644)]
)
@pytest.mark.parametrize("by_root", [True, False])
def test_set_id_bits_go(folder: Path, person: Callable[..., Person], mode: int, left: int, by_root: bool) -> None:
    """Set-group-ID stays where the group may not execute: it means something else there."""
    owner = person(1001, 2001, 2005)
    path = folder / "f"
    path.touch()
    os.chown(path, 1001, 2001)
    path.chmod(mode)
    if by_root:
        os.chown(path, 1002, 2005)
    else:
        owner.chown("f", -1, 2005)
    assert permissions(path) == left


@needs_root
def test_folders_keep_theirs(folder: Path) -> None:
    path = folder / "d"
    path.mkdir()
    path.chmod(0o6775)
    os.chown(path, 1001, 2001)
    assert permissions(path) == 0o6775


def test_the_owner_of_an_open_file_without_a_name(folder: Path, person: Callable[..., Person]) -> None:
    person()
    with (folder / "f").open("wb") as file:
        (folder / "f").unlink()
        os.fchown(file.fileno(), 1001, 2001)
        facts = os.fstat(file.fileno())
    assert (facts.st_uid, facts.st_gid, facts.st_nlink) == (1001, 2001, 0)
