"""Mounts that come, go, are killed and stopped beside others."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount, NewMount, new_mount
from tests.shared.mounts import MARKS, names, refused, sessions, until

__all__ = ["new_mount"]

pytestmark = MARKS

LEASE_SECONDS = 2.0
Pair = tuple[Mount, Mount]


@pytest.fixture
def pair(new_mount: NewMount) -> Pair:
    one = new_mount()
    return one, one.another()


def test_a_log_that_was_opened_before_the_other_mount_came(new_mount: NewMount) -> None:
    one = new_mount()
    with open(one.path / "log", "ab", buffering=0) as mine:
        mine.write(b"1 alone\n")
        other = one.another()
        for number in range(10):
            with open(other.path / "log", "ab", buffering=0) as theirs:
                theirs.write(b"%d theirs\n" % number)
            mine.write(b"%d mine\n" % number)
    expected = b"1 alone\n" + b"".join(b"%d theirs\n%d mine\n" % (number, number) for number in range(10))
    assert (one.path / "log").read_bytes() == expected
    assert (other.path / "log").read_bytes() == expected


def test_commands_work_beside_a_mount(new_mount: NewMount, tmp_path: Path) -> None:
    mount = new_mount()
    (tmp_path / "local").write_bytes(b"from outside" * 1000)
    (mount.path / "mine").write_bytes(b"from the mount")
    assert not (mount.path / "put").exists()
    mount.cli("put", str(tmp_path / "local"), "/put")
    until((mount.path / "put").exists)
    assert (mount.path / "put").read_bytes() == b"from outside" * 1000
    mount.cli("get", "/mine", str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == b"from the mount"
    mount.cli("mv", "/mine", "/yours")
    mount.cli("mkdir", "/folder")
    until(lambda: names(mount.path) == ["folder", "put", "yours"])
    mount.cli("rm", "-r", "/folder", "/put")
    until(lambda: names(mount.path) == ["yours"])
    until(lambda: [(s.shared, s.kind) for s in sessions(mount)] == [(False, "mount")])


def test_the_first_one_works_alone_again_when_the_second_has_gone(pair: Pair) -> None:
    one, other = pair
    until(lambda: [session.shared for session in sessions(one)] == [True, True])
    (other.path / "f").write_bytes(b"theirs")
    other.unmount()
    until(lambda: [session.shared for session in sessions(one)] == [False])
    assert (one.path / "f").read_bytes() == b"theirs"
    (one.path / "f").write_bytes(b"mine")
    other.mount()
    assert (other.path / "f").read_bytes() == b"mine"


def test_what_was_written_alone_is_there_for_a_newcomer(new_mount: NewMount) -> None:
    one = new_mount(settings={"namespace": {"commit_interval_seconds": 3600.0}})
    for number in range(50):
        (one.path / f"f{number}").write_bytes(b"%d" % number * 500)
    with open(one.path / "open", "wb", buffering=0) as file:
        file.write(b"written, not closed")
        other = one.another()
        assert (other.path / "f49").read_bytes() == b"49" * 500
        assert len(names(other.path)) == 51
        assert (other.path / "open").read_bytes() == b"written, not closed"


def test_status_says_who_shares(pair: Pair) -> None:
    one, other = pair
    (other.path / "f").touch()
    until(lambda: all(session.stream == "healthy" for session in sessions(one)))
    text = one.cli("status").stdout
    assert text.count("shared") >= 2
    assert str(one.path) in text
    assert str(other.path) in text
    refused = one.cli("sessions", "--fence", "1", check=False)
    assert refused.returncode == 2
    assert "is alive" in refused.stderr
    assert one.cli("sessions", "--fence", "99", check=False).returncode == 2


def test_a_mount_that_was_killed_holds_up_nobody(pair: Pair) -> None:
    one, other = pair
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            (other.path / f"f{number}").write_bytes(b"%d" % number * 100)
            number += 1

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        until((one.path / "f5").exists)
        other.kill()
        stop.set()
        assert isinstance(working.exception(), OSError)
    (one.path / "mine").write_bytes(b"goes on")
    until(lambda: [session.shared for session in sessions(one)] == [False])
    numbers = sorted(int(name[1:]) for name in names(one.path) if name != "mine")
    assert numbers == list(range(len(numbers)))
    for number in numbers[:-1]:  # the last one may not have been closed
        assert (one.path / f"f{number}").read_bytes() == b"%d" % number * 100
    other.mount()
    assert (other.path / "mine").read_bytes() == b"goes on"
    (other.path / "mine").write_bytes(b"again")
    assert (one.path / "mine").read_bytes() == b"again"


@pytest.fixture
def stopped(new_mount: NewMount) -> Iterator[Pair]:
    """Short leases; the second one is continued, whatever happens."""
    one = new_mount(settings={"namespace": {"lease_seconds": LEASE_SECONDS, "commit_interval_seconds": 3600.0}})
    other = one.another()
    yield one, other
    if other.pid:
        other.signal(signal.SIGCONT)


def shows_what_is_stored(one: Mount, dead: Mount) -> None:
    """However often *one*, which is alone and commits when it is asked to, changes f, and renames g."""
    for number in range(3):
        (one.path / "f").write_bytes(b"after%d" % number * 2000)
        os.rename(one.path / "g", one.path / "h")
        sync(one)
        until(lambda: names(dead.path) == ["f", "h"])
        assert not (dead.path / "g").exists()
        assert (dead.path / "f").read_bytes() == b"after%d" % number * 2000
        os.rename(one.path / "h", one.path / "g")
        sync(one)
        until((dead.path / "g").exists)
    (one.path / "f").write_bytes(b"after" * 2000)


def sync(mount: Mount) -> None:
    descriptor = os.open(mount.path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_a_mount_that_was_stopped_beyond_its_lease_is_fenced(stopped: Pair) -> None:
    one, other = stopped
    other.expect_log("declared this one dead|cannot be stored|not everything could be stored")
    other.expect_leaks()
    (other.path / "f").write_bytes(b"before" * 2000)
    descriptor = os.open(other.path / "f", os.O_RDWR)
    os.pwrite(descriptor, b"late", 0)
    other.signal(signal.SIGSTOP)
    until(lambda: [session.where for session in sessions(one)] == [str(one.path)])
    (one.path / "f").write_bytes(b"after" * 2000)
    (one.path / "g").touch()
    other.signal(signal.SIGCONT)
    assert refused(lambda: os.fsync(descriptor))
    assert refused(lambda: os.close(descriptor))
    assert refused((other.path / "new").touch)
    assert other.log_text().count("cannot be stored and are refused") == 1
    assert (one.path / "f").read_bytes() == b"after" * 2000
    shows_what_is_stored(one, other)
    subprocess.run(["umount", str(other.path)], check=True)
    assert other.wait() == 1
    other.mount()
    assert (other.path / "f").read_bytes() == b"after" * 2000
    assert names(other.path) == ["f", "g"]


def test_an_idle_mount_that_was_stopped_finds_out_too(stopped: Pair) -> None:
    one, other = stopped
    other.expect_log("declared this one dead|cannot be stored|not everything could be stored")
    other.signal(signal.SIGSTOP)
    until(lambda: [session.where for session in sessions(one)] == [str(one.path)])
    (one.path / "new").touch()
    other.signal(signal.SIGCONT)
    until(lambda: "declared this one dead" in other.log_text())
    assert refused((other.path / "mine").touch)


def test_a_pause_within_the_lease_changes_nothing(pair: Pair) -> None:
    one, other = pair
    (other.path / "f").write_bytes(b"before")
    other.signal(signal.SIGSTOP)
    (one.path / "f").write_bytes(b"meanwhile")
    time.sleep(0.5)
    other.signal(signal.SIGCONT)
    assert (other.path / "f").read_bytes() == b"meanwhile"
    (other.path / "f").write_bytes(b"after")
    assert (one.path / "f").read_bytes() == b"after"
