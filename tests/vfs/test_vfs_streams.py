"""Large and scattered content on real servers: bounds, packing, rewriting, read-ahead, and stores that fail."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import trio

from flakefs.app.stack import Stack
from flakefs.engine import EngineOptions
from flakefs.errors import ChunkMissing, FlakeError, ReadOnly, StoreError
from flakefs.namespace import Inode, NamespaceOptions
from flakefs.testing.servers import Servers
from flakefs.testing.stack import Fresh, NewFresh
from flakefs.values import ROOT_INO, SEGMENT_BYTES, ChunkRef
from flakefs.vfs import Caller, Changes, FileSystem, VfsOptions
from flakefs.vfs.content import FRAGMENTS, crowd
from flakefs.vfs.paths import resolve

ROOT = Caller(0, 0)
KIB = 1024
MIB = 1024 * KIB
CHUNK = 64 * KIB


async def new(fs: FileSystem, name: bytes) -> int:
    handle, _ = await fs.create(ROOT_INO, name, 0o644, os.O_RDWR, ROOT)
    return handle


async def test_a_stream_stays_within_its_bound(fresh: Fresh) -> None:
    fresh.configure(
        vfs=VfsOptions(dirty_bytes=4 * MIB), engine=EngineOptions(reserve_bytes=0, chunk_cache_bytes=2 * MIB)
    )
    seeds = [random.Random(number).randbytes(MIB - 1) for number in range(3)]
    async with fresh.open() as stack:
        handle = await new(stack.fs, b"stream")
        for number in range(48):
            await stack.fs.write(handle, number * MIB, b"%c" % number + seeds[number % 3])
            figures = stack.fs.statistics()
            assert figures.open_bytes + figures.sealed_bytes <= 6 * MIB
        await stack.fs.release(handle)
    async with fresh.open() as stack:
        handle = await stack.fs.open((await resolve(stack.fs, b"stream")).ino, os.O_RDONLY)
        for number in range(48):
            assert await stack.fs.read(handle, number * MIB, MIB) == b"%c" % number + seeds[number % 3]
        await stack.fs.release(handle)


async def test_many_writers_at_once(stack: Stack) -> None:
    fs = stack.fs

    async def write(name: bytes) -> None:
        handle = await new(fs, name)
        for number in range(40):
            await fs.write(handle, number * 50_000, name * 50_000)
            if number % 10 == 0:
                await fs.fsync(handle)
        await fs.release(handle)

    async with trio.open_nursery() as nursery:
        for name in (b"a", b"b", b"c", b"d"):
            nursery.start_soon(write, name)
    await fs.sync()
    for name in (b"a", b"b", b"c", b"d"):
        handle = await fs.open((await resolve(fs, name)).ino, os.O_RDONLY)
        assert await fs.read(handle, 0, 3 * MIB) == name * 2_000_000
        await fs.release(handle)


async def test_scattered_writes_share_chunks(stack: Stack) -> None:
    handle = await new(stack.fs, b"scattered")
    for number in range(200):
        await stack.fs.write(handle, number * 3 * CHUNK + number, b"%04d" % number * 25)
    await stack.fs.release(handle)
    await stack.fs.sync()
    chunks = list(stack.door.client[stack.database]["chunks"].find())
    assert [chunk["r"] for chunk in chunks] == [200]


async def test_content_in_later_segments_survives(fresh: Fresh) -> None:
    places = [0, SEGMENT_BYTES - 3, 2 * SEGMENT_BYTES, 5 * SEGMENT_BYTES + CHUNK - 2]
    async with fresh.open() as stack:
        handle = await new(stack.fs, b"far")
        for place in places:
            await stack.fs.write(handle, place, b"across")
        await stack.fs.release(handle)
    async with fresh.open() as stack:
        inode = await resolve(stack.fs, b"far")
        handle = await stack.fs.open(inode.ino, os.O_RDWR)
        for place in reversed(places):
            assert await stack.fs.read(handle, place, 6) == b"across"
        await stack.fs.write(handle, 2 * SEGMENT_BYTES + 2, b"XX")
        assert await stack.fs.read(handle, 2 * SEGMENT_BYTES - 1, 8) == b"\0acXXss\0"
        await stack.fs.setattr(inode.ino, Changes(size=2 * SEGMENT_BYTES + 3), ROOT)
        await stack.fs.setattr(inode.ino, Changes(size=6 * SEGMENT_BYTES), ROOT)
        assert await stack.fs.read(handle, 2 * SEGMENT_BYTES, 9) == b"acX" + bytes(6)
        assert await stack.fs.read(handle, places[-1], 6) == bytes(6)
        await stack.fs.release(handle)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something in the background that has no event of ours."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


def extents_of(inode: Inode) -> int:
    assert inode.map is not None
    return len(inode.map.segment(0))


async def settled(stack: Stack, condition: Callable[[], bool]) -> None:
    """Commit until background work has done what *condition* says."""
    with trio.fail_after(30):
        while not condition():
            await stack.fs.sync()
            await trio.sleep(0.01)


async def test_a_fragmented_window_is_rewritten(stack: Stack) -> None:
    fs = stack.fs
    handle = await new(fs, b"database")
    await fs.write(handle, 0, b"-" * CHUNK)
    await fs.sync()
    for number in range(FRAGMENTS // 2 + 3):
        await fs.write(handle, number * 1000, b"%04d" % number)
    inode = fs.handles.get(handle).inode
    assert extents_of(inode) > FRAGMENTS
    touch = await new(fs, b"other")

    async def keep_committing() -> None:
        number = 0
        while True:
            await fs.write(touch, number, b"x")
            await fs.sync()
            number += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_committing)
        await settled(stack, lambda: extents_of(inode) == 1)
        nursery.cancel_scope.cancel()
    data = bytearray(b"-" * CHUNK)
    for number in range(FRAGMENTS // 2 + 3):
        data[number * 1000 : number * 1000 + 4] = b"%04d" % number
    assert bytes(await fs.read(handle, 0, CHUNK)) == data
    await fs.release(handle)
    await fs.release(touch)


async def test_a_crowded_window_is_rewritten_by_its_writer(fresh: Fresh) -> None:
    async with fresh.open() as stack:
        handle = await new(stack.fs, b"f")
        await stack.fs.write(handle, 0, b"-" * CHUNK)
        await stack.fs.release(handle)
    async with fresh.open() as stack:  # the old content has to be fetched
        fs = stack.fs
        inode = await resolve(fs, b"f")
        handle = await fs.open(inode.ino, os.O_RDWR)
        data = bytearray(b"-" * CHUNK)
        for number in range(1000):
            await fs.write(handle, number * 60, b"*")
            data[number * 60] = ord("*")
            assert extents_of(inode) <= 2 * crowd(CHUNK) + 2
        assert bytes(await fs.read(handle, 0, CHUNK)) == data
        await fs.release(handle)


async def test_a_crowded_window_may_lose_its_chunk_while_it_is_rewritten(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: another writer overwrites what is about to be fetched, and a commit deletes it."""
    async with fresh.open() as stack:
        handle = await new(stack.fs, b"f")
        await stack.fs.write(handle, 0, b"-" * CHUNK)
        await stack.fs.release(handle)
    async with fresh.open() as stack:
        fs = stack.fs
        engine = fs.engine
        handle = await fs.open((await resolve(fs, b"f")).ino, os.O_RDWR)
        asked: list[ChunkRef] = []

        async def missing(refs: list[ChunkRef]) -> None:
            if not asked:
                await fs.write(handle, 0, b"+" * CHUNK)
                await fs.write(handle, 10, b"!")
                await fs.sync()
            asked.extend(refs)
            raise ChunkMissing("the chunk was deleted")

        monkeypatch.setattr(engine, "fetch", lambda ref: missing([ref]))
        monkeypatch.setattr(engine, "fetch_many", missing)
        number = 0
        while not asked:
            assert await fs.write(handle, number * 60, b"*") == 1
            number += 1
        monkeypatch.undo()
        assert len(asked) == 1
        assert await fs.read(handle, 0, CHUNK) == b"+" * 10 + b"!" + b"+" * (CHUNK - 11)
        await fs.release(handle)


async def test_a_crowded_window_whose_chunk_is_gone_says_so(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """R3: named twice, missed twice."""
    async with fresh.open() as stack:
        handle = await new(stack.fs, b"f")
        await stack.fs.write(handle, 0, b"-" * CHUNK)
        await stack.fs.release(handle)
    async with fresh.open() as stack:
        fs = stack.fs
        handle = await fs.open((await resolve(fs, b"f")).ino, os.O_RDWR)
        asked = 0

        async def missing(_: object) -> None:
            nonlocal asked
            asked += 1
            raise ChunkMissing("the chunk is gone")

        monkeypatch.setattr(fs.engine, "fetch", missing)
        monkeypatch.setattr(fs.engine, "fetch_many", missing)
        for number in range(crowd(CHUNK) // 2):
            await fs.write(handle, number * 60, b"*")
        with pytest.raises(ChunkMissing):
            await fs.write(handle, CHUNK - 60, b"*")
        monkeypatch.undo()
        assert asked == 2
        await fs.release(handle)


async def test_sequential_reading_fetches_ahead(fresh: Fresh) -> None:
    async with fresh.open() as stack:
        handle = await new(stack.fs, b"film")
        for number in range(40):
            await stack.fs.write(handle, number * CHUNK, os.urandom(CHUNK))
        await stack.fs.release(handle)
    async with fresh.open() as stack:
        fs = stack.fs
        inode = await resolve(fs, b"film")
        handle = await fs.open(inode.ino, os.O_RDONLY)
        for at in range(0, 10 * CHUNK, 16 * KIB):
            await fs.read(handle, at, 16 * KIB)
        await until(lambda: fs.reader.read_now(inode, 12 * CHUNK, CHUNK) is not None)
        fetched = fs.engine.statistics().fetched_chunks
        assert fetched <= 40
        await fs.release(handle)
        other = await fs.open(inode.ino, os.O_RDONLY)
        await fs.read(other, 39 * CHUNK, 10)
        assert fs.engine.statistics().fetched_chunks <= fetched + 30
        await fs.release(other)


async def test_reading_ahead_goes_up_to_what_is_known_of_the_map(fresh: Fresh) -> None:
    """And not only when the next segment of the map is known, too."""
    begin = SEGMENT_BYTES - 12 * CHUNK
    data = os.urandom(24 * CHUNK)
    async with fresh.open() as stack:
        handle = await new(stack.fs, b"film")
        await stack.fs.write(handle, begin, data)
        await stack.fs.release(handle)
    async with fresh.open() as stack:
        fs = stack.fs
        inode = await resolve(fs, b"film")
        handle = await fs.open(inode.ino, os.O_RDONLY)
        got = [bytes(await fs.read(handle, begin + number * CHUNK, CHUNK)) for number in range(5)]
        assert inode.map is not None
        assert not inode.map.loaded(SEGMENT_BYTES, SEGMENT_BYTES + 1)
        await until(lambda: fs.reader.read_now(inode, SEGMENT_BYTES - CHUNK, CHUNK) is not None)
        got += [bytes(await fs.read(handle, begin + number * CHUNK, CHUNK)) for number in range(5, 24)]
        assert b"".join(got) == data
        await until(lambda: fs.reader.read_now(inode, SEGMENT_BYTES + 11 * CHUNK, CHUNK) is not None)
        await fs.release(handle)


async def test_a_random_reader_fetches_what_it_asks_for(fresh: Fresh) -> None:
    async with fresh.open() as stack:
        handle = await new(stack.fs, b"table")
        for number in range(100):
            await stack.fs.write(handle, number * CHUNK, os.urandom(CHUNK))
        await stack.fs.release(handle)
    fresh.configure(engine=EngineOptions(reserve_bytes=0))
    async with fresh.open() as stack:
        fs = stack.fs
        handle = await fs.open((await resolve(fs, b"table")).ino, os.O_RDONLY)
        for number in (90, 10, 55, 98):
            assert len(await fs.read(handle, number * CHUNK + 5, 100)) == 100
        assert fs.engine.statistics().fetched_chunks == 4
        await fs.release(handle)


@pytest.mark.logs
async def test_a_node_that_is_gone_is_told_and_survived(private_servers: Servers) -> None:
    """P3: EIO for those who wait, no changes meanwhile, and nothing lost when it is back."""
    fresh = Fresh(
        private_servers,
        "lost",
        "lost_chunks",
        engine=EngineOptions(reserve_bytes=0, deadline_seconds=1.0),
        namespace=NamespaceOptions(error_timeout_seconds=2.0),
        vfs=VfsOptions(error_timeout_seconds=2.0),
    )
    data = os.urandom(3 * CHUNK + 100)
    async with fresh.open() as stack:
        fs = stack.fs
        handle = await new(fs, b"f")
        await trio.to_thread.run_sync(private_servers.node(1).kill)
        await fs.write(handle, 0, data)
        with trio.fail_after(60):
            with pytest.raises(StoreError):
                await fs.fsync(handle)
            with pytest.raises(StoreError):
                await fs.flush(handle)
            with pytest.raises(ReadOnly):
                await fs.mkdir(ROOT_INO, b"refused", 0o755, ROOT)
            with pytest.raises(FlakeError):
                await fs.write(handle, 0, b"refused")
        assert await fs.read(handle, 0, len(data)) == data, "what is in memory can be read"
        await trio.to_thread.run_sync(private_servers.node(1).start)
        await until(lambda: fs.ns.failure is None)
        await fs.fsync(handle)
        await fs.mkdir(ROOT_INO, b"again", 0o755, ROOT)
        await fs.release(handle)
    async with fresh.open() as stack:
        handle = await stack.fs.open((await resolve(stack.fs, b"f")).ino, os.O_RDONLY)
        assert await stack.fs.read(handle, 0, len(data)) == data
        await stack.fs.release(handle)
    await fresh.assert_sound_now()


async def test_files_of_one_test_do_not_leak(new_fresh: NewFresh) -> None:
    """After everything is removed and committed, nothing is left in the index."""
    fresh = new_fresh()
    async with fresh.open() as stack:
        fs = stack.fs
        for number in range(30):
            handle = await new(fs, b"%d" % number)
            await fs.write(handle, 0, os.urandom(10_000 * number + 1))
            await fs.release(handle)
            if number % 7 == 0:
                await fs.sync()
        for number in range(30):
            await fs.unlink(ROOT_INO, b"%d" % number)
        await fs.sync()
        await fs.sync()
        assert stack.door.client[stack.database]["chunks"].count_documents({}) == 0
        assert fs.writeback.contents == {}
        assert fs.statistics().sealed_bytes == 0
