"""Making mongods on unix sockets a replica set: of one member, or of several.

Invariants
    R1  The members are the sockets themselves: nothing of the set's configuration names a host or a port. When the
        sockets have moved, the members move with them.

Concurrency
    Synchronous; uses connections of its own that are gone on return.

Not here
    Processes (mongo.server), ordinary clients (mongo.clients).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

_POLL_SECONDS = 0.005
_ALREADY_INITIALISED = 23
_NOT_YET_INITIALISED = 94
_UNAUTHORISED = 13

SETTINGS = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}
"""Of a set whose members share a machine: a dead primary is replaced after two seconds instead of ten."""


def become_primary(sockets: Sequence[Path], name: str, deadline: float, check: Callable[[], None]) -> None:
    """Return when one of the servers behind *sockets* is the primary of the set *name*.

    *check* is called between attempts; it raises when there is no point in waiting, or *deadline* has passed.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(_direct(socket)) for socket in sockets]
        configured = False
        while time.monotonic() < deadline:
            hellos = [_hello(client) for client in clients]
            if any(hello is not None and hello["isWritablePrimary"] for hello in hellos):
                return
            outside = [hello is not None and ("setName" not in hello or "hosts" not in hello) for hello in hellos]
            if not configured and all(outside):  # a set is made, and moved, when all its members are there
                configured = _configure(clients[0], name, [str(socket) for socket in sockets])
            check()
            time.sleep(_POLL_SECONDS)
        check()


def member_state(socket: Path, seconds: float = 1.0) -> str:
    """What the server behind *socket* says it is: "primary", "secondary", "standalone", "not ready"; "no answer" when
    it says nothing within *seconds*.
    """
    with _direct(socket, seconds) as client:
        hello = _hello(client)
    if hello is None:
        return "no answer"
    if "setName" not in hello and hello["isWritablePrimary"]:
        return "standalone"
    if hello["isWritablePrimary"]:
        return "primary"
    return "secondary" if hello.get("secondary") else "not ready"


def _direct(socket: Path, seconds: float = 5.0) -> MongoClient[dict[str, Any]]:
    return MongoClient(
        f"mongodb://{quote(str(socket), safe='')}/",
        directConnection=True,
        serverSelectionTimeoutMS=1000,
        socketTimeoutMS=int(seconds * 1000),
        connectTimeoutMS=int(seconds * 1000),
        appname="flakefs-start",
    )


def _hello(client: MongoClient[dict[str, Any]]) -> Mapping[str, Any] | None:
    try:
        return client.admin.command("hello")
    except ConnectionFailure:
        return None


def _configure(client: MongoClient[dict[str, Any]], name: str, hosts: list[str]) -> bool:
    """Initiate the set, or move its members to where the sockets are now. False: too early, ask again."""
    try:
        present = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code not in (_NOT_YET_INITIALISED, _UNAUTHORISED):
            return False
        present = None
    except PyMongoError:
        return False
    try:
        if present is None:
            config: dict[str, Any] = {
                "_id": name,
                "members": [{"_id": i, "host": host} for i, host in enumerate(hosts)],
            }
            if len(hosts) > 1:
                config["settings"] = SETTINGS
            client.admin.command("replSetInitiate", config)
        elif [member["host"] for member in present["members"]] != hosts:
            moved = zip(present["members"], hosts, strict=True)
            present["members"] = [{**member, "host": host} for member, host in moved]
            present["version"] += 1
            client.admin.command("replSetReconfig", present, force=True)
    except OperationFailure as error:
        return error.code in (_ALREADY_INITIALISED, _UNAUTHORISED)
    except ConnectionFailure:
        return False
    return True
