"""Which mounts run on this machine: one small JSON file for each, written by the process behind it.

Purpose
    Lets `flakefs umount` find and wait for the process behind a folder, learn whether it stored everything, and lets
    `flakefs status` list the mounts.

Invariants
    M1  A file is written before the folder is usable, and removed by its process as the last thing it does when all
        was stored. When something was not, the file stays and says what (`failure`); whoever waited takes it away.
    M2  A process is the one meant only if its start time is the one in the file: numbers of processes are used again.
    M3  Files are replaced whole (rename), so a reader never sees half of one.

Concurrency
    Any number of processes; each writes only its own file. Reading drops what dead processes left.

Not here
    The kernel's list of mounts (fuse.kernel), sessions in the database (namespace.sessions).
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flakefs.errors import MountError


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRecord:
    """A running mount, or one that ended badly."""

    mountpoint: str
    pid: int
    start: int
    """When the process started, in clock ticks since the machine did (M2)."""
    log: str
    """Its log file; "" when it logs to its terminal."""
    metadata: str
    """URI of the metadata server without password, or "embedded"."""
    database: str
    read_only: bool = False
    since: float = 0.0
    """When it was mounted, seconds since the epoch."""
    failure: str = ""
    """Why not everything could be stored at the end; "" while all is well."""

    @property
    def alive(self) -> bool:
        return _start_of(self.pid) == self.start


def runtime_folder() -> Path:
    """Where this user's mounts are registered. Made when missing, readable by nobody else."""
    if os.geteuid() == 0:
        folder = Path("/run/flakefs")
    elif base := os.environ.get("XDG_RUNTIME_DIR"):
        folder = Path(base) / "flakefs"
    else:
        folder = Path(tempfile.gettempdir()) / f"flakefs-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.lstat().st_uid
    except OSError as error:
        raise MountError(f"{folder} cannot be made: {error.strerror}; running mounts are registered there") from error
    if owner != os.geteuid():
        raise MountError(f"{folder} belongs to user {owner}: remove it, running mounts are registered there")
    return folder


def register(record: MountRecord) -> None:
    """Announce a mount of this process; also to change what was announced."""
    path = _path(record.mountpoint)
    text = json.dumps(asdict(record), indent=1)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise MountError(f"{path} cannot be written: {error.strerror}; running mounts are registered there") from error


def own_record(mountpoint: str, *, log: str, metadata: str, database: str, read_only: bool) -> MountRecord:
    """The record of a mount by this process."""
    start = _start_of(os.getpid())
    assert start is not None
    return MountRecord(
        mountpoint=mountpoint, pid=os.getpid(), start=start, log=log, metadata=metadata, database=database,
        read_only=read_only, since=time.time(),
    )  # fmt: skip


def finish(record: MountRecord, failure: str = "") -> None:
    """The mount has ended: everything is stored, or *failure* says what is not (M1)."""
    if failure:
        register(replace(record, failure=failure))
        return
    current = find(record.mountpoint)
    if current is not None and (current.pid, current.start) == (record.pid, record.start):
        forget(record.mountpoint)


def forget(mountpoint: str) -> None:
    _path(mountpoint).unlink(missing_ok=True)


def find(mountpoint: str) -> MountRecord | None:
    """The record of the mount at this (real, absolute) path, also when its process is gone."""
    return _read(_path(mountpoint))


def running() -> list[MountRecord]:
    """The mounts of this user whose process lives, by mountpoint; records of crashed ones are dropped."""
    records = []
    for path in sorted(runtime_folder().glob("mount-*.json")):
        record = _read(path)
        if record is None:
            continue
        if record.alive:
            records.append(record)
        elif not record.failure:
            path.unlink(missing_ok=True)
    return sorted(records, key=lambda record: record.mountpoint)


def wait_until_ended(record: MountRecord, timeout_seconds: float) -> bool:
    """Wait for the process behind a mount; False when it still lives after the time."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    try:
        if not record.alive:  # asked after opening: from here on the descriptor is that of the right process
            return True
        return readable(descriptor, timeout_seconds)
    finally:
        os.close(descriptor)


def readable(descriptor: int, timeout_seconds: float) -> bool:
    """Does the descriptor become readable in that time? One of a process does when the process ends."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout_seconds * 1000))


def _path(mountpoint: str) -> Path:
    digest = hashlib.blake2b(os.fsencode(mountpoint), digest_size=12).hexdigest()
    return runtime_folder() / f"mount-{digest}.json"


def _read(path: Path) -> MountRecord | None:
    """None for no file, and for one that is not ours to understand."""
    try:
        return MountRecord(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _start_of(pid: int) -> int | None:
    """Start time of a living process in clock ticks since boot; None when there is none, or only its corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
