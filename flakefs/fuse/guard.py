"""A small process beside each mount that ends the kernel's connection when the mount was killed and hangs.

Purpose
    When others' changes are told to the kernel (fuse.caches), it may make the calling thread wait until an open request
    is answered: by this very process. Killed at that moment, the process can not end: the thread waits for an answer
    that nobody gives any more, so /dev/fuse stays open, and every program that asks the mount hangs, and not even
    SIGKILL helps. Ending the connection from outside frees all of them.

Invariants
    GU1  The guard acts only when the main thread of the mount is gone and other threads of it are still there after
         GRACE_SECONDS; on the very mount it was started for.
    GU2  It holds no file of the mount, ends with it, and ignores what is meant for the mount (SIGTERM to a group).

Concurrency
    A process of its own, that runs this file as a program and therefore knows nothing but the standard library. The
    kernel signals the end of the thread that started it: start() has to be called by the main thread.

Not here
    Taking the dead mountpoint away (app.mountpoint).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 0.5
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 60.0
PARENT_ENDED = signal.SIGRTMIN + 5
PR_SET_PDEATHSIG = 1
MNT_FORCE = 1
UMOUNT_NOFOLLOW = 8


def start(mountpoint: str, device: str) -> subprocess.Popen[bytes]:
    """The guard of the mount with this device number ("major:minor"). kill() it when the mount has ended."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), mountpoint, device],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    )  # fmt: skip


def stop(guard: subprocess.Popen[bytes]) -> None:
    guard.kill()
    guard.wait()


def main(pid: int, mountpoint: str, device: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [PARENT_ENDED])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, PARENT_ENDED)
    if os.getppid() == pid:
        signal.sigwait([PARENT_ENDED])
    end = time.monotonic() + PATIENCE_SECONDS
    time.sleep(GRACE_SECONDS)
    while _hangs(pid) and time.monotonic() < end:  # GU1
        if not _abort(device):
            _unmount(libc, mountpoint, device)
        time.sleep(POLL_SECONDS)


def _hangs(pid: int) -> bool:
    """Is the main thread a corpse, and are there other threads?"""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
        return state == b"Z" and len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def _abort(device: str) -> bool:
    """Through fusectl, where it is mounted and we may."""
    try:
        with open(f"/sys/fs/fuse/connections/{device.rpartition(':')[2]}/abort", "wb", buffering=0) as file:
            file.write(b"1")
        return True
    except OSError:
        return False


def _unmount(libc: ctypes.CDLL, mountpoint: str, device: str) -> None:
    """Unmounting by force ends the connection, too, also when the mount is busy and stays; only root may."""
    path = os.fsencode(mountpoint)
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = [line.split(b" ") for line in file]
    here = [fields[2] for fields in mounts if fields[4] == path.replace(b"\\", b"\\134").replace(b" ", b"\\040")]
    if here and here[-1] == device.encode():
        libc.umount2(path, MNT_FORCE | UMOUNT_NOFOLLOW)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
