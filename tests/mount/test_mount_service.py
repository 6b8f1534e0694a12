"""A mount as a service: it waits at boot, tells the service manager, and is the first process of a container."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flakefs.app import unmounting
from flakefs.app.waiting import ASK_SECONDS
from flakefs.testing.mounted import Mount, NewMount
from flakefs.testing.servers import Servers

HELPER = [sys.executable, "-m", "flakefs.cli.mount_helper"]


@pytest.fixture
def later(private_servers: Servers, tmp_path: Path) -> Iterator[Mount]:
    """A file system whose metadata server does not run at the moment."""
    mount = Mount(private_servers, tmp_path / "fs", "boot", "boot_chunks")
    private_servers.metadata.stop()
    yield mount
    private_servers.metadata.start()
    mount.close(verify=True)


def foreground(mount: Mount, *options: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-m", "flakefs", "--config", str(mount.config), "mount", "-f", *options]
    return subprocess.Popen(
        [*command, str(mount.path)], stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the process logs up to a line with *text*."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"it ended without {text!r}: {''.join(lines)}")


def test_a_mount_at_boot_waits_for_its_server_and_says_so(later: Mount) -> None:
    """As mount(8) calls it for a line of fstab with _netdev."""
    later.expect_log("waiting up to .* for the metadata server")
    words = f"_netdev,nofail,x-systemd.mount-timeout=2min,log={later.log}"
    command = [*HELPER, str(later.config), str(later.path), "-o", words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        said = read_until(process, "waiting up to")
        assert "s more for the metadata server" in said
        assert not later.is_mounted
        later.servers.metadata.start()
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(100) == 0, rest
    assert later.is_mounted
    (later.path / "file").write_text("after a late start")
    unmounting.unmount(str(later.path))


def test_w2_a_server_that_never_comes(later: Mount) -> None:
    done = later.cli("mount", "-f", "-o", f"wait={ASK_SECONDS / 2}", str(later.path), check=False)
    assert done.returncode == 1
    assert "waiting up to" not in done.stderr, "there was no time left to wait for"
    assert "does not answer" in done.stderr
    assert "(waited 1 s for it)" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_word_nobody_waits(later: Mount) -> None:
    done = later.cli("mount", "-f", str(later.path), check=False)
    assert done.returncode == 1
    assert "wait" not in done.stderr


def test_d3_a_mount_that_waits_can_be_told_to_stop(later: Mount) -> None:
    process = foreground(later, "-o", "wait=600")
    read_until(process, "waiting up to")
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped by a signal before" in rest


def test_w1_a_server_that_says_no_is_not_waited_for(new_mount: NewMount) -> None:
    mount = new_mount(start=False)
    done = mount.cli("mount", "-f", "-o", "wait=600,database=not_there", str(mount.path), check=False)
    assert done.returncode == 1
    assert "not_there" in done.stderr


def test_d5_the_service_manager_is_told(later: Mount, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(100)
        process = foreground(later, "-o", "wait=600", NOTIFY_SOCKET=str(tmp_path / "notify"))
        try:
            waiting = manager.recv(4096).decode()
            assert waiting.startswith("STATUS=waiting up to")
            assert "EXTEND_TIMEOUT_USEC=" in waiting
            later.servers.metadata.start()
            assert manager.recv(4096).decode() == f"READY=1\nSTATUS={later.path} is mounted"
            assert later.is_mounted
            (later.path / "file").write_text("written")
            process.send_signal(signal.SIGTERM)
            assert manager.recv(4096).decode().startswith("STOPPING=1\nSTATUS=SIGTERM: storing everything")
        finally:
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=100)
    assert process.returncode == 0, rest
    assert "everything is stored" in rest


needs_unshare = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare(1)"
)


@needs_unshare
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_d2_the_first_process_of_a_container_stores_everything(new_mount: NewMount, number: signal.Signals) -> None:
    """Signals without a handler do nothing to process 1, and nobody else reaps its children."""
    mount = new_mount(start=False, settings={"namespace": {"commit_interval_seconds": 600}})
    process = foreground(mount, before=("unshare", "--pid", "--fork", "--mount-proc"))
    assert "is mounted by process 1" in read_until(process, "is mounted by process")
    content = os.urandom(3_000_000)
    inner = child_of(process.pid)
    try:
        inside = Path(f"/proc/{inner}/root{mount.path}")  # the mount is in a namespace of mounts of its own
        assert os.path.ismount(inside)
        (inside / "file").write_bytes(content)
    finally:
        os.kill(inner, number)
        _, rest = process.communicate(timeout=100)
    assert process.returncode == 0, rest
    assert "everything is stored" in rest
    assert not mount.is_mounted
    mount.mount()
    assert (mount.path / "file").read_bytes() == content


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
