"""Commands over one connection: the same meaning, the same errors, one connection (PI1 to PI3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from contextvars import Context
from typing import Any

import pymongo
import pytest
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from flakefs.errors import Conflict
from flakefs.format.documents import Document
from flakefs.mongo import pinned
from flakefs.mongo.pinned import abort, one_connection
from flakefs.testing.servers import Servers

SHORT_SECONDS = 0.5
"""A server that is stopped does not answer, however long one waits."""


class Connections(CommandListener):
    """Which connection each command of a name went over."""

    def __init__(self) -> None:
        self.of: dict[str, list[int | None]] = {}

    def started(self, event: CommandStartedEvent) -> None:
        self.of.setdefault(event.command_name, []).append(event.server_connection_id)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


@pytest.fixture
def heard() -> Connections:
    return Connections()


class Missing:
    """A method that pymongo has not got."""

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError


class Without(MongoClient[Document]):
    _conn_for_writes = Missing()


class Changed(MongoClient[Document]):
    def _conn_for_writes(self, session: object, operation: str, more: object) -> Any:  # type: ignore[override]
        raise NotImplementedError


WAYS: dict[str, tuple[type[MongoClient[Document]], dict[str, Any]]] = {
    "pinned": (MongoClient, {}),
    "without": (Without, {}),
    "changed": (Changed, {}),
    "single": (MongoClient, {"maxPoolSize": 1, "waitQueueTimeoutMS": 1000}),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """One connection, or one for each command because pymongo has another inside, or because there is but one (PI2)."""
    return str(request.param)


@pytest.fixture
def client(servers: Servers, heard: Connections, way: str) -> Iterator[MongoClient[Document]]:
    kind, options = WAYS[way]
    with kind(servers.metadata_uri, event_listeners=[heard], **options) as client:
        yield client


def insert(number: int) -> dict[str, Any]:
    return {"insert": "things", "documents": [{"_id": number}]}


def test_a_transaction_is_committed_as_a_whole(
    client: MongoClient[Document], heard: Connections, database: str, way: str
) -> None:
    things = client[database].things
    with client.start_session() as session:
        session.start_transaction()
        with one_connection(session, database) as command:
            assert command(insert(1))["n"] == 1
            assert things.count_documents({}, session=session) == 1, "others of the session see it"
            assert things.find_one({}) is None, "nobody else does"
            assert command(insert(2))["n"] == 1
        session.commit_transaction()
    assert {document["_id"] for document in things.find()} == {1, 2}
    if way in ("pinned", "single"):
        assert len(set(heard.of["insert"])) == 1


def test_what_is_aborted_inside_is_gone(client: MongoClient[Document], database: str) -> None:
    with client.start_session() as session:
        session.start_transaction()
        with one_connection(session, database) as command:
            command(insert(1))
            session.abort_transaction()
    assert client[database].things.find_one({}) is None


def test_errors_are_those_of_the_driver(client: MongoClient[Document], database: str) -> None:
    things = client[database].things
    things.insert_one({"_id": 1})
    with client.start_session() as session, client.start_session() as other:
        other.start_transaction()
        things.update_one({"_id": 1}, {"$set": {"by": "other"}}, session=other)
        session.start_transaction()
        change = {"update": "things", "updates": [{"q": {"_id": 1}, "u": {"$set": {"by": "session"}}}]}
        with pytest.raises(OperationFailure) as caught, one_connection(session, database) as command:
            command(change)
        assert caught.value.has_error_label("TransientTransactionError")
        session.abort_transaction()
        other.abort_transaction()


def test_an_error_of_ours_passes_and_the_connection_is_used_again(
    client: MongoClient[Document], heard: Connections, database: str
) -> None:
    with client.start_session() as session:
        session.start_transaction()
        with suppress(Conflict), one_connection(session, database) as command:
            command(insert(1))
            raise Conflict("somebody was first")
        session.abort_transaction()
    client[database].things.insert_one({"_id": 2})
    assert len(set(heard.of["insert"])) == 1


def test_a_connection_of_which_nobody_knows_what_comes_next_is_not_used_again(private_servers: Servers) -> None:
    server, heard = private_servers.metadata, Connections()
    with MongoClient[Document](server.uri, event_listeners=[heard]) as client, client.start_session() as session:
        things = client["pinned"]["things"]
        things.insert_one({"_id": 1})
        session.start_transaction()
        with one_connection(session, "pinned") as command:
            server.pause()
            try:
                with pymongo.timeout(SHORT_SECONDS), pytest.raises(AutoReconnect):
                    command(insert(2))
            finally:
                server.resume()
        session.abort_transaction()
        things.insert_one({"_id": 3})
        assert {document["_id"] for document in things.find()} == {1, 3}
    first, _, last = heard.of["insert"]
    assert first != last


def test_the_driver_that_is_installed_has_what_is_used(client: MongoClient[Document], way: str) -> None:
    """Else every commit would be slower, and nobody would notice."""
    assert pinned._as_expected(client) == (way in ("pinned", "single"))


def test_a_driver_whose_connections_are_others(
    client: MongoClient[Document], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "Connection", None)
    with client.start_session() as session:
        session.start_transaction()
        with one_connection(session, database) as command:
            assert command(insert(1))["n"] == 1
        session.commit_transaction()
    assert client[database].things.find_one() == {"_id": 1}


def open_transactions(client: MongoClient[Document], session: ClientSession) -> int:
    """How many the server has open of *session*."""
    wanted = {"lsid.id": session.session_id["id"], "transaction": {"$exists": True}}
    return len(list(client.admin.aggregate([{"$currentOp": {"idleSessions": True}}, {"$match": wanted}])))


@pytest.mark.parametrize("ended", [True, False], ids=["late", "in-time"])
def test_pi3_an_abort_reaches_the_server_whatever_the_deadline(servers: Servers, database: str, ended: bool) -> None:
    with MongoClient[Document](servers.metadata_uri) as client, client.start_session() as session:
        session.start_transaction()
        with pymongo.timeout(0.5):
            with one_connection(session, database) as command:
                command(insert(1))
                while ended:
                    try:
                        client.admin.command("ping")
                    except PyMongoError:
                        break  # the driver sends nothing any more
                assert Context().run(open_transactions, client, session) == 1
            abort(session)
            abort(session)
        assert not session.in_transaction
        assert open_transactions(client, session) == 0
        session.start_transaction()
        abort(session)
