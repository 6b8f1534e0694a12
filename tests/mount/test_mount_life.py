"""Beginning and end of a mount: in the background, in the foreground, by signal, by umount, by crash."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flakefs.app import mounts, unmounting
from flakefs.errors import MountError, UsageError
from flakefs.fuse import kernel
from flakefs.testing.mounted import Mount, NewMount

CONTENT = os.urandom(3_000_000)


def fill(mount: Mount) -> None:
    (mount.path / "d").mkdir()
    (mount.path / "d" / "file").write_bytes(CONTENT)
    (mount.path / "small").write_text("small")


def verify(mount: Mount) -> None:
    assert (mount.path / "d" / "file").read_bytes() == CONTENT
    assert (mount.path / "small").read_text() == "small"


def by_signal(number: int) -> Callable[[Mount], None]:
    def end(mount: Mount) -> None:
        mount.signal(number)
        assert mount.wait() == 0

    return end


def by_fusermount(mount: Mount) -> None:
    subprocess.run(["fusermount3", "-u", str(mount.path)], check=True)
    assert mount.wait() == 0


def by_umount(mount: Mount) -> None:
    subprocess.run(["umount", str(mount.path)], check=True)
    assert mount.wait() == 0


ENDS = {
    "sigterm": by_signal(signal.SIGTERM),
    "sigint": by_signal(signal.SIGINT),
    "sighup": by_signal(signal.SIGHUP),
    "fusermount3": by_fusermount,
    "umount": by_umount,
    "flakefs": lambda mount: mount.unmount(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_d2_every_way_to_end_stores_everything(new_mount: NewMount, end: Callable[[Mount], None]) -> None:
    mount = new_mount(settings={"namespace": {"commit_interval_seconds": 600}})
    fill(mount)
    end(mount)
    assert not mount.is_mounted
    assert os.listdir(mount.path) == []
    assert mounts.find(str(mount.path)) is None
    mount.mount()
    verify(mount)


def test_s3_a_signal_ends_a_busy_mount_too(new_mount: NewMount) -> None:
    mount = new_mount(settings={"namespace": {"commit_interval_seconds": 600}})
    descriptor = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"written before the end")
    mount.signal(signal.SIGTERM)
    assert mount.wait() == 0
    assert not mount.is_mounted
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOTCONN):
        os.write(descriptor, b"and after it")
    with contextlib.suppress(OSError):
        os.close(descriptor)
    mount.mount()
    assert (mount.path / "open").read_bytes() == b"written before the end"


def test_commands_mount_sync_and_umount(new_mount: NewMount) -> None:
    mount = new_mount(start=False)
    mount.path.rmdir()  # made when it is missing
    mount.cli("mount", "-o", f"log={mount.log}", str(mount.path))
    record = mounts.find(str(mount.path))
    assert record is not None
    assert record.alive
    assert record.log == str(mount.log)
    assert record.database == mount.database
    fill(mount)
    mount.cli("sync", str(mount.path))
    verify(mount)
    mount.cli("umount", str(mount.path))
    assert not record.alive
    assert not mount.is_mounted
    again = mount.cli("umount", str(mount.path), check=False)
    assert again.returncode == 2
    assert "is not a FlakeFS mount" in again.stderr


def test_the_foreground(new_mount: NewMount) -> None:
    mount = new_mount(start=False)
    command = [sys.executable, "-m", "flakefs", "--config", str(mount.config), "mount", "-f", str(mount.path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "is mounted by process" in line:
                break
        fill(mount)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 0
    assert "everything is stored" in rest
    assert not mount.is_mounted
    mount.mount()
    verify(mount)


def test_a_crash_leaves_a_dead_mountpoint_that_the_next_mount_takes_away(mounted: Mount) -> None:
    fill(mounted)
    mounted.sync()
    mounted.kill()
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOTCONN):
        os.statvfs(mounted.path)
    mounted.mount()
    verify(mounted)
    assert sum(mount.mountpoint == str(mounted.path) for mount in kernel.mounts()) == 1


def test_umount_of_a_dead_mountpoint(mounted: Mount) -> None:
    mounted.kill()
    unmounting.unmount(str(mounted.path))
    assert not mounted.is_mounted
    assert mounts.find(str(mounted.path)) is None


def test_p1_a_second_mount_at_the_same_place_is_refused(mounted: Mount) -> None:
    second = mounted.cli("mount", "-o", f"log={mounted.log}2", str(mounted.path), check=False)
    assert second.returncode == 1
    assert f"is a FlakeFS mount already (process {mounted.pid})" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_second_mount_of_the_same_file_system_joins(mounted: Mount) -> None:
    (mounted.path / "f").write_bytes(b"first")
    second = mounted.another()
    assert (second.path / "f").read_bytes() == b"first"
    (second.path / "f").write_bytes(b"second")
    assert (mounted.path / "f").read_bytes() == b"second"


def test_errors_before_the_mount_are_one_sentence(new_mount: NewMount, tmp_path: Path) -> None:
    mount = new_mount(start=False)
    (tmp_path / "file").write_text("")
    for arguments, status, says in (
        ((str(tmp_path / "file"),), 1, "is not a folder"),
        (("/proc/nothing/here",), 1, "cannot be made"),
        (("-o", "bogus", str(mount.path)), 2, "'bogus' is not known"),
        ((), 2, "no folder to mount at"),
    ):
        done = mount.cli("mount", "-o", f"log={mount.log}", *arguments, check=False)
        assert done.returncode == status, done.stderr
        assert says in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    mount.expect_log("not mounted: ")


def test_no_file_system_there(new_mount: NewMount) -> None:
    mount = new_mount(start=False)
    done = mount.cli("mount", "-o", f"log={mount.log},database=not_there", str(mount.path), check=False)
    assert done.returncode == 1
    assert "not_there" in done.stderr
    assert not mount.is_mounted
    mount.expect_log("not mounted: ")


def test_read_only(new_mount: NewMount) -> None:
    mount = new_mount()
    fill(mount)
    for words in ("ro", "ro,relatime,_netdev"):
        mount.remount(words)
        verify(mount)
        assert os.statvfs(mount.path).f_flag & os.ST_RDONLY
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EROFS):
            (mount.path / "new").touch()
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EROFS):
            (mount.path / "small").chmod(0o600)


def test_words_that_the_kernel_acts_on_reach_it(new_mount: NewMount) -> None:
    mount = new_mount(words="noexec,sync")
    lines = Path("/proc/mounts").read_text().splitlines()
    words = next(line.split()[3].split(",") for line in lines if line.split()[1] == str(mount.path))
    assert {"noexec", "sync"} <= set(words)
    script = mount.path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    with pytest.raises(PermissionError):
        subprocess.run([script], check=False)


def test_umount_of_a_busy_mount_names_who_uses_it(mounted: Mount) -> None:
    (mounted.path / "d").mkdir()
    user = subprocess.Popen(["sleep", "60"], cwd=mounted.path / "d")
    try:
        with pytest.raises(MountError, match=rf"is in use \(by sleep \({user.pid}\)\)"):
            unmounting.unmount(str(mounted.path))
        assert (mounted.path / "d").is_dir()
    finally:
        user.kill()
        user.wait()


def test_umount_and_sync_refuse_other_folders(tmp_path: Path) -> None:
    for call in (unmounting.unmount, unmounting.sync):
        with pytest.raises(UsageError, match="is not a FlakeFS mount"):
            call(str(tmp_path))


def test_u1_umount_says_when_something_could_not_be_stored(new_mount: NewMount) -> None:
    """A process that dies behind an unmount is no success."""
    mount = new_mount()
    record = mounts.find(str(mount.path))
    assert record is not None
    mounts.register(record)
    mounts.finish(record, "node 1 does not answer")
    with pytest.raises(MountError, match="not everything could be stored: node 1 does not answer"):
        unmounting._wait(dead(record), 5)
    assert mounts.find(str(mount.path)) is None


def dead(record: mounts.MountRecord) -> mounts.MountRecord:
    """The same record of a process that has ended, and its file."""
    from dataclasses import replace

    gone = replace(record, start=1, failure="node 1 does not answer")
    mounts.register(gone)
    return gone


def test_d4_sigusr1_dumps_stacks_into_the_log(mounted: Mount) -> None:
    mounted.expect_log("asked for by SIGUSR1")
    mounted.signal(signal.SIGUSR1)
    mounted.sync()  # a request that is answered after the signal was handled
    text = mounted.log_text()
    assert "pyfuse-" in text
    assert "thread MainThread" in text
    assert "flakefs/fuse/serving.py" in text


def test_the_mount_is_what_it_should_be(mounted: Mount) -> None:
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {mounted.path} " in line)
    device, _, kind, options, *_ = line.split()
    assert (device, kind) == ("flakefs", "fuse.flakefs")
    assert "default_permissions" in options
    assert "allow_other" not in options


def test_the_source_may_have_any_name(new_mount: NewMount) -> None:
    mount = new_mount(settings={"fuse": {"fsname": "a, b"}})
    assert f"\na,\\040b {mount.path} fuse.flakefs " in Path("/proc/mounts").read_text()


def test_allow_other(new_mount: NewMount) -> None:
    mount = new_mount(words="allow_other")
    assert re.search(rf" {mount.path} fuse.flakefs \S*allow_other", Path("/proc/mounts").read_text())


def test_the_kernel_reads_ahead(mounted: Mount) -> None:
    there = kernel.mounted_at(str(mounted.path))
    assert there is not None
    setting = Path(f"/sys/class/bdi/{there.device}/read_ahead_kb")
    if os.access(setting, os.W_OK):
        assert int(setting.read_text()) == 4096


@pytest.fixture
def helper() -> list[str]:
    """`mount -t flakefs`, or the helper itself where mount(8) does not find it."""
    if shutil.which("mount.flakefs", path="/sbin:/usr/sbin") and os.geteuid() == 0:
        return ["mount", "-t", "flakefs"]
    return [sys.executable, "-m", "flakefs.cli.mount_helper"]


def test_mount_helper(new_mount: NewMount, helper: list[str]) -> None:
    mount = new_mount(start=False)
    words = f"_netdev,nofail,x-systemd.mount-timeout=9,rw,log={mount.log}"
    subprocess.run([*helper, str(mount.config), str(mount.path), "-o", words], check=True, timeout=120)
    assert mount.is_mounted
    assert f"\n{mount.config} {mount.path} fuse.flakefs " in Path("/proc/mounts").read_text(), "H3"
    fill(mount)
    unmounting.unmount(str(mount.path))
    done = subprocess.run([*helper, str(mount.config), str(mount.path), "-o", "nonsense"], capture_output=True)
    assert done.returncode == 1
    assert b"'nonsense' is not known" in done.stderr
    assert not mount.is_mounted


def test_h1_the_helper_fails_with_status_32(new_mount: NewMount, helper: list[str], tmp_path: Path) -> None:
    mount = new_mount(start=False)
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "flakefs.cli.mount_helper"]
    done = subprocess.run(
        [*command, str(mount.config), str(tmp_path / "file"), "-o", f"log={mount.log}"], capture_output=True
    )
    assert done.returncode == 32
    assert b"is not a folder" in done.stderr
    mount.expect_log("not mounted: ")
