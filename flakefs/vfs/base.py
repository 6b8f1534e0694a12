"""What all operations of a FileSystem share.

Concurrency
    Trio task only.

Not here
    The operations (vfs.names, vfs.files, vfs.attributing).
"""

from __future__ import annotations

from collections.abc import Callable

from flakefs.engine import Engine
from flakefs.errors import FlakeError, NotDirectory
from flakefs.format.records import FormatRecord
from flakefs.namespace import Inode, Namespace
from flakefs.vfs import attributes
from flakefs.vfs.handles import Handles
from flakefs.vfs.options import VfsOptions
from flakefs.vfs.reading import Reader
from flakefs.vfs.writeback import Writeback


class Base:
    """State of one open file system, and the steps that many operations begin with."""

    def __init__(
        self,
        format: FormatRecord,
        engine: Engine,
        ns: Namespace,
        writeback: Writeback,
        options: VfsOptions,
        clock: Callable[[], int],
    ) -> None:
        # Dependencies
        self.format = format
        self.engine = engine
        self.ns = ns
        self.writeback = writeback
        self.reader = Reader(ns, engine, format.chunk_size, options.read_ahead_bytes)
        self._clock = clock
        # Constant after construction
        self.chunk_size = format.chunk_size
        self._relatime = options.atime == "relatime"
        self._close_stored = options.close_stored
        # Mutable
        self.handles = Handles()

    @property
    def default_code(self) -> str:
        """The replication code of what has none of its own."""
        return self.engine.replication

    def peek(self, ino: int) -> Inode | None:
        """The inode when it is in memory."""
        return self.ns.peek(ino)

    async def inode(self, ino: int) -> Inode:
        """The inode; raises Stale when there is none. Does not wait when it is in memory."""
        return self.ns.peek(ino) or await self.ns.get(ino)

    async def _folder(self, ino: int) -> Inode:
        found = self.ns.peek(ino) or await self.ns.get(ino)
        if found.mode & 0o170000 != 0o040000:
            raise NotDirectory(f"inode {ino} ({found.name!r}) is not a folder")
        return found

    def _accessed(self, inode: Inode) -> None:
        """Somebody read it (A3). Never fails: a read is not refused because its time cannot be kept."""
        if self._relatime:
            now = self._clock()
            ns = self.ns
            if attributes.atime_is_due(inode, now) and not ns.read_only and ns.failure is None:
                ns.accessed(inode, now)

    def _let_go(self, inode: Inode) -> bool:
        """A name, a handle or a look-up of *inode* is gone: forget its content when that was the last use of it.

        A large file is emptied in steps; then the write-back lets go of it when its document is deleted.
        """
        if inode.nlink or (inode.map is not None and inode.map.segments()):
            return False
        content = self.writeback.contents.get(inode.ino)
        if content is None or content.handles:
            return False
        self.writeback.forget(content)
        return True


def again(error: FlakeError) -> FlakeError:
    """A fresh copy of a remembered error, to be raised once more."""
    return type(error)(str(error))
