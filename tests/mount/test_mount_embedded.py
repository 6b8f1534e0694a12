"""The whole way on the embedded MongoDB: format, mount, lose both servers, store, unmount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


def servers_of(data: Path) -> list[psutil.Process]:
    """The mongods that run on that data folder."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "mongod" and any(str(data) in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.fixture
def flakefs(tmp_path: Path) -> Iterator[Command]:
    """Call it with the arguments of the command; a mount that is left is taken away at the end."""
    config = tmp_path / "flakefs.conf"
    config.write_text(f'[embedded]\ndata = "{tmp_path}/data"\n')

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flakefs", "--config", str(config), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    yield run
    if os.path.ismount(tmp_path / "mnt"):
        run("umount", "--force", str(tmp_path / "mnt"))
    for process in servers_of(tmp_path / "data"):
        process.kill()


def test_format_mount_lose_the_servers_and_unmount(flakefs: Command, tmp_path: Path) -> None:
    mountpoint, data = tmp_path / "mnt", tmp_path / "data"
    done = flakefs("format")
    assert done.returncode == 0, done.stderr
    assert not servers_of(data), "the servers outlive the command"
    done = flakefs("mount", "-o", f"log={tmp_path}/log", str(mountpoint))
    assert done.returncode == 0, done.stderr
    content = os.urandom(2_500_000)
    (mountpoint / "file").write_bytes(content)
    servers = servers_of(data)
    assert len(servers) == 2
    for server in servers:
        server.send_signal(signal.SIGKILL)
    psutil.wait_procs(servers, timeout=30)
    (mountpoint / "later").write_text("after the servers were killed")
    done = flakefs("sync", str(mountpoint))
    assert done.returncode == 0, done.stderr
    assert (mountpoint / "file").read_bytes() == content
    done = flakefs("umount", str(mountpoint))
    assert done.returncode == 0, done.stderr
    assert not servers_of(data), "the last holder leaves the servers running"
    done = flakefs("fsck", "--deep")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "everything is stored" in log
