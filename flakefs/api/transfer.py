"""Moving content between local files or streams and the file system, in constant memory.

Invariants
    T1  Memory holds a piece of the file, and what the file system's own limits allow, whatever the size.
    T2  Holes stay holes in both directions, where the local side can have them.
    T3  Blocking reads and writes of streams happen in worker threads, which an interrupt leaves behind: a pipe that
        nobody feeds or empties stops only its own copy.

Concurrency
    Trio thread; the local side is touched by one worker thread at a time.

Not here
    Folders and attributes (trees), open files for Python code (files).
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Protocol

import trio

from flakefs.api.opening import caller, opened
from flakefs.api.pieces import extents
from flakefs.namespace import Inode
from flakefs.vfs import Changes, FileSystem

PIECE = 1024 * 1024
INLINE = 128 * 1024
"""Local files up to this size are read in the trio thread: a thread hop costs more than the read."""

Advance = Callable[[int], None]
"""Told how many bytes went through."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


class Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


def ignore(_count: int) -> None:
    """For those who do not watch."""


async def write_stream(
    fs: FileSystem, path: bytes, source: Readable, mode: int = 0o666, advance: Advance = ignore, code: str = ""
) -> int:
    """Everything that *source* gives becomes the content of *path*; the number of bytes. *code*: see open_handle()."""
    async with opened(fs, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, code) as (handle, _):
        return await pour_in(fs, handle, source, advance)


async def pour_in(fs: FileSystem, handle: int, source: Readable, advance: Advance = ignore) -> int:
    """Everything that *source* gives goes to an open empty file; the number of bytes."""
    position = 0
    while data := await trio.to_thread.run_sync(source.read, PIECE, abandon_on_cancel=True):
        await write_all(fs, handle, position, data)
        position += len(data)
        advance(len(data))
    return position


async def write_local(
    fs: FileSystem, path: bytes, fd: int, mode: int, advance: Advance = ignore, code: str = ""
) -> int:
    """The content of the open local regular file *fd* becomes that of *path*. *code*: as in open_handle()."""
    async with opened(fs, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, code) as (handle, inode):
        return await copy_in(fs, handle, inode, fd, advance)


async def copy_in(fs: FileSystem, handle: int, inode: Inode, fd: int, advance: Advance) -> int:
    """The content of *fd*, holes left out, goes to an open empty file; its length."""
    size = os.fstat(fd).st_size
    if size <= INLINE:
        data = os.pread(fd, INLINE + 1, 0)
        if len(data) <= INLINE:
            if data:
                await write_all(fs, handle, 0, data)
                advance(len(data))
            return len(data)
    end = 0
    for start, stop in data_runs(fd, size):
        position = start
        while position < stop:
            length = min(PIECE - position % PIECE, stop - position)
            data = await trio.to_thread.run_sync(os.pread, fd, length, position)
            if not data:
                size = min(size, os.fstat(fd).st_size)  # it became shorter while we read
                break
            await write_all(fs, handle, position, data)
            position += len(data)
            advance(len(data))
        end = max(end, position)
    if end < size:
        await fs.setattr(inode.ino, Changes(None, None, None, size, None, None), caller())
    return max(end, size)


async def read_local(fs: FileSystem, path: bytes, target: bytes, advance: Advance = ignore) -> int:
    """The content of *path* becomes that of the local file *target*; a new file that stays unfinished is removed."""
    async with opened(fs, path, os.O_RDONLY) as (handle, inode):
        with local_target(target, stat.S_IMODE(inode.mode) & 0o777) as fd:
            return await copy_out(fs, handle, inode, fd, advance)


@contextmanager
def local_target(target: bytes, mode: int) -> Iterator[int]:
    """A local file open for writing and empty; one that was made here is removed when the body fails."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        fd, made = os.open(target, flags | os.O_EXCL, mode), True
    except FileExistsError:
        fd, made = os.open(target, flags | os.O_TRUNC, mode), False
    try:
        yield fd
    except BaseException:
        if made:
            os.unlink(target)
        raise
    finally:
        os.close(fd)


def data_runs(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the parts of a local file that are no holes; everything where the kernel cannot tell."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            start, stop = position, size
        else:
            stop = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, stop
        position = stop


async def write_all(fs: FileSystem, handle: int, position: int, data: bytes) -> None:
    """fs.write() until everything is taken."""
    done = await fs.write(handle, position, data)
    while done < len(data):
        done += await fs.write(handle, position + done, data[done:])


async def read_stream(fs: FileSystem, path: bytes, target: Writable, advance: Advance = ignore) -> int:
    """The content of *path*, holes as zeros, goes to *target*; the number of bytes."""
    async with opened(fs, path, os.O_RDONLY) as (handle, _):
        return await pour_out(fs, handle, target, advance)


async def pour_out(fs: FileSystem, handle: int, target: Writable, advance: Advance = ignore) -> int:
    """The content of an open file, holes as zeros, goes to *target*; the number of bytes."""
    position = 0
    while data := await fs.read(handle, position, PIECE):
        await trio.to_thread.run_sync(_write_whole, target, bytes(data), abandon_on_cancel=True)
        position += len(data)
        advance(len(data))
    return position


async def copy_out(fs: FileSystem, handle: int, inode: Inode, fd: int, advance: Advance = ignore) -> int:
    """The content of an open file goes to the empty local file *fd* (or the pipe or device it is); its length."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        with io.FileIO(fd, "wb", closefd=False) as stream:
            return await pour_out(fs, handle, stream, advance)
    size = inode.size
    async with aclosing(stored_runs(fs, inode)) as runs:
        async for start, stop in runs:
            position = start
            while position < stop:
                data = await fs.read(handle, position, min(PIECE - position % PIECE, stop - position))
                if not data:
                    break
                if len(data) <= INLINE:
                    _pwrite_whole(fd, data, position)
                else:
                    await trio.to_thread.run_sync(_pwrite_whole, fd, data, position)
                position += len(data)
                advance(len(data))
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)
    return size


async def stored_runs(fs: FileSystem, inode: Inode) -> AsyncGenerator[tuple[int, int], None]:
    """(start, stop) of the parts of a file that are no holes, neighbours joined."""
    start = stop = 0
    async with aclosing(extents(fs, inode)) as found:
        async for extent in found:
            if extent.offset > stop:
                if stop > start:
                    yield start, stop
                start = extent.offset
            stop = extent.offset + extent.length
    stop = min(stop, inode.size)
    if stop > start:
        yield start, stop


def open_raw(path: bytes) -> io.FileIO:
    """A local pipe or device, for reading; waits for somebody to open the other end of a fifo."""
    return io.FileIO(os.fsdecode(path), "rb")


def _write_whole(target: Writable, data: bytes) -> None:
    """Raw streams may take less than all."""
    view = memoryview(data)
    while view:
        done = target.write(view)  # type: ignore[arg-type]
        if not isinstance(done, int):
            return
        view = view[done:]


def _pwrite_whole(fd: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, position)
        view = view[done:]
        position += done
