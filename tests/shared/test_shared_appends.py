"""What is seen, on the mount that writes it, of a file while it is written and while records are appended to it."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import trio
import trio.lowlevel

from flakefs.errors import FlakeError
from flakefs.testing.mounted import NewMount, new_mount
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes, FileSystem
from tests.shared.conftest import PATIENCE_SECONDS, ROOT, get, put, two
from tests.shared.mounts import MARKS, until
from tests.shared.orders import hold_commits

__all__ = ["new_mount"]

Test = TypeVar("Test", bound=Callable[..., object])
Pair = tuple[FileSystem, FileSystem]
ROUNDS = 10
FAR = 10_000
FOLLOWED = 400


def mounted(test: Test) -> Test:
    for mark in MARKS:
        test = mark(test)
    return test


async def test_a_file_that_is_written_all_the_time_can_be_opened(pair: Pair) -> None:
    """And what was closed elsewhere before is seen then (P2), though there is never a moment without dirty content."""
    one, other = pair
    ino = await put(one, b"f", b"a" * 2 * FAR)
    done = trio.Event()

    async def write() -> None:
        handle = await one.open(ino, os.O_RDWR)
        while not done.is_set():
            await one.write(handle, 0, b"b" * 700)
            await trio.lowlevel.checkpoint()
        await one.flush(handle)
        await one.release(handle)

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for number in range(ROUNDS):
                elsewhere = await other.open(ino, os.O_RDWR)
                await other.write(elsewhere, FAR, b"%d" % number)
                await other.flush(elsewhere)
                await other.release(elsewhere)
                handle = await one.open(ino, os.O_RDONLY)
                assert bytes(await one.read(handle, FAR, 1)) == b"%d" % number
                await one.release(handle)
            done.set()


async def _read(fs: FileSystem, ino: int, handle: int) -> int:
    return len(await fs.read(handle, 0, 100))


async def _size(fs: FileSystem, ino: int, handle: int) -> int:
    return (fs.peek(ino) or await fs.inode(ino)).size


async def _size_found(fs: FileSystem, ino: int, handle: int) -> int:
    found = await fs.lookup(ROOT_INO, b"log")
    assert found is not None
    return found.size


async def _size_listed(fs: FileSystem, ino: int, handle: int) -> int:
    folder = await fs.opendir(ROOT_INO)
    try:
        return next(inode.size for _, name, inode in await fs.readdir(folder, 0, 10) if name == b"log")
    finally:
        await fs.releasedir(folder)


async def _size_changed(fs: FileSystem, ino: int, handle: int) -> int:
    return (await fs.setattr(ino, Changes(mode=0o600), ROOT)).size


async def _size_linked(fs: FileSystem, ino: int, handle: int) -> int:
    return (await fs.link(ino, ROOT_INO, b"link")).size


async def _size_created(fs: FileSystem, ino: int, handle: int) -> int:
    made, inode = await fs.create(ROOT_INO, b"log", 0o644, os.O_RDONLY, ROOT)
    await fs.release(made)
    return inode.size


LOOKS = [_read, _size, _size_found, _size_listed, _size_changed, _size_linked, _size_created]


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__.strip("_"))
async def test_a_record_is_seen_only_where_it_ends_up(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch, look: Callable[[FileSystem, int, int], Awaitable[int]]
) -> None:
    """Its first commit meets a longer one of another session: nobody is shown a file that ends within that one."""
    async with two(fresh) as (one, other):
        ino = await put(one.fs, b"log", b"")
        appending = await one.fs.open(ino, os.O_WRONLY | os.O_APPEND)
        reading = await one.fs.open(ino, os.O_RDONLY)
        waits, free = hold_commits(one, monkeypatch)
        seen: list[int] = []

        async def watch() -> None:
            seen.append(await look(one.fs, ino, reading))

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.fs.write, appending, 0, b"A")
                await waits.wait()
                nursery.start_soon(watch)
                await put_at_the_end(other.fs, ino, b"BBB")
                await trio.sleep(0.02)
                free.set()
        for handle in (appending, reading):
            await one.fs.release(handle)
        assert await get(one.fs, b"/log") == await get(other.fs, b"/log") == b"BBBA"
        assert seen[0] in {3, 4}


async def put_at_the_end(fs: FileSystem, ino: int, record: bytes) -> None:
    handle = await fs.open(ino, os.O_WRONLY | os.O_APPEND)
    await fs.write(handle, 0, record)
    await fs.release(handle)


async def test_who_reads_a_file_to_which_all_append_sees_beginnings_of_it(pair: Pair) -> None:
    ino = await put(pair[0], b"log", b"")
    left = 4
    seen: list[bytes] = []
    sizes: list[int] = []

    async def append(fs: FileSystem, tag: int) -> None:
        nonlocal left
        handle = await fs.open(ino, os.O_WRONLY | os.O_APPEND)
        for number in range(30):
            await fs.write(handle, 0, b"%d:%03d %s\n" % (tag, number, b"x" * (7 * tag + number)))
            await trio.sleep(0.001)
        await fs.release(handle)
        left -= 1

    async def follow(fs: FileSystem) -> None:
        handle = await fs.open(ino, os.O_RDONLY)
        while left:
            seen.append(bytes(await fs.read(handle, 0, 2**20)))
            sizes.append(await _size(fs, ino, handle))
            await trio.lowlevel.checkpoint()
        await fs.release(handle)

    with trio.fail_after(2 * PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for tag, fs in enumerate((*pair, *pair)):
                nursery.start_soon(append, fs, tag)
            nursery.start_soon(follow, pair[0])
    whole = await get(pair[1], b"/log")
    ends = {0} | {index + 1 for index, byte in enumerate(whole) if byte == 10}
    assert not [data for data in seen if not whole.startswith(data)]
    assert {len(data) for data in seen} <= ends
    assert set(sizes) <= ends


async def test_a_reader_does_not_wait_for_a_store_that_is_away(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor gets an error for it: it is told what there is."""
    async with two(fresh) as (one, _):
        ino = await put(one.fs, b"log", b"old")
        appending = await one.fs.open(ino, os.O_WRONLY | os.O_APPEND)
        reading = await one.fs.open(ino, os.O_RDONLY)
        waits, free = hold_commits(one, monkeypatch)
        monkeypatch.setattr("flakefs.vfs.base.APPEND_SECONDS", 0.05)
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.fs.write, appending, 0, b"A")
                await waits.wait()
                assert bytes(await one.fs.read(reading, 0, 3)) == b"old"

                async def fail() -> None:
                    raise FlakeError("the store is away")

                with monkeypatch.context() as patch:
                    patch.setattr(one.fs.ns, "commit", fail)
                    assert bytes(await one.fs.read(reading, 0, 3)) == b"old"
                free.set()
        await one.fs.release(appending)
        await one.fs.release(reading)
        assert await get(one.fs, b"/log") == b"oldA"


@mounted
def test_a_follower_reads_what_the_file_is_in_the_end(new_mount: NewMount) -> None:
    """As tail -f does: it reads on where it ended, and nothing twice, while both mounts append."""
    one = new_mount()
    paths = [mount.path / "log" for mount in (one, one.another())]
    paths[0].touch()
    until(paths[1].exists)

    def append(tag: int) -> None:
        log = os.open(paths[tag], os.O_WRONLY | os.O_APPEND)
        try:
            for number in range(FOLLOWED):
                os.write(log, b"%d %04d %s\n" % (tag, number, b"x" * (number % 90)))
                time.sleep(0.002)
        finally:
            os.close(log)

    with ThreadPoolExecutor(2) as pool, paths[1].open("rb", buffering=0) as follower:
        appending = [pool.submit(append, tag) for tag in (0, 1)]
        followed = b""
        while not all(each.done() for each in appending):
            followed += os.pread(follower.fileno(), 2**20, len(followed))
            time.sleep(0.001)
        for each in appending:
            each.result()
        whole = paths[0].read_bytes()
        assert whole.count(b"\n") == 2 * FOLLOWED
        until(lambda: os.fstat(follower.fileno()).st_size == len(whole))
        followed += os.pread(follower.fileno(), 2**20, len(followed))
    assert followed == whole
