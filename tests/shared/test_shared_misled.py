"""Calls by names that another mount has just given to something else, or made: the kernel has to look again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount, NewMount, new_mount
from tests.shared.mounts import MARKS, names, until

__all__ = ["new_mount"]

pytestmark = MARKS

SOMEBODY = 65534
OPEN = """
import os, sys
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
try:
    descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
except OSError as error:
    sys.exit(f"{error.strerror}")
os.write(descriptor, b"mine")
"""
RMDIR = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
os.rmdir(sys.argv[1])
"""
HOLD = """
import sys
with open(sys.argv[1], "a") as file:
    print("ready", flush=True)
    sys.stdin.read()
    file.write(", end")
"""


@contextmanager
def under_way(mount: Mount, folder: Path, program: str, *arguments: str, said: str = "") -> Iterator[None]:
    """*program*, which works in *folder*, has asked *mount* for something, which is answered after the block."""
    command = [sys.executable, "-c", program, *arguments]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=folder)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    mount.signal(signal.SIGSTOP)
    try:
        child.stdin.write("\n")
        child.stdin.flush()
        until(lambda: "fuse" in Path(f"/proc/{child.pid}/stack").read_text())
        yield
    finally:
        mount.signal(signal.SIGCONT)
    assert child.communicate(timeout=30)[1].strip().endswith(said)
    assert child.returncode == bool(said)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("kind", ["secret", "fifo", "folder", "link", "public", "absent"])
def test_who_may_open_what_another_mount_has_just_made_is_looked_at(new_mount: NewMount, kind: str) -> None:
    """open(2) with O_CREAT. The kernel asks to make it, and would take what it is answered for made by the caller."""
    one = new_mount(words="allow_other")
    other = one.another()
    folder = other.path / "folder"
    folder.mkdir()
    folder.chmod(0o777)
    until((one.path / "folder").exists)
    made = folder / "made"
    (folder / "there").touch()
    (folder / "there").chmod(0o666)
    assert not (one.path / "folder" / "made").exists()
    refusals = {"secret": "Permission denied", "fifo": "Permission denied", "folder": "Is a directory"}
    with under_way(one, one.path / "folder", OPEN, "made", str(SOMEBODY), said=refusals.get(kind, "")):
        if kind == "fifo":
            os.mkfifo(made, 0o600)
        elif kind == "folder":
            made.mkdir()
        elif kind == "link":
            made.symlink_to("there")
        elif kind != "absent":
            made.write_text("secret")
            made.chmod(0o600 if kind == "secret" else 0o666)
    expected = {"secret": "secret", "link": "mine", "public": "mineet", "absent": "mine"}
    if kind in expected:
        until(lambda: made.read_text() == expected[kind])
        assert made.stat().st_uid == (SOMEBODY if kind == "absent" else 0)


def test_a_folder_that_is_removed_is_the_one_that_the_kernel_believes_in(new_mount: NewMount) -> None:
    """Otherwise the kernel takes the other one, which is in use, for removed: nothing more can be done in it."""
    one = new_mount()
    other = one.another()
    (other.path / "n").mkdir()
    (other.path / "n" / "inner").mkdir()
    (other.path / "n" / "log").write_text("begin")
    until((one.path / "n" / "log").exists)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(one.path / "n" / "log")]
    holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        with under_way(one, one.path, RMDIR, "n"):
            os.rename(other.path / "n", other.path / "m")
            (other.path / "n").mkdir()
        until((one.path / "m").exists)
        until(lambda: names(other.path) == ["m"])
        assert names(one.path / "m") == ["inner", "log"]
        (one.path / "m" / "new").touch()
    finally:
        holder.communicate(timeout=30)
    assert (one.path / "m" / "log").read_text() == "begin, end"
    until((other.path / "m" / "new").exists)
