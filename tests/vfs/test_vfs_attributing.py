"""What operations on attributes mean, on real servers."""

from __future__ import annotations

import os

import pytest

from flakefs.app.stack import Stack
from flakefs.errors import (
    Exists,
    NoAttribute,
    NotPermitted,
    NotSupported,
)
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes
from flakefs.vfs.paths import resolve
from tests.vfs.operating import ROOT, USER, put


async def test_privileges_are_cleared_by_writing(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"tool", b"#!")
    await fs.setattr(ino, Changes(mode=0o6755), ROOT)
    await fs.setxattr(ino, b"security.capability", b"cap")
    handle = await fs.open(ino, os.O_WRONLY)
    assert (await fs.inode(ino)).mode & 0o7777 == 0o6755
    await fs.write(handle, 0, b"##")
    assert (await fs.inode(ino)).mode & 0o7777 == 0o755, "A1"
    assert await fs.listxattr(ino, ROOT) == [], "A1"
    await fs.release(handle)


async def test_folders_hand_on_their_group(stack: Stack) -> None:
    fs = stack.fs
    shared = await fs.mkdir(ROOT_INO, b"shared", 0o775, ROOT)
    await fs.setattr(shared.ino, Changes(gid=77), ROOT)
    await fs.setattr(shared.ino, Changes(mode=0o2775), ROOT)
    sub = await fs.mkdir(shared.ino, b"sub", 0o755, USER)
    handle, file = await fs.create(shared.ino, b"file", 0o644, os.O_WRONLY, USER)
    await fs.release(handle)
    assert (sub.gid, sub.mode & 0o7777) == (77, 0o2755), "A2"
    assert (file.gid, file.uid, file.mode & 0o7777) == (77, 1000, 0o644)


async def test_times(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"")
    await fs.setattr(ino, Changes(atime=5, mtime=5), ROOT)
    handle = await fs.open(ino, os.O_RDWR)
    await fs.write(handle, 0, b"x")
    inode = await fs.inode(ino)
    assert inode.mtime == inode.ctime > 5
    assert inode.atime == 5
    written = inode.mtime
    await fs.read(handle, 0, 1)
    assert inode.atime > 5, "A3"
    seen = inode.atime
    await fs.read(handle, 0, 1)
    assert inode.atime == seen, "A3"
    await fs.setattr(ino, Changes(mode=0o600), ROOT)
    assert inode.mtime == written < inode.ctime
    await fs.release(handle)


async def test_extended_attributes(fresh: Fresh) -> None:
    async with fresh.open() as stack:
        fs = stack.fs
        ino = await put(fs, b"f.txt", b"12345")
        await fs.setxattr(ino, b"user.b", b"2")
        await fs.setxattr(ino, b"user.a", b"\0\xff")
        await fs.setxattr(ino, b"user.big", bytes(65536))
        with pytest.raises(NotSupported):
            await fs.setxattr(ino, b"system.posix_acl_access", b"")
        with pytest.raises(Exists):
            await fs.setxattr(ino, b"user.a", b"", create=True)
        await fs.removexattr(ino, b"user.b")
        with pytest.raises(NoAttribute):
            await fs.getxattr(ino, b"security.capability")
    async with fresh.open() as stack:
        fs = stack.fs
        ino = (await resolve(fs, b"f.txt")).ino
        assert await fs.listxattr(ino, ROOT) == [b"user.a", b"user.big"]
        assert await fs.getxattr(ino, b"user.a") == b"\0\xff"
        assert await fs.getxattr(ino, b"user.flakefs.id") == b"%d" % ino
        assert await fs.getxattr(ino, b"user.flakefs.mime") == b"text/plain"
        with pytest.raises(NoAttribute):
            await fs.getxattr(ino, b"user.flakefs.nonsense")
        with pytest.raises(NotPermitted):
            await fs.setxattr(ino, b"user.flakefs.id", b"7")


async def test_facts_name_the_chunks(stack: Stack) -> None:
    ino = await put(stack.fs, b"f", b"q" * 5000)
    await stack.fs.sync()
    index = stack.door.client[stack.database]["chunks"].find_one()
    assert index is not None
    (line,) = (await stack.fs.facts(ino))[b"chunks"].decode().splitlines()
    assert line == f"0 5000 volume={index['v']} chunk={index['k']} from=0 hash={index['_id'].hex()}"


async def test_statfs_and_access(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"x")
    full = await fs.statfs()
    assert full.name_max == 255
    assert 0 < full.free <= full.blocks
    assert full.files > full.files_free > 0
    assert await fs.access(ino, os.R_OK, USER)
    assert not await fs.access(ino, os.W_OK, USER)
    assert await fs.access(ino, os.W_OK, ROOT)
