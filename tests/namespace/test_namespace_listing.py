"""Large folders, page by page, and walks that cost few queries."""

from __future__ import annotations

from typing import Any

import pytest

from flakefs.errors import (
    NotEmpty,
)
from flakefs.namespace import NamespaceOptions, entries, folders
from flakefs.values import Extent
from tests.namespace.conftest import World
from tests.namespace.listings import child_of, map_of, names


@pytest.fixture
def small_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of more than 5 entries counts as large."""
    monkeypatch.setattr(entries, "LISTING_MAX", 5)
    monkeypatch.setattr(folders, "FEW", 3)
    monkeypatch.setattr(entries, "LOOKUP_LOADS", 2)


@pytest.mark.usefixtures("small_folders")
async def test_a_large_folder_is_read_page_by_page(world: World) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        for number in range(20):
            file = await world.file(ns, folder, b"f%02d" % number)
            if number % 5 == 0:
                await ns.link(file, folder, b"l%02d" % number, now=1)
    async with world.open(NamespaceOptions(cached_inodes=2)) as ns:
        folder = await child_of(ns, ns.root, b"d")
        everything = {b"f%02d" % n for n in range(20)} | {b"l%02d" % n for n in range(0, 20, 5)}
        listed = await names(ns, folder, 4)
        assert sorted(listed) == sorted(everything)
        assert folder.large
        assert not folder.complete
        assert (await ns.child(folder, b"l05")) is (await ns.child(folder, b"f05"))
        assert await ns.child(folder, b"nothing") is None
        with pytest.raises(NotEmpty):
            await ns.rmdir(ns.root, b"d", now=1)
        for name in (b"f01", b"f02", b"f03", b"l10", b"f05", b"f19"):
            await ns.unlink(folder, name, now=2)
        await ns.rename(folder, b"f04", folder, b"g04", now=3)
        await world.file(ns, folder, b"new")
        now = (everything - {b"f01", b"f02", b"f03", b"l10", b"f05", b"f19", b"f04"}) | {b"g04", b"new"}
        assert sorted(await names(ns, folder, 2)) == sorted(now)
        await ns.commit()
        assert sorted(await names(ns, folder, 2)) == sorted(now)
        for name in sorted(now):
            await ns.unlink(folder, name, now=4)
        assert await names(ns, folder, 2) == []
        await ns.rmdir(ns.root, b"d", now=5)
    world.audit()
    assert world.tree() == {}


async def test_a_folder_with_much_literal_content_is_not_kept_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "FEW", 3)
    monkeypatch.setattr(folders, "LISTING_BYTES", 5_000)
    async with world.open() as ns:
        for name, length in ((b"few", 500), (b"much", 1_500)):
            folder = await world.folder(ns, ns.root, name)
            for number in range(5):
                file = await world.file(ns, folder, b"f%d" % number)
                map_of(file).replace(0, [Extent(0, length, bytes(length), 0)])
                file.size = length
                ns.changed(file)
    async with world.open() as ns:
        few, much = await child_of(ns, ns.root, b"few"), await child_of(ns, ns.root, b"much")
        assert len(await names(ns, few, 10)) == len(await names(ns, much, 10)) == 5
        assert few.complete
        assert much.large
        assert not much.complete
    world.audit()


@pytest.mark.usefixtures("small_folders")
async def test_a_large_folder_whose_removals_are_stored_is_empty(world: World) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        for number in range(8):
            await world.file(ns, folder, b"%d" % number)
    async with world.open() as ns:
        folder = await child_of(ns, ns.root, b"d")
        for name in await names(ns, folder):
            await ns.unlink(folder, name, now=1)
        await ns.commit()
        await ns.rmdir(ns.root, b"d", now=2)
    world.audit()


async def test_a_cold_walk_costs_few_queries(world: World) -> None:
    async with world.open() as ns:
        for one in range(6):
            first = await world.folder(ns, ns.root, b"%d" % one)
            for two in range(6):
                second = await world.folder(ns, first, b"%d" % two)
                await world.file(ns, second, b"f")
    async with world.open() as ns:
        reads = 0
        real = ns._cache.read

        async def counted(query: Any, **named: Any) -> Any:
            nonlocal reads
            reads += 1
            return await real(query, **named)

        ns._cache.read = counted  # type: ignore[method-assign]
        seen = 0
        stack = [ns.root]
        while stack:
            folder = stack.pop()
            for _, _, inode in await ns.listing(folder, 0, 1000):
                seen += 1
                if inode.entries is not None:
                    stack.append(inode)
        assert seen == 6 + 36 + 36
        assert reads < 15, "each of the 43 folders was read on its own"
