"""Copying files and trees out of the file system.

Invariants
    W1  A local folder gets its mode and times after everything in it is there.
    W2  Names come from the file system and cannot hold '/' nor be '..': nothing is written outside of the target,
        and local symlinks that were there before are not followed below it.

Concurrency
    One task walks and makes folders; WORKERS tasks copy files, so that waiting for nodes overlaps.

Not here
    Rules and options (copying), content (transfer).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import NamedTuple

import trio

from flakefs.api import transfer
from flakefs.api.copying import CopyOptions, Watcher, fatal
from flakefs.api.paths import base, join, reach, shown
from flakefs.errors import PosixError
from flakefs.namespace import Inode
from flakefs.vfs import FileSystem

WORKERS = 8
LISTING = 1000


class _Job(NamedTuple):
    inode: Inode
    source: bytes
    target: bytes


async def get_all(
    fs: FileSystem, sources: list[bytes], target: bytes, options: CopyOptions, watcher: Watcher, *, into: bool
) -> None:
    """Copy each source to the local *target*, or into the folder *target* when *into* says so."""
    copy = _Download(fs, options, watcher)
    async with trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[_Job](WORKERS)
        async with receive:
            for _ in range(WORKERS):
                nursery.start_soon(copy.work, receive.clone())
        async with send:
            for source in sources:
                try:
                    inode = await reach(fs, source, follow=not options.deep)
                except PosixError as error:
                    watcher.problem(str(error))
                    continue
                await copy.walk(_Job(inode, source, join(target, base(source)) if into else target), send)
    copy.finish()


class _Download:
    def __init__(self, fs: FileSystem, options: CopyOptions, watcher: Watcher) -> None:
        # Constant after construction
        self._fs = fs
        self._options = options
        self._watcher = watcher
        # Mutable
        self._linked: dict[int, trio.Event] = {}  # files with several names: set when the first is there
        self._first: dict[int, bytes] = {}
        self._folders: list[tuple[bytes, Inode]] = []  # get mode and times at the end (W1)

    async def walk(self, top: _Job, send: trio.MemorySendChannel[_Job]) -> None:
        """Make the folders of a tree, and hand its files to the workers."""
        jobs = [top]
        while jobs:
            job = jobs.pop()
            if not stat.S_ISDIR(job.inode.mode):
                await send.send(job)
                continue
            if not self._options.deep:
                self._watcher.problem(f"{shown(job.source)} is a folder and left out; -r copies it with what is in it")
                continue
            try:
                self._folder(job, job is top)
            except OSError as error:
                self._watcher.problem(f"{shown(job.target)} cannot be made: {error.strerror}")
                continue
            after = 0
            while rows := await self._fs.ns.listing(job.inode, after, LISTING):
                after = rows[-1][0]
                for _, name, inode in rows:
                    below = _Job(inode, join(job.source, name), join(job.target, name))
                    if stat.S_ISDIR(inode.mode):
                        jobs.append(below)
                    else:
                        await send.send(below)

    async def work(self, receive: trio.MemoryReceiveChannel[_Job]) -> None:
        """One worker."""
        async with receive:
            async for job in receive:
                try:
                    await self._one(job)
                except PosixError as error:
                    if fatal(error):
                        raise
                    self._watcher.problem(f"{shown(job.source)} cannot be read: {error}")
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise OSError(error.errno, error.strerror, job.target) from error
                    self._watcher.problem(f"{shown(job.target)} cannot be written: {error.strerror}")

    def finish(self) -> None:
        for path, inode in reversed(self._folders):
            self._attributes(path, inode, follow=True)
        self._folders.clear()

    def _folder(self, job: _Job, top: bool) -> None:
        mode = stat.S_IMODE(job.inode.mode) & 0o777
        try:
            os.mkdir(job.target, mode | 0o700)
        except FileExistsError:
            found = os.stat(job.target) if top else os.lstat(job.target)
            if not stat.S_ISDIR(found.st_mode):
                raise
        if self._options.keeps or mode & 0o700 != 0o700:
            self._folders.append((job.target, job.inode))
        self._watcher.done(job.source, job.target)

    async def _one(self, job: _Job) -> None:
        if self._options.no_clobber and _exists(job.target):
            return
        if not self._options.archive or job.inode.nlink == 1:
            await self._copy(job)
        else:
            await self._link_or_copy(job)
        self._watcher.done(job.source, job.target)

    async def _copy(self, job: _Job) -> None:
        await self._content(job)
        if self._options.keeps:
            self._attributes(job.target, job.inode, follow=False)

    async def _link_or_copy(self, job: _Job) -> None:
        """A file with several names: the first that comes is copied, the others are linked to it."""
        ino = job.inode.ino
        first = self._linked.get(ino)
        if first is not None:
            await first.wait()
            if ino in self._first:
                _make_room(job.target)
                os.link(self._first[ino], job.target, follow_symlinks=False)
                return
        self._linked[ino] = trio.Event()
        try:
            await self._copy(job)
            self._first[ino] = job.target
        finally:
            self._linked[ino].set()

    async def _content(self, job: _Job) -> None:
        inode = job.inode
        mode = inode.mode
        if stat.S_ISLNK(mode):
            target = await self._fs.readlink(inode.ino)
            _make_room(job.target)
            os.symlink(target, job.target)
        elif stat.S_ISREG(mode):
            self._watcher.started(job.source, inode.size)
            if self._options.deep:
                _drop_symlink(job.target)  # W2
            handle = await self._fs.open(inode.ino, os.O_RDONLY)
            try:
                with transfer.local_target(job.target, stat.S_IMODE(mode) & 0o777) as fd:
                    await transfer.copy_out(self._fs, handle, inode, fd, self._watcher.advance)
            finally:
                with trio.CancelScope(shield=True):
                    await self._fs.release(handle)
        else:
            _make_room(job.target)
            os.mknod(job.target, mode, inode.rdev)

    def _attributes(self, path: bytes, inode: Inode, *, follow: bool) -> None:
        """Owner (when we may), attributes, mode, times; in this order, because chown clears set-id bits."""
        if not self._options.keeps:
            os.chmod(path, stat.S_IMODE(inode.mode) & 0o777)  # a folder that had to be writable meanwhile
            return
        with suppress(PermissionError):
            os.chown(path, inode.uid, inode.gid, follow_symlinks=follow)
        if self._options.archive:
            for name, value in inode.xattrs.items():
                if name.startswith(b"user."):
                    with suppress(OSError):  # the local file system may have none
                        os.setxattr(path, name, value, follow_symlinks=follow)
        if not stat.S_ISLNK(inode.mode):
            os.chmod(path, stat.S_IMODE(inode.mode))
        os.utime(path, ns=(inode.atime, inode.mtime), follow_symlinks=follow)


def _exists(path: bytes) -> bool:
    return os.path.lexists(path)


def _drop_symlink(path: bytes) -> None:
    if os.path.islink(path):
        os.unlink(path)


def _make_room(path: bytes) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
