"""Renames of names that another mount has just given away: the kernel moves what it took the name for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from flakefs.fuse.kernel import RENAMES
from flakefs.testing.mounted import Mount, NewMount, new_mount
from tests.shared.mounts import MARKS, names, together, until

__all__ = ["new_mount"]

pytestmark = MARKS

RENAME = """
import ctypes, os, sys
flags, old, new = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), int(flags)):
    sys.exit(os.strerror(ctypes.get_errno()))
"""
RACE = """
import ctypes, sys
flags = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
for number in range(30 if flags == 0 else 120):
    old, new = b"a%d" % (number % 30), b"b%d" % (number % 30)
    print(ctypes.get_errno() if libc.renameat2(-100, old, -100, new, flags) else 0)
"""
EXCHANGE = 2
SEES_RENAMES = pytest.mark.skipif(
    os.geteuid() != 0 or not RENAMES, reason="as a rule only root sees that a thread renames"
)


@pytest.fixture
def two(new_mount: NewMount) -> tuple[Mount, Mount]:
    one = new_mount()
    return one, one.another()


@contextmanager
def under_way(mount: Mount, old: Path, new: Path, flags: int = 0, status: int = 0) -> Iterator[None]:
    """A rename that the kernel has asked *mount* for, and that is answered after the block."""
    mount.signal(signal.SIGSTOP)
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", RENAME, str(flags), str(old), str(new)], stderr=subprocess.PIPE, text=True
        )
        until(lambda: "fuse" in Path(f"/proc/{child.pid}/stack").read_text())
        yield
    finally:
        mount.signal(signal.SIGCONT)
    said = child.communicate(timeout=30)[1]
    assert child.returncode == status, said
    assert status == 0 or "No such file" in said


def contents(mount: Mount) -> dict[str, str]:
    return {name: (mount.path / name).read_text() for name in names(mount.path)}


def shows(mount: Mount, expected: dict[str, str]) -> bool:
    return contents(mount) == expected


def check(mounts: tuple[Mount, Mount], expected: dict[str, str]) -> None:
    for mount in mounts:
        until(partial(shows, mount, expected))


@pytest.mark.parametrize("seen", [True, False], ids=["both-names-seen", "one-name-seen"])
def test_a_name_leads_to_another_file_when_the_rename_arrives(two: tuple[Mount, Mount], seen: bool) -> None:
    one, other = two
    (one.path / "c").write_text("old")
    until((other.path / "c").exists)
    if seen:
        assert not (other.path / "a").exists()
    with under_way(other, other.path / "c", other.path / "a"):
        os.rename(one.path / "c", one.path / "b")
        (one.path / "c").write_text("new")
    assert (other.path / "b").read_text() == "old"
    os.rename(other.path / "a", other.path / "b")  # not two names of one file, as the kernel may believe
    check(two, {"b": "new"})
    assert (other.path / "b").stat().st_nlink == 1


def test_an_exchange_of_names_that_lead_elsewhere(two: tuple[Mount, Mount]) -> None:
    one, other = two
    for name in ("a", "b", "c"):
        (one.path / name).write_text(name)
        until((other.path / name).exists)
    with under_way(other, other.path / "a", other.path / "b", EXCHANGE):
        os.rename(one.path / "b", one.path / "d")
        os.rename(one.path / "c", one.path / "b")
    assert contents(other) == {"a": "c", "b": "a", "d": "b"}
    os.rename(other.path / "a", other.path / "d")
    check(two, {"b": "a", "d": "c"})


def test_a_name_that_is_gone_when_the_rename_arrives(two: tuple[Mount, Mount]) -> None:
    one, other = two
    (one.path / "c").write_text("old")
    until((other.path / "c").exists)
    with under_way(other, other.path / "c", other.path / "a", status=1):
        os.unlink(one.path / "c")
    assert not (other.path / "a").exists()
    check(two, {})


def test_a_name_given_away_before_it_was_shared(new_mount: NewMount) -> None:
    """What the kernel was told while alone is not written down: it is asked to look again, and nobody notices."""
    one = new_mount()
    (one.path / "c").write_text("old")
    (one.path / "folder").mkdir()
    (one.path / "folder" / "f").write_text("f")
    other = one.another()
    os.rename(one.path / "c", one.path / "a")
    os.rename(one.path / "folder", one.path / "moved")
    os.rename(one.path / "moved" / "f", one.path / "f")
    until(lambda: names(other.path) == ["a", "f", "moved"])
    assert (other.path / "a").read_text() == "old"


def make(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "symlink":
        os.symlink(path.name, path)
    else:
        path.write_text(path.name)


@SEES_RENAMES
@pytest.mark.parametrize("over", [False, True], ids=["absent", "over"])
@pytest.mark.parametrize("kind", ["file", "linked", "symlink", "folder"])
def test_si1_the_same_rename_is_made_once(two: tuple[Mount, Mount], kind: str, over: bool) -> None:
    """The new name is asked for while the kernel takes the old one for the same file, and holds the folder. What it
    holds by the new name it looks up twice.
    """
    one, other = two
    make(one.path / "a", kind)
    if kind == "linked":
        os.link(one.path / "a", one.path / "c")
    make(one.path / "b", kind)
    until(lambda: {"a", "b"} <= set(names(other.path)))
    (other.path / "a").lstat()
    if over:
        (other.path / "b").lstat()
    else:
        (one.path / "b").rmdir() if kind == "folder" else (one.path / "b").unlink()
        until(lambda: "b" not in names(other.path))
    with under_way(other, other.path / "a", other.path / "b", status=1):  # asks for b: the store is asked for it now
        os.rename(one.path / "a", one.path / "b")
    for mount in two:
        until(lambda mount=mount: names(mount.path) == (["b", "c"] if kind == "linked" else ["b"]))  # type: ignore[misc]
        os.rename(mount.path / "b", mount.path / "a")
        os.rename(mount.path / "a", mount.path / "b")


@SEES_RENAMES
@pytest.mark.parametrize("kind", ["file", "linked", "symlink", "folder"])
def test_si1_the_same_exchange_is_made_twice(two: tuple[Mount, Mount], kind: str) -> None:
    one, other = two
    for name in "ab":
        make(one.path / name, kind)
        if kind == "linked":
            os.link(one.path / name, one.path / f"{name}2")
        until(lambda name=name: os.path.lexists(other.path / name))  # type: ignore[misc]
    assert not (other.path / "last").exists()
    for old, new in ("bc", "cb"):  # what is held by the name b is dropped
        os.rename(one.path / old, one.path / new)
    (one.path / "last").touch()
    until((other.path / "last").exists)
    with under_way(other, other.path / "a", other.path / "b", EXCHANGE):  # asks for b
        before = [(one.path / name).lstat().st_ino for name in "ab"]
        exchange(one.path / "a", one.path / "b")
        assert [(one.path / name).lstat().st_ino for name in "ba"] == before
    for mount in (other, one):
        until(lambda mount=mount: [(mount.path / name).lstat().st_ino for name in "ab"] == before)  # type: ignore[misc]
    os.rename(other.path / "a", other.path / "d")
    assert (other.path / "d").lstat().st_ino == before[0]


def exchange(old: Path, new: Path) -> None:
    subprocess.run([sys.executable, "-c", RENAME, str(EXCHANGE), str(old), str(new)], check=True)


@SEES_RENAMES
@pytest.mark.parametrize("flags", [0, EXCHANGE], ids=["over", "exchange"])
def test_si1_racing_renames_agree_on_what_they_did(two: tuple[Mount, Mount], flags: int) -> None:
    """Nobody is told ESTALE, and each success was one: of a rename over a name there is one in each round, and the
    exchanges that were made say which file has which name now.
    """
    one, other = two
    (one.path / "d").mkdir()
    for number in range(30):
        for name in "ab":
            (one.path / "d" / f"{name}{number}").write_text(name)
    until(lambda: len(names(other.path / "d")) == 60)
    counts = [0] * 30
    race = [sys.executable, "-c", RACE, str(flags)]
    processes = [
        subprocess.Popen(race, cwd=mount.path / "d", stdout=subprocess.PIPE, text=True)
        for mount in two
        for _ in range(2)
    ]
    for process in processes:
        results = process.communicate(timeout=100)[0].split()
        assert set(results) <= {"0", "2"}, "ENOENT at most"
        for number, result in enumerate(results):
            counts[number % 30] += result == "0"
    if flags:
        found = [(other.path / "d" / f"a{number}").read_text() for number in range(30)]
        assert found == ["ab"[count % 2] for count in counts]
    else:
        assert counts == [1] * 30


@SEES_RENAMES
def test_si1_one_of_two_at_once_makes_it(two: tuple[Mount, Mount]) -> None:
    """The file is new to the other mount: news of that may come in between, and the first refusal with it."""
    one, other = two
    for number in range(40):
        old, new = f"a{number}", f"b{number}"
        (one.path / old).write_text("a")
        until((other.path / old).exists)
        results = together(*(partial(os.rename, mount.path / old, mount.path / new) for mount in two))
        assert sorted(results, key=str) == ["ENOENT", None]
    until(lambda: len(names(other.path)) == 40)


def test_si1_two_names_of_a_file_are_no_rename(two: tuple[Mount, Mount]) -> None:
    """R3: it is refused once at most, which nobody sees."""
    one, other = two
    (one.path / "a").write_text("a")
    os.link(one.path / "a", one.path / "b")
    until(lambda: names(other.path) == ["a", "b"])
    for mount in (one, other):
        for _ in range(3):
            os.rename(mount.path / "a", mount.path / "b")
            os.rename(mount.path / "b", mount.path / "a")
        check(two, {"a": "a", "b": "a"})


@pytest.mark.parametrize("seen", [True, False], ids=["both-names-seen", "one-name-seen"])
def test_k7_a_file_is_cut_off_by_the_name_that_it_has_now(two: tuple[Mount, Mount], seen: bool) -> None:
    """truncate(2) by a name that was given to another file. ftruncate(2) means the open one, and is never refused."""
    one, other = two
    (one.path / "a").write_text("old")
    until((other.path / "a").exists)
    with open(other.path / "a", "r+") as file:
        assert file.read() == "old"
        other.signal(signal.SIGSTOP)
        try:
            os.rename(one.path / "a", one.path / "b")
            (one.path / "a").write_text("newer")
        finally:
            other.signal(signal.SIGCONT)
        if seen:
            until((other.path / "b").exists)
        os.truncate(other.path / "a", 1)
        check(two, {"a": "n", "b": "old"})
        os.ftruncate(file.fileno(), 2)
        os.fchmod(file.fileno(), 0o600)
    check(two, {"a": "n", "b": "ol"})


WITHOUT_REST = """
import os, sys
number = 0
while not os.path.exists("done"):
    try:
        exec(sys.argv[1])
        number += 1
    except FileNotFoundError:
        pass
"""
SAVE = "own = f'.{os.getpid()}'; open(own, 'w').close(); os.rename(own, 'f')"
READ = "open('f').close()"
ROTATE = "os.rename('f', f'g{number}')"


def test_to1_a_name_that_is_looked_up_once_more_while_a_rename_is_under_way(two: tuple[Mount, Mount]) -> None:
    """Looking a known name up again waits for no rename of it: what is found then is not what the kernel moves."""
    one, other = two

    def run(mount: Mount, program: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WITHOUT_REST, program], cwd=mount.path)

    children = [run(one, SAVE), run(one, READ), *(run(other, program) for program in (SAVE, READ, READ, ROTATE))]
    try:
        until((other.path / "g70").exists)
    finally:
        (one.path / "done").touch()
        statuses = [child.wait(timeout=30) for child in children]
    assert statuses == [0] * len(children)

    def same(name: str) -> bool:
        return (one.path / name).stat().st_ino == (other.path / name).stat().st_ino

    for name in names(one.path):
        until(partial(same, name))
