"""What operations on names mean, on real servers."""

from __future__ import annotations

import os
import stat

import pytest

from flakefs.app.stack import Stack
from flakefs.errors import (
    BadHandle,
    InvalidArgument,
    IsDirectory,
    NameTooLong,
    NotDirectory,
    NotFound,
    NotPermitted,
    TooManySymlinks,
)
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes
from flakefs.vfs.paths import resolve, resolve_parent
from tests.vfs.operating import ROOT, put


async def test_lookup(stack: Stack) -> None:
    fs = stack.fs
    top = await fs.mkdir(ROOT_INO, b"top", 0o755, ROOT)
    sub = await fs.mkdir(top.ino, b"sub", 0o755, ROOT)
    assert await fs.lookup(sub.ino, b".") is sub
    assert await fs.lookup(sub.ino, b"..") is top
    above = await fs.lookup(ROOT_INO, b"..")
    assert above is not None
    assert above.ino == ROOT_INO
    assert await fs.lookup(sub.ino, b"nothing") is None
    ino = await put(fs, b"file", b"")
    with pytest.raises(NotDirectory):
        await fs.lookup(ino, b"x")
    with pytest.raises(NameTooLong):
        await fs.lookup(ROOT_INO, b"n" * 256)
    with pytest.raises(NameTooLong):
        await put(fs, b"n" * 256, b"")
    await put(fs, b"n" * 255, b"")
    with pytest.raises(InvalidArgument):
        await put(fs, b"a/b", b"")


async def test_special_files(stack: Stack) -> None:
    fs = stack.fs
    pipe = await fs.mknod(ROOT_INO, b"pipe", stat.S_IFIFO | 0o600, 0, ROOT)
    device = await fs.mknod(ROOT_INO, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), ROOT)
    plain = await fs.mknod(ROOT_INO, b"plain", 0o600, 0, ROOT)
    assert stat.S_ISFIFO(pipe.mode)
    assert device.rdev == os.makedev(1, 3)
    assert stat.S_ISREG(plain.mode)
    with pytest.raises(NotPermitted):
        await fs.mknod(ROOT_INO, b"folder", stat.S_IFDIR | 0o700, 0, ROOT)
    with pytest.raises(InvalidArgument):
        await fs.open(pipe.ino, os.O_RDONLY)
    with pytest.raises(InvalidArgument):
        await fs.setattr(pipe.ino, Changes(size=0), ROOT)
    folder = await fs.mkdir(ROOT_INO, b"folder", 0o700, ROOT)
    with pytest.raises(IsDirectory):
        await fs.open(folder.ino, os.O_RDONLY)
    with pytest.raises(IsDirectory):
        await fs.setattr(folder.ino, Changes(size=0), ROOT)
    with pytest.raises(NotPermitted):
        await fs.link(folder.ino, ROOT_INO, b"again")


async def test_symbolic_links_and_paths(stack: Stack) -> None:
    fs = stack.fs
    folder = await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
    ino = await put(fs, b"f", b"found", parent=folder.ino)
    link = await fs.symlink(ROOT_INO, b"l", b"d/../d/./f", ROOT)
    await fs.symlink(ROOT_INO, b"loop", b"loop", ROOT)
    await fs.symlink(folder.ino, b"up", b"/d", ROOT)
    assert await fs.readlink(link.ino) == b"d/../d/./f"
    assert link.size == len(b"d/../d/./f")
    assert (await resolve(fs, b"/l")).ino == ino
    assert (await resolve(fs, b"/l", follow=False)).ino == link.ino
    assert (await resolve(fs, b"//d//up/up/f")).ino == ino
    assert (await resolve(fs, b"/")).ino == ROOT_INO
    assert await resolve_parent(fs, b"d/new") == (folder, b"new")
    for path, error in (
        (b"/loop", TooManySymlinks),
        (b"/none/x", NotFound),
        (b"/d/f/x", NotDirectory),
        (b"/d/f/", NotDirectory),
    ):
        with pytest.raises(error):
            await resolve(fs, path)
    with pytest.raises(InvalidArgument):
        await resolve_parent(fs, b"/")
    with pytest.raises(NotFound):
        await fs.symlink(ROOT_INO, b"empty", b"", ROOT)
    with pytest.raises(NameTooLong):
        await fs.symlink(ROOT_INO, b"long", b"t" * 4096, ROOT)
    with pytest.raises(InvalidArgument):
        await fs.readlink(ino)
    with pytest.raises(TooManySymlinks):
        await fs.open(link.ino, os.O_RDONLY)


async def test_listing_goes_on_where_it_stopped(stack: Stack) -> None:
    fs = stack.fs
    for number in range(25):
        await put(fs, b"%02d" % number, b"")
    handle = await fs.opendir(ROOT_INO)
    seen: list[bytes] = []
    after = 0
    while rows := await fs.readdir(handle, after, 4):
        seen += [name for _, name, _ in rows]
        after = rows[-1][0]
        if len(seen) == 8:
            await fs.unlink(ROOT_INO, seen[3])
            await put(fs, b"late", b"")
    await fs.releasedir(handle)
    assert sorted(set(seen) - {b"late"}) == [b"%02d" % number for number in range(25)]
    with pytest.raises(BadHandle):
        await fs.readdir(handle, 0, 1)
