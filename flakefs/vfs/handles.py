"""Open files and folders by handle id.

Invariants
    H1  Every handle in the table holds its inode in the namespace once; leaving the table releases it once.
    H2  An id is never given twice in the life of a mount.

Concurrency
    Trio task only; nothing waits.

Not here
    What opening means (vfs.opening), the content itself (vfs.content).
"""

from __future__ import annotations

import itertools
import os

from flakefs.errors import BadHandle
from flakefs.namespace import Inode
from flakefs.vfs.content import FileContent

ACCESS_MASK = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class Handle:
    """One open file (content is set) or folder (content is None)."""

    __slots__ = ("ahead", "append", "content", "id", "inode", "next", "readable", "step", "synchronous", "writable")

    def __init__(self, handle_id: int, inode: Inode, content: FileContent | None, flags: int) -> None:
        access = flags & ACCESS_MASK
        self.id = handle_id
        self.inode = inode
        self.content = content
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY
        self.append = bool(flags & os.O_APPEND)
        self.synchronous = bool(flags & (os.O_SYNC | os.O_DSYNC))
        # Read-ahead: see vfs.reading
        self.next = 0
        """Offset at which a sequential reader goes on."""
        self.ahead = 0
        """Up to here content was asked for in advance."""
        self.step = 0
        """Bytes to ask for in advance; doubles while reading goes on sequentially."""


class Handles:
    """The table."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._by_id: dict[int, Handle] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, inode: Inode, content: FileContent | None, flags: int) -> Handle:
        handle = Handle(next(self._ids), inode, content, flags)
        self._by_id[handle.id] = handle
        return handle

    def get(self, handle_id: int) -> Handle:
        handle = self._by_id.get(handle_id)
        if handle is None:
            raise BadHandle(f"no open file has the handle {handle_id}")
        return handle

    def remove(self, handle_id: int) -> Handle:
        handle = self._by_id.pop(handle_id, None)
        if handle is None:
            raise BadHandle(f"no open file has the handle {handle_id}")
        return handle

    def ino_of(self, handle_id: int) -> int:
        """The inode that a handle is of, for messages; 0 when the handle is not open."""
        handle = self._by_id.get(handle_id)
        return handle.inode.ino if handle is not None else 0

    def ids(self) -> list[int]:
        return list(self._by_id)
