"""Going through a large folder name by name asks the server for many entries at once; what is read so is never old."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from flakefs.namespace import NamespaceOptions, entries, folders
from flakefs.namespace.cache import Cache
from tests.namespace.conftest import World
from tests.namespace.listings import child_of

FILES = 400
SMALL = NamespaceOptions(commit_interval_seconds=3600, cached_inodes=2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The queries, one item each; more than 5 entries are a large folder."""
    monkeypatch.setattr(entries, "LISTING_MAX", 5)
    monkeypatch.setattr(folders, "FEW", 3)
    monkeypatch.setattr(entries, "LOOKUP_LOADS", 2)
    queries: list[object] = []
    read = Cache.read

    async def counted(cache: Cache, query: Any, **more: Any) -> Any:
        queries.append(query)
        return await read(cache, query, **more)

    monkeypatch.setattr(Cache, "read", counted)
    return queries


def name_of(number: int) -> bytes:
    return b"f%03d" % number


async def fill(world: World) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        for number in range(FILES):
            await world.file(ns, folder, name_of(number))


@pytest.mark.parametrize("listed", [False, True])
async def test_removing_a_large_folder_takes_few_queries(world: World, asked: list[object], listed: bool) -> None:
    await fill(world)
    async with world.open(SMALL) as ns:
        folder = await child_of(ns, ns.root, b"d")
        if listed:
            await ns.listing(folder, 0, 10)
            assert folder.large
        asked.clear()
        for number in range(FILES):
            await ns.unlink(folder, name_of(number), now=1)
        assert len(asked) < FILES / 10
        await ns.rmdir(ns.root, b"d", now=2)
    world.audit()
    assert world.tree() == {}


async def test_names_removed_and_stored_leave_memory_while_more_are_removed(world: World, asked: list[object]) -> None:
    await fill(world)
    async with world.open(SMALL) as ns:
        folder = await child_of(ns, ns.root, b"d")
        for number in range(FILES):
            await ns.unlink(folder, name_of(number), now=1)
            if number == FILES // 2:
                await ns.commit()
        assert folder.entries is not None
        assert len(folder.entries) < FILES * 2 // 3
        assert await ns.child(folder, name_of(0)) is None
        assert await ns.child(folder, name_of(FILES - 1)) is None
        await ns.rmdir(ns.root, b"d", now=2)
    world.audit()


async def test_a_name_taken_over_and_removed_meanwhile_stays_gone(
    world: World, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world)
    async with world.open(SMALL) as ns:
        folder = await child_of(ns, ns.root, b"d")
        await ns.rename(folder, name_of(5), folder, name_of(6), now=1)  # one group: 6 goes, and is taken
        run = world.door.run
        cuts: list[object] = []

        async def remove_after_the_cut(call: Callable[..., Any], **more: Any) -> Any:
            if "transact" in repr(call) and not cuts:
                cuts.append(call)
                await ns.unlink(folder, name_of(6), now=2)
            return await run(call, **more)

        monkeypatch.setattr(world.door, "run", remove_after_the_cut)
        await ns.commit()
        assert cuts
        assert await ns.child(folder, name_of(6)) is None
        await ns.commit()
        assert await ns.child(folder, name_of(6)) is None
    world.audit()


async def test_what_was_read_in_advance_follows_renames_and_removals(world: World, asked: list[object]) -> None:
    await fill(world)
    async with world.open(SMALL) as ns:
        folder = await child_of(ns, ns.root, b"d")
        for number in range(4):
            await ns.child(folder, name_of(number))
        await ns.rename(folder, name_of(8), folder, b"elsewhere", now=1)
        await ns.unlink(folder, name_of(9), now=1)
        await ns.rename(folder, name_of(10), folder, name_of(11), now=1)
        new = await world.file(ns, folder, name_of(9))
        assert await ns.child(folder, name_of(8)) is None
        assert await ns.child(folder, name_of(9)) is new
        assert await ns.child(folder, name_of(10)) is None
        assert (await child_of(ns, folder, name_of(11))).name == name_of(11)
        await ns.commit()
        assert await ns.child(folder, name_of(8)) is None
        assert (await child_of(ns, folder, b"elsewhere")).name == b"elsewhere"
    world.audit()


async def test_looking_at_random_reads_nothing_in_advance(world: World, asked: list[object]) -> None:
    await fill(world)
    async with world.open(SMALL) as ns:
        folder = await child_of(ns, ns.root, b"d")
        order = list(range(FILES - 1, 0, -20))
        random.Random(1).shuffle(order)
        await ns.child(folder, name_of(FILES - 1))
        asked.clear()
        for number in sorted(order, reverse=True)[1:]:
            assert (await child_of(ns, folder, name_of(number))).name == name_of(number)
        assert len(asked) == len(order) - 1
    world.audit()
