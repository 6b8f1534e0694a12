"""Names, changed from two sessions at once: one winner, the others get the POSIX error."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from flakefs.errors import Exists, FlakeError, InvalidArgument, NotEmpty, NotFound, Stale
from flakefs.namespace import Inode
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import FileSystem
from tests.shared.conftest import ROOT, eventually, get, put, together, two
from tests.shared.orders import gone

Pair = tuple[FileSystem, FileSystem]
Call = Callable[[], Awaitable[object]]
ROUNDS = 6


async def make(fs: FileSystem, name: bytes, parent: int = ROOT_INO) -> Inode:
    """open(O_CREAT | O_EXCL), closed again."""
    handle, inode = await fs.create(parent, name, 0o644, os.O_RDWR | os.O_EXCL, ROOT)
    await fs.release(handle)
    return inode


def winners(results: list[object], loser: type[FlakeError]) -> int:
    lost = [result for result in results if isinstance(result, FlakeError)]
    assert all(isinstance(result, loser) for result in lost), lost
    return len(results) - len(lost)


@pytest.mark.parametrize("kind", ["create", "mkdir", "symlink", "link", "rename"])
async def test_one_of_several_makers_wins(pair: Pair, kind: str) -> None:
    one, other = pair
    for number in range(ROUNDS):
        name = b"it%d" % number
        calls: list[Call] = []
        for index, fs in enumerate((one, other, one, other)):
            if kind == "create":
                calls.append(partial(make, fs, name))
            elif kind == "mkdir":
                calls.append(partial(fs.mkdir, ROOT_INO, name, 0o755, ROOT))
            elif kind == "symlink":
                calls.append(partial(fs.symlink, ROOT_INO, name, b"there", ROOT))
            elif kind == "link":
                ino = await put(fs, b"from%d-%d" % (number, index), b"x")
                calls.append(partial(fs.link, ino, ROOT_INO, name))
            else:
                await put(fs, b"from%d-%d" % (number, index), b"x")
                source = b"from%d-%d" % (number, index)
                calls.append(partial(fs.rename, ROOT_INO, source, ROOT_INO, name, noreplace=True))
        assert winners(await together(*calls), Exists) == 1


@pytest.mark.parametrize("heard", [True, False])
async def test_create_of_a_name_that_comes_and_goes_makes_it(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    """open(O_CREAT) without O_EXCL never says EEXIST: when the name is gone that was in its way, it makes the file."""
    async with two(fresh) as (one, other):
        make_there, refusals = one.fs.ns.make, 0

        async def make_late(parent: Inode, name: bytes, **options: Any) -> Inode:
            nonlocal refusals
            if refusals:
                return await make_there(parent, name, **options)
            await put(other.fs, name, b"x")
            with pytest.raises(Exists) as refusal:
                await make_there(parent, name, **options)
            refusals += 1
            await other.fs.unlink(ROOT_INO, name)
            if heard:
                await gone(one, name)
            raise refusal.value

        monkeypatch.setattr(one.fs.ns, "make", make_late)
        handle, inode = await one.fs.create(ROOT_INO, b"log", 0o644, os.O_WRONLY, ROOT)
        await one.fs.release(handle)
        assert refusals == 1
        assert await one.fs.lookup(ROOT_INO, b"log") is inode
        assert inode.nlink == 1


async def test_one_of_several_removers_wins(pair: Pair) -> None:
    one, other = pair
    for number in range(ROUNDS):
        await put(one, b"f%d" % number, b"x")
        await other.mkdir(ROOT_INO, b"d%d" % number, 0o755, ROOT)
        calls: list[Call] = [partial(fs.unlink, ROOT_INO, b"f%d" % number) for fs in (one, other, one)]
        assert winners(await together(*calls), NotFound) == 1
        calls = [partial(fs.rmdir, ROOT_INO, b"d%d" % number) for fs in (one, other, one)]
        assert winners(await together(*calls), NotFound) == 1


async def test_one_of_several_movers_of_a_name_wins(pair: Pair) -> None:
    one, other = pair
    for number in range(ROUNDS):
        await put(one, b"f%d" % number, b"x")
        calls = [
            partial(fs.rename, ROOT_INO, b"f%d" % number, ROOT_INO, b"to%d-%d" % (number, index))
            for index, fs in enumerate((one, other))
        ]
        assert winners(await together(*calls), NotFound) == 1


async def test_rmdir_against_create_leaves_no_orphan(pair: Pair) -> None:
    one, other = pair
    both = [0, 0]
    for number in range(2 * ROUNDS):
        folder = await one.mkdir(ROOT_INO, b"d%d" % number, 0o755, ROOT)
        first, second = await together(
            partial(one.rmdir, ROOT_INO, b"d%d" % number), partial(make, other, b"f", folder.ino)
        )
        removed, made = first is None, isinstance(second, Inode)
        assert removed != made, (first, second)
        # A folder that is gone when the call begins is ESTALE: the kernel looks the path up again, and says ENOENT.
        assert isinstance(second if removed else first, NotFound | Stale if removed else NotEmpty)
        both[removed] += 1
    assert sum(both) == 2 * ROUNDS


async def test_moves_of_folders_on_both_sides_make_no_cycle(pair: Pair) -> None:
    one, other = pair
    for number in range(ROUNDS):
        a = await one.mkdir(ROOT_INO, b"a%d" % number, 0o755, ROOT)
        b = await other.mkdir(ROOT_INO, b"b%d" % number, 0o755, ROOT)
        results = await together(
            partial(one.rename, ROOT_INO, b"a%d" % number, b.ino, b"in"),
            partial(other.rename, ROOT_INO, b"b%d" % number, a.ino, b"in"),
        )
        lost = [result for result in results if result is not None]
        assert len(lost) == 1
        assert isinstance(lost[0], NotFound | InvalidArgument)


async def test_changes_show_elsewhere(pair: Pair) -> None:
    one, other = pair

    async def names(fs: FileSystem) -> set[bytes]:
        handle = await fs.opendir(ROOT_INO)
        found = {name for _, name, _ in await fs.readdir(handle, 0, 1000)}
        await fs.releasedir(handle)
        return found

    assert await names(other) == set()  # complete in memory from here on
    ino = await put(one, b"a", b"1")

    async def is_listed(expected: set[bytes]) -> bool:
        return await names(other) == expected

    await eventually(partial(is_listed, {b"a"}))
    await one.link(ino, ROOT_INO, b"b")
    await one.mkdir(ROOT_INO, b"d", 0o755, ROOT)
    await eventually(partial(is_listed, {b"a", b"b", b"d"}))
    await one.rename(ROOT_INO, b"a", ROOT_INO, b"c")
    await eventually(partial(is_listed, {b"b", b"c", b"d"}))
    await one.unlink(ROOT_INO, b"b")
    await one.rmdir(ROOT_INO, b"d")
    await eventually(partial(is_listed, {b"c"}))

    async def links() -> bool:
        return (await other.inode(ino)).nlink == 1 and (await other.inode(ROOT_INO)).nlink == 2

    await eventually(links)


async def test_two_sessions_fill_one_folder(fresh: Fresh) -> None:
    """Every name is there once, link counts are right; then both empty it."""
    async with two(fresh) as (a, b):

        async def fill(fs: FileSystem, tag: bytes) -> None:
            for number in range(30):
                await put(fs, b"%s-f%d" % (tag, number), tag)
                await fs.mkdir(ROOT_INO, b"%s-d%d" % (tag, number), 0o755, ROOT)

        async def empty(fs: FileSystem, tag: bytes) -> None:
            for number in range(0, 30, 2):
                await fs.unlink(ROOT_INO, b"%s-f%d" % (tag, number))
                await fs.rmdir(ROOT_INO, b"%s-d%d" % (tag, number))

        async with trio.open_nursery() as nursery:
            for fs, tag in ((a.fs, b"a"), (a.fs, b"b"), (b.fs, b"c"), (b.fs, b"d")):
                nursery.start_soon(fill, fs, tag)
        async with trio.open_nursery() as nursery:
            for fs, tag in ((a.fs, b"c"), (a.fs, b"b"), (b.fs, b"a"), (b.fs, b"d")):
                nursery.start_soon(empty, fs, tag)
        assert await get(a.fs, b"/d-f1") == b"d"
    async with fresh.open() as stack:
        inode = await stack.fs.inode(ROOT_INO)
        assert inode.nlink == 2 + 60
