"""What all operations of a FileSystem share.

Concurrency
    Trio task only.

Not here
    The operations (vfs.names, vfs.files, vfs.attributing).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from flakefs.engine import Engine
from flakefs.errors import FlakeError, NotDirectory
from flakefs.format.records import FormatRecord
from flakefs.namespace import Inode, Namespace
from flakefs.vfs import attributes
from flakefs.vfs.handles import Handles
from flakefs.vfs.options import VfsOptions
from flakefs.vfs.reading import Reader
from flakefs.vfs.writeback import Writeback

APPEND_LOOKS = 5
"""How often a file is looked at in vain while records are appended to it, before what there is is told."""
APPEND_SECONDS = 5.0
"""How long one commit is waited for before a look; an append itself waits for error_timeout."""


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
        self._appends: dict[int, int] = {}  # how many are under way, by inode; shared mode only

    @property
    def default_code(self) -> str:
        """The replication code of what has none of its own."""
        return self.engine.replication

    def peek(self, ino: int) -> Inode | None:
        """The inode when it is in memory, and may be shown (F3)."""
        inode = self.ns.peek(ino)
        return None if inode is None or self._unsure(inode) else inode

    async def inode(self, ino: int) -> Inode:
        """The inode; raises Stale when there is none. Does not wait when it is in memory, but for F3."""
        inode = await self._inode(ino)
        for _ in range(APPEND_LOOKS):
            if not (self._unsure(inode) and await self._settled()):
                break
            inode = await self._inode(ino)
        return inode

    async def _inode(self, ino: int) -> Inode:
        """The same for whoever does not tell its size: it does not wait for appends."""
        return self.ns.peek(ino) or await self.ns.get(ino)

    def _unsure(self, inode: Inode) -> bool:
        """Has it, in memory, a record that may still be put elsewhere?"""
        return inode.ino in self._appends and (inode.dirty or inode.flying)

    async def _settled(self) -> bool:
        """Wait for the commit of the appends under way; there may be new ones on return. False: it does not come."""
        if self.ns.failure is None:
            with suppress(FlakeError), trio.move_on_after(APPEND_SECONDS):
                await self.ns.commit()
                return True
        return False

    async def _shown(self, inode: Inode) -> Inode:
        """*inode*, when it may be shown (F3). Never fails: what is answered with it has been done."""
        with suppress(FlakeError):
            return await self.inode(inode.ino) if self._unsure(inode) else inode
        return inode

    async def _folder(self, ino: int) -> Inode:
        found = await self._inode(ino)
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
