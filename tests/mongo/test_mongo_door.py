"""The door and the checks against real servers: every failure is one of ours, and nothing hangs.

Holds D1 to D3, E1 to E3, C1, C2, C4.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pymongo
import pytest
import trio
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from flakefs.errors import (
    ConfigError,
    Conflict,
    FlakeError,
    NoSpace,
    NotFound,
    OperatorError,
    Refused,
    Unavailable,
)
from flakefs.mongo.clients import check_metadata_server, check_node_server, connect, redacted, server_process
from flakefs.mongo.door import Door, translated
from flakefs.testing.servers import Servers

PATIENCE = 60.0
"""Nothing here may take this long, however busy the machine is; the deadlines are a tenth of it."""


@pytest.fixture
def door(servers: Servers) -> Iterator[Door]:
    door = Door(connect(servers.metadata_uri, purpose="test"), name="the metadata server")
    yield door
    door.close()


@pytest.fixture
def impatient(private_servers: Servers) -> Iterator[Door]:
    door = Door(connect(private_servers.node_uri(), purpose="test"), name="node 1", deadline_seconds=1.0, threads=2)
    yield door
    private_servers.node().resume()
    door.close()


async def test_run_gives_the_result(door: Door, database: str) -> None:
    things = door.client[database].things
    await door.run(partial(things.insert_one, {"_id": 1}))
    assert await door.run(partial(things.find_one, {"_id": 1})) == {"_id": 1}
    assert door.run_sync(partial(things.find_one, {"_id": 2})) is None


async def test_our_own_errors_pass_untouched(door: Door) -> None:
    error = NotFound("no such thing")

    def call() -> None:
        raise error

    with pytest.raises(NotFound) as caught:
        await door.run(call)
    assert caught.value is error


async def test_a_bug_is_not_dressed_up(door: Door) -> None:
    with pytest.raises(ZeroDivisionError):
        await door.run(lambda: 1 // 0)


async def test_a_guard_that_fails_is_a_conflict(door: Door, database: str) -> None:
    things = door.client[database].things
    await door.run(partial(things.insert_one, {"_id": 1}))
    with pytest.raises(Conflict):
        await door.run(partial(things.insert_one, {"_id": 1}))
    with pytest.raises(Conflict):
        await door.run(partial(things.insert_many, [{"_id": 1}]))


async def test_a_write_conflict_in_a_transaction_is_a_conflict(door: Door, database: str) -> None:
    things = door.client[database].things
    await door.run(partial(things.insert_one, {"_id": 1}))

    def clash() -> None:
        with door.client.start_session() as one, door.client.start_session() as two, one.start_transaction():
            things.update_one({"_id": 1}, {"$set": {"a": 1}}, session=one)
            with two.start_transaction():
                things.update_one({"_id": 1}, {"$set": {"a": 2}}, session=two)

    with pytest.raises(Conflict):
        await door.run(clash)


async def test_nonsense_is_refused_with_its_code(door: Door, database: str) -> None:
    with pytest.raises(Refused) as caught:
        await door.run(partial(door.client[database].command, "noSuchCommand"))
    assert caught.value.code == 59
    assert "the metadata server" in str(caught.value)
    with pytest.raises(Refused):
        await door.run(partial(door.client[database].things.insert_one, {"_id": 1, "d": bytes(17 * 1024 * 1024)}))


async def test_a_slow_operation_ends_at_its_deadline(door: Door, database: str) -> None:
    await door.run(partial(door.client[database].things.insert_one, {"_id": 1}))
    slow = partial(door.client[database].things.find_one, {"$where": "sleep(600000) || true"})
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await door.run(slow, deadline_seconds=0.5)
    assert time.monotonic() - started < PATIENCE


async def test_paused_server_times_out_for_all_who_wait(impatient: Door, private_servers: Servers) -> None:
    ping = partial(impatient.client.admin.command, "ping")
    await impatient.run(ping)
    private_servers.node().pause()
    failures = []

    async def ask() -> None:
        with pytest.raises(Unavailable) as caught:
            await impatient.run(ping)
        failures.append(str(caught.value))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(ask)
    assert len(failures) == 40
    assert any("has answered nobody" in failure for failure in failures), "queued calls were tried one by one"
    private_servers.node().resume()
    await wait_until_answered(impatient, ping)


async def test_gone_server_is_unavailable_and_comes_back(impatient: Door, private_servers: Servers) -> None:
    ping = partial(impatient.client.admin.command, "ping")
    first = impatient.run_sync(partial(server_process, impatient.client))
    assert impatient.run_sync(partial(server_process, impatient.client)) == first
    private_servers.node().kill()
    with trio.fail_after(PATIENCE), pytest.raises(Unavailable) as caught:
        await impatient.run(ping)
    assert "node 1 does not answer" in str(caught.value)
    assert "Topology" not in str(caught.value)
    private_servers.node().start()
    await wait_until_answered(impatient, ping)
    assert impatient.run_sync(partial(server_process, impatient.client)) != first


async def wait_until_answered(door: Door, call: Callable[..., Any]) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            try:
                await door.run(call)
                return
            except Unavailable:
                await trio.sleep(0.05)


async def test_closing_does_not_wait_for_a_dead_server(private_servers: Servers) -> None:
    door = Door(connect(private_servers.node_uri(), purpose="test"), name="node 1")
    with door.client.start_session() as session:
        door.run_sync(partial(door.client.x.things.insert_one, {"_id": 1}, session=session))
    private_servers.node().pause()
    try:
        with trio.fail_after(PATIENCE):
            await trio.to_thread.run_sync(door.close)
    finally:
        private_servers.node().resume()
    assert private_servers.node().pid


async def test_a_closed_door_is_not_a_crash(private_servers: Servers) -> None:
    door = Door(connect(private_servers.node_uri(), purpose="test"), name="node 1")
    door.close()
    with pytest.raises(Refused):
        await door.run(partial(door.client.admin.command, "ping"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OperationFailure("no", 14031), NoSpace),
        (OperationFailure("28: No space left on device", 8), NoSpace),
        (BulkWriteError({"writeErrors": [{"code": 14031, "errmsg": "x", "index": 0}]}), NoSpace),
        (OperationFailure("shutting down", 91), Unavailable),
        (BulkWriteError({"writeErrors": [], "writeConcernErrors": [{"code": 91, "errmsg": "x"}]}), Unavailable),
        (OperationFailure("x", 112, {"errorLabels": ["TransientTransactionError"]}), Conflict),
        (OperationFailure("This MongoDB deployment does not support retryable writes. Please", 20), Unavailable),
        (OperationFailure("transaction is too large and will not fit in the storage engine cache", 388), Unavailable),
        (OperationFailure("not authorized", 13), Refused),
        (OperationFailure("x", 1), Refused),
        (pymongo.errors.NotPrimaryError("x"), Unavailable),
        (pymongo.errors.WaitQueueTimeoutError("x"), Unavailable),
        (pymongo.errors.ConfigurationError("x"), Refused),
    ],
    ids=repr,
)
def test_translation(error: PyMongoError, kind: type[FlakeError]) -> None:
    failure = translated(error, "node 7")
    assert type(failure) is kind
    assert "node 7" in str(failure)
    assert not isinstance(failure, NotFound), "E1"


def test_a_refusal_does_not_print_the_command() -> None:
    said = 'not authorized on files to execute command { insert: "inodes", documents: [ { n: "private" } ] }'
    failure = translated(pymongo.errors.OperationFailure(said, 13), "node 7")
    assert "not authorized on files" in str(failure)
    assert "private" not in str(failure)


def test_checks_pass_on_good_servers(servers: Servers, database: str) -> None:
    with connect(servers.metadata_uri, purpose="test") as client:
        check_metadata_server(client, servers.metadata_uri)
    with connect(servers.node_uri(), purpose="test") as client:
        check_node_server(client, servers.node_uri(), database)
        assert client[database].list_collection_names() == [], "the probe stayed behind"


def test_metadata_on_a_standalone_server(servers: Servers) -> None:
    with (
        connect(servers.node_uri(), purpose="test") as client,
        pytest.raises(OperatorError, match=r"standalone.*--replSet"),
    ):
        check_metadata_server(client, servers.node_uri())


def test_wrong_password_and_missing_rights(private_servers: Servers, database: str) -> None:
    server = private_servers.server("guarded", auth=True, replica_set=True)
    wrong = server.uri.replace(server.password, "wrong-secret")
    with connect(wrong, purpose="test") as client, pytest.raises(Refused) as caught:
        check_metadata_server(client, wrong)
    assert "password" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
    assert caught.value.code == 18
    nobody = server.plan.uri
    with connect(nobody, purpose="test") as client, pytest.raises(Refused, match="rights"):
        check_node_server(client, nobody, database)
    with connect(server.uri, purpose="test") as client:
        check_metadata_server(client, server.uri)
        check_node_server(client, server.uri, database)


def test_unreachable_server(tmp_path: Path) -> None:
    uri = f"mongodb://{str(tmp_path / 'nobody.sock').replace('/', '%2F')}/"
    started = time.monotonic()
    with connect(uri, purpose="test", deadline_seconds=0.5) as client, pytest.raises(Unavailable) as caught:
        check_node_server(client, uri, "x")
    assert str(tmp_path / "nobody.sock") in str(caught.value)
    assert time.monotonic() - started < PATIENCE


@pytest.mark.parametrize(
    "uri",
    [
        "http://x",
        "",
        "mongodb://",
        "mongodb://u:top-secret@x:notaport/",
        "mongodb://x/?nonsense=1",
        "mongodb://x/?w=0",
        "mongodb://x/?readPreference=secondary",
        "mongodb://u:top-secret@x/?authMechanism=top-secret",
        "mongodb://u:top@secret@x/",
    ],
)
def test_bad_uris_are_refused_without_their_password(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(uri, purpose="test")
    assert "secret@" not in str(caught.value)
    assert ":top" not in str(caught.value)


def test_redacted() -> None:
    assert redacted("mongodb://u:p@h:1,i/db?x=1") == "mongodb://u:***@h:1,i/db?x=1"
    assert redacted("mongodb+srv://u:p%40q@h/") == "mongodb+srv://u:***@h/"
    assert redacted("mongodb://%2Fvar%2Fa.sock/") == "mongodb:///var/a.sock/"


def test_a_client_has_every_time_out() -> None:
    with connect("mongodb://127.0.0.1:9/?socketTimeoutMS=0&timeoutMS=0", purpose="test", deadline_seconds=3) as client:
        options = client.options
        assert options.timeout == 3
        assert options.pool_options.socket_timeout == 3
        assert options.pool_options.connect_timeout == 3
        assert options.pool_options.wait_queue_timeout == 3
        assert options.server_selection_timeout == 3
        assert options.read_preference.name == "Primary"


def test_purpose_is_the_application_name(servers: Servers) -> None:
    with connect(servers.node_uri(), purpose="test") as client:
        client.admin.command("ping")
        names = [op.get("appName") for op in client.admin.aggregate([{"$currentOp": {"allUsers": True}}])]
    assert "flakefs-test" in names
