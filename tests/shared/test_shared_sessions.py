"""Coming, going and being declared dead."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, suppress
from functools import partial

import pytest
import trio
from pymongo.errors import PyMongoError

from flakefs.app.stack import Stack
from flakefs.errors import FlakeError
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import FileSystem
from flakefs.vfs.paths import resolve
from tests.shared.conftest import ROOT, eventually, get, put, shared, two, until


async def test_alone_again_after_the_other_left(fresh: Fresh) -> None:
    async with fresh.open() as one:
        assert not one.fs.ns.shared
        for number in range(3):
            async with fresh.open() as other:
                await shared(one)
                await put(other.fs, b"f%d" % number, b"%d" % number)
            await until(lambda: not one.fs.ns.shared)
            assert await get(one.fs, b"/f%d" % number) == b"%d" % number
            handle, _ = await one.fs.create(ROOT_INO, b"g%d" % number, 0o644, os.O_RDWR, ROOT)
            await one.fs.write(handle, 0, b"alone")
            await one.fs.release(handle)
            assert one.fs.ns.statistics().dirty > 0, "alone, nothing waits for the commit"
    async with fresh.open() as stack:
        for number in range(3):
            assert await get(stack.fs, b"/g%d" % number) == b"alone"


async def test_what_was_answered_alone_is_there_for_the_newcomer(fresh: Fresh) -> None:
    """SM1."""
    async with fresh.open() as one:
        await one.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        handle, _ = await one.fs.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
        await one.fs.write(handle, 0, b"x" * 100_000)
        async with fresh.open() as other:
            assert await get(other.fs, b"/f") == b"x" * 100_000
            assert (await resolve(other.fs, b"/")).nlink == 3
            await other.fs.mkdir(ROOT_INO, b"e", 0o755, ROOT)
        await one.fs.release(handle)


async def test_switches_under_load_lose_nothing(fresh: Fresh) -> None:
    count = 0
    done = False

    async with fresh.open() as one:

        async def load(tag: int) -> None:
            nonlocal count
            number = 0
            while not done:
                ino = await put(one.fs, b"%d-%d" % (tag, number), b"%d" % number)
                handle = await one.fs.open(ino, os.O_WRONLY | os.O_APPEND)
                await one.fs.write(handle, 0, b"+")
                await one.fs.flush(handle)
                await one.fs.release(handle)
                number += 1
                count += 1
                await trio.sleep(0.001)
            numbers.append(number)

        numbers: list[int] = []
        async with trio.open_nursery() as nursery:
            for tag in range(3):
                nursery.start_soon(load, tag)
            for number in range(3):
                before = count
                async with fresh.open() as other:
                    await put(other.fs, b"other%d" % number, b"x")
                    await until(lambda before=before: count > before + 10)  # type: ignore[misc]
                before = count
                await until(lambda before=before: count > before + 10 and not one.fs.ns.shared)  # type: ignore[misc]
            done = True
    async with fresh.open() as stack:
        assert (await resolve(stack.fs, b"/other2")).size == 1
        total = 0
        for tag in range(3):
            number = 0
            while await stack.fs.lookup(ROOT_INO, b"%d-%d" % (tag, number)) is not None:
                assert await get(stack.fs, b"/%d-%d" % (tag, number)) == b"%d+" % number
                number += 1
            total += number
        assert total == count


async def outlived(fresh: Fresh) -> None:
    """One of two sessions is declared dead; it ends with an error, having written nothing more."""
    async with two(fresh) as (one, other):
        sessions = one.door.client[one.database]["sessions"]
        handle, _ = await other.fs.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
        await other.fs.write(handle, 0, b"late")
        sessions.update_one({"_id": other.session.epoch}, {"$set": {"state": "dead"}})
        with pytest.raises(FlakeError):
            await other.fs.fsync(handle)
        with pytest.raises(FlakeError):
            await other.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        await until(lambda: not one.fs.ns.shared)
        await one.fs.mkdir(ROOT_INO, b"e", 0o755, ROOT)


@pytest.mark.logs
async def test_a_session_that_was_declared_dead_writes_nothing(fresh: Fresh) -> None:
    with pytest.raises(FlakeError, match="declared this one dead"):
        await outlived(fresh)
    async with fresh.open() as stack:
        assert await stack.fs.lookup(ROOT_INO, b"d") is None
        assert await stack.fs.lookup(ROOT_INO, b"e") is not None
        assert await get(stack.fs, b"/f") == b""


async def declare_dead(stack: Stack) -> None:
    """As another host does when its lease has run out; returns when it knows."""
    sessions = stack.door.client[stack.database]["sessions"]
    sessions.update_one({"_id": stack.session.epoch}, {"$set": {"state": "dead"}})

    async def change() -> None:
        await stack.fs.mkdir(ROOT_INO, b"never", 0o755, ROOT)
        await stack.fs.sync()

    with pytest.raises(FlakeError):
        await change()
    await until(lambda: stack.session.fenced)


async def names_in(fs: FileSystem, folder: int = ROOT_INO) -> set[bytes]:
    handle = await fs.opendir(folder)
    names = {name for _, name, _ in await fs.readdir(handle, 0, 100)}
    await fs.releasedir(handle)
    return names


async def show_dead(fresh: Fresh, *, alone: bool) -> None:
    async with AsyncExitStack() as exits:
        dead = await exits.enter_async_context(fresh.open())
        fs = dead.fs
        folder = await fs.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
        ino = await put(fs, b"f", b"old" * 30_000)
        await put(fs, b"gone", b"x")
        await fs.sync()
        handle = await fs.open(ino, os.O_RDWR)
        assert await fs.lookup(ROOT_INO, b"new") is None
        if alone:
            await fs.mkdir(folder.ino, b"unsaved", 0o755, ROOT)
            await declare_dead(dead)
        other = await exits.enter_async_context(fresh.open())
        if not alone:
            await shared(dead)
            await fs.write(handle, 0, b"unsaved")
            await declare_dead(dead)
        assert not fs.ns.trusted
        for number in range(3):  # whatever was looked at a moment ago
            await other.fs.mkdir(folder.ino, b"new%d" % number, 0o755, ROOT)
            await eventually(partial(shows, fs, folder.ino, {b"new%d" % known for known in range(number + 1)}))
        await other.fs.unlink(ROOT_INO, b"gone")
        await other.fs.rename(ROOT_INO, b"folder", ROOT_INO, b"renamed")
        theirs = await other.fs.open(ino, os.O_RDWR)
        await other.fs.write(theirs, 0, b"new")
        await other.fs.flush(theirs)
        await other.fs.release(theirs)
        await eventually(partial(shows, fs, ROOT_INO, {b"renamed", b"f"}))
        assert await get(fs, b"/f") == b"new" + (b"old" * 30_000)[3:]
        assert await fs.lookup(ROOT_INO, b"folder") is None
        for call in (partial(fs.write, handle, 0, b"x"), partial(fs.unlink, ROOT_INO, b"f"), fs.sync):
            with pytest.raises(FlakeError):
                await call()
        assert fs.ns.statistics().dirty == 0
        await fs.release(handle)


async def shows(fs: FileSystem, folder: int, names: set[bytes]) -> bool:
    return await names_in(fs, folder) == names


@pytest.mark.logs
@pytest.mark.parametrize("alone", [False, True])
async def test_a_session_that_was_declared_dead_shows_what_is_stored(fresh: Fresh, alone: bool) -> None:
    """SM4."""
    with pytest.raises(FlakeError, match="declared this one dead"):
        await show_dead(fresh, alone=alone)
    async with fresh.open() as stack:
        assert await names_in(stack.fs) == {b"renamed", b"f"}
    fresh.checked = False  # chunks of what it could not store


async def test_an_open_transaction_of_a_dead_process_holds_up_nobody(fresh: Fresh) -> None:
    """A server keeps it, with the lock on the session's document, for a minute."""
    async with fresh.open() as one:
        client = one.door.client
        sessions = client[one.database]["sessions"]
        document = sessions.find_one({"_id": one.session.epoch})
        assert document is not None
        with client.start_session() as driver:
            document |= {"_id": 10**6, "pid": 2**22 + 1, "lsid": driver.session_id["id"]}
            client.admin.command("ping", session=driver)
            sessions.insert_one(document)
            driver.start_transaction()
            sessions.update_one({"_id": 10**6}, {"$inc": {"commits": 1}}, session=driver)

            async def gone() -> bool:  # a look that comes second finds it alive once more
                return not await one.session.look()

            await eventually(gone)
            with suppress(PyMongoError):
                driver.abort_transaction()
        await until(lambda: not one.fs.ns.shared)
        sessions.delete_one({"_id": 10**6})
