"""What can be set about the mount itself.

Not here
    Where it is mounted and logged (config), how content is buffered (vfs).
"""

from __future__ import annotations

from dataclasses import dataclass

from flakefs.errors import ConfigError

KERNEL_FLAGS = ("noexec", "sync", "suid", "dev")
"""Options that are handed to the kernel under their own name."""
KERNEL_OPPOSITES = ("exec", "async", "nosuid", "nodev")
"""What takes each of them back; a mount without either is exec, async, nosuid and nodev, as FUSE mounts are."""
ROOT_FLAGS = ("suid", "dev")
"""Those that fusermount3 drops from what a normal user asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseOptions:
    """Options of one mount. Sizes in bytes, times in seconds."""

    allow_other: bool = False
    """May other users than the one who mounts use it? Non-root needs `user_allow_other` in /etc/fuse.conf."""
    cache_seconds: float = 3600.0
    """How long the kernel trusts names (missing ones too) and attributes while this mount is the only writer."""
    read_only_cache_seconds: float = 1.0
    """The same for a read-only mount, under which somebody else may write."""
    read_ahead_bytes: int = 4 * 1024 * 1024
    """How far the kernel reads ahead (set by sysfs after mounting, when that is allowed); 0 leaves it alone."""
    max_background: int = 64
    """Read-aheads and asynchronous requests in flight (set by sysfs, when allowed); 0 leaves the kernel's 12."""
    tasks: int = 64
    """Requests served at the same time; each holds a buffer of about 1 MiB once it was used for a large write."""
    fsname: str = "flakefs"
    """What mount(8), df and /proc/mounts show as the source of the mount."""
    noexec: bool = False
    """May no file of it be run as a program?"""
    sync: bool = False
    """Does every write wait until it is stored?"""
    suid: bool = False
    """Do set-user-ID and set-group-ID bits and file capabilities count? Only for mounts by root."""
    dev: bool = False
    """May device nodes be opened? Only for mounts by root."""

    def __post_init__(self) -> None:
        for name in ("cache_seconds", "read_only_cache_seconds", "read_ahead_bytes", "max_background"):
            if getattr(self, name) < 0:
                raise ConfigError(f"fuse: {name} must not be negative")
        if not self.fsname or not self.fsname.isprintable():
            raise ConfigError(f"fuse: fsname {self.fsname!r} must have printable characters only, and at least one")
        if not 4 <= self.tasks <= 512:
            raise ConfigError("fuse: tasks must be between 4 and 512")
