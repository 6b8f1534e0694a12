"""Content, written from two sessions at once."""

from __future__ import annotations

import os
import random
from functools import partial

import pytest
import trio
import trio.lowlevel

from flakefs.errors import NotFound
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes, FileSystem
from flakefs.vfs.paths import resolve
from flakefs.vfs.replication import ATTRIBUTE
from tests.shared.conftest import ROOT, eventually, get, put, two

Pair = tuple[FileSystem, FileSystem]
KIB = 1024


async def test_open_after_close_sees_the_new_content(pair: Pair) -> None:
    """P2, whatever the stream does: each reads right after the other has closed."""
    one, other = pair
    await put(one, b"f", b"start")
    for number in range(20):
        writer, reader = (one, other) if number % 2 else (other, one)
        data = b"%d" % number * (1 if number % 3 else 5000)
        handle = await writer.open((await resolve(writer, b"/f")).ino, os.O_WRONLY | os.O_TRUNC)
        await writer.write(handle, 0, data)
        await writer.flush(handle)
        await writer.release(handle)
        assert await get(reader, b"/f") == data


@pytest.mark.parametrize("size", [100, 10 * KIB, 200 * KIB])
async def test_writers_of_different_parts_lose_nothing(pair: Pair, size: int) -> None:
    ino = await put(pair[0], b"f", b"")
    parts = 8

    async def write(fs: FileSystem, first: int, seed: int) -> None:
        rng = random.Random(seed)
        handle = await fs.open(ino, os.O_RDWR)
        for part in range(first, parts, 2):
            await fs.write(handle, part * size, b"%d" % part * size)
            if rng.random() < 0.5:
                await fs.fsync(handle)
            else:
                await trio.lowlevel.checkpoint()
        await fs.flush(handle)
        await fs.release(handle)

    async with trio.open_nursery() as nursery:
        for index, fs in enumerate(pair):
            nursery.start_soon(write, fs, index, index)
    expected = b"".join(b"%d" % part * size for part in range(parts))
    for fs in pair:
        assert await get(fs, b"/f") == expected


async def test_appenders_lose_and_tear_no_record(pair: Pair) -> None:
    ino = await put(pair[0], b"log", b"")
    count = 15

    async def append(fs: FileSystem, tag: int) -> None:
        handle = await fs.open(ino, os.O_WRONLY | os.O_APPEND)
        for number in range(count):
            assert await fs.write(handle, 0, b"%d:%04d:%s\n" % (tag, number, b"x" * 50)) == 58
        await fs.flush(handle)
        await fs.release(handle)

    async with trio.open_nursery() as nursery:
        for tag, fs in enumerate((*pair, *pair)):
            nursery.start_soon(append, fs, tag)
    lines = (await get(pair[1], b"/log")).splitlines()
    assert len(lines) == 4 * count
    for tag in range(4):
        assert [line for line in lines if line.startswith(b"%d:" % tag)] == [
            b"%d:%04d:%s" % (tag, number, b"x" * 50) for number in range(count)
        ]


async def test_attributes_and_content_from_both_sides(pair: Pair) -> None:
    """chmod, setxattr and truncate on one side while the other one writes."""
    one, other = pair
    ino = await put(one, b"f", b"")
    handle = await one.open(ino, os.O_RDWR)
    for number in range(10):
        await one.write(handle, number * 5000, bytes([65 + number]) * 5000)
        await other.setattr(ino, Changes(mode=0o600 + number), ROOT)
        await other.setxattr(ino, b"user.n", b"%d" % number)
        if number == 4:
            await one.fsync(handle)
            await other.setattr(ino, Changes(size=100), ROOT)
    await one.flush(handle)
    await one.release(handle)
    inode = await other.inode((await resolve(other, b"/f")).ino)
    assert inode.mode & 0o777 == 0o611
    assert await one.getxattr(ino, b"user.n") == b"9"
    data = await get(other, b"/f")
    assert data[:100] == b"A" * 100
    assert data[100:25000] == bytes(24900)
    assert data[25000:] == b"".join(bytes([65 + number]) * 5000 for number in range(5, 10))


async def test_a_replication_code_set_elsewhere_counts(pair: Pair) -> None:
    """For what is made in a folder, and for what is written to a file that is open (G2, G3)."""
    one, other = pair
    folder = await one.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
    ino = await put(one, b"f", b"a" * 5000, folder.ino)
    handle = await one.open(ino, os.O_RDWR)
    for changed in (folder.ino, ino):
        await other.setxattr(changed, ATTRIBUTE, b"000")

        async def known(changed: int = changed) -> bool:
            return ATTRIBUTE in await one.listxattr(changed, ROOT)

        await eventually(known)
    made = await one.mkdir(folder.ino, b"sub", 0o755, ROOT)
    assert made.xattrs == {ATTRIBUTE: b"000"}
    await one.write(handle, 0, b"b" * 5000)
    await one.fsync(handle)
    await one.release(handle)
    (line,) = (await one.facts(ino))[b"chunks"].splitlines()
    assert line.endswith(b" replication=000")


async def test_a_file_removed_elsewhere_stays_readable_while_open(fresh: Fresh) -> None:
    data = os.urandom(150 * KIB)
    async with two(fresh) as (a, b):
        ino = await put(a.fs, b"f", data)
        handle = await b.fs.open((await resolve(b.fs, b"/f")).ino, os.O_RDWR)
        await a.fs.unlink(ROOT_INO, b"f")

        async def gone() -> bool:
            return await b.fs.lookup(ROOT_INO, b"f") is None

        await eventually(gone)
        assert bytes(await b.fs.read(handle, 0, 2**20)) == data
        await b.fs.write(handle, 0, b"still here")
        await b.fs.fsync(handle)
        assert bytes(await b.fs.read(handle, 0, 10)) == b"still here"
        await b.fs.release(handle)
        orphans = a.door.client[a.database]["orphans"]

        async def buried() -> bool:
            return orphans.count_documents({}) == 0

        await eventually(buried)
        assert a.door.client[a.database]["inodes"].count_documents({"_id": ino}) == 0


async def test_a_file_removed_everywhere_goes(fresh: Fresh) -> None:
    async with two(fresh) as (a, b):
        for number in range(5):
            await put(a.fs, b"f%d" % number, b"x")
            await b.fs.unlink(ROOT_INO, b"f%d" % number)
            with pytest.raises(NotFound):
                await a.fs.unlink(ROOT_INO, b"f%d" % number)
        db = a.door.client[a.database]

        async def buried() -> bool:
            return db["orphans"].count_documents({}) == 0 and db["inodes"].count_documents({}) == 1

        await eventually(buried)


async def test_equal_content_from_both_sides_is_stored_once(fresh: Fresh) -> None:
    async with two(fresh) as (a, b):
        data = os.urandom(64 * KIB)
        async with trio.open_nursery() as nursery:
            for index, stack in enumerate((a, b, a, b)):
                nursery.start_soon(partial(put, stack.fs, b"f%d" % index, data))
        for index in range(4):
            assert await get(b.fs, b"/f%d" % index) == data
        assert a.door.client[a.database]["chunks"].count_documents({}) == 1
