"""Many tasks at once on the smallest caches; objects that are unique; prefetching that fails."""

from __future__ import annotations

import os
import random
import stat
from contextlib import suppress
from typing import Any

import pytest
import trio

from flakefs.errors import PosixError, Unavailable
from flakefs.format.documents import COUNTERS, INODES
from flakefs.namespace import NamespaceOptions, entries, prefetch, schema
from flakefs.values import Extent
from tests.namespace.conftest import World
from tests.namespace.listings import child_of, map_of

TINY = NamespaceOptions(cached_inodes=2, commit_interval_seconds=0.01, group_documents=5, dirty_documents_max=1000)


async def test_one_object_per_inode(world: World) -> None:
    """C1, I1, Q2: whoever holds one meets the same one, however small the cache."""
    async with world.open() as ns:
        for number in range(20):
            await world.file(ns, ns.root, b"%d" % number)
    async with world.open(NamespaceOptions(cached_inodes=1)) as ns:
        found = []

        async def look() -> None:
            found.append(await child_of(ns, ns.root, b"7"))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look)
        assert len({id(inode) for inode in found}) == 1
        held = found[0]
        for number in range(20):
            await ns.child(ns.root, b"%d" % number)
        assert ns.peek(held.ino) is held
        assert await ns.get(held.ino) is held
        assert {id(inode) for _, name, inode in await ns.listing(ns.root, 0, 50) if name == b"7"} == {id(held)}


@pytest.mark.parametrize("first_seed", range(0, 4 * int(os.environ.get("FLAKEFS_EXAMPLES", "12")) // 10, 4))
async def test_many_tasks_on_one_tree(world: World, monkeypatch: pytest.MonkeyPatch, first_seed: int) -> None:
    """E2, E3, C2: names that nobody touches are in every listing exactly once; what is stored is sound."""
    monkeypatch.setattr(entries, "LOOKUP_LOADS", 3)
    async with world.open() as ns:
        folders = [ns.root] + [await world.folder(ns, ns.root, b"folder %d" % number) for number in range(3)]
        lasting = {b"folder %d" % number for number in range(3)} | {b"last %d" % number for number in range(8)}
        for name in lasting:
            if name.startswith(b"last"):
                await world.file(ns, ns.root, name, name)
        inos = [folder.ino for folder in folders]
    del folders
    done = 0

    async def change(seed: int) -> None:
        nonlocal done
        chooser = random.Random(seed)
        for _ in range(60):
            names = [b"%d" % chooser.randrange(6) for _ in range(2)]
            with suppress(PosixError):
                one, other = [await ns.get(chooser.choice(inos)) for _ in range(2)]
                action = chooser.randrange(8)
                if action < 2:
                    await world.file(ns, one, names[0], b"%d" % chooser.randrange(3))
                elif action == 2:
                    await world.folder(ns, one, names[0])
                elif action == 3:
                    await ns.unlink(one, names[0], now=1)
                elif action == 4:
                    await ns.rmdir(one, names[0], now=2)
                elif action == 5:
                    inode = await ns.child(one, names[0])
                    if inode is not None:
                        await ns.link(inode, other, names[1], now=3)
                else:
                    await ns.rename(one, names[0], other, names[1], exchange=action == 6, now=4)
            done += 1

    async def watch() -> None:
        while done < 4 * 60:
            root = await ns.get(1)
            seen: list[bytes] = []
            after = 0
            while page := await ns.listing(root, after, 3):
                seen += [name for _, name, _ in page]
                after = page[-1][0]
                await trio.lowlevel.checkpoint()
            assert sorted(name for name in seen if name in lasting) == sorted(lasting)

    async with world.open(TINY) as ns, trio.open_nursery() as nursery:
        for seed in range(4):
            nursery.start_soon(change, first_seed + seed)
        nursery.start_soon(watch)
    world.audit()
    assert {path[1:] for path in world.tree() if path.count(b"/") == 1} >= lasting


async def test_prefetching_is_bounded_and_may_fail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A1, A2."""
    monkeypatch.setattr(prefetch, "FOLDERS_MAX", 4)
    async with world.open() as ns:
        for number in range(10):
            folder = await world.folder(ns, ns.root, b"%d" % number)
            await world.file(ns, folder, b"f")
    for fails in (False, True):
        asked: list[list[int]] = []
        real = prefetch.read_folders

        def read(
            db: Any, inos: list[int], limit: int, real: Any = real, asked: list[list[int]] = asked, fails: bool = fails
        ) -> Any:
            asked.append(inos)
            if fails:
                raise Unavailable("not now")
            return real(db, inos, limit)

        with monkeypatch.context() as patched:
            patched.setattr(prefetch, "read_folders", read)
            async with world.open(NamespaceOptions(cached_inodes=200)) as ns:
                for _, _, folder in await ns.listing(ns.root, 0, 100):
                    assert [name for _, name, _ in await ns.listing(folder, 0, 10)] == [b"f"]
        assert asked
        assert max(map(len, asked)) <= 4


async def test_what_a_snapshot_holds_stays(world: World) -> None:
    """M1, I3, I4: lists of extents are replaced, versions count commits, the stored place is known while it differs."""
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f", b"one")
        snapshot = map_of(file).segment(0)
        before = list(snapshot)
        await world.write(ns, file, 1, b"two")
        assert snapshot == before
        assert (file.version, file.was) == (0, None)
        await ns.rename(ns.root, b"f", ns.root, b"g", now=1)
        assert file.was is None, "it is not stored anywhere yet"
        await ns.commit()
        assert file.version == 1
        await ns.rename(ns.root, b"g", ns.root, b"h", now=1)
        assert file.was == (1, b"g")
        await ns.commit()
        assert (file.version, file.was) == (2, None)
        assert [type(extent) for extent in snapshot] == [Extent]
    world.audit()


async def test_what_is_in_memory_is_answered_without_waiting(world: World) -> None:
    """Q1, I2: no checkpoint and no query for what is known, "no such name" included."""
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        file = await world.file(ns, folder, b"f")

        async def no_query(_query: object) -> None:
            raise AssertionError("asked the database")

        ns._cache.read = no_query  # type: ignore[method-assign,assignment]
        ticks = 0

        async def count() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await trio.lowlevel.checkpoint()
            ticks = 0
            assert folder.complete
            assert ns.peek_child(folder, b"f") is file
            assert await ns.child(folder, b"x") is None
            assert await ns.get(file.ino) is file
            assert [name for _, name, _ in await ns.listing(folder, 0, 10)] == [b"f"]
            await ns.rename(folder, b"f", folder, b"g", now=1)
            await ns.unlink(folder, b"g", now=1)
            await ns.make(folder, b"h", mode=stat.S_IFREG, uid=0, gid=0, now=1)
            assert ticks == 0
            nursery.cancel_scope.cancel()
        del ns._cache.read


def test_creating_twice_changes_nothing(world: World) -> None:
    """B1."""
    world.db[COUNTERS].update_one({"_id": "ino"}, {"$inc": {"next": 50}})
    world.db[INODES].update_one({"_id": 1}, {"$set": {"mode": 0o40700}})
    before = {name: list(world.db[name].find()) for name in (INODES, COUNTERS)}
    schema.create(world.db)
    assert {name: list(world.db[name].find()) for name in (INODES, COUNTERS)} == before
    assert set(world.db[INODES].index_information()) == {"_id_", "names", "pages", "links"}
