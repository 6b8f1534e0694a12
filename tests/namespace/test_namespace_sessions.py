"""Registering, leases, and who is declared dead."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import trio

from flakefs.errors import HeldElsewhere
from flakefs.format.documents import SESSIONS
from flakefs.namespace import open_session
from flakefs.namespace.sessions import KEPT_DEAD, boot_id, identity, process_lives
from flakefs.testing.servers import Servers
from tests.namespace.conftest import World


async def test_a_second_writer_is_told_who_holds_the_file_system(world: World) -> None:
    """L1."""
    first = await open_session(world.door, world.name, kind="mount", writable=True, where="$/mnt/flake")
    with pytest.raises(HeldElsewhere) as caught:
        await open_session(world.door, world.name, kind="tool", writable=True, where="")
    for part in ("mount", "$/mnt/flake", os.uname().nodename, str(os.getpid())):
        assert part in str(caught.value)
    reader = await open_session(world.door, world.name, kind="tool", writable=False, where="")
    assert reader.epoch > first.epoch
    await reader.close()
    await first.close()
    second = await open_session(world.door, world.name, kind="tool", writable=True, where="")
    assert second.epoch > reader.epoch
    documents = {x["_id"]: x for x in world.db[SESSIONS].find()}
    assert [documents[s.epoch]["state"] for s in (first, reader, second)] == ["dead", "dead", "alive"]
    assert documents[second.epoch]["mode"] == "rw"
    assert documents[second.epoch]["commits"] == 0


async def test_of_many_newcomers_one_wins(world: World) -> None:
    """L1, registering at the same moment."""
    winners, losers = [], []

    async def register() -> None:
        try:
            winners.append(await open_session(world.door, world.name, kind="mount", writable=True, where=""))
        except HeldElsewhere as error:
            losers.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(register)
    assert (len(winners), len(losers)) == (1, 7)
    assert world.db[SESSIONS].count_documents({"state": "alive"}) == 1


@pytest.mark.parametrize(
    ("change", "alive"),
    [
        ({}, True),
        ({"lease": 0}, True),  # L3: on this host the process itself tells
        ({"pid": 2**22 + 1}, False),
        ({"start": 5}, False),  # the pid was given to another process
        ({"boot": "another host"}, True),
        ({"boot": "another host", "lease": 0}, False),
    ],
)
async def test_who_is_dead(world: World, change: dict[str, object], alive: bool) -> None:
    """L2, L3."""
    first = await open_session(world.door, world.name, kind="mount", writable=True, where="")
    world.db[SESSIONS].update_one({"_id": first.epoch}, {"$set": change})
    if alive:
        with pytest.raises(HeldElsewhere):
            await open_session(world.door, world.name, kind="mount", writable=True, where="")
    else:
        await open_session(world.door, world.name, kind="mount", writable=True, where="")
    state = world.stored(SESSIONS, first.epoch)["state"]
    assert state == ("alive" if alive else "dead")


def test_processes_that_ended_are_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        me = identity()
        assert process_lives(me["pid"], me["start"])
        assert process_lives(child.pid, int(psutil.Process(child.pid).create_time() * 1e9))
    finally:
        child.communicate(b"\n")
    assert not process_lives(child.pid, me["start"])
    assert "pid:" in boot_id(), "a pid means nothing in another pid namespace"


async def test_the_heart_beats_until_the_session_is_declared_dead(world: World) -> None:
    session = await open_session(world.door, world.name, kind="mount", writable=True, where="", lease_seconds=0.03)
    told = trio.Event()
    session.when_fenced = told.set
    begin = world.stored(SESSIONS, session.epoch)["beat"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.heartbeat_forever)
        with trio.fail_after(20):
            while world.stored(SESSIONS, session.epoch)["beat"] == begin:  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert not session.fenced
            world.db[SESSIONS].update_one({"_id": session.epoch}, {"$set": {"state": "dead"}})
            await told.wait()
    assert session.fenced


async def test_old_dead_sessions_are_swept(world: World) -> None:
    old = await open_session(world.door, world.name, kind="mount", writable=True, where="")
    await old.close()
    world.db.counters.update_one({"_id": "session"}, {"$inc": {"next": KEPT_DEAD}})
    session = await open_session(world.door, world.name, kind="mount", writable=True, where="")
    assert [x["_id"] for x in world.db[SESSIONS].find()] == [session.epoch]


KILLED_IN_A_TRANSACTION = """
import sys, trio
from flakefs.mongo.clients import connect
from flakefs.mongo.door import Door
from flakefs.namespace import open_session

async def main(uri, database):
    door = Door(connect(uri, purpose="test"), name="the metadata server")
    session = await open_session(door, database, kind="mount", writable=True, where="")
    session.driver.start_transaction()
    door.client[database].sessions.update_one({"_id": session.epoch}, {"$set": {"commits": 1}}, session=session.driver)
    door.client[database].counters.update_one({"_id": "joined"}, {"$inc": {"next": 1}}, session=session.driver)
    print("in a transaction", flush=True)
    sys.stdin.read()

trio.run(main, *sys.argv[1:])
"""


async def test_the_transaction_of_a_killed_session_is_in_nobodys_way(world: World, servers: Servers) -> None:
    """L4: a server would keep it, and its locks, for a minute."""
    command = [sys.executable, "-c", KILLED_IN_A_TRANSACTION, servers.metadata_uri, world.name]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert child.stdout is not None
        assert await trio.to_thread.run_sync(child.stdout.readline) == b"in a transaction\n"
    finally:
        child.kill()
        child.communicate()
    with trio.fail_after(25):
        session = await open_session(world.door, world.name, kind="mount", writable=True, where="")
    states = [x["state"] for x in world.db[SESSIONS].find().sort("_id", 1)]
    assert states == ["dead", "alive"]
    await session.close()
