"""The error boundary and other parts of the mount that need no kernel."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError

from flakefs.app import mount_options, mounts, stacks
from flakefs.app.launch import launch
from flakefs.app.notify import Notifier
from flakefs.cli import mount_helper
from flakefs.config import Config
from flakefs.config.model import MountOptions
from flakefs.errors import ConfigError, MountError, NotFound, Unavailable, UsageError
from flakefs.fuse import kernel
from flakefs.fuse.boundary import answered, silent
from flakefs.fuse.options import FuseOptions
from flakefs.fuse.quick import BURST, KEEPER_SECONDS, Turn, quick_loop, watched


class Handlers:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    @answered
    async def lookup(self, ino: int, name: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        return name

    @answered
    async def unlink(self, parent_inode: int, name: bytes) -> None:
        assert self.error is not None
        raise self.error

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        assert self.error is not None
        raise self.error

    def ino_of(self, fh: int) -> int:
        return 40 + fh

    @silent
    async def forget(self, pairs: list[tuple[int, int]]) -> None:
        raise KeyError("no such inode")


async def errno_of(error: BaseException) -> int:
    with pytest.raises(FUSEError) as caught:
        await Handlers(error).lookup(7, b"name")
    return caught.value.errno


async def test_a_result_passes() -> None:
    assert await Handlers().lookup(7, b"name") == b"name"


async def test_b1_errors_of_ours_become_their_errno() -> None:
    assert await errno_of(NotFound("no such file")) == errno.ENOENT
    assert await errno_of(FUSEError(errno.EXDEV)) == errno.EXDEV


@pytest.mark.logs
async def test_store_trouble_is_logged_and_is_eio(caplog: pytest.LogCaptureFixture) -> None:
    assert await errno_of(Unavailable("node 3 does not answer")) == errno.EIO
    assert "lookup of inode 7: node 3 does not answer" in caplog.text


@pytest.mark.logs
async def test_b2_a_bug_is_eio_and_logged_with_operation_and_inode(caplog: pytest.LogCaptureFixture) -> None:
    assert await errno_of(ZeroDivisionError("a bug")) == errno.EIO
    assert "lookup of inode 7: bug in FlakeFS" in caplog.text
    assert "ZeroDivisionError" in caplog.text, "the traceback is missing"


@pytest.mark.logs
async def test_b2_lines_name_operation_name_inode_handle_and_cause(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FUSEError):
        await Handlers(Unavailable("node 3 does not answer")).unlink(7, b"a name\n")
    assert "unlink of b'a name\\n' in inode 7: node 3 does not answer" in caplog.text
    with pytest.raises(FUSEError):
        await Handlers(Unavailable("node 3 does not answer")).write(2, 0, b"content")
    assert "write of inode 42 (handle 2): node 3 does not answer" in caplog.text


@pytest.mark.logs
async def test_groups_are_what_they_hold(caplog: pytest.LogCaptureFixture) -> None:
    assert await errno_of(ExceptionGroup("nursery", [NotFound("gone")])) == errno.ENOENT
    assert not caplog.records
    assert await errno_of(ExceptionGroup("nursery", [NotFound("gone"), ValueError("bug")])) == errno.EIO
    assert "ValueError" in caplog.text


async def test_cancellation_passes_the_boundary() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await Handlers(None).lookup(1, b"")
            await trio.lowlevel.checkpoint()
        except FUSEError:
            pytest.fail("a cancelled request was answered as an error")
    assert scope.cancelled_caught


@pytest.mark.logs
async def test_b3_forget_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    await Handlers().forget([(1, 1)])
    assert "no such inode" in caplog.text


def test_options_refuse_nonsense() -> None:
    with pytest.raises(ConfigError, match="cache_seconds"):
        FuseOptions(cache_seconds=-1)
    with pytest.raises(ConfigError, match="tasks"):
        FuseOptions(tasks=0)


# -o words


def test_generic_words_are_accepted_and_ours_understood() -> None:
    words = mount_options.parse(["_netdev,nofail,defaults,x-systemd.automount,rw,ro", "config=/etc/f.conf"])
    assert words.read_only
    assert words.config_path == "/etc/f.conf"
    assert not words.changes
    assert not words.notes


def test_o1_what_fstab_may_say_is_accepted() -> None:
    words = mount_options.parse(
        [
            "defaults,auto,noauto,user,nouser,users,nousers,owner,group,nofail,_netdev,exec,suid,nosuid,dev,nodev,async",
            "relatime,noatime,strictatime,lazytime,comment=mine,uhelper=x,x-systemd.requires=network-online.target",
            "x-systemd.automount,x-systemd.mount-timeout=2min,x-systemd.device-timeout=0,x-gvfs-hide,X-mount.mkdir=0755",
        ]
    )
    assert words.notes == [
        "mount option strictatime has no effect: access times move as relatime says, or never with noatime"
    ]


@pytest.mark.parametrize(
    ("words", "on", "off"),
    [
        ("suid,dev,noexec,sync", "suid dev noexec sync", ""),
        ("suid,dev,noexec,sync,nosuid,nodev,exec,async", "", "suid dev noexec sync"),
        ("nosuid,suid,nodev", "suid", "dev"),
    ],
)
def test_o2_the_last_of_two_words_counts(words: str, on: str, off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    taken_back: dict[str, Any] = dict.fromkeys(off.split(), True)
    set_to = FuseOptions(**taken_back)
    fuse = mount_options.parse([words]).applied(Config(fuse=set_to)).fuse
    assert all(getattr(fuse, flag) for flag in on.split())
    assert not any(getattr(fuse, flag) for flag in off.split())
    assert not mount_options.parse(["ro,rw"]).read_only
    assert mount_options.parse(["noatime"]).applied(Config()).vfs.atime == "noatime"
    assert mount_options.parse(["noatime,relatime"]).applied(Config()).vfs.atime == "relatime"


@pytest.mark.parametrize("word", ["suid", "dev"])
def test_o3_what_only_root_gets_is_refused_to_others(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=f"mount option {word} is for mounts by root only"):
        mount_options.parse([word]).applied(Config())
    assert not getattr(mount_options.parse([f"{word},no{word}"]).applied(Config()).fuse, word)


@pytest.mark.parametrize(
    ("words", "set_to", "waits"),
    [
        ("rw", 0.0, 0.0),
        ("rw", 5.0, 5.0),
        ("_netdev", 0.0, mount_options.NETDEV_SECONDS),
        ("_netdev", 5.0, 5.0),
        ("_netdev,wait=0", 5.0, 0.0),
        ("wait=7,_netdev", 5.0, 7.0),
    ],
)
def test_how_long_the_metadata_server_is_waited_for(words: str, set_to: float, waits: float) -> None:
    config = Config(mount=MountOptions(wait_seconds=set_to))
    assert mount_options.parse([words]).applied(config).mount.wait_seconds == waits


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("bogus", "'bogus' is not known"),
        ("allow_othr", "did you mean 'allow_other'"),
        ("close=never", "close must be stored or fast"),
        ("fewer_copies=yes", "fewer_copies must be refuse or warn"),
        ("rack", "needs a value"),
        ("commit_interval=soon", "number of seconds"),
        ("wait=-1", "number of seconds"),
        ("wait", "needs a value"),
        ("commit_interval", "needs a value"),
        ("allow_other=1", "takes no value"),
        ("dirsync", "no effect on a FUSE mount"),
        ("remount", "unmount it and mount it again"),
    ],
)
def test_o1_other_words_are_refused_by_name(word: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        mount_options.parse([word])


def test_words_change_the_configuration() -> None:
    words = mount_options.parse(
        [
            "allow_other,close=stored,atime=noatime,commit_interval=7,error_timeout=9,database=other,log=/l,balance=random"
        ]
    )
    config = words.applied(Config())
    assert config.fuse.allow_other
    assert config.vfs.close_stored
    assert config.vfs.atime == "noatime"
    assert config.namespace.commit_interval_seconds == 7
    assert config.namespace.error_timeout_seconds == config.vfs.error_timeout_seconds == 9
    assert (config.database, config.mount.log, config.engine.balance) == ("other", "/l", "random")


def test_words_about_places_and_copies() -> None:
    engine = mount_options.parse(["dc=east,rack=r 1", "write_dc=west,fewer_copies=warn"]).applied(Config()).engine
    assert (engine.dc, engine.rack, engine.write_dc, engine.fewer_copies) == ("east", "r 1", "west", "warn")


# mount.flakefs


def test_h1_wrong_calls_of_the_helper_have_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    for call in ([], ["one"], ["a", "b", "-z"], ["a", "b", "-o"], ["a", "/mnt", "-o", "bogus"]):
        assert mount_helper.run(call) == 1, call
        assert capsys.readouterr().err.startswith("mount.flakefs: ")


def test_the_helper_can_pretend() -> None:
    assert mount_helper.run(["flakefs", "/mnt/nowhere", "-f", "-o", "rw,_netdev"]) == 0


# registry


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


# the background process


def test_umount_helpers_know_what_is_mounted() -> None:
    there = kernel.mounted_at("/proc")
    assert there is not None
    assert there.filesystem == "proc"
    assert kernel.mounted_at("/proc/self") is None
    assert kernel.is_dead("/proc") is False


async def test_q1_the_quick_loop_lets_others_run() -> None:
    """A descriptor that is always readable does not starve the scheduler."""
    reading, writing = os.pipe()
    os.write(writing, b"x")
    with quick_loop():
        wait = vars(pyfuse3)["trio"].lowlevel.wait_readable
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(10 * BURST):
                await wait(reading)
            nursery.cancel_scope.cancel()
    os.close(reading)
    os.close(writing)
    assert turns >= 8
    assert vars(pyfuse3)["trio"] is trio, "Q2: pyfuse3 has its own trio back"


async def test_q3_the_turn_is_handed_on_when_a_handler_waits() -> None:
    order: list[str] = []
    answer = trio.Event()

    async def worker(name: str, turn: Turn, *, waits: bool) -> None:
        async with turn:
            order.append(f"{name} reads")
        await watched(request(name, waits=waits))
        order.append(f"{name} has answered")

    async def request(name: str, *, waits: bool) -> None:
        if waits:
            await answer.wait()

    with quick_loop() as turn:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: worker("first", turn, waits=True))
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["first reads"]
            await worker("second", turn, waits=False)
            async with turn:
                nursery.start_soon(lambda: worker("third", turn, waits=False))
                await trio.testing.wait_all_tasks_blocked()
            assert "third reads" not in order, "a turn that is not needed was handed on"
            turn.hand_on()
            await trio.testing.wait_all_tasks_blocked()
            assert order[-1] == "third has answered"
            answer.set()
    assert order[-1] == "first has answered"


async def yielding() -> None:
    await trio.lowlevel.checkpoint()


async def test_q3_a_waiting_reader_gets_the_turn_of_one_that_waits() -> None:
    order: list[str] = []

    async def reader(turn: Turn) -> None:
        async with turn:
            order.append("reads")

    with quick_loop() as turn:
        async with trio.open_nursery() as nursery:
            async with turn:
                nursery.start_soon(reader, turn)
                await trio.testing.wait_all_tasks_blocked()
            await watched(yielding())
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["reads"]


async def test_q4_a_forgotten_turn_is_found(autojump_clock: trio.testing.MockClock) -> None:
    with quick_loop() as turn:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turn.keep)
            async with turn:
                read = trio.Event()

                async def reader() -> None:
                    async with turn:
                        read.set()

                nursery.start_soon(reader)
                await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10 * KEEPER_SECONDS):  # nobody hands on, as after a bug
                await read.wait()
            nursery.cancel_scope.cancel()


async def test_q3_at_the_end_every_task_gets_its_turn() -> None:
    ended: list[int] = []

    async def worker(number: int, turn: Turn) -> None:
        async with turn:
            ended.append(number)

    with quick_loop() as turn:
        async with trio.open_nursery() as nursery:
            async with turn:
                for number in range(5):
                    nursery.start_soon(worker, number, turn)
                await trio.testing.wait_all_tasks_blocked()
            turn.close()
    assert sorted(ended) == [0, 1, 2, 3, 4]


async def test_a_reader_that_gives_up_does_not_keep_the_turn() -> None:
    with quick_loop() as turn:
        async with turn:
            with trio.move_on_after(0.01) as scope:
                async with turn:
                    pytest.fail("two have the turn")
            assert scope.cancelled_caught
        async with turn:
            pass


async def test_watched_is_transparent() -> None:
    async def add(one: int, two: int) -> int:
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        return one + two

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("inside")

    async def deaf() -> str:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        try:
            await trio.sleep_forever()
        finally:
            seen.append("cancelled")
        return "never"

    seen: list[str] = []
    assert await watched(add(2, 3)) == 5
    with pytest.raises(KeyError, match="inside"):
        await watched(fail())
    with trio.move_on_after(0.01) as scope:
        await watched(deaf())
    assert scope.cancelled_caught
    assert seen == ["cancelled"]


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


def test_records_are_json_that_people_can_read(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    mounts.register(record)
    try:
        files = [path for path in mounts.runtime_folder().glob("mount-*.json") if str(tmp_path) in path.read_text()]
        assert json.loads(files[0].read_text())["pid"] == os.getpid()
    finally:
        mounts.forget(str(tmp_path))
