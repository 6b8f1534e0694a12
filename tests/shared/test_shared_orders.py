"""Orders of answers and news that happen rarely, made to happen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from pymongo import MongoClient

from flakefs.app.stack import Stack
from flakefs.errors import Exists, FlakeError, InvalidArgument, NotEmpty
from flakefs.format.documents import INODES
from flakefs.namespace import Inode
from flakefs.namespace.bindings import forget_name
from flakefs.namespace.commit import transact
from flakefs.testing.servers import Servers
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from tests.shared.conftest import PATIENCE_SECONDS, ROOT, eventually, put, together, two, until

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


def hold_answers(
    stack: Stack, patch: pytest.MonkeyPatch, condition: Callable[[], bool], *, commits: bool
) -> trio.Event:
    """From now on answers to *stack* (of commits, or of all else) arrive when *condition* holds. Event: one waits."""
    run, waits = stack.door.run, trio.Event()

    async def held(call: Callable[[], T], **options: Any) -> T:
        result = await run(call, **options)
        if (getattr(call, "func", None) is transact) is commits:
            waits.set()
            await until(condition)
        return result

    patch.setattr(stack.door, "run", held)
    return waits


async def gone(stack: Stack, name: bytes) -> None:
    """Return when the name is known to be gone."""

    async def is_gone() -> bool:
        return await stack.fs.lookup(ROOT_INO, name) is None

    await eventually(is_gone)


async def names_of(stack: Stack) -> set[bytes]:
    handle = await stack.fs.opendir(ROOT_INO)
    names = {name for _, name, _ in await stack.fs.readdir(handle, 0, 100)}
    await stack.fs.releasedir(handle)
    return names


def news(stack: Stack) -> int:
    return int(stack.fs.ns.membership()["news"])


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


async def test_a_commit_that_waits_for_what_was_taken_back_ends(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a session neither works alone again nor ends."""
    async with two(fresh) as (one, other):
        run, began, free = one.door.run, trio.Event(), trio.Event()

        async def held(call: Callable[[], T], **options: Any) -> T:
            if getattr(call, "func", None) is transact:
                began.set()
                await free.wait()
            return await run(call, **options)

        monkeypatch.setattr(one.door, "run", held)

        async def change() -> None:
            await began.wait()
            one.fs.ns.changed(one.fs.ns.root)  # for the next commit, which is not to be
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.fs.ns.commit)
                await other.fs.mkdir(ROOT_INO, b"f", 0o755, ROOT)
                free.set()

        with trio.fail_after(PATIENCE_SECONDS):
            refused, _ = await together(partial(one.fs.mkdir, ROOT_INO, b"f", 0o755, ROOT), change)
        assert isinstance(refused, Exists)


def hold_commits(stack: Stack, patch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """From now on commits of *stack* wait. (one does, they may go on)"""
    run, waits, free = stack.door.run, trio.Event(), trio.Event()

    async def held(call: Callable[[], T], **options: Any) -> T:
        if getattr(call, "func", None) is transact:
            waits.set()
            await free.wait()
        return await run(call, **options)

    patch.setattr(stack.door, "run", held)
    return waits, free


async def test_a_name_that_is_taken_and_freed_in_one_group_was_free(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of such a name nothing is stored, so no guard would notice that another session had it."""
    async with two(fresh) as (one, other):
        await one.fs.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
        assert await names_of(one) == await names_of(other) == {b"folder"}
        late: list[Mapping[str, Any]] = []
        monkeypatch.setattr(one.fs.ns.coherence, "take", late.append)
        ino = await put(other.fs, b"a", b"x")
        waits, free = hold_commits(one, monkeypatch)

        async def to_and_fro() -> list[object]:
            await waits.wait()  # what follows is in one group
            async with trio.open_nursery() as nursery:
                results: list[object] = [None, None]

                async def rename(index: int, name: bytes, new: bytes) -> None:
                    with suppress(FlakeError):
                        await one.fs.rename(ROOT_INO, name, ROOT_INO, new)
                        results[index] = "done"

                nursery.start_soon(rename, 0, b"folder", b"a")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(rename, 1, b"a", b"folder")
                await trio.testing.wait_all_tasks_blocked()
                free.set()
            return results

        _, results = await together(partial(one.fs.mkdir, ROOT_INO, b"other", 0o755, ROOT), to_and_fro)
        assert results == [None, None]
        found = await one.fs.lookup(ROOT_INO, b"a")
        assert found is not None
        assert found.ino == ino


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


async def test_a_refusal_by_a_folder_whose_removal_fails_is_none(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits for its commit, a removed folder is gone in memory; then the commit finds that it is not empty."""
    async with two(fresh) as (one, other):
        folder = await one.fs.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
        assert await names_of(one) == await names_of(other) == {b"folder"}
        assert await one.fs.lookup(folder.ino, b"a") is None
        monkeypatch.setattr(one.fs.ns.coherence, "take", lambda document: None)
        await put(other.fs, b"a", b"x", folder.ino)
        waits, free = hold_commits(one, monkeypatch)

        async def make() -> int:
            await waits.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(put, one.fs, b"b", b"x", folder.ino))
                await trio.testing.wait_all_tasks_blocked()
                free.set()
            return 0

        refused, made = await together(partial(one.fs.rmdir, ROOT_INO, b"folder"), make)
        assert isinstance(refused, NotEmpty)
        assert made == 0


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


async def test_what_may_be_taken_back_is_shown_to_nobody(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that waits for the folder while a name is made in it."""
    async with two(fresh) as (one, other):
        assert await names_of(one) == set()
        monkeypatch.setattr(one.fs.ns.coherence, "take", lambda document: None)
        ino = await put(other.fs, b"a", b"theirs")
        waits, free = hold_commits(one, monkeypatch)
        loaded, child = trio.Event(), one.fs.ns._entries.child

        async def child_late(parent: Inode, name: bytes) -> Inode | None:
            await loaded.wait()
            return await child(parent, name)

        async def make() -> None:
            await waits.wait()
            loaded.set()
            monkeypatch.setattr(one.fs.ns._entries, "child", child)
            await trio.testing.wait_all_tasks_blocked()
            free.set()

        async def look() -> list[int]:
            monkeypatch.setattr(one.fs.ns._entries, "child", child_late)
            async with trio.open_nursery() as nursery:
                found: list[int] = []

                async def look_up() -> None:
                    inode = await one.fs.lookup(ROOT_INO, b"a")
                    assert inode is not None
                    found.append(inode.ino)

                nursery.start_soon(look_up)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(together, partial(one.fs.mkdir, ROOT_INO, b"a", 0o755, ROOT))
            return found

        assert (await together(make, look))[1] == [ino]
        async with trio.open_nursery() as nursery:
            waits, free = hold_commits(one, monkeypatch)
            nursery.start_soon(partial(one.fs.mkdir, ROOT_INO, b"b", 0o755, ROOT))
            await waits.wait()
            seen: list[set[bytes]] = []

            async def look_at_all() -> None:
                seen.append(await names_of(one))

            nursery.start_soon(look_at_all)
            await trio.testing.wait_all_tasks_blocked()
            assert not seen
            free.set()
        assert seen == [{b"a", b"b"}]


async def test_a_move_that_fails_keeps_no_folder_from_moving(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(fresh) as (one, other):
        x = await one.fs.mkdir(ROOT_INO, b"x", 0o755, ROOT)
        y = await one.fs.mkdir(ROOT_INO, b"y", 0o755, ROOT)
        assert await names_of(one) == await names_of(other) == {b"x", b"y"}
        assert await one.fs.lookup(x.ino, b"y") is None
        assert await one.fs.lookup(y.ino, b"x") is None
        monkeypatch.setattr(one.fs.ns.coherence, "take", lambda document: None)
        await put(other.fs, b"y", b"x", x.ino)
        waits, free = hold_commits(one, monkeypatch)

        async def move() -> None:
            await waits.wait()  # y is in x here
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.fs.rename, ROOT_INO, b"x", y.ino, b"z")
                await trio.testing.wait_all_tasks_blocked()
                free.set()

        refused, moved = await together(partial(one.fs.rename, ROOT_INO, b"y", x.ino, b"y"), move)
        assert isinstance(refused, FlakeError)
        assert moved is None
        assert await names_of(one) == {b"y"}
        with pytest.raises(InvalidArgument):
            await one.fs.rename(ROOT_INO, b"y", x.ino, b"in")
