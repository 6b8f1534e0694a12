"""An open file for Python code: io.RawIOBase over the portal.

Invariants
    R2  What write() accepted is read back at once, by this and every other open file of the connection.
    R3  close() raises what went wrong with the file's content; a closed file answers ValueError, as every Python file.

Concurrency
    As ordinary Python files: one thread at a time per object.
"""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING, Any

from flakefs.api.opening import caller, open_handle, releasing
from flakefs.api.portal import Portal
from flakefs.errors import UsageError
from flakefs.namespace import Inode
from flakefs.vfs import Changes, FileSystem

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

PIECE = 4 * 1024 * 1024
"""Most bytes of one call into the portal: bounds what one read copies."""


class RawFile(io.RawIOBase):
    """Unbuffered; `open_file` puts a buffer around it."""

    def __init__(self, portal: Portal, handle: int, inode: Inode, name: str, flags: int) -> None:
        self.name = name
        self._portal = portal
        self._handle = handle
        self._inode = inode
        self._access = flags & os.O_ACCMODE
        self._append = bool(flags & os.O_APPEND)
        self._position = 0

    def readable(self) -> bool:
        return self._access != os.O_WRONLY

    def writable(self) -> bool:
        return self._access != os.O_RDONLY

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._check(self.readable(), "reading")
        view = memoryview(buffer).cast("B")
        data = self._portal.call(_read, self._handle, self._position, min(len(view), PIECE))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: ReadableBuffer) -> int:
        self._check(self.writable(), "writing")
        piece = bytes(memoryview(data).cast("B")[:PIECE])
        offset = None if self._append else self._position
        self._position = self._portal.call(_write, self._handle, self._inode, offset, piece)
        return len(piece)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check(True, "")
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._portal.call(_size, self._inode.ino)
        elif whence != os.SEEK_SET:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if offset < 0:
            raise ValueError(f"the position {offset} is before the start of the file")
        self._position = offset
        return offset

    def tell(self) -> int:
        self._check(True, "")
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._check(self.writable(), "writing")
        size = self._position if size is None else size
        self._portal.call(_truncate, self._inode.ino, size)
        return size

    def sync(self) -> None:
        """Return when what was written is stored durably (fsync). Buffers above flush() first."""
        self._check(True, "")
        self._portal.call(_fsync, self._handle)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if self._portal.inside():  # the garbage collector found it in the trio thread, which may not wait for itself
            self._portal.release_later(self._handle)
        else:
            self._portal.call(_flush_and_release, self._handle)

    def _check(self, allowed: bool, what: str) -> None:
        if self.closed:
            raise ValueError("the file is closed")
        if not allowed:
            raise io.UnsupportedOperation(f"the file is not open for {what}")


def parse_mode(mode: str) -> tuple[int, bool]:
    """(flags as in open(2), text?) of a mode as in the built-in open()."""
    kinds = [c for c in mode if c in "rwax"]
    if len(kinds) != 1 or set(mode) - set("rwaxbt+") or len(set(mode)) != len(mode) or {"b", "t"} <= set(mode):
        raise UsageError(f"the mode {mode!r} cannot be; use one of r, w, a, x, with + and b or t where wanted")
    flags = {
        "r": 0,
        "w": os.O_CREAT | os.O_TRUNC,
        "a": os.O_CREAT | os.O_APPEND,
        "x": os.O_CREAT | os.O_EXCL,
    }[kinds[0]]
    if "+" in mode:
        flags |= os.O_RDWR
    elif kinds[0] != "r":
        flags |= os.O_WRONLY
    return flags, "b" not in mode


def open_file(
    portal: Portal,
    path: bytes,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    code: str = "",
) -> IO[Any]:
    """As the built-in open(): text, buffered or raw according to *mode* and *buffering* (-1: one chunk).

    *code*: as in open_handle().
    """
    flags, text = parse_mode(mode)
    if text and buffering == 0:
        raise UsageError("text files cannot be unbuffered; add b to the mode")
    if not text and (encoding or errors or newline):
        raise UsageError("a binary file takes no encoding, errors or newline")
    if code and not flags & os.O_ACCMODE:
        raise UsageError("a file that is opened for reading takes no replication: nothing is written")
    handle, inode = portal.call(open_handle, path, flags, code=code)
    raw = RawFile(portal, handle, inode, os.fsdecode(path), flags)
    if buffering == 0:
        return raw  # type: ignore[return-value]  # RawIOBase is what the built-in open() returns here, too
    size = buffering if buffering > 1 else portal.chunk_size
    buffered: io.BufferedRandom | io.BufferedReader | io.BufferedWriter
    if flags & os.O_RDWR:
        buffered = io.BufferedRandom(raw, size)
    elif flags & os.O_WRONLY:
        buffered = io.BufferedWriter(raw, size)
    else:
        buffered = io.BufferedReader(raw, size)
    if not text:
        return buffered
    return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)


async def _read(fs: FileSystem, handle: int, offset: int, size: int) -> bytes | memoryview:
    return await fs.read(handle, offset, size)


async def _write(fs: FileSystem, handle: int, inode: Inode, offset: int | None, data: bytes) -> int:
    """Write all of *data* (at the end when *offset* is None); the position behind it."""
    position = (await fs.inode(inode.ino)).size if offset is None else offset
    stop = position + len(data)
    while position < stop:
        position += await fs.write(handle, position, data[len(data) - (stop - position) :])
    return stop


async def _size(fs: FileSystem, ino: int) -> int:
    return (await fs.inode(ino)).size


async def _truncate(fs: FileSystem, ino: int, size: int) -> None:
    await fs.setattr(ino, Changes(None, None, None, size, None, None), caller())


async def _fsync(fs: FileSystem, handle: int) -> None:
    await fs.fsync(handle)


async def _flush_and_release(fs: FileSystem, handle: int) -> None:
    async with releasing(fs, handle):
        pass
