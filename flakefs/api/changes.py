"""Changes of names, on the trio side: folders, removal, renaming, symlinks.

Concurrency
    Trio thread only. Each call of the file system is atomic; removing or making several is not.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from flakefs.api.opening import caller
from flakefs.api.paths import named, place, shown
from flakefs.errors import Exists, InvalidArgument, IsDirectory, NotDirectory, NotEmpty, NotFound
from flakefs.namespace import Inode
from flakefs.vfs import Changes, FileSystem
from flakefs.vfs.paths import resolve

LISTING = 1000
Told = Callable[[bytes], None]
"""Hears of each path that was changed."""


def nobody(_path: bytes) -> None:
    """For those who do not watch."""


async def make_folder(fs: FileSystem, path: bytes, mode: int, parents: bool, told: Told = nobody) -> None:
    """mkdir, or mkdir -p."""
    names = [name for name in path.split(b"/") if name]
    if not names:
        if parents:
            return
        raise Exists("/ exists already")
    if parents:
        above = b""
        for name in names[:-1]:
            above += b"/" + name
            await _make_one(fs, above, 0o777, True, told)
    await _make_one(fs, b"/" + b"/".join(names), mode, parents, told)


async def _make_one(fs: FileSystem, path: bytes, mode: int, there_is_fine: bool, told: Told) -> None:
    try:
        parent, name, found = await place(fs, path)
    except NotFound as error:
        raise named(error, path, "its folder does not exist; --parents makes it, too") from error
    if found is not None:
        if there_is_fine and stat.S_ISDIR((await resolve(fs, path)).mode):
            return
        raise Exists(f"{shown(path)} exists already")
    who = caller()
    await fs.mkdir(parent.ino, name, mode & 0o777 & ~who.umask, who)
    told(path)


async def set_mode(fs: FileSystem, inode: Inode, mode: int) -> None:
    """chmod."""
    await fs.setattr(inode.ino, Changes(stat.S_IMODE(mode), None, None, None, None, None), caller())


async def remove(fs: FileSystem, path: bytes, recursive: bool, told: Told = nobody) -> None:
    """unlink, rmdir, or all below first."""
    parent, name, found = await _present(fs, path)
    if not stat.S_ISDIR(found.mode):
        if path.endswith(b"/"):
            raise NotDirectory(f"{shown(path)} is not a folder")
        await fs.unlink(parent.ino, name)
        told(path)
        return
    if recursive:
        await _empty(fs, found, path.rstrip(b"/"), told)
    try:
        await fs.rmdir(parent.ino, name)
    except NotEmpty as error:
        raise named(error, path, "the folder is not empty; -r removes it with everything in it") from error
    told(path)


async def _empty(fs: FileSystem, top: Inode, path: bytes, told: Told) -> None:
    """Remove everything in a folder. A stack instead of recursion: trees may be deeper than Python's stack."""
    stack: list[tuple[Inode, bytes, Inode | None, bytes]] = [(top, path, None, b"")]
    while stack:
        folder, where, parent, own = stack[-1]
        deeper = False
        after = 0
        while rows := await fs.ns.listing(folder, after, LISTING):
            after = rows[-1][0]
            for _, name, inode in rows:
                if stat.S_ISDIR(inode.mode):
                    stack.append((inode, where + b"/" + name, folder, name))
                    deeper = True
                else:
                    await fs.unlink(folder.ino, name)
                    told(where + b"/" + name)
        if not deeper:
            stack.pop()
            if parent is not None:
                await fs.rmdir(parent.ino, own)
                told(where)


async def rename(fs: FileSystem, source: bytes, target: bytes, replace: bool) -> None:
    """rename(2), with RENAME_NOREPLACE unless *replace*."""
    parent, name, found = await _present(fs, source)
    try:
        new_parent, new_name, there = await place(fs, target)
    except NotFound as error:
        raise named(error, target, "its folder does not exist") from error
    if target.endswith(b"/") and not stat.S_ISDIR(found.mode):
        raise NotDirectory(f"{shown(target)} names a folder, and {shown(source)} is none")
    if there is not None:
        _check_replacement(found, source, there, target, replace)
    try:
        await fs.rename(parent.ino, name, new_parent.ino, new_name, noreplace=not replace)
    except NotEmpty as error:
        raise named(error, target, "the folder there is not empty") from error
    except InvalidArgument as error:
        raise named(error, source, f"a folder cannot be moved into itself ({shown(target)})") from error


def _check_replacement(found: Inode, source: bytes, there: Inode, target: bytes, replace: bool) -> None:
    if not replace:
        raise Exists(f"{shown(target)} exists already")
    if stat.S_ISDIR(there.mode) and not stat.S_ISDIR(found.mode):
        raise IsDirectory(f"{shown(target)} is a folder, {shown(source)} is not")
    if stat.S_ISDIR(found.mode) and not stat.S_ISDIR(there.mode):
        raise NotDirectory(f"{shown(target)} is no folder, {shown(source)} is one")


async def symlink(fs: FileSystem, target: bytes, path: bytes) -> None:
    """A symlink at *path* that points to *target*."""
    parent, name, found = await place(fs, path)
    if found is not None:
        raise Exists(f"{shown(path)} exists already")
    await fs.symlink(parent.ino, name, target, caller())


async def _present(fs: FileSystem, path: bytes) -> tuple[Inode, bytes, Inode]:
    """(parent, name, inode) of what is at *path*, a symlink not followed."""
    parent, name, found = await place(fs, path)
    if found is None:
        raise NotFound(f"{shown(path)}: no such file or folder")
    return parent, name, found
