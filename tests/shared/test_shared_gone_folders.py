"""Folders that another session removed, while the kernel or a handle here has them (namespace.departed DE1-DE3)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from bson.int64 import Int64

from flakefs.app.stack import Stack
from flakefs.errors import FlakeError, NotFound, Stale
from flakefs.format.documents import INODES, Document
from flakefs.namespace import Inode, departed
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes, FileSystem
from tests.shared.conftest import ROOT, eventually, put, together, two, until
from tests.shared.orders import gone, hold_commits

LIMIT = 100


async def document(stack: Stack, ino: int) -> Document | None:
    return await trio.to_thread.run_sync(stack.door.client[stack.database][INODES].find_one, {"_id": Int64(ino)})


async def names_in(fs: FileSystem, handle: int) -> list[bytes]:
    return [name for _, name, _ in await fs.readdir(handle, 0, LIMIT)]


async def removed_elsewhere(one: Stack, other: Stack, name: bytes, ino: int) -> None:
    """*other* has removed the folder, its document is deleted, and *one* has heard of it."""
    await other.fs.rmdir(ROOT_INO, name)
    await gone(one, name)

    async def is_deleted() -> bool:
        return await document(one, ino) is None

    await eventually(is_deleted)
    known = one.fs.ns.known(ino)
    await until(lambda: known is None or known.gone or known.expires < 0)


@asynccontextmanager
async def a_removed_folder(fresh: Fresh) -> AsyncIterator[tuple[Stack, Stack, Inode, int]]:
    """(who has it open and looked it up, who removed it, the folder, the handle)"""
    async with two(fresh) as (one, other):
        made = await other.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        await put(other.fs, b"f", b"x", made.ino)
        folder = await one.fs.lookup(ROOT_INO, b"d")
        assert folder is not None
        one.fs.remember(folder.ino)
        handle = await one.fs.opendir(folder.ino)
        assert await names_in(one.fs, handle) == [b"f"]
        await other.fs.unlink(made.ino, b"f")
        await removed_elsewhere(one, other, b"d", made.ino)
        yield one, other, folder, handle


async def test_it_has_no_link_and_no_names(fresh: Fresh) -> None:
    async with a_removed_folder(fresh) as (one, _, folder, handle):
        fs, ino = one.fs, folder.ino
        before = folder.mode, folder.uid, folder.btime
        await put(fs, b"elsewhere", b"x")
        target = await fs.mkdir(ROOT_INO, b"t", 0o755, ROOT)
        found = await fs.inode(ino)
        assert found is folder
        assert (found.mode, found.uid, found.btime) == before
        assert found.nlink == 0
        assert await names_in(fs, handle) == []
        assert await fs.lookup(ino, b"f") is None
        assert await fs.lookup(ino, b"f", fresh=True) is None
        again = await fs.opendir(ino)
        assert await names_in(fs, again) == []
        await fs.releasedir(again)
        for refused in (
            partial(fs.unlink, ino, b"f"),
            partial(fs.rmdir, ino, b"s"),
            partial(fs.create, ino, b"n", 0o644, os.O_WRONLY, ROOT),
            partial(fs.mkdir, ino, b"n", 0o755, ROOT),
            partial(fs.symlink, ino, b"n", b"there", ROOT),
            partial(fs.rename, ino, b"f", target.ino, b"f"),
            partial(fs.rename, ROOT_INO, b"elsewhere", ino, b"f"),
            partial(fs.link, (await fs.lookup(ROOT_INO, b"elsewhere") or folder).ino, ino, b"f"),
        ):
            with pytest.raises(NotFound):
                await refused()
        await fs.releasedir(handle)
        fs.forget(ino)


async def test_nothing_of_it_is_ever_written(fresh: Fresh) -> None:
    async with a_removed_folder(fresh) as (one, _, folder, handle):
        fs = one.fs
        before, times = fs.ns.membership()["conflicts"], dict(fs.ns._cache.times.pending)
        assert (await fs.setattr(folder.ino, Changes(0o700, None, None, None, 1, 1), ROOT)).mode & 0o777 == 0o700
        await fs.setxattr(folder.ino, b"user.a", b"b")
        assert await names_in(fs, handle) == []  # a time of access may be due
        assert not folder.dirty
        await fs.sync()
        assert fs.ns.membership()["conflicts"] == before
        assert fs.ns._cache.times.pending in (times, {})
        assert await document(one, folder.ino) is None
        assert fs.ns.failure is None
        await fs.releasedir(handle)
        fs.forget(folder.ino)


async def test_it_is_held_until_its_last_user_has_gone(fresh: Fresh) -> None:
    async with a_removed_folder(fresh) as (one, _, folder, handle):
        fs, cache, ino = one.fs, one.fs.ns._cache, folder.ino
        assert (await fs.inode(ino)).nlink == 0
        fs.forget(ino)
        assert (await fs.inode(ino)).nlink == 0
        assert ino in cache.departed
        await fs.releasedir(handle)
        assert ino not in cache.departed
        with pytest.raises(Stale):
            await fs.inode(ino)


async def test_of_many_some_are_asked_for_again(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departed, "DEPARTED_MAX", 2)
    async with two(fresh) as (one, other):
        handles = {}
        for number in range(3):
            name = b"d%d" % number
            made = await other.fs.mkdir(ROOT_INO, name, 0o755, ROOT)
            handles[made.ino] = await one.fs.opendir(made.ino)
            await removed_elsewhere(one, other, name, made.ino)
            assert (await one.fs.inode(made.ino)).nlink == 0
        assert len(one.fs.ns._cache.departed) == 2
        for ino, handle in handles.items():
            assert (await one.fs.setattr(ino, Changes(0o700, None, None, None, None, None), ROOT)).nlink == 0
            await one.fs.releasedir(handle)
        assert len(one.fs.ns._cache.departed) == 0
        assert one.fs.ns.membership()["conflicts"] == 0


async def test_one_that_nobody_holds_is_stale(fresh: Fresh) -> None:
    async with two(fresh) as (one, other):
        made = await other.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        folder = await one.fs.lookup(ROOT_INO, b"d")
        assert folder is not None
        await removed_elsewhere(one, other, b"d", made.ino)
        with pytest.raises(Stale):
            await one.fs.inode(folder.ino)


async def test_it_may_go_when_the_other_session_has_ended(fresh: Fresh) -> None:
    """Alone again: the times that reading sets are not stored for it either."""
    async with fresh.open() as one:
        async with fresh.open() as other:
            await until(lambda: one.fs.ns.shared and one.fs.ns.membership()["stream"] == "healthy")
            made = await other.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
            handle = await one.fs.opendir(made.ino)
            await removed_elsewhere(one, other, b"d", made.ino)
        await until(lambda: not one.fs.ns.shared)
        folder = await one.fs.inode(made.ino)
        assert folder.nlink == 0
        folder.atime = 0
        assert await names_in(one.fs, handle) == []
        await one.fs.setattr(made.ino, Changes(0o700, None, None, None, None, None), ROOT)
        await one.fs.sync()
        assert await document(one, made.ino) is None
        await one.fs.releasedir(handle)
        with pytest.raises(Stale):
            await one.fs.inode(made.ino)


async def test_memory_that_is_stale_makes_no_folder_gone(fresh: Fresh) -> None:
    """What is not believed any more is asked for again, also that a folder has gone (CO3)."""
    async with a_removed_folder(fresh) as (one, other, folder, handle):
        fs, ino = one.fs, folder.ino
        stays = await other.fs.mkdir(ROOT_INO, b"stays", 0o755, ROOT)
        await put(other.fs, b"f", b"x", stays.ino)
        held = await fs.opendir(stays.ino)
        assert (await fs.inode(ino)).nlink == 0
        fs.ns.coherence.drop_all()
        assert (await fs.inode(stays.ino)).nlink == 2
        assert await names_in(fs, held) == [b"f"]
        assert (await fs.inode(ino)).nlink == 0
        # A server that lost the removal in a failover
        inodes = one.door.client[one.database][INODES]
        again = {**(await document(one, stays.ino) or {}), "_id": Int64(ino), "n": "d"}
        await trio.to_thread.run_sync(inodes.insert_one, again)
        fs.ns.coherence.drop_all()
        assert await fs.inode(ino) is folder
        assert (folder.nlink, folder.place) == (2, (ROOT_INO, b"d"))
        assert ino not in fs.ns._cache.departed
        await put(fs, b"g", b"x", ino)
        assert await names_in(fs, handle) == [b"g"]
        await fs.unlink(ino, b"g")
        await fs.rmdir(ROOT_INO, b"d")
        await trio.to_thread.run_sync(inodes.update_one, {"_id": Int64(ROOT_INO)}, {"$inc": {"nlink": 1}})
        await fs.releasedir(held)
        await fs.releasedir(handle)
        fs.forget(ino)


async def test_it_is_not_listed_before_the_news(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(fresh) as (one, other):
        made = await other.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        await put(other.fs, b"f", b"x")
        root = await one.fs.opendir(ROOT_INO)
        assert sorted(await names_in(one.fs, root)) == [b"d", b"f"]
        one.fs.remember(made.ino)
        monkeypatch.setattr(one.fs.ns.coherence, "take", lambda document: None)
        await other.fs.rmdir(ROOT_INO, b"d")
        (await one.fs.inode(made.ino)).expires = -1.0
        assert (await one.fs.inode(made.ino)).nlink == 0
        assert await names_in(one.fs, root) == [b"f"]
        assert await one.fs.lookup(ROOT_INO, b"d") is None
        await one.fs.releasedir(root)
        one.fs.forget(made.ino)


async def test_of_two_removers_the_loser_has_an_empty_folder(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rm -r` on both: the one that comes too late goes on with what it has open."""
    async with two(fresh) as (one, other):
        made = await other.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        folder = await one.fs.lookup(ROOT_INO, b"d")
        assert folder is not None
        handle = await one.fs.opendir(made.ino)
        waits, free = hold_commits(one, monkeypatch)

        async def remove_first() -> None:
            await waits.wait()
            await other.fs.rmdir(ROOT_INO, b"d")
            free.set()

        lost, _ = await together(partial(one.fs.rmdir, ROOT_INO, b"d"), remove_first)
        assert isinstance(lost, NotFound)
        assert (await one.fs.inode(made.ino)).nlink == 0
        assert await names_in(one.fs, handle) == []
        await one.fs.releasedir(handle)


async def test_a_session_that_only_reads_has_it_too(fresh: Fresh) -> None:
    async with fresh.open() as writer, fresh.open(writable=False) as reader:
        made = await writer.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        await writer.fs.sync()
        handle = await reader.fs.opendir(made.ino)
        await writer.fs.rmdir(ROOT_INO, b"d")
        await writer.fs.sync()

        async def is_gone() -> bool:
            try:
                return (await reader.fs.inode(made.ino)).nlink == 0
            except FlakeError as error:
                pytest.fail(f"it is held: {error!r}")

        await eventually(is_gone)
        assert await names_in(reader.fs, handle) == []
        await reader.fs.releasedir(handle)
