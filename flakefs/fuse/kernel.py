"""The kernel's side of a mount: what is mounted where, unmounting, and the settings reachable through sysfs.

Invariants
    K1  No function here touches a path below a mountpoint in a way that asks the daemon behind it, except
        `is_dead`, which does so in a thread of its own and gives up after a time-out.

Concurrency
    Synchronous and without state; unmounting may block while the kernel writes back, so call it from a thread when
    this process is the one that answers the mount.

Not here
    Which process is behind a mount (app.mounts).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

from flakefs.errors import MountError

log = logging.getLogger(__name__)

SUBTYPE = "flakefs"
FILESYSTEM_TYPE = f"fuse.{SUBTYPE}"
CONNECTIONS = Path("/sys/fs/fuse/connections")
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
RENAMES = {
    "x86_64": (b"82", b"264", b"316", b"38", b"302", b"353"),  # and those of 32-bit programs
    "aarch64": (b"38", b"276"),
    "riscv64": (b"276",),
}.get(os.uname().machine, ())
"""Numbers of rename(2), renameat(2) and renameat2(2)."""
ASLEEP_LOOKS = 20
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.ESTALE)
_OCTAL = re.compile(rb"\\([0-7]{3})")
_libc = ctypes.CDLL(None, use_errno=True)


class Mounted(NamedTuple):
    """One line of /proc/self/mountinfo."""

    mountpoint: str
    filesystem: str
    device: str
    """major:minor"""


def mounts() -> list[Mounted]:
    """All mounts this process sees, in the order they were made (the last one at a path is on top)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        kind = fields[fields.index(b"-", 6) + 1]
        path = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
        found.append(Mounted(os.fsdecode(path), kind.decode(), fields[2].decode()))
    return found


def mounted_at(mountpoint: str) -> Mounted | None:
    """What is mounted at exactly this (real, absolute) path, if anything."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def is_dead(mountpoint: str, *, patience_seconds: float = 10.0) -> bool | None:
    """Has the daemon behind the mountpoint gone? None: it is there, and does not answer in time."""
    answer: list[bool] = []

    def ask() -> None:
        try:
            os.statvfs(mountpoint)  # stat would be answered from the cache of the kernel
            answer.append(False)
        except OSError as error:
            answer.append(error.errno in _DEAD)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience_seconds)
    return answer[0] if answer else None


def system_call(thread: int) -> bytes:
    """What the thread, which waits for our answer, has called: number, arguments, stack and place in the program. b"":
    that may not be seen.
    """
    try:
        with open(f"/proc/{thread}/syscall", "rb", buffering=0) as file:
            for _ in range(ASLEEP_LOOKS):
                line = file.read(200)
                if not line.startswith(b"running"):
                    return line
                os.sched_yield()  # it has asked, and is about to fall asleep
                file.seek(0)
    except OSError:
        pass
    return b""


def is_renaming(thread: int) -> bool:
    """Is the thread, which waits for our answer, in rename(2)? False, too, where that may not be seen."""
    return system_call(thread).split(b" ", 1)[0] in RENAMES


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Take the mount away. *lazy*: now from the tree, and for good when the last user is gone.

    Raises MountError; its cause is an OSError with EBUSY when somebody uses it.
    """
    if os.geteuid() == 0:
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        if _libc.umount2(os.fsencode(mountpoint), flags) == 0:
            return
        code = ctypes.get_errno()
        raise MountError(f"{mountpoint} cannot be unmounted: {os.strerror(code)}") from OSError(code, os.strerror(code))
    helper = shutil.which("fusermount3")
    if helper is None:
        raise MountError("fusermount3 was not found; install the package fuse3")
    done = subprocess.run(
        [helper, "-u", *(["-z"] if lazy else []), "--", mountpoint],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    if done.returncode:
        words = done.stderr.strip().rpartition(": ")[2] or f"fusermount3 ended with status {done.returncode}"
        cause = OSError(errno.EBUSY if "busy" in words.lower() else errno.EPERM, words)
        raise MountError(f"{mountpoint} cannot be unmounted: {words}") from cause


def is_busy(error: MountError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY


def write_back(mountpoint: str) -> None:
    """Make the kernel send dirty pages of memory-mapped files to the daemon (syncfs(2) does that much)."""
    descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), mountpoint)
    finally:
        os.close(descriptor)


def store_everything(mountpoint: str) -> None:
    """Return when everything done below the mountpoint so far is stored. Raises OSError when it cannot be."""
    write_back(mountpoint)
    descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tune(mountpoint: str, *, read_ahead_bytes: int, max_background: int) -> None:
    """Raise what the kernel limits for FUSE; only root may, and a mount works without."""
    mount = mounted_at(mountpoint)
    if mount is None:
        return
    if read_ahead_bytes:
        _set(Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb"), read_ahead_bytes // 1024)
    if max_background:
        connection = CONNECTIONS / mount.device.rpartition(":")[2]
        _set(connection / "max_background", max_background)
        _set(connection / "congestion_threshold", max_background * 3 // 4)


def _set(path: Path, value: int) -> None:
    try:
        path.write_text(f"{value}\n")
    except OSError as error:  # not root, or a container without that part of sysfs
        log.debug("%s stays as it is: %s", path, error.strerror)
