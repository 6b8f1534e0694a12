"""Commits that fail, are in doubt, or belong to a session that is dead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from flakefs.errors import Conflict, Fenced, NoSpace, NotFormatted, ReadOnly, StoreError, Unavailable
from flakefs.format.documents import COUNTERS, INODES, ORPHANS, SESSIONS
from flakefs.mongo.clients import connect
from flakefs.mongo.door import Door
from flakefs.namespace import NamespaceOptions, journal
from flakefs.values import Block

QUICK = NamespaceOptions(commit_interval_seconds=0.02, error_timeout_seconds=0.2)
PATIENT = NamespaceOptions(commit_interval_seconds=3600, error_timeout_seconds=60)


async def test_changes_are_stored_at_intervals(world) -> None:
    async with world.open(QUICK) as ns:
        await world.file(ns, ns.root, b"f", b"data")
        with trio.fail_after(20):
            while not world.tree():  # noqa: ASYNC110
                await trio.sleep(0.01)
        world.audit()


async def test_a_large_group_is_stored_at_once_and_changes_wait_for_room(world) -> None:
    options = NamespaceOptions(commit_interval_seconds=3600, group_documents=20, dirty_documents_max=40)
    async with world.open(options) as ns:
        with trio.fail_after(30):
            most = 0
            for number in range(500):
                await world.file(ns, ns.root, b"%d" % number)
                most = max(most, len(ns._cache.dirty))
            assert most <= 42
            await ns.room()
        assert ns.statistics().commits > 5
    world.audit()
    assert len(world.tree()) == 500


async def test_concurrent_commits_share_one_and_see_what_was_before_them(world) -> None:
    """J2."""
    async with world.open() as ns:
        await ns.commit()
        before = ns.statistics().commits

        async def save(number: int) -> None:
            await world.file(ns, ns.root, b"%d" % number, b"%d" % number)
            await ns.commit()
            assert world.db[INODES].count_documents({"n": str(number)}) == 1

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(save, number)
        assert ns.statistics().commits - before < 5
        done = ns.statistics().commits
        await ns.commit()
        assert ns.statistics().commits == done, "nothing was left to store"
    world.audit()


async def test_changes_during_a_commit_belong_to_the_next(world) -> None:
    """J1, G1."""
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f", b"1111")
        went_on = trio.Event()

        async def store(blocks: list[Block]) -> None:
            await world.write(ns, file, 0, b"2222")
            await ns.rename(ns.root, b"f", ns.root, b"g", now=1)
            await world.file(ns, ns.root, b"f", b"3333")
            world.content.store = real
            went_on.set()
            await real(blocks)

        real = world.content.store
        world.content.store = store
        await ns.commit()
        assert went_on.is_set()
        assert {path: world.content_of(record) for path, record in world.tree().items()} == {b"/f": [(0, b"1111")]}
        world.audit()
    world.audit()
    assert {path: world.content_of(record) for path, record in world.tree().items()} == {
        b"/g": [(0, b"2222")],
        b"/f": [(0, b"3333")],
    }


@pytest.mark.parametrize("applied", [False, True], ids=["lost", "applied"])
async def test_an_unknown_outcome_is_found_out(world, monkeypatch: pytest.MonkeyPatch, applied: bool) -> None:
    """T1, T4, P5: the answer is lost; the next attempt tells whether the first went through; nothing is done twice."""
    real = journal.transact
    attempts = 0

    def transact(*args, **keywords):
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
        assert world.db[SESSIONS].find_one({"_id": world.session.epoch})["commits"] == 2
        world.audit()
        await world.write(ns, await ns.child(ns.root, b"new"), 3, b"!")
    world.audit()


@pytest.mark.logs
async def test_the_metadata_server_is_gone_for_a_while(private_servers, world_at) -> None:
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


async def test_inodes_are_counted_without_the_metadata_server_too(private_servers, world_at) -> None:
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


async def test_the_metadata_server_is_killed_between_commits(private_servers, world_at) -> None:
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
async def test_nodes_that_fail_are_tried_again(world) -> None:
    async with world.open(NamespaceOptions(error_timeout_seconds=60)) as ns:
        world.content.fail = [Unavailable("node 1 does not answer")] * 3
        file = await world.file(ns, ns.root, b"f", b"data")
        await ns.commit()
        assert world.content.calls == 4
        world.audit()
    async with world.open(NamespaceOptions(commit_interval_seconds=0.05, error_timeout_seconds=0.3)) as ns:
        world.content.fail = [Unavailable("node 1 does not answer")] * 10_000
        file = await ns.child(ns.root, b"f")
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
async def test_a_commit_after_a_failure_tries_at_once(world, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_full_nodes_refuse_the_commit_and_nothing_else(world) -> None:
    """J5, P8."""
    async with world.open() as ns:
        old = await world.file(ns, ns.root, b"old", b"old")
        await ns.commit()
        world.content.full = True
        big = await world.file(ns, ns.root, b"big", b"too much")
        await ns.link(big, ns.root, b"also", now=1)
        await world.write(ns, old, 0, b"OLD!")
        await ns.rename(ns.root, b"old", ns.root, b"older", now=1)
        for _ in range(2):
            with trio.fail_after(20), pytest.raises(NoSpace):
                await ns.commit()
        assert ns.failure is None
        world.audit()
        assert set(world.tree()) == {b"/old"}
        await world.folder(ns, ns.root, b"old")  # G2: that the old name moves is not forgotten
        await ns.rename(ns.root, b"older", ns.root, b"oldest", now=2)
        await ns.unlink(ns.root, b"big", now=2)
        await ns.unlink(ns.root, b"also", now=2)
        await ns.truncate(old, 0)
        await ns.commit()  # nothing needs a node any more
        world.audit()
        assert {path: record.size for path, record in world.tree().items()} == {b"/old": 0, b"/oldest": 0}
        world.content.full = False
        await world.write(ns, old, 0, b"fits")
    world.audit()
    assert world.bytes_of


@pytest.mark.logs
async def test_leaving_says_what_could_not_be_stored(world) -> None:
    """Q3."""

    async def fill() -> None:
        async with world.open() as ns:
            world.content.full = True
            await world.file(ns, ns.root, b"f", b"data")

    with pytest.raises(NoSpace):
        await fill()
    world.audit()
    world.db[SESSIONS].update_many({}, {"$set": {"state": "dead"}})


async def test_errors_inside_leave_as_they_are(world) -> None:
    """A nursery must not wrap what the caller raises; and what was changed before is stored."""

    async def fall() -> None:
        async with world.open() as ns:
            await world.file(ns, ns.root, b"f")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fall()
    assert set(world.tree()) == {b"/f"}
    world.db[SESSIONS].update_many({}, {"$set": {"state": "dead"}})
    with trio.CancelScope() as scope:
        async with world.open() as ns:
            await world.file(ns, ns.root, b"g")
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert set(world.tree()) == {b"/f", b"/g"}


@pytest.mark.logs
async def test_a_dead_session_stores_nothing(world) -> None:
    """T1, L2."""
    async with world.open(crash=True) as ns:
        await world.file(ns, ns.root, b"f", b"data")
        world.db[SESSIONS].update_one({"_id": world.session.epoch}, {"$set": {"state": "dead"}})
        with pytest.raises(Fenced):
            await ns.commit()
        assert isinstance(ns.failure, Fenced)
        with pytest.raises(ReadOnly):
            await world.file(ns, ns.root, b"g")
        with pytest.raises(Fenced):
            await ns.commit()
        assert world.tree() == {}
    world.audit(leaks=True)


@pytest.mark.logs
@pytest.mark.parametrize("damage", ["version", "gone", "name"])
async def test_a_failed_guard_undoes_the_whole_group(world, damage: str) -> None:
    """T2."""
    async with world.open(crash=True) as ns:
        file = await world.file(ns, ns.root, b"f", b"data")
        await ns.commit()
        await world.file(ns, ns.root, b"other", b"more")
        if damage == "version":
            world.db[INODES].update_one({"_id": file.ino}, {"$inc": {"v": 1}})
        elif damage == "gone":
            world.db[INODES].delete_one({"_id": file.ino})
        else:
            world.db[INODES].insert_one(world.db[INODES].find_one({"_id": file.ino}) | {"_id": 10**6, "n": "other"})
        file.mode = 0o100600
        ns.changed(file)
        inodes = list(world.db[INODES].find())
        with pytest.raises(Conflict):
            await ns.commit()
        assert list(world.db[INODES].find()) == inodes
        assert isinstance(ns.failure, Conflict)


async def test_a_bug_in_a_commit_loses_nothing(world, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """J3."""
    real = journal.transact
    failures = iter([KeyError("x")])

    def transact(*args, **keywords):
        for failure in failures:
            raise failure
        return real(*args, **keywords)

    caplog.set_level("CRITICAL", logger="flakefs.namespace.journal")
    monkeypatch.setattr(journal, "transact", transact)
    async with world.open() as ns:
        await world.file(ns, ns.root, b"f", b"data")
        await ns.commit()
    world.audit()
    assert set(world.tree()) == {b"/f"}


@pytest.mark.logs
async def test_a_bug_that_stays_is_logged_once(world, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    real = journal.transact
    failures = iter([*[KeyError("x")] * 5, *[KeyError("y")] * 3, KeyError("x")])

    def transact(*args, **keywords):
        for failure in failures:
            raise failure
        return real(*args, **keywords)

    def logged() -> list[str]:
        return [repr(record.exc_info[1]) for record in caplog.records if record.exc_info]

    monkeypatch.setattr(journal, "PAUSE_MAX_SECONDS", 0.02)
    monkeypatch.setattr(journal, "transact", transact)
    async with world.open() as ns:
        await world.file(ns, ns.root, b"f", b"data")
        await ns.commit()
        assert logged() == ["KeyError('x')", "KeyError('y')", "KeyError('x')"]
        monkeypatch.setattr(journal, "REMIND_SECONDS", 0.0)
        failures = iter([KeyError("x")] * 2)
        await world.file(ns, ns.root, b"g", b"data")
        await ns.commit()
        assert len(logged()) == 5
    world.audit()


async def test_numbers_are_never_given_twice(world) -> None:
    """N1."""
    seen: set[int] = set()
    for _ in range(3):
        async with world.open(crash=True) as ns:
            inos = [(await world.file(ns, ns.root, b"%d" % number)).ino for number in range(50)]
            assert not seen.intersection(inos)
            seen.update(inos)
        world.db[SESSIONS].update_many({}, {"$set": {"state": "dead"}})
    assert len(seen) == 150
    assert world.db[COUNTERS].find_one({"_id": "ino"})["next"] > max(seen)


async def test_an_empty_database_is_no_file_system(world) -> None:
    world.db[INODES].delete_many({})
    with pytest.raises(NotFormatted):
        async with world.open():
            pass
    world.db[SESSIONS].delete_many({})
    world.db[ORPHANS].delete_many({})


@pytest.fixture
def world_at(world, request: pytest.FixtureRequest) -> Callable[[str], object]:
    """The same kind of world on another server."""

    def make(uri: str) -> object:
        door = Door(connect(uri, purpose="test", deadline_seconds=2), name="the metadata server", deadline_seconds=2)
        request.addfinalizer(door.close)
        return type(world)(door, "elsewhere")

    return make
