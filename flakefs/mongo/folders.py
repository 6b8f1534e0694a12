"""Where the embedded servers keep data and sockets, and whether that place will do.

Invariants
    F1  The data folder belongs to the user who runs this, and nobody else may look into it (0700).
    F2  Every process finds the same sockets for the same data folder: their place follows from its path alone.

Concurrency
    Synchronous; any process may be doing the same at the same time.

Not here
    Starting servers (mongo.embedded).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from flakefs.errors import EmbeddedError
from flakefs.mongo.server import SOCKET_PATH_MAX

MARK = "use.lock"
"""A folder with this file is one of ours."""

FRESH_BYTES = 256 * 1024 * 1024
"""Free space for making two servers: their journals take 200 MB."""
AGAIN_BYTES = 16 * 1024 * 1024
"""Free space for starting servers that have been there: recovery writes a little before anything can be deleted."""

_LONGEST_NAME = len("/metadata.sock")
_PLAIN = re.compile(r"[a-z0-9/._-]+")
"""Paths that may name a member of a replica set: drivers split such names at colons and make them lower case."""


def default_data() -> Path:
    """/var/lib/flakefs for root, the user's data folder for everybody else."""
    if os.geteuid() == 0:
        return Path("/var/lib/flakefs")
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "flakefs"


def prepare_data(configured: str) -> Path:
    """The data folder, made or checked (F1)."""
    path = Path(configured).expanduser().absolute() if configured else default_data()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.stat()
        _check_owner(path, found, "data folder")
        with os.scandir(path) as entries:
            names = {entry.name for entry in entries} - {"lost+found"}
    except FileExistsError as error:
        raise EmbeddedError(f"the data folder {path} is not a folder: choose another one (embedded.data)") from error
    except OSError as error:
        raise EmbeddedError(
            f"the data folder {path} cannot be used ({error.strerror}): choose another one (embedded.data)"
        ) from error
    if names and MARK not in names:
        raise EmbeddedError(f"the folder {path} holds other things: choose an empty one for the data (embedded.data)")
    try:
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o700)
        (path / MARK).touch(mode=0o600)
    except OSError as error:
        raise EmbeddedError(
            f"the data folder {path} is not writable ({error.strerror}): mend that, or choose another (embedded.data)"
        ) from error
    return path


def socket_folder(data: Path) -> Path:
    """The folder of the sockets, made and checked: below *data*, or, where that path will not do, a short one."""
    path = data / "run"
    if not takes_sockets(path):
        user = os.geteuid()
        mark = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
        path = Path("/run" if user == 0 else "/tmp") / f"flakefs-{user}-{mark}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        _check_owner(path, found, "folder for sockets")
        if not stat.S_ISDIR(found.st_mode):
            raise EmbeddedError(f"{path} has to be a folder, for sockets: remove what is there")
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise EmbeddedError(f"the folder {path} for sockets cannot be made: {error.strerror}") from error
    return path


def takes_sockets(folder: Path) -> bool:
    """May members of a replica set have their sockets there?"""
    return bool(_PLAIN.fullmatch(str(folder))) and len(str(folder)) + _LONGEST_NAME <= SOCKET_PATH_MAX


def check_space(data: Path, *, fresh: bool) -> None:
    """Is there room enough to start?"""
    disk = os.statvfs(data)
    free = disk.f_bavail * disk.f_frsize
    needed = FRESH_BYTES if fresh else AGAIN_BYTES
    if free < needed:
        raise EmbeddedError(
            f"only {free // 2**20} MiB are free on the disk of {data} and MongoDB needs {needed // 2**20} MiB to "
            "start: free some space there, or choose another data folder (embedded.data)"
        )


def _check_owner(path: Path, found: os.stat_result, what: str) -> None:
    if found.st_uid != os.geteuid():
        raise EmbeddedError(
            f"the {what} {path} belongs to user {found.st_uid} and you are user {os.geteuid()}: "
            "choose one of your own (embedded.data), or run this as that user"
        )
