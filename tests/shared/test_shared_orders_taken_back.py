"""Rare orders, made to happen: others see, or wait for, a change whose commit fails and takes it back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from flakefs.errors import Exists, FlakeError, InvalidArgument, NotEmpty
from flakefs.namespace import Inode, Namespace
from flakefs.namespace.commit import transact
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes
from tests.shared.conftest import PATIENCE_SECONDS, ROOT, put, together, two
from tests.shared.orders import hold_commits, names_of

T = TypeVar("T")


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


async def test_rb5_the_kernel_forgets_old_attributes_when_the_new_ones_are_known(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have asked again while they were read."""
    async with two(fresh) as (one, other):
        ino = await put(one.fs, b"f", b"x")
        modes: dict[int, int] = {}  # when it was told last
        kernel = SimpleNamespace(
            drop_inode=lambda ino, *, content: modes.update({ino: known(one.fs.ns, ino).mode & 0o777}),
            drop_entry=lambda parent, name: None,
            named=lambda ino, parent, name: None,
            drop_all=lambda: None,
        )
        one.fs.ns.attach_kernel(kernel)
        monkeypatch.setattr(one.fs.ns.coherence, "take", lambda document: None)  # no news
        await other.fs.setattr(ino, Changes(mode=0o600), ROOT)
        handle = await one.fs.open(ino, os.O_WRONLY)
        await other.fs.setattr(ino, Changes(mode=0o640), ROOT)
        await one.fs.write(handle, 0, b"y")
        await one.fs.fsync(handle)
        await one.fs.release(handle)
        assert known(one.fs.ns, ino).mode & 0o777 == 0o640
        assert modes[ino] == 0o640


def known(ns: Namespace, ino: int) -> Inode:
    inode = ns.known(ino)
    assert inode is not None
    return inode
