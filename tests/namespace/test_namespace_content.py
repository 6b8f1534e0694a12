"""Chunk maps, reference counts, large and sparse files, orphans."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import trio
from bson.int64 import Int64

from flakefs.errors import InvalidArgument
from flakefs.format.documents import CHUNKS, EXTENTS, INODES, ORPHANS, Document
from flakefs.namespace import Inode, NamespaceOptions, maps, segments
from flakefs.values import SEGMENT_BYTES, Block, ChunkRef, Extent
from tests.namespace.conftest import World
from tests.namespace.listings import child_of, map_of


def the_only(world: World, collection: str) -> Document:
    [document] = world.db[collection].find()
    return document


async def test_equal_content_is_counted_once_per_extent(world: World) -> None:
    """F1."""
    async with world.open() as ns:
        for number in range(5):
            await world.file(ns, ns.root, b"%d" % number, b"same")
        await ns.commit()
        world.audit()
        assert the_only(world, CHUNKS)["r"] == 5
        for number in range(4):
            await ns.unlink(ns.root, b"%d" % number, now=1)
        await ns.commit()
        world.audit()
        last = await child_of(ns, ns.root, b"4")
        await world.write(ns, last, 0, b"diff")
        await ns.commit()
        world.audit()
        assert world.db[CHUNKS].count_documents({}) == 1
        await world.cut_hole(ns, last, 1, 2)  # two extents of one chunk now
        await ns.commit()
        world.audit()
        assert the_only(world, CHUNKS)["r"] == 2
        await ns.truncate(last, 0)
    world.audit()
    assert world.bytes_of == {}


async def test_random_overwrites_keep_every_count(world: World) -> None:
    chooser = random.Random(5)
    async with world.open() as ns:
        files = [await world.file(ns, ns.root, b"%d" % number) for number in range(4)]
        for _ in range(30):
            for _ in range(12):
                file = chooser.choice(files)
                action = chooser.random()
                if action < 0.7:
                    at = chooser.randrange(3) * SEGMENT_BYTES + chooser.randrange(20)
                    await world.write(ns, file, at, chooser.choice([b"aaaa", b"bbbbbb", b"c"]))
                elif action < 0.8:
                    await ns.truncate(file, chooser.randrange(2 * SEGMENT_BYTES))
                else:
                    at = chooser.randrange(3) * SEGMENT_BYTES
                    await world.cut_hole(ns, file, at, at + chooser.randrange(1, 12))
            await ns.commit()
            world.audit()
            for file in files:
                map_of(file).trim(force=True)
        for number in range(4):
            await ns.unlink(ns.root, b"%d" % number, now=1)
        while world.db[INODES].count_documents({}) > 1:
            await ns.commit()
            await trio.sleep(0.01)
    world.audit()
    assert world.bytes_of == {}


async def test_another_locator_in_the_index_is_taken_over(world: World) -> None:
    """F2: somebody else indexed the same content first."""
    async with world.open() as ns:
        theirs = await world.file(ns, ns.root, b"theirs", b"same content")
        await ns.commit()
        ref = map_of(theirs).segment(0)[0].source
        assert isinstance(ref, ChunkRef)
        del world.content.refs[ref.hash]  # our side has forgotten it, so it makes another one
        ours = await world.file(ns, ns.root, b"ours", b"same content")
        again = await world.file(ns, ns.root, b"again")
        block = await world.write(ns, again, 0, b"same content")
        await ns.commit()
        assert map_of(ours).segment(0) == map_of(again).segment(0) == [Extent(0, 12, ref, 0)]
        assert block.ref == ref
        assert block in world.content.settled[-1][1], "the bytes we stored are superfluous"
        del world.bytes_of[world.content.refs[ref.hash].key]  # what the engine does about them
        world.content.refs[ref.hash] = ref
        world.audit()
        assert the_only(world, CHUNKS)["r"] == 3


async def test_blocks_are_settled_once_whatever_becomes_of_them(world: World) -> None:
    """J6."""
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f")
        early = await world.write(ns, file, 0, b"1111")
        world.content.upload(early)  # stored in the background
        ns.adopt([early])
        await world.write(ns, file, 0, b"2222", named := Block(b"2222"))
        world.content.upload(named)
        ns.adopt([named])
        await ns.commit()
        ((kept, dropped),) = world.content.settled
        assert (kept, dropped) == ([named], [early])
        ns.adopt([named])  # the background task hears of it late
        late = Block(b"3333")
        world.content.upload(late)
        ns.adopt([late])
        await ns.commit()
        assert world.content.settled[1:] == [([], [late])]
        assert not world.content.pins
        await world.write(ns, file, 0, b"4444", gone := Block(b"4444"))
        world.content.upload(gone)
        ns.adopt([gone])
        await ns.unlink(ns.root, b"f", now=1)
    assert world.content.settled[-1] == ([], [gone])
    world.audit()


async def test_a_file_of_many_segments(world: World) -> None:
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f")
        for number in (0, 1, 5, 1000):
            await world.write(ns, file, number * SEGMENT_BYTES + 3, b"part %d" % number)
    world.audit()
    async with world.open() as ns:
        file = await child_of(ns, ns.root, b"f")
        assert map_of(file).loaded(0, SEGMENT_BYTES)
        assert not map_of(file).loaded(0, SEGMENT_BYTES + 1)
        await ns.load(file, 0, 7 * SEGMENT_BYTES)
        assert map_of(file).loaded(0, 7 * SEGMENT_BYTES)
        assert not map_of(file).loaded(999 * SEGMENT_BYTES, file.size)
        assert map_of(file).loaded(file.size + SEGMENT_BYTES, file.size + 2**40), "M2: nothing lies behind the end"
        assert sorted(map_of(file).segments()) == [0, 1, 5]
        assert world.read_extents(map_of(file).segment(5)) == [(5 * SEGMENT_BYTES + 3, b"part 5")]
        assert map_of(file).segment(3) == []
        used = file.used
        await ns.load(file, 0, 2**62)
        assert map_of(file).loaded(0, 2**62)
        await world.write(ns, file, 5 * SEGMENT_BYTES, b"new")
        await world.cut_hole(ns, file, SEGMENT_BYTES, 2 * SEGMENT_BYTES)
        await ns.commit()
        assert file.used == used + 3 - len(b"part 1")
        world.audit()
        assert world.db[EXTENTS].count_documents({}) == 2
        await world.write(ns, file, SEGMENT_BYTES, b"again")
        await ns.commit()
        world.audit()
        await ns.truncate(file, 5 * SEGMENT_BYTES + 1)
        await ns.commit()
        world.audit()
        assert world.content_of(world.tree()[b"/f"])[-1] == (5 * SEGMENT_BYTES, b"n")
        with pytest.raises(InvalidArgument):
            await ns.load(ns.root, 0, 1)


async def test_a_huge_hole_costs_nothing(world: World) -> None:
    """S1."""
    huge = 999_999_999_999_999
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f", b"begin")
        await ns.truncate(file, huge)
        await world.write(ns, file, 500_000 * SEGMENT_BYTES, b"middle")
    world.audit()
    async with world.open() as ns:
        with trio.fail_after(20):
            file = await child_of(ns, ns.root, b"f")
            assert file.size == huge
            await ns.truncate(file, huge - 5)
            await ns.truncate(file, 2**62)
            await ns.commit()
            world.audit()
            await ns.truncate(file, 3)
            assert map_of(file).whole()
            await ns.commit()
            world.audit()
            assert world.content_of(world.tree()[b"/f"]) == [(0, b"beg")]
            await ns.truncate(file, huge)
            await ns.unlink(ns.root, b"f", now=1)
    world.audit()


async def test_a_long_file_is_cut_off_in_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S2."""
    monkeypatch.setattr(segments, "STEP_SEGMENTS", 4)
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f")
        for number in range(15):
            await world.write(ns, file, 2 * number * SEGMENT_BYTES, b"part %d" % number)
    async with world.open() as ns:
        file = await child_of(ns, ns.root, b"f")
        await world.write(ns, file, 28 * SEGMENT_BYTES, b"unstored")
        sizes = []
        room = ns._segments._room

        async def watched() -> None:
            sizes.append(file.size)
            await room()
            await ns.commit()
            world.audit()

        ns._segments._room = watched
        await ns.truncate(file, SEGMENT_BYTES + 1)
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) == 3
        assert file.size == SEGMENT_BYTES + 1
    world.audit()
    assert world.content_of(world.tree()[b"/f"]) == [(0, b"part 0")]


async def stand_still(inode: Inode, size: int) -> None:
    """Takes the place of truncate(), so that nothing is released."""
    await trio.sleep_forever()


async def test_large_files_are_released_after_their_name(world: World) -> None:
    """O1: the name goes at once, the content in steps; after a crash the next writer goes on."""
    async with world.open() as ns:
        for name in (b"f", b"g"):
            file = await world.file(ns, ns.root, name)
            for number in range(20):
                await world.write(ns, file, number * SEGMENT_BYTES, b"part %d" % number)
    async with world.open(crash=True) as ns:
        ns._segments.truncate = stand_still  # type: ignore[method-assign]
        await ns.unlink(ns.root, b"f", now=1)
        await ns.commit()
        assert set(world.tree()) == {b"/g"}
        world.audit(orphans=1)
    assert the_only(world, ORPHANS)["session"] == world.session.epoch
    async with world.open() as ns:
        while world.db[ORPHANS].count_documents({}):
            await ns.commit()
            await trio.sleep(0.01)
    world.audit()
    assert world.db[EXTENTS].count_documents({}) == 19


async def test_open_files_without_a_name(world: World) -> None:
    """H3."""
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f", b"first")
        ns.hold(file.ino, 2)
        await ns.unlink(ns.root, b"f", now=1)
        await world.write(ns, file, 5, b" second")
        await ns.commit()
        world.audit(orphans=1)
        assert world.read_extents(map_of(file).segment(0)) == [(0, b"first"), (5, b" second")]
        assert await ns.get(file.ino) is file
        ns.release(file.ino)
        await world.write(ns, file, 12, b" third")
        await ns.commit()
        world.audit(orphans=1)
        ns.release(file.ino)
        await ns.commit()
        world.audit()
        assert world.bytes_of == {}
        with pytest.raises(InvalidArgument):
            ns.release(file.ino)
        brief = await world.file(ns, ns.root, b"g", b"never stored")
        ns.hold(brief.ino)
        await ns.unlink(ns.root, b"g", now=1)
        ns.release(brief.ino)
    world.audit()


async def test_a_crash_with_open_files_leaves_orphans_that_the_next_writer_frees(world: World) -> None:
    """O1."""
    async with world.open(crash=True) as ns:
        for number in range(5):
            file = await world.file(ns, ns.root, b"%d" % number, b"content %d" % number)
            ns.hold(file.ino)
            await ns.unlink(ns.root, b"%d" % number, now=1)
        keep = await world.file(ns, ns.root, b"kept", b"content 1")
        await ns.commit()
        world.audit(orphans=5)
    world.db[ORPHANS].insert_many([{"_id": Int64(n), "session": 1} for n in (keep.ino, 10**9)])  # these name nothing
    async with world.open() as ns:
        while world.db[ORPHANS].count_documents({}):
            await ns.commit()
            await trio.sleep(0.01)
    world.audit()
    assert set(world.tree()) == {b"/kept"}


async def test_a_segment_in_a_running_commit_is_not_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """M4."""
    monkeypatch.setattr(maps, "KEPT_SEGMENTS", 1)
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f")
        for number in range(20):
            await world.write(ns, file, number * SEGMENT_BYTES, b"old")
        await ns.commit()
        await world.write(ns, file, 10 * SEGMENT_BYTES, b"new")
        real = world.content.store

        async def store(blocks: Iterable[Block]) -> None:
            await ns.load(file, 15 * SEGMENT_BYTES, 18 * SEGMENT_BYTES)
            assert map_of(file).loaded(10 * SEGMENT_BYTES, 10 * SEGMENT_BYTES + 3)
            assert not map_of(file).loaded(9 * SEGMENT_BYTES, 9 * SEGMENT_BYTES + 3)
            await real(blocks)

        world.content.store = store  # type: ignore[method-assign]
        await ns.commit()
        world.content.store = real  # type: ignore[method-assign]
        await ns.load(file, 10 * SEGMENT_BYTES, 11 * SEGMENT_BYTES)
        assert world.read_extents(map_of(file).segment(10)) == [(10 * SEGMENT_BYTES, b"new")]
    world.audit()


async def test_memory_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "KEPT_SEGMENTS", 20)
    async with world.open(NamespaceOptions(cached_inodes=50, group_documents=100)) as ns:
        for one in range(10):
            folder = await world.folder(ns, ns.root, b"%d" % one)
            for two in range(50):
                await world.file(ns, folder, b"%d" % two)
            await ns.commit()
        del folder
        assert ns.statistics().inodes < 120
        file = await world.file(ns, ns.root, b"f")
        for number in range(60):
            await world.write(ns, file, number * SEGMENT_BYTES, b"x")
        await ns.commit()
        assert len(map_of(file).segments()) <= 20, "M4"
        await ns.load(file, 0, 30 * SEGMENT_BYTES)
        assert map_of(file).loaded(0, 30 * SEGMENT_BYTES)
        await ns.load(file, 30 * SEGMENT_BYTES, 50 * SEGMENT_BYTES)
        assert len(map_of(file).segments()) <= 21
        assert map_of(file).loaded(0, 1), "the first segment has no document of its own"
        await ns.truncate(file, 0)
    world.audit()
    assert len(world.tree()) == 511
