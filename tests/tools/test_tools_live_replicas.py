"""repair, scrub and vacuum beside somebody who writes, over nodes of their own (RF3, SC1, VA1)."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import trio
from pymongo import MongoClient

from flakefs.app.stack import metadata_door
from flakefs.engine.admin import add_node, set_replication
from flakefs.namespace import NamespaceOptions
from flakefs.testing.servers import Servers
from flakefs.testing.stack import Fresh, NewFresh
from flakefs.tools import vacuum as vacuum_module
from flakefs.tools.gc import collect
from flakefs.tools.refill import Refilled, repair_replicas
from flakefs.tools.scrub import Scrubbed, scrub
from flakefs.tools.vacuum import Vacuumed, vacuum

LIVE = runpy.run_path(str(Path(__file__).with_name("test_tools_live.py")))  # test folders are no packages
churn, write = LIVE["churn"], LIVE["write"]
OFTEN = NamespaceOptions(commit_interval_seconds=0.05)
SHRINK_SECONDS = 60.0


class Three:
    """A file system on three nodes with servers of their own, in replication 001."""

    def __init__(self, fresh: Fresh, servers: Servers, databases: dict[int, str]) -> None:
        self.fresh = fresh
        self.servers = servers
        self.databases = databases
        with metadata_door(fresh.config, purpose="test") as (door, resolve):
            for number in (2, 3):
                add_node(
                    door, fresh.config.database, uri=servers.node_uri(number), node_database=databases[number],
                    resolve=resolve,
                )  # fmt: skip
        self.set_replication("001")

    def set_replication(self, code: str) -> None:
        with metadata_door(self.fresh.config, purpose="test") as (door, _):
            set_replication(door, self.fresh.config.database, code)

    def run(self, work: Callable[..., Any], **options: Any) -> Any:
        with metadata_door(self.fresh.config, purpose="test") as (door, resolve):
            return work(door, self.fresh.config.database, resolve, **options)

    async def repaired(self) -> Refilled:
        return await trio.to_thread.run_sync(partial(self.run, repair_replicas))

    async def scrubbed(self) -> Scrubbed:
        return await trio.to_thread.run_sync(partial(self.run, scrub))

    async def vacuumed(self, **options: Any) -> Vacuumed:
        return await trio.to_thread.run_sync(partial(self.run, vacuum, **options))

    def wipe(self, number: int) -> None:
        with MongoClient[dict[str, Any]](self.servers.node_uri(number)) as client:
            client.drop_database(self.databases[number])


@pytest.fixture
def three(new_fresh: NewFresh, servers: Servers, new_database: Callable[[], str]) -> Three:
    return Three(new_fresh(namespace=OFTEN), servers, {2: new_database(), 3: new_database()})


@pytest.mark.logs
async def test_an_emptied_node_is_refilled_beside_a_writer(three: Three) -> None:
    """RF3"""
    async with three.fresh.open(kind="mount") as stack, trio.open_nursery() as nursery:
        nursery.start_soon(churn, stack.fs, 3)
        await trio.sleep(1.0)
        await trio.to_thread.run_sync(three.wipe, 2)
        await trio.sleep(0.5)
        with trio.fail_after(120):
            while not (done := await three.repaired()).complete:
                assert not done.lost_chunks, done.text()
        assert (await three.repaired()).complete
        nursery.cancel_scope.cancel()
    done = await three.repaired()
    assert done.complete, done.text()
    found = await three.scrubbed()
    assert (found.sound, found.mended, found.refilled) == (True, 0, 0), found.text()


async def test_a_raised_replication_is_completed_beside_a_writer(three: Three) -> None:
    """RF3, RF4"""
    async with three.fresh.open(kind="mount") as stack, trio.open_nursery() as nursery:
        nursery.start_soon(churn, stack.fs, 4)
        await trio.sleep(1.0)
        await trio.to_thread.run_sync(three.set_replication, "002")
        with trio.fail_after(120):
            while not (done := await three.repaired()).complete:
                assert not done.lost_chunks, done.text()
        nursery.cancel_scope.cancel()
    done = await three.repaired()
    assert done.complete, done.text()


async def test_vacuum_and_scrub_beside_a_writer(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    """VA1, SC1: every volume is written anew, again and again, under readers and writers."""
    monkeypatch.setattr(vacuum_module, "WORTH_BYTES", -1)
    async with three.fresh.open(kind="mount") as stack, trio.open_nursery() as nursery:
        nursery.start_soon(churn, stack.fs, 5)
        nursery.start_soon(read_all, stack)
        for _ in range(2):
            await trio.sleep(0.3)
            done = await three.vacuumed(min_garbage=0)
            assert not done.waiting, done.text()
            found = await three.scrubbed()
            assert (found.sound, found.mended) == (True, 0), found.text()
        nursery.cancel_scope.cancel()
    assert done.rewritten or done.dropped


async def read_all(stack: Any) -> None:
    """Every file, again and again; what is read needs no cache."""
    fs = stack.fs
    while True:
        for number in range(8):
            inode = await fs.lookup(1, b"f%d" % number)
            if inode is None:
                continue
            handle = await fs.open(inode.ino, os.O_RDONLY)
            await fs.read(handle, 0, 1 << 20)
            await fs.release(handle)
        await trio.sleep(0.01)


async def test_deleted_files_give_their_disk_space_back(three: Three) -> None:
    """Nine in ten files go; gc, vacuum; the nodes' files have shrunk by four fifths of what the chunks took."""
    fs_files = int(os.environ.get("FLAKEFS_DELETED_FILES", "200"))
    size = 100_000 if fs_files < 10_000 else 6_000
    async with three.fresh.open() as stack:
        for number in range(fs_files):
            handle = await write(stack.fs, b"file%d" % number, os.urandom(size))
            await stack.fs.release(handle)
    full = await trio.to_thread.run_sync(on_disk, three)
    print(f"{fs_files} files of {size} bytes in two copies: {full} bytes on the disks")
    assert full > 2 * fs_files * size
    async with three.fresh.open() as stack:
        for number in range(fs_files):
            if number % 10:
                await stack.fs.unlink(1, b"file%d" % number)
    await trio.to_thread.run_sync(partial(three.run, collect, grace_seconds=0))
    done = await three.vacuumed()
    assert not done.waiting, done.text()
    print(done.text())
    await trio.to_thread.run_sync(wait_shrunk, three, full - 0.8 * 2 * fs_files * size)
    async with three.fresh.open() as stack:
        for number in range(0, fs_files, 10):
            inode = await stack.fs.lookup(1, b"file%d" % number)
            assert inode is not None
            handle = await stack.fs.open(inode.ino, os.O_RDONLY)
            assert len(await stack.fs.read(handle, 0, size)) == size
            await stack.fs.release(handle)


def wait_shrunk(three: Three, wanted: float) -> None:
    """A server removes the file of a dropped collection a moment later."""
    deadline = monotonic() + SHRINK_SECONDS
    while (size := on_disk(three)) > wanted:
        assert monotonic() < deadline, (size, wanted)
        sleep(0.2)
    print(f"{size} bytes on the disks after gc and vacuum")


def on_disk(three: Three) -> int:
    """Bytes of all collections of the three servers."""
    total = 0
    for number in (1, 2, 3):
        server = three.servers.node(number)
        with server.client() as client:
            client.admin.command("fsync")
        total += sum(path.stat().st_size for path in Path(server.plan.data).glob("collection-*.wt"))
    return total
