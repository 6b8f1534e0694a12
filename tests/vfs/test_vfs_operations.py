"""What each operation means, on real servers."""

from __future__ import annotations

import os

import pytest

from flakefs.app.stack import Stack
from flakefs.errors import (
    BadHandle,
    Exists,
    FileTooLarge,
    ReadOnly,
    Stale,
)
from flakefs.format.documents import Document
from flakefs.testing.stack import Fresh
from flakefs.values import FILE_MAX, ROOT_INO, SEGMENT_BYTES
from flakefs.vfs import Changes
from flakefs.vfs.paths import resolve
from tests.vfs.operating import CHUNK, ROOT, get, put


def inode_of(stack: Stack, **which: object) -> Document:
    """As it is stored."""
    document = stack.door.client[stack.database]["inodes"].find_one(which)
    assert document is not None
    return document


async def test_what_is_written_is_there_after_reopening(fresh: Fresh) -> None:
    contents = {b"empty": b"", b"small": b"s" * 4096, b"medium": b"m" * 4097, b"large": os.urandom(5 * CHUNK + 17)}
    async with fresh.open() as stack:
        for name, data in contents.items():
            assert await get(stack.fs, await put(stack.fs, name, data)) == data
    async with fresh.open() as stack:
        for name, data in contents.items():
            inode = await resolve(stack.fs, b"/" + name)
            assert inode.size == inode.used == len(data)
            assert await get(stack.fs, inode.ino) == data
        assert stack.fs.statistics().open_bytes == 0


async def test_small_files_are_literal_and_large_ones_chunks(stack: Stack) -> None:
    await put(stack.fs, b"small", b"s" * 4096)
    await put(stack.fs, b"large", b"l" * 4097)
    await stack.fs.sync()
    (small,) = inode_of(stack, n="small")["e"]
    (large,) = inode_of(stack, n="large")["e"]
    assert bytes(small["d"]) == b"s" * 4096
    assert (large["l"], large["z"], "d" in large) == (4097, 4097, False)
    assert stack.door.client[stack.database]["chunks"].count_documents({}) == 1


async def test_equal_content_is_stored_once(stack: Stack) -> None:
    data = os.urandom(3 * CHUNK + 5000)
    await put(stack.fs, b"one", data)
    await stack.fs.sync()
    await put(stack.fs, b"two", data)
    await stack.fs.sync()
    chunks = list(stack.door.client[stack.database]["chunks"].find())
    assert sorted(chunk["r"] for chunk in chunks) == [2, 2, 2, 2]


async def test_an_unlinked_file_lives_until_it_is_closed(stack: Stack) -> None:
    fs = stack.fs
    handle, inode = await fs.create(ROOT_INO, b"temp", 0o600, os.O_RDWR, ROOT)
    await fs.write(handle, 0, b"x" * (CHUNK + 1))
    await fs.unlink(ROOT_INO, b"temp")
    assert await fs.lookup(ROOT_INO, b"temp") is None
    await fs.sync()
    await fs.write(handle, CHUNK, b"yz")
    assert await fs.read(handle, CHUNK - 1, 10) == b"xyz"
    assert inode.nlink == 0
    await fs.release(handle)
    await fs.sync()
    await fs.sync()
    with pytest.raises(Stale):
        await fs.inode(inode.ino)
    assert fs.writeback.contents == {}
    assert stack.door.client[stack.database]["chunks"].count_documents({}) == 0


async def test_a_file_made_and_removed_at_once_costs_nothing(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"brief", b"b" * 10_000)
    await fs.unlink(ROOT_INO, b"brief")
    assert fs.statistics().open_bytes == 0
    inode = fs.peek(ino)
    assert inode is None or inode.nlink == 0
    await fs.sync()
    assert fs.engine.statistics().stored_chunks == 0


async def test_renaming_over_an_open_file_leaves_it_readable(stack: Stack) -> None:
    fs = stack.fs
    old = await put(fs, b"old", b"old content")
    new = await put(fs, b"new", b"new content")
    handle = await fs.open(old, os.O_RDONLY)
    await fs.rename(ROOT_INO, b"new", ROOT_INO, b"old")
    assert (await resolve(fs, b"/old")).ino == new
    assert await fs.read(handle, 0, 100) == b"old content"
    await fs.release(handle)
    await put(fs, b"third", b"")
    with pytest.raises(Exists):
        await fs.rename(ROOT_INO, b"old", ROOT_INO, b"third", noreplace=True)
    await fs.rename(ROOT_INO, b"old", ROOT_INO, b"third", exchange=True)
    assert (await resolve(fs, b"/third")).ino == new


async def test_append_goes_to_the_end(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"log", b"one\n")
    handle = await fs.open(ino, os.O_WRONLY | os.O_APPEND)
    await fs.write(handle, 0, b"two\n")
    await fs.write(handle, 1, b"three\n")
    await fs.release(handle)
    assert await get(fs, ino) == b"one\ntwo\nthree\n"


async def test_open_truncates(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"a long content " * 10_000)
    before = (await fs.inode(ino)).mtime
    handle = await fs.open(ino, os.O_WRONLY | os.O_TRUNC)
    assert (await fs.inode(ino)).size == 0
    assert (await fs.inode(ino)).mtime > before
    await fs.write(handle, 0, b"short")
    await fs.release(handle)
    assert await get(fs, ino) == b"short"


async def test_create_opens_what_is_there_unless_exclusive(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"here")
    handle, inode = await fs.create(ROOT_INO, b"f", 0o600, os.O_RDWR | os.O_CREAT, ROOT)
    assert inode.ino == ino
    assert await fs.read(handle, 0, 10) == b"here"
    await fs.release(handle)
    with pytest.raises(Exists):
        await fs.create(ROOT_INO, b"f", 0o600, os.O_RDWR | os.O_CREAT | os.O_EXCL, ROOT)


async def test_synchronous_writes_are_committed(stack: Stack) -> None:
    fs = stack.fs
    handle, inode = await fs.create(ROOT_INO, b"wal", 0o600, os.O_WRONLY | os.O_DSYNC, ROOT)
    await fs.write(handle, 0, b"committed")
    document = inode_of(stack, _id=inode.ino)
    assert document["size"] == 9, "P1"
    assert bytes(document["e"][0]["d"]) == b"committed"
    await fs.release(handle)


async def test_fsync_of_a_file_and_of_a_folder_commits(stack: Stack) -> None:
    fs = stack.fs
    handle, inode = await fs.create(ROOT_INO, b"f", 0o600, os.O_WRONLY, ROOT)
    await fs.write(handle, 0, b"f" * 5000)
    await fs.fsync(handle)
    assert inode_of(stack, _id=inode.ino)["size"] == 5000, "P1"
    await fs.release(handle)
    made = await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
    folder = await fs.opendir(ROOT_INO)
    await fs.fsyncdir(folder)
    assert inode_of(stack, _id=made.ino), "P1"
    await fs.releasedir(folder)


async def test_close_stored_waits(fresh: Fresh) -> None:
    from flakefs.vfs import VfsOptions

    fresh.configure(vfs=VfsOptions(close_stored=True))
    async with fresh.open() as stack:
        ino = await put(stack.fs, b"f", b"x" * 5000)
        assert inode_of(stack, _id=ino)["size"] == 5000, "P2"


async def test_holes_read_as_zeros_and_take_no_space(stack: Stack) -> None:
    fs = stack.fs
    handle, inode = await fs.create(ROOT_INO, b"sparse", 0o600, os.O_RDWR, ROOT)
    far = 3 * SEGMENT_BYTES + 123
    await fs.write(handle, far, b"end")
    assert inode.size == far + 3
    await fs.sync()
    assert inode.used == 3
    assert await fs.read(handle, 2 * SEGMENT_BYTES - 5, 10) == bytes(10)
    assert await fs.read(handle, far - 2, 100) == b"\0\0end"
    assert await fs.read(handle, far + 3, 100) == b""
    await fs.write(handle, CHUNK, bytes(2 * CHUNK))
    assert inode.used == 3, "zeros are holes"
    await fs.release(handle)


async def test_a_huge_size_costs_nothing(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"huge", b"start")
    await fs.setattr(ino, Changes(size=999_999_999_999_999), ROOT)
    await fs.sync()
    handle = await fs.open(ino, os.O_RDWR)
    await fs.write(handle, 999_999_999_999_990, b"nearly the end")
    await fs.sync()
    assert await fs.read(handle, 999_999_999_999_988, 100) == b"\0\0nearly the end"
    await fs.setattr(ino, Changes(size=7), ROOT)
    assert await fs.read(handle, 0, 100) == b"start\0\0"
    await fs.setattr(ino, Changes(size=FILE_MAX), ROOT)
    await fs.release(handle)
    await fs.unlink(ROOT_INO, b"huge")
    await fs.sync()


async def test_what_is_too_large_is_refused(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"")
    handle = await fs.open(ino, os.O_RDWR)
    with pytest.raises(FileTooLarge):
        await fs.setattr(ino, Changes(size=FILE_MAX + 1), ROOT)
    with pytest.raises(FileTooLarge):
        await fs.write(handle, FILE_MAX, b"x")
    assert await fs.write(handle, FILE_MAX - 2, b"abcdef") == 2
    assert await fs.read(handle, FILE_MAX - 3, 10) == b"\0ab"
    await fs.release(handle)
    await fs.setattr(ino, Changes(size=0), ROOT)


async def test_a_read_only_session_changes_nothing(fresh: Fresh) -> None:
    async with fresh.open() as stack:
        ino = await put(stack.fs, b"f", b"content")
    async with fresh.open(writable=False) as stack:
        fs = stack.fs
        assert await get(fs, (await resolve(fs, b"/f")).ino) == b"content"
        for attempt in (
            fs.create(ROOT_INO, b"g", 0o644, os.O_WRONLY, ROOT),
            fs.open(ino, os.O_WRONLY),
            fs.open(ino, os.O_RDONLY | os.O_TRUNC),
            fs.mkdir(ROOT_INO, b"d", 0o755, ROOT),
            fs.unlink(ROOT_INO, b"f"),
            fs.setattr(ino, Changes(mode=0o600), ROOT),
            fs.setxattr(ino, b"user.a", b"b"),
            fs.rename(ROOT_INO, b"f", ROOT_INO, b"g"),
        ):
            with pytest.raises(ReadOnly):
                await attempt


async def test_handles_are_checked(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"x")
    reading = await fs.open(ino, os.O_RDONLY)
    writing = await fs.open(ino, os.O_WRONLY)
    folder = await fs.opendir(ROOT_INO)
    for wrong in (
        fs.write(reading, 0, b"y"),
        fs.read(writing, 0, 1),
        fs.read(folder, 0, 1),
        fs.write(folder, 0, b"y"),
        fs.readdir(reading, 0, 1),
        fs.flush(999),
        fs.release(999),
    ):
        with pytest.raises(BadHandle):
            await wrong
    for handle in (reading, writing):
        await fs.release(handle)
    await fs.releasedir(folder)
    assert fs.statistics().handles == 0
