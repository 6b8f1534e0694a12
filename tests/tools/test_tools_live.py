"""fsck and gc beside somebody who writes: no damage is seen where there is none, and none is done (F8, G1)."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import trio
import trio.lowlevel

from flakefs.app.stack import Stack, metadata_door
from flakefs.errors import HeldElsewhere
from flakefs.format import documents as d
from flakefs.namespace import NamespaceOptions
from flakefs.testing.stack import Fresh, NewFresh
from flakefs.tools.gc import Freed, collect
from flakefs.tools.problems import Report
from flakefs.tools.repair import repair
from flakefs.vfs import Caller, FileSystem

ME = Caller(0, 0)
OFTEN = NamespaceOptions(commit_interval_seconds=0.05)


def swept(fresh: Fresh, **options: Any) -> Freed:
    with metadata_door(fresh.config, purpose="gc") as (door, resolve):
        return collect(door, fresh.config.database, resolve, **options)


def mended(fresh: Fresh) -> Report:
    with metadata_door(fresh.config, purpose="fsck") as (door, resolve):
        return repair(door, fresh.config.database, resolve)


async def write(fs: FileSystem, name: bytes, data: bytes, offset: int = 0) -> int:
    """Returns the open handle."""
    inode = await fs.lookup(1, name)
    if inode is None:
        handle, _ = await fs.create(1, name, 0o644, os.O_RDWR, ME)
    else:
        handle = await fs.open(inode.ino, os.O_RDWR)
    await fs.write(handle, offset, data)
    return handle


async def churn(fs: FileSystem, seed: int) -> None:
    """Create, overwrite, duplicate, rename over and unlink, for ever."""
    chance = random.Random(seed)
    contents = [chance.randbytes(chance.choice([100, 70_000, 200_000])) for _ in range(5)]
    names = [b"f%d" % n for n in range(8)]
    while True:
        name, other = chance.sample(names, 2)
        handle = await write(fs, name, chance.choice(contents), chance.choice([0, 0, 5_000, 70 << 20]))
        if chance.random() < 0.3 and await fs.lookup(1, other):
            await fs.unlink(1, other)
        if chance.random() < 0.3:
            await fs.rename(1, name, 1, other)
        await fs.release(handle)
        await trio.lowlevel.checkpoint()


async def test_fsck_beside_a_busy_writer_sees_no_damage(new_fresh: NewFresh) -> None:
    """F8, O2: every commit takes extents, counts and volume sums along."""
    fresh = new_fresh(namespace=OFTEN)
    async with fresh.open(kind="mount") as stack, trio.open_nursery() as nursery:
        nursery.start_soon(churn, stack.fs, 1)
        for _ in range(12):
            report = await trio.to_thread.run_sync(fresh.fsck)
            assert report.clean, report.text()
            assert not report.leftovers
            assert report.leaked_chunks == 0, "young chunks are the writer's"
            assert report.kinds["session-live"] == 1
        nursery.cancel_scope.cancel()
    await fresh.assert_sound_now()


async def test_gc_beside_a_busy_writer_takes_nothing_that_is_needed(new_fresh: NewFresh) -> None:
    """G1, O7: also what is stored and not yet committed."""
    fresh = new_fresh(namespace=OFTEN)
    async with fresh.open(kind="mount") as stack, trio.open_nursery() as nursery:
        nursery.start_soon(churn, stack.fs, 2)
        for _ in range(5):
            freed = await trio.to_thread.run_sync(swept, fresh)
            assert freed.chunks == 0
        nursery.cancel_scope.cancel()
    await fresh.assert_sound_now()


async def test_open_and_uncommitted_things_of_a_live_session_are_its_own(fresh: Fresh) -> None:
    """F8"""
    async with fresh.open(kind="mount") as stack:
        fs = stack.fs
        handle = await write(fs, b"gone", os.urandom(100_000))
        await fs.unlink(1, b"gone")
        await fs.sync()
        await fs.engine.store([block_of(os.urandom(70_000))])
        report = await trio.to_thread.run_sync(fresh.fsck)
        assert report.clean
        assert not report.leftovers
        assert report.counts["orphans"] == 1
        assert report.leaked_chunks == 0
        await fs.release(handle)
    fresh.checked = False  # the block that nobody named is a leak
    report = await trio.to_thread.run_sync(fresh.fsck)
    assert (report.clean, report.leaked_chunks) == (True, 1)
    assert (await trio.to_thread.run_sync(lambda: swept(fresh, grace_seconds=0))).chunks == 1


def block_of(data: bytes) -> Any:
    from flakefs.values import Block

    block = Block(data)
    block.sealed = True
    return block


async def test_repair_and_short_grace_refuse_beside_a_mount(fresh: Fresh) -> None:
    """M5, O7"""
    async with fresh.open(kind="mount"):
        for refused in (lambda: mended(fresh), lambda: swept(fresh, grace_seconds=0)):
            with pytest.raises(HeldElsewhere, match="held by a mount at a test"):
                await trio.to_thread.run_sync(refused)


async def test_a_mount_goes_on_with_what_repair_has_mended(fresh: Fresh, tmp_path: Any) -> None:
    """F2: mended documents are as good as any."""
    async with fresh.open() as stack:
        handle = await write(stack.fs, b"file", b"x" * 100_000)
        await stack.fs.release(handle)
    await trio.to_thread.run_sync(_damage, fresh)
    report = await trio.to_thread.run_sync(mended, fresh)
    assert report.clean, report.text()
    async with fresh.open() as stack:
        assert await read(stack, [b"lost+found", b"#2-file"]) == b"x" * 100_000


def _damage(fresh: Fresh) -> None:
    with metadata_door(fresh.config, purpose="test") as (door, _):
        database = door.client[fresh.config.database]
        database[d.CHUNKS].update_many({}, {"$inc": {"r": 5}})
        inode = database[d.INODES].find_one({"n": "file"})
        assert inode is not None
        database[d.INODES].update_one({"_id": inode["_id"]}, {"$set": {"p": 777, "nlink": 9, "used": 1}})
        assert inode["_id"] == 2


async def read(stack: Stack, path: list[bytes]) -> bytes:
    inode = stack.fs.ns.root
    for name in path:
        found = await stack.fs.lookup(inode.ino, name)
        assert found is not None, name
        inode = found
    handle = await stack.fs.open(inode.ino, os.O_RDONLY)
    data = bytes(await stack.fs.read(handle, 0, 1 << 20))
    await stack.fs.release(handle)
    return data
