"""The commands of one transaction over one connection, and giving it up.

Purpose
    pymongo chooses a server, takes a connection from its pool and puts it back for each command; that is about half of
    what a small command costs this process. A commit in shared mode is a few small commands: here they share that.
    pymongo has no public way to do so; where its inner ways are not those that this was written for, each command
    takes a connection, as everywhere.

Invariants
    PI1  What a command means does not change: session, transaction, deadline and errors are pymongo's own, and an error
         on the way tells pymongo what it tells it otherwise. Only its second attempt at choosing a server is missing.
    PI2  Nobody waits for the connection he holds: a pool of a single one is not drained by it.
    PI3  abort() is sent also when the deadline of the call is over (pymongo then sends nothing, and the server would
         keep the transaction's locks for a minute), and takes at most ABORT_SECONDS.

Concurrency
    Synchronous, inside a door's call. The connection belongs to the caller until the block ends; other commands of the
    same session may use others meanwhile. At most one block at a time for each client (PI2).

Not here
    Beginning and committing transactions (namespace.commit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from functools import cache, partial
from inspect import signature
from typing import Any

import pymongo
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

try:
    from pymongo.synchronous.pool import Connection
except ImportError:
    Connection = None  # type: ignore[misc, assignment]

ABORT_SECONDS = 2.0

Command = Callable[[dict[str, Any]], dict[str, Any]]
"""A command document -> the reply; raises what Database.command() does."""


@contextmanager
def one_connection(session: ClientSession, database: str) -> Iterator[Command]:
    """Commands of *session*, each to *database*, for the time of the block."""
    client = session.client
    if client.options.pool_options.max_pool_size == 1 or not _as_expected(client):  # PI2
        yield partial(client[database].command, session=session)
        return
    with client._conn_for_writes(session, "transaction") as connection:
        yield partial(connection.command, database, session=session, client=client)


def abort(session: ClientSession) -> None:
    """End the transaction of *session*, if there is one. Where the server does not hear it, the next transaction of
    the same session or the one who buries this process (killSessions) ends it there.
    """
    if session.in_transaction:
        Context().run(_abort, session)  # in ours is the deadline of the call, which can only be made shorter


def _abort(session: ClientSession) -> None:
    with suppress(PyMongoError), pymongo.timeout(ABORT_SECONDS):
        session.abort_transaction()


def _as_expected(client: MongoClient[Any]) -> bool:
    """Has pymongo the methods that one_connection() calls, and do they take what it gives them?"""
    return _takes(getattr(type(client), "_conn_for_writes", None), "client", "session", "operation") and _takes(
        getattr(Connection, "command", None), "connection", "database", "document", session=None, client=None
    )


@cache
def _takes(method: Callable[..., Any] | None, *arguments: str, **words: None) -> bool:
    if method is None:
        return False
    try:
        signature(method).bind(*arguments, **words)
    except (TypeError, ValueError):
        return False
    return True
