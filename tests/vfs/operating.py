"""Callers, and writing and reading a whole file, for tests of operations."""

from __future__ import annotations

import os

from flakefs.values import ROOT_INO
from flakefs.vfs import Caller, FileSystem

ROOT = Caller(0, 0)
USER = Caller(1000, 1000)
KIB = 1024
CHUNK = 64 * KIB


async def put(fs: FileSystem, name: bytes, data: bytes, *, parent: int = ROOT_INO) -> int:
    """A new file with content; its ino."""
    handle, inode = await fs.create(parent, name, 0o644, os.O_WRONLY, ROOT)
    if data:
        assert await fs.write(handle, 0, data) == len(data)
    await fs.flush(handle)
    await fs.release(handle)
    return inode.ino


async def get(fs: FileSystem, ino: int) -> bytes:
    handle = await fs.open(ino, os.O_RDONLY)
    data = bytes(await fs.read(handle, 0, 2**30))
    await fs.release(handle)
    return data
