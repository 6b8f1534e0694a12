"""Making a mongod on a unix socket a one-member replica set.

Invariants
    R1  The only member is the socket itself: nothing of the set's configuration names a host or a port. When the
        socket has moved, the member moves with it.

Concurrency
    Synchronous; uses a connection of its own that is gone on return.

Not here
    Processes (mongo.server), ordinary clients (mongo.clients).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure

_POLL_SECONDS = 0.005
_ALREADY_INITIALISED = 23
_NOT_YET_INITIALISED = 94
_UNAUTHORISED = 13


def become_primary(socket: Path, name: str, deadline: float, check: Callable[[], None]) -> None:
    """Return when the server behind *socket* is the primary of the set *name*.

    *check* is called between attempts; it raises when there is no point in waiting, or *deadline* has passed.
    """
    client: MongoClient[dict[str, Any]] = MongoClient(
        f"mongodb://{quote(str(socket), safe='')}/",
        directConnection=True,
        serverSelectionTimeoutMS=1000,
        socketTimeoutMS=5000,
        connectTimeoutMS=5000,
        appname="flakefs-start",
    )
    configured = False
    try:
        while time.monotonic() < deadline:
            try:
                hello = client.admin.command("hello")
                if hello["isWritablePrimary"]:
                    return
                if not configured and ("setName" not in hello or "hosts" not in hello):
                    configured = _configure(client, name, str(socket))
            except ConnectionFailure:
                pass
            check()
            time.sleep(_POLL_SECONDS)
        check()
    finally:
        client.close()


def _configure(client: MongoClient[dict[str, Any]], name: str, host: str) -> bool:
    """Initiate the set, or move its member to where the socket is now. False: too early, ask again."""
    try:
        present = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code not in (_NOT_YET_INITIALISED, _UNAUTHORISED):
            return False
        present = None
    try:
        if present is None:
            client.admin.command("replSetInitiate", {"_id": name, "members": [{"_id": 0, "host": host}]})
        elif present["members"][0]["host"] != host:
            present["members"] = [{**present["members"][0], "host": host}]
            present["version"] += 1
            client.admin.command("replSetReconfig", present, force=True)
    except OperationFailure as error:
        return error.code in (_ALREADY_INITIALISED, _UNAUTHORISED)
    return True
