"""A real mount for tests: its own file system on the test servers, its own process, a real /dev/fuse.

Purpose
    `Mount` formats a file system, writes a configuration, and starts, ends, kills and starts again the process behind
    a mount; `another` mounts the same file system once more. The fixtures `new_mount` and `mounted` hand them out and
    clean up.

Invariants
    T5  When a test ends, its mount is unmounted by the public way, its log holds no warning that the test did not
        announce (`mount.expect_log`), and fsck finds nothing. After kill() leaks are allowed, damage never.
    T6  Nothing stays mounted and no process stays behind, also when the test failed.

Concurrency
    Synchronous; one thread. The mount is another process, so a test that blocks in a system call blocks alone.

Not here
    Servers and database names (testing.plugin).
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flakefs.app import mounts, unmounting
from flakefs.app.launch import launch
from flakefs.app.stack import metadata_door
from flakefs.config import load
from flakefs.engine import admin
from flakefs.errors import FlakeError
from flakefs.fuse import kernel
from flakefs.namespace import schema
from flakefs.testing.servers import Servers
from flakefs.tools import fsck
from flakefs.tools.problems import DAMAGE, LEFTOVER, Report

END_SECONDS = 60.0
_shared = itertools.count(1)
_BAD_LINE = re.compile(r"^\S+ \S+ (?:WARNING|ERROR|CRITICAL) |^Traceback ", re.MULTILINE)

Settings = Mapping[str, Mapping[str, object]]


class Mount:
    """One file system and (most of the time) one mount of it, at `path`. Options of `another`: of the first one."""

    def __init__(
        self,
        servers: Servers,
        folder: Path,
        database: str,
        node_database: str,
        *,
        settings: Settings | None = None,
        words: str = "",
        chunk_size: int = 1024 * 1024,
        codec: str = "zstd",
        first: Mount | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.servers = servers
        self.database = database
        self.node_database = node_database
        self.config = folder / "flakefs.conf"
        self.log = folder / "mount.log"
        self.path = folder / "mnt"
        self.path.mkdir(exist_ok=True)
        self.words = words
        self.settings = settings or {}
        self.family: list[Mount] = first.family if first is not None else []
        """All mounts of this file system, in the order in which they were made."""
        self.family.append(self)
        self.pid = 0
        self._killed = False
        self._expected: list[str] = []
        self._read_log = 0
        self._write_config(self.settings)
        if first is None:
            self._format(chunk_size, codec)

    def another(self, *, settings: Settings | None = None, words: str | None = None, start: bool = True) -> Mount:
        """A further mount of this file system, with configuration, log, folder and process of its own."""
        first = self.family[0]
        mount = Mount(
            self.servers,
            first.config.parent / f"mount{len(self.family)}",
            self.database,
            self.node_database,
            settings=first.settings if settings is None else settings,
            words=first.words if words is None else words,
            first=first,
        )
        if start:
            mount.mount()
        return mount

    @property
    def is_mounted(self) -> bool:
        return kernel.mounted_at(str(self.path)) is not None

    def mount(self, words: str = "") -> None:
        """Start the process; returns when the folder is usable."""
        options = ["-o", f"log={self.log}"]
        for part in filter(None, (self.words, words)):
            options += ["-o", part]
        self.pid = launch(["--config", str(self.config), "mount", *options, str(self.path)], self.log)

    def unmount(self) -> None:
        """The public way: store everything, unmount, wait until the process has ended."""
        unmounting.unmount(str(self.path))
        self._reap()

    def remount(self, words: str = "") -> None:
        """Unmount and mount again: nothing in the memory of the kernel or of the process survives."""
        self.unmount()
        self.mount(words)

    def sync(self) -> None:
        unmounting.sync(str(self.path))

    def kill(self) -> None:
        """SIGKILL the process; a dead mountpoint stays behind, as after a crash."""
        self._killed = True
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait until the process has ended, whatever ends it; its exit status (negative: the signal)."""
        status = self._reap()
        assert status is not None, f"process {self.pid} still runs"
        return status

    def cli(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """`flakefs` with this file system's configuration."""
        command = [sys.executable, "-m", "flakefs", "--config", str(self.config), *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=120, **options)

    def expect_log(self, pattern: str) -> None:
        """Warnings whose line matches *pattern* are part of this test."""
        self._expected.append(pattern)

    def expect_leaks(self) -> None:
        """This process will have to end without having stored, or freed, everything."""
        self._killed = True

    def log_text(self) -> str:
        """What the process has logged since the last check_log()."""
        if not self.log.exists():
            return ""
        with self.log.open(errors="replace") as file:
            file.seek(self._read_log)
            return file.read()

    def check_log(self) -> None:
        """T5 for the log, up to here."""
        lines = self.log_text().splitlines(keepends=True)
        self._read_log += sum(len(line.encode()) for line in lines)
        bad = [
            line
            for line in lines
            if _BAD_LINE.match(line) and not any(re.search(pattern, line) for pattern in self._expected)
        ]
        assert not bad, f"{self.log} has what the test did not announce:\n{''.join(bad)}"

    def fsck(self, *, deep: bool = True) -> Report:
        """The whole check, in this process."""
        with metadata_door(load(self.config), purpose="fsck") as (door, resolve):
            return fsck.check(door, self.database, resolve, deep=deep)

    def check_fsck(self) -> None:
        """T5 for what is stored: no damage, and no leaks unless a process was killed."""
        levels = (DAMAGE,) if any(mount._killed for mount in self.family) else (DAMAGE, LEFTOVER)
        bad = [problem for problem in self.fsck().found if problem.kind.level in levels]
        assert not bad, "fsck found:\n" + "\n".join(map(str, bad))

    def close(self, *, verify: bool) -> None:
        """End every mount of the file system (T6); *verify*: and hold T5."""
        try:
            for mount in self.family:
                if mount.is_mounted:
                    mount.unmount()
            if verify:
                for mount in self.family:
                    mount.check_log()
                self.check_fsck()
        finally:
            for mount in self.family:
                mount._sweep()

    def _sweep(self) -> None:
        if self.pid and self._reap(seconds=0) is None:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()
        while self.is_mounted:
            kernel.unmount(str(self.path), lazy=True)
        mounts.forget(str(self.path))

    def _reap(self, seconds: float = END_SECONDS) -> int | None:
        """The exit status of the child; None when it still runs after the time."""
        if not self.pid:
            return 0
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return 0
        try:
            if not mounts.readable(descriptor, seconds):
                return None
        finally:
            os.close(descriptor)
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            status = 0
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def _write_config(self, settings: Settings) -> None:
        sections: dict[str, dict[str, object]] = {
            "metadata": {"uri": self.servers.metadata_uri, "database": self.database},
            "engine": {"reserve_bytes": 0},
        }
        for section, values in settings.items():
            sections.setdefault(section, {}).update(values)
        lines = []
        for section, values in sections.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        self.config.touch(mode=0o600)  # tests may write addresses with passwords into it
        self.config.write_text("\n".join(lines) + "\n")

    def _format(self, chunk_size: int, codec: str) -> None:
        with metadata_door(load(self.config), purpose="format") as (door, resolve):
            admin.create_filesystem(
                door,
                self.database,
                chunk_size=chunk_size,
                codec=codec,
                first_node_uri=self.servers.node_uri(1),
                first_node_database=self.node_database,
                resolve=resolve,
                prepare=schema.create,
            )


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


NewMount = Callable[..., Mount]


@pytest.fixture
def new_mount(
    servers: Servers, tmp_path: Path, new_database: Callable[[], str], request: pytest.FixtureRequest
) -> Iterator[NewMount]:
    """Call it for a fresh file system, mounted; keywords as of Mount, and `start=False` to leave it unmounted."""
    made: list[Mount] = []

    def make(*, start: bool = True, **options: Any) -> Mount:
        mount = Mount(servers, tmp_path / f"fs{len(made)}", new_database(), new_database(), **options)
        made.append(mount)
        if start:
            mount.mount()
        return mount

    failed_before = request.session.testsfailed
    yield make
    problems = []
    for mount in made:
        try:
            mount.close(verify=request.session.testsfailed == failed_before)
        except (AssertionError, FlakeError, OSError) as error:
            problems.append(f"{type(error).__name__}: {error}")
    assert not problems, "\n".join(problems)


@pytest.fixture
def mounted(new_mount: NewMount) -> Mount:
    """A fresh file system, mounted with the defaults."""
    return new_mount()


@contextmanager
def lasting_mount(servers: Servers, folder: Path, **options: Any) -> Iterator[Mount]:
    """A file system of its own, mounted, for several tests; T5 holds at the end. Keywords as of Mount."""
    name = f"s{os.getpid()}_{next(_shared)}"
    mount = Mount(servers, folder, name, f"{name}_chunks", **options)
    try:
        mount.mount()
        yield mount
    finally:
        try:
            mount.close(verify=True)
        finally:
            for server in servers.running():
                with server.client() as client:
                    for database in (mount.database, mount.node_database):
                        client.drop_database(database)


@pytest.fixture(scope="module")
def shared_mount(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of a module; each works in a folder of its own (`folder`)."""
    with lasting_mount(servers, tmp_path_factory.mktemp("shared")) as mount:
        yield mount


@pytest.fixture
def folder(shared_mount: Mount, request: pytest.FixtureRequest) -> Path:
    """A new folder on the shared mount, for one test."""
    path = shared_mount.path / re.sub(r"\W+", "-", request.node.name)[:100]
    path.mkdir()
    return path
