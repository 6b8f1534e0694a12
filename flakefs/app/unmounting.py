"""Ending a mount from outside, and making it store everything: what `flakefs umount` and `flakefs sync` do.

Invariants
    U1  unmount() returns only when the process behind the mount has ended and said that everything is stored; in every
        other case it raises with a sentence that says what is known.
    U2  Nothing is forced unless asked for.
    U3  A user that cannot be found, such as a service being started that looks at every mount, is given BUSY_SECONDS.

Concurrency
    Synchronous. Calls that ask the mount are bounded by its own time-outs (every call to a server has a deadline).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from flakefs.app import mounts
from flakefs.app.mountpoint import real_path
from flakefs.errors import MountError, UsageError
from flakefs.fuse import kernel

SHOWN_PROCESSES = 3
BUSY_SECONDS = 3.0
BUSY_PAUSE_SECONDS = 0.05


def unmount(mountpoint: str, *, force: bool = False, timeout_seconds: float = 300.0) -> None:
    """Store everything, unmount, wait for the process. *force*: go on when it is busy or cannot store."""
    path = _flake_mount(mountpoint)
    record = mounts.find(path)
    dead = kernel.is_dead(path)
    if dead is None and not force:
        raise MountError(f"{path} does not answer; see {_log_of(record)}, or detach it with --force")
    if dead or dead is None:
        kernel.unmount(path, lazy=True)
        if record is not None and not record.alive:
            mounts.forget(path)
        return
    try:
        kernel.store_everything(path)
    except OSError as error:
        if not force:
            raise MountError(
                f"{path} stays mounted, because not everything could be stored: {error.strerror}; "
                f"see {_log_of(record)}, or give up what is not stored with --force"
            ) from error
    try:
        _unmount_unless_used(path)
    except MountError as error:
        if not force or not kernel.is_busy(error):
            raise _busy(path) if kernel.is_busy(error) else error from None
        kernel.unmount(path, lazy=True)
    if record is not None:
        _wait(record, timeout_seconds)


def detach(mountpoint: str) -> None:
    """Take the mount from the tree, without asking it; it stores everything when its last user is gone."""
    path = _flake_mount(mountpoint)
    record = mounts.find(path)
    kernel.unmount(path, lazy=True)
    if record is not None and not record.alive:
        mounts.forget(path)


def sync(mountpoint: str) -> None:
    """Return when everything done below the mountpoint is stored."""
    path = _flake_mount(mountpoint)
    try:
        kernel.store_everything(path)
    except OSError as error:
        record = mounts.find(path)
        raise MountError(f"not everything could be stored: {error.strerror}; see {_log_of(record)}") from error


def _unmount_unless_used(path: str) -> None:
    """Raises the kernel's MountError, for one that is busy only when its user is known or does not go away (U3)."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            kernel.unmount(path)
            return
        except MountError as error:
            if not kernel.is_busy(error) or any(_users(path)) or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_PAUSE_SECONDS)  # nothing tells when a mount is let go


def _flake_mount(mountpoint: str) -> str:
    # a path that is listed is a real one; to ask the mount for links in it may block
    path = mountpoint if kernel.mounted_at(mountpoint) else real_path(mountpoint)
    there = kernel.mounted_at(path)
    if there is None or there.filesystem != kernel.FILESYSTEM_TYPE:
        raise UsageError(f"{path} is not a FlakeFS mount; `flakefs status` lists them")
    return path


def _wait(record: mounts.MountRecord, timeout_seconds: float) -> None:
    """Wait for the process, then for its verdict (M1 of app.mounts)."""
    if not mounts.wait_until_ended(record, timeout_seconds):
        raise MountError(
            f"{record.mountpoint} is unmounted, but process {record.pid} has not stored everything "
            f"after {timeout_seconds:g} s; it goes on, see {_log_of(record)}"
        )
    left = mounts.find(record.mountpoint)
    if left is None or (left.pid, left.start) != (record.pid, record.start):
        return
    mounts.forget(record.mountpoint)
    if left.failure:
        raise MountError(f"{record.mountpoint} is unmounted, and not everything could be stored: {left.failure}")
    raise MountError(
        f"{record.mountpoint} is unmounted, but process {record.pid} died before it could say that everything is "
        f"stored; see {_log_of(record)}"
    )


def _busy(path: str) -> MountError:
    users = list(islice(_users(path), SHOWN_PROCESSES + 1))
    who = ", ".join(users[:SHOWN_PROCESSES]) + (", ..." if len(users) > SHOWN_PROCESSES else "")
    by = f" (by {who})" if users else ""
    return MountError(f"{path} is in use{by}: end what uses it, or detach it with --force")


def _users(path: str) -> Iterator[str]:
    """Processes that have their working folder or an open file below *path*: "name (pid)". Only what may be seen."""
    below = path.rstrip("/") + "/"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            links = [process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir()]
            if any((os.readlink(link) + "/").startswith(below) for link in links if link.is_symlink()):
                yield f"{(process / 'comm').read_text().strip()} ({process.name})"
        except OSError:
            continue


def _log_of(record: mounts.MountRecord | None) -> str:
    return record.log if record is not None and record.log else "its log"
