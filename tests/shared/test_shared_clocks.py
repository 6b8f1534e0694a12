"""Clocks that are wrong, and streams that lost something: neither makes anybody believe what is not so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from flakefs.app.stack import metadata_door
from flakefs.config import load
from flakefs.mongo import stream as module
from flakefs.mongo.stream import BROKEN, GAP, HEALTHY, StreamEvent
from flakefs.namespace import NamespaceOptions
from flakefs.testing.mounted import NewMount, new_mount
from flakefs.testing.stack import Fresh, NewFresh
from flakefs.tools.gc import Freed
from flakefs.values import ROOT_INO
from tests.shared.conftest import ROOT, get, put, two, until
from tests.shared.mounts import names, refused, sessions
from tests.shared.mounts import until as until_now
from tests.tools.test_tools_gc import CONTENT, Slow, aged, held_meanwhile

__all__ = ["new_mount"]

HOUR = 3_600
LEASE_SECONDS = 2.0
QUICK = NamespaceOptions(commit_interval_seconds=3600, lease_seconds=LEASE_SECONDS)


async def test_a_clock_that_is_an_hour_off_changes_nothing_but_times(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "time", lambda: time.time() - HOUR)
    async with two(fresh) as (one, other):
        monkeypatch.setattr(other.fs, "_clock", lambda: time.time_ns() + HOUR * 10**9)
        ino = await put(other.fs, b"ahead", b"x")
        await put(one.fs, b"right", b"y")
        await until(lambda: one.fs.ns.stream_lag() is not None)
        lag = one.fs.ns.stream_lag()
        assert lag is not None
        assert lag < HOUR / 2
        assert await get(one.fs, b"/ahead") == b"x"
        assert (await one.fs.inode(ino)).mtime > time.time_ns() + HOUR * 10**9 // 2
        await one.fs.rename(ROOT_INO, b"ahead", ROOT_INO, b"right")
        await one.fs.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
        await until(lambda: other.fs.ns.membership()["news"] >= 3)
        assert await get(other.fs, b"/right") == b"x"
        assert one.session.others == {other.session.epoch}
        assert not one.session.fenced
        assert not other.session.fenced


@pytest.mark.parametrize("loss", [[GAP], [BROKEN, HEALTHY]])
async def test_nothing_known_before_a_loss_is_believed_after_it(
    fresh: Fresh, loss: list[StreamEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SM2, CO3."""
    async with two(fresh) as (one, other):
        await put(one.fs, b"a", b"old")
        ino = await put(one.fs, b"b", b"new")
        for name in (b"a", b"b", b"none"):
            await one.fs.lookup(ROOT_INO, name)
        lost: list[Mapping[str, Any]] = []
        take = one.fs.ns.coherence.take
        monkeypatch.setattr(one.fs.ns.coherence, "take", lost.append)
        await other.fs.rename(ROOT_INO, b"b", ROOT_INO, b"a")
        await put(other.fs, b"none", b"x")
        await until(lambda: sum("news" in document for document in lost) >= 2)
        assert await one.fs.lookup(ROOT_INO, b"b") is not None, "it was lost"
        monkeypatch.setattr(one.fs.ns.coherence, "take", take)
        shared = one.fs.ns._shared
        assert shared is not None
        for event in loss:
            if event.kind == "gap":
                one.fs.ns.coherence.drop_all()
            else:
                shared._note_health(event.kind == "healthy")
                assert one.fs.ns.trusted == (event.kind == "healthy")
        found = await one.fs.lookup(ROOT_INO, b"a")
        assert found is not None
        assert found.ino == ino
        assert await one.fs.lookup(ROOT_INO, b"b") is None
        assert await one.fs.lookup(ROOT_INO, b"none") is not None
        assert await get(one.fs, b"/a") == b"new"


# Sessions: a lease is by the server's clock


WRONG = """import time
right, right_ns = time.time, time.time_ns
time.time = lambda: right() + {seconds}
time.time_ns = lambda: right_ns() + {seconds} * 10**9
"""
BEATS = 4
"""Three of them take a lease."""


@pytest.mark.mount
@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
def test_a_lease_is_by_the_servers_clock(new_mount: NewMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """L3: two mounts whose clocks are wrong are not taken for dead while they live, and are when they stop."""
    right = new_mount(settings={"namespace": {"lease_seconds": LEASE_SECONDS}})
    wrong = []
    for seconds in (-HOUR, HOUR):
        folder = tmp_path / f"clock{seconds}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(WRONG.format(seconds=seconds))
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        mount = right.another()
        monkeypatch.undo()
        mount.expect_log("declared this one dead|cannot be stored|not everything could be stored")
        mount.expect_leaks()
        (mount.path / f"f{seconds}").write_bytes(b"x")
        assert abs((mount.path / f"f{seconds}").stat().st_mtime - time.time() - seconds) < HOUR / 2
        wrong.append(mount)
    with metadata_door(load(right.config), purpose="test") as (door, _):
        documents = door.client[right.database]["sessions"]
        for number, mount in enumerate(right.family):  # for each other they are on other machines
            documents.update_one({"where": str(mount.path)}, {"$set": {"boot": f"machine {number}"}})

        def beats() -> dict[str, Any]:
            return {x["where"]: x["beat"] for x in documents.find({"state": "alive"})}

        everybody = {str(mount.path) for mount in right.family}
        for _ in range(BEATS):
            last = beats()
            assert last.keys() == everybody
            until_now(lambda last=last: all(beat != last.get(where) for where, beat in beats().items()))  # type: ignore[misc]
        assert not any(session.late for session in sessions(right))
        try:
            for mount in wrong:
                mount.signal(signal.SIGSTOP)
            until_now(lambda: beats().keys() == {str(right.path)})
            now = door.client.admin.command("hello")["localTime"]
            for x in documents.find({"state": "dead"}):
                assert (now - x["beat"]).total_seconds() >= LEASE_SECONDS
        finally:
            for mount in wrong:
                mount.signal(signal.SIGCONT)
    for mount in wrong:
        until_now(lambda mount=mount: "declared this one dead" in mount.log_text())  # type: ignore[misc]
        assert refused((mount.path / "late").touch)
    assert names(right.path) == sorted(f"f{seconds}" for seconds in (-HOUR, HOUR))


# Chunks: their age is by the server's clock, whatever the clock of the mount that stores them says


def shift(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """What this process takes for the time; the server's clock is right."""
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + seconds)
    for name in ("flakefs.engine.clock.time", "flakefs.engine.table.time"):
        monkeypatch.setattr(name, lambda: right() + seconds)


async def commit_beside_gc(slow: Slow, meanwhile: bytes) -> Freed:
    """*meanwhile* is written after a commit was cut; it goes through when gc has looked and waits."""
    freed: list[Freed] = []

    def progress(word: str) -> None:
        if "waiting" in word:
            trio.from_thread.run_sync(slow.let_through)

    async with trio.open_nursery() as nursery:
        await slow.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        await slow.begin(nursery)
        await slow.write(meanwhile)
        await until(lambda: slow.fs.engine.statistics().stored_chunks >= 1)
        freed.append(await slow.gc(progress))
        slow.let_through()
    return freed[0]


@pytest.mark.parametrize("hours", [-2, 2])
async def test_what_a_mount_stores_now_is_young(
    new_fresh: NewFresh, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """G1, O10: with a clock that is behind, gc would take it for a leak before its commit."""
    shift(monkeypatch, hours * HOUR)
    fresh = new_fresh(namespace=QUICK)
    async with fresh.open(kind="mount") as stack:
        slow = Slow(stack, fresh, monkeypatch)
        try:
            freed = await commit_beside_gc(slow, b"f")
            await slow.commit()
            assert (freed.chunks, freed.young) == (0, 1)
            assert await slow.read(b"f") == CONTENT
        finally:
            monkeypatch.undo()


@pytest.mark.parametrize("hours", [-3, 3])
async def test_what_a_mount_holds_is_old_when_the_server_says_so(
    new_fresh: NewFresh, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """TA5, G5: with a clock that is behind, it would take it for young, and gc for a leak."""
    shift(monkeypatch, hours * HOUR)
    monkeypatch.setattr("flakefs.engine.inserting.ObjectId", partial(aged, 2 * HOUR - hours * HOUR))
    fresh = new_fresh(namespace=QUICK)
    async with fresh.open(kind="mount") as stack:
        slow = Slow(stack, fresh, monkeypatch)
        try:
            await slow.write(b"a")
            await slow.commit()
            await trio.to_thread.run_sync(slow.leak)  # or gc would have nothing to wait for
            freed = await held_meanwhile(slow)
            assert (freed.chunks, freed.held) == (1, 0)
            assert await slow.read(b"c") == CONTENT
        finally:
            monkeypatch.undo()


async def test_what_a_mount_only_found_is_old_when_the_server_says_so(
    new_fresh: NewFresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TA5: also where it has stored nothing itself that made it ask for the time."""
    fresh = new_fresh(namespace=QUICK)
    with monkeypatch.context() as before:
        before.setattr("flakefs.engine.inserting.ObjectId", partial(aged, 2 * HOUR))
        async with fresh.open() as stack:
            await put(stack.fs, b"kept", CONTENT)
    shift(monkeypatch, -3 * HOUR)
    async with fresh.open(kind="mount") as stack:
        slow = Slow(stack, fresh, monkeypatch)
        try:
            await slow.write(b"a")
            assert stack.fs.engine.statistics().stored_chunks == 0, "it was found"
            await stack.fs.unlink(ROOT_INO, b"kept")
            await slow.commit()
            await trio.to_thread.run_sync(slow.leak)
            freed = await held_meanwhile(slow)
            assert (freed.chunks, freed.held) == (1, 0)
            assert await slow.read(b"c") == CONTENT
        finally:
            monkeypatch.undo()
