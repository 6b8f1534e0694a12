"""Paths as callers write them, and reaching what they name.

Rule
    R1  A path is str, bytes or PathLike; str is encoded as the operating system does (surrogateescape), so every byte
        string can be written. A missing leading slash is accepted; a trailing one means a folder.
"""

from __future__ import annotations

import os
import stat

from flakefs.errors import FlakeError, NotDirectory, NotFound
from flakefs.namespace import Inode
from flakefs.vfs import FileSystem
from flakefs.vfs.paths import resolve, resolve_parent

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def absolute(path: AnyPath) -> bytes:
    """The bytes of *path*, with a leading slash (R1)."""
    raw = os.fsencode(path)
    return raw if raw.startswith(b"/") else b"/" + raw


def shown(path: bytes) -> str:
    """For people: what is not printable UTF-8 appears escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def join(folder: bytes, name: bytes) -> bytes:
    """The path of *name* in *folder*."""
    return folder.rstrip(b"/") + b"/" + name


def base(path: bytes) -> bytes:
    """The last name of *path*; "" for the root."""
    return path.rstrip(b"/").rpartition(b"/")[2]


def named(error: FlakeError, path: bytes, what: str) -> FlakeError:
    """The same kind of error, saying which path."""
    return type(error)(f"{shown(path)}: {what}")


async def reach(fs: FileSystem, path: bytes, *, follow: bool = True) -> Inode:
    """What *path* names; NotFound, NotDirectory... say which path."""
    return await resolve(fs, path, follow=follow)


async def reach_or_none(fs: FileSystem, path: bytes, *, follow: bool = True) -> Inode | None:
    """As reach(); None when there is no such file."""
    try:
        return await reach(fs, path, follow=follow)
    except NotFound:
        return None


async def folder(fs: FileSystem, path: bytes) -> Inode:
    """The folder that *path* names."""
    inode = await reach(fs, path)
    if not stat.S_ISDIR(inode.mode):
        raise NotDirectory(f"{shown(path)} is not a folder")
    return inode


async def place(fs: FileSystem, path: bytes) -> tuple[Inode, bytes, Inode | None]:
    """Where *path* is or would be: (parent folder, name, what is there now, not followed)."""
    parent, name = await resolve_parent(fs, path)
    return parent, name, await fs.lookup(parent.ino, name)
