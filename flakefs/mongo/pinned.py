"""The commands of one transaction over one connection.

Purpose
    pymongo chooses a server, takes a connection from its pool and puts it back for each command; that is about half of
    what a small command costs this process. A commit in shared mode is a few small commands: here they share that.

Invariants
    PI1  What a command means does not change: session, transaction, deadline and errors are pymongo's own, and an error
         on the way tells pymongo what it tells it otherwise. Only its second attempt at choosing a server is missing.

Concurrency
    Synchronous, inside a door's call. The connection belongs to the caller until the block ends; other commands of the
    same session may use others meanwhile.

Not here
    Beginning and ending transactions (namespace.commit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pymongo.client_session import ClientSession

Command = Callable[[dict[str, Any]], dict[str, Any]]
"""A command document -> the reply; raises what Database.command() does."""


@contextmanager
def one_connection(session: ClientSession, database: str) -> Iterator[Command]:
    """Commands of *session*, each to *database*, for the time of the block."""
    client = session.client
    with client._conn_for_writes(session, "transaction") as connection:
        yield partial(connection.command, database, session=session, client=client)
