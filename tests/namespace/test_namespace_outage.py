"""Commits while servers are away: outcomes in doubt, and trying again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from flakefs.errors import ReadOnly, StoreError, Unavailable
from flakefs.format.documents import SESSIONS
from flakefs.mongo.clients import connect
from flakefs.mongo.door import Door
from flakefs.namespace import NamespaceOptions, commit, journal
from flakefs.testing.servers import Servers
from tests.namespace.conftest import World
from tests.namespace.listings import child_of

PATIENT = NamespaceOptions(commit_interval_seconds=3600, error_timeout_seconds=60)


@pytest.mark.parametrize("applied", [False, True], ids=["lost", "applied"])
async def test_an_unknown_outcome_is_found_out(world: World, monkeypatch: pytest.MonkeyPatch, applied: bool) -> None:
    """T1, T4, P5: the answer is lost; the next attempt tells whether the first went through; nothing is done twice."""
    real = commit.transact
    attempts = 0

    def transact(*args: Any, **keywords: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            if applied:
                assert real(*args, **keywords) is not None
            raise Unavailable("the connection broke")
        return real(*args, **keywords)

    async with world.open(PATIENT) as ns:
        old = await world.file(ns, ns.root, b"old", b"shared")
        await ns.commit()
        monkeypatch.setattr(journal, "transact", transact)
        await world.file(ns, ns.root, b"new", b"shared")
        await world.write(ns, old, 100, b"more")
        await ns.unlink(ns.root, b"old", now=1)
        await ns.commit()
        assert attempts == 2
        assert ns.statistics().retries == 1
        assert world.stored(SESSIONS, world.session.epoch)["commits"] == 2
        world.audit()
        await world.write(ns, await child_of(ns, ns.root, b"new"), 3, b"!")
    world.audit()


@pytest.mark.logs
async def test_the_metadata_server_is_gone_for_a_while(
    private_servers: Servers, world_at: Callable[[str], World]
) -> None:
    """J3, J4, P3: those who wait are told, changes are refused, and all is well when it is back."""
    world = world_at(private_servers.metadata_uri)
    async with world.open(NamespaceOptions(commit_interval_seconds=0.05, error_timeout_seconds=1.0)) as ns:
        folder = await world.folder(ns, ns.root, b"d")
        await ns.commit()
        private_servers.metadata.kill()
        file = await world.file(ns, folder, b"f", b"kept")
        with trio.fail_after(60), pytest.raises(StoreError):
            await ns.commit()
        assert isinstance(ns.failure, Unavailable)
        with pytest.raises(ReadOnly):
            await world.file(ns, folder, b"g")
        with pytest.raises(ReadOnly):
            ns.changed(folder)
        with pytest.raises(StoreError):
            await ns.commit()
        assert ns.peek_child(folder, b"f") is file
        private_servers.metadata.start()
        with trio.fail_after(60):
            while ns.failure is not None:  # noqa: ASYNC110
                await trio.sleep(0.02)
        await world.file(ns, folder, b"g", b"more")
        await ns.commit()
        world.audit()
        assert set(world.tree()) == {b"/d", b"/d/f", b"/d/g"}


async def test_inodes_are_counted_without_the_metadata_server_too(
    private_servers: Servers, world_at: Callable[[str], World]
) -> None:
    """Q4."""
    world = world_at(private_servers.metadata_uri)
    async with world.open() as ns:
        for number in range(5):
            await world.file(ns, ns.root, b"%d" % number)
        await ns.commit()
        assert await ns.inode_count() == 6
        private_servers.metadata.pause()
        ns._count_due = 0.0
        with trio.fail_after(8):  # the deadline of other calls is 10 s
            assert await ns.inode_count() == 6
        private_servers.metadata.resume()
        await world.file(ns, ns.root, b"new")
        await ns.commit()
        ns._count_due = 0.0
        with trio.fail_after(60):
            while await ns.inode_count() != 7:  # noqa: ASYNC110
                await trio.sleep(0.1)


async def test_the_metadata_server_is_killed_between_commits(
    private_servers: Servers, world_at: Callable[[str], World]
) -> None:
    """P1, P5: short outages are only waited for; what was committed is there."""
    world = world_at(private_servers.metadata_uri)
    async with world.open(PATIENT) as ns:
        for number in range(3):
            await world.file(ns, ns.root, b"%d" % number, b"content %d" % number)
            await ns.commit()
            async with trio.open_nursery() as nursery:
                await world.file(ns, ns.root, b"during %d" % number, b"other %d" % number)
                nursery.start_soon(ns.commit)
                await trio.to_thread.run_sync(private_servers.metadata.kill)
                await trio.to_thread.run_sync(private_servers.metadata.start)
            world.audit()
    assert len(world.tree()) == 6


@pytest.mark.logs
async def test_nodes_that_fail_are_tried_again(world: World) -> None:
    async with world.open(NamespaceOptions(error_timeout_seconds=60)) as ns:
        world.content.fail = [Unavailable("node 1 does not answer")] * 3
        file = await world.file(ns, ns.root, b"f", b"data")
        await ns.commit()
        assert world.content.calls == 4
        world.audit()
    async with world.open(NamespaceOptions(commit_interval_seconds=0.05, error_timeout_seconds=0.3)) as ns:
        world.content.fail = [Unavailable("node 1 does not answer")] * 10_000
        file = await child_of(ns, ns.root, b"f")
        await world.write(ns, file, 0, b"DATA")
        with trio.fail_after(30), pytest.raises(Unavailable):
            await ns.commit()
        with pytest.raises(ReadOnly):
            await ns.unlink(ns.root, b"f", now=1)
        world.content.fail = []
        with trio.fail_after(30):
            while ns.failure is not None:  # noqa: ASYNC110
                await trio.sleep(0.02)
        await ns.commit()
        assert world.content_of(world.tree()[b"/f"]) == [(0, b"DATA")]
    world.audit()


@pytest.mark.logs
async def test_a_commit_after_a_failure_tries_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """J4: an fsync right after the server is back succeeds, whenever the journal would have tried again."""
    monkeypatch.setattr(journal, "PAUSE_FIRST_SECONDS", 3600.0)
    monkeypatch.setattr(journal, "PAUSE_MAX_SECONDS", 3600.0)
    monkeypatch.setattr(journal, "HURRY_SECONDS", 0.5)
    async with world.open(NamespaceOptions(commit_interval_seconds=3600, error_timeout_seconds=0.2)) as ns:
        world.content.fail = [Unavailable("node 1 does not answer")] * 2
        await world.file(ns, ns.root, b"f", b"data")
        for calls in (1, 2):
            with trio.fail_after(30), pytest.raises(Unavailable):
                await ns.commit()
            assert world.content.calls == calls
            assert ns.failure is not None
        with trio.fail_after(30):
            await ns.commit()
        assert ns.failure is None
        await world.file(ns, ns.root, b"g")
    world.audit()
    assert set(world.tree()) == {b"/f", b"/g"}


@pytest.fixture
def world_at(world: World, request: pytest.FixtureRequest) -> Callable[[str], object]:
    """The same kind of world on another server."""

    def make(uri: str) -> object:
        door = Door(connect(uri, purpose="test", deadline_seconds=2), name="the metadata server", deadline_seconds=2)
        request.addfinalizer(door.close)
        return type(world)(door, "elsewhere")

    return make
