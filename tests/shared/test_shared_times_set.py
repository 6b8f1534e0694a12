"""Times that programs set, and times that shared mode writes outside of the commits: which of them holds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import trio
from bson.int64 import Int64
from pymongo.database import Database

from flakefs.format.documents import INODES, Document
from flakefs.namespace import shared as module
from flakefs.namespace.group import Group, cut, uncut
from flakefs.namespace.inode import Inode
from flakefs.namespace.rollback import roll_back
from flakefs.namespace.times import Raise, Times, apply, write
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes
from tests.shared.conftest import ROOT, get, put, shared, together, two
from tests.shared.times import (
    FUTURE,
    HOUR_NS,
    PAST,
    all_show,
    by_hand,
    deaf,
    folder_of,
    heard,
    listen,
    set_mtime,
    stored,
    write_times,
)

__all__ = ["by_hand"]


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("mtime", [PAST, FUTURE])
@pytest.mark.parametrize("who", ["itself", "another", "another that has not heard of it"])
async def test_a_time_that_was_set_outlives_names_that_changed_before(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch, mtime: int, who: str
) -> None:
    """TM1"""
    async with two(fresh) as (one, other):
        ino = await folder_of(one, other)
        kept = deaf(other, monkeypatch) if "not heard" in who else []
        changer = one if who == "itself" else other
        await put(changer.fs, b"f", b"", parent=ino)
        await set_mtime(one, ino, mtime)
        await write_times(one, other)
        listen(other, kept, monkeypatch)
        await all_show(ino, mtime, one, other)
        async with fresh.open() as third:
            assert (await third.fs.inode(ino)).mtime == mtime


@pytest.mark.usefixtures("by_hand")
async def test_a_time_that_was_set_outlives_a_raise_that_was_being_written(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TM1"""
    began, free = trio.Event(), trio.Event()

    def held(db: Database[Document], times: Mapping[int, Raise]) -> None:
        trio.from_thread.run_sync(began.set)
        trio.from_thread.run(free.wait)
        write(db, times)

    async with two(fresh) as (one, other):
        ino = await folder_of(one, other)
        await put(one.fs, b"f", b"", parent=ino)
        monkeypatch.setattr(module, "write", held)

        async def set_meanwhile() -> None:
            await began.wait()
            await set_mtime(one, ino, PAST)
            free.set()

        assert await together(lambda: write_times(one), set_meanwhile) == [None, None]
        await all_show(ino, PAST, one, other)


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("mtime", [PAST, FUTURE])
@pytest.mark.parametrize("who", ["itself", "another", "another that has not heard of it"])
async def test_a_name_that_changes_takes_the_place_of_a_time_that_was_set(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch, mtime: int, who: str
) -> None:
    """TM1, TM2"""
    async with two(fresh) as (one, other):
        ino = await folder_of(one, other)
        await put(other.fs, b"before", b"", parent=ino)
        kept = deaf(other, monkeypatch) if "not heard" in who else []
        await set_mtime(one, ino, mtime)
        if not kept and who == "another":
            await heard(other, one)
        changer = one if who == "itself" else other
        began = time.time_ns()
        await put(changer.fs, b"f", b"", parent=ino)
        await write_times(one, other)
        listen(other, kept, monkeypatch)
        document = await stored(one, ino)
        assert began < document["mtime"] < time.time_ns()
        assert "mset" not in document
        await all_show(ino, document["mtime"], one, other)


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("off", [-HOUR_NS, HOUR_NS])
async def test_a_clock_that_is_off_does_not_change_the_order(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch, off: int
) -> None:
    """TM2: each had heard what came before."""
    async with two(fresh) as (one, other):
        ino = await folder_of(one, other)
        monkeypatch.setattr(other.fs, "_clock", lambda: time.time_ns() + off)
        await put(other.fs, b"f", b"", parent=ino)
        await heard(one, other)
        await set_mtime(one, ino, PAST)
        await write_times(other)
        await all_show(ino, PAST, one, other)
        await put(other.fs, b"g", b"", parent=ino)
        await put(other.fs, b"h", b"", parent=ino)  # knows of no mark any more
        await write_times(other)
        mtime = (await stored(one, ino))["mtime"]
        assert abs(mtime - off - time.time_ns()) < HOUR_NS / 2
        await all_show(ino, mtime, one, other)


@pytest.mark.usefixtures("by_hand")
async def test_one_group_with_a_set_time_and_names_before_and_after_it(fresh: Fresh) -> None:
    """TM1"""
    async with two(fresh) as (one, other):
        for mtime, last in ((PAST, "set"), (FUTURE, "name")):
            ino = (await one.fs.mkdir(ROOT_INO, last.encode(), 0o755, ROOT)).ino
            await heard(other, one)
            folder, cache, ns = await one.fs.inode(ino), one.fs.ns._cache, one.fs.ns
            now = time.time_ns()
            cache.names_changed(folder, now)
            ns.changed(folder)
            ns.set_times(folder, now, mtime=True, atime=False)
            folder.mtime, folder.ctime = mtime, now
            if last == "name":
                cache.names_changed(folder, now + 1)
            assert await ns.committed()
            await write_times(one)
            await all_show(ino, mtime if last == "set" else now + 1, one, other)


@pytest.mark.usefixtures("by_hand")
async def test_a_time_is_set_by_the_group_that_is_stored(fresh: Fresh) -> None:
    """TM1: not lost with a cut that a full node undoes, and not kept by one that is taken back."""
    async with two(fresh) as (one, other):
        ino = await folder_of(one, other)
        ns = one.fs.ns
        folder = await one.fs.inode(ino)
        cache = ns._cache

        def ask_for(mtime: int) -> None:
            ns.changed(folder)
            ns.set_times(folder, time.time_ns(), mtime=True, atime=False)
            folder.mtime = mtime

        ask_for(PAST)
        uncut(cache, cut(cache, ns._journal._content))
        assert await ns.committed()
        await all_show(ino, PAST, one, other)
        ask_for(FUTURE)
        roll_back(cache, Group([], {}))
        assert not folder.asked
        await all_show(ino, PAST, one, other)


@pytest.mark.parametrize("shared", [True, False])
def test_an_access_time_has_a_mark_while_older_ones_may_be_written(shared: bool) -> None:
    """TM2: also when the session is alone again, until they are."""
    times, inode = Times(), Inode(5, 1, b"f", 0o100644, 0, 0, 0, 0, 1, 1, 1, 1, 1, {}, b"", 1)
    times.shared = shared
    times.note(inode, Raise(atime=50))
    for step in (times.take, times.done):
        times.mark(inode, 10, mtime=False, atime=True)
        assert inode.aset > 50
        step()
        times.mark(inode, 10, mtime=False, atime=True)
    assert bool(inode.aset) == shared


@pytest.mark.usefixtures("by_hand")
async def test_a_time_set_alone_in_the_future_gives_way_in_shared_mode(fresh: Fresh) -> None:
    """TM2"""
    async with fresh.open() as one:
        ino = (await one.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
        await set_mtime(one, ino, FUTURE)
        async with fresh.open() as other:
            await shared(one)
            await shared(other)
            assert (await stored(other, ino))["mtime"] == FUTURE
            await put(other.fs, b"f", b"", parent=ino)
            await write_times(other)
            mtime = (await stored(one, ino))["mtime"]
            assert mtime < time.time_ns()
            await put(one.fs, b"f", b"")  # what it did alone was no news
            await all_show(ino, mtime, one, other)


@pytest.mark.usefixtures("by_hand")
async def test_other_attributes_do_not_bring_an_old_time_back(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """TM1, O12: chmod by a mount that has not heard of the name."""
    async with two(fresh) as (one, other):
        ino = await folder_of(one, other)
        await set_mtime(one, ino, PAST)
        await heard(other, one)
        await other.fs.inode(ino)
        kept = deaf(other, monkeypatch)
        await put(one.fs, b"f", b"", parent=ino)
        await write_times(one)
        mtime = (await stored(one, ino))["mtime"]
        await other.fs.setattr(ino, Changes(mode=0o700), ROOT)
        listen(other, kept, monkeypatch)
        assert "mset" not in await stored(one, ino)
        await all_show(ino, mtime, one, other)


@pytest.mark.usefixtures("by_hand")
async def test_an_access_time_that_was_set_outlives_reads_before_and_not_after_it(fresh: Fresh) -> None:
    """TM1, TM2"""
    async with two(fresh) as (one, other):
        ino = await put(one.fs, b"f", b"x")
        for reader in (one, other):
            await one.fs.setattr(ino, Changes(atime=5, mtime=6), ROOT)
            await heard(other, one)
            assert await get(reader.fs, b"/f") == b"x"
            assert reader.fs.ns._cache.times.pending[ino].atime
            await one.fs.setattr(ino, Changes(atime=PAST), ROOT)
            await write_times(one, other)
            assert (await stored(one, ino))["atime"] == PAST
            await heard(other, one)
            assert (await other.fs.inode(ino)).atime == PAST
        began = time.time_ns()
        assert await get(other.fs, b"/f") == b"x"
        await write_times(other)
        assert (await stored(one, ino))["atime"] > began
        assert "aset" not in await stored(one, ino)


MARKS, TIMES = (0, 10, 20), (5, 15, 25)


async def test_memory_and_store_agree_on_every_order(fresh: Fresh) -> None:
    """TM1 to TM3: all raises of both kinds over all marks, one after the other, and each once more."""
    cases: dict[int, SimpleNamespace] = {}
    raises: list[dict[int, Raise]] = [{}, {}]
    for mark, *both in itertools.product(MARKS, itertools.product(TIMES, MARKS), itertools.product(TIMES, MARKS)):
        ino = 10**6 + len(cases)
        cases[ino] = node = SimpleNamespace(mtime=18, ctime=18, atime=18, mset=mark, aset=mark)
        for when, (now, followed) in enumerate(both):
            raises[when][ino] = raised = Raise(now, followed, now, followed)
            apply(node, raised)  # type: ignore[arg-type]
    marks = ("mset", "aset")

    def through(db: Database[Document]) -> list[Document]:
        inodes = db[INODES]
        inodes.insert_many(
            {"_id": Int64(ino), "p": Int64(ino), "n": str(ino), "mtime": 18, "ctime": 18, "atime": 18}
            | ({"mset": Int64(mark), "aset": Int64(mark)} if mark else {})
            for ino, mark in zip(cases, (m for m in MARKS for _ in range(81)), strict=True)
        )
        for times in (raises[0], raises[0], raises[1], raises[1]):
            write(db, times)
        found = list(inodes.find({"_id": {"$gte": 10**6}}).sort("_id"))
        inodes.delete_many({"_id": {"$gte": 10**6}})
        return found

    async with fresh.open() as stack:
        found = await stack.fs.ns._cache.read(through)
    assert len(found) == len(cases) == 243
    for document in found:
        node = cases[document["_id"]]
        said = {field: document.get(field, 0) for field in ("mtime", "ctime", "atime", *marks)}
        assert said == vars(node), document
