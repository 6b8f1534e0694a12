"""The file system: one async method per POSIX operation, on inode numbers and handle ids.

Purpose
    What `fuse`, `api` and the command line go through, so that they cannot disagree. Raises errors of flakefs.errors.

Invariants
    F1  An operation that fails has changed nothing (a write that fails while it is made durable has written).
    F2  An operation on what is in memory does not wait; this is what makes it fast.
    F3  In shared mode a record that is appended is shown when it is committed: another session may come first, and it
        ends up elsewhere. Who looks at the size or the content of the file waits for the commit; a few times at most,
        and not for a store that is away, and is then told what there is.

Concurrency
    Trio task only; any number of operations at once.

Not here
    The operations (vfs.names, vfs.files, vfs.attributing), the FUSE protocol (fuse).
"""

from __future__ import annotations

from dataclasses import dataclass

from flakefs.vfs.attributing import Attributing
from flakefs.vfs.names import Names


@dataclass(frozen=True, slots=True, kw_only=True)
class VfsStatistics:
    open_bytes: int
    """Written and not yet sealed."""
    sealed_bytes: int
    """Sealed and not yet durable, with overhead."""
    handles: int
    """Open files and folders."""
    contents: int
    """Files that are open or have content that is not durable."""
    failure: str
    """Why content cannot be stored at the moment; empty when it can."""


class FileSystem(Names, Attributing):
    async def sync(self) -> None:
        """Everything done so far is durable on return."""
        await self.ns.commit()

    def statistics(self) -> VfsStatistics:
        budget = self.writeback.budget
        return VfsStatistics(
            open_bytes=budget.open_bytes,
            sealed_bytes=budget.sealed_bytes,
            handles=len(self.handles),
            contents=len(self.writeback.contents),
            failure=str(budget.failure or ""),
        )

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself. Cheap enough for every test."""
        self.writeback.check_invariants()
