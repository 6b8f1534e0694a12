"""The process of a mount: its record, its start in the background, what the service manager hears, and the dump."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from flakefs.app import mounts, stacks
from flakefs.app.launch import launch
from flakefs.app.mountpoint import prepare
from flakefs.app.notify import Notifier
from flakefs.errors import ConfigError, MountError
from flakefs.fuse import kernel
from flakefs.fuse.quick import watched

# the folder


def test_a_folder_that_is_missing_is_made_and_one_that_is_not_empty_is_covered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "a" / "b"
    for says in (f"made the folder {path}", ""):
        assert prepare(str(path)) == str(path)
        assert [record.getMessage() for record in caplog.records] == ([says] if says else [])
        caplog.clear()
    (path / "file").touch()
    assert prepare(str(path)) == str(path)
    assert f"{path} is not empty: what is in it is covered" in caplog.text


# what is mounted: the registry, and what the kernel says


def record_of(path: Path) -> mounts.MountRecord:
    return mounts.own_record(str(path), log="/l", metadata="embedded", database="d", read_only=False)


def test_m1_a_mount_is_registered_and_gone_at_the_end(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    mounts.register(record)
    assert mounts.find(str(tmp_path)) == record
    assert record in mounts.running()
    assert mounts.wait_until_ended(record, 0) is False
    mounts.finish(record)
    assert mounts.find(str(tmp_path)) is None


def test_m1_a_failure_stays_until_it_is_read(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    mounts.register(record)
    mounts.finish(record, "node 2 does not answer")
    left = mounts.find(str(tmp_path))
    assert left is not None
    assert left.failure == "node 2 does not answer"
    mounts.forget(str(tmp_path))


def test_m2_another_process_with_the_same_number_is_not_the_mount(tmp_path: Path) -> None:
    record = replace(record_of(tmp_path), start=1)
    assert not record.alive
    mounts.register(record)
    assert mounts.wait_until_ended(record, 30)
    assert all(other.mountpoint != str(tmp_path) for other in mounts.running())
    assert mounts.find(str(tmp_path)) is None, "what a crash left was not dropped"


def test_records_are_json_that_people_can_read(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    mounts.register(record)
    try:
        files = [path for path in mounts.runtime_folder().glob("mount-*.json") if str(tmp_path) in path.read_text()]
        assert json.loads(files[0].read_text())["pid"] == os.getpid()
    finally:
        mounts.forget(str(tmp_path))


def test_umount_helpers_know_what_is_mounted() -> None:
    there = kernel.mounted_at("/proc")
    assert there is not None
    assert there.filesystem == "proc"
    assert kernel.mounted_at("/proc/self") is None
    assert kernel.is_dead("/proc") is False


# the start in the background


def launched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, say: Callable[[str], None] = lambda _: None
) -> int:
    """launch() with a Python program in place of flakefs; it finds the descriptor in `fd`."""
    program = tmp_path / "child.py"
    program.write_text(f"import json, os, sys\nfd = int(sys.argv[-1])\n{code}\n")
    real = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, str(program), *command[4:]], **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", start)
    return launch(["mount", "/nowhere"], tmp_path / "log", say=say)


def test_n2_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid = launched(monkeypatch, tmp_path, 'os.write(fd, json.dumps({"ready": True}).encode() + b"\\n")')
    assert os.waitpid(pid, 0)[1] == 0


def test_n2_what_the_child_reports_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = 'os.write(fd, json.dumps({"error": "the database is away", "status": %d}).encode() + b"\\n")'
    with pytest.raises(MountError, match="the database is away"):
        launched(monkeypatch, tmp_path, report % 1)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="the database is away"):
        launched(monkeypatch, tmp_path, report % 2)


def test_n2_a_child_that_dies_without_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MountError, match=r"ended with status 3.*its last words"):
        launched(monkeypatch, tmp_path, 'print("its last words"); sys.stdout.flush(); os._exit(3)')
    monkeypatch.undo()
    with pytest.raises(MountError, match="by signal 9"):
        launched(monkeypatch, tmp_path, "os.kill(os.getpid(), 9)")


def test_n2_what_the_child_waits_for_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both lines in one go: none is lost."""
    said: list[str] = []
    lines = "".join(json.dumps(line) + "\n" for line in ({"waiting": "for the database"}, {"ready": True}))
    pid = launched(monkeypatch, tmp_path, f"os.write(fd, {lines.encode()!r})", said.append)
    assert os.waitpid(pid, 0)[1] == 0
    assert said == ["for the database"]


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        launch(["mount", "/nowhere"], tmp_path / "file" / "log" if (tmp_path / "file").write_text("") else Path("/"))


# the service manager


@pytest.mark.parametrize("abstract", [False, True])
def test_y_the_service_manager_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool) -> None:
    name = f"@flakefs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notifier = Notifier()
        assert "NOTIFY_SOCKET" not in os.environ, "Y2"
        notifier.status("waiting\nfor it", extend_seconds=1.5)
        assert manager.recv(4096) == b"STATUS=waiting for it\nEXTEND_TIMEOUT_USEC=1500000"
        notifier.ready("/mnt is mounted")
        assert manager.recv(4096) == b"READY=1\nSTATUS=/mnt is mounted"
        notifier.stopping("storing")
        assert manager.recv(4096) == b"STOPPING=1\nSTATUS=storing"


def test_y1_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("silent")
    assert not caplog.records
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Notifier().ready("nobody hears it")
    assert "cannot be told 'READY=1'" in caplog.text


# stacks


async def test_the_dump_shows_tasks_and_threads() -> None:
    async def a_waiting_task() -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(a_waiting_task)
        await trio.testing.wait_all_tasks_blocked()
        text = stacks.stacks()
        nursery.cancel_scope.cancel()
    assert "a_waiting_task" in text
    assert "thread MainThread" in text


async def test_the_dump_sees_through_watched_handlers() -> None:
    async def a_request_that_hangs() -> None:
        await trio.sleep_forever()

    async def task() -> None:
        await watched(a_request_that_hangs())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        assert "a_request_that_hangs" in stacks.stacks()
        assert "sleep_forever" in stacks.stacks()
        nursery.cancel_scope.cancel()


@pytest.mark.logs
async def test_sigusr1_logs_the_dump(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        stacks.dump_on_signal()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert "asked for by SIGUSR1" in caplog.text
        assert "test_sigusr1_logs_the_dump" in caplog.text
    finally:
        signal.signal(signal.SIGUSR1, before)
