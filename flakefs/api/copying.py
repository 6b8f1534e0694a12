"""What copying trees in and out has in common: options, how it is watched, what is fatal.

Rules (as GNU cp has them)
    Y1  Without `recursive` a folder is left out and reported; a symlink is followed.
    Y2  With `recursive` symlinks are copied as symlinks, and special files as special files.
    Y3  Without `preserve` a new file has the mode of its source less the umask, no set-id bits, and the time of now.
        `preserve` keeps mode, owner and times; `archive` means both and keeps hard links and user.* attributes, too.
    Y4  A file that cannot be copied is reported, and the others are copied; a store that fails ends everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flakefs.errors import NoSpace, PosixError, ReadOnly


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    recursive: bool = False
    preserve: bool = False
    archive: bool = False
    no_clobber: bool = False
    """Leave what is already there alone."""
    replication: str = ""
    """Into the file system: the code of the files written and of the folders made; "" leaves it to the folder above."""

    @property
    def keeps(self) -> bool:
        return self.preserve or self.archive

    @property
    def deep(self) -> bool:
        return self.recursive or self.archive


class Watcher(Protocol):
    """Hears how a copy goes on; called in the trio thread."""

    def started(self, path: bytes, size: int) -> None:
        """A file is being copied now."""

    def advance(self, count: int) -> None:
        """So many bytes more."""

    def done(self, source: bytes, target: bytes) -> None:
        """A file, folder or link is there."""

    def problem(self, message: str) -> None:
        """This one could not be copied (Y4)."""


def fatal(error: PosixError) -> bool:
    """Would every other file fail in the same way?"""
    return isinstance(error, (NoSpace, ReadOnly))
