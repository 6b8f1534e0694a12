"""Every kind of rename (R1 to R3), unstored and stored, and what the transaction has to order for it (T3)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from flakefs.errors import Exists, FlakeError, InvalidArgument, IsDirectory, NotDirectory, NotEmpty, NotFound
from flakefs.namespace import Inode, Namespace, NamespaceOptions
from tests.namespace.conftest import World
from tests.namespace.listings import child_of


async def build(world: World, ns: Namespace) -> None:
    """/a (file) /b (file) /d (empty folder) /e/f (folder with a file) /g/h/i (nested folders) /l and /e/m (one file)"""
    await world.file(ns, ns.root, b"a", b"of a")
    await world.file(ns, ns.root, b"b", b"of b")
    await world.folder(ns, ns.root, b"d")
    e = await world.folder(ns, ns.root, b"e")
    await world.file(ns, e, b"f", b"of f")
    g = await world.folder(ns, ns.root, b"g")
    h = await world.folder(ns, g, b"h")
    await world.folder(ns, h, b"i")
    both = await world.file(ns, ns.root, b"l", b"of l")
    await ns.link(both, e, b"m", now=1)


async def at(ns: Namespace, path: bytes) -> tuple[Inode, bytes]:
    """(folder, name) of a path such as b"e/f"."""
    *above, name = path.split(b"/")
    folder = ns.root
    for part in above:
        folder = await child_of(ns, folder, part)
    return folder, name


Flags = dict[str, Any]
CASES: list[tuple[bytes, bytes, Flags, type[FlakeError] | None]] = [
    (b"a", b"z", {}, None),
    (b"a", b"b", {}, None),
    (b"a", b"a", {}, None),
    (b"a", b"d", {}, IsDirectory),
    (b"d", b"a", {}, NotDirectory),
    (b"a", b"e/f", {}, None),
    (b"a", b"e/new", {}, None),
    (b"e", b"d", {}, None),
    (b"d", b"e", {}, NotEmpty),
    (b"e", b"g", {}, NotEmpty),
    (b"e", b"g/h/i", {}, None),
    (b"g/h", b"d/h", {}, None),
    (b"g", b"g/h/x", {}, InvalidArgument),
    (b"g", b"g/h/i", {}, InvalidArgument),
    (b"g", b"g/x", {}, InvalidArgument),
    (b"g/h/i", b"g", {}, NotEmpty),
    (b"x", b"a", {}, NotFound),
    (b"a", b"b", {"noreplace": True}, Exists),
    (b"a", b"a", {"noreplace": True}, Exists),
    (b"a", b"z", {"noreplace": True}, None),
    (b"a", b"b", {"exchange": True}, None),
    (b"a", b"d", {"exchange": True}, None),
    (b"a", b"g/h", {"exchange": True}, None),
    (b"e", b"g/h", {"exchange": True}, None),
    (b"g", b"g/h", {"exchange": True}, InvalidArgument),
    (b"g/h/i", b"g", {"exchange": True}, InvalidArgument),
    (b"a", b"z", {"exchange": True}, NotFound),
    (b"a", b"b", {"exchange": True, "noreplace": True}, InvalidArgument),
    (b"l", b"e/m", {}, None),
    (b"e/m", b"l", {}, None),
    (b"l", b"e/m", {"exchange": True}, None),
    (b"e/m", b"x", {}, None),
    (b"l", b"x", {}, None),
    (b"a", b"l", {}, None),
    (b"a", b"e/m", {}, None),
    (b"l", b"a", {}, None),
    (b"e/m", b"a", {}, None),
    (b"e/m", b"b", {"exchange": True}, None),
    (b"l", b"d", {"exchange": True}, None),
]


def expected(tree: dict[bytes, int], one: bytes, other: bytes, exchange: bool) -> dict[bytes, int]:
    """What a rename that goes well does to path -> ino."""
    one, other = b"/" + one, b"/" + other
    if tree[one] == tree.get(other):
        return tree

    def moved(path: bytes) -> bytes | None:
        for old, new in ((one, other), (other, one if exchange else None)):
            if path == old or path.startswith(old + b"/"):
                return None if new is None else new + path[len(old) :]
        return path

    result = {}
    for path, ino in tree.items():
        new = moved(path)
        if new is not None:
            result[new] = ino
    return result


@pytest.mark.parametrize("options", [NamespaceOptions(), NamespaceOptions(cached_inodes=1)], ids=["cached", "tiny"])
async def test_every_kind(world: World, options: NamespaceOptions) -> None:
    for one, other, flags, error in CASES:
        world.reset()
        async with world.open() as ns:
            await build(world, ns)
        before = {path: record.ino for path, record in world.tree().items()}
        async with world.open(options) as ns:
            source, target = await at(ns, one), await at(ns, other)
            if error is not None:
                with pytest.raises(error):
                    await ns.rename(*source, *target, **flags, now=99)
            else:
                moved = await ns.child(*source)
                await ns.rename(*source, *target, **flags, now=99)
                assert await ns.child(*target) is moved
        world.audit()
        after = {path: record.ino for path, record in world.tree().items()}
        wanted = before if error else expected(before, one, other, "exchange" in flags)
        assert after == wanted, f"R1: {one!r} -> {other!r} {flags}"
        if error is None and wanted != before:
            record = world.tree()[b"/" + other]
            assert record.ctime == 99


async def test_two_renames_in_one_group(world: World) -> None:
    """T3: all pairs of plain renames and exchanges, committed together: chains, swaps and cycles of names."""
    pairs = [*itertools.permutations([b"a", b"b", b"e/f", b"l", b"e/m"], 2)]
    for number, (first, second) in enumerate(itertools.product(pairs, repeat=2)):
        if number % 17:
            continue  # a part of the 400 is enough, and meets every pair
        world.reset()
        async with world.open() as ns:
            await build(world, ns)
            await ns.commit()
            tree = {path: record.ino for path, record in world.tree().items()}
            renames: list[tuple[tuple[bytes, bytes], Flags]] = [(first, {}), (second, {"exchange": True}), (second, {})]
            for (one, other), flags in renames:
                try:
                    await ns.rename(*await at(ns, one), *await at(ns, other), **flags, now=2)
                except FlakeError:
                    continue
                tree = expected(tree, one, other, bool(flags))
            await world.file(ns, ns.root, b"a") if b"/a" not in tree else None
        world.audit()
        tree.setdefault(b"/a", world.tree()[b"/a"].ino)
        assert {path: record.ino for path, record in world.tree().items()} == tree, f"{first} {second}"


async def test_a_cycle_of_names(world: World) -> None:
    """T3: a -> t, b -> a, c -> b, t -> c in one group, with links and folders among them."""
    async with world.open() as ns:
        a = await world.file(ns, ns.root, b"a")
        await world.folder(ns, ns.root, b"b")
        await ns.link(a, ns.root, b"c", now=1)
        await ns.commit()
        before = world.tree()
        for one, other in ((b"a", b"t"), (b"b", b"a"), (b"c", b"b"), (b"t", b"c")):
            await ns.rename(ns.root, one, ns.root, other, now=2)
    world.audit()
    after = {path: record.ino for path, record in world.tree().items()}
    assert after == {b"/a": before[b"/b"].ino, b"/b": before[b"/a"].ino, b"/c": before[b"/a"].ino}


async def test_a_new_file_takes_a_name_that_was_renamed_or_removed(world: World) -> None:
    """How editors save."""
    async with world.open() as ns:
        await world.file(ns, ns.root, b"a", b"1")
        await world.file(ns, ns.root, b"b", b"1")
        await ns.commit()
        await ns.rename(ns.root, b"a", ns.root, b"a~", now=1)
        await world.file(ns, ns.root, b"a", b"2")
        held = await child_of(ns, ns.root, b"b")
        ns.hold(held.ino)
        await ns.unlink(ns.root, b"b", now=2)
        await world.file(ns, ns.root, b"b", b"2")
        await ns.commit()
        world.audit(orphans=1)
        ns.release(held.ino)
    world.audit()
    assert {path: world.content_of(record) for path, record in world.tree().items()} == {
        b"/a": [(0, b"2")],
        b"/a~": [(0, b"1")],
        b"/b": [(0, b"2")],
    }


async def test_a_removed_folder_takes_nothing_in(world: World) -> None:
    async with world.open() as ns:
        gone = await world.folder(ns, ns.root, b"d")
        await world.file(ns, ns.root, b"f")
        await world.folder(ns, ns.root, b"e")
        await ns.rmdir(ns.root, b"d", now=1)
        for name in (b"f", b"e"):
            with pytest.raises(NotFound):
                await ns.rename(ns.root, name, gone, b"x", now=2)
    world.audit()
