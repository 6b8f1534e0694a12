"""Mounts that hear nothing of what others change for a while: what they knew is not believed, and open() shows what is.

The stream is cut by the server (a fail point for its application name, so that everything else goes on), by stopping
the process, and by an oplog that does not reach back to where the stream was (tests/run-long oplog).
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from flakefs.mongo.stream import SILENCE_SECONDS
from flakefs.testing.mounted import Mount, NewMount, new_mount
from flakefs.testing.servers import Servers, TestServer
from tests.shared.mounts import MARKS, names, sessions, until

__all__ = ["new_mount"]

pytestmark = MARKS

LEASE_SECONDS = 60.0
HISTORY_LOST = 286
NOT_PRIMARY = 10107
MB = 1 << 20
SETTINGS = {"namespace": {"lease_seconds": LEASE_SECONDS}}
"""Nobody who is stopped for some seconds is declared dead."""
BEATING = {"namespace": {"lease_seconds": 6.0}}
"""The state of the stream is told with each heartbeat."""


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """In place of the shared ones, for new_mount too: other tests are not to feel this."""
    with Servers() as running:
        running.server("metadata", replica_set=True, more=("--setParameter", "enableTestCommands=1"))
        yield running


@contextmanager
def no_news(server: TestServer, code: int) -> Iterator[None]:
    """Whoever asks for changes is refused with *code*; everybody else is answered."""
    with server.client() as client:
        refused = {"failCommands": ["aggregate", "getMore"], "errorCode": code, "appName": "flakefs-stream"}
        client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=refused)
        try:
            yield
        finally:
            client.admin.command("configureFailPoint", "failCommand", mode="off")


def streams(mount: Mount) -> set[str]:
    return {session.stream for session in sessions(mount)}


class Change:
    """What a mount knows well, and another one changes."""

    def __init__(self, here: Path, there: Path) -> None:
        self.here, self.there = here, there

    def prepare(self) -> None:
        here, there = self.here, self.there
        for name in ("content", "replaced", "removed", "renamed", "mode"):
            (here / name).write_bytes(b"old " * 10_000)
        (here / "folder").mkdir()
        until(lambda: "folder" in names(there))
        for name in names(there):
            (there / name).stat()
        for name in ("content", "replaced"):
            assert (there / name).read_bytes() == b"old " * 10_000
        assert not (there / "new").exists()  # the kernel remembers that

    def make(self) -> None:
        here = self.here
        (here / "content").write_bytes(b"new " * 11_000)
        (here / "other").write_bytes(b"another file")
        os.replace(here / "other", here / "replaced")
        (here / "removed").unlink()
        os.rename(here / "renamed", here / "to")
        os.chmod(here / "mode", 0o4711)
        (here / "new").write_bytes(b"was not there")
        os.rmdir(here / "folder")

    def shows_at_once(self) -> None:
        """P2: whoever opens a file after it was closed elsewhere sees what is in it now."""
        assert (self.there / "content").read_bytes() == b"new " * 11_000
        assert (self.there / "content").stat().st_size == 44_000
        assert (self.there / "replaced").read_bytes() == b"another file"

    def shows(self) -> None:
        self.shows_at_once()
        there = self.there
        until((there / "new").exists)
        until(lambda: names(there) == ["content", "mode", "new", "replaced", "to"])
        for name in ("removed", "renamed", "folder"):
            until(lambda name=name: not (there / name).exists())  # type: ignore[misc]
        until(lambda: stat.S_IMODE((there / "mode").stat().st_mode) == 0o4711)
        assert (there / "new").read_bytes() == b"was not there"
        assert (there / "to").read_bytes() == b"old " * 10_000
        (there / "renamed").mkdir()
        until((self.here / "renamed").is_dir)
        (there / "renamed").rmdir()


@pytest.mark.parametrize("code", [HISTORY_LOST, NOT_PRIMARY])
def test_without_news_nothing_is_believed_for_long(new_mount: NewMount, servers: Servers, code: int) -> None:
    """Names, attributes and the kernel's entries of before the break, and those given while it lasts."""
    one = new_mount(settings=BEATING)
    other = one.another()
    before, meanwhile = (one.path / "before", other.path / "before"), (one.path / "meanwhile", other.path / "meanwhile")
    for here, there in (before, meanwhile):
        here.mkdir()
        until(there.is_dir)
    until(lambda: streams(one) == {"healthy"})
    known = Change(*before)
    known.prepare()
    with no_news(servers.metadata, code):
        until(lambda: streams(one) == {"broken"})
        known.make()
        known.shows()
        later = Change(*meanwhile)
        later.prepare()
        later.make()
        later.shows()
        last = Change(one.path / "last", other.path / "last")
        last.here.mkdir()
        until(last.there.is_dir)
        last.prepare()
        assert streams(one) == {"broken"}
    last.make()
    last.shows()
    until(lambda: streams(one) == {"healthy"})
    for change in (known, later, last):
        change.shows()


@pytest.mark.parametrize("seconds", [0.3, SILENCE_SECONDS + 0.5])
def test_a_mount_that_was_stopped_within_its_lease(new_mount: NewMount, seconds: float) -> None:
    """As long as the stream may be silent, and longer; what it missed comes late, or never."""
    one = new_mount(settings=SETTINGS)
    other = one.another()
    change = Change(one.path, other.path)
    change.prepare()
    with stopped(other):
        change.make()
        time.sleep(seconds)  # it is the length of the pause that is tried
    change.shows()
    assert len(sessions(one)) == 2


@pytest.mark.skipif("FLAKEFS_LOST_OPLOG" not in os.environ, reason="writes gigabytes: tests/run-long oplog")
def test_an_oplog_that_does_not_reach_back(new_mount: NewMount, servers: Servers) -> None:
    one = new_mount(settings=SETTINGS)
    other = one.another()
    change = Change(one.path, other.path)
    change.prepare()
    with stopped(other):
        change.make()
        forget_history(servers.metadata)
    change.shows()
    assert len(sessions(one)) == 2
    other.sync()
    until(lambda: streams(one) == {"healthy"}, LEASE_SECONDS)
    again = Change(other.path / "again", one.path / "again")  # and both hear each other
    again.here.mkdir()
    until(again.there.is_dir)
    again.prepare()
    again.make()
    again.shows()


@contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    mount.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        mount.signal(signal.SIGCONT)


def forget_history(server: TestServer) -> None:
    """Write until the server has dropped everything that was in its oplog."""
    with server.client() as client:
        oplog = client["local"]["oplog.rs"]
        last = oplog.find().sort("$natural", -1).limit(1).next()["ts"]
        scratch = client["scratch"]["filling"]

        def forgotten() -> bool:
            scratch.insert_many([{"data": os.urandom(4 * MB)} for _ in range(3)])
            client.admin.command("fsync")  # what a crash would need is kept until there is a checkpoint
            return bool(oplog.find().sort("$natural", 1).limit(1).next()["ts"] > last)

        until(forgotten, 120)
        client.drop_database("scratch")


def to_be_replaced(one: Mount, other: Mount, name: str) -> None:
    """Both mounts have read the file of this name; "new" is what comes in its place."""
    (one.path / name).write_bytes(b"old")
    until((other.path / name).exists)
    assert (other.path / name).read_bytes() == b"old"
    (one.path / "new").write_bytes(b"newer")


@pytest.mark.parametrize("how", ["replace", "rotate", "unlink"])
@pytest.mark.parametrize("late", [False, True], ids=["prompt", "late"])
def test_k7_a_name_that_went_elsewhere_is_opened_where_it_leads_now(new_mount: NewMount, how: str, late: bool) -> None:
    """RP1. The kernel still takes it for the old file: nobody reads that, nor writes into it."""
    one = new_mount(settings=SETTINGS)
    other = one.another()
    for number in range(10):
        name = f"f{number}"
        to_be_replaced(one, other, name)
        with stopped(other) if late else nullcontext():
            if how == "unlink":
                (one.path / name).unlink()
            else:
                if how == "rotate":
                    os.rename(one.path / name, one.path / f"{name}.1")
                os.replace(one.path / "new", one.path / name)
        if how == "unlink":
            with pytest.raises(FileNotFoundError):
                (other.path / name).read_bytes()
            continue
        assert (other.path / name).read_bytes() == b"newer"


def test_k7_a_link_is_of_what_the_name_leads_to_now(new_mount: NewMount) -> None:
    one = new_mount(settings=SETTINGS)
    other = one.another()
    for number in range(10):
        name = f"f{number}"
        to_be_replaced(one, other, name)
        os.rename(one.path / name, one.path / f"{name}.1")
        os.rename(one.path / "new", one.path / name)
        os.link(other.path / name, other.path / "link")
        assert (other.path / "link").samefile(other.path / name)
        assert (other.path / "link").read_bytes() == b"newer"
        (other.path / "link").unlink()


def test_an_open_file_without_a_name_is_opened_again_through_its_descriptor(new_mount: NewMount) -> None:
    one = new_mount(settings=SETTINGS)
    other = one.another()
    (one.path / "f").write_bytes(b"stays")
    until((other.path / "f").exists)
    for remover in (one, other):
        with open(other.path / "f", "rb") as file:
            (remover.path / "f").unlink()
            for _ in range(3):
                assert Path(f"/proc/self/fd/{file.fileno()}").read_bytes() == b"stays"
        (one.path / "f").write_bytes(b"stays")
        until((other.path / "f").exists)
