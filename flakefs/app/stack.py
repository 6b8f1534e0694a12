"""From a configuration to an open file system: every layer in its place, and out again in reverse order.

Purpose
    The one module that knows how the layers are stacked. The mount, the Python interface, the command line and the
    tests open a file system here, so that none of them can do it differently.

Invariants
    A1  A file system is open only while this process holds a session; the session is closed last of all, when
        everything is committed and nothing of the stack runs any more.
    A2  The embedded servers run from before the first connection until after the last one is closed.
    A3  Namespace and engine have separate clients for the metadata database, so that a stat never queues behind the
        index look-ups of bulk data.
    A4  An error in the body, or in one of the tasks of the stack, leaves as itself and not wrapped in a group.

Concurrency
    open_filesystem() runs in trio; metadata_door() blocks and is meant for commands, and for the start of a process.

Not here
    What a mount does around it (app.daemon), configuration files (config).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import trio

from flakefs.config import Config
from flakefs.engine import open_engine
from flakefs.engine.admin import read_filesystem
from flakefs.errors import ConfigError
from flakefs.format.records import NodeRecord
from flakefs.mongo.clients import check_metadata_server, connect
from flakefs.mongo.door import Door
from flakefs.mongo.embedded import Embedded, Urls, hold
from flakefs.mongo.secrets import has_clear_secret, masked
from flakefs.mongo.stream import watch_sessions
from flakefs.namespace.sessions import Session, open_session
from flakefs.vfs import FileSystem, open_vfs

EMBEDDED = "embedded"
"""The URI of the node that FlakeFS starts itself."""
SAME_AS_METADATA = "metadata"
"""The URI of a node on the metadata server: in place of one that would store the password of the configuration."""

WATCH_SECONDS = 10.0
"""Longer than the server may be silent while nothing changes."""

Resolve = Callable[[NodeRecord], str]
"""From a node to the URI that leads to it from here."""


@contextmanager
def metadata_door(config: Config, *, purpose: str) -> Iterator[tuple[Door, Resolve]]:
    """The way to the metadata database, checked, and how to find nodes. Embedded servers are started when used."""
    with _urls(config) as (uri, resolve), _door(config, uri, purpose, "metadata") as door:
        check_metadata_server(door.client, uri)
        yield door, resolve


class Stack(NamedTuple):
    """An open file system and the parts that tools look into."""

    fs: FileSystem
    door: Door
    """To the metadata database."""
    database: str
    session: Session


@asynccontextmanager
async def open_filesystem(config: Config, *, kind: str, writable: bool, where: str = "") -> AsyncIterator[FileSystem]:
    """The FileSystem of open_stack()."""
    async with open_stack(config, kind=kind, writable=writable, where=where) as stack:
        yield stack.fs


@asynccontextmanager
async def open_stack(config: Config, *, kind: str, writable: bool, where: str = "") -> AsyncIterator[Stack]:
    """An open file system. *kind* ("mount", "tool") and *where* tell others who holds it (HeldElsewhere).

    Everything written is committed on the way out; the exit raises when that fails.
    """
    try:
        async with _embedded(config) as urls:
            uri = urls.metadata if urls else config.metadata_uri
            resolve = _resolver(urls, config.metadata_uri)
            with (
                _door(config, uri, kind, "metadata") as door,
                _door(config, uri, f"{kind}-index", "chunk index") as index,
            ):
                await trio.to_thread.run_sync(check_metadata_server, door.client, uri, abandon_on_cancel=True)
                record = await door.run(lambda: read_filesystem(door, config.database))
                session = await open_session(
                    door,
                    config.database,
                    kind=kind,
                    writable=writable,
                    where=where,
                    shared=True,
                    lease_seconds=config.namespace.lease_seconds,
                )
                watch = partial(
                    watch_sessions,
                    partial(connect, uri, purpose="stream", deadline_seconds=WATCH_SECONDS),
                    config.database,
                )
                async with (
                    _held(session),
                    open_engine(
                        index,
                        config.database,
                        record,
                        config.engine,
                        resolve=resolve,
                        writable=writable,
                        session=session.epoch if writable else None,
                    ) as engine,
                    open_vfs(
                        door, config.database, record, engine, session, config.namespace, config.vfs, watch=watch
                    ) as fs,
                ):
                    yield Stack(fs, door, config.database, session)
    except BaseExceptionGroup as group:  # A4: the nurseries of the stack wrap what passes through them
        raise sole(group) from None


def database_of(uri: str) -> str:
    """The database that a MongoDB URI names ("mongodb://host/name?..."); "" when it names none."""
    if "://" not in uri:
        return ""
    try:
        return unquote(urlsplit(masked(uri)).path.lstrip("/"))
    except ValueError:  # a broken address; connect() says so
        return ""


def first_node_uri(config: Config) -> str:
    """Of a node beside the metadata, as it may be stored."""
    uri = config.metadata_uri
    return SAME_AS_METADATA if has_clear_secret(uri) else uri or EMBEDDED


@contextmanager
def _urls(config: Config) -> Iterator[tuple[str, Resolve]]:
    """(URI of the metadata server, resolver of nodes); A2."""
    uri = config.metadata_uri
    with nullcontext(None) if uri else hold(config.embedded) as urls:
        yield urls.metadata if urls else uri, _resolver(urls, uri)


@asynccontextmanager
async def _embedded(config: Config) -> AsyncIterator[Urls | None]:
    """The embedded servers, if they are used; whoever waits for them can be cancelled (A2)."""
    if config.metadata_uri:
        yield None
        return
    servers = Embedded(config.embedded)
    await trio.to_thread.run_sync(partial(servers.acquire, check=trio.from_thread.check_cancelled))
    try:
        yield servers.urls
    finally:
        servers.release()


def _resolver(urls: Urls | None, metadata_uri: str) -> Resolve:
    def resolve(node: NodeRecord) -> str:
        if node.uri == SAME_AS_METADATA:
            return urls.metadata if urls else metadata_uri
        if node.uri != EMBEDDED:
            return node.uri
        if urls is None:
            raise ConfigError(
                f"node {node.id} is the embedded one, but the configuration names a metadata server: "
                "its chunks can be reached only with [metadata] uri empty"
            )
        return urls.node

    return resolve


@contextmanager
def _door(config: Config, uri: str, purpose: str, name: str) -> Iterator[Door]:
    deadline = config.metadata_deadline_seconds
    client = connect(uri, purpose=purpose, deadline_seconds=deadline)
    door = Door(client, name=name, deadline_seconds=deadline)
    try:
        yield door
    finally:
        door.close()


@asynccontextmanager
async def _held(session: Session) -> AsyncIterator[None]:
    """Keep the session alive during the body, then close it, also when the body was cancelled (A1)."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.heartbeat_forever)
            yield
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):  # bounded by the deadline of the door
            await session.close()


def sole(error: BaseException) -> BaseException:
    """The error in nested groups of one; of several, the first that is not a mere cancellation."""
    while isinstance(error, BaseExceptionGroup):
        leaves = [leaf for leaf in error.exceptions if not isinstance(leaf, trio.Cancelled)] or error.exceptions
        error = leaves[0]
    return error
