"""Words of -o that the kernel acts on, and the end of a mount by umount(8)."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flakefs.app import unmounting
from flakefs.cli import umount_helper
from flakefs.errors import MountError
from flakefs.fuse import kernel
from flakefs.testing.mounted import Mount, NewMount

UMOUNT_HELPER = [sys.executable, "-m", "flakefs.cli.umount_helper"]
MOUNT_HELPER = [sys.executable, "-m", "flakefs.cli.mount_helper"]
SOMEBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the kernel grants suid and dev to root only")


def kernel_words(mount: Mount) -> set[str]:
    lines = Path("/proc/mounts").read_text().splitlines()
    return set(next(line.split()[3] for line in lines if line.split()[1] == str(mount.path)).split(","))


def seen_user(program: Path) -> int:
    """The effective user that *program* (a copy of id(1)) runs as, when somebody starts it."""
    command = [f"./{program.name}", "-u"]  # the way to it is not open to everybody
    done = subprocess.run(command, cwd=program.parent, user=SOMEBODY, capture_output=True, text=True, check=True)
    return int(done.stdout)


def make_special(mount: Mount) -> tuple[Path, Path]:
    """A program of root's with the set-user-ID bit, and a device node."""
    program, device = mount.path / "id", mount.path / "zero"
    identity = shutil.which("id")
    assert identity is not None
    shutil.copyfile(identity, program)
    program.chmod(0o4755)
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    return program, device


@needs_root
def test_without_words_a_mount_is_nosuid_and_nodev(new_mount: NewMount) -> None:
    mount = new_mount(words="allow_other")
    program, device = make_special(mount)
    assert {"nosuid", "nodev"} <= kernel_words(mount)
    assert seen_user(program) == SOMEBODY
    with pytest.raises(PermissionError):
        device.open("rb")


@needs_root
def test_suid_and_dev_do_what_they_say(new_mount: NewMount) -> None:
    mount = new_mount(words="allow_other,suid,dev")
    program, device = make_special(mount)
    assert not {"nosuid", "nodev"} & kernel_words(mount)
    assert seen_user(program) == 0
    with device.open("rb") as file:
        assert file.read(3) == b"\0\0\0"
    mount.remount("nosuid,nodev")  # the last word counts
    assert {"nosuid", "nodev"} <= kernel_words(mount)
    assert seen_user(program) == SOMEBODY


@needs_root
@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("rw", set()),
        ("rw,nosuid", {"nosuid"}),
        ("nodev,nosuid", {"nosuid", "nodev"}),
        ("rw,user", {"noexec", "nosuid", "nodev"}),
        ("suid,users,dev,exec", {"nosuid"}),
        ("group", {"nosuid", "nodev"}),
        ("owner,suid", {"nodev"}),
        ("rw,noexec,nodev,user,suid", {"noexec", "nodev"}),  # as mount(8) passes on a user,suid of fstab
    ],
)
def test_h6_h7_mount_8_by_root_is_suid_and_dev(new_mount: NewMount, words: str, given: set[str]) -> None:
    mount = new_mount(start=False)
    command = [*MOUNT_HELPER, str(mount.config), str(mount.path)]
    subprocess.run([*command, "-o", f"{words},log={mount.log}"], check=True, timeout=120)
    assert {"noexec", "nosuid", "nodev"} & kernel_words(mount) == given
    unmounting.unmount(str(mount.path))


def test_noatime_keeps_access_times(new_mount: NewMount) -> None:
    mount = new_mount(words="noatime")
    file = mount.path / "file"
    file.write_text("content")
    os.utime(file, ns=(1, 2))
    mount.remount()
    file.read_text()
    assert file.stat().st_atime_ns == 1
    mount.remount("relatime")
    file.read_text()
    assert file.stat().st_atime_ns > 2


def test_a_word_without_effect_is_said(new_mount: NewMount) -> None:
    mount = new_mount(start=False)
    done = mount.cli("mount", "-o", f"strictatime,log={mount.log}", str(mount.path))
    assert done.stderr == (
        "flakefs: mount option strictatime has no effect: access times move as relatime says, or never with noatime\n"
    )
    assert mount.is_mounted
    unmounting.unmount(str(mount.path))


# umount(8)


def test_h4_umount_returns_when_everything_is_stored(new_mount: NewMount) -> None:
    mount = new_mount(settings={"namespace": {"commit_interval_seconds": 600}})
    for number in range(300):
        (mount.path / f"file{number}").write_bytes(b"%d" % number)
    subprocess.run([*UMOUNT_HELPER, str(mount.path), "-t", "fuse.flakefs"], check=True, timeout=100)
    assert not mount.is_mounted
    assert "everything is stored" in mount.log_text()
    mount.mount()
    assert (mount.path / "file299").read_bytes() == b"299"


def test_h4_umount_says_who_uses_the_mount(mounted: Mount) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=mounted.path) as user:
        done = subprocess.run([*UMOUNT_HELPER, str(mounted.path)], capture_output=True, text=True, timeout=100)
        assert done.returncode == 32
        assert f"is in use (by sleep ({user.pid}))" in done.stderr
        assert mounted.is_mounted
        user.kill()


def test_h4_wrong_calls(tmp_path: Path) -> None:
    for words in ([], ["-z", "/mnt"], ["/mnt", "-N"], ["/mnt", "/other"], [str(tmp_path)]):
        done = subprocess.run([*UMOUNT_HELPER, *words], capture_output=True, text=True, timeout=100)
        assert done.returncode == 1, words
        assert done.stderr.startswith("umount.fuse.flakefs: ")


def test_h5_lazily_it_is_detached(new_mount: NewMount) -> None:
    mount = new_mount()
    (mount.path / "file").write_text("kept")
    with (mount.path / "file").open() as user:
        subprocess.run([*UMOUNT_HELPER, "-l", str(mount.path)], check=True, timeout=100)
        assert not mount.is_mounted
        assert user.read() == "kept"
    mount.wait()
    assert "everything is stored" in mount.log_text()


def test_h5_only_flakefs_is_detached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By root it would be anybody's mount otherwise."""
    detached: list[str] = []
    monkeypatch.setattr(kernel, "unmount", lambda path, *, lazy=False: detached.append(path))
    for folder in ("/proc", str(tmp_path)):
        assert umount_helper.run(["-l", folder]) == 1
        assert f"{folder} is not a FlakeFS mount" in capsys.readouterr().err
    assert not detached


def test_h5_a_mount_that_does_not_answer_is_detached(new_mount: NewMount) -> None:
    mount = new_mount(settings={"fuse": {"cache_seconds": 0.0}})
    mount.signal(signal.SIGSTOP)
    try:
        subprocess.run([*UMOUNT_HELPER, "-l", str(mount.path)], check=True, timeout=100)
        assert not mount.is_mounted
    finally:
        mount.signal(signal.SIGCONT)
    mount.wait()
    assert "everything is stored" in mount.log_text()


def test_h8_another_namespace_is_refused(mounted: Mount) -> None:
    here = [str(mounted.path), "-N", str(os.getpid())]
    for helper in (UMOUNT_HELPER, MOUNT_HELPER):
        words = [str(mounted.config)] if helper is MOUNT_HELPER else []
        for namespace, sentence in (("/proc/self/ns/uts", "go there: nsenter"), ("/nowhere", "cannot be looked at")):
            command = [*helper, *words, str(mounted.path), "-N", namespace]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100)
            assert done.returncode == 1
            assert sentence in done.stderr
    assert mounted.is_mounted
    subprocess.run([*UMOUNT_HELPER, *here], check=True, timeout=100)
    subprocess.run([*MOUNT_HELPER, str(mounted.config), *here, "-o", f"log={mounted.log}"], check=True, timeout=100)


def test_u3_a_user_that_is_gone_in_a_moment_is_waited_for(mounted: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmounting, "BUSY_SECONDS", 60.0)
    user = os.open(mounted.path, os.O_RDONLY)  # of this process, which unmount() does not count
    refused = threading.Event()
    really = kernel.unmount

    def unmount(path: str, *, lazy: bool = False) -> None:
        try:
            really(path, lazy=lazy)
        except MountError:
            if not refused.is_set():
                refused.set()
                os.close(user)
            raise

    monkeypatch.setattr(kernel, "unmount", unmount)
    unmounting.unmount(str(mounted.path))
    assert refused.is_set()
    assert not mounted.is_mounted
    monkeypatch.undo()
    mounted.mount()


def test_u3_one_that_stays_is_an_error(mounted: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmounting, "BUSY_SECONDS", 0.1)
    user = os.open(mounted.path, os.O_RDONLY)
    try:
        with pytest.raises(MountError, match="is in use: end what uses it"):
            unmounting.unmount(str(mounted.path))
    finally:
        os.close(user)
    assert mounted.is_mounted
