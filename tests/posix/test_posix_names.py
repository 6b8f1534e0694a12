"""Names and paths: any bytes, their greatest length, what is not a folder, loops."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.kit import failing

PATH_MAX = 4096
OPERATIONS: dict[str, Callable[[str, str], object]] = {
    "open": lambda path, other: os.open(path, os.O_RDONLY),
    "create": lambda path, other: os.open(path, os.O_CREAT | os.O_WRONLY),
    "stat": lambda path, other: os.stat(path),
    "mkdir": lambda path, other: os.mkdir(path),
    "rmdir": lambda path, other: os.rmdir(path),
    "mkfifo": lambda path, other: os.mkfifo(path),
    "unlink": lambda path, other: os.unlink(path),
    "link to": lambda path, other: os.link(other, path),
    "link from": lambda path, other: os.link(path, other + "new"),
    "rename to": lambda path, other: os.rename(other, path),
    "rename from": lambda path, other: os.rename(path, other),
    "symlink": lambda path, other: os.symlink("x", path),
    "readlink": lambda path, other: os.readlink(path),
    "chmod": lambda path, other: os.chmod(path, 0o600),
    "chown": lambda path, other: os.chown(path, -1, os.getegid()),
    "truncate": lambda path, other: os.truncate(path, 0),
    "utime": lambda path, other: os.utime(path),
    "setxattr": lambda path, other: os.setxattr(path, "user.a", b""),
}
MAKING = {"create", "mkdir", "mkfifo", "symlink", "link to", "rename to"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_refuses_what_cannot_be_a_path(folder: Path, name: str) -> None:
    attempt = OPERATIONS[name]
    other = str(folder / "other")
    (folder / "other").touch()
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")
    with failing(errno.ENAMETOOLONG):
        attempt(f"{folder}/{'n' * 256}", other)
    with failing(errno.ENAMETOOLONG):
        attempt(f"{folder}/{'./' * PATH_MAX}x", other)
    with failing(errno.ENOTDIR):
        attempt(f"{folder}/file/below", other)
    with failing(errno.ELOOP):
        attempt(f"{folder}/loop/below", other)
    with failing(errno.ENOENT):
        attempt(f"{folder}/missing/below", other)
    with failing(errno.ENOENT):
        attempt("", other)
    if name not in MAKING:
        with failing(errno.ENOENT):
            attempt(f"{folder}/missing", other)
    assert sorted(os.listdir(folder)) == ["file", "loop", "other"]


def test_every_byte_but_slash_and_nul(folder: Path) -> None:
    top = os.fsencode(folder)
    names = {bytes([number]) for number in range(1, 256)} - {b"/", b"."}
    names |= {b"..." + bytes([number]) for number in (1, 10, 0x7F, 0x80, 0xC0, 0xFF)} | {b"a/b".replace(b"/", b"\\")}
    for name in names:
        os.mkdir(top + b"/" + name)
    assert set(os.listdir(top)) == names
    for name in names:
        os.rmdir(top + b"/" + name)
    assert os.listdir(top) == []


def test_names_that_look_alike_are_different(folder: Path) -> None:
    """Upper and lower case, composed and decomposed letters, a name that is no UTF-8."""
    top = os.fsencode(folder)
    names = {b"a", b"A", "\u00e9".encode(), "e\u0301".encode(), b"\xe9", b"a ", b" a", b"a.", b"CON"}
    for number, name in enumerate(sorted(names)):
        with open(os.path.join(top, name), "wb") as file:
            file.write(b"%d" % number)
    assert set(os.listdir(top)) == names
    for number, name in enumerate(sorted(names)):
        with open(os.path.join(top, name), "rb") as file:
            assert file.read() == b"%d" % number


@pytest.mark.parametrize("name", [b"n" * 255, b"\xff" * 255, "\U0001f991".encode() * 63 + b"abc"])
def test_255_bytes(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)
    os.mkdir(path)
    os.rename(path, path[:-1])
    assert os.listdir(os.fsencode(folder)) == [name[:-1]]
    os.rmdir(path[:-1])


def test_the_longest_path(folder: Path) -> None:
    """4095 bytes and the NUL are a path; one more is none."""
    at = str(folder)
    while len(at) + 251 < PATH_MAX - 1:
        at += "/" + "d" * 200
        os.mkdir(at)
    longest = at + "/" + "f" * (PATH_MAX - 1 - len(at) - 1)
    assert len(longest) == PATH_MAX - 1
    Path(longest).write_bytes(b"deep")
    assert Path(longest).read_bytes() == b"deep"
    os.chmod(longest, 0o600)
    os.unlink(longest)
    with failing(errno.ENAMETOOLONG):
        os.open(longest + "f", os.O_CREAT | os.O_WRONLY)


def test_dots(folder: Path) -> None:
    (folder / "d" / "e").mkdir(parents=True)
    for name in (".", ".."):
        path = f"{folder}/d/{name}"
        for attempt in (os.mkdir, os.rmdir, os.unlink, lambda path: os.rename(path, folder / "new")):
            with failing(errno.EEXIST, errno.EINVAL, errno.ENOTEMPTY, errno.EISDIR, errno.EBUSY):
                attempt(path)
        with failing(errno.EEXIST, errno.EINVAL, errno.ENOTEMPTY, errno.EISDIR, errno.EBUSY):
            os.rename(folder / "d" / "e", path)
    assert os.stat(f"{folder}/d/..").st_ino == folder.stat().st_ino
    assert os.stat(f"{folder}/d/.").st_ino == (folder / "d").stat().st_ino
    assert os.listdir(folder) == ["d"]


def test_a_slash_at_the_end(folder: Path) -> None:
    (folder / "f").touch()
    for attempt in (os.stat, os.unlink, lambda path: os.rename(path, folder / "g")):
        with failing(errno.ENOTDIR):
            attempt(f"{folder}/f/")
    os.mkdir(f"{folder}/d/")
    os.rename(f"{folder}/d/", f"{folder}/e/")
    os.rmdir(f"{folder}/e/")
    with failing(errno.EISDIR):
        os.open(f"{folder}/new/", os.O_CREAT | os.O_WRONLY)
