"""Sticky folders: only who owns the entry or the folder may take the entry away."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.calls import EXCHANGE
from tests.posix.kit import Person, failing

REMOVING = {
    "unlink": lambda user: user.unlink("d/file"),
    "rmdir": lambda user: user.rmdir("d/sub"),
    "rename": lambda user: user.rename("d/file", "d/new"),
    "rename a folder": lambda user: user.rename("d/sub", "d/new"),
    "move away": lambda user: user.rename("d/file", "away"),
    "replace": lambda user: user.rename("mine", "d/file"),
    "exchange": lambda user: user.renameat2("mine", "d/file", EXCHANGE),
}


@pytest.mark.parametrize("operation", REMOVING)
@pytest.mark.parametrize(
    ("folder_owner", "entry_owner", "allowed"),
    [(1001, 1002, True), (1002, 1001, True), (1002, 1002, False), (0, 0, False)],
)
def test_who_may_remove(
    common: Path, person: Callable[..., Person], operation: str, folder_owner: int, entry_owner: int, allowed: bool
) -> None:
    user = person(1001, 2001)
    path = common / "d"
    path.mkdir()
    (path / "file").touch()
    (path / "sub").mkdir()
    user.put("mine", b"mine")
    os.chown(path / "file", entry_owner, -1)
    os.chown(path / "sub", entry_owner, -1)
    os.chown(path, folder_owner, -1)
    path.chmod(0o1777)
    if allowed:
        REMOVING[operation](user)
    else:
        with failing(errno.EPERM, errno.EACCES):
            REMOVING[operation](user)
        assert sorted(os.listdir(path)) == ["file", "sub"]
        path.chmod(0o777)
        REMOVING[operation](user)


def test_making_is_open_to_everybody(common: Path, person: Callable[..., Person]) -> None:
    common.chmod(0o1777)
    person(1001, 2001).mkdir("one", 0o755)
    person(1002, 2002).put("two", b"")
    assert sorted(os.listdir(common)) == ["one", "two"]
