"""Hard links: which name is the first, and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest

from flakefs.errors import (
    Exists,
)
from flakefs.namespace import NamespaceOptions
from flakefs.values import SEGMENT_BYTES
from tests.namespace.conftest import World
from tests.namespace.listings import child_of, map_of, names


@pytest.mark.parametrize("stored", [False, True])
async def test_hard_links_and_promotion(world: World, stored: bool) -> None:
    async with world.open() as ns:
        one, two = await world.folder(ns, ns.root, b"1"), await world.folder(ns, ns.root, b"2")
        file = await world.file(ns, one, b"a", b"data")
        await ns.link(file, two, b"b", now=7)
        await ns.link(file, one, b"c", now=8)
        assert (file.nlink, file.ctime) == (3, 8)
        with pytest.raises(Exists):
            await ns.link(file, two, b"b", now=9)
    world.audit()
    async with world.open(NamespaceOptions(cached_inodes=1)) as ns:
        one, two = await child_of(ns, ns.root, b"1"), await child_of(ns, ns.root, b"2")
        file = await child_of(ns, two, b"b")
        assert await ns.child(one, b"a") is file
        assert await ns.child(one, b"c") is file
        await ns.unlink(one, b"a", now=10)  # the name in the inode's own document
        if stored:
            await ns.commit()
            world.audit()
        assert (file.nlink, await names(ns, one), await names(ns, two)) == (2, [b"c"], [b"b"])
        await ns.unlink(two, b"b", now=11)
        assert (await ns.child(one, b"c")) is file
        await ns.commit()
        world.audit()
        await ns.unlink(one, b"c", now=12)
        assert file.nlink == 0
    world.audit()
    assert set(world.tree()) == {b"/1", b"/2"}


async def test_links_that_are_not_stored_yet_are_promoted(world: World) -> None:
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"a", b"data")
        await ns.link(file, ns.root, b"b", now=1)
        await ns.unlink(ns.root, b"a", now=2)
        await ns.link(file, ns.root, b"a", now=3)
        await ns.commit()
        world.audit()
        await ns.rename(ns.root, b"a", ns.root, b"c", now=4)
        await ns.unlink(ns.root, b"b", now=5)
        assert await names(ns, ns.root) == [b"c"]
        await ns.commit()
        world.audit()
        await ns.unlink(ns.root, b"c", now=5)
    world.audit()


async def test_a_promoted_name_is_remembered_until_it_is_stored(world: World) -> None:
    """H2: the folder of the name that was promoted stays in memory, though nobody changed it."""
    async with world.open() as ns:
        one, two = await world.folder(ns, ns.root, b"1"), await world.folder(ns, ns.root, b"2")
        await ns.link(await world.file(ns, one, b"a"), two, b"b", now=1)
        for number in range(10):
            await world.file(ns, ns.root, b"other %d" % number)
    del one, two
    async with world.open(NamespaceOptions(cached_inodes=1, commit_interval_seconds=3600)) as ns:
        await ns.unlink(await child_of(ns, ns.root, b"1"), b"a", now=2)
        for number in range(10):
            await ns.child(ns.root, b"other %d" % number)
        two = await child_of(ns, ns.root, b"2")
        await ns.rename(two, b"b", two, b"c", now=3)
    world.audit()
    assert len(world.tree()) == 13


@pytest.mark.parametrize("how", ["get", "child", "listing", "segment"])
async def test_an_answer_older_than_a_commit_is_not_believed(world: World, how: str) -> None:
    """C3: between a query's answer and its use, the inode is changed, stored and forgotten."""
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        file = await world.file(ns, folder, b"f", b"old")
        await world.write(ns, file, SEGMENT_BYTES, b"old")
        await world.file(ns, folder, b"g")
        ino = file.ino
        del file, folder
    async with world.open(NamespaceOptions(cached_inodes=1, commit_interval_seconds=3600)) as ns:
        real = ns._cache.read

        async def slow(query: Any) -> Any:
            ns._cache.read = real  # type: ignore[method-assign]
            answer = await real(query)
            file = await ns.get(ino)
            file.mode = 0o100600
            await world.write(ns, file, SEGMENT_BYTES, b"new")
            await ns.commit()
            map_of(file).trim(force=True)
            del file
            await ns.child(ns.root, b"d")
            return answer

        if how == "segment":
            file = await ns.get(ino)
            ns._cache.read = slow  # type: ignore[method-assign,assignment]
            await ns.load(file, SEGMENT_BYTES, 2 * SEGMENT_BYTES)
            assert world.read_extents(map_of(file).segment(1)) == [(SEGMENT_BYTES, b"new")]
            return
        folder = await child_of(ns, ns.root, b"d")
        ns._cache.read = slow  # type: ignore[method-assign,assignment]
        if how == "get":
            file = await ns.get(ino)
        elif how == "child":
            file = await child_of(ns, folder, b"f")
        else:
            file = next(inode for _, name, inode in await ns.listing(folder, 0, 10) if name == b"f")
        assert ns._cache.read == real
        assert file.mode == 0o100600
        file.mode = 0o100640
        ns.changed(file)
        await ns.commit()  # a version that was outdated would fail here
    world.audit()


async def test_a_promoted_name_is_not_missed_by_a_listing(world: World) -> None:
    """E3: rm -r lists, removes what it saw, and goes on listing."""
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        for number in range(6):
            await world.file(ns, folder, b"f%d" % number)
        first = await child_of(ns, folder, b"f0")
        await ns.link(first, folder, b"further", now=1)
    async with world.open() as ns:
        folder = await child_of(ns, ns.root, b"d")
        after, removed = 0, []
        while page := await ns.listing(folder, after, 2):
            for cookie, name, _ in page:
                after = cookie
                removed.append(name)
                await ns.unlink(folder, name, now=2)
        assert sorted(removed) == [b"f0", b"f1", b"f2", b"f3", b"f4", b"f5", b"further"]
        await ns.rmdir(ns.root, b"d", now=3)
    world.audit()
