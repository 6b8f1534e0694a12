"""What callers hand in and get back: who asks, what to change, how full.

Concurrency
    Immutable values.

Not here
    What the operations mean (vfs.filesystem).
"""

from __future__ import annotations

from typing import NamedTuple

from flakefs.values import NAME_MAX


class Caller(NamedTuple):
    """Who asks."""

    uid: int
    gid: int
    umask: int = 0o022
    """Never applied by this layer: for a mount the kernel has done it, others apply it to `mode` themselves."""
    pid: int = 0


class Changes(NamedTuple):
    """What setattr shall change; None leaves a field alone."""

    mode: int | None = None
    """Permission bits; type bits are ignored."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    """Bytes."""
    atime: int | None = None
    """Nanoseconds since the epoch."""
    mtime: int | None = None


class StatFs(NamedTuple):
    """How full the file system is; block counts are in units of block_size bytes."""

    block_size: int
    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    name_max: int = NAME_MAX
