"""The folder a file system is mounted at: found fit, or refused with a sentence; freed of what a crash left there.

Invariants
    P1  Only dead FlakeFS mounts are taken away, never a living one and never one of another file system.

Concurrency
    Synchronous; blocks for up to ten seconds when a daemon does not answer.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from flakefs.app import mounts
from flakefs.errors import MountError
from flakefs.fuse import kernel

log = logging.getLogger(__name__)


def real_path(mountpoint: str) -> str:
    """Absolute, without symbolic links: as the kernel lists it. Works for a dead mountpoint too."""
    return os.path.realpath(mountpoint)


def prepare(mountpoint: str) -> str:
    """The real path of a folder that can be mounted at: made when it is missing, freed when a dead mount is there."""
    path = real_path(mountpoint)
    while (there := kernel.mounted_at(path)) is not None and there.filesystem == kernel.FILESYSTEM_TYPE:
        _take_away_dead(path)
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise MountError(f"{path} is not a folder, and only a folder can be mounted at")
    except FileNotFoundError:
        _make(path)
    except OSError as error:
        if there is not None and error.errno == errno.ENOTCONN:
            hint = f"a dead mount of {there.filesystem} is there; take it away with: umount -l {path}"
            raise MountError(f"{path} cannot be mounted at: {hint}") from error
        raise MountError(f"{path} cannot be mounted at: {error.strerror}") from error
    if there is None:  # a look into another mount could wait for it
        _say_what_is_covered(path)
    return path


def _say_what_is_covered(path: str) -> None:
    with suppress(OSError), os.scandir(path) as entries:
        if next(entries, None) is not None:
            log.info("%s is not empty: what is in it is covered until it is unmounted", path)


def _make(path: str) -> None:
    try:
        os.makedirs(path)
    except OSError as error:
        raise MountError(f"the folder {path} does not exist and cannot be made: {error.strerror}") from error
    log.info("made the folder %s", path)


def _take_away_dead(path: str) -> None:
    record = mounts.find(path)
    behind = f" (process {record.pid})" if record is not None and record.alive else ""
    match kernel.is_dead(path):
        case True:
            log.info("%s is a dead mountpoint that a crash left; it is taken away", path)
            kernel.unmount(path, lazy=True)
            mounts.forget(path)
        case False:
            raise MountError(f"{path} is a FlakeFS mount already{behind}; to mount anew: flakefs umount {path}")
        case None:
            raise MountError(f"{path} is a FlakeFS mount{behind} that does not answer; look at its log, or end it")


def log_file(mountpoint: str) -> Path:
    """The default log of a mount in the background: in the system's log folder, or the user's state folder."""
    if os.geteuid() == 0:
        folder = Path("/var/log/flakefs")
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "flakefs"
    name = real_path(mountpoint).strip("/").replace("/", "-") or "root"
    return folder / f"{name[-200:]}.log"
