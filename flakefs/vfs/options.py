"""Options of the vfs layer."""

from __future__ import annotations

from dataclasses import dataclass

from flakefs.errors import ConfigError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class VfsOptions:
    """How much is kept in memory and when callers wait."""

    dirty_bytes: int = 64 * MIB
    """Content written and not yet durable; writers wait above it."""
    error_timeout_seconds: float = 30.0
    """So long a writer waits for a store that does not answer before it is told EIO."""
    read_ahead_bytes: int = 8 * MIB
    """Fetched ahead of a sequential reader; 0 switches it off."""
    close_stored: bool = False
    """close() waits until the file is durable."""
    atime: str = "relatime"
    """relatime (as Linux: when it is older than mtime, ctime or a day) or noatime (never)."""
    store_tasks: int = 6
    """Engine calls in flight at once."""

    def __post_init__(self) -> None:
        if self.dirty_bytes < 4 * MIB:
            raise ConfigError(
                f"dirty_bytes is {self.dirty_bytes}; at least {4 * MIB} (4 MiB) are needed to gather chunks"
            )
        if self.error_timeout_seconds <= 0:
            raise ConfigError("error_timeout_seconds must be more than 0: nobody may wait for ever")
        if self.read_ahead_bytes < 0:
            raise ConfigError("read_ahead_bytes cannot be negative; 0 switches read-ahead off")
        if self.atime not in ("relatime", "noatime"):
            raise ConfigError(f'atime is "{self.atime}"; it can be "relatime" or "noatime"')
        if not 1 <= self.store_tasks <= 64:
            raise ConfigError(f"store_tasks is {self.store_tasks}; it can be 1 to 64")
