"""gc frees what nobody names, and nothing else (G1 to G5)."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing
from bson.objectid import ObjectId

from flakefs.app.stack import Stack, metadata_door
from flakefs.errors import Fenced, HeldElsewhere, NotFormatted
from flakefs.format import documents as d
from flakefs.format.records import read_format, read_node, read_volume
from flakefs.namespace import NamespaceOptions
from flakefs.namespace.journal import Journal
from flakefs.testing.stack import CHUNK_SIZE, Fresh, NewFresh
from flakefs.tools import chunks
from flakefs.tools import gc as module
from flakefs.tools.gc import Freed, collect
from flakefs.tools.reader import Reader
from flakefs.vfs import Caller, FileSystem

World = Any


def aged(seconds_old: float = 7200) -> ObjectId:
    """A new key that looks old."""
    born = datetime.now(UTC) - timedelta(seconds=seconds_old)
    return ObjectId(ObjectId.from_datetime(born).binary[:4] + ObjectId().binary[4:])


def leak(world: World, seconds_old: float, data: bytes = b"leak") -> ObjectId:
    """A chunk of some age that no index entry names."""
    key = aged(seconds_old)
    world.volume.insert_one(d.chunk_document(key.binary, b"x" * 32, "none", data))
    return key


def gc(world: World, **options: Any) -> Freed:
    return collect(world.door, world.database, world.resolve, **options)


def keys(world: World) -> set[ObjectId]:
    return {document["_id"] for document in world.volume.find({}, {"_id": 1})}


def test_old_leaks_go_and_nothing_else(world: World) -> None:
    """G1, G4, O7, O9: the client died between storing a chunk and its commit, or between a commit and the deletion."""
    before = keys(world)
    old, young = leak(world, 7200), leak(world, 60)
    assert (world.check().clean, world.check().leaked_chunks) == (True, 2)
    freed = gc(world)
    assert (freed.chunks, freed.bytes, freed.young) == (1, 4, 1)
    assert keys(world) == before | {young}
    assert old not in keys(world)
    assert gc(world).chunks == 0


def test_named_chunks_stay_however_old(world: World) -> None:
    """G1"""
    before = keys(world)
    gc(world, grace_seconds=0)
    assert keys(world) == before


def test_a_damaged_label_does_not_make_a_leak(world: World) -> None:
    """G1: the index names the key, whatever the chunk says of itself."""
    world.chunk(world.one, h=b"y" * 32)
    before = keys(world)
    gc(world, grace_seconds=0)
    assert keys(world) == before


def test_no_grace_at_all_needs_to_be_alone(world: World) -> None:
    """O7"""
    leak(world, 60)
    world.session(2, mode="rw")
    with pytest.raises(HeldElsewhere):
        gc(world, grace_seconds=0)
    assert gc(world).young == 1
    world.session(2, mode="rw", state="dead")
    assert gc(world, grace_seconds=0).chunks == 1


def test_it_stops_when_another_session_has_taken_over(world: World) -> None:
    """G3, O6"""
    leak(world, 60)
    world.session(2, mode="rw", state="dead")
    before = keys(world)
    with pytest.raises(Fenced, match="taken over"):
        gc(world, grace_seconds=0, own_epoch=2)
    assert keys(world) == before


def test_a_session_not_heard_of_keeps_what_it_may_still_commit(world: World) -> None:
    """G2"""
    leak(world, 7200)
    world.session(2, mode="rw", beat=datetime.now(UTC) - timedelta(seconds=5000))
    assert (gc(world).chunks, gc(world).young) == (0, 1)
    world.session(2, mode="rw", idle=True, beat=datetime.now(UTC) + timedelta(seconds=60))
    assert gc(world).chunks == 1


def test_a_chunk_indexed_meanwhile_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G1, O7: the index is asked again right before the deletion."""
    ref = world.store(b"late" * 100)
    compare = chunks.compare

    def late(*arguments: Any) -> Any:
        found = list(compare(*arguments))
        assert ObjectId(ref.key) in set().union(*(stretch.extra for stretch in found))
        world.index(ref, 1)
        yield from found

    monkeypatch.setattr(chunks, "compare", late)
    assert gc(world, grace_seconds=0).chunks == 0
    assert ObjectId(ref.key) in keys(world)


def test_windows_of_keys_find_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """F5"""
    monkeypatch.setattr(chunks, "WINDOW_KEYS", 2)
    monkeypatch.setattr(chunks, "KEYS_PAGE", 2)
    monkeypatch.setattr(chunks, "BATCH", 2)
    before = keys(world)
    for _ in range(7):
        leak(world, 7200)
    gone = leak(world, 9000)
    world.volume.delete_one({"_id": ObjectId(world.two.key)})
    report = world.check()
    assert (report.leaked_chunks, report.kinds["chunk-missing"], report.counts["chunks on nodes"]) == (8, 1, 2)
    assert gc(world).chunks == 8
    assert gone not in keys(world)
    assert keys(world) == before - {ObjectId(world.two.key)}


def test_a_node_that_does_not_answer_is_left_out_and_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """F7"""
    monkeypatch.setattr(chunks, "REACH_SECONDS", 0.5)
    leak(world, 7200)
    world.uris[1] = "mongodb://%2Fnonexistent%2Fflakefs.sock/"
    freed = gc(world)
    assert freed.chunks == 0
    assert list(freed.unreachable) == [1]
    assert "node 1 was left out" in freed.text()
    assert world.check().kinds["node-unreachable"] == 1
    monkeypatch.undo()
    world.uris[1] = world.good_uri
    assert gc(world).chunks == 1


def test_without_a_file_system_it_says_so(world: World) -> None:
    world.meta[d.FORMAT].delete_many({})
    with pytest.raises(NotFormatted, match="flakefs format"):
        gc(world)


# Beside a writer (G5)


def test_a_session_that_does_not_tell_keeps_what_it_may_hold(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G5"""
    monkeypatch.setattr(module, "REST_SECONDS", 0.5)
    old = leak(world, 7200)
    soon = datetime.now(UTC) + timedelta(seconds=60)
    for said in ({}, {"idle": False}, {"idle": True, "beat": datetime.now(UTC)}, {"held": 3}):
        world.session(2, mode="rw", **{"beat": soon, "commits": 7, **said})
        freed = gc(world)
        assert (freed.chunks, freed.held) == (0, 1)
        assert "1 chunks are left, because the session mount /mnt on host elsewhere" in freed.text()
        assert freed.text().endswith("has not come to rest; run gc again")
    assert old in keys(world)
    world.session(2, mode="rw", beat=soon, idle=True)
    assert gc(world).chunks == 1


@pytest.mark.parametrize(("held", "chunks"), [(6, 1), (7, 0), (8, 0)])
def test_a_commit_says_what_was_held_before_it(
    world: World, monkeypatch: pytest.MonkeyPatch, held: int, chunks: int
) -> None:
    """G5"""
    monkeypatch.setattr(module, "REST_SECONDS", 1.0)
    leak(world, 7200)
    world.session(2, mode="rw", commits=7)
    begun: list[str] = []

    def committed(word: str) -> None:
        if "waiting" in word and not begun:
            begun.append(word)
            world.session(2, mode="rw", commits=8, held=held)

    assert gc(world, progress=committed).chunks == chunks
    assert begun


def test_a_session_that_ends_or_is_dead_holds_nothing(world: World) -> None:
    """G5"""
    world.session(2, mode="rw")
    leak(world, 7200)
    assert gc(world, progress=lambda word: world.session(2, mode="rw", state="dead")).chunks == 1
    leak(world, 7200)
    from flakefs.namespace.sessions import boot_id

    world.session(2, mode="rw", boot=boot_id(), pid=2**22 + 1)  # killed, and nobody has noticed
    assert gc(world).chunks == 1


def test_a_session_that_comes_is_asked_too(world: World) -> None:
    """G5: it may have found what was named for a moment."""
    leak(world, 7200)
    world.session(2, mode="rw")
    epochs: list[int] = []

    def comes(word: str) -> None:
        if "waiting" in word and len(epochs) < 2:
            epochs.append(2 + len(epochs))
            world.session(epochs[-1], mode="rw", state="dead")
            world.session(epochs[-1] + 1, mode="rw")
        elif "waiting" in word:
            world.session(4, mode="rw", idle=True, beat=datetime.now(UTC) + timedelta(seconds=60))

    assert gc(world, progress=comes).chunks == 1
    assert epochs == [2, 3]


CALM = NamespaceOptions(commit_interval_seconds=3600)
CONTENT = os.urandom(CHUNK_SIZE)
ME = Caller(0, 0)


class Slow:
    """An open file system whose commits, once cut, wait to be let through."""

    def __init__(self, stack: Stack, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fs: FileSystem = stack.fs
        self._fresh = fresh
        self._index = stack.door.client[fresh.config.database][d.CHUNKS]
        self._cut = trio.Event()
        self._go = trio.Event()
        store = Journal._store

        async def wait(journal: Journal, group: Any) -> Any:
            self._cut.set()
            await self._go.wait()
            self._go = trio.Event()
            return await store(journal, group)

        monkeypatch.setattr(Journal, "_store", wait)

    async def write(self, name: bytes) -> None:
        """A file with CONTENT, found equal or stored, and not committed."""
        stored = self.fs.engine.statistics
        before = stored().pinned_blocks
        handle, _ = await self.fs.create(1, name, 0o644, os.O_RDWR, ME)
        await self.fs.write(handle, 0, CONTENT)
        await self.fs.release(handle)
        while stored().pinned_blocks == before:  # noqa: ASYNC110
            await trio.sleep(0.005)

    async def commit(self, meanwhile: bytes | None = None) -> None:
        """*meanwhile*: a file written between the cut and the transaction."""
        self._cut = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fs.sync)
            await self._cut.wait()
            if meanwhile:
                await self.write(meanwhile)
            self._go.set()

    async def begin(self, nursery: trio.Nursery) -> None:
        """A commit in the background, that is cut when this returns."""
        self._cut = trio.Event()
        nursery.start_soon(self.fs.sync)
        await self._cut.wait()

    def let_through(self) -> None:
        self._go.set()

    async def forget(self, old: bytes, new: bytes) -> None:
        """Commit that *old* is gone; its chunk is held for *new*."""
        await self.fs.unlink(1, old)
        await self.commit(meanwhile=new)
        assert self.named() == 0

    def named(self) -> int:
        return self._index.count_documents({})

    async def gc(self, progress: Callable[[str], None] = lambda _: None) -> Freed:
        def call() -> Freed:
            with metadata_door(self._fresh.config, purpose="gc") as (door, resolve):
                return collect(door, self._fresh.config.database, resolve, progress=progress)

        return await trio.to_thread.run_sync(call)

    async def read(self, name: bytes) -> bytes:
        inode = await self.fs.lookup(1, name)
        assert inode is not None
        handle = await self.fs.open(inode.ino, os.O_RDONLY)
        data = bytes(await self.fs.read(handle, 0, 1 << 20))
        await self.fs.release(handle)
        return data

    def leak(self) -> None:
        with metadata_door(self._fresh.config, purpose="test") as (door, resolve):
            reader = Reader(door, self._fresh.config.database, None)
            [node] = map(read_node, reader.all(d.NODES))
            [volume] = map(read_volume, reader.all(d.VOLUMES))
            uuid = read_format(reader.all(d.FORMAT)[0], "").uuid
            with chunks.open_nodes([node], resolve) as nodes:
                place = nodes[node.id].reader.collection(d.volume_collection(uuid, volume.id))
                place.insert_one(d.chunk_document(aged().binary, b"x" * 32, "none", b"leak"))


@pytest.fixture
async def slow(new_fresh: NewFresh, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With one committed file, "a", whose chunk looks old."""
    monkeypatch.setattr("flakefs.engine.inserting.ObjectId", aged)
    fresh = new_fresh(namespace=CALM)
    async with fresh.open(kind="mount") as stack:
        slow = Slow(stack, fresh, monkeypatch)
        await slow.write(b"a")
        await slow.commit()
        yield slow
        monkeypatch.undo()


async def held_meanwhile(slow: Slow) -> Freed:
    """gc, while the chunk of "a" is held unnamed, named by a commit, and held unnamed again for "c"."""
    await slow.forget(b"a", b"b")
    steps: list[str] = []

    async def step() -> None:
        if not steps:
            await slow.commit()
            assert slow.named() == 1
            await slow.forget(b"b", b"c")
        elif len(steps) == 1:
            await slow.commit()
        steps.append("step")

    def progress(word: str) -> None:
        if "waiting" in word:
            trio.from_thread.run(step)

    freed = await slow.gc(progress)
    assert len(steps) >= 2
    return freed


async def test_a_held_chunk_stays_until_it_is_named_again(slow: Slow) -> None:
    """G5, O10: also when it is named and forgotten between the looks; a leak beside it goes."""
    await trio.to_thread.run_sync(slow.leak)
    freed = await held_meanwhile(slow)
    assert (freed.chunks, freed.bytes, freed.held) == (1, 4, 0)
    assert slow.named() == 1
    assert await slow.read(b"c") == CONTENT


async def test_nothing_goes_while_a_commit_is_stuck(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """G5, O10"""
    await slow.forget(b"a", b"b")
    await trio.to_thread.run_sync(slow.leak)
    with monkeypatch.context() as short:
        short.setattr(module, "REST_SECONDS", 1.0)
        freed = await slow.gc()
    assert (freed.chunks, freed.held) == (0, 2)
    assert "because the session mount a test on host" in freed.text()
    await slow.commit()
    freed = await slow.gc()
    assert (freed.chunks, freed.held) == (1, 0), "at rest: its heart-beat says so"
    assert await slow.read(b"b") == CONTENT
