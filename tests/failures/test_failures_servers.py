"""A server goes away, for a moment or for longer than error_timeout (P3, P5, P6)."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flakefs.errors import MountError
from flakefs.testing.mounted import Mount
from flakefs.testing.servers import Servers
from tests.failures.conftest import settings

MIB = 1024 * 1024
TROUBLE = (
    r"does not answer|cannot answer at the moment|has answered nobody|cannot be stored|no node answers|has not taken"
)
Within = Callable[..., Any]


def failing(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == code)


def write(path: Path, data: bytes) -> None:
    """And fsync."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Copier(threading.Thread):
    """Writes *count* MiB to *path*, or reads them; stops half-way until it is told to go on."""

    def __init__(self, path: Path, count: int, *, reading: bool) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.count = count
        self.reading = reading
        self.half = threading.Event()
        self.go_on = threading.Event()
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            with self.path.open("rb" if self.reading else "wb", buffering=0) as file:
                for number in range(self.count):
                    if number == self.count // 2:
                        self.half.set()
                        self.go_on.wait(60)
                    piece = file.read(MIB) if self.reading else os.urandom(MIB)
                    if not self.reading:
                        file.write(piece)
                    self.digest.update(piece)
                if not self.reading:
                    os.fsync(file.fileno())
        except OSError as error:
            self.error = error

    def finish(self, seconds: float = 90.0) -> str:
        self.join(seconds)
        assert not self.is_alive(), "the copy hangs"
        assert self.error is None, f"the copy met {self.error!r}"
        return self.digest.hexdigest()


@pytest.mark.parametrize("reading", [False, True], ids=["writing", "reading"])
@pytest.mark.parametrize("which", ["node", "metadata"])
def test_p5_a_server_is_killed_and_started_again(patient: Mount, servers: Servers, which: str, reading: bool) -> None:
    """Programs wait, and go on without an error."""
    patient.expect_log(TROUBLE)
    server = servers.node(1) if which == "node" else servers.metadata
    path = patient.path / "file"
    first = Copier(path, 24, reading=False)
    first.go_on.set()
    first.start()
    written = first.finish()
    if reading:
        patient.remount()
    copier = Copier(path if reading else patient.path / "other", 24, reading=reading)
    copier.start()
    assert copier.half.wait(60)
    server.kill()
    copier.go_on.set()
    server.start()
    assert (copier.finish() == written) is reading
    patient.remount()
    assert hashlib.sha256(copier.path.read_bytes()).hexdigest() == copier.digest.hexdigest()


@pytest.mark.parametrize("which", ["node", "metadata"])
def test_p5_cold_reads_and_new_files_wait(
    new_mount: Callable[..., Mount], servers: Servers, within: Within, which: str
) -> None:
    """For longer than the deadline of a call: a fail-over takes 10 s."""
    mount = new_mount(settings=settings(patience=60.0, deadline=0.5))
    mount.expect_log(TROUBLE)
    path = mount.path
    (path / "folder").mkdir()
    write(path / "folder" / "cold", b"x" * MIB)
    mount.remount()
    server = servers.node(1) if which == "node" else servers.metadata
    done: list[object] = []
    calls: list[Callable[[], object]] = [(path / "folder" / "cold").read_bytes]
    if which == "metadata":
        calls += [(path / "new").touch, lambda: os.listdir(path / "folder")]
    threads = [threading.Thread(target=lambda call=call: done.append(call()), daemon=True) for call in calls]
    server.pause()
    try:
        for thread in threads:
            thread.start()
        threads[0].join(3.0)  # several deadlines
        assert done == []
    finally:
        server.resume()
    for thread in threads:
        within(thread.join)
    assert len(done) == len(calls)
    assert b"x" * MIB in done


@pytest.mark.parametrize("which", ["node", "metadata"])
def test_p3_an_fsync_right_after_the_server_is_back(
    impatient: Mount, servers: Servers, within: Within, which: str
) -> None:
    """J4: it does not fail because the next attempt was planned for later."""
    impatient.expect_log(TROUBLE)
    content = os.urandom(MIB)
    (impatient.path / "first").touch()  # so that a new file needs no question to the server
    server = servers.node(1) if which == "node" else servers.metadata
    with (impatient.path / "file").open("wb", buffering=0) as file:
        server.kill()
        file.write(content)
        with failing(errno.EIO):
            within(os.fsync, file.fileno())
        server.start()
        within(os.fsync, file.fileno())
    impatient.remount()
    assert (impatient.path / "file").read_bytes() == content


def test_p3_a_node_that_stays_away(impatient: Mount, servers: Servers, within: Within, until: Within) -> None:
    impatient.expect_log(TROUBLE)
    path = impatient.path
    write(path / "cold", os.urandom(MIB))
    impatient.remount()
    (path / "made before").touch()
    servers.node(1).kill()
    content = os.urandom(2 * MIB)
    with failing(errno.EIO):
        within(write, path / "file", content)
    with failing(errno.EROFS):
        within((path / "more").touch)
    with failing(errno.EROFS):
        within((path / "made before").unlink)
    with failing(errno.EIO):
        within((path / "cold").read_bytes)
    assert within((path / "file").read_bytes) == content  # what could not be stored is kept
    assert sorted(os.listdir(path)) == ["cold", "file", "made before"]
    servers.node(1).start()
    until((path / "after").touch)
    sync(path)
    assert len((path / "cold").read_bytes()) == MIB
    impatient.remount()
    assert (path / "file").read_bytes() == content
    assert sorted(os.listdir(path)) == ["after", "cold", "file", "made before"]


def test_p3_a_metadata_server_that_stays_away(
    impatient: Mount, servers: Servers, within: Within, until: Within
) -> None:
    impatient.expect_log(TROUBLE)
    path = impatient.path
    (path / "folder").mkdir()
    (path / "folder" / "cold").write_text("x")
    (path / "warm").write_text("warm")
    impatient.remount()
    assert (path / "warm").read_text() == "warm"
    (path / "first").touch()  # so that a new file needs no question to the server
    servers.metadata.kill()
    with failing(errno.EIO):
        within(write, path / "file", b"kept")
    with failing(errno.EROFS):
        within((path / "more").touch)
    with failing(errno.EIO):
        within((path / "folder" / "cold").read_bytes)
    assert within((path / "warm").read_text) == "warm"
    servers.metadata.start()
    until((path / "after").touch)
    sync(path)
    impatient.remount()
    assert (path / "file").read_bytes() == b"kept"
    assert (path / "folder" / "cold").read_text() == "x"
    assert sorted(os.listdir(path)) == ["after", "file", "first", "folder", "warm"]


@pytest.mark.parametrize("which", ["node", "metadata"])
def test_p6_a_server_that_hangs(impatient: Mount, servers: Servers, within: Within, until: Within, which: str) -> None:
    """It keeps its connections and answers nothing: worse than being gone."""
    impatient.expect_log(TROUBLE)
    path = impatient.path
    write(path / "cold", os.urandom(MIB))
    impatient.remount()
    (path / "first").touch()  # so that a new file needs no question to the server
    server = servers.node(1) if which == "node" else servers.metadata
    server.pause()
    try:
        if which == "node":
            with failing(errno.EIO):
                within((path / "cold").read_bytes)
        with failing(errno.EIO):
            within(write, path / "file", os.urandom(MIB))
    finally:
        server.resume()
    until((path / "after").touch)
    sync(path)
    assert len((path / "file").read_bytes()) == MIB
    assert len((path / "cold").read_bytes()) == MIB


def test_p3_unmounting_while_a_node_is_gone(impatient: Mount, servers: Servers, within: Within, until: Within) -> None:
    """It says that not everything is stored, and stays mounted; it does not hang, and nothing is lost."""
    impatient.expect_log(TROUBLE)
    content = os.urandom(MIB)
    servers.node(1).kill()
    (impatient.path / "file").write_bytes(content)
    with pytest.raises(MountError, match="stays mounted, because not everything could be stored"):
        within(impatient.unmount)
    assert impatient.is_mounted
    assert (impatient.path / "file").read_bytes() == content
    servers.node(1).start()
    until((impatient.path / "after").touch)
    within(impatient.remount)
    assert (impatient.path / "file").read_bytes() == content


def test_j8_what_was_answered_with_eio_and_stored_after_all_is_shown(
    impatient: Mount, servers: Servers, within: Within, until: Within
) -> None:
    """The mount that said so has to make its kernel forget what it believes since."""
    other = impatient.another()
    for mount in (impatient, other):
        mount.expect_log(TROUBLE)
    changes: dict[str, Callable[[Path], object]] = {
        "mkdir": lambda folder: (folder / "new").mkdir(),
        "create": lambda folder: (folder / "new").touch(),
        "symlink": lambda folder: (folder / "new").symlink_to("there"),
        "link": lambda folder: os.link(folder / "old", folder / "new"),
        "rename": lambda folder: os.rename(folder / "old", folder / "new"),
        "unlink": lambda folder: (folder / "old").unlink(),
        "chmod": lambda folder: (folder / "old").chmod(0o600),
        "truncate": lambda folder: os.truncate(folder / "old", 1),
    }
    for name in changes:
        (impatient.path / name).mkdir()
        (impatient.path / name / "old").write_bytes(b"content")

    def facts(mount: Mount) -> dict[str, object]:
        found: dict[str, object] = {}
        for name in changes:
            for path in (mount.path / name, mount.path / name / "old", mount.path / name / "new"):
                try:
                    status = path.lstat()
                    found[f"{name}/{path.name}"] = status.st_ino, status.st_mode, status.st_nlink, status.st_size
                except FileNotFoundError:
                    found[f"{name}/{path.name}"] = None
        return found

    def same() -> None:
        assert facts(impatient) == facts(other)

    until(same)
    before = facts(other)
    big = os.open(other.path / "big", os.O_CREAT | os.O_WRONLY, 0o644)
    servers.node(1).pause()
    try:
        os.write(big, os.urandom(2 * MIB))  # no commit without it
        threads = [
            threading.Thread(target=within, args=(given_up, partial(change, other.path / name)))
            for name, change in changes.items()
        ]
        for thread in threads:
            thread.start()
        with failing(errno.EIO):
            os.fsync(big)
        for thread in threads:
            thread.join()
    finally:
        servers.node(1).resume()
    until(partial(sync, other.path))
    until(same)
    changed = [name for name, fact in facts(other).items() if fact != before[name]]
    assert len(changed) >= len(changes), "nothing was stored after all"
    os.close(big)


def given_up(call: Callable[[], object]) -> None:
    with failing(errno.EIO):
        call()
