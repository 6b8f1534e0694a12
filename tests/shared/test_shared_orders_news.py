"""Rare orders, made to happen: news comes before the answer to what was asked earlier, or late, or not yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
from pymongo import MongoClient

from flakefs.errors import Exists
from flakefs.format.documents import INODES
from flakefs.namespace.bindings import forget_name
from flakefs.testing.servers import Servers
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from tests.shared.conftest import PATIENCE_SECONDS, ROOT, put, together, two, until
from tests.shared.orders import gone, hold_answers, names_of, news

T = TypeVar("T")
LOOKS = 1_000


@pytest.fixture
def yielding(servers: Servers) -> Iterator[None]:
    """A server that lets others write between any two steps of a query, as a busy one does every 10 ms."""
    with servers.metadata.client() as client:
        before = set_yield(client, 1)
        yield
        set_yield(client, before)


def set_yield(client: MongoClient[dict[str, Any]], iterations: int) -> int:
    return int(client.admin.command({"setParameter": 1, "internalQueryExecYieldIterations": iterations})["was"])


@pytest.mark.usefixtures("yielding")
async def test_names_that_are_read_again_are_those_of_one_moment(fresh: Fresh) -> None:
    """A document goes to and fro between two names, as fast as the server can: whoever looks sees exactly one."""
    async with two(fresh) as (one, _):
        ino = await put(one.fs, b"a", b"x")
        await put(one.fs, b"stays", b"x")
        inodes = one.door.client[one.database][INODES]
        done = threading.Event()

        def move() -> None:
            while not done.is_set():
                for name in ("b", "a"):
                    inodes.update_one({"_id": ino}, {"$set": {"n": name}})

        async def look() -> list[list[int | None]]:
            named = ((one.fs.ns.root, b"a"), (one.fs.ns.root, b"b"))
            try:
                return [(await one.fs.ns._entries.verify(named))[:2] for _ in range(LOOKS)]
            finally:
                done.set()

        _, seen = await together(partial(trio.to_thread.run_sync, move), look)
        assert [ino, 0] in seen
        assert [0, ino] in seen
        assert all(ids in ([ino, 0], [0, ino]) for ids in seen), seen


async def test_news_that_overtakes_the_answer_to_a_commit(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(fresh) as (one, other):
        await put(one.fs, b"a", b"old")
        assert await names_of(one) == await names_of(other) == {b"a"}
        before = news(one)
        waits = hold_answers(one, monkeypatch, lambda: news(one) > before, commits=True)

        async def make() -> int:
            await waits.wait()  # the name is gone, but who removed it does not know
            await gone(other, b"a")
            return await put(other.fs, b"a", b"new")

        _, ino = await together(partial(one.fs.unlink, ROOT_INO, b"a"), make)
        found = await one.fs.lookup(ROOT_INO, b"a")
        assert found is not None
        assert found.ino == ino


async def test_news_that_overtakes_the_answer_to_a_look_up(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(fresh) as (one, other):
        await put(one.fs, b"a", b"old")
        await one.fs.unlink(ROOT_INO, b"a")  # changed here lately: news may be older than what is known
        await gone(other, b"a")
        one.fs.ns.coherence.drop_all()
        await one.fs.inode(ROOT_INO)
        before = news(one)
        waits = hold_answers(one, monkeypatch, lambda: news(one) > before, commits=False)

        async def make() -> int:
            await waits.wait()
            return await put(other.fs, b"a", b"new")

        _, ino = await together(partial(one.fs.lookup, ROOT_INO, b"a"), make)
        found = await one.fs.lookup(ROOT_INO, b"a")
        assert found is not None
        assert found.ino == ino


async def test_a_rename_between_two_names_of_one_file_believes_no_old_name(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(fresh) as (one, other):
        ino = await put(one.fs, b"a", b"x")
        await one.fs.link(ino, ROOT_INO, b"b")
        assert await names_of(other) == {b"a", b"b"}
        late: list[Mapping[str, Any]] = []
        take = one.fs.ns.coherence.take
        monkeypatch.setattr(one.fs.ns.coherence, "take", late.append)
        await other.fs.rename(ROOT_INO, b"b", ROOT_INO, b"c")
        await one.fs.rename(ROOT_INO, b"a", ROOT_INO, b"b")
        monkeypatch.setattr(one.fs.ns.coherence, "take", take)
        for document in late:
            take(document)
        for stack in (one, other):
            await gone(stack, b"a")
            assert await names_of(stack) == {b"b", b"c"}


async def test_a_folder_with_changes_of_its_own_believes_nothing_after_a_gap(fresh: Fresh) -> None:
    async with two(fresh) as (one, other):
        await one.fs.mkdir(ROOT_INO, b"f", 0o755, ROOT)
        folder = await one.fs.lookup(ROOT_INO, b"f")
        assert folder is not None
        await put(one.fs, b"a", b"x", folder.ino)
        assert folder.entries
        one.fs.ns.changed(folder)
        one.fs.ns.coherence.drop_all()
        assert not folder.entries
        assert not folder.complete
        await one.fs.ns.commit()
        assert await one.fs.lookup(folder.ino, b"a") is not None
        assert other.fs.ns.shared


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_further_name_that_somebody_else_removed_is_no_damage(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    async with two(fresh) as (one, other):
        ino = await put(one.fs, b"a", b"x")
        await one.fs.link(ino, ROOT_INO, b"b")
        await put(one.fs, b"c", b"x")
        assert await names_of(one) == await names_of(other) == {b"a", b"b", b"c"}
        monkeypatch.setattr(one.fs.ns.coherence, "take", lambda document: None)
        await other.fs.unlink(ROOT_INO, b"b")
        if replaced:
            await one.fs.rename(ROOT_INO, b"c", ROOT_INO, b"a")
        else:
            await one.fs.unlink(ROOT_INO, b"a")
        await gone(other, b"a" if not replaced else b"c")


async def test_a_folder_that_others_keep_changing_is_listed(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(fresh) as (one, _):
        await put(one.fs, b"a", b"x")
        one.fs.ns.coherence.drop_all()
        read = one.fs.ns._cache.read

        async def doubted(query: Callable[[Any], T], **options: Any) -> T:
            try:
                return await read(query, **options)
            finally:
                forget_name(one.fs.ns.root, b"other")

        monkeypatch.setattr(one.fs.ns._cache, "read", doubted)
        with trio.fail_after(PATIENCE_SECONDS):
            assert await names_of(one) == {b"a"}
            found = await one.fs.lookup(ROOT_INO, b"a")
            assert await one.fs.lookup(ROOT_INO, b"b") is None
            folder = await one.fs.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
            await one.fs.rmdir(ROOT_INO, b"folder")
        assert found is not None
        assert folder.ino != found.ino


async def test_news_that_overtakes_the_answer_about_a_folder_counts(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(fresh) as (one, other):
        folder = await one.fs.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
        assert await names_of(one) == await names_of(other) == {b"folder"}
        one.fs.ns.coherence.drop_all()
        before = news(one)
        waits = hold_answers(one, monkeypatch, lambda: news(one) > before, commits=False)

        async def make() -> int:
            await waits.wait()
            return (await other.fs.mkdir(folder.ino, b"in", 0o755, ROOT)).ino

        await together(partial(one.fs.inode, folder.ino), make)
        assert (await one.fs.inode(folder.ino)).nlink == 3


async def test_news_that_overtakes_what_is_read_after_a_conflict_counts(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(fresh) as (one, other):
        folder = await one.fs.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
        assert await names_of(one) == await names_of(other) == {b"folder"}
        assert await one.fs.lookup(folder.ino, b"a") is None
        late: list[Mapping[str, Any]] = []
        take = one.fs.ns.coherence.take
        monkeypatch.setattr(one.fs.ns.coherence, "take", late.append)
        await other.fs.mkdir(folder.ino, b"a", 0o755, ROOT)
        read = one.fs.ns._cache.read

        async def read_late(query: Callable[[Any], T], *, wait: bool = True) -> T:
            result = await read(query, wait=wait)
            if not wait:  # it is read again after a conflict
                monkeypatch.setattr(one.fs.ns._cache, "read", read)
                await other.fs.mkdir(folder.ino, b"b", 0o755, ROOT)
                await until(lambda: len(late) >= 2)
                monkeypatch.setattr(one.fs.ns.coherence, "take", take)
                for document in late:
                    take(document)
            return result

        monkeypatch.setattr(one.fs.ns._cache, "read", read_late)
        (refused,) = await together(partial(one.fs.mkdir, folder.ino, b"a", 0o755, ROOT))
        assert isinstance(refused, Exists)
        assert len(late) >= 2
        assert (await one.fs.inode(folder.ino)).nlink == 4


async def test_a_further_name_of_which_there_was_no_news_yet_is_no_damage(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(fresh) as (one, other):
        ino = await put(one.fs, b"a", b"x")
        assert await names_of(one) == await names_of(other) == {b"a"}
        monkeypatch.setattr(one.fs.ns.coherence, "take", lambda document: None)
        await other.fs.link(ino, ROOT_INO, b"b")
        await one.fs.ns.reread(ino)
        await one.fs.unlink(ROOT_INO, b"a")
        await gone(other, b"a")
        assert await names_of(other) == {b"b"}
