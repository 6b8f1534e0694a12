"""Commits that fail, are in doubt, or belong to a session that is dead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import trio

from flakefs.errors import Conflict, Fenced, NoSpace, NotFormatted, ReadOnly
from flakefs.format.documents import COUNTERS, INODES, ORPHANS, SESSIONS
from flakefs.namespace import NamespaceOptions, commit, journal
from flakefs.values import Block
from tests.namespace.conftest import World

QUICK = NamespaceOptions(commit_interval_seconds=0.02, error_timeout_seconds=0.2)


async def test_changes_are_stored_at_intervals(world: World) -> None:
    async with world.open(QUICK) as ns:
        await world.file(ns, ns.root, b"f", b"data")
        with trio.fail_after(20):
            while not world.tree():  # noqa: ASYNC110
                await trio.sleep(0.01)
        world.audit()


async def test_a_large_group_is_stored_at_once_and_changes_wait_for_room(world: World) -> None:
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


async def test_concurrent_commits_share_one_and_see_what_was_before_them(world: World) -> None:
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


async def test_changes_during_a_commit_belong_to_the_next(world: World) -> None:
    """J1, G1."""
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f", b"1111")
        went_on = trio.Event()

        async def store(blocks: Iterable[Block]) -> None:
            await world.write(ns, file, 0, b"2222")
            await ns.rename(ns.root, b"f", ns.root, b"g", now=1)
            await world.file(ns, ns.root, b"f", b"3333")
            world.content.store = real  # type: ignore[method-assign]
            went_on.set()
            await real(blocks)

        real = world.content.store
        world.content.store = store  # type: ignore[method-assign]
        await ns.commit()
        assert went_on.is_set()
        assert {path: world.content_of(record) for path, record in world.tree().items()} == {b"/f": [(0, b"1111")]}
        world.audit()
    world.audit()
    assert {path: world.content_of(record) for path, record in world.tree().items()} == {
        b"/g": [(0, b"2222")],
        b"/f": [(0, b"3333")],
    }


async def test_full_nodes_refuse_the_commit_and_nothing_else(world: World) -> None:
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
async def test_leaving_says_what_could_not_be_stored(world: World) -> None:
    """Q3."""

    async def fill() -> None:
        async with world.open() as ns:
            world.content.full = True
            await world.file(ns, ns.root, b"f", b"data")

    with pytest.raises(NoSpace):
        await fill()
    world.audit()
    world.db[SESSIONS].update_many({}, {"$set": {"state": "dead"}})


async def test_errors_inside_leave_as_they_are(world: World) -> None:
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
async def test_a_dead_session_stores_nothing(world: World) -> None:
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
async def test_a_failed_guard_undoes_the_whole_group(world: World, damage: str) -> None:
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
            world.db[INODES].insert_one(world.stored(INODES, file.ino) | {"_id": 10**6, "n": "other"})
        file.mode = 0o100600
        ns.changed(file)
        inodes = list(world.db[INODES].find())
        with pytest.raises(Conflict):
            await ns.commit()
        assert list(world.db[INODES].find()) == inodes
        assert isinstance(ns.failure, Conflict)


async def test_a_bug_in_a_commit_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """J3."""
    real = commit.transact
    failures = iter([KeyError("x")])

    def transact(*args: Any, **keywords: Any) -> Any:
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
async def test_a_bug_that_stays_is_logged_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = commit.transact
    failures = iter([*[KeyError("x")] * 5, *[KeyError("y")] * 3, KeyError("x")])

    def transact(*args: Any, **keywords: Any) -> Any:
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


async def test_numbers_are_never_given_twice(world: World) -> None:
    """N1."""
    seen: set[int] = set()
    for _ in range(3):
        async with world.open(crash=True) as ns:
            inos = [(await world.file(ns, ns.root, b"%d" % number)).ino for number in range(50)]
            assert not seen.intersection(inos)
            seen.update(inos)
        world.db[SESSIONS].update_many({}, {"$set": {"state": "dead"}})
    assert len(seen) == 150
    assert world.stored(COUNTERS, "ino")["next"] > max(seen)


async def test_an_empty_database_is_no_file_system(world: World) -> None:
    world.db[INODES].delete_many({})
    with pytest.raises(NotFormatted):
        async with world.open():
            pass
    world.db[SESSIONS].delete_many({})
    world.db[ORPHANS].delete_many({})
