"""Copying local files and trees into the file system.

Invariants
    U1  A folder gets its times after everything in it is there.
    U2  Local symlinks inside a tree are never followed (Y2): nothing outside of the tree is copied.

Concurrency
    One task of the trio thread; the file system stores in the background while the next file is read.

Not here
    Rules and options (copying), content (transfer).
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

import trio

from flakefs.api import replication, transfer
from flakefs.api.copying import CopyOptions, Watcher, fatal
from flakefs.api.opening import caller, releasing
from flakefs.api.paths import base, join, place, reach_or_none, shown
from flakefs.errors import InvalidArgument, IsDirectory, NotDirectory, PosixError
from flakefs.namespace import Inode
from flakefs.vfs import Changes, FileSystem
from flakefs.vfs.replication import ATTRIBUTE


class _Job(NamedTuple):
    source: bytes
    target: bytes
    parent: int
    name: bytes


async def put_all(
    fs: FileSystem, sources: list[bytes], target: bytes, options: CopyOptions, watcher: Watcher, *, into: bool
) -> None:
    """Copy each source to *target*, or into the folder *target* when *into* says so."""
    if options.replication:
        replication.check(fs, options.replication)
    copy = _Upload(fs, options, watcher)
    for source in sources:
        place_for_it = join(target, _own_name(source)) if into else target.rstrip(b"/") or b"/"
        await copy.tree(source, place_for_it)
    await copy.finish()


def _own_name(source: bytes) -> bytes:
    """What a source is called in the folder it is copied into; "." and ".." have the name of the folder they mean."""
    return base(os.path.abspath(source))


class _Upload:
    def __init__(self, fs: FileSystem, options: CopyOptions, watcher: Watcher) -> None:
        # Constant after construction
        self._fs = fs
        self._options = options
        self._watcher = watcher
        self._caller = caller()
        # Mutable
        self._linked: dict[tuple[int, int], int] = {}  # (device, inode) of local files with several names -> ino
        self._folders: list[tuple[int, os.stat_result]] = []  # get their times at the end (U1)

    async def tree(self, source: bytes, target: bytes) -> None:
        """*source* and, recursively, what is in it. A stack instead of recursion: trees may be deep."""
        try:
            parent, name, _ = await place(self._fs, target)
        except PosixError as error:
            self._watcher.problem(f"{shown(target)} cannot be written: {error}")
            return
        jobs = [_Job(source, target, parent.ino, name)]
        top = True
        while jobs:
            job = jobs.pop()
            try:
                below = await self._one(job, follow=top and not self._options.deep)
            except PosixError as error:
                if fatal(error):
                    raise
                self._watcher.problem(f"{shown(job.target)} cannot be written: {error}")
            except OSError as error:
                self._watcher.problem(f"{shown(job.source)} cannot be read: {error.strerror}")
            else:
                jobs += reversed(below)
            top = False

    async def finish(self) -> None:
        for ino, status in reversed(self._folders):
            await self._fs.setattr(ino, self._kept(status), self._caller)
        self._folders.clear()

    async def _one(self, job: _Job, *, follow: bool) -> list[_Job]:
        """Copy one file of any kind; of a folder, what is to be copied into it."""
        status = os.stat(job.source) if follow else os.lstat(job.source)
        if stat.S_ISDIR(status.st_mode):
            if not self._options.deep:
                self._watcher.problem(f"{shown(job.source)} is a folder and left out; -r copies it with what is in it")
                return []
            return await self._folder(job, status)
        found = await self._fs.lookup(job.parent, job.name)
        if found is not None and stat.S_ISDIR(found.mode):
            raise IsDirectory("a folder is there")
        if found is not None and self._options.no_clobber:
            return []
        key = (status.st_dev, status.st_ino)
        if self._options.archive and status.st_nlink > 1 and key in self._linked:
            await self._make_room(job, found)
            await self._fs.link(self._linked[key], job.parent, job.name)
            self._watcher.done(job.source, job.target)
            return []
        if stat.S_ISREG(status.st_mode):
            ino = await self._regular(job, status)
        elif not self._options.deep:
            ino = await self._stream(job, status)  # a pipe or device that was named: what comes out of it
        else:
            await self._make_room(job, found)
            ino = await self._special(job, status)
        if self._options.archive and status.st_nlink > 1:
            self._linked[key] = ino
        if self._options.keeps:
            await self._keep(ino, job.source, status, follow)
        self._watcher.done(job.source, job.target)
        return []

    async def _folder(self, job: _Job, status: os.stat_result) -> list[_Job]:
        found = await self._fs.lookup(job.parent, job.name)
        if found is not None and stat.S_ISLNK(found.mode):
            found = await reach_or_none(self._fs, job.target)
        if found is None:
            mode = stat.S_IMODE(status.st_mode) & 0o777 & ~self._caller.umask
            found = await self._fs.mkdir(job.parent, job.name, mode, self._caller)
            await self._replicate(found, job)
        elif not stat.S_ISDIR(found.mode):
            raise NotDirectory("a file is there, not a folder")
        if self._options.keeps:
            self._folders.append((found.ino, status))
            await self._attributes(found.ino, job.source, follow=False)
        self._watcher.done(job.source, job.target)
        with os.scandir(job.source) as entries:
            names = sorted(entry.name for entry in entries)
        return [_Job(join(job.source, name), join(job.target, name), found.ino, name) for name in names]

    async def _regular(self, job: _Job, status: os.stat_result) -> int:
        fd = os.open(job.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW if self._options.deep else os.O_RDONLY)
        try:
            self._watcher.started(job.source, status.st_size)
            handle, inode = await self._target(job, stat.S_IMODE(status.st_mode) & 0o777 & ~self._caller.umask)
            async with releasing(self._fs, handle):
                await self._replicate(inode, job)
                await transfer.copy_in(self._fs, handle, inode, fd, self._watcher.advance)
        finally:
            os.close(fd)
        return inode.ino

    async def _stream(self, job: _Job, status: os.stat_result) -> int:
        with await trio.to_thread.run_sync(transfer.open_raw, job.source, abandon_on_cancel=True) as source:
            self._watcher.started(job.source, 0)
            handle, inode = await self._target(job, stat.S_IMODE(status.st_mode) & 0o777 & ~self._caller.umask)
            async with releasing(self._fs, handle):
                await self._replicate(inode, job)
                await transfer.pour_in(self._fs, handle, source, self._watcher.advance)
        return inode.ino

    async def _target(self, job: _Job, mode: int) -> tuple[int, Inode]:
        """The file to write, empty and open; one that is there keeps its inode, a symlink leads to its target."""
        found = await self._fs.lookup(job.parent, job.name)
        if found is None:
            return await self._fs.create(job.parent, job.name, mode, os.O_WRONLY, self._caller)
        if stat.S_ISLNK(found.mode):
            resolved = await reach_or_none(self._fs, job.target)
            if resolved is None:
                raise PosixError("a symlink that leads nowhere is there; remove it first")
            found = resolved
        if not stat.S_ISREG(found.mode):
            raise PosixError("something that is no regular file is there")
        return await self._fs.open(found.ino, os.O_WRONLY | os.O_TRUNC), found

    async def _special(self, job: _Job, status: os.stat_result) -> int:
        mode = status.st_mode
        if stat.S_ISLNK(mode):
            made = await self._fs.symlink(job.parent, job.name, os.readlink(job.source), self._caller)
        else:
            bits = stat.S_IMODE(mode) & 0o777 & ~self._caller.umask
            made = await self._fs.mknod(job.parent, job.name, stat.S_IFMT(mode) | bits, status.st_rdev, self._caller)
        return made.ino

    async def _make_room(self, job: _Job, found: Inode | None) -> None:
        if found is not None:
            await self._fs.unlink(job.parent, job.name)

    async def _keep(self, ino: int, source: bytes, status: os.stat_result, follow: bool) -> None:
        await self._attributes(ino, source, follow)
        await self._fs.setattr(ino, self._kept(status), self._caller)

    async def _attributes(self, ino: int, source: bytes, follow: bool) -> None:
        """user.* attributes, with `archive`."""
        if not self._options.archive:
            return
        try:
            names = [name for name in os.listxattr(source, follow_symlinks=follow) if name.startswith("user.")]
            values = {name: os.getxattr(source, name, follow_symlinks=follow) for name in names}
        except OSError:
            return  # the local file system has none
        for name, value in values.items():
            if not name.startswith("user.flakefs."):
                await self._fs.setxattr(ino, os.fsencode(name), value)

    async def _replicate(self, inode: Inode, job: _Job) -> None:
        """Before anything is written: the code that was asked for, else, with `archive`, the one of the source."""
        if self._options.replication:
            await replication.give(self._fs, inode, self._options.replication)
            return
        if not self._options.archive:
            return
        try:
            code = os.getxattr(job.source, ATTRIBUTE).decode(errors="replace")
        except OSError:
            return
        try:
            replication.check(self._fs, code)
            await replication.give(self._fs, inode, code)
        except InvalidArgument as error:
            self._watcher.problem(f"{shown(job.target)} is copied without the replication of its source: {error}")

    @staticmethod
    def _kept(status: os.stat_result) -> Changes:
        mode = None if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
        return Changes(mode, status.st_uid, status.st_gid, None, status.st_atime_ns, status.st_mtime_ns)
