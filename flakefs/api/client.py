"""flakefs.connect(): the file system for synchronous Python code.

Purpose
    A thin class: each method encodes its path, calls one function on the trio side, and returns plain values.

Invariants
    C5  Clients and mounts may write to one file system at once; what one of them has answered the others find.
    C6  A read-only client sees what was committed; nothing it does changes the file system.
    C7  What was done is durable after sync() and after close().

Concurrency
    Any number of threads may use one client; each call is one operation of the file system.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import IO, Any, BinaryIO, Concatenate, ParamSpec, Self, TypeVar

from flakefs.api import changes, pieces, transfer
from flakefs.api import replication as codes
from flakefs.api.facts import Entry, Facts, entry, facts
from flakefs.api.files import open_file
from flakefs.api.paths import AnyPath, absolute, folder, join, reach, reach_or_none
from flakefs.api.pieces import Piece
from flakefs.api.portal import Portal
from flakefs.api.searching import Query, found
from flakefs.config import Config, load
from flakefs.errors import IsDirectory
from flakefs.vfs import FileSystem

P = ParamSpec("P")
T = TypeVar("T")


def connect(
    config: str | os.PathLike[str] | Config | None = None, *, read_only: bool = False, purpose: str = ""
) -> Client:
    """Open the file system of a configuration: a file, a Config, or None for the one that the command line finds.

    Without any configuration the embedded MongoDB is used, and started when nobody runs it. Use the result in a `with`
    block, or close() it. *purpose* tells others what holds the file system.
    """
    if not isinstance(config, Config):
        config = load(config)
    return Client(config, read_only=read_only, purpose=purpose)


class Client:
    """An open file system. Paths are str, bytes or PathLike, absolute ("/a/b"); a missing leading slash is accepted."""

    def __init__(self, config: Config, *, read_only: bool = False, purpose: str = "") -> None:
        self._config = config
        self._portal = Portal(config, kind="tool", writable=not read_only, where=purpose or "Python program")
        self.read_only = read_only

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Store everything and let go of the file system. May be called twice."""
        self._portal.close()

    def sync(self) -> None:
        """Return when everything done so far is stored durably."""
        self._portal.call(_sync)

    def run(self, function: Callable[Concatenate[FileSystem, P], Awaitable[T]], *args: P.args, **named: P.kwargs) -> T:
        """Run an async `function(fs, ...)` beside the file system, with trio, and return what it does."""
        return self._portal.call(function, *args, **named)

    # Content

    def open(
        self,
        path: AnyPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        replication: str | None = None,
    ) -> IO[Any]:
        """A file object as from the built-in open(): modes r, w, a, x, with + and b. Text is UTF-8 by default.

        *replication*: as in put().
        """
        code = replication or ""
        return open_file(self._portal, absolute(path), mode, buffering, encoding, errors, newline, code)

    def put(self, source: AnyPath | BinaryIO, path: AnyPath, *, replication: str | None = None) -> int:
        """Copy a local file, or everything a binary stream gives, to the file *path*; the number of bytes.

        *replication*: the code ("001") that the file gets, for what is written now and later; None leaves the one that
        it has, or inherits from its folder.
        """
        code = replication or ""
        target = absolute(path)
        if isinstance(source, (str, bytes, os.PathLike)):
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                if stat.S_ISDIR(status.st_mode):
                    raise IsDirectory(f"{os.fsdecode(source)} is a folder; put() copies one file")
                if not stat.S_ISREG(status.st_mode):
                    with open(fd, "rb", closefd=False) as stream:
                        return self._portal.call(transfer.write_stream, target, stream, code=code)
                mode = stat.S_IMODE(status.st_mode) & 0o777
                return self._portal.call(transfer.write_local, target, fd, mode, code=code)
            finally:
                os.close(fd)
        return self._portal.call(transfer.write_stream, target, source, code=code)

    def get(self, path: AnyPath, target: AnyPath | BinaryIO) -> int:
        """Copy the file *path* to a local file or binary stream; the number of bytes."""
        if isinstance(target, (str, bytes, os.PathLike)):
            return self._portal.call(transfer.read_local, absolute(path), os.fsencode(target))
        return self._portal.call(transfer.read_stream, absolute(path), target)

    def chunks(self, path: AnyPath) -> Iterator[Piece]:
        """The content of *path* piece by piece as it is stored, with hash, chunk id and volume; holes are left out."""
        ino = self._portal.call(reach, absolute(path)).ino
        start: int | None = 0
        while start is not None:
            batch, start = self._portal.call(pieces.batch, ino, start)
            yield from batch

    # Names and facts

    def stat(self, path: AnyPath, *, follow: bool = True) -> Facts:
        """Everything about *path*: attributes, checksum, chunks with reference counts, volumes and nodes, MIME type."""
        stack = self._portal.stack
        return self._portal.call(facts, absolute(path), stack.door, stack.database, follow=follow)

    def exists(self, path: AnyPath) -> bool:
        """Is there a file (of any kind) at *path*?"""
        return self._portal.call(reach_or_none, absolute(path)) is not None

    def listdir(self, path: AnyPath = "/") -> list[str]:
        """The names in a folder, sorted."""
        return sorted(item.name for item in self.scandir(path))

    def scandir(self, path: AnyPath = "/") -> Iterator[Entry]:
        """What is in a folder, with attributes, in no particular order; folders of any size in constant memory."""
        raw = absolute(path)
        after = 0
        while True:
            batch, after = self._portal.call(_listing, raw, after)
            if not batch:
                return
            yield from batch

    def find(
        self,
        path: AnyPath = "/",
        *,
        name: str | None = None,
        kind: str | None = None,
        size_min: int | None = None,
        size_max: int | None = None,
        newer: int | None = None,
        older: int | None = None,
    ) -> Iterator[Entry]:
        """Everything at and below *path* (but not "/" itself) that fits all conditions. MongoDB searches; no walk.

        *name* is a glob for the last name ("*.jpg"), *kind* "file", "folder", "symlink"..., sizes are bytes,
        *newer* and *older* are modification times in ns since the epoch.
        """
        if not self.read_only:
            self.sync()  # the search is on what is committed
        query = Query(name=name, kind=kind, size_min=size_min, size_max=size_max, newer=newer, older=older)
        stack = self._portal.stack
        return found(self._portal, stack.door, stack.database, absolute(path), query)

    def replication(self, path: AnyPath) -> str:
        """The replication code that what is written to *path*, or made below it, gets."""
        return self._portal.call(codes.code_at, absolute(path))[0]

    # Changes

    def set_replication(self, path: AnyPath, code: str | None) -> None:
        """Give a file or folder a replication code of its own; None takes it away. What is stored keeps its copies."""
        self._portal.call(codes.change, absolute(path), code)

    def mkdir(self, path: AnyPath, mode: int = 0o777, *, parents: bool = False) -> None:
        """Make a folder. With *parents* the ones above it, too, and it may be there already."""
        self._portal.call(changes.make_folder, absolute(path), mode, parents)

    def remove(self, path: AnyPath, *, recursive: bool = False) -> None:
        """Remove a file, symlink or empty folder; with *recursive* a folder with everything in it."""
        self._portal.call(changes.remove, absolute(path), recursive)

    def rename(self, source: AnyPath, target: AnyPath, *, replace: bool = True) -> None:
        """Give *source* the path *target*; what is there is replaced, or Exists raised without *replace*."""
        self._portal.call(changes.rename, absolute(source), absolute(target), replace)

    def symlink(self, target: str | bytes, path: AnyPath) -> None:
        """Make *path* a symlink to *target*."""
        self._portal.call(changes.symlink, os.fsencode(target), absolute(path))


async def _sync(fs: FileSystem) -> None:
    await fs.sync()


async def _listing(fs: FileSystem, path: bytes, after: int) -> tuple[list[Entry], int]:
    """Up to 1,000 entries behind the cookie *after*, and the next cookie."""
    parent = await folder(fs, path)
    rows = await fs.ns.listing(parent, after, 1000)
    return [entry(inode, join(path, name)) for _, name, inode in rows], (rows[-1][0] if rows else after)
