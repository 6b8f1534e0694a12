"""link and unlink: names of one file, counts, content that outlives its last name."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from tests.posix.calls import link_open_file
from tests.posix.kit import Person, failing

KINDS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"content"),
    "fifo": lambda path: os.mkfifo(path),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o644),
    "link": lambda path: path.symlink_to("target"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_one_inode(folder: Path, kind: str) -> None:
    """Whatever name goes first, the others stay; every attribute is the same by all of them."""
    (folder / "d").mkdir()
    names = [folder / "one", folder / "two", folder / "d" / "three"]
    KINDS[kind](names[0])
    for number in (1, 2):
        os.link(names[number - 1], names[number], follow_symlinks=False)
        assert {path.lstat().st_nlink for path in names[: number + 1]} == {number + 1}
    if kind != "link":
        names[1].chmod(0o604)
    os.utime(names[2], ns=(1, 2), follow_symlinks=False)
    assert len({os.lstat(path)[:9] for path in names}) == 1
    for left, path in ((2, names[0]), (1, names[2])):
        path.unlink()
        assert not os.path.lexists(path)
        assert names[1].lstat().st_nlink == left
    if kind == "file":
        assert names[1].read_bytes() == b"content"
    if kind == "link":
        assert os.readlink(names[1]) == "target"


def test_a_thousand_names(folder: Path, shared_mount: Mount) -> None:
    (folder / "0").write_bytes(b"x")
    for number in range(1, 1000):
        os.link(folder / "0", folder / str(number))
    shared_mount.sync()
    assert (folder / "999").stat().st_nlink == 1000
    for number in range(999):
        (folder / str(number)).unlink()
    assert (folder / "999").stat().st_nlink == 1
    assert (folder / "999").read_bytes() == b"x"


def test_what_link_refuses(folder: Path) -> None:
    (folder / "f").touch()
    (folder / "d").mkdir()
    for source, target, code in (
        ("f", "f", errno.EEXIST),
        ("f", "d", errno.EEXIST),
        ("d", "new", errno.EPERM),
        ("missing", "new", errno.ENOENT),
        ("missing", "f", errno.ENOENT),
    ):
        with failing(code):
            os.link(folder / source, folder / target)
    with failing(errno.EXDEV):
        os.link(folder / "f", "/dev/shm/never")
    with (folder / "f").open("rb") as file:
        (folder / "f").unlink()
        with failing(errno.ENOENT):
            link_open_file(file.fileno(), folder / "again")
    assert os.listdir(folder) == ["d"]


def test_what_unlink_refuses(folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "link").symlink_to("d")
    with failing(errno.EISDIR):
        (folder / "d").unlink()
    with failing(errno.ENOENT):
        (folder / "missing").unlink()
    (folder / "link").unlink()
    assert os.listdir(folder) == ["d"]


def test_content_lives_until_it_is_closed(folder: Path, shared_mount: Mount) -> None:
    path = folder / "f"
    content = os.urandom(3_000_000)
    path.write_bytes(content)
    with path.open("r+b") as one, path.open("rb") as two:
        path.unlink()
        shared_mount.sync()
        assert os.fstat(one.fileno()).st_nlink == 0
        path.write_bytes(b"another")
        one.seek(1_500_000)
        one.write(b"written later")
        one.flush()
        two.seek(1_500_000)
        assert two.read(13) == b"written later"
        os.ftruncate(one.fileno(), 100)
        assert os.pread(two.fileno(), 200, 0) == content[:100]
        os.fsync(one.fileno())
        assert os.fstat(two.fileno()).st_size == 100
    assert path.read_bytes() == b"another"


def test_links_to_what_belongs_to_others(common: Path, person: Callable[..., Person]) -> None:
    """Link counts are the file's own: whoever made the name."""
    owner, other = person(1001, 2001), person(1002, 2002)
    owner.put("f", b"mine")
    (common / "f").chmod(0o666)
    other.link("f", "g")
    assert (common / "g").stat().st_uid == 1001
    owner.unlink("f")
    assert other.take("g") == b"mine"
